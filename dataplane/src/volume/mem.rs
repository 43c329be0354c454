//! A volume in memory: gone when the daemon ends.
//!
//! Every I/O is a copy that ends inside `submit`; its outcome waits for the next `reap`. A flush
//! has nothing to do. There is no descriptor to sleep on: after a `reap` nothing is left to end.

use super::{BlockDevice, Done, Dones, Full, Geometry, Io, Op, OpenError, Status};
use outboard_dma::Pages;
use std::collections::VecDeque;
use std::os::fd::RawFd;

/// The most ended I/Os that wait for `reap`.
pub const DEPTH: usize = 256;

/// A volume in this process's memory.
#[derive(Debug)]
pub struct Mem {
    geometry: Geometry,
    content: Pages,
    ended: VecDeque<Done>,
}

impl Mem {
    /// A volume of zeros. `resident`: all of it is in memory from the start, so that no I/O ever
    /// waits for a page; without, pages come as they are touched.
    pub fn new(geometry: Geometry, resident: bool) -> Result<Mem, OpenError> {
        let refused = |source| OpenError::Memory { mib: geometry.bytes() >> 20, source };
        let bytes = usize::try_from(geometry.bytes())
            .map_err(|_| refused(std::io::Error::from_raw_os_error(libc::ENOMEM)))?;
        let content = Pages::new(bytes, resident).map_err(refused)?;
        Ok(Mem { geometry, content, ended: VecDeque::with_capacity(DEPTH) })
    }

    /// The I/O's outcome; `check` has passed, so the range lies inside the content.
    #[inline]
    fn copy(&mut self, io: &Io) -> Status {
        let mut at = io.offset_bytes as usize;
        for segment in io.segments {
            let place = &mut self.content[at..at + segment.len()];
            match io.op {
                Op::Read => segment.copy_from(0, place),
                Op::Write => segment.copy_to(0, place),
                Op::Flush => true,
            };
            at += segment.len();
        }
        Status::Ok
    }
}

impl BlockDevice for Mem {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    #[inline]
    fn submit(&mut self, _now_ns: u64, io: &Io) -> Result<(), Full> {
        if self.ended.len() == DEPTH {
            return Err(Full);
        }
        let status = match self.geometry.check(io) {
            Err(status) => status,
            Ok(()) if io.op == Op::Flush => Status::Ok,
            Ok(()) => self.copy(io),
        };
        self.ended.push_back(Done { tag: io.tag, status });
        Ok(())
    }

    #[inline]
    fn reap(&mut self, _now_ns: u64, done: &mut Dones) {
        let count = done.remaining_capacity().min(self.ended.len());
        done.extend(self.ended.drain(..count));
    }

    fn in_flight(&self) -> u32 {
        self.ended.len() as u32
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Tag, conformance};
    use outboard_dma::{Region, Segment};

    #[test]
    fn conforms() {
        conformance::suite(DEPTH as u32, |geometry| Mem::new(geometry, false).unwrap());
    }

    fn io<'a>(slot: u16, op: Op, offset_bytes: u64, segments: &'a [Segment]) -> Io<'a> {
        Io { tag: Tag { owner: 1, slot }, op, offset_bytes, segments }
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
