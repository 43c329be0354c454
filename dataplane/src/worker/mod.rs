//! The loop. `Worker::turn` is the whole data plane: network, then storage, run to completion.
//!
//! Nothing in a turn allocates, locks, waits or logs. A worker owns its queues, flows, volumes
//! and a share of the frames; what others have for it comes by mailbox or by a peer's ring.

mod network;
mod storage;

pub use network::{Exit, Network, PortParts, Queue, TAPS};
pub use storage::{Left, Storage, User, VolumeSlot};

use crate::bell::Bell;
use crate::capture::Tap;
use crate::clock;
use crate::config::plan::WaitMode;
use crate::counters::Counter;
use crate::ledger::Ledgers;
use crate::packet::PortId;
use crate::port::AnyPort;
use crate::switch::Tables;
use crossbeam::channel::{Receiver, Sender};
use outboard_dma::wake::{self, Sleeper};
use outboard_dma::{FreeList, PollList};
use outboard_rdma::nvmf::discovery;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

/// A turn that takes longer is counted as an overrun of the room that took most of it.
pub const TURN_BUDGET_NS: u64 = 50_000;
/// The longest sleep: housekeeping (keep-alive, held packets) happens this often when idle.
const SLEEP_MAX: Duration = Duration::from_millis(100);
/// The longest sleep while an output waits for room.
const SLEEP_BACKLOG: Duration = Duration::from_millis(1);
/// The longest sleep with a port that cannot wake anybody: its packets wait as long at most.
const SLEEP_POLL: Duration = Duration::from_micros(50);
/// How often tenants are told of their gateway: well before a router advertisement runs out.
const GREET_NS: u64 = 600_000_000_000;
/// How soon after new tables, which may have new ports.
const GREET_SOON_NS: u64 = 1_000_000_000;
/// Descriptors that one worker sleeps on without allocating.
const SLEEP_FDS: usize = 1024;

/// What control tells a worker.
#[derive(Debug)]
pub enum Message {
    /// Use these tables from the next packet on.
    Tables(Arc<Tables>),
    /// Take this port in; the rest of it comes back.
    AddPort(Box<PortParts>),
    /// Let this port go, which no tables name any more; it comes back with its queues, for which
    /// there is room.
    RemovePort(Box<PortParts>),
    /// Use this for the nth own queue of that port, whose interface is gone.
    Port(PortId, u16, Box<AnyPort>),
    /// Frames that a port which was closed elsewhere had.
    Frames(Box<FreeList>),
    /// Put this many frames into the empty list, which comes back: all of them, or none when
    /// there are not so many.
    TakeFrames(Box<FreeList>, u32),
    /// Take this volume in.
    AddVolume(Box<VolumeSlot>),
    /// Let the volume of this number go; it comes back when it has no users and no I/O.
    RemoveVolume(u32),
    /// Take in a user of the volume of this number.
    AddUser(u32, User),
    /// Let a user of the volume of this number go; it comes back when its I/O has ended.
    RemoveUser(u32, u16),
    /// Have an export, of the volume of this number, list these; those from before come back.
    ListOthers(u32, u16, Vec<discovery::Entry>),
    /// Let this tap look at packets; it comes back when there is no room for it.
    Tap(Box<Tap>),
    /// Let the tap of this capture go; it comes back.
    Untap(u64),
    /// Keep these ledgers from now on; those from before come back.
    KeepLedgers(Box<Books>),
    /// Finish the turn, end everything, return.
    Stop,
}

/// What a worker no longer uses, for control to free.
#[derive(Debug)]
pub enum Retired {
    /// Tables.
    Tables(Arc<Tables>),
    /// What was left of a port that was taken in, or the port that has left: its queues are to be
    /// closed, and their frames are the worker's.
    Parts(Box<PortParts>),
    /// A port, to be closed; its frames are the worker's. What was to be replaced and is not
    /// there comes back as it came.
    Port(Box<AnyPort>),
    /// A list, empty unless it was to be filled.
    Frames(Box<FreeList>),
    /// What an export listed before.
    Listed(Vec<discovery::Entry>),
    /// A tap that has left, or found no room; nothing when it was taken in, or was not there.
    Tap(Option<Box<Tap>>),
    /// Ledgers, whole.
    Ledgers(Box<Books>),
    /// A user or a volume that has left.
    Storage(Left),
}

/// A ledger for each room, or none.
#[derive(Debug, Default)]
pub struct Books {
    /// Packets.
    pub network: Option<Box<Ledgers>>,
    /// I/Os.
    pub storage: Option<Box<Ledgers>>,
}

