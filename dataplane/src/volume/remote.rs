//! A volume at an NVMe/TCP target, over one connected I/O queue.
//!
//! Control connects and hands over a [`Link`]; the worker drives it. When the connection is lost,
//! the link goes back to control, and I/O waits in line for the next one (`recovery`). Every I/O
//! takes effect once: it is sent again only when nothing of the lost connection can take effect
//! any more, and it has not ended before.
//!
//! A write's data leaves from the I/O's segments. A read's small data is copied once, from the
//! buffer that one receive call fills; what is not there yet is received straight into place. With
//! data digests everything is copied once, in both directions, and the digest is of the copy.

mod cache;
mod link;
mod recovery;

pub use link::{Link, LossReason, Lost, RemoteControl, RemoteCounters};

use super::{BlockDevice, Done, Dones, Full, Geometry, Io, Marks, Op, Status, Tag};
use crate::clock;
use cache::Cache;
use crossbeam::channel::{Receiver, Sender, bounded};
use link::Word;
use outboard_dma::socket::{self, Gather, Scatter};
use outboard_dma::{EventFd, Segments};
use outboard_rdma::nvmf::initiator::{self, Request};
use outboard_rdma::nvmf::{self, Fault, LoadError, Piece, StatusCode, Want};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// I/Os in flight at most, ended ones that wait for `reap` included.
pub const DEPTH: u16 = 128;
/// How long a target may stop in the middle of a PDU while I/O is in flight. That is no slow
/// medium, which sends nothing of an answer that it does not have: longer than the kernel waits
/// for an acknowledgement (8 s), which is missing when the network is the reason.
pub const STALL_NS: u64 = 10_000_000_000;
/// Bytes that one call receives beside data that goes straight to its place: about eight reads of
/// 4 KiB, so that a deep queue needs few calls.
const STAGING_BYTES: usize = 32 << 10;
/// Receive and send calls of one `reap` each.
const CALLS: usize = 8;
/// The most blocks of one discard: a range's length has 32 bits.
const MAX_DISCARD_BLOCKS: u64 = u32::MAX as u64;
/// The most blocks of one command (NLB has 16 bits).
const MAX_BLOCKS: u64 = 1 << 16;
/// What control may have said and the worker not heard yet.
const WORDS: usize = 4;

/// An I/O in flight: one command, or several when it is longer than a command may be.
#[derive(Debug)]
struct Parent {
    is_active: bool,
    /// Its place in the order of submission.
    order: u64,
    /// Whether commands of it were made on any connection.
    was_sent: bool,
    tag: Tag,
    op: Op,
    offset_bytes: u64,
    segments: Segments,
    bytes: u64,
    /// How far commands were made.
    issued: u64,
    /// Commands in flight.
    commands: u16,
    /// Of a flush: what of the target's cache it covers.
    covers: u64,
    status: Status,
    marks: Marks,
}

impl Parent {
    const FREE: Parent = Parent {
        is_active: false,
        order: 0,
        was_sent: false,
        tag: Tag { owner: 0, slot: 0 },
        op: Op::Flush,
        offset_bytes: 0,
        segments: Segments::new_const(),
        bytes: 0,
        issued: 0,
        commands: 0,
        covers: 0,
        status: Status::Ok,
        marks: Marks { told_ns: 0, answered_ns: 0 },
    };
}

/// Whose command is in an engine's slot, and where its data begins in that I/O's.
#[derive(Clone, Copy, Debug, Default)]
struct Command {
    parent: u16,
    start: u64,
    made_ns: u64,
}

/// A volume at an NVMe/TCP target.
#[derive(Debug)]
pub struct Remote {
    geometry: Geometry,
    /// What one command may transfer by the protocol, and on this connection.
    most_bytes: u64,
    max_transfer_bytes: u64,
    link: Option<Link>,
    is_send_blocked: bool,
    words: Receiver<Word>,
    /// Words that control has sent, and those that were heard.
    sent: Arc<AtomicU32>,
    heard: u32,
    bell: Arc<EventFd>,
    lost: Sender<Lost>,
    lost_bell: Arc<EventFd>,
    epoll: OwnedFd,
    parents: Box<[Parent]>,
    free: Vec<u16>,
    commands: Box<[Command]>,
    /// I/Os of which commands are still to be made, in order.
    backlog: VecDeque<u16>,
    /// I/Os that change the content, while the target may still work on what it was sent before.
    held: VecDeque<u16>,
    holds_changes_until_ns: Option<u64>,
    /// I/Os submitted so far.
    submitted: u64,
    /// Since when there is no connection.
    lost_ns: Option<u64>,
    /// For how long I/O waits for one.
    patience_ns: u64,
    /// Without a connection: what I/O ends as at once, instead of waiting.
    fate: Option<Status>,
    cache: Cache,
    ended: VecDeque<Done>,
    staging: Box<[u8]>,
    /// When the turn began.
    now_ns: u64,
    /// When something was last received on this connection.
    received_ns: u64,
    /// Whether I/Os carry their times, which were not sent yet, and when something last arrived.
    keeps_times: bool,
    untold: VecDeque<u16>,
    arrived_ns: u64,
    counters: Arc<RemoteCounters>,
}

