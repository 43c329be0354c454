//! A volume that keeps what would change it until a gate opens: a medium that is slow.

use outboard::volume::{BlockDevice, Dones, Full, Geometry, Io, Mem, Op, Tag};
use outboard_dma::Segments;
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Memory behind a gate.
pub struct Gated {
    mem: Mem,
    is_shut: Arc<AtomicBool>,
    kept: VecDeque<Kept>,
}

/// A change that waits.
struct Kept {
    tag: Tag,
    op: Op,
    offset_bytes: u64,
    range_bytes: u64,
    segments: Segments,
}

impl Gated {
    pub fn new(mem: Mem, is_shut: Arc<AtomicBool>) -> Gated {
        Gated { mem, is_shut, kept: VecDeque::new() }
    }
}

impl BlockDevice for Gated {
    fn geometry(&self) -> Geometry {
        self.mem.geometry()
    }

    fn submit(&mut self, now_ns: u64, io: &Io) -> Result<(), Full> {
        if !io.op.is_change() || !self.is_shut.load(Ordering::Acquire) {
            return self.mem.submit(now_ns, io);
        }
        let Io { tag, op, offset_bytes, range_bytes, .. } = *io;
        let segments = io.segments.iter().copied().collect();
        self.kept.push_back(Kept { tag, op, offset_bytes, range_bytes, segments });
        Ok(())
    }

    fn reap(&mut self, now_ns: u64, done: &mut Dones) {
        while !self.is_shut.load(Ordering::Acquire) {
            let Some(kept) = self.kept.front() else { break };
            let Kept { tag, op, offset_bytes, range_bytes, ref segments } = *kept;
            let io = Io { tag, op, offset_bytes, range_bytes, segments };
            if self.mem.submit(now_ns, &io).is_err() {
                break;
            }
            self.kept.pop_front();
        }
        self.mem.reap(now_ns, done);
    }

    fn in_flight(&self) -> u32 {
        self.mem.in_flight() + self.kept.len() as u32
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.mem.wake_fd()
    }
}
