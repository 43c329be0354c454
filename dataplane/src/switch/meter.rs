//! How often something may happen: a token bucket per port, of fixed size and rate.
//!
//! Kept as the time at which the bucket will be full again (the virtual scheduling algorithm of
//! ITU-T I.371), so that nothing has to be refilled.

use crate::packet::PortId;

/// Buckets: more than a plan has ports. Ports whose numbers are this far apart would share one.
const BUCKETS: usize = 512;
/// Time between two tokens: 20 a second, which is enough to trace a route and to learn an MTU.
pub(super) const INTERVAL_NS: u64 = 50_000_000;
/// Tokens in a full bucket.
pub(super) const BURST_TOKENS: u64 = 20;

/// One bucket per port.
#[derive(Debug)]
pub(super) struct Meter {
    /// When each bucket is full.
    full_ns: Box<[u64; BUCKETS]>,
}

impl Meter {
    /// All buckets full.
    pub(super) fn new() -> Meter {
        Meter { full_ns: Box::new([0; BUCKETS]) }
    }

    /// All buckets empty for good.
    #[cfg(test)]
    pub(super) fn empty() -> Meter {
        Meter { full_ns: Box::new([u64::MAX; BUCKETS]) }
    }

    /// The buckets from which something was taken.
    pub(super) fn save(&self) -> Vec<(u16, u64)> {
        let all = (0..).zip(self.full_ns.iter().copied());
        all.filter(|(_, full_ns)| *full_ns > 0).collect()
    }

    /// Takes saved buckets up; `false`: one that there is not.
    #[must_use]
    pub(super) fn load(&mut self, saved: &[(u16, u64)]) -> bool {
        saved.iter().all(|(port, full_ns)| {
            let place = self.full_ns.get_mut(usize::from(*port));
            place.map(|place| *place = *full_ns).is_some()
        })
    }

    /// Takes a token of a port, if there is one.
    pub(super) fn take(&mut self, port: PortId, now_ns: u64) -> bool {
        let full_ns = &mut self.full_ns[usize::from(port.0) % BUCKETS];
        let after_ns = (*full_ns).max(now_ns).saturating_add(INTERVAL_NS);
        let granted = after_ns - now_ns <= BURST_TOKENS * INTERVAL_NS;
        if granted {
            *full_ns = after_ns;
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let mut meter = Meter::new();
        let mut take = |port, now_ns| meter.take(PortId(port), now_ns);
        for start_ns in [1, 1 << 60] {
            assert!((0..BURST_TOKENS).all(|_| take(3, start_ns)));
            assert!(!take(3, start_ns) && !take(3, start_ns + INTERVAL_NS - 1));
            assert!(take(4, start_ns), "each port has its own");
            assert!(take(3, start_ns + INTERVAL_NS));
            assert!(!take(3, start_ns + INTERVAL_NS));
            let after_ns = start_ns + INTERVAL_NS;
            let more = (1..=1000).filter(|n| take(3, after_ns + n * INTERVAL_NS / 2));
            assert_eq!(more.count(), 500, "half of them: one per interval");
        }
    }

    #[test]
    fn the_end_of_time() {
        let mut meter = Meter::new();
        assert!(meter.take(PortId(0), u64::MAX));
    }
}
