//! Measurements by `outboard-bench`: each writes one JSON document, the report joins them.

use super::checks::{Subject, endpoint};
use super::topology::{ADDRESSES, V4};
use crate::child;
use crate::error::Error;
use crate::stop::Stop;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Length of a measured window and of the warm-up before it.
const WINDOW: [&str; 4] = ["--seconds", "5", "--warmup", "1"];
/// How long one driver may take, on a machine that is busy with other things too.
pub const DRIVER_WAIT: Duration = Duration::from_secs(300);
/// What network measurements have in common in the report.
const NETWORK_GROUP: &str = "UDP round trip between tenants, 22 B, depth 1";
/// What disk measurements have in common in the report.
const DISK_GROUP: &str = "disk, 4 KiB random read, depth 1";
/// What is behind host A's vhost-user disk.
const REMOTE_MEDIUM: &str = "file volume of host B over NVMe/TCP on veth";

/// What the report is made of, in its order.
const DOCUMENTS: [&str; 5] = [FACTS, UDP_KERNEL, UDP_OUTBOARD, DISK_LOCAL, DISK_REMOTE];
/// What other programs showed.
pub const FACTS: &str = "facts.json";
/// Round trips over bridge and VXLAN of the kernel.
pub const UDP_KERNEL: &str = "udp-kernel.json";
/// Round trips over Outboard.
pub const UDP_OUTBOARD: &str = "udp-outboard.json";
const DISK_LOCAL: &str = "disk-local.json";
const DISK_REMOTE: &str = "disk-remote.json";

/// The harness and where its documents go.
pub struct Bench<'a> {
    /// The program.
    pub program: &'a Path,
    /// The directory of the documents.
    pub results: &'a Path,
}

impl Bench<'_> {
    /// Round trips between the red tenants.
    pub fn udp(&self, subject: &Subject, file: &str, labels: &[String]) -> Result<(), Error> {
        let address = endpoint(ADDRESSES[V4][1], 7000);
        let mut server = Command::new(self.program);
        server.args(["udp", "--server", &address, "--wait", "block"]);
        let server = subject.serve(0, &mut server, "echo", "echoing")?;
        let mut client = subject.topology.tenant(0, 0).command(self.program);
        client.args(["udp", "--to", &address, "--wait", "block"]);
        client.args(["--path", subject.path, "--group", NETWORK_GROUP, "--medium", "veth"]);
        client.args(["--watch", &format!("echo={}", server.pid())]);
        self.measure(client, file, labels, subject)?;
        server.stop()
    }

    /// Random reads of host A's vhost-user disk, verified. The driver sleeps while it waits: it
    /// has no core of its own beside the daemons' workers.
    pub fn vhost(&self, subject: &Subject, socket: &Path, labels: &[String]) -> Result<(), Error> {
        let mut command = Command::new(self.program);
        command.arg("vhost-blk").arg(socket).args(["--wait", "block", "--medium", REMOTE_MEDIUM]);
        command.args(["--path", subject.path, "--group", DISK_GROUP]);
        self.measure(command, DISK_REMOTE, labels, subject)
    }

    /// The same on a local file, without anything between, from the core on which host B reads
    /// its own: the disk's interrupt is nearer to one core than to the other.
    pub fn local_file(&self, subject: &Subject, file: &Path, size_mib: u32) -> Result<(), Error> {
        let mut command = Command::new(self.program);
        command.arg("file").arg(file).args(["--create-mib", &size_mib.to_string()]);
        command.args(["--path", "local file", "--group", DISK_GROUP, "--baseline"]);
        command.args(["--core", "1"]);
        self.measure(command, DISK_LOCAL, &[], subject)
    }

    /// Joins the documents and the facts into report.json and report.html, and prints it.
    pub fn report(&self, stop: &Stop) -> Result<(), Error> {
        let mut command = Command::new(self.program);
        command.args(["report", "--title", "Outboard: demo", "--out"]).arg(self.results);
        command.args(DOCUMENTS.map(|file| self.results.join(file)));
        child::run(&mut command, stop)
    }

    fn measure(
        &self,
        mut command: Command,
        file: &str,
        labels: &[String],
        subject: &Subject,
    ) -> Result<(), Error> {
        let path = self.results.join(file);
        command.args(WINDOW).args(labels).arg("--json").arg(&path);
        println!("  ...   {}: {}", subject.path, file.trim_end_matches(".json"));
        child::read(&mut command, DRIVER_WAIT, subject.stop)?;
        println!("        {}", summary(&measurement(&path)?));
        Ok(())
    }
}

/// The measurement in a document that a driver wrote.
pub fn measurement(path: &Path) -> Result<Value, Error> {
    let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
    let mut document: Value = serde_json::from_str(&text)
        .map_err(|e| Error::task(format!("{} is no JSON: {e}", path.display()), "report this"))?;
    Ok(document["measurements"][0].take())
}

/// A measurement in one line; the report tells all of it.
fn summary(measurement: &Value) -> String {
    let latency = &measurement["latency"];
    // A percentile that too few samples support is null.
    let us = |key: &str| match latency[key].as_f64() {
        Some(ns) => format!("{:.1} µs", ns / 1000.0),
        None => "–".into(),
    };
    format!(
        "p50 {}, p99 {}, p99.9 {}, {} samples, {} lost",
        us("p50_ns"),
        us("p99_ns"),
        us("p999_ns"),
        latency["samples"],
        measurement["lost"]
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::own_name;

    #[test]
    fn a_measurement_is_told_in_one_line() {
        let document = r#"{"measurements": [{"lost": 2, "latency":
            {"samples": 500, "p50_ns": 61200, "p99_ns": 94040, "p999_ns": null}}]}"#;
        let path = std::env::temp_dir().join(own_name("measurement.json"));
        fs::write(&path, document).unwrap();
        let want = "p50 61.2 µs, p99 94.0 µs, p99.9 –, 500 samples, 2 lost";
        assert_eq!(summary(&measurement(&path).unwrap()), want);
        fs::write(&path, "{").unwrap();
        assert!(measurement(&path).unwrap_err().to_string().contains("no JSON"));
        fs::remove_file(&path).unwrap();
    }
}
