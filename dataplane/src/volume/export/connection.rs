//! One connection of an export: socket, engine, and where its commands' data is.

use super::pool::{Frames, Pool};
use super::timing::{Seen, Timing};
use super::{CONNECT_TIMEOUT_NS, DATA_TIMEOUT_NS, End, LINGER_NS};
use crate::clock;
use crate::volume::{Op, Status};
use outboard_dma::socket::{self, Gather, Scatter};
use outboard_rdma::nvmf::target::{Subsystem, Target, Waiting};
use outboard_rdma::nvmf::{self, Fault, Piece, StatusCode, Want};
use rustix::event::epoll::{self, EventData, EventFlags};
use std::io::{Error, ErrorKind};
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

/// Bytes that one call receives beside data that goes straight to its place: three writes of
/// 4 KiB in their capsules, or over 200 reads.
const STAGING_BYTES: usize = 16 << 10;
/// Receive and send calls of one turn each.
const CALLS: usize = 4;

/// What the volume shall do for a command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub op: Op,
    pub lba: u64,
    pub bytes: u32,
    /// Length of the range of an operation without data.
    pub blocks: u32,
    /// To be flushed after it is written.
    pub is_durable: bool,
}

#[derive(Debug)]
struct Slot {
    work: Work,
    frames: Frames,
    is_asked: bool,
    is_running: bool,
}

/// What epoll watches a socket for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interest {
    input: bool,
    output: bool,
}

impl Interest {
    /// As a connection begins.
    const INPUT: Interest = Interest { input: true, output: false };
}

/// A connection, or the place for one.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Option<TcpStream>,
    pub target: Target,
    slots: Box<[Slot]>,
    /// Commands that the volume has, or that wait for it.
    running: u16,
    staging: Box<[u8]>,
    /// What is sent by copy, where data digests were agreed upon.
    outgoing: Box<[u8]>,
    /// What of the staging buffer was received and not taken yet.
    staged: Range<usize>,
    interest: Interest,
    pub active_ns: u64,
    failed_ns: Option<u64>,
    /// Its host has fenced it out: nothing begins any more.
    pub is_stale: bool,
    /// A Fence command came and waits for its answer.
    is_fencing: bool,
    /// Whether somebody wants to know when bytes came.
    keeps_times: bool,
    /// When the socket was last known to have nothing.
    empty_ns: u64,
    seen: Seen,
}

impl Connection {
    pub fn new(depth: u16) -> Connection {
        let target = Target::new(depth);
        let slot = |_| Slot {
            work: Work { op: Op::Flush, lba: 0, bytes: 0, blocks: 0, is_durable: false },
            frames: Frames::new(),
            is_asked: false,
            is_running: false,
        };
        Connection {
            socket: None,
            slots: (0..target.slots()).map(slot).collect(),
            target,
            running: 0,
            staging: vec![0; STAGING_BYTES].into(),
            outgoing: vec![0; STAGING_BYTES].into(),
            staged: 0..0,
            interest: Interest::INPUT,
            active_ns: 0,
            failed_ns: None,
            is_stale: false,
            is_fencing: false,
            keeps_times: false,
            empty_ns: 0,
            seen: Seen::default(),
        }
    }

    pub fn slots(&self) -> u16 {
        self.slots.len() as u16
    }

    pub fn work(&self, slot: u16) -> &Work {
        &self.slots[usize::from(slot)].work
    }

    pub fn frames(&self, slot: u16) -> &Frames {
        &self.slots[usize::from(slot)].frames
    }

    pub fn running(&self) -> u16 {
        self.running
    }

    pub fn is_open(&self) -> bool {
        self.socket.is_some()
    }

    pub fn is_connected(&self) -> bool {
        self.target.is_connected()
    }

    /// Whether another connection can have this place: no socket, and no I/O of the last one.
    pub fn is_free(&self) -> bool {
        self.socket.is_none() && self.running == 0
    }

    /// Whether it waits for memory, or received bytes wait for something.
    pub fn is_held(&self) -> bool {
        !self.is_failed() && (!self.staged.is_empty() || self.target.waiting().is_some())
    }

    pub fn is_failed(&self) -> bool {
        self.target.fault().is_some()
    }

    /// Whether the host has disconnected its queue and has the answer.
    pub fn is_disconnected(&self) -> bool {
        self.target.is_disconnected()
    }

    pub fn has_output(&self) -> bool {
        self.target.has_output()
    }

    pub fn open(&mut self, now_ns: u64, socket: TcpStream) {
        self.target.reset();
        if let Ok(local) = socket.local_addr() {
            self.target.set_local(local);
        }
        self.staged = 0..0;
        self.interest = Interest::INPUT;
        (self.active_ns, self.empty_ns) = (now_ns, now_ns);
        self.failed_ns = None;
        (self.is_stale, self.is_fencing) = (false, false);
        self.socket = Some(socket);
    }

