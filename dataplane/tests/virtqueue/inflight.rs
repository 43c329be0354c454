//! A device that dies at any store, and the one after it: every chain ends exactly once, in order.

use crate::guest::*;
use outboard::virtio::driver_ring::DriverRing;
use outboard::virtio::fault::QueueFault;
use outboard::virtio::inflight::{self, InflightError, InflightRegion};
use outboard::virtio::queue::{DescriptorChain, Queue, QueueError};
use outboard_dma::{GuestMemory, GuestRegion};
use outboard_sim::{Rng, for_each_seed};
use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

const SIZE: u16 = 8;

/// Where an entry is in the region of queue 0, and its parts.
const LAST_BATCH_HEAD: u64 = 12;
const USED_INDEX: u64 = 14;

fn entry(head: u16) -> u64 {
    16 + u64::from(head) * 16
}

fn region_of(file: &File) -> InflightRegion {
    let file = file.try_clone().unwrap();
    InflightRegion::adopt(file, 0, inflight::bytes(2, SIZE), 2, SIZE).unwrap()
}

/// A queue that is used by one device after the other.
struct Life {
    memory: Arc<GuestMemory>,
    ring: DriverRing,
    file: File,
    queue: Queue,
    /// Heads that the driver may offer.
    free: Vec<u16>,
    /// Offered and not taken, in order.
    offered: VecDeque<u16>,
    /// Taken and not shown to the driver, in the order of taking; and whether given back.
    taken: Vec<(u16, bool)>,
    /// Given back since the last publish, in order.
    batch: Vec<u16>,
}

impl Life {
    fn new() -> Life {
        let (memory, mut ring, _) = ends(SIZE, true);
        for head in 0..SIZE {
            ring.describe(head, DATA + u64::from(head) * 16, 16, 0, 0);
        }
        let (_, file) = InflightRegion::make(2, SIZE).unwrap();
        let queue = Life::queue(&memory, &ring, &file, 0).unwrap();
        let free = (0..SIZE).collect();
        let (offered, taken, batch) = (VecDeque::new(), Vec::new(), Vec::new());
        Life { memory, ring, file, queue, free, offered, taken, batch }
    }

    fn queue(
        memory: &Arc<GuestMemory>,
        ring: &DriverRing,
        file: &File,
        base: u16,
    ) -> Result<Queue, InflightError> {
        let setup = outboard::virtio::queue::QueueSetup { base, ..ring.setup() };
        Queue::new(memory, &setup).unwrap().track(region_of(file).queue(0, SIZE).unwrap())
    }

    fn offer(&mut self, rng: &mut Rng) {
        for _ in 0..rng.below(4) {
            let Some(head) = self.free.pop() else { break };
            self.ring.offer(head);
            self.offered.push_back(head);
        }
        self.ring.publish();
    }

    /// Takes one chain, which is the one that it must be.
    fn take(&mut self) -> Option<u16> {
        self.queue.fetch().unwrap();
        let head = self.queue.pop(&mut DescriptorChain::default()).unwrap();
        assert_eq!(head, self.offered.pop_front());
        self.taken.extend(head.map(|head| (head, false)));
        head
    }

    fn give(&mut self, rng: &mut Rng) -> Option<u16> {
        let waiting: Vec<_> = (0..self.taken.len()).filter(|at| !self.taken[*at].1).collect();
        let at = *waiting.get(rng.index(waiting.len().max(1)))?;
        self.taken[at].1 = true;
        let head = self.taken[at].0;
        self.queue.push(head, 0);
        self.batch.push(head);
        Some(head)
    }

    fn publish(&mut self) {
        self.queue.publish();
        for head in self.batch.drain(..) {
            let taken = self.ring.take();
            assert_eq!(taken, Some((u32::from(head), 0)));
            self.taken.retain(|(other, _)| *other != head);
            self.free.push(head);
        }
        assert_eq!(self.ring.take(), None, "nothing ends twice");
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; inflight::bytes(2, SIZE) as usize];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// The device dies, and the next one comes: it takes what was taken, then what is new.
    fn die(&mut self) {
        let again: Vec<u16> = self.taken.drain(..).map(|(head, _)| head).collect();
        self.batch.clear();
        for head in again.iter().rev() {
            self.offered.push_front(*head);
        }
        // What the one before had not taken again yet.
        let left = usize::from(self.queue.again());
        // A front end may have noticed the death before the last outcome was there.
        let base = self.ring.used_index().wrapping_sub(1);
        self.queue = Life::queue(&self.memory, &self.ring, &self.file, base).unwrap();
        assert_eq!(usize::from(self.queue.again()), again.len() + left);
        assert_eq!(usize::from(self.queue.fetch().unwrap()), self.offered.len());
    }

