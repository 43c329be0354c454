//! A worker's network room: port queues, the switch, the ways to other workers.
//!
//! Conservation: every packet received here leaves through `tx`, crosses to a peer, is held for
//! an unresolved next hop, or ends with a counted reason.

mod stages;

use crate::capture::{Stage, Tap};
use crate::clock;
use crate::config::diff::PORT_NUMBERS_MAX;
use crate::config::plan::WORKER_QUEUES_MAX;
use crate::counters::PortCounters;
use crate::drop::DropReason;
use crate::ledger::Ledgers;
use crate::packet::{BURST, Burst, Packet, PortId};
use crate::port::peer::Peer;
use crate::port::{AnyPort, Port};
use crate::switch::{NextHopId, Switch, Tables, Verdict};
use arrayvec::ArrayVec;
use outboard_dma::{FreeList, PollList};
use std::sync::Arc;

/// Packets held for one next hop that the kernel has not resolved yet (RFC 1122, 2.3.2.2 asks
/// for at least one).
pub const HELD_PER_HOP: usize = 3;
/// Packets held for all next hops together.
pub const HELD: usize = 48;
/// For how long a packet is held.
pub const HELD_NS: u64 = 3_000_000_000;

/// Taps of one worker: one of each capture.
pub const TAPS: usize = 4;

/// Queues that a worker has room for: those of a plan, and those of the plan that replaces it.
const QUEUES_MAX: usize = 2 * WORKER_QUEUES_MAX;

/// Where packets for a port go from this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A queue of this worker: an index into its queues.
    Queue(u16),
    /// The worker (index) that owns a queue of that port.
    Peer(u16),
    /// No port has the number.
    Nowhere,
}

#[allow(clippy::vec_box, reason = "a tap that leaves goes back in the box it came in")]
type Taps = ArrayVec<Box<Tap>, TAPS>;

/// One port queue that the worker owns.
#[derive(Debug)]
pub struct Queue {
    /// The port that it belongs to.
    pub id: PortId,
    /// The way in and out.
    pub port: AnyPort,
    out: Burst,
    /// Packets at the front of `out` that taps have seen.
    shown: usize,
}

impl Queue {
    /// Sends what the port takes of `out`, from its front.
    #[inline]
    fn send(&mut self, taps: &mut Taps, now_ns: u64, free: &mut FreeList) {
        if !taps.is_empty() {
            show(taps, now_ns, self.id, Stage::Out, &self.out[self.shown..]);
        }
        self.port.tx(&mut self.out, free);
        self.shown = self.out.len();
    }

    /// A queue of port `id`.
    pub fn new(id: PortId, port: AnyPort) -> Queue {
        Queue { id, port, out: Burst::new(), shown: 0 }
    }
}

/// A port for one worker: control makes it, the worker takes out what it is to use. The same
/// travels back when a port is removed, with what the worker no longer uses.
#[derive(Debug)]
pub struct PortParts {
    /// The port's number.
    pub id: PortId,
    /// Where this worker counts for it.
    pub counters: Arc<PortCounters>,
    /// The worker that other workers send the port's packets to.
    pub owner: u16,
    /// The queues that this worker owns.
    pub queues: Vec<Queue>,
}

/// Ports, switch and peers of one worker.
#[derive(Debug)]
pub struct Network {
    queues: Vec<Queue>,
    exits: Vec<Exit>,
    peers: Vec<Option<Peer>>,
    switch: Switch,
    held: ArrayVec<Held, HELD>,
    /// By port number: this worker's counts, its own so that each has one writer.
    counters: Vec<Arc<PortCounters>>,
    /// What a number counts with that no port has had yet.
    nobody: Arc<PortCounters>,
    /// The port that leaves once the packets that were decided for it have arrived.
    leaving: Option<Box<PortParts>>,
    /// For the port that leaves: packets that each peer had sent when it began to.
    under_way: Vec<usize>,
    taps: Taps,
    /// When the turn began.
    now_ns: u64,
    /// When the last look for packets began.
    looked_ns: u64,
    /// Where packets spent their time, while somebody wants to know.
    ledger: Option<Box<Ledgers>>,
}

#[derive(Debug)]
struct Held {
    packet: Packet,
    hop: NextHopId,
    until_ns: u64,
}

