//! A bare AF_XDP ping-pong: one socket asks, the other answers, each spinning on its own core.
//! The least that a round trip between two AF_XDP ports can cost, without any protocol.
//!
//! Frame: Ethernet header (14 bytes, ethertype 0x88b5), the request's sequence number (8 bytes),
//! fill, the sequence number again (8 bytes): an answer is right when both are there at its full
//! length, which needs every buffer of a frame that takes several.
//! Source: Linux `Documentation/networking/af_xdp.rst`, "Multi-Buffer Support".

use super::reflector::Steered;
use super::sockets::pinned;
use super::xdp_socket::{Binding, FRAME_BYTES, FRAMES_PER_SOCKET, Received, Umem, XdpSocket};
use super::{OtherSide, is_over, now_and_then};
use crate::drivers::udp::{decode, encode};
use crate::drivers::{LoadArgs, Subject, measure as drive};
use crate::error::Error;
use crate::load::{Content, Ended, Request, Work};
use crate::machine::netns;
use crate::schema::Measurement;
use clap::Args;
use outboard_wire::{Ethernet, Mac, ethernet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Round trips between two AF_XDP sockets, each spinning on its core.
///
/// One interface asks, the other answers; they face each other (the ends of a veth pair).
///
/// Examples:
///   outboard-bench reference ping-pong --a v0 --b v1
///   outboard-bench reference ping-pong --a v0 --b v1 --answer 4160 --seconds 10
///   outboard-bench reference ping-pong --a u0 --netns far --b u1 --b-netns near --depth 16
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct PingPongArgs {
    /// The interface that asks.
    #[arg(long, value_name = "IF")]
    pub a: String,
    /// The interface that answers.
    #[arg(long, value_name = "IF")]
    pub b: String,
    /// The network namespace of both.
    #[arg(long, value_name = "NAME")]
    pub netns: Option<String>,
    /// The network namespace of the answering interface, when it is another.
    #[arg(long, value_name = "NAME")]
    pub b_netns: Option<String>,
    /// Bytes of a request's frame, without FCS: 64 to 9014.
    #[arg(long, value_name = "BYTES", default_value_t = 64)]
    pub ask: u16,
    /// Bytes of an answer's frame; more than 3840 take several buffers. The MTU has to allow it.
    #[arg(long, value_name = "BYTES", default_value_t = 64)]
    pub answer: u16,
    #[command(flatten)]
    pub load: LoadArgs,
}

const SIZES: std::ops::RangeInclusive<u16> = 64..=9014;
/// Frames of the umem that the longest frame takes when sent.
const PARTS: u32 = (*SIZES.end() as u32).div_ceil(FRAME_BYTES as u32);
/// The most requests in flight: each may have a frame under way at either side.
const DEPTH: u16 = 256;
/// The first frames of a umem receive: as many as one ring takes.
const RECEIVE_FRAMES: u32 = FRAMES_PER_SOCKET;
/// The others send.
const SEND_FRAMES: u32 = DEPTH as u32 * PARTS;
const _: () = assert!(SEND_FRAMES <= FRAMES_PER_SOCKET);
/// IEEE 802 local experimental ethertype 1.
const ETHERTYPE: u16 = 0x88b5;
const MACS: [Mac; 2] = [Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])];
const SEQUENCE_BYTES: usize = 8;
const LOST_AFTER_S: f64 = 1.0;

/// Measures round trips.
pub fn measure(args: &PingPongArgs) -> Result<Measurement, Error> {
    for (size, name) in [(args.ask, "--ask"), (args.answer, "--answer")] {
        if !SIZES.contains(&size) {
            return Err(Error::Refused(format!("{name} must be 64 to 9014 bytes")));
        }
    }
    let load_args = pinned(&args.load);
    let load = load_args.load(LOST_AFTER_S)?;
    if load.depth > DEPTH {
        return Err(Error::Refused(format!("--depth and --window must be at most {DEPTH}")));
    }
    let (a_netns, b_netns) = (args.netns.as_deref(), args.b_netns.as_deref());
    let asking = Side::open(&args.a, a_netns, MACS, args.ask)?;
    let [a, b] = MACS;
    let mut answering = Side::open(&args.b, b_netns.or(a_netns), [b, a], args.answer)?;
    let ask_bytes = u32::from(args.ask);
    let _other = OtherSide::start("ping-pong-answer", move |stop| answering.run(ask_bytes, stop));
    let mut work = Asking {
        side: asking,
        answer_bytes: u32::from(args.answer),
        right: vec![false; usize::from(load.depth)],
    };
    let (pace, sizes) = (load_args.pace_text(), format!("{} → {} B", args.ask, args.answer));
    let subject = Subject {
        driver: "reference ping-pong",
        name: format!("bare AF_XDP {sizes}, {pace}"),
        group: format!("AF_XDP round trip {sizes}, {pace}"),
        medium: format!("AF_XDP between {} and {}, both ends spinning", args.a, args.b),
        bytes: u64::from(args.answer),
        is_block: false,
        parameters: vec![("ask_bytes", args.ask.into()), ("answer_bytes", args.answer.into())],
    };
    drive(&mut work, &load_args, &load, subject)
}

