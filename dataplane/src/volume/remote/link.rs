//! What control and the worker exchange about a remote volume's connection.

use crate::counters::{Counter, Histogram};
use crate::volume::Status;
use crossbeam::channel::{Receiver, Sender};
use outboard_dma::EventFd;
use outboard_rdma::nvmf::Fault;
use outboard_rdma::nvmf::fence::Boot;
use outboard_rdma::nvmf::initiator::Queue;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A connected I/O queue and its socket (non-blocking, without Nagle's delay). Control hands it
/// over only when the past is fenced off, or may be waited out until `changes_from_ns`.
#[derive(Debug)]
pub struct Link {
    /// The connection.
    pub socket: TcpStream,
    /// The engine, ready for commands.
    pub queue: Queue,
    /// Control's own number of it.
    pub number: u64,
    /// What one command may transfer at most; `None`: the protocol's limit.
    pub max_transfer_bytes: Option<u64>,
    /// From when on I/O that changes the content may be sent, on the worker's clock: a target
    /// that does not fence may still work on what it was sent before.
    pub changes_from_ns: u64,
    /// What the target's machine drew when it started; zeros where it does not tell.
    pub boot: Boot,
}

/// Why a connection was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossReason {
    /// The target closed it.
    Closed,
    /// The socket failed.
    Socket(ErrorKind),
    /// The target broke the protocol, or said that we did.
    Fault(Fault),
    /// The target began a PDU, and nothing more came for [`STALL_NS`](super::STALL_NS).
    Stalled,
    /// A fence has ended what this connection may do.
    FencedOut,
    /// Control gave the volume up.
    GivenUp,
}

impl std::fmt::Display for LossReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LossReason::Closed => f.write_str("the target closed it"),
            LossReason::Socket(kind) => write!(f, "{kind}"),
            LossReason::Fault(fault) => write!(f, "protocol violation: {}", fault.name()),
            LossReason::Stalled => f.write_str("the target stopped in the middle of a PDU"),
            LossReason::FencedOut => f.write_str("the target has fenced this connection out"),
            LossReason::GivenUp => f.write_str("the volume was given up"),
        }
    }
}

/// A link that goes back to control.
#[derive(Debug)]
pub struct Lost {
    /// To be closed and freed where that may take time.
    pub link: Link,
    /// Why.
    pub reason: LossReason,
}

/// What control tells the worker.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "few travel, and a box would be freed in a turn")]
pub(super) enum Word {
    /// Go on over this connection.
    Use(Link),
    /// Without a connection everything ends so, at once.
    End(Status),
}

/// Control's side of a remote volume.
#[derive(Debug)]
pub struct RemoteControl {
    pub(super) words: Sender<Word>,
    /// Words sent so far: the worker's way to see that there is one without a system call.
    pub(super) sent: Arc<AtomicU32>,
    pub(super) bell: Arc<EventFd>,
    pub(super) lost: Receiver<Lost>,
    pub(super) lost_bell: Arc<EventFd>,
    pub(super) counters: Arc<RemoteCounters>,
}

impl RemoteControl {
    /// Hands a connected link to the worker; `false`: the worker has not taken the last one, or
    /// the volume is gone.
    pub fn hand_over(&self, link: Link) -> bool {
        self.send(Word::Use(link))
    }

    /// Ends everything in flight and in line as `status`, and everything new at once, until a link
    /// is handed over; `false` as for that.
    pub fn end_all(&self, status: Status) -> bool {
        self.send(Word::End(status))
    }

    fn send(&self, word: Word) -> bool {
        let is_sent = self.words.try_send(word).is_ok();
        if is_sent {
            self.sent.fetch_add(1, Ordering::Release);
            self.bell.signal();
        }
        is_sent
    }

    /// Takes back a link that was lost.
    pub fn take_lost(&self) -> Option<Lost> {
        self.lost_bell.drain();
        self.lost.try_recv().ok()
    }

    /// Readable when a link was lost.
    pub fn lost_bell(&self) -> &EventFd {
        &self.lost_bell
    }

    /// What the volume counts.
    pub fn counters(&self) -> Arc<RemoteCounters> {
        Arc::clone(&self.counters)
    }
}

/// What a remote volume counts. The worker writes, but for what control does.
#[derive(Debug, Default)]
pub struct RemoteCounters {
    /// 1 while there is a connection.
    pub connected: Counter,
    /// Connections lost.
    pub losses: Counter,
    /// I/Os that ended because a connection was lost and did not come back in time.
    pub ended_by_loss: Counter,
    /// Data received that did not match its digest; its I/O failed.
    pub digest_errors: Counter,
    /// I/Os in flight now, those in line included.
    pub in_flight: Counter,
    /// I/Os that were in flight on a lost connection and were sent again on the next one.
    pub reissued: Counter,
    /// How long commands took, from being made to their completion.
    pub round_trip: Histogram,
    /// The longest time without a connection, in milliseconds.
    pub longest_outage_ms: Counter,
    /// Times that the target's machine had started again and changes may be lost: nothing had
    /// flushed them.
    pub cache_losses: Counter,
    /// Connections made after the first. Control's.
    pub reconnects: Counter,
    /// Epochs that the target gave. Control's.
    pub fences: Counter,
    /// Times that the target refused an epoch of the past. Control's.
    pub stale_refusals: Counter,
}

impl RemoteCounters {
    /// What the connection went through, by name.
    pub fn occurrences(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("losses", self.losses.get()),
            ("reconnects", self.reconnects.get()),
            ("fences", self.fences.get()),
            ("reissued", self.reissued.get()),
            ("ended_by_loss", self.ended_by_loss.get()),
            ("cache_losses", self.cache_losses.get()),
            ("data_digest", self.digest_errors.get()),
            ("stale_refusals", self.stale_refusals.get()),
            ("longest_outage_ms", self.longest_outage_ms.get()),
        ]
        .into_iter()
    }
}
