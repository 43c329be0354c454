//! `compare`: two documents of the same suite or driver, figure by figure.
//!
//! A figure is one id of a suite, or the rate or a percentile of one measurement. It has changed
//! when its runs differ by more than their spread ([`verdict`]); it is a regression when it is
//! Outboard's own and became worse. Figures of one machine say nothing about another: between
//! different machines, or after the host has moved the cores, only ratios are judged.

mod figures;
mod verdict;

use crate::error::Error;
use crate::report::summary::{median, spread};
use crate::report::terminal::{number, table};
use crate::report::{self};
use crate::schema::{Fingerprint, Report};
use clap::Args;
use figures::Figure;
use serde::Serialize;
use std::path::PathBuf;
use verdict::{Change, Margins, judge};

/// Say what changed between two documents beyond the spread of their runs; exit 3 on a regression.
///
/// A.json is the older document, B.json the newer, both written with --json by the same suite or
/// driver. Runs are compared by the exact Mann-Whitney test at 5 % (needs 4 runs on each side;
/// with fewer they must not overlap at all), and medians must differ by more than --margin.
/// References and peers are listed when they change, but only Outboard's own figures are judged.
/// On different machines only ratios are judged.
///
/// Exit code: 0 nothing became worse, 1 cannot be compared, 3 something became worse.
///
/// Example, in CI on one machine:
///   outboard-bench suite net --quick --json new.json
///   outboard-bench compare base.json new.json
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct CompareArgs {
    /// The older document.
    #[arg(value_name = "A.json")]
    pub old: PathBuf,
    /// The newer document.
    #[arg(value_name = "B.json")]
    pub new: PathBuf,
    /// By how many percent medians must differ, however small the spread is.
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    pub margin: f64,
    /// The same for figures with a single run, which have no spread.
    #[arg(long, value_name = "PERCENT", default_value_t = 15.0)]
    pub single_margin: f64,
    /// List what has not changed too.
    #[arg(long)]
    pub all: bool,
    /// Write the comparison as JSON (`-`: standard output, instead of the table).
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// What became of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    /// Worse beyond the spread, or gone.
    Regression,
    /// Better beyond the spread.
    Improvement,
    /// A reference or peer that differs: the machine has changed, not Outboard.
    ReferenceChanged,
    /// Within the spread.
    Same,
    /// Only in the newer document.
    New,
    /// Cannot be judged; `why` says it.
    NotJudged,
}

/// One line of the comparison.
#[derive(Clone, Debug, Serialize)]
struct Line {
    figure: String,
    unit: String,
    old_runs: Vec<f64>,
    new_runs: Vec<f64>,
    old: Option<f64>,
    new: Option<f64>,
    /// Change of the median in percent.
    change_pct: Option<f64>,
    outcome: Outcome,
    why: String,
}

/// The whole comparison.
#[derive(Clone, Debug, Serialize)]
struct Comparison {
    /// What a reader must know before the figures.
    notes: Vec<String>,
    regressions: usize,
    improvements: usize,
    lines: Vec<Line>,
}

/// Compares and prints.
pub fn run(args: &CompareArgs) -> Result<(), Error> {
    let percent = |value: f64, name: &str| match value {
        value if (0.0..=1000.0).contains(&value) => Ok(value / 100.0),
        _ => Err(Error::Refused(format!("--{name} must be 0 to 1000 percent"))),
    };
    let margins = Margins {
        spread: percent(args.margin, "margin")?,
        single: percent(args.single_margin, "single-margin")?,
    };
    let comparison = compare(&report::read(&args.old)?, &report::read(&args.new)?, margins);
    if comparison.lines.iter().all(|line| line.old.is_none() || line.new.is_none()) {
        return Err(Error::Refused(format!(
            "{} and {} have no figure in common; compare documents of the same suite or driver",
            args.old.display(),
            args.new.display()
        )));
    }
    publish(&comparison, args)?;
    match comparison.regressions {
        0 => Ok(()),
        n => Err(Error::Regressed(n)),
    }
}

fn publish(comparison: &Comparison, args: &CompareArgs) -> Result<(), Error> {
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(comparison)
            .map_err(|error| Error::Refused(format!("cannot encode the comparison: {error}")))?;
        if path.as_os_str() == "-" {
            println!("{text}");
            return Ok(());
        }
        std::fs::write(path, text + "\n")
            .map_err(Error::system(format!("cannot write {}", path.display())))?;
    }
    print!("{}", text(comparison, args.all));
    Ok(())
}

fn compare(old: &Report, new: &Report, margins: Margins) -> Comparison {
    let (notes, is_comparable) = machines(old.fingerprint.as_ref(), new.fingerprint.as_ref());
    let (old, new) = (figures::of(old), figures::of(new));
    let mut lines: Vec<Line> = Vec::new();
    for figure in &old {
        let other = new.iter().find(|other| other.name == figure.name);
        lines.push(line(figure, other, margins, is_comparable));
    }
    let added = new.iter().filter(|figure| old.iter().all(|other| other.name != figure.name));
    lines.extend(added.map(only_new));
    let count = |outcome| lines.iter().filter(|line| line.outcome == outcome).count();
    let (regressions, improvements) = (count(Outcome::Regression), count(Outcome::Improvement));
    Comparison { notes, regressions, improvements, lines }
}

