//! What all block drivers share: which block next, what to write, what must be read.
//!
//! A working set of equal blocks is filled first; then every block's generation is known, so that
//! each read is compared with the last write that ended. A block is never written while another
//! I/O on it is in flight. After a failed write the old and the new generation are right. Runs
//! that wrote are read back whole at the end.

use super::{LoadArgs, Subject, measure, pattern};
use crate::error::Error;
use crate::load::{Content, Ended, LoadError, Request, Work};
use crate::schema::Measurement;
use crate::stop;
use clap::{Args, ValueEnum};
use std::time::{Duration, Instant};

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// From the device.
    Read,
    /// To the device.
    Write,
}

/// A device with a data buffer per slot. Every submitted I/O ends once, through `reap`.
pub trait BlockTarget {
    /// Size of the device.
    fn size_bytes(&self) -> u64;
    /// Alignment of offsets and lengths.
    fn block_bytes(&self) -> u32;
    /// Copies `data` into the slot's buffer.
    fn store(&mut self, slot: u16, at: usize, data: &[u8]);
    /// Copies out of the slot's buffer.
    fn load(&self, slot: u16, at: usize, out: &mut [u8]);
    /// Starts an I/O between the front of the slot's buffer and the device; `false`: no room now.
    fn submit(&mut self, slot: u16, op: Op, offset_bytes: u64, bytes: u32, now_ns: u64) -> bool;
    /// Tells the device about what was submitted.
    fn kick(&mut self) {}
    /// Appends slots whose I/O ended, with success or not.
    fn reap(&mut self, now_ns: u64, ended: &mut Vec<(u16, bool)>);
    /// Nothing to do for `limit_ns` unless an I/O ends: the place to sleep.
    fn idle(&mut self, _limit_ns: u64) {}
}

/// Share of reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mix {
    /// Only reads.
    Read,
    /// Only writes.
    Write,
    /// Seven reads to three writes.
    Mixed,
}

/// Order of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// Uniformly random, from a fixed seed.
    Random,
    /// Rising, wrapping around.
    Sequential,
}

/// What every block driver takes.
#[derive(Args, Clone, Debug)]
pub struct BlockArgs {
    /// Reads, writes, or 70 % reads.
    #[arg(long, value_enum, default_value = "read")]
    pub mix: Mix,
    /// Order of blocks.
    #[arg(long, value_enum, default_value = "random")]
    pub order: Order,
    /// Bytes per I/O; a multiple of 512 and of the device's block size.
    #[arg(long, value_name = "BYTES", default_value_t = 4096)]
    pub block: u32,
    /// Part of the device that is used, from its start. It is overwritten.
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    pub working_set_mib: u64,
    /// Compare every byte, not only the marks at the ends of each 4 KiB.
    #[arg(long)]
    pub full_check: bool,
    /// Compare nothing and fill nothing: for backends that keep nothing, as null devices.
    #[arg(long, conflicts_with_all = ["full_check", "mix"])]
    pub no_check: bool,
}

impl BlockArgs {
    fn check_name(&self) -> &'static str {
        match (self.no_check, self.full_check) {
            (true, _) => "none",
            (_, true) => "full",
            _ => "marks",
        }
    }
}

impl Default for BlockArgs {
    fn default() -> Self {
        BlockArgs {
            mix: Mix::Read,
            order: Order::Random,
            block: 4096,
            working_set_mib: 64,
            full_check: false,
            no_check: false,
        }
    }
}

/// The most bytes in one I/O: 32 frames of 4 KiB, what a virtio disk takes in its segments.
pub const MAX_IO_BYTES: u32 = 128 << 10;
/// An I/O that takes longer means that the device is stuck.
pub const STUCK_AFTER_S: f64 = 30.0;
/// The longest sleep outside of the load, so that Ctrl-C is seen.
const SLEEP_NS: u64 = 10_000_000;

