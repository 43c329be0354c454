//! The only file that reads the clock. Time is nanoseconds since an arbitrary start, passed down
//! as `now_ns`, so that every engine also runs under a virtual clock.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of the monotonic clock (CLOCK_MONOTONIC, not stepped by NTP).
#[inline(always)]
pub fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
