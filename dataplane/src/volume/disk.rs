//! A disk: a virtio-blk device on the worker that owns its volume.
//!
//! A turn is: [`poll`](Disk::poll) takes control's messages, pops chains within a budget and
//! submits I/Os tagged (owner, slot); the worker reaps the volume and hands every outcome to
//! [`complete`](Disk::complete); [`notify`](Disk::notify) shows the driver what ended, with at
//! most one call per ring. Slots are made at start: nothing here allocates per I/O.
//!
//! What a guest does wrong ends as an error of that request (bad chain), or breaks that ring by
//! name; other rings, disks and workers go on. A ring that stops ends what it has in flight. What
//! cannot end (there is no connection to a remote volume's target, or the volume goes) stays in the
//! list that the front end keeps, if it keeps one, for whoever drives the ring next.
//!
//! Order: when the volume is full, the I/O it refused waits, and nothing behind it is taken, until
//! the volume has room.

use super::{BlockDevice, Done, Full, Io, Latencies, Op, Status, Tag, Timing};
use crate::counters::Counter;
use crate::virtio::blk::{self, BlkKind, BlkRequest, ID_BYTES};
use crate::virtio::fault::{Faults, QueueFault};
use crate::virtio::mailbox::{DiskMailbox, DiskMessage, DiskReturn, Ring};
use crate::virtio::queue::{DescriptorChain, QueueError};
use outboard_dma::{Segment, Segments, Signaller};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

/// I/Os that one disk can have in flight.
pub const SLOTS: u16 = 256;
/// Chains taken from one ring in one turn, and answered at its end: with many more, guest and
/// worker would take turns instead of working at once (bench/RESULTS.md).
pub const BURST: u16 = 8;
/// Data that one turn begins to move; chains behind it wait for the next. A volume in memory
/// copies within the turn: this is about the time that a turn may take.
pub const TURN_BYTES: u64 = 512 << 10;
/// The most rings of one disk: 16 queues, twice while a guest moves to another process.
pub const MAX_RINGS: u16 = 32;

/// What one disk counts.
#[derive(Debug)]
pub struct DiskCounters {
    /// Reads that ended.
    pub reads: Counter,
    /// Bytes read by those that succeeded.
    pub read_bytes: Counter,
    /// Writes that ended.
    pub writes: Counter,
    /// Bytes written by those that succeeded.
    pub written_bytes: Counter,
    /// Flushes that ended.
    pub flushes: Counter,
    /// Discards that ended.
    pub discards: Counter,
    /// Bytes discarded by those that succeeded.
    pub discarded_bytes: Counter,
    /// Write-zeroes that ended.
    pub write_zeroes: Counter,
    /// Bytes zeroed by those that succeeded.
    pub zeroed_bytes: Counter,
    /// Serials told.
    pub ids: Counter,
    /// Times the volume was full.
    pub full: Counter,
    /// Calls to the driver.
    pub calls: Counter,
    /// Rings driven now.
    pub rings: Counter,
    /// I/Os in flight now.
    pub in_flight: Counter,
    /// Requests that a ring which stopped left in the front end's list.
    pub left: Counter,
    /// What drivers got wrong.
    pub faults: Faults,
    /// How long requests took, from being taken off the ring.
    pub latency: Latencies,
    /// How requests ended.
    statuses: [Counter; Status::ALL.len()],
}

impl Default for DiskCounters {
    fn default() -> Self {
        DiskCounters {
            reads: Counter::default(),
            read_bytes: Counter::default(),
            writes: Counter::default(),
            written_bytes: Counter::default(),
            flushes: Counter::default(),
            discards: Counter::default(),
            discarded_bytes: Counter::default(),
            write_zeroes: Counter::default(),
            zeroed_bytes: Counter::default(),
            ids: Counter::default(),
            full: Counter::default(),
            calls: Counter::default(),
            rings: Counter::default(),
            in_flight: Counter::default(),
            left: Counter::default(),
            faults: Faults::default(),
            latency: Latencies::default(),
            statuses: std::array::from_fn(|_| Counter::default()),
        }
    }
}

