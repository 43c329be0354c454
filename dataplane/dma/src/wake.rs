//! How a thread goes to sleep, and how others wake it, without losing a wake-up.
//!
//! The sleeper announces that it is about to sleep, then looks at every source once more, then
//! waits on descriptors. A producer first publishes, then asks whether an announcement is there,
//! and if so signals. Both sides put a sequentially consistent fence between their store and
//! their load, so at least one of them sees the other (the store-buffering pattern).

use crate::sync::{AtomicBool, Ordering, fence};

/// Says to other threads that its owner is about to sleep.
#[derive(Debug)]
pub struct Announcement(AtomicBool);

impl Announcement {
    /// None made.
    #[allow(clippy::new_without_default, reason = "loom's atomics have no default")]
    pub fn new() -> Announcement {
        Announcement(AtomicBool::new(false))
    }

    /// The owner is about to sleep: it looks at every source once more after this.
    #[inline]
    pub fn make(&self) {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The owner is awake.
    #[inline]
    pub fn take_back(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// For whoever has published something: whether to signal the owner. `true` once for each
    /// announcement. Costs a fence and a load while the owner is awake.
    #[inline]
    pub fn claim(&self) -> bool {
        fence(Ordering::SeqCst);
        let taken = || self.0.compare_exchange(true, false, Ordering::Relaxed, Ordering::Relaxed);
        self.0.load(Ordering::Relaxed) && taken().is_ok()
    }
}

/// Something that sleeps when there is nothing to do.
pub trait Sleeper {
    /// Announces the sleep to everybody who can end it only by a signal.
    fn arm(&mut self);
    /// Looks at every source; whether there was anything.
    fn look(&mut self) -> bool;
    /// Sleeps until a descriptor is readable: also one that became so before the call.
    fn wait(&mut self);
    /// Takes back what `arm` announced and silences the descriptors.
    fn disarm(&mut self);
}

/// Arms every source, looks at every source once more, and only then waits. `true`: the look
/// found something, and there was no sleep. What ended a sleep is for a look after this.
#[inline]
pub fn sleep(sleeper: &mut impl Sleeper) -> bool {
    sleeper.arm();
    let found = sleeper.look();
    if !found {
        sleeper.wait();
    }
    sleeper.disarm();
    found
}
