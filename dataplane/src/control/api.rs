//! The local socket that tells what a daemon counts, and takes what is to be applied.
//!
//! One JSON object per line in, one per line out: `{"get":"stats"}` gives `{"stats":{…}}`,
//! `{"apply":{…}}` gives `{"apply":{…}}` ([`apply`]), `{"capture":{…}}` packets ([`capture`]),
//! `{"ledger":{…}}` gives `{"ledger":{…}}` ([`ledger`]), anything else `{"error":"…"}`. Requests
//! have at most [`REQUEST_BYTES_MAX`] bytes (those of who may apply [`apply::APPLY_BYTES_MAX`]), at
//! most [`CLIENTS_MAX`] clients are connected, and each request with its answer must be through
//! within [`CLIENT_DEADLINE`]: a client that is slow or hostile is closed and delays nobody,
//! because one thread serves all of them without ever waiting for one.
//!
//! The socket has mode 0660 and, where that group exists, group `outboard`.

pub mod apply;
pub mod capture;
pub mod ledger;
mod serve;
#[cfg(test)]
mod tests;

pub use apply::Desk;

use super::local_socket::{Access, LocalSocket, SocketError};
use super::stats::Stats;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

/// The longest request, its newline included.
pub const REQUEST_BYTES_MAX: usize = 4096;
/// The most clients at once; one more, and the one that is closest to its deadline is closed.
pub const CLIENTS_MAX: usize = 32;
/// How long a client may take for one request and its answer.
pub const CLIENT_DEADLINE: Duration = Duration::from_secs(2);
/// How long this side waits for an answer: the daemon may be starved of its core.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer that this side takes.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// The group that may use the socket.
const GROUP: &str = "outboard";

/// Why the control socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Another daemon answers there.
    #[error(
        "the control socket {path} is in use by a daemon that answers; \
         stop it, or give this one another `name` or `socket` in [control]"
    )]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The socket or its directory cannot be made.
    #[error("no control socket: {source}; set `socket` in [control]")]
    Bind {
        /// What is in the way.
        source: SocketError,
    },
    /// The thread cannot be started.
    #[error("cannot start the thread of the control socket: {source}")]
    Thread {
        /// The system's reason.
        source: std::io::Error,
    },
}

impl From<SocketError> for ApiError {
    fn from(source: SocketError) -> ApiError {
        match source {
            SocketError::InUse(path) => ApiError::InUse { path },
            source => ApiError::Bind { source },
        }
    }
}

/// Where the snapshot comes from.
pub trait Source: Send {
    /// Everything that is counted, now.
    fn snapshot(&self) -> Stats;
}

impl<F: Fn() -> Stats + Send> Source for F {
    fn snapshot(&self) -> Stats {
        self()
    }
}

/// One line from a client.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Request {
    Get { get: What },
    Apply { apply: apply::Request },
    Capture { capture: capture::Request },
    Ledger { ledger: ledger::Request },
}

/// What can be asked for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum What {
    Stats,
}

/// One line to a client.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Stats(Stats),
    Apply(apply::Report),
    Capture(capture::Begun),
    Ledger(crate::ledger::Report),
    Error(String),
}

/// The socket, not served yet: who asks waits. It is removed when this is dropped.
#[derive(Debug)]
pub struct Bound {
    socket: LocalSocket,
}

impl Bound {
    /// Binds the socket, and so refuses a second daemon before anything else is made.
    pub fn new(path: &Path) -> Result<Bound, ApiError> {
        Ok(Bound { socket: LocalSocket::bind(path, Access::of_group_if_there(GROUP))? })
    }

    /// Serves it from a thread of its own; what is to be applied is left at `desk`.
    pub fn serve_with(self, source: impl Source + 'static, desk: &Desk) -> Result<Api, ApiError> {
        let desk = desk.clone();
        let start = || {
            let (stop, stopped) = UnixStream::pair()?;
            let listener = self.socket.listener.try_clone()?;
            let server = serve::Server::new(listener, stopped, Box::new(source), desk);
            let thread = std::thread::Builder::new().name("api".into()).spawn(|| server.run())?;
            Ok((stop, thread))
        };
        let (stop, thread) = start().map_err(|source| ApiError::Thread { source })?;
        Ok(Api { bound: Some(self), stop: Some(stop), thread: Some(thread) })
    }
}