impl DiskCounters {
    #[inline]
    fn count(&self, op: Op, bytes: u32) {
        let (ended, moved) = match op {
            Op::Read => (&self.reads, &self.read_bytes),
            Op::Write => (&self.writes, &self.written_bytes),
            Op::Discard => (&self.discards, &self.discarded_bytes),
            Op::WriteZeroes => (&self.write_zeroes, &self.zeroed_bytes),
            // A guest has no way to ask for a compare.
            Op::Flush | Op::Compare => return self.flushes.add(1),
        };
        ended.add(1);
        moved.add(u64::from(bytes));
    }

    /// Requests that ended with `status`.
    pub fn status(&self, status: Status) -> u64 {
        self.statuses[status as usize].get()
    }
}

/// A request in flight.
#[derive(Clone, Copy, Debug)]
struct Slot {
    ring: u16,
    head: u16,
    op: Op,
    bytes: u32,
    status: Segment,
    begun_ns: u64,
}

/// A ring being driven.
#[derive(Debug)]
struct Driven {
    with: Ring,
    in_flight: u16,
    stopping: bool,
    told_broken: bool,
}

/// An I/O that the volume had no room for.
#[derive(Debug)]
struct Parked {
    slot: u16,
    op: Op,
    offset_bytes: u64,
    range_bytes: u64,
    segments: Segments,
}

/// A disk of one guest.
#[derive(Debug)]
pub struct Disk {
    owner: u16,
    id: [u8; ID_BYTES],
    mailbox: DiskMailbox,
    rings: Box<[Option<Driven>]>,
    slots: Box<[Option<Slot>]>,
    free: Vec<u16>,
    parked: Option<Parked>,
    chain: DescriptorChain,
    /// Data of the I/Os that this turn has begun.
    turn_bytes: u64,
    /// Rings with results that the driver does not see yet, one bit each.
    dirty: u32,
    /// Rings that stop and have a list to leave requests in, likewise.
    withdrawing: u32,
    /// Where the next turn begins, so that no ring starves another.
    first: u16,
    /// When the turn began.
    now_ns: u64,
    timing: Timing,
    counters: Arc<DiskCounters>,
}

impl Disk {
    /// A disk that tags its I/Os with `owner`, tells guests `name` as its serial (its first 20
    /// bytes) and takes up to `rings` rings from `mailbox`.
    ///
    /// # Panics
    /// When `rings` is 0 or more than [`MAX_RINGS`]: the plan is checked before.
    pub fn new(owner: u16, name: &str, rings: u16, mailbox: DiskMailbox) -> Disk {
        assert!((1..=MAX_RINGS).contains(&rings));
        let mut id = [0; ID_BYTES];
        let len = name.len().min(ID_BYTES);
        id[..len].copy_from_slice(&name.as_bytes()[..len]);
        Disk {
            owner,
            id,
            mailbox,
            rings: (0..rings).map(|_| None).collect(),
            slots: vec![None; usize::from(SLOTS)].into(),
            free: (0..SLOTS).rev().collect(),
            parked: None,
            turn_bytes: 0,
            chain: DescriptorChain::default(),
            dirty: 0,
            withdrawing: 0,
            first: 0,
            now_ns: 0,
            timing: Timing::new(SLOTS),
            counters: Arc::default(),
        }
    }

    /// What this disk counts, for control to read.
    pub fn counters(&self) -> Arc<DiskCounters> {
        Arc::clone(&self.counters)
    }

    /// `Tag::owner` of its I/Os.
    pub fn owner(&self) -> u16 {
        self.owner
    }

    /// Whether it drives no ring and has nothing in flight.
    pub fn is_idle(&self) -> bool {
        self.in_flight() == 0 && self.rings.iter().all(Option::is_none)
    }

