//! `sim`: the simulation of two hosts, over many seeds, and of its own worth (`--planted`).
//!
//! One build of the test program `sim` of `outboard` with all checks; then one process per core,
//! each with its share of the seeds. A seed decides everything: see `dataplane/tests/sim`.

mod planted;
mod program;

use crate::error::Error;
use program::{Outcome, Program};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Seeds of a run that is to end in a minute or two.
pub const SEEDS: u64 = 200;
/// Seeds from which on everything of the program's floor must have been reached.
const ENOUGH_SEEDS: u64 = 10;
/// Seeds with `--long`.
pub const LONG_SEEDS: u64 = 2_000;

const AFTER_HELP: &str = "\
Examples:
  cargo xtask sim                        200 seeds, as CI runs them
  cargo xtask sim --from 17 --seeds 1    one seed again
  cargo xtask sim --planted              every planted defect must be caught
  cargo xtask sim --planted --defect fence-skipped";

/// Simulates two hosts, their network and their storage, from seeds
///
/// Switch, workers' rooms, rings, NVMe/TCP engines, remote volumes, exports and fencing are the
/// real ones; links, streams, disk, time and faults follow from the seed. Prints the states and
/// reasons that were reached, and for a failure the command that repeats it.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// How many seeds [default: 200, with --long 2000].
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Ten times as many seeds; with `--planted`, every defect from three seeds on.
    #[arg(long)]
    long: bool,
    /// Builds with the planted defects and runs each until the simulation catches it; fails if it
    /// does not.
    #[arg(long)]
    planted: bool,
    /// Only the planted defects whose names contain this.
    #[arg(long, requires = "planted")]
    defect: Option<String>,
    /// The result as JSON on standard output.
    #[arg(long)]
    json: bool,
}

/// Runs what the arguments ask for.
pub fn run(args: &Args) -> Result<(), Error> {
    if args.planted {
        let filter = args.defect.as_deref().unwrap_or("");
        let all_caught = planted::run(filter, args.long, args.json)?;
        return if all_caught { Ok(()) } else { Err(Error::Reported) };
    }
    let count = args.seeds.unwrap_or(if args.long { LONG_SEEDS } else { SEEDS });
    let report = simulate(args.from, count)?;
    report.print(args.json);
    if report.failures.is_empty() { Ok(()) } else { Err(Error::Reported) }
}

/// Runs the seeds that CI runs, or with `long` ten times as many; whether all held.
pub fn test(long: bool) -> Result<bool, Error> {
    let report = simulate(1, if long { LONG_SEEDS } else { SEEDS })?;
    report.print(false);
    Ok(report.failures.is_empty())
}

/// Whether the simulation catches every planted defect, with `long` from several seeds on.
pub fn test_planted(long: bool) -> Result<bool, Error> {
    planted::run("", long, false)
}

/// What some seeds came to.
struct Report {
    first: u64,
    count: u64,
    seconds: f64,
    events: u64,
    /// States and reasons that were reached, and how often.
    reached: BTreeMap<String, u64>,
    failures: Vec<String>,
}

fn simulate(first: u64, count: u64) -> Result<Report, Error> {
    let program = Program::build(false)?;
    let start = Instant::now();
    let outcomes = program.run_all(first, count)?;
    let mut report = Report {
        first,
        count,
        seconds: start.elapsed().as_secs_f64(),
        events: 0,
        reached: BTreeMap::new(),
        failures: Vec::new(),
    };
    let mut floor = BTreeSet::new();
    for Outcome { reached, floor: wanted, events, failure } in outcomes {
        report.events += events;
        floor.extend(wanted);
        report.failures.extend(failure.map(|failure| failure.text));
        for (name, times) in reached {
            *report.reached.entry(name).or_default() += times;
        }
    }
    if count >= ENOUGH_SEEDS && report.failures.is_empty() {
        report.failures.extend(below(&floor, &report.reached));
    }
    Ok(report)
}

/// What to say of a floor that was not reached by all seeds together.
fn below(floor: &BTreeSet<String>, reached: &BTreeMap<String, u64>) -> Option<String> {
    let missing: Vec<_> = floor.iter().filter(|name| !reached.contains_key(*name)).collect();
    if floor.is_empty() {
        return Some("the program names no floor: update how its lines are read".into());
    }
    (!missing.is_empty()).then(|| format!("never reached by any seed: {missing:?}"))
}

impl Report {
    fn print(&self, as_json: bool) {
        let Report { first, count, seconds, events, .. } = self;
        if as_json {
            let value = serde_json::json!({
                "first_seed": first,
                "seeds": count,
                "seconds": seconds,
                "events": events,
                "reached": self.reached,
                "failures": self.failures,
            });
            println!("{value:#}");
            return;
        }
        for (name, times) in &self.reached {
            println!("  {name:<44} {times:>12}");
        }
        for failure in &self.failures {
            println!("{failure}");
        }
        let outcome = if self.failures.is_empty() { "all held" } else { "FAILED" };
        println!(
            "{count} seeds from {first}: {events} events in {seconds:.1} s, {} states and reasons \
             reached; {outcome}",
            self.reached.len(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_is_checked_over_what_all_reached() {
        let floor: BTreeSet<String> = ["a.one", "a.two"].map(String::from).into();
        let mut reached = BTreeMap::from([("a.one".to_owned(), 3), ("b".to_owned(), 1)]);
        assert_eq!(below(&floor, &reached).unwrap(), "never reached by any seed: [\"a.two\"]");
        reached.insert("a.two".into(), 1);
        assert_eq!(below(&floor, &reached), None);
        assert!(below(&BTreeSet::new(), &reached).is_some());
    }
}
