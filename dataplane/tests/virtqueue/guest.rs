//! A guest's memory in three regions, and both ends of a queue in it.

use outboard::virtio::driver_ring::{
    DESC_INDIRECT, DESC_NEXT, DESC_WRITE, DriverRing, second_word,
};
use outboard::virtio::queue::Queue;
use outboard_dma::{GuestMemory, GuestRegion};
use std::fs::File;
use std::sync::Arc;

pub const USER: u64 = 0x7100_0000_0000;
pub const RING_BYTES: u64 = 16 << 10;
pub const REGION_BYTES: u64 = 32 << 10;
/// Guest addresses: two regions next to each other, then a gap, then a third one.
pub const GUEST: u64 = 0x4000_0000;
pub const GAP: u64 = GUEST + 2 * REGION_BYTES;
pub const FAR: u64 = GAP + 0x1_0000;
pub const END: u64 = FAR + REGION_BYTES;

/// Three regions of one file; rings go to the front of the first.
pub fn memory() -> Arc<GuestMemory> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create(c"virtqueue", flags).unwrap());
    file.set_len(3 * REGION_BYTES).unwrap();
    let region = |index: u64, guest_address| {
        let region = GuestRegion {
            guest_address,
            bytes: REGION_BYTES,
            user_address: USER + index * REGION_BYTES,
            file_offset_bytes: index * REGION_BYTES,
        };
        (region, file.try_clone().unwrap())
    };
    let regions = [region(0, GUEST), region(1, GUEST + REGION_BYTES), region(2, FAR)];
    GuestMemory::map(&regions).unwrap()
}

/// Writes guest memory, over region borders.
pub fn write(memory: &GuestMemory, mut at: u64, mut data: &[u8]) {
    while !data.is_empty() {
        let segment = memory.segment(at, data.len() as u32).expect("mapped");
        let (now, rest) = data.split_at(segment.len());
        assert!(segment.copy_from(0, now));
        at += now.len() as u64;
        data = rest;
    }
}

pub fn write_table(memory: &GuestMemory, at: u64, entries: &[(u64, u32, u16, u16)]) {
    for (index, (address, len, flags, next)) in entries.iter().enumerate() {
        let mut raw = address.to_le_bytes().to_vec();
        raw.extend(second_word(*len, *flags, *next).to_le_bytes());
        write(memory, at + index as u64 * 16, &raw);
    }
}

pub fn ends(size: u16, event_idx: bool) -> (Arc<GuestMemory>, DriverRing, Queue) {
    let memory = memory();
    let ring = DriverRing::new(&memory, size, USER, event_idx, true).unwrap();
    let queue = Queue::new(&memory, &ring.setup()).unwrap();
    (memory, ring, queue)
}

pub const DATA: u64 = GUEST + RING_BYTES;
pub const W: u16 = DESC_WRITE;
pub const N: u16 = DESC_NEXT;
pub const I: u16 = DESC_INDIRECT;
