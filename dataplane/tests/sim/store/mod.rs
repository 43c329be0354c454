//! A guest's disk on a remote volume, whose target serves a disk with a volatile cache: the
//! host's storage room with its virtqueue, the export, and the engines, associations and fences
//! between them are the real ones. Connections are cut at either end, at any byte, in the middle
//! of a set-up or a fence, and stand still; the target dies, and what it had submitted goes on;
//! the power goes; the medium fails; workers are late or sleep. All from one seed.
//!
//! What must hold: a read returns the last write that ended, or one in flight; of a write that
//! failed either, sector by sector, but always the same from then on; what a flush covered
//! survives a power cut, and a flush that comes after one does not end well over writes that it
//! may have taken; every request ends exactly once, well unless something failed; a medium
//! that was replaced is never read. When the faults stop, everything ends.

mod control;
mod guest;
mod medium;
mod oracle;
mod saved;
mod target;
mod wire;

use crate::coverage::Coverage;
use control::Control;
use guest::{Guest, MOST_SECTORS};
use medium::Medium;
use oracle::{Oracle, SECTOR_BYTES};
use outboard::virtio::mailbox::{DiskMessage, mailbox};
use outboard::volume::disk::{Disk, DiskCounters};
use outboard::volume::remote::RemoteCounters;
use outboard::volume::{Geometry, Op, Remote, Status, Volume};
use outboard::worker::{Storage, User, VolumeSlot};
use outboard_dma::PollList;
use outboard_rdma::nvmf::Digests;
use outboard_sim::{DiskFaults, Rng};
use saved::{RingControl, Saved};
use std::sync::Arc;
use std::time::Duration;
use target::Target;

/// Pieces that moved, commands and I/Os that ended, per seed at least.
const EVENTS: u64 = 15_000;
/// Moments with faults, per seed at least, and within which all this must have happened.
const STEPS: u64 = 10_000;
const MAX_STEPS: u64 = 1_000_000;
/// After so many moments everything ends once, and all is read.
const CHECK_STEPS: u64 = 2_500;
/// Few sectors, so that what comes late meets what is newer.
const SECTORS: u64 = 192;
/// So many of them are written over again and again.
const HOT_SECTORS: u64 = 24;
/// Bytes that a target asks for at a time, and bytes of a PDU: a write in one piece, in several
/// PDUs of one request, in several requests.
const PIECES: [(u32, u32); 4] =
    [(128 << 10, 128 << 10), (16_384, 4_096), (4_096, 4_096), (4_096, 128 << 10)];
/// For how long I/O waits for a connection: from less than one takes to for ever.
const PATIENCE_NS: [u64; 5] = [2_000_000, 50_000_000, 50_000_000, 600_000_000_000, 600_000_000_000];
/// The longest that a worker sleeps.
const SLEEP_MAX_NS: u64 = 100_000_000;
/// No request may take this long once nothing fails any more.
const TOO_LONG_NS: u64 = 3_000_000_000;

/// What a seed is like.
#[derive(Clone, Copy, Debug)]
struct Character {
    /// How often, in parts of a million per moment.
    cut_ppm: u32,
    kill_ppm: u32,
    /// Of the kills, the power cuts.
    power_ppm: u32,
    freeze_ppm: u32,
    part_ppm: u32,
    faults: DiskFaults,
    digests: Digests,
    /// Bytes that the target asks for at a time, and bytes of a PDU.
    pieces: (u32, u32),
    corrupt_ppm: u32,
    patience_ns: u64,
    /// The target's medium is in memory: its death ends the run.
    is_mem: bool,
    sleeps: bool,
}

impl Character {
    fn new(rng: &mut Rng) -> Character {
        let digests = if rng.chance(400_000) { Digests::BOTH } else { Digests::NONE };
        let slowest_ns = [100_000, 600_000, 4_000_000][rng.index(3)];
        Character {
            cut_ppm: [700, 3_000, 8_000][rng.index(3)],
            kill_ppm: [200, 1_500][rng.index(2)],
            power_ppm: 600_000,
            freeze_ppm: 300,
            part_ppm: [1_500, 8_000][rng.index(2)],
            faults: DiskFaults {
                error_ppm: [0, 3_000][rng.index(2)],
                latency_ns: (2_000, slowest_ns),
                stall_ppm: [0, 20_000, 60_000][rng.index(3)],
                stall_ns: (1_000_000, 25_000_000),
            },
            digests,
            pieces: PIECES[rng.index(PIECES.len())],
            corrupt_ppm: if digests == Digests::BOTH { 1_500 } else { 0 },
            patience_ns: PATIENCE_NS[rng.index(PATIENCE_NS.len())],
            is_mem: rng.chance(150_000),
            sleeps: rng.chance(500_000),
        }
    }
}

