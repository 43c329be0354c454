//! Raw sockets over loopback, both ends spinning on their cores: what the kernel's network stack
//! costs before any protocol of ours.

use super::{OtherSide, is_over, now_and_then};
use crate::drivers::udp::{self, UdpArgs};
use crate::drivers::{LoadArgs, Subject, Wait, measure};
use crate::error::Error;
use crate::load::{Content, Ended, Request, Work};
use crate::machine::core_pair;
use crate::schema::Measurement;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::AtomicBool;

/// An NVMe/TCP read command: 8 bytes of PDU header and a 64-byte command.
const ASK_BYTES: usize = 72;
/// Its answer: 24 bytes of data PDU header and 4 KiB.
const ANSWER_BYTES: usize = 4120;
/// The payload of a 64-byte frame.
const DATAGRAM_BYTES: u16 = 22;
const LOST_AFTER_S: f64 = 10.0;

/// The generator sits on the first core unless told otherwise.
pub(super) fn pinned(args: &LoadArgs) -> LoadArgs {
    LoadArgs { core: args.core.or(Some(core_pair().0)), ..args.clone() }
}

fn refused(what: &str) -> impl FnOnce(std::io::Error) -> Error {
    Error::system(format!("cannot {what} on 127.0.0.1"))
}

/// TCP, 72 bytes to 4 120.
pub fn tcp(args: &LoadArgs) -> Result<Measurement, Error> {
    let args = pinned(args);
    let load = args.load(LOST_AFTER_S)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(refused("listen"))?;
    let address = listener.local_addr().map_err(refused("listen"))?;
    let near = TcpStream::connect(address).map_err(refused("connect"))?;
    let (far, _) = listener.accept().map_err(refused("accept"))?;
    for stream in [&near, &far] {
        stream.set_nodelay(true).map_err(refused("set TCP_NODELAY"))?;
        stream.set_nonblocking(true).map_err(refused("set O_NONBLOCK"))?;
    }
    let _other = OtherSide::start("tcp-answer", move |stop| answer_tcp(far, stop));
    let mut work = TcpWork {
        stream: near,
        ask: [0; ASK_BYTES],
        unsent: 0,
        answer: vec![0; ANSWER_BYTES],
        received: 0,
        in_flight: VecDeque::with_capacity(usize::from(load.depth)),
        right: vec![false; usize::from(load.depth)],
    };
    let subject = Subject {
        driver: "reference tcp",
        name: format!("raw TCP 72 → 4120 B, {}", args.pace_text()),
        group: "raw sockets".into(),
        medium: "TCP over loopback, both ends spinning".into(),
        bytes: ANSWER_BYTES as u64,
        is_block: false,
        parameters: vec![("ask_bytes", ASK_BYTES.into()), ("answer_bytes", ANSWER_BYTES.into())],
    };
    measure(&mut work, &args, &load, subject)
}

/// Answers every 72 bytes with 4 120 that begin with the same 8.
fn answer_tcp(mut stream: TcpStream, stop: &AtomicBool) {
    let (mut ask, mut asked) = ([0; ASK_BYTES], 0);
    let (mut answer, mut answered) = ([0x5a; ANSWER_BYTES], ANSWER_BYTES);
    let mut spins = 0;
    while !now_and_then(&mut spins) || !is_over(stop) {
        if answered < ANSWER_BYTES {
            match stream.write(&answer[answered..]) {
                Ok(bytes) => answered += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
            continue;
        }
        match stream.read(&mut ask[asked..]) {
            Ok(0) => return,
            Ok(bytes) => asked += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        if asked == ASK_BYTES {
            answer[..8].copy_from_slice(&ask[..8]);
            (asked, answered) = (0, 0);
        }
    }
}

struct TcpWork {
    stream: TcpStream,
    ask: [u8; ASK_BYTES],
    /// Bytes of `ask` that the socket has not taken yet.
    unsent: usize,
    answer: Vec<u8>,
    received: usize,
    in_flight: VecDeque<Request>,
    right: Vec<bool>,
}

impl TcpWork {
    fn push(&mut self) {
        if self.unsent > 0
            && let Ok(bytes) = self.stream.write(&self.ask[ASK_BYTES - self.unsent..])
        {
            self.unsent -= bytes;
        }
    }
}

impl Work for TcpWork {
    const MAY_LOSE: bool = false;

    fn prepare(&mut self, _slot: u16) {}

    fn start(&mut self, request: Request, _now_ns: u64) -> bool {
        if self.unsent > 0 {
            return false;
        }
        self.ask[..8].copy_from_slice(&udp::encode(request).to_le_bytes());
        self.unsent = ASK_BYTES;
        self.in_flight.push_back(request);
        self.push();
        true
    }

    fn poll(&mut self, _now_ns: u64, ended: &mut Vec<Ended>) {
        self.push();
        while let Ok(bytes) = self.stream.read(&mut self.answer[self.received..]) {
            self.received += bytes;
            if bytes == 0 || self.received < ANSWER_BYTES {
                return;
            }
            self.received = 0;
            if let Some(request) = self.in_flight.pop_front() {
                let right = self.answer[..8] == udp::encode(request).to_le_bytes()
                    && self.answer[ANSWER_BYTES - 1] == 0x5a;
                self.right[usize::from(request.slot)] = right;
                ended.push(Ended { request, ok: true });
            }
        }
    }

    fn check(&mut self, ended: &Ended) -> Content {
        match self.right[usize::from(ended.request.slot)] {
            true => Content::Right,
            false => Content::Wrong,
        }
    }
}

/// UDP, 22 bytes each way.
pub fn udp(args: &LoadArgs) -> Result<Measurement, Error> {
    let args = pinned(args);
    let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(refused("bind"))?;
    far.set_nonblocking(true).map_err(refused("set O_NONBLOCK"))?;
    let address = far.local_addr().map_err(refused("bind"))?;
    let _other = OtherSide::start("udp-answer", move |stop| answer_udp(&far, stop));
    let plan = UdpArgs {
        server: None,
        to: Some(address),
        wait: Wait::Spin,
        payload: DATAGRAM_BYTES,
        netns: None,
        lost_after: LOST_AFTER_S,
        load: args,
    };
    let mut measured = udp::client(&plan, address)?;
    measured.driver = "reference udp".into();
    if plan.load.label.group.is_none() {
        measured.group = "raw sockets".into();
    }
    if plan.load.label.medium.is_none() {
        measured.medium = "UDP over loopback, both ends spinning".into();
    }
    Ok(measured)
}

fn answer_udp(socket: &UdpSocket, stop: &AtomicBool) {
    let (mut buffer, mut spins) = ([0; 2048], 0);
    while !now_and_then(&mut spins) || !is_over(stop) {
        if let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
            // A full queue loses the datagram; the generator counts it.
            let _ = socket.send_to(&buffer[..bytes], from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_answer_rightly_at_any_depth() {
        for depth in [1, 5] {
            let args = LoadArgs::closed(depth, 0.1, 0.0, core_pair().0);
            for measured in [tcp(&args).unwrap(), udp(&args).unwrap()] {
                assert!(measured.verified > 0, "{}", measured.name);
                assert_eq!((measured.verify_failures, measured.errors), (0, 0));
                let other = |t: &crate::schema::Thread| t.thread.ends_with("-answer");
                assert!(measured.census.threads.iter().any(other), "{}", measured.name);
            }
        }
    }
}