    /// I/Os that the volume has, or will have when it has room.
    pub fn in_flight(&self) -> u16 {
        SLOTS - self.free.len() as u16
    }

    /// Takes what control sent, then chains, and submits them to `volume`. Returns how many
    /// messages and chains were taken. [`notify`](Self::notify) must follow in the same turn.
    #[inline]
    pub fn poll(&mut self, now_ns: u64, volume: &mut impl BlockDevice) -> u32 {
        self.now_ns = now_ns;
        let mut work = self.take_messages();
        self.timing.look(now_ns);
        self.turn_bytes = 0;
        if self.withdrawing != 0 {
            self.withdraw(volume);
        }
        if self.parked.is_some() && !self.submit_parked(now_ns, volume) {
            return work;
        }
        let count = self.rings.len() as u16;
        for step in 0..count {
            let ring = (self.first + step) % count;
            work += self.poll_ring(ring, now_ns, volume);
            if self.parked.is_some() {
                break;
            }
        }
        self.first = (self.first + 1) % count;
        work
    }

    /// Ends the request that `done` names. [`notify`](Self::notify) must follow in the same turn.
    ///
    /// # Panics
    /// When no such request is in flight: the volume broke its promise.
    #[inline]
    pub fn complete(&mut self, done: Done) {
        let slot = self.slots[usize::from(done.tag.slot)].take();
        let slot = slot.expect("the volume ended an I/O that this disk did not submit");
        self.free.push(done.tag.slot);
        self.timing.ended(done.tag.slot, done.marks);
        if done.status == Status::Aborted && self.withdrawing & 1 << slot.ring != 0 {
            self.counters.left.add(1);
        } else {
            self.end(slot, done.status);
        }
        let driven = self.rings[usize::from(slot.ring)].as_mut();
        let driven = driven.expect("a ring stays while it has I/Os in flight");
        driven.with.queue.memory().release();
        driven.in_flight -= 1;
        if driven.stopping && driven.in_flight == 0 && driven.with.queue.again() == 0 {
            self.give_back(slot.ring);
        }
        self.counters.in_flight.set(u64::from(self.in_flight()));
    }

    /// Shows drivers what has ended and calls those that want it, once per ring.
    #[inline]
    pub fn notify(&mut self) {
        self.timing.answered();
        while self.dirty != 0 {
            let ring = self.dirty.trailing_zeros() as u16;
            self.dirty &= self.dirty - 1;
            self.publish(ring);
        }
        self.timing.notified();
    }

    /// The times of its I/Os.
    pub fn timing(&mut self) -> &mut Timing {
        &mut self.timing
    }

    /// Asks drivers to kick, because the worker is about to sleep. `true`: there is work (or a
    /// ring that can only be polled), do not sleep. To be called after `notify`.
    pub fn arm(&mut self) -> bool {
        // With an I/O parked or every slot taken, only the volume can bring work.
        let takes = self.parked.is_none() && !self.free.is_empty();
        let mut busy = !self.mailbox.is_empty();
        for driven in self.rings.iter_mut().flatten() {
            if driven.stopping || driven.with.queue.broken().is_some() {
                busy |= takes && driven.with.queue.again() > 0;
                continue;
            }
            let waiting = driven.with.queue.arm();
            busy |= takes && (waiting || driven.with.kick.is_none());
        }
        busy
    }

    /// Takes [`arm`](Self::arm) back: the worker polls again, kicks are a waste.
    pub fn disarm(&mut self) {
        self.timing.woken();
        for driven in self.rings.iter_mut().flatten() {
            driven.with.queue.disarm();
            if let Some(kick) = &driven.with.kick {
                kick.drain();
            }
        }
    }

