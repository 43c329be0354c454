//! The figures of a document, each with its runs and with what makes it comparable.

use crate::schema::{Measurement, Report, Run, Target};

/// One figure of a document.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What names it in both documents.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// Every run's value.
    pub runs: Vec<f64>,
    /// Which way is better.
    pub lower_is_better: bool,
    /// A ratio of two figures of one run: comparable between machines.
    pub is_ratio: bool,
    /// Outboard's own figure: becoming worse is a regression.
    pub is_ours: bool,
    /// Why it does not count, if it does not.
    pub void: Option<String>,
}

/// All figures of a document: those of its targets first.
pub fn of(report: &Report) -> Vec<Figure> {
    let targets = report.targets.iter().map(of_target);
    targets.chain(report.measurements.iter().flat_map(of_measurement)).collect()
}

fn of_target(target: &Target) -> Figure {
    let void = target.cause.split("; ").find(|part| part.starts_with("void"));
    Figure {
        name: target.id.clone(),
        unit: target.unit.clone(),
        runs: target.runs.clone(),
        lower_is_better: !target.want.starts_with(">="),
        is_ratio: target.unit == "ratio",
        is_ours: true,
        void: void.map(str::to_owned),
    }
}

fn of_measurement(m: &Measurement) -> Vec<Figure> {
    let own = [m.figures()];
    let runs: &[Run] = if m.runs.is_empty() { &own } else { &m.runs };
    let name = |what: &str| format!("{}, {}: {what}", m.group, m.path);
    let figure = |what: &str, unit: &str, runs: Vec<f64>, lower_is_better: bool| Figure {
        name: name(what),
        unit: unit.to_owned(),
        runs,
        lower_is_better,
        is_ratio: false,
        is_ours: !m.baseline && !m.peer,
        void: None,
    };
    let mut all = Vec::new();
    // An open loop's rate is what was asked for.
    if m.asked_rate_per_s.is_none() {
        let rates = runs.iter().map(|run| run.rate_per_s).collect();
        let limited = m.generator_limited.then(|| "limited by the generator".to_owned());
        all.push(Figure { void: limited, ..figure("rate", "/s", rates, false) });
    }
    let percentiles = [
        ("p50", runs.iter().map(|run| run.p50_ns).collect()),
        ("p99", runs.iter().map(|run| run.p99_ns).collect()),
        ("p99.9", runs.iter().map(|run| run.p999_ns).collect()),
    ];
    for (what, found) in percentiles {
        // A percentile that some runs are too short for is none.
        let found: Option<Vec<u64>> = found;
        if let Some(found) = found {
            let us = found.iter().map(|ns| *ns as f64 / 1e3).collect();
            all.push(figure(what, "µs", us, true));
        }
    }
    let failures = [m.verify_failures, m.errors, m.lost].map(|count| count as f64);
    all.push(figure("failed requests", "", vec![failures.iter().sum()], true));
    all
}
