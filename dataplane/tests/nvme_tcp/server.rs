//! A worker that serves a memory volume on a thread, and a remote volume with memory for its I/O.

use crate::gated::Gated;
use outboard::clock::now_ns;
use outboard::control::connect::{Connector, Wanted};
use outboard::control::listen::Listener;
use outboard::volume::export::{Export, ExportConfig, ExportCounters};
use outboard::volume::{BlockDevice, Dones, Geometry, Io, Mem, Op, Remote, Status, Tag};
use outboard_dma::{FreeList, PollList, Region, Segment};
use outboard_rdma::nvmf::fence::Boot;
use outboard_rdma::nvmf::identify::Identity;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const NQN: &str = "nqn.2025-01.io.outboard:test";
pub const BLOCKS: u64 = 2048;
pub const BOOT: Boot = [1; 16];
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A worker that serves one memory volume, on a thread.
pub struct Server {
    listener: Listener,
    pub counters: Arc<ExportCounters>,
    stop: Arc<AtomicBool>,
    /// Nanoseconds that the worker's time is ahead of the clock: timeouts pass without waiting.
    pub ahead_ns: Arc<AtomicU64>,
    /// Keeps what changes the volume in flight.
    pub is_shut: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

pub fn identity(byte: u8) -> Identity {
    Identity { nguid: [byte; 16], uuid: [0; 16] }
}

fn config(connections: u16, identity: Identity, boot: Boot) -> ExportConfig {
    ExportConfig {
        nqn: NQN.into(),
        serial: "1".into(),
        identity,
        owner: 3,
        connections,
        shared_frames: 64,
        first_epoch: 1,
        boot,
    }
}

impl Server {
    pub fn start(address: SocketAddr, identity: Identity) -> Server {
        Server::run(address, identity, BOOT, false)
    }

    /// The same, on a machine that has started again.
    pub fn after_a_power_cut(address: SocketAddr, identity: Identity) -> Server {
        Server::run(address, identity, [2; 16], false)
    }

    /// A worker that sleeps on the export's descriptor whenever a turn found nothing.
    pub fn sleepy() -> Server {
        Server::run("127.0.0.1:0".parse().unwrap(), identity(1), BOOT, true)
    }

    fn run(address: SocketAddr, identity: Identity, boot: Boot, is_sleepy: bool) -> Server {
        let geometry = Geometry { block_bytes: 512, blocks: BLOCKS, read_only: false };
        let is_shut = Arc::new(AtomicBool::new(false));
        let mut volume = Gated::new(Mem::new(geometry, false).unwrap(), Arc::clone(&is_shut));
        let config = config(32, identity, boot);
        let mut free = Region::new(config.frames()).unwrap().carve(config.frames()).unwrap();
        let (mut export, door) = Export::new(&config, volume.geometry(), &mut free).unwrap();
        assert_eq!(free.len(), 0);
        let counters = export.counters();
        let stop = Arc::new(AtomicBool::new(false));
        let ahead_ns = Arc::new(AtomicU64::new(0));
        let (stopped, ahead) = (Arc::clone(&stop), Arc::clone(&ahead_ns));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let now = now_ns() + ahead.load(Ordering::Relaxed);
                if turn(now, &mut export, &mut volume) > 0 {
                    continue;
                }
                if is_sleepy && !export.is_busy() {
                    sleep(&export);
                }
                std::thread::yield_now();
            }
            while !export.close_all(&mut free) {
                turn(now_ns(), &mut export, &mut volume);
            }
            assert_eq!(free.len(), config.frames() as usize, "frames were lost");
        });
        let listener = Listener::start(address, door).unwrap();
        Server { listener, counters, stop, ahead_ns, is_shut, thread: Some(thread) }
    }

    pub fn new() -> Server {
        Server::start("127.0.0.1:0".parse().unwrap(), identity(1))
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }
}

/// Sleeps until something comes. Longer than a client's patience, but for a stop.
fn sleep(export: &Export) {
    let mut list = PollList::with_capacity(1);
    list.add(export.wake_fd(), false);
    list.wait(PATIENCE * 2).unwrap();
}

fn turn(now: u64, export: &mut Export, volume: &mut Gated) -> usize {
    let mut moved = export.poll(now, volume);
    let mut done = Dones::new();
    volume.reap(now, &mut done);
    moved += done.len();
    for done in done {
        assert_eq!(done.tag.owner, 3);
        export.complete(done);
    }
    export.flush(now);
    moved
}

impl Drop for Server {
    fn drop(&mut self) {
        // What the gate keeps must end before the worker can.
        self.is_shut.store(false, Ordering::Release);
        self.stop.store(true, Ordering::Relaxed);
        // Wakes a worker that sleeps.
        let _knock = TcpStream::connect(self.address());
        let outcome = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            outcome.unwrap().unwrap();
        }
    }
}

/// A remote volume with memory for its I/Os.
pub struct Client {
    pub remote: Remote,
    pub connector: Connector,
    pub free: FreeList,
}

impl Client {
    pub fn new(address: SocketAddr) -> Client {
        Client::with(&Wanted::new(address, NQN, 1))
    }

    pub fn with(wanted: &Wanted) -> Client {
        let (remote, connector) = Remote::connect_as(wanted).unwrap();
        let free = Region::new(4096).unwrap().carve(4096).unwrap();
        Client { remote, connector, free }
    }

    pub fn submit(&mut self, slot: u16, op: Op, lba: u64, segments: &[Segment]) {
        let tag = Tag { owner: 9, slot };
        let io = Io { tag, op, offset_bytes: lba * 512, range_bytes: 0, segments };
        self.remote.submit(now_ns(), &io).unwrap();
    }

    pub fn reap(&mut self) -> Dones {
        let start = Instant::now();
        let mut done = Dones::new();
        while done.is_empty() {
            self.remote.reap(now_ns(), &mut done);
            assert!(start.elapsed() < PATIENCE, "{} in flight", self.remote.in_flight());
            std::thread::yield_now();
        }
        done
    }

    pub fn run(&mut self, op: Op, lba: u64, segments: &[Segment]) -> Status {
        self.submit(1, op, lba, segments);
        let done = self.reap();
        assert_eq!(done.len(), 1);
        done[0].status
    }

    /// Writes one block, reads it back into other memory, and compares.
    pub fn check(&mut self, lba: u64, fill: u8) {
        let (mut from, mut to) = (self.free.take().unwrap(), self.free.take().unwrap());
        from.bytes_mut()[..512].fill(fill);
        let (out, into) =
            (Segment::of_frame(&mut from, 0, 512), Segment::of_frame(&mut to, 7, 512));
        assert_eq!(self.run(Op::Write, lba, &[out]), Status::Ok);
        assert_eq!(self.run(Op::Read, lba, &[into]), Status::Ok);
        assert_eq!(to.bytes()[7..519], [fill; 512]);
        self.free.give(from);
        self.free.give(to);
    }
}

pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
