//! The network room's part of the stage ledger: nothing of it runs while there is none.
//!
//! Packets that end here (drops) and packets made here are not told of; those that waited for a
//! next hop are, as long in the stage of deciding.

use super::{Network, Queue};
use crate::clock;
use crate::ledger::{Entry, Kind, Ledgers, Stamp, Subject};
use crate::packet::{BURST, Burst};
use arrayvec::ArrayVec;

impl Network {
    /// Keeps this ledger from now on, or none; the one before comes back.
    pub fn keep_ledger(&mut self, ledger: Option<Box<Ledgers>>) -> Option<Box<Ledgers>> {
        if let Some(ledger) = &ledger {
            self.looked_ns = self.looked_ns.max(ledger.since_ns);
        }
        std::mem::replace(&mut self.ledger, ledger)
    }

    /// Whether a ledger is kept.
    pub fn has_ledger(&self) -> bool {
        self.ledger.is_some()
    }

    /// The worker was asleep until now: nothing was there to be seen before.
    pub fn woken(&mut self, now_ns: u64) {
        self.looked_ns = now_ns;
    }
}

/// Stamps what was received. The look before began at `looked_ns`, this one at `seen_ns`.
#[cold]
pub(super) fn received(burst: &mut Burst, looked_ns: u64, seen_ns: u64) {
    let stamp = Stamp::received(looked_ns, seen_ns, clock::now_ns());
    burst.iter_mut().for_each(|packet| packet.stamp = stamp);
}

/// Ends the deciding of a burst.
#[cold]
pub(super) fn decided(burst: &mut Burst) {
    let now_ns = clock::now_ns();
    burst.iter_mut().for_each(|packet| packet.stamp.decided(now_ns));
}

/// Sends by `send`, and records what was sent.
#[cold]
pub(super) fn send(queue: &mut Queue, ledger: &mut Ledgers, send: impl FnOnce(&mut Queue)) {
    let sent: ArrayVec<(Stamp, u16, u32), BURST> = queue
        .out
        .iter()
        .map(|packet| (packet.stamp, packet.ingress.0, packet.bytes() as u32))
        .collect();
    let from_ns = if sent.is_empty() { 0 } else { clock::now_ns() };
    send(queue);
    let count = sent.len() - queue.out.len();
    if count == 0 {
        return;
    }
    let until_ns = clock::now_ns();
    for (stamp, from, bytes) in sent.into_iter().take(count).filter(|sent| sent.0.is_timed()) {
        let (began_ns, stages_ns) = stamp.sent(from_ns, until_ns);
        let subject = Subject::Packet { from, to: queue.id.0 };
        ledger.record(Kind::Packet, &Entry { began_ns, stages_ns, subject, bytes });
    }
}
