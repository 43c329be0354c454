//! Initiator against target over a stream that is cut anywhere, with a disk that remembers.

use crate::ends::{Controller, Host, Random, admin_config, names, namespace, subsystem};
use outboard_rdma::nvmf::capsule::{Sqe, admin};
use outboard_rdma::nvmf::identify::commands;
use outboard_rdma::nvmf::initiator::{Found, Progress, Queue, QueueConfig, Request, Setup, State};
use outboard_rdma::nvmf::target::{Limits, Subsystem, Target};
use outboard_rdma::nvmf::{Digests, Op, StatusCode};

const BLOCKS: u64 = 4096;

/// Moves bytes both ways until neither side has more to send; no commands are run.
pub fn settle(host: &mut Host, end: &mut Controller, subsystem: &mut Subsystem) {
    while host.queue.has_output() || end.target.has_output() {
        let bytes = host.transmit(usize::MAX);
        end.receive(0, &bytes, subsystem).unwrap();
        let bytes = end.transmit(usize::MAX);
        host.receive(&bytes).unwrap();
    }
}

pub fn set_up(host: &mut Host, end: &mut Controller, subsystem: &mut Subsystem) -> Found {
    let mut setup = Setup::new(1);
    for _ in 0..100 {
        settle(host, end, subsystem);
        match setup.poll(0, &mut host.queue).unwrap() {
            Progress::Done(found) => return found,
            other => assert_eq!(other, Progress::Answer),
        }
    }
    panic!("the set-up did not end");
}

pub fn io_config(found: &Found, queue: u16, depth: u16, in_capsule_bytes: u32) -> QueueConfig {
    QueueConfig {
        queue,
        depth,
        keep_alive_ms: 0,
        in_capsule_bytes,
        nsid: 1,
        digests: Digests::NONE,
        names: names(found.controller),
    }
}

#[test]
fn the_set_up_finds_what_the_target_says() {
    let mut subsystem = subsystem(BLOCKS, Limits::DEFAULT).with_boot([9; 16]);
    let (mut host, mut end) = (Host::new(admin_config()), Controller::new(128, 0));
    let found = set_up(&mut host, &mut end, &mut subsystem);
    let expected = Found {
        controller: 1,
        max_in_flight: 128,
        in_capsule_bytes: 8192,
        max_transfer_bytes: Some(128 << 10),
        commands: commands::COMPARE | commands::DATASET | commands::WRITE_ZEROES,
        namespace: namespace(BLOCKS),
        has_fence: true,
        boot: [9; 16],
    };
    assert_eq!(found, expected);
    host.queue.control(Sqe::new(admin::KEEP_ALIVE, 0, 0), 0);
    settle(&mut host, &mut end, &mut subsystem);
    assert!(host.queue.take_control_end().unwrap().status.is_success());
}

struct Run {
    seed: u64,
    depth: u16,
    in_capsule_bytes: u32,
    digests: Digests,
    limits: Limits,
    /// Bytes of data that the target has room for.
    room: usize,
    ios: u32,
    /// Both ends are saved and loaded now and then.
    is_reloading: bool,
}

/// What is known to be in flight: no two I/Os overlap, so that every read has one right answer.
struct Flight {
    slot: u16,
    op: Op,
    lba: u64,
    blocks: u64,
    data: Vec<u8>,
}

struct Fight {
    random: Random,
    host: Host,
    end: Controller,
    subsystem: Subsystem,
    disk: Vec<u8>,
    model: Vec<u8>,
    flights: Vec<Flight>,
    to_target: Vec<u8>,
    to_host: Vec<u8>,
    submitted: u32,
    ended: u32,
    miscompares: u32,
    host_capsule: u32,
    reloads: u32,
}

