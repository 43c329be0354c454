//! A volume served to other hosts over NVMe/TCP: the target on the worker that owns the volume.
//!
//! A turn is: [`poll`](Export::poll) takes new connections, receives, and submits commands tagged
//! (owner, slot); the worker reaps the volume and hands every outcome to
//! [`complete`](Export::complete); [`flush`](Export::flush) sends what is to be sent, one call per
//! connection as long as the socket takes it. Everything is made at start: connections, slots and
//! buffers; nothing here allocates per I/O or per connection.
//!
//! Memory: `connections` × ([`GUARANTEED_FRAMES`] frames + about 73 KiB) + `shared_frames` frames.
//! A connection always gets its guaranteed frames, whatever the others do.

mod connection;
mod counters;
mod fence;
mod pool;
mod saved;
mod timing;

pub use counters::{End, ExportCounters};
pub use pool::GUARANTEED_FRAMES;
pub use saved::SavedEngines;

use super::{BlockDevice, Done, Geometry, Io, Op, Status, Tag};
use crate::ledger::{Entry, Subject};
use arrayvec::ArrayVec;
use connection::{Connection, Work};
use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use outboard_dma::{EventFd, FreeList};
use outboard_rdma::nvmf::fence::Boot;
use outboard_rdma::nvmf::identify::{Identity, Namespace};
use outboard_rdma::nvmf::target::{Limits, Subsystem};
use outboard_rdma::nvmf::{Digests, Nqn, StatusCode, discovery};
use pool::Pool;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use timing::Timing;

/// The most connections of one export: slots of all of them fit a tag.
pub const MAX_CONNECTIONS: u16 = 64;
/// I/O commands in flight per connection.
pub const DEPTH: u16 = 128;
/// Connections that no host has put a queue on yet; a further one ends the oldest of them.
pub const MAX_UNCONNECTED: usize = 16;
/// How long a connection may take to become a queue.
pub const CONNECT_TIMEOUT_NS: u64 = 5_000_000_000;
/// How long data that was asked for may stand still.
pub const DATA_TIMEOUT_NS: u64 = 30_000_000_000;
/// How long a failed connection may take to accept its TermReq.
const LINGER_NS: u64 = 1_000_000_000;
/// Connections that are received from in every turn, because something came a short time ago.
const MAX_HOT: usize = 4;
/// For how long after something came.
const HOT_NS: u64 = 1_000_000;
/// How often the others are looked at while some are hot.
const LOOK_NS: u64 = 20_000;
/// How often timeouts are looked at.
const TICK_NS: u64 = 50_000_000;
/// Accepted connections that wait for the worker.
const INTAKE: usize = 16;

/// What an export is made with.
#[derive(Clone, Debug)]
pub struct ExportConfig {
    /// The subsystem's NVMe qualified name.
    pub nqn: String,
    /// The serial number that hosts see.
    pub serial: String,
    /// What names the content: stable for persistent media, new at each start for others.
    pub identity: Identity,
    /// `Tag::owner` of the I/Os.
    pub owner: u16,
    /// Connections at most, 1 to [`MAX_CONNECTIONS`].
    pub connections: u16,
    /// Frames that any connection may use beyond its guaranteed ones.
    pub shared_frames: u32,
    /// The first epoch that hosts are given: higher than any that was given at an earlier start.
    pub first_epoch: u64,
    /// What this machine drew when it started, told to hosts; zeros: not known.
    pub boot: Boot,
}

impl ExportConfig {
    /// Frames that the export takes from the worker at start.
    pub fn frames(&self) -> u32 {
        u32::from(self.connections) * u32::from(GUARANTEED_FRAMES) + self.shared_frames
    }
}

/// Why an export could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The name is empty, too long, or has a zero byte.
    #[error("`{0}` is no NVMe qualified name; it has 1 to 223 bytes")]
    Name(String),
    /// The number of connections is out of its range.
    #[error("an export of {0} connections is not possible; choose 1 to {MAX_CONNECTIONS}")]
    Connections(u16),
    /// The worker's frames do not suffice.
    #[error(
        "export `{nqn}` needs {needed} frames of 4 KiB and its worker has {free}; raise \
         `region_mib` in [runtime]"
    )]
    Frames {
        /// The subsystem's name.
        nqn: String,
        /// Frames that it needs.
        needed: u32,
        /// Frames that the worker has.
        free: usize,
    },
    /// The kernel refused a descriptor.
    #[error("cannot make the event descriptors of an export: {0}; raise the limit of open files")]
    System(#[from] io::Error),
}