    /// The socket goes; memory of I/Os that the volume still has stays until they end.
    pub fn close(&mut self, index: u16, pool: &mut Pool, shared: &mut Subsystem, epoll: &OwnedFd) {
        self.target.leave(shared);
        if let Some(socket) = self.socket.take() {
            let _ = epoll::delete(epoll, &socket);
        }
        self.staged = 0..0;
        for slot in self.slots.iter_mut().filter(|slot| !slot.is_running) {
            pool.give(index, &mut slot.frames, slot.is_asked);
        }
    }

    /// The violation that ended it, once.
    pub fn new_fault(&mut self, now_ns: u64) -> Option<Fault> {
        let fault = self.target.fault()?;
        let is_new = self.failed_ns.is_none();
        self.failed_ns.get_or_insert(now_ns);
        is_new.then_some(fault)
    }

    /// Whether a Fence command has come, once.
    pub fn has_new_fence(&mut self) -> bool {
        let is_fencing = self.target.is_fencing();
        is_fencing && !std::mem::replace(&mut self.is_fencing, is_fencing)
    }

    pub fn is_fencing(&self) -> bool {
        self.is_fencing
    }

    pub fn learn_stale(&mut self, subsystem: &Subsystem) {
        self.is_stale = self.target.is_stale(subsystem);
    }

    /// Whether a fence has to wait for what it has running: its host has fenced it out, or nobody
    /// will hear of it any more.
    pub fn is_of_past(&self, subsystem: &Subsystem) -> bool {
        self.socket.is_none() || self.is_stale || self.target.is_orphan(subsystem)
    }

    /// Answers the Fence command that waits, if one does.
    pub fn finish_fence(&mut self, subsystem: &mut Subsystem) {
        if std::mem::take(&mut self.is_fencing) {
            self.target.finish_fence(subsystem);
        }
    }

    /// Why it is to be closed now, if it is.
    pub fn overdue(&self, now_ns: u64, subsystem: &Subsystem) -> Option<End> {
        let quiet_ns = now_ns.saturating_sub(self.active_ns);
        if let Some(failed_ns) = self.failed_ns {
            return (now_ns.saturating_sub(failed_ns) > LINGER_NS).then_some(End::Fault);
        }
        if self.target.is_orphan(subsystem) {
            return Some(End::Orphan);
        }
        if !self.is_connected() && quiet_ns > CONNECT_TIMEOUT_NS {
            return Some(End::ConnectTimeout);
        }
        (self.target.is_owed_data() && quiet_ns > DATA_TIMEOUT_NS).then_some(End::DataTimeout)
    }

    /// Takes what was received before, then what is there; how many calls found something.
    pub fn advance(
        &mut self,
        now_ns: u64,
        with_receive: bool,
        index: u16,
        pool: &mut Pool,
        subsystem: &mut Subsystem,
    ) -> Result<usize, End> {
        self.feed(now_ns, index, pool, subsystem);
        let mut moved = 0;
        while with_receive && moved < CALLS && self.staged.is_empty() && !self.is_failed() {
            let Some(bytes) = self.receive(moved == 0, pool, subsystem)? else { break };
            moved += 1;
            // A stranger's clock runs from its arrival, not from its last byte.
            if self.is_connected() {
                self.active_ns = now_ns;
            }
            self.feed(now_ns, index, pool, subsystem);
            // A short read has emptied the socket: the next one would find nothing.
            if bytes < STAGING_BYTES {
                break;
            }
        }
        Ok(moved)
    }

    /// Keeps the times at which bytes come, or not.
    pub fn keep_times(&mut self, is_on: bool) {
        self.keeps_times = is_on;
        if is_on {
            // What is there at the next look came after this, as far as anybody is told.
            (self.empty_ns, self.seen) = (clock::now_ns(), Seen::default());
        }
    }

    /// The kernel would have told of something at `at_ns`, and did not.
    pub fn had_nothing(&mut self, at_ns: u64) {
        if self.interest.input {
            self.empty_ns = at_ns;
        }
    }

    /// How the last bytes came in, when times are kept.
    pub fn seen(&self) -> Seen {
        self.seen
    }

    /// A call that began at `from_ns` brought so many bytes. Several calls of one look are one.
    #[cold]
    fn saw(&mut self, from_ns: u64, bytes: usize, is_first: bool) {
        if is_first {
            (self.seen.before_ns, self.seen.seen_ns) = (self.empty_ns, from_ns);
        }
        self.seen.received_ns = clock::now_ns();
        // After a full read there may have been more, for as long.
        if bytes < STAGING_BYTES {
            self.empty_ns = from_ns;
        }
    }