/// What may be known of an epoll event: which descriptor it was does not matter.
const ANY: EventData = EventData::new_u64(0);

impl Remote {
    /// A volume of this geometry without a connection, and control's side of it. Without one, I/O
    /// waits for `patience`.
    pub fn new(geometry: Geometry, patience: Duration) -> io::Result<(Remote, RemoteControl)> {
        let most = MAX_BLOCKS * u64::from(geometry.block_bytes);
        let (words_in, words) = bounded(WORDS);
        let (lost, lost_out) = bounded(2);
        let (bell, lost_bell) = (Arc::new(EventFd::new()?), Arc::new(EventFd::new()?));
        let sent = Arc::<AtomicU32>::default();
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*bell, ANY, EventFlags::IN)?;
        let counters = Arc::<RemoteCounters>::default();
        let line = || VecDeque::with_capacity(usize::from(DEPTH));
        let control = RemoteControl {
            words: words_in,
            sent: Arc::clone(&sent),
            bell: Arc::clone(&bell),
            lost: lost_out,
            lost_bell: Arc::clone(&lost_bell),
            counters: Arc::clone(&counters),
        };
        let remote = Remote {
            geometry,
            most_bytes: most,
            max_transfer_bytes: most,
            link: None,
            is_send_blocked: false,
            words,
            sent,
            heard: 0,
            bell,
            lost,
            lost_bell,
            epoll,
            parents: (0..DEPTH).map(|_| Parent::FREE).collect(),
            free: (0..DEPTH).rev().collect(),
            commands: vec![Command::default(); usize::from(DEPTH)].into(),
            backlog: line(),
            held: line(),
            holds_changes_until_ns: None,
            submitted: 0,
            lost_ns: None,
            patience_ns: patience.as_nanos() as u64,
            fate: None,
            cache: Cache::new(),
            ended: VecDeque::with_capacity(usize::from(DEPTH)),
            staging: vec![0; STAGING_BYTES].into(),
            now_ns: 0,
            received_ns: 0,
            keeps_times: false,
            untold: line(),
            arrived_ns: 0,
            counters,
        };
        Ok((remote, control))
    }

    /// The volume, refusing writes whatever the target allows.
    pub fn read_only(mut self) -> Remote {
        self.geometry.read_only = true;
        self
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// Its end of the connection, if there is one, as plain data; the I/Os are the volume's.
    pub fn save_engine(&self) -> Option<Vec<u8>> {
        self.link.as_ref().map(|link| link.queue.save())
    }

    /// Goes on with what [`save_engine`](Self::save_engine) gave, of the same connection.
    pub fn load_engine(&mut self, saved: &[u8]) -> Result<(), LoadError> {
        let queue = initiator::Queue::load(saved)?;
        if let Some(link) = &mut self.link {
            link.queue = queue;
        }
        Ok(())
    }

    /// Has I/Os carry their times from now on, or not.
    pub(super) fn keep_times(&mut self, is_on: bool) {
        (self.keeps_times, self.arrived_ns) = (is_on, 0);
        self.untold.clear();
    }

    /// Makes commands of the I/Os in line, as far as the queue has room.
    fn issue(&mut self) {
        let Some(link) = &mut self.link else { return };
        while let Some(&index) = self.backlog.front() {
            let parent = &mut self.parents[usize::from(index)];
            let left = parent.bytes - parent.issued;
            let block_bytes = u64::from(self.geometry.block_bytes);
            let most = match parent.op {
                Op::Discard => MAX_DISCARD_BLOCKS * block_bytes,
                // Not what limits Write Zeroes (NVM 4.1.5.2), but some controllers think so.
                _ => self.max_transfer_bytes,
            };
            let bytes = left.min(most);
            let request = Request {
                op: command_of(parent.op),
                lba: (parent.offset_bytes + parent.issued) / block_bytes,
                blocks: (bytes / block_bytes) as u32
                    + u32::from(parent.op == Op::WriteZeroes && planted!("volume-one-zero-more")),
                bytes: if parent.op.is_ranged() { 0 } else { bytes as u32 },
            };
            let Ok(slot) = link.queue.submit(&request) else { return };
            self.commands[usize::from(slot)] =
                Command { parent: index, start: parent.issued, made_ns: self.now_ns };
            if self.keeps_times && !std::mem::replace(&mut parent.was_sent, true) {
                self.untold.push_back(index);
            }
            parent.was_sent = true;
            parent.commands += 1;
            parent.issued += bytes;
            if parent.issued == parent.bytes {
                self.backlog.pop_front();
            }
        }
    }

    /// Sends what the socket takes.
    fn send(&mut self) -> Result<(), LossReason> {
        let Some(link) = &mut self.link else { return Ok(()) };
        for _ in 0..CALLS {
            if !link.queue.has_output() {
                break;
            }
            if link.queue.has_data_digest() {
                match send_copied(link, &mut self.staging, &self.commands, &self.parents) {
                    Ok(()) => continue,
                    Err(error) if is_transient(&error) => break,
                    Err(error) => return Err(LossReason::Socket(error.kind())),
                }
            }
            let mut gather = Gather::new();
            for piece in link.queue.pieces() {
                let fits = match piece {
                    Piece::Bytes(bytes) => gather.push(bytes),
                    Piece::Data { slot, offset, len } => {
                        let Command { parent, start, .. } = self.commands[usize::from(slot)];
                        let segments = &self.parents[usize::from(parent)].segments;
                        socket::range(segments, start as usize + offset as usize, len as usize)
                            .all(|segment| gather.push_segment(&segment))
                    }
                };
                if !fits {
                    break;
                }
            }
            match gather.send(link.socket.as_fd()) {
                Ok(sent) => link.queue.sent(sent),
                Err(error) if is_transient(&error) => break,
                Err(error) => return Err(LossReason::Socket(error.kind())),
            }
        }
        let is_blocked = link.queue.has_output();
        if !is_blocked && !self.untold.is_empty() {
            let now_ns = clock::now_ns();
            for index in self.untold.drain(..) {
                self.parents[usize::from(index)].marks.told_ns = now_ns;
            }
        }
        if is_blocked != self.is_send_blocked {
            self.is_send_blocked = is_blocked;
            let out = if is_blocked { EventFlags::OUT } else { EventFlags::empty() };
            epoll::modify(&self.epoll, &link.socket, ANY, EventFlags::IN | out)
                .map_err(|error| LossReason::Socket(error.kind()))?;
        }
        Ok(())
    }

    /// Receives what is there.
    fn receive(&mut self) -> Result<(), LossReason> {
        for _ in 0..CALLS {
            let Some(link) = &mut self.link else { return Ok(()) };
            let (received, room) = match link.queue.wants() {
                Want::Data { slot, offset, len } if !link.queue.has_data_digest() => {
                    let mut scatter = Scatter::new();
                    let Command { parent, start, .. } = self.commands[usize::from(slot)];
                    let segments = &self.parents[usize::from(parent)].segments;
                    let start = start as usize + offset as usize;
                    for segment in socket::range(segments, start, len as usize) {
                        scatter.push_segment(&segment);
                    }
                    scatter.push(&mut self.staging);
                    let received = scatter.receive(link.socket.as_fd());
                    let placed = received.as_ref().map_or(0, |bytes| *bytes).min(len as usize);
                    link.queue.placed(placed as u32).map_err(LossReason::Fault)?;
                    let rest = received.map(|bytes| (bytes, bytes - placed));
                    (rest, len as usize + STAGING_BYTES)
                }
                Want::Data { .. } | Want::Engine | Want::Nothing => {
                    let received = socket::receive(link.socket.as_fd(), &mut self.staging);
                    (received.map(|bytes| (bytes, bytes)), STAGING_BYTES)
                }
            };
            match received {
                Ok((0, _)) => return Err(LossReason::Closed),
                Ok((bytes, staged)) => {
                    self.received_ns = self.now_ns;
                    if self.keeps_times {
                        self.arrived_ns = clock::now_ns();
                    }
                    self.feed(staged).map_err(LossReason::Fault)?;
                    // A short read has emptied the socket: the next one would find nothing.
                    if bytes < room {
                        return Ok(());
                    }
                }
                Err(error) if is_transient(&error) => return Ok(()),
                Err(error) => return Err(LossReason::Socket(error.kind())),
            }
        }
        Ok(())
    }

    /// Gives the first `staged` bytes of the staging buffer to the engine, and data to its place.
    fn feed(&mut self, staged: usize) -> Result<(), Fault> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let mut rest = &self.staging[..staged];
        while !rest.is_empty() {
            match link.queue.wants() {
                Want::Engine | Want::Nothing => {
                    let used = link.queue.receive(rest)?;
                    rest = &rest[used..];
                }
                Want::Data { slot, offset, len } => {
                    let (data, behind) = rest.split_at(rest.len().min(len as usize));
                    let Command { parent, start, .. } = self.commands[usize::from(slot)];
                    let segments = &self.parents[usize::from(parent)].segments;
                    let start = start as usize + offset as usize;
                    let mut at = 0;
                    for segment in socket::range(segments, start, data.len()) {
                        segment.copy_from(0, &data[at..at + segment.len()]);
                        at += segment.len();
                    }
                    link.queue.placed_copy(data)?;
                    rest = behind;
                }
            }
        }
        Ok(())
    }

    /// Ends I/Os whose commands have ended. Whether the target refused one because somebody has
    /// fenced this connection out: then its I/O stays, and control finds out who it was. It may
    /// have been a late question of our own; only a refused fence says that we were replaced.
    fn collect(&mut self) -> bool {
        let mut is_fenced_out = false;
        while let Some(ended) = self.link.as_mut().and_then(|link| link.queue.next_ended()) {
            if ended.status.plain() == StatusCode::STALE_EPOCH {
                is_fenced_out = true;
                continue;
            }
            let Command { parent: index, made_ns, .. } = self.commands[usize::from(ended.slot)];
            self.counters.round_trip.record(self.now_ns.saturating_sub(made_ns));
            let parent = &mut self.parents[usize::from(index)];
            parent.commands -= 1;
            parent.marks.answered_ns = self.arrived_ns;
            let status = status_of(ended.status);
            if status != Status::Ok && parent.status == Status::Ok {
                parent.status = status;
            }
            let has_failed = parent.status != Status::Ok;
            let is_whole = parent.issued == parent.bytes;
            if parent.commands == 0 && (is_whole || has_failed) {
                let status = parent.status;
                if !is_whole {
                    self.backlog.retain(|waiting| *waiting != index);
                }
                self.end(index, status);
            }
        }
        is_fenced_out
    }

    /// Whether the target stopped in the middle of a PDU, too long ago.
    fn is_stalled(&self) -> bool {
        let is_inside = self.link.as_ref().is_some_and(|link| link.queue.is_inside_pdu());
        is_inside && self.now_ns.saturating_sub(self.received_ns) >= STALL_NS
    }

    fn count_digest_errors(&mut self) {
        if let Some(link) = &mut self.link {
            self.counters.digest_errors.add(u64::from(link.queue.take_digest_errors()));
        }
    }

    fn drive(&mut self) -> Result<(), LossReason> {
        self.send()?;
        let received = self.receive();
        self.count_digest_errors();
        received?;
        if self.collect() {
            return Err(LossReason::FencedOut);
        }
        if self.is_stalled() {
            return Err(LossReason::Stalled);
        }
        self.issue();
        // What an R2T asked for, and what had no room before.
        if self.link.as_ref().is_some_and(|link| link.queue.has_output()) && !self.is_send_blocked {
            self.send()?;
        }
        Ok(())
    }
}

