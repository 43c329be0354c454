//! The command line: what can be asked, and how failures are told.
//!
//! Exit codes: 0 done, 1 failed (one `error:` line or more on stderr), 2 wrong usage, 3 a dry run
//! that found a difference.

mod apply;
mod attach;
mod capture;
mod check;
mod ledger;
mod run;
mod socket;
mod stats;

use clap::{Parser, Subcommand};
use outboard::config::{LoadError, Plan};
use std::fmt;
use std::path::Path;
use std::process::ExitCode;

const ABOUT: &str = "Outboard: NIC and disk for VMs and containers, from polled user-space cores";

const EXAMPLES: &str = "\
Examples:
  outboard check --config host-a.toml           is this file right?
  outboard attach --config host-a.toml --netns web --port blue-web
                                                give the container `web` its interface
  outboard run --config host-a.toml             the daemon, in the foreground
  outboard apply --config host-a.toml           make the daemon what the file says now
  outboard stats --config host-a.toml           what has the daemon done so far?
  outboard capture --port blue-web -w - | tshark -r -
                                                what passes there?
  outboard ledger --config host-a.toml          where do packets and I/Os spend their time?
  outboard stats --json | jq '.ports[].drops'   the same for programs

Every command explains itself with --help.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "outboard", version, about = ABOUT, after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Check(check::Check),
    Apply(apply::Apply),
    Stats(stats::Stats),
    Capture(capture::Capture),
    Ledger(ledger::Ledger),
    Attach(attach::Attach),
    Detach(attach::Detach),
}

/// Does what was asked.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let done = match args.command {
        Command::Apply(apply) => return apply.run(),
        Command::Run(run) => run.run(),
        Command::Check(check) => check.run(),
        Command::Stats(stats) => stats.run(),
        Command::Capture(capture) => capture.run(),
        Command::Ledger(ledger) => ledger.run(),
        Command::Attach(attach) => attach.run(),
        Command::Detach(detach) => detach.run(),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// What is told when something failed: the text, with `error:` in front of each error.
#[derive(Debug)]
pub struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure(format!("error: {error}"))
    }
}

/// Reads a configuration; what is wrong in it is shown as it is, each mistake with its own
/// `error:`.
fn load(path: &Path) -> Result<Plan, Failure> {
    outboard::config::load(path).map_err(|error| match error {
        LoadError::Wrong(errors) => {
            let mistakes = if errors.count() == 1 { "mistake" } else { "mistakes" };
            let count = errors.count();
            Failure(format!("{errors}\n\nerror: {count} {mistakes} in {}", path.display()))
        }
        unreadable => unreadable.into(),
    })
}
