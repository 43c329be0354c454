//! `targets.toml`: bounds, and the sizes of reference programs on known machines.

use crate::error::Error;
use crate::report::summary::{median, spread};
use crate::schema::Target;
use serde::Deserialize;

/// The rows that are built in.
const TEXT: &str = include_str!("../../targets.toml");

/// Everything in the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Targets {
    target: Vec<Row>,
    reference: Vec<Reference>,
}

/// One id.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: String,
    suite: String,
    unit: String,
    want: Option<String>,
    either: Option<String>,
    compares: String,
}

/// What a reference program reaches on a machine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    id: String,
    cpu: String,
    size: f64,
    better: Better,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Better {
    Higher,
    Lower,
}

/// A reference below this share of its recorded size voids the run.
const VOID_BELOW: f64 = 0.7;

/// What a suite found out for one id.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Every run's value.
    pub runs: Vec<f64>,
    /// The thread census of a run.
    pub threads: Vec<String>,
    /// What explains or marks the figure.
    pub remarks: Vec<String>,
    /// The figures behind the last run's value.
    pub detail: String,
}

impl Targets {
    /// The rows that are built in.
    pub fn built_in() -> Targets {
        toml::from_str(TEXT).expect("targets.toml is checked by tests")
    }

    /// The rows of a suite with what was found; rows without runs say so.
    pub fn judge(&self, suite: &str, mut found: impl FnMut(&str) -> Option<Found>) -> Vec<Target> {
        let rows = self.target.iter().filter(|row| row.suite == suite);
        rows.map(|row| row.judge(found(&row.id).unwrap_or_default())).collect()
    }

    /// Refuses ids of which the suite has no target.
    pub fn check(&self, suite: &str, ids: &[String]) -> Result<(), Error> {
        let rows = self.target.iter().filter(|row| row.suite == suite);
        let known: Vec<_> = rows.map(|row| row.id.as_str()).collect();
        match ids.iter().find(|id| !known.contains(&id.as_str())) {
            None => Ok(()),
            Some(unknown) => Err(Error::Refused(format!(
                "suite {suite} has no target \"{unknown}\"; want one of {}",
                known.join(", ")
            ))),
        }
    }

    /// Why a reference's figure on this processor voids the run, if it does.
    pub fn void(&self, id: &str, cpu: &str, value: f64) -> Option<String> {
        let known = self.reference.iter().find(|r| r.id == id && cpu.starts_with(&r.cpu))?;
        let share = match known.better {
            Better::Higher => value / known.size,
            Better::Lower => known.size / value,
        };
        (share < VOID_BELOW).then(|| {
            format!("reference {id} is {value:.2}, only {share:.2} of its recorded {}", known.size)
        })
    }
}

impl Row {
    fn judge(&self, found: Found) -> Target {
        let value = median(&found.runs);
        let met = value.zip(self.bound()).map(|(value, bound)| bound.holds(value));
        let mut cause = found.remarks;
        match value {
            None if cause.is_empty() => cause.push("not measured".into()),
            Some(_) if met == Some(false) && !found.detail.is_empty() => {
                cause.insert(0, format!("last run: {}", found.detail));
            }
            Some(_) if met == Some(false) && cause.is_empty() => {
                let (low, high) = spread(&found.runs).unwrap_or_default();
                cause.push(format!("runs from {low:.2} to {high:.2} {}", self.unit));
            }
            _ => {}
        }
        Target {
            id: self.id.clone(),
            unit: self.unit.clone(),
            runs: found.runs,
            value,
            want: self.want.clone().unwrap_or_default(),
            met,
            threads: found.threads,
            cause: cause.join("; "),
            compares: self.compares.clone(),
            either: self.either.clone(),
        }
    }

    fn bound(&self) -> Option<Bound> {
        Bound::parse(self.want.as_deref()?)
    }
}

