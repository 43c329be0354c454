//! What [`Stats`] has, for Prometheus: text exposition format 0.0.4. Written here because it is a
//! page of code, and the client library leaves label values unescaped, which are users' words.
//!
//! Names that occur in an open set (drop reasons, statuses, faults) are labels, and have a sample
//! once they have occurred. Times are in seconds. Histograms have a bound at every power of two
//! nanoseconds from about 1 µs to 69 s.

mod http;

pub use http::{Metrics, MetricsError};

use super::stats::{
    Count, DiskStats, ExportStats, LatencyStats, PortStats, Stats, VolumeStats, VpcStats,
    WorkerStats,
};
use std::fmt::{Display, Write};

/// Powers of two, in nanoseconds, that histograms are told at.
const BOUNDS: std::ops::RangeInclusive<u32> = 10..=36;
/// A connection event that is a time and no count.
const LONGEST_OUTAGE: &str = "longest_outage_ms";

type Labels<'a> = &'a [(&'a str, &'a str)];

/// The exposition of one snapshot.
pub fn text(stats: &Stats) -> String {
    let mut text = Text::default();
    general(&mut text, stats);
    workers(&mut text, &stats.workers);
    ports(&mut text, &stats.ports);
    vpcs(&mut text, &stats.vpcs);
    volumes(&mut text, &stats.volumes);
    exports(&mut text, &stats.exports);
    disks(&mut text, &stats.disks);
    text.0
}

#[derive(Default)]
struct Text(String);

