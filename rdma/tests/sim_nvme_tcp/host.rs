//! The host's end of one connection: an initiator's queue with its commands' data.

use crate::wire::{Wire, collect};
use outboard_rdma::nvmf::initiator::{Ended, Queue, QueueConfig, Request};
use outboard_rdma::nvmf::{Full, Want};
use outboard_sim::Rng;
use std::collections::BTreeMap;

pub struct Host {
    pub queue: Queue,
    data: BTreeMap<u16, Vec<u8>>,
}

impl Host {
    pub fn new(config: QueueConfig) -> Host {
        Host { queue: Queue::new(config), data: BTreeMap::new() }
    }

    /// Submits; `data` is what a write writes and where a read goes.
    pub fn submit(&mut self, request: &Request, data: Vec<u8>) -> Result<u16, Full> {
        let slot = self.queue.submit(request)?;
        assert!(self.data.insert(slot, data).is_none(), "slot {slot} is in use");
        Ok(slot)
    }

    pub fn next_ended(&mut self) -> Option<(Ended, Vec<u8>)> {
        let ended = self.queue.next_ended()?;
        let data = self.data.remove(&ended.slot).expect("the end of a command in flight");
        Some((ended, data))
    }

    pub fn transmit(&mut self, now_ns: u64, wire: &mut Wire, rng: &mut Rng) {
        let limit = 1 + rng.index(100_000);
        if self.queue.has_data_digest() {
            let mut bytes = vec![0; limit];
            let filled = self.queue.fill(&mut bytes, |slot, offset, place| {
                place.copy_from_slice(&self.data[&slot][offset as usize..][..place.len()]);
            });
            let sent = wire.up.write(now_ns, &bytes[..filled]);
            return self.queue.sent_copy(&bytes[..sent]);
        }
        let bytes = collect(self.queue.pieces(), limit, |slot| &self.data[&slot]);
        self.queue.sent(wire.up.write(now_ns, &bytes));
    }

    /// Takes what has arrived: how many pieces.
    ///
    /// # Panics
    /// When the target broke the protocol.
    pub fn receive(&mut self, now_ns: u64, wire: &mut Wire) -> u64 {
        let mut pieces = 0;
        loop {
            let mut buffer = [0; 4096];
            let count = match self.queue.wants() {
                Want::Engine => {
                    let count = wire.down.read(now_ns, &mut buffer);
                    let mut rest = &buffer[..count];
                    while !rest.is_empty() {
                        rest = &rest[self.take(rest)..];
                    }
                    count
                }
                Want::Data { slot, offset, len } => {
                    let place = self.data.get_mut(&slot).expect("a command in flight");
                    let place = &mut place[offset as usize..][..len as usize];
                    let count = wire.down.read(now_ns, place);
                    if count > 0 {
                        place_in(&mut self.queue, &place[..count]);
                    }
                    count
                }
                Want::Nothing => panic!("an initiator takes bytes until it fails"),
            };
            if count == 0 {
                return pieces;
            }
            pieces += 1;
        }
    }

    /// Goes on from what it has saved.
    pub fn save_and_load(&mut self) {
        self.queue = Queue::load(&self.queue.save()).expect("what was saved");
    }

    /// Takes some of `bytes`, to the engine or into place.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let kept = "the target keeps the protocol";
        match self.queue.wants() {
            Want::Engine => self.queue.receive(bytes).expect(kept),
            Want::Data { slot, offset, len } => {
                let count = bytes.len().min(len as usize);
                let place = self.data.get_mut(&slot).expect("a command in flight");
                place[offset as usize..][..count].copy_from_slice(&bytes[..count]);
                place_in(&mut self.queue, &bytes[..count]);
                count
            }
            Want::Nothing => panic!("an initiator takes bytes until it fails"),
        }
    }
}

/// Tells the queue of data that is in place.
fn place_in(queue: &mut Queue, data: &[u8]) {
    let placed = match queue.has_data_digest() {
        true => queue.placed_copy(data),
        false => queue.placed(data.len() as u32),
    };
    placed.expect("the target keeps the protocol");
}
