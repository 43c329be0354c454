//! A guest's memory: the regions that a front end shares, mapped here and reached by copies.
//!
//! Two address spaces lead to the same bytes. Descriptors carry guest-physical addresses; the
//! vring addresses of vhost-user are addresses of the front end's own process (QEMU,
//! docs/interop/vhost-user.rst, "Memory region description"). Both are checked against the table
//! on every use; the result is a [`Segment`] or a [`Window`], never a reference.
//!
//! A [`Window`] keeps the memory mapped by itself. A [`Segment`] does not: whoever makes one for
//! an I/O takes a [`hold`](GuestMemory::hold) first and gives it back with
//! [`release`](GuestMemory::release) when the I/O has ended. A device drains before it lets go of
//! the memory; when it could not (holds are left), the mapping is leaked rather than removed
//! under an I/O that still runs.

use crate::sigbus::Watch;
use crate::{Segment, Window};
use arrayvec::ArrayVec;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The most regions of one guest: what one vhost-user message can carry descriptors for.
pub const MAX_REGIONS: usize = 32;

/// One region as the front end describes it (vhost-user, SET_MEM_TABLE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRegion {
    /// Where the guest sees it.
    pub guest_address: u64,
    /// Length.
    pub bytes: u64,
    /// Where the front end's process sees it.
    pub user_address: u64,
    /// Where it begins in the file that was passed along.
    pub file_offset_bytes: u64,
}

/// Why guest memory was refused.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// None or too many.
    #[error("the front end describes {0} memory regions; 1 to {MAX_REGIONS} are possible")]
    Count(usize),
    /// The numbers of one region cannot be right.
    #[error("memory region {index}: {what} (guest address {guest_address:#x}, {bytes} bytes)")]
    Region {
        /// Position in the front end's table.
        index: usize,
        /// What is wrong.
        what: &'static str,
        /// Where the guest sees the region.
        guest_address: u64,
        /// Its length.
        bytes: u64,
    },
    /// The file behind the region is too short for it.
    #[error(
        "memory region {index} ends at byte {end} of a file of {file_bytes} bytes; the front end \
         must share the whole file (QEMU: memory-backend-memfd,share=on)"
    )]
    FileTooShort {
        /// Position in the front end's table.
        index: usize,
        /// Where the region ends in the file.
        end: u64,
        /// The file's size.
        file_bytes: u64,
    },
    /// The file is no memory: touching it may wait for a disk or for another process.
    #[error(
        "memory region {index} does not lie in a memfd, on tmpfs or on hugetlbfs (file system \
         type {kind:#x}); share such memory (QEMU: memory-backend-memfd,share=on)"
    )]
    NotMemory {
        /// Position in the front end's table.
        index: usize,
        /// The file system's magic number.
        kind: u64,
    },
    /// More mappings than can be watched.
    #[error("memory region {0}: the guests of this process share too many regions already")]
    TooMany(usize),
    /// The kernel refused to map it.
    #[error(
        "cannot map memory region {index} ({bytes} bytes): {source}; is the guest's memory shared \
         (share=on)?"
    )]
    Map {
        /// Position in the front end's table.
        index: usize,
        /// Its length.
        bytes: u64,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// A ring does not lie in one region.
    #[error(
        "the {what} at front-end address {address:#x} ({bytes} bytes) is not inside one memory \
         region or not aligned to {align}"
    )]
    Ring {
        /// Which part of the ring.
        what: &'static str,
        /// Its address in the front end's process.
        address: u64,
        /// Its length.
        bytes: usize,
        /// The alignment it must have.
        align: usize,
    },
}

/// The mapped memory of one guest.
#[derive(Debug)]
pub struct GuestMemory {
    regions: ArrayVec<Mapped, MAX_REGIONS>,
    holds: AtomicU32,
}

/// A region and the mapping it lies in.
#[derive(Debug)]
struct Mapped {
    region: GuestRegion,
    start: NonNull<u8>,
    mapping: NonNull<u8>,
    mapping_bytes: usize,
    watch: Option<Watch>,
}

