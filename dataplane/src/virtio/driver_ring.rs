//! A split virtqueue, driver side (virtio 1.2, section 2.7): the other end of
//! [`Queue`](crate::virtio::queue::Queue), for driving any backend from this process.
//!
//! Descriptors are written by index: which of them are free is the caller's bookkeeping.

use crate::virtio::notify::Wish;
use crate::virtio::queue::QueueSetup;
use outboard_dma::{GuestError, GuestMemory, Window};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The chain goes on at the descriptor's `next`.
pub const DESC_NEXT: u16 = 1;
/// The device writes the buffer.
pub const DESC_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const DESC_INDIRECT: u16 = 4;
/// Length of a descriptor.
pub const DESC_BYTES: u64 = 16;

/// The driver's end of one queue.
#[derive(Debug)]
pub struct DriverRing {
    descriptors: Window,
    available: Window,
    used: Window,
    setup: QueueSetup,
    next_available: u16,
    published: u16,
    next_used: u16,
    seen_used: u16,
}

impl DriverRing {
    /// Bytes that a queue of `size` entries takes, a multiple of 4096.
    pub fn bytes(size: u16) -> u64 {
        let (_, used) = offsets(size);
        (used + 6 + u64::from(size) * 8).next_multiple_of(4096)
    }

    /// A queue at the front-end address `user_address`, page-aligned, in zeroed memory.
    pub fn new(
        memory: &Arc<GuestMemory>,
        size: u16,
        user_address: u64,
        event_idx: bool,
        indirect: bool,
    ) -> Result<DriverRing, GuestError> {
        let (available, used) = offsets(size);
        let setup = QueueSetup {
            size,
            descriptors: user_address,
            available: user_address + available,
            used: user_address + used,
            base: 0,
            event_idx,
            indirect,
        };
        let n = usize::from(size);
        Ok(DriverRing {
            descriptors: memory.window("descriptor table", setup.descriptors, n * 16, 16)?,
            available: memory.window("available ring", setup.available, 6 + n * 2, 2)?,
            used: memory.window("used ring", setup.used, 6 + n * 8, 4)?,
            setup,
            next_available: 0,
            published: 0,
            next_used: 0,
            seen_used: 0,
        })
    }

    /// What the device must be told.
    pub fn setup(&self) -> QueueSetup {
        self.setup
    }

    /// Writes descriptor `index`.
    #[inline]
    pub fn describe(&mut self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = usize::from(index) * 16;
        self.descriptors.store_u64(at, address, Ordering::Relaxed);
        self.descriptors.store_u64(at + 8, second_word(len, flags, next), Ordering::Relaxed);
    }

    /// Adds a chain to the available ring; the device sees it after [`publish`](Self::publish).
    #[inline]
    pub fn offer(&mut self, head: u16) {
        let entry = 4 + usize::from(self.next_available & (self.setup.size - 1)) * 2;
        self.available.store_u16(entry, head, Ordering::Relaxed);
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Shows the device everything offered since the last call and says whether it wants a kick.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.next_available == self.published {
            return false;
        }
        self.publish_index(self.next_available)
    }

    /// As [`publish`](Self::publish), with any index: what a driver that is out of its mind does.
    pub fn publish_index(&mut self, index: u16) -> bool {
        let before = self.published;
        self.available.store_u16(2, index, Ordering::Release);
        self.published = index;
        self.next_available = index;
        let kicks = Wish::of_device(self.setup.size, self.setup.event_idx);
        kicks.is_due(&self.used, Some(before), index)
    }

    /// The next chain that the device gave back: its head and the bytes written to it.
    #[inline]
    pub fn take(&mut self) -> Option<(u32, u32)> {
        if self.next_used == self.seen_used {
            self.seen_used = self.used.load_u16(2, Ordering::Acquire);
            if self.next_used == self.seen_used {
                return None;
            }
        }
        let entry = 4 + usize::from(self.next_used & (self.setup.size - 1)) * 8;
        let head = self.used.load_u32(entry, Ordering::Relaxed);
        let written = self.used.load_u32(entry + 4, Ordering::Relaxed);
        self.next_used = self.next_used.wrapping_add(1);
        Some((head, written))
    }

    /// The used ring's index, which a device that has lost its memory goes on from.
    pub fn used_index(&self) -> u16 {
        self.used.load_u16(2, Ordering::Acquire)
    }

    /// Asks the device to call, or not to; `true` when something came back meanwhile.
    pub fn want_calls(&mut self, wanted: bool) -> bool {
        let calls = Wish::of_driver(self.setup.size, self.setup.event_idx);
        match wanted {
            true => calls.ask(&self.available, self.next_used),
            false => calls.decline(&self.available, self.next_used),
        }
        self.used.load_u16(2, Ordering::Acquire) != self.next_used
    }
}

/// The second half of a descriptor as one little-endian word.
#[inline(always)]
pub fn second_word(len: u32, flags: u16, next: u16) -> u64 {
    u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48
}

/// Where the available and the used ring begin behind the descriptor table.
fn offsets(size: u16) -> (u64, u64) {
    let available = u64::from(size) * DESC_BYTES;
    (available, (available + 6 + u64::from(size) * 2).next_multiple_of(64))
}
