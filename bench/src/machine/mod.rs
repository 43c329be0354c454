//! The machine under the measurement: what it is, who uses which core, how threads are placed.

pub mod census;
pub mod fingerprint;
pub mod netns;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::sync::atomic::{AtomicU32, Ordering};

/// The thread cannot run where it should.
#[derive(Debug, thiserror::Error)]
#[error("cannot pin a thread to core {core}: {source}; this process may use cores {allowed:?}")]
pub struct PinError {
    core: usize,
    allowed: Vec<usize>,
    source: std::io::Error,
}

/// Pins the calling thread to `core`.
pub fn pin(core: usize) -> Result<(), PinError> {
    let fail = |source| PinError { core, allowed: cores(), source };
    if core >= CpuSet::MAX_CPU {
        return Err(fail(std::io::ErrorKind::InvalidInput.into()));
    }
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).map_err(|errno| fail(errno.into()))
}

/// Cores that this thread may use, in order.
pub fn cores() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect()
}

/// The name of something that this process makes; no two are alike.
pub fn own_name(label: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("obb{}-{number}-{label}", std::process::id())
}

/// The two cores of a two-sided figure: the generator's and the other side's. On one core both are
/// the same, and the figure says so through its census.
pub fn core_pair() -> (usize, usize) {
    let cores = cores();
    let first = cores.first().copied().unwrap_or(0);
    (first, cores.get(1).copied().unwrap_or(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinning_moves_this_thread_or_says_why_not() {
        std::thread::spawn(|| {
            let (first, _) = core_pair();
            pin(first).unwrap();
            assert_eq!(cores(), [first]);
            let error = pin(CpuSet::MAX_CPU).unwrap_err().to_string();
            assert!(error.contains("may use cores"), "{error}");
        })
        .join()
        .unwrap();
    }
}
