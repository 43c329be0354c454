//! The process's frame memory: one mapping, made at start, never removed.
//!
//! Huge pages when there are some, a memfd when not. It is registered with every AF_XDP socket as
//! its UMEM and never unmapped, which is what makes an owned [`Frame`] sound without a reference
//! count: frames cannot outlive it.

use crate::{FRAME_BYTES, Frame, FreeList};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// What the region's pages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// 2 MiB pages from the kernel's pool (`vm.nr_hugepages`).
    HugePages,
    /// Ordinary pages of a memfd.
    Memfd,
}

impl Backing {
    /// The name shown to users.
    pub fn name(self) -> &'static str {
        match self {
            Backing::HugePages => "2 MiB pages",
            Backing::Memfd => "4 KiB pages (memfd)",
        }
    }
}

/// Why a region could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The kernel refused the memory.
    #[error(
        "cannot map {mib} MiB of frame memory: {source}; \
         lower `region_mib` in [runtime], or free memory"
    )]
    Map {
        /// The size asked for.
        mib: usize,
        /// The kernel's reason.
        source: std::io::Error,
    },
}

/// The process's frame memory.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    frames: u32,
    backing: Backing,
    fd: OwnedFd,
    carved: AtomicU32,
}

// SAFETY: the pointer is only turned into Frames, each handed out once; `carved` is atomic.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps room for `frames` frames, rounded up to whole 2 MiB, zeroed and pre-faulted. The
    /// region lives as long as the process: make one per process (tests: small ones).
    pub fn new(frames: u32) -> Result<&'static Region, RegionError> {
        const HUGE: usize = 2 << 20;
        let bytes = (frames as usize * FRAME_BYTES).next_multiple_of(HUGE).max(HUGE);
        let (base, fd, backing) =
            map(bytes, libc::MFD_HUGETLB | libc::MFD_HUGE_2MB, Backing::HugePages)
                .or_else(|_| map(bytes, 0, Backing::Memfd))
                .map_err(|source| RegionError::Map { mib: bytes >> 20, source })?;
        let frames = (bytes / FRAME_BYTES) as u32;
        let region = Region { base, frames, backing, fd, carved: AtomicU32::new(0) };
        Ok(Box::leak(Box::new(region)))
    }

    /// Frames in the region.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.frames as usize * FRAME_BYTES
    }

    /// What the pages are.
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// The memory's file descriptor, to share or register it.
    pub fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// The address of the first frame, to register the region with the kernel or a driver.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Hands out `count` frames that were never handed out before, in a list with room for every
    /// frame of the region; `None` when fewer are left.
    pub fn carve(&self, count: u32) -> Option<FreeList> {
        let first = self
            .carved
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |first| {
                first.checked_add(count).filter(|end| *end <= self.frames)
            })
            .ok()?;
        let mut list = FreeList::with_capacity(self.frames as usize);
        for index in (first..first + count).rev() {
            // SAFETY: `carved` only grows, so every index in [first, first + count) below
            // `frames` is handed out once; the frame lies inside the mapping.
            list.give(unsafe { Frame::from_start(self.base.add(index as usize * FRAME_BYTES)) });
        }
        Some(list)
    }

    /// Gives a frame away (to the kernel): its offset in the region. The caller sees to it that
    /// the address comes back through [`adopt`](Self::adopt).
    #[inline(always)]
    pub(crate) fn release(&self, frame: Frame) -> u64 {
        let offset = frame.start().as_ptr() as usize - self.base.as_ptr() as usize;
        debug_assert!(offset < self.bytes(), "a frame of another region");
        offset as u64
    }

    /// Takes a frame back from the kernel by any offset inside it; `None` outside the region.
    ///
    /// # Safety
    /// The frame was given away by [`release`](Self::release) and the kernel returned it just now,
    /// once: nobody else uses it.
    #[inline(always)]
    pub(crate) unsafe fn adopt(&self, offset: u64) -> Option<Frame> {
        let start = offset as usize & !(FRAME_BYTES - 1);
        // SAFETY: inside the mapping (checked here); unique by the caller's promise.
        (start < self.bytes()).then(|| unsafe { Frame::from_start(self.base.add(start)) })
    }
}

fn map(
    bytes: usize,
    flags: libc::c_uint,
    backing: Backing,
) -> std::io::Result<(NonNull<u8>, OwnedFd, Backing)> {
    let last = std::io::Error::last_os_error;
    // SAFETY: the name is a NUL-terminated literal; the result is checked.
    let fd = unsafe { libc::memfd_create(c"outboard-frames".as_ptr(), libc::MFD_CLOEXEC | flags) };
    if fd < 0 {
        return Err(last());
    }
    // SAFETY: fd was just made and is owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: plain system call on an owned descriptor.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), bytes as libc::off_t) } != 0 {
        return Err(last());
    }
    let (prot, share) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
    // SAFETY: a fresh mapping at an address of the kernel's choice; the result is checked.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, prot, share, fd.as_raw_fd(), 0) };
    if base == libc::MAP_FAILED {
        return Err(last());
    }
    NonNull::new(base.cast()).map(|base| (base, fd, backing)).ok_or_else(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_distinct_and_come_back() {
        let region = Region::new(512).unwrap();
        let mut list = region.carve(512).unwrap();
        assert!(region.carve(1).is_none());
        let mut seen = std::collections::BTreeSet::new();
        let mut offsets = Vec::new();
        while let Some(mut frame) = list.take() {
            frame.bytes_mut()[4095] = 7;
            let offset = region.release(frame);
            assert!(seen.insert(offset), "frame handed out twice");
            offsets.push(offset);
        }
        assert_eq!(offsets.len(), 512);
        for offset in offsets {
            // SAFETY: released above, adopted once.
            list.give(unsafe { region.adopt(offset + 300) }.unwrap());
        }
        // SAFETY: outside the region: nothing is adopted.
        assert!(unsafe { region.adopt(region.bytes() as u64) }.is_none());
        assert_eq!(list.len(), 512);
    }
}
