//! What control and a worker tell each other about a disk's rings.
//!
//! Control builds rings and takes them apart; a worker only drives them. What a worker lets go of
//! (rings, and with them mappings and descriptors) travels back, so that freeing it is not the
//! worker's time.

use crate::virtio::queue::Queue;
use crossbeam::channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use outboard_dma::{EventFd, Signaller};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Wakes the worker that owns a disk, when it sleeps.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// A queue and its descriptors, ready to be driven.
#[derive(Debug)]
pub struct Ring {
    /// The queue.
    pub queue: Queue,
    /// What the driver signals when it has added something; `None`: the queue must be polled.
    pub kick: Option<EventFd>,
    /// What the driver wants signalled; `None`: it polls.
    pub call: Option<Signaller>,
    /// What to signal when the ring is broken.
    pub error: Option<Signaller>,
}

/// From control to the worker.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a box would be the worker's to free")]
pub enum DiskMessage {
    /// Drive this ring.
    Start {
        /// Which of the disk's rings.
        ring: u16,
        /// The ring.
        with: Ring,
    },
    /// Signal this descriptor from now on.
    SetCall {
        /// Which of the disk's rings.
        ring: u16,
        /// The new descriptor.
        call: Option<Signaller>,
    },
    /// Take nothing more from the ring, end what it has in flight, and give it back.
    Stop {
        /// Which of the disk's rings.
        ring: u16,
    },
}

/// From the worker to control: exactly one per message but `Start`.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a worker must not free what it gives back")]
pub enum DiskReturn {
    /// The answer to `Stop`, after the last I/O has ended; `None` when the ring was not started.
    Stopped {
        /// Which of the disk's rings.
        ring: u16,
        /// The ring, to take apart.
        with: Option<Ring>,
    },
    /// The answer to `SetCall`: what is no longer used.
    Call {
        /// The descriptor before (or the new one, when the ring was not started).
        old: Option<Signaller>,
    },
}

/// Messages that may wait in each direction: a stop, a start and a new call per ring.
const MESSAGES_PER_RING: usize = 3;

/// Control's end.
#[derive(Debug)]
pub struct DiskControl {
    messages: Sender<DiskMessage>,
    /// What the worker gave back.
    pub returns: Receiver<DiskReturn>,
    pending: Arc<AtomicUsize>,
}

/// The worker's end.
#[derive(Debug)]
pub struct DiskMailbox {
    messages: Receiver<DiskMessage>,
    returns: Sender<DiskReturn>,
    pending: Arc<AtomicUsize>,
}

/// A pair of ends for a disk with `rings` rings.
pub fn mailbox(rings: u16) -> (DiskControl, DiskMailbox) {
    let room = usize::from(rings) * MESSAGES_PER_RING;
    let (messages, inbox) = bounded(room);
    // Twice the room: what is being handled beside what still waits.
    let (outbox, returns) = bounded(2 * room);
    let pending = Arc::new(AtomicUsize::new(0));
    let control = DiskControl { messages, returns, pending: Arc::clone(&pending) };
    (control, DiskMailbox { messages: inbox, returns: outbox, pending })
}

impl DiskControl {
    /// Sends one message; hands it back when the worker has stopped taking messages.
    #[allow(clippy::result_large_err, reason = "what is refused is not lost")]
    pub fn send(&self, message: DiskMessage) -> Result<(), DiskMessage> {
        self.pending.fetch_add(1, Ordering::Release);
        self.messages.try_send(message).map_err(|refused| {
            self.pending.fetch_sub(1, Ordering::Release);
            match refused {
                TrySendError::Full(message) | TrySendError::Disconnected(message) => message,
            }
        })
    }
}

impl DiskMailbox {
    /// The next message, if there is one: one load when there is none.
    #[inline(always)]
    pub fn take(&self) -> Option<DiskMessage> {
        if self.is_empty() {
            return None;
        }
        match self.messages.try_recv() {
            Ok(message) => {
                self.pending.fetch_sub(1, Ordering::Relaxed);
                Some(message)
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
        }
    }

    /// Whether nothing waits.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.pending.load(Ordering::Acquire) == 0
    }

    /// Gives something back. When control is gone it is freed here: the daemon is ending.
    pub fn give(&self, what: DiskReturn) {
        let given = self.returns.try_send(what);
        debug_assert!(!matches!(given, Err(TrySendError::Full(_))), "control sent unasked");
    }
}
