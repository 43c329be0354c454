//! Disks served over real vhost-user sockets by a worker thread that ends with the rig.
#![allow(dead_code, reason = "each test file uses its part")]

use outboard::config::plan::SocketAccess;
use outboard::control::vhost::VhostServer;
use outboard::virtio::blk::BlkShape;
use outboard::virtio::driver::{BlkDriver, BlkOptions, Completion, DriverOp};
use outboard::virtio::mailbox::mailbox;
use outboard::volume::disk::{Disk, DiskCounters};
use outboard::volume::{BlockDevice, Dones, Full, Geometry, Io, Mem, Tag};
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long anything may take before a test fails; no test measures time.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A directory of its own, removed at the end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(what: &str) -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("outboard-{what}-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Says when a gated volume may work.
#[derive(Default)]
pub struct Gate {
    pub closed: AtomicBool,
    /// I/Os that wait behind the gate.
    pub waiting: AtomicU32,
}

/// A memory volume behind a gate, of limited depth.
pub struct Gated {
    mem: Mem,
    gate: Arc<Gate>,
    depth: usize,
    waiting: VecDeque<(Tag, outboard::volume::Op, [u64; 2], Vec<outboard_dma::Segment>)>,
}

impl Gated {
    pub fn new(geometry: Geometry, depth: usize, gate: &Arc<Gate>) -> Gated {
        let mem = Mem::new(geometry, false).unwrap();
        Gated { mem, gate: Arc::clone(gate), depth, waiting: VecDeque::new() }
    }
}

impl BlockDevice for Gated {
    fn geometry(&self) -> Geometry {
        self.mem.geometry()
    }

    fn submit(&mut self, _: u64, io: &Io) -> Result<(), Full> {
        if self.waiting.len() == self.depth {
            return Err(Full);
        }
        let range = [io.offset_bytes, io.range_bytes];
        self.waiting.push_back((io.tag, io.op, range, io.segments.to_vec()));
        self.gate.waiting.store(self.waiting.len() as u32, Ordering::Release);
        Ok(())
    }

    fn reap(&mut self, now_ns: u64, done: &mut Dones) {
        if self.gate.closed.load(Ordering::Acquire) {
            return;
        }
        while let Some((tag, op, range, segments)) = self.waiting.pop_front() {
            let [offset_bytes, range_bytes] = range;
            let io = Io { tag, op, offset_bytes, range_bytes, segments: &segments };
            if self.mem.submit(now_ns, &io).is_err() {
                self.waiting.push_front((tag, op, range, segments));
                break;
            }
        }
        self.gate.waiting.store(self.waiting.len() as u32, Ordering::Release);
        self.mem.reap(now_ns, done);
    }

    fn in_flight(&self) -> u32 {
        self.waiting.len() as u32 + self.mem.in_flight()
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }
}

/// What a rig's disk lies on.
pub enum Content {
    Mem(Mem),
    Gated(Gated),
}

impl Content {
    pub fn mem(block_bytes: u32, bytes: u64, read_only: bool) -> Content {
        Content::Mem(Mem::new(geometry(block_bytes, bytes, read_only), false).unwrap())
    }
}

pub fn geometry(block_bytes: u32, bytes: u64, read_only: bool) -> Geometry {
    Geometry { block_bytes, blocks: bytes / u64::from(block_bytes), read_only }
}

impl BlockDevice for Content {
    fn geometry(&self) -> Geometry {
        match self {
            Content::Mem(volume) => volume.geometry(),
            Content::Gated(volume) => volume.geometry(),
        }
    }

    fn submit(&mut self, now_ns: u64, io: &Io) -> Result<(), Full> {
        match self {
            Content::Mem(volume) => volume.submit(now_ns, io),
            Content::Gated(volume) => volume.submit(now_ns, io),
        }
    }

    fn reap(&mut self, now_ns: u64, done: &mut Dones) {
        match self {
            Content::Mem(volume) => volume.reap(now_ns, done),
            Content::Gated(volume) => volume.reap(now_ns, done),
        }
    }

    fn in_flight(&self) -> u32 {
        match self {
            Content::Mem(volume) => volume.in_flight(),
            Content::Gated(volume) => volume.in_flight(),
        }
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }
}

/// One disk of a worker's turn, as the worker drives it.
pub fn turn(disk: &mut Disk, volume: &mut impl BlockDevice, done: &mut Dones) -> u32 {
    let mut work = disk.poll(0, volume);
    loop {
        done.clear();
        volume.reap(0, done);
        for done in done.drain(..) {
            disk.complete(done);
            work += 1;
        }
        if !done.is_full() {
            break;
        }
    }
    disk.notify();
    work
}

/// Disks on one worker thread.
pub struct Rig {
    pub scratch: Scratch,
    servers: Vec<VhostServer>,
    counters: Vec<Arc<DiskCounters>>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

impl Rig {
    /// Serves each content as a disk `disk-N` with so many queues.
    pub fn start(contents: Vec<(Content, u16)>) -> Rig {
        let scratch = Scratch::new("vhost");
        let (mut servers, mut counters, mut disks) = (vec![], vec![], vec![]);
        for (index, (content, queues)) in contents.into_iter().enumerate() {
            let name = format!("disk-{index}");
            let geometry = content.geometry();
            let shape = BlkShape {
                bytes: geometry.bytes(),
                block_bytes: geometry.block_bytes,
                read_only: geometry.read_only,
                queues,
            };
            let (control, inbox) = mailbox(queues * 2);
            let disk = Disk::new(7, &name, queues * 2, inbox);
            counters.push(disk.counters());
            disks.push((disk, content));
            let path = scratch.0.join("run").join(&name);
            let wake = Arc::new(|| {});
            servers.push(
                VhostServer::start(&name, &path, &SocketAccess::default(), shape, control, wake)
                    .unwrap(),
            );
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let worker = std::thread::spawn(move || {
            let mut done = Dones::new();
            let mut idle = 0u32;
            while !stopping.load(Ordering::Relaxed) {
                let mut work = 0;
                for (disk, volume) in &mut disks {
                    work += turn(disk, volume, &mut done);
                }
                idle = if work == 0 { idle.saturating_add(1) } else { 0 };
                match idle {
                    0 => {}
                    1..2000 => std::thread::yield_now(),
                    _ => std::thread::sleep(Duration::from_micros(100)),
                }
            }
        });
        Rig { scratch, servers, counters, stop, worker: Some(worker) }
    }

    pub fn path(&self, disk: usize) -> PathBuf {
        self.scratch.0.join("run").join(format!("disk-{disk}"))
    }

    pub fn counters(&self, disk: usize) -> &DiskCounters {
        &self.counters[disk]
    }

    pub fn connect(&self, disk: usize, options: BlkOptions) -> BlkDriver {
        BlkDriver::connect_with(&self.path(disk), options).unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.servers.clear();
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.worker.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            ended.unwrap().expect("the worker survived");
        }
    }
}

/// Waits for one completion.
pub fn wait(driver: &mut BlkDriver) -> Completion {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(completion) = driver.poll() {
            return completion;
        }
        assert!(Instant::now() < deadline, "no completion came");
        std::thread::yield_now();
    }
}

/// One I/O from start to end: its status and the bytes written.
pub fn io(driver: &mut BlkDriver, op: DriverOp, offset: u64, slot: u16, bytes: u32) -> (u8, u32) {
    driver.submit(op, offset, slot, bytes);
    driver.kick();
    let completion = wait(driver);
    assert_eq!(completion.slot, slot);
    (completion.status, completion.written)
}

/// Waits until `condition` holds.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether something answers at the path.
pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
