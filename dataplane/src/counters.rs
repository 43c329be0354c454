//! Counters with one writer (the owning worker) and any number of readers (control).

mod histogram;

pub use histogram::Histogram;

use crate::drop::DropReason;
use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that one thread adds to and others read. Adding is a plain load and store: no locked
/// instruction on the data path.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning thread may call this; a second writer would lose counts.
    #[inline(always)]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Sets a gauge.
    #[inline(always)]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value so far.
    #[inline(always)]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One count per drop reason.
#[derive(Debug)]
pub struct Drops([Counter; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Drops(std::array::from_fn(|_| Counter::default()))
    }
}

impl Drops {
    /// Counts one packet.
    #[inline(always)]
    pub fn count(&self, reason: DropReason) {
        self.0[reason as usize].add(1);
    }

    /// Packets dropped for `reason` so far.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].get()
    }

    /// Packets dropped for any reason so far.
    pub fn total(&self) -> u64 {
        self.0.iter().map(Counter::get).sum()
    }
}

/// What one port counts. `rx` is what came in from it, `tx` what was sent out of it, `drops` what
/// came in from it and ended here.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// Packets received.
    pub rx_packets: Counter,
    /// Bytes received, Ethernet header included.
    pub rx_bytes: Counter,
    /// Packets sent.
    pub tx_packets: Counter,
    /// Bytes sent, Ethernet header included.
    pub tx_bytes: Counter,
    /// Received packets whose checksum the sender left to an offload.
    pub partial_checksums: Counter,
    /// Times the kernel refused to send because the interface was down or gone.
    pub link_errors: Counter,
    /// Packets that came in here and were dropped, by reason.
    pub drops: Drops,
}
