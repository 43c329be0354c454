//! Measurements by `outboard-bench`: each writes one JSON document, the report joins them.

use super::checks::Subject;
use super::topology::ADDRESSES;
use crate::child;
use crate::error::Error;
use crate::process;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Length of a measured window and of the warm-up before it.
const WINDOW: [&str; 4] = ["--seconds", "5", "--warmup", "1"];
/// How long one driver may take.
const DRIVER_WAIT: Duration = Duration::from_secs(60);
/// What network measurements have in common in the report.
const NETWORK_GROUP: &str = "UDP round trip between tenants, 22 B, depth 1";
/// What disk measurements have in common in the report.
const DISK_GROUP: &str = "disk, 4 KiB random read, depth 1";

/// The harness and where its documents go.
pub struct Bench<'a> {
    /// The program.
    pub program: &'a Path,
    /// The directory of the documents.
    pub results: &'a Path,
}

impl Bench<'_> {
    /// Round trips between the red tenants.
    pub fn udp(&self, subject: &Subject, file: &str, labels: &[String]) -> Result<PathBuf, Error> {
        let address = format!("{}:7000", ADDRESSES[1]);
        let mut server = Command::new(self.program);
        server.args(["udp", "--server", &address, "--wait", "block"]);
        let server = subject.serve(0, &mut server, "echoing")?;
        let mut client = subject.topology.tenant(0, 0).command(self.program);
        client.args(["udp", "--to", &address, "--wait", "block"]);
        client.args(["--path", subject.path, "--group", NETWORK_GROUP, "--medium", "veth"]);
        client.args(["--watch", &format!("echo={}", server.pid())]);
        let written = self.measure(client, file, labels, subject)?;
        server.stop()?;
        Ok(written)
    }

    /// Random reads of a vhost-user disk, verified.
    pub fn vhost(&self, subject: &Subject, socket: &Path, labels: &[String]) -> Result<(), Error> {
        let mut command = Command::new(self.program);
        command.arg("vhost-blk").arg(socket).args(["--path", subject.path, "--group", DISK_GROUP]);
        self.measure(command, "disk-remote.json", labels, subject).map(drop)
    }

    /// The same on a local file, without anything between.
    pub fn local_file(&self, subject: &Subject, file: &Path, size_mib: u32) -> Result<(), Error> {
        let mut command = Command::new(self.program);
        command.arg("file").arg(file).args(["--create-mib", &size_mib.to_string()]);
        command.args(["--path", "local file", "--group", DISK_GROUP, "--baseline"]);
        self.measure(command, "disk-local.json", &[], subject).map(drop)
    }

    /// Joins the documents and the facts into report.json and report.html and prints it.
    pub fn report(&self, subject_stop: &crate::stop::Stop) -> Result<(), Error> {
        let mut command = Command::new(self.program);
        command.arg("report");
        for file in self.documents()? {
            command.arg(file);
        }
        command.arg("--json").arg(self.results.join("report.json"));
        command.arg("--html").arg(self.results.join("report.html"));
        child::run(&mut command, subject_stop)
    }

    /// The documents of this run, in the order of their names, without the report itself.
    fn documents(&self) -> Result<Vec<PathBuf>, Error> {
        let entries = std::fs::read_dir(self.results).map_err(Error::file("list", self.results))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| {
            file.extension().is_some_and(|ext| ext == "json") && !file.ends_with("report.json")
        });
        files.sort();
        Ok(files)
    }

    fn measure(
        &self,
        mut command: Command,
        file: &str,
        labels: &[String],
        subject: &Subject,
    ) -> Result<PathBuf, Error> {
        let path = self.results.join(file);
        command.args(WINDOW).args(labels).arg("--json").arg(&path);
        println!("  ...   {}", process::describe(&command));
        child::read(&mut command, DRIVER_WAIT, subject.stop)?;
        Ok(path)
    }
}
