//! The block drivers' common part on a device in memory that can be told to misbehave.

use super::*;
use crate::load::{self, Load, Monotonic, Pace, Tally};
use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;

const MIB: u64 = 1 << 20;

struct Memory {
    data: Vec<u8>,
    buffers: Vec<Vec<u8>>,
    queue: VecDeque<(u16, bool)>,
    depth: usize,
    io: u64,
    /// Flips one bit of the n-th I/O's data when it is a write.
    corrupt_write: Option<u64>,
    /// Drops the n-th I/O's data when it is a write, but says it succeeded.
    lose_write: Option<u64>,
    fail: Option<u64>,
}

impl Memory {
    fn new(bytes: u64, depth: u16) -> Memory {
        Memory {
            data: vec![0; bytes as usize],
            buffers: vec![vec![0; MAX_IO_BYTES as usize]; usize::from(depth)],
            queue: VecDeque::new(),
            depth: usize::from(depth),
            io: 0,
            corrupt_write: None,
            lose_write: None,
            fail: None,
        }
    }
}

impl BlockTarget for Memory {
    fn size_bytes(&self) -> u64 {
        self.data.len() as u64
    }

    fn block_bytes(&self) -> u32 {
        512
    }

    fn store(&mut self, slot: u16, at: usize, data: &[u8]) {
        self.buffers[usize::from(slot)][at..at + data.len()].copy_from_slice(data);
    }

    fn load(&self, slot: u16, at: usize, out: &mut [u8]) {
        out.copy_from_slice(&self.buffers[usize::from(slot)][at..at + out.len()]);
    }

    fn submit(&mut self, slot: u16, op: Op, offset_bytes: u64, bytes: u32, _now_ns: u64) -> bool {
        if self.queue.len() == self.depth {
            return false;
        }
        self.io += 1;
        let (offset, bytes) = (offset_bytes as usize, bytes as usize);
        let range = offset..offset + bytes;
        let buffer = &mut self.buffers[usize::from(slot)];
        let ok = self.fail != Some(self.io);
        match op {
            _ if !ok => {}
            Op::Read => buffer[..bytes].copy_from_slice(&self.data[range]),
            Op::Write if self.lose_write == Some(self.io) => {}
            Op::Write => {
                self.data[range].copy_from_slice(&buffer[..bytes]);
                if self.corrupt_write == Some(self.io) {
                    self.data[offset + bytes / 2 + 3] ^= 1;
                }
            }
        }
        self.queue.push_back((slot, ok));
        true
    }

    fn reap(&mut self, _now_ns: u64, ended: &mut Vec<(u16, bool)>) {
        ended.extend(self.queue.pop_front());
    }
}

fn drive(work: &mut BlockWork<Memory>, depth: u16) -> Tally {
    let load = Load {
        pace: Pace::Closed,
        depth,
        warmup_ns: 0,
        measure_ns: 20_000_000,
        lost_after_ns: 1_000_000_000,
    };
    // On a busy machine a window may pass without this thread having run.
    let mut tallies =
        (0..100).map(|_| load::run(work, &mut Monotonic, &load, &AtomicBool::new(false)).unwrap());
    tallies.find(|tally| tally.ended_in_window > 0).unwrap()
}

fn args(mix: Mix, full_check: bool) -> BlockArgs {
    BlockArgs { mix, full_check, working_set_mib: 1, ..BlockArgs::default() }
}

#[test]
fn honest_memory_passes_every_mix_order_and_depth() {
    for mix in [Mix::Read, Mix::Write, Mix::Mixed] {
        for (order, depth, block) in
            [(Order::Random, 1, 512), (Order::Sequential, 8, 4096), (Order::Random, 4, 65_536)]
        {
            let plan = BlockArgs { order, block, ..args(mix, true) };
            let mut work = BlockWork::new(Memory::new(MIB, depth), &plan, depth).unwrap();
            work.fill().unwrap();
            let tally = drive(&mut work, depth);
            assert_eq!((tally.verify_failures, tally.errors), (0, 0), "{mix:?} {order:?}");
            assert_eq!(tally.verified == 0, mix == Mix::Write);
            assert_eq!(work.read_back().unwrap(), (work.blocks(), 0));
        }
    }
}

#[test]
fn a_planted_corruption_is_caught_by_the_full_check() {
    let mut memory = Memory::new(MIB, 4);
    memory.corrupt_write = Some(100);
    let mut work = BlockWork::new(memory, &args(Mix::Read, true), 4).unwrap();
    work.fill().unwrap();
    assert_eq!(work.read_back().unwrap(), (256, 1));
}

#[test]
fn a_lost_write_is_caught_by_the_quick_check() {
    // In the fill: zeros are found. Later: the generation before is found.
    for io in [100, 256 + 100] {
        let mut memory = Memory::new(MIB, 4);
        memory.lose_write = Some(io);
        let plan = BlockArgs { order: Order::Sequential, ..args(Mix::Write, false) };
        let mut work = BlockWork::new(memory, &plan, 4).unwrap();
        work.fill().unwrap();
        if io > 256 {
            work.fill().unwrap();
        }
        assert_eq!(work.read_back().unwrap(), (256, 1), "write {io}");
    }
}

#[test]
fn after_a_failed_write_either_generation_is_right() {
    let mut memory = Memory::new(MIB, 4);
    memory.fail = Some(256 + 10);
    let mut work = BlockWork::new(memory, &args(Mix::Write, true), 4).unwrap();
    work.fill().unwrap();
    assert!(work.fill().unwrap_err().to_string().contains("1 writes failed"));
    assert_eq!(work.read_back().unwrap(), (256, 0));
}

#[test]
fn sizes_are_checked_at_their_edges() {
    let new = |bytes, block, depth| {
        let plan = BlockArgs { block, ..args(Mix::Read, false) };
        BlockWork::new(Memory::new(bytes, 1), &plan, depth).map(|work| work.blocks())
    };
    assert_eq!(new(MIB, MAX_IO_BYTES, 4).unwrap(), 8);
    assert!(new(MIB, MAX_IO_BYTES, 5).is_err());
    for bad in [0, 511, 513, MAX_IO_BYTES + 512] {
        assert!(new(MIB, bad, 1).is_err(), "{bad}");
    }
}
