//! Ledgers on the page: a bar per percentile whose parts are the stages' shares, the figures, and
//! the slowest spelled out.

use super::html::{escape, table};
use super::terminal::count;
use crate::schema::Ledger;
use outboard::ledger::{Point, time};
use std::fmt::Write;

/// Parts of a bar that are narrower have no room for their figure.
const WRITTEN_SHARE: f64 = 0.06;

/// Every ledger; nothing when there is none.
pub fn section(ledgers: &[Ledger]) -> String {
    if ledgers.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "<section><h2>Where the time went</h2>\n<p class=\"dim\">Each bar is the whole time of the \
         packets or I/Os around a percentile, and its parts are the stages that they were in. \
         <b>unseen</b> is an upper bound: nobody knows when something came, only when the worker \
         had looked before.</p>\n",
    );
    ledgers.iter().for_each(|ledger| out += &one(ledger));
    out + "</section>\n"
}

fn one(ledger: &Ledger) -> String {
    let (kind, entries) = (escape(&ledger.table.kind), count(ledger.table.entries as f64));
    let mut out = format!(
        "<h3>{kind}: {}</h3>\n<p class=\"dim\">{entries} in {:.1} s</p>\n",
        escape(&ledger.title),
        ledger.seconds
    );
    for note in &ledger.notes {
        let _ = writeln!(out, "<p class=\"dim\">{}</p>", escape(note));
    }
    out += "<figure><figcaption class=\"legend\">";
    for (index, (name, _)) in ledger.table.stages.iter().enumerate() {
        let _ = write!(out, "<span class=\"c{index}\"><i></i>{}</span>", escape(name));
    }
    out += "</figcaption>\n<div class=\"bars stages\">\n";
    ledger.table.points.iter().for_each(|point| out += &bar(ledger, point));
    out += "</div></figure>\n";
    out += &figures(ledger);
    out + &slowest(ledger)
}

/// One percentile.
fn bar(ledger: &Ledger, point: &Point) -> String {
    let total = point.total_ns.map_or("–".into(), time);
    let mut out = format!("<span>p{}</span><span class=\"track\">", point.percentile);
    let stages = ledger.table.stages.iter().zip(&point.shares).enumerate();
    for (index, ((name, _), share)) in stages.filter(|(_, (_, share))| **share > 0.0) {
        let (name, percent) = (escape(name), share * 100.0);
        let text = match *share >= WRITTEN_SHARE {
            true => format!("{percent:.0} %"),
            false => String::new(),
        };
        let at = time(share * point.total_ns.unwrap_or(0.0));
        let _ = write!(
            out,
            "<span class=\"stage c{index}\" style=\"width:{percent:.2}%\" title=\"{name} \
             {percent:.1} %, {at}\">{text}</span>"
        );
    }
    let _ = writeln!(out, "</span><span class=\"value\">{total}</span>");
    out
}

fn figures(ledger: &Ledger) -> String {
    let points = &ledger.table.points;
    let cell = |point: &Point, index: usize| match (point.total_ns, point.shares.get(index)) {
        (Some(ns), Some(share)) => {
            format!("{} <span class=\"dim\">{:.0} %</span>", time(share * ns), share * 100.0)
        }
        _ => "–".into(),
    };
    let stages = ledger.table.stages.iter().enumerate();
    let mut rows: Vec<Vec<String>> = stages
        .map(|(index, (name, means))| {
            let mut row = vec![format!("<b>{}</b>", escape(name))];
            row.extend(points.iter().map(|point| cell(point, index)));
            row.push(escape(means));
            row
        })
        .collect();
    let mut total = vec!["<b>total</b>".to_owned()];
    total.extend(points.iter().map(|point| point.total_ns.map_or("–".into(), time)));
    rows.push(total.into_iter().chain([String::new()]).collect());
    let head: Vec<String> = points.iter().map(|point| format!("p{}", point.percentile)).collect();
    let head: Vec<&str> = ["stage"]
        .into_iter()
        .chain(head.iter().map(String::as_str))
        .chain(["what happens in it"])
        .collect();
    table("ledger", &head, &rows)
}

fn slowest(ledger: &Ledger) -> String {
    let rows: Vec<Vec<String>> = ledger
        .table
        .slowest
        .iter()
        .map(|slow| {
            // Lines break between the parts, not in them.
            let spelled = slow.spelled(&ledger.table.stages).replace(' ', "\u{a0}");
            let spelled = spelled.replace(",\u{a0}", ", ");
            let at = format!("{:.3} s", slow.after_s);
            vec![time(slow.total_ns as f64), escape(&spelled), escape(&slow.what), at]
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let list = table("slowest", &["total", "where it was", "what it was", "at"], &rows);
    format!("<details open><summary>The slowest {}</summary>{list}</details>\n", rows.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use outboard::ledger::{Slow, Table};

    const SPELLED: &str = "&lt;medium&gt; 75 % (1.50 ms), unseen 25 % (500 µs)";

    fn ledger() -> Ledger {
        let stage = |name: &str| (name.to_owned(), "<what>".to_owned());
        let point = |percentile, total_ns, shares: &[f64]| Point {
            percentile,
            total_ns,
            shares: shares.to_vec(),
        };
        let slow = Slow {
            after_s: 1.25,
            what: "read of <disk>, 4096 B".into(),
            total_ns: 2_000_000,
            stages_ns: vec![500_000, 1_500_000],
        };
        Ledger {
            title: "a & b".into(),
            seconds: 2.0,
            threads: vec![],
            notes: vec!["<note>".into()],
            table: Table {
                kind: "file I/O".into(),
                entries: 1234,
                stages: vec![stage("unseen"), stage("<medium>")],
                points: vec![point(50.0, Some(40_000.0), &[0.25, 0.75]), point(99.9, None, &[])],
                slowest: vec![slow],
            },
        }
    }

    #[test]
    fn a_bar_has_a_part_for_every_share_and_figures_for_what_is_told() {
        let page = section(&[ledger()]);
        assert!(page.contains("width:25.00%") && page.contains("width:75.00%"), "{page}");
        assert!(page.contains("30.0 µs <span class=\"dim\">75 %</span>"), "{page}");
        assert!(
            page.contains("<span>p99.9</span><span class=\"track\"></span><span class=\"value\">–")
        );
        assert!(page.replace('\u{a0}', " ").contains(SPELLED), "{page}");
        assert!(page.contains("1.250 s") && page.contains("1.23k in 2.0 s"), "{page}");
        assert_eq!(section(&[]), "");
    }

    #[test]
    fn text_cannot_become_markup() {
        let page = section(&[ledger()]);
        for hostile in ["<note>", "<what>", "<medium>", "<disk>", "a & b"] {
            assert!(!page.contains(hostile), "{hostile}");
        }
    }
}
