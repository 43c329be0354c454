//! A volume without content, to measure what is around it: every I/O ends at once, a read leaves
//! its buffer as it is, and what is written is gone.
//!
//! It breaks two promises of a volume, on purpose: that a read gives what was written, and that
//! it writes its buffer. A guest sees nothing but its own memory; other hosts would see frames of
//! a pool, which is why the configuration refuses to export one.

use super::{BlockDevice, Done, Dones, Full, Geometry, Io, Status};
use std::collections::VecDeque;
use std::os::fd::RawFd;

/// The most ended I/Os that wait for `reap`.
const DEPTH: usize = 256;

/// A volume without content.
#[derive(Debug)]
pub struct Null {
    geometry: Geometry,
    ended: VecDeque<Done>,
}

impl Null {
    /// Of this size.
    pub fn new(geometry: Geometry) -> Null {
        Null { geometry, ended: VecDeque::with_capacity(DEPTH) }
    }
}

impl BlockDevice for Null {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    #[inline]
    fn submit(&mut self, _now_ns: u64, io: &Io) -> Result<(), Full> {
        if self.ended.len() == DEPTH {
            return Err(Full);
        }
        let status = self.geometry.check(io).err().unwrap_or(Status::Ok);
        self.ended.push_back(Done::new(io.tag, status));
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
    use crate::volume::{Op, Tag};

    #[test]
    fn everything_ends_and_nothing_moves() {
        let geometry = Geometry { block_bytes: 512, blocks: 8, read_only: false };
        let mut null = Null::new(geometry);
        let memory: &'static mut [u8] = Box::leak(vec![7; 512].into_boxed_slice());
        let segments = [outboard_dma::Segment::of_static(memory)];
        let io = |slot, op, offset_bytes| {
            let tag = Tag { owner: 0, slot };
            Io { tag, op, offset_bytes, range_bytes: 0, segments: &segments }
        };
        null.submit(0, &io(1, Op::Read, 0)).unwrap();
        null.submit(0, &io(2, Op::Write, 8 * 512)).unwrap();
        let mut done = Dones::new();
        null.reap(0, &mut done);
        let outcomes: Vec<_> = done.iter().map(|done| (done.tag.slot, done.status)).collect();
        assert_eq!(outcomes, [(1, Status::Ok), (2, Status::OutOfRange)]);
        let mut bytes = [0; 512];
        assert!(segments[0].copy_to(0, &mut bytes));
        assert_eq!(bytes, [7; 512]);

        for slot in 0..DEPTH as u16 {
            null.submit(0, &io(slot, Op::Read, 0)).unwrap();
        }
        assert_eq!(null.submit(0, &io(0, Op::Read, 0)), Err(Full));
        assert_eq!(null.in_flight() as usize, DEPTH);
    }
}
