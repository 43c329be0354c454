//! What a daemon tells about itself: one snapshot, as JSON for programs and as tables for people.
//!
//! Counts are since the start of the daemon, sizes in bytes. A field that is added later has a
//! default, so that an older reader or writer still understands a newer one.

mod latency;
mod only;
mod rates;

pub use latency::{Bucket, LatencyStats};
pub use only::Only;
pub use rates::Rates;

use crate::counters::{Drops, PortCounters};
use crate::drop::DropReason;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display, Write};

/// A snapshot of everything that is counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// The instance's name.
    pub instance: String,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// How workers wait: `busy`, `yield` or `adaptive`.
    pub wait_mode: String,
    /// System calls of workers that were refused because their list does not have them: a defect,
    /// or somebody who took a worker over.
    pub forbidden_calls: u64,
    /// The workers, in the order of the configuration.
    pub workers: Vec<WorkerStats>,
    /// Uplinks and tenants' ports, in the order of the plan.
    pub ports: Vec<PortStats>,
    /// Private networks, in the order of the configuration: sums over their ports.
    pub vpcs: Vec<VpcStats>,
    /// The flow caches of all workers together.
    pub switch: SwitchStats,
    /// Volumes, in the order of the configuration.
    pub volumes: Vec<VolumeStats>,
    /// Exports, in the order of the configuration.
    pub exports: Vec<ExportStats>,
    /// Disks, in the order of the configuration.
    pub disks: Vec<DiskStats>,
}

/// One worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerStats {
    /// The core it is pinned to.
    pub core: u16,
    /// Turns of its loop.
    pub turns: u64,
    /// The part of its time that was spent in turns that found something, 0 to 1.
    #[serde(serialize_with = "finite")]
    pub busy_share: f64,
    /// The same time in nanoseconds.
    pub busy_ns: u64,
    /// Times it slept.
    pub sleeps: u64,
    /// Turns that took longer than their budget.
    pub overruns: u64,
}

/// JSON has no word for the share of no time at all.
fn finite<S: serde::Serializer>(share: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(if share.is_finite() { *share } else { 0.0 })
}

/// One port or uplink.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortStats {
    /// Its name.
    pub name: String,
    /// The VPC of a tenant's port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vpc: Option<String>,
    /// The network interface.
    pub interface: String,
    /// How it is attached: `native`, `generic`, or `down` while the interface is down or gone.
    pub mode: String,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received, Ethernet header included.
    pub rx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent, Ethernet header included.
    pub tx_bytes: u64,
    /// Received packets whose checksum the sender left to an offload.
    pub partial_checksums: u64,
    /// Times the kernel refused to send because the interface was down or gone.
    pub link_errors: u64,
    /// Packets that came in here and were dropped: the reasons that occurred.
    pub drops: Vec<Count>,
    /// What the XDP program did with packets: the outcomes that occurred.
    pub xdp: Vec<Count>,
}

/// One private network: the sums over its ports on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VpcStats {
    /// Its name.
    pub name: String,
    /// Its network identifier.
    pub vni: u32,
    /// Packets from its ports.
    pub rx_packets: u64,
    /// Bytes from its ports.
    pub rx_bytes: u64,
    /// Packets to its ports.
    pub tx_packets: u64,
    /// Bytes to its ports.
    pub tx_bytes: u64,
    /// Packets from its ports that were dropped.
    pub dropped: u64,
}

/// The switches of all workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SwitchStats {
    /// Packets whose flow was known.
    pub hits: u64,
    /// Packets whose flow had to be worked out.
    pub misses: u64,
    /// Flows that made room for others.
    pub evictions: u64,
    /// Flows that were evicted, or not remembered, because their VPC had more than its share.
    pub over_share: u64,
    /// ICMP and ICMPv6 errors that told senders why.
    pub errors_sent: u64,
    /// Errors that were not sent, because the sender had been told often enough.
    pub errors_withheld: u64,
}

/// One volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeStats {
    /// Its name.
    pub name: String,
    /// `mem`, `file` or `remote`.
    pub kind: String,
    /// `ready`, or why it is not.
    pub state: String,
    /// Its size.
    pub bytes: u64,
    /// I/Os taken and not yet ended.
    pub in_flight: u32,
    /// What the connection of a remote volume went through: the kinds that occurred.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub connection: Vec<Count>,
    /// How long commands to the target of a remote volume took.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub latency: Vec<LatencyStats>,
}

