//! 100 000 I/Os per kind of volume allocate nothing after warm-up: aligned and not, cut into
//! pieces, refused, with flushes, and at the limit of what is in flight.

use outboard::volume::{BlockDevice, Dones, File, Full, Geometry, Io, Mem, Op, Status, Tag};
use outboard_dma::{CountingAllocator, Frame, Region, Segment};
use outboard_sim::Rng;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const WARM_UP_IOS: u32 = 2_000;
const IOS: u32 = 100_000;
const BLOCK_BYTES: u32 = 512;
const BLOCKS: u64 = 8_192;

/// What ended how: every kind of outcome must have been reached.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcomes {
    ok: u32,
    refused: u32,
    full: u32,
}

/// Runs `ios` I/Os on as many frames as may be in flight.
fn run<V: BlockDevice>(volume: &mut V, frames: &mut [Frame], rng: &mut Rng, ios: u32) -> Outcomes {
    let mut outcomes = Outcomes::default();
    let mut done = Dones::new();
    let (mut submitted, mut slot) = (0, 0);
    while submitted < ios || volume.in_flight() > 0 {
        while submitted < ios {
            let frame = &mut frames[slot];
            let from = if rng.chance(300_000) { rng.index(512) } else { 0 };
            // Either three pieces that make two blocks, or one of four blocks.
            let pieces = [
                Segment::of_frame(frame, from, 300),
                Segment::of_frame(frame, 1024 + from, 700),
                Segment::of_frame(frame, 2048 + from, 24),
            ];
            let whole = [Segment::of_frame(frame, from, 2048)];
            let op = match rng.below(4_000) {
                0 => Op::Flush,
                1..40 => Op::Discard,
                40..80 => Op::WriteZeroes,
                80..400 => Op::Compare,
                n if n % 2 == 0 => Op::Read,
                _ => Op::Write,
            };
            let io = Io {
                tag: Tag { owner: 0, slot: slot as u16 },
                op,
                // Some leave the volume.
                offset_bytes: rng.below(BLOCKS + 20) * u64::from(BLOCK_BYTES),
                range_bytes: if op.is_ranged() { 2048 } else { 0 },
                segments: if rng.chance(200_000) { &pieces } else { &whole },
            };
            if volume.submit(0, &io) == Err(Full) {
                outcomes.full += 1;
                break;
            }
            submitted += 1;
            slot = (slot + 1) % frames.len();
        }
        volume.reap(0, &mut done);
        if done.is_empty() {
            std::thread::sleep(Duration::from_micros(20));
        }
        for done in done.drain(..) {
            match done.status {
                Status::Ok | Status::Miscompare => outcomes.ok += 1,
                Status::OutOfRange => outcomes.refused += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    outcomes
}

fn allocates_nothing<V: BlockDevice>(volume: &mut V) {
    let mut free = Region::new(512).unwrap().carve(512).unwrap();
    let mut frames: Vec<Frame> = std::iter::from_fn(|| free.take()).collect();
    let mut rng = Rng::new(1);
    run(volume, &mut frames, &mut rng, WARM_UP_IOS);
    let before = CountingAllocator::count();
    assert!(before > 0, "the counting allocator is in use");
    let outcomes = run(volume, &mut frames, &mut rng, IOS);
    assert_eq!(CountingAllocator::count() - before, 0, "{outcomes:?}");
    assert_eq!(outcomes.ok + outcomes.refused, IOS);
    assert!(outcomes.refused > 0 && outcomes.full > 0, "{outcomes:?}");
    frames.into_iter().for_each(|frame| free.give(frame));
}

#[test]
fn mem_allocates_nothing() {
    let geometry = Geometry { block_bytes: BLOCK_BYTES, blocks: BLOCKS, read_only: false };
    allocates_nothing(&mut Mem::new(geometry, false).unwrap());
}

#[test]
fn file_allocates_nothing() {
    let path = std::env::temp_dir().join(format!("outboard-allocations-{}", std::process::id()));
    let bytes = BLOCKS * u64::from(BLOCK_BYTES);
    let mut file = File::open(&path, BLOCK_BYTES, false, Some(bytes)).unwrap();
    // The name is not needed any more, and nothing is left behind however the test ends.
    std::fs::remove_file(&path).unwrap();
    allocates_nothing(&mut file);
    assert!(file.counters().bounced.get() > 10_000);
}
