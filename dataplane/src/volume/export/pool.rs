//! The frames that an export's commands keep their data in, shared so that a connection always
//! gets what it is guaranteed, whatever the others hold.

use arrayvec::ArrayVec;
use outboard_dma::{FRAME_BYTES, Frame, FreeList, Segment};
use outboard_rdma::nvmf::target::{IN_CAPSULE_BYTES, Limits};

/// Frames of one command at most: 128 KiB.
pub(super) const COMMAND_FRAMES: usize = Limits::DEFAULT.transfer_bytes as usize / FRAME_BYTES;
/// Frames of one capsule's data.
const CAPSULE_FRAMES: u16 = (IN_CAPSULE_BYTES as usize).div_ceil(FRAME_BYTES) as u16;
/// Frames that every connection can have: one command of any size, and beside what was asked for
/// one capsule's data, which may stand before it in the stream.
pub const GUARANTEED_FRAMES: u16 = COMMAND_FRAMES as u16 + CAPSULE_FRAMES;

/// Numbers of frames.
pub(super) type Frames = ArrayVec<u16, COMMAND_FRAMES>;

/// What a connection holds.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    /// Frames whose command ends without anything more from the host.
    certain: u16,
    /// Frames that wait for data that was asked for.
    asked: u16,
}

impl Share {
    /// Frames that must stay free for this connection.
    fn due(self) -> u16 {
        let whole = GUARANTEED_FRAMES.saturating_sub(self.certain + self.asked);
        whole.max(CAPSULE_FRAMES.saturating_sub(self.certain))
    }
}

/// An export's frames.
#[derive(Debug)]
pub(super) struct Pool {
    frames: Vec<Frame>,
    free: Vec<u16>,
    shares: Box<[Share]>,
    /// Sum of what is due to all connections: never more than is free.
    due: u32,
}

impl Pool {
    /// Takes the frames from `list`, which has them.
    pub fn new(connections: u16, shared: u32, list: &mut FreeList) -> Pool {
        let due = u32::from(connections) * u32::from(GUARANTEED_FRAMES);
        let frames: Vec<Frame> = (0..due + shared).map_while(|_| list.take()).collect();
        let free = (0..frames.len() as u16).rev().collect();
        let shares = vec![Share::default(); usize::from(connections)].into();
        Pool { frames, free, shares, due }
    }

    /// Frames for `bytes` of data of a connection's command; `None`: not now.
    pub fn take(&mut self, index: u16, bytes: u32, is_asked: bool) -> Option<Frames> {
        let count = (bytes as usize).div_ceil(FRAME_BYTES) as u16;
        let mut share = self.shares[usize::from(index)];
        let before = share.due();
        if is_asked {
            share.asked += count;
        } else {
            share.certain += count;
        }
        let due = self.due - u32::from(before) + u32::from(share.due());
        if self.free.len() < usize::from(count) + due as usize {
            return None;
        }
        self.due = due;
        self.shares[usize::from(index)] = share;
        let rest = self.free.len() - usize::from(count);
        Some(self.free.drain(rest..).collect())
    }

    /// Gives frames back that [`take`](Self::take) gave with the same `is_asked`.
    pub fn give(&mut self, index: u16, frames: &mut Frames, is_asked: bool) {
        let share = &mut self.shares[usize::from(index)];
        self.due -= u32::from(share.due());
        let held = if is_asked { &mut share.asked } else { &mut share.certain };
        *held -= frames.len() as u16;
        self.due += u32::from(share.due());
        self.free.extend(frames.drain(..));
    }

    /// The segments of `len` bytes from `offset` of the data in `frames`.
    pub fn segments(
        &mut self,
        frames: &Frames,
        offset: u32,
        len: u32,
    ) -> ArrayVec<Segment, COMMAND_FRAMES> {
        let (mut at, end) = (offset as usize, offset as usize + len as usize);
        let mut segments = ArrayVec::new();
        while at < end {
            let frame = &mut self.frames[usize::from(frames[at / FRAME_BYTES])];
            let inside = at % FRAME_BYTES;
            let bytes = (FRAME_BYTES - inside).min(end - at);
            segments.push(Segment::of_frame(frame, inside, bytes));
            at += bytes;
        }
        segments
    }

    /// Gives all frames back to the worker; the pool serves nobody after.
    pub fn drain(&mut self, list: &mut FreeList) {
        self.free.clear();
        self.frames.drain(..).for_each(|frame| list.give(frame));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outboard_dma::Region;

    fn pool(connections: u16, shared: u32) -> (Pool, FreeList) {
        let mut list = Region::new(256).unwrap().carve(256).unwrap();
        (Pool::new(connections, shared, &mut list), list)
    }

    const WHOLE: u32 = (COMMAND_FRAMES * FRAME_BYTES) as u32;

    #[test]
    fn a_connection_gets_its_guarantee_whatever_the_other_holds() {
        let (mut pool, mut list) = pool(2, 10);
        let mut held = Vec::new();
        while let Some(frames) = pool.take(0, 4096, true) {
            held.push(frames);
        }
        // All but a capsule's data of its own, and all that is shared.
        assert_eq!(held.len(), usize::from(GUARANTEED_FRAMES) + 10 - 2);
        let mut capsule = pool.take(0, IN_CAPSULE_BYTES, false).unwrap();
        assert!(pool.take(0, 1, false).is_none());
        let mut whole = pool.take(1, WHOLE, true).unwrap();
        let mut other = pool.take(1, IN_CAPSULE_BYTES, false).unwrap();
        assert!(pool.take(1, 1, false).is_none());
        pool.give(0, &mut capsule, false);
        pool.give(1, &mut other, false);
        pool.give(1, &mut whole, true);
        held.iter_mut().for_each(|frames| pool.give(0, frames, true));
        assert_eq!(pool.free.len(), 2 * usize::from(GUARANTEED_FRAMES) + 10);
        assert_eq!(pool.due, 2 * u32::from(GUARANTEED_FRAMES));
        pool.drain(&mut list);
        assert_eq!(list.len(), 256);
    }

    #[test]
    fn segments_cover_the_range() {
        let (mut pool, mut list) = pool(1, 0);
        let mut frames = pool.take(0, 3 * 4096, false).unwrap();
        let lens = |pool: &mut Pool, offset, len| {
            pool.segments(&frames, offset, len).iter().map(Segment::len).collect::<Vec<_>>()
        };
        assert_eq!(lens(&mut pool, 0, 512), [512]);
        assert_eq!(lens(&mut pool, 4000, 4292), [96, 4096, 100]);
        assert_eq!(lens(&mut pool, 0, 3 * 4096), [4096; 3]);
        pool.give(0, &mut frames, false);
        pool.drain(&mut list);
    }
}
