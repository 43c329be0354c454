//! A disk with latency, errors, and a volatile cache that loses power.
//!
//! An I/O takes effect and ends at a random moment after it was submitted, in any order. A write
//! ends in the cache; a flush moves to stable media what had ended before the flush was submitted.
//! At a power cut every sector keeps, on its own, its stable content or any of the newer ones that
//! were in the cache or on their way there (torn writes); I/O in flight never ends.

use crate::{Events, Rng};
use std::collections::BTreeMap;

/// What is written as a whole: a power cut tears larger writes between sectors.
pub const SECTOR_BYTES: usize = 512;

/// What may go wrong, in parts of a million per I/O, and how long an I/O takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskFaults {
    /// A read, write or flush fails; a failed write may have changed any of its sectors.
    pub error_ppm: u32,
    /// The least and the most time that an I/O takes.
    pub latency_ns: (u64, u64),
    /// The disk holds an I/O back, as it does when it has to try again: it takes `stall_ns` more.
    pub stall_ppm: u32,
    /// The least and the most time that it is held back.
    pub stall_ns: (u64, u64),
}

/// What an I/O does; offsets and lengths are in sectors of [`SECTOR_BYTES`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOp {
    /// Reads `sectors` from `sector` on.
    Read {
        /// First sector.
        sector: u64,
        /// Number of sectors.
        sectors: u64,
    },
    /// Writes whole sectors from `sector` on.
    Write {
        /// First sector.
        sector: u64,
        /// The data.
        data: Vec<u8>,
    },
    /// Makes what has ended stable.
    Flush,
}

/// How an I/O ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOutcome {
    /// Done, with the data if it was a read.
    Ok(Vec<u8>),
    /// The medium failed.
    Error,
}

/// An I/O that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// When.
    pub at_ns: u64,
    /// The submitter's number.
    pub id: u64,
    /// How.
    pub outcome: DiskOutcome,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStatistics {
    /// I/Os taken.
    pub submitted: u64,
    /// I/Os that ended well.
    pub ended: u64,
    /// I/Os that failed.
    pub errors: u64,
    /// I/Os that a power cut swallowed.
    pub cut: u64,
    /// Sectors whose newest content a power cut lost.
    pub lost_sectors: u64,
    /// I/Os that were held back.
    pub stalled: u64,
}

/// A disk of `sectors` sectors, zeros at first.
#[derive(Debug)]
pub struct Disk {
    rng: Rng,
    faults: DiskFaults,
    stable: Vec<u8>,
    /// Newer contents of a sector, oldest first, each with the number of the write that made it.
    cache: BTreeMap<u64, Vec<(u64, Sector)>>,
    in_flight: Events<(u64, u64, DiskOp)>,
    /// Numbers what takes effect, so that a flush knows what came before it.
    clock: u64,
    statistics: DiskStatistics,
}

type Sector = [u8; SECTOR_BYTES];

impl Disk {
    /// A disk of zeros whose behaviour follows from `rng`.
    pub fn new(rng: Rng, faults: DiskFaults, sectors: u64) -> Disk {
        Disk {
            rng,
            faults,
            stable: vec![0; sectors as usize * SECTOR_BYTES],
            cache: BTreeMap::new(),
            in_flight: Events::default(),
            clock: 0,
            statistics: DiskStatistics::default(),
        }
    }

    /// Starts an I/O; `id` comes back with its outcome.
    ///
    /// # Panics
    /// When the I/O leaves the disk or writes a part of a sector: the caller's own defect.
    pub fn submit(&mut self, now_ns: u64, id: u64, op: DiskOp) {
        let (first, count) = match &op {
            DiskOp::Read { sector, sectors } => (*sector, *sectors),
            DiskOp::Write { sector, data } => {
                assert!(data.len().is_multiple_of(SECTOR_BYTES));
                (*sector, (data.len() / SECTOR_BYTES) as u64)
            }
            DiskOp::Flush => (0, 0),
        };
        let sectors = (self.stable.len() / SECTOR_BYTES) as u64;
        assert!(first.checked_add(count).is_some_and(|end| end <= sectors));
        let (least_ns, most_ns) = self.faults.latency_ns;
        let mut at_ns = now_ns + self.rng.between(least_ns, most_ns);
        if self.rng.chance(self.faults.stall_ppm) {
            let (least_ns, most_ns) = self.faults.stall_ns;
            at_ns += self.rng.between(least_ns, most_ns);
            self.statistics.stalled += 1;
        }
        self.statistics.submitted += 1;
        self.in_flight.push(at_ns, (id, self.clock, op));
    }

