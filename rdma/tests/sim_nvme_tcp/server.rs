//! The target's side: a subsystem, its connections, and the disk behind them.
//!
//! A connection that was cut leaves its commands with the disk running. Its place is taken again
//! only when they have ended: otherwise a write of the past could land on top of a newer one.

use crate::oracle::SECTOR_BYTES;
use crate::wire::{Wire, collect};
use outboard_rdma::nvmf::target::{Command, Limits, Subsystem, Target};
use outboard_rdma::nvmf::{Nqn, Op, StatusCode, Want, identify};
use outboard_sim::{Disk, DiskFaults, DiskOp, DiskOutcome, Rng};
use std::collections::BTreeMap;

pub const NQN: &str = "nqn.2025-01.io.outboard:sim";
/// Bytes of data that the commands of one connection may hold.
const ROOM_BYTES: usize = 300_000;
/// The most that is read from a connection before the others have their turn.
const PIECES_PER_TURN: usize = 40;

pub struct Server {
    pub subsystem: Subsystem,
    pub disk: Disk,
    /// The admin queue's and the I/O queue's.
    pub connections: [Connection; 2],
    /// Times that a command had to wait for memory.
    pub waits: u64,
    rng: Rng,
}

/// One connection's engine and its commands.
pub struct Connection {
    pub target: Target,
    is_open: bool,
    data: BTreeMap<u16, Vec<u8>>,
    running: BTreeMap<u16, Command>,
    /// Received and not taken yet.
    pending: Vec<u8>,
}

impl Server {
    pub fn new(namespace: identify::Namespace, limits: Limits, mut rng: Rng) -> Server {
        let faults = DiskFaults {
            error_ppm: 3_000,
            latency_ns: (5_000, 300_000),
            stall_ppm: 2_000,
            stall_ns: (300_000, 5_000_000),
        };
        let nqn = Nqn::from(NQN).expect("a short name");
        let connection = || Connection {
            target: Target::new(limits.depth),
            is_open: false,
            data: BTreeMap::new(),
            running: BTreeMap::new(),
            pending: Vec::new(),
        };
        Server {
            subsystem: Subsystem::new(nqn, "1", namespace, limits),
            disk: Disk::new(rng.fork(), faults, namespace.blocks),
            connections: [connection(), connection()],
            waits: 0,
            rng,
        }
    }

    /// Takes a new connection in `place`, unless commands of the last one are still running.
    pub fn accept(&mut self, place: usize) -> bool {
        let connection = &mut self.connections[place];
        assert!(!connection.is_open);
        if connection.running.is_empty() {
            connection.target.reset();
            connection.is_open = true;
        }
        connection.is_open
    }

    /// The connection was cut.
    pub fn close(&mut self, place: usize) {
        let connection = &mut self.connections[place];
        if std::mem::take(&mut connection.is_open) {
            connection.target.leave(&mut self.subsystem);
            connection.pending.clear();
            // What the disk works on keeps its memory.
            connection.data.retain(|slot, _| connection.running.contains_key(slot));
        }
    }

    /// Everything goes on from what it has saved.
    pub fn save_and_load(&mut self) {
        let saved = self.subsystem.save();
        self.subsystem.load(&saved).expect("what was saved");
        for connection in &mut self.connections {
            let saved = connection.target.save();
            connection.target = Target::load(&saved, &self.subsystem).expect("what was saved");
        }
    }

    pub fn is_idle(&self) -> bool {
        self.disk.in_flight() == 0
    }

    /// Receives, runs commands, sends: how many pieces came and I/Os ended.
    pub fn turn(&mut self, now_ns: u64, wires: &mut [Option<Wire>; 2], rng: &mut Rng) -> u64 {
        let mut events = self.reap(now_ns);
        for (place, wire) in wires.iter_mut().enumerate() {
            let Some(wire) = wire else { continue };
            if !self.connections[place].is_open {
                continue;
            }
            for _ in 0..=rng.index(PIECES_PER_TURN) {
                let mut buffer = [0; 8_192];
                let count = wire.up.read(now_ns, &mut buffer[..]);
                events += u64::from(count > 0);
                self.receive(now_ns, place, &buffer[..count]);
                if count == 0 {
                    break;
                }
            }
            self.start(now_ns, place);
            self.connections[place].transmit(now_ns, wire, rng);
        }
        events
    }

