//! Project tasks; `cargo xtask --help` lists them.
//!
//! One file per task. Each has `pub struct Args` (its command line) and
//! `pub fn run(args: &Args) -> Result<(), Error>`. A task prints what it does as it does it and
//! says in its error what to do next. xtask links none of the project's packages: it runs while
//! they do not build.

mod bench;
mod ci;
mod error;
mod process;
mod setup;
mod test;
mod tidy;

use clap::{Parser, Subcommand};
use error::Error;
use std::process::ExitCode;

/// Outboard's project tasks.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    after_help = "`cargo xtask TASK --help` tells more about one task."
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Setup(setup::Args),
    Test(test::Args),
    Bench(bench::Args),
    Tidy(tidy::Args),
    Ci(ci::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Setup(args) => setup::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Tidy(args) => tidy::run(&args),
        Task::Ci(args) => ci::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Reported) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
