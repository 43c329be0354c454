//! A network link in one direction that loses, delays, reorders, duplicates and corrupts.
//!
//! Conservation, at every moment: `sent + duplicated = lost + overflowed + delivered + in flight`.

use crate::{Events, Rng};

/// What may go wrong, in parts of a million per packet, and how long the way is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkFaults {
    /// The packet vanishes.
    pub loss_ppm: u32,
    /// A copy of it arrives as well, at its own moment.
    pub duplicate_ppm: u32,
    /// One to four of its bits flip, all within 16 in a row: whatever an Internet checksum covers,
    /// it finds (RFC 1071 sums differ by powers of two that cannot cancel).
    pub corrupt_ppm: u32,
    /// It arrives up to `reorder_ns` later than its neighbours.
    pub reorder_ppm: u32,
    /// The way's length.
    pub delay_ns: u64,
    /// The most that a reordered packet is late.
    pub reorder_ns: u64,
    /// The most packets on the way; what is sent beyond is lost, as `overflowed`.
    pub capacity: usize,
}

/// What happened so far, in packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of LinkFaults")]
pub struct LinkStatistics {
    pub sent: u64,
    pub lost: u64,
    pub overflowed: u64,
    pub duplicated: u64,
    pub corrupted: u64,
    pub reordered: u64,
    pub delivered: u64,
}

/// A packet that came through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When.
    pub at_ns: u64,
    /// The packet.
    pub bytes: Vec<u8>,
    /// Whether the link changed it.
    pub corrupted: bool,
}

/// One direction of a link.
#[derive(Debug)]
pub struct Link {
    rng: Rng,
    faults: LinkFaults,
    way: Events<(Vec<u8>, bool)>,
    statistics: LinkStatistics,
}

impl Link {
    /// An empty link whose faults follow from `rng`.
    pub fn new(rng: Rng, faults: LinkFaults) -> Link {
        Link { rng, faults, way: Events::default(), statistics: LinkStatistics::default() }
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&mut self, faults: LinkFaults) {
        self.faults = faults;
    }

    /// Sends a packet.
    pub fn send(&mut self, now_ns: u64, bytes: Vec<u8>) {
        self.statistics.sent += 1;
        if self.rng.chance(self.faults.duplicate_ppm) {
            self.statistics.duplicated += 1;
            self.carry(now_ns, bytes.clone());
        }
        self.carry(now_ns, bytes);
    }

    fn carry(&mut self, now_ns: u64, mut bytes: Vec<u8>) {
        if self.rng.chance(self.faults.loss_ppm) {
            self.statistics.lost += 1;
            return;
        }
        if self.way.len() >= self.faults.capacity {
            self.statistics.overflowed += 1;
            return;
        }
        let corrupted = !bytes.is_empty() && self.rng.chance(self.faults.corrupt_ppm);
        if corrupted {
            self.statistics.corrupted += 1;
            self.flip_bits(&mut bytes);
        }
        let mut at_ns = now_ns + self.faults.delay_ns;
        if self.faults.reorder_ns > 0 && self.rng.chance(self.faults.reorder_ppm) {
            self.statistics.reordered += 1;
            at_ns += self.rng.between(1, self.faults.reorder_ns);
        }
        self.way.push(at_ns, (bytes, corrupted));
    }

    /// One to four different bits at most 15 apart.
    fn flip_bits(&mut self, bytes: &mut [u8]) {
        let first = self.rng.index(bytes.len() * 8);
        let count = self.rng.between(1, 4) as usize;
        let stride = self.rng.between(1, 5) as usize;
        for bit in (first..bytes.len() * 8).step_by(stride).take(count) {
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    /// The next packet that has arrived by `now_ns`.
    pub fn receive(&mut self, now_ns: u64) -> Option<Arrival> {
        let (at_ns, (bytes, corrupted)) = self.way.pop(now_ns)?;
        self.statistics.delivered += 1;
        Some(Arrival { at_ns, bytes, corrupted })
    }

    /// When the next packet arrives.
    pub fn next_ns(&self) -> Option<u64> {
        self.way.next_ns()
    }

    /// Packets on the way.
    pub fn in_flight(&self) -> usize {
        self.way.len()
    }

    /// What happened so far.
    pub fn statistics(&self) -> LinkStatistics {
        self.statistics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: LinkFaults = LinkFaults {
        loss_ppm: 0,
        duplicate_ppm: 0,
        corrupt_ppm: 0,
        reorder_ppm: 0,
        delay_ns: 1_000,
        reorder_ns: 0,
        capacity: 64,
    };

    fn conserved(link: &Link) {
        let s = link.statistics();
        let ended = s.lost + s.overflowed + s.delivered + link.in_flight() as u64;
        assert_eq!(s.sent + s.duplicated, ended, "{s:?}");
    }

    #[test]
    fn a_clean_link_keeps_order_time_and_content() {
        let mut link = Link::new(Rng::new(1), CLEAN);
        for n in 0..64u8 {
            link.send(u64::from(n), vec![n; 60]);
        }
        assert_eq!(link.next_ns(), Some(1_000));
        for n in 0..64u8 {
            let arrival =
                Arrival { at_ns: 1_000 + u64::from(n), bytes: vec![n; 60], corrupted: false };
            assert_eq!(link.receive(1_063), Some(arrival));
        }
        conserved(&link);
    }

    #[test]
    fn one_more_than_the_capacity_is_lost() {
        let mut link = Link::new(Rng::new(1), LinkFaults { capacity: 3, ..CLEAN });
        for n in 0..4 {
            link.send(0, vec![n]);
        }
        assert_eq!((link.in_flight(), link.statistics().overflowed), (3, 1));
        conserved(&link);
    }

    #[test]
    fn every_fault_happens_as_often_as_asked_and_is_told() {
        let faults = LinkFaults {
            loss_ppm: 10_000,
            duplicate_ppm: 10_000,
            corrupt_ppm: 10_000,
            reorder_ppm: 10_000,
            reorder_ns: 5_000,
            ..CLEAN
        };
        let mut link = Link::new(Rng::new(2), faults);
        let (mut latest, mut late, mut changed) = (0, 0u64, 0u64);
        for n in 0..100_000u64 {
            link.send(n * 100, n.to_le_bytes().to_vec());
            while let Some(arrival) = link.receive(n * 100) {
                let number = u64::from_le_bytes(arrival.bytes.try_into().unwrap());
                changed += u64::from(arrival.corrupted);
                if !arrival.corrupted {
                    late += u64::from(number < latest);
                    latest = latest.max(number);
                }
            }
        }
        conserved(&link);
        let s = link.statistics();
        for count in [s.lost, s.duplicated, s.corrupted, s.reordered] {
            assert!((800..1_200).contains(&count), "{s:?}");
        }
        assert!(changed > 800 && late > 500, "{changed} {late}");
    }
}
