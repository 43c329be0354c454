//! `test`: set-up, every test of the workspace and the jobs in a Linux guest, then one summary.
//!
//! A test that cannot run on this machine prints [`NOT_RUN`] and its reason, and returns; the
//! summary lists it, which with `--strict` (CI) counts as a failure. It also lists what tests that
//! passed found out ([`TOLD`]). The last line that the task prints is always `N passed, N failed`.

use crate::error::Error;
use crate::{guest, process, setup, sim};
use std::fmt;
use std::io::{BufRead, BufReader};
use std::process::{ExitStatus, Stdio};

/// What a test prints, followed by the reason, when it cannot run on this machine.
pub const NOT_RUN: &str = "not run here: ";

/// What a test prints, followed by what it measured and does not judge: the summary has it.
const TOLD: &str = "told: ";

/// Sets the machine up and runs every test
///
/// Needs what the data plane needs: tests make their own network namespaces and load XDP
/// programs. The jobs of `cargo xtask guest` are tests too, named guest::JOB. A test that cannot
/// run here is listed with its reason.
#[derive(clap::Args)]
pub struct Args {
    /// Longer fuzzing, simulation and soak (OUTBOARD_TEST_LONG=1).
    #[arg(long)]
    long: bool,
    /// A test that cannot run here is a failure, as in CI.
    #[arg(long)]
    strict: bool,
    /// Only tests whose name contains one of these.
    filters: Vec<String>,
}

/// Prepares and tests; fails unless every test passed.
pub fn run(args: &Args) -> Result<(), Error> {
    let outcome =
        setup::prepare_for_tests().and_then(|()| run_tests(args.long, args.strict, &args.filters));
    match outcome {
        Ok(totals) if totals.failed == 0 => {
            println!("{totals}");
            Ok(())
        }
        Ok(totals) => {
            println!("{totals}");
            Err(Error::Reported)
        }
        Err(error) => {
            eprintln!("error: {error}");
            println!("{}", Totals { passed: 0, failed: 1 });
            Err(Error::Reported)
        }
    }
}

/// How many tests passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Tests that ran and held.
    pub passed: u64,
    /// Tests that failed, and with `--strict` those that did not run.
    pub failed: u64,
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// Runs every test whose name contains one of `filters` (all, if there are none) and prints the
/// summary except its last line.
pub fn run_tests(long: bool, strict: bool, filters: &[String]) -> Result<Totals, Error> {
    let mut summary = Summary::default();
    let mut status = run_cargo(&["--workspace"], long, filters, &mut summary)?;
    if setup::has_dpdk() {
        let own: Vec<String> = DPDK_TESTS.map(String::from).to_vec();
        let filters = if filters.is_empty() { &own } else { filters };
        let with_dpdk = run_cargo(DPDK_TARGETS, long, filters, &mut summary)?;
        status = if status.success() { with_dpdk } else { status };
    } else {
        let what = "DPDK is not installed; `cargo xtask setup --dpdk`".to_string();
        // Passed, less those that did not run.
        summary.results.passed += 1;
        summary.not_run.push(("the feature dpdk".into(), what));
    }
    if filters.is_empty() {
        summary.add_simulation("sim::seeds", sim::test(long)?);
        summary.add_simulation("sim::planted", sim::test_planted(long)?);
    }
    summary.add_guests(guest::test(filters)?);
    summary.print();
    let mut totals = summary.totals();
    if strict {
        totals.failed += summary.not_run.len() as u64;
    }
    // The build failed, or a test program died before it could say which test it was in.
    if !status.success() && summary.results.failed == 0 {
        eprintln!("error: cargo test ended with {}", process::status_text(status));
        totals.failed += 1;
    }
    Ok(totals)
}

/// What is built once more, with DPDK.
const DPDK_TARGETS: &[&str] = &[
    "--package",
    "outboard-dpdk-sys",
    "--package",
    "outboard",
    "--package",
    "outboard-bench",
    "--features",
    "outboard-bench/dpdk",
    "--lib",
    "--bin",
    "outboard-bench",
    "--test",
    "dpdk",
    "--test",
    "daemon",
];
/// The tests that this adds.
const DPDK_TESTS: [&str; 6] = ["dpdk::", "eal::", "conforms::", "hotplug::", "null::", "peers::"];

/// Runs the tests of some targets.
fn run_cargo(
    targets: &[&str],
    long: bool,
    filters: &[String],
    summary: &mut Summary,
) -> Result<ExitStatus, Error> {
    let mut command = process::cargo();
    // --show-output: what passing tests print is where NOT_RUN stands.
    command.arg("test").args(targets);
    command.args(["--locked", "--no-fail-fast", "--", "--show-output"]);
    command.args(filters);
    if long {
        command.env("OUTBOARD_TEST_LONG", "1");
    }
    let mut child =
        command.stdout(Stdio::piped()).spawn().map_err(process::start_error(&command))?;
    let stdout = child.stdout.take().expect("stdout is piped");
    // Bytes, not `lines()`: what a test prints need not be UTF-8, and must not end the reading.
    for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        if summary.take(&line) {
            println!("{line}");
        }
    }
    child.wait().map_err(process::start_error(&command))
}

/// What cargo's output has told so far.
#[derive(Debug, Default)]
struct Summary {
    /// The sum of libtest's result lines.
    results: Totals,
    /// Jobs in a guest, and the simulation.
    guests: Totals,
    failed: Vec<String>,
    not_run: Vec<(String, String)>,
    /// What tests and jobs found out.
    told: Vec<(String, String)>,
    /// Inside libtest's listing of what passing tests printed.
    in_successes: bool,
    /// The test whose output is being listed.
    test: String,
}

