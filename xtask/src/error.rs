//! What can go wrong in a task: what failed, on which object, the reason, and the remedy.

use std::io;
use std::path::PathBuf;

/// Why a task stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program could not be started.
    #[error("cannot start `{command}`: {source}; is it installed? `cargo xtask setup` looks")]
    Start {
        /// The command line.
        command: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A program ran and failed.
    #[error("`{command}` ended with {status}{}", indent(output))]
    Failed {
        /// The command line.
        command: String,
        /// Exit code or signal.
        status: String,
        /// The end of what it printed, when it was captured.
        output: String,
    },
    /// A file or directory could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// The verb: "read", "create".
        action: &'static str,
        /// The object.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Anything else that a task found wrong.
    #[error("{what}; {remedy}")]
    Task {
        /// What failed, on which object and why.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// Ctrl-C or SIGTERM; guards clean up on the way out.
    #[error("interrupted")]
    Interrupted,
    /// The task has printed its own account of what is wrong.
    #[error("failed")]
    Reported,
}

impl Error {
    /// A task's own finding: what is wrong, and what to do about it.
    pub fn task(what: impl Into<String>, remedy: impl Into<String>) -> Error {
        Error::Task { what: what.into(), remedy: remedy.into() }
    }

    /// A file operation that failed: `.map_err(Error::file("read", &path))`.
    pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::File { action, path, source }
    }
}

fn indent(output: &str) -> String {
    output.trim_end().lines().map(|line| format!("\n    {line}")).collect()
}
