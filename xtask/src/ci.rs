//! `ci`: what a change must pass, in stages, each with its time. `.ci/run` calls exactly this.

use crate::error::Error;
use crate::test::Totals;
use crate::{bpf, demo, process, setup, test, tidy};
use std::time::{Duration, Instant};

/// Runs what every change must pass
///
/// Formatting, clippy, the project's own rules, the XDP object, every test and the demo. Stops at
/// the first stage that fails, and prints the time of each.
#[derive(clap::Args)]
pub struct Args {}

/// A named part of the run.
struct Stage {
    name: &'static str,
    run: fn(&mut Totals) -> Result<(), Error>,
}

const STAGES: &[Stage] = &[
    Stage { name: "setup", run: |_| setup::prepare_for_ci() },
    Stage { name: "fmt", run: |_| fmt() },
    Stage { name: "clippy", run: |_| clippy() },
    Stage { name: "tidy", run: |_| tidy::run(&tidy::Args {}) },
    Stage { name: "bpf", run: |_| bpf::check_for_ci() },
    Stage { name: "test", run: test_all },
    Stage { name: "demo", run: |_| demo::run_for_ci() },
];

/// Runs the stages in order; the last line tells the tests' totals.
pub fn run(_args: &Args) -> Result<(), Error> {
    let mut totals = Totals::default();
    let mut times: Vec<(&str, Duration)> = Vec::new();
    let mut outcome = Ok(());
    for stage in STAGES {
        println!("== {}", stage.name);
        let start = Instant::now();
        outcome = (stage.run)(&mut totals);
        times.push((stage.name, start.elapsed()));
        if outcome.is_err() {
            break;
        }
    }
    println!("{}", table(&times, outcome.is_ok()));
    if let Err(error) = outcome {
        eprintln!("error: {}: {error}", times.last().map_or("ci", |(name, _)| name));
        totals.failed = totals.failed.max(1);
    }
    println!("{totals}");
    match totals.failed {
        0 => Ok(()),
        _ => Err(Error::Reported),
    }
}

fn fmt() -> Result<(), Error> {
    process::run(process::cargo().args(["fmt", "--all", "--check"]))?;
    // Not a member of the workspace.
    let programs = ["fmt", "--manifest-path", "ebpf/prog/Cargo.toml", "--check"];
    process::run(process::cargo().args(programs))
}

/// Without and with DPDK.
fn clippy() -> Result<(), Error> {
    for features in [&[][..], &["--features", "outboard-bench/dpdk"]] {
        let mut clippy = process::cargo();
        clippy.args(["clippy", "--workspace", "--all-targets", "--locked"]).args(features);
        process::run(clippy.args(["--", "-D", "warnings"]))?;
    }
    Ok(())
}

/// Every test; one that cannot run on the machine of CI counts as failed.
fn test_all(totals: &mut Totals) -> Result<(), Error> {
    *totals = test::run_tests(false, true, &[])?;
    match totals.failed {
        0 => Ok(()),
        _ => Err(Error::Reported),
    }
}

fn table(times: &[(&str, Duration)], all_passed: bool) -> String {
    let mut text = String::from("\nstage      time  outcome\n");
    for (index, (name, time)) in times.iter().enumerate() {
        let failed = !all_passed && index + 1 == times.len();
        let outcome = if failed { "FAILED" } else { "ok" };
        text += &format!("{name:<8} {:>6.1}s  {outcome}\n", time.as_secs_f64());
    }
    for stage in STAGES.iter().skip(times.len()) {
        text += &format!("{:<8} {:>7}  not reached\n", stage.name, "");
    }
    let total: Duration = times.iter().map(|(_, time)| *time).sum();
    text + &format!("{:<8} {:>6.1}s\n", "all", total.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_tells_what_failed_and_what_was_not_reached() {
        let times = [("setup", Duration::from_millis(1500)), ("fmt", Duration::from_secs(2))];
        let text = table(&times, false);
        assert!(text.contains("setup       1.5s  ok"), "{text}");
        assert!(text.contains("fmt         2.0s  FAILED"), "{text}");
        assert!(text.contains("not reached"), "{text}");
        assert!(text.contains("all         3.5s"), "{text}");
    }
}
