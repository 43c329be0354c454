//! Whether two lists of runs differ by more than their spread.
//!
//! With enough runs on both sides the judge is the exact Mann–Whitney test (Mann and Whitney,
//! 1947): it asks how often one side's runs are above the other's, so one outlier changes little
//! and no distribution is assumed. With fewer runs every run of one side must lie beyond every
//! run of the other. Single runs have no spread: there a fixed margin stands in. The exact test
//! counts orders, which takes memory and time with the fourth power of the runs: beyond
//! [`EXACT_RUNS_MAX`] the normal approximation of the same paper takes its place.

use crate::report::summary::median;

/// The two-sided probability below which a difference is not taken for chance.
const ALPHA: f64 = 0.05;
/// The value that a standard normal variable exceeds, on either side, with probability [`ALPHA`].
const NORMAL_BOUND: f64 = 1.96;
/// The most runs of a side whose orders are counted; at this number they fill some 5 MB.
const EXACT_RUNS_MAX: usize = 40;

/// By how much figures must differ before anybody cares.
#[derive(Clone, Copy, Debug)]
pub struct Margins {
    /// Share of the old median, when both sides have a spread.
    pub spread: f64,
    /// Share of the old value, when a side is a single run.
    pub single: f64,
}

/// How B's runs stand to A's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Within the spread, or within the margin.
    None,
    /// Lower by more.
    Lower,
    /// Higher by more.
    Higher,
}

/// How B's runs stand to A's; a side without runs has not changed.
pub fn judge(a: &[f64], b: &[f64], margins: Margins) -> Change {
    let (Some(old), Some(new)) = (median(a), median(b)) else { return Change::None };
    let is_single = a.len() == 1 || b.len() == 1;
    let margin = if is_single { margins.single } else { margins.spread };
    let differs = (new - old).abs() > margin * old.abs();
    if !differs || (!is_single && !is_beyond_spread(a, b)) {
        return Change::None;
    }
    if new < old { Change::Lower } else { Change::Higher }
}

fn is_beyond_spread(a: &[f64], b: &[f64]) -> bool {
    if a.len().max(b.len()) > EXACT_RUNS_MAX {
        return is_beyond_normal(a, b);
    }
    // The least probability that these numbers of runs can show.
    let least = 2.0 / ways(a.len(), b.len()).iter().sum::<f64>();
    match least <= ALPHA {
        true => probability(a, b) <= ALPHA,
        false => pairs_above(a, b) == 0.0 || pairs_above(b, a) == 0.0,
    }
}

/// The test for many runs: the pairs above are nearly normal, with this mean and variance.
fn is_beyond_normal(a: &[f64], b: &[f64]) -> bool {
    let (n, m) = (a.len() as f64, b.len() as f64);
    let deviation = (n * m * (n + m + 1.0) / 12.0).sqrt();
    (pairs_above(a, b) - n * m / 2.0).abs() > NORMAL_BOUND * deviation
}

/// Pairs in which the run of `a` is above that of `b`; an equal pair counts half.
fn pairs_above(a: &[f64], b: &[f64]) -> f64 {
    let mut sorted = b.to_vec();
    sorted.sort_by(f64::total_cmp);
    let halves = a.iter().map(|run| {
        let (below, up_to) = (|b: &f64| b < run, |b: &f64| b <= run);
        sorted.partition_point(below) + sorted.partition_point(up_to)
    });
    halves.sum::<usize>() as f64 / 2.0
}

/// The two-sided probability of a difference as large as this when there is none.
fn probability(a: &[f64], b: &[f64]) -> f64 {
    let ways = ways(a.len(), b.len());
    let smaller = pairs_above(a, b).min(pairs_above(b, a));
    let as_extreme: f64 = ways.iter().take(smaller.ceil() as usize + 1).sum();
    (2.0 * as_extreme / ways.iter().sum::<f64>()).min(1.0)
}

/// Of all orders of `n + m` different runs, in how many the number of pairs above is 0, 1, 2 …
fn ways(n: usize, m: usize) -> Vec<f64> {
    // The highest run is one of the `n`, and above all `m`, or it is one of the `m`.
    let mut table = vec![vec![Vec::new(); m + 1]; n + 1];
    for i in 0..=n {
        for j in 0..=m {
            let mut counts = vec![0.0; i * j + 1];
            if i == 0 || j == 0 {
                counts[0] = 1.0;
            } else {
                add(&mut counts, &table[i - 1][j], j);
                add(&mut counts, &table[i][j - 1], 0);
            }
            table[i][j] = counts;
        }
    }
    std::mem::take(&mut table[n][m])
}