/// What a worker counts about itself.
#[derive(Debug, Default)]
pub struct WorkerCounters {
    /// Turns taken.
    pub turns: Counter,
    /// Turns that found something to do.
    pub busy_turns: Counter,
    /// Nanoseconds spent in those.
    pub busy_ns: Counter,
    /// Times it slept.
    pub sleeps: Counter,
    /// Turns over the budget in which the network room took most.
    pub network_overruns: Counter,
    /// Turns over the budget in which the storage room took most.
    pub storage_overruns: Counter,
    /// Frames in stock, sampled when the worker sleeps or ends.
    pub free_frames: Counter,
}

/// How a worker waits.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// What it does after an empty turn.
    pub mode: WaitMode,
    /// For how long an adaptive worker spins first.
    pub spin_ns: u64,
}

/// One worker, driven by one pinned thread.
#[derive(Debug)]
pub struct Worker {
    network: Network,
    storage: Storage,
    free: FreeList,
    share_frames: usize,
    mailbox: Receiver<Message>,
    /// What it no longer uses goes back to control, which frees it.
    retired: Sender<Retired>,
    bell: Arc<Bell>,
    waiting: Waiting,
    poll: PollList,
    counters: Arc<WorkerCounters>,
    /// When tenants are told of their gateway again.
    greet_at_ns: u64,
    stopping: bool,
    /// Whether every I/O had ended when it stopped.
    all_ended: bool,
}

/// What a worker is made of besides its rooms.
#[derive(Debug)]
pub struct Fittings {
    /// Its share of the frames, less what its storage room has taken.
    pub free: FreeList,
    /// Frames in its share.
    pub share_frames: usize,
    /// Messages from control.
    pub mailbox: Receiver<Message>,
    /// What it no longer uses, on the way to control.
    pub retired: Sender<Retired>,
    /// What wakes it.
    pub bell: Arc<Bell>,
    /// How it waits.
    pub waiting: Waiting,
    /// What it counts.
    pub counters: Arc<WorkerCounters>,
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Frames that it started with.
    pub total_frames: usize,
    /// Frames that it had back at the end.
    pub recovered_frames: usize,
    /// Whether every I/O had ended.
    pub all_ended: bool,
}

impl Worker {
    /// A worker that owns these rooms.
    pub fn new(network: Network, storage: Storage, fittings: Fittings) -> Worker {
        let Fittings { free, share_frames, mailbox, retired, bell, waiting, counters } = fittings;
        Worker {
            network,
            storage,
            free,
            share_frames,
            mailbox,
            retired,
            bell,
            waiting,
            poll: PollList::with_capacity(SLEEP_FDS),
            counters,
            greet_at_ns: 0,
            stopping: false,
            all_ended: true,
        }
    }

    /// One turn; whether it found anything to do.
    #[inline]
    pub fn turn(&mut self, now_ns: u64) -> bool {
        let mut found = self.mail(now_ns);
        let packets = self.network.turn(now_ns, &mut self.free);
        let between_ns = if packets > 0 { clock::now_ns() } else { now_ns };
        let ios = self.storage.turn(between_ns);
        self.let_go(now_ns);
        self.counters.turns.add(1);
        found |= packets + ios > 0;
        if found {
            self.counters.busy_turns.add(1);
            self.judge(now_ns, between_ns);
        }
        found
    }

    /// Its network room.
    pub fn network_mut(&mut self) -> &mut Network {
        &mut self.network
    }

    /// Turns until told to stop; then ends its I/O and comes back, to be ended with the others.
    pub fn run(mut self) -> Worker {
        let mut idle_since_ns = None;
        while !self.stopping {
            let now_ns = clock::now_ns();
            if now_ns >= self.greet_at_ns {
                self.greet_at_ns = now_ns + GREET_NS;
                self.network.greet(&mut self.free);
            }
            if self.turn(now_ns) {
                idle_since_ns = None;
                continue;
            }
            match self.waiting.mode {
                WaitMode::Busy => std::hint::spin_loop(),
                WaitMode::Yield => std::thread::yield_now(),
                WaitMode::Adaptive => {
                    let since_ns = *idle_since_ns.get_or_insert(now_ns);
                    if now_ns - since_ns >= self.waiting.spin_ns && wake::sleep(&mut self) {
                        idle_since_ns = None;
                    }
                }
            }
        }
        self.all_ended = self.storage.close(&mut self.free);
        self
    }

    /// Ends what other workers sent to this one. Call for every worker when none runs any more.
    pub fn drain(&mut self) {
        self.network.drain(&mut self.free);
    }

    /// Ends everything. Call after every worker was drained.
    pub fn end(mut self) -> Ended {
        self.network.close(&mut self.free);
        self.counters.free_frames.set(self.free.len() as u64);
        Ended {
            total_frames: self.share_frames,
            recovered_frames: self.free.len(),
            all_ended: self.all_ended,
        }
    }

