//! Fencing: a host ends its own past at our target before it repeats anything (no counterpart in
//! the specifications; opcode C1h and status type 7 are vendor specific: Base 5.2, 4.2.3.2).
//!
//! A target says in Identify Controller that it knows the command. The command has no data:
//!
//! | dword | meaning |
//! |---|---|
//! | 10 | 0: NEW, 1: JOIN |
//! | 11 | `user`: which of the host's users of the subsystem this is |
//! | 12, 13 | NEW: the last epoch that the user was given, or 0 at its start; JOIN: the epoch |
//! | 14, 15 | `life`: which process of the user; of a later one a higher number, never 0 |
//!
//! NEW asks for the next epoch of (host identifier, user). From then on older associations of
//! that user are refused every command with [`StatusCode::STALE_EPOCH`](super::StatusCode); the
//! answer comes when their I/O has ended and their connections are closed, and carries the epoch
//! in dwords 0 and 1. A NEW of a process that another one has replaced is refused with the same
//! status, and so is a JOIN of any epoch but the current one.

use super::bytes::{put_u16, put_u64, u16_at, u64_at};
use super::capsule::{Sqe, admin};
use super::state::{LoadError, Reader, State, ensure, state_struct};

/// Where Identify Controller data is the vendor's (Base 5.17.2.1).
const ANNOUNCED_AT: usize = 3072;
/// What stands there when the controller knows the command; its version follows.
const MAGIC: u64 = u64::from_le_bytes(*b"outboard");
const VERSION: u16 = 1;

const NEW: u32 = 0;
const JOIN: u32 = 1;

/// A Fence command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// What is asked for.
    pub ask: Ask,
    /// Tells users of one host apart.
    pub user: u32,
    /// Tells processes of one user apart: higher for a later one, never 0.
    pub life: u64,
}

/// What a Fence command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The next epoch.
    New {
        /// The last epoch that this life was given; 0: none yet, it starts.
        after: u64,
    },
    /// To belong to the current epoch.
    Join {
        /// Which the host takes for the current one.
        epoch: u64,
    },
}

impl Fence {
    /// The command.
    pub fn emit(&self) -> Sqe {
        let (verb, epoch) = match self.ask {
            Ask::New { after } => (NEW, after),
            Ask::Join { epoch } => (JOIN, epoch),
        };
        let mut sqe = Sqe::new(admin::FENCE, 0, 0);
        sqe.set_cdw(10, verb);
        sqe.set_cdw(11, self.user);
        put_u64(&mut sqe.0, 48, epoch);
        put_u64(&mut sqe.0, 56, self.life);
        sqe
    }

    /// From a command with that opcode; `None`: it asks for nothing that is known.
    pub fn parse(sqe: &Sqe) -> Option<Fence> {
        let (epoch, life) = (u64_at(&sqe.0, 48), u64_at(&sqe.0, 56));
        let ask = match sqe.cdw(10) {
            NEW => Ask::New { after: epoch },
            JOIN => Ask::Join { epoch },
            _ => return None,
        };
        (life != 0).then_some(Fence { ask, user: sqe.cdw(11), life })
    }
}

/// Says in Identify Controller data that the command is known.
pub(crate) fn announce(page: &mut [u8]) {
    put_u64(page, ANNOUNCED_AT, MAGIC);
    put_u16(page, ANNOUNCED_AT + 8, VERSION);
}

/// Whether Identify Controller data says that the command is known.
pub(crate) fn is_announced(page: &[u8]) -> bool {
    u64_at(page, ANNOUNCED_AT) == MAGIC && u16_at(page, ANNOUNCED_AT + 8) == VERSION
}

/// Who fences: a host's user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub host_id: [u8; 16],
    pub number: u32,
}

/// What is known of a user.
#[derive(Clone, Copy, Debug)]
struct Known {
    user: User,
    epoch: u64,
    life: u64,
    /// The life has started at this target, rather than come back to it.
    is_start: bool,
}

state_struct!(Known { user, epoch, life, is_start });

/// The current epoch of every user, as far as there is room; the longest unused one makes room.
#[derive(Clone, Debug)]
pub(crate) struct Epochs {
    known: Vec<Known>,
    most: usize,
    /// The next one to be given. It only grows, over restarts too.
    next: u64,
    /// The first one that this life of the target has given.
    first: u64,
}

impl Epochs {
    /// Room for `most` users; epochs from `first` on.
    pub fn new(most: usize, first: u64) -> Epochs {
        let first = first.max(1);
        Epochs { known: Vec::with_capacity(most), most, next: first, first }
    }

    /// As plain data.
    pub fn save(&self, out: &mut Vec<u8>) {
        self.known.save(out);
        (self.next, self.first).save(out);
    }

    /// What was saved, with the same room.
    pub fn loaded(&self, from: &mut Reader) -> Result<Epochs, LoadError> {
        let loaded = Vec::<Known>::load(from)?;
        let (next, first) = State::load(from)?;
        let is_past = loaded.iter().all(|known| known.epoch < next);
        ensure(loaded.len() <= self.most && is_past, "epochs")?;
        ensure((1..=next).contains(&first) && next < u64::MAX / 2, "the next epoch")?;
        let mut known = Vec::with_capacity(self.most);
        known.extend(loaded);
        Ok(Epochs { known, most: self.most, next, first })
    }

