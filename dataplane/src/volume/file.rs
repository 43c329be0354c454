//! A volume in a regular file or on a block device, through io_uring.
//!
//! Direct I/O (O_DIRECT) straight between the segments and the medium; what direct I/O cannot
//! reach because addresses or lengths are not aligned goes through a bounce buffer, counted. Where
//! the file system refuses O_DIRECT the page cache is used instead: [`File::direct`] tells.
//!
//! A file shorter than the volume (cut behind its back) reads as zeros there. Short transfers are
//! continued. ENOSPC and EDQUOT end as `NoSpace`, every other errno as `Media`; each is counted by
//! name; EFAULT is no fault of the medium: a guest took memory away, and the I/O ends as `Aborted`.
//! A flush is fdatasync: it covers every I/O reaped before it was submitted.
//!
//! A discard punches a hole; where that cannot be done it has no effect, counted. Write-zeroes
//! keeps the space (ZERO_RANGE); where that cannot be done it writes zeros. A compare reads into
//! the bounce buffer.

mod medium;
mod open;
#[cfg(test)]
mod tests;

pub use open::FileError;

use super::{BlockDevice, Done, Dones, Full, Geometry, Io, Marks, Op, Status, Tag};
use crate::clock;
use crate::counters::Counter;
use open::Alignment;
use outboard_dma::{BOUNCE_BYTES, Direction, FileRing, Segment, Segments};
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;

/// The most I/Os in flight.
pub const DEPTH: usize = 128;
/// How often the kernel may say EAGAIN or EINTR to one transfer before it counts as failed.
const MAX_ATTEMPTS: u8 = 16;

/// A volume in a file.
#[derive(Debug)]
pub struct File {
    geometry: Geometry,
    direct: Option<Alignment>,
    made: bool,
    medium: String,
    ring: FileRing,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    /// Ended without the kernel: refused, empty, or a flush of a read-only volume.
    ended: VecDeque<Done>,
    /// Whether the file system knows how to punch a hole and how to zero a range, as far as tried.
    punches: bool,
    zeroes: bool,
    /// Whether I/Os carry their times, and which the kernel has not been told of.
    keeps_times: bool,
    untold: Vec<u16>,
    counters: Arc<FileCounters>,
}

/// An I/O in flight.
#[derive(Debug)]
struct Slot {
    tag: Tag,
    op: Op,
    offset_bytes: u64,
    segments: Segments,
    /// Bytes of the whole I/O, and how many of them are moved.
    bytes: u64,
    moved: u64,
    bounced: bool,
    attempts: u8,
    marks: Marks,
}

/// What a file volume counts beside its I/Os' outcomes.
#[derive(Debug, Default)]
pub struct FileCounters {
    /// I/Os that went through a bounce buffer because they were not aligned for direct I/O.
    pub bounced: Counter,
    /// Transfers that the kernel cut short and that were continued.
    pub continued: Counter,
    /// Reads whose rest was zeros because the file ended before the volume does.
    pub beyond_end: Counter,
    /// Times the kernel said EAGAIN or EINTR and the transfer was repeated.
    pub repeated: Counter,
    /// Discards without effect, because the file system or device does not know them.
    pub kept: Counter,
    /// Write-zeroes that wrote every zero, for the same reason.
    pub zeros_written: Counter,
    errors: [Counter; ERRNOS.len() + 1],
}

/// Errnos counted by name; what is not here counts as "other".
const ERRNOS: [(i32, &str); 10] = [
    (libc::EIO, "EIO"),
    (libc::ENOSPC, "ENOSPC"),
    (libc::EDQUOT, "EDQUOT"),
    (libc::EINVAL, "EINVAL"),
    (libc::EFBIG, "EFBIG"),
    (libc::EFAULT, "EFAULT"),
    (libc::EAGAIN, "EAGAIN"),
    (libc::ENOMEM, "ENOMEM"),
    (libc::EROFS, "EROFS"),
    (libc::ENODEV, "ENODEV"),
];

impl FileCounters {
    /// Failed transfers by errno name.
    pub fn errors(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = ERRNOS.iter().map(|(_, name)| *name).chain(["other"]);
        names.zip(self.errors.iter().map(Counter::get))
    }

