//! One `outboard` per host: its tenants' interfaces and its life, a violent end included.

use super::config::{self, State};
use super::topology::{HOSTS, Topology, VPCS, Vpc};
use crate::child::{self, Child};
use crate::error::Error;
use crate::netns::own_name;
use crate::stop::Stop;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Where daemons pin their BPF programs, each in a directory of its instance's name.
pub const PINS: &str = "/sys/fs/bpf/outboard";
/// How long a daemon may take until its control socket answers.
const READY_WAIT: Duration = Duration::from_secs(20);
/// How long a command of `outboard` may take.
pub const COMMAND_WAIT: Duration = Duration::from_secs(20);

/// Where the daemons' files are.
pub struct Places<'a> {
    /// The program.
    pub outboard: &'a Path,
    /// Sockets: a short path, for sun_path is 108 bytes.
    pub sockets: &'a Path,
    /// Configurations and the volume's file: a disk, not memory.
    pub files: &'a Path,
    /// Logs.
    pub logs: &'a Path,
}

impl Places<'_> {
    /// The vhost-user socket of host A's remote disk.
    pub fn disk(&self) -> PathBuf {
        self.sockets.join("disk")
    }

    /// The file of host B's volume.
    pub fn volume(&self) -> PathBuf {
        self.files.join("shared.img")
    }

    /// The vhost-user socket of the disk that comes by apply.
    pub fn late_disk(&self) -> PathBuf {
        self.sockets.join("late-disk")
    }

    /// A host's configuration.
    pub fn config(&self, host: usize) -> PathBuf {
        self.files.join(format!("host-{}.toml", HOSTS[host]))
    }

    /// Writes a host's configuration over the one that is there, as a user's editor does.
    pub fn write_config(&self, host: usize, state: State) -> Result<PathBuf, Error> {
        let path = self.config(host);
        fs::write(&path, config::text(host, state, self)).map_err(Error::file("write", &path))?;
        Ok(path)
    }

    /// `outboard` inside a host, with the host's configuration.
    pub fn command(&self, topology: &Topology, host: usize, verb: &str) -> Command {
        let mut command = topology.host(host).command(self.outboard);
        command.arg(verb).arg("--config").arg(self.config(host));
        command
    }
}

/// Both daemons; dropping them ends them.
pub struct Daemons {
    /// By host.
    children: Vec<Option<Child>>,
    lives: u32,
}

impl Daemons {
    /// Writes the configurations, attaches the tenants, starts both daemons and waits until
    /// their control sockets answer.
    pub fn start(topology: &Topology, places: &Places, stop: &Stop) -> Result<Daemons, Error> {
        let mut daemons = Daemons { children: vec![None, None], lives: 0 };
        // Host B first: it serves the disk that host A connects to.
        for host in (0..HOSTS.len()).rev() {
            places.write_config(host, State::Usual)?;
            for (vpc, Vpc { name, .. }) in VPCS.iter().enumerate() {
                let tenant = topology.tenant(host, vpc).name();
                let mut attach = places.command(topology, host, "attach");
                attach.args(["--port", name, "--netns", tenant]);
                child::read(&mut attach, COMMAND_WAIT, stop)?;
            }
            daemons.run(topology, places, host, stop)?;
        }
        Ok(daemons)
    }

    /// Starts a host's daemon and waits until it answers. Each life has a log of its own.
    pub fn run(
        &mut self,
        topology: &Topology,
        places: &Places,
        host: usize,
        stop: &Stop,
    ) -> Result<(), Error> {
        assert!(self.children[host].is_none(), "it runs");
        self.lives += 1;
        let log = places.logs.join(format!("outboard-{}.{}.log", HOSTS[host], self.lives));
        let mut run = places.command(topology, host, "run");
        let child = self.children[host].insert(Child::spawn(&mut run, &log)?);
        let answers = || {
            child.must_run()?;
            match stats(places, host, stop) {
                Err(Error::Interrupted) => Err(Error::Interrupted),
                outcome => Ok(outcome.ok()),
            }
        };
        match stop.wait_for(READY_WAIT, answers)? {
            Some(_) => Ok(()),
            None => Err(Error::task(
                format!("outboard on host {} does not answer on its socket", HOSTS[host]),
                format!("see {}", log.display()),
            )),
        }
    }

    /// Ends a host's daemon with SIGKILL, as a crash would.
    pub fn kill(&mut self, host: usize) -> Result<(), Error> {
        self.children[host].take().map_or(Ok(()), Child::kill)
    }

    /// `--watch` arguments for the thread census.
    pub fn watch(&self) -> Vec<String> {
        let running = self.children.iter().zip(HOSTS);
        let pids = running.filter_map(|(child, host)| Some((child.as_ref()?.pid(), host)));
        pids.flat_map(|(pid, host)| ["--watch".into(), format!("outboard-{host}={pid}")]).collect()
    }

    /// Ends both on SIGTERM; an error when one does not end well.
    pub fn stop(self) -> Result<(), Error> {
        self.children.into_iter().flatten().try_for_each(Child::stop)
    }
}

/// Removes what the daemons pinned; made before they start, so that it goes after they ended. A
/// daemon's pins outlive it on purpose: a restart takes them over.
pub struct Pins;

impl Drop for Pins {
    fn drop(&mut self) {
        for host in HOSTS {
            let path = Path::new(PINS).join(own_name(host));
            if path.exists()
                && let Err(error) = fs::remove_dir_all(&path)
            {
                eprintln!("error: cannot remove {}: {error}", path.display());
            }
        }
    }
}

/// What a daemon counts.
pub fn stats(places: &Places, host: usize, stop: &Stop) -> Result<Value, Error> {
    let mut command = Command::new(places.outboard);
    command.args(["stats", "--json", "--config"]).arg(places.config(host));
    let text = child::read(&mut command, COMMAND_WAIT, stop)?;
    serde_json::from_str(&text)
        .map_err(|e| Error::task(format!("outboard stats is not JSON: {e}"), "report this"))
}
