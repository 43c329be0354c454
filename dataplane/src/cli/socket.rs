//! Which daemon is asked.

use super::{Failure, load};
use clap::Args;
use std::path::{Path, PathBuf};

/// Where daemons have their control sockets by default.
const DIRECTORY: &str = "/run/outboard";

/// The daemon, by its socket, by its configuration, or, with neither, as the only one there.
#[derive(Debug, Args)]
pub struct Which {
    /// The daemon's control socket
    #[arg(long, short, value_name = "PATH", conflicts_with = "config")]
    socket: Option<PathBuf>,
    /// The configuration that the daemon was started with
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Which {
    /// Its control socket.
    pub fn socket(&self) -> Result<PathBuf, Failure> {
        match (&self.socket, &self.config) {
            (Some(socket), _) => Ok(socket.clone()),
            (None, Some(config)) => Ok(load(config)?.control_socket),
            (None, None) => only_socket(Path::new(DIRECTORY)),
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