impl Network {
    /// `exits` and `counters` are indexed by port number, `peers` by worker (`None` for itself).
    pub fn new(
        mut queues: Vec<Queue>,
        mut exits: Vec<Exit>,
        peers: Vec<Option<Peer>>,
        switch: Switch,
        mut counters: Vec<Arc<PortCounters>>,
    ) -> Network {
        assert_eq!(exits.len(), counters.len());
        queues.reserve_exact(QUEUES_MAX.saturating_sub(queues.len()));
        exits.reserve_exact(PORT_NUMBERS_MAX.saturating_sub(exits.len()));
        counters.reserve_exact(PORT_NUMBERS_MAX.saturating_sub(counters.len()));
        Network {
            queues,
            exits,
            under_way: vec![0; peers.len()],
            peers,
            switch,
            held: ArrayVec::new(),
            counters,
            nobody: Arc::default(),
            leaving: None,
            taps: Taps::new(),
            now_ns: 0,
            looked_ns: 0,
            ledger: None,
        }
    }

    /// Lets a tap look at packets from now on; gives it back when there are [`TAPS`] already.
    pub fn add_tap(&mut self, tap: Box<Tap>) -> Option<Box<Tap>> {
        self.taps.try_push(tap).err().map(|full| full.element())
    }

    /// Takes the tap of a capture out.
    pub fn remove_tap(&mut self, id: u64) -> Option<Box<Tap>> {
        let index = self.taps.iter().position(|tap| tap.id == id)?;
        Some(self.taps.swap_remove(index))
    }

    /// Takes a port in. Nothing leads to it before tables that know it.
    pub fn add_port(&mut self, parts: &mut PortParts) {
        let number = usize::from(parts.id.0);
        assert!(number < PORT_NUMBERS_MAX && self.queues.len() + parts.queues.len() <= QUEUES_MAX);
        while self.exits.len() <= number {
            self.exits.push(Exit::Nowhere);
            self.counters.push(Arc::clone(&self.nobody));
        }
        std::mem::swap(&mut self.counters[number], &mut parts.counters);
        self.exits[number] = Exit::Peer(parts.owner);
        self.queues.append(&mut parts.queues);
        self.find_exits();
    }

    /// Begins to remove a port that no worker's tables know any more. `parts` come back from
    /// [`left`](Self::left) when everything that was decided for it has been sent.
    pub fn remove_port(&mut self, parts: Box<PortParts>) {
        assert!(self.leaving.is_none(), "control removes one port at a time");
        for (count, peer) in self.under_way.iter_mut().zip(&self.peers) {
            *count = peer.as_ref().map_or(0, Peer::waiting);
        }
        self.leaving = Some(parts);
    }

    /// The port that has left, with its queues, to be closed elsewhere.
    pub fn left(&mut self, free: &mut FreeList) -> Option<Box<PortParts>> {
        if self.leaving.is_none() || self.under_way.iter().any(|count| *count > 0) {
            return None;
        }
        let mut parts = self.leaving.take()?;
        while let Some(index) = self.queues.iter().position(|queue| queue.id == parts.id) {
            let mut queue = self.queues.remove(index);
            queue.send(&mut self.taps, self.now_ns, free);
            for packet in std::mem::take(&mut queue.out) {
                self.drop(packet, DropReason::PortDown, free);
            }
            parts.queues.push(queue);
        }
        self.exits[usize::from(parts.id.0)] = Exit::Nowhere;
        self.find_exits();
        Some(parts)
    }

    /// Whether a port is leaving.
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// Own queues come first: for a port with several here, the first of them.
    fn find_exits(&mut self) {
        for (index, queue) in self.queues.iter().enumerate().rev() {
            self.exits[usize::from(queue.id.0)] = Exit::Queue(index as u16);
        }
    }

    /// One round: receive, decide, send. Returns the packets moved.
    pub fn turn(&mut self, now_ns: u64, free: &mut FreeList) -> usize {
        self.now_ns = now_ns;
        let mut moved = 0;
        for index in 0..self.queues.len() {
            let mut burst = Burst::new();
            self.queues[index].port.rx(&mut burst, free);
            if !self.taps.is_empty() {
                show(&mut self.taps, now_ns, self.queues[index].id, Stage::In, &burst);
            }
            moved += burst.len();
            if self.ledger.is_some() {
                stages::received(&mut burst, self.looked_ns, now_ns);
            }
            self.decide(now_ns, burst, now_ns + HELD_NS, free);
        }
        moved += self.receive_from_peers(free);
        if !self.held.is_empty() {
            self.expire_held(now_ns, free);
        }
        for index in 0..self.queues.len() {
            self.send(index, free);
        }
        for peer in self.peers.iter_mut().flatten() {
            peer.settle(free, false);
        }
        self.looked_ns = now_ns;
        moved
    }