/// Frames beside the guaranteed ones that let a few connections go deep: 4 MiB.
pub const SHARED_FRAMES: u32 = 1024;

/// Where control puts accepted connections.
#[derive(Debug)]
pub struct Door {
    sender: Sender<TcpStream>,
    bell: Arc<EventFd>,
    counters: Arc<ExportCounters>,
}

impl Door {
    /// Gives a connection (non-blocking, without Nagle's delay) to the worker; hands it back when
    /// too many wait or the export is gone.
    pub fn enter(&self, socket: TcpStream) -> Result<(), TcpStream> {
        let sent = self.sender.try_send(socket).map_err(TrySendError::into_inner);
        match sent {
            Ok(()) => self.bell.signal(),
            Err(_) => self.counters.turned_away.add(1),
        }
        sent
    }
}

/// Subsystems by name and address, for [`Export::list_others`]; names that are none are left out.
pub fn entries<'a>(
    others: impl IntoIterator<Item = (&'a str, SocketAddr)>,
) -> Vec<discovery::Entry> {
    let entry = |(name, address)| {
        Nqn::from(name).ok().map(|subsystem| discovery::Entry { subsystem, address })
    };
    others.into_iter().filter_map(entry).collect()
}

/// A volume served to other hosts.
#[derive(Debug)]
pub struct Export {
    owner: u16,
    /// Slots of one connection: `Tag::slot` is connection × slots + slot.
    slots: u16,
    subsystem: Subsystem,
    connections: Box<[Connection]>,
    /// Connections with a socket.
    live: ArrayVec<u16, { MAX_CONNECTIONS as usize }>,
    hot: ArrayVec<u16, MAX_HOT>,
    pool: Pool,
    /// Commands that the volume had no room for, by `Tag::slot`.
    backlog: VecDeque<u16>,
    /// I/Os that the volume has.
    in_flight: u32,
    /// When each command was taken, by `Tag::slot`.
    begun_ns: Box<[u64]>,
    timing: Timing,
    /// When the turn began.
    now_ns: u64,
    /// Memory or room in an outbox became free since held connections were last looked at.
    has_freed: bool,
    /// A host's Fence command waits for its answer.
    has_fence: bool,
    /// An export of this volume that leaves has commands running.
    is_predecessor_running: bool,
    doorway: Receiver<TcpStream>,
    bell: Arc<EventFd>,
    epoll: OwnedFd,
    looked_ns: u64,
    ticked_ns: u64,
    counters: Arc<ExportCounters>,
}

/// The bell's number among epoll's; connections have theirs.
const BELL: u64 = u64::MAX;

impl Export {
    /// Serves a volume of this geometry; takes its buffers from `free`.
    pub fn new(
        config: &ExportConfig,
        geometry: Geometry,
        free: &mut FreeList,
    ) -> Result<(Export, Door), ExportError> {
        let name = Nqn::from(&config.nqn).ok().filter(|nqn| !nqn.is_empty() && !nqn.contains('\0'));
        let nqn = name.ok_or_else(|| ExportError::Name(config.nqn.clone()))?;
        if !(1..=MAX_CONNECTIONS).contains(&config.connections) {
            return Err(ExportError::Connections(config.connections));
        }
        let needed = config.frames();
        if free.len() < needed as usize {
            return Err(ExportError::Frames { nqn: config.nqn.clone(), needed, free: free.len() });
        }
        let namespace = Namespace {
            block_bytes: geometry.block_bytes,
            blocks: geometry.blocks,
            read_only: geometry.read_only,
            identity: config.identity,
        };
        let limits = Limits { controllers: config.connections, depth: DEPTH, ..Limits::DEFAULT };
        let bell = Arc::new(EventFd::new()?);
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(io::Error::from)?;
        epoll::add(&epoll, &*bell, EventData::new_u64(BELL), EventFlags::IN)
            .map_err(io::Error::from)?;
        let (sender, doorway) = bounded(INTAKE);
        let counters = Arc::<ExportCounters>::default();
        let connections: Box<[Connection]> =
            (0..config.connections).map(|_| Connection::new(DEPTH)).collect();
        let slots = connections[0].slots();
        let export = Export {
            owner: config.owner,
            slots,
            subsystem: Subsystem::new(nqn, &config.serial, namespace, limits)
                .with_first_epoch(config.first_epoch)
                .with_boot(config.boot),
            connections,
            live: ArrayVec::new(),
            hot: ArrayVec::new(),
            pool: Pool::new(config.connections, config.shared_frames, free),
            backlog: VecDeque::with_capacity(usize::from(config.connections) * usize::from(slots)),
            in_flight: 0,
            begun_ns: vec![0; usize::from(config.connections) * usize::from(slots)].into(),
            timing: Timing::new(usize::from(config.connections) * usize::from(slots)),
            now_ns: 0,
            has_freed: false,
            has_fence: false,
            is_predecessor_running: false,
            doorway,
            bell: Arc::clone(&bell),
            epoll,
            looked_ns: 0,
            ticked_ns: 0,
            counters: Arc::clone(&counters),
        };
        Ok((export, Door { sender, bell, counters }))
    }

