//! What is told of ledgers: a table per kind, for people and as JSON.

use super::{Entry, Kind, Ledger, Ledgers, Subject};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The percentiles that are told.
const PERCENTILES: [f64; 3] = [50.0, 99.0, 99.9];
/// Of the slowest, stages with less of the time than this are not spelled out.
const SPELLED_SHARE: f64 = 0.05;

/// Every kind that had entries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// How long was looked.
    pub seconds: f64,
    /// By kind.
    pub tables: Vec<Table>,
}

/// The entries of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// What they were.
    pub kind: String,
    /// How many.
    pub entries: u64,
    /// The stages' names and what happens in each, in order.
    pub stages: Vec<(String, String)>,
    /// Percentiles.
    pub points: Vec<Point>,
    /// The slowest, slowest first.
    pub slowest: Vec<Slow>,
}

/// One percentile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Which, in percent.
    pub percentile: f64,
    /// The whole time; `None`: too few entries lie beyond.
    pub total_ns: Option<f64>,
    /// The part that each stage has of it, summing to 1; empty without a total.
    pub shares: Vec<f64>,
}

/// One slow packet or I/O.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Slow {
    /// When it began, after the ledger did.
    pub after_s: f64,
    /// What it was: "read of disk web, 4096 B".
    pub what: String,
    /// The whole time.
    pub total_ns: u64,
    /// Time in each stage.
    pub stages_ns: Vec<u64>,
}

impl Report {
    /// What `ledgers` say until `now_ns`; `name` names what entries are about.
    pub fn of(ledgers: &Ledgers, now_ns: u64, name: impl Fn(&Subject) -> String) -> Report {
        let used = Kind::ALL.into_iter().filter(|kind| ledgers.of(*kind).count() > 0);
        let table = |kind| Table::of(kind, ledgers.of(kind), ledgers.since_ns, &name);
        Report {
            seconds: now_ns.saturating_sub(ledgers.since_ns) as f64 / 1e9,
            tables: used.map(table).collect(),
        }
    }
}

impl Table {
    fn of(kind: Kind, ledger: &Ledger, since_ns: u64, name: &impl Fn(&Subject) -> String) -> Table {
        let stages = kind.stages();
        let point = |percentile: f64| {
            let at = ledger.at(percentile / 100.0);
            Point {
                percentile,
                total_ns: at.map(|at| at.total_ns),
                shares: at.map_or(Vec::new(), |at| at.shares[..stages.len()].to_vec()),
            }
        };
        let slow = |entry: &Entry| Slow {
            after_s: entry.began_ns.saturating_sub(since_ns) as f64 / 1e9,
            what: format!("{}, {} B", name(&entry.subject), entry.bytes),
            total_ns: entry.total_ns(),
            stages_ns: entry.stages_ns[..stages.len()].to_vec(),
        };
        Table {
            kind: kind.name().into(),
            entries: ledger.count(),
            stages: stages.iter().map(|(name, means)| ((*name).into(), (*means).into())).collect(),
            points: PERCENTILES.map(point).into(),
            slowest: ledger.slowest().map(slow).collect(),
        }
    }
}

impl Slow {
    /// Where the time was, longest first: "target 96 % (1.20 ms), queue 3 % (40 µs)".
    pub fn spelled(&self, stages: &[(String, String)]) -> String {
        let mut parts: Vec<_> = stages.iter().zip(&self.stages_ns).collect();
        parts.sort_by_key(|(_, ns)| std::cmp::Reverse(**ns));
        let whole = self.total_ns.max(1) as f64;
        let parts: Vec<_> = parts
            .into_iter()
            .enumerate()
            .filter(|(place, (_, ns))| *place == 0 || **ns as f64 >= SPELLED_SHARE * whole)
            .map(|(_, ((name, _), ns))| {
                format!("{name} {:.0} % ({})", *ns as f64 / whole * 100.0, time(*ns as f64))
            })
            .collect();
        parts.join(", ")
    }
}

/// Nanoseconds with three digits and a unit.
pub fn time(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 999.5 => return format!("{ns:.0} ns"),
        ns if ns < 999.5e3 => (ns / 1e3, "µs"),
        ns if ns < 999.5e6 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tables.is_empty() {
            return writeln!(f, "nothing went through in {:.1} s", self.seconds);
        }
        for (index, table) in self.tables.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            writeln!(f, "{}: {} in {:.1} s", table.kind, table.entries, self.seconds)?;
            write!(f, "{table}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  {:<8}", "stage")?;
        for point in &self.points {
            write!(f, "  {:>16}", format!("p{}", point.percentile))?;
        }
        writeln!(f)?;
        for (index, (name, means)) in self.stages.iter().enumerate() {
            write!(f, "  {name:<8}")?;
            for point in &self.points {
                let cell = match (point.total_ns, point.shares.get(index)) {
                    (Some(ns), Some(share)) => {
                        format!("{:.0} % {:>9}", share * 100.0, time(share * ns))
                    }
                    _ => "–".into(),
                };
                write!(f, "  {cell:>16}")?;
            }
            writeln!(f, "  {means}")?;
        }
        write!(f, "  {:<8}", "total")?;
        for point in &self.points {
            write!(f, "  {:>16}", point.total_ns.map_or("–".into(), time))?;
        }
        writeln!(f, "\n  the slowest:")?;
        for slow in &self.slowest {
            let total = time(slow.total_ns as f64);
            let spelled = slow.spelled(&self.stages);
            writeln!(f, "    {total:>9}  {} at {:.3} s: {spelled}", slow.what, slow.after_s)?;
        }
        Ok(())
    }
}