/// One export.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExportStats {
    /// The subsystem's NVMe qualified name.
    pub nqn: String,
    /// Where it listens.
    pub listen: String,
    /// Connections open now.
    pub connections: u64,
    /// Commands served.
    pub commands: u64,
    /// What went wrong: the kinds that occurred.
    pub errors: Vec<Count>,
    /// How long commands took, by class: those that occurred.
    pub latency: Vec<LatencyStats>,
}

/// One disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskStats {
    /// Its name.
    pub name: String,
    /// The vhost-user socket.
    pub socket: String,
    /// Whether a guest is connected.
    pub connected: bool,
    /// Requests that ended.
    pub requests: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// How they ended: the statuses that occurred.
    pub statuses: Vec<Count>,
    /// What was wrong with the guest's queues: the faults that occurred.
    pub queue_faults: Vec<Count>,
    /// How long requests took, by class: those that occurred.
    pub latency: Vec<LatencyStats>,
}

/// How often something named occurred.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The name in counters.
    pub name: String,
    /// How often.
    pub count: u64,
    /// What it means and, where there is one, the remedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

impl Count {
    /// The names that occurred, out of all of them.
    pub fn occurred<'a>(all: impl IntoIterator<Item = (&'a str, u64)>) -> Vec<Count> {
        let occurred = all.into_iter().filter(|(_, count)| *count > 0);
        occurred.map(|(name, count)| Count { name: name.to_string(), count, text: None }).collect()
    }

    /// The drop reasons that occurred, with their texts.
    pub fn drops(drops: &[&Drops]) -> Vec<Count> {
        let count = |reason: &DropReason| Count {
            name: reason.name().to_string(),
            count: drops.iter().map(|drops| drops.get(*reason)).sum(),
            text: Some(reason.text().to_string()),
        };
        DropReason::ALL.iter().map(count).filter(|count| count.count > 0).collect()
    }
}

impl PortStats {
    /// The sum over a port's queues.
    pub fn of(name: &str, interface: &str, mode: &str, queues: &[&PortCounters]) -> PortStats {
        let mut stats = PortStats {
            name: name.to_string(),
            interface: interface.to_string(),
            mode: mode.to_string(),
            ..PortStats::default()
        };
        for queue in queues {
            stats.rx_packets += queue.rx_packets.get();
            stats.rx_bytes += queue.rx_bytes.get();
            stats.tx_packets += queue.tx_packets.get();
            stats.tx_bytes += queue.tx_bytes.get();
            stats.partial_checksums += queue.partial_checksums.get();
            stats.link_errors += queue.link_errors.get();
        }
        let drops: Vec<_> = queues.iter().map(|queue| &queue.drops).collect();
        stats.drops = Count::drops(&drops);
        stats
    }
}

/// Columns as wide as their widest cell.
struct Table {
    /// Whether each column is a number, to be aligned to the right.
    numbers: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings; `#` before one marks a column of numbers.
    fn new(heads: &[&str]) -> Table {
        let text = |head: &&str| head.trim_start_matches('#').to_string();
        Table {
            numbers: heads.iter().map(|head| head.starts_with('#')).collect(),
            rows: vec![heads.iter().map(text).collect()],
        }
    }

    fn row(&mut self, cells: &[&dyn Display]) {
        self.rows.push(cells.iter().map(|cell| plain(&cell.to_string())).collect());
    }

    /// Prints an empty line and the table; nothing when there are no rows.
    fn print(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows.len() == 1 {
            return Ok(());
        }
        let width = |column: usize| {
            self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.numbers.len()).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let (gap, width) = (if column == 0 { "" } else { "  " }, widths[column]);
                match self.numbers[column] {
                    true => write!(line, "{gap}{cell:>width$}")?,
                    false => write!(line, "{gap}{cell:<width$}")?,
                }
            }
            write!(f, "\n{}", line.trim_end())?;
        }
        f.write_str("\n")
    }
}

/// Text from another process, without what could steer a terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

