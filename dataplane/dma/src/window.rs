//! A checked range of guest memory that holds a ring: every access is one atomic load or store.
//!
//! Little-endian, as virtio 1.2 section 2.4 asks of a driver that negotiated VERSION_1. Offsets
//! come from our own arithmetic over a size that was checked at start: one outside is our bug.

use crate::GuestMemory;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// A ring, or a part of one, in guest memory. It keeps that memory mapped.
#[derive(Clone, Debug)]
pub struct Window {
    start: NonNull<u8>,
    bytes: usize,
    _memory: Arc<GuestMemory>,
}

// SAFETY: every access is atomic, and the mapping lives as long as the Arc.
unsafe impl Send for Window {}

/// A load and a store of one integer type.
macro_rules! access {
    ($load:ident $store:ident $int:ident $atomic:ident) => {
        /// Loads a little-endian integer at `offset`.
        ///
        /// # Panics
        /// When it is outside or not aligned: offsets are our own arithmetic.
        #[inline(always)]
        pub fn $load(&self, offset: usize, order: Ordering) -> $int {
            let place = self.place(offset, size_of::<$int>());
            // SAFETY: inside the mapping and aligned (checked by place); the reference to the
            // atomic ends with this statement and atomics tolerate any other writer.
            $int::from_le(unsafe { $atomic::from_ptr(place.cast()) }.load(order))
        }

        /// Stores a little-endian integer at `offset`.
        ///
        /// # Panics
        /// As the load.
        #[inline(always)]
        pub fn $store(&self, offset: usize, value: $int, order: Ordering) {
            let place = self.place(offset, size_of::<$int>());
            // SAFETY: as in the load.
            unsafe { $atomic::from_ptr(place.cast()) }.store(value.to_le(), order);
        }
    };
}

impl Window {
    /// # Safety
    /// `[start, start + bytes)` lies in a mapping that `memory` owns.
    pub(crate) unsafe fn new(start: NonNull<u8>, bytes: usize, memory: Arc<GuestMemory>) -> Window {
        Window { start, bytes, _memory: memory }
    }

    access!(load_u16 store_u16 u16 AtomicU16);
    access!(load_u32 store_u32 u32 AtomicU32);
    access!(load_u64 store_u64 u64 AtomicU64);

    /// Asks the processor for what lies at `offset`, if it is inside.
    #[inline(always)]
    pub fn prefetch(&self, offset: usize) {
        if offset < self.bytes {
            // SAFETY: inside, just checked.
            crate::hint::line(unsafe { self.start.as_ptr().add(offset) });
        }
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    #[inline(always)]
    fn place(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset <= self.bytes && len <= self.bytes - offset, "outside of the ring");
        // SAFETY: inside, just checked.
        let place = unsafe { self.start.as_ptr().add(offset) };
        assert!((place as usize).is_multiple_of(len), "not aligned in the ring");
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_what_was_stored_and_nothing_outside() {
        let (memory, _, _) = GuestMemory::share(4096, 0, 0x8000).unwrap();
        let window = memory.window("test", 0x8010, 16, 16).unwrap();
        assert_eq!(window.bytes(), 16);
        window.store_u64(8, 0x1122_3344_5566_7788, Ordering::Relaxed);
        assert_eq!(window.load_u16(14, Ordering::Relaxed), 0x1122);
        assert_eq!(window.load_u32(8, Ordering::Relaxed), 0x5566_7788);
        drop(memory);
        assert_eq!(window.load_u64(8, Ordering::Acquire), 0x1122_3344_5566_7788);
        let outside = |offset| {
            let window = window.clone();
            std::panic::catch_unwind(move || window.load_u16(offset, Ordering::Relaxed)).is_err()
        };
        assert!(!outside(0) && !outside(14));
        assert!(outside(15) && outside(16) && outside(usize::MAX) && outside(1));
    }
}
