//! A host and a target over connections that are cut at any moment, in front of a disk with
//! latency and errors. All from one seed: digests, sizes and commands of every kind among it. Both
//! ends go on, now and then, from what they have saved.
//!
//! What must hold: a read returns the last completed write; of a write that failed or was cut off
//! it may return either, sector by sector, but always the same from then on; neither engine ever
//! calls the other a violator; after every cut the host can connect again; when nothing is cut any
//! more, everything submitted ends.

mod host;
mod oracle;
mod server;
mod wire;

use host::Host;
use oracle::{Oracle, SECTOR_BYTES};
use outboard_rdma::nvmf::capsule::{Sqe, admin};
use outboard_rdma::nvmf::fabrics::{ANY_CONTROLLER, ConnectData};
use outboard_rdma::nvmf::identify::{Identity, Namespace};
use outboard_rdma::nvmf::initiator::{Found, Progress, QueueConfig, Request, Setup, State};
use outboard_rdma::nvmf::target::Limits;
use outboard_rdma::nvmf::{Digests, Nqn, Op, StatusCode};
use outboard_sim::{Rng, for_each_seed};
use server::{NQN, Server};
use wire::Wire;

/// Pieces that arrived, I/Os submitted and I/Os ended on the disk, per seed at least.
const EVENTS: u64 = 50_000;
/// Moments after which something must have happened.
const MAX_STEPS: u64 = 500_000;
/// Connections that a seed makes at least.
const CONNECTIONS: u64 = 10;
const NAMESPACE: Namespace = Namespace {
    block_bytes: SECTOR_BYTES as u32,
    blocks: 1_024,
    read_only: false,
    identity: Identity { nguid: [0xab; 16], uuid: [0xcd; 16] },
};
const KEEP_ALIVE_MS: u32 = 50;
const KEEP_ALIVE_NS: u64 = 10_000_000;
const ADMIN: usize = 0;
const IO: usize = 1;

/// An I/O that has not ended.
struct Flight {
    slot: u16,
    op: Op,
    first: u64,
    count: u64,
    /// What a write writes; of a compare 0, if it must match.
    version: u64,
}

/// How far the host is.
enum Phase {
    Down { until_ns: u64 },
    Admin(Setup),
    Connecting(Found),
    Ready,
}

#[derive(Debug, Default)]
struct Tally {
    events: u64,
    completed: u64,
    failed: u64,
    aborted: u64,
    /// Cuts during the set-up, with nothing in flight, and with something.
    cuts: [u64; 3],
    connected: u64,
    keep_alives: u64,
    refused_accepts: u64,
    reloads: u64,
    /// Discards and Write Zeroes, compares that matched and that did not, that ended.
    others: [u64; 4],
    deepest: u16,
    /// Sectors of writes that failed or were cut off, by what a read found there.
    landed: u64,
    not_landed: u64,
}