    /// `Tag::owner` of its I/Os.
    pub fn owner(&self) -> u16 {
        self.owner
    }

    /// As [`poll`](Self::poll) for an export that leaves: nothing is accepted or received any
    /// more, what came before goes on. Returns commands moved.
    pub fn finish(&mut self, now_ns: u64, volume: &mut impl BlockDevice) -> usize {
        self.now_ns = now_ns;
        self.retry(now_ns, volume)
    }

    /// Whether every command that came has ended and every answer is sent.
    pub fn is_quiet(&self) -> bool {
        let is_quiet = |it: &Connection| it.running() == 0 && !(it.is_open() && it.has_output());
        self.backlog.is_empty() && self.connections.iter().all(is_quiet)
    }

    /// Whether a command that came has not ended.
    pub fn is_running(&self) -> bool {
        self.connections.iter().any(|connection| connection.running() > 0)
    }

    /// Before each [`poll`](Self::poll): whether exports of the same volume that leave have
    /// commands running. They may have served the same hosts, so that fences wait for them.
    pub fn follow(&mut self, is_predecessor_running: bool) {
        self.is_predecessor_running = is_predecessor_running;
    }

    /// What it counts.
    pub fn counters(&self) -> Arc<ExportCounters> {
        Arc::clone(&self.counters)
    }

    /// One look at everything that may have come; submits commands to `volume`. Returns messages
    /// and commands moved.
    pub fn poll(&mut self, now_ns: u64, volume: &mut impl BlockDevice) -> usize {
        self.now_ns = now_ns;
        let mut moved = self.accept(now_ns);
        if now_ns.saturating_sub(self.ticked_ns) >= TICK_NS {
            self.ticked_ns = now_ns;
            self.tick(now_ns);
        }
        moved += self.retry(now_ns, volume);
        for at in (0..self.hot.len()).rev() {
            let index = self.hot[at];
            moved += self.serve(now_ns, index, true, volume);
            let connection = &self.connections[usize::from(index)];
            let is_cold = now_ns.saturating_sub(connection.active_ns) > HOT_NS;
            if is_cold || !connection.is_open() {
                self.hot.retain(|hot| *hot != index);
            }
        }
        let is_due = now_ns.saturating_sub(self.looked_ns) >= LOOK_NS;
        if self.hot.is_empty() || self.hot.is_full() || is_due {
            self.looked_ns = now_ns;
            moved += self.look(now_ns, volume);
        }
        // What has become free lets held connections go on.
        self.has_freed = false;
        for at in (0..self.live.len()).rev() {
            let index = self.live[at];
            if self.connections[usize::from(index)].is_held() {
                moved += self.serve(now_ns, index, false, volume);
            }
        }
        if self.has_fence {
            self.settle_fences(now_ns);
        }
        moved
    }

    /// Lists these subsystems beside this one to hosts that ask for discovery; gives back those
    /// that it listed before.
    pub fn list_others(&mut self, others: Vec<discovery::Entry>) -> Vec<discovery::Entry> {
        self.subsystem.list_others(others)
    }

    /// Has the data of writes come in pieces, as a target with less memory would: asks for
    /// `r2t_bytes` at a time, in PDUs of `h2c_bytes`, from the next connection on.
    ///
    /// # Panics
    /// As [`Subsystem::take_pieces_of`].
    pub fn take_pieces_of(&mut self, r2t_bytes: u32, h2c_bytes: u32) {
        self.subsystem.take_pieces_of(r2t_bytes, h2c_bytes);
    }

