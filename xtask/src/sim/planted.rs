//! `sim --planted`: whether the simulation finds what it is for.
//!
//! Defects stand in the real code as `planted!("name")` (`rdma/src/planted.rs`), behind a cfg that
//! only this task sets. Each is made in processes of its own, until a seed fails; the same build
//! without any must hold.

use super::program::Program;
use crate::error::Error;
use crate::process;
use indicatif::ProgressBar;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Seeds within which a defect must be caught.
const SEEDS: u64 = 20;
/// The first of them; with `--long` it must be caught again from each of these on.
const FIRST_SEEDS: [u64; 3] = [1, 1_001, 2_001];
/// Seeds that must hold in the same build without a defect.
const CONTROL_SEEDS: u64 = 5;
/// Defects at least: below this, somebody has lost some.
const LEAST: usize = 20;
/// Packages that have some.
const SOURCES: [&str; 2] = ["dataplane/src", "rdma/src"];

/// A defect, and which oracle found it with which seed.
struct Finding {
    defect: String,
    caught: Option<(u64, String)>,
}

/// Tries every defect whose name contains `filter`, with `long` from several seeds on; whether all
/// were caught.
pub fn run(filter: &str, long: bool, as_json: bool) -> Result<bool, Error> {
    let mut defects = Vec::new();
    for directory in SOURCES {
        collect(&process::root().join(directory), &mut defects)?;
    }
    defects.sort();
    defects.dedup();
    if defects.len() < LEAST {
        let what = format!("{} planted defects, {LEAST} are wanted", defects.len());
        return Err(Error::task(what, "plant some: rdma/src/planted.rs tells how"));
    }
    defects.retain(|defect| defect.contains(filter));
    let program = Program::build(true)?;
    let control = program.run(1, CONTROL_SEEDS, None, &ProgressBar::hidden())?;
    if let Some(failure) = control.failure {
        let what = format!("without a defect the simulation fails: {}", failure.text);
        return Err(Error::task(what, "mend that first: `cargo xtask sim`"));
    }
    let firsts = if long { &FIRST_SEEDS[..] } else { &FIRST_SEEDS[..1] };
    let findings = try_all(&program, defects, firsts)?;
    print(&findings, as_json);
    Ok(findings.iter().all(|finding| finding.caught.is_some()))
}

fn try_all(program: &Program, defects: Vec<String>, firsts: &[u64]) -> Result<Vec<Finding>, Error> {
    let next = AtomicUsize::new(0);
    let findings = Mutex::new(Vec::new());
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let bar = ProgressBar::new(defects.len() as u64);
    std::thread::scope(|scope| {
        let work = || -> Result<(), Error> {
            while let Some(defect) = defects.get(next.fetch_add(1, Ordering::Relaxed)) {
                let caught = try_one(program, defect, firsts)?;
                bar.inc(1);
                let finding = Finding { defect: defect.clone(), caught };
                findings.lock().expect("no panic").push(finding);
            }
            Ok(())
        };
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    bar.finish_and_clear();
    let mut findings = findings.into_inner().expect("no panic");
    findings.sort_by(|one: &Finding, other| one.defect.cmp(&other.defect));
    Ok(findings)
}

/// The seed that caught it first, and how, if one did from each of `firsts` on.
fn try_one(
    program: &Program,
    defect: &str,
    firsts: &[u64],
) -> Result<Option<(u64, String)>, Error> {
    let mut caught = None;
    for first in firsts {
        let outcome = program.run(*first, SEEDS, Some(defect), &ProgressBar::hidden())?;
        let Some(failure) = outcome.failure else { return Ok(None) };
        caught.get_or_insert((failure.seed.unwrap_or(0), failure.oracle));
    }
    Ok(caught)
}

fn print(findings: &[Finding], as_json: bool) {
    if as_json {
        let rows: Vec<_> = findings
            .iter()
            .map(|Finding { defect, caught }| {
                let (seed, oracle) = caught.clone().unzip();
                serde_json::json!({ "defect": defect, "seed": seed, "oracle": oracle })
            })
            .collect();
        println!("{:#}", serde_json::json!({ "defects": rows }));
        return;
    }
    println!("{:<28} {:>4}  caught by", "defect", "seed");
    for Finding { defect, caught } in findings {
        match caught {
            Some((seed, oracle)) => println!("{defect:<28} {seed:>4}  {oracle}"),
            None => println!("{defect:<28} {:>4}  MISSED in {SEEDS} seeds", "-"),
        }
    }
    let caught = findings.iter().filter(|finding| finding.caught.is_some()).count();
    println!("{caught} of {} planted defects caught", findings.len());
}

/// Adds the names of the defects in the files below `directory`.
fn collect(directory: &Path, defects: &mut Vec<String>) -> Result<(), Error> {
    let read = |source| Error::File { action: "read", path: directory.to_owned(), source };
    for entry in std::fs::read_dir(directory).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if path.is_dir() {
            collect(&path, defects)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).map_err(read)?;
            defects.extend(names(&text).map(str::to_owned));
        }
    }
    Ok(())
}

fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split("planted!(\"").skip(1).filter_map(|rest| rest.split('"').next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defects_are_found_where_they_stand() {
        let text = r#"if planted!("one-two") { 1 } else if !planted!("three") { 2 }"#;
        assert_eq!(names(text).collect::<Vec<_>>(), ["one-two", "three"]);
        let mut all = Vec::new();
        for directory in SOURCES {
            collect(&process::root().join(directory), &mut all).unwrap();
        }
        assert!(all.len() >= LEAST, "{all:?}");
    }
}