impl Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hours, minutes) = (self.uptime_s / 3600, self.uptime_s / 60 % 60);
        let uptime = format!("{hours} h {minutes:02} min {:02} s", self.uptime_s % 60);
        let (instance, mode) = (plain(&self.instance), plain(&self.wait_mode));
        writeln!(f, "{instance}: up {uptime}, workers wait {mode}")?;
        self.print_workers(f)?;
        self.print_ports(f)?;
        self.print_vpcs(f)?;
        self.print_storage(f)?;
        self.print_latency(f)?;
        self.print_trouble(f)
    }
}

impl Stats {
    fn print_workers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = ["worker", "#core", "#turns", "#busy", "#sleeps", "#overruns"];
        let mut table = Table::new(&heads);
        for (index, worker) in self.workers.iter().enumerate() {
            let busy = format!("{:.1}%", worker.busy_share * 100.0);
            let WorkerStats { core, turns, sleeps, overruns, .. } = worker;
            table.row(&[&index, core, turns, &busy, sleeps, overruns]);
        }
        table.print(f)
    }

    fn print_ports(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = ["port", "interface", "mode", "#rx packets", "#rx bytes"];
        let more = ["#tx packets", "#tx bytes", "#dropped"];
        let mut table = Table::new(&[&heads[..], &more[..]].concat());
        for port in &self.ports {
            let PortStats { name, interface, mode, .. } = port;
            let (rx, tx) = ((port.rx_packets, port.rx_bytes), (port.tx_packets, port.tx_bytes));
            let dropped = total(&port.drops);
            table.row(&[name, interface, mode, &rx.0, &rx.1, &tx.0, &tx.1, &dropped]);
        }
        table.print(f)?;
        if !self.ports.is_empty() {
            let SwitchStats { hits, misses, evictions, over_share, .. } = self.switch;
            let SwitchStats { errors_sent, errors_withheld, .. } = self.switch;
            write!(f, "\nflow cache: {hits} hits, {misses} misses, {evictions} evictions, ")?;
            writeln!(f, "{over_share} over a VPC's share")?;
            writeln!(f, "ICMP errors: {errors_sent} sent, {errors_withheld} withheld")?;
        }
        let mut table = Table::new(&["port", "XDP outcome", "#packets"]);
        for port in &self.ports {
            port.xdp.iter().for_each(|xdp| table.row(&[&port.name, &xdp.name, &xdp.count]));
        }
        table.print(f)
    }

    fn print_storage(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["volume", "kind", "state", "#bytes", "#in flight"]);
        for volume in &self.volumes {
            let VolumeStats { name, kind, state, bytes, in_flight, .. } = volume;
            table.row(&[name, kind, state, bytes, in_flight]);
        }
        table.print(f)?;
        let mut table = Table::new(&["volume", "connection", "#count"]);
        for volume in &self.volumes {
            volume
                .connection
                .iter()
                .for_each(|what| table.row(&[&volume.name, &what.name, &what.count]));
        }
        table.print(f)?;
        let mut table = Table::new(&["export", "listens", "#connections", "#commands", "#errors"]);
        for export in &self.exports {
            let ExportStats { nqn, listen, connections, commands, errors, .. } = export;
            table.row(&[nqn, listen, connections, commands, &total(errors)]);
        }
        table.print(f)?;
        let heads = ["disk", "socket", "guest", "#requests", "#failed", "#queue faults"];
        let mut table = Table::new(&heads);
        for disk in &self.disks {
            let guest = if disk.connected { "connected" } else { "none" };
            let failed = total(disk.failures());
            let faults = total(&disk.queue_faults);
            table.row(&[&disk.name, &disk.socket, &guest, &disk.requests, &failed, &faults]);
        }
        table.print(f)
    }

    fn print_vpcs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = ["VPC", "#VNI", "#rx packets", "#rx bytes", "#tx packets", "#tx bytes"];
        let mut table = Table::new(&[&heads[..], &["#dropped"]].concat());
        for vpc in &self.vpcs {
            let VpcStats { name, vni, rx_packets, rx_bytes, tx_packets, tx_bytes, dropped } = vpc;
            table.row(&[name, vni, rx_packets, rx_bytes, tx_packets, tx_bytes, dropped]);
        }
        table.print(f)
    }

    fn print_latency(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = ["latency of", "operation", "#count", "#p50 us", "#p99 us", "#max us"];
        let mut table = Table::new(&heads);
        let mut add = |of: &String, all: &[LatencyStats]| {
            for it in all {
                let us = |ns: u64| format!("{:.1}", ns as f64 / 1e3);
                let (p50, p99, max) = (us(it.p50_ns), us(it.p99_ns), us(it.max_ns));
                table.row(&[of, &it.operation, &it.count, &p50, &p99, &max]);
            }
        };
        self.disks.iter().for_each(|disk| add(&disk.name, &disk.latency));
        self.exports.iter().for_each(|export| add(&export.nqn, &export.latency));
        self.volumes.iter().for_each(|volume| add(&volume.name, &volume.latency));
        table.print(f)
    }

    /// What went wrong, by name, and what to do about it.
    fn print_trouble(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["trouble at", "what", "#count", "meaning and remedy"]);
        let mut add = |at: &String, count: &Count| {
            let text = count.text.as_deref().unwrap_or("");
            table.row(&[at, &count.name, &count.count, &text]);
        };
        for port in &self.ports {
            port.drops.iter().for_each(|drop| add(&port.name, drop));
            port.link_troubles().iter().for_each(|trouble| add(&port.name, trouble));
        }
        for export in &self.exports {
            export.errors.iter().for_each(|error| add(&export.nqn, error));
        }
        for disk in &self.disks {
            disk.failures().chain(&disk.queue_faults).for_each(|count| add(&disk.name, count));
        }
        table.print(f)
    }
}

