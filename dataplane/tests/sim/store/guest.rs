//! A guest with a disk: one virtqueue, requests that it keeps the books of, and what it checks of
//! every answer. Either it polls the used ring, or it does nothing until it is called.

use super::oracle::{Oracle, SECTOR_BYTES, Version};
use outboard::virtio::driver_ring::{DESC_NEXT, DESC_WRITE, DriverRing};
use outboard::virtio::mailbox::Ring;
use outboard::virtio::queue::Queue;
use outboard::volume::Op;
use outboard_dma::{EventFd, GuestMemory, GuestRegion, Signaller};
use outboard_sim::Rng;
use std::fs::File;
use std::sync::Arc;

/// Requests in flight at most.
pub const SLOTS: u16 = 16;
/// The most sectors of a request.
pub const MOST_SECTORS: u64 = 64;

const RING: u16 = 64;
const USER: u64 = 0x7100_0000_0000;
const GUEST: u64 = 0x4000_0000;
const RING_BYTES: u64 = 8 << 10;
/// Header, status and range of a request, then its data.
const DATA_AT: u64 = 512;
const SLOT_BYTES: u64 = DATA_AT + MOST_SECTORS * SECTOR_BYTES as u64;
const STATUS_AT: u64 = 16;
const RANGE_AT: u64 = 32;
const STATUS_NONE: u8 = 0x77;

/// A request in flight.
#[derive(Debug)]
struct Flight {
    op: Op,
    first: u64,
    count: u64,
    version: Version,
    /// What a read may return.
    allowed: Vec<Vec<Version>>,
    is_settled: bool,
    /// The medium lost power meanwhile: a write may have ended before, and be lost.
    was_cut: bool,
    /// When it began, in the oracle's time.
    since: u64,
}

/// What ended, by how.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ends {
    pub ok: u64,
    pub failed: u64,
    pub flushes: u64,
    pub calls: u64,
    pub kicks: u64,
}

/// A guest.
pub struct Guest {
    memory: Arc<GuestMemory>,
    ring: DriverRing,
    slots: [Option<Flight>; SLOTS as usize],
    kick: EventFd,
    call: EventFd,
    polls: bool,
    versions: Version,
    submitted: u64,
    /// Requests that the disk was shown.
    pub published: u64,
    pub ends: Ends,
}