    /// Refuses hosts that do not ask for at least these digests.
    pub fn require_digests(&mut self, digests: Digests) {
        self.subsystem.require_digests(digests);
    }

    /// Takes the outcome of an I/O that this export submitted.
    pub fn complete(&mut self, done: Done) {
        let (index, slot) = (done.tag.slot / self.slots, done.tag.slot % self.slots);
        self.in_flight -= 1;
        self.timing.reaped(done.tag.slot, done.marks);
        self.counters.in_flight.set(self.in_flight.into());
        if done.status == Status::Aborted && self.connections[usize::from(index)].is_open() {
            // The volume stops, and whether the I/O takes effect is open. A host that is answered
            // takes that for the end of it; one that loses its connection sends it again.
            self.close(index, End::Stopped);
        }
        let connection = &mut self.connections[usize::from(index)];
        let op = connection.work(slot).op;
        self.counters.count(op, done.status);
        if connection.is_open() && connection.needs_flush(slot, done.status) {
            // Durable means written, then flushed: the command goes on as a flush.
            self.backlog.push_back(done.tag.slot);
        } else {
            let begun_ns = self.begun_ns[usize::from(done.tag.slot)];
            self.counters.latency.record(op, self.now_ns.saturating_sub(begun_ns));
            self.end(index, slot, status_of(op, done.status));
        }
        if op == Op::Discard {
            // The next range of its list.
            while let Some(slot) = self.connections[usize::from(index)].next_command() {
                let number = index * self.slots + slot;
                self.begun_ns[usize::from(number)] = self.now_ns;
                self.backlog.push_back(number);
            }
        }
    }

    /// Sends what is to be sent.
    pub fn flush(&mut self, now_ns: u64) {
        for at in (0..self.live.len()).rev() {
            let index = self.live[at];
            let connection = &mut self.connections[usize::from(index)];
            let sent = connection.send(now_ns, &mut self.pool, index, &mut self.timing);
            self.has_freed |= sent == Ok(true);
            let outcome = sent.and_then(|_| connection.watch(index, &self.epoll));
            let is_over = connection.is_failed() && !connection.has_output();
            match outcome {
                Err(end) => self.close(index, end),
                Ok(()) if is_over => self.close(index, End::Fault),
                Ok(()) if connection.is_disconnected() => self.close(index, End::Closed),
                Ok(()) => {}
            }
        }
    }

    /// Has commands keep their times from now on, or not.
    pub fn keep_times(&mut self, is_on: bool) {
        self.timing.set(is_on);
        self.connections.iter_mut().for_each(|connection| connection.keep_times(is_on));
    }

    /// Commands whose responses were sent since the last call; `subject` names an operation's.
    pub fn entries(&mut self, subject: impl Fn(Op) -> Subject) -> impl Iterator<Item = Entry> {
        self.timing.entries(subject)
    }

    /// The worker was asleep until now: nothing was there to be seen before.
    pub fn woken(&mut self) {
        if let Some(now_ns) = self.timing.clock() {
            self.note_look(now_ns, 0);
        }
    }

    /// Whether something waits that only polling finds; then do not sleep.
    pub fn is_busy(&self) -> bool {
        let is_held = |index: &u16| self.connections[usize::from(*index)].is_held();
        let can_go_on = self.has_freed && self.live.iter().any(is_held);
        can_go_on || !self.backlog.is_empty() || !self.doorway.is_empty()
    }

    /// The descriptor that becomes readable when a round may find something.
    pub fn wake_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Ends all connections and gives the frames back that no I/O uses; `false`: I/Os are still
    /// in flight, to be completed before another call.
    pub fn close_all(&mut self, free: &mut FreeList) -> bool {
        while let Some(index) = self.live.last().copied() {
            self.close(index, End::Stopped);
        }
        while let Some(number) = self.backlog.pop_front() {
            self.end(number / self.slots, number % self.slots, StatusCode::ABORTED);
        }
        let is_idle = !self.is_running();
        if is_idle {
            self.pool.drain(free);
        }
        is_idle
    }

