//! `fuzz`: runs the fuzz targets guided by coverage, and keeps their corpora.
//!
//! A target is a test with `bolero::check!`; its corpus lies beside it, in
//! `__fuzz__/MODULE__TEST/corpus`, and plain `cargo test` replays it. The engine is libFuzzer,
//! which bolero brings along; the compiler's coverage counters need no nightly. Inputs that are
//! found lie in `target/fuzz/found` and are where the next run begins.

mod corpus;
mod programs;

use crate::error::Error;
use crate::process;
use programs::Target;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs the fuzz targets, guided by coverage
///
/// Builds them with coverage counters in target/fuzz and runs each for a while. An input that
/// breaks a target is left beside it in __fuzz__/TARGET/crashes, where `cargo test` replays it.
#[derive(clap::Args)]
pub struct Args {
    /// Only targets whose name contains this, such as `nd::`; a package's name builds it alone.
    target: Option<String>,
    /// How long each target runs.
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
    /// Writes the fewest inputs that reach everything reached to the committed corpora.
    #[arg(long)]
    keep: bool,
}

/// The longest input that is tried, in bytes.
const MAX_INPUT_BYTES: usize = 1024;
/// An input that takes longer hangs.
const HANG_S: u32 = 20;

/// What one run of a target gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ran {
    inputs: u64,
    found: u64,
    broke: bool,
}

/// Builds, runs each target, and sums up.
pub fn run(args: &Args) -> Result<(), Error> {
    let targets = programs::build(args.target.as_deref().unwrap_or(""))?;
    if targets.is_empty() {
        return Err(Error::task(
            "no fuzz target has that in its name",
            "`cargo xtask fuzz` has all",
        ));
    }
    let mut broken = Vec::new();
    for target in &targets {
        let ran = run_target(target, args.seconds)?;
        let kept = match args.keep && !ran.broke {
            true => corpus::keep(target)?.to_string(),
            false => corpus::describe(&target.corpus())?,
        };
        println!("{:<72} {:>10} inputs, {:>4} new; {kept}", target.name, ran.inputs, ran.found);
        if ran.broke {
            broken.push(target);
        }
    }
    for target in &broken {
        println!("broken  {}: see {}", target.name, target.crashes().display());
    }
    println!("{} targets, {} broken", targets.len(), broken.len());
    if broken.is_empty() { Ok(()) } else { Err(Error::Reported) }
}

fn run_target(target: &Target, seconds: u32) -> Result<Ran, Error> {
    let (found, crashes) = (target.found(), target.crashes());
    for folder in [&found, &crashes] {
        fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
    }
    let corpus = target.corpus();
    let committed = if corpus.is_dir() { format!(" {}", corpus.display()) } else { String::new() };
    let mut command = engine(target);
    command.env(
        "BOLERO_LIBFUZZER_ARGS",
        format!(
            "{}{} -artifact_prefix={}/ -max_total_time={seconds} -timeout={HANG_S} \
             -max_len={MAX_INPUT_BYTES} -print_final_stats=1 -verbosity=0",
            found.display(),
            committed,
            crashes.display()
        ),
    );
    let output = command.output().map_err(process::start_error(&command))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let mut ran = Ran { broke: !output.status.success(), ..statistics(&text) };
    // A folder that is not empty stays.
    ran.broke |= fs::remove_dir(&crashes).is_err();
    let _ = fs::remove_dir(target.folder());
    if ran.broke {
        println!("{}", process::tail(&output));
    }
    Ok(ran)
}

/// One target's program, which runs the engine instead of the test.
fn engine(target: &Target) -> Command {
    let mut command = Command::new(&target.program);
    command
        .current_dir(process::root())
        .args([&target.test, "--exact", "--nocapture", "--quiet", "--test-threads", "1"])
        .env("BOLERO_TEST_NAME", &target.test)
        .env("BOLERO_LIBTEST_HARNESS", "1");
    command
}

/// From `stat::number_of_executed_units: 638312` and the like.
fn statistics(text: &str) -> Ran {
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').trim().parse().ok()
    };
    Ran {
        inputs: number("stat::number_of_executed_units").unwrap_or(0),
        found: number("stat::new_units_added").unwrap_or(0),
        broke: false,
    }
}

/// The files of a folder with their sizes, smallest first; none when there is no folder.
fn files(folder: &Path) -> Result<Vec<(u64, PathBuf)>, Error> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::file("list", folder))? {
        let path = entry.map_err(Error::file("list", folder))?.path();
        let data = fs::metadata(&path).map_err(Error::file("look at", &path))?;
        if data.is_file() {
            files.push((data.len(), path));
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_statistics_are_read() {
        let text =
            "x\nstat::number_of_executed_units: 638312\nstat::new_units_added:          137\n";
        assert_eq!(statistics(text), Ran { inputs: 638_312, found: 137, broke: false });
        assert_eq!(statistics("nothing"), Ran::default());
    }
}
