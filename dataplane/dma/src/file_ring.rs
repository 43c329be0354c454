//! io_uring for one file or block device: queue reads, writes and syncs by slot number, tell the
//! kernel about all of them with one system call, take outcomes as they come.
//!
//! A slot is a number below the depth; between `queue_*` and the outcome from `next` it belongs to
//! the kernel, and so do its list of addresses, its bounce buffer and the segments' memory.
//! Dropping the ring waits for the kernel to let go of them. Source: `man 7 io_uring`,
//! `man 2 io_uring_setup`, `man 2 io_uring_enter`.

use crate::{MAX_SEGMENTS, Pages, Segment};
use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use std::fs::File;
use std::io::Result;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

/// Size of a slot's bounce buffer.
pub const BOUNCE_BYTES: usize = 128 << 10;

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the file into memory.
    Read,
    /// From memory to the file.
    Write,
}

/// The list of addresses of one vectored I/O; it stays in place until the I/O has ended.
#[derive(Debug)]
struct Slot {
    iovecs: [libc::iovec; MAX_SEGMENTS],
    busy: bool,
}

/// One file and its io_uring. One thread queues and submits: the first that submits.
pub struct FileRing {
    ring: IoUring,
    /// Whether the ring was enabled, which binds it to the enabling thread.
    enabled: bool,
    slots: Box<[Slot]>,
    bounce: Pages,
    /// Queued and not yet told to the kernel.
    queued: u32,
    /// Told to the kernel and not yet ended.
    in_kernel: u32,
    /// Closed after the ring.
    file: File,
}

// SAFETY: the raw addresses in `slots` are written by `queue_*` and read by the kernel alone.
unsafe impl Send for FileRing {}

impl FileRing {
    /// A ring of `depth` slots (at most 4 096) on `file`.
    pub fn new(file: File, depth: usize) -> Result<FileRing> {
        assert!((1..=4096).contains(&depth));
        let ring = build(depth as u32)?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        restrict(&ring)?;
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let slots = (0..depth).map(|_| Slot { iovecs: [none; MAX_SEGMENTS], busy: false });
        Ok(FileRing {
            ring,
            enabled: false,
            slots: slots.collect(),
            bounce: Pages::new(depth * BOUNCE_BYTES, false)?,
            queued: 0,
            in_kernel: 0,
            file,
        })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// A descriptor that is readable while `next` has something, or may after `submit`.
    pub fn wake_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// A slot's own page-aligned buffer of [`BOUNCE_BYTES`].
    ///
    /// # Panics
    /// While the slot is in flight.
    pub fn bounce(&mut self, slot: usize) -> &mut [u8] {
        assert!(!self.slots[slot].busy, "the kernel has the slot's buffer");
        &mut self.bounce[slot * BOUNCE_BYTES..][..BOUNCE_BYTES]
    }

    /// Queues a transfer between the file at `offset` and the segments behind their first `skip`
    /// bytes.
    ///
    /// # Panics
    /// When the slot is in flight, or there are more than [`MAX_SEGMENTS`] segments.
    pub fn queue_segments(
        &mut self,
        slot: usize,
        direction: Direction,
        segments: &[Segment],
        skip: usize,
        offset: u64,
    ) {
        assert!(segments.len() <= MAX_SEGMENTS);
        assert!(!self.slots[slot].busy, "the kernel has the slot's addresses");
        let iovecs = &mut self.slots[slot].iovecs;
        let (mut count, mut skip) = (0, skip);
        for segment in segments {
            let passed = skip.min(segment.len());
            skip -= passed;
            if let Some(rest) = segment.part(passed, segment.len() - passed)
                && !rest.is_empty()
            {
                iovecs[count] =
                    libc::iovec { iov_base: rest.address().cast(), iov_len: rest.len() };
                count += 1;
            }
        }
        let (list, first, count) = (iovecs.as_ptr(), iovecs[0], count as u32);
        let entry = match (direction, count) {
            // One address needs no list, which the kernel would have to copy.
            (_, 1) => single(direction, first, offset),
            (Direction::Read, _) => opcode::Readv::new(FILE, list, count).offset(offset).build(),
            (Direction::Write, _) => opcode::Writev::new(FILE, list, count).offset(offset).build(),
        };
        // SAFETY: the list lies in the boxed slot, which stays as it is while the slot is busy;
        // its addresses are parts of segments, whose makers keep them mapped until the I/O has
        // ended; Drop waits for that.
        unsafe { self.push(slot, entry) };
    }

    /// Queues a transfer between the file at `offset` and the first `len` bytes of the slot's
    /// bounce buffer.
    ///
    /// # Panics
    /// When the slot is in flight, or `len` is larger than the buffer.
    pub fn queue_bounce(&mut self, slot: usize, direction: Direction, len: usize, offset: u64) {
        let buffer = &mut self.bounce(slot)[..len];
        let place = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: len };
        let entry = single(direction, place, offset);
        // SAFETY: the buffer is the slot's part of a mapping that lives as long as the ring;
        // `bounce` refuses it to everybody while the slot is busy; Drop waits.
        unsafe { self.push(slot, entry) };
    }

