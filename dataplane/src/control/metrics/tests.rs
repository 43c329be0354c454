//! The text read strictly, and the endpoint with clients of every kind.

use super::*;
use crate::control::stats::Count;
use crate::control::stats::tests::sample;
use exposition::{Labelled, check, labelled};
use std::collections::HashMap;
use std::io::{Read, Write as _};
use std::net::TcpStream;

#[path = "../../../tests/exposition/mod.rs"]
mod exposition;

/// Every number of `stats` that has a metric, compared.
fn compare(stats: &Stats, samples: &HashMap<Labelled, f64>) {
    let expect = |name: &str, labels: &[(&str, &str)], value: u64| {
        let found = samples.get(&labelled(name, labels));
        assert_eq!(found, Some(&(value as f64)), "{name} {labels:?}");
    };
    expect("outboard_forbidden_calls_total", &[], stats.forbidden_calls);
    expect("outboard_icmp_errors_sent_total", &[], stats.switch.errors_sent);
    expect("outboard_icmp_errors_withheld_total", &[], stats.switch.errors_withheld);
    expect("outboard_flow_misses_total", &[], stats.switch.misses);
    for port in &stats.ports {
        let label = ("port", port.name.as_str());
        expect("outboard_port_rx_packets_total", &[label], port.rx_packets);
        expect("outboard_port_tx_bytes_total", &[label], port.tx_bytes);
        for drop in &port.drops {
            expect("outboard_port_drops_total", &[label, ("reason", &drop.name)], drop.count);
        }
    }
    for vpc in &stats.vpcs {
        expect("outboard_vpc_rx_packets_total", &[("vpc", &vpc.name)], vpc.rx_packets);
        expect("outboard_vpc_drops_total", &[("vpc", &vpc.name)], vpc.dropped);
    }
    for export in &stats.exports {
        expect("outboard_export_commands_total", &[("export", &export.nqn)], export.commands);
    }
    for disk in &stats.disks {
        let label = ("disk", disk.name.as_str());
        for status in &disk.statuses {
            let labels = [label, ("status", status.name.as_str())];
            expect("outboard_disk_requests_total", &labels, status.count);
        }
        for latency in &disk.latency {
            let labels = [label, ("operation", latency.operation.as_str())];
            expect("outboard_disk_latency_seconds_count", &labels, latency.count);
            let bound = [labels[0], labels[1], ("le", "0.001048576")];
            let fast = latency.buckets.iter().filter(|bucket| bucket.le_ns <= 1 << 20);
            let fast = fast.map(|bucket| bucket.count).sum();
            expect("outboard_disk_latency_seconds_bucket", &bound, fast);
        }
    }
}

#[test]
fn the_text_is_right_and_has_the_numbers_of_the_snapshot() {
    let stats = sample();
    compare(&stats, &check(&text(&stats)));
    check(&text(&Stats::default()));
}

#[test]
fn whatever_things_are_called_the_text_is_right() {
    bolero::check!().with_type::<(String, String, u64)>().for_each(|(name, reason, count)| {
        let mut stats = sample();
        stats.instance = name.clone();
        stats.ports.truncate(1);
        stats.ports[0].name = name.clone();
        let drop = Count { name: reason.clone(), count: *count, text: None };
        stats.ports[0].drops = vec![drop];
        stats.disks[0].name = format!("{reason}\n\"\\");
        compare(&stats, &check(&text(&stats)));
    });
}

#[test]
fn requests_are_answered_refused_or_waited_for() {
    let status = |request: &[u8]| {
        let answer = http::answer(request, || "x 1\n".into())?;
        let answer = String::from_utf8(answer).unwrap();
        Some(answer["HTTP/1.1 ".len()..][..3].to_string())
    };
    let is = |request: &str, wanted| assert_eq!(status(request.as_bytes()).as_deref(), wanted);
    is("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", Some("200"));
    is("GET /metrics?x=1 HTTP/1.0\r\n\r\n", Some("200"));
    is("HEAD /metrics HTTP/1.1\r\n\r\n", Some("200"));
    is("GET / HTTP/1.1\r\n\r\n", Some("404"));
    is("POST /metrics HTTP/1.1\r\n\r\n", Some("405"));
    is("GET /metrics HTTP/1.1\r\nHost: a\r\n", None);
    is("", None);
    is("\u{1}\r\n\r\n", Some("400"));
    is(&format!("GET /metrics HTTP/1.1\r\nX: {}", "a".repeat(8000)), None);
    is(&format!("GET /metrics HTTP/1.1\r\nX: {}", "a".repeat(9000)), Some("431"));
    is(&format!("GET /metrics HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(65)), Some("431"));
    bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
        let line = [b"GET /metrics HTTP/1.1\r\n", &bytes[..]].concat();
        for request in [bytes, &line] {
            let answer = http::answer(request, String::new);
            assert!(answer.is_some_and(|it| it.starts_with(b"HTTP/1.1 ")) || request.len() < 8192);
        }
    });
}

#[test]
fn clients_that_stall_or_leave_disturb_nobody() {
    let listener = Metrics::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    assert!(Metrics::bind(address).is_err(), "the address is taken");
    let metrics = Metrics::serve(listener, sample).unwrap();
    // More than there is room for, all silent, some in the middle of a request.
    let mut silent: Vec<TcpStream> = Vec::new();
    for index in 0..40 {
        let mut stream = TcpStream::connect(address).unwrap();
        if index % 2 == 0 {
            stream.write_all(b"GET /met").unwrap();
        }
        silent.push(stream);
    }
    let scrape = || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    for _ in 0..20 {
        let answer = scrape();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"));
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
        compare(&sample(), &check(body));
    }
    drop(silent);
    scrape();
    drop(metrics);
    assert!(TcpStream::connect(address).is_err(), "the endpoint goes with the daemon");
}