impl BlockDevice for Remote {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, now_ns: u64, io: &Io) -> Result<(), Full> {
        self.now_ns = now_ns;
        if self.in_flight() == u32::from(DEPTH) {
            return Err(Full);
        }
        let bytes = if io.op == Op::Flush { 0 } else { io.bytes() };
        let at_once = match self.geometry.check(io) {
            Err(status) => Some(status),
            Ok(()) if self.link.is_none() && self.fate.is_some() => self.fate,
            Ok(()) if io.op != Op::Flush && bytes == 0 => Some(Status::Ok),
            Ok(()) if io.op == Op::Flush && self.cache.must_tell(io.tag.owner) => {
                Some(Status::WritesLost)
            }
            Ok(()) if io.op == Op::Flush && planted!("volume-flush-not-sent") => Some(Status::Ok),
            Ok(()) => None,
        };
        if let Some(status) = at_once {
            self.ended.push_back(Done::new(io.tag, status));
            return Ok(());
        }
        let index = self.free.pop().ok_or(Full)?;
        let parent = &mut self.parents[usize::from(index)];
        parent.is_active = true;
        parent.order = self.submitted;
        parent.was_sent = false;
        self.submitted += 1;
        parent.tag = io.tag;
        parent.op = io.op;
        parent.offset_bytes = io.offset_bytes;
        parent.segments.clear();
        if io.op != Op::Flush {
            parent.segments.extend(io.segments.iter().copied());
        }
        (parent.bytes, parent.issued, parent.commands) = (bytes, 0, 0);
        (parent.status, parent.marks) = (Status::Ok, Marks::default());
        parent.covers = self.cache.now();
        if self.holds_changes_until_ns.is_some() && io.op.is_change() {
            self.held.push_back(index);
        } else {
            self.backlog.push_back(index);
            self.issue();
        }
        Ok(())
    }

    fn reap(&mut self, now_ns: u64, done: &mut Dones) {
        self.now_ns = now_ns;
        self.listen(now_ns);
        self.release_changes(now_ns);
        if let Err(reason) = self.drive() {
            // A TermReq tells the target why; the data it may follow is still in place.
            self.collect();
            let _ = self.send();
            self.lose(now_ns, reason);
        }
        if self.link.is_none() {
            self.lose_patience(now_ns);
        }
        let count = done.remaining_capacity().min(self.ended.len());
        for ended in self.ended.drain(..count) {
            if ended.status == Status::WritesLost {
                self.cache.tell(ended.tag.owner);
            }
            done.push(ended);
        }
        self.counters.in_flight.set(u64::from(self.in_flight()));
    }

    fn withdraw(&mut self, tag: Tag) {
        // With a connection the target may be at it. Without one nothing comes or goes, and what
        // the target still does of the past is fenced off, or waited out, before the next.
        if self.link.is_none() {
            self.withdraw_waiting(tag);
        }
    }

    fn in_flight(&self) -> u32 {
        u32::from(DEPTH) - self.free.len() as u32 + self.ended.len() as u32
    }

    fn wake_fd(&self) -> Option<RawFd> {
        Some(self.epoll.as_raw_fd())
    }
}

