//! 100 000 I/Os through a vhost-user disk allocate nothing after warm-up: neither the worker that
//! drives the disk, nor our driver. Reads, writes, flushes, serials, refusals and bad chains, cut
//! into pieces, with the volume full now and then; with and without a ledger of where I/Os spend
//! their time.

mod rig;

use outboard::clock;
use outboard::config::plan::SocketAccess;
use outboard::control::vhost::VhostServer;
use outboard::ledger::{Kind, Ledgers, Subject};
use outboard::virtio::blk::BlkShape;
use outboard::virtio::driver::{BlkDriver, BlkOptions, DriverOp, Piece};
use outboard::virtio::mailbox::mailbox;
use outboard::volume::disk::Disk;
use outboard::volume::{BlockDevice, Dones, Full, Geometry, Io, Mem, Op};
use outboard_dma::CountingAllocator;
use outboard_sim::Rng;
use rig::{Scratch, geometry, turn, wait};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const WARM_UP_IOS: u32 = 2_000;
const IOS: u32 = 100_000;
const DISK_BYTES: u64 = 4 << 20;

/// A memory volume that says it is full every so often.
struct SometimesFull {
    mem: Mem,
    submits: u32,
}

impl BlockDevice for SometimesFull {
    fn geometry(&self) -> Geometry {
        self.mem.geometry()
    }

    fn submit(&mut self, now_ns: u64, io: &Io) -> Result<(), Full> {
        self.submits += 1;
        if self.submits.is_multiple_of(50) {
            return Err(Full);
        }
        self.mem.submit(now_ns, io)
    }

    fn reap(&mut self, now_ns: u64, done: &mut Dones) {
        self.mem.reap(now_ns, done);
    }

    fn in_flight(&self) -> u32 {
        self.mem.in_flight()
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }
}

fn submit(driver: &mut BlkDriver, rng: &mut Rng, slot: u16) {
    let offset = rng.below(DISK_BYTES / 4096 + 4) * 4096;
    let whole = [Piece { at: 0, bytes: 4096 }];
    let cut = [
        Piece { at: 8192, bytes: 100 },
        Piece { at: 500, bytes: 3000 },
        Piece { at: 4100, bytes: 996 },
    ];
    let pieces = if rng.chance(300_000) { &cut[..] } else { &whole[..] };
    match rng.below(20) {
        0 => driver.submit(DriverOp::Flush, 0, slot, 0),
        1 => driver.submit(DriverOp::GetId, 0, slot, 20),
        2 => driver.submit(DriverOp::Raw(77), 0, slot, 16),
        // Data in the wrong direction.
        3 => driver.submit(DriverOp::Raw(1), 0, slot, 512),
        4 => driver.submit(DriverOp::Discard, offset, slot, 1 << 20),
        5 => driver.submit(DriverOp::WriteZeroes, offset, slot, 1 << 20),
        n if n % 2 == 0 => driver.submit_pieces(DriverOp::Read, offset, slot, pieces),
        _ => driver.submit_pieces(DriverOp::Write, offset, slot, pieces),
    }
}

/// Runs `ios` I/Os at varying depth.
fn run(driver: &mut BlkDriver, rng: &mut Rng, slots: u16, ios: u32) {
    let mut ended = 0;
    while ended < ios {
        let depth = 1 + rng.below(u64::from(slots)) as u16;
        for slot in 0..depth {
            submit(driver, rng, slot);
        }
        driver.kick();
        for _ in 0..depth {
            wait(driver);
        }
        ended += u32::from(depth);
    }
}

/// Records the I/Os that have ended, as a worker does; how many there are so far. Those to come
/// keep their times or not.
fn record(disk: &mut Disk, ledgers: &mut Ledgers, is_timed: &AtomicBool) -> u64 {
    let subject = |op: Op| Subject::Io { volume: 0, owner: 3, op: op.name() };
    for entry in disk.timing().entries(subject) {
        ledgers.record(Kind::Mem, &entry);
    }
    disk.timing().set(is_timed.load(Ordering::Relaxed));
    ledgers.of(Kind::Mem).count()
}

#[test]
fn a_disk_does_not_allocate_per_io() {
    let scratch = Scratch::new("allocations");
    let path = scratch.0.join("disk");
    let shape = BlkShape { bytes: DISK_BYTES, block_bytes: 512, read_only: false, queues: 2 };
    let (control, inbox) = mailbox(4);
    let mut disk = Disk::new(3, "disk", 4, inbox);
    let counters = disk.counters();
    let server = VhostServer::start(
        "disk",
        &path,
        &SocketAccess::default(),
        shape,
        control,
        Arc::new(|| {}),
    )
    .unwrap();
    let [stop, is_timed] = [false, false].map(AtomicBool::new);
    let [allocations, recorded] = [0, 0].map(AtomicU64::new);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mem = Mem::new(geometry(512, DISK_BYTES, false), true).unwrap();
            let mut volume = SometimesFull { mem, submits: 0 };
            let mut done = Dones::new();
            let mut ledgers = Ledgers::new(clock::now_ns());
            while !stop.load(Ordering::Relaxed) {
                if turn(&mut disk, &mut volume, &mut done) == 0 {
                    // What sleeping takes belongs to the path too.
                    if !disk.arm() {
                        std::thread::yield_now();
                    }
                    disk.disarm();
                }
                recorded.store(record(&mut disk, &mut ledgers, &is_timed), Ordering::Relaxed);
                allocations.store(CountingAllocator::count(), Ordering::Release);
            }
        });
        for indirect in [false, true] {
            is_timed.store(indirect, Ordering::Relaxed);
            let slots = 20;
            let options = BlkOptions {
                queues: 2,
                queue_size: 128,
                slots,
                max_io_bytes: 16 << 10,
                indirect,
                event_idx: indirect,
            };
            let mut driver = BlkDriver::connect_with(&path, options).unwrap();
            let mut rng = Rng::new(9);
            run(&mut driver, &mut rng, slots, WARM_UP_IOS);
            let before = (allocations.load(Ordering::Acquire), CountingAllocator::count());
            assert!(before.0 > 0 && before.1 > 0, "the allocator counts");
            run(&mut driver, &mut rng, slots, IOS);
            let after = (allocations.load(Ordering::Acquire), CountingAllocator::count());
            assert_eq!(before, after, "worker, driver");
        }
        drop(server);
        stop.store(true, Ordering::Relaxed);
    });
    assert!(recorded.load(Ordering::Relaxed) > 10_000, "I/Os were recorded");
    let reached = [
        counters.reads.get(),
        counters.writes.get(),
        counters.flushes.get(),
        counters.ids.get(),
        counters.full.get(),
        counters.faults.total(),
    ];
    assert!(reached.iter().all(|count| *count > 1_000), "{reached:?}");
}
