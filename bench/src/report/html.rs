//! The report as one page without external resources, readable in light and dark.

use super::plot::{self, Series};
use super::stages;
use super::summary::{self, Group};
use super::terminal::{count, faults, number};
use crate::latency::text;
use crate::schema::{Census, Fact, Fingerprint, Latency, Measurement, Report, Target};
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");

/// The whole page.
pub fn page(title: &str, report: &Report) -> String {
    let title = escape(title);
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{title}</title>\
         <style>\n{STYLE}</style></head><body><main>\n<header><h1>{title}</h1>{}</header>\n",
        report.fingerprint.as_ref().map_or(String::new(), byline)
    );
    let groups = summary::groups(&report.measurements);
    let colors = Colors::new(report);
    out += &comparisons(&groups);
    out += &targets(&report.targets);
    out += &observations(&report.facts);
    out += &throughput(&report.facts, &colors);
    out += &stages::section(&report.ledgers);
    for group in &groups {
        out += &section(group, &colors);
    }
    out += &how_to_read();
    out += &environment(report.fingerprint.as_ref());
    out += &commands(report);
    out + "</main></body></html>\n"
}

/// Text in HTML, attributes included.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c => out.push(c),
        }
    }
    out
}

/// The same path has the same colour everywhere; Outboard has the first.
struct Colors(Vec<String>);

const COLORS: usize = 8;

impl Colors {
    fn new(report: &Report) -> Colors {
        let mut paths: Vec<String> = Vec::new();
        let measured = report.measurements.iter().map(|m| &m.path);
        for path in measured.chain(report.facts.iter().map(|fact| &fact.path)) {
            if !path.is_empty() && !paths.contains(path) {
                paths.push(path.clone());
            }
        }
        paths.sort_by_key(|path| !path.starts_with("Outboard"));
        Colors(paths)
    }

    fn of(&self, path: &str) -> usize {
        self.0.iter().position(|known| known == path).unwrap_or(0) % COLORS
    }
}

fn byline(f: &Fingerprint) -> String {
    let virt = if f.hypervisor { ", virtual machine" } else { "" };
    let commit = f.commit.as_deref().unwrap_or("unknown commit");
    let debug = match f.profile == "debug" {
        true => " <strong class=\"bad\">debug build: figures do not count</strong>",
        false => "",
    };
    format!(
        "<p class=\"byline\">{} · {} × {}{virt} · Linux {} · {}{debug}</p>",
        escape(&f.date),
        f.cores,
        escape(&f.cpu),
        escape(&f.kernel),
        escape(commit)
    )
}

/// A table; cells are HTML. The first column is text, the others figures.
pub fn table(class: &str, head: &[&str], rows: &[Vec<String>]) -> String {
    let mut out = format!("<div class=\"scroll\"><table class=\"{class}\">");
    if !head.is_empty() {
        let cells: String = head.iter().map(|cell| format!("<th>{cell}</th>")).collect();
        let _ = write!(out, "<thead><tr>{cells}</tr></thead>");
    }
    out += "<tbody>\n";
    for row in rows {
        let cells: String = row.iter().map(|cell| format!("<td>{cell}</td>")).collect();
        let _ = writeln!(out, "<tr>{cells}</tr>");
    }
    out + "</tbody></table></div>\n"
}