/// `<= 1.3` or `>= 0.9`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn parse(text: &str) -> Option<Bound> {
        let (sign, number) = text.split_once(' ')?;
        let number = number.parse().ok()?;
        match sign {
            "<=" => Some(Bound::AtMost(number)),
            ">=" => Some(Bound::AtLeast(number)),
            _ => None,
        }
    }

    fn holds(self, value: f64) -> bool {
        match self {
            Bound::AtMost(bound) => value <= bound,
            Bound::AtLeast(bound) => value >= bound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The ids that were promised. One may be added; none may go or change its meaning.
    const IDS: [(&str, &[&str]); 3] = [
        (
            "net",
            &[
                "net-throughput-vs-reflector",
                "net-p50-vs-reflector",
                "net-p99-vs-reflector",
                "net-p50-vs-kernel",
                "net-v6-vs-v4",
                "switch-hit-ns",
                "switch-hit-scaling",
                "switch-hit-v6-ns",
                "dpdk-port-added-ns",
                "rss-mib",
                "net-handoff-cost",
                "idle-pct",
                "wake-vs-eventfd",
            ],
        ),
        (
            "block",
            &[
                "blk-local-p50-us",
                "blk-local-vs-echo-p50",
                "nvme-tcp-p50-us",
                "nvme-tcp-vs-raw-p50",
                "remote-file-added-us",
                "remote-file-added-20-us",
                "blk-vs-qsd-p50",
                "blk-vs-qsd-p99",
                "blk-vs-qsd-iops",
                "blk-null-vs-qsd-p50",
                "blk-null-vs-qsd-p99",
                "blk-null-vs-qsd-iops",
                "remote-vs-qsd-nbd-p50",
                "remote-vs-qsd-nbd-iops",
                "file-vs-fio-pct",
            ],
        ),
        ("ledger", &["ledger-cost-ns-packet", "ledger-cost-ns-io", "ledger-off-ns-io"]),
    ];

    #[test]
    fn the_file_has_exactly_the_promised_ids() {
        let targets = Targets::built_in();
        for (suite, ids) in IDS {
            let rows = targets.judge(suite, |_| None);
            let all: Vec<_> = rows.iter().map(|row| row.id.clone()).collect();
            assert!(targets.check(suite, &all).is_ok());
            let unknown = targets.check(suite, &["nothing".into()]).unwrap_err().to_string();
            assert!(unknown.contains("no target \"nothing\"; want one of"), "{unknown}");
            let have: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
            assert_eq!(have, ids);
        }
        let all: BTreeSet<_> = targets.target.iter().map(|row| &row.id).collect();
        assert_eq!(all.len(), IDS.iter().map(|(_, ids)| ids.len()).sum::<usize>());
    }

    #[test]
    fn bounds_parse_and_alternatives_name_each_other() {
        let targets = Targets::built_in();
        let reported = [
            "net-p50-vs-kernel",
            "remote-file-added-us",
            "ledger-cost-ns-packet",
            "ledger-cost-ns-io",
            "ledger-off-ns-io",
        ];
        for row in &targets.target {
            assert_eq!(row.bound().is_none(), reported.contains(&row.id.as_str()), "{}", row.id);
            if let Some(either) = &row.either {
                let other = targets.target.iter().find(|other| other.id == *either).unwrap();
                assert_eq!(other.either.as_ref(), Some(&row.id));
            }
        }
    }

    #[test]
    fn a_median_is_judged_at_its_bound() {
        let targets = Targets::built_in();
        let judge = |value: f64| {
            let runs = vec![0.0, value, 9.0];
            let found = Found { runs, ..Found::default() };
            let rows =
                targets.judge("net", |id| (id == "switch-hit-scaling").then(|| found.clone()));
            rows.into_iter().find(|row| row.id == "switch-hit-scaling").unwrap()
        };
        assert_eq!((judge(1.5).met, judge(1.5).value), (Some(true), Some(1.5)));
        let missed = judge(1.51);
        assert_eq!(missed.met, Some(false));
        assert!(missed.cause.contains("0.00 to 9.00"), "{}", missed.cause);
        assert_eq!(targets.judge("net", |_| None)[0].cause, "not measured");
    }

    #[test]
    fn a_slow_reference_voids_on_its_own_machine_only() {
        let targets = Targets::built_in();
        assert_eq!(targets.void("reflector-mpps", "AMD EPYC 9", 0.57), None);
        assert!(targets.void("reflector-mpps", "AMD EPYC 9", 0.55).unwrap().contains("0.69"));
        assert!(targets.void("raw-tcp-p50-us", "AMD EPYC 9", 20.4).is_some());
        assert_eq!(targets.void("raw-tcp-p50-us", "Other", 99.0), None);
    }
}
