//! One table of the document while it is read: each key is asked for by name, and whatever was
//! not asked for is an error at the end.

use super::error::Sink;
use super::value::Wrong;
use std::ops::Range;
use toml::de::{DeTable, DeValue};

/// A value and the bytes of the source that it came from.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub value: T,
    pub span: Range<usize>,
}

/// One table.
pub(super) struct Section<'a> {
    /// As errors call it: `[[port]]`, `[runtime]`.
    kind: &'static str,
    table: &'a DeTable<'a>,
    /// The header in the source; the place of what is missing.
    pub span: Range<usize>,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    pub(super) fn new(kind: &'static str, table: &'a DeTable<'a>, span: Range<usize>) -> Self {
        Section { kind, table, span, known: Vec::new() }
    }

    /// What errors call the key.
    pub(super) fn named(&self, key: &str) -> String {
        if self.kind.is_empty() { format!("`{key}`") } else { format!("`{key}` of {}", self.kind) }
    }

    /// The key's value, if it is there and right; if it is there and wrong, that is reported.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        sink: &mut Sink,
        read: impl FnOnce(&DeValue) -> Result<T, Wrong>,
    ) -> Option<At<T>> {
        self.allow(key);
        let found = self.table.get(key)?;
        match read(found.get_ref()) {
            Ok(value) => Some(At { value, span: found.span() }),
            Err(wrong) => {
                let what = format!("{} {}", self.named(key), wrong.what);
                sink.push(found.span(), what, &wrong.want);
                None
            }
        }
    }

    /// The same, and reports a key that is missing; `want` is what to write.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        want: &str,
        sink: &mut Sink,
        read: impl FnOnce(&DeValue) -> Result<T, Wrong>,
    ) -> Option<At<T>> {
        if !self.table.contains_key(key) {
            let what = format!("{} is missing", self.named(key));
            sink.push(self.span.clone(), what, &format!("add `{key} = {want}`"));
        }
        self.optional(key, sink, read)
    }

    /// Whether the key is there, right or wrong.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// The place of the key itself, if it is there.
    pub(super) fn key_span(&self, key: &str) -> Option<Range<usize>> {
        self.table.get_key_value(key).map(|(key, _)| key.span())
    }

    /// A key that is looked at elsewhere, or not at all because of another error.
    pub(super) fn allow(&mut self, key: &'static str) {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
    }

    /// A key that is right elsewhere but not here.
    pub(super) fn refuse(&mut self, key: &'static str, why: &str, sink: &mut Sink) {
        self.allow(key);
        if let Some(span) = self.key_span(key) {
            sink.push(span, format!("{} does not belong here", self.named(key)), why);
        }
    }

    /// The table `[key]`; `None` when it is missing or not a table.
    pub(super) fn table(
        &mut self,
        key: &'static str,
        kind: &'static str,
        sink: &mut Sink,
    ) -> Option<Section<'a>> {
        self.allow(key);
        let found = self.table.get(key)?;
        match found.get_ref() {
            DeValue::Table(table) => Some(Section::new(kind, table, found.span())),
            _ => {
                sink.push(found.span(), format!("`{key}` is not a table"), &format!("want {kind}"));
                None
            }
        }
    }

    /// The tables `[[key]]`, in their order; at most `max`.
    pub(super) fn tables(
        &mut self,
        key: &'static str,
        kind: &'static str,
        max: usize,
        sink: &mut Sink,
    ) -> Vec<Section<'a>> {
        self.allow(key);
        let Some(found) = self.table.get(key) else { return Vec::new() };
        let want = format!("want {kind}, with two brackets");
        let DeValue::Array(array) = found.get_ref() else {
            sink.push(found.span(), format!("`{key}` is a list of tables"), &want);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, item) in array.iter().enumerate() {
            if index == max {
                let what = format!("more than {max} {kind}");
                sink.push(item.span(), what, &format!("at most {max}"));
                break;
            }
            match item.get_ref() {
                DeValue::Table(table) => sections.push(Section::new(kind, table, item.span())),
                _ => sink.push(item.span(), format!("`{key}` is a list of tables"), &want),
            }
        }
        sections
    }

    /// Reports every key that nobody asked for.
    pub(super) fn finish(self, sink: &mut Sink) {
        for (key, _) in self.table.iter() {
            let name: &str = key.get_ref();
            if !self.known.contains(&name) {
                let place = if self.kind.is_empty() { "" } else { " in " };
                let what = format!("unknown key `{}`{place}{}", name.escape_debug(), self.kind);
                sink.push(key.span(), what, &advice(name, &self.known));
            }
        }
    }
}

/// The known name closest to a mistyped one, or all of them.
pub(crate) fn advice(name: &str, known: &[&str]) -> String {
    // A distance beyond a third of the word is another word.
    let near = |candidate: &&&str| {
        name.len() <= 64 && strsim::osa_distance(name, candidate) <= candidate.len().div_ceil(3)
    };
    match known.iter().filter(near).min_by_key(|known| strsim::osa_distance(name, known)) {
        Some(known) => format!("did you mean `{known}`?"),
        None => format!("known here: {}", known.join(", ")),
    }
}
