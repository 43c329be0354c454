//! Private memory in whole pages: the content of memory volumes, and buffers for direct I/O.
//!
//! Anonymous, zeroed, page-aligned, sized once. Unlike a vector it says so when the kernel refuses
//! the memory, and it can be made resident before the first access.

use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;

/// Alignment and granularity.
const PAGE_BYTES: usize = 4096;

/// Zeroed page-aligned memory of this process alone, unmapped when dropped.
#[derive(Debug)]
pub struct Pages {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: Pages owns its mapping like a Box<[u8]>.
unsafe impl Send for Pages {}
// SAFETY: shared access only reads.
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps `bytes` bytes, rounded up to whole pages. `resident`: every page is there when this
    /// returns (huge where the kernel has them), so that no later access faults.
    pub fn new(bytes: usize, resident: bool) -> std::io::Result<Pages> {
        let bytes = bytes
            .max(1)
            .checked_next_multiple_of(PAGE_BYTES)
            .filter(|bytes| *bytes <= isize::MAX as usize)
            .ok_or_else(|| std::io::Error::from_raw_os_error(libc::ENOMEM))?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let share = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping at an address of the kernel's choice; the result is checked.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, prot, share, -1, 0) };
        let failed = std::io::Error::last_os_error;
        if start == libc::MAP_FAILED {
            return Err(failed());
        }
        let start = NonNull::new(start.cast()).ok_or_else(failed)?;
        let mut pages = Pages { start, bytes };
        if resident {
            pages.populate()?;
        }
        Ok(pages)
    }

    fn populate(&mut self) -> std::io::Result<()> {
        let start = self.start.as_ptr().cast();
        // SAFETY: advice about a mapping that self owns; refusing it (no huge pages) is harmless.
        unsafe { libc::madvise(start, self.bytes, libc::MADV_HUGEPAGE) };
        // SAFETY: as above; populating writes no data.
        if unsafe { libc::madvise(start, self.bytes, libc::MADV_POPULATE_WRITE) } == 0 {
            return Ok(());
        }
        let error = std::io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
        // Linux before 5.14 does not know MADV_POPULATE_WRITE.
        for page in self.chunks_mut(PAGE_BYTES) {
            // A plain store of the value that is there could be optimised away.
            std::hint::black_box(&mut page[0]);
            page[0] = std::hint::black_box(0);
        }
        Ok(())
    }
}

impl Pages {
    /// Asks the processor for a range, which is about to be copied; what lies outside is left out.
    #[inline]
    pub fn prefetch(&self, range: Range<usize>) {
        let end = range.end.min(self.bytes);
        if let Some(bytes) = self.get(range.start..end) {
            crate::hint::range(bytes);
        }
    }

    /// Sets a range to zeros. Whole pages in it go back to the kernel, and come back at the next
    /// touch.
    ///
    /// # Panics
    /// When the range leaves the memory.
    pub fn release(&mut self, range: Range<usize>) {
        let bytes = &mut self[range.clone()];
        let first = range.start.next_multiple_of(PAGE_BYTES);
        let end = range.end / PAGE_BYTES * PAGE_BYTES;
        if first >= end {
            return bytes.fill(0);
        }
        bytes[..first - range.start].fill(0);
        bytes[end - range.start..].fill(0);
        let pages = &mut bytes[first - range.start..end - range.start];
        // SAFETY: whole pages of a private anonymous mapping that self owns and has borrowed
        // mutably; what is read there later is zeros.
        let released =
            unsafe { libc::madvise(pages.as_mut_ptr().cast(), pages.len(), libc::MADV_DONTNEED) };
        if released != 0 {
            // Locked memory stays.
            pages.fill(0);
        }
    }
}

impl Deref for Pages {
    type Target = [u8];

    #[inline(always)]
    fn deref(&self) -> &[u8] {
        // SAFETY: [start, start + bytes) is a mapping that self owns, initialised (zeroed) by the
        // kernel, at most isize::MAX long.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for Pages {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref; &mut self makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new`, is owned by self, and nothing borrows it now.
        let unmapped = unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
        debug_assert_eq!(unmapped, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroed_aligned_and_whole_pages() {
        for (bytes, resident) in
            [(0, false), (1, true), (4096, false), (4097, true), (5 << 20, true)]
        {
            let mut pages = Pages::new(bytes, resident).unwrap();
            assert_eq!(pages.len(), bytes.max(1).next_multiple_of(PAGE_BYTES));
            assert_eq!(pages.as_ptr() as usize % PAGE_BYTES, 0);
            assert!(pages.iter().all(|byte| *byte == 0));
            pages.fill(7);
        }
    }

    #[test]
    fn more_than_the_address_space_is_an_error() {
        for bytes in [usize::MAX, isize::MAX as usize, 1 << 50] {
            assert_eq!(Pages::new(bytes, false).unwrap_err().raw_os_error(), Some(libc::ENOMEM));
        }
    }

    /// Pages of `pages` that are in memory.
    fn resident(pages: &Pages) -> usize {
        let mut present = vec![0u8; pages.len() / PAGE_BYTES];
        // SAFETY: the range is a mapping; `present` has one byte per page.
        let asked = unsafe {
            libc::mincore(pages.start.as_ptr().cast(), pages.len(), present.as_mut_ptr())
        };
        assert_eq!(asked, 0);
        present.iter().filter(|page| **page & 1 == 1).count()
    }

    #[test]
    fn released_pages_are_zeros_and_gone() {
        let mut pages = Pages::new(64 * PAGE_BYTES, true).unwrap();
        for range in [0..0, 5..6, 100..4_200, 4_000..8_192, 4_096..8_192, 4_095..16_385, 0..262_144]
        {
            pages.fill(7);
            pages.release(range.clone());
            let whole = (range.end / PAGE_BYTES).saturating_sub(range.start.div_ceil(PAGE_BYTES));
            assert_eq!(resident(&pages), 64 - whole, "{range:?}");
            for (at, byte) in pages.iter().enumerate() {
                assert_eq!(*byte, if range.contains(&at) { 0 } else { 7 }, "{at} of {range:?}");
            }
        }
    }

    #[test]
    fn resident_means_every_page_is_there() {
        assert_eq!(resident(&Pages::new(8 << 20, true).unwrap()), (8 << 20) / PAGE_BYTES);
        assert_eq!(resident(&Pages::new(8 << 20, false).unwrap()), 0);
    }
}