    /// One receive call: what it brought, or `None` when there was nothing.
    fn receive(
        &mut self,
        is_first: bool,
        pool: &mut Pool,
        subsystem: &Subsystem,
    ) -> Result<Option<usize>, End> {
        let Some(socket) = &self.socket else { return Ok(None) };
        let from_ns = if self.keeps_times { clock::now_ns() } else { 0 };
        let (received, placed) = match self.target.wants() {
            Want::Nothing => return Ok(None),
            Want::Data { slot, offset, len } if !self.target.has_data_digest() => {
                let frames = &self.slots[usize::from(slot)].frames;
                let mut scatter = Scatter::new();
                for segment in &pool.segments(frames, offset, len) {
                    scatter.push_segment(segment);
                }
                scatter.push(&mut self.staging);
                let received = scatter.receive(socket.as_fd());
                let placed = received.as_ref().map_or(0, |bytes| *bytes).min(len as usize);
                (received, placed)
            }
            // With digests the engine is shown the data before it goes to its place.
            Want::Engine | Want::Data { .. } => {
                (socket::receive(socket.as_fd(), &mut self.staging), 0)
            }
        };
        match received {
            Ok(0) => Err(End::Closed),
            Ok(bytes) => {
                if placed > 0 {
                    self.target.placed(placed as u32, subsystem);
                }
                self.staged = 0..bytes - placed;
                if self.keeps_times {
                    self.saw(from_ns, bytes, is_first);
                }
                Ok(Some(bytes))
            }
            Err(error) if is_transient(&error) => {
                self.empty_ns = from_ns;
                Ok(None)
            }
            Err(_) => Err(End::Socket),
        }
    }

    /// Gives staged bytes to the engine and to their places, and memory to commands, as far as
    /// both go.
    fn feed(&mut self, now_ns: u64, index: u16, pool: &mut Pool, subsystem: &mut Subsystem) {
        while !self.is_failed() {
            self.grant(index, pool, subsystem);
            let bytes = &self.staging[self.staged.clone()];
            if bytes.is_empty() {
                return;
            }
            match self.target.wants() {
                Want::Nothing => return,
                Want::Engine => match self.target.receive(now_ns, bytes, subsystem) {
                    Ok(used) => self.staged.start += used,
                    Err(_) => {
                        self.staged = 0..0;
                        return;
                    }
                },
                Want::Data { slot, offset, len } => {
                    let count = bytes.len().min(len as usize);
                    let frames = &self.slots[usize::from(slot)].frames;
                    let mut at = 0;
                    let offset = if planted!("nvmf-data-misplaced") { 0 } else { offset };
                    for segment in &pool.segments(frames, offset, count as u32) {
                        segment.copy_from(0, &bytes[at..at + segment.len()]);
                        at += segment.len();
                    }
                    self.target.placed_copy(&bytes[..count], subsystem);
                    self.staged.start += count;
                }
            }
        }
    }

    fn grant(&mut self, index: u16, pool: &mut Pool, subsystem: &Subsystem) {
        while let Some(Waiting { slot, bytes, by_request }) = self.target.waiting() {
            let Some(frames) = pool.take(index, bytes, by_request) else { return };
            let slot = &mut self.slots[usize::from(slot)];
            debug_assert!(slot.frames.is_empty());
            slot.frames = frames;
            slot.is_asked = by_request;
            self.target.grant(subsystem);
        }
    }

    /// The next command to submit: its slot.
    pub fn next_command(&mut self) -> Option<u16> {
        let command = self.target.next_command()?;
        let slot = &mut self.slots[usize::from(command.slot)];
        let op = match command.op {
            nvmf::Op::Read => Op::Read,
            nvmf::Op::Write => Op::Write,
            nvmf::Op::Flush => Op::Flush,
            nvmf::Op::Discard => Op::Discard,
            nvmf::Op::WriteZeroes => Op::WriteZeroes,
            nvmf::Op::Compare => Op::Compare,
        };
        let nvmf::target::Command { lba, bytes, blocks, is_durable, .. } = command;
        slot.work = Work { op, lba, bytes, blocks, is_durable };
        slot.is_running = true;
        self.running += 1;
        Some(command.slot)
    }

    /// Whether a durable write that was written is to be flushed now; it becomes a flush.
    pub fn needs_flush(&mut self, slot: u16, status: Status) -> bool {
        let work = &mut self.slots[usize::from(slot)].work;
        let is_write = matches!(work.op, Op::Write | Op::WriteZeroes);
        let is_due = work.is_durable && is_write && status == Status::Ok;
        if is_due {
            work.op = Op::Flush;
        }
        is_due
    }