struct World {
    rng: Rng,
    now_ns: u64,
    wires: [Option<Wire>; 2],
    hosts: [Option<Host>; 2],
    server: Server,
    phase: Phase,
    limits: Limits,
    depth: u16,
    digests: Digests,
    in_capsule_bytes: u32,
    flights: Vec<Flight>,
    oracle: Oracle,
    versions: u64,
    next_keep_alive_ns: u64,
    lull_until_ns: u64,
    tally: Tally,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let limits = Limits {
            r2t_bytes: [4_096, 16_384, 128 << 10][rng.index(3)],
            h2c_bytes: [4_096, 20_480, 128 << 10][rng.index(3)],
            ..Limits::DEFAULT
        };
        World {
            now_ns: 1,
            wires: [None, None],
            hosts: [None, None],
            server: Server::new(NAMESPACE, limits, rng.fork()),
            phase: Phase::Down { until_ns: 0 },
            limits,
            depth: [1, 4, 32, 128][rng.index(4)],
            digests: Digests::from_bits(rng.below(4) as u8),
            in_capsule_bytes: 0,
            flights: Vec::new(),
            oracle: Oracle::new(NAMESPACE.blocks),
            versions: 0,
            next_keep_alive_ns: 0,
            lull_until_ns: 0,
            tally: Tally::default(),
            rng,
        }
    }

    /// One moment; `is_loading`: I/Os are submitted and connections cut.
    fn step(&mut self, is_loading: bool) {
        self.now_ns += self.rng.between(1_000, 30_000);
        for place in [ADMIN, IO] {
            if let (Some(host), Some(wire)) = (&mut self.hosts[place], &mut self.wires[place]) {
                host.transmit(self.now_ns, wire, &mut self.rng);
                self.tally.events += host.receive(self.now_ns, wire);
            }
        }
        self.tally.events += self.server.turn(self.now_ns, &mut self.wires, &mut self.rng);
        assert_eq!(self.server.subsystem.expire(self.now_ns), 0, "the host was heard in time");
        self.reap();
        self.advance(is_loading);
        if self.rng.chance(2_000) {
            self.hosts.iter_mut().flatten().for_each(Host::save_and_load);
            self.server.save_and_load();
            self.tally.reloads += 1;
        }
        if is_loading && self.rng.chance(3_000) {
            self.cut();
        }
    }

    /// Goes on with the set-up, or submits.
    fn advance(&mut self, is_loading: bool) {
        match &mut self.phase {
            Phase::Down { until_ns } if *until_ns <= self.now_ns => {
                if !self.server.accept(ADMIN) || !self.server.accept(IO) {
                    // The target has not finished with the connections of before.
                    self.server.close(ADMIN);
                    self.tally.refused_accepts += 1;
                    return;
                }
                self.server.check_empty(IO);
                self.connect(ADMIN, self.config(0, 1, ANY_CONTROLLER, 0));
                self.phase = Phase::Admin(Setup::new(1));
            }
            Phase::Down { .. } => {}
            Phase::Admin(setup) => {
                let queue = &mut self.hosts[ADMIN].as_mut().expect("connected").queue;
                match setup.poll(self.now_ns, queue).expect("an honest target") {
                    Progress::Done(found) => {
                        assert_eq!(found.namespace, NAMESPACE);
                        let bytes = [0, 512, found.in_capsule_bytes][self.rng.index(3)];
                        self.in_capsule_bytes = bytes;
                        self.connect(IO, self.config(1, self.depth, found.controller, bytes));
                        self.phase = Phase::Connecting(found);
                    }
                    Progress::Answer | Progress::Time { .. } => {}
                }
            }
            Phase::Connecting(found) => {
                let state = self.hosts[IO].as_ref().expect("connected").queue.state();
                if state != State::Connecting {
                    assert_eq!(state, State::Ready { controller: found.controller });
                    self.phase = Phase::Ready;
                    self.tally.connected += 1;
                }
            }
            Phase::Ready => {
                self.keep_alive();
                // Now and then everything in flight ends first.
                if self.rng.chance(3_000) {
                    self.lull_until_ns = self.now_ns + self.rng.below(8_000_000);
                }
                if is_loading && self.lull_until_ns <= self.now_ns && self.rng.chance(500_000) {
                    self.submit();
                }
            }
        }
    }

    fn config(&self, queue: u16, depth: u16, controller: u16, in_capsule: u32) -> QueueConfig {
        QueueConfig {
            queue,
            depth,
            keep_alive_ms: if queue == 0 { KEEP_ALIVE_MS } else { 0 },
            in_capsule_bytes: in_capsule,
            nsid: 1,
            digests: self.digests,
            names: ConnectData {
                host_id: [0x11; 16],
                controller,
                subsystem: Nqn::from(NQN).expect("a short name"),
                host: Nqn::from("nqn.2014-08.org.nvmexpress:uuid:sim").expect("a short name"),
            },
        }
    }

    fn connect(&mut self, place: usize, config: QueueConfig) {
        self.wires[place] = Some(Wire::new(&mut self.rng));
        self.hosts[place] = Some(Host::new(config));
    }

    fn keep_alive(&mut self) {
        let queue = &mut self.hosts[ADMIN].as_mut().expect("connected").queue;
        if queue.is_control_in_flight() || self.now_ns < self.next_keep_alive_ns {
            return;
        }
        if let Some(end) = queue.take_control_end() {
            assert!(end.status.is_success());
            self.tally.keep_alives += 1;
        }
        queue.control(Sqe::new(admin::KEEP_ALIVE, 0, 0), 0);
        self.next_keep_alive_ns = self.now_ns + KEEP_ALIVE_NS;
    }

    /// Submits I/Os that overlap no write in flight.
    fn submit(&mut self) {
        for _ in 0..=self.rng.index(usize::from(self.depth)) {
            let most = if self.rng.chance(50_000) { self.limits.transfer_bytes } else { 4_096 };
            let op = match self.rng.below(24) {
                0 => Op::Flush,
                1..10 => Op::Read,
                // A list comes in its capsule.
                10 if self.in_capsule_bytes > 0 => Op::Discard,
                11 => Op::WriteZeroes,
                12 | 13 => Op::Compare,
                _ => Op::Write,
            };
            let most = u64::from(most) / SECTOR_BYTES as u64;
            let count = if op == Op::Flush { 0 } else { self.rng.between(1, most) };
            let first = self.rng.below(self.oracle.sectors() - count);
            let overlaps = |flight: &Flight| {
                (op.is_change() || flight.op.is_change())
                    && flight.first < first + count
                    && first < flight.first + flight.count
            };
            if self.flights.iter().any(overlaps) {
                continue;
            }
            self.submit_one(op, first, count);
        }
    }

    fn submit_one(&mut self, op: Op, first: u64, count: u64) {
        let bytes = if op.is_ranged() { 0 } else { count as usize * SECTOR_BYTES };
        let mut version = self.versions + 1;
        self.versions = version;
        let data = match op {
            Op::Write => Oracle::data(version, first, count),
            Op::Compare => {
                let same = self.oracle.sure(first, count).filter(|_| self.rng.chance(700_000));
                version = if same.is_some() { 0 } else { version };
                same.unwrap_or_else(|| Oracle::data(version, first, count))
            }
            Op::Discard | Op::WriteZeroes => {
                version = 0;
                Vec::new()
            }
            Op::Read | Op::Flush => vec![0xee; bytes],
        };
        let request = Request { op, lba: first, blocks: count as u32, bytes: bytes as u32 };
        let host = self.hosts[IO].as_mut().expect("connected");
        if let Ok(slot) = host.submit(&request, data) {
            self.tally.events += 1;
            self.flights.push(Flight { slot, op, first, count, version });
            self.tally.deepest = self.tally.deepest.max(host.queue.in_flight());
        }
    }

    /// Takes what has ended and asks the oracle.
    fn reap(&mut self) {
        let Some(host) = &mut self.hosts[IO] else { return };
        while let Some((ended, data)) = host.next_ended() {
            let at = self.flights.iter().position(|flight| flight.slot == ended.slot);
            let flight = self.flights.swap_remove(at.expect("the end of an I/O in flight"));
            let Flight { op, first, count, version, .. } = flight;
            let is_other = ended.status == StatusCode::COMPARE_FAILURE;
            if !ended.status.is_success() && !is_other {
                self.tally.failed += 1;
                if op.is_change() {
                    self.oracle.failed(version, first, count);
                }
                continue;
            }
            self.tally.completed += 1;
            match op {
                Op::Read => self.oracle.read(first, &data),
                Op::Write => self.oracle.completed(version, first, count),
                Op::WriteZeroes => {
                    self.oracle.completed(0, first, count);
                    self.tally.others[1] += 1;
                }
                // Zeros, or what was there.
                Op::Discard => {
                    self.oracle.failed(0, first, count);
                    self.tally.others[0] += 1;
                }
                Op::Compare => {
                    assert_eq!(is_other, version != 0, "a compare of {count} sectors from {first}");
                    self.tally.others[2 + usize::from(is_other)] += 1;
                }
                Op::Flush => {}
            }
        }
    }

    /// Cuts one of the connections, or both; the host gives up the other too.
    fn cut(&mut self) {
        let kind = match self.phase {
            Phase::Down { .. } => return,
            Phase::Admin(_) | Phase::Connecting(_) => 0,
            Phase::Ready => 1 + usize::from(!self.flights.is_empty()),
        };
        self.tally.cuts[kind] += 1;
        let first = self.rng.index(2);
        for place in [first, 1 - first] {
            if let Some(wire) = &mut self.wires[place] {
                wire.cut();
                assert!(!wire.is_open());
            }
            self.server.close(place);
            // The I/O queue belongs to the controller, which ends with its admin queue.
            let other = &self.server.connections[IO].target;
            assert!(
                place != ADMIN
                    || first == IO
                    || !other.is_connected()
                    || other.is_orphan(&self.server.subsystem)
            );
        }
        assert_eq!(self.server.subsystem.controllers(), 0, "a controller outlived its host");
        for flight in self.flights.drain(..) {
            self.tally.aborted += 1;
            if flight.op.is_change() {
                self.oracle.failed(flight.version, flight.first, flight.count);
            }
        }
        self.hosts = [None, None];
        self.wires = [None, None];
        let pause_ns = self.rng.below(200_000);
        self.phase = Phase::Down { until_ns: self.now_ns + pause_ns };
    }

    /// Without cuts everything ends, and everything that was written is there.
    fn finish(&mut self) {
        let mut steps = 0;
        while !(matches!(self.phase, Phase::Ready) && self.flights.is_empty()) {
            self.step(false);
            steps += 1;
            assert!(steps < MAX_STEPS, "{} I/Os never ended", self.flights.len());
        }
        for first in (0..self.oracle.sectors()).step_by(8) {
            let completed = self.tally.completed;
            while self.tally.completed == completed {
                // A disk error fails a read; then again.
                self.submit_one(Op::Read, first, 8);
                while !self.flights.is_empty() {
                    self.step(false);
                }
            }
        }
        assert!(self.server.is_idle());
    }
}

