//! 100 000 I/Os over NVMe/TCP allocate nothing after warm-up, at either end: reads and writes of
//! all kinds of sizes, by request and in capsules, flushes, and refused ones; with a ledger, in
//! which every command is once.

use outboard::clock::now_ns;
use outboard::control::listen::Listener;
use outboard::ledger::{Kind, Ledgers};
use outboard::volume::export::{Export, ExportConfig};
use outboard::volume::{BlockDevice, Dones, Geometry, Io, Mem, Op, Remote, Status, Tag, Volume};
use outboard::worker::{Storage, User, VolumeSlot};
use outboard_dma::{CountingAllocator, Frame, FreeList, Region, Segment, Segments};
use outboard_rdma::nvmf::identify::Identity;
use outboard_sim::Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const NQN: &str = "nqn.2025-01.io.outboard:allocations";
const BLOCKS: u64 = 8_192;
const WARM_UP_IOS: u32 = 2_000;
const IOS: u32 = 100_000;
const SLOTS: usize = 128;
/// Frames of one I/O at most: with 132 KiB it is two commands.
const FRAMES: usize = 33;

/// What the two threads tell each other.
#[derive(Default)]
struct Signals {
    is_warm: AtomicBool,
    is_over: AtomicBool,
}

/// Serves until the client is done; returns allocations since it was warm, and the ledger.
fn serve(mut storage: Storage, mut free: FreeList, signals: &Signals) -> (u64, Box<Ledgers>) {
    assert!(storage.keep_ledger(Some(Box::new(Ledgers::new(now_ns())))).is_none());
    let mut before = None;
    while !signals.is_over.load(Ordering::Acquire) {
        if before.is_none() && signals.is_warm.load(Ordering::Acquire) {
            before = Some(CountingAllocator::count());
        }
        if storage.turn(now_ns()) == 0 {
            std::thread::yield_now();
        }
    }
    let count = CountingAllocator::count() - before.expect("it was warm before it was over");
    assert!(storage.close(&mut free));
    (count, storage.keep_ledger(None).expect("it was kept"))
}

/// Runs `ios` I/Os on a remote volume.
fn run(remote: &mut Remote, frames: &mut [Vec<Frame>], rng: &mut Rng, ios: u32) {
    let mut done = Dones::new();
    let mut free: Vec<u16> = (0..SLOTS as u16).collect();
    let before = CountingAllocator::count();
    let (mut submitted, mut ended, mut refused) = (0, 0, 0);
    while ended < ios {
        while let Some(slot) = free.pop().filter(|_| submitted < ios) {
            let op = [Op::Read, Op::Write][rng.index(2)];
            let op = if rng.below(1_000) == 0 { Op::Flush } else { op };
            let count = if rng.below(100) == 0 { FRAMES } else { 1 + rng.index(3) };
            let len = if rng.below(2) == 0 { 512 } else { 4096 };
            let mut segments = Segments::new();
            for frame in &mut frames[usize::from(slot)][..count] {
                segments.push(Segment::of_frame(frame, 0, len));
            }
            let offset_bytes = rng.below(BLOCKS + 20) * 512;
            let tag = Tag { owner: 0, slot };
            let io = Io { tag, op, offset_bytes, range_bytes: 0, segments: &segments };
            remote.submit(now_ns(), &io).expect("as many slots as may be in flight");
            submitted += 1;
        }
        remote.reap(now_ns(), &mut done);
        if done.is_empty() {
            std::thread::yield_now();
        }
        for done in done.drain(..) {
            assert!(matches!(done.status, Status::Ok | Status::OutOfRange), "{:?}", done.status);
            refused += u32::from(done.status == Status::OutOfRange);
            free.push(done.tag.slot);
            ended += 1;
        }
    }
    assert!(refused > 0);
    // Making the list of free slots is the test's own.
    assert_eq!(CountingAllocator::count() - before, 0, "the initiator allocated");
}

#[test]
fn neither_end_allocates() {
    let geometry = Geometry { block_bytes: 512, blocks: BLOCKS, read_only: false };
    let volume = Volume::Mem(Mem::new(geometry, true).unwrap());
    let config = ExportConfig {
        nqn: NQN.into(),
        serial: "1".into(),
        identity: Identity { nguid: [1; 16], uuid: [0; 16] },
        owner: 0,
        connections: 4,
        shared_frames: 64,
        first_epoch: 1,
        boot: [1; 16],
    };
    let region = Region::new(config.frames() + (SLOTS * FRAMES) as u32).unwrap();
    let mut exports = region.carve(config.frames()).unwrap();
    let (export, door) = Export::new(&config, volume.geometry(), &mut exports).unwrap();
    let counters = export.counters();
    let user = User::Export(Box::new(export));
    let storage = Storage::new(vec![VolumeSlot::new(0, volume).with(user)]);
    let signals = Arc::new(Signals::default());
    let shared = Arc::clone(&signals);
    let target = std::thread::spawn(move || serve(storage, exports, &shared));
    let listener = Listener::start("127.0.0.1:0".parse().unwrap(), door).unwrap();
    let (mut remote, connector) = Remote::connect(listener.address(), NQN, 1).unwrap();
    assert_eq!(counters.connections.get(), 2);
    let mut free = region.carve((SLOTS * FRAMES) as u32).unwrap();
    let mut frames: Vec<Vec<Frame>> =
        (0..SLOTS).map(|_| (0..FRAMES).map(|_| free.take().unwrap()).collect()).collect();
    let mut rng = Rng::new(1);
    run(&mut remote, &mut frames, &mut rng, WARM_UP_IOS);
    signals.is_warm.store(true, Ordering::Release);
    run(&mut remote, &mut frames, &mut rng, IOS);
    signals.is_over.store(true, Ordering::Release);
    let (allocations, ledger) = target.join().unwrap();
    assert_eq!(allocations, 0, "the target allocated");
    let entries = ledger.of(Kind::Export);
    assert_eq!(entries.count(), counters.commands.get());
    let is_told = |bytes: u32| bytes > 0 && bytes.is_multiple_of(512);
    assert!(entries.slowest().all(|entry| is_told(entry.bytes)), "{entries:?}");
    let served = counters.reads.get() + counters.writes.get();
    assert!(served > u64::from(IOS) * 9 / 10, "{served} were served");
    assert!(counters.flushes.get() > 50);
    drop(connector);
    frames.into_iter().flatten().for_each(|frame| free.give(frame));
}