/// Fills the working set, runs the load, reads back what was written.
pub fn run<T: BlockTarget>(
    target: T,
    driver: &'static str,
    medium: String,
    args: &LoadArgs,
    block: &BlockArgs,
) -> Result<Measurement, Error> {
    let load = args.load(STUCK_AFTER_S)?;
    let mut work = BlockWork::new(target, block, load.depth)?;
    if !block.no_check {
        work.fill()?;
    }
    let words = (format!("{:?}", block.mix), format!("{:?}", block.order));
    let (mix, order) = (words.0.to_lowercase(), words.1.to_lowercase());
    let size = block.block;
    let name = format!("{driver} {order} {mix} {size} B, {}", args.pace_text());
    let subject = Subject {
        driver,
        name,
        group: format!("disk {order} {mix} {size} B {}", args.pace_text()),
        medium,
        bytes: u64::from(size),
        is_block: true,
        parameters: vec![
            ("mix", mix.into()),
            ("order", order.into()),
            ("block_bytes", size.into()),
            ("working_set_mib", ((work.blocks() * u64::from(size)) >> 20).into()),
            ("check", block.check_name().into()),
        ],
    };
    let mut measurement = measure(&mut work, args, &load, subject)?;
    if block.mix != Mix::Read {
        let (verified, failures) = work.read_back()?;
        measurement.verified += verified;
        measurement.verify_failures += failures;
    }
    Ok(measurement)
}

/// What is known of a block's content.
#[derive(Clone, Copy)]
struct Block {
    generation: u32,
    /// The last generation whose write succeeded; those after it may be there or not.
    certain: u32,
    readers: u16,
    writing: bool,
}

#[derive(Clone, Copy)]
struct Slot {
    block: u64,
    op: Op,
    request: Request,
}

/// The work of a block driver on any target.
pub struct BlockWork<T> {
    target: T,
    args: BlockArgs,
    blocks: Vec<Block>,
    slots: Vec<Slot>,
    reaped: Vec<(u16, bool)>,
    buffer: Vec<u8>,
    cursor: u64,
    random: u64,
}

impl<T: BlockTarget> BlockWork<T> {
    /// Checks sizes; every block's content is unknown until [`fill`](Self::fill).
    pub fn new(target: T, args: &BlockArgs, depth: u16) -> Result<Self, Error> {
        let (io, unit) = (args.block, target.block_bytes().max(pattern::SECTOR_BYTES as u32));
        if io == 0 || !io.is_multiple_of(unit) || io > MAX_IO_BYTES {
            return Err(Error::Refused(format!(
                "--block {io} must be a multiple of {unit} and at most {MAX_IO_BYTES}"
            )));
        }
        let bytes = (args.working_set_mib << 20).min(target.size_bytes());
        let blocks = bytes / u64::from(io);
        if blocks < 2 * u64::from(depth) {
            return Err(Error::Refused(format!(
                "a working set of {blocks} blocks is too small for {depth} in flight: raise \
                 --working-set-mib, take a larger device, or lower --depth"
            )));
        }
        let unknown = Block { generation: 0, certain: 0, readers: 0, writing: false };
        let request = Request { slot: 0, round: 0 };
        Ok(BlockWork {
            target,
            args: args.clone(),
            blocks: vec![unknown; blocks as usize],
            slots: vec![Slot { block: 0, op: Op::Read, request }; usize::from(depth)],
            reaped: Vec::with_capacity(usize::from(depth)),
            buffer: vec![0; io as usize],
            cursor: 0,
            random: 0x853c_49e6_748f_ea9b,
        })
    }

    /// Blocks of the working set.
    pub fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Writes every block once.
    pub fn fill(&mut self) -> Result<(), Error> {
        let (_, failed) = self.pass(Op::Write)?;
        match failed {
            0 => Ok(()),
            n => Err(Error::Refused(format!(
                "{n} writes failed while the working set was filled: is the device read-only or \
                 its medium full?"
            ))),
        }
    }

    /// Reads every block once: how many were compared and how many were wrong.
    pub fn read_back(&mut self) -> Result<(u64, u64), Error> {
        self.pass(Op::Read)
    }

    /// One I/O on every block, in order; I/Os done, and those that failed or were wrong.
    fn pass(&mut self, op: Op) -> Result<(u64, u64), Error> {
        let mut free: Vec<u16> = (0..self.slots.len() as u16).collect();
        let (mut next, mut done, mut bad) = (0, 0, 0);
        let mut progress = Instant::now();
        let mut ended = Vec::new();
        while done < self.blocks() {
            let now_ns = outboard::clock::now_ns();
            while next < self.blocks()
                && let Some(slot) = free.pop()
            {
                self.assign(slot, next, op);
                if !self.start(Request { slot, round: 0 }, now_ns) {
                    self.release(slot);
                    free.push(slot);
                    break;
                }
                next += 1;
            }
            self.flush();
            self.poll(now_ns, &mut ended);
            if ended.is_empty() {
                self.target.idle(SLEEP_NS);
            }
            for end in ended.drain(..) {
                progress = Instant::now();
                done += 1;
                bad += u64::from(!end.ok || self.check(&end) == Content::Wrong);
                free.push(end.request.slot);
            }
            stop::check()?;
            if progress.elapsed() > Duration::from_secs_f64(STUCK_AFTER_S) {
                return Err(LoadError::Stuck { seconds: STUCK_AFTER_S }.into());
            }
        }
        Ok((done, bad))
    }