    /// The next I/O that has ended by `now_ns`.
    pub fn reap(&mut self, now_ns: u64) -> Option<Ended> {
        let (at_ns, (id, submitted, op)) = self.in_flight.pop(now_ns)?;
        if self.rng.chance(self.faults.error_ppm) {
            self.statistics.errors += 1;
            if let DiskOp::Write { sector, data } = op {
                self.write_some(sector, &data);
            }
            return Some(Ended { at_ns, id, outcome: DiskOutcome::Error });
        }
        self.statistics.ended += 1;
        let data = match op {
            DiskOp::Read { sector, sectors } => self.content(sector, sectors),
            DiskOp::Write { sector, data } => {
                self.clock += 1;
                for (index, piece) in data.chunks(SECTOR_BYTES).enumerate() {
                    self.cache_sector(sector + index as u64, piece);
                }
                Vec::new()
            }
            DiskOp::Flush => {
                self.make_stable(submitted);
                Vec::new()
            }
        };
        Some(Ended { at_ns, id, outcome: DiskOutcome::Ok(data) })
    }

    /// What a read of these sectors gives now.
    pub fn content(&self, sector: u64, sectors: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(sectors as usize * SECTOR_BYTES);
        for sector in sector..sector + sectors {
            match self.cache.get(&sector).and_then(|newer| newer.last()) {
                Some((_, bytes)) => out.extend_from_slice(bytes),
                None => out.extend_from_slice(&self.stable[place(sector)]),
            }
        }
        out
    }

    /// The power goes and comes back: see the head of this file.
    pub fn power_cut(&mut self) {
        while let Some((_, (_, _, op))) = self.in_flight.pop(u64::MAX) {
            self.statistics.cut += 1;
            if let DiskOp::Write { sector, data } = op {
                self.write_some(sector, &data);
            }
        }
        for (sector, newer) in std::mem::take(&mut self.cache) {
            let kept = self.rng.index(newer.len() + 1);
            self.statistics.lost_sectors += u64::from(kept < newer.len());
            if let Some(index) = kept.checked_sub(1) {
                self.stable[place(sector)].copy_from_slice(&newer[index].1);
            }
        }
    }

    /// When the next I/O ends.
    pub fn next_ns(&self) -> Option<u64> {
        self.in_flight.next_ns()
    }

    /// I/Os in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// What happened so far.
    pub fn statistics(&self) -> DiskStatistics {
        self.statistics
    }

    /// A write that did not end well: any of its sectors may have changed.
    fn write_some(&mut self, sector: u64, data: &[u8]) {
        self.clock += 1;
        for (index, piece) in data.chunks(SECTOR_BYTES).enumerate() {
            if self.rng.chance(500_000) {
                self.cache_sector(sector + index as u64, piece);
            }
        }
    }

    fn cache_sector(&mut self, sector: u64, piece: &[u8]) {
        let mut bytes = [0; SECTOR_BYTES];
        bytes.copy_from_slice(piece);
        self.cache.entry(sector).or_default().push((self.clock, bytes));
    }

    /// Moves to stable media what took effect up to the moment `until`.
    fn make_stable(&mut self, until: u64) {
        for (sector, newer) in &mut self.cache {
            let count = newer.partition_point(|(written, _)| *written <= until);
            if let Some((_, bytes)) = newer.drain(..count).next_back() {
                self.stable[place(*sector)].copy_from_slice(&bytes);
            }
        }
        self.cache.retain(|_, newer| !newer.is_empty());
    }
}