impl Guest {
    /// A guest, and its ring for the disk.
    pub fn new(rng: &mut Rng) -> (Guest, Ring) {
        let bytes = (RING_BYTES + u64::from(SLOTS) * SLOT_BYTES).next_multiple_of(4096);
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create(c"sim-guest", flags).unwrap());
        file.set_len(bytes).unwrap();
        let region =
            GuestRegion { guest_address: GUEST, bytes, user_address: USER, file_offset_bytes: 0 };
        let memory = GuestMemory::map(&[(region, file)]).unwrap();
        let event_idx = rng.chance(500_000);
        let mut ring = DriverRing::new(&memory, RING, USER, event_idx, true).unwrap();
        let queue = Queue::new(&memory, &ring.setup()).unwrap();
        let (kick, call) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        let with = Ring {
            queue,
            kick: Some(EventFd::same_as(&kick).unwrap()),
            call: Some(Signaller::new(EventFd::same_as(&call).unwrap())),
            error: None,
        };
        let polls = rng.chance(300_000);
        assert!(!ring.want_calls(!polls), "nothing has come yet");
        let slots = std::array::from_fn(|_| None);
        let ends = Ends::default();
        let guest = Guest {
            memory,
            ring,
            slots,
            kick,
            call,
            polls,
            versions: 0,
            submitted: 0,
            published: 0,
            ends,
        };
        (guest, with)
    }

    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    pub fn in_flight(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Submits a request if there is a slot, and nothing that it must not meet in flight.
    pub fn submit(&mut self, op: Op, first: u64, count: u64, oracle: &Oracle) -> bool {
        let meets = |flight: &&Flight| {
            op != Op::Flush
                && flight.op != Op::Flush
                && flight.first < first + count
                && first < flight.first + flight.count
        };
        let met: Vec<&Flight> = self.slots.iter().flatten().filter(meets).collect();
        if op.is_change() && !met.is_empty() {
            return false;
        }
        let Some(slot) = self.slots.iter().position(Option::is_none) else { return false };
        let changes: Vec<_> = met.iter().filter(|flight| flight.op.is_change()).collect();
        let mut allowed = Vec::new();
        if op == Op::Read {
            allowed = oracle.possible(first, count);
            for change in &changes {
                let from = change.first.max(first);
                for sector in from..(change.first + change.count).min(first + count) {
                    allowed[(sector - first) as usize].push(change.version);
                }
            }
        }
        let is_settled = changes.is_empty();
        let version = if op == Op::Write { self.versions + 1 } else { 0 };
        self.versions = self.versions.max(version);
        self.describe(slot as u16, op, first, count, version);
        let since = oracle.now();
        let was_cut = false;
        let flight = Flight { op, first, count, version, allowed, is_settled, was_cut, since };
        self.slots[slot] = Some(flight);
        self.submitted += 1;
        true
    }

    /// Shows the disk what was submitted.
    pub fn publish(&mut self) {
        self.published = self.submitted;
        if self.ring.publish() {
            self.ends.kicks += 1;
            self.kick.signal();
        }
    }

    /// Writes a request's descriptors and data (virtio 1.2, 5.2.6).
    fn describe(&mut self, slot: u16, op: Op, first: u64, count: u64, version: Version) {
        let (at, head) = (place(slot), slot * 3);
        let bytes = count as usize * SECTOR_BYTES;
        let (kind, flags, len) = match op {
            Op::Read => (0u32, DESC_WRITE, bytes),
            Op::Write => (1, 0, bytes),
            Op::Flush => (4, 0, 0),
            Op::Discard => (11, 0, 16),
            Op::WriteZeroes => (13, 0, 16),
            Op::Compare => unreachable!("virtio has none"),
        };
        let ranged = op.is_ranged();
        let sector = if ranged || op == Op::Flush { 0 } else { first };
        self.write(at, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
        self.write(at + STATUS_AT, &[STATUS_NONE]);
        match op {
            Op::Write => self.write(at + DATA_AT, &Oracle::data(version, first, count)),
            Op::Read => self.write(at + DATA_AT, &vec![0xee; bytes]),
            _ if ranged => {
                let count = count as u32;
                let range = [&first.to_le_bytes()[..], &count.to_le_bytes(), &[0; 4]].concat();
                self.write(at + RANGE_AT, &range);
            }
            _ => {}
        }
        let data = at + if ranged { RANGE_AT } else { DATA_AT };
        let behind = if len > 0 { head + 1 } else { head + 2 };
        self.ring.describe(head, at, 16, DESC_NEXT, behind);
        self.ring.describe(head + 1, data, len as u32, flags | DESC_NEXT, head + 2);
        self.ring.describe(head + 2, at + STATUS_AT, 1, DESC_WRITE, 0);
        self.ring.offer(head);
    }

    /// Takes what has ended; how many. A guest that does not poll waits to be called.
    pub fn reap(&mut self, oracle: &mut Oracle) -> u64 {
        if !self.polls {
            if self.call.drain() == 0 {
                return 0;
            }
            self.ends.calls += 1;
            self.ring.want_calls(false);
        }
        let mut count = 0;
        loop {
            while let Some((head, written)) = self.ring.take() {
                self.end(head, written, oracle);
                count += 1;
            }
            if self.polls || !self.ring.want_calls(true) {
                return count;
            }
        }
    }

    fn end(&mut self, head: u32, written: u32, oracle: &mut Oracle) {
        let slot = (head / 3) as u16;
        let flight = self.slots.get_mut(usize::from(slot)).and_then(Option::take);
        let flight = flight.filter(|_| head.is_multiple_of(3));
        let flight =
            flight.unwrap_or_else(|| panic!("a chain ended that is not in flight: {head}"));
        let mut status = [0];
        assert!(self.memory.read(place(slot) + STATUS_AT, &mut status));
        let is_ok = match status[0] {
            0 => true,
            1 => false,
            other => panic!("a request ended with status {other}: {flight:?}"),
        };
        let Flight { op, first, count, version, .. } = flight;
        let bytes = if op == Op::Read && is_ok { count as u32 * SECTOR_BYTES as u32 } else { 0 };
        assert_eq!(written, bytes + 1, "the bytes that a request says it wrote");
        *(if is_ok { &mut self.ends.ok } else { &mut self.ends.failed }) += 1;
        match op {
            Op::Read if is_ok => {
                let mut data = vec![0; bytes as usize];
                assert!(self.memory.read(place(slot) + DATA_AT, &mut data));
                oracle.read(first, &data, &flight.allowed, flight.is_settled);
            }
            Op::Read => {}
            Op::Write | Op::WriteZeroes => {
                let is_doubtful = !is_ok || flight.was_cut;
                oracle.written(version, (first, count), is_doubtful, flight.since);
            }
            // Zeros or the old data, if it ended well.
            Op::Discard => oracle.written(0, (first, count), true, flight.since),
            Op::Flush if is_ok => {
                self.ends.flushes += 1;
                oracle.flushed(flight.since);
            }
            Op::Flush => oracle.told(),
            Op::Compare => {}
        }
    }

    /// The medium has lost power: what is in flight may have been answered before or after.
    pub fn power_cut(&mut self, oracle: &Oracle) {
        for flight in self.slots.iter_mut().flatten() {
            flight.is_settled = false;
            flight.was_cut = true;
            let now = oracle.possible(flight.first, flight.count);
            for (allowed, more) in flight.allowed.iter_mut().zip(now) {
                allowed.extend(more);
            }
        }
    }

    fn write(&self, at: u64, data: &[u8]) {
        let segment = self.memory.segment(at, data.len() as u32).expect("one region");
        assert!(segment.copy_from(0, data));
    }
}

fn place(slot: u16) -> u64 {
    GUEST + RING_BYTES + u64::from(slot) * SLOT_BYTES
}