    fn count_error(&self, errno: i32) {
        let known = ERRNOS.iter().position(|(number, _)| *number == errno);
        self.errors[known.unwrap_or(ERRNOS.len())].add(1);
    }
}

impl File {
    /// Opens the file or block device at `path` and locks it: shared when `read_only`, else alone.
    /// A missing file is made with `create_bytes` bytes, when given.
    pub fn open(
        path: &Path,
        block_bytes: u32,
        read_only: bool,
        create_bytes: Option<u64>,
    ) -> Result<File, FileError> {
        let opened = open::open(path, block_bytes, read_only, create_bytes)?;
        let ring = FileRing::new(opened.file, DEPTH)
            .map_err(|source| FileError::Ring { path: path.into(), source })?;
        let slot = |_| Slot {
            tag: Tag { owner: 0, slot: 0 },
            op: Op::Flush,
            offset_bytes: 0,
            segments: Segments::new(),
            bytes: 0,
            moved: 0,
            bounced: false,
            attempts: 0,
            marks: Marks::default(),
        };
        Ok(File {
            geometry: opened.geometry,
            direct: opened.direct,
            made: opened.made,
            medium: opened.medium,
            ring,
            slots: (0..DEPTH).map(slot).collect(),
            free: (0..DEPTH as u16).rev().collect(),
            ended: VecDeque::with_capacity(DEPTH),
            punches: true,
            zeroes: true,
            keeps_times: false,
            untold: Vec::with_capacity(DEPTH),
            counters: Arc::default(),
        })
    }

    /// Whether the page cache is bypassed; `false` only where the file system refuses that.
    pub fn direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Whether opening it made the file.
    pub fn made(&self) -> bool {
        self.made
    }

    /// What tells this medium from another one at the same path, now or later: the same each time
    /// that it is opened. Empty: nothing tells.
    pub fn medium(&self) -> &str {
        &self.medium
    }

    /// What is counted, to read from another thread.
    pub fn counters(&self) -> &Arc<FileCounters> {
        &self.counters
    }

    /// Has I/Os carry their times from now on, or not.
    pub(super) fn keep_times(&mut self, is_on: bool) {
        self.keeps_times = is_on;
        self.untold.clear();
    }

    fn mark_told(&mut self) {
        let now_ns = clock::now_ns();
        for index in self.untold.drain(..) {
            self.slots[usize::from(index)].marks.told_ns = now_ns;
        }
    }

    fn must_bounce(&self, segments: &[Segment]) -> bool {
        let Some(Alignment { memory, offset }) = self.direct else {
            return false;
        };
        let aligned = |segment: &Segment| {
            (segment.address() as usize).is_multiple_of(memory as usize)
                && segment.len().is_multiple_of(offset as usize)
        };
        !segments.iter().all(aligned)
    }

    fn start(&mut self, io: &Io, bytes: u64) {
        let bounced = match io.op {
            Op::Read | Op::Write => self.must_bounce(io.segments),
            Op::Compare => true,
            Op::WriteZeroes => !self.zeroes,
            Op::Flush | Op::Discard => false,
        };
        match io.op {
            Op::WriteZeroes => self.counters.zeros_written.add(u64::from(bounced)),
            Op::Compare => {}
            _ => self.counters.bounced.add(u64::from(bounced)),
        }
        let index = self.free.pop().expect("fewer than DEPTH in flight");
        let slot = &mut self.slots[usize::from(index)];
        slot.tag = io.tag;
        slot.op = io.op;
        slot.offset_bytes = io.offset_bytes;
        slot.segments.clear();
        if !io.op.is_ranged() && io.op != Op::Flush {
            slot.segments.extend(io.segments.iter().copied());
        }
        slot.bytes = bytes;
        slot.moved = 0;
        slot.bounced = bounced;
        slot.attempts = 0;
        slot.marks = Marks::default();
        if self.keeps_times {
            self.untold.push(index);
        }
        self.queue(usize::from(index));
    }