impl Summary {
    /// Reads one line; whether it is worth showing.
    fn take(&mut self, line: &str) -> bool {
        if let Some((passed, failed)) = result_line(line) {
            self.results.passed += passed;
            self.results.failed += failed;
            self.in_successes = false;
            return true;
        }
        if let Some(name) = line.strip_prefix("test ").and_then(|l| l.strip_suffix(" ... FAILED")) {
            self.failed.push(name.to_string());
        }
        match line {
            "successes:" => self.in_successes = true,
            "failures:" => self.in_successes = false,
            _ => {}
        }
        let heading = line.strip_prefix("---- ").and_then(|l| l.strip_suffix(" stdout ----"));
        if let Some(name) = heading {
            self.test = name.to_string();
        }
        if let Some(reason) = line.trim_start().strip_prefix(NOT_RUN) {
            self.not_run.push((self.test.clone(), reason.to_string()));
        }
        if let Some(text) = line.trim_start().strip_prefix(TOLD) {
            self.told.push((self.test.clone(), text.to_string()));
        }
        !self.in_successes
    }

    /// The seeds of `cargo xtask sim` count as one test, and so do the planted defects.
    fn add_simulation(&mut self, name: &str, held: bool) {
        self.guests.passed += u64::from(held);
        self.guests.failed += u64::from(!held);
        if !held {
            self.failed.push(name.into());
        }
    }

    fn add_guests(&mut self, tested: guest::Tested) {
        // Counted as libtest does, see `totals`.
        self.guests.passed += (tested.passed.len() + tested.not_run.len()) as u64;
        self.guests.failed += tested.failed.len() as u64;
        self.failed.extend(tested.failed);
        self.not_run.extend(tested.not_run);
        let times = tested.took.into_iter().map(|(name, took)| (name, guest::judge(took)));
        self.told.extend(times);
    }

    /// libtest counts a test that did not run as passed; here it is neither.
    fn totals(&self) -> Totals {
        let passed = self.results.passed + self.guests.passed;
        Totals {
            passed: passed.saturating_sub(self.not_run.len() as u64),
            failed: self.results.failed + self.guests.failed,
        }
    }

    fn print(&self) {
        println!();
        for (name, text) in &self.told {
            println!("told          {name}: {text}");
        }
        for (name, reason) in &self.not_run {
            println!("not run here  {name}: {reason}");
        }
        for name in &self.failed {
            println!("failed        {name}");
        }
    }
}

/// Passed and failed of `test result: ok. 5 passed; 0 failed; …`.
fn result_line(line: &str) -> Option<(u64, u64)> {
    let counts = line.strip_prefix("test result: ")?;
    let count = |word: &str| -> Option<u64> {
        let before = counts[..counts.find(word)?].trim_end();
        before.rsplit(' ').next()?.parse().ok()
    };
    Some((count("passed")?, count("failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const OUTPUT: &str = "\
running 3 tests
test a::holds ... ok
test a::needs_bpf ... ok
test a::breaks ... FAILED

successes:

---- a::needs_bpf stdout ----
not run here: CAP_BPF is missing

---- a::holds stdout ----
told: a pause of 0.2 s


successes:
    a::holds
    a::needs_bpf

failures:

---- a::breaks stdout ----
assertion failed

failures:
    a::breaks

test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.01s

running 1 test
test b ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn totals_add_up_over_programs_and_leave_out_what_did_not_run() {
        let mut summary = Summary::default();
        let shown: Vec<&str> = OUTPUT.lines().filter(|line| summary.take(line)).collect();
        assert_eq!(summary.totals(), Totals { passed: 2, failed: 1 });
        assert_eq!(summary.failed, ["a::breaks"]);
        assert_eq!(
            summary.not_run,
            [("a::needs_bpf".to_string(), "CAP_BPF is missing".to_string())]
        );
        assert_eq!(summary.told, [("a::holds".to_string(), "a pause of 0.2 s".to_string())]);
        assert!(shown.contains(&"assertion failed"), "a failure's output is shown");
        assert!(!shown.contains(&"---- a::needs_bpf stdout ----"), "a success's is not");
    }

    #[test]
    fn the_simulation_counts_as_two_tests() {
        let mut summary = Summary::default();
        summary.add_simulation("sim::seeds", true);
        summary.add_simulation("sim::planted", false);
        assert_eq!(summary.totals(), Totals { passed: 1, failed: 1 });
        assert_eq!(summary.failed, ["sim::planted"]);
    }

    #[test]
    fn jobs_in_a_guest_count_as_tests() {
        let mut summary = Summary::default();
        for line in OUTPUT.lines() {
            summary.take(line);
        }
        summary.add_guests(guest::Tested {
            passed: vec!["guest::boot".into()],
            failed: vec!["guest::virtio-blk".into()],
            not_run: vec![("guest::nvme-tcp".into(), "no TAP".into())],
            took: vec![
                ("guest::boot".into(), Duration::from_millis(8_240)),
                ("guest::virtio-blk".into(), Duration::from_millis(60_100)),
            ],
        });
        let told: Vec<&str> = summary.told[1..].iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(told, ["took 8.2 s", "took 60.1 s, MORE THAN 60 s"]);
        assert_eq!(summary.totals(), Totals { passed: 3, failed: 2 });
        assert_eq!(summary.failed, ["a::breaks", "guest::virtio-blk"]);
        assert_eq!(summary.not_run.len(), 2);
    }

    #[test]
    fn the_last_line_has_its_form() {
        assert_eq!(Totals { passed: 12, failed: 0 }.to_string(), "12 passed, 0 failed");
    }
}