    /// The descriptors to sleep on, valid until the next turn.
    pub fn wake_fds(&self) -> impl Iterator<Item = RawFd> {
        self.rings.iter().flatten().filter_map(|ring| ring.with.kick.as_ref()?.as_raw_fd().into())
    }

    #[inline]
    fn take_messages(&mut self) -> u32 {
        let mut taken = 0;
        while let Some(message) = self.mailbox.take() {
            taken += 1;
            match message {
                DiskMessage::Start { ring, with } => self.start(ring, with),
                DiskMessage::SetCall { ring, mut call } => {
                    if let Some(driven) = &mut self.rings[usize::from(ring)] {
                        std::mem::swap(&mut driven.with.call, &mut call);
                        // What ended before it may not have been told to anybody.
                        signal(&mut driven.with.call, &self.counters);
                    }
                    self.mailbox.give(DiskReturn::Call { old: call });
                }
                DiskMessage::Stop { ring } => self.stop(ring),
            }
        }
        taken
    }

    fn start(&mut self, ring: u16, mut with: Ring) {
        with.queue.disarm();
        let driven = Driven { with, in_flight: 0, stopping: false, told_broken: false };
        let before = self.rings[usize::from(ring)].replace(driven);
        assert!(before.is_none(), "control started a ring twice");
        self.count_rings();
    }

    fn stop(&mut self, ring: u16) {
        match &mut self.rings[usize::from(ring)] {
            // What a process before this one had taken is in flight as well.
            Some(driven) if driven.in_flight > 0 || driven.with.queue.again() > 0 => {
                driven.stopping = true;
                self.withdrawing |= u32::from(driven.with.queue.is_tracked()) << ring;
            }
            _ => self.give_back(ring),
        }
    }

    /// Has the volume give back what rings that stop have in flight and nobody works on.
    #[cold]
    fn withdraw(&mut self, volume: &mut impl BlockDevice) {
        for (number, slot) in (0..).zip(&self.slots) {
            if slot.is_some_and(|slot| self.withdrawing & 1 << slot.ring != 0) {
                volume.withdraw(Tag { owner: self.owner, slot: number });
            }
        }
    }

    fn give_back(&mut self, ring: u16) {
        if self.dirty & 1 << ring != 0 {
            self.dirty &= !(1 << ring);
            self.publish(ring);
        }
        self.withdrawing &= !(1 << ring);
        let with = self.rings[usize::from(ring)].take().map(|driven| driven.with);
        self.count_rings();
        self.mailbox.give(DiskReturn::Stopped { ring, with });
    }

    fn count_rings(&self) {
        self.counters.rings.set(self.rings.iter().flatten().count() as u64);
    }

    #[inline]
    fn poll_ring(&mut self, ring: u16, now_ns: u64, volume: &mut impl BlockDevice) -> u32 {
        let Some(driven) = &mut self.rings[usize::from(ring)] else { return 0 };
        if driven.stopping {
            return self.finish(ring, now_ns, volume);
        }
        let fetched = driven.with.queue.fetch();
        let (Ok(waiting), false) = (fetched, driven.with.queue.is_torn()) else {
            self.tell_broken(ring);
            return 0;
        };
        self.take_chains(ring, waiting, now_ns, volume)
    }

    /// Takes what a stopping ring still has to take, which is what a process before this one had
    /// taken, and gives the ring back once nothing is left.
    fn finish(&mut self, ring: u16, now_ns: u64, volume: &mut impl BlockDevice) -> u32 {
        let again = |disk: &Disk| {
            disk.rings[usize::from(ring)]
                .as_ref()
                .map(|driven| (driven.with.queue.again(), driven.in_flight))
        };
        let Some((waiting @ 1.., _)) = again(self) else { return 0 };
        let taken = self.take_chains(ring, waiting, now_ns, volume);
        if again(self) == Some((0, 0)) {
            self.give_back(ring);
        }
        taken
    }