fn add(counts: &mut [f64], part: &[f64], shift: usize) {
    for (count, more) in counts[shift..].iter_mut().zip(part) {
        *count += more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARGINS: Margins = Margins { spread: 0.05, single: 0.10 };

    #[test]
    fn orders_are_counted_as_in_the_published_tables() {
        assert_eq!(ways(2, 2), [1.0, 1.0, 2.0, 1.0, 1.0]);
        assert_eq!(ways(5, 5).iter().sum::<f64>(), 252.0);
        // Critical value of U for 5 and 5 runs at 0.05, two-sided: 2.
        let up_to = |u: usize| 2.0 * ways(5, 5).iter().take(u + 1).sum::<f64>() / 252.0;
        assert!(up_to(2) <= 0.05 && up_to(3) > 0.05);
    }

    #[test]
    fn one_outlier_neither_makes_nor_hides_a_change() {
        let a = [10.0, 10.2, 9.9, 10.1, 10.0];
        assert_eq!(judge(&a, &[10.1, 10.0, 30.0, 9.9, 10.2], MARGINS), Change::None);
        assert_eq!(judge(&a, &[12.0, 12.1, 5.0, 12.2, 12.0], MARGINS), Change::None);
        assert_eq!(judge(&a, &[12.0, 12.1, 10.15, 12.2, 12.0], MARGINS), Change::Higher);
        assert_eq!(judge(&a, &[8.0, 8.1, 8.2, 8.0, 8.1], MARGINS), Change::Lower);
    }

    #[test]
    fn a_small_difference_is_none_however_certain() {
        let a = [10.0, 10.01, 10.02, 10.0, 10.01];
        assert_eq!(judge(&a, &a.map(|run| run * 1.04), MARGINS), Change::None);
        assert_eq!(judge(&a, &a.map(|run| run * 1.06), MARGINS), Change::Higher);
    }

    #[test]
    fn few_runs_must_not_overlap_and_single_ones_have_a_wider_margin() {
        assert_eq!(judge(&[10.0, 11.0, 12.0], &[11.9, 14.0, 15.0], MARGINS), Change::None);
        assert_eq!(judge(&[10.0, 11.0, 12.0], &[12.1, 14.0, 15.0], MARGINS), Change::Higher);
        assert_eq!(judge(&[10.0], &[10.9], MARGINS), Change::None);
        assert_eq!(judge(&[10.0], &[8.9, 8.8], MARGINS), Change::Lower);
        assert_eq!(judge(&[0.0], &[0.0], MARGINS), Change::None);
    }

    #[test]
    fn equal_runs_never_differ() {
        for n in 1..9 {
            assert_eq!(judge(&vec![5.0; n], &[5.0; 5], MARGINS), Change::None);
        }
    }

    /// A document may hold as many runs as its writer likes.
    #[test]
    fn many_runs_are_judged_as_few_are() {
        let runs = |count: usize, add: f64| -> Vec<f64> {
            (0..count).map(|run| 100.0 + add + (run * 7 % 10) as f64).collect()
        };
        for count in [EXACT_RUNS_MAX, EXACT_RUNS_MAX + 1, 100_000] {
            let a = runs(count, 0.0);
            let judge = |b: &[f64]| judge(&a, b, Margins { spread: 0.0, single: 0.0 });
            assert_eq!(judge(&runs(count - 1, 6.0)), Change::Higher, "{count}");
            assert_eq!(judge(&runs(count - 1, -6.0)), Change::Lower, "{count}");
            assert_eq!(judge(&runs(count, 0.0)), Change::None, "{count}");
        }
        let (a, b) = (runs(EXACT_RUNS_MAX, 0.0), runs(EXACT_RUNS_MAX, 3.0));
        assert_eq!(is_beyond_spread(&a, &b), is_beyond_normal(&a, &b));
    }

    #[test]
    fn judgement_does_not_depend_on_order_or_direction() {
        bolero::check!().with_type::<(Vec<u16>, Vec<u16>)>().for_each(|(a, b)| {
            let runs = |raw: &[u16]| -> Vec<f64> {
                raw.iter().take(12).map(|run| f64::from(*run) + 1.0).collect()
            };
            let (a, b) = (runs(a), runs(b));
            if a.is_empty() || b.is_empty() {
                return;
            }
            let forth = judge(&a, &b, Margins { spread: 0.0, single: 0.0 });
            let back = judge(&b, &a, Margins { spread: 0.0, single: 0.0 });
            let turned: Vec<f64> = a.iter().rev().copied().collect();
            assert_eq!(forth, judge(&turned, &b, Margins { spread: 0.0, single: 0.0 }));
            let opposite = match forth {
                Change::None => Change::None,
                Change::Lower => Change::Higher,
                Change::Higher => Change::Lower,
            };
            assert_eq!(back, opposite);
        });
    }
}
