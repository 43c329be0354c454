//! The page from fixtures: what must stand in it, and that nothing in it comes from elsewhere.

use super::*;
use crate::schema::{Core, Thread};

/// A report as a demo makes it, with every kind of content and hostile text.
fn fixture() -> Report {
    let text = include_str!("fixture.json");
    serde_json::from_str(text).unwrap()
}

#[test]
fn the_page_shows_every_measurement_target_fact_and_command() {
    let report = fixture();
    let page = page("Title", &report);
    for m in &report.measurements {
        assert!(page.contains(&escape(&m.path)) && page.contains(&escape(&m.command)));
        assert!(page.contains(&text(m.latency.as_ref().unwrap().p50_ns)));
    }
    for target in &report.targets {
        assert!(page.contains(&target.id) && page.contains(&escape(&target.cause)));
    }
    for fact in &report.facts {
        assert!(page.contains(&escape(&fact.title)));
        assert!(page.contains(&escape(fact.output.trim_end())));
    }
    let summary = page.find("<h2>Summary</h2>").unwrap();
    assert!(page.matches("<h2>").count() >= 6 && page.find("<h2>").unwrap() == summary);
    assert_eq!(page.matches("<svg").count(), summary::groups(&report.measurements).len());
}

#[test]
fn the_page_needs_nothing_from_outside() {
    let page = page("Title", &fixture());
    for outside in ["http://", "https://", "src=", "href=", "@import", "url(", "<script"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("prefers-color-scheme: dark"));
}

#[test]
fn text_cannot_become_markup() {
    let hostile = "</style><b onload=\"x\">&".to_owned();
    let mut report = fixture();
    for m in &mut report.measurements {
        m.name = hostile.clone();
        m.path = hostile.clone();
        m.group = hostile.clone();
        m.medium = hostile.clone();
        m.command = hostile.clone();
        m.notes = vec![hostile.clone()];
        m.census.threads = vec![Thread { thread: hostile.clone(), ..Thread::default() }];
        m.census.cores = vec![Core { user: 1.0, ..Core::default() }];
    }
    for target in &mut report.targets {
        target.cause = hostile.clone();
        target.compares = hostile.clone();
        target.want = hostile.clone();
    }
    for fact in &mut report.facts {
        fact.title = hostile.clone();
        fact.text = hostile.clone();
        fact.output = hostile.clone();
        fact.unit = hostile.clone();
    }
    let page = page(&hostile, &report);
    assert!(!page.contains("<b onload"));
    assert_eq!(page.matches("</style>").count(), 1);
}

#[test]
fn an_empty_report_is_still_a_page() {
    let page = page("Nothing", &Report::default());
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
}

#[test]
fn outboard_has_the_first_colour() {
    let colors = Colors::new(&fixture());
    assert_eq!(colors.of("Outboard"), 0);
    assert_ne!(colors.of("kernel bridge + VXLAN"), 0);
}