    /// Takes new tables and gives the old ones back, to be freed elsewhere. Held packets get
    /// another decision, and no more time than they had.
    pub fn set_tables(
        &mut self,
        tables: Arc<Tables>,
        now_ns: u64,
        free: &mut FreeList,
    ) -> Arc<Tables> {
        let old = self.switch.set_tables(tables);
        self.decide_held(now_ns, free);
        old
    }

    /// The switch, to be saved.
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    /// Takes another switch, as one that was saved and loaded, and gives the old one back, to be
    /// freed elsewhere. Held packets get another decision.
    pub fn set_switch(&mut self, switch: Switch, now_ns: u64, free: &mut FreeList) -> Switch {
        let old = std::mem::replace(&mut self.switch, switch);
        self.decide_held(now_ns, free);
        old
    }

    fn decide_held(&mut self, now_ns: u64, free: &mut FreeList) {
        for Held { packet, until_ns, .. } in std::mem::take(&mut self.held) {
            self.decide(now_ns, Burst::from_iter([packet]), until_ns, free);
        }
    }

    /// Tells the tenants behind this worker's queues of their gateway.
    pub fn greet(&mut self, free: &mut FreeList) {
        for index in 0..self.queues.len() {
            let port = self.queues[index].id;
            // A port of several queues is told by the worker's first.
            if self.queues[..index].iter().any(|queue| queue.id == port) {
                continue;
            }
            for packet in self.switch.greet(port, free) {
                self.push(packet, port, free);
            }
        }
    }

    /// Whether a round would find something, asked before sleeping; also returns every frame
    /// that is owed.
    pub fn before_sleep(&mut self, free: &mut FreeList) -> bool {
        for peer in self.peers.iter_mut().flatten() {
            peer.settle(free, true);
        }
        self.peers.iter().flatten().any(Peer::is_waiting)
    }

    /// The way in and out of the `nth` own queue of a port, to put another one there.
    pub fn queue_mut(&mut self, port: PortId, nth: usize) -> Option<&mut AnyPort> {
        let own = self.queues.iter_mut().filter(|queue| queue.id == port);
        own.map(|queue| &mut queue.port).nth(nth)
    }

    /// The way in and out of queue `index`, for whoever is the far side of a port in memory.
    pub fn port_mut(&mut self, index: usize) -> &mut AnyPort {
        &mut self.queues[index].port
    }

    /// Whether packets wait for room in an outgoing queue, for the device or for a next hop.
    pub fn has_backlog(&self) -> bool {
        let waits = |queue: &Queue| !queue.out.is_empty() || queue.port.has_unsent();
        self.queues.iter().any(waits) || !self.held.is_empty()
    }

    /// Whether a port has no descriptor to sleep on.
    pub fn must_poll(&self) -> bool {
        self.queues.iter().any(|queue| queue.port.must_poll())
    }

    /// Adds what becomes readable when there is something to receive.
    pub fn add_fds(&self, poll: &mut PollList) {
        for fd in self.queues.iter().filter_map(|queue| queue.port.wake_fd()) {
            poll.add(fd, false);
        }
    }

    /// Ends the packets that other workers sent here and those that are held, and returns the
    /// frames that are owed. When no worker runs, nothing comes after this.
    pub fn drain(&mut self, free: &mut FreeList) {
        for held in std::mem::take(&mut self.held) {
            self.drop(held.packet, DropReason::Stopping, free);
        }
        for worker in 0..self.peers.len() {
            while let Some((packet, _)) = self.peers[worker].as_mut().and_then(Peer::receive) {
                self.drop(packet, DropReason::Stopping, free);
            }
        }
        for peer in self.peers.iter_mut().flatten() {
            peer.settle(free, true);
        }
    }

    /// Sends what still can be sent and closes every queue; frames go to `free`.
    pub fn close(&mut self, free: &mut FreeList) {
        for peer in self.peers.iter_mut().flatten() {
            peer.settle(free, true);
        }
        for index in 0..self.queues.len() {
            let queue = &mut self.queues[index];
            queue.send(&mut self.taps, self.now_ns, free);
            for packet in std::mem::take(&mut queue.out) {
                self.drop(packet, DropReason::Stopping, free);
            }
            self.queues[index].port.close(free);
        }
    }

