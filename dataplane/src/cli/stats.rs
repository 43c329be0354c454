//! `outboard stats`

use super::Failure;
use super::socket::Which;
use clap::Args;
use outboard::clock;
use outboard::control::api::ask_stats;
use outboard::control::stats::{Only, Rates};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::time::Duration;

/// Time between two snapshots of `--watch`.
const WATCH_PERIOD: Duration = Duration::from_secs(1);
/// ECMA-48: cursor to the top left, erase to the end.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Show what a running daemon has done: packets, drops with their reasons and remedies, disks
///
/// The daemon is found by its socket, by its configuration, or, with neither, as the only one in
/// /run/outboard.
#[derive(Debug, Args)]
pub struct Stats {
    #[command(flatten)]
    which: Which,
    /// Print the snapshot as one line of JSON
    #[arg(long, short)]
    json: bool,
    /// Once a second, until interrupted, with what happened per second
    #[arg(long, short)]
    watch: bool,
    /// Only this port or uplink; several: again
    #[arg(long, short, value_name = "NAME")]
    port: Vec<String>,
    /// Only this VPC: the sums over its ports; several: again
    #[arg(long, value_name = "NAME")]
    vpc: Vec<String>,
    /// Only this disk; several: again
    #[arg(long, short, value_name = "NAME")]
    disk: Vec<String>,
}

impl Stats {
    pub fn run(self) -> Result<(), Failure> {
        let socket = self.which.socket()?;
        let clear = self.watch && !self.json && io::stdout().is_terminal();
        let only = Only { ports: self.port, vpcs: self.vpc, disks: self.disk };
        let mut last = None;
        loop {
            let mut stats = ask_stats(&socket)?;
            let now_ns = clock::now_ns();
            only.narrow(&mut stats).map_err(|why| Failure(format!("error: {why}")))?;
            let mut text =
                if self.json { serde_json::to_string(&stats)? + "\n" } else { stats.to_string() };
            if let Some((before, before_ns)) = last.filter(|_| !self.json) {
                let seconds = (now_ns - before_ns) as f64 / 1e9;
                text += &Rates { before: &before, now: &stats, seconds }.to_string();
            }
            let mut out = io::stdout().lock();
            let prefix = if clear { CLEAR } else { "" };
            match write!(out, "{prefix}{text}").and_then(|()| out.flush()) {
                // The reader, such as `head`, has seen enough.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                result => result?,
            }
            if !self.watch {
                return Ok(());
            }
            last = Some((stats, now_ns));
            std::thread::sleep(WATCH_PERIOD);
        }
    }
}
