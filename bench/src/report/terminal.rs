//! The report as text: aligned tables, one per group of measurements, then targets and facts.

use super::summary::{self, Group};
use crate::latency::text;
use crate::schema::{Fact, Ledger, Measurement, Report, Target};

/// All tables of a report.
pub fn tables(report: &Report) -> String {
    let mut out = String::new();
    for group in summary::groups(&report.measurements) {
        out += &measurements(&group);
    }
    for ledger in &report.ledgers {
        out += &stages(ledger);
    }
    if !report.facts.is_empty() {
        out += &facts(&report.facts);
    }
    if !report.targets.is_empty() {
        out += &targets(&report.targets);
    }
    out
}

fn measurements(group: &Group) -> String {
    let head = ["path", "medium", "rate", "p50", "p99", "p99.9", "max", "samples", "p50 ratio"];
    let rows: Vec<Vec<String>> = group
        .members
        .iter()
        .map(|m| {
            let latency = m.latency.as_ref();
            let percentile =
                |of: fn(&crate::schema::Latency) -> Option<u64>| text(latency.and_then(of));
            vec![
                m.path.clone(),
                m.medium.clone(),
                format!("{}/s", count(m.rate_per_s)),
                percentile(|l| l.p50_ns),
                percentile(|l| l.p99_ns),
                percentile(|l| l.p999_ns),
                percentile(|l| Some(l.max_ns)),
                latency.map_or_else(String::new, |l| count(l.samples as f64)),
                group.ratio_text(m),
            ]
        })
        .collect();
    let mut out = format!("{}\n{}", group.name, table(&head, &rows));
    for m in &group.members {
        for fault in faults(m) {
            out += &format!("  ! {}: {fault}\n", m.path);
        }
    }
    out + "\n"
}

/// As `outboard ledger` prints it.
fn stages(ledger: &Ledger) -> String {
    let Ledger { title, seconds, table, .. } = ledger;
    let entries = count(table.entries as f64);
    let mut out = format!("{}: {title}: {entries} in {seconds:.1} s\n{table}", table.kind);
    for note in &ledger.notes {
        out += &format!("  ! {note}\n");
    }
    out + "\n"
}

/// What is wrong with a measurement, in words.
pub fn faults(m: &Measurement) -> Vec<String> {
    let mut all = Vec::new();
    let mut say = |n: u64, what: &str| {
        if n > 0 {
            all.push(format!("{n} {what}"));
        }
    };
    say(m.verify_failures, "answers with wrong content");
    say(m.errors, "requests failed");
    say(m.lost, "requests lost");
    say(m.strays, "stray answers");
    say(m.unsent, "requests due but never sent (the path cannot keep this rate)");
    if m.generator_limited {
        all.push("limited by the generator, not by the path".into());
    }
    all
}

fn targets(targets: &[Target]) -> String {
    let rows: Vec<Vec<String>> = targets
        .iter()
        .map(|t| {
            let verdict = match t.met {
                Some(true) => "met",
                Some(false) if summary::either_met(t, targets) => "met by other form",
                Some(false) => "NOT MET",
                None => "",
            };
            let value = t.value.map_or("–".into(), number);
            let spread = summary::spread(&t.runs)
                .map_or(String::new(), |(low, high)| format!("{} … {}", number(low), number(high)));
            let row = [&t.id, &value, &t.unit, &spread, &t.want];
            let mut row: Vec<String> = row.into_iter().cloned().collect();
            row.extend([verdict.to_owned(), t.cause.clone()]);
            row
        })
        .collect();
    let head = ["target", "median", "unit", "spread", "want", "", "cause"];
    format!("targets\n{}\n", table(&head, &rows))
}

fn facts(facts: &[Fact]) -> String {
    let rows: Vec<Vec<String>> = facts
        .iter()
        .map(|fact| {
            let ok = match fact.ok {
                Some(true) => "ok",
                Some(false) => "FAILED",
                None => "",
            };
            let value =
                fact.value.map_or(String::new(), |v| format!("{} {}", number(v), fact.unit));
            vec![fact.title.clone(), fact.path.clone(), value, ok.to_owned(), fact.text.clone()]
        })
        .collect();
    format!("also seen\n{}\n", table(&["what", "path", "figure", "", ""], &rows))
}

/// Three digits and a thousands letter.
pub fn count(value: f64) -> String {
    let (value, letter) = match value {
        value if value >= 999.5e6 => (value / 1e9, "G"),
        value if value >= 999.5e3 => (value / 1e6, "M"),
        value if value >= 999.5 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match value {
        _ if value.fract() == 0.0 && letter.is_empty() => 0,
        value if value < 10.0 => 2,
        value => usize::from(value < 100.0),
    };
    format!("{value:.digits$}{letter}")
}

/// A plain figure with as many digits as it deserves.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

/// Columns as wide as their widest cell; numbers to the right, words to the left.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |text: &str| text.chars().count();
    let numeric = |column: usize| {
        let is_number = |cell: &String| cell.starts_with(|c: char| c.is_ascii_digit() || c == '–');
        rows.iter().filter(|row| !row[column].is_empty()).all(|row| is_number(&row[column]))
    };
    let columns: Vec<(usize, bool)> = (0..head.len())
        .map(|column| {
            let cells = rows.iter().map(|row| width(&row[column]));
            (cells.max().unwrap_or(0).max(width(head[column])), numeric(column))
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::from(" ");
        for (cell, (wide, right)) in cells.zip(&columns) {
            let space = " ".repeat(wide - width(cell));
            line += &if *right { format!(" {space}{cell} ") } else { format!(" {cell}{space} ") };
        }
        line.trim_end().to_owned() + "\n"
    };
    let mut out = line(&mut head.iter().copied());
    for row in rows {
        out += &line(&mut row.iter().map(String::as_str));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_three_digits() {
        let shown = [0.0, 7.0, 999.0, 1_000.0, 12_345.0, 999_900.0, 1.5e9].map(count);
        assert_eq!(shown, ["0", "7", "999", "1.00k", "12.3k", "1.00M", "1.50G"]);
        assert_eq!([0.123, 12.34, 1234.5].map(number), ["0.12", "12.3", "1234"]);
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["a µ".into(), "1.5".into()], vec!["longer".into(), "–".into()]];
        let text = table(&["x", "n"], &rows);
        let widths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert_eq!(widths, [13, 13, 13], "{text}");
    }
}
