//! The promise of [`BlockDevice`], as a suite that every kind of volume runs.
//!
//! `make` gives a fresh volume of zeros with the geometry asked for; a volume that needs another
//! side (a target) wraps it so that `reap` moves both. `depth` is the most I/Os in flight, `ops`
//! what the volume can do. A failure prints the command that repeats its seed.

use super::{BlockDevice, Done, Dones, Full, Geometry, Io, Op, Status, Tag};
use crate::clock::now_ns;
use outboard_dma::{
    FRAME_BYTES, Frame, FreeList, MAX_SEGMENTS, PollList, Region, Segment, Segments,
};
use outboard_sim::{Rng, for_each_seed};
use std::ops::Range;
use std::time::Duration;

/// I/Os that one seed of the random run submits.
const RANDOM_IOS: u32 = 1_500;
/// Calls of `reap` without an outcome after which an I/O counts as lost: above ten seconds.
const MAX_EMPTY_REAPS: u32 = 200_000;
/// The largest random I/O.
const MAX_IO_BYTES: usize = 64 << 10;

/// The longest random range without data.
const MAX_RANGE_BYTES: usize = 512 << 10;

/// Every operation there is.
pub(crate) const ALL_OPS: &[Op] =
    &[Op::Read, Op::Write, Op::Flush, Op::Discard, Op::WriteZeroes, Op::Compare];

/// Runs every check at both block sizes.
pub(crate) fn suite<V: BlockDevice>(depth: u32, ops: &[Op], mut make: impl FnMut(Geometry) -> V) {
    for block_bytes in [512, 4096] {
        let geometry = |blocks| Geometry { block_bytes, blocks, read_only: false };
        zeros_where_never_written(&mut make(geometry(300)));
        ranges_at_the_limit_and_one_past(&mut make(geometry(64)));
        for op in ops.iter().filter(|op| op.is_ranged()) {
            whole_ranges_read_as_promised(&mut make(geometry(700)), *op);
        }
        if ops.contains(&Op::Compare) {
            compares_find_any_difference(&mut make(geometry(300)));
        }
        segments_at_the_limit_and_one_past(&mut make(geometry(64)));
        read_only_refuses_changes(&mut make(Geometry { read_only: true, ..geometry(64) }), ops);
        full_has_no_effect(&mut make(geometry(64)), depth);
        flushes_end(&mut make(geometry(64)), depth);
        sleeping_on_the_descriptor_is_enough(&mut make(geometry(64)));
        for_each_seed("cargo test -p outboard --lib volume", 1, 4, |seed| {
            let volume = &mut make(geometry(if block_bytes == 512 { 2_000 } else { 500 }));
            reads_give_the_last_write(volume, depth, ops, seed);
        });
    }
}

/// Frames to make I/Os of.
struct Memory {
    free: FreeList,
}

/// Data in the memory of one I/O, cut at odd places.
struct Buffer {
    frames: Vec<Frame>,
    segments: Segments,
}

impl Memory {
    fn new() -> Memory {
        let region = Region::new(8_192).unwrap();
        Memory { free: region.carve(8_192).unwrap() }
    }

    /// A buffer of whole frames, page-aligned.
    fn aligned(&mut self, bytes: usize) -> Buffer {
        self.cut(bytes, |_| (0, FRAME_BYTES))
    }

    /// A buffer that starts at odd addresses and ends at odd lengths.
    fn odd(&mut self, bytes: usize, rng: &mut Rng) -> Buffer {
        let least = bytes.div_ceil(MAX_SEGMENTS - 1);
        self.cut(bytes, |_| {
            let len = least.max(rng.index(FRAME_BYTES) + 1);
            (rng.index(FRAME_BYTES - len + 1), len)
        })
    }

