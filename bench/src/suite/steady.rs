//! Runs that count: repeated while the machine changes under them or a reference is void.

use crate::error::Error;
use crate::reference::cacheline;
use crate::stop;

/// A run is repeated when the cache-line round trip changes by more than this factor.
const TRIP_CHANGE: f64 = 1.3;
/// How often a run is repeated at most.
const REPEATS: u32 = 3;

/// What a run gave, on a machine that was steady or is said not to be.
pub struct Steady<T> {
    /// The run's own outcome.
    pub outcome: T,
    /// Cache-line round trip before and after.
    pub trips: Option<[f64; 2]>,
    /// That the machine was not steady.
    pub remark: Option<String>,
}

/// Measures until the cache-line round trip before and after agree; the runs left out are logged.
/// What still is not steady after the last repeat is returned with a remark.
pub fn steady<T>(what: &str, run: impl FnMut() -> Result<T, Error>) -> Result<Steady<T>, Error> {
    steady_by(what, cacheline::round_trip_ns, run)
}

fn steady_by<T>(
    what: &str,
    mut trip_ns: impl FnMut() -> Option<f64>,
    mut run: impl FnMut() -> Result<T, Error>,
) -> Result<Steady<T>, Error> {
    let mut repeats = 0;
    loop {
        stop::check()?;
        let before = trip_ns();
        let outcome = run()?;
        let trips = before.zip(trip_ns()).map(|(before, after)| [before, after]);
        let Some([before, after]) = trips.filter(|[a, b]| a.max(*b) / a.min(*b) > TRIP_CHANGE)
        else {
            return Ok(Steady { outcome, trips, remark: None });
        };
        let change = format!("cache-line round trip went from {before:.0} to {after:.0} ns");
        if repeats == REPEATS {
            let remark = Some(format!("unsteady machine: {change}"));
            return Ok(Steady { outcome, trips, remark });
        }
        repeats += 1;
        eprintln!("  {what}: {change}; repeated ({repeats} of {REPEATS})");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(trips: &[f64]) -> (u32, Option<String>) {
        let mut trips = trips.iter().copied();
        let mut runs = 0;
        let outcome = steady_by(
            "a",
            || trips.next(),
            || {
                runs += 1;
                Ok(runs)
            },
        );
        let Steady { outcome, remark, .. } = outcome.unwrap();
        assert_eq!(outcome, runs);
        (runs, remark)
    }

    #[test]
    fn a_steady_run_is_taken_at_once() {
        assert_eq!(run(&[100.0, 130.0]), (1, None));
        assert_eq!(run(&[]), (1, None));
    }

    #[test]
    fn an_unsteady_run_is_repeated_three_times_at_most() {
        assert_eq!(run(&[100.0, 131.0, 100.0, 100.0]), (2, None));
        assert_eq!(run(&[131.0, 100.0, 100.0, 131.0, 90.0, 91.0]), (3, None));
        let (runs, remark) = run(&[100.0, 300.0, 100.0, 300.0, 100.0, 300.0, 100.0, 300.0]);
        assert_eq!(runs, 4);
        assert!(remark.unwrap().contains("100 to 300 ns"));
    }
}
