//! The host's control: makes associations with the real engine, hands links to the volume, and
//! loses them in every way.

use super::target::{NQN, Target};
use super::wire::{Socket, Wire};
use outboard::volume::Status;
use outboard::volume::remote::{DEPTH, Link, RemoteControl};
use outboard_rdma::nvmf::fabrics::{ANY_CONTROLLER, ConnectData};
use outboard_rdma::nvmf::fence::Life;
use outboard_rdma::nvmf::identify::Namespace;
use outboard_rdma::nvmf::initiator::{
    Associated, Association, AssociationError, Next, Queue, Wish,
};
use outboard_rdma::nvmf::{Digests, Nqn, Piece};
use outboard_sim::Rng;

/// The longest pause between attempts, of those that follow soon and of the others.
const PAUSES_NS: [u64; 2] = [100_000, 3_000_000];
/// For how long the target may still hear a connection that the host has lost, and for how long
/// the network may hold back what is on it.
const LINGER_NS: u64 = 12_000_000;

enum Phase {
    Down { until_ns: u64 },
    Making { engine: Box<Association>, admin: Wire, io: Option<Wire> },
    Up { admin: Wire, io: Wire, host: Option<Socket>, number: u64 },
}

/// An association of the past, of which the target has not heard that it has ended: what the host
/// sent moves on from one moment to another.
struct Lingering {
    io: Wire,
    admin: Wire,
    from_ns: u64,
    until_ns: u64,
}

/// States that were reached, and how often.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reached {
    pub refused: u64,
    pub broken: u64,
    pub ready: u64,
    pub lost: u64,
    pub changed: u64,
    pub half_open: u64,
    pub parted: u64,
    /// Associations that went on from what they had saved.
    pub saved: u64,
}

/// The control of one remote volume.
pub struct Control {
    remote: RemoteControl,
    phase: Phase,
    /// What the host has lost and the target not.
    lingering: Vec<Lingering>,
    digests: Digests,
    corrupt_ppm: u32,
    namespace: Option<Namespace>,
    epoch: u64,
    number: u64,
    frozen_until_ns: u64,
    /// Until then what the host sends gets no further than the network.
    parted_until_ns: Option<u64>,
    pub reached: Reached,
}

impl Control {
    pub fn new(remote: RemoteControl, digests: Digests, corrupt_ppm: u32) -> Control {
        Control {
            remote,
            phase: Phase::Down { until_ns: 0 },
            lingering: Vec::new(),
            digests,
            corrupt_ppm,
            namespace: None,
            epoch: 0,
            number: 0,
            frozen_until_ns: 0,
            parted_until_ns: None,
            reached: Reached::default(),
        }
    }