    /// Dies between the two stores of taking a chain.
    fn die_taking(&mut self) {
        if self.queue.again() == 0
            && let Some(head) = self.take()
        {
            self.file.write_all_at(&[0], entry(head)).unwrap();
            self.taken.pop();
            self.offered.push_front(head);
        }
        self.die();
    }

    /// Dies between the two stores of giving a chain back.
    fn die_giving(&mut self, rng: &mut Rng) {
        let before = self.bytes();
        if self.give(rng).is_some() {
            let at = LAST_BATCH_HEAD as usize;
            self.file.write_all_at(&before[at..at + 2], LAST_BATCH_HEAD).unwrap();
        }
        self.die();
    }

    /// Dies somewhere after the driver has seen the batch.
    fn die_publishing(&mut self, rng: &mut Rng) {
        let before = self.bytes();
        let cleared = rng.index(self.batch.len() + 1);
        let list: Vec<_> = self.batch.iter().rev().copied().take(cleared).collect();
        self.publish();
        self.file.write_all_at(&before, 0).unwrap();
        list.iter().for_each(|head| self.file.write_all_at(&[0], entry(*head)).unwrap());
        self.die();
    }
}

#[test]
fn whatever_store_it_dies_at_every_chain_ends_once_and_in_order() {
    for_each_seed("cargo test -p outboard --test virtqueue inflight", 1, 300, |seed| {
        let mut rng = Rng::new(seed);
        let mut life = Life::new();
        for _ in 0..400 {
            match rng.below(20) {
                0..5 => life.offer(&mut rng),
                5..10 => _ = life.take(),
                10..14 => _ = life.give(&mut rng),
                14..16 => life.publish(),
                16 => life.die(),
                17 => life.die_taking(),
                18 => life.die_giving(&mut rng),
                _ => life.die_publishing(&mut rng),
            }
        }
        life.die();
        while life.take().is_some() {}
        while life.give(&mut rng).is_some() {}
        life.publish();
        assert!(life.taken.is_empty() && life.free.len() == usize::from(SIZE));
        assert_eq!(life.queue.base(), life.ring.used_index());
    });
}

#[test]
fn a_region_that_makes_no_sense_has_its_name() {
    let mut life = Life::new();
    life.ring.offer(0);
    life.ring.publish();
    life.offered.push_back(0);
    life.take();
    let again = |life: &Life| Life::queue(&life.memory, &life.ring, &life.file, 0);
    assert_eq!(again(&life).unwrap().again(), 1);
    for (at, wrong) in [(8, 2u16), (10, SIZE + 1)] {
        let before = life.bytes();
        life.file.write_all_at(&wrong.to_le_bytes(), at).unwrap();
        assert!(matches!(again(&life), Err(InflightError::Foreign { .. })));
        life.file.write_all_at(&before, 0).unwrap();
    }
    // Entries behind a ring that is smaller than the region.
    let (_, ring, queue) = ends(4, true);
    let own = region_of(&life.file).queue(0, 4).unwrap();
    life.file.write_all_at(&[1], entry(5)).unwrap();
    assert!(matches!(queue.track(own), Err(InflightError::Head(5))));
    drop(ring);
    let region = region_of(&life.file);
    assert!(matches!(region.queue(2, SIZE), Err(InflightError::Queue { index: 2, .. })));
    assert!(matches!(region.queue(0, SIZE * 2), Err(InflightError::Queue { .. })));
    let file = || life.file.try_clone().unwrap();
    let bytes = inflight::bytes(2, SIZE);
    let adopt = |offset, bytes, queues, size| {
        InflightRegion::adopt(file(), offset, bytes, queues, size).map(|_| ())
    };
    assert!(matches!(adopt(0, bytes - 1, 2, SIZE), Err(InflightError::Shape { .. })));
    assert!(matches!(adopt(0, bytes, 0, SIZE), Err(InflightError::Shape { .. })));
    assert!(matches!(adopt(0, 1 << 40, 2, SIZE), Err(InflightError::Memory(_))));
    assert!(matches!(adopt(u64::MAX, bytes, 2, SIZE), Err(InflightError::Memory(_))));
    let zero = File::open("/dev/zero").unwrap();
    let foreign = InflightRegion::adopt(zero, 0, bytes, 2, SIZE);
    assert!(matches!(foreign, Err(InflightError::Memory(_))));
}