/// The first thing on the page: what was compared with what, by how much they differ.
fn comparisons(groups: &[Group]) -> String {
    let mut rows = Vec::new();
    for group in groups {
        let Some(base) = group.baseline() else { continue };
        for m in group.members.iter().filter(|m| !m.baseline) {
            let (Some(ours), Some(theirs)) = (&m.latency, &base.latency) else { continue };
            rows.push(vec![
                escape(group.name),
                format!("<b>{}</b>", escape(&m.path)),
                escape(&base.path),
                text(ours.p50_ns),
                text(theirs.p50_ns),
                verdict(group.ratio(m)),
                verdict(tail_ratio(ours, theirs)),
                match m.medium == base.medium {
                    true => escape(&m.medium),
                    false => format!("{} / {}", escape(&m.medium), escape(&base.medium)),
                },
            ]);
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let head = ["what", "path", "compared with", "p50", "its p50", "p50 ratio", "p99 ratio"];
    let head: Vec<&str> = head.into_iter().chain(["medium"]).collect();
    format!("<section><h2>Summary</h2>{}</section>\n", table("summary", &head, &rows))
}

fn tail_ratio(ours: &Latency, theirs: &Latency) -> Option<f64> {
    Some(ours.p99_ns? as f64 / (theirs.p99_ns? as f64).max(1.0))
}

/// A latency ratio in words as well as in a figure.
fn verdict(ratio: Option<f64>) -> String {
    match ratio {
        None => "–".into(),
        Some(ratio) if ratio < 0.95 => {
            format!("<b>{ratio:.2} ×</b> <span class=\"good\">faster</span>")
        }
        Some(ratio) if ratio <= 1.05 => format!("<b>{ratio:.2} ×</b> <span>same</span>"),
        Some(ratio) => format!("<b>{ratio:.2} ×</b> <span class=\"bad\">slower</span>"),
    }
}

fn targets(targets: &[Target]) -> String {
    if targets.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = targets
        .iter()
        .map(|t| {
            let badge = match t.met {
                Some(true) => "<span class=\"badge good\">met</span>",
                Some(false) if summary::either_met(t, targets) => {
                    "<span class=\"badge\">met by its other form</span>"
                }
                Some(false) => "<span class=\"badge bad\">not met</span>",
                None if t.value.is_none() => "<span class=\"badge bad\">not measured</span>",
                None => "<span class=\"badge\">reported</span>",
            };
            let spread = summary::spread(&t.runs).map_or(String::new(), |(low, high)| {
                format!(
                    "{} … {}<br><span class=\"dim\">{} runs</span>",
                    number(low),
                    number(high),
                    t.runs.len()
                )
            });
            let (id, compares) = (escape(&t.id), escape(&t.compares));
            vec![
                format!("<code>{id}</code><br><span class=\"dim\">{compares}</span>"),
                t.value
                    .map_or("–".into(), |v| format!("<b>{}</b> {}", number(v), escape(&t.unit))),
                escape(&t.want),
                badge.into(),
                spread,
                escape(&t.cause),
            ]
        })
        .collect();
    let head = ["target", "median", "want", "", "spread", "cause"];
    format!("<section><h2>Targets</h2>{}</section>\n", table("targets", &head, &rows))
}

/// Reach, isolation and notes: a list with marks.
fn observations(facts: &[Fact]) -> String {
    let seen: Vec<&Fact> = facts.iter().filter(|fact| fact.kind != "throughput").collect();
    if seen.is_empty() {
        return String::new();
    }
    let mut out = String::from("<section><h2>Seen</h2><ul class=\"facts\">\n");
    for fact in seen {
        let mark = match fact.ok {
            Some(true) => "<span class=\"badge good\">ok</span>",
            Some(false) => "<span class=\"badge bad\">failed</span>",
            None => "<span class=\"badge\">note</span>",
        };
        let value = fact.value.map_or(String::new(), |value| {
            format!(" <b>{} {}</b>", number(value), escape(&fact.unit))
        });
        let path = match fact.path.is_empty() {
            true => String::new(),
            false => format!(" <span class=\"dim\">({})</span>", escape(&fact.path)),
        };
        let (title, text) = (escape(&fact.title), escape(&fact.text));
        let output = match fact.output.trim_end() {
            "" => String::new(),
            output => format!("<pre>{}</pre>", escape(output)),
        };
        let _ = writeln!(
            out,
            "<li>{mark}<div>{title}{path}{value} <span class=\"dim\">{text}</span>{output}\
             </div></li>"
        );
    }
    out + "</ul></section>\n"
}

/// Bars of one title share one scale.
fn throughput(facts: &[Fact], colors: &Colors) -> String {
    let rates: Vec<&Fact> =
        facts.iter().filter(|fact| fact.kind == "throughput" && fact.value.is_some()).collect();
    if rates.is_empty() {
        return String::new();
    }
    let mut titles: Vec<&str> = Vec::new();
    for fact in &rates {
        if !titles.contains(&fact.title.as_str()) {
            titles.push(&fact.title);
        }
    }
    let mut out = String::from("<section><h2>Throughput</h2>\n");
    for title in titles {
        let _ = writeln!(out, "<h3>{}</h3>", escape(title));
        let rows: Vec<Bar> = rates
            .iter()
            .filter(|fact| fact.title == title)
            .map(|fact| Bar {
                label: &fact.path,
                value: fact.value.unwrap_or(0.0),
                text: format!("{} {}", number(fact.value.unwrap_or(0.0)), fact.unit),
            })
            .collect();
        out += &bars(&rows, colors);
    }
    out + "</section>\n"
}

struct Bar<'a> {
    label: &'a str,
    value: f64,
    text: String,
}

fn bars(rows: &[Bar], colors: &Colors) -> String {
    let most = rows.iter().map(|row| row.value).fold(f64::MIN_POSITIVE, f64::max);
    let mut out = String::from("<div class=\"bars\">\n");
    for row in rows {
        let (label, color) = (escape(row.label), colors.of(row.label));
        let width = (row.value / most * 100.0).clamp(0.4, 100.0);
        let _ = writeln!(
            out,
            "<span class=\"label\">{label}</span><span class=\"track\">\
             <span class=\"bar c{color}\" style=\"width:{width:.1}%\"></span></span>\
             <span class=\"value\">{}</span>",
            escape(&row.text)
        );
    }
    out + "</div>\n"
}

/// One group: plot, percentiles, rates, census.
fn section(group: &Group, colors: &Colors) -> String {
    let series: Vec<Series> = group
        .members
        .iter()
        .filter_map(|m| {
            let latency = m.latency.as_ref()?;
            Some(Series {
                label: &m.path,
                color: colors.of(&m.path),
                curve: &latency.curve,
                end: (latency.samples, latency.max_ns),
            })
        })
        .collect();
    let mut out = format!("<section><h2>{}</h2>\n<figure>", escape(group.name));
    out += "<figcaption class=\"legend\">";
    for one in &series {
        let _ = write!(out, "<span class=\"c{}\"><i></i>{}</span>", one.color, escape(one.label));
    }
    out += "</figcaption>\n";
    out += &plot::percentiles(group.name, &series);
    out += "</figure>\n";
    out += &percentile_table(group);
    if group.members.len() > 1 && group.members.iter().all(|m| m.asked_rate_per_s.is_none()) {
        let rows: Vec<Bar> = group.members.iter().copied().map(rate_bar).collect();
        out += &format!("<h3>Rate</h3>{}", bars(&rows, colors));
    }
    let remarks: String = group.members.iter().copied().map(remarks).collect();
    let _ = writeln!(out, "<div class=\"remarks\">{remarks}</div>");
    out += "<details><summary>Thread census</summary>\n<p class=\"legend parts\">";
    for part in ["user", "system", "interrupt", "steal"] {
        let _ = write!(out, "<span><i class=\"{part}\"></i>{part}</span>");
    }
    out += "</p>\n";
    for m in &group.members {
        out += &census(&m.path, &m.census, m.cacheline_ns);
    }
    out + "</details></section>\n"
}

fn rate_bar(m: &Measurement) -> Bar<'_> {
    let unit = if m.iops.is_some() { " IOPS" } else { "/s" };
    let bytes = match m.bytes_per_s {
        bytes if bytes >= 1e6 => format!(", {} MB/s", number(bytes / 1e6)),
        _ => String::new(),
    };
    let text = format!("{}{unit}{bytes}", count(m.rate_per_s));
    Bar { label: &m.path, value: m.rate_per_s, text }
}

