//! The target's medium: `outboard_sim`'s disk as a volume. It outlives the process that serves it:
//! what that process had submitted takes effect whenever the disk gets to it.

use super::oracle::SECTOR_BYTES;
use outboard::volume::{BlockDevice, Done, Dones, Full, Geometry, Io, Op, Status, Tag};
use outboard_dma::Segment;
use outboard_sim::{Disk, DiskFaults, DiskOp, DiskOutcome, Rng};
use std::collections::HashMap;
use std::os::fd::RawFd;

/// I/Os that it takes at once.
const DEPTH: u32 = 96;

/// The disk, and what the living process waits for.
pub struct Medium {
    pub disk: Disk,
    geometry: Geometry,
    rng: Rng,
    next: u64,
    waiting: HashMap<u64, Waiting>,
    /// I/Os that failed, as their submitters were told.
    pub errors: u64,
    pub refused: u64,
}

struct Waiting {
    tag: Tag,
    op: Op,
    segments: Vec<Segment>,
}

impl Medium {
    pub fn new(mut rng: Rng, faults: DiskFaults, sectors: u64) -> Medium {
        Medium {
            disk: Disk::new(rng.fork(), faults, sectors),
            geometry: Geometry {
                block_bytes: SECTOR_BYTES as u32,
                blocks: sectors,
                read_only: false,
            },
            rng,
            next: 0,
            waiting: HashMap::new(),
            errors: 0,
            refused: 0,
        }
    }

    /// The process has died: nobody waits any more, and its memory is gone.
    pub fn orphan(&mut self) {
        self.waiting.clear();
    }

    /// I/O of a process that died ends.
    pub fn settle(&mut self, now_ns: u64) {
        while self.disk.reap(now_ns).is_some() {}
    }

    pub fn power_cut(&mut self) {
        self.disk.power_cut();
    }

    /// A discard of whole sectors: some file systems give zeros then, others do nothing.
    fn discard(&mut self, sector: u64, sectors: u64) -> DiskOp {
        if self.rng.chance(500_000) {
            return DiskOp::Read { sector, sectors };
        }
        DiskOp::Write { sector, data: vec![0; sectors as usize * SECTOR_BYTES] }
    }
}

impl BlockDevice for Medium {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, now_ns: u64, io: &Io) -> Result<(), Full> {
        if self.disk.in_flight() as u32 >= DEPTH {
            self.refused += 1;
            return Err(Full);
        }
        assert_eq!(self.geometry.check(io), Ok(()), "the export checks ranges: {io:?}");
        let sector = io.offset_bytes / SECTOR_BYTES as u64;
        let sectors = io.bytes() / SECTOR_BYTES as u64;
        let op = match io.op {
            Op::Read => DiskOp::Read { sector, sectors },
            Op::Write => {
                let mut data = vec![0; io.bytes() as usize];
                let mut at = 0;
                for segment in io.segments {
                    segment.copy_to(0, &mut data[at..at + segment.len()]);
                    at += segment.len();
                }
                DiskOp::Write { sector, data }
            }
            Op::WriteZeroes => {
                DiskOp::Write { sector, data: vec![0; sectors as usize * SECTOR_BYTES] }
            }
            Op::Discard => self.discard(sector, sectors),
            Op::Flush => DiskOp::Flush,
            Op::Compare => unreachable!("a guest cannot ask for it"),
        };
        self.next += 1;
        self.disk.submit(now_ns, self.next, op);
        let waiting = Waiting { tag: io.tag, op: io.op, segments: io.segments.to_vec() };
        self.waiting.insert(self.next, waiting);
        Ok(())
    }

    fn reap(&mut self, now_ns: u64, done: &mut Dones) {
        while !done.is_full() {
            let Some(ended) = self.disk.reap(now_ns) else { return };
            let Some(waiting) = self.waiting.remove(&ended.id) else { continue };
            let status = match ended.outcome {
                DiskOutcome::Ok(data) => {
                    if waiting.op == Op::Read {
                        let mut rest = &data[..];
                        for segment in &waiting.segments {
                            let (now, behind) = rest.split_at(segment.len());
                            segment.copy_from(0, now);
                            rest = behind;
                        }
                    }
                    Status::Ok
                }
                DiskOutcome::Error => {
                    self.errors += 1;
                    Status::Media
                }
            };
            done.push(Done::new(waiting.tag, status));
        }
    }

    fn in_flight(&self) -> u32 {
        self.disk.in_flight() as u32
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }
}
