//! Every parser that somebody else reaches has a fuzz target.
//!
//! What counts as a parser is told by its form: a function that takes bytes and gives back more
//! than whether, one that is called `parse`, `load`, `decode` or `adopt`, or one that reads JSON or
//! TOML. Each stands in the table `xtask/parsers.txt` with the targets that reach it, or with the
//! reason why it needs none. That a target has a corpus is `corpora`'s to say.

use super::Finding;
use super::corpora;
use super::source::Source;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The table, relative to the root.
const TABLE: &str = "xtask/parsers.txt";
/// Code that others' bytes reach.
const ROOMS: [&str; 6] = [
    "dataplane/src",
    "dataplane/wire/src",
    "dataplane/dma/src",
    "rdma/src",
    "ebpf/src",
    "bench/src",
];
/// Names of parsers; the first two also as `parse_v4` and the like.
const NAMES: [&str; 4] = ["parse", "decode", "load", "adopt"];
/// Crates whose `from_…` functions parse.
const CRATES: [&str; 2] = ["serde_json", "toml"];

/// A line of the table: functions of a file, and who reaches them.
#[derive(Debug, PartialEq, Eq)]
struct Row<'a> {
    line: usize,
    file: &'a str,
    functions: Vec<&'a str>,
    /// `FILE:FUNCTION` of each target; none when a reason stands there.
    targets: Vec<(&'a str, &'a str)>,
}

/// Checks the table against the tree.
pub fn check(sources: &[Source]) -> Vec<Finding> {
    let Some(table) = sources.iter().find(|source| source.path == Path::new(TABLE)) else {
        return vec![Finding::new(Path::new(TABLE), 0, "the table of parsers is missing")];
    };
    let mut findings = Vec::new();
    let mut known: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let find = |file: &str| sources.iter().find(|source| source.path == Path::new(file));
    for row in rows(table, &mut findings) {
        let mut wrong = |what: String| findings.push(Finding::new(&table.path, row.line, what));
        let functions = find(row.file).and_then(|source| source.rust.as_ref());
        for name in &row.functions {
            let has = functions.is_some_and(|rust| rust.functions.iter().any(|f| f.name == *name));
            if !has {
                wrong(format!("{} has no function {name}; correct the table", row.file));
            }
            known.entry(row.file).or_default().insert(name);
        }
        for (file, target) in &row.targets {
            let all = find(file).map(corpora::targets).unwrap_or_default();
            if !all.iter().any(|(name, _)| name == target) {
                wrong(format!("{file} has no fuzz target {target}; correct the table"));
            }
        }
    }
    for source in sources.iter().filter(|source| ROOMS.iter().any(|room| source.is_in(room))) {
        let listed = source.path.to_str().and_then(|path| known.get(path));
        for (name, line) in parsers(source) {
            if listed.is_none_or(|listed| !listed.contains(&*name)) {
                let what = format!(
                    "{name} parses what others send and does not stand in {TABLE}; write a fuzz \
                     target and name it there, or say there why none is needed"
                );
                findings.push(Finding::new(&source.path, line, what));
            }
        }
    }
    findings
}

/// The parsers of a file, with their lines.
fn parsers(source: &Source) -> BTreeSet<(String, usize)> {
    let Some(rust) = &source.rust else { return BTreeSet::new() };
    let functions = || rust.functions.iter().filter(|function| !function.in_test);
    let begins =
        |name: &str, with: &str| name.strip_prefix(with).is_some_and(|rest| rest.starts_with('_'));
    let is_named =
        |name: &str| NAMES.contains(&name) || NAMES[..2].iter().any(|with| begins(name, with));
    let by_form = functions().filter(|f| f.takes_bytes || is_named(&f.name));
    let calls = rust.paths.iter().filter(|path| !path.in_test).filter(|path| {
        let [of, function] = path.segments.as_slice() else { return false };
        CRATES.contains(&of.as_str()) && function.starts_with("from_")
    });
    let by_call = calls.filter_map(|call| {
        let around = functions().filter(|f| (f.first..=f.last).contains(&call.line));
        around.max_by_key(|function| function.first)
    });
    by_form.chain(by_call).map(|function| (function.name.clone(), function.first)).collect()
}

