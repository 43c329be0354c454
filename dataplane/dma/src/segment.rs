//! Checked addresses: memory that a guest may write at any moment, or frames lent to a device.
//!
//! A [`Segment`] is never turned into a reference. Bytes are copied in or out, or its address is
//! handed to the kernel (io_uring, `readv`).

use crate::Frame;
use arrayvec::ArrayVec;
use std::ptr::NonNull;

/// The most segments of one I/O; also what a virtio disk offers as `seg_max` (virtio 1.2, 5.2.4).
pub const MAX_SEGMENTS: usize = 34;

/// The data of one I/O in order.
pub type Segments = ArrayVec<Segment, MAX_SEGMENTS>;

/// `len` bytes at a checked address.
///
/// Whoever makes a segment keeps its memory mapped until the I/O that carries it has ended.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    start: NonNull<u8>,
    len: u32,
}

// SAFETY: a segment is an address; every access is a copy that tolerates concurrent writers.
unsafe impl Send for Segment {}

impl Segment {
    /// # Safety
    /// `[start, start + len)` is mapped readable and writable until the last use of the segment.
    pub unsafe fn new(start: NonNull<u8>, len: u32) -> Segment {
        Segment { start, len }
    }

    /// `len` bytes of a frame from `offset`. The frame stays with its owner, who neither reads,
    /// writes nor frees it before the I/O has ended.
    ///
    /// # Panics
    /// When the range leaves the frame.
    pub fn of_frame(frame: &mut Frame, offset: usize, len: usize) -> Segment {
        let start = NonNull::from(&mut frame.bytes_mut()[offset..offset + len]).cast();
        Segment { start, len: len as u32 }
    }

    /// Memory that lives as long as the process and has no other user (`Box::leak`).
    ///
    /// # Panics
    /// When it is 4 GiB or longer.
    pub fn of_static(memory: &'static mut [u8]) -> Segment {
        let len = u32::try_from(memory.len()).expect("a segment is shorter than 4 GiB");
        Segment { start: NonNull::from(memory).cast(), len }
    }

    /// Length in bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether it holds nothing.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address, for the kernel.
    #[inline(always)]
    pub fn address(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Asks the processor for its first bytes.
    #[inline(always)]
    pub fn prefetch(&self) {
        crate::hint::line(self.start.as_ptr());
    }

    /// Asks the processor for its first bytes, which are about to be read and written.
    #[inline(always)]
    pub fn prefetch_to_write(&self) {
        crate::hint::line_to_write(self.start.as_ptr());
    }

    /// The part `[from, from + len)`, or `None` when it leaves the segment.
    pub fn part(&self, from: usize, len: usize) -> Option<Segment> {
        let end = from.checked_add(len)?;
        if end > self.len() {
            return None;
        }
        // SAFETY: inside [start, start + self.len), checked above.
        Some(Segment { start: unsafe { self.start.add(from) }, len: len as u32 })
    }

    /// Copies the segment's bytes from `offset` into `out`; `false`, and nothing copied, when the
    /// range leaves the segment.
    #[inline]
    pub fn copy_to(&self, offset: usize, out: &mut [u8]) -> bool {
        if offset.checked_add(out.len()).is_none_or(|end| end > self.len()) {
            return false;
        }
        // SAFETY: the range is inside mapped memory (checked; promise of `new`); `out` is our
        // own. A concurrent writer can only change which bytes arrive: they are plain u8. (The
        // language has no copy that allows for such a writer; this one is a call to memmove, of
        // whose source the compiler knows nothing.)
        unsafe {
            std::ptr::copy(self.start.as_ptr().add(offset), out.as_mut_ptr(), out.len());
        }
        true
    }

    /// Copies `data` into the segment at `offset`; `false`, and nothing copied, when the range
    /// leaves the segment.
    #[inline]
    pub fn copy_from(&self, offset: usize, data: &[u8]) -> bool {
        if offset.checked_add(data.len()).is_none_or(|end| end > self.len()) {
            return false;
        }
        // SAFETY: as in copy_to, in the other direction.
        unsafe {
            std::ptr::copy(data.as_ptr(), self.start.as_ptr().add(offset), data.len());
        }
        true
    }

    /// Reads a byte of every page: where the memory's owner took pages away, zeros take their
    /// place and its mapping is torn (see `sigbus`). For when the kernel has said EFAULT.
    #[cold]
    pub fn touch(&self) {
        const PAGE_BYTES: usize = 4096;
        let start = self.start.as_ptr() as usize;
        let mut at = start;
        while at < start + self.len() {
            let mut byte = [0];
            self.copy_to(at - start, &mut byte);
            std::hint::black_box(byte);
            at = (at / PAGE_BYTES + 1) * PAGE_BYTES;
        }
    }

    /// Whether the segment's bytes from `offset` are those of `data`; `false` when the range
    /// leaves the segment. Each byte is read once, at some moment of the call.
    pub fn equals(&self, offset: usize, data: &[u8]) -> bool {
        if offset.checked_add(data.len()).is_none_or(|end| end > self.len()) {
            return false;
        }
        let mut copy = [0; 1024];
        data.chunks(copy.len()).enumerate().all(|(index, part)| {
            let at = offset + index * copy.len();
            let copy = &mut copy[..part.len()];
            self.copy_to(at, copy) && copy == part
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GuestMemory, Region};

    #[test]
    fn a_touch_finds_pages_that_are_gone() {
        let (memory, _, file) = GuestMemory::share(3 * 4096, 0, 0x1000).unwrap();
        let segment = memory.segment(100, 2 * 4096).unwrap();
        segment.touch();
        assert!(!memory.is_torn());
        file.set_len(2 * 4096).unwrap();
        // The last 100 bytes lie in the third page.
        memory.segment(100, 4096).unwrap().touch();
        assert!(!memory.is_torn());
        segment.touch();
        assert!(memory.is_torn());
    }

    #[test]
    fn copies_stay_inside() {
        let mut free = Region::new(1).unwrap().carve(1).unwrap();
        let mut frame = free.take().unwrap();
        let segment = Segment::of_frame(&mut frame, 100, 10);
        assert!(segment.copy_from(0, &[5; 10]));
        assert!(!segment.copy_from(1, &[6; 10]));
        assert!(!segment.copy_from(usize::MAX, &[6; 1]));
        let mut out = [0; 4];
        assert!(segment.copy_to(6, &mut out));
        assert_eq!(out, [5; 4]);
        assert!(!segment.copy_to(7, &mut out));
        assert!(segment.equals(6, &[5; 4]) && segment.equals(10, &[]));
        assert!(!segment.equals(7, &[5; 4]) && !segment.equals(6, &[5, 5, 5, 6]));
        assert!(!segment.equals(usize::MAX, &[5; 1]));
        assert!(segment.part(7, 4).is_none());
        assert_eq!(segment.part(7, 3).unwrap().len(), 3);
        free.give(frame);
    }
}
