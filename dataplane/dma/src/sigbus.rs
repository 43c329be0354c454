//! What happens when a front end truncates the file that it shared: the next access raises
//! SIGBUS, and this handler puts zero pages in the mapping's place and marks it torn, so that one
//! guest ends its own device and nothing else.
//!
//! Everything in the handler is async-signal-safe: atomics, `mmap`, `sigaction`.

use std::ptr::NonNull;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Mappings that can be watched at a time; guest memory beyond is refused.
const MAX_WATCHES: usize = 4096;

/// One watched mapping; free while `start` is 0.
struct Slot {
    start: AtomicUsize,
    bytes: AtomicUsize,
    torn: AtomicBool,
}

static SLOTS: [Slot; MAX_WATCHES] = [const {
    Slot { start: AtomicUsize::new(0), bytes: AtomicUsize::new(0), torn: AtomicBool::new(false) }
}; MAX_WATCHES];

/// Being made: not free, not yet to be found by the handler.
const RESERVED: usize = 1;

/// Watches one mapping until dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    slot: usize,
}

impl Watch {
    /// Watches `[start, start + bytes)`; `None` when the table is full.
    pub(crate) fn new(start: NonNull<u8>, bytes: usize) -> Option<Watch> {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(install);
        let slot = SLOTS.iter().position(|slot| {
            let taken =
                slot.start.compare_exchange(0, RESERVED, Ordering::AcqRel, Ordering::Relaxed);
            taken.is_ok()
        })?;
        SLOTS[slot].torn.store(false, Ordering::Relaxed);
        SLOTS[slot].bytes.store(bytes, Ordering::Release);
        SLOTS[slot].start.store(start.as_ptr() as usize, Ordering::Release);
        Some(Watch { slot })
    }

    /// Whether pages of the mapping were taken away.
    #[inline(always)]
    pub(crate) fn is_torn(&self) -> bool {
        SLOTS[self.slot].torn.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        SLOTS[self.slot].bytes.store(0, Ordering::Relaxed);
        SLOTS[self.slot].start.store(0, Ordering::Release);
    }
}

fn install() {
    // SAFETY: sigaction is plain data for which zero is valid; the handler has the signature that
    // SA_SIGINFO asks for and only does what is allowed in a handler.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}

extern "C" fn on_sigbus(_: libc::c_int, about: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let address = unsafe { (*about).si_addr() } as usize;
    for slot in &SLOTS {
        let start = slot.start.load(Ordering::Acquire);
        let bytes = slot.bytes.load(Ordering::Acquire);
        // Read again: a slot that changed hands between the two reads would pair the start of one
        // mapping with the length of another.
        let is_one_mapping = slot.start.load(Ordering::Acquire) == start;
        if start <= RESERVED || !is_one_mapping || address.wrapping_sub(start) >= bytes {
            continue;
        }
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: replaces exactly a mapping that this process owns; whoever uses it tolerates
        // any content.
        let placed = unsafe { libc::mmap(start as *mut libc::c_void, bytes, prot, flags, -1, 0) };
        if placed != libc::MAP_FAILED {
            slot.torn.store(true, Ordering::Relaxed);
            return;
        }
    }
    // Not ours: the default action takes place when the access is tried again.
    // SAFETY: as in install; SIG_DFL is a valid action.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}
