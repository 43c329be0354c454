//! `outboard stats`

use super::Failure;
use super::socket::Which;
use clap::Args;
use outboard::control::api::ask_stats;
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
    /// Once a second, until interrupted
    #[arg(long, short)]
    watch: bool,
}

impl Stats {
    pub fn run(self) -> Result<(), Failure> {
        let socket = self.which.socket()?;
        let clear = self.watch && !self.json && io::stdout().is_terminal();
        loop {
            let stats = ask_stats(&socket)?;
            let text =
                if self.json { serde_json::to_string(&stats)? + "\n" } else { stats.to_string() };
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
            std::thread::sleep(WATCH_PERIOD);
        }
    }
}
