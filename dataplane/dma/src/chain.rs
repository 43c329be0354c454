//! A packet's frames: a head frame plus a bounded chain.
//!
//! The head's place and length stand in the [`Chain`] itself, so that a packet of one frame never
//! touches its link; the others keep theirs in the first 16 bytes of the frame.

use crate::frame::LINK_BYTES;
use crate::{DATA_BYTES, FRAME_BYTES, Frame, FreeList, HEADROOM_BYTES};
use std::ptr::NonNull;

/// The most frames in one chain: 64 KiB of TCP segment plus headers at 3 840 bytes a frame.
pub const MAX_FRAMES: usize = 18;

/// What stands in the first bytes of every frame but the head.
#[derive(Clone, Copy)]
#[repr(C)]
struct Link {
    next: Option<NonNull<u8>>,
    start: u16,
    len: u16,
}
const _: () = assert!(size_of::<Link>() <= LINK_BYTES);

/// One to [`MAX_FRAMES`] frames that hold one packet.
#[derive(Debug)]
#[must_use = "frames that are dropped are lost"]
pub struct Chain {
    head: Frame,
    start: u16,
    len: u16,
    frames: u16,
    bytes: u32,
    second: Option<NonNull<u8>>,
    last: Option<NonNull<u8>>,
}

// SAFETY: the chain owns every frame it links, as Frame does.
unsafe impl Send for Chain {}

impl Chain {
    /// A chain of one frame whose data is `frame[start..start + len]`.
    ///
    /// # Panics
    /// When that range does not lie behind the link bytes and inside the frame.
    #[inline(always)]
    pub fn new(frame: Frame, start: usize, len: usize) -> Chain {
        assert!(is_data_range(start, len), "data outside of its frame");
        Chain {
            head: frame,
            start: start as u16,
            len: len as u16,
            frames: 1,
            bytes: len as u32,
            second: None,
            last: None,
        }
    }

    /// Copies `data` into as many frames as it takes (at least one), with headroom in each; `None`
    /// when the list has too few or the data needs more than [`MAX_FRAMES`].
    pub fn from_slice(data: &[u8], free: &mut FreeList) -> Option<Chain> {
        let frames = data.len().div_ceil(DATA_BYTES).max(1);
        if frames > MAX_FRAMES || free.len() < frames {
            return None;
        }
        let mut pieces = data.chunks(DATA_BYTES);
        let mut fill = |frame: &mut Frame| {
            let piece = pieces.next().unwrap_or_default();
            frame.bytes_mut()[HEADROOM_BYTES..][..piece.len()].copy_from_slice(piece);
            piece.len()
        };
        let mut head = free.take()?;
        let len = fill(&mut head);
        let mut chain = Chain::new(head, HEADROOM_BYTES, len);
        for _ in 1..frames {
            let mut frame = free.take()?;
            let len = fill(&mut frame);
            chain.push(frame, HEADROOM_BYTES, len).ok()?;
        }
        Some(chain)
    }

    /// Appends a frame whose data is `frame[start..start + len]`; hands it back when full.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    #[inline]
    pub fn push(&mut self, frame: Frame, start: usize, len: usize) -> Result<(), Frame> {
        assert!(is_data_range(start, len), "data outside of its frame");
        if usize::from(self.frames) == MAX_FRAMES {
            return Err(frame);
        }
        let place = frame.start();
        let link = Link { next: None, start: start as u16, len: len as u16 };
        // SAFETY: `place` is the start of an owned frame of FRAME_BYTES, page-aligned; `last`
        // likewise belongs to this chain, and its link was written when it was pushed.
        unsafe {
            place.cast::<Link>().write(link);
            match self.last {
                Some(last) => last.cast::<Link>().as_mut().next = Some(place),
                None => self.second = Some(place),
            }
        }
        self.last = Some(place);
        self.frames += 1;
        self.bytes += len as u32;
        Ok(())
    }

    /// Frames in the chain, at least 1.
    #[inline(always)]
    pub fn frames(&self) -> usize {
        usize::from(self.frames)
    }

    /// Bytes of data in the whole chain.
    #[inline(always)]
    pub fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// The head frame's data.
    #[inline(always)]
    pub fn head(&self) -> &[u8] {
        &self.head.bytes()[usize::from(self.start)..][..usize::from(self.len)]
    }