/// One socket with its memory. A frame to send is `PARTS` consecutive frames of the umem.
struct Side {
    port: Steered,
    umem: Arc<Umem>,
    /// Length of every frame that this side sends.
    send_bytes: u32,
    /// Where frames that can be sent begin.
    free: Vec<u64>,
    /// Parts of each frame that the kernel still has, by its place among the frames to send.
    under_way: Vec<u8>,
    arriving: Arriving,
}

impl Side {
    fn open(
        interface: &str,
        netns: Option<&str>,
        [source, destination]: [Mac; 2],
        send_bytes: u16,
    ) -> Result<Side, Error> {
        let umem = Umem::new(RECEIVE_FRAMES + SEND_FRAMES)
            .map_err(Error::system("cannot map frame memory"))?;
        let multi = Binding::MultiBuffer;
        let mut port = netns::within(netns, || Steered::open(interface, &umem, multi))??;
        for addr in umem.frames().take(RECEIVE_FRAMES as usize) {
            assert!(port.socket.give(addr), "the fill ring has room for every frame");
        }
        port.socket.publish_given();
        let bytes = usize::from(send_bytes);
        let mut template: Vec<u8> = (0..bytes).map(|at| (at as u8).wrapping_mul(37)).collect();
        let header = Ethernet { destination, source, ethertype: ETHERTYPE };
        assert!(header.emit(&mut template).is_some(), "at least 64 bytes hold the header");
        let free: Vec<u64> = (0..u32::from(DEPTH)).map(place).collect();
        free.iter().for_each(|addr| umem.write(*addr, &template));
        Ok(Side {
            port,
            umem,
            send_bytes: u32::from(send_bytes),
            under_way: vec![0; free.len()],
            free,
            arriving: Arriving::default(),
        })
    }

    /// Puts a frame with this sequence number into the send ring; `false`: all are under way.
    fn send(&mut self, sequence: u64) -> bool {
        let Some(addr) = self.free.pop() else { return false };
        let (sequence, bytes) = (sequence.to_le_bytes(), u64::from(self.send_bytes));
        self.umem.write(addr + ethernet::BYTES as u64, &sequence);
        self.umem.write(addr + bytes - SEQUENCE_BYTES as u64, &sequence);
        let parts = bytes.div_ceil(FRAME_BYTES);
        for part in 0..parts {
            let at = part * FRAME_BYTES;
            let len = FRAME_BYTES.min(bytes - at) as u32;
            // No more frames are under way than the ring has entries.
            let put = self.port.socket.send_part(addr + at, len, part + 1 < parts);
            assert!(put, "a send ring is smaller than its frames");
        }
        self.under_way[index(addr)] = parts as u8;
        true
    }

    /// Frames of which the kernel has sent every part can be sent again; parts end in any order.
    fn reclaim(&mut self) {
        let (under_way, free) = (&mut self.under_way, &mut self.free);
        self.port.socket.complete(|addr| {
            let left = &mut under_way[index(addr)];
            *left -= 1;
            if *left == 0 {
                free.push(place(index(addr) as u32));
            }
        });
    }

    /// Hands over every frame that came in whole, with the socket's memory given back.
    fn receive(&mut self, mut sink: impl FnMut(Arrived)) {
        let (socket, mut any) = (&mut self.port.socket, false);
        while let Some(part) = socket.receive() {
            any = true;
            if let Some(arrived) = self.arriving.take(&self.umem, part) {
                sink(arrived);
            }
            assert!(socket.give(part.addr), "a received frame has its place back");
        }
        if any {
            socket.publish_received();
            socket.publish_given();
        }
    }