impl PortStats {
    /// What is counted outside the drops and has a remedy.
    fn link_troubles(&self) -> Vec<Count> {
        let partial = DropReason::PartialChecksum.text().to_string();
        let link =
            format!("The interface was down or gone; see `ip link show {}`.", self.interface);
        let all = [
            ("partial_checksums", self.partial_checksums, partial),
            ("link_errors", self.link_errors, link),
        ];
        let occurred = all.into_iter().filter(|(_, count, _)| *count > 0);
        let count = |(name, count, text): (&str, u64, String)| Count {
            name: name.to_string(),
            count,
            text: Some(text),
        };
        occurred.map(count).collect()
    }
}

impl DiskStats {
    fn failures(&self) -> impl Iterator<Item = &Count> {
        self.statuses.iter().filter(|status| status.name != "ok")
    }
}

fn total<'a>(counts: impl IntoIterator<Item = &'a Count>) -> u64 {
    counts.into_iter().map(|count| count.count).sum()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::counters::Histogram;

    fn count(name: &str, count: u64) -> Count {
        Count { name: name.into(), count, text: None }
    }

    fn blue() -> VpcStats {
        VpcStats {
            name: "blue".into(),
            vni: 100,
            rx_packets: 2000,
            rx_bytes: 128_000,
            tx_packets: 1980,
            tx_bytes: 126_720,
            dropped: 16,
        }
    }

    fn reads() -> LatencyStats {
        let histogram = Histogram::default();
        [900, 3000].into_iter().for_each(|ns| histogram.record(ns));
        LatencyStats::of("read", &histogram).unwrap()
    }

    pub(crate) fn sample() -> Stats {
        let counters = PortCounters::default();
        counters.rx_packets.add(1000);
        counters.rx_bytes.add(64_000);
        counters.tx_packets.add(990);
        counters.tx_bytes.add(63_360);
        counters.partial_checksums.add(4);
        counters.link_errors.add(1);
        (0..7).for_each(|_| counters.drops.count(DropReason::NoRoute));
        counters.drops.count(DropReason::NoFrames);
        let mut web = PortStats::of("blue-web", "ob-blue", "native", &[&counters, &counters]);
        web.xdp = Count::occurred([("redirected", 2000), ("no_socket", 0)]);
        Stats {
            instance: "host-a".into(),
            uptime_s: 3723,
            wait_mode: "adaptive".into(),
            forbidden_calls: 0,
            workers: vec![WorkerStats {
                core: 3,
                turns: 1_234_567,
                busy_share: 0.456,
                busy_ns: 1_697_688_000_000,
                sleeps: 12,
                overruns: 0,
            }],
            ports: vec![PortStats::of("uplink", "eth1", "down", &[&PortCounters::default()]), web],
            vpcs: vec![blue()],
            switch: SwitchStats {
                hits: 1900,
                misses: 100,
                evictions: 0,
                over_share: 0,
                errors_sent: 3,
                errors_withheld: 1,
            },
            volumes: vec![VolumeStats {
                name: "ram".into(),
                kind: "mem".into(),
                state: "ready".into(),
                bytes: 64 << 20,
                in_flight: 2,
                connection: Vec::new(),
                latency: Vec::new(),
            }],
            exports: vec![ExportStats {
                nqn: "nqn.2025-01.x:y".into(),
                listen: "192.0.2.1:4420".into(),
                connections: 1,
                commands: 77,
                errors: vec![count("bad_opcode", 2)],
                latency: Vec::new(),
            }],
            disks: vec![DiskStats {
                name: "vda".into(),
                socket: "/run/vda".into(),
                connected: true,
                requests: 500,
                read_bytes: 4096,
                written_bytes: 8192,
                statuses: vec![count("ok", 499), count("out_of_range", 1)],
                queue_faults: vec![count("loop", 3)],
                latency: vec![reads()],
            }],
        }
    }

    #[test]
    fn people_see_tables_and_remedies() {
        let expected = "\
host-a: up 1 h 02 min 03 s, workers wait adaptive

worker  core    turns   busy  sleeps  overruns
0          3  1234567  45.6%      12         0

port      interface  mode    rx packets  rx bytes  tx packets  tx bytes  dropped
uplink    eth1       down             0         0           0         0        0
blue-web  ob-blue    native        2000    128000        1980    126720       16

flow cache: 1900 hits, 100 misses, 0 evictions, 0 over a VPC's share
ICMP errors: 3 sent, 1 withheld

port      XDP outcome  packets
blue-web  redirected      2000

VPC   VNI  rx packets  rx bytes  tx packets  tx bytes  dropped
blue  100        2000    128000        1980    126720       16

volume  kind  state     bytes  in flight
ram     mem   ready  67108864          2

export           listens         connections  commands  errors
nqn.2025-01.x:y  192.0.2.1:4420            1        77       2

disk  socket    guest      requests  failed  queue faults
vda   /run/vda  connected       500       1             3

latency of  operation  count  p50 us  p99 us  max us
vda         read           2     1.0     3.0     3.0

trouble at       what               count  meaning and remedy
blue-web         no_frames              2  NO_FRAMES
blue-web         no_route              14  NO_ROUTE
blue-web         partial_checksums      8  PARTIAL
blue-web         link_errors            2  The interface was down or gone; \
see `ip link show ob-blue`.
nqn.2025-01.x:y  bad_opcode             2
vda              out_of_range           1
vda              loop                   3
";
        // The reasons' own texts are written where the reasons are.
        let expected = expected
            .replace("NO_FRAMES", DropReason::NoFrames.text())
            .replace("NO_ROUTE", DropReason::NoRoute.text())
            .replace("PARTIAL", DropReason::PartialChecksum.text());
        let shown = sample().to_string();
        assert_eq!(shown, expected, "\n{shown}");
    }

    #[test]
    fn nothing_configured_is_one_line() {
        let stats = Stats { instance: "a".into(), wait_mode: "busy".into(), ..Stats::default() };
        assert_eq!(stats.to_string(), "a: up 0 h 00 min 00 s, workers wait busy\n");
    }

    #[test]
    fn json_round_trips_and_takes_less() {
        let json = serde_json::to_string(&sample()).unwrap();
        assert_eq!(serde_json::from_str::<Stats>(&json).unwrap(), sample());
        assert!(json.contains(r#"{"name":"no_route","count":14,"text":"No route of"#), "{json}");
        let worker = WorkerStats { busy_share: f64::NAN, ..WorkerStats::default() };
        let json = serde_json::to_string(&worker).unwrap();
        assert_eq!(serde_json::from_str::<WorkerStats>(&json).unwrap().busy_share, 0.0);
        let old: Stats = serde_json::from_str(r#"{"instance":"a","unknown":1}"#).unwrap();
        assert_eq!(old.instance, "a");
    }

    #[test]
    fn a_hostile_name_steers_no_terminal() {
        let stats = Stats { instance: "\u{1b}[2J".into(), ..sample() };
        assert!(!stats.to_string().contains('\u{1b}'));
    }
}
