//! The jobs: each a script for the guest, and what the host has ready for it.

mod blk;
mod nvme;

use super::image::Image;
use super::qemu::{Accelerator, Guest, Host, Machine, Outcome};
use crate::error::Error;
use crate::netns::Namespace;
use crate::stop::Stop;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

/// A job.
pub struct Job {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// What the guest runs.
    pub script: &'static str,
    /// How long it may take before it is ended: with room for a machine that does other things.
    pub patience: Duration,
    /// Prepares the host, starts the guest and follows it.
    pub run: fn(&Stage, &Job) -> Result<Outcome, Error>,
}

/// The guest alone.
pub const BOOT: Job = Job {
    name: "boot",
    about: "the guest boots, has its programs and drivers, and powers off",
    script: include_str!("jobs/boot.sh"),
    patience: Duration::from_secs(120),
    run: run_alone,
};

/// Every job, in the order to run them.
pub const JOBS: &[Job] = &[BOOT, blk::JOB, nvme::JOB];

/// What a job gets.
pub struct Stage<'a> {
    /// Kernel, first file system, QEMU.
    pub image: &'a Image,
    /// What runs the guest.
    pub accelerator: Accelerator,
    /// The daemon.
    pub outboard: &'a Path,
    /// Where QEMU and daemons run.
    pub namespace: &'a Namespace,
    /// Sockets: a short path, gone after the job.
    pub sockets: &'a Path,
    /// Files of volumes, gone after the job unless they are to be kept.
    pub disks: &'a Path,
    /// Logs, captures and configurations, which stay.
    pub logs: &'a Path,
    /// Whether to print the console.
    pub show_console: bool,
    /// How long the guest may take.
    pub patience: Duration,
    /// Whether the user asked to stop.
    pub stop: &'a Stop,
}

impl Stage<'_> {
    /// Runs the job's script in a guest with these devices.
    fn play(
        &self,
        job: &Job,
        devices: Vec<OsString>,
        host: &mut dyn Host,
    ) -> Result<Outcome, Error> {
        let machine = Machine {
            image: self.image,
            accelerator: self.accelerator,
            job: job.script,
            memory_mib: 640,
            devices,
            namespace: self.namespace,
            run: self.sockets,
            logs: self.logs,
            show_console: self.show_console,
        };
        let outcome = Guest::start(&machine, self.stop)?.finish(host, self.patience, self.stop);
        match (outcome, host.write_counts()) {
            (Ok(_), Err(error)) => Err(error),
            (outcome, _) => outcome,
        }
    }
}

/// What a host says to words that it does not know.
fn unknown(words: &[&str]) -> Error {
    Error::task(format!("nothing here does \"{}\"", words.join(" ")), "see the script")
}

/// A host that does nothing.
struct Idle;

impl Host for Idle {
    fn answer(&mut self, words: &[&str]) -> Result<String, Error> {
        Err(unknown(words))
    }

    fn watch(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn write_counts(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

fn run_alone(stage: &Stage, job: &Job) -> Result<Outcome, Error> {
    stage.play(job, Vec::new(), &mut Idle)
}
