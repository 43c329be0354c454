//! A worker's storage room: volumes, and the disks and exports that use them.
//!
//! Conservation: every I/O that a user submits comes back to it exactly once.

use crate::clock;
use crate::volume::disk::Disk;
use crate::volume::export::Export;
use crate::volume::{BlockDevice, Dones, Volume};
use outboard_dma::{FreeList, PollList};

/// For how long a stopping worker waits for I/O in flight.
const CLOSE_NS: u64 = 5_000_000_000;

/// Who submits I/O to a volume. `Tag::owner` is its index among the volume's users.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a worker has a few users, and touches them often")]
pub enum User {
    /// A guest's disk.
    Disk(Disk),
    /// A target for other hosts.
    Export(Export),
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
                    User::Export(export) => export.poll(now_ns, volume),
                };
            }
            moved += reap(now_ns, volume, users);
            for user in users.iter_mut() {
                match user {
                    User::Disk(disk) => disk.notify(),
                    User::Export(export) => export.flush(now_ns),
                }
            }
        }
        moved
    }

    /// Asks guests to say when they have something. `true`: there is something already, or
    /// something that only polling finds; do not sleep.
    pub fn arm(&mut self) -> bool {
        let mut busy = false;
        for user in self.slots.iter_mut().flat_map(|slot| &mut slot.users) {
            busy |= match user {
                User::Disk(disk) => disk.arm(),
                User::Export(export) => export.is_busy(),
            };
        }
        busy
    }

    /// Guests need not say anything: the worker polls.
    pub fn disarm(&mut self) {
        for user in self.slots.iter_mut().flat_map(|slot| &mut slot.users) {
            if let User::Disk(disk) = user {
                disk.disarm();
            }
        }
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
            for VolumeSlot { volume, users } in &mut self.slots {
                for user in users.iter_mut() {
                    if let User::Export(export) = user {
                        ended &= export.close_all(free);
                    }
                }
                reap(clock::now_ns(), volume, users);
                ended &= volume.in_flight() == 0;
            }
            if ended || clock::now_ns() >= deadline_ns {
                return ended;
            }
            std::thread::yield_now();
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
            User::Export(export) => export.complete(*done),
        }
    }
    done.len()
}
