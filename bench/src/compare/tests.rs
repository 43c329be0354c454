//! What counts as a change, and for whom.

use super::*;
use crate::schema::{Measurement, Run, Target};

const MARGINS: Margins = Margins { spread: 0.05, single: 0.15 };
const STEADY: [f64; 5] = [1.0, 1.01, 0.99, 1.02, 1.0];

fn fingerprint() -> Fingerprint {
    Fingerprint {
        cpu: "AMD EPYC".into(),
        cores: 2,
        profile: "release".into(),
        cacheline_before_ns: Some(85.0),
        ..Fingerprint::default()
    }
}

/// A document with a ratio, an absolute id, and measurements of ours and of a peer.
fn document(factor: f64) -> Report {
    let target = |id: &str, unit: &str, want: &str| Target {
        id: id.into(),
        unit: unit.into(),
        want: want.into(),
        runs: STEADY.map(|run| run * factor).into(),
        ..Target::default()
    };
    let measurement = |path: &str, peer: bool, factor: f64| Measurement {
        group: "round trip".into(),
        path: path.into(),
        peer,
        runs: STEADY
            .map(|run| Run {
                rate_per_s: 1e6 / (run * factor),
                p50_ns: Some((30_000.0 * run * factor) as u64),
                p99_ns: Some((40_000.0 * run * factor) as u64),
                p999_ns: None,
            })
            .into(),
        ..Measurement::default()
    };
    Report {
        fingerprint: Some(fingerprint()),
        targets: vec![target("ratio-id", "ratio", "<= 1.3"), target("time-id", "us", "<= 2")],
        measurements: vec![
            measurement("Outboard", false, factor),
            measurement("kernel", true, 1.0),
        ],
        facts: Vec::new(),
        ledgers: Vec::new(),
    }
}

fn outcome(comparison: &Comparison, figure: &str) -> Outcome {
    comparison.lines.iter().find(|line| line.figure == figure).unwrap().outcome
}

#[test]
fn the_same_document_has_not_changed() {
    let comparison = compare(&document(1.0), &document(1.0), MARGINS);
    assert!(comparison.lines.iter().all(|line| line.outcome == Outcome::Same));
    assert_eq!((comparison.regressions, comparison.improvements), (0, 0));
    assert!(text(&comparison, false).starts_with("0 worse, 0 better"));
}

#[test]
fn worse_and_better_are_told_apart_for_either_direction() {
    let slower = compare(&document(1.0), &document(1.2), MARGINS);
    // Two ids, and of our measurement the rate, p50 and p99.
    assert_eq!((slower.regressions, slower.improvements), (5, 0));
    let faster = compare(&document(1.2), &document(1.0), MARGINS);
    assert_eq!((faster.regressions, faster.improvements), (0, 5));
    let mut demanding = (document(1.0), document(1.2));
    demanding.0.targets[0].want = ">= 0.9".into();
    let comparison = compare(&demanding.0, &demanding.1, MARGINS);
    assert_eq!(outcome(&comparison, "ratio-id"), Outcome::Improvement);
}

#[test]
fn a_peer_that_changes_is_told_and_not_judged() {
    let (old, mut new) = (document(1.0), document(1.0));
    for run in &mut new.measurements[1].runs {
        run.p50_ns = run.p50_ns.map(|ns| ns * 2);
    }
    let comparison = compare(&old, &new, MARGINS);
    assert_eq!(comparison.regressions, 0);
    assert_eq!(outcome(&comparison, "round trip, kernel: p50"), Outcome::ReferenceChanged);
    assert!(text(&comparison, false).contains("not ours"));
}

#[test]
fn on_another_machine_only_ratios_are_judged() {
    for change in [
        |f: &mut Fingerprint| f.cpu = "Xeon".into(),
        |f: &mut Fingerprint| f.cores = 8,
        |f: &mut Fingerprint| f.profile = "debug".into(),
        |f: &mut Fingerprint| f.cacheline_before_ns = Some(335.0),
    ] {
        let mut new = document(1.2);
        change(new.fingerprint.as_mut().unwrap());
        let comparison = compare(&document(1.0), &new, MARGINS);
        assert_eq!(outcome(&comparison, "ratio-id"), Outcome::Regression);
        assert_eq!(outcome(&comparison, "time-id"), Outcome::NotJudged);
        assert_eq!(comparison.regressions, 1);
        assert!(comparison.notes.iter().any(|note| note.contains("only ratios")));
    }
}

