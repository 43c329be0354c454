//! Fencing: a host ends its own past at our target before it repeats anything (no counterpart in
//! the specifications; opcode C1h and status type 7 are vendor specific: Base 5.2, 4.2.3.2).
//!
//! A target says in Identify Controller that it knows the command. The command has no data:
//!
//! | dword | meaning |
//! |---|---|
//! | 10 | bits 7:0: 0 is NEW, 1 is JOIN; bits 31:8: `boot` of the life |
//! | 11 | `user`: which of the host's users of the subsystem this is |
//! | 12, 13 | NEW: the last epoch that the user was given, or 0 at its start; JOIN: the epoch |
//! | 14, 15 | `begun_ns` of the life, never 0 |
//!
//! NEW asks for the next epoch of (host identifier, user). From then on older associations of
//! that user are refused every command with [`StatusCode::STALE_EPOCH`](super::StatusCode); the
//! answer comes when their I/O has ended and their connections are closed, and carries the epoch
//! in dwords 0 and 1.
//!
//! A [`Life`] is one process of a user (or one volume of that name in it). A later one replaces an
//! earlier one for good: whoever is of the past is refused, also when its command was under way
//! for long and comes when the process is dead. Which of two is later, the target decides so:
//! - one that it knows nothing older of is let in, and the one that it knows comes back;
//! - of two that ran between the same two starts of their machine, by `begun_ns`: that clock never
//!   goes back. The earlier one is refused with `STALE_EPOCH`;
//! - of any others no clock tells. The one that asks must name the epoch that the target last gave
//!   that user; else it is refused with [`StatusCode::EPOCH_MOVED`](super::StatusCode), and told
//!   that epoch in dwords 0 and 1. A process that starts asks again with it. A command that comes
//!   late cannot, and a process that had an epoch learns that it was replaced.
//!
//! So of two that live, and whose order nobody knows, exactly one goes on. What is assumed: one
//! machine has one host identifier, and its `boot` differs after each start (24 bits of a random
//! number); no two lives of a user begin in the same nanosecond. What a target knows of a user ends
//! with the target, and so do the connections that old commands could come on.

use super::bytes::{put_u16, put_u64, u16_at, u64_at};
use super::capsule::{Sqe, admin};
use super::state::{LoadError, Reader, State, ensure, state_struct};

/// Where Identify Controller data is the vendor's (Base 5.17.2.1).
const ANNOUNCED_AT: usize = 3072;
/// What stands there when the controller knows the command; its version follows, and behind 6 bytes
/// of zeros what its machine drew when it started.
const MAGIC: u64 = u64::from_le_bytes(*b"outboard");
const VERSION: u16 = 2;

const NEW: u32 = 0;
const JOIN: u32 = 1;

/// One process of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// The start of the machine that it runs since, 24 bits; 0: not known, and the same as none.
    pub boot: u32,
    /// When it began, on a clock of nanoseconds that never goes back before the machine starts
    /// again; never 0.
    pub begun_ns: u64,
}

/// Bits of [`Life::boot`].
const BOOT_MASK: u32 = (1 << 24) - 1;

state_struct!(Life { boot, begun_ns });

impl Life {
    /// Whether it began before `other`; `None`: no clock tells.
    fn is_before(self, other: Life) -> Option<bool> {
        let is_known = self.boot != 0 && self.boot == other.boot;
        is_known.then_some(self.begun_ns < other.begun_ns)
    }
}

/// A Fence command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// What is asked for.
    pub ask: Ask,
    /// Tells users of one host apart.
    pub user: u32,
    /// Tells processes of one user apart.
    pub life: Life,
}

/// What a Fence command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The next epoch.
    New {
        /// The last epoch that this life was given, or the one that it is to follow when it
        /// starts; 0: none.
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
        sqe.set_cdw(10, verb | self.life.boot << 8);
        sqe.set_cdw(11, self.user);
        put_u64(&mut sqe.0, 48, epoch);
        put_u64(&mut sqe.0, 56, self.life.begun_ns);
        sqe
    }

    /// From a command with that opcode; `None`: it asks for nothing that is known.
    pub fn parse(sqe: &Sqe) -> Option<Fence> {
        let (epoch, begun_ns) = (u64_at(&sqe.0, 48), u64_at(&sqe.0, 56));
        let life = Life { boot: sqe.cdw(10) >> 8 & BOOT_MASK, begun_ns };
        let ask = match sqe.cdw(10) & 0xff {
            NEW => Ask::New { after: epoch },
            JOIN => Ask::Join { epoch },
            _ => return None,
        };
        (begun_ns != 0).then_some(Fence { ask, user: sqe.cdw(11), life })
    }
}

/// What a machine drew when it started: another one says that what it had not made durable before
/// may be lost. Zeros: it does not tell.
pub type Boot = [u8; 16];

/// Where that is told.
const BOOT_AT: usize = ANNOUNCED_AT + 16;

