//! `outboard stats`

use super::{Failure, load};
use clap::Args;
use outboard::control::api::ask_stats;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where daemons have their control sockets by default.
const DIRECTORY: &str = "/run/outboard";
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
    /// The daemon's control socket
    #[arg(long, short, value_name = "PATH", conflicts_with = "config")]
    socket: Option<PathBuf>,
    /// The configuration that the daemon was started with
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the snapshot as one line of JSON
    #[arg(long, short)]
    json: bool,
    /// Once a second, until interrupted
    #[arg(long, short)]
    watch: bool,
}

impl Stats {
    pub fn run(self) -> Result<(), Failure> {
        let socket = match (self.socket, self.config) {
            (Some(socket), _) => socket,
            (None, Some(config)) => load(&config)?.control_socket,
            (None, None) => only_socket(Path::new(DIRECTORY))?,
        };
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

/// The only socket in a directory; with none or several the user must say which.
fn only_socket(directory: &Path) -> Result<PathBuf, Failure> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut sockets: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
        .collect();
    sockets.sort();
    match sockets.as_slice() {
        [socket] => Ok(socket.clone()),
        [] => {
            let place = directory.display();
            let remedy = "say which daemon with --socket or --config";
            Err(Failure(format!("error: no control socket in {place}; {remedy}")))
        }
        several => {
            let list: Vec<_> = several.iter().map(|path| path.display().to_string()).collect();
            let list = list.join(", ");
            Err(Failure(format!("error: several daemons: {list}; say which with --socket")))
        }
    }
}
