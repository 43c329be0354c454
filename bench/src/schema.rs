//! What `--json` writes and `report` reads: one document for a driver's run, a suite and facts.
//!
//! Units stand last in a field's name. A percentile that too few samples support is `null`.
//! Every list may be missing, so that documents of different origin merge into one.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The whole document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where it was measured; `None` in a file of facts only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// What a suite checked.
    #[serde(default)]
    pub targets: Vec<Target>,
    /// What was measured.
    #[serde(default)]
    pub measurements: Vec<Measurement>,
    /// What was observed by other means: ping, iperf3, isolation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub facts: Vec<Fact>,
    /// Where packets and I/Os spent their time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ledgers: Vec<Ledger>,
}

impl Report {
    /// Appends what `other` holds; the first fingerprint stays.
    pub fn merge(&mut self, other: Report) {
        self.fingerprint = self.fingerprint.take().or(other.fingerprint);
        self.targets.extend(other.targets);
        self.measurements.extend(other.measurements);
        self.facts.extend(other.facts);
        self.ledgers.extend(other.ledgers);
    }
}

/// The stages of what went through a daemon while a load ran.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// The load: "4 KiB read, mem volume, one at a time".
    pub title: String,
    /// For how long ledgers were kept.
    pub seconds: f64,
    /// `process/thread @core state` meanwhile.
    pub threads: Vec<String>,
    /// What a reader must know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The share of every stage at percentiles, and the slowest.
    pub table: outboard::ledger::Table,
}

/// One run of one driver.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// What it is called in tables.
    pub name: String,
    /// The driver that made it.
    pub driver: String,
    /// Measurements of one group are compared: one plot, one table.
    pub group: String,
    /// The path measured, as the legend says it: "Outboard", "kernel bridge + VXLAN".
    pub path: String,
    /// What carries the bytes: "veth", "loopback", "mem volume", "file on ext4".
    pub medium: String,
    /// Whether the others of its group are divided by this one.
    pub baseline: bool,
    /// Whether it is somebody else's program, measured to compare with.
    #[serde(default)]
    pub peer: bool,
    /// The driver's parameters.
    pub parameters: BTreeMap<String, Value>,
    /// Latency of the requests; `None` when only throughput was measured.
    pub latency: Option<Latency>,
    /// Requests completed per second of the measured window.
    pub rate_per_s: f64,
    /// The same, when the requests are block I/O.
    pub iops: Option<f64>,
    /// Payload completed per second.
    pub bytes_per_s: f64,
    /// The rate asked for; `None` in a closed loop.
    pub asked_rate_per_s: Option<f64>,
    /// Requests that ended with an error.
    pub errors: u64,
    /// Requests that never ended.
    pub lost: u64,
    /// Answers to no request in flight: duplicates, or later than the loss time-out.
    pub strays: u64,
    /// Requests that were due and never sent because the path could not keep up.
    pub unsent: u64,
    /// Answers whose content was compared.
    pub verified: u64,
    /// Answers whose content was wrong.
    pub verify_failures: u64,
    /// The generator's own ceiling, when it was measured in the same run.
    pub generator_ceiling_per_s: Option<f64>,
    /// Whether the rate is above 0.85 of that ceiling.
    pub generator_limited: bool,
    /// Length of the measured window.
    pub seconds: f64,
    /// Cache-line round trip between the two cores before and after the run.
    pub cacheline_ns: Option<[f64; 2]>,
    /// Who used which core.
    pub census: Census,
    /// The exact command line.
    pub command: String,
    /// What a reader must know: waiting mode, deviations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// A suite repeats a measurement; these are the figures of every run, this one's last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<Run>,
}

impl Measurement {
    /// The figures that are compared between runs.
    pub fn figures(&self) -> Run {
        let latency = self.latency.as_ref();
        Run {
            rate_per_s: self.rate_per_s,
            p50_ns: latency.and_then(|latency| latency.p50_ns),
            p99_ns: latency.and_then(|latency| latency.p99_ns),
            p999_ns: latency.and_then(|latency| latency.p999_ns),
        }
    }
}

/// One of several runs of a measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Requests completed per second.
    pub rate_per_s: f64,
    /// Median.
    pub p50_ns: Option<u64>,
    /// 99th percentile.
    pub p99_ns: Option<u64>,
    /// 99.9th percentile.
    pub p999_ns: Option<u64>,
}

