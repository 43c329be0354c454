//! `bench`: builds the daemon and the harness in release mode and hands over to
//! `outboard-bench suite`, which owns the suites, their targets and their verdicts.

use crate::error::Error;
use crate::stop::Stop;
use crate::{child, process, setup};
use std::path::PathBuf;
use std::process::Command;

const AFTER_HELP: &str = "\
Examples:
  cargo xtask bench net --quick --json old.json        before a change
  cargo xtask bench net --quick --json new.json        after it
  cargo xtask bench net --only dpdk-port-added-ns      one target alone
  target/release/outboard-bench compare old.json new.json
                                                       what changed beyond the spread of the runs
  cargo xtask bench ledger --json ledger.json          stages of packets and I/Os
  target/release/outboard-bench report --out report ledger.json
                                                       the same as a page with plots";

/// Builds in release mode and measures
///
/// Runs one suite of outboard-bench: Outboard beside reference programs, judged by the bounds in
/// bench/targets.toml. Needs root and two cores; figures count only when nothing else runs on the
/// machine.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// net (frames, the switch, memory), block (disks, local and remote) or ledger (where packets
    /// and I/Os spend their time, and what it costs to know).
    suite: String,
    /// Shorter runs, for a first look: at most 3 minutes.
    #[arg(long)]
    quick: bool,
    /// Only the parts of the suite that measure these targets (ids of bench/targets.toml).
    #[arg(long, value_name = "ID[,ID]")]
    only: Option<String>,
    /// Writes every run's value to FILE, for `outboard-bench report` and `compare`.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Builds and runs the suite.
pub fn run(args: &Args) -> Result<(), Error> {
    let programs = build_release(&Stop::install()?)?;
    if !setup::has_dpdk() {
        println!(
            "not run here: dpdk-port-added-ns: DPDK is not installed; `cargo xtask setup --dpdk`"
        );
    }
    let mut command = Command::new(programs.join("outboard-bench"));
    command.args(["suite", &args.suite]);
    if args.quick {
        command.arg("--quick");
    }
    if let Some(ids) = &args.only {
        command.args(["--only", ids]);
    }
    if let Some(file) = &args.json {
        command.arg("--json").arg(file);
    }
    process::run(&mut command)
}

/// Builds `outboard` and `outboard-bench` in release mode; returns the directory they are in. Where
/// DPDK is installed the second is built with it: the figure of the DPDK port needs no daemon.
pub fn build_release(stop: &Stop) -> Result<PathBuf, Error> {
    let mut build = process::cargo();
    build.args(["build", "--release", "--locked", "-p", "outboard"]);
    child::run(&mut build, stop)?;
    let mut build = process::cargo();
    build.args(["build", "--release", "--locked", "-p", "outboard-bench"]);
    if setup::has_dpdk() {
        build.args(["--features", "dpdk"]);
    }
    child::run(&mut build, stop)?;
    Ok(process::target_dir()?.join("release"))
}