    /// Segments of which `place` says where in its frame each lies.
    fn cut(&mut self, bytes: usize, mut place: impl FnMut(usize) -> (usize, usize)) -> Buffer {
        let mut buffer = Buffer { frames: Vec::new(), segments: Segments::new() };
        let mut left = bytes;
        while left > 0 {
            let mut frame = self.free.take().expect("the suite's memory is large enough");
            // What a read must not touch, or must overwrite.
            frame.bytes_mut().fill(0xa5);
            let (offset, len) = place(buffer.frames.len());
            let len = len.min(left);
            buffer.segments.push(Segment::of_frame(&mut frame, offset, len));
            buffer.frames.push(frame);
            left -= len;
        }
        buffer
    }

    fn give(&mut self, buffer: Buffer) {
        buffer.frames.into_iter().for_each(|frame| self.free.give(frame));
    }
}

impl Buffer {
    fn fill(&self, data: &[u8]) {
        let mut at = 0;
        for segment in &self.segments {
            assert!(segment.copy_from(0, &data[at..at + segment.len()]));
            at += segment.len();
        }
    }

    fn content(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for segment in &self.segments {
            let at = out.len();
            out.resize(at + segment.len(), 0);
            assert!(segment.copy_to(0, &mut out[at..]));
        }
        out
    }
}

fn tag(slot: u16) -> Tag {
    Tag { owner: 7, slot }
}

fn submit<V: BlockDevice>(
    volume: &mut V,
    slot: u16,
    op: Op,
    offset_bytes: u64,
    segments: &[Segment],
) -> Result<(), Full> {
    volume.submit(now_ns(), &Io { tag: tag(slot), op, offset_bytes, range_bytes: 0, segments })
}

/// Submits an operation on a range, without data, to an idle volume: how it ended.
fn run_range<V: BlockDevice>(
    volume: &mut V,
    op: Op,
    offset_bytes: u64,
    range_bytes: u64,
) -> Status {
    let io = Io { tag: tag(98), op, offset_bytes, range_bytes, segments: &[] };
    volume.submit(now_ns(), &io).expect("an idle volume takes an I/O");
    let done = drain(volume);
    assert_eq!((done.len(), done[0].tag), (1, tag(98)));
    done[0].status
}

