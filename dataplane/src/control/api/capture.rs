//! `{"capture":{"port":NAME,"stages":[…],"filter":TEXT,"snap":BYTES,"count":PACKETS}}`: packets of
//! a port, as they pass.
//!
//! The answer is `{"capture":{…}}` in one line, then pcapng, until `count` packets are through, the
//! client ends its sending side, the port leaves or the daemon stops; statistics of the interface
//! end the stream. The connection is a thread's of its own from the answer on. Only root and the
//! daemon's own user may ask: tenants' packets are nobody else's business.

use super::{ASK_TIMEOUT, Answer, AskError, wrong_answer};
use crate::capture::{Filter, SNAP_BYTES_MAX, Stage};
use serde::{Deserialize, Serialize};
use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// What is to be captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The port's name.
    pub port: String,
    /// Where on their way packets are seen.
    #[serde(default = "both_ways")]
    pub stages: Vec<Stage>,
    /// Which packets; empty: all.
    #[serde(default)]
    pub filter: String,
    /// How much is kept of each packet.
    #[serde(default = "snap_bytes_max")]
    pub snap: usize,
    /// How many packets at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

fn both_ways() -> Vec<Stage> {
    vec![Stage::In, Stage::Out]
}

fn snap_bytes_max() -> usize {
    SNAP_BYTES_MAX
}

/// What is going to be captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// The port.
    pub port: String,
    /// Its interface.
    pub interface: String,
}

/// A checked request with the connection that it came on.
#[derive(Debug)]
pub struct Job {
    /// Where the answer goes.
    pub stream: UnixStream,
    /// What is asked.
    pub request: Request,
    /// Its filter.
    pub filter: Filter,
}

/// Checks what can be checked without the daemon's state.
pub(super) fn check(request: &Request) -> Result<Filter, String> {
    if request.stages.is_empty() {
        return Err("a capture needs a stage: in, out or drop".into());
    }
    if request.snap == 0 {
        return Err("a capture keeps at least one byte of each packet".into());
    }
    Filter::parse(&request.filter).map_err(|error| error.to_string())
}

/// A capture that runs: read pcapng from it.
#[derive(Debug)]
pub struct Running {
    /// What the daemon captures.
    pub begun: Begun,
    /// The pcapng stream.
    pub stream: BufReader<UnixStream>,
}

impl Running {
    /// Asks the daemon to end: what was seen until now, and the statistics, still come.
    pub fn finish(&self) -> io::Result<()> {
        self.stream.get_ref().shutdown(std::net::Shutdown::Write)
    }
}

/// Asks the daemon at `path` for a capture.
pub fn ask_capture(path: &Path, request: Request) -> Result<Running, AskError> {
    let request = super::Request::Capture { capture: request };
    let (answer, stream) = super::begin(path, &request, ASK_TIMEOUT)?;
    match answer {
        Answer::Capture(begun) => Ok(Running { begun, stream }),
        other => Err(wrong_answer(path, other)),
    }
}