    /// The head frame's data, to change.
    #[inline(always)]
    pub fn head_mut(&mut self) -> &mut [u8] {
        &mut self.head.bytes_mut()[usize::from(self.start)..][..usize::from(self.len)]
    }

    /// Asks the processor to bring the packet's headers close, and the line in front of them where
    /// an encapsulation will be written.
    #[inline(always)]
    pub fn prefetch(&self) {
        let start = usize::from(self.start);
        let bytes = self.head.bytes();
        crate::prefetch(&bytes[start.min(FRAME_BYTES - 1)]);
        crate::prefetch(&bytes[start.saturating_sub(1)]);
    }

    /// Bytes that [`grow_front`](Self::grow_front) can still add.
    #[inline(always)]
    pub fn headroom(&self) -> usize {
        usize::from(self.start) - LINK_BYTES
    }

    /// Puts `n` bytes of unspecified content in front of the data and returns the grown head;
    /// `None` when the headroom is smaller.
    #[inline(always)]
    pub fn grow_front(&mut self, n: usize) -> Option<&mut [u8]> {
        if n > self.headroom() {
            return None;
        }
        self.start -= n as u16;
        self.len += n as u16;
        self.bytes += n as u32;
        Some(self.head_mut())
    }

    /// Removes `n` bytes from the front of the head frame and returns what is left of the head;
    /// `None` when the head has fewer.
    #[inline(always)]
    pub fn shrink_front(&mut self, n: usize) -> Option<&mut [u8]> {
        if n > usize::from(self.len) {
            return None;
        }
        self.start += n as u16;
        self.len -= n as u16;
        self.bytes -= n as u32;
        Some(self.head_mut())
    }

    /// Cuts the packet to its first `bytes` bytes (Ethernet padding behind an IP packet); frames
    /// that become empty go to `free`.
    pub fn truncate(&mut self, bytes: usize, free: &mut FreeList) {
        if bytes >= self.bytes() {
            return;
        }
        let old = self.take_tail();
        self.len = usize::from(self.len).min(bytes) as u16;
        self.bytes = u32::from(self.len);
        for (frame, start, len) in old {
            let keep = len.min(bytes - self.bytes());
            if keep == 0 {
                free.give(frame);
            } else {
                let pushed = self.push(frame, start, keep);
                assert!(pushed.is_ok(), "a chain never grows by being cut");
            }
        }
    }

    /// The data of each frame in order.
    pub fn segments(&self) -> impl Iterator<Item = &[u8]> {
        let mut next = self.second;
        std::iter::once(self.head()).chain(std::iter::from_fn(move || {
            let place = next?;
            // SAFETY: `place` is a frame of this chain with a written link whose range push
            // checked; the returned slice lives no longer than the borrow of self.
            unsafe {
                let link = place.cast::<Link>().read();
                next = link.next;
                let data = place.as_ptr().add(usize::from(link.start));
                Some(std::slice::from_raw_parts(data, usize::from(link.len)))
            }
        }))
    }

    /// Copies the whole packet to the front of `out` and returns its length; copies nothing and
    /// returns `None` when it does not fit.
    pub fn copy_to(&self, out: &mut [u8]) -> Option<usize> {
        let out = out.get_mut(..self.bytes())?;
        let mut at = 0;
        for segment in self.segments() {
            out[at..at + segment.len()].copy_from_slice(segment);
            at += segment.len();
        }
        Some(at)
    }

    /// Gives every frame back.
    #[inline(always)]
    pub fn free(mut self, free: &mut FreeList) {
        if self.second.is_some() {
            for (frame, _, _) in self.take_tail() {
                free.give(frame);
            }
        }
        free.give(self.head);
    }

    /// Takes the chain apart: `sink` gets every frame with its data's start and length, in order.
    #[inline(always)]
    pub fn into_frames(mut self, mut sink: impl FnMut(Frame, usize, usize)) {
        let tail = self.take_tail();
        sink(self.head, usize::from(self.start), usize::from(self.len));
        for (frame, start, len) in tail {
            sink(frame, start, len);
        }
    }

    fn take_tail(&mut self) -> Tail {
        self.last = None;
        self.frames = 1;
        Tail(self.second.take())
    }
}

