//! A volume in memory: gone when the daemon ends.
//!
//! Every I/O is a copy that ends inside `submit`; its outcome waits for the next `reap`. A flush
//! has nothing to do. A discard gives whole pages back to the kernel; they come back, empty, when
//! they are touched. A discard or write-zeroes that is long goes on step by step, one in each
//! `reap`; while there is one, and only then, there is a descriptor, always readable.

use super::{BlockDevice, Done, Dones, Full, Geometry, Io, Op, OpenError, Status, Tag};
use outboard_dma::{EventFd, Pages};
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};

/// The most ended I/Os that wait for `reap`.
pub const DEPTH: usize = 256;
/// What one step sets to zero: about 20 µs of a turn.
const ZERO_STEP_BYTES: usize = 256 << 10;
/// What one step of a discard gives back: the kernel takes about as long for it.
const DISCARD_STEP_BYTES: usize = 1 << 20;

/// How much of an expected I/O is asked for: what the second cache holds of several.
const EXPECTED_BYTES: usize = 8 << 10;

/// A volume in this process's memory.
#[derive(Debug)]
pub struct Mem {
    geometry: Geometry,
    content: Pages,
    ended: VecDeque<Done>,
    /// Discards and write-zeroes that go on in `reap`, in order.
    ranges: VecDeque<Range>,
    /// Readable from the start: to be polled only while there are `ranges`.
    again: EventFd,
}

/// What is left of a discard or write-zeroes.
#[derive(Debug)]
struct Range {
    tag: Tag,
    op: Op,
    at: usize,
    end: usize,
}

impl Mem {
    /// A volume of zeros. `resident`: all of it is in memory from the start, so that no I/O ever
    /// waits for a page; without, pages come as they are touched.
    pub fn new(geometry: Geometry, resident: bool) -> Result<Mem, OpenError> {
        let refused = |source| OpenError::Memory { mib: geometry.bytes() >> 20, source };
        let bytes = usize::try_from(geometry.bytes())
            .map_err(|_| refused(std::io::Error::from_raw_os_error(libc::ENOMEM)))?;
        let content = Pages::new(bytes, resident).map_err(refused)?;
        let again = EventFd::new().map_err(refused)?;
        again.signal();
        Ok(Mem {
            geometry,
            content,
            ended: VecDeque::with_capacity(DEPTH),
            ranges: VecDeque::with_capacity(DEPTH),
            again,
        })
    }

    /// The I/O's outcome; `check` has passed, so the range lies inside the content.
    #[inline]
    fn copy(&mut self, io: &Io) -> Status {
        let mut at = io.offset_bytes as usize;
        for segment in io.segments {
            let place = &mut self.content[at..at + segment.len()];
            let is_equal = match io.op {
                Op::Read => segment.copy_from(0, place),
                Op::Write => segment.copy_to(0, place),
                Op::Compare => segment.equals(0, place),
                Op::Flush | Op::Discard | Op::WriteZeroes => true,
            };
            if !is_equal {
                return Status::Miscompare;
            }
            at += segment.len();
        }
        Status::Ok
    }

    /// Begins a discard or write-zeroes; `check` has passed. Its outcome, when it is short.
    fn begin(&mut self, io: &Io) -> Option<Status> {
        let at = io.offset_bytes as usize;
        let mut range = Range { tag: io.tag, op: io.op, at, end: at + io.range_bytes as usize };
        if range.step(&mut self.content) {
            return Some(Status::Ok);
        }
        self.ranges.push_back(range);
        None
    }
}

impl Range {
    /// Does the next part; `true`: that was the last.
    fn step(&mut self, content: &mut Pages) -> bool {
        let left = self.end - self.at;
        if self.op == Op::Discard {
            let part = left.min(DISCARD_STEP_BYTES);
            content.release(self.at..self.at + part);
            self.at += part;
        } else {
            let part = left.min(ZERO_STEP_BYTES);
            content[self.at..self.at + part].fill(0);
            self.at += part;
        }
        self.at == self.end
    }
}