    /// Queues an fdatasync: it covers every write whose outcome was taken before.
    ///
    /// # Panics
    /// When the slot is in flight.
    pub fn queue_sync(&mut self, slot: usize) {
        assert!(!self.slots[slot].busy);
        let entry = opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build();
        // SAFETY: an fsync touches no memory of ours.
        unsafe { self.push(slot, entry) };
    }

    /// Queues the release of the space of `[offset, offset + bytes)`, which reads as zeros then;
    /// the file keeps its length. A block device discards (`man 2 fallocate`, PUNCH_HOLE).
    ///
    /// # Panics
    /// When the slot is in flight.
    pub fn queue_release(&mut self, slot: usize, offset: u64, bytes: u64) {
        self.queue_allocate(slot, libc::FALLOC_FL_PUNCH_HOLE, offset, bytes);
    }

    /// Queues that `[offset, offset + bytes)` reads as zeros and keeps its space (`man 2
    /// fallocate`, ZERO_RANGE).
    ///
    /// # Panics
    /// When the slot is in flight.
    pub fn queue_zero(&mut self, slot: usize, offset: u64, bytes: u64) {
        self.queue_allocate(slot, libc::FALLOC_FL_ZERO_RANGE, offset, bytes);
    }

    fn queue_allocate(&mut self, slot: usize, how: i32, offset: u64, bytes: u64) {
        assert!(!self.slots[slot].busy);
        let mode = how | libc::FALLOC_FL_KEEP_SIZE;
        let entry = opcode::Fallocate::new(FILE, bytes).offset(offset).mode(mode).build();
        // SAFETY: a fallocate touches no memory of ours.
        unsafe { self.push(slot, entry) };
    }

    /// # Safety
    /// Every address in `entry` stays valid until the slot's outcome was taken.
    unsafe fn push(&mut self, slot: usize, entry: squeue::Entry) {
        // SAFETY: the caller's promise.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(slot as u64)) };
        assert!(pushed.is_ok(), "the queue has room for every slot");
        self.slots[slot].busy = true;
        self.queued += 1;
    }

