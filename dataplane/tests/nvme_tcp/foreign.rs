//! A target that does not fence, behind a network that delivers a write long after the host has
//! connected again. It is our own target: what stands between strikes its announcement out.

use crate::server::{Client, NQN, Server, until};
use outboard::clock::now_ns;
use outboard::control::connect::Wanted;
use outboard::volume::{BlockDevice, Dones, Op, Status};
use outboard_dma::{Frame, Segment};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long the target of these tests may work on what it was sent before.
const QUIESCE: Duration = Duration::from_secs(3);
/// What tells a host that a target fences: magic and version.
const ANNOUNCEMENT: &[u8] = b"outboard\x02\0";
/// What is written and read.
const LBA: u64 = 7;
/// Tags.
const WRITE: u16 = 1;
const READ: u16 = 2;

/// One connection through the network.
struct Way {
    host: TcpStream,
    target: TcpStream,
    /// Keeps what the host sends, instead of passing it on.
    holds: AtomicBool,
    /// Bytes kept.
    kept: AtomicUsize,
}

#[derive(Default)]
struct Shared {
    ends: AtomicBool,
    ways: Mutex<Vec<Arc<Way>>>,
}

/// The network between.
struct Between {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Between {
    fn new(target: SocketAddr) -> Between {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        let own = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || {
            let mut passing = Vec::new();
            while let Ok((host, _)) = listener.accept() {
                if own.ends.load(Ordering::Acquire) {
                    break;
                }
                let target = TcpStream::connect(target).unwrap();
                host.set_nodelay(true).unwrap();
                target.set_nodelay(true).unwrap();
                let (holds, kept) = (AtomicBool::new(false), AtomicUsize::new(0));
                let way = Arc::new(Way { host, target, holds, kept });
                own.ways.lock().unwrap().push(Arc::clone(&way));
                let (up, ends) = (Arc::clone(&way), Arc::clone(&own));
                passing.push(std::thread::spawn(move || up.pass_to_target(&ends.ends)));
                passing.push(std::thread::spawn(move || way.pass_to_host()));
            }
            passing.into_iter().for_each(|thread| thread.join().unwrap());
        });
        Between { address, shared, accepting: Some(accepting) }
    }

    fn ways(&self) -> Vec<Arc<Way>> {
        self.shared.ways.lock().unwrap().clone()
    }

    /// Keeps what is sent on the connections that there are.
    fn hold(&self) {
        self.ways().iter().for_each(|way| way.holds.store(true, Ordering::Release));
    }

    /// The host loses its connections; the target does not notice.
    fn cut(&self) {
        for way in self.ways() {
            let _ = way.host.shutdown(Shutdown::Both);
        }
    }

    /// What was kept arrives.
    fn deliver(&self) {
        self.ways().iter().for_each(|way| way.holds.store(false, Ordering::Release));
    }

    fn kept(&self) -> usize {
        self.ways().iter().map(|way| way.kept.load(Ordering::Acquire)).max().unwrap_or(0)
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Release);
        for way in self.ways() {
            let _ = (way.host.shutdown(Shutdown::Both), way.target.shutdown(Shutdown::Both));
        }
        let _knock = TcpStream::connect(self.address);
        let outcome = self.accepting.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            outcome.unwrap().unwrap();
        }
    }
}

impl Way {
    /// Passes on what the host sends. What was kept outlives the host's end of the connection.
    fn pass_to_target(&self, ends: &AtomicBool) {
        let mut kept = Vec::new();
        let mut bytes = [0; 16384];
        while let Ok(count @ 1..) = (&self.host).read(&mut bytes) {
            if self.holds.load(Ordering::Acquire) {
                kept.extend_from_slice(&bytes[..count]);
                self.kept.store(kept.len(), Ordering::Release);
            } else if (&self.target).write_all(&bytes[..count]).is_err() {
                return;
            }
        }
        while self.holds.load(Ordering::Acquire) && !ends.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = (&self.target).write_all(&kept);
    }