    /// Decides a burst and does as decided; what has to wait for a next hop waits until `until_ns`.
    fn decide(&mut self, now_ns: u64, mut burst: Burst, until_ns: u64, free: &mut FreeList) {
        if burst.is_empty() {
            return;
        }
        let mut verdicts: ArrayVec<Verdict, BURST> = ArrayVec::new();
        self.switch.decide(now_ns, &mut burst, free, &mut verdicts);
        if self.ledger.is_some() {
            stages::decided(&mut burst);
        }
        for (packet, verdict) in burst.into_iter().zip(verdicts) {
            match verdict {
                Verdict::Forward(port) => self.push(packet, port, free),
                Verdict::Drop(reason) => self.drop(packet, reason, free),
                Verdict::Unresolved(hop) => self.hold(Held { packet, hop, until_ns }, free),
            }
        }
    }

    fn push(&mut self, packet: Packet, port: PortId, free: &mut FreeList) {
        match self.exits[usize::from(port.0)] {
            Exit::Queue(index) => {
                if self.queues[usize::from(index)].out.is_full() {
                    self.send(index.into(), free);
                }
                let queue = &mut self.queues[usize::from(index)];
                if let Err(full) = queue.out.try_push(packet) {
                    if planted!("network-drop-not-counted") {
                        return full.element().into_chain().free(free);
                    }
                    self.drop(full.element(), DropReason::TxQueueFull, free);
                }
            }
            Exit::Peer(worker) => {
                let peer = self.peers[usize::from(worker)].as_mut();
                let peer = peer.expect("an exit names another worker");
                if let Err(packet) = peer.send(packet, port) {
                    self.drop(packet, DropReason::PeerQueueFull, free);
                }
            }
            Exit::Nowhere => self.drop(packet, DropReason::PortDown, free),
        }
    }

    /// Sends from the burst of queue `index`.
    #[inline]
    fn send(&mut self, index: usize, free: &mut FreeList) {
        let queue = &mut self.queues[index];
        let (taps, now_ns) = (&mut self.taps, self.now_ns);
        match &mut self.ledger {
            None => queue.send(taps, now_ns, free),
            Some(ledger) => {
                stages::send(queue, ledger, |queue| queue.send(taps, now_ns, free));
            }
        }
    }

    fn receive_from_peers(&mut self, free: &mut FreeList) -> usize {
        let mut moved = 0;
        for worker in 0..self.peers.len() {
            for _ in 0..BURST {
                let next = self.peers[worker].as_mut().and_then(Peer::receive);
                let Some((mut packet, port)) = next else { break };
                if self.ledger.is_some() {
                    packet.stamp.crossed(clock::now_ns());
                }
                self.under_way[worker] = self.under_way[worker].saturating_sub(1);
                // Decided by the other worker: `port` is one of ours.
                self.push(packet, port, free);
                moved += 1;
            }
        }
        moved
    }

    fn hold(&mut self, held: Held, free: &mut FreeList) {
        let same = self.held.iter().filter(|other| other.hop == held.hop).count();
        if same == HELD_PER_HOP || self.held.is_full() {
            return self.drop(held.packet, DropReason::NextHopUnresolved, free);
        }
        self.held.push(held);
    }

    fn expire_held(&mut self, now_ns: u64, free: &mut FreeList) {
        while let Some(index) = self.held.iter().position(|held| held.until_ns <= now_ns) {
            let mut packet = self.held.remove(index).packet;
            match self.switch.give_up(now_ns, &mut packet, free) {
                Verdict::Forward(port) => self.push(packet, port, free),
                Verdict::Drop(reason) => self.drop(packet, reason, free),
                Verdict::Unresolved(_) => unreachable!("giving up ends a packet"),
            }
        }
    }

    fn drop(&mut self, packet: Packet, reason: DropReason, free: &mut FreeList) {
        for tap in self.taps.iter_mut().filter(|tap| tap.is_on(packet.ingress, Stage::Drop)) {
            tap.see(self.now_ns, Stage::Drop, &packet, Some(reason));
        }
        let counters = &self.counters[usize::from(packet.ingress.0)];
        if reason == DropReason::PartialChecksum {
            counters.partial_checksums.add(1);
        }
        packet.drop_with(reason, &counters.drops, free);
    }
}

/// Shows packets of a port to the taps that look at it.
#[cold]
fn show(taps: &mut Taps, now_ns: u64, port: PortId, stage: Stage, packets: &[Packet]) {
    for tap in taps.iter_mut().filter(|tap| tap.is_on(port, stage)) {
        packets.iter().for_each(|packet| tap.see(now_ns, stage, packet, None));
    }
}
