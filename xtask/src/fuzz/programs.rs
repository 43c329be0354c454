//! Which tests are fuzz targets, and the programs that run them, built with coverage counters.

use crate::error::Error;
use crate::{process, tidy};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the compiler counts, and what tells bolero which engine is there. Programs without a
/// target, which cargo builds beside the others, have no engine to count for.
const RUSTFLAGS: &str = "--cfg fuzzing --cfg fuzzing_libfuzzer -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Clink-arg=-Wl,--unresolved-symbols=ignore-all";

/// Marks a fuzz target in a source file. In two parts: this file is none.
const MARK: &str = concat!("bolero::", "check!");

/// A fuzz target, ready to run.
#[derive(Debug)]
pub struct Target {
    /// Package and test, as one would ask for it.
    pub name: String,
    /// The test's name in its program.
    pub test: String,
    /// The program.
    pub program: PathBuf,
    /// `__fuzz__/MODULE__TEST` beside the test's file.
    folder: PathBuf,
}

impl Target {
    /// Where its inputs lie.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The committed inputs.
    pub fn corpus(&self) -> PathBuf {
        self.folder.join("corpus")
    }

    /// Inputs that broke it.
    pub fn crashes(&self) -> PathBuf {
        self.folder.join("crashes")
    }

    /// Inputs that were found on this machine.
    pub fn found(&self) -> PathBuf {
        let folder = self.folder.strip_prefix(process::root()).unwrap_or(&self.folder);
        let name: Vec<_> = folder.iter().map(|part| part.to_string_lossy()).collect();
        process::root().join("target/fuzz/found").join(name.join("-"))
    }
}

/// Builds the programs with targets whose name contains `filter`, and asks them for these.
pub fn build(filter: &str) -> Result<Vec<Target>, Error> {
    let host = host()?;
    let mut targets = Vec::new();
    let mut packages = with_targets()?;
    let alone = filter.split(' ').next().filter(|word| packages.contains_key(*word));
    if let Some(alone) = alone {
        packages.retain(|package, _| package == alone);
    }
    for (package, programs) in packages {
        let mut build = process::cargo();
        build.args(["test", "--no-run", "--locked", "--profile", "fuzz", "--target", &host]);
        build.args(["--target-dir", "target/fuzz", "--message-format", "json-render-diagnostics"]);
        build.args(["--package", &package]).args(programs.iter().flatten());
        build.env("RUSTFLAGS", RUSTFLAGS).env("BOLERO_FUZZER", "libfuzzer");
        let output = build.stderr(std::process::Stdio::inherit()).output();
        let output = output.map_err(process::start_error(&build))?;
        process::check(&build, output.status, String::new())?;
        for program in executables(&String::from_utf8_lossy(&output.stdout)) {
            targets.extend(targets_of(&package, &program)?);
        }
    }
    targets.retain(|target| target.name.contains(filter));
    targets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(targets)
}

/// Every package with the programs that have targets, as arguments for cargo.
fn with_targets() -> Result<BTreeMap<String, BTreeSet<Vec<String>>>, Error> {
    let metadata = process::metadata()?;
    let mut found: BTreeMap<String, BTreeSet<Vec<String>>> = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        for target in package["targets"].as_array().into_iter().flatten() {
            let source = Path::new(target["src_path"].as_str().unwrap_or_default());
            // `tests/a.rs` stands alone; of all others the folder belongs to the program.
            let alone = source.parent().is_some_and(|parent| parent.ends_with("tests"));
            let place = if alone { source } else { source.parent().unwrap_or(source) };
            let kind = target["kind"][0].as_str().unwrap_or_default();
            let program = target["name"].as_str().unwrap_or_default().to_string();
            let arguments = match kind {
                "lib" => vec!["--lib".to_string()],
                "test" => vec!["--test".into(), program],
                "bin" => vec!["--bin".into(), program],
                _ => continue,
            };
            if has_mark(place)? {
                found.entry(name.to_string()).or_default().insert(arguments);
            }
        }
    }
    Ok(found)
}

/// Whether a file, or one below a folder, has a fuzz target.
fn has_mark(place: &Path) -> Result<bool, Error> {
    if place.is_dir() {
        for entry in std::fs::read_dir(place).map_err(Error::file("list", place))? {
            if has_mark(&entry.map_err(Error::file("list", place))?.path())? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    if place.extension().is_none_or(|extension| extension != "rs") {
        return Ok(false);
    }
    let text = std::fs::read_to_string(place).map_err(Error::file("read", place))?;
    Ok(text.contains(MARK))
}

/// The triple that is built for: with one named, build scripts are built without counters.
fn host() -> Result<String, Error> {
    let text = process::read(Command::new("rustc").arg("-vV"))?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(String::from).ok_or_else(|| Error::task("rustc -vV names no host", "update rustc"))
}

/// The test programs among cargo's messages.
fn executables(messages: &str) -> Vec<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let programs = messages.filter(|message| message["profile"]["test"] == true);
    programs.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).collect()
}

/// Asks a program for its targets. Its other tests run meanwhile, unless their names say that
/// they are none: only names that stand in the sources are asked for.
fn targets_of(package: &str, program: &Path) -> Result<Vec<Target>, Error> {
    let mut listing = Command::new(program);
    let listed = process::read(listing.args(["--list", "--format", "terse"]))?;
    let names = names()?;
    let wanted = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    let wanted = wanted.filter(|test| names.contains(test.rsplit("::").next().unwrap_or(test)));
    let mut ask = Command::new(program);
    ask.args(wanted).args(["--exact", "--nocapture", "--test-threads", "1"]);
    ask.current_dir(process::root()).env("CARGO_BOLERO_SELECT", "all");
    Ok(answers(package, &process::read(&mut ask)?))
}

/// The targets that bolero names, one line of JSON each.
fn answers(package: &str, text: &str) -> Vec<Target> {
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter(|line| line["__bolero_target"].is_string())
        .filter_map(|line| {
            let test = line["test_name"].as_str()?.to_string();
            Some(Target {
                name: format!("{package} {test}"),
                test,
                program: line["exe"].as_str()?.into(),
                folder: line["work_dir"].as_str()?.into(),
            })
        })
        .collect()
}

/// Names of the functions with a fuzz target, over the whole tree.
fn names() -> Result<BTreeSet<String>, Error> {
    Ok(tidy::fuzz_targets()?.into_iter().map(|(name, _)| name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_bolero_says_of_a_target_is_read() {
        let text = "\nrunning 1 test\n{\"__bolero_target\":\"v0.5.0\",\"exe\":\"/a/b\",\
                    \"work_dir\":\"/r/__fuzz__/nd__any\",\"package_name\":\"outboard-wire\",\
                    \"is_harnessed\":true,\"test_name\":\"nd::any\"}\n.\n";
        let targets = answers("wire", text);
        assert_eq!(targets.len(), 1);
        assert_eq!((&*targets[0].name, &*targets[0].test), ("wire nd::any", "nd::any"));
        assert_eq!(targets[0].corpus(), Path::new("/r/__fuzz__/nd__any/corpus"));
    }

    #[test]
    fn programs_are_found_among_cargos_messages() {
        let text = "{\"reason\":\"x\",\"profile\":{\"test\":true},\"executable\":\"/a\"}\nnoise\n\
                    {\"profile\":{\"test\":false},\"executable\":\"/b\"}\n";
        assert_eq!(executables(text), [PathBuf::from("/a")]);
    }
}
