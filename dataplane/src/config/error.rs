//! What is wrong in a configuration, shown where it is: message, place, source line, caret, and
//! what would be right. Positions are 1-based; a column counts characters.

use std::fmt::{self, Write};
use std::ops::Range;

/// The most problems that are shown at once.
const PROBLEMS_MAX: usize = 20;
/// The most characters of a source line that are shown.
const LINE_CHARS_MAX: usize = 160;

/// Everything that is wrong in a configuration, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors {
    text: String,
    count: usize,
}

impl Errors {
    /// The number of mistakes found.
    pub fn count(&self) -> usize {
        self.count
    }

    /// A mistake that has no line.
    pub(super) fn whole_file(file: &str, what: &str) -> Errors {
        Errors { text: format!("error: {what}\n  --> {file}\n"), count: 1 }
    }

    /// The bytes are not text; `valid_bytes` of them are.
    pub(super) fn not_utf8(file: &str, bytes: &[u8], valid_bytes: usize) -> Errors {
        // The cut never reaches past `valid_bytes`, which is where a character begins.
        let before = String::from_utf8_lossy(&bytes[..valid_bytes]);
        let place = Place::of(&before, before.len());
        let text = format!(
            "error: the file is not UTF-8 text\n  --> {file}:{}:{}\n   = byte {:#04x} here\n",
            place.line, place.column, bytes[valid_bytes]
        );
        Errors { text, count: 1 }
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text.trim_end())
    }
}

impl std::error::Error for Errors {}

/// One mistake.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    /// The bytes of the source that are wrong.
    pub span: Range<usize>,
    /// What is wrong, naming the key.
    pub what: String,
    /// What would be right, shown beside the caret.
    pub want: String,
    /// Another place that it has to do with: its bytes and what they are.
    pub other: Option<(Range<usize>, &'static str)>,
}

/// Collects problems while a document is read.
#[derive(Default)]
pub(super) struct Sink {
    problems: Vec<Problem>,
}

impl Sink {
    /// Reports a problem.
    pub(super) fn push(&mut self, span: Range<usize>, what: impl Into<String>, want: &str) {
        self.problems.push(Problem { span, what: what.into(), want: want.into(), other: None });
    }

    /// Reports a problem that has to do with another place.
    pub(super) fn push_with(
        &mut self,
        span: Range<usize>,
        what: impl Into<String>,
        want: &str,
        other: (Range<usize>, &'static str),
    ) {
        let (what, want) = (what.into(), want.into());
        self.problems.push(Problem { span, what, want, other: Some(other) });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    pub(super) fn into_errors(mut self, file: &str, source: &str) -> Errors {
        self.problems.sort_by_key(|problem| problem.span.start);
        let count = self.problems.len();
        let mut text = String::new();
        for problem in self.problems.iter().take(PROBLEMS_MAX) {
            render(&mut text, problem, file, source).expect("writing to a string cannot fail");
        }
        if count > PROBLEMS_MAX {
            let _ = writeln!(text, "error: and {} more", count - PROBLEMS_MAX);
        }
        Errors { text, count }
    }
}

/// Where a byte of the source is.
struct Place<'s> {
    line: usize,
    column: usize,
    text: &'s str,
}

impl Place<'_> {
    fn of(source: &str, byte: usize) -> Place<'_> {
        let byte = char_start(source, byte);
        let start = source[..byte].rfind('\n').map_or(0, |newline| newline + 1);
        let end = source[byte..].find('\n').map_or(source.len(), |length| byte + length);
        Place {
            line: source[..start].matches('\n').count() + 1,
            column: source[start..byte].chars().count() + 1,
            text: source[start..end].trim_end_matches('\r'),
        }
    }
}

/// The start of the character at `byte`, or the source's end.
fn char_start(source: &str, byte: usize) -> usize {
    (0..=byte.min(source.len())).rev().find(|at| source.is_char_boundary(*at)).unwrap_or(0)
}

fn render(out: &mut String, problem: &Problem, file: &str, source: &str) -> fmt::Result {
    let place = Place::of(source, problem.span.start);
    let number = place.line.to_string();
    let gutter = " ".repeat(number.len());
    // A line too long to show begins later, so that the mistake is in sight.
    let skip = if place.column > LINE_CHARS_MAX { place.column - 1 } else { 0 };
    let shown: String = place.text.chars().skip(skip).take(LINE_CHARS_MAX).map(plain).collect();
    let indent = place.column - 1 - skip;
    let end = char_start(source, problem.span.end);
    let wrong_chars = source
        .get(problem.span.start..end)
        .map_or(0, |text| text.lines().next().map_or(0, |line| line.chars().count()));
    let room = shown.chars().count().saturating_sub(indent);
    let carets = "^".repeat(wrong_chars.min(room).max(1));

    writeln!(out, "error: {}", problem.what)?;
    writeln!(out, "{gutter}--> {file}:{}:{}", place.line, place.column)?;
    writeln!(out, "{gutter} |")?;
    writeln!(out, "{number} | {}", shown.trim_end())?;
    writeln!(
        out,
        "{}",
        format!("{gutter} | {}{carets} {}", " ".repeat(indent), problem.want).trim_end()
    )?;
    if let Some((span, what)) = &problem.other {
        let other = Place::of(source, span.start);
        writeln!(out, "{gutter} = {what} at {file}:{}:{}", other.line, other.column)?;
    }
    writeln!(out)
}

/// One column per character, and nothing that steers a terminal.
fn plain(character: char) -> char {
    match character {
        '\t' => ' ',
        character if character.is_control() => '\u{fffd}',
        character => character,
    }
}
