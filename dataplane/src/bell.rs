//! How a sleeping worker is woken by another thread.
//!
//! The order that loses no wake-up is [`outboard_dma::wake`]'s: the sleeper does `arm`, then looks
//! at every source once more, then waits on the bell's descriptor; a producer first publishes its
//! message, then calls `ring`.

use outboard_dma::EventFd;
use outboard_dma::wake::Announcement;
use std::os::fd::{AsFd, BorrowedFd};

/// One worker's bell.
#[derive(Debug)]
pub struct Bell {
    sleeper: Announcement,
    event: EventFd,
}

impl Bell {
    /// A silent bell; an error when the process is out of descriptors.
    pub fn new() -> std::io::Result<Bell> {
        Ok(Bell { sleeper: Announcement::new(), event: EventFd::new()? })
    }

    /// Wakes the worker if it sleeps or is about to. Call after publishing the message. Costs a
    /// fence and a load while the worker is awake.
    #[inline]
    pub fn ring(&self) {
        if self.sleeper.claim() {
            self.event.signal();
        }
    }

    /// Announces that the worker is about to sleep. It must look at every source once more
    /// between this and waiting.
    pub fn arm(&self) {
        self.sleeper.make();
    }

    /// The worker is awake: takes the announcement back and silences the descriptor.
    pub fn disarm(&self) {
        self.sleeper.take_back();
        self.event.drain();
    }

    /// Readable after a `ring` that met an armed bell.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};
    use std::sync::atomic::{AtomicU64, Ordering};

    fn readable(bell: &Bell) -> bool {
        let mut fds = [PollFd::new(&bell.event, PollFlags::IN)];
        poll(&mut fds, Some(&Default::default())).unwrap() == 1
    }

    #[test]
    fn rings_only_when_armed_and_once() {
        let bell = Bell::new().unwrap();
        bell.ring();
        assert!(!readable(&bell));
        bell.arm();
        bell.ring();
        bell.ring();
        assert!(readable(&bell));
        bell.disarm();
        assert!(!readable(&bell));
    }

    #[test]
    fn no_message_is_slept_through() {
        let bell = Bell::new().unwrap();
        let sent = AtomicU64::new(0);
        const MESSAGES: u64 = 20_000;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for message in 1..=MESSAGES {
                    sent.store(message, Ordering::Release);
                    bell.ring();
                    if message % 64 == 0 {
                        std::thread::yield_now();
                    }
                }
            });
            let mut seen = 0;
            while seen < MESSAGES {
                bell.arm();
                let now = sent.load(Ordering::Acquire);
                if now == seen {
                    let mut fds = [PollFd::new(&bell.event, PollFlags::IN)];
                    let timeout = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
                    let woken = poll(&mut fds, Some(&timeout)).unwrap();
                    assert_eq!(woken, 1, "slept through message {}", seen + 1);
                }
                bell.disarm();
                seen = sent.load(Ordering::Acquire);
            }
        });
    }
}