    /// A command that ran has ended.
    pub fn end(&mut self, slot: u16, status: StatusCode, index: u16, pool: &mut Pool) {
        let state = &mut self.slots[usize::from(slot)];
        state.is_running = false;
        self.running -= 1;
        if self.socket.is_some() {
            self.target.complete(slot, status);
        } else {
            pool.give(index, &mut state.frames, state.is_asked);
        }
    }

    /// Sends what the socket takes, and whether it took something; slots that end with it give
    /// their memory back.
    pub fn send(
        &mut self,
        now_ns: u64,
        pool: &mut Pool,
        index: u16,
        timing: &mut Timing,
    ) -> Result<bool, End> {
        if self.target.has_data_digest() {
            return self.send_copied(now_ns, pool, index, timing);
        }
        let Some(socket) = &self.socket else { return Ok(false) };
        let base = index * self.slots.len() as u16;
        let mut has_sent = false;
        for _ in 0..CALLS {
            if !self.target.has_output() {
                break;
            }
            let mut gather = Gather::new();
            for piece in self.target.pieces() {
                let fits = match piece {
                    Piece::Bytes(bytes) => gather.push(bytes),
                    Piece::Data { slot, offset, len } => {
                        let frames = &self.slots[usize::from(slot)].frames;
                        let segments = pool.segments(frames, offset, len);
                        segments.iter().all(|segment| gather.push_segment(segment))
                    }
                };
                if !fits {
                    break;
                }
            }
            let from_ns = timing.clock();
            match gather.send(socket.as_fd()) {
                Ok(sent) => {
                    has_sent = true;
                    let call = from_ns.zip(timing.clock());
                    self.active_ns = if self.is_connected() { now_ns } else { self.active_ns };
                    let slots = &mut self.slots;
                    self.target.sent(sent, |slot| {
                        timing.sent(base + slot, call);
                        let slot = &mut slots[usize::from(slot)];
                        pool.give(index, &mut slot.frames, slot.is_asked);
                    });
                }
                Err(error) if is_transient(&error) => break,
                Err(_) => return Err(End::Socket),
            }
        }
        Ok(has_sent)
    }

    /// As [`send`](Self::send), a copy of the data, which its digests are made of.
    fn send_copied(
        &mut self,
        now_ns: u64,
        pool: &mut Pool,
        index: u16,
        timing: &mut Timing,
    ) -> Result<bool, End> {
        let Some(socket) = &self.socket else { return Ok(false) };
        let base = index * self.slots.len() as u16;
        let slots = &mut self.slots;
        let mut has_sent = false;
        for _ in 0..CALLS {
            if !self.target.has_output() {
                break;
            }
            let filled = self.target.fill(&mut self.outgoing, |slot, offset, place| {
                let frames = &slots[usize::from(slot)].frames;
                let mut at = 0;
                for segment in &pool.segments(frames, offset, place.len() as u32) {
                    segment.copy_to(0, &mut place[at..at + segment.len()]);
                    at += segment.len();
                }
            });
            let mut gather = Gather::new();
            gather.push(&self.outgoing[..filled]);
            let from_ns = timing.clock();
            match gather.send(socket.as_fd()) {
                Ok(sent) => {
                    has_sent = true;
                    let call = from_ns.zip(timing.clock());
                    self.target.sent_copy(&self.outgoing[..sent], |slot| {
                        timing.sent(base + slot, call);
                        let slot = &mut slots[usize::from(slot)];
                        pool.give(index, &mut slot.frames, slot.is_asked);
                    });
                }
                Err(error) if is_transient(&error) => break,
                Err(_) => return Err(End::Socket),
            }
        }
        if has_sent && self.target.is_connected() {
            self.active_ns = now_ns;
        }
        Ok(has_sent)
    }

    /// Data received that did not match its digest since this was asked last.
    pub fn take_digest_errors(&mut self) -> u32 {
        self.target.take_digest_errors()
    }

    /// Keeps epoll to what the connection can go on with, so that nobody is woken in vain.
    pub fn watch(&mut self, index: u16, epoll: &OwnedFd) -> Result<(), End> {
        let Some(socket) = &self.socket else { return Ok(()) };
        let is_stuck = !self.staged.is_empty() || self.target.wants() == Want::Nothing;
        let wanted = Interest { input: !is_stuck, output: self.target.has_output() };
        if wanted != self.interest {
            self.interest = wanted;
            let mut flags = EventFlags::empty();
            flags.set(EventFlags::IN, wanted.input);
            flags.set(EventFlags::OUT, wanted.output);
            let data = EventData::new_u64(u64::from(index));
            epoll::modify(epoll, socket, data, flags).map_err(|_| End::Socket)?;
        }
        Ok(())
    }
}

fn is_transient(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
