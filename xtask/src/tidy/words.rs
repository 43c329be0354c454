//! Words that say nothing, promises in place of code, and names of one machine.

use super::Finding;
use super::source::Source;

/// Parts of file and module names that tell nothing about what is inside.
const EMPTY_NAMES: &[&str] =
    &["helper", "helpers", "manager", "managers", "util", "utils", "common", "misc"];

/// Promises in place of code; put together here so that this file passes its own rule.
const PROMISES: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME")];

/// Macros that must not be committed.
const MACROS: &[&str] = &["todo", "unimplemented", "dbg"];

/// Folders of one machine.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk"), concat!("/ho", "me")];

/// Hosts of a package registry: which one to use is the user's cargo configuration.
const REGISTRY_HOSTS: &[&str] = &[concat!("crates", ".io"), concat!("rsproxy", ".cn")];

/// Words of one file and its name.
pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut note = |line: usize, what: String| {
        findings.push(Finding::new(&source.path, line, what));
    };
    for part in &source.path {
        if let Some(word) = empty_name(&part.to_string_lossy()) {
            note(1, format!("\"{word}\" in a file name; name what it holds"));
        }
    }
    for (number, line) in source.lines() {
        if let Some(word) = PROMISES.iter().find(|word| has_word(line, word)) {
            note(number, format!("{word}; do it, or say as a fact what is not there"));
        }
        if let Some(path) = MACHINE_PATHS.iter().find(|path| has_path(line, path)) {
            note(number, format!("{path}: a path of one machine; make it relative"));
        }
        if let Some(host) = REGISTRY_HOSTS.iter().find(|host| line.contains(**host)) {
            note(number, format!("{host}: a registry's host; leave it to cargo's configuration"));
        }
    }
    let Some(rust) = &source.rust else { return findings };
    for (name, line) in &rust.modules {
        if let Some(word) = empty_name(name) {
            note(*line, format!("\"{word}\" in a module name; name what it holds"));
        }
    }
    for (name, line) in &rust.macros {
        if MACROS.contains(&name.as_str()) {
            note(*line, format!("{name}!; write the code or return an error"));
        }
    }
    for line in &rust.ignores {
        note(*line, "#[ignore]; let the test say why it cannot run, and return".into());
    }
    findings
}

fn empty_name(name: &str) -> Option<&'static str> {
    let stem = name.split('.').next().unwrap_or(name);
    let mut parts = stem.split(['_', '-']);
    parts.find_map(|part| EMPTY_NAMES.iter().copied().find(|word| *word == part))
}

fn is_name_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '-' || c == '.'
}

/// Whether `word` stands in the line as a word of its own.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
    })
}

/// Whether `path` stands in the line as the start of an absolute path.
fn has_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + path.len()..].chars().next();
        // `a/b/work` and `~/work` are relative; `/workers` is another word.
        !before.is_some_and(|c| is_name_char(c) || matches!(c, '/' | '~' | '}' | ')'))
            && after.is_none_or(|c| !is_name_char(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        check(&Source::new(path, text)).iter().map(|f| f.to_string()).collect()
    }

    #[test]
    fn planted_promises_are_found_as_whole_words() {
        let word = PROMISES[0];
        assert_eq!(found("a.rs", &format!("//! A\n// {word}: later\n")).len(), 1);
        assert_eq!(found("README.md", &format!("({})\n", PROMISES[1])).len(), 1);
        assert_eq!(found("a.rs", &format!("//! A\nconst MY{word}S: u8 = 0;\n")).len(), 0);
    }

    #[test]
    fn planted_macros_and_ignored_tests_are_found_in_code_only() {
        let text = "//! A\nfn a() { dbg!(1); vec![todo!()]; }\n// todo!() in words\n";
        assert_eq!(found("a.rs", text).len(), 2);
        let text = "//! A\n#[test]\n#[ignore = \"slow\"]\nfn a() {}\n";
        assert_eq!(
            found("a.rs", text),
            ["a.rs:3: #[ignore]; let the test say why it cannot \
                                         run, and return"]
        );
    }

    #[test]
    fn planted_empty_names_are_found() {
        assert_eq!(found("a/src/utils.rs", "//! A\n").len(), 1);
        assert_eq!(found("a/helpers/b.rs", "//! A\n").len(), 1);
        assert_eq!(found("a/src/test_util.rs", "//! A\n").len(), 1);
        assert_eq!(found("a/src/a.rs", "//! A\nmod manager {}\n").len(), 1);
        assert_eq!(found("a/src/utility.rs", "//! A\nmod commons {}\n").len(), 0);
    }

    #[test]
    fn planted_paths_of_one_machine_are_found() {
        for path in MACHINE_PATHS {
            assert_eq!(found("a.md", &format!("see {path}/x\n")).len(), 1, "{path}");
            assert_eq!(found("a.md", &format!("in `{path}`\n")).len(), 1, "{path}");
            assert_eq!(found("a.md", &format!("target{path}/x ~{path} {path}ers\n")).len(), 0);
        }
    }

    #[test]
    fn planted_registry_hosts_are_found() {
        assert_eq!(found("a.toml", &format!("index.{}\n", REGISTRY_HOSTS[0])).len(), 1);
    }
}