    /// Reserves the block for the slot and, for a write, makes its new content.
    fn assign(&mut self, slot: u16, index: u64, op: Op) {
        let block = &mut self.blocks[index as usize];
        match op {
            Op::Read => block.readers += 1,
            Op::Write => {
                block.writing = true;
                block.generation += 1;
                let offset_bytes = index * u64::from(self.args.block);
                pattern::fill(&mut self.buffer, offset_bytes, block.generation);
                self.target.store(slot, 0, &self.buffer);
            }
        }
        self.slots[usize::from(slot)] =
            Slot { block: index, op, request: Request { slot, round: 0 } };
    }

    /// Undoes [`assign`](Self::assign) of an I/O that was not started.
    fn release(&mut self, slot: u16) {
        let Slot { block, op, .. } = self.slots[usize::from(slot)];
        let block = &mut self.blocks[block as usize];
        match op {
            Op::Read => block.readers -= 1,
            Op::Write => (block.writing, block.generation) = (false, block.generation - 1),
        }
    }

    fn choose(&mut self) -> (u64, Op) {
        let op = match self.args.mix {
            Mix::Read => Op::Read,
            Mix::Write => Op::Write,
            Mix::Mixed => [Op::Write, Op::Read][usize::from(self.draw(10) < 7)],
        };
        let blocks = self.blocks();
        let mut index = match self.args.order {
            Order::Random => self.draw(blocks),
            Order::Sequential => self.cursor,
        };
        // Ends: there are at least twice as many blocks as slots.
        loop {
            let block = &self.blocks[index as usize];
            if !block.writing && (op == Op::Read || block.readers == 0) {
                break;
            }
            index = (index + 1) % blocks;
        }
        self.cursor = (index + 1) % blocks;
        (index, op)
    }

    /// A number below `below` (splitmix64, multiply-shift).
    fn draw(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(z ^ (z >> 31)) * u128::from(below)) >> 64) as u64
    }

    fn is_right(&mut self, slot: u16, offset_bytes: u64, generation: u32) -> bool {
        if self.args.full_check {
            self.target.load(slot, 0, &mut self.buffer);
            return pattern::is_right(&self.buffer, offset_bytes, generation);
        }
        let (target, bytes) = (&self.target, self.args.block as usize);
        pattern::is_plausible(bytes, offset_bytes, generation, |at, out| {
            target.load(slot, at, out);
        })
    }
}

impl<T: BlockTarget> Work for BlockWork<T> {
    const MAY_LOSE: bool = false;

    fn prepare(&mut self, slot: u16) {
        let (index, op) = self.choose();
        self.assign(slot, index, op);
    }

    fn start(&mut self, request: Request, now_ns: u64) -> bool {
        let slot = &mut self.slots[usize::from(request.slot)];
        slot.request = request;
        let offset_bytes = slot.block * u64::from(self.args.block);
        self.target.submit(request.slot, slot.op, offset_bytes, self.args.block, now_ns)
    }

    fn flush(&mut self) {
        self.target.kick();
    }

    fn poll(&mut self, now_ns: u64, ended: &mut Vec<Ended>) {
        self.target.reap(now_ns, &mut self.reaped);
        for (slot, ok) in self.reaped.drain(..) {
            let request = self.slots[usize::from(slot)].request;
            ended.push(Ended { request, ok });
        }
    }

    fn idle(&mut self, now_ns: u64, until_ns: u64) {
        if until_ns > now_ns {
            self.target.idle(until_ns - now_ns);
        }
    }

    fn check(&mut self, ended: &Ended) -> Content {
        let Slot { block: index, op, request } = self.slots[usize::from(ended.request.slot)];
        let offset_bytes = index * u64::from(self.args.block);
        let block = &mut self.blocks[index as usize];
        match op {
            Op::Write => {
                block.writing = false;
                if ended.ok {
                    block.certain = block.generation;
                }
                Content::Unchecked
            }
            Op::Read => {
                block.readers -= 1;
                if !ended.ok || self.args.no_check {
                    return Content::Unchecked;
                }
                let mut possible = block.certain..=block.generation;
                let right = possible
                    .any(|generation| self.is_right(request.slot, offset_bytes, generation));
                if right { Content::Right } else { Content::Wrong }
            }
        }
    }
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