impl Fight {
    fn submit(&mut self, max_blocks: u64) {
        let (kind, is_small) = (self.random.below(16), self.random.below(2) == 0);
        let (op, blocks) = match kind {
            0 => (Op::Flush, 0),
            1..7 => (Op::Read, 1 + self.random.below(max_blocks)),
            7 => (Op::Discard, 1 + self.random.below(max_blocks)),
            8 => (Op::WriteZeroes, 1 + self.random.below(max_blocks)),
            9 => (Op::Compare, 1 + self.random.below(max_blocks)),
            _ => (Op::Write, 1 + self.random.below(max_blocks)),
        };
        // A target takes a list of ranges in the capsule alone.
        if op == Op::Discard && self.host_capsule < 16 {
            return;
        }
        // Small ones are as frequent as large ones.
        let blocks = if is_small { blocks.min(8) } else { blocks };
        let lba = self.random.below(BLOCKS - blocks);
        let overlaps = |flight: &Flight| {
            flight.lba < lba + blocks && lba < flight.lba + flight.blocks && op != Op::Flush
        };
        if self.flights.iter().any(overlaps) {
            return;
        }
        let bytes = if op.is_ranged() { 0 } else { blocks as usize * 512 };
        let fill = self.random.next();
        let mut data: Vec<u8> = (0..bytes).map(|i| (fill >> (i % 57)) as u8 ^ i as u8).collect();
        if op == Op::Compare && fill.is_multiple_of(2) {
            data.copy_from_slice(&self.model[lba as usize * 512..][..bytes]);
        }
        let request = Request { op, lba, blocks: blocks as u32, bytes: bytes as u32 };
        let given = if op == Op::Read { vec![0xee; bytes] } else { data.clone() };
        if let Some(slot) = self.host.submit(request, given) {
            self.flights.push(Flight { slot, op, lba, blocks, data });
            self.submitted += 1;
        }
    }

    fn reap(&mut self) {
        while let Some((ended, data)) = self.host.next_ended() {
            let at = self.flights.iter().position(|f| f.slot == ended.slot).unwrap();
            let flight = self.flights.swap_remove(at);
            let start = flight.lba as usize * 512;
            let range = start..start + flight.blocks as usize * 512;
            let differs = flight.op == Op::Compare && flight.data != self.model[range.clone()];
            let expected = if differs { StatusCode::COMPARE_FAILURE } else { StatusCode::SUCCESS };
            assert_eq!(ended.status.plain(), expected);
            self.miscompares += u32::from(differs);
            match flight.op {
                Op::Write => self.model[range].copy_from_slice(&flight.data),
                Op::Discard | Op::WriteZeroes => self.model[range].fill(0),
                Op::Flush | Op::Compare => {}
                Op::Read => assert!(data == self.model[range], "a read returned something else"),
            }
            self.ended += 1;
        }
    }

    /// Hands over a random part of what is under way.
    fn cut(random: &mut Random, wire: &mut Vec<u8>) -> Vec<u8> {
        let limit = [1, 7, 24, 100, 5000, 1 << 20][random.below(6) as usize];
        let count = (random.below(limit) + 1).min(wire.len() as u64);
        wire.drain(..count as usize).collect()
    }

    /// Everything goes on from what was saved.
    fn reload(&mut self) {
        self.host.queue = Queue::load(&self.host.queue.save()).unwrap();
        let mut again = subsystem(BLOCKS, *self.subsystem.limits());
        again.load(&self.subsystem.save()).unwrap();
        self.subsystem = again;
        self.end.target = Target::load(&self.end.target.save(), &self.subsystem).unwrap();
    }

    fn turn(&mut self, run: &Run) {
        // One turn in sixteen, by the generator's state: drawing would change what follows.
        if run.is_reloading && self.random.0 >> 60 == 0 {
            self.reload();
            self.reloads += 1;
        }
        if self.submitted < run.ios {
            for _ in 0..self.random.below(u64::from(run.depth)) + 1 {
                self.submit(u64::from(run.limits.transfer_bytes) / 512);
            }
        }
        let limit = 1 + self.random.below(200_000) as usize;
        self.to_target.extend(self.host.transmit(limit));
        let bytes = Fight::cut(&mut self.random, &mut self.to_target);
        self.end.receive(0, &bytes, &mut self.subsystem).unwrap();
        assert!(self.end.held() <= run.room);
        for _ in 0..self.random.below(4) {
            if !self.end.running.is_empty() {
                let index = self.random.below(self.end.running.len() as u64) as usize;
                self.end.run(index, &mut self.disk);
            }
        }
        let limit = 1 + self.random.below(200_000) as usize;
        self.to_host.extend(self.end.transmit(limit));
        let bytes = Fight::cut(&mut self.random, &mut self.to_host);
        self.host.receive(&bytes).unwrap();
        self.reap();
    }
}

