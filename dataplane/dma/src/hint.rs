//! Hints to the processor about memory that is needed soon: without effect on any result, and
//! harmless whatever the address.

/// What moves between memory and caches.
const LINE_BYTES: usize = 64;

/// Asks for the cache line at `value`.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    line(std::ptr::from_ref(value).cast());
}

/// Asks for the line at `at`, to be read.
#[inline(always)]
pub(crate) fn line(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: prefetching has no architectural effect whatever the address; SSE is part of x86-64.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above (Arm ARM, PRFM).
    unsafe {
        core::arch::asm!("prfm pldl1keep, [{0}]", in(reg) at, options(nostack, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

/// Asks for the line at `at`, to be written: no other core has it then.
#[inline(always)]
pub(crate) fn line_to_write(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as in `line`; processors without PREFETCHW (before 2014) do nothing for it.
    unsafe {
        core::arch::asm!("prefetchw [{0}]", in(reg) at, options(nostack, readonly));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("prfm pstl1keep, [{0}]", in(reg) at, options(nostack, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

/// Asks for a range that is longer than the innermost cache should be filled with.
#[inline]
pub(crate) fn range(bytes: &[u8]) {
    for at in (0..bytes.len()).step_by(LINE_BYTES) {
        let at = bytes[at..].as_ptr();
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as in `line`.
        unsafe {
            use core::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T1>(at.cast());
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as in `line`.
        unsafe {
            core::arch::asm!("prfm pldl2keep, [{0}]", in(reg) at, options(nostack, readonly));
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = at;
    }
}