#[test]
fn what_is_no_longer_measured_is_a_regression_and_void_runs_are_none() {
    let mut new = document(1.2);
    new.targets[0].runs.clear();
    new.targets[1].cause = "runs from 1 to 2; void: the reference is too slow".into();
    let comparison = compare(&document(1.0), &new, MARGINS);
    assert_eq!(outcome(&comparison, "ratio-id"), Outcome::Regression);
    assert_eq!(outcome(&comparison, "time-id"), Outcome::NotJudged);
    new.targets.remove(0);
    let comparison = compare(&document(1.0), &new, MARGINS);
    assert_eq!(outcome(&comparison, "ratio-id"), Outcome::Regression);
    let comparison = compare(&new, &document(1.0), MARGINS);
    assert_eq!(outcome(&comparison, "ratio-id"), Outcome::New);
}

#[test]
fn failures_that_were_not_there_before_are_a_regression() {
    let mut new = document(1.0);
    new.measurements[0].verify_failures = 1;
    let comparison = compare(&document(1.0), &new, MARGINS);
    assert_eq!(comparison.regressions, 1);
    assert_eq!(outcome(&comparison, "round trip, Outboard: failed requests"), Outcome::Regression);
}

#[test]
fn a_rate_that_the_generator_limits_is_not_judged() {
    let (old, mut new) = (document(1.0), document(1.2));
    new.measurements[0].generator_limited = true;
    let comparison = compare(&old, &new, MARGINS);
    assert_eq!(outcome(&comparison, "round trip, Outboard: rate"), Outcome::NotJudged);
}

/// The report's own fixture with bytes overwritten, removed and numbers put in: refused, or shown
/// and compared, whatever the figures are.
#[test]
fn any_document_is_refused_or_shown_and_compared() {
    const DOCUMENT: &[u8] = include_bytes!("../report/fixture.json");
    const WORDS: [&str; 8] =
        ["18446744073709551615", "1e308", "-1e308", "0", "null", "[]", "{}", "\"\\u0000\""];
    bolero::check!().with_type::<Vec<(u16, u8, u8)>>().for_each(|edits| {
        let mut bytes = DOCUMENT.to_vec();
        for (at, how, value) in edits.iter().take(8) {
            let at = usize::from(*at) % bytes.len();
            match how % 3 {
                0 => bytes[at] = *value,
                1 => drop(bytes.drain(at..bytes.len().min(at + usize::from(*value)))),
                // In place of the figure that comes next.
                _ => {
                    let digit = |byte: &u8| byte.is_ascii_digit() || b"-.e".contains(byte);
                    let from = bytes[at..].iter().position(u8::is_ascii_digit);
                    let from = at + from.unwrap_or(0);
                    let until = bytes[from..].iter().position(|byte| !digit(byte));
                    let until = until.map_or(bytes.len(), |until| from + until);
                    let word = WORDS[usize::from(*value) % WORDS.len()];
                    drop(bytes.splice(from..until, word.bytes()));
                }
            }
            if bytes.is_empty() {
                return;
            }
        }
        let Ok(report) = report::parse(&bytes) else { return };
        let old = report::parse(DOCUMENT).unwrap();
        let page = report::html::page("any", &report);
        assert!(page.ends_with("</html>\n"));
        report::terminal::tables(&report);
        for (a, b) in [(&old, &report), (&report, &old), (&report, &report)] {
            text(&compare(a, b, MARGINS), true);
        }
    });
}

#[test]
fn counts_beyond_any_sum_are_compared() {
    let mut full = document(1.0);
    full.measurements[0].errors = u64::MAX;
    full.measurements[0].lost = u64::MAX;
    let comparison = compare(&document(1.0), &full, MARGINS);
    assert_eq!(outcome(&comparison, "round trip, Outboard: failed requests"), Outcome::Regression);
}