impl Text {
    /// Begins a family of samples.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: Labels, value: impl Display) {
        self.0.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"", if index == 0 { '{' } else { ',' });
            for character in value.chars() {
                match character {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }

    /// A family with a sample of every item.
    fn each<T, V: Display>(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        items: &[T],
        label: (&str, fn(&T) -> &str),
        value: impl Fn(&T) -> V,
    ) {
        if items.is_empty() {
            return;
        }
        self.family(name, kind, help);
        for item in items {
            self.sample(name, &[(label.0, label.1(item))], value(item));
        }
    }

    /// A family of counters with a sample of everything that occurred.
    fn occurred<'a, T>(
        &mut self,
        (name, help): (&str, &str),
        items: &'a [T],
        label: (&str, fn(&T) -> &str),
        what: &str,
        counts: impl Fn(&'a T) -> Vec<&'a Count>,
    ) {
        if items.iter().all(|item| counts(item).is_empty()) {
            return;
        }
        self.family(name, "counter", help);
        for item in items {
            for count in counts(item) {
                let labels = [(label.0, label.1(item)), (what, count.name.as_str())];
                self.sample(name, &labels, count.count);
            }
        }
    }

    /// A family of histograms with one of every class that occurred.
    fn latencies<T>(
        &mut self,
        (name, help): (&str, &str),
        items: &[T],
        label: (&str, fn(&T) -> &str),
        latency: impl Fn(&T) -> &[LatencyStats],
    ) {
        if items.iter().all(|item| latency(item).is_empty()) {
            return;
        }
        self.family(name, "histogram", help);
        for item in items {
            for stats in latency(item) {
                let labels = [(label.0, label.1(item)), ("operation", stats.operation.as_str())];
                self.histogram(name, labels, stats);
            }
        }
    }

    fn histogram(&mut self, name: &str, [item, class]: [(&str, &str); 2], stats: &LatencyStats) {
        let bucket = format!("{name}_bucket");
        for bound in BOUNDS {
            let le_ns = 1u64 << bound;
            let within = stats.buckets.iter().filter(|bucket| bucket.le_ns <= le_ns);
            let count: u64 = within.map(|bucket| bucket.count).sum();
            self.sample(&bucket, &[item, class, ("le", &seconds(le_ns).to_string())], count);
        }
        self.sample(&bucket, &[item, class, ("le", "+Inf")], stats.count);
        self.sample(&format!("{name}_sum"), &[item, class], seconds(stats.sum_ns));
        self.sample(&format!("{name}_count"), &[item, class], stats.count);
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn general(text: &mut Text, stats: &Stats) {
    let version = env!("CARGO_PKG_VERSION");
    let labels = [("instance_name", stats.instance.as_str()), ("version", version)];
    text.family("outboard_info", "gauge", "The daemon.");
    text.sample("outboard_info", &labels, 1);
    text.family("outboard_uptime_seconds", "gauge", "Time since the daemon started.");
    text.sample("outboard_uptime_seconds", &[], stats.uptime_s);
    let switch = stats.switch;
    let counters = [
        (
            "outboard_forbidden_calls_total",
            "System calls refused to workers.",
            stats.forbidden_calls,
        ),
        ("outboard_flow_hits_total", "Packets whose flow was known.", switch.hits),
        ("outboard_flow_misses_total", "Packets whose flow had to be worked out.", switch.misses),
        ("outboard_flow_evictions_total", "Flows that made room for others.", switch.evictions),
        (
            "outboard_flow_over_share_total",
            "Flows evicted or not remembered because their VPC had more than its share.",
            switch.over_share,
        ),
        (
            "outboard_icmp_errors_sent_total",
            "ICMP and ICMPv6 errors that told senders why.",
            switch.errors_sent,
        ),
        (
            "outboard_icmp_errors_withheld_total",
            "ICMP and ICMPv6 errors beyond the rate limit.",
            switch.errors_withheld,
        ),
    ];
    for (name, help, value) in counters {
        text.family(name, "counter", help);
        text.sample(name, &[], value);
    }
}

fn workers(text: &mut Text, workers: &[WorkerStats]) {
    type Value = fn(&WorkerStats) -> f64;
    let families: [(&str, &str, Value); 4] = [
        ("outboard_worker_turns_total", "Turns of the loop.", |it| it.turns as f64),
        ("outboard_worker_busy_seconds_total", "Time in turns that found something.", |it| {
            seconds(it.busy_ns)
        }),
        ("outboard_worker_sleeps_total", "Times it slept.", |it| it.sleeps as f64),
        ("outboard_worker_overruns_total", "Turns over their budget.", |it| it.overruns as f64),
    ];
    for (name, help, value) in families {
        text.family(name, "counter", help);
        for (index, worker) in workers.iter().enumerate() {
            let (index, core) = (index.to_string(), worker.core.to_string());
            text.sample(name, &[("worker", &index), ("core", &core)], value(worker));
        }
    }
}

fn ports(text: &mut Text, ports: &[PortStats]) {
    type Value = fn(&PortStats) -> u64;
    let port: (&str, fn(&PortStats) -> &str) = ("port", |it| &it.name);
    let up = ("outboard_port_up", "gauge", "Whether the port's interface is up.");
    text.each(up, ports, port, |it| u8::from(it.mode != "down"));
    let families: [(&str, &str, Value); 6] = [
        ("outboard_port_rx_packets_total", "Packets received.", |it| it.rx_packets),
        ("outboard_port_rx_bytes_total", "Bytes received.", |it| it.rx_bytes),
        ("outboard_port_tx_packets_total", "Packets sent.", |it| it.tx_packets),
        ("outboard_port_tx_bytes_total", "Bytes sent.", |it| it.tx_bytes),
        ("outboard_port_partial_checksums_total", "Packets with the checksum left out.", |it| {
            it.partial_checksums
        }),
        ("outboard_port_link_errors_total", "Times the link was down when sending.", |it| {
            it.link_errors
        }),
    ];
    for (name, help, value) in families {
        text.each((name, "counter", help), ports, port, value);
    }
    let drops = ("outboard_port_drops_total", "Packets that came in here and were dropped.");
    text.occurred(drops, ports, port, "reason", |it| it.drops.iter().collect());
    let xdp = ("outboard_port_xdp_packets_total", "What the XDP program did with packets.");
    text.occurred(xdp, ports, port, "outcome", |it| it.xdp.iter().collect());
}

fn vpcs(text: &mut Text, vpcs: &[VpcStats]) {
    type Value = fn(&VpcStats) -> u64;
    let families: [(&str, &str, Value); 5] = [
        ("outboard_vpc_rx_packets_total", "Packets from the VPC's ports.", |it| it.rx_packets),
        ("outboard_vpc_rx_bytes_total", "Bytes from the VPC's ports.", |it| it.rx_bytes),
        ("outboard_vpc_tx_packets_total", "Packets to the VPC's ports.", |it| it.tx_packets),
        ("outboard_vpc_tx_bytes_total", "Bytes to the VPC's ports.", |it| it.tx_bytes),
        ("outboard_vpc_drops_total", "Packets from the VPC's ports that were dropped.", |it| {
            it.dropped
        }),
    ];
    for (name, help, value) in families {
        text.each((name, "counter", help), vpcs, ("vpc", |it| &it.name), value);
    }
}

fn volumes(text: &mut Text, volumes: &[VolumeStats]) {
    type Value = fn(&VolumeStats) -> u64;
    let volume: (&str, fn(&VolumeStats) -> &str) = ("volume", |it| &it.name);
    let families: [(&str, &str, Value); 3] = [
        ("outboard_volume_ready", "Whether the volume takes I/O.", |it| {
            u64::from(it.state == "ready")
        }),
        ("outboard_volume_size_bytes", "The volume's size.", |it| it.bytes),
        ("outboard_volume_in_flight", "I/Os taken and not yet ended.", |it| it.in_flight.into()),
    ];
    for (name, help, value) in families {
        text.each((name, "gauge", help), volumes, volume, value);
    }
    let is_event = |count: &&Count| count.name != LONGEST_OUTAGE;
    let name = "outboard_volume_connection_events_total";
    let events = (name, "What the connection of a remote volume went through.");
    text.occurred(events, volumes, volume, "event", |it| {
        it.connection.iter().filter(is_event).collect()
    });
    let name = "outboard_volume_longest_outage_seconds";
    let longest = (name, "gauge", "The longest time without a connection.");
    text.each(longest, volumes, volume, |it| {
        let longest = it.connection.iter().find(|count| !is_event(count));
        longest.map_or(0.0, |count| count.count as f64 / 1e3)
    });
    let round_trip = ("outboard_volume_round_trip_seconds", "Time of commands to the target.");
    text.latencies(round_trip, volumes, volume, |it| &it.latency);
}

fn exports(text: &mut Text, exports: &[ExportStats]) {
    let export: (&str, fn(&ExportStats) -> &str) = ("export", |it| &it.nqn);
    let connections = ("outboard_export_connections", "gauge", "Connections open now.");
    text.each(connections, exports, export, |it| it.connections);
    let commands = ("outboard_export_commands_total", "counter", "Commands served.");
    text.each(commands, exports, export, |it| it.commands);
    let errors = ("outboard_export_errors_total", "What went wrong.");
    text.occurred(errors, exports, export, "error", |it| it.errors.iter().collect());
    let latency = ("outboard_export_latency_seconds", "Time from a command to its end.");
    text.latencies(latency, exports, export, |it| &it.latency);
}

fn disks(text: &mut Text, disks: &[DiskStats]) {
    let disk: (&str, fn(&DiskStats) -> &str) = ("disk", |it| &it.name);
    let guest = ("outboard_disk_guest_connected", "gauge", "Whether a guest is connected.");
    text.each(guest, disks, disk, |it| u8::from(it.connected));
    let read = ("outboard_disk_read_bytes_total", "counter", "Bytes that guests read.");
    text.each(read, disks, disk, |it| it.read_bytes);
    let written = ("outboard_disk_written_bytes_total", "counter", "Bytes that guests wrote.");
    text.each(written, disks, disk, |it| it.written_bytes);
    let requests = ("outboard_disk_requests_total", "Requests that ended, by status.");
    text.occurred(requests, disks, disk, "status", |it| it.statuses.iter().collect());
    let faults = ("outboard_disk_queue_faults_total", "What guests got wrong.");
    text.occurred(faults, disks, disk, "fault", |it| it.queue_faults.iter().collect());
    let latency = ("outboard_disk_latency_seconds", "Time from taking a request to its end.");
    text.latencies(latency, disks, disk, |it| &it.latency);
}

#[cfg(test)]
pub(crate) mod tests;
