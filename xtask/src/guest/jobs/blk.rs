//! The guest's own virtio-blk driver on two disks: one of a file of this host, and one of a file
//! that a second daemon serves over NVMe/TCP.

use super::{Job, Stage};
use crate::error::Error;
use crate::guest::daemon::{Daemon, file_volume};
use crate::guest::qemu::{Host, Outcome};
use crate::stop::Stop;
use std::ffi::OsString;
use std::time::Duration;

/// The job.
pub const JOB: Job = Job {
    name: "virtio-blk",
    about: "virtio-blk, local and remote disk: fio verify, restarts, ext4, fsck, discard, reboot",
    script: include_str!("virtio-blk.sh"),
    patience: Duration::from_secs(240),
    run,
};

/// The remote disk's name on the network, which is the namespace's loopback.
const NQN: &str = "nqn.2025-01.org.outboard:guest.remote";
const TARGET: &str = "127.0.0.1:4420";
/// The disks' names, which the guest reads as serial numbers.
const DISKS: [&str; 2] = ["local", "remote"];
/// Their size.
const SIZE: &str = "96MiB";

fn run(stage: &Stage, job: &Job) -> Result<Outcome, Error> {
    let file = file_volume("data", &stage.disks.join("remote.img"), SIZE, 4096);
    let export =
        format!("\n[[export]]\nvolume = \"data\"\nnqn = \"{NQN}\"\nlisten = \"{TARGET}\"\n");
    let target = Daemon::start(stage, "target", &(file + &export))?;
    let front = Daemon::start(stage, "host", &front(stage))?;
    let mut daemons = Daemons { target, front, stop: stage.stop };
    let outcome = stage.play(job, devices(stage), &mut daemons)?;
    daemons.front.stop()?;
    daemons.target.stop()?;
    Ok(outcome)
}

/// The daemon with the disks.
fn front(stage: &Stage) -> String {
    let mut text = file_volume("local", &stage.disks.join("local.img"), SIZE, 512);
    text += &format!(
        "\n[[volume]]\nname = \"remote\"\nkind = \"remote\"\naddress = \"{TARGET}\"\n\
         nqn = \"{NQN}\"\n"
    );
    for name in DISKS {
        let socket = stage.sockets.join(name);
        text += &format!(
            "\n[[disk]]\nname = \"{name}\"\nvolume = \"{name}\"\nsocket = \"{}\"\n",
            socket.display()
        );
    }
    text
}

fn devices(stage: &Stage) -> Vec<OsString> {
    let mut arguments = Vec::new();
    for name in DISKS {
        let socket = stage.sockets.join(name);
        arguments.extend([
            "-chardev".to_string(),
            // QEMU connects again to a daemon that starts again.
            format!("socket,id={name},path={},reconnect-ms=100", socket.display()),
            "-device".to_string(),
            format!("vhost-user-blk-pci,chardev={name},num-queues=1"),
        ]);
    }
    arguments.into_iter().map(OsString::from).collect()
}

struct Daemons<'a> {
    target: Daemon,
    front: Daemon,
    stop: &'a Stop,
}

impl Host for Daemons<'_> {
    fn answer(&mut self, words: &[&str]) -> Result<String, Error> {
        match words {
            [how, "host"] => self.front.disturb(how, self.stop),
            [how, "target"] => self.target.disturb(how, self.stop),
            _ => Err(super::unknown(words)),
        }
    }

    fn watch(&mut self) -> Result<(), Error> {
        self.target.must_run()?;
        self.front.must_run()
    }

    fn write_counts(&mut self) -> Result<(), Error> {
        self.target.write_counts(self.stop)?;
        self.front.write_counts(self.stop)
    }
}
