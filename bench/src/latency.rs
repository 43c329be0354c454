//! Latency recording: HdrHistogram with 3 significant digits from 1 ns to 100 s.
//!
//! A percentile is only as good as the samples beyond it: with fewer than [`SAMPLES_BEYOND`] it
//! is not given at all.

use crate::schema::Latency;
use hdrhistogram::Histogram;

/// Samples that must lie beyond a percentile before it is given.
pub const SAMPLES_BEYOND: u64 = 10;
/// The largest latency told apart; longer ones count as this.
pub const MAX_NS: u64 = 100_000_000_000;

const CURVE_STEP_NINES: f64 = 0.05;
const CURVE_MAX_NINES: f64 = 7.0;

/// Collects latencies of one measurement.
pub struct Recorder(Histogram<u64>);

impl Default for Recorder {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, MAX_NS, 3);
        Recorder(histogram.expect("1 ns to 100 s with 3 digits are valid bounds"))
    }
}

impl Recorder {
    /// Adds one sample.
    #[inline]
    pub fn record(&mut self, latency_ns: u64) {
        self.0.saturating_record(latency_ns);
    }

    /// Samples so far.
    pub fn samples(&self) -> u64 {
        self.0.len()
    }

    /// The percentile in parts per million; `None` when too few samples lie beyond it.
    pub fn percentile(&self, ppm: u32) -> Option<u64> {
        let beyond = u128::from(self.0.len()) * u128::from(1_000_000 - ppm) / 1_000_000;
        (beyond >= u128::from(SAMPLES_BEYOND))
            .then(|| self.0.value_at_quantile(f64::from(ppm) / 1e6))
    }

    /// Everything that a report shows; `None` without samples.
    pub fn summary(&self) -> Option<Latency> {
        if self.0.is_empty() {
            return None;
        }
        Some(Latency {
            samples: self.samples(),
            min_ns: self.0.min(),
            mean_ns: self.0.mean(),
            p50_ns: self.percentile(500_000),
            p90_ns: self.percentile(900_000),
            p99_ns: self.percentile(990_000),
            p999_ns: self.percentile(999_000),
            p9999_ns: self.percentile(999_900),
            max_ns: self.0.max(),
            curve: self.curve(),
        })
    }

    /// Points at even distances in nines (0 = 0 %, 1 = 90 %, 2 = 99 % …), as far as samples carry.
    fn curve(&self) -> Vec<(f64, u64)> {
        let steps = (CURVE_MAX_NINES / CURVE_STEP_NINES) as u32;
        (0..=steps)
            .map(|step| 1.0 - 10f64.powf(-f64::from(step) * CURVE_STEP_NINES))
            .take_while(|q| (1.0 - q) * self.0.len() as f64 >= SAMPLES_BEYOND as f64)
            .map(|q| (q, self.0.value_at_quantile(q)))
            .collect()
    }
}

/// Nanoseconds for people: three digits and a unit; – when there is no value.
pub fn text(latency_ns: Option<u64>) -> String {
    let Some(ns) = latency_ns else { return "–".into() };
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(samples: u64) -> Recorder {
        let mut recorder = Recorder::default();
        (1..=samples).for_each(|n| recorder.record(n * 1_000));
        recorder
    }

    #[test]
    fn a_percentile_needs_ten_samples_beyond_it() {
        for (ppm, edge) in
            [(500_000, 20), (900_000, 100), (990_000, 1_000), (999_000, 10_000), (999_900, 100_000)]
        {
            assert_eq!(filled(edge - 1).percentile(ppm), None, "{ppm} at {}", edge - 1);
            let value = filled(edge).percentile(ppm).unwrap();
            let exact = edge * 1_000 / 1_000_000 * u64::from(ppm)
                + edge * 1_000 % 1_000_000 * u64::from(ppm) / 1_000_000;
            assert!(value.abs_diff(exact) <= exact / 500 + 1_000, "{ppm}: {value} for {exact}");
        }
        assert_eq!(text(filled(19).summary().unwrap().p50_ns), "–");
        assert!(Recorder::default().summary().is_none());
    }

    #[test]
    fn three_digits_over_the_whole_range() {
        for latency_ns in [1, 999, 1_234, 987_654, 55_555_555, 99_000_000_000] {
            let mut recorder = Recorder::default();
            (0..20).for_each(|_| recorder.record(latency_ns));
            let got = recorder.percentile(500_000).unwrap();
            assert!(got.abs_diff(latency_ns) * 1_000 <= latency_ns, "{got} for {latency_ns}");
        }
        let mut recorder = Recorder::default();
        recorder.record(u64::MAX);
        assert!(recorder.summary().unwrap().max_ns >= MAX_NS);
    }

    #[test]
    fn the_curve_rises_and_stops_where_samples_do() {
        let curve = filled(50_000).summary().unwrap().curve;
        assert!(curve.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
        let (last, _) = *curve.last().unwrap();
        assert!((0.9997..0.9999).contains(&last), "{last}");
    }

    #[test]
    fn text_keeps_three_digits() {
        let shown = [0, 999, 1_000, 12_345, 123_456, 7_654_321, 3_000_000_000];
        let shown = shown.map(|ns| text(Some(ns)));
        assert_eq!(shown, ["0 ns", "999 ns", "1.00 µs", "12.3 µs", "123 µs", "7.65 ms", "3.00 s"]);
    }
}
