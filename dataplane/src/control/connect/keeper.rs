//! The thread that keeps one remote volume connected.

use super::association::{Association, Epoch, Expected, Patience, associate};
use super::{ANSWER_MAX, ConnectError, FIRST_PAUSE, KEEP_ALIVE_EVERY, LAST_PAUSE, Place, STOP_MAX};
use crate::volume::remote::{LossReason, RemoteControl, RemoteCounters};
use crate::volume::{Geometry, Status};
use outboard_dma::EventFd;
use outboard_rdma::nvmf::identify::Namespace;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a stopping volume is looked at.
const STOP_LOOK: Duration = Duration::from_millis(5);

/// What ended an association.
#[derive(Debug)]
enum Ended {
    Stopped,
    /// The worker lost the I/O queue.
    Io(LossReason),
    /// The admin queue failed.
    Admin(String),
}

/// What the thread knows.
pub(super) struct Keeper {
    pub place: Place,
    /// What the target must have, once it was seen.
    pub namespace: Option<Namespace>,
    /// What it must have before.
    pub stated: Option<Geometry>,
    pub quiesce: Duration,
    /// The last epoch that the target gave.
    pub epoch: Epoch,
    pub control: RemoteControl,
    pub counters: Arc<RemoteCounters>,
    pub stop: Arc<EventFd>,
    pub state: Arc<Mutex<String>>,
}

impl Keeper {
    /// Keeps the volume connected until it is told to stop; then ends its I/O.
    pub fn run(mut self, first: Option<Association>) {
        let Place { address, nqn, .. } = self.place;
        let mut association = first.or_else(|| self.reconnect(Instant::now()));
        while let Some(mut current) = association {
            tracing::info!("connected to {address}, subsystem {nqn}");
            self.counters.fences.add(u64::from(current.epoch != Epoch::NONE));
            self.epoch = current.epoch;
            self.say("ready".into());
            let why = match self.watch(&mut current) {
                // While `current` lives: without its admin queue the target would close the rest.
                Ended::Stopped => return self.end(),
                Ended::Io(reason) => reason.to_string(),
                Ended::Admin(why) => why,
            };
            // If the worker has not found out yet, it does now, and gives the link back.
            let lost = current.abort();
            tracing::warn!("lost {address}, subsystem {nqn}: {why}");
            self.say(format!("lost the connection: {why}"));
            association = self.reconnect(lost);
        }
        self.end();
    }

    /// Gives I/O in flight a moment, and aborts the rest.
    fn end(&self) {
        let deadline = Instant::now() + STOP_MAX;
        let is_connected = self.counters.connected.get() == 1;
        while is_connected && self.counters.in_flight.get() > 0 && Instant::now() < deadline {
            std::thread::sleep(STOP_LOOK);
        }
        self.control.end_all(Status::Aborted);
    }

    /// Sends keep-alives until something ends.
    fn watch(&self, association: &mut Association) -> Ended {
        let mut due = Instant::now() + KEEP_ALIVE_EVERY;
        loop {
            let left = due.saturating_duration_since(Instant::now());
            let socket = association.socket.as_fd();
            let [is_stopped, is_readable] = match self.wait(Some(socket), left) {
                Ok(ready) => ready,
                Err(error) => return Ended::Admin(format!("cannot wait: {error}")),
            };
            if is_stopped {
                return Ended::Stopped;
            }
            while let Some(lost) = self.control.take_lost() {
                // The link before this one may come back only now.
                if lost.link.number == association.number {
                    return Ended::Io(lost.reason);
                }
            }
            let outcome = if is_readable {
                association.receive().inspect(|is_answered| {
                    if *is_answered {
                        due = Instant::now() + KEEP_ALIVE_EVERY;
                    }
                })
            } else if Instant::now() >= due {
                due = Instant::now() + ANSWER_MAX;
                association.keep_alive().map(|()| false)
            } else {
                Ok(false)
            };
            if let Err(error) = outcome {
                return Ended::Admin(format!("admin queue: {error}"));
            }
        }
    }

    /// Connects again, however long it takes; `None`: there is nothing more to do. Since `lost`
    /// nothing of the past can be delivered.
    fn reconnect(&mut self, lost: Instant) -> Option<Association> {
        let mut pause = Duration::ZERO;
        let mut told = String::new();
        loop {
            let [is_stopped, _] = self.wait(None, pause).unwrap_or([true, false]);
            if is_stopped {
                return None;
            }
            // Links that the worker gave back since are closed here.
            while self.control.take_lost().is_some() {}
            pause = (pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
            let error = match self.attempt(lost) {
                Ok(association) => return Some(association),
                Err(error) => error,
            };
            // Before what waits for it ends: who asks why finds the reason.
            let text = error.to_string();
            self.say(text.clone());
            match error {
                ConnectError::Changed { .. } | ConnectError::Geometry { .. } => {
                    self.control.end_all(Status::MediumReplaced);
                }
                ConnectError::Stale { .. } => {
                    self.counters.stale_refusals.add(1);
                    self.control.end_all(Status::Stale);
                }
                _ => {}
            }
            let is_final = matches!(error, ConnectError::Stale { .. });
            // A target may be away for days: what has been said is not said again.
            if text != told {
                let again = if is_final { "" } else { "; trying again" };
                tracing::warn!("{text}{again}");
                told.clone_from(&text);
            }
            if is_final {
                let _ = self.wait(None, Duration::MAX);
                return None;
            }
        }
    }

    fn attempt(&mut self, lost: Instant) -> Result<Association, ConnectError> {
        let place = &self.place;
        let expected = match (&self.namespace, self.stated) {
            (Some(namespace), _) => Expected::Namespace(namespace),
            (None, Some(stated)) => Expected::Geometry(stated),
            (None, None) => Expected::Anything,
        };
        let patience = Patience::new(&self.stop);
        let (association, mut link, namespace) = associate(place, expected, self.epoch, &patience)?;
        link.changes_from_ns = association.changes_from_ns(self.quiesce, lost);
        if self.control.hand_over(link) {
            let is_first = self.namespace.replace(namespace).is_none();
            self.counters.reconnects.add(u64::from(!is_first));
            return Ok(association);
        }
        let source = io::Error::from(ErrorKind::ResourceBusy);
        Err(ConnectError::Prepare { address: place.address, source })
    }

    /// Waits for the stop, a lost link, the admin socket, or the time: whether it is the stop,
    /// and whether the socket has something.
    fn wait(&self, socket: Option<BorrowedFd>, time: Duration) -> io::Result<[bool; 2]> {
        // The lost bell is looked at by the caller in any case.
        let mut fds = [
            PollFd::new(&*self.stop, PollFlags::IN),
            PollFd::new(self.control.lost_bell(), PollFlags::IN),
            PollFd::from_borrowed_fd(socket.unwrap_or(self.stop.as_fd()), PollFlags::IN),
        ];
        let tv_sec = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let timeout = Timespec { tv_sec, tv_nsec: i64::from(time.subsec_nanos()) };
        // While reconnecting, a link that comes back is no reason to hurry.
        let watched = if socket.is_some() { &mut fds[..] } else { &mut fds[..1] };
        match poll(watched, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_readable = socket.is_some() && !fds[2].revents().is_empty();
        Ok([!fds[0].revents().is_empty(), is_readable])
    }

    fn say(&self, state: String) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}