// SAFETY: the pointers are addresses of shared mappings that are only used for copies and atomic
// accesses, which tolerate any other writer; they are unmapped once, by Drop.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl GuestMemory {
    /// Maps `regions`; each comes with the file that holds it, which need not stay open.
    pub fn map(regions: &[(GuestRegion, File)]) -> Result<Arc<GuestMemory>, GuestError> {
        if regions.is_empty() || regions.len() > MAX_REGIONS {
            return Err(GuestError::Count(regions.len()));
        }
        check_table(regions)?;
        let mut memory = GuestMemory { regions: ArrayVec::new(), holds: AtomicU32::new(0) };
        for (index, (region, file)) in regions.iter().enumerate() {
            memory.regions.push(map_region(index, region, file)?);
        }
        Ok(Arc::new(memory))
    }

    /// Makes memory to share with a device: `bytes` (rounded up to pages) of a new memfd, mapped
    /// and pre-faulted, seen by the device at the two given addresses. Returns the file to pass.
    pub fn share(
        bytes: u64,
        guest_address: u64,
        user_address: u64,
    ) -> Result<(Arc<GuestMemory>, GuestRegion, File), GuestError> {
        let bytes = bytes.max(1).next_multiple_of(4096);
        let region = GuestRegion { guest_address, bytes, user_address, file_offset_bytes: 0 };
        let refused = |source| GuestError::Map { index: 0, bytes, source };
        let file = memfd(bytes).map_err(refused)?;
        let copy = file.try_clone().map_err(refused)?;
        let memory = GuestMemory::map(&[(region, file)])?;
        for mapped in &memory.regions {
            // SAFETY: a hint about a mapping made above; failure means only later faults.
            unsafe {
                let start = mapped.mapping.as_ptr().cast();
                libc::madvise(start, mapped.mapping_bytes, libc::MADV_POPULATE_WRITE);
            }
        }
        Ok((memory, region, copy))
    }

    /// The part of `[guest_address, guest_address + len)` that lies in one region, from its
    /// start; `None` when the first byte lies in none or `len` is 0. A range over several
    /// adjacent regions takes several calls.
    #[inline]
    pub fn segment(&self, guest_address: u64, len: u32) -> Option<Segment> {
        if len == 0 {
            return None;
        }
        self.regions.iter().find_map(|mapped| {
            let inside = guest_address.wrapping_sub(mapped.region.guest_address);
            let left = mapped.region.bytes.checked_sub(inside).filter(|left| *left > 0)?;
            let len = left.min(u64::from(len)) as u32;
            // SAFETY: `inside < bytes`, so [start + inside, + len) is inside the mapping, which
            // lives while holds are out (the caller's contract, see the module's header).
            Some(unsafe { Segment::new(mapped.start.add(inside as usize), len) })
        })
    }

    /// Copies out of the guest; `false` when not all of it is mapped (`out` is then unspecified).
    #[inline]
    pub fn read(&self, mut guest_address: u64, mut out: &mut [u8]) -> bool {
        while !out.is_empty() {
            let Some(segment) = self.segment(guest_address, out.len() as u32) else {
                return false;
            };
            let (now, rest) = out.split_at_mut(segment.len());
            if !segment.copy_to(0, now) {
                return false;
            }
            guest_address = guest_address.wrapping_add(now.len() as u64);
            out = rest;
        }
        true
    }

    /// Checked access to a ring: `bytes` at the front end's address, aligned, in one region.
    pub fn window(
        self: &Arc<Self>,
        what: &'static str,
        user_address: u64,
        bytes: usize,
        align: usize,
    ) -> Result<Window, GuestError> {
        let refused = || GuestError::Ring { what, address: user_address, bytes, align };
        let start = self
            .regions
            .iter()
            .find_map(|mapped| {
                let inside = user_address.checked_sub(mapped.region.user_address)?;
                let end = inside.checked_add(bytes as u64)?;
                // SAFETY: `end <= bytes`: inside the mapping.
                (end <= mapped.region.bytes).then(|| unsafe { mapped.start.add(inside as usize) })
            })
            .ok_or_else(refused)?;
        if !(start.as_ptr() as usize).is_multiple_of(align) {
            return Err(refused());
        }
        // SAFETY: the range was checked; the window keeps `self` and with it the mapping.
        Ok(unsafe { Window::new(start, bytes, Arc::clone(self)) })
    }

    /// Keeps the memory mapped for one I/O.
    #[inline(always)]
    pub fn hold(&self) {
        self.holds.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends one [`hold`](Self::hold): none of that I/O's segments is used any more.
    ///
    /// # Panics
    /// When there is no hold.
    #[inline(always)]
    pub fn release(&self) {
        let before = self.holds.fetch_sub(1, Ordering::Release);
        assert!(before > 0, "guest memory released more often than held");
    }

    /// I/Os that use the memory now.
    pub fn holds(&self) -> u32 {
        self.holds.load(Ordering::Acquire)
    }

    /// Whether the front end took pages away from under the mapping (by truncating the file); the
    /// regions concerned read as zeros since then.
    #[inline(always)]
    pub fn is_torn(&self) -> bool {
        self.regions.iter().any(|mapped| mapped.watch.as_ref().is_some_and(Watch::is_torn))
    }

    /// The regions, as described.
    pub fn regions(&self) -> impl Iterator<Item = GuestRegion> {
        self.regions.iter().map(|mapped| mapped.region)
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        if *self.holds.get_mut() > 0 {
            // An I/O may still write: the mapping stays for ever (see the module's header).
            self.regions.drain(..).for_each(std::mem::forget);
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.watch = None;
        // SAFETY: the mapping was made by map_region with this length and is unmapped only here;
        // windows keep the memory alive, and holds prevent getting here.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.mapping_bytes) };
    }
}

/// Refuses regions that overflow or overlap, in either address space.
fn check_table(regions: &[(GuestRegion, File)]) -> Result<(), GuestError> {
    let overlap = |a: u64, a_len: u64, b: u64, b_len: u64| a < b + b_len && b < a + a_len;
    for (index, (region, _)) in regions.iter().enumerate() {
        let &GuestRegion { guest_address, bytes, user_address, file_offset_bytes } = region;
        let wrong = |what| Err(GuestError::Region { index, what, guest_address, bytes });
        if bytes == 0 {
            return wrong("it is empty");
        }
        if guest_address.checked_add(bytes).is_none() {
            return wrong("its guest addresses wrap around");
        }
        if user_address.checked_add(bytes).is_none() {
            return wrong("its front-end addresses wrap around");
        }
        let end = file_offset_bytes.checked_add(bytes);
        if end.is_none_or(|end| end > i64::MAX as u64) {
            return wrong("its file range wraps around");
        }
        for (other, _) in &regions[..index] {
            if overlap(guest_address, bytes, other.guest_address, other.bytes) {
                return wrong("its guest addresses overlap those of an earlier region");
            }
            if overlap(user_address, bytes, other.user_address, other.bytes) {
                return wrong("its front-end addresses overlap those of an earlier region");
            }
        }
    }
    Ok(())
}

fn map_region(index: usize, region: &GuestRegion, file: &File) -> Result<Mapped, GuestError> {
    let refused = |source| GuestError::Map { index, bytes: region.bytes, source };
    let about = file.metadata().map_err(refused)?;
    let kind = file_system(file).map_err(refused)?;
    if kind != libc::TMPFS_MAGIC as u64 && kind != libc::HUGETLBFS_MAGIC as u64 {
        return Err(GuestError::NotMemory { index, kind });
    }
    let end = region.file_offset_bytes + region.bytes;
    if about.len() < end {
        return Err(GuestError::FileTooShort { index, end, file_bytes: about.len() });
    }
    // On hugetlbfs both offset and length must be multiples of the page, which st_blksize tells.
    let page = about.blksize().max(4096);
    let page = if page.is_power_of_two() { page } else { 4096 };
    let first = region.file_offset_bytes & !(page - 1);
    let bytes = (end - first).next_multiple_of(page) as usize;
    let (prot, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
    // SAFETY: a fresh mapping at an address of the kernel's choice; the result is checked.
    let mapping = unsafe {
        let none = std::ptr::null_mut();
        libc::mmap(none, bytes, prot, flags, file.as_raw_fd(), first as libc::off_t)
    };
    if mapping == libc::MAP_FAILED {
        return Err(refused(std::io::Error::last_os_error()));
    }
    let mapping = NonNull::new(mapping.cast::<u8>()).expect("mmap never returns address 0 here");
    // SAFETY: the region begins inside the mapping's first page.
    let start = unsafe { mapping.add((region.file_offset_bytes - first) as usize) };
    let watch = Watch::new(mapping, bytes);
    let mapped = Mapped { region: *region, start, mapping, mapping_bytes: bytes, watch };
    match mapped.watch {
        Some(_) => Ok(mapped),
        None => Err(GuestError::TooMany(index)),
    }
}

/// The magic number of the file system that a file lies on.
fn file_system(file: &File) -> std::io::Result<u64> {
    // SAFETY: statfs is plain data for which zero is valid.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `about` is a statfs to write to; the descriptor is open; the result is checked.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &mut about) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(about.f_type as u64)
}

fn memfd(bytes: u64) -> std::io::Result<File> {
    // SAFETY: the name is a NUL-terminated literal; the result is checked.
    let fd = unsafe { libc::memfd_create(c"outboard-guest".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: fd was just made and is owned by nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(guest_address: u64, bytes: u64, user_address: u64, offset: u64) -> GuestRegion {
        GuestRegion { guest_address, bytes, user_address, file_offset_bytes: offset }
    }

    fn map(regions: &[GuestRegion], file_bytes: u64) -> Result<Arc<GuestMemory>, GuestError> {
        let file = memfd(file_bytes).unwrap();
        let with = |r: &GuestRegion| (*r, file.try_clone().unwrap());
        GuestMemory::map(&regions.iter().map(with).collect::<Vec<_>>())
    }

    #[test]
    fn translation_is_exact_at_every_edge() {
        let (page, user) = (4096, 0x7f00_0000_0000);
        // Two regions next to each other in the guest, apart in the file; the second begins
        // inside a page of the file.
        let first = region(page, page, user, 0);
        let second = region(2 * page, 2 * page, user + 8 * page, 3 * page + 512);
        let memory = map(&[first, second], 6 * page).unwrap();
        for (address, len, want) in [
            (page, 1, Some(1)),
            (page - 1, 1, None),
            (page, 0, None),
            (page, 4096, Some(4096)),
            (page, 4097, Some(4096)),
            (2 * page - 1, 2, Some(1)),
            (2 * page, u32::MAX, Some(8192)),
            (4 * page - 1, 9, Some(1)),
            (4 * page, 1, None),
            (u64::MAX, 1, None),
        ] {
            let got = memory.segment(address, len).map(|segment| segment.len());
            assert_eq!(got, want, "{address:#x} + {len}");
        }
        assert!(memory.segment(2 * page, 4).unwrap().copy_from(0, b"edge"));
        assert!(memory.segment(2 * page - 1, 1).unwrap().copy_from(0, b"<"));
        let mut out = [0; 5];
        assert!(memory.read(2 * page - 1, &mut out));
        assert_eq!(&out, b"<edge");
        assert!(!memory.read(4 * page - 1, &mut out));
        let window = memory.window("test", user + 8 * page, 4, 2).unwrap();
        assert_eq!(window.load_u16(0, Ordering::Relaxed), u16::from_le_bytes(*b"ed"));
    }

    #[test]
    fn windows_are_checked() {
        let user = 0x10_0000;
        let memory = map(&[region(0, 8192, user, 0)], 8192).unwrap();
        assert!(memory.window("ring", user, 8192, 16).is_ok());
        for (address, bytes, align) in
            [(user, 8193, 2), (user + 1, 16, 2), (user - 1, 16, 1), (u64::MAX, 2, 1), (0, 16, 16)]
        {
            assert!(memory.window("ring", address, bytes, align).is_err(), "{address:#x}");
        }
    }

    #[test]
    fn impossible_tables_are_refused() {
        let ok = region(0, 4096, 0x10000, 0);
        let cases = [
            (vec![], "describes 0"),
            (vec![region(0, 0, 0, 0)], "empty"),
            (vec![region(u64::MAX - 4095, 8192, 0, 0)], "guest addresses wrap"),
            (vec![region(0, 8192, u64::MAX - 4095, 0)], "front-end addresses wrap"),
            (vec![region(0, 8192, 0, u64::MAX - 4095)], "file range wraps"),
            (vec![ok, region(4095, 4096, 0x90000, 0)], "guest addresses overlap"),
            (vec![ok, region(8192, 4096, 0x10fff, 0)], "front-end addresses overlap"),
            (vec![region(0, 4096, 0x10000, 8192)], "file of 8192 bytes"),
            (vec![ok; MAX_REGIONS + 1], "describes 33"),
        ];
        for (regions, want) in cases {
            let error = map(&regions, 8192).expect_err(want).to_string();
            assert!(error.contains(want), "{error}");
        }
        let many: Vec<_> =
            (0..MAX_REGIONS as u64).map(|i| region(i * 4096, 4096, i * 8192, 0)).collect();
        assert_eq!(map(&many, 8192).unwrap().regions().count(), MAX_REGIONS);
    }

    #[test]
    fn only_memory_is_mapped() {
        let file = File::open("/proc/self/exe").unwrap();
        let error = GuestMemory::map(&[(region(0, 4096, 0, 0), file)]).unwrap_err();
        assert!(matches!(error, GuestError::NotMemory { index: 0, .. }), "{error}");
    }

    #[test]
    fn a_held_mapping_outlives_its_owner() {
        let (memory, _, _) = GuestMemory::share(4096, 0, 0x1000).unwrap();
        let segment = memory.segment(0, 4).unwrap();
        memory.hold();
        assert_eq!(memory.holds(), 1);
        drop(memory);
        assert!(segment.copy_from(0, b"late"), "an I/O that ends late still finds its memory");
        let mut out = [0; 4];
        assert!(segment.copy_to(0, &mut out));
        assert_eq!(&out, b"late");
    }

    #[test]
    fn truncated_memory_reads_as_zeros_and_is_told() {
        let (memory, _, file) = GuestMemory::share(8192, 0, 0x1000).unwrap();
        let segment = memory.segment(4096, 4).unwrap();
        assert!(segment.copy_from(0, b"data"));
        assert!(!memory.is_torn());
        file.set_len(4096).unwrap();
        let mut out = [1; 4];
        assert!(segment.copy_to(0, &mut out), "the access survives");
        assert_eq!(out, [0; 4]);
        assert!(memory.is_torn());
        let (other, _, _) = GuestMemory::share(4096, 0, 0x1000).unwrap();
        assert!(!other.is_torn(), "only the guest that did it is concerned");
    }
}
