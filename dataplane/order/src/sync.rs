//! What the files share with other threads, from loom: as `dataplane/dma/src/sync.rs`, watched.

use loom::cell::UnsafeCell;
pub use loom::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering, fence};

/// One entry of a ring: loom ends a run in which two threads are at it without an order.
#[derive(Debug)]
pub struct Slot<T>(UnsafeCell<T>);

// SAFETY: loom runs its threads one at a time and checks every access.
unsafe impl<T: Copy> Sync for Slot<T> {}

impl<T: Copy> Slot<T> {
    /// With a first value.
    pub fn new(value: T) -> Slot<T> {
        Slot(UnsafeCell::new(value))
    }

    /// # Safety
    /// None: loom checks that nobody else is at the entry.
    pub unsafe fn write(&self, value: T) {
        // SAFETY: loom has checked that nobody else is at the entry.
        self.0.with_mut(|entry| unsafe { entry.write(value) });
    }

    /// # Safety
    /// None: loom checks that nobody writes the entry.
    pub unsafe fn read(&self) -> T {
        // SAFETY: made with a value; loom has checked that nobody writes the entry.
        self.0.with(|entry| unsafe { entry.read() })
    }
}