    /// Queues the slot's next transfer: all that is left, or one bounce buffer of it.
    fn queue(&mut self, index: usize) {
        let slot = &self.slots[index];
        let at = slot.offset_bytes + slot.moved;
        let direction = match slot.op {
            Op::Read | Op::Compare => Direction::Read,
            Op::Write => Direction::Write,
            Op::Flush => return self.ring.queue_sync(index),
            Op::Discard => return self.ring.queue_release(index, at, slot.bytes),
            Op::WriteZeroes if !slot.bounced => {
                return self.ring.queue_zero(index, at, slot.bytes);
            }
            Op::WriteZeroes => Direction::Write,
        };
        if !slot.bounced {
            let moved = slot.moved as usize;
            return self.ring.queue_segments(index, direction, &slot.segments, moved, at);
        }
        let bytes = slot.piece_bytes();
        let buffer = &mut self.ring.bounce(index)[..bytes];
        if slot.op == Op::WriteZeroes {
            buffer.fill(0);
        } else if direction == Direction::Write {
            copy(&slot.segments, slot.moved as usize, bytes, |segment, from, range| {
                segment.copy_to(from, &mut buffer[range])
            });
        }
        self.ring.queue_bounce(index, direction, bytes, at);
    }

    /// What the slot's transfer came to: the I/O's end, or `None` when another was queued.
    fn transferred(&mut self, index: usize, result: i32) -> Option<Status> {
        if result < 0 {
            return self.failed(index, -result);
        }
        let slot = &self.slots[index];
        if matches!(slot.op, Op::Flush | Op::Discard) || slot.op == Op::WriteZeroes && !slot.bounced
        {
            return Some(Status::Ok);
        }
        let (bytes, piece) = (result as usize, self.slots[index].piece_bytes());
        // Direct I/O moves whole blocks; anything else it returns is the end of the file.
        let unit = self.direct.map_or(1, |alignment| alignment.offset as usize);
        let at_end = bytes == 0 || !bytes.is_multiple_of(unit);
        if self.slots[index].op.is_change() && at_end {
            return self.failed(index, libc::EIO);
        }
        let slot = &mut self.slots[index];
        if slot.op == Op::Read && slot.bounced {
            let buffer = &self.ring.bounce(index)[..bytes];
            copy(&slot.segments, slot.moved as usize, bytes, |segment, to, range| {
                segment.copy_from(to, &buffer[range])
            });
        }
        if slot.op == Op::Compare && !slot.equals(&self.ring.bounce(index)[..bytes]) {
            return Some(Status::Miscompare);
        }
        slot.moved += bytes as u64;
        slot.attempts = 0;
        if slot.moved == slot.bytes {
            return Some(Status::Ok);
        }
        if at_end {
            self.counters.beyond_end.add(1);
            return Some(slot.end_at_zeros());
        }
        if bytes < piece {
            self.counters.continued.add(1);
        }
        self.queue(index);
        None
    }

    fn failed(&mut self, index: usize, errno: i32) -> Option<Status> {
        let slot = &mut self.slots[index];
        if matches!(errno, libc::EAGAIN | libc::EINTR) && slot.attempts < MAX_ATTEMPTS {
            slot.attempts += 1;
            self.counters.repeated.add(1);
            self.queue(index);
            return None;
        }
        if matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) {
            match slot.op {
                Op::Discard => {
                    self.punches = false;
                    self.counters.kept.add(1);
                    return Some(Status::Ok);
                }
                Op::WriteZeroes if !slot.bounced => {
                    self.zeroes = false;
                    slot.bounced = true;
                    self.counters.zeros_written.add(1);
                    self.queue(index);
                    return None;
                }
                _ => {}
            }
        }
        self.counters.count_error(errno);
        if errno == libc::EFAULT {
            // Whose memory it is finds out.
            slot.segments.iter().for_each(Segment::touch);
        }
        Some(match errno {
            libc::EFAULT => Status::Aborted,
            libc::ENOSPC | libc::EDQUOT => Status::NoSpace,
            _ => Status::Media,
        })
    }

    fn tell_kernel(&mut self) {
        if let Err(error) = self.ring.submit() {
            panic!("io_uring refused a well-formed submission: {error}");
        }
    }
}