/// The lines of the table; what cannot be read is a finding.
fn rows<'a>(table: &'a Source, findings: &mut Vec<Finding>) -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    for (line, text) in table.lines().filter(|(_, text)| !text.starts_with('#')) {
        let mut words = text.split_whitespace();
        let Some(file) = words.next() else { continue };
        let (Some(functions), Some(first)) = (words.next(), words.next()) else {
            let what = "want: FILE FUNCTION,… FILE:TARGET …, or FILE FUNCTION,… -- REASON";
            findings.push(Finding::new(&table.path, line, what));
            continue;
        };
        let functions = functions.split(',').collect();
        let mut targets = Vec::new();
        if first == "--" {
            if words.next().is_none() {
                findings.push(Finding::new(&table.path, line, "say why it needs no target"));
            }
        } else {
            for word in std::iter::once(first).chain(words) {
                targets.push(word.split_once(':').unwrap_or((word, "")));
            }
        }
        rows.push(Row { line, file, functions, targets });
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In two parts: this file has no target.
    const MARK: &str = concat!("bolero::", "check!");

    fn found(code: &str, table: &str) -> Vec<String> {
        let target = format!("//! T\nfn any() {{\n    {MARK}().run();\n}}\n");
        let sources = [
            Source::new("rdma/src/a.rs", code),
            Source::new("rdma/tests/t.rs", target),
            Source::new(TABLE, table),
        ];
        check(&sources).iter().map(ToString::to_string).collect()
    }

    const CODE: &str = "fn length(bytes: &[u8]) -> usize { bytes.len() }\n";

    #[test]
    fn a_parser_with_its_target_is_tidy() {
        let none: [&str; 0] = [];
        assert_eq!(found(CODE, "# a\n\nrdma/src/a.rs length rdma/tests/t.rs:any\n"), none);
        assert_eq!(found(CODE, "rdma/src/a.rs length -- of our own bytes\n"), none);
    }

    #[test]
    fn planted_parsers_without_a_target_are_found() {
        for code in [
            CODE,
            "fn any(bytes: &[u8; 4]) -> Option<u8> { None }\n",
            "fn parse(text: &str) -> u8 { 0 }\n",
            "fn load(state: State) -> u8 { 0 }\n",
            "fn parse_v4(state: State) -> u8 { 0 }\n",
            "fn ask(text: &str) -> u8 { serde_json::from_str(text).unwrap() }\n",
        ] {
            let found = found(code, "# none\n");
            assert_eq!(found.len(), 1, "{code}: {found:?}");
            assert!(found[0].starts_with("rdma/src/a.rs:1: ") && found[0].contains(TABLE));
        }
    }

    #[test]
    fn what_is_no_parser_is_left_alone() {
        for code in [
            "fn write(bytes: &[u8]) {}\n",
            "fn is_ours(bytes: &[u8]) -> bool { true }\n",
            "fn parser(text: &str) -> u8 { 0 }\n",
            "fn fill(bytes: &mut [u8]) -> usize { 0 }\n",
            "#[cfg(test)]\nmod tests {\n    fn parse(bytes: &[u8]) -> u8 { 0 }\n}\n",
        ] {
            assert_eq!(found(code, "# none\n"), Vec::<String>::new(), "{code}");
        }
    }

    #[test]
    fn planted_mistakes_of_the_table_are_found() {
        let one = |table: &str| {
            let found = found(CODE, table);
            found.iter().find(|what| what.starts_with(TABLE)).cloned().unwrap_or_default()
        };
        let right = "rdma/src/a.rs length rdma/tests/t.rs:any\n";
        assert!(one(&format!("{right}rdma/src/a.rs gone -- why\n")).contains(":2: "));
        assert!(one("rdma/src/a.rs length rdma/tests/t.rs:other\n").contains("no fuzz target"));
        assert!(one("rdma/src/a.rs length rdma/src/a.rs:length\n").contains("no fuzz target"));
        assert!(one("rdma/src/a.rs length --\n").contains("why"));
        assert!(one("rdma/src/a.rs length\n").contains("want: "));
        assert!(check(&[]).len() == 1, "no table");
    }
}