/// Says in Identify Controller data that the command is known, and since when the machine runs.
pub(crate) fn announce(page: &mut [u8], boot: &Boot) {
    put_u64(page, ANNOUNCED_AT, MAGIC);
    put_u16(page, ANNOUNCED_AT + 8, VERSION);
    page[BOOT_AT..BOOT_AT + boot.len()].copy_from_slice(boot);
}

/// What [`announce`] said of the machine.
pub(crate) fn boot(page: &[u8]) -> Boot {
    let mut boot = Boot::default();
    if is_announced(page) {
        boot.copy_from_slice(&page[BOOT_AT..BOOT_AT + size_of::<Boot>()]);
    }
    boot
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
    life: Life,
}

state_struct!(Known { user, epoch, life });

impl Known {
    /// Whether `life`, which names the epoch `after`, may follow.
    fn admits(&self, life: Life, after: u64) -> Result<(), Refused> {
        if life == self.life {
            return Ok(());
        }
        match life.is_before(self.life) {
            Some(false) => Ok(()),
            Some(true) => Err(Refused::Past),
            None if after == self.epoch => Ok(()),
            None => Err(Refused::Moved { current: self.epoch }),
        }
    }
}

/// Why a NEW is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// A later life has replaced this one.
    Past,
    /// Another life has this epoch, and no clock tells which of the two is later.
    Moved { current: u64 },
}

/// The current epoch of every user, as far as there is room; the longest unused one that has no
/// association makes room.
#[derive(Clone, Debug)]
pub(crate) struct Epochs {
    known: Vec<Known>,
    most: usize,
    /// The next one to be given. It only grows, over restarts too.
    next: u64,
}

impl Epochs {
    /// Room for `most` users; epochs from `first` on.
    pub fn new(most: usize, first: u64) -> Epochs {
        Epochs { known: Vec::with_capacity(most), most, next: first.max(1) }
    }

    /// As plain data.
    pub fn save(&self, out: &mut Vec<u8>) {
        self.known.save(out);
        self.next.save(out);
    }

    /// What was saved, with the same room.
    pub fn loaded(&self, from: &mut Reader) -> Result<Epochs, LoadError> {
        let loaded = Vec::<Known>::load(from)?;
        let next = u64::load(from)?;
        let is_past = loaded.iter().all(|known| known.epoch < next);
        ensure(loaded.len() <= self.most && is_past, "epochs")?;
        ensure((1..u64::MAX / 2).contains(&next), "the next epoch")?;
        let mut known = Vec::with_capacity(self.most);
        known.extend(loaded);
        Ok(Epochs { known, most: self.most, next })
    }

    /// The next epoch of `user`. Users that are `in_use` are not forgotten: a target has room for
    /// more users than associations.
    pub fn begin(
        &mut self,
        user: User,
        life: Life,
        after: u64,
        in_use: impl Fn(User) -> bool,
    ) -> Result<u64, Refused> {
        let known = self.known.iter().position(|known| known.user == user);
        if let Some(index) = known {
            self.known[index].admits(life, after)?;
            self.known.remove(index);
        } else if self.known.len() == self.most {
            let unused = self.known.iter().position(|known| !in_use(known.user));
            self.known.remove(unused.unwrap_or(0));
        }
        let epoch = self.next;
        self.next += 1;
        // Last in the list: the most recently used.
        self.known.push(Known { user, epoch, life });
        Ok(epoch)
    }

