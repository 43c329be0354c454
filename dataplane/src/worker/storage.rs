//! A worker's storage room: volumes, and the disks and exports that use them.
//!
//! Conservation: every I/O that a user submits comes back to it exactly once. Who leaves does so
//! over turns: it takes nothing new, its I/O ends, and then it goes back to control.

use crate::clock;
use crate::ledger::{Kind, Ledgers, Subject};
use crate::volume::disk::Disk;
use crate::volume::export::Export;
use crate::volume::{BlockDevice, Dones, Op, Volume};
use outboard_dma::{FreeList, PollList};
use outboard_rdma::nvmf::discovery::Entry;

/// For how long a stopping worker waits for I/O in flight.
const CLOSE_NS: u64 = 5_000_000_000;
/// For how long an export that leaves may answer what its hosts have asked already.
const ANSWER_NS: u64 = 1_000_000_000;
/// Volumes that a worker has room for: those of a plan, and those of the plan that replaces it.
pub const VOLUMES_MAX: usize = 2 * crate::config::plan::VOLUMES_MAX;
/// Users of a volume that there is room for, likewise.
pub const USERS_MAX: usize =
    2 * (crate::config::plan::DISKS_MAX + crate::config::plan::EXPORTS_MAX);

/// Who submits I/O to a volume. `Tag::owner` is its index among the volume's users.
#[derive(Debug)]
pub enum User {
    /// A guest's disk.
    Disk(Box<Disk>),
    /// A target for other hosts.
    Export(Box<Export>),
}

impl User {
    /// Its place among the users of its volume.
    pub fn owner(&self) -> u16 {
        match self {
            User::Disk(disk) => disk.owner(),
            User::Export(export) => export.owner(),
        }
    }
}

/// A user, and since when it is leaving.
#[derive(Debug)]
struct Seat {
    user: User,
    leaving_ns: Option<u64>,
}

impl Seat {
    /// Whether this is an export that leaves, with commands running.
    fn is_leaver_running(&self) -> bool {
        let is_running = matches!(&self.user, User::Export(export) if export.is_running());
        self.leaving_ns.is_some() && is_running
    }
}

/// A volume and its users.
#[derive(Debug)]
pub struct VolumeSlot {
    number: u32,
    volume: Volume,
    /// By `Tag::owner`.
    seats: Vec<Option<Seat>>,
    is_leaving: bool,
}

impl VolumeSlot {
    /// A volume without users. `number` names it for as long as the process lives.
    pub fn new(number: u32, volume: Volume) -> VolumeSlot {
        VolumeSlot { number, volume, seats: Vec::with_capacity(USERS_MAX), is_leaving: false }
    }

    /// The same with a user.
    pub fn with(mut self, user: User) -> VolumeSlot {
        self.add(user);
        self
    }

    /// The volume's number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The volume.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Takes in a user, whose place is free.
    ///
    /// # Panics
    /// When the place is taken: control gives places out.
    pub fn add(&mut self, user: User) {
        let place = usize::from(user.owner());
        assert!(place < USERS_MAX);
        while self.seats.len() <= place {
            self.seats.push(None);
        }
        let before = self.seats[place].replace(Seat { user, leaving_ns: None });
        assert!(before.is_none(), "two users in one place");
    }

    fn users(&mut self) -> impl Iterator<Item = &mut User> {
        self.seats.iter_mut().flatten().map(|seat| &mut seat.user)
    }

    fn turn(&mut self, now_ns: u64, ledger: Option<&mut Ledgers>) -> usize {
        let VolumeSlot { volume, seats, .. } = self;
        let mut moved = 0;
        let is_leaver_running = seats.iter().flatten().any(Seat::is_leaver_running);
        for seat in seats.iter_mut().flatten() {
            moved += match &mut seat.user {
                User::Disk(disk) => disk.poll(now_ns, volume) as usize,
                User::Export(export) if seat.leaving_ns.is_some() => export.finish(now_ns, volume),
                User::Export(export) => {
                    export.follow(is_leaver_running);
                    export.poll(now_ns, volume)
                }
            };
        }
        moved += reap(now_ns, volume, seats);
        for user in self.users() {
            match user {
                User::Disk(disk) => disk.notify(),
                User::Export(export) => export.flush(now_ns),
            }
        }
        if let Some(ledger) = ledger {
            self.record(ledger);
        }
        moved
    }

