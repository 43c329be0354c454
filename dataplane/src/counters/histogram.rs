//! How long things took, in fixed log-linear buckets: eight per power of two, so that a quantile is
//! at most an eighth too high. One writer, plain stores, no allocation.

use super::Counter;

/// Buckets per power of two.
const STEPS: usize = 8;
/// Below 2^10 ns (about 1 µs) buckets are 128 ns wide.
const FIRST_POWER: u32 = 10;
/// From 2^36 ns (about 69 s) on there is one bucket.
const LAST_POWER: u32 = 36;
const BUCKETS: usize = STEPS * (LAST_POWER - FIRST_POWER + 1) as usize + 1;

/// A histogram of durations.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
    sum_ns: Counter,
    max_ns: Counter,
}

impl Default for Histogram {
    fn default() -> Histogram {
        let buckets = std::array::from_fn(|_| Counter::default());
        Histogram { buckets, sum_ns: Counter::default(), max_ns: Counter::default() }
    }
}

impl Histogram {
    /// Counts one duration.
    #[inline]
    pub fn record(&self, ns: u64) {
        self.buckets[index(ns)].add(1);
        self.sum_ns.add(ns);
        if ns > self.max_ns.get() {
            self.max_ns.set(ns);
        }
    }

    /// The buckets in order: their upper bounds, inclusive ([`u64::MAX`] of the last), and counts.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.buckets.iter().enumerate().map(|(index, count)| (upper_ns(index), count.get()))
    }

    /// The sum of all durations.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns.get()
    }

    /// The longest.
    pub fn max_ns(&self) -> u64 {
        self.max_ns.get()
    }
}

/// The bucket of a duration. Upper bounds belong to their buckets.
#[inline]
fn index(ns: u64) -> usize {
    let below = ns.saturating_sub(1);
    let power = below.checked_ilog2().unwrap_or(0);
    if power >= LAST_POWER {
        BUCKETS - 1
    } else if power < FIRST_POWER {
        (below >> (FIRST_POWER - 3)) as usize
    } else {
        let step = (below >> (power - 3)) as usize % STEPS;
        STEPS * (power - FIRST_POWER + 1) as usize + step
    }
}

fn upper_ns(index: usize) -> u64 {
    let (row, step) = (index / STEPS, (index % STEPS) as u64);
    match row {
        _ if index == BUCKETS - 1 => u64::MAX,
        0 => (step + 1) << (FIRST_POWER - 3),
        row => (STEPS as u64 + step + 1) << (FIRST_POWER + row as u32 - 1 - 3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_is_in_the_bucket_that_bounds_it() {
        for at in 0..BUCKETS - 1 {
            assert_eq!((index(upper_ns(at)), index(upper_ns(at) + 1)), (at, at + 1));
        }
        assert_eq!((index(0), index(1), index(u64::MAX)), (0, 0, BUCKETS - 1));
        bolero::check!().with_type::<u64>().for_each(|ns| {
            let at = index(*ns);
            assert!(*ns <= upper_ns(at) && (at == 0 || *ns > upper_ns(at - 1)), "{ns} in {at}");
            // An eighth too high at most, from where buckets grow.
            if *ns > 1 << FIRST_POWER && at < BUCKETS - 1 {
                assert!(upper_ns(at) - ns <= ns / 8);
            }
        });
    }

    #[test]
    fn powers_of_two_are_bounds() {
        for power in FIRST_POWER..=LAST_POWER {
            assert_eq!(upper_ns(index(1 << power)), 1 << power);
        }
    }

    #[test]
    fn what_was_recorded_is_there() {
        let histogram = Histogram::default();
        [5, 1_000, 1_000_000, u64::from(u32::MAX)].into_iter().for_each(|ns| histogram.record(ns));
        assert_eq!(histogram.buckets().map(|(_, count)| count).sum::<u64>(), 4);
        assert_eq!(histogram.sum_ns(), 1_001_005 + u64::from(u32::MAX));
        assert_eq!(histogram.max_ns(), u64::from(u32::MAX));
    }
}
