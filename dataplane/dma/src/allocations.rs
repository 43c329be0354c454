//! The system's allocator, counting: how a test proves that a turn does not allocate.
//!
//! `#[global_allocator] static ALLOCATOR: CountingAllocator = CountingAllocator;` in the test's
//! own binary. Counts are per thread, so that other threads of the test harness do not disturb.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    // Constant and without a destructor: using it neither allocates nor fails.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting per thread.
#[derive(Debug)]
pub struct CountingAllocator;

impl CountingAllocator {
    /// How often this thread has allocated or grown something so far; 0 for ever when this is not
    /// the binary's allocator.
    pub fn count() -> u64 {
        ALLOCATIONS.get()
    }

    fn add() {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    }
}

// SAFETY: every call goes unchanged to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for CountingAllocator {
    // SAFETY: the caller keeps the contract of GlobalAlloc::alloc, as System needs it.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CountingAllocator::add();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: the caller keeps the contract of GlobalAlloc::alloc_zeroed, as System needs it.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        CountingAllocator::add();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    // SAFETY: the caller keeps the contract of GlobalAlloc::realloc, as System needs it.
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        CountingAllocator::add();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, bytes) }
    }

    // SAFETY: the caller keeps the contract of GlobalAlloc::dealloc, as System needs it.
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
