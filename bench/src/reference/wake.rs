//! What the kernel needs to wake a sleeping thread on another core: an eventfd written on one
//! core, a blocked read on the other, and a store that the first sees.

use crate::error::Error;
use crate::latency::Recorder;
use crate::machine::{core_pair, pin};
use crate::stop;
use outboard::clock::now_ns;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A wake-up that takes longer means that the other core is not to be had.
const STUCK_NS: u64 = 10_000_000_000;
/// What the sleeper is told in order to end; the count of wakes never comes near it.
const END: u64 = 1 << 40;

/// Latencies of `wakes` wake-ups, each after the sleeper has been idle for `idle`.
pub fn measure(wakes: u64, idle: Duration) -> Result<Recorder, Error> {
    let bell = eventfd(0, EventfdFlags::CLOEXEC)
        .map_err(|error| Error::system("cannot make an eventfd")(error.into()))?;
    let seen = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| sleeper(&bell, &seen));
        let outcome = ask(&bell, &seen, wakes, idle);
        // The sleeper ends whatever came of it.
        let _ = rustix::io::write(&bell, &END.to_ne_bytes());
        outcome
    })
}

fn sleeper(bell: &OwnedFd, seen: &AtomicU64) {
    let _pinned = pin(core_pair().1);
    let mut total = 0;
    loop {
        let mut word = [0; 8];
        match rustix::io::read(bell, &mut word) {
            Ok(_) => total += u64::from_ne_bytes(word),
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        }
        seen.store(total, Ordering::Release);
        if total >= END {
            return;
        }
    }
}

fn ask(bell: &OwnedFd, seen: &AtomicU64, wakes: u64, idle: Duration) -> Result<Recorder, Error> {
    let _pinned = pin(core_pair().0)?;
    let mut recorder = Recorder::default();
    for number in 1..=wakes {
        stop::check()?;
        let due_ns = now_ns() + idle.as_nanos() as u64;
        while now_ns() < due_ns {
            std::hint::spin_loop();
        }
        let began_ns = now_ns();
        rustix::io::write(bell, &1u64.to_ne_bytes())
            .map_err(|error| Error::system("cannot write an eventfd")(error.into()))?;
        while seen.load(Ordering::Acquire) < number {
            if now_ns() - began_ns > STUCK_NS {
                return Err(Error::Refused("a thread on the second core does not wake".into()));
            }
            std::hint::spin_loop();
        }
        recorder.record(now_ns() - began_ns);
    }
    Ok(recorder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wake_is_recorded() {
        assert_eq!(measure(20, Duration::from_millis(1)).unwrap().samples(), 20);
    }
}
