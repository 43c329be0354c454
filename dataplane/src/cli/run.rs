//! `outboard run`: the daemon.

use super::{Failure, load};
use clap::Args;
use outboard::control;
use outboard::control::netlink::Netns;
use std::io::IsTerminal;
use std::path::PathBuf;
use tracing_subscriber::EnvFilter;

/// Run the daemon until SIGTERM or SIGINT.
#[derive(Debug, Args)]
#[command(after_help = "\
The daemon stays in the foreground and logs to stderr (OUTBOARD_LOG=debug for more). It stops
cleanly on SIGTERM and SIGINT: sockets, XDP programs and their pins are removed. On SIGHUP it reads
the file again and changes what differs, or nothing (see `outboard apply --help`). Interfaces named
in the file must exist: `outboard attach` makes those of containers.")]
pub struct Run {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Run in this network namespace: a name in /run/netns, a path, or a process id
    #[arg(long, value_name = "NETNS")]
    netns: Option<String>,
}

impl Run {
    /// Runs it.
    pub fn run(self) -> Result<(), Failure> {
        let plan = load(&self.config)?;
        let filter = EnvFilter::try_from_env("OUTBOARD_LOG").unwrap_or(EnvFilter::new("info"));
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            // A log that nobody reads any more (a closed pipe) is no reason to panic.
            .log_internal_errors(false)
            .init();
        if let Some(netns) = self.netns {
            // The process's first thread itself: one that only waited for another would keep
            // every capability.
            Netns::open(&netns)?.enter()?;
        }
        Ok(control::run::run(plan, &self.config)?)
    }
}