    fn accept(&mut self, now_ns: u64) -> usize {
        let mut count = 0;
        while let Ok(socket) = self.doorway.try_recv() {
            count += 1;
            self.bell.drain();
            let unconnected = |index: &u16| !self.connections[usize::from(*index)].is_connected();
            let strangers = self.live.iter().filter(|index| unconnected(index)).count();
            if strangers >= MAX_UNCONNECTED {
                // The list is in the order of arrival: the first is the oldest.
                if let Some(oldest) = self.live.iter().copied().find(unconnected) {
                    self.close(oldest, End::Crowded);
                }
            }
            let free = self.connections.iter().position(Connection::is_free);
            let Some(index) = free else {
                self.counters.end(End::Refused);
                continue;
            };
            let data = EventData::new_u64(index as u64);
            if epoll::add(&self.epoll, &socket, data, EventFlags::IN).is_err() {
                self.counters.end(End::Socket);
                continue;
            }
            self.connections[index].open(now_ns, socket);
            self.live.push(index as u16);
            self.counters.accepted.add(1);
            self.counters.connections.set(self.live.len() as u64);
        }
        count
    }

    /// Looks which connections have something, and serves those that are not hot.
    fn look(&mut self, now_ns: u64, volume: &mut impl BlockDevice) -> usize {
        const EVENTS: usize = 16;
        let none = epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        let mut events = [none; EVENTS];
        let zero = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        let at_ns = self.timing.clock();
        let Ok(count) = epoll::wait(&self.epoll, &mut events, Some(&zero)) else { return 0 };
        if let Some(at_ns) = at_ns.filter(|_| count < EVENTS) {
            let numbers = events[..count].iter().map(|event| event.data).map(|data| data.u64());
            let with_something = numbers.filter(|number| *number != BELL);
            self.note_look(at_ns, with_something.fold(0, |all, number| all | 1 << number));
        }
        let mut moved = 0;
        for event in &events[..count] {
            // Copied out of the packed structure.
            let data = event.data;
            let number = data.u64();
            if number == BELL {
                // Connections that were taken already leave the bell ringing.
                self.bell.drain();
                continue;
            }
            let index = number as u16;
            if self.hot.contains(&index) || !self.connections[usize::from(index)].is_open() {
                continue;
            }
            let found = self.serve(now_ns, index, true, volume);
            moved += found;
            let is_open = self.connections[usize::from(index)].is_open();
            if found > 0 && is_open && !self.hot.is_full() {
                self.hot.push(index);
            }
        }
        moved
    }

    /// No connection but those whose bits are set had something at `at_ns`.
    fn note_look(&mut self, at_ns: u64, with_something: u64) {
        for index in self.live.iter().filter(|index| with_something >> **index & 1 == 0) {
            self.connections[usize::from(*index)].had_nothing(at_ns);
        }
    }

    /// Receives from a connection (unless only what it holds is to go on) and submits what comes.
    fn serve(
        &mut self,
        now_ns: u64,
        index: u16,
        with_receive: bool,
        volume: &mut impl BlockDevice,
    ) -> usize {
        let connection = &mut self.connections[usize::from(index)];
        let (pool, subsystem) = (&mut self.pool, &mut self.subsystem);
        let outcome = connection.advance(now_ns, with_receive, index, pool, subsystem);
        let moved = match outcome {
            Ok(moved) => moved,
            Err(end) => {
                self.close(index, end);
                return 1;
            }
        };
        self.counters.digest_errors.add(u64::from(connection.take_digest_errors()));
        if let Some(fault) = connection.new_fault(now_ns) {
            self.counters.fault(fault);
        }
        if connection.has_new_fence() {
            self.begin_fence();
        }
        let mut commands = 0;
        while let Some(slot) = self.connections[usize::from(index)].next_command() {
            commands += 1;
            self.counters.commands.add(1);
            let seen = self.connections[usize::from(index)].seen();
            self.timing.began(index * self.slots + slot, seen);
            self.submit(now_ns, index * self.slots + slot, volume);
        }
        moved + commands
    }

    /// Submits a command, or puts it in line.
    fn submit(&mut self, now_ns: u64, number: u16, volume: &mut impl BlockDevice) {
        self.begun_ns[usize::from(number)] = now_ns;
        if self.connections[usize::from(number / self.slots)].is_stale {
            self.end(number / self.slots, number % self.slots, StatusCode::STALE_EPOCH);
        } else if !self.backlog.is_empty() || !self.try_submit(now_ns, number, volume) {
            self.backlog.push_back(number);
        }
    }

