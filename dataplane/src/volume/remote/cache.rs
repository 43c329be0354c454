//! What the target's volatile cache may hold, and who is told when it is lost.
//!
//! A change that has ended may be in a cache until a flush covers it, and is lost when the target's
//! machine loses its power. That shows by the target's [`Boot`]: another one than before, while
//! there are such changes, and no flush that is to cover them may end well. Every user's flushes
//! fail as `WritesLost` until one that did was handed back to it; what it wrote since the last good
//! one is then in doubt, as with a disk whose cache failed. Reads and changes go on, on what is
//! there.
//!
//! It cannot be told from a machine that was shut down in good order, which loses nothing; a target
//! that does not tell its boot (a foreign one) loses what it loses unseen; and a daemon that starts
//! anew knows nothing of what one before it has written.

use outboard_rdma::nvmf::fence::Boot;

/// Words of a set of users (`Tag::owner`).
const WORDS: usize = 1 << (u16::BITS - u64::BITS.trailing_zeros());

/// What the target may have in its cache.
#[derive(Debug)]
pub(super) struct Cache {
    boot: Boot,
    /// Changes that ended well, and how many of them a flush has covered.
    changed: u64,
    flushed: u64,
    /// Users that have to be told of a loss.
    untold: Box<[u64]>,
}

impl Cache {
    pub fn new() -> Cache {
        Cache { boot: Boot::default(), changed: 0, flushed: 0, untold: vec![0; WORDS].into() }
    }

    /// A change has ended well.
    pub fn change(&mut self) {
        self.changed += 1;
    }

    /// What a flush that begins now covers, for [`flush`](Self::flush).
    pub fn now(&self) -> u64 {
        self.changed
    }

    /// A flush that covers so much has ended well.
    pub fn flush(&mut self, covers: u64) {
        self.flushed = self.flushed.max(covers);
    }

    /// There is a connection to a machine that tells `boot`: whether the cache was lost with
    /// something in it.
    pub fn meet(&mut self, boot: Boot) -> bool {
        if boot == Boot::default() {
            return false;
        }
        let before = std::mem::replace(&mut self.boot, boot);
        let is_other = before != Boot::default() && before != boot;
        let is_lost = is_other && self.changed > self.flushed && !planted!("volume-loss-not-told");
        if is_lost {
            self.flushed = self.changed;
            self.untold.fill(u64::MAX);
        }
        is_lost
    }

    /// Whether a user's flush has to fail.
    pub fn must_tell(&self, owner: u16) -> bool {
        self.untold[usize::from(owner) / 64] & 1 << (owner % 64) != 0
    }

    /// A flush of this user that failed was handed back.
    pub fn tell(&mut self, owner: u16) {
        self.untold[usize::from(owner) / 64] &= !(1 << (owner % 64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Boot = [1; 16];
    const TWO: Boot = [2; 16];

    #[test]
    fn what_no_flush_covered_is_lost_with_another_boot_and_told_to_everybody_once() {
        let mut cache = Cache::new();
        assert!(!cache.meet(ONE));
        cache.change();
        let covers = cache.now();
        cache.change();
        cache.flush(covers);
        assert!(!cache.meet(ONE), "another connection, or another process");
        assert!(cache.meet(TWO) && !cache.meet(TWO));
        for owner in [0, 63, 64, u16::MAX] {
            assert!(cache.must_tell(owner));
            cache.tell(owner);
            assert!(!cache.must_tell(owner) && cache.must_tell(7));
        }
    }

    #[test]
    fn what_was_flushed_is_not_lost_and_a_target_that_does_not_tell_is_not_judged() {
        let mut cache = Cache::new();
        cache.change();
        assert!(!cache.meet(Boot::default()) && !cache.meet(ONE));
        assert!(!cache.meet(Boot::default()), "it does not tell any more");
        cache.flush(cache.now());
        assert!(!cache.meet(TWO));
        cache.change();
        assert!(cache.meet(ONE));
    }
}