impl Slot {
    /// Bytes of the transfer that is queued next.
    fn piece_bytes(&self) -> usize {
        let left = (self.bytes - self.moved) as usize;
        if self.bounced { left.min(BOUNCE_BYTES) } else { left }
    }

    /// Whether the segments behind what has moved hold `data`.
    fn equals(&self, data: &[u8]) -> bool {
        let mut is_equal = true;
        copy(&self.segments, self.moved as usize, data.len(), |segment, from, range| {
            is_equal &= segment.equals(from, &data[range]);
            true
        });
        is_equal
    }

    /// What is left of a read or compare finds zeros: the file has ended.
    fn end_at_zeros(&self) -> Status {
        const ZEROS: [u8; 4096] = [0; 4096];
        let left = (self.bytes - self.moved) as usize;
        let mut is_equal = true;
        copy(&self.segments, self.moved as usize, left, |segment, to, range| {
            let mut at = 0;
            while at < range.len() {
                let zeros = &ZEROS[..ZEROS.len().min(range.len() - at)];
                if self.op == Op::Compare {
                    is_equal &= segment.equals(to + at, zeros);
                } else {
                    segment.copy_from(to + at, zeros);
                }
                at += zeros.len();
            }
            true
        });
        if is_equal { Status::Ok } else { Status::Miscompare }
    }
}

/// Walks `bytes` bytes of the segments behind the first `skip`: `each` gets a segment, where in it,
/// and which range of the `bytes` that is.
fn copy(
    segments: &[Segment],
    mut skip: usize,
    bytes: usize,
    mut each: impl FnMut(&Segment, usize, std::ops::Range<usize>) -> bool,
) {
    let mut at = 0;
    for segment in segments {
        let passed = skip.min(segment.len());
        skip -= passed;
        let step = (segment.len() - passed).min(bytes - at);
        if step > 0 {
            let copied = each(segment, passed, at..at + step);
            assert!(copied, "the range lies inside the segment");
            at += step;
        }
    }
    assert_eq!(at, bytes, "the segments hold the whole I/O");
}

impl BlockDevice for File {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, _now_ns: u64, io: &Io) -> Result<(), Full> {
        if self.in_flight() as usize == DEPTH {
            return Err(Full);
        }
        let bytes = if io.op == Op::Flush { 0 } else { io.bytes() };
        let status = match self.geometry.check(io) {
            Err(status) => status,
            // Nothing is ever written, so nothing waits to be durable.
            Ok(()) if io.op == Op::Flush && self.geometry.read_only => Status::Ok,
            Ok(()) if io.op != Op::Flush && bytes == 0 => Status::Ok,
            Ok(()) if io.op == Op::Discard && !self.punches => {
                self.counters.kept.add(1);
                Status::Ok
            }
            Ok(()) => {
                self.start(io, bytes);
                return Ok(());
            }
        };
        self.ended.push_back(Done::new(io.tag, status));
        Ok(())
    }

    fn reap(&mut self, _now_ns: u64, done: &mut Dones) {
        if !self.untold.is_empty() {
            self.mark_told();
        }
        self.tell_kernel();
        let mut seen_ns = 0;
        let count = done.remaining_capacity().min(self.ended.len());
        done.extend(self.ended.drain(..count));
        while !done.is_full() {
            let Some((index, result)) = self.ring.next() else {
                break;
            };
            if self.keeps_times && seen_ns == 0 {
                seen_ns = clock::now_ns();
            }
            if let Some(status) = self.transferred(index, result) {
                let Slot { tag, mut marks, .. } = self.slots[index];
                marks.answered_ns = seen_ns;
                done.push(Done { tag, status, marks });
                self.free.push(index as u16);
            }
        }
        // Continued transfers must not wait for the next call: the caller may go to sleep now.
        self.tell_kernel();
    }

    fn in_flight(&self) -> u32 {
        (DEPTH - self.free.len() + self.ended.len()) as u32
    }

    fn wake_fd(&self) -> Option<RawFd> {
        Some(self.ring.wake_fd())
    }
}
