//! The only file that reads the clock. Time is nanoseconds since an arbitrary start, passed down
//! as `now_ns`, so that every engine also runs under a virtual clock.

/// Nanoseconds of the monotonic clock (CLOCK_MONOTONIC, not stepped by NTP).
#[inline(always)]
pub fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    #[allow(unsafe_code)]
    // SAFETY: `time` is a valid timespec to write to; CLOCK_MONOTONIC always exists.
    unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time);
    }
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