/// Sends what the socket takes of a copy, which data digests are made of: the guest may write its
/// buffers meanwhile.
fn send_copied(
    link: &mut Link,
    staging: &mut [u8],
    commands: &[Command],
    parents: &[Parent],
) -> io::Result<()> {
    let filled = link.queue.fill(staging, |slot, offset, place| {
        let Command { parent, start, .. } = commands[usize::from(slot)];
        let segments = &parents[usize::from(parent)].segments;
        let mut at = 0;
        for segment in socket::range(segments, start as usize + offset as usize, place.len()) {
            segment.copy_to(0, &mut place[at..at + segment.len()]);
            at += segment.len();
        }
    });
    let mut gather = Gather::new();
    gather.push(&staging[..filled]);
    let sent = gather.send(link.socket.as_fd())?;
    link.queue.sent_copy(&staging[..sent]);
    Ok(())
}

fn command_of(op: Op) -> nvmf::Op {
    match op {
        Op::Read => nvmf::Op::Read,
        Op::Write => nvmf::Op::Write,
        Op::Flush => nvmf::Op::Flush,
        Op::Discard => nvmf::Op::Discard,
        Op::WriteZeroes => nvmf::Op::WriteZeroes,
        Op::Compare => nvmf::Op::Compare,
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn status_of(status: StatusCode) -> Status {
    match status.plain() {
        StatusCode::SUCCESS => Status::Ok,
        StatusCode::LBA_RANGE => Status::OutOfRange,
        StatusCode::WRITE_PROTECTED => Status::ReadOnly,
        StatusCode::CAPACITY => Status::NoSpace,
        StatusCode::READ_ERROR if planted!("volume-read-error-hidden") => Status::Ok,
        StatusCode::READ_ERROR | StatusCode::WRITE_FAULT => Status::Media,
        StatusCode::COMPARE_FAILURE => Status::Miscompare,
        StatusCode::INVALID_OPCODE => Status::Unsupported,
        _ => Status::Target,
    }
}