impl BlockDevice for Mem {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    #[inline]
    fn submit(&mut self, _now_ns: u64, io: &Io) -> Result<(), Full> {
        if self.in_flight() as usize == DEPTH {
            return Err(Full);
        }
        let status = match self.geometry.check(io) {
            Err(status) => status,
            Ok(()) if io.op == Op::Flush => Status::Ok,
            Ok(()) if io.op.is_ranged() => match self.begin(io) {
                Some(status) => status,
                None => return Ok(()),
            },
            Ok(()) => self.copy(io),
        };
        self.ended.push_back(Done::new(io.tag, status));
        Ok(())
    }

    #[inline]
    fn expect(&self, _op: Op, offset_bytes: u64, bytes: u32) {
        let at = usize::try_from(offset_bytes).unwrap_or(usize::MAX);
        let bytes = (bytes as usize).min(EXPECTED_BYTES);
        self.content.prefetch(at..at.saturating_add(bytes));
    }

    #[inline]
    fn reap(&mut self, _now_ns: u64, done: &mut Dones) {
        if let Some(range) = self.ranges.front_mut()
            && range.step(&mut self.content)
        {
            self.ended.push_back(Done::new(range.tag, Status::Ok));
            self.ranges.pop_front();
        }
        let count = done.remaining_capacity().min(self.ended.len());
        done.extend(self.ended.drain(..count));
    }

    fn in_flight(&self) -> u32 {
        (self.ended.len() + self.ranges.len()) as u32
    }

    fn wake_fd(&self) -> Option<RawFd> {
        (!self.ranges.is_empty()).then(|| self.again.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::conformance;
    use outboard_dma::{Region, Segment};

    #[test]
    fn conforms() {
        conformance::suite(DEPTH as u32, conformance::ALL_OPS, |geometry| {
            Mem::new(geometry, false).unwrap()
        });
    }

    fn io<'a>(slot: u16, op: Op, offset_bytes: u64, segments: &'a [Segment]) -> Io<'a> {
        Io { tag: Tag { owner: 1, slot }, op, offset_bytes, range_bytes: 0, segments }
    }

    #[test]
    fn a_write_is_read_back_and_the_rest_is_zero() {
        let geometry = Geometry { block_bytes: 512, blocks: 16, read_only: false };
        let mut mem = Mem::new(geometry, true).unwrap();
        let mut free = Region::new(1).unwrap().carve(2).unwrap();
        let (mut from, mut to) = (free.take().unwrap(), free.take().unwrap());
        from.bytes_mut()[..1024].fill(9);
        let data = [Segment::of_frame(&mut from, 0, 1000), Segment::of_frame(&mut from, 1000, 24)];
        let whole = [Segment::of_frame(&mut to, 0, 2048)];
        mem.submit(0, &io(0, Op::Write, 512, &data)).unwrap();
        mem.submit(0, &io(1, Op::Read, 0, &whole)).unwrap();
        mem.submit(0, &io(2, Op::Read, 512 * 13, &whole)).unwrap();
        assert_eq!(mem.in_flight(), 3);
        let mut done = Dones::new();
        mem.reap(0, &mut done);
        let outcomes: Vec<_> = done.iter().map(|done| (done.tag.slot, done.status)).collect();
        assert_eq!(outcomes, [(0, Status::Ok), (1, Status::Ok), (2, Status::OutOfRange)]);
        assert_eq!(mem.in_flight(), 0);
        assert_eq!(to.bytes()[..512], [0; 512]);
        assert_eq!(to.bytes()[512..1536], [9; 1024]);
        assert_eq!(to.bytes()[1536..2048], [0; 512]);
        free.give(from);
        free.give(to);
    }

    #[test]
    fn more_memory_than_there_is_says_so() {
        let geometry = Geometry { block_bytes: 4096, blocks: 1 << 40, read_only: false };
        let message = Mem::new(geometry, false).unwrap_err().to_string();
        assert!(message.contains("4294967296 MiB") && message.contains("make it smaller"));
    }
}
