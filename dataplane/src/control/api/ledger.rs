//! `{"ledger":{"seconds":N}}`: a look at where packets and I/Os spend their time.
//!
//! Workers keep ledgers for N seconds, then the answer comes. 0: what a daemon that always keeps
//! them (`ledger` in `[runtime]`) has found since the last look. One look at a time; only root and
//! the daemon's own user may ask.

use super::{Answer, AskError, ask, wrong_answer};
use crate::ledger::Report;
use crossbeam::channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The longest look.
pub const SECONDS_MAX: u32 = 300;
/// How long an answer may take beyond the look itself: an apply may be under way.
pub const PATIENCE: Duration = super::apply::APPLY_DEADLINE;

/// How long is to be looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// In seconds, up to [`SECONDS_MAX`].
    pub seconds: u32,
}

/// A look that somebody waits for.
#[derive(Debug)]
pub struct Look {
    /// How long.
    pub seconds: u32,
    answer: Sender<Answer>,
    is_busy: Arc<AtomicBool>,
}

impl Look {
    /// Ends it. Who asked may have left.
    pub fn tell(self, outcome: Result<Report, String>) {
        let answer = outcome.map_or_else(Answer::Error, Answer::Ledger);
        // Who has the answer may ask for the next look at once.
        self.is_busy.store(false, Ordering::Release);
        let _ = self.answer.send(answer);
    }
}

impl Drop for Look {
    /// Without an answer, the daemon ends.
    fn drop(&mut self) {
        self.is_busy.store(false, Ordering::Release);
    }
}

/// Where the socket's thread leaves a look for control.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    next: Arc<Mutex<Option<Look>>>,
    is_busy: Arc<AtomicBool>,
}

impl Looks {
    /// Leaves one, or says what is wrong.
    pub(super) fn put(&self, request: Request) -> Result<Receiver<Answer>, String> {
        let seconds = request.seconds;
        if seconds > SECONDS_MAX {
            return Err(format!("a look of {seconds} s is too long; {SECONDS_MAX} at most"));
        }
        if self.is_busy.swap(true, Ordering::AcqRel) {
            return Err("another look is under way; try again when it has ended".into());
        }
        let (answer, answered) = bounded(1);
        let look = Look { seconds, answer, is_busy: Arc::clone(&self.is_busy) };
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(look);
        Ok(answered)
    }

    /// The look that lies there.
    pub fn take(&self) -> Option<Look> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Asks the daemon at `path` for a look.
pub fn ask_ledger(path: &Path, seconds: u32) -> Result<Report, AskError> {
    let timeout = PATIENCE + Duration::from_secs(seconds.into());
    match ask(path, &super::Request::Ledger { ledger: Request { seconds } }, timeout)? {
        Answer::Ledger(report) => Ok(report),
        other => Err(wrong_answer(path, other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_look_at_a_time_and_none_too_long() {
        let looks = Looks::default();
        assert!(looks.put(Request { seconds: SECONDS_MAX + 1 }).unwrap_err().contains("too long"));
        let answered = looks.put(Request { seconds: SECONDS_MAX }).unwrap();
        assert!(looks.put(Request { seconds: 1 }).unwrap_err().contains("under way"));
        let look = looks.take().unwrap();
        assert!(looks.take().is_none() && look.seconds == SECONDS_MAX);
        look.tell(Ok(Report::default()));
        assert!(matches!(answered.recv(), Ok(Answer::Ledger(_))));
        // One that nobody answers, because the daemon ends, is over as well.
        let answered = looks.put(Request { seconds: 1 }).unwrap();
        drop(looks.take());
        assert!(answered.recv().is_err() && looks.put(Request { seconds: 1 }).is_ok());
    }
}
