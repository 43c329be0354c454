//! `outboard-bench`: load, reference programs, suites and reports.
//!
//! Every driver prints one table and writes one JSON document (`schema.rs`); `report` merges such
//! documents. Exit code 0: measured, and all content right; 1: not measured, or wrong content;
//! 2: wrong arguments; 3: `compare` found a regression; 130: interrupted.

mod compare;
mod drivers;
mod error;
mod latency;
mod load;
mod machine;
mod reference;
mod report;
mod schema;
mod stop;
mod suite;

use clap::{Parser, Subcommand};
use drivers::{afxdp, file, remote, udp, vhost_blk};
use std::process::ExitCode;

/// Measure tail latency and throughput honestly: Outboard, what one would use instead, and the
/// bare mechanism beside both.
///
/// Open loop (--rate) counts latency from the intended send time, so a stall is charged to every
/// request that waited behind it. Closed loop (--depth) keeps a number in flight and finds the
/// highest rate. A percentile with fewer than 10 samples beyond it prints as –.
#[derive(Parser)]
#[command(name = "outboard-bench", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Udp(udp::UdpArgs),
    Afxdp(afxdp::AfxdpArgs),
    VhostBlk(vhost_blk::VhostBlkArgs),
    Remote(remote::RemoteArgs),
    File(file::FileArgs),
    Reference(reference::ReferenceArgs),
    Suite(suite::SuiteArgs),
    Report(report::ReportArgs),
    Compare(compare::CompareArgs),
}

fn main() -> ExitCode {
    // Before anything is set up that an interrupt would leave behind, or pinned.
    stop::flag();
    machine::cores();
    let outcome = match Cli::parse().command {
        Command::Udp(args) => udp::run(&args),
        Command::Afxdp(args) => afxdp::run(&args),
        Command::VhostBlk(args) => vhost_blk::run(&args),
        Command::Remote(args) => remote::run(&args),
        Command::File(args) => file::run(&args),
        Command::Reference(args) => reference::run(&args),
        Command::Suite(args) => suite::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Compare(args) => compare::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("outboard-bench: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