    fn try_submit(&mut self, now_ns: u64, number: u16, volume: &mut impl BlockDevice) -> bool {
        let (index, slot) = (number / self.slots, number % self.slots);
        let connection = &self.connections[usize::from(index)];
        let Work { op, lba, bytes, blocks, .. } = *connection.work(slot);
        let block_bytes = u64::from(volume.geometry().block_bytes);
        let segments = self.pool.segments(connection.frames(slot), 0, bytes);
        let (offset_bytes, segments): (u64, &[_]) = match op {
            Op::Flush => (0, &[]),
            _ => (lba * block_bytes, &segments),
        };
        let tag = Tag { owner: self.owner, slot: number };
        let range_bytes = if op.is_ranged() { u64::from(blocks) * block_bytes } else { 0 };
        let io = Io { tag, op, offset_bytes, range_bytes, segments };
        self.timing.taken(number);
        let is_taken = volume.submit(now_ns, &io).is_ok();
        if is_taken {
            self.timing.submitted(number, op, io.bytes());
        }
        self.in_flight += u32::from(is_taken);
        self.counters.in_flight.set(self.in_flight.into());
        is_taken
    }

    /// Submits what is in line, as far as the volume has room.
    fn retry(&mut self, now_ns: u64, volume: &mut impl BlockDevice) -> usize {
        let mut count = 0;
        while let Some(&number) = self.backlog.front() {
            let (index, slot) = (number / self.slots, number % self.slots);
            if !self.connections[usize::from(index)].is_open() {
                self.end(index, slot, StatusCode::ABORTED);
            } else if self.connections[usize::from(index)].is_stale {
                self.end(index, slot, StatusCode::STALE_EPOCH);
            } else if !self.try_submit(now_ns, number, volume) {
                break;
            }
            self.backlog.pop_front();
            count += 1;
        }
        count
    }

    /// A command has ended: answered, or, without a connection, forgotten.
    fn end(&mut self, index: u16, slot: u16, status: StatusCode) {
        let connection = &mut self.connections[usize::from(index)];
        connection.end(slot, status, index, &mut self.pool);
        self.has_freed |= !connection.is_open();
    }

    fn tick(&mut self, now_ns: u64) {
        let expired = self.subsystem.expire(now_ns);
        self.counters.stale_refusals.set(self.subsystem.stale_refusals());
        self.counters.expired.add(u64::from(expired));
        for at in (0..self.live.len()).rev() {
            let index = self.live[at];
            let connection = &self.connections[usize::from(index)];
            if let Some(end) = connection.overdue(now_ns, &self.subsystem) {
                self.close(index, end);
            }
        }
    }

    fn close(&mut self, index: u16, end: End) {
        self.counters.end(end);
        self.live.retain(|live| *live != index);
        self.hot.retain(|hot| *hot != index);
        let connection = &mut self.connections[usize::from(index)];
        connection.close(index, &mut self.pool, &mut self.subsystem, &self.epoll);
        self.timing.forget(index * self.slots..(index + 1) * self.slots);
        self.has_freed = true;
        self.counters.connections.set(self.live.len() as u64);
    }
}

fn status_of(op: Op, status: Status) -> StatusCode {
    match status {
        Status::Ok => StatusCode::SUCCESS,
        Status::OutOfRange => StatusCode::LBA_RANGE.do_not_retry(),
        Status::Unaligned => StatusCode::INVALID_FIELD.do_not_retry(),
        Status::ReadOnly => StatusCode::WRITE_PROTECTED.do_not_retry(),
        Status::Unsupported => StatusCode::INVALID_OPCODE.do_not_retry(),
        Status::Media if matches!(op, Op::Read | Op::Compare) => {
            StatusCode::READ_ERROR.do_not_retry()
        }
        // Of a flush, which would end well when tried again.
        Status::Media | Status::WritesLost => StatusCode::WRITE_FAULT.do_not_retry(),
        Status::NoSpace => StatusCode::CAPACITY.do_not_retry(),
        Status::Miscompare => StatusCode::COMPARE_FAILURE.do_not_retry(),
        Status::ConnectionLost | Status::NotConnected | Status::Target => StatusCode::INTERNAL,
        Status::MediumReplaced | Status::Stale => StatusCode::INTERNAL.do_not_retry(),
        Status::Aborted => StatusCode::ABORTED,
    }
}