fn percentile_table(group: &Group) -> String {
    let rows: Vec<Vec<String>> = group
        .members
        .iter()
        .map(|m| {
            let empty = Latency::default();
            let l = m.latency.as_ref().unwrap_or(&empty);
            let mut row = vec![format!("<b>{}</b>", escape(&m.path)), escape(&m.medium)];
            row.extend([l.p50_ns, l.p90_ns, l.p99_ns, l.p999_ns, l.p9999_ns].map(text));
            row.push(text(m.latency.as_ref().map(|l| l.max_ns)));
            row.push(count(l.samples as f64));
            row.push(format!("{}/s", count(m.rate_per_s)));
            row.push(group.ratio_text(m));
            row
        })
        .collect();
    let head = ["path", "medium", "p50", "p90", "p99", "p99.9", "p99.99", "max", "samples"];
    let head: Vec<&str> = head.into_iter().chain(["rate", "p50 ratio"]).collect();
    table("percentiles", &head, &rows)
}

/// What went wrong and what must be known.
fn remarks(m: &Measurement) -> String {
    let mut out = String::new();
    let path = escape(&m.path);
    for fault in faults(m) {
        let _ = writeln!(out, "<p class=\"fault\">{path}: {}</p>", escape(&fault));
    }
    if m.verified > 0 && m.verify_failures == 0 {
        let checked = count(m.verified as f64);
        let _ = writeln!(out, "<p class=\"dim\">{path}: {checked} answers compared, all right</p>");
    }
    for note in &m.notes {
        let _ = writeln!(out, "<p class=\"dim\">{path}: {}</p>", escape(note));
    }
    out
}