struct World {
    rng: Rng,
    now_ns: u64,
    character: Character,
    guest: Guest,
    storage: Storage,
    ring: RingControl,
    saved: Saved,
    disk: Arc<DiskCounters>,
    volume: Arc<RemoteCounters>,
    control: Control,
    target: Target,
    restart_ns: Option<u64>,
    oracle: Oracle,
    /// The host's worker, the target's.
    stalled_until_ns: [u64; 2],
    /// Since when the host's worker sleeps.
    asleep_ns: Option<u64>,
    poll: PollList,
    events: u64,
    power_cuts: u64,
    kills: u64,
    sleeps: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed ^ 0x5704_a6e0_0000_0000);
        let character = Character::new(&mut rng);
        let geometry =
            Geometry { block_bytes: SECTOR_BYTES as u32, blocks: SECTORS, read_only: false };
        let patience = Duration::from_nanos(character.patience_ns);
        let (remote, control) = Remote::new(geometry, patience).unwrap();
        let volume = control.counters();
        let (mail, inbox) = mailbox(1);
        let disk = Disk::new(0, "sim", 1, inbox);
        let counters = disk.counters();
        let (guest, with) = Guest::new(&mut rng);
        mail.send(DiskMessage::Start { ring: 0, with }).unwrap();
        let user = User::Disk(Box::new(disk));
        let volume_slot = VolumeSlot::new(0, Volume::Remote(remote)).with(user);
        let medium = Medium::new(rng.fork(), character.faults, SECTORS);
        World {
            now_ns: 1,
            guest,
            storage: Storage::new(vec![volume_slot]),
            ring: RingControl { mail, is_stopping: false },
            saved: Saved::default(),
            disk: counters,
            volume,
            control: Control::new(control, character.digests, character.corrupt_ppm),
            target: Target::new(medium, character.digests, character.pieces),
            restart_ns: None,
            oracle: Oracle::new(SECTORS),
            stalled_until_ns: [0; 2],
            asleep_ns: None,
            poll: PollList::with_capacity(8),
            events: 0,
            power_cuts: 0,
            kills: 0,
            sleeps: 0,
            character,
            rng,
        }
    }

    /// One moment; `fails`: things go wrong, and I/O is submitted.
    fn step(&mut self, fails: bool) {
        self.now_ns += self.rng.between(1_000, 20_000);
        self.events += self.control.step(self.now_ns, &self.target, &mut self.rng);
        if self.is_awake(1, fails) {
            self.events += self.target.turn(self.now_ns);
        }
        if self.is_awake(0, fails) && !self.is_asleep() {
            self.turn(fails);
        }
        self.events += self.guest.reap(&mut self.oracle);
        self.save_and_load();
        if fails {
            self.submit();
            self.fail();
        }
        if self.restart_ns.is_some_and(|at_ns| at_ns <= self.now_ns) && self.target.start() {
            self.restart_ns = None;
        }
    }

    /// Whether a worker is not late now; sometimes it begins to be.
    fn is_awake(&mut self, which: usize, fails: bool) -> bool {
        if fails && self.rng.chance(2_000) {
            self.stalled_until_ns[which] = self.now_ns + self.rng.below(1_500_000);
        }
        self.stalled_until_ns[which] <= self.now_ns
    }

    /// Whether the host's worker sleeps, and nothing wakes it.
    fn is_asleep(&mut self) -> bool {
        let Some(since_ns) = self.asleep_ns else { return false };
        self.poll.clear();
        self.storage.add_fds(&mut self.poll);
        let is_woken = self.poll.wait(Duration::ZERO).unwrap() > 0;
        if is_woken || self.now_ns - since_ns > SLEEP_MAX_NS {
            self.storage.disarm();
            self.asleep_ns = None;
        }
        let taken = Status::ALL.iter().map(|status| self.disk.status(*status)).sum::<u64>();
        let taken = taken + self.disk.in_flight.get();
        let shown = self.guest.published;
        let is_awaited = !is_woken && !self.ring.is_stopping;
        assert!(!is_awaited || taken == shown, "asleep over {} requests", shown - taken);
        self.asleep_ns.is_some()
    }

    /// A turn of the host's worker; after an empty one it may sleep, as `worker` does it.
    fn turn(&mut self, may_sleep: bool) {
        let found = self.storage.turn(self.now_ns);
        self.events += found as u64;
        if found > 0 || !self.character.sleeps || !may_sleep || !self.rng.chance(200_000) {
            return;
        }
        let found = self.storage.turn(self.now_ns) > 0;
        // Between the two looks, something may come.
        if self.rng.chance(300_000) {
            self.submit();
        }
        if self.storage.arm() || found {
            self.storage.disarm();
        } else {
            self.sleeps += 1;
            self.asleep_ns = Some(self.now_ns);
        }
    }

    fn submit(&mut self) {
        if !self.rng.chance(250_000) {
            return;
        }
        for _ in 0..=self.rng.index(6) {
            let op = match self.rng.below(40) {
                0..3 => Op::Flush,
                3 => Op::Discard,
                4 => Op::WriteZeroes,
                5..20 => Op::Read,
                _ => Op::Write,
            };
            let most = if self.rng.chance(100_000) { MOST_SECTORS } else { 8 };
            let count = if op == Op::Flush { 0 } else { self.rng.between(1, most) };
            let is_hot = count <= HOT_SECTORS && self.rng.chance(400_000);
            let sectors = if is_hot { HOT_SECTORS } else { self.oracle.sectors() };
            let first = self.rng.below(sectors - count + 1);
            self.guest.submit(op, first, count, &self.oracle);
        }
        self.guest.publish();
    }

    /// What goes wrong now.
    fn fail(&mut self) {
        let Character { cut_ppm, kill_ppm, power_ppm, freeze_ppm, part_ppm, is_mem, .. } =
            self.character;
        if self.rng.chance(cut_ppm) {
            self.control.cut();
        }
        if self.rng.chance(freeze_ppm) {
            self.control.freeze(self.now_ns + self.rng.below(4_000_000));
        }
        if self.rng.chance(part_ppm) {
            self.control.part(self.now_ns + self.rng.below(2_000_000));
        }
        if !is_mem && self.target.is_alive() && self.rng.chance(kill_ppm) {
            let has_power = !self.rng.chance(power_ppm);
            self.kill(has_power);
            self.restart_ns = Some(self.now_ns + self.rng.below(6_000_000));
        }
    }

    fn kill(&mut self, has_power: bool) {
        self.kills += 1;
        self.target.kill();
        self.control.target_died();
        if !has_power {
            self.power_cuts += 1;
            self.target.power_cut();
            self.oracle.power_cut();
            self.guest.power_cut(&self.oracle);
        }
    }

    /// Without faults everything in flight ends.
    fn settle(&mut self) {
        let start_ns = self.now_ns;
        while self.guest.in_flight() > 0 || !self.control.is_up() {
            self.step(false);
            let took_ns = self.now_ns - start_ns;
            assert!(
                took_ns < TOO_LONG_NS,
                "requests do not end: {} in flight, {:?}, {:?}",
                self.guest.in_flight(),
                self.control.reached,
                self.character
            );
        }
    }

    /// Reads all there is.
    fn read_all(&mut self) {
        for first in (0..SECTORS).step_by(8) {
            let failed = self.guest.ends.failed;
            loop {
                assert!(self.guest.submit(Op::Read, first, 8, &self.oracle));
                self.guest.publish();
                self.settle();
                // The medium fails a read now and then; then again.
                if self.guest.ends.failed - failed < 20 && self.guest.ends.failed > failed {
                    continue;
                }
                break;
            }
        }
    }

    /// A target in memory starts again, empty: nothing of it may be read.
    fn replace_medium(&mut self) {
        let (ok, reached) = (self.guest.ends.ok, self.control.reached);
        self.kill(true);
        let medium = Medium::new(self.rng.fork(), self.character.faults, SECTORS);
        self.target.replace(medium);
        assert!(self.target.start());
        let mut steps = 0;
        while self.control.reached.changed < reached.changed + 3 || self.guest.in_flight() > 0 {
            self.step(false);
            self.submit();
            if self.control.reached.changed >= reached.changed + 3 {
                self.guest.publish();
            }
            steps += 1;
            assert!(self.control.reached.ready == reached.ready, "an empty medium is used");
            assert!(steps < MAX_STEPS, "it is never found out");
            if steps > 20_000 && self.control.reached.changed > reached.changed {
                break;
            }
        }
        let replaced = self.disk.status(Status::MediumReplaced);
        assert!(replaced > 0, "nothing ended by that name");
        // What had been answered before the death may still be on its way.
        assert!(self.guest.ends.ok <= ok + 64, "an empty medium is used");
    }

    fn check(&self) {
        let Character { corrupt_ppm, faults, patience_ns, .. } = self.character;
        let ended = |status| self.disk.status(status);
        for status in Status::ALL {
            let is_expected = match status {
                Status::Ok => true,
                Status::Media => faults.error_ppm > 0,
                // A digest that does not match.
                Status::Target => corrupt_ppm > 0,
                Status::ConnectionLost | Status::NotConnected => patience_ns < 1_000_000_000,
                Status::MediumReplaced => self.character.is_mem,
                Status::WritesLost => self.power_cuts > 0,
                _ => false,
            };
            assert!(is_expected || ended(*status) == 0, "{} ended as {status:?}", ended(*status));
        }
        assert_eq!(self.guest.in_flight() as u64, self.disk.in_flight.get());
    }

    fn tell(&self, coverage: &mut Coverage) {
        for status in Status::ALL {
            coverage.add("status", status.name(), self.disk.status(*status));
        }
        for (name, count) in self.volume.occurrences() {
            coverage.add("volume", name, count);
        }
        let control::Reached { refused, broken, ready, lost, changed, half_open, parted, saved } =
            self.control.reached;
        for (name, count) in [
            ("association", saved),
            ("virtqueue", self.saved.virtqueue),
            ("initiator", self.saved.initiator),
            ("target", self.saved.target),
        ] {
            assert!(count > 0, "{name}: never went on from what it had saved");
            coverage.add("saved", name, count);
        }
        for (name, count) in [
            ("refused", refused),
            ("broken_while_made", broken),
            ("ready", ready),
            ("lost", lost),
            ("medium_changed", changed),
            ("half_open", half_open),
            ("parted", parted),
        ] {
            coverage.add("association", name, count);
        }
        let disk = self.target.medium.disk.statistics();
        for (name, count) in [
            ("kills", self.kills),
            ("power_cuts", self.power_cuts),
            ("fences", self.target.fences),
            ("stale_refusals", self.target.stale_refusals),
            ("full", self.target.medium.refused),
            ("errors", disk.errors),
            ("cut_in_flight", disk.cut),
            ("lost_sectors", disk.lost_sectors),
            ("stalled", disk.stalled),
        ] {
            coverage.add("target", name, count);
        }
        let guest::Ends { ok, failed, flushes, calls, kicks } = self.guest.ends;
        for (name, count) in [
            ("ok", ok),
            ("failed", failed),
            ("flushes", flushes),
            ("calls", calls),
            ("kicks", kicks),
            ("worker_sleeps", self.sleeps),
            ("doubtful_landed", self.oracle.landed),
            ("went_back", self.oracle.went_back),
            ("sectors_read", self.oracle.sectors_read),
        ] {
            coverage.add("guest", name, count);
        }
    }
}

/// Runs a seed: how many events.
pub fn run(seed: u64, coverage: &mut Coverage) -> u64 {
    let mut world = World::new(seed);
    let mut steps = 0;
    while world.events < EVENTS || steps < STEPS {
        world.step(true);
        steps += 1;
        assert!(steps < MAX_STEPS, "stuck at {} events: {:?}", world.events, world.character);
        if steps.is_multiple_of(CHECK_STEPS) {
            world.settle();
            world.read_all();
        }
    }
    world.settle();
    world.read_all();
    if world.character.is_mem {
        world.replace_medium();
    }
    world.check();
    world.target.close(world.now_ns);
    world.tell(coverage);
    world.events
}