/// How the fight went: the disk, what ended in which order, and how often both ends were reloaded.
type Outcome = (Vec<u8>, u32, u32, u32);

fn fight(run: &Run) -> Outcome {
    let mut subsystem = subsystem(BLOCKS, run.limits);
    let digests = run.digests;
    let config = QueueConfig { digests, ..admin_config() };
    let mut admin = (Host::new(config), Controller::new(run.limits.depth, 0));
    let found = set_up(&mut admin.0, &mut admin.1, &mut subsystem);
    let config = io_config(&found, 1, run.depth, run.in_capsule_bytes);
    let config = QueueConfig { digests, ..config };
    let mut host = Host::new(config);
    let mut end = Controller::new(run.limits.depth, run.room);
    settle(&mut host, &mut end, &mut subsystem);
    assert_eq!(host.queue.state(), State::Ready { controller: found.controller });
    let mut fight = Fight {
        random: Random(run.seed),
        host,
        end,
        subsystem,
        disk: vec![0; BLOCKS as usize * 512],
        model: vec![0; BLOCKS as usize * 512],
        flights: Vec::new(),
        to_target: Vec::new(),
        to_host: Vec::new(),
        submitted: 0,
        ended: 0,
        miscompares: 0,
        host_capsule: run.in_capsule_bytes,
        reloads: 0,
    };
    let mut deepest = 0;
    for turn in 0.. {
        fight.turn(run);
        deepest = deepest.max(fight.host.queue.in_flight());
        if fight.submitted >= run.ios && fight.flights.is_empty() {
            break;
        }
        assert!(turn < 400_000, "seed {}: stuck with {:?}", run.seed, fight.ended);
    }
    assert_eq!(fight.ended, fight.submitted);
    assert!(fight.disk == fight.model && fight.miscompares > 0);
    assert!(fight.end.data.is_empty() && fight.end.running.is_empty());
    assert_eq!(deepest.min(8), run.depth.min(8), "the queue never filled");
    (fight.disk, fight.ended, fight.miscompares, fight.reloads)
}

#[test]
fn thousands_of_ios_read_what_was_written() {
    let small = |r2t_bytes, h2c_bytes| Limits { r2t_bytes, h2c_bytes, ..Limits::DEFAULT };
    for (seed, depth, in_capsule_bytes, limits, room) in [
        (1, 1, 8192, Limits::DEFAULT, 136 << 10),
        (2, 8, 4096, Limits::DEFAULT, 1 << 20),
        (3, 128, 8192, Limits::DEFAULT, 256 << 10),
        (4, 32, 0, small(4096, 4096), 1 << 20),
        (5, 32, 512, small(8192, 4096), 200 << 10),
        (6, 16, 8192, small(16384, 5120), 136 << 10),
        (7, 128, 8192, small(128 << 10, 8192), 4 << 20),
        (8, 128, 8192, Limits { transfer_bytes: 4096, ..Limits::DEFAULT }, 16 << 10),
    ] {
        // Every kind, in turn; the last one has both.
        let digests = Digests::from_bits(((seed + 3) % 4) as u8);
        let run = |is_reloading| {
            fight(&Run {
                seed,
                depth,
                in_capsule_bytes,
                digests,
                limits,
                room,
                ios: 400,
                is_reloading,
            })
        };
        // The same happens whether both ends are saved, loaded and go on, or not.
        let (plain, reloaded) = (run(false), run(true));
        assert_eq!((plain.1, plain.2), (reloaded.1, reloaded.2));
        assert!(plain.0 == reloaded.0);
        assert!(plain.3 == 0 && reloaded.3 > 5, "seed {seed}: {} {}", plain.3, reloaded.3);
    }
}
