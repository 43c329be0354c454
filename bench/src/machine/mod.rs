//! The machine under the measurement: what it is, who uses which core, how threads are placed.

pub mod census;
pub mod fingerprint;
pub mod netns;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The thread cannot run where it should.
#[derive(Debug, thiserror::Error)]
#[error("cannot pin a thread to core {core}: {source}; this process may use cores {allowed:?}")]
pub struct PinError {
    core: usize,
    allowed: Vec<usize>,
    source: std::io::Error,
}

/// The calling thread runs on one core; it may use its earlier ones again when this is dropped.
#[must_use = "dropping it undoes the pinning"]
pub struct Pinned {
    before: CpuSet,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // These cores were allowed when they were read.
        let _ = sched_setaffinity(None, &self.before);
    }
}

/// Pins the calling thread to `core`.
pub fn pin(core: usize) -> Result<Pinned, PinError> {
    let fail = |source| PinError { core, allowed: cores().to_vec(), source };
    if core >= CpuSet::MAX_CPU {
        return Err(fail(std::io::ErrorKind::InvalidInput.into()));
    }
    let before = sched_getaffinity(None).map_err(|errno| fail(errno.into()))?;
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).map_err(|errno| fail(errno.into()))?;
    Ok(Pinned { before })
}

/// Cores that this process may use, in order: those at its start, whatever was pinned since.
pub fn cores() -> &'static [usize] {
    static CORES: OnceLock<Vec<usize>> = OnceLock::new();
    CORES.get_or_init(allowed)
}

fn allowed() -> Vec<usize> {
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
    fn pinning_lasts_as_long_as_its_guard() {
        std::thread::spawn(|| {
            let all = cores();
            for &core in all {
                let pinned = pin(core).unwrap();
                assert_eq!(allowed(), [core]);
                assert_eq!(cores(), all, "what others may use stays known");
                drop(pinned);
                assert_eq!(allowed(), all);
            }
            let error = pin(CpuSet::MAX_CPU).map(drop).unwrap_err().to_string();
            assert!(error.contains("may use cores"), "{error}");
        })
        .join()
        .unwrap();
    }
}