    fn receive(&mut self, now_ns: u64, place: usize, bytes: &[u8]) {
        let connection = &mut self.connections[place];
        connection.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut connection.pending);
        let mut rest = &pending[..];
        loop {
            self.waits += u64::from(connection.grant(&self.subsystem));
            if rest.is_empty() {
                return;
            }
            let used = match connection.target.wants() {
                Want::Engine => connection
                    .target
                    .receive(now_ns, rest, &mut self.subsystem)
                    .expect("the initiator keeps the protocol"),
                Want::Data { slot, offset, len } => {
                    let count = rest.len().min(len as usize);
                    let data = connection.data.get_mut(&slot).expect("a granted command");
                    data[offset as usize..][..count].copy_from_slice(&rest[..count]);
                    match connection.target.has_data_digest() {
                        true => connection.target.placed_copy(&rest[..count], &self.subsystem),
                        false => connection.target.placed(count as u32, &self.subsystem),
                    }
                    count
                }
                Want::Nothing => {
                    connection.pending = rest.to_vec();
                    return;
                }
            };
            rest = &rest[used..];
        }
    }

    /// Hands the commands that are ready to the disk.
    fn start(&mut self, now_ns: u64, place: usize) {
        let connection = &mut self.connections[place];
        while let Some(command) = connection.target.next_command() {
            let sectors = u64::from(command.bytes) / SECTOR_BYTES as u64;
            let blocks = u64::from(command.blocks);
            let op = match command.op {
                // Some disks give zeros then, others do nothing.
                Op::Discard if self.rng.chance(500_000) => {
                    DiskOp::Read { sector: command.lba, sectors: blocks }
                }
                Op::Discard | Op::WriteZeroes => {
                    let data = vec![0; command.blocks as usize * SECTOR_BYTES];
                    DiskOp::Write { sector: command.lba, data }
                }
                Op::Read | Op::Compare => DiskOp::Read { sector: command.lba, sectors },
                Op::Write => {
                    let data = connection.data[&command.slot].clone();
                    DiskOp::Write { sector: command.lba, data }
                }
                Op::Flush => DiskOp::Flush,
            };
            self.disk.submit(now_ns, (place as u64) << 32 | u64::from(command.slot), op);
            assert!(connection.running.insert(command.slot, command).is_none());
        }
    }

    /// Takes what the disk has ended.
    fn reap(&mut self, now_ns: u64) -> u64 {
        let mut ends = 0;
        while let Some(ended) = self.disk.reap(now_ns) {
            ends += 1;
            let (place, slot) = ((ended.id >> 32) as usize, ended.id as u16);
            let connection = &mut self.connections[place];
            let command = connection.running.remove(&slot).expect("a running command");
            if !connection.is_open {
                connection.data.remove(&slot);
                continue;
            }
            let status = match (ended.outcome, command.op) {
                (DiskOutcome::Ok(data), Op::Read) => {
                    connection.data.get_mut(&slot).expect("a place").copy_from_slice(&data);
                    StatusCode::SUCCESS
                }
                (DiskOutcome::Ok(data), Op::Compare) if data != connection.data[&slot] => {
                    StatusCode::COMPARE_FAILURE
                }
                (DiskOutcome::Ok(_), _) => StatusCode::SUCCESS,
                (DiskOutcome::Error, Op::Read | Op::Compare) => StatusCode::READ_ERROR,
                (DiskOutcome::Error, _) => StatusCode::WRITE_FAULT,
            };
            connection.target.complete(slot, status);
        }
        ends
    }

    /// Nothing of a closed connection may be left.
    pub fn check_empty(&self, place: usize) {
        let connection = &self.connections[place];
        assert!(connection.data.is_empty() && connection.running.is_empty());
    }
}

impl Connection {
    /// Gives waiting commands memory while there is some; whether one has to wait.
    fn grant(&mut self, subsystem: &Subsystem) -> bool {
        while let Some(wanted) = self.target.waiting() {
            let (slot, bytes) = (wanted.slot, wanted.bytes);
            let held: usize = self.data.values().map(Vec::len).sum();
            if held + bytes as usize > ROOM_BYTES {
                return true;
            }
            assert!(self.data.insert(slot, vec![0xee; bytes as usize]).is_none());
            self.target.grant(subsystem);
        }
        false
    }

    fn transmit(&mut self, now_ns: u64, wire: &mut Wire, rng: &mut Rng) {
        let limit = 1 + rng.index(100_000);
        if self.target.has_data_digest() {
            let mut bytes = vec![0; limit];
            let filled = self.target.fill(&mut bytes, |slot, offset, place| {
                place.copy_from_slice(&self.data[&slot][offset as usize..][..place.len()]);
            });
            let sent = wire.down.write(now_ns, &bytes[..filled]);
            let data = &mut self.data;
            return self.target.sent_copy(&bytes[..sent], |slot| {
                data.remove(&slot);
            });
        }
        let bytes = collect(self.target.pieces(), limit, |slot| &self.data[&slot]);
        let sent = wire.down.write(now_ns, &bytes);
        let data = &mut self.data;
        self.target.sent(sent, |slot| {
            data.remove(&slot);
        });
    }
}
