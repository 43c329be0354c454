//! A guest on a disk, and the oracle that knows what the disk must hold.

use crate::host::{PATIENCE, Scratch, until};
use outboard::virtio::driver::{BlkDriver, BlkOptions, DriverError, DriverOp};
use outboard_sim::Rng;
use std::path::Path;
use std::time::{Duration, Instant};

/// What the oracle knows contents by.
const BLOCK: usize = 4096;
/// The longest I/O.
const MAX_BLOCKS: usize = 4;
/// I/Os in flight.
pub const SLOTS: u16 = 16;

/// What every block may hold: numbers of writes, 0 for zeros. More than one: a write's outcome is
/// not known.
#[derive(Clone)]
pub struct Oracle {
    blocks: Vec<Vec<u64>>,
    writes: u64,
}

impl Oracle {
    /// A disk whose first bytes, as many as these, are zeros.
    pub fn new(bytes: u64) -> Oracle {
        Oracle { blocks: vec![vec![0]; bytes as usize / BLOCK], writes: 0 }
    }

    #[track_caller]
    fn check(&self, block: usize, bytes: &[u8]) {
        let allowed: Vec<_> =
            self.blocks[block].iter().map(|write| content(block, *write)).collect();
        // A write that did not end may have come in part, down to one sector.
        for (index, sector) in bytes.chunks(512).enumerate() {
            let at = index * 512..index * 512 + 512;
            let is_known = allowed.iter().any(|known| known[at.clone()] == *sector);
            assert!(is_known, "block {block} holds what was not written there last");
        }
    }
}

fn content(block: usize, write: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    if write != 0 {
        Rng::new(write << 24 | block as u64).fill(&mut bytes);
    }
    bytes
}

#[derive(Clone, Copy)]
struct Flight {
    op: DriverOp,
    block: usize,
    count: usize,
    write: u64,
}

/// How I/Os ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub done: u64,
    pub failed: u64,
}

/// A guest: the driver of one disk.
pub struct Guest {
    pub driver: BlkDriver,
    oracle: Oracle,
    flights: [Option<Flight>; SLOTS as usize],
    busy: Vec<bool>,
    rng: Rng,
    last_end: Instant,
    /// The longest time without an I/O that ended, while there were some in flight.
    pub longest_pause: Duration,
}

impl Guest {
    /// The guest of a disk whose content is known.
    #[track_caller]
    pub fn new(scratch: &Scratch, disk: &str, oracle: Oracle) -> Guest {
        Guest::with(scratch, disk, oracle, BlkDriver::connect_with)
    }

    /// The same with a front end that outlives the daemon: it keeps what is in flight.
    #[track_caller]
    pub fn tracked(scratch: &Scratch, disk: &str, oracle: Oracle) -> Guest {
        Guest::with(scratch, disk, oracle, BlkDriver::connect_tracked)
    }

    #[track_caller]
    fn with(
        scratch: &Scratch,
        disk: &str,
        oracle: Oracle,
        connect: fn(&Path, BlkOptions) -> Result<BlkDriver, DriverError>,
    ) -> Guest {
        let socket = scratch.path(&format!("disk-{disk}.sock"));
        let options = BlkOptions::new(64, SLOTS, (MAX_BLOCKS * BLOCK) as u32);
        // A front end before may still be leaving.
        let driver = until("the disk answers", || connect(&socket, options).ok());
        assert!(driver.capacity_bytes() >= (oracle.blocks.len() * BLOCK) as u64);
        Guest {
            driver,
            flights: [None; SLOTS as usize],
            busy: vec![false; oracle.blocks.len()],
            rng: Rng::new(oracle.writes + 1),
            last_end: Instant::now(),
            longest_pause: Duration::ZERO,
            oracle,
        }
    }

    /// Keeps every slot busy until `count` more I/Os have ended, none of which may fail.
    #[track_caller]
    pub fn keep_busy(&mut self, count: u64) {
        let deadline = Instant::now() + PATIENCE;
        let mut ended = 0;
        self.fill();
        while ended < count {
            ended += u64::from(self.step());
            assert!(Instant::now() < deadline, "I/Os do not end");
        }
    }

    /// Takes one outcome, which must be good, and begins another I/O in its place; `false`: there
    /// was none.
    #[track_caller]
    pub fn step(&mut self) -> bool {
        let Some((slot, is_done)) = self.poll() else {
            std::thread::sleep(Duration::from_micros(50));
            return false;
        };
        assert!(is_done, "an I/O failed");
        self.begin(slot);
        self.driver.kick();
        true
    }

    /// Goes away as a process does that is killed: with whatever is in flight.
    pub fn kill(self) -> Oracle {
        self.oracle
    }

    /// Begins an I/O in `slot`, at random.
    fn begin(&mut self, slot: u16) {
        let count = 1 + self.rng.index(MAX_BLOCKS);
        let block = self.rng.index(self.oracle.blocks.len() - count);
        let is_busy = self.busy[block..block + count].iter().any(|busy| *busy);
        match self.rng.below(16) {
            0 => self.submit(slot, DriverOp::Flush, 0, 0),
            _ if is_busy => self.submit(slot, DriverOp::Flush, 0, 0),
            1..=8 => self.submit(slot, DriverOp::Write, block, count),
            _ => self.submit(slot, DriverOp::Read, block, count),
        }
    }