    /// Passes PDUs on to the host, if it is still there, without the announcement.
    fn pass_to_host(&self) {
        let mut header = [0; 8];
        while (&self.target).read_exact(&mut header).is_ok() {
            // PLEN (NVMe/TCP 3.6.1.1).
            let len = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
            let mut pdu = header.to_vec();
            pdu.resize(len, 0);
            if (&self.target).read_exact(&mut pdu[8..]).is_err() {
                return;
            }
            let place = pdu.windows(ANNOUNCEMENT.len()).position(|window| window == ANNOUNCEMENT);
            if let Some(at) = place {
                pdu[at..at + ANNOUNCEMENT.len()].fill(0);
            }
            let _ = (&self.host).write_all(&pdu);
        }
    }
}

/// A host of a foreign target, and what it writes and reads: one block.
struct Host {
    client: Client,
    data: Frame,
    into: Frame,
    ended: Vec<(u16, Status)>,
}

impl Host {
    fn new(between: &Between, quiesce: Duration) -> Host {
        let wanted = Wanted { quiesce, ..Wanted::new(between.address, NQN, 1) };
        let mut client = Client::with(&wanted);
        let (data, into) = (client.free.take().unwrap(), client.free.take().unwrap());
        assert_eq!(client.connector.counters().fences.get(), 0, "it does not fence");
        Host { client, data, into, ended: Vec::new() }
    }

    fn begin_write(&mut self, fill: u8) {
        self.data.bytes_mut().fill(fill);
        let segment = Segment::of_frame(&mut self.data, 0, 512);
        self.client.submit(WRITE, Op::Write, LBA, &[segment]);
        self.drive();
    }

    fn drive(&mut self) {
        let mut done = Dones::new();
        self.client.remote.reap(now_ns(), &mut done);
        self.ended.extend(done.iter().map(|done| (done.tag.slot, done.status)));
    }

    fn begin_read(&mut self) {
        self.into.bytes_mut().fill(0xee);
        let segment = Segment::of_frame(&mut self.into, 0, 512);
        self.client.submit(READ, Op::Read, LBA, &[segment]);
    }

    /// Goes on until an I/O has ended, which must be this one alone, and well.
    #[track_caller]
    fn ends(&mut self, slot: u16) {
        until("an I/O has ended", || {
            self.drive();
            !self.ended.is_empty()
        });
        assert_eq!(std::mem::take(&mut self.ended), [(slot, Status::Ok)]);
    }

    #[track_caller]
    fn reads(&mut self, fill: u8) {
        self.begin_read();
        self.ends(READ);
        assert_eq!(self.into.bytes()[..512], [fill; 512]);
    }

    /// Writes, has the write kept on its way, loses the connection and has another.
    fn write_and_lose(&mut self, between: &Between, fill: u8) {
        between.hold();
        self.begin_write(fill);
        until("the write is under way", || between.kept() > 512);
        between.cut();
        until("the volume is connected again", || {
            self.drive();
            self.client.connector.counters().reconnects.get() == 1
                && self.client.remote.is_connected()
        });
    }
}

#[test]
fn changes_wait_out_the_quiesce_time_and_reads_do_not() {
    let server = Server::new();
    let between = Between::new(server.address());
    let begun = Instant::now();
    let mut host = Host::new(&between, QUIESCE);
    // A process before this one may have died with writes under way.
    host.begin_write(1);
    host.reads(0);
    host.ends(WRITE);
    assert!(begun.elapsed() >= QUIESCE, "a write after {:?}", begun.elapsed());

    let lost = Instant::now();
    host.write_and_lose(&between, 2);
    host.reads(1);
    // The late write comes to the medium before it is sent again, and so before any newer one.
    between.deliver();
    until("it is written", || server.counters.writes.get() == 2);
    host.ends(WRITE);
    assert!(lost.elapsed() >= QUIESCE, "sent again after {:?}", lost.elapsed());
    assert_eq!(server.counters.writes.get(), 3);
    host.begin_write(3);
    host.ends(WRITE);
    host.reads(3);
}

/// What the time is for: `quiesce_ms = 0` says of a target that nothing is ever late.
#[test]
fn without_a_quiesce_time_a_late_write_lands_on_a_newer_one() {
    let server = Server::new();
    let between = Between::new(server.address());
    let mut host = Host::new(&between, Duration::ZERO);
    host.begin_write(1);
    host.ends(WRITE);
    host.write_and_lose(&between, 2);
    host.ends(WRITE);
    host.begin_write(3);
    host.ends(WRITE);
    host.reads(3);
    between.deliver();
    until("it is written", || server.counters.writes.get() == 4);
    host.reads(2);
}