    /// Records what has ended in this turn.
    #[cold]
    fn record(&mut self, ledger: &mut Ledgers) {
        let kind = match &self.volume {
            Volume::Mem(_) | Volume::Null(_) => Kind::Mem,
            Volume::File(_) => Kind::File,
            Volume::Remote(_) => Kind::Remote,
        };
        let volume = self.number;
        for user in self.users() {
            let owner = user.owner();
            let subject = |op: Op| Subject::Io { volume, owner, op: op.name() };
            match user {
                User::Disk(disk) => {
                    let entries = disk.timing().entries(subject);
                    entries.for_each(|entry| ledger.record(kind, &entry));
                }
                User::Export(export) => {
                    let entries = export.entries(subject);
                    entries.for_each(|entry| ledger.record(Kind::Export, &entry));
                }
            }
        }
    }

    /// Has I/Os keep their times from now on, or not.
    fn keep_times(&mut self, is_on: bool) {
        self.volume.keep_times(is_on);
        for user in self.users() {
            match user {
                User::Disk(disk) => disk.timing().set(is_on),
                User::Export(export) => export.keep_times(is_on),
            }
        }
    }

    /// A user that was to leave and has nothing left to do.
    fn take_left(&mut self, now_ns: u64, free: &mut FreeList) -> Option<User> {
        let mut is_done = |seat: &mut Seat| {
            let Some(since_ns) = seat.leaving_ns else { return false };
            match &mut seat.user {
                User::Disk(disk) => disk.is_idle(),
                User::Export(export) => {
                    let is_answered = export.is_quiet() || now_ns - since_ns > ANSWER_NS;
                    is_answered && export.close_all(free)
                }
            }
        };
        let place =
            self.seats.iter_mut().position(|seat| seat.as_mut().is_some_and(&mut is_done))?;
        self.seats[place].take().map(|seat| seat.user)
    }
}

/// What has left the room, to be freed elsewhere.
#[derive(Debug)]
pub enum Left {
    /// A user of the volume with this number; an export's frames are the worker's again.
    User(u32, User),
    /// A volume, all of whose I/O has ended.
    Volume(Box<VolumeSlot>),
}

/// The volumes of one worker.
#[derive(Debug, Default)]
#[allow(clippy::vec_box, reason = "a volume that leaves goes back in the box it came in")]
pub struct Storage {
    slots: Vec<Box<VolumeSlot>>,
    /// Volumes and users that are leaving.
    leaving: usize,
    /// Where I/Os spent their time, while somebody wants to know.
    ledger: Option<Box<Ledgers>>,
}

impl Storage {
    /// A room with these volumes.
    pub fn new(slots: Vec<VolumeSlot>) -> Storage {
        let mut storage = Storage { slots: Vec::with_capacity(VOLUMES_MAX), ..Storage::default() };
        storage.slots.extend(slots.into_iter().map(Box::new));
        storage
    }

    /// Takes in a volume.
    pub fn add_volume(&mut self, mut slot: Box<VolumeSlot>) {
        slot.keep_times(self.ledger.is_some());
        assert!(self.slots.len() < VOLUMES_MAX, "more volumes than plans may have");
        self.slots.push(slot);
    }

    /// The volume with this number.
    ///
    /// # Panics
    /// When there is none.
    pub fn volume_mut(&mut self, number: u32) -> &mut Volume {
        &mut self.slot(number).volume
    }

    /// Takes in a user of the volume with this number.
    pub fn add_user(&mut self, number: u32, user: User) {
        let is_on = self.ledger.is_some();
        let slot = self.slot(number);
        slot.add(user);
        slot.keep_times(is_on);
    }

    /// Keeps this ledger from now on, or none; the one before comes back.
    pub fn keep_ledger(&mut self, ledger: Option<Box<Ledgers>>) -> Option<Box<Ledgers>> {
        self.slots.iter_mut().for_each(|slot| slot.keep_times(ledger.is_some()));
        std::mem::replace(&mut self.ledger, ledger)
    }

    /// Lets a volume go once its users have left and its I/O has ended.
    pub fn remove_volume(&mut self, number: u32) {
        self.slot(number).is_leaving = true;
        self.leaving += 1;
    }

