//! A strict reader of the text exposition format 0.0.4, as far as a daemon uses it.

use std::collections::{BTreeMap, HashMap};

/// A name and its labels.
pub type Labelled = (String, BTreeMap<String, String>);

/// Reads the format strictly: every sample belongs to the family before it, families occur once,
/// samples too, histograms rise and agree with their counts. Gives the samples.
pub fn check(text: &str) -> HashMap<Labelled, f64> {
    let (mut families, mut samples) = (HashMap::new(), HashMap::new());
    let mut family: Option<(String, String)> = None;
    let mut help = None;
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').expect("a help text");
            assert!(!words.is_empty() && !words.contains('\\'));
            help = Some(name.to_string());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(help.take().as_deref(), Some(name));
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            let before = families.insert(name.to_string(), kind.to_string());
            assert!(before.is_none(), "{name} twice");
            family = Some((name.to_string(), kind.to_string()));
        } else {
            let (labelled, value) = sample_of(line);
            let (name, kind) = family.as_ref().unwrap();
            let suffix = labelled.0.strip_prefix(name.as_str()).expect("of its family");
            let known: &[&str] =
                if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(known.contains(&suffix), "{line}");
            assert_eq!(suffix == "_bucket", labelled.1.contains_key("le"), "{line}");
            assert!(samples.insert(labelled, value).is_none(), "twice: {line}");
        }
    }
    check_histograms(&families, &samples);
    samples
}

fn is_name(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|first| first.is_ascii_lowercase())
        && characters.all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '_')
}

/// One line: name, labels, value.
fn sample_of(line: &str) -> (Labelled, f64) {
    let end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name) && name.starts_with("outboard_"), "{line}");
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").unwrap();
            assert!(is_name(label), "{line}");
            let mut value = String::new();
            let mut characters = after.char_indices();
            let close = loop {
                match characters.next().expect("a closing quote") {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match characters.next().unwrap().1 {
                        'n' => '\n',
                        same @ ('\\' | '"') => same,
                        other => panic!("\\{other} in {line}"),
                    }),
                    (_, other) => value.push(other),
                }
            };
            assert!(labels.insert(label.to_string(), value).is_none(), "{line}");
            rest = &after[close + 1..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').expect("a closing brace");
    }
    let value = rest.strip_prefix(' ').expect("a space").parse().expect("a number");
    ((name.to_string(), labels), value)
}

fn check_histograms(families: &HashMap<String, String>, samples: &HashMap<Labelled, f64>) {
    let mut series: BTreeMap<Labelled, Vec<(f64, f64)>> = BTreeMap::new();
    for ((name, labels), value) in samples {
        let Some(family) = name.strip_suffix("_bucket") else { continue };
        if families.get(family).is_none_or(|kind| kind != "histogram") {
            continue;
        }
        let mut labels = labels.clone();
        let le = labels.remove("le").unwrap();
        let le = if le == "+Inf" { f64::INFINITY } else { le.parse().unwrap() };
        series.entry((family.to_string(), labels)).or_default().push((le, *value));
    }
    for ((family, labels), mut buckets) in series {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{family}: {buckets:?}");
        let (last, total) = *buckets.last().unwrap();
        assert!(last.is_infinite());
        assert_eq!(samples[&(format!("{family}_count"), labels.clone())], total);
        assert!(samples[&(format!("{family}_sum"), labels)] >= 0.0);
    }
}

/// A name and its labels.
pub fn labelled(name: &str, labels: &[(&str, &str)]) -> Labelled {
    let labels = labels.iter().map(|(label, value)| (label.to_string(), value.to_string()));
    (name.to_string(), labels.collect())
}
