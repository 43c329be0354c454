//! Sizes: 800 lines per file, 70 per function, 100 columns; a header in every Rust file.

use super::Finding;
use super::source::Source;

const FILE_LINES: usize = 800;
const FUNCTION_LINES: usize = 70;
const COLUMNS: usize = 100;

/// Sizes and white space of one file.
pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = white_space(source);
    let Some(rust) = &source.rust else { return findings };
    let mut note =
        |line: usize, what: String| findings.push(Finding::new(&source.path, line, what));
    if let Some((error, line)) = &rust.error {
        note(*line, format!("not Rust: {error}"));
    }
    let lines = source.text.lines().count();
    if lines > FILE_LINES {
        note(1, format!("{lines} lines; cut it in two at a better seam (limit {FILE_LINES})"));
    }
    for function in &rust.functions {
        let lines = function.last - function.first + 1;
        if lines > FUNCTION_LINES {
            let name = &function.name;
            note(
                function.first,
                format!("fn {name} has {lines} lines; give its parts names ({FUNCTION_LINES})"),
            );
        }
    }
    for (number, line) in source.lines() {
        let columns = line.chars().count();
        if columns > COLUMNS {
            note(number, format!("{columns} columns; break the line (limit {COLUMNS})"));
        }
    }
    if !starts_with_header(&source.text) {
        note(1, "no module header; begin with //! and the contract in a few lines".into());
    }
    findings
}

fn white_space(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in source.lines() {
        if line.ends_with([' ', '\t', '\r']) {
            findings.push(Finding::new(&source.path, number, "trailing white space; remove it"));
        }
    }
    if !source.text.is_empty() && !source.text.ends_with('\n') {
        let lines = source.text.lines().count();
        findings.push(Finding::new(&source.path, lines, "no newline at the end; add it"));
    }
    findings
}

/// Whether documentation of the module comes first; a shebang or inner attributes may precede it.
fn starts_with_header(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with("#!"));
    first.is_some_and(|line| line.starts_with("//!"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        check(&Source::new("a/src/a.rs", text)).iter().map(|f| f.to_string()).collect()
    }

    #[test]
    fn a_tidy_file_has_no_finding() {
        assert_eq!(found("//! A.\n\nfn a() {}\n"), Vec::<String>::new());
        assert_eq!(found("#![no_std]\n//! A.\n"), Vec::<String>::new());
    }

    #[test]
    fn files_up_to_the_limit_pass_and_one_line_more_does_not() {
        let text = |lines: usize| format!("//! A.\n{}", "// b\n".repeat(lines - 1));
        assert_eq!(found(&text(FILE_LINES)).len(), 0);
        assert_eq!(found(&text(FILE_LINES + 1)).len(), 1);
    }

    #[test]
    fn functions_up_to_the_limit_pass_and_one_line_more_does_not() {
        let text = |lines: usize| {
            format!("//! A.\nimpl A {{\n  fn f() {{\n{}  }}\n}}\n", "g();\n".repeat(lines - 2))
        };
        assert_eq!(found(&text(FUNCTION_LINES)).len(), 0);
        let findings = found(&text(FUNCTION_LINES + 1));
        assert_eq!(findings.len(), 1);
        assert!(findings[0].starts_with("a/src/a.rs:3: fn f has 71 lines"), "{findings:?}");
    }

    #[test]
    fn columns_are_characters_not_bytes() {
        let line = |columns: usize| format!("//! A.\n// {}\n", "µ".repeat(columns - 3));
        assert_eq!(found(&line(COLUMNS)).len(), 0);
        assert_eq!(found(&line(COLUMNS + 1)).len(), 1);
    }

    #[test]
    fn planted_white_space_and_a_missing_header_are_found() {
        assert!(found("//! A. \n")[0].contains("trailing"));
        assert!(found("//! A.")[0].contains("no newline"));
        assert!(found("fn a() {}\n")[0].contains("no module header"));
        assert!(check(&Source::new("README.md", "a\t\n"))[0].what.contains("trailing"));
    }
}
