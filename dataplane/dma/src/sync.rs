//! What this package shares with other threads and with the kernel, from the standard library.
//!
//! `dataplane/order` compiles the files that name this module once more, against loom's atomics.

use std::cell::UnsafeCell;
pub use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

/// One entry of a ring in shared memory; whose turn it is with it, the ring's cursors say.
#[derive(Debug)]
#[repr(transparent)]
pub struct Slot<T>(UnsafeCell<T>);

impl<T: Copy> Slot<T> {
    /// # Safety
    /// Nobody else reads or writes the entry meanwhile.
    #[inline(always)]
    pub unsafe fn write(&self, value: T) {
        // SAFETY: the caller's promise.
        unsafe { self.0.get().write(value) };
    }

    /// # Safety
    /// The entry was written, and nobody else writes it meanwhile.
    #[inline(always)]
    pub unsafe fn read(&self) -> T {
        // SAFETY: the caller's promise.
        unsafe { self.0.get().read() }
    }
}
