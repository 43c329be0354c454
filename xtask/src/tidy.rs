//! `tidy`: the rules of ARCHITECTURE.md as code. Each rule is a function from sources to
//! findings, tested with a planted violation; a finding tells where, what, and what to do.

mod arrows;
mod corpora;
mod limits;
mod parsers;
mod rooms;
mod source;
mod unsafe_fence;
mod words;

use crate::error::Error;
use crate::process;
use source::Source;
use std::fmt;
use std::path::{Path, PathBuf};

/// Checks the project's own rules
///
/// Which package and which module may know which, lengths, words, and where unsafe code may be.
/// Prints file:line, what is wrong and what to do.
#[derive(clap::Args)]
pub struct Args {}

/// A rule broken at a place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Relative to the root.
    path: PathBuf,
    /// From 1; 0 is the whole file.
    line: usize,
    /// What is wrong, and what to do.
    what: String,
}

impl Finding {
    fn new(path: &Path, line: usize, what: impl Into<String>) -> Finding {
        Finding { path: path.to_path_buf(), line, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line.max(1), self.what)
    }
}

/// Checks every rule over the whole tree.
pub fn run(_args: &Args) -> Result<(), Error> {
    let sources = source::read_tree(process::root())?;
    let mut findings = arrows::check(&process::metadata()?);
    for source in &sources {
        findings.extend(check(source));
    }
    findings.extend(corpora::check(&sources, &corpora::read(process::root())?));
    findings.extend(parsers::check(&sources));
    findings.sort();
    findings.dedup();
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => {
            println!("tidy: {} files hold every rule", sources.len());
            Ok(())
        }
        count => Err(Error::task(
            format!("{count} places break a rule of the project"),
            "each line above says what to do",
        )),
    }
}

/// Every fuzz target of the tree: the function's name, and the line in its file.
pub fn fuzz_targets() -> Result<Vec<(String, usize)>, Error> {
    let sources = source::read_tree(process::root())?;
    Ok(sources.iter().flat_map(corpora::targets).collect())
}

/// Every rule that looks at one file.
fn check(source: &Source) -> Vec<Finding> {
    let mut findings = words::check(source);
    findings.extend(limits::check(source));
    findings.extend(rooms::check(source));
    findings.extend(unsafe_fence::check(source));
    findings.extend(arrows::check_manifest(source));
    findings
}