    /// Lets a user go once its I/O has ended.
    pub fn remove_user(&mut self, number: u32, owner: u16, now_ns: u64) {
        let seat = self.slot(number).seats[usize::from(owner)].as_mut();
        seat.expect("control removes who is there").leaving_ns = Some(now_ns);
        self.leaving += 1;
    }

    /// Has an export list others to its hosts; those from before, or what was not an export's.
    pub fn list_others(&mut self, number: u32, owner: u16, others: Vec<Entry>) -> Vec<Entry> {
        match &mut self.slot(number).seats[usize::from(owner)] {
            Some(Seat { user: User::Export(export), .. }) => export.list_others(others),
            _ => others,
        }
    }

    /// Whether somebody is leaving.
    pub fn is_leaving(&self) -> bool {
        self.leaving > 0
    }

    /// What has left since the last call, one at a time.
    pub fn left(&mut self, now_ns: u64, free: &mut FreeList) -> Option<Left> {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if let Some(user) = slot.take_left(now_ns, free) {
                self.leaving -= 1;
                return Some(Left::User(slot.number, user));
            }
            let is_empty = slot.seats.iter().all(Option::is_none);
            if slot.is_leaving && is_empty && slot.volume.in_flight() == 0 {
                self.leaving -= 1;
                return Some(Left::Volume(self.slots.swap_remove(index)));
            }
        }
        None
    }

    /// One round: take requests, submit, reap, answer. Returns requests and completions moved.
    pub fn turn(&mut self, now_ns: u64) -> usize {
        let Storage { slots, ledger, .. } = self;
        slots.iter_mut().map(|slot| slot.turn(now_ns, ledger.as_deref_mut())).sum()
    }

    /// Asks guests to say when they have something. `true`: there is something already, or
    /// something that only polling finds; do not sleep.
    pub fn arm(&mut self) -> bool {
        let mut busy = false;
        for user in self.slots.iter_mut().flat_map(|slot| slot.users()) {
            busy |= match user {
                User::Disk(disk) => disk.arm(),
                User::Export(export) => export.is_busy(),
            };
        }
        busy
    }

    /// Guests need not say anything: the worker is awake and polls.
    pub fn disarm(&mut self) {
        for user in self.slots.iter_mut().flat_map(|slot| slot.users()) {
            match user {
                User::Disk(disk) => disk.disarm(),
                User::Export(export) => export.woken(),
            }
        }
    }

    /// Adds what becomes readable when a round may find something.
    pub fn add_fds(&self, poll: &mut PollList) {
        for slot in &self.slots {
            if let Some(fd) = slot.volume.wake_fd() {
                poll.add(fd, false);
            }
            for seat in slot.seats.iter().flatten() {
                match &seat.user {
                    User::Disk(disk) => disk.wake_fds().for_each(|fd| poll.add(fd, false)),
                    User::Export(export) => poll.add(export.wake_fd(), false),
                }
            }
        }
    }

    /// Closes exports' connections and ends every I/O in flight, waiting up to [`CLOSE_NS`] for
    /// volumes that take long; frames go to `free`. Whether all ended. On the worker's own
    /// thread: a file's ring belongs to it.
    pub fn close(&mut self, free: &mut FreeList) -> bool {
        let deadline_ns = clock::now_ns() + CLOSE_NS;
        loop {
            let mut ended = true;
            for slot in &mut self.slots {
                for user in slot.users() {
                    if let User::Export(export) = user {
                        ended &= export.close_all(free);
                    }
                }
                reap(clock::now_ns(), &mut slot.volume, &mut slot.seats);
                ended &= slot.volume.in_flight() == 0;
            }
            if ended || clock::now_ns() >= deadline_ns {
                return ended;
            }
            std::thread::yield_now();
        }
    }

    fn slot(&mut self, number: u32) -> &mut VolumeSlot {
        let slot = self.slots.iter_mut().find(|slot| slot.number == number);
        slot.expect("control names volumes that are there")
    }
}

/// Hands what has ended to whoever submitted it.
fn reap(now_ns: u64, volume: &mut Volume, seats: &mut [Option<Seat>]) -> usize {
    let mut done = Dones::new();
    volume.reap(now_ns, &mut done);
    for done in &done {
        let seat = seats[usize::from(done.tag.owner)].as_mut();
        match &mut seat.expect("a user stays while its I/O is in flight").user {
            User::Disk(disk) => disk.complete(*done),
            User::Export(export) => export.complete(*done),
        }
    }
    done.len()
}
