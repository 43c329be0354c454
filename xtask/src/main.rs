//! Project tasks; `cargo xtask --help` lists them.
//!
//! One file per task. Each has `pub struct Args` (its command line) and
//! `pub fn run(args: &Args) -> Result<(), Error>`. A task prints what it does as it does it and
//! says in its error what to do next. xtask links none of the project's packages: it runs while
//! they do not build.

mod bench;
mod bpf;
mod child;
mod ci;
mod demo;
mod error;
mod fuzz;
mod guest;
mod netns;
mod process;
mod setup;
mod sim;
mod stop;
mod test;
mod tidy;

use clap::{Parser, Subcommand};
use error::Error;
use std::process::ExitCode;

const AFTER_HELP: &str = "\
Start with `cargo xtask demo`.
`cargo xtask TASK --help` tells more about one task.";

/// Outboard's project tasks.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    after_help = AFTER_HELP
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Demo(demo::Args),
    Setup(setup::Args),
    Test(test::Args),
    Bench(bench::Args),
    Guest(guest::Args),
    Fuzz(fuzz::Args),
    Sim(sim::Args),
    Bpf(bpf::Args),
    Tidy(tidy::Args),
    Ci(ci::Args),
    #[command(hide = true)]
    Marker(demo::marker::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Demo(args) => demo::run(&args),
        Task::Setup(args) => setup::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Guest(args) => guest::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Sim(args) => sim::run(&args),
        Task::Bpf(args) => bpf::run(&args),
        Task::Tidy(args) => tidy::run(&args),
        Task::Ci(args) => ci::run(&args),
        Task::Marker(args) => demo::marker::run(&args),
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