    #[inline]
    fn take_chains(
        &mut self,
        ring: u16,
        waiting: u16,
        now_ns: u64,
        volume: &mut impl BlockDevice,
    ) -> u32 {
        let mut taken = 0;
        let takes = |disk: &Disk| {
            disk.parked.is_none() && !disk.free.is_empty() && disk.turn_bytes < TURN_BYTES
        };
        while taken < waiting.min(BURST) && takes(self) {
            let Some(driven) = &mut self.rings[usize::from(ring)] else { break };
            driven.with.queue.look_ahead(|upcoming| {
                let (kind, sector) = blk::read_header(&upcoming.front);
                let offset_bytes = sector.saturating_mul(blk::SECTOR_BYTES);
                match kind {
                    BlkKind::Read => volume.expect(Op::Read, offset_bytes, upcoming.bytes),
                    BlkKind::Write => volume.expect(Op::Write, offset_bytes, upcoming.bytes),
                    _ => {}
                }
            });
            match driven.with.queue.pop(&mut self.chain) {
                Ok(Some(head)) => self.begin(ring, head, now_ns, volume),
                Ok(None) => break,
                Err(QueueError::Chain { head, fault }) => {
                    self.counters.faults.count(fault);
                    driven.with.queue.push(head, 0);
                    self.dirty |= 1 << ring;
                }
                Err(QueueError::Ring(_)) => {
                    self.tell_broken(ring);
                    break;
                }
            }
            taken += 1;
        }
        u32::from(taken)
    }

    /// Starts the request in `self.chain`, or answers it at once.
    #[inline]
    fn begin(&mut self, ring: u16, head: u16, now_ns: u64, volume: &mut impl BlockDevice) {
        let request = match blk::parse(&self.chain) {
            Ok(request) => request,
            Err(bad) => {
                self.counters.faults.count(bad.fault);
                let told = bad.status.is_some_and(|at| at.copy_from(0, &[blk::STATUS_IOERR]));
                return self.push(ring, head, u32::from(told));
            }
        };
        let op = match request.kind {
            BlkKind::Read => Op::Read,
            BlkKind::Write => Op::Write,
            BlkKind::Flush => Op::Flush,
            BlkKind::Discard => Op::Discard,
            BlkKind::WriteZeroes => Op::WriteZeroes,
            BlkKind::GetId => {
                self.counters.ids.add(1);
                let written = blk::write_id(&request.data, &self.id);
                return self.answer(ring, head, request.status, Status::Ok, written);
            }
            BlkKind::Unknown(_) => {
                return self.answer(ring, head, request.status, Status::Unsupported, 0);
            }
        };
        self.submit(ring, head, op, request, now_ns, volume);
    }

    #[inline]
    fn submit(
        &mut self,
        ring: u16,
        head: u16,
        op: Op,
        request: BlkRequest,
        now_ns: u64,
        volume: &mut impl BlockDevice,
    ) {
        let Some(offset_bytes) = request.sector.checked_mul(blk::SECTOR_BYTES) else {
            return self.answer(ring, head, request.status, Status::OutOfRange, 0);
        };
        let slot = *self.free.last().expect("checked by poll_ring");
        let tag = Tag { owner: self.owner, slot };
        // A flush has no position; what the driver put there means nothing (5.2.6.1).
        let offset_bytes = if op == Op::Flush { 0 } else { offset_bytes };
        let range_bytes = u64::from(request.sectors) * blk::SECTOR_BYTES;
        let io = Io { tag, op, offset_bytes, range_bytes, segments: &request.data };
        let bytes = io.bytes();
        match volume.geometry().check(&io) {
            Err(status) => return self.answer(ring, head, request.status, status, 0),
            Ok(()) if bytes == 0 && op != Op::Flush => {
                return self.answer(ring, head, request.status, Status::Ok, 0);
            }
            Ok(()) => {}
        }
        self.free.pop();
        self.turn_bytes += bytes;
        let (bytes, status) = (bytes as u32, request.status);
        let begun = Slot { ring, head, op, bytes, status, begun_ns: now_ns };
        self.slots[usize::from(slot)] = Some(begun);
        let driven = self.rings[usize::from(ring)].as_mut();
        let driven = driven.expect("the ring was just popped from");
        driven.in_flight += 1;
        driven.with.queue.memory().hold();
        self.timing.taken(slot, op, u64::from(bytes));
        if volume.submit(now_ns, &io) == Ok(()) {
            self.timing.submitted(slot);
        } else {
            self.counters.full.add(1);
            self.parked =
                Some(Parked { slot, op, offset_bytes, range_bytes, segments: request.data });
        }
        self.counters.in_flight.set(u64::from(self.in_flight()));
    }