fn place(sector: u64) -> std::ops::Range<usize> {
    let start = sector as usize * SECTOR_BYTES;
    start..start + SECTOR_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: DiskFaults =
        DiskFaults { error_ppm: 0, latency_ns: (10, 1_000), stall_ppm: 0, stall_ns: (0, 0) };

    fn write(sector: u64, value: u8, sectors: usize) -> DiskOp {
        DiskOp::Write { sector, data: vec![value; sectors * SECTOR_BYTES] }
    }

    fn finish(disk: &mut Disk) -> Vec<Ended> {
        std::iter::from_fn(|| disk.reap(u64::MAX)).collect()
    }

    #[test]
    fn a_read_gives_the_last_ended_write_and_zeros_elsewhere() {
        let mut disk = Disk::new(Rng::new(1), CLEAN, 8);
        disk.submit(0, 1, write(2, 7, 2));
        assert_eq!(disk.reap(9), None);
        assert_eq!(finish(&mut disk).len(), 1);
        disk.submit(0, 2, write(3, 8, 1));
        finish(&mut disk);
        disk.submit(0, 3, DiskOp::Read { sector: 1, sectors: 4 });
        let ended = finish(&mut disk).remove(0);
        let expected = [0, 7, 8, 0].map(|value| [value; SECTOR_BYTES]).concat();
        assert_eq!((ended.id, ended.outcome), (3, DiskOutcome::Ok(expected)));
    }

    #[test]
    fn a_flush_covers_what_ended_before_it_and_a_cut_may_lose_the_rest() {
        let (mut kept_new, mut kept_old, mut torn) = (0, 0, 0);
        for seed in 0..400 {
            let mut disk = Disk::new(Rng::new(seed), CLEAN, 8);
            disk.submit(0, 1, write(0, 1, 8));
            finish(&mut disk);
            disk.submit(0, 2, DiskOp::Flush);
            finish(&mut disk);
            disk.submit(0, 3, write(0, 2, 8));
            if seed % 2 == 0 {
                finish(&mut disk);
            }
            disk.power_cut();
            let content = disk.content(0, 8);
            let sectors: Vec<_> = content.chunks(SECTOR_BYTES).map(|sector| sector[0]).collect();
            assert!(content.iter().all(|byte| *byte == 1 || *byte == 2), "the flush was lost");
            assert_eq!(disk.in_flight(), 0);
            let new = sectors.iter().filter(|sector| **sector == 2).count();
            (kept_new, kept_old) = (kept_new + new, kept_old + 8 - new);
            torn += u32::from(new != 0 && new != 8);
        }
        assert!(kept_new > 500 && kept_old > 500 && torn > 300, "{kept_new} {kept_old} {torn}");
    }

    #[test]
    fn a_flush_leaves_what_ended_after_its_submission_to_chance() {
        let mut seen = [false; 3];
        for seed in 0..200 {
            let mut disk = Disk::new(Rng::new(seed), CLEAN, 1);
            disk.submit(0, 1, write(0, 1, 1));
            disk.submit(0, 2, DiskOp::Flush);
            finish(&mut disk);
            disk.power_cut();
            seen[usize::from(disk.content(0, 1)[0])] = true;
        }
        assert_eq!(seen, [true, true, false]);
    }

    #[test]
    fn what_is_held_back_ends_later_than_what_came_behind_it() {
        let faults = DiskFaults { stall_ppm: 300_000, stall_ns: (50_000, 90_000), ..CLEAN };
        let mut disk = Disk::new(Rng::new(5), faults, 8);
        for id in 0..1_000 {
            disk.submit(0, id, write(0, 1, 1));
        }
        let late = finish(&mut disk).iter().filter(|ended| ended.at_ns > 50_000).count();
        assert_eq!(late as u64, disk.statistics().stalled);
        assert!((200..400).contains(&late), "{late}");
    }

    #[test]
    fn errors_come_as_often_as_asked() {
        let faults = DiskFaults { error_ppm: 100_000, ..CLEAN };
        let mut disk = Disk::new(Rng::new(5), faults, 8);
        for id in 0..10_000 {
            disk.submit(0, id, DiskOp::Read { sector: 0, sectors: 1 });
        }
        let errors =
            finish(&mut disk).iter().filter(|ended| ended.outcome == DiskOutcome::Error).count();
        assert!((800..1_200).contains(&errors), "{errors}");
        let s = disk.statistics();
        assert_eq!((s.submitted, s.ended + s.errors), (10_000, 10_000));
    }
}
