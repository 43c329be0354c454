//! `suite`: runs that are compared with bounds. A and B alternate, medians count, spreads are kept.
//!
//! On two cores a suite has at most one busy thread per core: the generator on the first, the
//! device under test (Outboard's worker, or a reference) on the second.

pub mod bed;
mod block;
mod block_peers;
mod dpdk;
mod families;
mod handoff;
mod idle;
mod ledger;
mod memory;
mod net;
mod peers;
mod steady;
mod switch_hit;
mod targets;

use crate::drivers::{command_line, write};
use crate::error::Error;
use crate::latency;
use crate::machine::{census, cores, fingerprint};
use crate::report::terminal::{self, number};
use crate::schema::{Fingerprint, Ledger, Measurement, Report};
use clap::{Args, ValueEnum};
use std::collections::BTreeMap;
use std::path::PathBuf;
use targets::{Found, Targets};

/// Measure Outboard beside reference programs and judge it by bench/targets.toml.
///
/// Needs root, two cores, and the `outboard` program beside this one. Everything happens in
/// network namespaces that the suite makes and removes. Figures count only when nothing else runs
/// on the machine: the thread census in the report shows what did.
///
/// Examples:
///   outboard-bench suite net --quick
///   outboard-bench suite block --json block.json
///   outboard-bench suite ledger --json ledger.json
///   outboard-bench report --out report ledger.json
///   outboard-bench suite net --only switch-hit-ns,switch-hit-v6-ns
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct SuiteArgs {
    /// net: frames through AF_XDP ports, the switch, memory. block: disks, local and remote.
    /// ledger: where packets and I/Os spend their time, and what it costs to know.
    #[arg(value_enum)]
    pub suite: SuiteName,
    /// Three short runs each instead of five long ones; ends within 3 minutes.
    #[arg(long)]
    pub quick: bool,
    /// Only the parts of the suite that measure these targets (ids of bench/targets.toml).
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Write every run's value as JSON (`-`: standard output, instead of the table).
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// A suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SuiteName {
    /// Frames through AF_XDP ports, the switch, memory.
    Net,
    /// Disks, local and remote.
    Block,
    /// Where packets and I/Os spend their time, and what it costs to know.
    Ledger,
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
struct Effort {
    /// Alternations of A and B.
    rounds: u32,
    /// Length of a measured window.
    seconds: f64,
    /// Before it.
    warmup: f64,
    /// Whether open loops are run too.
    open_loops: bool,
}

/// Rates of open loops in percent of the highest rate of a closed loop.
const OPEN_LOOP_SHARES: [u32; 3] = [50, 70, 90];

const QUICK: Effort = Effort { rounds: 3, seconds: 1.0, warmup: 0.3, open_loops: false };
const FULL: Effort = Effort { rounds: 5, seconds: 3.0, warmup: 0.5, open_loops: true };

/// What a suite has found out so far.
struct Findings {
    effort: Effort,
    /// The targets that are asked for; empty: all.
    only: Vec<String>,
    targets: Targets,
    fingerprint: Fingerprint,
    found: BTreeMap<&'static str, Found>,
    measurements: Vec<Measurement>,
    ledgers: Vec<Ledger>,
}

impl Findings {
    /// Adds a run's value for an id, with the census that goes with it.
    fn add(&mut self, id: &'static str, value: f64, of: &Measurement) {
        let found = self.found.entry(id).or_default();
        found.runs.push(value);
        found.threads = census::lines(&of.census);
        eprintln!("  {id}: {}", number(value));
        if let Some(strangers) = census::strangers(&of.census) {
            self.remark(id, &strangers);
        }
    }

    /// Adds the ratio of a figure of two runs, or says that one is missing.
    fn add_ratio(
        &mut self,
        id: &'static str,
        figure: Figure,
        ours: &Measurement,
        theirs: &Measurement,
    ) {
        match figure.of(ours).zip(figure.of(theirs)) {
            Some((a, b)) => {
                self.add(id, a / b, ours);
                let found = self.found.entry(id).or_default();
                found.detail = format!("{} by {}", figure.text(a), figure.text(b));
            }
            None => self.remark(id, TOO_FEW),
        }
    }

    /// Adds a run's median in microseconds, or says that it has none.
    fn add_p50_us(&mut self, id: &'static str, of: &Measurement) {
        match Figure::P50.of(of) {
            Some(ns) => self.add(id, ns / 1e3, of),
            None => self.remark(id, TOO_FEW),
        }
    }

    /// Adds a remark to an id. It replaces one that begins with the same word: one of a kind is
    /// enough to know.
    fn remark(&mut self, id: &'static str, text: &str) {
        let kind = |text: &str| text.split(' ').next().map(str::to_owned);
        let remarks = &mut self.found.entry(id).or_default().remarks;
        remarks.retain(|known| kind(known) != kind(text));
        remarks.push(text.to_owned());
    }

    /// Runs a part of the suite if something of it is asked for. When it fails, its ids say why and
    /// the other parts go on; only an interrupt ends everything.
    fn part(
        &mut self,
        ids: &[&'static str],
        run: impl FnOnce(&mut Findings) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if !self.only.is_empty() && !self.only.iter().any(|id| ids.contains(&id.as_str())) {
            return Ok(());
        }
        match run(self) {
            Err(error) if error.is_interrupt() => Err(error),
            Err(error) => {
                eprintln!("  failed: {error}");
                ids.iter().for_each(|id| self.remark(id, &format!("failed: {error}")));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Keeps a measurement for the report; a later one of the same path and group replaces it and
    /// keeps the figures of the earlier ones.
    fn keep(&mut self, mut m: Measurement) {
        let is_same = |old: &Measurement| (&old.path, &old.group) == (&m.path, &m.group);
        let earlier = self.measurements.iter().position(is_same);
        let earlier = earlier.map(|index| self.measurements.remove(index));
        m.runs = earlier.map(|old| old.runs).unwrap_or_default();
        m.runs.push(m.figures());
        self.measurements.push(m);
    }

    /// Runs a reference until its figure does not make the round void. One that still does after
    /// the last repeat is taken, and the ids that rest on it say so.
    fn reference<T>(
        &mut self,
        name: &str,
        ids: &[&'static str],
        mut run: impl FnMut(&mut Findings) -> Result<T, Error>,
        figure: impl Fn(&T) -> f64,
    ) -> Result<T, Error> {
        let mut repeats = 0;
        loop {
            let outcome = run(self)?;
            let void = self.targets.void(name, &self.fingerprint.cpu, figure(&outcome));
            let Some(why) = void else { return Ok(outcome) };
            if repeats == VOID_REPEATS {
                ids.iter().for_each(|id| self.remark(id, &format!("void: {why}")));
                return Ok(outcome);
            }
            repeats += 1;
            eprintln!("  {why}; repeated ({repeats} of {VOID_REPEATS})");
        }
    }
}

const TOO_FEW: &str = "a run had too few samples for this percentile";

/// What of two runs is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    /// Requests per second.
    Rate,
    /// Median latency in nanoseconds.
    P50,
    /// 99th percentile in nanoseconds.
    P99,
}

impl Figure {
    /// The figure of a run; `None` when it has none, or nothing to divide by.
    fn of(self, m: &Measurement) -> Option<f64> {
        let latency = m.latency.as_ref();
        let value = match self {
            Figure::Rate => Some(m.rate_per_s),
            Figure::P50 => latency?.p50_ns.map(|ns| ns as f64),
            Figure::P99 => latency?.p99_ns.map(|ns| ns as f64),
        };
        value.filter(|value| *value > 0.0)
    }

    fn text(self, value: f64) -> String {
        match self {
            Figure::Rate => format!("{}/s", terminal::count(value)),
            Figure::P50 | Figure::P99 => latency::text(Some(value as u64)),
        }
    }
}

/// How often a reference that makes its round void is repeated.
const VOID_REPEATS: u32 = 3;

/// Runs a suite.
pub fn run(args: &SuiteArgs) -> Result<(), Error> {
    if cores().len() < 2 {
        return Err(Error::Refused(
            "a suite needs two cores: one for the generator, one for what is measured".into(),
        ));
    }
    let mut findings = Findings {
        effort: if args.quick { QUICK } else { FULL },
        only: args.only.clone(),
        targets: Targets::built_in(),
        fingerprint: fingerprint::take(),
        found: BTreeMap::new(),
        measurements: Vec::new(),
        ledgers: Vec::new(),
    };
    let name = match args.suite {
        SuiteName::Net => "net",
        SuiteName::Block => "block",
        SuiteName::Ledger => "ledger",
    };
    findings.targets.check(name, &args.only)?;
    match args.suite {
        SuiteName::Net => net::run(&mut findings)?,
        SuiteName::Block => block::run(&mut findings)?,
        SuiteName::Ledger => ledger::run(&mut findings)?,
    }
    let report = report(name, findings);
    write(&report, args.json.as_deref())?;
    match report.targets.iter().filter(|target| target.value.is_none()).count() {
        0 => Ok(()),
        n => Err(Error::Refused(format!("{n} targets could not be measured; see their causes"))),
    }
}

/// Judges what was found.
fn report(name: &str, mut findings: Findings) -> Report {
    let only = std::mem::take(&mut findings.only);
    let Findings { targets, mut fingerprint, mut found, mut measurements, ledgers, .. } = findings;
    fingerprint::complete(&mut fingerprint);
    for m in &mut measurements {
        m.command = format!("{} # {}", command_line(), m.name);
    }
    let mut rows = targets.judge(name, |id| found.remove(id));
    rows.retain(|row| only.is_empty() || only.contains(&row.id));
    Report {
        fingerprint: Some(fingerprint),
        targets: rows,
        measurements,
        facts: Vec::new(),
        ledgers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn findings() -> Findings {
        Findings {
            effort: QUICK,
            only: Vec::new(),
            targets: Targets::built_in(),
            fingerprint: Fingerprint::default(),
            found: BTreeMap::new(),
            measurements: Vec::new(),
            ledgers: Vec::new(),
        }
    }

    #[test]
    fn a_part_that_fails_says_so_and_an_interrupt_ends_all() {
        let mut all = findings();
        let ids = ["rss-mib", "switch-hit-ns"];
        all.part(&ids, |_| Err(Error::Refused("no such thing".into()))).unwrap();
        let interrupted = || Err(crate::load::LoadError::Interrupted.into());
        assert!(all.part(&ids, |_| interrupted()).unwrap_err().is_interrupt());
        let report = report("net", all);
        for row in report.targets.iter().filter(|row| ids.contains(&row.id.as_str())) {
            assert_eq!((row.value, row.cause.as_str()), (None, "failed: no such thing"));
        }
    }

    #[test]
    fn only_what_is_asked_for_is_measured_and_reported() {
        let mut all = findings();
        all.only = vec!["rss-mib".into()];
        let mut ran = Vec::new();
        for ids in [&["switch-hit-ns"][..], &["idle-pct", "rss-mib"], &[]] {
            all.part(ids, |findings| {
                ran.push(ids);
                ids.iter().for_each(|id| findings.add(id, 1.0, &Measurement::default()));
                Ok(())
            })
            .unwrap();
        }
        assert_eq!(ran, [["idle-pct", "rss-mib"]]);
        let rows = report("net", all).targets;
        assert_eq!(rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["rss-mib"]);
    }

    #[test]
    fn the_document_has_the_promised_form() {
        let mut all = findings();
        let m = Measurement { path: "Outboard".into(), group: "g".into(), ..<_>::default() };
        all.add("rss-mib", 180.0, &m);
        all.add("switch-hit-ns", 41.0, &m);
        all.remark("switch-hit-ns", "void: once");
        all.remark("switch-hit-ns", "unsteady machine");
        all.remark("switch-hit-ns", "void: again");
        all.keep(m.clone());
        all.keep(Measurement { errors: 7, ..m });
        let report = report("net", all);
        let json: Value = serde_json::to_value(&report).unwrap();
        let top: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(top, ["fingerprint", "measurements", "targets"]);
        assert_eq!(json["measurements"].as_array().unwrap().len(), 1);
        assert_eq!(json["measurements"][0]["errors"], 7);
        assert_eq!(json["measurements"][0]["runs"].as_array().unwrap().len(), 2);
        let rows = json["targets"].as_array().unwrap();
        for row in rows {
            for key in ["id", "unit", "runs", "value", "want", "met", "threads", "cause"] {
                assert!(row.get(key).is_some(), "{key} of {row}");
            }
        }
        let row = |id: &str| rows.iter().find(|row| row["id"] == id).unwrap();
        assert_eq!(
            (&row("rss-mib")["met"], &row("rss-mib")["value"]),
            (&true.into(), &180.0.into())
        );
        assert_eq!(row("switch-hit-ns")["met"], false);
        assert_eq!(row("switch-hit-ns")["cause"], "unsteady machine; void: again");
        assert_eq!(row("net-p50-vs-kernel")["value"], Value::Null);
        let back: Report = serde_json::from_value(json).unwrap();
        assert_eq!(back, report);
    }
}
