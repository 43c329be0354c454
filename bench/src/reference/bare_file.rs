//! A local file or block device through io_uring: one ring, one buffer per slot, polled.
//!
//! The ring is drained before the buffers go.
#![allow(unsafe_code)]

use crate::drivers::block::{BlockTarget, Op};
use io_uring::{IoUring, opcode, types};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// Alignment of the buffers: what O_DIRECT asks for on any device.
const ALIGN: usize = 4096;

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; ALIGN]);

/// A file with a ring and buffers.
pub struct BareFile {
    ring: IoUring,
    file: File,
    size_bytes: u64,
    buffers: NonNull<Page>,
    pages: usize,
    pages_per_slot: usize,
    in_flight: u32,
}

impl BareFile {
    /// Takes `depth` I/Os of up to `io_bytes` at a time.
    pub fn new(file: File, size_bytes: u64, depth: u16, io_bytes: u32) -> io::Result<BareFile> {
        let ring =
            IoUring::builder().setup_single_issuer().build(u32::from(depth).next_power_of_two())?;
        let pages_per_slot = (io_bytes as usize).div_ceil(ALIGN).max(1);
        let pages = pages_per_slot * usize::from(depth);
        let buffers = Box::leak(vec![Page([0; ALIGN]); pages].into_boxed_slice());
        let buffers = NonNull::from(buffers).cast();
        Ok(BareFile { ring, file, size_bytes, buffers, pages, pages_per_slot, in_flight: 0 })
    }

    /// Address of the slot's buffer at `at`, with `len` bytes behind it.
    fn place(&self, slot: u16, at: usize, len: usize) -> *mut u8 {
        let slot = usize::from(slot);
        assert!((slot + 1) * self.pages_per_slot <= self.pages);
        assert!(at + len <= self.pages_per_slot * ALIGN);
        // SAFETY: inside the buffers, by the two checks above.
        unsafe { self.buffers.as_ptr().add(slot * self.pages_per_slot).cast::<u8>().add(at) }
    }
}

impl BlockTarget for BareFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn block_bytes(&self) -> u32 {
        512
    }

    fn store(&mut self, slot: u16, at: usize, data: &[u8]) {
        let place = self.place(slot, at, data.len());
        // SAFETY: `place` has data.len() bytes; the slot has no I/O in flight, so the kernel does
        // not touch it, and `data` lies outside the buffers.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), place, data.len()) }
    }

    fn load(&self, slot: u16, at: usize, out: &mut [u8]) {
        let place = self.place(slot, at, out.len());
        // SAFETY: as in store, in the other direction.
        unsafe { std::ptr::copy_nonoverlapping(place, out.as_mut_ptr(), out.len()) }
    }

    fn submit(&mut self, slot: u16, op: Op, offset_bytes: u64, bytes: u32, _now_ns: u64) -> bool {
        let place = self.place(slot, 0, bytes as usize);
        let fd = types::Fd(self.file.as_raw_fd());
        let entry = match op {
            Op::Read => opcode::Read::new(fd, place, bytes).offset(offset_bytes).build(),
            Op::Write => opcode::Write::new(fd, place, bytes).offset(offset_bytes).build(),
        };
        let entry = entry.user_data(u64::from(bytes) << 16 | u64::from(slot));
        // SAFETY: the buffer lives until the ring is drained (Drop), the file as long as self.
        let pushed = unsafe { self.ring.submission().push(&entry) }.is_ok();
        self.in_flight += u32::from(pushed);
        pushed
    }

    fn kick(&mut self) {
        // What is not taken now stays in the ring and is submitted by the next call.
        let _ = self.ring.submit();
    }

    fn reap(&mut self, _now_ns: u64, ended: &mut Vec<(u16, bool)>) {
        for completion in self.ring.completion() {
            let (slot, bytes) = (completion.user_data() as u16, completion.user_data() >> 16);
            ended.push((slot, u64::try_from(completion.result()) == Ok(bytes)));
            self.in_flight -= 1;
        }
    }
}

impl Drop for BareFile {
    fn drop(&mut self) {
        let mut ended = Vec::new();
        while self.in_flight > 0 {
            if self.ring.submit_and_wait(1).is_err() {
                // The kernel may still write into the buffers: leave them.
                return;
            }
            self.reap(0, &mut ended);
        }
        let pages = std::ptr::slice_from_raw_parts_mut(self.buffers.as_ptr(), self.pages);
        // SAFETY: leaked in new with this length; nothing is in flight any more.
        drop(unsafe { Box::from_raw(pages) });
    }
}