fn census(path: &str, census: &Census, trips: Option<[f64; 2]>) -> String {
    let rows: Vec<Vec<String>> = census
        .threads
        .iter()
        .map(|t| {
            let share = t.cpu_s / census.wall_s.max(1e-9) * 100.0;
            vec![
                escape(&format!("{}/{}", t.process, t.thread)),
                t.core.to_string(),
                format!("{:.2} s", t.cpu_s),
                format!("{share:.0} %"),
                format!("<span class=\"badge {0}\">{0}</span>", escape(&t.state)),
            ]
        })
        .collect();
    let mut out = format!(
        "<h3>{}</h3><p class=\"dim\">{:.2} s of processor time in {:.2} s",
        escape(path),
        census.cpu_s,
        census.wall_s
    );
    if let Some([before, after]) = trips {
        let _ = write!(out, " · cache-line round trip {before:.0} ns before, {after:.0} ns after");
    }
    out += "</p>\n";
    for core in &census.cores {
        let _ = writeln!(
            out,
            "<div class=\"core\"><span>core {}</span><span class=\"track\">",
            core.core
        );
        let parts = [
            ("user", core.user),
            ("system", core.system),
            ("interrupt", core.interrupt),
            ("steal", core.steal),
        ];
        for (name, share) in parts.into_iter().filter(|(_, share)| *share > 0.0) {
            let percent = share * 100.0;
            let _ = write!(
                out,
                "<span class=\"part {name}\" style=\"width:{percent:.1}%\" title=\"{name} \
                 {percent:.0} %\"></span>"
            );
        }
        let idle = core.idle * 100.0;
        let _ = writeln!(out, "</span><span class=\"dim\">{idle:.0} % idle</span></div>");
    }
    out + &table("census", &["thread", "core", "processor", "share", "state"], &rows)
}

fn how_to_read() -> String {
    "<section><h2>How to read this</h2><ul class=\"prose\">\
     <li>A plot's horizontal axis counts nines: 90 %, 99 % and 99.9 % are equally far apart, so \
     that rare slow requests are as visible as common ones. Lower and flatter is better. A line \
     ends where fewer than 10 samples lie beyond it; dots lead to the slowest request of all.</li>\
     <li>In an open loop requests are due at fixed times and latency counts from then. A path that \
     stalls is charged for every request that waited behind the stall, sent or not. In a closed \
     loop a fixed number is in flight and latency counts from sending.</li>\
     <li>– stands for a percentile with fewer than 10 samples beyond it. Warm-up is excluded. A \
     ratio below 1 means less latency than what it is compared with.</li>\
     <li>The thread census lists the threads of the programs involved and of whatever else used \
     the processor. Two busy threads on one core disturb each other by milliseconds: figures from \
     such runs show function, not speed. <b>user</b>, <b>system</b>, <b>interrupt</b> and \
     <b>steal</b> are shown per core.</li>\
     <li>Absolute times move with the host: the cache-line round trip between two cores tells its \
     mood. Compare ratios of one run rather than figures of two.</li></ul></section>\n"
        .into()
}

fn environment(fingerprint: Option<&Fingerprint>) -> String {
    let Some(f) = fingerprint else { return String::new() };
    let unknown = || "unknown".to_owned();
    let trip = |trip: Option<f64>| trip.map_or_else(unknown, |ns| format!("{ns:.0} ns"));
    let rows = [
        ("processor", format!("{} × {}", f.cores, f.cpu)),
        ("virtual", if f.hypervisor { "yes" } else { "no" }.to_owned()),
        ("memory", format!("{} MiB, {} huge pages of 2 MiB", f.memory_mib, f.hugepages)),
        ("kernel", format!("{} ({})", f.kernel, f.os)),
        ("governor", f.governor.clone().unwrap_or_else(|| "not readable".into())),
        (
            "cache-line round trip",
            format!("{} before, {} after", trip(f.cacheline_before_ns), trip(f.cacheline_after_ns)),
        ),
        ("mitigations", f.mitigations.join("; ")),
        ("commit", f.commit.clone().unwrap_or_else(unknown)),
        ("build", format!("{}, {}", f.profile, f.rustc.clone().unwrap_or_else(unknown))),
        ("date", f.date.clone()),
    ];
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|(name, value)| vec![name.into(), escape(&value)]).collect();
    format!("<section><h2>Machine and build</h2>{}</section>\n", table("plain", &[], &rows))
}

fn commands(report: &Report) -> String {
    let measured = report.measurements.iter().map(|m| (m.name.as_str(), &m.path, &m.command));
    let seen = report.facts.iter().map(|fact| (fact.title.as_str(), &fact.path, &fact.command));
    let mut out = String::from("<section><h2>Exact command lines</h2><dl class=\"commands\">\n");
    for (name, path, command) in measured.chain(seen).filter(|(_, _, c)| !c.is_empty()) {
        let (name, path, command) = (escape(name), escape(path), escape(command));
        let _ = writeln!(
            out,
            "<dt>{name} <span class=\"dim\">{path}</span></dt><dd><code>{command}</code></dd>"
        );
    }
    out + "</dl></section>\n"
}

#[cfg(test)]
#[path = "html_tests.rs"]
mod tests;
