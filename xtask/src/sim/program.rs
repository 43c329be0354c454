//! The test program: building it, running seeds with it, and reading what it prints.

use crate::error::Error;
use crate::process;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The cargo target, and what starts it outside of this task.
const TARGET: &str = "sim";
/// Characters of an oracle's words that a table has room for.
const MOST_SAID: usize = 150;
/// Lines of a failed run that are repeated.
const LAST_WORDS: usize = 30;

/// The built test program.
pub struct Program {
    path: PathBuf,
}

/// What a process printed about its seeds.
#[derive(Default)]
pub struct Outcome {
    /// States and reasons that were reached, and how often.
    pub reached: BTreeMap<String, u64>,
    /// Those that enough seeds must reach.
    pub floor: BTreeSet<String>,
    /// Events of all of its seeds.
    pub events: u64,
    /// What went wrong.
    pub failure: Option<Failure>,
}

/// The first thing that went wrong.
pub struct Failure {
    /// The seed, if it came to one.
    pub seed: Option<u64>,
    /// The assertion: where it is, and what it said.
    pub oracle: String,
    /// All that it said last.
    pub text: String,
}

impl Program {
    /// Builds it; with the planted defects in its own files, but the same dependencies.
    pub fn build(is_planted: bool) -> Result<Program, Error> {
        let mut command = process::cargo();
        command.args(["test", "--profile", "sim", "--package", "outboard", "--test", TARGET]);
        command.args(["--no-run", "--locked", "--message-format", "json-render-diagnostics"]);
        if is_planted {
            command.env("RUSTC_WORKSPACE_WRAPPER", wrapper()?);
        }
        let output = process::read(command.stderr(Stdio::inherit()))?;
        let messages = output.lines().filter_map(|line| serde_json::from_str(line).ok());
        let is_it = |message: &serde_json::Value| message["target"]["name"] == TARGET;
        let path = messages
            .filter(is_it)
            .find_map(|message| message["executable"].as_str().map(PathBuf::from));
        path.map(|path| Program { path })
            .ok_or_else(|| Error::task("cargo names no program of the simulation", "update cargo"))
    }

    /// Runs seeds on every core, and shows how far they are.
    pub fn run_all(&self, first: u64, count: u64) -> Result<Vec<Outcome>, Error> {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
        let jobs = cores.clamp(1, count.max(1));
        let bar = ProgressBar::new(count);
        let style = ProgressStyle::with_template("simulating {pos}/{len} seeds, {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let share = |job: u64| (first + count * job / jobs, count * (job + 1) / jobs);
        let outcomes = std::thread::scope(|scope| {
            let (bar, threads): (_, Vec<_>) = (&bar, (0..jobs).collect());
            let threads: Vec<_> = threads
                .into_iter()
                .map(|job| {
                    let (from, end) = share(job);
                    scope.spawn(move || self.run(from, first + end - from, None, bar))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        bar.finish_and_clear();
        outcomes
    }

    /// Runs seeds, with a planted defect if one is named.
    pub fn run(
        &self,
        first: u64,
        count: u64,
        defect: Option<&str>,
        bar: &ProgressBar,
    ) -> Result<Outcome, Error> {
        let mut command = Command::new(&self.path);
        command.args(["--nocapture", "--test-threads", "1"]).current_dir(process::root());
        command.env("OUTBOARD_SEEDS", format!("{first}+{count}")).env_remove("OUTBOARD_SEED");
        command.env("OUTBOARD_PLANTED", defect.unwrap_or("")).env("RUST_BACKTRACE", "0");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(process::start_error(&command))?;
        let mut errors = child.stderr.take().expect("stderr is piped");
        let complaints = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = errors.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let mut outcome = Outcome::default();
        let mut seed = None;
        let stdout = child.stdout.take().expect("stdout is piped");
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["seed", number] => seed = number.parse().ok(),
                ["held", _, events] => {
                    outcome.events += events.parse::<u64>().unwrap_or(0);
                    bar.inc(1);
                }
                ["reached", name, times] => {
                    let times = times.parse::<u64>().unwrap_or(0);
                    *outcome.reached.entry(name.to_owned()).or_default() += times;
                }
                ["floor", name] => drop(outcome.floor.insert(name.to_owned())),
                _ => {}
            }
        }
        let status = child.wait().map_err(process::start_error(&command))?;
        let text = complaints.join().unwrap_or_default();
        if !status.success() {
            outcome.failure = Some(Failure { seed, oracle: oracle(&text), text: tail(&text) });
        }
        Ok(outcome)
    }
}

/// A compiler for the workspace's own packages that knows the planted defects: dependencies are
/// built once for both.
fn wrapper() -> Result<PathBuf, Error> {
    let directory = process::target_dir()?;
    let path = directory.join("rustc-planted");
    let written = std::fs::create_dir_all(&directory)
        .and_then(|()| std::fs::write(&path, "#!/bin/sh\nexec \"$@\" --cfg outboard_planted\n"))
        .and_then(|()| std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)));
    let failed = |source| Error::File { action: "write", path: path.clone(), source };
    written.map_err(failed)?;
    Ok(path)
}

/// Where a panic was, and the first line of what it said.
fn oracle(text: &str) -> String {
    let mut lines = text.lines().skip_while(|line| !line.contains("panicked at "));
    let Some(first) = lines.next() else { return "ended without a word".into() };
    let place = first.split("panicked at ").nth(1).unwrap_or("").trim_end_matches(':');
    let mut said = lines.next().unwrap_or("").trim().to_owned();
    if let Some((at, _)) = said.char_indices().nth(MOST_SAID) {
        said.truncate(at);
        said.push('…');
    }
    format!("{said} ({place})")
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_names_its_oracle() {
        let text = "\nthread 'x' (5) panicked at dataplane/tests/sim/net/host.rs:3:5:\n\
                    assertion failed: no frame is lost\nnote: run with\n";
        assert_eq!(
            oracle(text),
            "assertion failed: no frame is lost (dataplane/tests/sim/net/host.rs:3:5)"
        );
        assert_eq!(oracle(""), "ended without a word");
        let long = format!("panicked at x:1:1:\n{}\n", "é".repeat(MOST_SAID + 1));
        assert_eq!(oracle(&long), format!("{}… (x:1:1)", "é".repeat(MOST_SAID)));
    }
}