#[test]
fn a_region_that_is_truncated_tears_the_queue() {
    let mut life = Life::new();
    assert!(!life.queue.is_torn());
    life.file.set_len(0).unwrap();
    life.ring.offer(3);
    life.ring.publish();
    life.offered.push_back(3);
    life.take();
    assert!(life.queue.is_torn());
}

/// A region with anything in it: it is refused, or heads of the ring are taken, each once.
#[test]
fn fuzz_regions() {
    let life = std::panic::AssertUnwindSafe(Life::new());
    bolero::check!().with_type::<(u16, u16, Vec<(u8, u16, u64)>)>().for_each(
        |(used_index, last, entries)| {
            let mut bytes = vec![0; inflight::bytes(2, SIZE) as usize];
            bytes[8..10].copy_from_slice(&1u16.to_le_bytes());
            bytes[10..12].copy_from_slice(&SIZE.to_le_bytes());
            bytes[LAST_BATCH_HEAD as usize..][..2].copy_from_slice(&(last % 12).to_le_bytes());
            bytes[USED_INDEX as usize..][..2].copy_from_slice(&used_index.to_le_bytes());
            for (head, (taken, next, counter)) in (0..SIZE).zip(entries) {
                let at = entry(head) as usize;
                bytes[at] = *taken % 3;
                bytes[at + 6..at + 8].copy_from_slice(&(next % 12).to_le_bytes());
                bytes[at + 8..at + 16].copy_from_slice(&counter.to_le_bytes());
            }
            life.file.write_all_at(&bytes, 0).unwrap();
            let mut queue = Life::queue(&life.memory, &life.ring, &life.file, 0).unwrap();
            let again = queue.again();
            assert!(again <= SIZE);
            let mut heads = Vec::new();
            for _ in 0..again {
                match queue.pop(&mut DescriptorChain::default()) {
                    Ok(Some(head)) => heads.push(head),
                    other => panic!("{other:?}"),
                }
            }
            heads.sort_unstable();
            heads.dedup();
            assert_eq!(heads.len(), usize::from(again));
            // The driver has offered nothing: an index that claims more breaks the ring.
            if again > 0 {
                let fault = queue.fetch();
                assert_eq!(fault, Err(QueueError::Ring(QueueFault::AvailJump)));
            }
        },
    );
}

/// The region is where it was put in the file, at any offset.
#[test]
fn a_region_may_begin_anywhere_in_its_file() {
    let file =
        File::from(rustix::fs::memfd_create(c"kept", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    let bytes = inflight::bytes(1, SIZE);
    file.set_len(bytes + 4096 + 128).unwrap();
    let whole = GuestRegion { guest_address: 0, bytes, user_address: 0, file_offset_bytes: 4160 };
    assert!(GuestMemory::map(&[(whole, file.try_clone().unwrap())]).is_ok());
    let region = InflightRegion::adopt(file.try_clone().unwrap(), 4160, bytes, 1, SIZE).unwrap();
    let mut own = region.queue(0, SIZE).unwrap();
    assert!(own.is_new());
    assert!(own.resume(7).unwrap().is_empty());
    let mut version = [0; 2];
    file.read_exact_at(&mut version, 4160 + 8).unwrap();
    assert_eq!(version, [1, 0]);
    assert!(!own.is_new());
    let odd = InflightRegion::adopt(file, 4161, bytes, 1, SIZE).unwrap();
    assert!(matches!(odd.queue(0, SIZE), Err(InflightError::Memory(_))));
}