    fn mail(&mut self, now_ns: u64) -> bool {
        let Ok(message) = self.mailbox.try_recv() else { return false };
        match message {
            Message::Tables(tables) => {
                let old = self.network.set_tables(tables, now_ns, &mut self.free);
                self.greet_at_ns = self.greet_at_ns.min(now_ns + GREET_SOON_NS);
                self.retire(Retired::Tables(old));
            }
            Message::AddPort(mut parts) => {
                self.network.add_port(&mut parts);
                self.retire(Retired::Parts(parts));
            }
            Message::RemovePort(parts) => self.network.remove_port(parts),
            Message::Port(id, nth, mut port) => {
                if let Some(old) = self.network.queue_mut(id, nth.into()) {
                    std::mem::swap(old, &mut *port);
                }
                self.greet_at_ns = 0;
                self.retire(Retired::Port(port));
            }
            Message::Frames(mut frames) => {
                while let Some(frame) = frames.take() {
                    self.free.give(frame);
                }
                self.retire(Retired::Frames(frames));
            }
            Message::TakeFrames(mut list, count) => {
                let is_enough = self.free.len() >= count as usize;
                for _ in 0..if is_enough { count } else { 0 } {
                    self.free.take().into_iter().for_each(|frame| list.give(frame));
                }
                self.retire(Retired::Frames(list));
            }
            Message::AddVolume(slot) => self.storage.add_volume(slot),
            Message::RemoveVolume(number) => self.storage.remove_volume(number),
            Message::AddUser(number, user) => self.storage.add_user(number, user),
            Message::RemoveUser(number, owner) => self.storage.remove_user(number, owner, now_ns),
            Message::ListOthers(number, owner, others) => {
                let before = self.storage.list_others(number, owner, others);
                self.retire(Retired::Listed(before));
            }
            Message::Tap(tap) => {
                let refused = self.network.add_tap(tap);
                self.retire(Retired::Tap(refused));
            }
            Message::Untap(id) => {
                let tap = self.network.remove_tap(id);
                self.retire(Retired::Tap(tap));
            }
            Message::KeepLedgers(mut books) => {
                books.network = self.network.keep_ledger(books.network.take());
                books.storage = self.storage.keep_ledger(books.storage.take());
                self.retire(Retired::Ledgers(books));
            }
            Message::Stop => self.stopping = true,
        }
        true
    }

    /// Gives back what was to leave and has nothing left to do.
    #[inline]
    fn let_go(&mut self, now_ns: u64) {
        // It waits, rather than being freed here, while the way back has room for no more than
        // the answer to what control may be asking.
        let room = self.retired.capacity().map_or(usize::MAX, |all| all - self.retired.len());
        if !self.is_leaving() || room <= 1 {
            return;
        }
        if let Some(parts) = self.network.left(&mut self.free) {
            self.retire(Retired::Parts(parts));
        } else if let Some(left) = self.storage.left(now_ns, &mut self.free) {
            self.retire(Retired::Storage(left));
        }
    }

    fn is_leaving(&self) -> bool {
        self.network.is_leaving() || self.storage.is_leaving()
    }

    fn retire(&self, what: Retired) {
        // When control is gone, or has not looked for a whole mailbox, it is freed here.
        let _ = self.retired.try_send(what);
    }

    fn judge(&self, start_ns: u64, between_ns: u64) {
        let end_ns = clock::now_ns();
        self.counters.busy_ns.add(end_ns - start_ns);
        if end_ns - start_ns > TURN_BUDGET_NS {
            if between_ns - start_ns >= end_ns - between_ns {
                self.counters.network_overruns.add(1);
            } else {
                self.counters.storage_overruns.add(1);
            }
        }
    }
}

impl Sleeper for Worker {
    fn arm(&mut self) {
        self.bell.arm();
    }

    /// Storage arms each of its rings and looks at it in one.
    fn look(&mut self) -> bool {
        self.turn(clock::now_ns()) | self.storage.arm() | self.network.before_sleep(&mut self.free)
    }

    fn disarm(&mut self) {
        self.storage.disarm();
        self.bell.disarm();
    }

    fn wait(&mut self) {
        self.counters.sleeps.add(1);
        self.counters.free_frames.set(self.free.len() as u64);
        self.poll.clear();
        self.poll.add(self.bell.fd().as_raw_fd(), false);
        self.network.add_fds(&mut self.poll);
        self.storage.add_fds(&mut self.poll);
        let backlog = self.network.has_backlog() || self.is_leaving();
        // An error (a descriptor table too small, no memory) only costs the sleep.
        let _ = self.poll.wait(match (self.network.must_poll(), backlog) {
            (true, _) => SLEEP_POLL,
            (false, true) => SLEEP_BACKLOG,
            (false, false) => SLEEP_MAX,
        });
        if self.network.has_ledger() {
            self.network.woken(clock::now_ns());
        }
    }
}
