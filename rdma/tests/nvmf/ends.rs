//! Drivers of the two engines without sockets: data in vectors, bytes cut as the test wants.

use outboard_rdma::nvmf::fabrics::{ANY_CONTROLLER, ConnectData};
use outboard_rdma::nvmf::identify::{Identity, Namespace};
use outboard_rdma::nvmf::initiator::{Ended, Queue, QueueConfig, Request};
use outboard_rdma::nvmf::target::{Command, IN_CAPSULE_BYTES, Limits, Subsystem, Target, Waiting};
use outboard_rdma::nvmf::{Digests, Fault, Nqn, Op, Piece, StatusCode, Want};
use std::collections::BTreeMap;

pub const NQN: &str = "nqn.2025-01.io.test:golden";

/// SplitMix64: the tests' own, so that a seed means the same for ever.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

pub fn namespace(blocks: u64) -> Namespace {
    let identity = Identity { nguid: [0xab; 16], uuid: [0xcd; 16] };
    Namespace { block_bytes: 512, blocks, read_only: false, identity }
}

pub fn subsystem(blocks: u64, limits: Limits) -> Subsystem {
    Subsystem::new(Nqn::from(NQN).unwrap(), "00000001", namespace(blocks), limits)
}

pub fn names(controller: u16) -> ConnectData {
    ConnectData {
        host_id: [0x11; 16],
        controller,
        subsystem: Nqn::from(NQN).unwrap(),
        host: Nqn::from("nqn.2014-08.org.nvmexpress:uuid:test").unwrap(),
    }
}

pub fn admin_config() -> QueueConfig {
    QueueConfig {
        queue: 0,
        depth: 1,
        keep_alive_ms: 5000,
        in_capsule_bytes: 0,
        nsid: 0,
        digests: Digests::NONE,
        names: names(ANY_CONTROLLER),
    }
}

/// At most `limit` of the bytes that `pieces` name.
fn collect<'a>(
    pieces: impl Iterator<Item = Piece<'a>>,
    limit: usize,
    data: impl Fn(u16) -> &'a [u8],
) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces {
        let bytes = match piece {
            Piece::Bytes(bytes) => bytes,
            Piece::Data { slot, offset, len } => {
                &data(slot)[offset as usize..(offset + len) as usize]
            }
        };
        let take = bytes.len().min(limit - out.len());
        out.extend_from_slice(&bytes[..take]);
        if out.len() == limit {
            break;
        }
    }
    out
}

/// An initiator's queue with its commands' data.
pub struct Host {
    pub queue: Queue,
    pub data: BTreeMap<u16, Vec<u8>>,
}

impl Host {
    pub fn new(config: QueueConfig) -> Host {
        Host { queue: Queue::new(config), data: BTreeMap::new() }
    }

    /// Submits; `data` is what a write writes and where a read goes.
    pub fn submit(&mut self, request: Request, data: Vec<u8>) -> Option<u16> {
        let slot = self.queue.submit(&request).ok()?;
        assert!(self.data.insert(slot, data).is_none(), "slot {slot} is in use");
        Some(slot)
    }

    pub fn transmit(&mut self, limit: usize) -> Vec<u8> {
        if self.queue.has_data_digest() {
            let mut bytes = vec![0; limit.min(1 << 20)];
            let filled = self.queue.fill(&mut bytes, |slot, offset, place| {
                place.copy_from_slice(&self.data[&slot][offset as usize..][..place.len()]);
            });
            bytes.truncate(filled);
            self.queue.sent_copy(&bytes);
            return bytes;
        }
        let bytes = collect(self.queue.pieces(), limit, |slot| &self.data[&slot]);
        self.queue.sent(bytes.len());
        bytes
    }

    pub fn receive(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        while !bytes.is_empty() {
            match self.queue.wants() {
                Want::Engine => {
                    let used = self.queue.receive(bytes)?;
                    assert!(used > 0);
                    bytes = &bytes[used..];
                }
                Want::Data { slot, offset, len } => {
                    let n = bytes.len().min(len as usize);
                    let place = self.data.get_mut(&slot).unwrap();
                    place[offset as usize..offset as usize + n].copy_from_slice(&bytes[..n]);
                    if self.queue.has_data_digest() {
                        self.queue.placed_copy(&bytes[..n])?;
                    } else {
                        self.queue.placed(n as u32)?;
                    }
                    bytes = &bytes[n..];
                }
                Want::Nothing => unreachable!("an initiator always takes bytes until it fails"),
            }
        }
        Ok(())
    }