    pub fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up { .. })
    }

    /// One moment: pieces that moved.
    pub fn step(&mut self, now_ns: u64, target: &Target, rng: &mut Rng) -> u64 {
        let mut moved = 0;
        for late in self.lingering.iter_mut().filter(|late| late.from_ns <= now_ns) {
            moved += late.io.serve(now_ns) + late.admin.serve(now_ns);
        }
        self.lingering.retain(|late| late.until_ns > now_ns && !late.io.is_drained());
        if self.frozen_until_ns > now_ns {
            return moved;
        }
        let longest_ns = PAUSES_NS[rng.index(2)];
        let until_ns = now_ns + rng.below(longest_ns);
        let phase = std::mem::replace(&mut self.phase, Phase::Down { until_ns });
        self.phase = match phase {
            Phase::Down { until_ns } if until_ns > now_ns => Phase::Down { until_ns },
            Phase::Down { .. } => match connect(target, rng) {
                Some(admin) => {
                    let engine = Box::new(Association::new(self.wish()));
                    Phase::Making { engine, admin, io: None }
                }
                None => {
                    self.reached.refused += 1;
                    Phase::Down { until_ns }
                }
            },
            Phase::Making { engine, admin, io } => self
                .make(now_ns, engine, admin, io, target, rng)
                .unwrap_or(Phase::Down { until_ns }),
            Phase::Up { admin, io, host, number } => {
                let (phase, more) = self.carry(now_ns, admin, io, host, number, rng);
                moved += more;
                phase.unwrap_or(Phase::Down { until_ns })
            }
        };
        moved
    }

    /// Goes on with an association; `None`: it failed.
    fn make(
        &mut self,
        now_ns: u64,
        mut engine: Box<Association>,
        mut admin: Wire,
        mut io: Option<Wire>,
        target: &Target,
        rng: &mut Rng,
    ) -> Option<Phase> {
        if rng.chance(20_000) {
            *engine = Association::load(&engine.save()).unwrap();
            self.reached.saved += 1;
        }
        let next = match engine.poll(now_ns) {
            Ok(next) => next,
            Err(AssociationError::Changed) => {
                self.reached.changed += 1;
                self.remote.end_all(Status::MediumReplaced);
                return None;
            }
            Err(AssociationError::Stale) => panic!("fenced out, and nobody else is there"),
            Err(AssociationError::Setup(_)) => {
                self.reached.refused += 1;
                return None;
            }
        };
        let alive = match next {
            Next::Admin => exchange(now_ns, engine.admin_mut(), &mut admin),
            Next::Io => {
                if io.is_none() {
                    io = Some(connect(target, rng)?);
                }
                let (queue, wire) = (engine.io_mut()?, io.as_mut()?);
                exchange(now_ns, queue, wire)
            }
            Next::Time { .. } => true,
            Next::Ready => {
                return Some(self.hand_over(engine.finish()?, admin, io?));
            }
        };
        admin.serve(now_ns);
        if let Some(io) = &mut io {
            io.serve(now_ns);
        }
        self.reached.broken += u64::from(!alive);
        alive.then_some(Phase::Making { engine, admin, io })
    }

    fn hand_over(&mut self, made: Associated, admin: Wire, mut io: Wire) -> Phase {
        let Associated { io: queue, found, epoch, .. } = made;
        assert!(epoch == 0 || epoch > self.epoch, "epochs only grow");
        self.epoch = epoch;
        self.namespace = Some(found.namespace);
        self.number += 1;
        self.reached.ready += 1;
        let (socket, host) = Socket::pair();
        let max_transfer_bytes = found.max_transfer_bytes;
        let number = self.number;
        let (boot, changes_from_ns) = (found.boot, 0);
        let link = Link { socket, queue, number, max_transfer_bytes, changes_from_ns, boot };
        assert!(self.remote.hand_over(link), "the volume listens");
        io.corrupt_ppm = self.corrupt_ppm;
        Phase::Up { admin, io, host: Some(host), number }
    }

    /// Carries bytes between the volume and the target; `None`: the volume has lost its link.
    fn carry(
        &mut self,
        now_ns: u64,
        mut admin: Wire,
        mut io: Wire,
        mut host: Option<Socket>,
        number: u64,
        rng: &mut Rng,
    ) -> (Option<Phase>, u64) {
        let mut moved = admin.serve(now_ns);
        if let Some(host) = &mut host {
            while !io.is_full() {
                let Some(bytes) = host.receive(1 + rng.index(20_000)) else { break };
                io.send(now_ns, &bytes);
                moved += 1;
            }
            io.send(now_ns, &[]);
            host.send(&[]);
            while !host.is_full() {
                let Some(bytes) = io.receive(now_ns) else { break };
                host.send(&bytes);
                moved += 1;
            }
        }
        let parted_until_ns = self.parted_until_ns;
        match parted_until_ns {
            None => moved += io.serve(now_ns),
            // Now the host has waited for too long.
            Some(until_ns) if until_ns <= now_ns => host = None,
            Some(_) => {}
        }
        while let Some(lost) = self.remote.take_lost() {
            if lost.link.number == number {
                self.reached.lost += 1;
                self.parted_until_ns = None;
                if parted_until_ns.is_some() || rng.chance(500_000) {
                    // What the host has sent may still come.
                    self.reached.half_open += 1;
                    let hold_ns = if rng.chance(600_000) { rng.below(LINGER_NS) } else { 0 };
                    let from_ns = now_ns + hold_ns;
                    let until_ns = from_ns + rng.below(LINGER_NS);
                    self.lingering.push(Lingering { io, admin, from_ns, until_ns });
                }
                return (None, moved);
            }
        }
        (Some(Phase::Up { admin, io, host, number }), moved)
    }

    /// The connection breaks, as the host sees it.
    pub fn cut(&mut self) {
        match &mut self.phase {
            Phase::Up { host, .. } => *host = None,
            Phase::Making { .. } => {
                self.reached.broken += 1;
                self.phase = Phase::Down { until_ns: 0 };
            }
            Phase::Down { .. } => {}
        }
    }

    /// Nothing gets through for a while.
    pub fn freeze(&mut self, until_ns: u64) {
        self.frozen_until_ns = until_ns;
    }

    /// What the host sends gets stuck for a while; then it gives the connection up.
    pub fn part(&mut self, until_ns: u64) {
        if self.is_up() {
            self.reached.parted += 1;
            self.parted_until_ns.get_or_insert(until_ns);
        }
    }

    /// The target has died, and with it every connection.
    pub fn target_died(&mut self) {
        self.lingering.clear();
        self.cut();
    }

    fn wish(&self) -> Wish {
        Wish {
            nsid: 1,
            digests: self.digests,
            keep_alive_ms: 0,
            names: ConnectData {
                host_id: [0x11; 16],
                controller: ANY_CONTROLLER,
                subsystem: Nqn::from(NQN).expect("a short name"),
                host: Nqn::from("nqn.2014-08.org.nvmexpress:uuid:sim").expect("a short name"),
            },
            depth: DEPTH,
            expected: self.namespace,
            user: 1,
            life: Life { boot: 1, begun_ns: 1 },
            after: self.epoch,
        }
    }
}

fn connect(target: &Target, rng: &mut Rng) -> Option<Wire> {
    let (theirs, ours) = Socket::pair();
    target.accept(theirs).then(|| Wire::new(rng, ours))
}

/// Moves bytes of an engine's; `false`: the target broke the protocol.
fn exchange(now_ns: u64, queue: &mut Queue, wire: &mut Wire) -> bool {
    let mut bytes = Vec::new();
    for piece in queue.pieces() {
        let Piece::Bytes(part) = piece else { panic!("no I/O yet") };
        bytes.extend_from_slice(part);
    }
    wire.send(now_ns, &bytes);
    queue.sent(bytes.len());
    while let Some(bytes) = wire.receive(now_ns) {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let Ok(used) = queue.receive(rest) else { return false };
            rest = &rest[used..];
        }
    }
    true
}