    fn push(socket: &mut XdpSocket) {
        if socket.has_unsent() {
            socket.kick();
        }
    }

    /// The answering side: until told to stop.
    fn run(&mut self, ask_bytes: u32, stop: &AtomicBool) {
        // As many as can come in at once; the rest waits in the receive ring.
        let mut asked = Vec::with_capacity(RECEIVE_FRAMES as usize);
        let mut spins = 0;
        while !now_and_then(&mut spins) || !is_over(stop) {
            self.reclaim();
            self.receive(|arrived| asked.extend(arrived.sequence(ask_bytes)));
            if asked.is_empty() {
                Side::push(&mut self.port.socket);
                continue;
            }
            for sequence in asked.drain(..) {
                // Without room the answer is lost, and counted by the side that asks.
                self.send(sequence);
            }
            self.port.socket.kick();
        }
    }
}

/// Where the `index`-th frame to send begins.
fn place(index: u32) -> u64 {
    u64::from(RECEIVE_FRAMES + index * PARTS) * FRAME_BYTES
}

/// Which frame to send a frame of the umem belongs to.
fn index(addr: u64) -> usize {
    ((addr / FRAME_BYTES - u64::from(RECEIVE_FRAMES)) / u64::from(PARTS)) as usize
}

/// A frame of which the last part has not come.
#[derive(Clone, Copy, Default)]
struct Arriving {
    bytes: u32,
    /// Ethertype and sequence number behind the addresses.
    head: [u8; 2 + SEQUENCE_BYTES],
    /// The last bytes so far; they may lie in two parts.
    tail: [u8; SEQUENCE_BYTES],
}

const ETHERTYPE_AT: u64 = ethernet::BYTES as u64 - 2;

impl Arriving {
    /// Adds a part; the frame when it was the last.
    fn take(&mut self, umem: &Umem, part: Received) -> Option<Arrived> {
        if self.bytes == 0 && part.len as usize >= ethernet::BYTES + SEQUENCE_BYTES {
            umem.read(part.addr + ETHERTYPE_AT, &mut self.head);
        }
        let new = SEQUENCE_BYTES.min(part.len as usize);
        self.tail.copy_within(new.., 0);
        let end = part.addr + u64::from(part.len);
        umem.read(end - new as u64, &mut self.tail[SEQUENCE_BYTES - new..]);
        self.bytes += part.len;
        match part.more {
            true => None,
            false => Some(Arrived(std::mem::take(self))),
        }
    }
}

/// A frame that came in whole.
struct Arrived(Arriving);

impl Arrived {
    /// The number at the frame's front when it is one of ours, whatever else is wrong with it.
    fn claimed(&self) -> Option<u64> {
        let (ethertype, sequence) = self.0.head.split_first_chunk::<2>()?;
        let sequence = sequence.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        sequence.filter(|_| *ethertype == ETHERTYPE.to_be_bytes())
    }

    /// The number when front and end agree at the expected length.
    fn sequence(&self, bytes: u32) -> Option<u64> {
        let end = u64::from_le_bytes(self.0.tail);
        self.claimed().filter(|front| self.0.bytes == bytes && *front == end)
    }
}

/// The asking side.
struct Asking {
    side: Side,
    answer_bytes: u32,
    right: Vec<bool>,
}

impl Work for Asking {
    const MAY_LOSE: bool = true;

    fn prepare(&mut self, _slot: u16) {}

    fn start(&mut self, request: Request, _now_ns: u64) -> bool {
        self.side.send(encode(request))
    }

    fn flush(&mut self) {
        self.side.port.socket.kick();
    }

    fn poll(&mut self, _now_ns: u64, ended: &mut Vec<Ended>) {
        let (before, bytes, right) = (ended.len(), self.answer_bytes, &mut self.right);
        self.side.receive(|arrived| {
            let Some(request) = arrived.claimed().and_then(decode) else { return };
            if let Some(right) = right.get_mut(usize::from(request.slot)) {
                *right = arrived.sequence(bytes).is_some();
            }
            ended.push(Ended { request, ok: true });
        });
        if ended.len() == before {
            Side::push(&mut self.side.port.socket);
        }
        self.side.reclaim();
    }

