//! `afxdp`: raw frames through a device under test, from one thread that owns both far ends.
//!
//! A frame sent on one interface must come out on the other, bare or inside a tunnel: it is
//! recognised by its last 16 bytes. Latency is one way through the device, both ends' system
//! calls included. With two interfaces that face each other, it is the generator's own ceiling.

use super::udp::{decode, encode};
use super::{LoadArgs, Subject, measure as drive, publish};
use crate::error::Error;
use crate::load::{Content, Ended, Request, Work};
use crate::machine::netns;
use crate::reference::reflector::Steered;
use crate::reference::xdp_socket::{Binding, FRAMES_PER_SOCKET, Umem, XdpSocket};
use crate::schema::Measurement;
use clap::Args;
use outboard_wire::{
    Checksum, Ethernet, Ipv4, Ipv6, Mac, Udp, checksum, ethernet, ipv4, ipv6, udp,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Measure what passes frames between two interfaces: send into one, receive on the other.
///
/// The device under test sits on the peers of both interfaces (veth): a reflector (`reference
/// reflector`), Outboard (a tenant's port and its uplink), or the kernel (a bridge with VXLAN).
///
/// Examples:
///   outboard-bench afxdp --tx t0 --rx u0 --depth 256            throughput
///   outboard-bench afxdp --tx t0 --rx u0                        latency of one frame at a time
///   outboard-bench afxdp --tx t0 --rx u0 --netns far --dst-mac 02:6f:62:00:00:64 \
///       --dst-ip 10.0.0.2 --rate 400000 --json pass.json
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct AfxdpArgs {
    /// The interface that frames are sent into.
    #[arg(long, value_name = "IF")]
    pub tx: String,
    /// The interface on which they come out.
    #[arg(long, value_name = "IF")]
    pub rx: String,
    /// The network namespace of both interfaces.
    #[arg(long, value_name = "NAME")]
    pub netns: Option<String>,
    /// The network namespace of the receiving interface, when it is another.
    #[arg(long, value_name = "NAME")]
    pub rx_netns: Option<String>,
    /// Bytes per frame as sent, without FCS: 64 to 3400, and 80 at least with IPv6.
    #[arg(long, value_name = "BYTES", default_value_t = 64)]
    pub frame: u16,
    /// Different UDP source ports, and so flows.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub flows: u16,
    /// Destination MAC: what the device takes frames for.
    #[arg(long, value_name = "MAC", value_parser = mac, default_value = "02:00:00:00:00:02")]
    pub dst_mac: Mac,
    /// Source MAC: the tenant's.
    #[arg(long, value_name = "MAC", value_parser = mac, default_value = "02:00:00:00:00:01")]
    pub src_mac: Mac,
    /// Destination address, IPv4 or IPv6.
    #[arg(long, value_name = "IP", default_value = "10.0.0.2")]
    pub dst_ip: IpAddr,
    /// Source address, of the same family: the tenant's.
    #[arg(long, value_name = "IP", default_value = "10.0.0.1")]
    pub src_ip: IpAddr,
    /// A frame that does not come out after this time is lost.
    #[arg(long, value_name = "S", default_value_t = 0.2)]
    pub lost_after: f64,
    #[command(flatten)]
    pub load: LoadArgs,
}

fn mac(text: &str) -> Result<Mac, String> {
    text.parse().map_err(|_| "expected six hexadecimal bytes, as in 02:00:00:00:00:01".to_owned())
}

const FRAME: std::ops::RangeInclusive<u16> = 64..=3400;
/// The least with IPv6: its headers and the mark are 78 bytes.
const FRAME6_MIN: u16 = 80;
/// Of the checksum in a UDP header.
const CHECKSUM_AT: u64 = 6;
const FIRST_SOURCE_PORT: u16 = 1024;
const DESTINATION_PORT: u16 = 7;
/// The last 16 bytes of a frame: this, then the request. "OUTBOARD" in ASCII.
const MARK: u64 = 0x4f55_5442_4f41_5244;
const MARK_BYTES: u32 = 16;
/// The most frames in flight: half of what a socket takes, so that foreign frames find room.
const DEPTH: u16 = FRAMES_PER_SOCKET as u16 / 2;

/// Runs the driver.
pub fn run(args: &AfxdpArgs) -> Result<(), Error> {
    publish(measure(args)?, args.load.json.as_deref())
}

/// Measures without publishing.
pub fn measure(args: &AfxdpArgs) -> Result<Measurement, Error> {
    addresses(args)?;
    if !FRAME.contains(&args.frame) || args.src_ip.is_ipv6() && args.frame < FRAME6_MIN {
        let least = if args.src_ip.is_ipv6() { FRAME6_MIN } else { *FRAME.start() };
        return Err(Error::Refused(format!("--frame must be {least} to 3400 bytes")));
    }
    if args.flows == 0 || args.flows > u16::MAX - FIRST_SOURCE_PORT {
        return Err(Error::Refused("--flows must be 1 to 64511".into()));
    }
    let load = args.load.load(args.lost_after)?;
    if load.depth > DEPTH {
        return Err(Error::Refused(format!("--depth and --window must be at most {DEPTH}")));
    }
    let mut pass = Pass::open(args, load.depth)?;
    let pace = args.load.pace_text();
    let subject = Subject {
        driver: "afxdp",
        name: format!("afxdp one way {} B, {pace}", args.frame),
        group: format!("one-way pass {} B {pace}", args.frame),
        medium: "veth, AF_XDP generator".into(),
        bytes: u64::from(args.frame),
        is_block: false,
        parameters: vec![("frame_bytes", args.frame.into()), ("flows", args.flows.into())],
    };
    drive(&mut pass, &args.load, &load, subject)
}

/// Source and destination.
enum Addresses {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

fn addresses(args: &AfxdpArgs) -> Result<Addresses, Error> {
    match (args.src_ip, args.dst_ip) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Ok(Addresses::V4(source, destination)),
        (IpAddr::V6(source), IpAddr::V6(destination)) => Ok(Addresses::V6(source, destination)),
        _ => Err(Error::Refused("--src-ip and --dst-ip must be of one family".into())),
    }
}

/// Both far ends of a device under test.
struct Pass {
    out: XdpSocket,
    back: Steered,
    out_umem: Arc<Umem>,
    back_umem: Arc<Umem>,
    /// Frames of `out_umem` that can be sent.
    free: Vec<u64>,
    frame_bytes: u32,
    /// Where a frame's UDP header is.
    udp_at: u64,
    /// UDP's checksum with the first source port and a request of zeros; with IPv4 there is none.
    checksum: Option<u16>,
    /// The payload in front of the mark.
    fill: Vec<u8>,
    flows: u16,
    next_flow: u16,
    right: Vec<bool>,
}

impl Pass {
    fn open(args: &AfxdpArgs, depth: u16) -> Result<Pass, Error> {
        let memory =
            || Umem::new(FRAMES_PER_SOCKET).map_err(Error::system("cannot map frame memory"));
        let (out_umem, back_umem) = (memory()?, memory()?);
        let (netns, rx_netns) = (args.netns.as_deref(), args.rx_netns.as_deref());
        let single = Binding::SingleBuffer;
        let out = netns::within(netns, || XdpSocket::open(&args.tx, &out_umem, single))?;
        let out = out.map_err(Error::system(format!(
            "cannot open an AF_XDP socket on `{}` (it needs root or CAP_NET_RAW)",
            args.tx
        )))?;
        let mut back =
            netns::within(rx_netns.or(netns), || Steered::open(&args.rx, &back_umem, single))??;
        for addr in back_umem.frames() {
            assert!(back.socket.give(addr), "the fill ring has room for every frame");
        }
        back.socket.publish_given();
        let Template { frame, udp_at, checksum } = template(args, &addresses(args)?);
        out_umem.frames().for_each(|addr| out_umem.write(addr, &frame));
        let fill_end = frame.len() - MARK_BYTES as usize;
        Ok(Pass {
            out,
            back,
            free: out_umem.frames().collect(),
            out_umem,
            back_umem,
            frame_bytes: u32::from(args.frame),
            udp_at: udp_at as u64,
            checksum,
            fill: frame[udp_at + udp::BYTES..fill_end].to_vec(),
            flows: args.flows,
            next_flow: 0,
            right: vec![true; usize::from(depth)],
        })
    }

    /// The request in a received frame; `None` when it is not one of ours.
    fn look(&mut self, addr: u64, len: u32) -> Option<Request> {
        let mark_at = addr + u64::from(len.checked_sub(self.frame_bytes)?) // encapsulation
            + u64::from(self.frame_bytes - MARK_BYTES);
        let (mut mark, mut sequence) = ([0; 8], [0; 8]);
        self.back_umem.read(mark_at, &mut mark);
        self.back_umem.read(mark_at + 8, &mut sequence);
        let request = decode(u64::from_le_bytes(sequence))?;
        if u64::from_le_bytes(mark) != MARK {
            return None;
        }
        let mut fill = [0; FRAME_MAX];
        let fill = &mut fill[..self.fill.len()];
        self.back_umem.read(mark_at - fill.len() as u64, fill);
        if let Some(right) = self.right.get_mut(usize::from(request.slot)) {
            *right = *fill == *self.fill;
        }
        Some(request)
    }
}

const FRAME_MAX: usize = *FRAME.end() as usize;

/// A frame to be sent over and over.
struct Template {
    frame: Vec<u8>,
    udp_at: usize,
    checksum: Option<u16>,
}

/// An Ethernet, IP and UDP frame with a mark at its end, whose request is zeros. Over IPv4 UDP is
/// without checksum, so that ports and mark can change; over IPv6 it must have one (RFC 8200
/// section 8.1), which is updated with them.
fn template(args: &AfxdpArgs, addresses: &Addresses) -> Template {
    let bytes = usize::from(args.frame);
    let mut frame: Vec<u8> = (0..bytes).map(|at| (at as u8).wrapping_mul(37)).collect();
    frame[bytes - 16..bytes - 8].copy_from_slice(&MARK.to_le_bytes());
    frame[bytes - 8..].fill(0);
    let (ethertype, udp_at) = match addresses {
        Addresses::V4(..) => (ethernet::IPV4, ethernet::BYTES + ipv4::BYTES),
        Addresses::V6(..) => (ethernet::IPV6, ethernet::BYTES + ipv6::BYTES),
    };
    let len = args.frame - udp_at as u16;
    let ip = &mut frame[ethernet::BYTES..];
    let ip_done = match *addresses {
        Addresses::V4(source, destination) => Ipv4 {
            tos: 0,
            total_len: ipv4::BYTES as u16 + len,
            id: 0,
            fragment: ipv4::DONT_FRAGMENT,
            ttl: 64,
            protocol: ipv4::UDP,
            source,
            destination,
        }
        .emit(ip),
        Addresses::V6(source, destination) => Ipv6 {
            traffic_class: 0,
            flow_label: 0,
            payload_len: len,
            next_header: ipv4::UDP,
            hop_limit: 64,
            source,
            destination,
        }
        .emit(ip),
    };
    let (source, destination) = (args.src_mac, args.dst_mac);
    let whole = Ethernet { destination, source, ethertype }
        .emit(&mut frame)
        .and(ip_done)
        .and_then(|()| udp_header(len, 0).emit(&mut frame[udp_at..]));
    assert!(whole.is_some(), "the least frame holds all headers");
    let checksum = match *addresses {
        Addresses::V4(..) => None,
        Addresses::V6(source, destination) => {
            let (source, destination) = (source.octets(), destination.octets());
            let length = u32::from(len);
            let mut sum = Checksum::pseudo_header6(source, destination, ipv4::UDP, length);
            sum.add(&frame[udp_at..]);
            Some(sum.finish())
        }
    };
    Template { frame, udp_at, checksum }
}

fn udp_header(len: u16, checksum: u16) -> Udp {
    Udp { source: FIRST_SOURCE_PORT, destination: DESTINATION_PORT, len, checksum }
}

/// A UDP checksum after the last eight bytes of a frame of so many changed from zeros to these;
/// zero is written as its complement (RFC 768).
fn with_request(sum: u16, request: [u8; 8], frame_bytes: u32) -> u16 {
    let is_odd = !frame_bytes.is_multiple_of(2);
    let sum = request.chunks_exact(2).fold(sum, |sum, pair| {
        let word = u16::from_be_bytes([pair[0], pair[1]]);
        // At odd places each word's halves count the other way round (RFC 1071 section 2 (B)).
        checksum::update(sum, 0, if is_odd { word.swap_bytes() } else { word })
    });
    if sum == 0 { 0xffff } else { sum }
}

impl Work for Pass {
    const MAY_LOSE: bool = true;

    fn prepare(&mut self, _slot: u16) {}

    fn start(&mut self, request: Request, _now_ns: u64) -> bool {
        let Some(addr) = self.free.pop() else { return false };
        let end = addr + u64::from(self.frame_bytes);
        let sequence = encode(request).to_le_bytes();
        self.out_umem.write(end - 8, &sequence);
        let port = FIRST_SOURCE_PORT + self.next_flow;
        self.next_flow = (self.next_flow + 1) % self.flows;
        self.out_umem.write(addr + self.udp_at, &port.to_be_bytes());
        if let Some(sum) = self.checksum {
            let sum = checksum::update(sum, FIRST_SOURCE_PORT, port);
            let sum = with_request(sum, sequence, self.frame_bytes);
            self.out_umem.write(addr + self.udp_at + CHECKSUM_AT, &sum.to_be_bytes());
        }
        if !self.out.send(addr, self.frame_bytes) {
            self.free.push(addr);
            return false;
        }
        true
    }

    fn flush(&mut self) {
        self.out.kick();
    }

    fn poll(&mut self, _now_ns: u64, ended: &mut Vec<Ended>) {
        let mut received = false;
        while let Some(frame) = self.back.socket.receive() {
            received = true;
            if let Some(request) = self.look(frame.addr, frame.len) {
                ended.push(Ended { request, ok: true });
            }
            assert!(self.back.socket.give(frame.addr), "a received frame has its place back");
        }
        if received {
            self.back.socket.publish_received();
            self.back.socket.publish_given();
        } else if self.out.has_unsent() {
            self.out.kick();
        }
        let free = &mut self.free;
        self.out.complete(|addr| free.push(addr));
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
    use crate::reference::reflector::Running;
    use crate::suite::bed::{NetBed, Pins};

    fn args(bed: &NetBed, tx: &str, rx: &str, depth: u16) -> AfxdpArgs {
        AfxdpArgs {
            tx: tx.into(),
            rx: rx.into(),
            netns: Some(bed.far.name().into()),
            rx_netns: None,
            frame: 64,
            flows: 3,
            dst_mac: Mac([2, 0, 0, 0, 1, 2]),
            src_mac: Mac([2, 0, 0, 0, 1, 1]),
            dst_ip: Ipv4Addr::new(10, 0, 0, 2).into(),
            src_ip: Ipv4Addr::new(10, 0, 0, 1).into(),
            lost_after: 1.0,
            load: LoadArgs { core: None, ..LoadArgs::closed(depth, 0.2, 0.1, 0) },
        }
    }

    fn passes(measured: &Measurement) {
        assert!(measured.verified > 0, "{}: nothing came out", measured.name);
        assert_eq!((measured.verify_failures, measured.strays), (0, 0));
    }

    #[test]
    fn frames_pass_link_reflector_and_kernel() {
        let _pins = Pins;
        let bed = NetBed::new().unwrap();
        // The ceiling: interfaces that face each other, at both ends of sizes and depths.
        for (depth, frame) in [(1, 64), (DEPTH, 64), (16, 1514)] {
            passes(&measure(&AfxdpArgs { frame, ..args(&bed, "c0", "c1", depth) }).unwrap());
        }
        {
            let _running = Running::start("t1", "u1", Some(bed.device.name())).unwrap();
            for depth in [1, 256] {
                passes(&measure(&args(&bed, "t0", "u0", depth)).unwrap());
            }
            // The other way round, through the same reflector.
            passes(&measure(&args(&bed, "u0", "t0", 8)).unwrap());
        }
        // Behind the kernel's VXLAN device frames come out 50 bytes longer.
        let _path = bed.join_by_kernel(100, "02:00:00:00:01:02").unwrap();
        passes(&measure(&args(&bed, "t0", "u0", 16)).unwrap());
    }

    #[test]
    fn limits_are_refused_at_one_past_them() {
        let bed_free = |frame, flows, depth| AfxdpArgs {
            tx: "none0".into(),
            rx: "none1".into(),
            netns: None,
            rx_netns: None,
            frame,
            flows,
            dst_mac: Mac::default(),
            src_mac: Mac::default(),
            dst_ip: Ipv4Addr::LOCALHOST.into(),
            src_ip: Ipv4Addr::LOCALHOST.into(),
            lost_after: 1.0,
            load: LoadArgs::closed(depth, 0.1, 0.0, 0),
        };
        let said = |args: &AfxdpArgs| measure(args).unwrap_err().to_string();
        for (frame, flows, depth, word) in [
            (63, 1, 1, "--frame"),
            (3401, 1, 1, "--frame"),
            (64, 0, 1, "--flows"),
            (64, 1, DEPTH + 1, "--depth"),
        ] {
            assert!(said(&bed_free(frame, flows, depth)).contains(word), "{word}");
        }
        // At the limits it gets as far as the interface that is not there.
        for (frame, depth) in [(64, DEPTH), (3400, 1)] {
            assert!(said(&bed_free(frame, 1, depth)).contains("`none0`"));
        }
        let v6 = |frame| AfxdpArgs {
            dst_ip: Ipv6Addr::LOCALHOST.into(),
            src_ip: Ipv6Addr::LOCALHOST.into(),
            ..bed_free(frame, 1, 1)
        };
        assert!(said(&v6(79)).contains("--frame must be 80"));
        assert!(said(&v6(80)).contains("`none0`"));
        let mixed = AfxdpArgs { dst_ip: Ipv4Addr::LOCALHOST.into(), ..v6(80) };
        assert!(said(&mixed).contains("one family"));
    }

    #[test]
    fn the_template_is_a_right_packet() {
        let args = AfxdpArgs { frame: 100, ..args_without_bed() };
        let Template { frame, udp_at, checksum } = template(&args, &addresses(&args).unwrap());
        let ip = Ipv4::parse(&frame[ethernet::BYTES..], 86).unwrap();
        assert_eq!((ip.total_len, ip.protocol), (86, ipv4::UDP));
        let udp = Udp::parse(&frame[udp_at..], 66).unwrap();
        assert_eq!((udp.len, udp.destination, udp.checksum), (66, DESTINATION_PORT, 0));
        assert_eq!(checksum, None);
    }

    #[test]
    fn an_ipv6_packet_has_a_right_checksum_whatever_its_request_and_port() {
        let (source, destination) = (Ipv6Addr::LOCALHOST, "fd00::2".parse().unwrap());
        for bytes in [80, 81] {
            let args = AfxdpArgs {
                frame: bytes,
                src_ip: source.into(),
                dst_ip: IpAddr::V6(destination),
                ..args_without_bed()
            };
            let Template { mut frame, udp_at, checksum } =
                template(&args, &addresses(&args).unwrap());
            let ip = Ipv6::parse(&frame[ethernet::BYTES..], frame.len() - ethernet::BYTES).unwrap();
            let len = bytes - udp_at as u16;
            assert_eq!((ip.payload_len, ip.next_header), (len, ipv4::UDP));
            for n in 0..100_000_u64 {
                // Spreads n over all bits (Knuth, TAOCP volume 3, section 6.4).
                let spread = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let (port, request) = ((spread >> 48) as u16, spread.to_le_bytes());
                let at = frame.len() - 8;
                frame[at..].copy_from_slice(&request);
                frame[udp_at..udp_at + 2].copy_from_slice(&port.to_be_bytes());
                let sum = checksum::update(checksum.unwrap(), FIRST_SOURCE_PORT, port);
                let sum = with_request(sum, request, bytes.into());
                frame[udp_at + 6..udp_at + 8].copy_from_slice(&sum.to_be_bytes());
                let (from, to) = (source.octets(), destination.octets());
                let mut sum = Checksum::pseudo_header6(from, to, ipv4::UDP, len.into());
                sum.add(&frame[udp_at..]);
                assert_eq!(sum.folded(), 0xffff, "{n}");
            }
        }
    }

    fn args_without_bed() -> AfxdpArgs {
        use clap::Parser;
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            args: AfxdpArgs,
        }
        Line::parse_from(["afxdp", "--tx", "a", "--rx", "b"]).args
    }
}