    /// Whether `epoch` is the current one of that life of `user`.
    pub fn is_current(&self, user: User, life: Life, epoch: u64) -> bool {
        let is_it = |known: &Known| known.user == user && known.life == life;
        self.known.iter().any(|known| is_it(known) && known.epoch == epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: User = User { host_id: [1; 16], number: 7 };
    const B: User = User { host_id: [1; 16], number: 8 };

    fn life(boot: u32, begun_ns: u64) -> Life {
        Life { boot, begun_ns }
    }

    fn begin(epochs: &mut Epochs, user: User, life: Life, after: u64) -> Result<u64, Refused> {
        epochs.begin(user, life, after, |_| false)
    }

    #[test]
    fn a_command_survives_the_wire_and_nonsense_is_refused() {
        for ask in [Ask::New { after: 0 }, Ask::New { after: 9 }, Ask::Join { epoch: 1 << 63 }] {
            for life in [life(BOOT_MASK, 3), life(0, u64::MAX)] {
                let fence = Fence { ask, user: 0xffff_fffe, life };
                assert_eq!(Fence::parse(&fence.emit()), Some(fence));
                assert_eq!(fence.emit().opcode(), 0xc1);
            }
        }
        let nobody = Fence { ask: Ask::New { after: 0 }, user: 1, life: life(1, 0) };
        assert_eq!(Fence::parse(&nobody.emit()), None);
        let mut unknown = Fence { life: life(1, 1), ..nobody }.emit();
        unknown.set_cdw(10, 2);
        assert_eq!(Fence::parse(&unknown), None);
    }

    #[test]
    fn epochs_grow_and_belong_to_their_users() {
        let mut epochs = Epochs::new(4, 100);
        let first = begin(&mut epochs, A, life(1, 1), 0).unwrap();
        let other = begin(&mut epochs, B, life(1, 2), 0).unwrap();
        let second = begin(&mut epochs, A, life(1, 1), first).unwrap();
        assert!(100 <= first && first < other && other < second);
        assert!(
            epochs.is_current(A, life(1, 1), second) && epochs.is_current(B, life(1, 2), other)
        );
        assert!(!epochs.is_current(A, life(1, 1), first));
        assert!(!epochs.is_current(A, life(1, 2), second));
        // The answer to a NEW may be lost: the same life may ask again with what it knows.
        assert!(begin(&mut epochs, A, life(1, 1), first).is_ok());
    }

    #[test]
    fn a_life_that_was_replaced_stays_out_whatever_it_says() {
        let mut epochs = Epochs::new(4, 100);
        let old = begin(&mut epochs, A, life(1, 1), 0).unwrap();
        let new = begin(&mut epochs, A, life(1, 2), 0).unwrap();
        // Its first command, which was under way for long, too.
        for after in [0, old, new] {
            assert_eq!(begin(&mut epochs, A, life(1, 1), after), Err(Refused::Past));
        }
        assert!(epochs.is_current(A, life(1, 2), new));
        // A target that starts again lets in whoever comes first, and then the later life alone.
        let mut epochs = Epochs::new(4, 1_000);
        let late = begin(&mut epochs, A, life(1, 1), old).unwrap();
        assert!(begin(&mut epochs, A, life(1, 2), new).is_ok());
        assert_eq!(begin(&mut epochs, A, life(1, 1), late), Err(Refused::Past));
    }

    #[test]
    fn where_no_clock_tells_a_start_names_the_epoch_that_it_follows() {
        // After a start of the machine its clock begins again; or it cannot tell its starts.
        for (then, now) in [(life(7, 900), life(8, 5)), (life(0, 900), life(0, 5))] {
            let mut epochs = Epochs::new(4, 100);
            let old = begin(&mut epochs, A, then, 0).unwrap();
            let moved = Err(Refused::Moved { current: old });
            assert_eq!(begin(&mut epochs, A, now, 0), moved);
            let new = begin(&mut epochs, A, now, old).unwrap();
            // Whatever the dead process had sent, and when it had heard the last answer.
            for after in [0, old] {
                let moved = Err(Refused::Moved { current: new });
                assert_eq!(begin(&mut epochs, A, then, after), moved);
            }
            assert!(epochs.is_current(A, now, new));
            assert!(begin(&mut epochs, A, now, new).is_ok());
        }
    }

    #[test]
    fn the_longest_unused_user_makes_room_unless_it_is_in_use() {
        let mut epochs = Epochs::new(2, 1);
        let user = |number| User { number, ..A };
        let a_life = life(1, 1);
        let first = begin(&mut epochs, user(1), a_life, 0).unwrap();
        let second = begin(&mut epochs, user(2), a_life, 0).unwrap();
        let first = begin(&mut epochs, user(1), a_life, first).unwrap();
        let third = begin(&mut epochs, user(3), a_life, 0).unwrap();
        assert!(epochs.is_current(user(1), a_life, first));
        assert!(epochs.is_current(user(3), a_life, third));
        assert!(!epochs.is_current(user(2), a_life, second));
        let fourth = epochs.begin(user(4), a_life, 0, |used| used == user(1)).unwrap();
        assert!(epochs.is_current(user(1), a_life, first), "it is in use");
        assert!(epochs.is_current(user(4), a_life, fourth));
        assert!(!epochs.is_current(user(3), a_life, third));
    }

    #[test]
    fn the_last_life_is_never_kept_out_and_the_others_are_once_it_came() {
        bolero::check!().with_type::<Vec<(u8, bool, bool)>>().for_each(|steps| {
            // Lives start one after the other, some after a start of the machine; each comes back
            // or repeats its first command whenever it likes, and the target starts again.
            let mut epochs = Epochs::new(4, 1_000);
            let mut lives: Vec<(Life, u64)> = Vec::new();
            let (mut boot, mut last_is_here) = (1, false);
            for (which, restarts, repeats) in steps {
                if *restarts {
                    epochs = Epochs::new(4, epochs.next + 1_000);
                    last_is_here = false;
                }
                let index = usize::from(*which) % (lives.len() + 1);
                if index < lives.len() {
                    let (life, last) = lives[index];
                    let given = begin(&mut epochs, A, life, if *repeats { 0 } else { last });
                    let is_last = index + 1 == lives.len();
                    assert!(!is_last || given.is_ok() || !last_is_here);
                    assert!(is_last || !last_is_here || given.is_err());
                    last_is_here |= is_last && given.is_ok();
                    lives[index].1 = given.unwrap_or(last);
                    continue;
                }
                boot += u32::from(*repeats);
                // The clock of a machine that has started again is behind.
                let life = life(boot, (u64::from(255 - boot as u8) << 32) + index as u64 + 1);
                let mut given = begin(&mut epochs, A, life, 0);
                if let Err(Refused::Moved { current }) = given {
                    given = begin(&mut epochs, A, life, current);
                }
                lives.push((life, given.expect("a start is let in")));
                last_is_here = true;
            }
        });
    }
}