    /// The next epoch of `user`, or `None` when another life has replaced this one.
    pub fn begin(&mut self, user: User, life: u64, after: u64) -> Option<u64> {
        let known = self.known.iter().position(|known| known.user == user);
        let before = known.map(|index| self.known[index]);
        if before.is_some_and(|before| self.is_past(&before, life, after)) {
            return None;
        }
        if let Some(index) = known {
            self.known.remove(index);
        } else if self.known.len() == self.most {
            self.known.remove(0);
        }
        let is_start = match before {
            Some(before) if before.life == life => before.is_start,
            _ => after == 0,
        };
        let epoch = self.next;
        self.next += 1;
        // Last in the list: the most recently used.
        self.known.push(Known { user, epoch, life, is_start });
        Some(epoch)
    }

    /// Whether `life`, last given epoch `after`, was replaced by the one that is known. A start
    /// replaces whoever was there, also when the host's clock went back in between.
    fn is_past(&self, known: &Known, life: u64, after: u64) -> bool {
        let is_replaced = known.is_start && after >= self.first;
        after != 0 && life != known.life && (life < known.life || is_replaced)
    }

    /// Whether `epoch` is the current one of that life of `user`.
    pub fn is_current(&self, user: User, life: u64, epoch: u64) -> bool {
        let is_it = |known: &Known| known.user == user && known.life == life;
        self.known.iter().any(|known| is_it(known) && known.epoch == epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: User = User { host_id: [1; 16], number: 7 };
    const B: User = User { host_id: [1; 16], number: 8 };

    #[test]
    fn a_command_survives_the_wire_and_nonsense_is_refused() {
        for ask in [Ask::New { after: 0 }, Ask::New { after: 9 }, Ask::Join { epoch: 1 << 63 }] {
            let fence = Fence { ask, user: 0xffff_fffe, life: 3 };
            assert_eq!(Fence::parse(&fence.emit()), Some(fence));
            assert_eq!(fence.emit().opcode(), 0xc1);
        }
        let nobody = Fence { ask: Ask::New { after: 0 }, user: 1, life: 0 };
        assert_eq!(Fence::parse(&nobody.emit()), None);
        let mut unknown = Fence { life: 1, ..nobody }.emit();
        unknown.set_cdw(10, 2);
        assert_eq!(Fence::parse(&unknown), None);
    }

    #[test]
    fn epochs_grow_and_belong_to_their_users() {
        let mut epochs = Epochs::new(4, 100);
        let first = epochs.begin(A, 1, 0).unwrap();
        let other = epochs.begin(B, 2, 0).unwrap();
        let second = epochs.begin(A, 1, first).unwrap();
        assert!(100 <= first && first < other && other < second);
        assert!(epochs.is_current(A, 1, second) && epochs.is_current(B, 2, other));
        assert!(!epochs.is_current(A, 1, first) && !epochs.is_current(A, 2, second));
        // The answer to a NEW may be lost: the same life may ask again with what it knows.
        assert!(epochs.begin(A, 1, first).is_some());
    }

    #[test]
    fn a_life_that_was_replaced_stays_out() {
        let mut epochs = Epochs::new(4, 100);
        let old = epochs.begin(A, 1, 0).unwrap();
        let new = epochs.begin(A, 2, 0).unwrap();
        assert_eq!(epochs.begin(A, 1, old), None);
        assert!(epochs.is_current(A, 2, new));
        // A target that starts again lets in whoever comes first, and then the later life alone.
        let mut epochs = Epochs::new(4, 1_000);
        let late = epochs.begin(A, 1, old).unwrap();
        assert!(epochs.begin(A, 2, new).is_some());
        assert_eq!(epochs.begin(A, 1, late), None);
        // A host's clock that went back keeps no start out, and lets nobody back in.
        let mut epochs = Epochs::new(4, 100);
        let old = epochs.begin(A, 9, 0).unwrap();
        assert!(epochs.begin(A, 8, 0).is_some());
        assert_eq!(epochs.begin(A, 9, old), None);
    }

    #[test]
    fn the_longest_unused_user_makes_room() {
        let mut epochs = Epochs::new(2, 1);
        let user = |number| User { number, ..A };
        let first = epochs.begin(user(1), 1, 0).unwrap();
        let second = epochs.begin(user(2), 1, 0).unwrap();
        let first = epochs.begin(user(1), 1, first).unwrap();
        let third = epochs.begin(user(3), 1, 0).unwrap();
        assert!(epochs.is_current(user(1), 1, first) && epochs.is_current(user(3), 1, third));
        assert!(!epochs.is_current(user(2), 1, second));
    }

    #[test]
    fn the_last_life_is_never_kept_out_and_the_others_are_once_it_came() {
        bolero::check!().with_type::<Vec<(u8, bool)>>().for_each(|steps| {
            // Lives start one after the other; each comes back whenever it likes, and the target
            // starts again in between.
            let mut epochs = Epochs::new(4, 1_000);
            let mut lives: Vec<u64> = Vec::new();
            let mut last_is_here = false;
            for (which, restarts) in steps {
                if *restarts {
                    epochs = Epochs::new(4, epochs.next + 1_000);
                    last_is_here = false;
                }
                let index = usize::from(*which) % (lives.len() + 1);
                let after = lives.get(index).copied().unwrap_or(0);
                let is_last = index + 1 >= lives.len();
                let given = epochs.begin(A, index as u64 + 1, after);
                assert!(given.is_none_or(|epoch| epoch > after));
                assert_eq!(given.is_some(), is_last || !last_is_here && given.is_some());
                last_is_here |= is_last;
                match (given, lives.get_mut(index)) {
                    (Some(epoch), Some(last)) => *last = epoch,
                    (Some(epoch), None) => lives.push(epoch),
                    (None, _) => {}
                }
            }
        });
    }
}