/// The socket and the thread that serves it; both end when it is dropped.
#[derive(Debug)]
pub struct Api {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    bound: Option<Bound>,
}

impl Api {
    /// Binds the socket and serves it from a thread of its own; nothing can be applied.
    pub fn start(path: &Path, source: impl Source + 'static) -> Result<Api, ApiError> {
        Bound::new(path)?.serve_with(source, &Desk::default())
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        // While it is listened on: nobody takes it for a stale one and puts another there.
        self.bound.take();
        // The thread sees the other end close.
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic there was printed there, and must not become a second one here.
            let _ = thread.join();
        }
    }
}

/// Why a daemon gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is no socket.
    #[error("no daemon at {path}: there is no such socket; is `outboard run` running?")]
    NoSocket {
        /// The socket.
        path: PathBuf,
    },
    /// There is a socket, but nobody has it open.
    #[error("no daemon at {path}: nobody answers there; start it with `outboard run`")]
    NobodyThere {
        /// The socket.
        path: PathBuf,
    },
    /// The socket's mode forbids it.
    #[error("not allowed to use {path}: run as root or as a member of the group `outboard`")]
    NotAllowed {
        /// The socket.
        path: PathBuf,
    },
    /// The connection failed or took too long.
    #[error("the daemon at {path} did not answer: {source}")]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The answer is not what this version understands.
    #[error("the daemon at {path} answered: {what}")]
    BadAnswer {
        /// The socket.
        path: PathBuf,
        /// Its words, or what is wrong with them.
        what: String,
    },
}

/// Asks the daemon at `path` for its counts.
pub fn ask_stats(path: &Path) -> Result<Stats, AskError> {
    match ask(path, &Request::Get { get: What::Stats }, ASK_TIMEOUT)? {
        Answer::Stats(stats) => Ok(stats),
        other => Err(wrong_answer(path, other)),
    }
}

fn wrong_answer(path: &Path, answer: Answer) -> AskError {
    let what = match answer {
        Answer::Error(what) => what,
        Answer::Stats(_) | Answer::Apply(_) | Answer::Capture(_) | Answer::Ledger(_) => {
            "what was not asked for".into()
        }
    };
    AskError::BadAnswer { path: path.to_path_buf(), what }
}

fn ask(path: &Path, request: &Request, timeout: Duration) -> Result<Answer, AskError> {
    begin(path, request, timeout).map(|(answer, _)| answer)
}

/// Asks; the answer, and the connection with what follows it.
fn begin(
    path: &Path,
    request: &Request,
    timeout: Duration,
) -> Result<(Answer, BufReader<UnixStream>), AskError> {
    let (line, stream) = exchange(path, request, timeout).map_err(|source| {
        let path = path.to_path_buf();
        match source.kind() {
            std::io::ErrorKind::NotFound => AskError::NoSocket { path },
            std::io::ErrorKind::ConnectionRefused => AskError::NobodyThere { path },
            std::io::ErrorKind::PermissionDenied => AskError::NotAllowed { path },
            _ => AskError::NoAnswer { path, source },
        }
    })?;
    let answer = serde_json::from_str(&line).map_err(|error| AskError::BadAnswer {
        path: path.to_path_buf(),
        what: format!("something unreadable ({error})"),
    })?;
    Ok((answer, stream))
}

fn exchange(
    path: &Path,
    request: &Request,
    timeout: Duration,
) -> std::io::Result<(String, BufReader<UnixStream>)> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(ASK_TIMEOUT))?;
    let mut bytes = serde_json::to_vec(request)?;
    bytes.push(b'\n');
    stream.write_all(&bytes)?;
    let mut line = String::new();
    let mut reader = BufReader::new(stream);
    reader.by_ref().take(ANSWER_BYTES_MAX).read_line(&mut line)?;
    if line.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok((line, reader))
}
