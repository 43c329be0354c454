//! A connection: a stream in each direction, and the sockets at its ends.
//!
//! A volume and an export own sockets; here each is one end of a pair of which the simulation
//! holds the other, in this process and without a network, so that what is read is what was
//! written before, and nothing else decides.

use outboard_sim::{Rng, Stream, StreamFaults};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::net::TcpStream;
use std::os::fd::OwnedFd;

/// The most that is moved at once.
const PIECE_BYTES: usize = 16 << 10;

/// One end's socket as the simulation holds it, and what did not fit yet.
pub struct Socket {
    fd: OwnedFd,
    unsent: Vec<u8>,
}

impl Socket {
    /// A socket for an end, and the simulation's hold of it.
    pub fn pair() -> (TcpStream, Socket) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (theirs, ours) =
            net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        (TcpStream::from(theirs), Socket { fd: ours, unsent: Vec::new() })
    }

    /// Takes what the end has sent; `None`: nothing, or it has closed.
    pub fn receive(&self, most: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; most.min(PIECE_BYTES)];
        let count = net::recv(&self.fd, &mut bytes[..], RecvFlags::empty()).ok()?.0;
        bytes.truncate(count);
        (count > 0).then_some(bytes)
    }

    /// Gives the end bytes, as far as its buffer takes them.
    pub fn send(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
        if self.unsent.is_empty() {
            return;
        }
        let sent = net::send(&self.fd, &self.unsent, SendFlags::NOSIGNAL).unwrap_or(0);
        self.unsent.drain(..sent);
    }

    pub fn is_full(&self) -> bool {
        !self.unsent.is_empty()
    }
}

/// Both directions, and the target's socket.
pub struct Wire {
    up: Stream,
    down: Stream,
    target: Option<Socket>,
    /// Sent by the host, and not taken by the stream yet; the same for the target.
    waiting: [Vec<u8>; 2],
    rng: Rng,
    /// Bits flip in this many of a million pieces.
    pub corrupt_ppm: u32,
}

impl Wire {
    pub fn new(rng: &mut Rng, target: Socket) -> Wire {
        let faults = StreamFaults {
            // From pieces smaller than any header to several commands at once.
            max_piece_bytes: [50, 900, 9_000, 40_000][rng.index(4)],
            delay_ns: (2_000, [20_000, 400_000][rng.index(2)]),
            window_bytes: [6_000, 64_000, 500_000][rng.index(3)],
        };
        Wire {
            up: Stream::new(rng.fork(), faults),
            down: Stream::new(rng.fork(), faults),
            target: Some(target),
            waiting: [Vec::new(), Vec::new()],
            rng: rng.fork(),
            corrupt_ppm: 0,
        }
    }

    /// The host sends.
    pub fn send(&mut self, now_ns: u64, bytes: &[u8]) {
        self.waiting[0].extend_from_slice(bytes);
        let taken = self.up.write(now_ns, &self.waiting[0]);
        self.waiting[0].drain(..taken);
    }

    /// Whether more from the host would only pile up.
    pub fn is_full(&self) -> bool {
        !self.waiting[0].is_empty()
    }

    /// What has come to the host.
    pub fn receive(&mut self, now_ns: u64) -> Option<Vec<u8>> {
        read(&mut self.down, now_ns, &mut self.rng, self.corrupt_ppm)
    }

    /// Moves bytes at the target's end.
    pub fn serve(&mut self, now_ns: u64) -> u64 {
        let Some(socket) = &mut self.target else { return 0 };
        let mut pieces = 0;
        socket.send(&[]);
        while !socket.is_full() {
            let bytes = read(&mut self.up, now_ns, &mut self.rng, self.corrupt_ppm);
            let Some(bytes) = bytes else { break };
            socket.send(&bytes);
            pieces += 1;
        }
        while self.waiting[1].is_empty() {
            let Some(bytes) = socket.receive(PIECE_BYTES) else { break };
            self.waiting[1] = bytes;
            let taken = self.down.write(now_ns, &self.waiting[1]);
            self.waiting[1].drain(..taken);
            pieces += 1;
        }
        let taken = self.down.write(now_ns, &self.waiting[1]);
        self.waiting[1].drain(..taken);
        pieces
    }

    /// Whether nothing of the host's is on its way any more.
    pub fn is_drained(&self) -> bool {
        self.up.in_flight_bytes() == 0 && self.waiting[0].is_empty()
    }
}

fn read(stream: &mut Stream, now_ns: u64, rng: &mut Rng, corrupt_ppm: u32) -> Option<Vec<u8>> {
    let mut bytes = vec![0; PIECE_BYTES];
    let count = stream.read(now_ns, &mut bytes);
    bytes.truncate(count);
    if count > 0 && rng.chance(corrupt_ppm) {
        let at = rng.index(count);
        bytes[at] ^= 1 << rng.index(8);
    }
    (count > 0).then_some(bytes)
}
