//! The promise of [`BlockDevice`], as a suite that every kind of volume runs.
//!
//! `make` gives a fresh volume of zeros with the geometry asked for; a volume that needs another
//! side (a target) wraps it so that `reap` moves both. `depth` is the most I/Os in flight. A
//! failure prints the command that repeats its seed.

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

/// Runs every check at both block sizes.
pub(crate) fn suite<V: BlockDevice>(depth: u32, mut make: impl FnMut(Geometry) -> V) {
    for block_bytes in [512, 4096] {
        let geometry = |blocks| Geometry { block_bytes, blocks, read_only: false };
        zeros_where_never_written(&mut make(geometry(300)));
        ranges_at_the_limit_and_one_past(&mut make(geometry(64)));
        segments_at_the_limit_and_one_past(&mut make(geometry(64)));
        read_only_refuses_writes(&mut make(Geometry { read_only: true, ..geometry(64) }));
        full_has_no_effect(&mut make(geometry(64)), depth);
        flushes_end(&mut make(geometry(64)), depth);
        sleeping_on_the_descriptor_is_enough(&mut make(geometry(64)));
        for_each_seed("cargo test -p outboard --lib volume", 1, 4, |seed| {
            let volume = &mut make(geometry(if block_bytes == 512 { 2_000 } else { 500 }));
            reads_give_the_last_write(volume, depth, seed);
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
    volume.submit(now_ns(), &Io { tag: tag(slot), op, offset_bytes, segments })
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

fn read_only_refuses_writes<V: BlockDevice>(volume: &mut V) {
    let mut memory = Memory::new();
    assert!(volume.geometry().read_only);
    let buffer = memory.aligned(volume.geometry().block_bytes as usize);
    assert_eq!(run(volume, Op::Write, 0, &buffer.segments), Status::ReadOnly);
    assert_eq!(run(volume, Op::Flush, 0, &[]), Status::Ok);
    assert_eq!(run(volume, Op::Read, 0, &buffer.segments), Status::Ok);
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
        assert_eq!(done.as_slice(), [Done { tag: tag(round), status: Status::Ok }]);
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
}

/// Random reads, writes and flushes that do not overlap a write, up to `depth` in flight, against
/// an oracle of bytes.
fn reads_give_the_last_write<V: BlockDevice>(volume: &mut V, depth: u32, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut memory = Memory::new();
    let mut oracle = vec![0; volume.geometry().bytes() as usize];
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
            let io = random_io(&mut rng, &mut memory, &oracle, &in_flight, volume.geometry());
            let at = io.range.start as u64;
            submit(volume, slot as u16, io.op, at, &io.buffer.segments)
                .expect("room for another I/O");
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
    assert!(read_all(volume, &mut memory) == oracle, "the content at the end");
}

fn random_io(
    rng: &mut Rng,
    memory: &mut Memory,
    oracle: &[u8],
    in_flight: &[Option<InFlight>],
    geometry: Geometry,
) -> InFlight {
    let block = geometry.block_bytes as usize;
    if rng.chance(30_000) {
        let buffer = memory.aligned(0);
        return InFlight { op: Op::Flush, range: 0..0, buffer, data: Vec::new() };
    }
    loop {
        let most = if rng.chance(200_000) { MAX_IO_BYTES } else { 8 << 10 };
        let bytes = (rng.index(most / block) + 1) * block;
        let start = rng.index((oracle.len() - bytes) / block + 1) * block;
        let (range, op) = (start..start + bytes, [Op::Read, Op::Write][rng.index(2)]);
        let clash = |other: &InFlight| {
            (op == Op::Write || other.op == Op::Write)
                && range.start < other.range.end
                && other.range.start < range.end
        };
        if in_flight.iter().flatten().any(clash) {
            continue;
        }
        let odd = rng.chance(500_000);
        let buffer = if odd { memory.odd(bytes, rng) } else { memory.aligned(bytes) };
        let mut data = oracle[range.clone()].to_vec();
        if op == Op::Write {
            rng.fill(&mut data);
            buffer.fill(&data);
        }
        return InFlight { op, range, buffer, data };
    }
}

fn finish(memory: &mut Memory, oracle: &mut [u8], in_flight: &mut [Option<InFlight>], done: Done) {
    assert_eq!(done.tag.owner, 7);
    let io = in_flight[usize::from(done.tag.slot)].take().expect("an outcome for an I/O in flight");
    assert_eq!(done.status, Status::Ok, "{:?} of {:?}", io.op, io.range);
    match io.op {
        Op::Read => assert!(io.buffer.content() == io.data, "wrong data at {:?}", io.range),
        Op::Write => oracle[io.range].copy_from_slice(&io.data),
        Op::Flush => {}
    }
    memory.give(io.buffer);
}
