//! Metrics of running daemons, scraped as Prometheus does and compared with the statistics.

use crate::exposition::{Labelled, check, labelled};
use crate::guest::{Guest, Oracle};
use crate::host::{Daemon, Host, NQN, PATIENCE, Scratch, address, file_target, remote_disk, until};
use outboard::control::stats::LatencyStats;
use outboard::virtio::driver::DriverOp;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

fn metrics(listen: SocketAddr) -> String {
    format!("[metrics]\nlisten = '{listen}'\n")
}

#[track_caller]
fn scrape(at: SocketAddr) -> HashMap<Labelled, f64> {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    check(body)
}

/// Compares the histograms of one thing.
#[track_caller]
fn agree(samples: &HashMap<Labelled, f64>, name: &str, of: (&str, &str), all: &[LatencyStats]) {
    for latency in all {
        let labels = [of, ("operation", latency.operation.as_str())];
        let at = |suffix: &str| samples[&labelled(&format!("{name}{suffix}"), &labels)];
        assert_eq!(at("_count"), latency.count as f64);
        assert!((at("_sum") - latency.sum_ns as f64 / 1e9).abs() < 1e-9);
        assert!(latency.p50_ns <= latency.p99_ns && latency.p99_ns <= latency.max_ns);
    }
}

fn count_of(all: &[LatencyStats], operation: &str) -> u64 {
    all.iter().find(|it| it.operation == operation).map_or(0, |it| it.count)
}

#[test]
fn a_scrape_has_the_numbers_of_the_statistics() {
    let (scratch, target_at) = (Scratch::new(), address());
    let [a_at, b_at] = [address(), address()];
    let b = Host::new(&scratch, "b", &(file_target("data", target_at) + &metrics(b_at)));
    let a = Host::new(&scratch, "a", &(remote_disk(target_at) + &metrics(a_at)));
    let (target, initiator) = (b.run(), a.run());
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(4 << 20));
    guest.runs(300);
    assert!(guest.does(DriverOp::Flush, 0, 0));
    while guest.poll().is_some() {}

    let disk = initiator.disk("vda");
    let samples = scrape(a_at);
    for status in &disk.statuses {
        let labels = [("disk", "vda"), ("status", status.name.as_str())];
        let at = labelled("outboard_disk_requests_total", &labels);
        assert_eq!(samples[&at], status.count as f64);
    }
    agree(&samples, "outboard_disk_latency_seconds", ("disk", "vda"), &disk.latency);
    let timed: u64 = disk.latency.iter().map(|latency| latency.count).sum();
    assert_eq!(timed, disk.requests, "every request was timed: {disk:?}");
    assert!(count_of(&disk.latency, "read") > 0 && count_of(&disk.latency, "write") > 0);
    assert!(count_of(&disk.latency, "flush") > 0);
    // A remote disk takes time that turns see.
    assert!(disk.latency.iter().all(|latency| latency.max_ns > 0));
    let far = initiator.volume("far");
    agree(&samples, "outboard_volume_round_trip_seconds", ("volume", "far"), &far.latency);
    assert_eq!(count_of(&far.latency, "command"), disk.requests);
    assert_eq!(samples[&labelled("outboard_volume_ready", &[("volume", "far")])], 1.0);

    let export = target.export(NQN);
    let samples = scrape(b_at);
    let commands = labelled("outboard_export_commands_total", &[("export", NQN)]);
    assert_eq!(samples[&commands], export.commands as f64);
    agree(&samples, "outboard_export_latency_seconds", ("export", NQN), &export.latency);
    assert_eq!(export.latency.iter().map(|it| it.count).sum::<u64>(), disk.requests);

    let shown = a.shown();
    assert!(shown.contains("latency of") && shown.contains("command"), "{shown}");
    // The endpoint is one daemon's, and goes with it.
    let again = Host::new(&scratch, "again", &metrics(a_at));
    again.is_refused("cannot serve metrics at");
    drop(guest);
    stops(initiator);
    stops(target);
    until("the endpoint is gone", || TcpStream::connect(a_at).is_err().then_some(()));
}

fn stops(daemon: Daemon) {
    daemon.stop();
}
