//! Every fuzz target has a committed corpus, and every corpus a target.

use super::Finding;
use super::source::{Source, is_built};
use crate::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder beside a test in which bolero looks for inputs.
pub const FOLDER: &str = "__fuzz__";
/// Files of one corpus, and bytes of all of them together.
const MAX_FILES: usize = 40;
const MAX_BYTES: u64 = 400 * 1024;
/// In two parts: this file has no target.
const MARK: &str = concat!("bolero::", "check!");
const REMEDY: &str = "`cargo xtask fuzz NAME --seconds 20 --keep` makes one";

/// A folder `__fuzz__/MODULE__TEST` with its committed inputs.
#[derive(Debug)]
pub struct Corpus {
    /// The folder that `__fuzz__` lies in, relative to the root.
    beside: PathBuf,
    /// `MODULE__TEST`.
    name: String,
    files: usize,
    bytes: u64,
}

/// The functions with a fuzz target, and its line.
pub fn targets(source: &Source) -> Vec<(String, usize)> {
    let Some(rust) = &source.rust else { return Vec::new() };
    let marked = source
        .lines()
        .filter(|(_, line)| line.contains(MARK) && !line.trim_start().starts_with("//"));
    marked
        .filter_map(|(number, _)| {
            let around = rust.functions.iter().filter(|f| (f.first..=f.last).contains(&number));
            around.max_by_key(|function| function.first).map(|f| (f.name.clone(), number))
        })
        .collect()
}

/// Every corpus below `root`.
pub fn read(root: &Path) -> Result<Vec<Corpus>, Error> {
    let mut corpora = Vec::new();
    walk(root, root, &mut corpora)?;
    Ok(corpora)
}

fn walk(root: &Path, folder: &Path, corpora: &mut Vec<Corpus>) -> Result<(), Error> {
    for path in entries(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !path.is_dir() || is_built(&path) || name.starts_with('.') {
            continue;
        }
        if folder.file_name().is_none_or(|of| of != FOLDER) {
            walk(root, &path, corpora)?;
            continue;
        }
        let inputs = path.join("corpus");
        let mut corpus = Corpus { beside: PathBuf::new(), name, files: 0, bytes: 0 };
        let beside = folder.parent().unwrap_or(folder);
        corpus.beside = beside.strip_prefix(root).unwrap_or(beside).to_path_buf();
        for file in if inputs.is_dir() { entries(&inputs)? } else { Vec::new() } {
            let data = fs::metadata(&file).map_err(Error::file("look at", &file))?;
            corpus.files += 1;
            corpus.bytes += data.len();
        }
        corpora.push(corpus);
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let listing = fs::read_dir(folder).map_err(Error::file("list", folder))?;
    listing.map(|entry| Ok(entry.map_err(Error::file("list", folder))?.path())).collect()
}

/// Targets without a corpus, corpora without a target, and what is too large.
pub fn check(sources: &[Source], corpora: &[Corpus]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut used = vec![false; corpora.len()];
    for source in sources {
        let beside = source.path.parent().unwrap_or(Path::new(""));
        for (name, line) in targets(source) {
            let own = |corpus: &Corpus| corpus.beside == beside && is_of(&corpus.name, &name);
            let mut has = false;
            for (place, corpus) in corpora.iter().enumerate().filter(|(_, corpus)| own(corpus)) {
                used[place] = true;
                has |= corpus.files > 0;
            }
            if !has {
                let what = format!("fuzz target {name} has no committed corpus; {REMEDY}");
                findings.push(Finding::new(&source.path, line, what));
            }
        }
    }
    for (corpus, used) in corpora.iter().zip(used) {
        let path = corpus.beside.join(FOLDER).join(&corpus.name);
        if !used {
            findings.push(Finding::new(&path, 0, "corpus of no fuzz target; remove or rename it"));
        }
        if corpus.files > MAX_FILES {
            let what = format!("{} files in a corpus; keep {MAX_FILES}", corpus.files);
            findings.push(Finding::new(&path, 0, what));
        }
    }
    let bytes: u64 = corpora.iter().map(|corpus| corpus.bytes).sum();
    if bytes > MAX_BYTES {
        let what = format!("{bytes} bytes in all corpora; keep {MAX_BYTES}");
        findings.push(Finding::new(Path::new(FOLDER), 0, what));
    }
    findings
}

/// Whether a folder is that of test `name`: bolero takes `fuzz_` and `_test` off its ends.
fn is_of(folder: &str, name: &str) -> bool {
    let name = name.strip_prefix("test_").or(name.strip_prefix("fuzz_")).unwrap_or(name);
    let name = name.strip_suffix("_test").or(name.strip_suffix("_fuzz")).unwrap_or(name);
    folder.strip_suffix(name).is_some_and(|module| module.is_empty() || module.ends_with("__"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(beside: &str, name: &str, files: usize, bytes: u64) -> Corpus {
        Corpus { beside: beside.into(), name: name.into(), files, bytes }
    }

    fn found(corpora: &[Corpus]) -> Vec<String> {
        let text = format!(
            "//! A\nmod tests {{\n    #[test]\n    fn fuzz_any() {{\n        {MARK}().run();\n    \
             }}\n}}\n"
        );
        let sources = [Source::new("wire/src/nd.rs", text)];
        check(&sources, corpora).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_target_with_its_corpus_is_tidy() {
        assert_eq!(found(&[corpus("wire/src", "nd__tests__any", 3, 90)]), Vec::<String>::new());
    }

    #[test]
    fn planted_targets_without_a_corpus_are_found() {
        let none = found(&[]);
        assert_eq!(none.len(), 1);
        assert!(none[0].starts_with("wire/src/nd.rs:5: fuzz target fuzz_any"), "{none:?}");
        assert!(none[0].contains("--keep"), "says what to do");
        assert_eq!(found(&[corpus("wire/src", "nd__tests__any", 0, 0)]).len(), 1, "empty");
        assert_eq!(found(&[corpus("rdma/src", "nd__tests__any", 1, 1)]).len(), 2, "elsewhere");
        assert_eq!(found(&[corpus("wire/src", "nd__tests__many", 1, 1)]).len(), 2, "another's");
    }

    #[test]
    fn planted_sizes_are_found() {
        let at = |files, bytes| found(&[corpus("wire/src", "nd__tests__any", files, bytes)]).len();
        assert_eq!(
            (at(MAX_FILES, MAX_BYTES), at(MAX_FILES + 1, 1), at(1, MAX_BYTES + 1)),
            (0, 1, 1)
        );
    }
}
