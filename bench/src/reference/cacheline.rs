//! Cache-line round trip between two cores: the unit in which the machine's mood is told.
//!
//! One thread writes a number, the other answers with the same number in another line. On a
//! shared host the trip moves between two levels within minutes; every two-core figure stands
//! beside it.

use crate::machine::{cores, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const TRIPS_PER_BATCH: u64 = 400;
const BATCHES: usize = 25;
/// A machine whose other core is taken by others must not hold the calibration up.
const LIMIT: Duration = Duration::from_millis(500);

#[derive(Default)]
#[repr(align(128))]
struct Line(AtomicU64);

/// Median over batches of the mean round trip in nanoseconds, between the first two cores that
/// this thread may use; `None` with one core, or when the other core was not to be had.
pub fn round_trip_ns() -> Option<f64> {
    let cores = cores();
    let (near, far) = (*cores.first()?, *cores.get(1)?);
    let (ping, pong, stop) = (Line::default(), Line::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| answer(far, &ping, &pong, &stop));
        let asked = scope.spawn(|| ask(near, &ping, &pong, &stop));
        asked.join().ok().flatten()
    })
}

fn answer(core: usize, ping: &Line, pong: &Line, stop: &AtomicBool) {
    let Ok(_pinned) = pin(core) else { return };
    let mut last = 0;
    while !stop.load(Ordering::Relaxed) {
        let value = ping.0.load(Ordering::Acquire);
        if value != last {
            pong.0.store(value, Ordering::Release);
            last = value;
        }
        std::hint::spin_loop();
    }
}

fn ask(core: usize, ping: &Line, pong: &Line, stop: &AtomicBool) -> Option<f64> {
    let began = Instant::now();
    let mut batches = Vec::with_capacity(BATCHES);
    let mut value = 0;
    if let Ok(_pinned) = pin(core) {
        'batches: for _ in 0..BATCHES {
            let batch = Instant::now();
            for _ in 0..TRIPS_PER_BATCH {
                value += 1;
                ping.0.store(value, Ordering::Release);
                let mut spins = 0u32;
                while pong.0.load(Ordering::Acquire) != value {
                    std::hint::spin_loop();
                    spins += 1;
                    if spins.is_multiple_of(4096) && began.elapsed() > LIMIT {
                        break 'batches;
                    }
                }
            }
            batches.push(batch.elapsed().as_nanos() as f64 / TRIPS_PER_BATCH as f64);
        }
    }
    stop.store(true, Ordering::Relaxed);
    batches.sort_by(f64::total_cmp);
    batches.get(batches.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trip_takes_some_time_on_two_cores() {
        // None: one core, or the other core was not to be had.
        let trip = round_trip_ns();
        assert!(trip.is_none_or(|trip_ns| trip_ns > 1.0), "{trip:?}");
        assert!(trip.is_none() || cores().len() > 1);
    }
}