    fn submit_parked(&mut self, now_ns: u64, volume: &mut impl BlockDevice) -> bool {
        let Some(parked) = &self.parked else { return true };
        let tag = Tag { owner: self.owner, slot: parked.slot };
        let Parked { op, offset_bytes, range_bytes, .. } = *parked;
        let io = Io { tag, op, offset_bytes, range_bytes, segments: &parked.segments };
        self.timing.retaken(tag.slot);
        if volume.submit(now_ns, &io) == Err(Full) {
            return false;
        }
        self.timing.submitted(tag.slot);
        self.parked = None;
        true
    }

    /// Counts a request that the volume has ended, and answers it.
    #[inline]
    fn end(&mut self, slot: Slot, status: Status) {
        let bytes = if status == Status::Ok { slot.bytes } else { 0 };
        self.counters.count(slot.op, bytes);
        self.counters.latency.record(slot.op, self.now_ns.saturating_sub(slot.begun_ns));
        let written = if slot.op == Op::Read { bytes } else { 0 };
        self.answer(slot.ring, slot.head, slot.status, status, written);
    }

    /// Writes the status byte and gives the chain back.
    #[inline]
    fn answer(&mut self, ring: u16, head: u16, place: Segment, status: Status, written: u32) {
        self.counters.statuses[status as usize].add(1);
        let byte = match status {
            Status::Ok => blk::STATUS_OK,
            Status::Unsupported => blk::STATUS_UNSUPPORTED,
            _ => blk::STATUS_IOERR,
        };
        place.copy_from(0, &[byte]);
        self.push(ring, head, written + 1);
    }

    #[inline]
    fn push(&mut self, ring: u16, head: u16, written: u32) {
        let driven = self.rings[usize::from(ring)].as_mut();
        driven.expect("a ring stays while it has requests").with.queue.push(head, written);
        self.dirty |= 1 << ring;
    }

    #[inline]
    fn publish(&mut self, ring: u16) {
        let driven = self.rings[usize::from(ring)].as_mut();
        let driven = driven.expect("a ring stays while it has results");
        if driven.with.queue.publish()
            && !(planted!("virtio-call-lost") && self.counters.calls.get() == 20)
        {
            signal(&mut driven.with.call, &self.counters);
        }
    }

    /// Counts a broken ring and tells its front end, once.
    fn tell_broken(&mut self, ring: u16) {
        let Some(driven) = &mut self.rings[usize::from(ring)] else { return };
        if std::mem::replace(&mut driven.told_broken, true) {
            return;
        }
        // Memory that was taken away reads as zeros: whatever else looks wrong follows from it.
        if driven.with.queue.is_torn() {
            driven.with.queue.break_by(QueueFault::MemoryTorn);
        }
        let fault = driven.with.queue.broken();
        self.counters.faults.count(fault.expect("told only of what is broken"));
        if let Some(error) = &mut driven.with.error {
            error.signal();
        }
    }
}

#[inline]
fn signal(call: &mut Option<Signaller>, counters: &DiskCounters) {
    if let Some(call) = call {
        counters.calls.add(1);
        call.signal();
    }
}