/// Whether `[start, start + len)` lies behind the link and inside the frame. What is read through
/// a link rests on it, so that it must hold for every number, also where a sum would wrap.
#[inline(always)]
fn is_data_range(start: usize, len: usize) -> bool {
    (LINK_BYTES..=FRAME_BYTES).contains(&start) && len <= FRAME_BYTES - start
}

/// The frames behind a head, owned.
struct Tail(Option<NonNull<u8>>);

impl Iterator for Tail {
    type Item = (Frame, usize, usize);

    fn next(&mut self) -> Option<Self::Item> {
        let place = self.0?;
        // SAFETY: every place in the tail is a frame with a written link that the chain owned and
        // handed to this iterator; each is yielded once.
        unsafe {
            let link = place.cast::<Link>().read();
            self.0 = link.next;
            Some((Frame::from_start(place), usize::from(link.start), usize::from(link.len)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Region;

    fn sizes() -> Vec<usize> {
        let mut sizes = vec![0, 1, 64];
        for frames in [1, 2, 3, MAX_FRAMES] {
            let edge = frames * DATA_BYTES;
            sizes.extend([edge - 1, edge, edge + 1]);
        }
        sizes
    }

    #[test]
    fn every_boundary_keeps_bytes_and_frames() {
        let mut free = Region::new(64).unwrap().carve(64).unwrap();
        for size in sizes() {
            let data: Vec<u8> = (0..size).map(|i| (i * 7 + size) as u8).collect();
            let Some(chain) = Chain::from_slice(&data, &mut free) else {
                assert!(size > MAX_FRAMES * DATA_BYTES);
                assert_eq!(free.len(), 64);
                continue;
            };
            assert_eq!(chain.frames(), size.div_ceil(DATA_BYTES).max(1));
            assert_eq!(free.len() + chain.frames(), 64);
            let mut out = vec![0; size];
            assert_eq!(chain.copy_to(&mut out), Some(size));
            assert_eq!(out, data);
            chain.free(&mut free);
            assert_eq!(free.len(), 64);
        }
    }

    #[test]
    fn truncate_and_front_keep_count() {
        let mut free = Region::new(64).unwrap().carve(64).unwrap();
        let data: Vec<u8> = (0..3 * DATA_BYTES).map(|i| (i % 251) as u8).collect();
        for cut in [0, 1, DATA_BYTES - 1, DATA_BYTES, DATA_BYTES + 1, 3 * DATA_BYTES - 1] {
            let mut chain = Chain::from_slice(&data, &mut free).unwrap();
            chain.truncate(cut, &mut free);
            assert_eq!(chain.bytes(), cut);
            assert_eq!(free.len() + chain.frames(), 64);
            assert_eq!(chain.segments().flatten().count(), cut);
            assert!(chain.segments().flatten().eq(&data[..cut]));
            assert!(chain.grow_front(50).is_some());
            assert!(chain.grow_front(HEADROOM_BYTES).is_none());
            assert!(chain.shrink_front(50).is_some());
            assert_eq!(chain.bytes(), cut);
            chain.free(&mut free);
        }
    }

    #[test]
    fn the_longest_packet_is_cut_past_64_kib() {
        let mut free = Region::new(64).unwrap().carve(64).unwrap();
        let data: Vec<u8> = (0..MAX_FRAMES * DATA_BYTES).map(|i| (i % 251) as u8).collect();
        for cut in [65_535, 65_536, 65_537, MAX_FRAMES * DATA_BYTES - 1] {
            let mut chain = Chain::from_slice(&data, &mut free).unwrap();
            chain.truncate(cut, &mut free);
            assert_eq!(chain.bytes(), cut);
            assert!(chain.segments().flatten().eq(&data[..cut]), "{cut}");
            chain.free(&mut free);
            assert_eq!(free.len(), 64);
        }
    }

    #[test]
    fn ranges_that_wrap_are_outside() {
        assert!(is_data_range(LINK_BYTES, FRAME_BYTES - LINK_BYTES));
        assert!(is_data_range(FRAME_BYTES, 0));
        for (start, len) in [
            (LINK_BYTES - 1, 1),
            (LINK_BYTES, FRAME_BYTES - LINK_BYTES + 1),
            (FRAME_BYTES + 1, 0),
            (usize::MAX, 2),
            (LINK_BYTES, usize::MAX),
        ] {
            assert!(!is_data_range(start, len), "{start} + {len}");
        }
    }
}