    fn submit(&mut self, slot: u16, op: DriverOp, block: usize, count: usize) {
        let mut write = 0;
        if op == DriverOp::Write {
            self.oracle.writes += 1;
            write = self.oracle.writes;
            for index in 0..count {
                let bytes = content(block + index, write);
                self.driver.write_data(slot, index * BLOCK, &bytes);
                self.oracle.blocks[block + index].push(write);
            }
        }
        if self.in_flight() == 0 {
            self.last_end = Instant::now();
        }
        self.busy[block..block + count].fill(true);
        self.flights[usize::from(slot)] = Some(Flight { op, block, count, write });
        let offset = (block * BLOCK) as u64;
        self.driver.submit(op, offset, slot, (count * BLOCK) as u32);
    }

    /// Fills every free slot with an I/O.
    pub fn fill(&mut self) {
        for slot in 0..SLOTS {
            if self.flights[usize::from(slot)].is_none() {
                self.begin(slot);
            }
        }
        self.driver.kick();
    }

    /// I/Os in flight.
    pub fn in_flight(&self) -> usize {
        self.flights.iter().flatten().count()
    }

    /// Takes one outcome, if there is one, and checks what was read.
    #[track_caller]
    pub fn poll(&mut self) -> Option<(u16, bool)> {
        let completion = self.driver.poll()?;
        let slot = completion.slot;
        let flight = self.flights[usize::from(slot)].take().expect("one outcome of each I/O");
        let Flight { op, block, count, write } = flight;
        assert!(completion.status <= 1, "{completion:?}");
        self.longest_pause = self.longest_pause.max(self.last_end.elapsed());
        self.last_end = Instant::now();
        let is_done = completion.status == 0;
        self.busy[block..block + count].fill(false);
        let mut bytes = [0; BLOCK];
        for index in 0..count {
            let held = &mut self.oracle.blocks[block + index];
            match op {
                DriverOp::Write if is_done => *held = vec![write],
                DriverOp::Read if is_done => {
                    self.driver.read_data(slot, index * BLOCK, &mut bytes);
                    self.oracle.check(block + index, &bytes);
                }
                _ => {}
            }
        }
        Some((slot, is_done))
    }

    /// Waits for everything in flight.
    #[track_caller]
    pub fn drain(&mut self) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        let mut outcome = Outcome::default();
        while self.in_flight() > 0 {
            match self.poll() {
                Some((_, true)) => outcome.done += 1,
                Some((_, false)) => outcome.failed += 1,
                None => std::thread::sleep(Duration::from_micros(50)),
            }
            assert!(Instant::now() < deadline, "{} I/Os did not end", self.in_flight());
        }
        outcome
    }

    /// Runs `count` random I/Os, many at a time.
    #[track_caller]
    pub fn run(&mut self, count: u64) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        let mut outcome = Outcome::default();
        self.fill();
        while outcome.done + outcome.failed + (self.in_flight() as u64) < count {
            match self.poll() {
                Some((slot, is_done)) => {
                    outcome.done += u64::from(is_done);
                    outcome.failed += u64::from(!is_done);
                    self.begin(slot);
                    self.driver.kick();
                }
                None => std::thread::sleep(Duration::from_micros(50)),
            }
            assert!(Instant::now() < deadline, "I/Os do not end");
        }
        let rest = self.drain();
        Outcome { done: outcome.done + rest.done, failed: outcome.failed + rest.failed }
    }

    /// Runs random I/Os of which none may fail.
    #[track_caller]
    pub fn runs(&mut self, count: u64) {
        let outcome = self.run(count);
        assert!(outcome.failed == 0 && outcome.done >= count, "{outcome:?}");
    }

    /// Does one I/O; whether it succeeded.
    #[track_caller]
    pub fn does(&mut self, op: DriverOp, block: usize, count: usize) -> bool {
        self.submit(0, op, block, count);
        self.driver.kick();
        self.drain().done == 1
    }

    /// Tries I/Os until one succeeds: the worker may not know yet what control knows.
    #[track_caller]
    pub fn until_served(&mut self) {
        until("I/O is served", || self.does(DriverOp::Flush, 0, 0).then_some(()));
    }

    /// Reads the whole disk and compares.
    #[track_caller]
    pub fn verify(&mut self) {
        for block in (0..self.oracle.blocks.len()).step_by(MAX_BLOCKS) {
            assert!(self.does(DriverOp::Read, block, MAX_BLOCKS), "a read failed");
        }
    }

    /// Forgets what a disk that was truncated to `bytes` no longer holds.
    pub fn forget_behind(&mut self, bytes: u64) {
        self.oracle.blocks[bytes as usize / BLOCK..].fill(vec![0]);
    }
}
