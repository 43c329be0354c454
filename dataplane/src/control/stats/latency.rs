//! Histograms in reports: `p50_ns` and the like are upper bounds of buckets, at most an eighth too
//! high. Times are measured on the clock of turns: from the turn that took a request to the turn
//! that saw its end, 0 when that was the same one.

use crate::counters::Histogram;
use serde::{Deserialize, Serialize};

/// How long operations of one class took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LatencyStats {
    /// `read`, `write`, `flush` or `other`; `command` on the way to a target.
    pub operation: String,
    /// How many.
    pub count: u64,
    /// All of them together.
    pub sum_ns: u64,
    /// Half of them were as fast as this.
    pub p50_ns: u64,
    /// 99 of 100 were as fast as this.
    pub p99_ns: u64,
    /// The slowest.
    pub max_ns: u64,
    /// The buckets that are not empty.
    pub buckets: Vec<Bucket>,
}

/// Those that took longer than the bound of the bucket before, and no longer than this one's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// The upper bound, inclusive; the last bucket has the largest number there is.
    pub le_ns: u64,
    /// How many.
    pub count: u64,
}

impl LatencyStats {
    /// What a histogram holds; `None` when that is nothing.
    pub fn of(operation: &str, histogram: &Histogram) -> Option<LatencyStats> {
        let buckets = histogram.buckets().filter(|(_, count)| *count > 0);
        let buckets: Vec<_> = buckets.map(|(le_ns, count)| Bucket { le_ns, count }).collect();
        let count = buckets.iter().map(|bucket| bucket.count).sum();
        let mut stats = LatencyStats {
            operation: operation.into(),
            count,
            sum_ns: histogram.sum_ns(),
            max_ns: histogram.max_ns(),
            buckets,
            ..LatencyStats::default()
        };
        (stats.p50_ns, stats.p99_ns) = (stats.quantile_ns(50), stats.quantile_ns(99));
        (count > 0).then_some(stats)
    }

    /// Those of several classes that occurred.
    pub fn all<'a>(classes: impl IntoIterator<Item = (&'a str, &'a Histogram)>) -> Vec<Self> {
        classes.into_iter().filter_map(|(name, histogram)| Self::of(name, histogram)).collect()
    }

    /// The bound that `percent` of all are within.
    fn quantile_ns(&self, percent: u64) -> u64 {
        let wanted = (self.count * percent).div_ceil(100);
        let mut seen = 0;
        let bucket = self.buckets.iter().find(|bucket| {
            seen += bucket.count;
            seen >= wanted
        });
        bucket.map_or(0, |bucket| bucket.le_ns.min(self.max_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_bounds_of_what_was_recorded() {
        let histogram = Histogram::default();
        assert_eq!(LatencyStats::of("read", &histogram), None);
        (1..=100).for_each(|us| histogram.record(us * 1000));
        let stats = LatencyStats::of("read", &histogram).unwrap();
        assert_eq!((stats.count, stats.sum_ns, stats.max_ns), (100, 5_050_000, 100_000));
        assert!((50_000..56_250).contains(&stats.p50_ns), "{}", stats.p50_ns);
        assert!((99_000..=100_000).contains(&stats.p99_ns), "{}", stats.p99_ns);
        assert_eq!(stats.buckets.iter().map(|bucket| bucket.count).sum::<u64>(), 100);
    }
}