    fn check(&mut self, ended: &Ended) -> Content {
        match self.right[usize::from(ended.request.slot)] {
            true => Content::Right,
            false => Content::Wrong,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::core_pair;
    use crate::suite::bed::{NetBed, Pins};

    fn args(bed: Option<&NetBed>, ask: u16, answer: u16, depth: u16) -> PingPongArgs {
        PingPongArgs {
            a: "u0".into(),
            b: "u1".into(),
            netns: bed.map(|bed| bed.far.name().into()),
            b_netns: bed.map(|bed| bed.device.name().into()),
            ask,
            answer,
            load: LoadArgs::closed(depth, 0.1, 0.0, core_pair().0),
        }
    }

    #[test]
    fn answers_are_right_in_one_buffer_and_in_several() {
        let _pins = Pins;
        let bed = NetBed::new().unwrap();
        // 3840 bytes fill one buffer of 4096 with its headroom of 256; from 3841 to 3847 the
        // number at the end lies in two; 4160 is a 4 KiB block with 64 bytes of header.
        for (ask, answer, depth) in [
            (64, 64, 1),
            (64, 64, DEPTH),
            (9014, 9014, DEPTH),
            (64, 4160, 1),
            (64, 3840, 4),
            (64, 3841, 4),
            (3847, 3848, 4),
            (9014, 9014, 16),
        ] {
            let measured = measure(&args(Some(&bed), ask, answer, depth)).unwrap();
            let what = &measured.name;
            assert!(measured.verified > 0, "{what}: no answers");
            assert_eq!((measured.verify_failures, measured.strays), (0, 0), "{what}");
            let other = |t: &crate::schema::Thread| t.thread.starts_with("ping-pong-answe");
            assert!(measured.census.threads.iter().any(other), "{what}");
        }
        // Within one namespace.
        let inside =
            PingPongArgs { a: "c0".into(), b: "c1".into(), b_netns: None, ..args(None, 64, 64, 2) };
        let inside = PingPongArgs { netns: Some(bed.far.name().into()), ..inside };
        assert!(measure(&inside).unwrap().verified > 0);
    }

    #[test]
    fn limits_are_refused_at_one_past_them() {
        let said = |ask, answer, depth| {
            let nowhere = PingPongArgs { a: "none0".into(), ..args(None, ask, answer, depth) };
            measure(&nowhere).unwrap_err().to_string()
        };
        for (ask, answer, depth, word) in [
            (63, 64, 1, "--ask"),
            (9015, 64, 1, "--ask"),
            (64, 63, 1, "--answer"),
            (64, 9015, 1, "--answer"),
            (64, 64, DEPTH + 1, "--depth"),
        ] {
            assert!(said(ask, answer, depth).contains(word), "{word}");
        }
        // At the limits it gets as far as the interface that is not there.
        for (ask, answer, depth) in [(64, 9014, 1), (9014, 64, DEPTH)] {
            assert!(said(ask, answer, depth).contains("`none0`"));
        }
    }

    /// Writes the bytes into frames of a umem as a socket would, and takes them.
    fn arrive(umem: &Umem, frame: &[u8], split: usize) -> Option<Arrived> {
        let (mut arriving, mut arrived) = (Arriving::default(), None);
        let (front, back) = frame.split_at(split);
        for (addr, part, more) in [(0, front, !back.is_empty()), (FRAME_BYTES, back, false)] {
            if arrived.is_none() {
                umem.write(addr, part);
                let part = Received { addr, len: part.len() as u32, more };
                arrived = arriving.take(umem, part);
            }
        }
        arrived
    }

    #[test]
    fn damage_anywhere_in_the_numbers_and_in_the_length_is_found() {
        let umem = Umem::new(2).unwrap();
        let mut frame = [0; 72];
        frame[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
        for at in [14, 64] {
            frame[at..at + 8].copy_from_slice(&0x0102_0304_0506_0708u64.to_le_bytes());
        }
        for split in 22..=72 {
            let whole = arrive(&umem, &frame, split).unwrap();
            assert_eq!(whole.sequence(72), Some(0x0102_0304_0506_0708), "{split}");
            assert_eq!((whole.sequence(71), whole.sequence(73)), (None, None));
            for at in [12, 13, 14, 21, 64, 71] {
                let mut bad = frame;
                bad[at] ^= 1;
                assert_eq!(arrive(&umem, &bad, split).unwrap().sequence(72), None, "{at}");
            }
        }
        // Foreign frames, however short.
        for len in [0, 1, 7, 14, 21] {
            let short = arrive(&umem, &frame[..len], len).unwrap();
            assert_eq!(short.claimed(), None, "{len}");
        }
    }
}