/// Reaps until something has ended.
fn reap_some<V: BlockDevice>(volume: &mut V) -> Dones {
    let mut done = Dones::new();
    for _ in 0..MAX_EMPTY_REAPS {
        volume.reap(now_ns(), &mut done);
        if !done.is_empty() {
            return done;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    panic!("{} I/Os in flight never ended", volume.in_flight());
}

/// Submits one I/O to an idle volume: how it ended.
fn run<V: BlockDevice>(volume: &mut V, op: Op, offset: u64, segments: &[Segment]) -> Status {
    assert_eq!(volume.in_flight(), 0);
    submit(volume, 99, op, offset, segments).expect("an idle volume takes an I/O");
    assert_eq!(volume.in_flight(), 1);
    let done = reap_some(volume);
    assert_eq!((done.len(), done[0].tag, volume.in_flight()), (1, tag(99), 0));
    done[0].status
}

/// Everything in flight, ended.
fn drain<V: BlockDevice>(volume: &mut V) -> Vec<Done> {
    let mut all = Vec::new();
    while volume.in_flight() > 0 {
        all.extend(reap_some(volume));
    }
    let mut done = Dones::new();
    volume.reap(now_ns(), &mut done);
    assert!(done.is_empty(), "an outcome came without an I/O: {done:?}");
    all
}

fn read_all<V: BlockDevice>(volume: &mut V, memory: &mut Memory) -> Vec<u8> {
    let bytes = volume.geometry().bytes();
    let mut content = Vec::new();
    while (content.len() as u64) < bytes {
        let at = content.len() as u64;
        let buffer = memory.aligned((bytes - at).min(64 << 10) as usize);
        assert_eq!(run(volume, Op::Read, at, &buffer.segments), Status::Ok);
        content.extend(buffer.content());
        memory.give(buffer);
    }
    content
}

fn zeros_where_never_written<V: BlockDevice>(volume: &mut V) {
    let mut memory = Memory::new();
    let block = u64::from(volume.geometry().block_bytes);
    assert!(read_all(volume, &mut memory).iter().all(|byte| *byte == 0));
    let buffer = memory.aligned(block as usize);
    buffer.fill(&vec![3; block as usize]);
    assert_eq!(run(volume, Op::Write, 5 * block, &buffer.segments), Status::Ok);
    let content = read_all(volume, &mut memory);
    let written = 5 * block as usize..6 * block as usize;
    for (at, byte) in content.iter().enumerate() {
        assert_eq!(*byte, if written.contains(&at) { 3 } else { 0 }, "byte {at}");
    }
}

fn ranges_at_the_limit_and_one_past<V: BlockDevice>(volume: &mut V) {
    let mut memory = Memory::new();
    let (bytes, block) = (volume.geometry().bytes(), u64::from(volume.geometry().block_bytes));
    let one = memory.aligned(block as usize);
    let two = memory.aligned(2 * block as usize);
    let half = memory.aligned(block as usize / 2);
    let none = Segments::new();
    for op in [Op::Read, Op::Write] {
        let mut outcome = |offset, buffer: &Segments| run(volume, op, offset, buffer);
        assert_eq!(outcome(bytes - block, &one.segments), Status::Ok);
        assert_eq!(outcome(bytes - 2 * block, &two.segments), Status::Ok);
        assert_eq!(outcome(bytes, &one.segments), Status::OutOfRange);
        assert_eq!(outcome(bytes - block, &two.segments), Status::OutOfRange);
        assert_eq!(outcome(u64::MAX - block + 1, &one.segments), Status::OutOfRange);
        assert_eq!(outcome(u64::MAX - block + 1, &two.segments), Status::OutOfRange);
        assert_eq!(outcome(1, &one.segments), Status::Unaligned);
        assert_eq!(outcome(block / 2, &half.segments), Status::Unaligned);
        assert_eq!(outcome(0, &half.segments), Status::Unaligned);
        assert_eq!(outcome(u64::MAX, &one.segments), Status::Unaligned);
        // Nothing to move, inside and at the end; behind the end it is refused.
        assert_eq!(outcome(0, &none), Status::Ok);
        assert_eq!(outcome(bytes, &none), Status::Ok);
        assert_eq!(outcome(bytes + block, &none), Status::OutOfRange);
    }
}

/// A discard, or write-zeroes: limits, the whole volume, a part whose neighbours stay.
fn whole_ranges_read_as_promised<V: BlockDevice>(volume: &mut V, op: Op) {
    let mut memory = Memory::new();
    let (bytes, block) = (volume.geometry().bytes(), u64::from(volume.geometry().block_bytes));
    for (offset, len, expected) in [
        (0, 0, Status::Ok),
        (bytes, 0, Status::Ok),
        (bytes + block, 0, Status::OutOfRange),
        (bytes - block, 2 * block, Status::OutOfRange),
        (bytes, block, Status::OutOfRange),
        (0, bytes + block, Status::OutOfRange),
        (block, u64::MAX - block + 1, Status::OutOfRange),
        (u64::MAX - block + 1, block, Status::OutOfRange),
        (1, block, Status::Unaligned),
        (0, block / 2, Status::Unaligned),
        (block, u64::MAX, Status::Unaligned),
    ] {
        assert_eq!(run_range(volume, op, offset, len), expected, "{op:?} {offset} {len}");
    }
    for (from, to) in [(0, bytes), (block, bytes - block), (5 * block, 6 * block)] {
        fill_all(volume, &mut memory, 7);
        assert_eq!(run_range(volume, op, from, to - from), Status::Ok);
        for (at, byte) in read_all(volume, &mut memory).into_iter().enumerate() {
            let is_old_right = !(from..to).contains(&(at as u64)) || op == Op::Discard;
            let is_zero_right = (from..to).contains(&(at as u64));
            let is_right = byte == 7 && is_old_right || byte == 0 && is_zero_right;
            assert!(is_right, "byte {at} is {byte} after {op:?} of {from}..{to}");
        }
    }
    assert_eq!(run(volume, Op::Flush, 0, &[]), Status::Ok);
}

fn fill_all<V: BlockDevice>(volume: &mut V, memory: &mut Memory, byte: u8) {
    let (mut at, bytes) = (0, volume.geometry().bytes());
    while at < bytes {
        let buffer = memory.aligned((bytes - at).min(64 << 10) as usize);
        let data = vec![byte; buffer.segments.iter().map(Segment::len).sum()];
        buffer.fill(&data);
        assert_eq!(run(volume, Op::Write, at, &buffer.segments), Status::Ok);
        at += data.len() as u64;
        memory.give(buffer);
    }
}

fn compares_find_any_difference<V: BlockDevice>(volume: &mut V) {
    let mut memory = Memory::new();
    let mut rng = Rng::new(3);
    let block = volume.geometry().block_bytes as usize;
    for blocks in [1, 2, 16, 140] {
        let bytes = (blocks * block).min(64 << 10);
        let at = (volume.geometry().bytes() as usize - bytes) as u64;
        let mut data = vec![0; bytes];
        rng.fill(&mut data);
        let buffer = memory.odd(bytes, &mut rng);
        buffer.fill(&data);
        assert_eq!(run(volume, Op::Write, at, &buffer.segments), Status::Ok);
        assert_eq!(run(volume, Op::Compare, at, &buffer.segments), Status::Ok);
        for wrong in [0, bytes / 2, bytes - 1] {
            data[wrong] ^= 1;
            buffer.fill(&data);
            assert_eq!(run(volume, Op::Compare, at, &buffer.segments), Status::Miscompare);
            assert_eq!(buffer.content(), data, "a compare changes nothing");
            data[wrong] ^= 1;
        }
        let whole = memory.aligned(bytes);
        assert_eq!(run(volume, Op::Read, at, &whole.segments), Status::Ok);
        assert!(whole.content() == data, "a compare changes nothing");
        let end = volume.geometry().bytes();
        assert_eq!(run(volume, Op::Compare, end, &whole.segments), Status::OutOfRange);
        memory.give(whole);
        memory.give(buffer);
    }
}

fn segments_at_the_limit_and_one_past<V: BlockDevice>(volume: &mut V) {
    let mut memory = Memory::new();
    let block = volume.geometry().block_bytes as usize;
    // MAX_SEGMENTS pieces of two blocks, all odd but the last.
    let piece = 2 * block / MAX_SEGMENTS - 3;
    let last = 2 * block - piece * (MAX_SEGMENTS - 1);
    let cut = |index| (index + 1, if index + 1 == MAX_SEGMENTS { last } else { piece });
    let written = memory.cut(2 * block, cut);
    assert_eq!(written.segments.len(), MAX_SEGMENTS);
    let data: Vec<u8> = (0..2 * block).map(|at| (at % 251) as u8).collect();
    written.fill(&data);
    assert_eq!(run(volume, Op::Write, 0, &written.segments), Status::Ok);
    let read = memory.cut(2 * block, cut);
    assert_eq!(run(volume, Op::Read, 0, &read.segments), Status::Ok);
    assert_eq!(read.content(), data);
    let mut more: Vec<Segment> = written.segments.to_vec();
    let rest = more.pop().unwrap();
    more.extend([rest.part(0, 1).unwrap(), rest.part(1, rest.len() - 1).unwrap()]);
    assert_eq!(more.len(), MAX_SEGMENTS + 1);
    for op in [Op::Read, Op::Write] {
        assert_eq!(run(volume, op, 0, &more), Status::Unsupported);
    }
    // Empty segments hold nothing and are no reason to refuse.
    let with_empty = [rest.part(0, 0).unwrap(), written.segments[0].part(1, 0).unwrap()];
    assert_eq!(run(volume, Op::Read, 0, &with_empty), Status::Ok);
}

fn read_only_refuses_changes<V: BlockDevice>(volume: &mut V, ops: &[Op]) {
    let mut memory = Memory::new();
    assert!(volume.geometry().read_only);
    let buffer = memory.aligned(volume.geometry().block_bytes as usize);
    assert_eq!(run(volume, Op::Write, 0, &buffer.segments), Status::ReadOnly);
    for op in ops.iter().filter(|op| op.is_ranged()) {
        let block = u64::from(volume.geometry().block_bytes);
        assert_eq!(run_range(volume, *op, 0, block), Status::ReadOnly);
    }
    assert_eq!(run(volume, Op::Flush, 0, &[]), Status::Ok);
    assert_eq!(run(volume, Op::Read, 0, &buffer.segments), Status::Ok);
    if ops.contains(&Op::Compare) {
        assert_eq!(run(volume, Op::Compare, 0, &buffer.segments), Status::Ok);
    }
    assert!(buffer.content().iter().all(|byte| *byte == 0));
}

fn full_has_no_effect<V: BlockDevice>(volume: &mut V, depth: u32) {
    let mut memory = Memory::new();
    let block = volume.geometry().block_bytes;
    let other = memory.aligned(block as usize);
    other.fill(&vec![9; block as usize]);
    for round in 0..3 {
        let buffers: Vec<_> = (0..depth).map(|_| memory.aligned(block as usize)).collect();
        for (slot, buffer) in buffers.iter().enumerate() {
            assert_eq!(volume.in_flight(), slot as u32);
            // Refused I/Os count like others.
            let at = if slot % 5 == round { 1 } else { 0 };
            let taken = submit(volume, slot as u16, Op::Read, at, &buffer.segments);
            assert_eq!(taken, Ok(()), "I/O {slot} of {depth}");
        }
        for op in [Op::Write, Op::Read, Op::Flush] {
            let segments: &[_] = if op == Op::Flush { &[] } else { &other.segments };
            assert_eq!(submit(volume, 4_000, op, 0, segments), Err(Full), "one past the depth");
        }
        assert_eq!(volume.in_flight(), depth);
        let mut slots: Vec<u16> = Vec::new();
        for done in drain(volume) {
            let expected = if usize::from(done.tag.slot) % 5 == round {
                Status::Unaligned
            } else {
                Status::Ok
            };
            assert_eq!(done.status, expected);
            slots.push(done.tag.slot);
        }
        slots.sort_unstable();
        assert_eq!(slots, (0..depth as u16).collect::<Vec<_>>(), "one outcome per I/O");
        for buffer in buffers {
            memory.give(buffer);
        }
    }
    assert!(read_all(volume, &mut memory).iter().all(|byte| *byte == 0), "Full wrote");
    assert!(other.content().iter().all(|byte| *byte == 9), "Full read");
}

fn flushes_end<V: BlockDevice>(volume: &mut V, depth: u32) {
    let mut memory = Memory::new();
    let block = volume.geometry().block_bytes as usize;
    assert_eq!(run(volume, Op::Flush, 0, &[]), Status::Ok);
    // A flush has no range: what stands there is not looked at.
    assert_eq!(run(volume, Op::Flush, u64::MAX, &[]), Status::Ok);
    let buffers: Vec<_> = (0..depth).map(|_| memory.odd(block, &mut Rng::new(1))).collect();
    for (slot, buffer) in buffers.iter().enumerate() {
        let (slot, at) = (slot as u16, (slot % 64 * block) as u64);
        let taken = match slot % 3 {
            0 => submit(volume, slot, Op::Write, at, &buffer.segments),
            1 => submit(volume, slot, Op::Flush, 0, &[]),
            _ => submit(volume, slot, Op::Read, at, &buffer.segments),
        };
        assert_eq!(taken, Ok(()));
    }
    let done = drain(volume);
    assert_eq!(done.len(), depth as usize);
    assert!(done.iter().all(|done| done.status == Status::Ok));
}

/// After `reap` everything that can end does so while the caller sleeps on the descriptor. A
/// volume without one has nothing left to end after `reap`.
fn sleeping_on_the_descriptor_is_enough<V: BlockDevice>(volume: &mut V) {
    let mut memory = Memory::new();
    let mut list = PollList::with_capacity(1);
    let block = volume.geometry().block_bytes as usize;
    for round in 0..20u16 {
        let op = [Op::Read, Op::Write, Op::Flush][usize::from(round) % 3];
        let buffer = memory.odd(if op == Op::Flush { 0 } else { block }, &mut Rng::new(2));
        submit(volume, round, op, 0, &buffer.segments).unwrap();
        let mut done = Dones::new();
        volume.reap(now_ns(), &mut done);
        while let Some(fd) = volume.wake_fd().filter(|_| done.is_empty()) {
            list.clear();
            list.add(fd, false);
            let ready = list.wait(Duration::from_secs(20)).unwrap();
            assert_ne!(ready, 0, "slept through the end of {op:?}");
            volume.reap(now_ns(), &mut done);
        }
        assert_eq!(done.as_slice(), [Done::new(tag(round), Status::Ok)]);
        memory.give(buffer);
    }
}

/// An I/O of the random run.
struct InFlight {
    op: Op,
    range: Range<usize>,
    buffer: Buffer,
    /// What a write wrote, or what a read must find.
    data: Vec<u8>,
    /// How it must end.
    expected: Status,
}

/// What the volume holds, as far as it can be known.
struct Oracle {
    bytes: Vec<u8>,
    /// By block: may as well be zeros, because it was discarded since it was last written.
    discarded: Vec<bool>,
    block: usize,
}

impl Oracle {
    fn blocks(&self, range: &Range<usize>) -> Range<usize> {
        range.start / self.block..range.end / self.block
    }

    fn write(&mut self, range: Range<usize>, data: &[u8]) {
        let blocks = self.blocks(&range);
        self.discarded[blocks].fill(false);
        self.bytes[range].copy_from_slice(data);
    }

    /// Whether `found` may stand in `range`, of which `data` was the last write.
    fn allows(&self, range: &Range<usize>, data: &[u8], found: &[u8]) -> bool {
        let pairs = data.chunks(self.block).zip(found.chunks(self.block));
        let mut blocks = self.blocks(range).zip(pairs);
        blocks.all(|(block, (data, found))| {
            let is_zero = found.iter().all(|byte| *byte == 0);
            data == found || is_zero && self.discarded[block]
        })
    }
}

/// Random I/Os of every kind that do not overlap a change, up to `depth` in flight, against an
/// oracle of bytes.
fn reads_give_the_last_write<V: BlockDevice>(volume: &mut V, depth: u32, ops: &[Op], seed: u64) {
    let mut rng = Rng::new(seed);
    let mut memory = Memory::new();
    let Geometry { block_bytes, blocks, .. } = volume.geometry();
    let mut oracle = Oracle {
        bytes: vec![0; volume.geometry().bytes() as usize],
        discarded: vec![false; blocks as usize],
        block: block_bytes as usize,
    };
    let mut in_flight: Vec<Option<InFlight>> = (0..depth).map(|_| None).collect();
    // Some phases run at the limit, others with little in flight.
    let mut want = 1;
    let mut submitted = 0;
    while submitted < RANDOM_IOS {
        if rng.chance(20_000) {
            want = rng.between(1, u64::from(depth)) as u32;
        }
        while volume.in_flight() < want && submitted < RANDOM_IOS {
            let slot = in_flight.iter().position(Option::is_none).expect("fewer than depth");
            let io = random_io(&mut rng, &mut memory, &oracle, &in_flight, ops);
            let range_bytes = if io.op.is_ranged() { io.range.len() as u64 } else { 0 };
            let asked = Io {
                tag: tag(slot as u16),
                op: io.op,
                offset_bytes: io.range.start as u64,
                range_bytes,
                segments: &io.buffer.segments,
            };
            volume.submit(now_ns(), &asked).expect("room for another I/O");
            in_flight[slot] = Some(io);
            submitted += 1;
        }
        for done in reap_some(volume) {
            finish(&mut memory, &mut oracle, &mut in_flight, done);
        }
        assert_eq!(volume.in_flight() as usize, in_flight.iter().flatten().count());
    }
    for done in drain(volume) {
        finish(&mut memory, &mut oracle, &mut in_flight, done);
    }
    assert!(in_flight.iter().all(Option::is_none), "an I/O never ended");
    let content = read_all(volume, &mut memory);
    let all = 0..content.len();
    assert!(oracle.allows(&all, &oracle.bytes, &content), "the content at the end");
}

fn random_io(
    rng: &mut Rng,
    memory: &mut Memory,
    oracle: &Oracle,
    in_flight: &[Option<InFlight>],
    ops: &[Op],
) -> InFlight {
    let block = oracle.block;
    let expected = Status::Ok;
    loop {
        let most = if rng.chance(200_000) { MAX_IO_BYTES } else { 8 << 10 };
        let op = match rng.below(100) {
            0..3 => Op::Flush,
            3..85 => [Op::Read, Op::Write][rng.index(2)],
            _ => ops[rng.index(ops.len())],
        };
        if op == Op::Flush {
            let buffer = memory.aligned(0);
            return InFlight { op, range: 0..0, buffer, data: Vec::new(), expected };
        }
        let is_long = op.is_ranged() && rng.chance(100_000);
        let most = if is_long { MAX_RANGE_BYTES } else { most };
        let bytes = (rng.index(most / block) + 1) * block;
        let start = rng.index((oracle.bytes.len() - bytes) / block + 1) * block;
        let range = start..start + bytes;
        let clash = |other: &InFlight| {
            (op.is_change() || other.op.is_change())
                && range.start < other.range.end
                && other.range.start < range.end
        };
        let is_unknown = oracle.discarded[oracle.blocks(&range)].contains(&true);
        if in_flight.iter().flatten().any(clash) || op == Op::Compare && is_unknown {
            continue;
        }
        if op.is_ranged() {
            let buffer = memory.aligned(0);
            return InFlight { op, range, buffer, data: vec![0; bytes], expected };
        }
        let odd = rng.chance(500_000);
        let buffer = if odd { memory.odd(bytes, rng) } else { memory.aligned(bytes) };
        let mut data = oracle.bytes[range.clone()].to_vec();
        if op == Op::Write {
            rng.fill(&mut data);
        }
        let is_wrong = op == Op::Compare && rng.chance(500_000);
        data[rng.index(bytes)] ^= u8::from(is_wrong);
        if op != Op::Read {
            buffer.fill(&data);
        }
        let expected = if is_wrong { Status::Miscompare } else { Status::Ok };
        return InFlight { op, range, buffer, data, expected };
    }
}

fn finish(
    memory: &mut Memory,
    oracle: &mut Oracle,
    in_flight: &mut [Option<InFlight>],
    done: Done,
) {
    assert_eq!(done.tag.owner, 7);
    let io = in_flight[usize::from(done.tag.slot)].take().expect("an outcome for an I/O in flight");
    assert_eq!(done.status, io.expected, "{:?} of {:?}", io.op, io.range);
    match io.op {
        Op::Read => {
            let is_right = oracle.allows(&io.range, &io.data, &io.buffer.content());
            assert!(is_right, "wrong data at {:?}", io.range);
        }
        Op::Write | Op::WriteZeroes => oracle.write(io.range, &io.data),
        Op::Discard => {
            let blocks = oracle.blocks(&io.range);
            oracle.discarded[blocks].fill(true);
        }
        Op::Flush | Op::Compare => {}
    }
    memory.give(io.buffer);
}