fn run(seed: u64) -> Tally {
    let mut world = World::new(seed);
    let mut steps = 0;
    while world.tally.events < EVENTS || world.tally.connected < CONNECTIONS {
        world.step(true);
        steps += 1;
        assert!(steps < MAX_STEPS, "stuck: {:?}", world.tally);
    }
    world.finish();
    let Oracle { landed, not_landed, sectors_read, .. } = world.oracle;
    world.tally.landed = landed;
    world.tally.not_landed = not_landed;
    println!(
        "seed {seed}: depth {}, {:?}, {:?}, {:?}; {sectors_read} sectors read; \
         waits for memory {}; {:?}",
        world.depth,
        world.digests,
        world.limits,
        world.tally,
        world.server.waits,
        world.server.disk.statistics(),
    );
    world.tally
}

#[test]
fn a_host_and_a_target_with_cut_connections() {
    let mut sum = Tally::default();
    let mut seeds = 0;
    for_each_seed("cargo test -p outboard-rdma --test sim_nvme_tcp", 1, 20, |seed| {
        let tally = run(seed);
        assert!(tally.completed > 300 && tally.reloads > 0);
        for (all, others) in sum.others.iter_mut().zip(tally.others) {
            *all += others;
        }
        for (all, cuts) in sum.cuts.iter_mut().zip(tally.cuts) {
            *all += cuts;
        }
        sum.failed += tally.failed;
        sum.aborted += tally.aborted;
        sum.keep_alives += tally.keep_alives;
        sum.refused_accepts += tally.refused_accepts;
        sum.landed += tally.landed;
        sum.not_landed += tally.not_landed;
        sum.deepest = sum.deepest.max(tally.deepest);
        seeds += 1;
    });
    println!("{sum:?}");
    if seeds > 1 {
        assert!(sum.cuts.iter().all(|cuts| *cuts >= 20), "{:?}", sum.cuts);
        assert!(sum.others.iter().all(|ended| *ended > 100), "{:?}", sum.others);
        assert!(sum.failed > 50 && sum.aborted > 500 && sum.keep_alives > 20);
        assert!(sum.refused_accepts > 0 && sum.deepest == 128);
        assert!(sum.landed > 500 && sum.not_landed > 500);
    }
}