    pub fn next_ended(&mut self) -> Option<(Ended, Vec<u8>)> {
        let ended = self.queue.next_ended()?;
        Some((ended, self.data.remove(&ended.slot).unwrap()))
    }
}

/// A target's connection with its commands' data, and a disk.
pub struct Controller {
    pub target: Target,
    pub data: BTreeMap<u16, Vec<u8>>,
    pub running: Vec<Command>,
    /// Received and not taken yet.
    pub pending: Vec<u8>,
    /// The most bytes of data that commands may hold at once.
    pub room: usize,
}

impl Controller {
    pub fn new(depth: u16, room: usize) -> Controller {
        let target = Target::new(depth);
        Controller { target, data: BTreeMap::new(), running: Vec::new(), pending: vec![], room }
    }

    pub fn held(&self) -> usize {
        self.data.values().map(Vec::len).sum()
    }

    /// Takes what it can of `bytes` and what was pending.
    pub fn receive(
        &mut self,
        now_ns: u64,
        bytes: &[u8],
        subsystem: &mut Subsystem,
    ) -> Result<(), Fault> {
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let mut rest = &pending[..];
        loop {
            while let Some(Waiting { slot, bytes, by_request }) = self.target.waiting() {
                let kept = if by_request { IN_CAPSULE_BYTES as usize } else { 0 };
                if self.held() + bytes as usize + kept > self.room {
                    break;
                }
                assert!(self.data.insert(slot, vec![0xee; bytes as usize]).is_none());
                self.target.grant(subsystem);
            }
            while let Some(command) = self.target.next_command() {
                self.running.push(command);
            }
            if rest.is_empty() {
                return Ok(());
            }
            match self.target.wants() {
                Want::Engine => {
                    let used = self.target.receive(now_ns, rest, subsystem)?;
                    rest = &rest[used..];
                }
                Want::Data { slot, offset, len } => {
                    let n = rest.len().min(len as usize);
                    let place = self.data.get_mut(&slot).unwrap();
                    place[offset as usize..offset as usize + n].copy_from_slice(&rest[..n]);
                    if self.target.has_data_digest() {
                        self.target.placed_copy(&rest[..n], subsystem);
                    } else {
                        self.target.placed(n as u32, subsystem);
                    }
                    rest = &rest[n..];
                }
                Want::Nothing => {
                    self.pending = rest.to_vec();
                    return Ok(());
                }
            }
        }
    }

    /// Runs the command at `index` among those running, on `disk`.
    pub fn run(&mut self, index: usize, disk: &mut [u8]) {
        let command = self.running.swap_remove(index);
        let at = command.lba as usize * 512;
        let bytes = if command.op.is_ranged() { command.blocks * 512 } else { command.bytes };
        let range = at..at + bytes as usize;
        let mut status = StatusCode::SUCCESS;
        match command.op {
            Op::Read => {
                self.data.get_mut(&command.slot).unwrap().copy_from_slice(&disk[range]);
            }
            Op::Write => disk[range].copy_from_slice(&self.data[&command.slot]),
            Op::Flush => {}
            Op::Discard | Op::WriteZeroes => disk[range].fill(0),
            Op::Compare if disk[range.clone()] == self.data[&command.slot] => {}
            Op::Compare => status = StatusCode::COMPARE_FAILURE.do_not_retry(),
        }
        self.target.complete(command.slot, status);
        while let Some(command) = self.target.next_command() {
            self.running.push(command);
        }
    }

    pub fn transmit(&mut self, limit: usize) -> Vec<u8> {
        if self.target.has_data_digest() {
            let mut bytes = vec![0; limit.min(1 << 20)];
            let filled = self.target.fill(&mut bytes, |slot, offset, place| {
                place.copy_from_slice(&self.data[&slot][offset as usize..][..place.len()]);
            });
            bytes.truncate(filled);
            let data = &mut self.data;
            self.target.sent_copy(&bytes, |slot| {
                data.remove(&slot);
            });
            return bytes;
        }
        let bytes = collect(self.target.pieces(), limit, |slot| &self.data[&slot]);
        let data = &mut self.data;
        self.target.sent(bytes.len(), |slot| {
            data.remove(&slot);
        });
        bytes
    }
}