    /// Tells the kernel about everything queued, or lets it finish what it completed: at most one
    /// system call, none when there is nothing to tell. What it does not take now (EAGAIN, EBUSY)
    /// stays queued for the next call.
    pub fn submit(&mut self) -> Result<()> {
        if self.queued == 0 && !self.ring.submission().taskrun() {
            return Ok(());
        }
        if !self.enabled {
            self.ring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        match self.ring.submit() {
            Ok(taken) => {
                self.queued -= taken as u32;
                self.in_kernel += taken as u32;
                Ok(())
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EBUSY | libc::EINTR | libc::ENOMEM) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Takes one outcome: the slot, and bytes moved or a negated errno.
    #[inline]
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<(usize, i32)> {
        let entry = self.ring.completion().next()?;
        let slot = entry.user_data() as usize;
        self.slots[slot].busy = false;
        self.in_kernel -= 1;
        Some((slot, entry.result()))
    }
}

impl Drop for FileRing {
    /// Waits until the kernel has let go of every address it was told, then lets go of the file.
    fn drop(&mut self) {
        const GET_EVENTS: u32 = 1;
        loop {
            while self.next().is_some() {}
            if self.in_kernel == 0 {
                break;
            }
            // SAFETY: submits nothing (what is only queued is forgotten with the ring) and passes
            // no argument; waits for one outcome.
            let waited = unsafe { self.ring.submitter().enter::<()>(0, 1, GET_EVENTS, None) };
            if waited.is_err() {
                // A signal, or another thread than the ring's: outcomes come nevertheless.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        // The kernel takes rings apart in the background. Without this the file, its lock and the
        // claim on a device would outlive us for a while. On another thread than the ring's it
        // is refused, and only the lock goes at once.
        let _ = self.ring.submitter().unregister_files();
        // SAFETY: plain system call on an owned descriptor; without a lock it does nothing.
        unsafe { libc::flock(self.file.as_raw_fd(), libc::LOCK_UN) };
    }
}

impl std::fmt::Debug for FileRing {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (file, queued, in_kernel) = (&self.file, self.queued, self.in_kernel);
        write!(out, "FileRing {{ file: {file:?}, queued: {queued}, in_kernel: {in_kernel} }}")
    }
}

/// The registered file.
const FILE: types::Fixed = types::Fixed(0);

/// A transfer at one address.
fn single(direction: Direction, place: libc::iovec, offset: u64) -> squeue::Entry {
    let (start, len) = (place.iov_base.cast::<u8>(), place.iov_len as u32);
    match direction {
        Direction::Read => opcode::Read::new(FILE, start, len).offset(offset).build(),
        Direction::Write => opcode::Write::new(FILE, start, len).offset(offset).build(),
    }
}

/// The ring, not enabled yet: with SINGLE_ISSUER the thread that enables it owns it, which is a
/// worker and not the one that opens files.
/// IORING_UNREGISTER_FILES of linux/io_uring.h, which the crate does not give by name.
const UNREGISTER_FILES: u8 = 3;

/// Leaves the ring with what this file does, on the registered file: a ring is otherwise a way
/// around a list of system calls, for it opens and connects too (`man 2 io_uring_register`).
fn restrict(ring: &IoUring) -> Result<()> {
    let operations = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
    ];
    let flags = squeue::Flags::FIXED_FILE.bits();
    let mut restrictions: Vec<_> = operations.map(Restriction::sqe_op).into();
    restrictions.push(Restriction::sqe_flags_required(flags));
    restrictions.push(Restriction::sqe_flags_allowed(flags));
    restrictions.push(Restriction::register_op(UNREGISTER_FILES));
    ring.submitter().register_restrictions(&mut restrictions)
}

fn build(depth: u32) -> Result<IoUring> {
    let modern = IoUring::builder()
        .setup_single_issuer() // Linux 6.0
        .setup_coop_taskrun() // Linux 5.19: no interrupt of the worker to finish an I/O ...
        .setup_taskrun_flag() // ... it looks at a flag instead
        .setup_r_disabled()
        .dontfork()
        .build(depth);
    match modern {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            IoUring::builder().setup_r_disabled().dontfork().build(depth)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_does_nothing_but_its_work_on_its_own_file() {
        let mut ring = FileRing::new(File::open("/dev/zero").unwrap(), 4).unwrap();
        let path = c"/dev/null";
        let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build();
        let other = opcode::Fsync::new(types::Fd(0)).build();
        for (slot, entry) in [open, other].into_iter().enumerate() {
            // SAFETY: the path is a constant.
            unsafe { ring.push(slot, entry) };
            ring.submit().unwrap();
            assert_eq!(ring.next(), Some((slot, -libc::EACCES)));
        }
        ring.queue_bounce(2, Direction::Read, 512, 0);
        ring.submit().unwrap();
        assert_eq!(ring.next(), Some((2, 512)));
        ring.ring.submitter().unregister_files().unwrap();
    }
}