/// What stands between the two machines, and whether their absolute figures can be compared.
fn machines(old: Option<&Fingerprint>, new: Option<&Fingerprint>) -> (Vec<String>, bool) {
    let (Some(old), Some(new)) = (old, new) else {
        let note = "a document does not say where it was measured; taken for one machine";
        return (vec![note.into()], true);
    };
    let (mut notes, mut is_comparable) = (Vec::new(), true);
    let mut differ = |what: &str, a: &str, b: &str, matters: bool| {
        if a != b {
            let only = if matters { "; only ratios are judged" } else { "" };
            notes.push(format!("{what} differs: {a} and {b}{only}"));
            is_comparable &= !matters;
        }
    };
    differ("the processor", &old.cpu, &new.cpu, true);
    differ("the number of cores", &old.cores.to_string(), &new.cores.to_string(), true);
    differ("the build", &old.profile, &new.profile, true);
    differ("the kernel", &old.kernel, &new.kernel, false);
    if let Some((a, b)) = old.cacheline_before_ns.zip(new.cacheline_before_ns)
        && a.max(b) > CACHELINE_DRIFT * a.min(b)
    {
        notes.push(format!(
            "the host has moved the cores: a cache line took {} and {} ns from one to the \
             other; only ratios are judged",
            number(a),
            number(b)
        ));
        is_comparable = false;
    }
    (notes, is_comparable)
}

/// By how much the cache-line round trip may differ on what counts as the same machine.
const CACHELINE_DRIFT: f64 = 1.3;

fn line(old: &Figure, new: Option<&Figure>, margins: Margins, is_comparable: bool) -> Line {
    let old_median = median(&old.runs);
    let new_median = new.and_then(|new| median(&new.runs));
    let change = new.map_or(Change::None, |new| judge(&old.runs, &new.runs, margins));
    let not_judged = new.and_then(|new| old.void.as_ref().or(new.void.as_ref())).cloned();
    let (outcome, why) = match (old_median, new_median) {
        (None, None) => (Outcome::NotJudged, "not measured in either".to_owned()),
        (None, Some(_)) => (Outcome::New, String::new()),
        (Some(_), None) if old.is_ours => (Outcome::Regression, "no longer measured".into()),
        (Some(_), None) => (Outcome::NotJudged, "no longer measured".into()),
        _ if not_judged.is_some() => (Outcome::NotJudged, not_judged.unwrap_or_default()),
        _ if change == Change::None => (Outcome::Same, String::new()),
        _ if !is_comparable && !old.is_ratio => (Outcome::NotJudged, "not the same machine".into()),
        _ if !old.is_ours => {
            (Outcome::ReferenceChanged, "not ours: the machine or that program changed".into())
        }
        _ if (change == Change::Lower) == old.lower_is_better => {
            (Outcome::Improvement, String::new())
        }
        _ => (Outcome::Regression, String::new()),
    };
    Line {
        figure: old.name.clone(),
        unit: old.unit.clone(),
        old_runs: old.runs.clone(),
        new_runs: new.map(|new| new.runs.clone()).unwrap_or_default(),
        old: old_median,
        new: new_median,
        change_pct: old_median
            .zip(new_median)
            .filter(|(old, _)| *old != 0.0)
            .map(|(old, new)| (new / old - 1.0) * 100.0),
        outcome,
        why,
    }
}

fn only_new(figure: &Figure) -> Line {
    Line {
        figure: figure.name.clone(),
        unit: figure.unit.clone(),
        old_runs: Vec::new(),
        new_runs: figure.runs.clone(),
        old: None,
        new: median(&figure.runs),
        change_pct: None,
        outcome: Outcome::New,
        why: String::new(),
    }
}

fn text(comparison: &Comparison, all: bool) -> String {
    let mut out: String = comparison.notes.iter().map(|note| format!("note: {note}\n")).collect();
    let shown = |line: &&Line| all || !matches!(line.outcome, Outcome::Same | Outcome::New);
    let rows: Vec<Vec<String>> = comparison.lines.iter().filter(shown).map(row).collect();
    if !rows.is_empty() {
        let head = ["figure", "A", "B", "unit", "change", "spread of A", "spread of B", "", ""];
        out += &table(&head, &rows);
    }
    let count = |outcome| comparison.lines.iter().filter(|line| line.outcome == outcome).count();
    out += &format!(
        "{} worse, {} better, {} the same, {} not judged, {} new\n",
        comparison.regressions,
        comparison.improvements,
        count(Outcome::Same),
        count(Outcome::NotJudged) + count(Outcome::ReferenceChanged),
        count(Outcome::New)
    );
    out
}

fn row(line: &Line) -> Vec<String> {
    let figure = |value: Option<f64>| value.map_or("–".into(), number);
    let range = |runs: &[f64]| match spread(runs) {
        Some((low, high)) if runs.len() > 1 => format!("{} … {}", number(low), number(high)),
        _ => String::new(),
    };
    let verdict = match line.outcome {
        Outcome::Regression => "WORSE",
        Outcome::Improvement => "better",
        Outcome::ReferenceChanged => "changed",
        Outcome::Same => "same",
        Outcome::New => "new",
        Outcome::NotJudged => "not judged",
    };
    vec![
        line.figure.clone(),
        figure(line.old),
        figure(line.new),
        line.unit.clone(),
        line.change_pct.map_or(String::new(), |change| format!("{change:+.1} %")),
        range(&line.old_runs),
        range(&line.new_runs),
        verdict.into(),
        line.why.clone(),
    ]
}

#[cfg(test)]
mod tests;
