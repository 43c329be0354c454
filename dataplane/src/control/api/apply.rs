//! `{"apply":{"file":NAME,"config":TEXT,"dry_run":BOOL}}`: what it asks, what is answered, and the
//! desk between the socket's thread and control.
//!
//! Only root and the daemon's own user may ask. The text is checked by the daemon; `file` is the
//! name that errors show. One apply is done at a time: who asks meanwhile is told so.

use super::capture;
use super::{Answer, AskError, ask, wrong_answer};
use crate::config::FILE_BYTES_MAX;
use crate::config::diff::Difference;
use crossbeam::channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The longest request of who may apply: a file of which every second byte is escaped.
pub const APPLY_BYTES_MAX: usize = 2 * FILE_BYTES_MAX + super::REQUEST_BYTES_MAX;
/// How long an apply may take: connecting volumes and ending I/O takes seconds each.
pub const APPLY_DEADLINE: Duration = Duration::from_secs(600);

/// What is to be applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The name of the file, for errors and the log.
    pub file: String,
    /// The configuration's text.
    pub config: String,
    /// Whether only the difference is wanted.
    pub dry_run: bool,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was a dry run.
    NotTried,
    /// Everything is as the file says.
    Applied {
        /// What still has I/O in flight, and leaves when that has ended.
        leaving: Vec<String>,
    },
    /// The difference says why it cannot be; nothing was changed.
    Refused,
    /// Something could not be made; nothing was changed.
    Failed {
        /// What, and why.
        reason: String,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What differs between what runs and the file.
    pub difference: Difference,
    /// What came of it.
    pub outcome: Outcome,
}

/// A report, or what is wrong with the text.
pub type Answered = Result<Report, String>;

#[derive(Debug)]
struct Job {
    request: Request,
    answer: Sender<Answer>,
}

/// Captures that wait for control.
const CAPTURES: usize = 8;

/// Where the socket's thread leaves what control is to do: one apply at a time, and captures.
#[derive(Clone, Debug)]
pub struct Desk {
    job: Arc<Mutex<Option<Job>>>,
    is_busy: Arc<AtomicBool>,
    captures_in: Sender<capture::Job>,
    captures: Receiver<capture::Job>,
    /// Looks at ledgers, which go on beside.
    pub looks: super::ledger::Looks,
}

impl Default for Desk {
    fn default() -> Desk {
        let (captures_in, captures) = bounded(CAPTURES);
        let (job, is_busy, looks) = Default::default();
        Desk { job, is_busy, captures_in, captures, looks }
    }
}

impl Desk {
    /// Leaves a capture that is to begin; whether there was room.
    pub(super) fn put_capture(&self, job: capture::Job) -> bool {
        self.captures_in.try_send(job).is_ok()
    }

    /// Captures that are to begin.
    pub fn captures(&self) -> impl Iterator<Item = capture::Job> + '_ {
        self.captures.try_iter()
    }

    /// Leaves a request; `None`: another one is being done.
    pub(super) fn put(&self, request: Request) -> Option<Receiver<Answer>> {
        if self.is_busy.swap(true, Ordering::AcqRel) {
            return None;
        }
        let (answer, answered) = bounded(1);
        *self.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(Job { request, answer });
        Some(answered)
    }

    /// Does what lies there, if anything does.
    pub fn work(&self, answer: impl FnOnce(&Request) -> Answered) {
        let job = self.job.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(job) = job {
            // Who asked may have left.
            let answer = answer(&job.request).map_or_else(Answer::Error, Answer::Apply);
            // Before the answer: who has it may ask again at once.
            self.is_busy.store(false, Ordering::Release);
            let _ = job.answer.send(answer);
        }
    }
}

/// Asks the daemon at `path` to apply a configuration.
pub fn ask_apply(path: &Path, request: Request) -> Result<Report, AskError> {
    match ask(path, &super::Request::Apply { apply: request }, APPLY_DEADLINE)? {
        Answer::Apply(report) => Ok(report),
        other => Err(wrong_answer(path, other)),
    }
}
