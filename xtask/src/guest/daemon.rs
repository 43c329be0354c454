//! `outboard` beside a guest: its configuration, its life, and what it counts.

use super::jobs::Stage;
use crate::child::{self, Child};
use crate::error::Error;
use crate::stop::Stop;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long a daemon may take until its control socket answers: a debug build on a busy machine.
const READY_WAIT: Duration = Duration::from_secs(30);
/// How long `outboard stats` may take.
const STATS_WAIT: Duration = Duration::from_secs(20);

/// A daemon that runs in the job's namespace; dropping it ends it.
pub struct Daemon {
    label: String,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    enter: Vec<std::ffi::OsString>,
    child: Option<Child>,
    lives: u32,
}

impl Daemon {
    /// Writes the configuration, starts the daemon and waits until it answers. `storage` are the
    /// tables of volumes, disks and exports.
    pub fn start(stage: &Stage, label: &str, storage: &str) -> Result<Daemon, Error> {
        let config = stage.logs.join(format!("{label}.toml"));
        let name = crate::netns::own_name(label);
        let socket = stage.sockets.join(format!("{label}.sock"));
        let text = format!(
            "name = \"{name}\"\n\n[control]\nsocket = \"{}\"\n\n[[worker]]\ncore = 0\n{storage}",
            socket.display()
        );
        fs::write(&config, text).map_err(Error::file("write", &config))?;
        let enter = stage.namespace.command("setpriv");
        let words = std::iter::once(enter.get_program()).chain(enter.get_args());
        let mut daemon = Daemon {
            label: label.to_string(),
            program: stage.outboard.to_path_buf(),
            config,
            log: stage.logs.join(label),
            enter: words.map(Into::into).collect(),
            child: None,
            lives: 0,
        };
        daemon.start_again(stage.stop)?;
        Ok(daemon)
    }

    /// Starts it (again) and waits until it answers. Each life has a log of its own.
    pub fn start_again(&mut self, stop: &Stop) -> Result<(), Error> {
        assert!(self.child.is_none(), "it runs");
        self.lives += 1;
        let mut command = Command::new(&self.enter[0]);
        // It dies with this task.
        command.args(&self.enter[1..]).args(["--pdeathsig", "KILL", "--"]);
        command.arg(&self.program).arg("run").arg("--config").arg(&self.config);
        let log = self.log.with_extension(format!("{}.log", self.lives));
        self.child = Some(Child::spawn(&mut command, &log)?);
        let answers = || {
            self.must_run()?;
            match self.stats(stop) {
                Err(Error::Interrupted) => Err(Error::Interrupted),
                outcome => Ok(outcome.ok()),
            }
        };
        match stop.wait_for(READY_WAIT, answers)? {
            Some(_) => Ok(()),
            None => Err(Error::task(
                format!("outboard ({}) does not answer on its socket", self.label),
                format!("see {}", log.display()),
            )),
        }
    }

    /// An error with the end of its log when it has ended.
    pub fn must_run(&mut self) -> Result<(), Error> {
        match &mut self.child {
            Some(child) => child.must_run(),
            None => Ok(()),
        }
    }

    /// Does what a guest asks: `restart` (SIGTERM and start) or `kill` (SIGKILL and start).
    pub fn disturb(&mut self, how: &str, stop: &Stop) -> Result<String, Error> {
        match how {
            "restart" => self.stop()?,
            "kill" => self.kill()?,
            _ => return Err(Error::task(format!("nobody can \"{how}\""), "see the script")),
        }
        self.start_again(stop)?;
        Ok(String::new())
    }

    /// SIGTERM; an error when it does not end well.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.child.take().map_or(Ok(()), Child::stop)
    }

    fn kill(&mut self) -> Result<(), Error> {
        self.child.take().map_or(Ok(()), Child::kill)
    }

    /// Writes what it counts beside its log.
    pub fn write_counts(&self, stop: &Stop) -> Result<(), Error> {
        let path = self.log.with_extension("stats.json");
        let text = format!("{:#}\n", self.stats(stop)?);
        fs::write(&path, text).map_err(Error::file("write", &path))
    }

    fn stats(&self, stop: &Stop) -> Result<Value, Error> {
        let mut command = Command::new(&self.program);
        command.args(["stats", "--json", "--config"]).arg(&self.config);
        let text = child::read(&mut command, STATS_WAIT, stop)?;
        serde_json::from_str(&text)
            .map_err(|e| Error::task(format!("outboard stats is not JSON: {e}"), "report this"))
    }
}

/// The table of a file volume, made with its size.
pub fn file_volume(name: &str, path: &Path, size: &str, block_bytes: u32) -> String {
    format!(
        "\n[[volume]]\nname = \"{name}\"\nkind = \"file\"\npath = \"{}\"\ncreate = \"{size}\"\n\
         block_bytes = {block_bytes}\n",
        path.display()
    )
}
