//! The process that serves the medium: an export, and its lives.

use super::medium::Medium;
use outboard::volume::export::{Door, Export, ExportConfig, ExportCounters};
use outboard::volume::{BlockDevice, Dones};
use outboard_dma::{FreeList, Region};
use outboard_rdma::nvmf::Digests;
use outboard_rdma::nvmf::identify::Identity;
use std::net::TcpStream;
use std::sync::Arc;

pub const NQN: &str = "nqn.2025-01.io.outboard:sim";
/// A life's first epoch is as much higher than the one's before it.
const EPOCHS_PER_LIFE: u64 = 1_000_000;

/// A target that may be dead now.
pub struct Target {
    pub medium: Medium,
    life: Option<Life>,
    lives: u64,
    /// Starts of its machine.
    boots: u8,
    identity: Identity,
    digests: Digests,
    /// Bytes that it asks for at a time, and bytes of a PDU.
    pieces: (u32, u32),
    /// What all lives counted: fences, and commands of the past that were refused.
    pub fences: u64,
    pub stale_refusals: u64,
}

struct Life {
    export: Export,
    door: Door,
    counters: Arc<ExportCounters>,
    free: FreeList,
}

impl Target {
    pub fn new(medium: Medium, digests: Digests, pieces: (u32, u32)) -> Target {
        let identity = Identity { nguid: [7; 16], uuid: [0; 16] };
        let mut target = Target {
            medium,
            life: None,
            lives: 0,
            boots: 1,
            identity,
            digests,
            pieces,
            fences: 0,
            stale_refusals: 0,
        };
        target.start();
        target
    }

    /// Starts, unless I/O of the process before still runs: its lock on the medium lasts as long.
    pub fn start(&mut self) -> bool {
        if self.medium.in_flight() > 0 {
            return false;
        }
        self.lives += 1;
        let config = ExportConfig {
            nqn: NQN.into(),
            serial: "1".into(),
            identity: self.identity,
            owner: 3,
            connections: 8,
            shared_frames: 16,
            first_epoch: self.lives * EPOCHS_PER_LIFE,
            boot: [self.boots; 16],
        };
        let mut free = Region::new(config.frames()).unwrap().carve(config.frames()).unwrap();
        let (mut export, door) = Export::new(&config, self.medium.geometry(), &mut free).unwrap();
        export.require_digests(self.digests);
        export.take_pieces_of(self.pieces.0, self.pieces.1);
        let counters = export.counters();
        self.life = Some(Life { export, door, counters, free });
        true
    }

    pub fn is_alive(&self) -> bool {
        self.life.is_some()
    }

    /// A connection comes; `false`: nobody listens.
    pub fn accept(&self, socket: TcpStream) -> bool {
        self.life.as_ref().is_some_and(|life| life.door.enter(socket).is_ok())
    }

    /// A turn of its worker: what ended.
    pub fn turn(&mut self, now_ns: u64) -> u64 {
        let Some(Life { export, .. }) = &mut self.life else {
            self.medium.settle(now_ns);
            return 0;
        };
        let mut events = export.poll(now_ns, &mut self.medium) as u64;
        let mut done = Dones::new();
        self.medium.reap(now_ns, &mut done);
        events += done.len() as u64;
        for done in done {
            export.complete(done);
        }
        export.flush(now_ns);
        events
    }

    /// The engines go on from what they have saved; whether there are some.
    pub fn save_and_load(&mut self) -> bool {
        let Some(Life { export, .. }) = &mut self.life else { return false };
        let saved = export.save_engines();
        export.load_engines(&saved).unwrap();
        assert_eq!(export.save_engines(), saved);
        true
    }

    /// The process dies. What it had submitted goes on.
    pub fn kill(&mut self) {
        self.medium.orphan();
        if let Some(life) = self.life.take() {
            self.fences += life.counters.fences.get();
            self.stale_refusals += life.counters.stale_refusals.get();
        }
    }

    /// Its machine has lost its power, and starts again.
    pub fn power_cut(&mut self) {
        assert!(!self.is_alive());
        self.medium.power_cut();
        self.boots = self.boots.wrapping_add(1).max(1);
    }

    /// It serves another medium from now on, as one in memory does after a restart.
    pub fn replace(&mut self, medium: Medium) {
        assert!(!self.is_alive());
        self.medium = medium;
        self.identity.nguid[0] ^= 0xff;
    }

    /// Ends it in good order; every frame comes back.
    pub fn close(&mut self, mut now_ns: u64) {
        while let Some(Life { export, free, .. }) = &mut self.life {
            if export.close_all(free) {
                let frames = free.len();
                assert_eq!(frames, 8 * 34 + 16, "every frame of the export comes back");
                break;
            }
            now_ns += 1_000_000;
            let mut done = Dones::new();
            self.medium.reap(now_ns, &mut done);
            done.into_iter().for_each(|done| export.complete(done));
        }
        self.kill();
    }
}
