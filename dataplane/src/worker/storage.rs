//! A worker's storage room: volumes, and the disks and exports that use them.
//!
//! Conservation: every I/O that a user submits comes back to it exactly once.

use crate::clock;
use crate::volume::disk::Disk;
use crate::volume::{BlockDevice, Dones, Volume};
use outboard_dma::PollList;

/// For how long a stopping worker waits for I/O in flight.
const CLOSE_NS: u64 = 5_000_000_000;

/// Who submits I/O to a volume. `Tag::owner` is its index among the volume's users.
#[derive(Debug)]
pub enum User {
    /// A guest's disk.
    Disk(Disk),
}

/// A volume and its users.
#[derive(Debug)]
pub struct VolumeSlot {
    /// The volume.
    pub volume: Volume,
    /// Its users, by `Tag::owner`.
    pub users: Vec<User>,
}

/// The volumes of one worker.
#[derive(Debug, Default)]
pub struct Storage {
    slots: Vec<VolumeSlot>,
}

impl Storage {
    /// A room with these volumes.
    pub fn new(slots: Vec<VolumeSlot>) -> Storage {
        Storage { slots }
    }

    /// One round: take requests, submit, reap, answer. Returns requests and completions moved.
    pub fn turn(&mut self, now_ns: u64) -> usize {
        let mut moved = 0;
        for VolumeSlot { volume, users } in &mut self.slots {
            for user in users.iter_mut() {
                moved += match user {
                    User::Disk(disk) => disk.poll(now_ns, volume) as usize,
                };
            }
            moved += reap(now_ns, volume, users);
            for user in users.iter_mut() {
                match user {
                    User::Disk(disk) => disk.notify(),
                }
            }
        }
        moved
    }

    /// Asks guests to say when they have something. `true`: there is something already, or
    /// something that only polling finds; do not sleep.
    pub fn arm(&mut self) -> bool {
        let mut busy = false;
        self.for_disks(|disk| busy |= disk.arm());
        busy
    }

    /// Guests need not say anything: the worker polls.
    pub fn disarm(&mut self) {
        self.for_disks(Disk::disarm);
    }

    /// Adds what becomes readable when a round may find something.
    pub fn add_fds(&self, poll: &mut PollList) {
        for VolumeSlot { volume, users } in &self.slots {
            if let Some(fd) = volume.wake_fd() {
                poll.add(fd, false);
            }
            for user in users {
                match user {
                    User::Disk(disk) => disk.wake_fds().for_each(|fd| poll.add(fd, false)),
                }
            }
        }
    }

    /// Ends every I/O in flight, waiting up to [`CLOSE_NS`] for volumes that take long; whether
    /// all ended. On the worker's own thread: a file's ring belongs to it.
    pub fn close(&mut self) -> bool {
        let deadline_ns = clock::now_ns() + CLOSE_NS;
        let busy = |slots: &[VolumeSlot]| slots.iter().any(|slot| slot.volume.in_flight() > 0);
        while busy(&self.slots) && clock::now_ns() < deadline_ns {
            for VolumeSlot { volume, users } in &mut self.slots {
                reap(clock::now_ns(), volume, users);
            }
            std::thread::yield_now();
        }
        !busy(&self.slots)
    }

    fn for_disks(&mut self, mut verb: impl FnMut(&mut Disk)) {
        for user in self.slots.iter_mut().flat_map(|slot| &mut slot.users) {
            let User::Disk(disk) = user;
            verb(disk);
        }
    }
}

/// Hands what has ended to whoever submitted it.
fn reap(now_ns: u64, volume: &mut Volume, users: &mut [User]) -> usize {
    let mut done = Dones::new();
    volume.reap(now_ns, &mut done);
    for done in &done {
        match &mut users[usize::from(done.tag.owner)] {
            User::Disk(disk) => disk.complete(*done),
        }
    }
    done.len()
}