/// Percentiles in nanoseconds; `None` prints as –: fewer than 10 samples lie beyond it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Samples recorded.
    pub samples: u64,
    /// Smallest sample.
    pub min_ns: u64,
    /// Mean.
    pub mean_ns: f64,
    /// Median.
    pub p50_ns: Option<u64>,
    /// 90th percentile.
    pub p90_ns: Option<u64>,
    /// 99th percentile.
    pub p99_ns: Option<u64>,
    /// 99.9th percentile.
    pub p999_ns: Option<u64>,
    /// 99.99th percentile.
    pub p9999_ns: Option<u64>,
    /// Largest sample.
    pub max_ns: u64,
    /// `[quantile, nanoseconds]`, rising, evenly spaced in nines, for plots.
    pub curve: Vec<(f64, u64)>,
}

/// Threads during a measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Census {
    /// Length of the observation.
    pub wall_s: f64,
    /// Threads of the generator, of the processes named to it, and kernel threads that used the
    /// processor.
    pub threads: Vec<Thread>,
    /// What each core did.
    pub cores: Vec<Core>,
    /// Processor seconds of all threads listed.
    pub cpu_s: f64,
}

/// One thread's share.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Thread {
    /// The process, as named on the command line.
    pub process: String,
    /// The thread's name.
    pub thread: String,
    /// Its thread identifier.
    pub tid: u32,
    /// The core it last ran on.
    pub core: u32,
    /// Processor seconds used.
    pub cpu_s: f64,
    /// `busy` (at least 0.9 of the time), `part`, or `sleep` (at most 0.1).
    pub state: String,
}

/// One core's time, from /proc/stat, as shares of the observation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Core {
    /// Its number.
    pub core: u32,
    /// In user space.
    pub user: f64,
    /// In the kernel, interrupts apart.
    pub system: f64,
    /// In interrupts and soft interrupts.
    pub interrupt: f64,
    /// Taken by the hypervisor.
    pub steal: f64,
    /// Idle.
    pub idle: f64,
}

/// The machine and the build.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Processor model.
    pub cpu: String,
    /// Online cores.
    pub cores: u32,
    /// Kernel release.
    pub kernel: String,
    /// Distribution.
    pub os: String,
    /// Frequency governor, when readable.
    pub governor: Option<String>,
    /// Whether the processor says that it is virtual.
    pub hypervisor: bool,
    /// Memory.
    pub memory_mib: u64,
    /// 2 MiB pages in the pool.
    pub hugepages: u64,
    /// `vulnerability: state` for each that applies.
    pub mitigations: Vec<String>,
    /// Cache-line round trip between two cores at the start.
    pub cacheline_before_ns: Option<f64>,
    /// The same at the end.
    pub cacheline_after_ns: Option<f64>,
    /// Commit of the source, with `+` when the tree had changes.
    pub commit: Option<String>,
    /// Compiler, when known.
    pub rustc: Option<String>,
    /// Optimised or debug build.
    pub profile: String,
    /// UTC, ISO 8601.
    pub date: String,
}

/// One id of `targets.toml` with what was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// Stable identifier.
    pub id: String,
    /// Unit of `runs`, `value` and `want`.
    pub unit: String,
    /// Every run's value.
    pub runs: Vec<f64>,
    /// Their median; `null` when nothing could be measured.
    pub value: Option<f64>,
    /// The bound: `<= 1.3`; empty when only reported.
    pub want: String,
    /// Whether the bound holds; `null` when only reported or not measured.
    pub met: Option<bool>,
    /// `process/thread @core state` of a run.
    pub threads: Vec<String>,
    /// Why it was not met or not measured; what marks the figure. Empty otherwise.
    pub cause: String,
    /// What is compared.
    #[serde(default)]
    pub compares: String,
    /// Another id that may be met instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub either: Option<String>,
}

/// Something observed by another program than this one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fact {
    /// `throughput`, `reach`, `isolation`, or `note`.
    pub kind: String,
    /// What was observed.
    pub title: String,
    /// The path, as in [`Measurement::path`].
    #[serde(default)]
    pub path: String,
    /// Whether it is as it should be; `null` for a plain figure.
    #[serde(default)]
    pub ok: Option<bool>,
    /// The figure.
    #[serde(default)]
    pub value: Option<f64>,
    /// Its unit.
    #[serde(default)]
    pub unit: String,
    /// A line of explanation or output.
    #[serde(default)]
    pub text: String,
    /// What a program printed, when a reader wants to see it whole; several lines.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// The exact command line.
    #[serde(default)]
    pub command: String,
}
