//! A virtio split ring between two threads, each 4 KiB read answered by one copy: the least that
//! a local disk through vhost-user can cost on this machine.
//!
//! The ring has the layout of virtio 1.2, 2.7 (descriptor table, available ring, used ring), with
//! three descriptors a request as virtio-blk has them: header, data, status. Both sides poll; no
//! side notifies.
#![allow(unsafe_code)]

use super::{OtherSide, is_over, now_and_then};
use crate::drivers::LoadArgs;
use crate::drivers::block::{BlockArgs, BlockTarget, Op, run};
use crate::error::Error;
use crate::schema::Measurement;
use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Requests that can be in flight; a power of two.
const SLOTS: usize = 64;
/// The most data of one request.
const DATA_BYTES: usize = 4096;
const DISK_BYTES: usize = 64 << 20;
const SECTOR_BYTES: u64 = 512;
/// virtio-blk request types (virtio 1.2, 5.2.6).
const TYPE_IN: u32 = 0;

/// A descriptor; here the address is the number of a slot.
#[derive(Default)]
#[repr(C, align(16))]
struct Descriptor {
    slot: AtomicU64,
    bytes: AtomicU32,
    next: AtomicU32,
}

#[repr(C, align(4096))]
struct Data(UnsafeCell<[u8; DATA_BYTES]>);

/// A request's header and status, on lines of their own.
#[derive(Default)]
#[repr(C, align(64))]
struct Header {
    kind: AtomicU32,
    sector: AtomicU64,
    status: AtomicU32,
}

#[derive(Default)]
#[repr(C, align(64))]
struct Index(AtomicU16);

/// What both threads see.
struct Shared {
    descriptors: [Descriptor; 3 * SLOTS],
    available: [AtomicU16; SLOTS],
    available_index: Index,
    used: [AtomicU32; SLOTS],
    used_index: Index,
    headers: [Header; SLOTS],
    data: Box<[Data]>,
}

// SAFETY: everything but `data` is atomic. A slot's data belongs to the driver while the slot is
// not in flight, and to the device between the acquire load of `available_index` that shows it
// and the release store of `used_index` that returns it.
unsafe impl Sync for Shared {}

impl Shared {
    fn new() -> Shared {
        let blank = || Data(UnsafeCell::new([0; DATA_BYTES]));
        let shared = Shared {
            descriptors: std::array::from_fn(|_| Descriptor::default()),
            available: std::array::from_fn(|_| AtomicU16::new(0)),
            available_index: Index::default(),
            used: std::array::from_fn(|_| AtomicU32::new(0)),
            used_index: Index::default(),
            headers: std::array::from_fn(|_| Header::default()),
            data: (0..SLOTS).map(|_| blank()).collect(),
        };
        for (index, descriptor) in shared.descriptors.iter().enumerate() {
            descriptor.slot.store((index / 3) as u64, Ordering::Relaxed);
            descriptor.next.store(index as u32 + 1, Ordering::Relaxed);
        }
        shared
    }
}

/// Measures reads of 4 KiB; see [`run`] for what surrounds it.
pub fn measure(args: &LoadArgs) -> Result<Measurement, Error> {
    let args = super::sockets::pinned(args);
    let echo = RingEcho::start();
    let medium = "shared memory, one copy of 4 KiB".to_owned();
    let mut measured = run(echo, "reference ring-echo", medium, &args, &BlockArgs::default())?;
    if args.label.name.is_none() {
        measured.name = format!("split ring echo + 4 KiB copy, {}", args.pace_text());
    }
    Ok(measured)
}

/// The driver's side, with the device on another thread.
pub struct RingEcho {
    shared: Arc<Shared>,
    posted: u16,
    seen: u16,
    _device: OtherSide<()>,
}

impl RingEcho {
    /// Starts the device.
    pub fn start() -> RingEcho {
        let shared = Arc::new(Shared::new());
        let theirs = shared.clone();
        let device = OtherSide::start("ring-echo", move |stop| serve(&theirs, stop));
        RingEcho { shared, posted: 0, seen: 0, _device: device }
    }

    fn data(&self, slot: u16, at: usize, len: usize) -> *mut u8 {
        assert!(at + len <= DATA_BYTES);
        let data = self.shared.data[usize::from(slot)].0.get();
        // SAFETY: inside the slot's data, checked above.
        unsafe { data.cast::<u8>().add(at) }
    }
}

impl BlockTarget for RingEcho {
    fn size_bytes(&self) -> u64 {
        DISK_BYTES as u64
    }

    fn block_bytes(&self) -> u32 {
        SECTOR_BYTES as u32
    }

    fn store(&mut self, slot: u16, at: usize, data: &[u8]) {
        let place = self.data(slot, at, data.len());
        // SAFETY: the slot is not in flight (the caller's promise to every BlockTarget), so its
        // data is the driver's; the range was checked.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), place, data.len()) }
    }

    fn load(&self, slot: u16, at: usize, out: &mut [u8]) {
        let place = self.data(slot, at, out.len());
        // SAFETY: as in store.
        unsafe { std::ptr::copy_nonoverlapping(place, out.as_mut_ptr(), out.len()) }
    }

    fn submit(&mut self, slot: u16, op: Op, offset_bytes: u64, bytes: u32, _now_ns: u64) -> bool {
        if usize::from(slot) >= SLOTS {
            return false;
        }
        let header = &self.shared.headers[usize::from(slot)];
        header.kind.store(u32::from(op == Op::Write), Ordering::Relaxed);
        header.sector.store(offset_bytes / SECTOR_BYTES, Ordering::Relaxed);
        header.status.store(u32::MAX, Ordering::Relaxed);
        let first = 3 * slot;
        let lengths = [16, bytes, 1];
        for (descriptor, bytes) in self.shared.descriptors[usize::from(first)..].iter().zip(lengths)
        {
            descriptor.bytes.store(bytes, Ordering::Relaxed);
        }
        let entry = usize::from(self.posted) % SLOTS;
        self.shared.available[entry].store(first, Ordering::Relaxed);
        self.posted = self.posted.wrapping_add(1);
        true
    }

    fn kick(&mut self) {
        self.shared.available_index.0.store(self.posted, Ordering::Release);
    }

    fn reap(&mut self, _now_ns: u64, ended: &mut Vec<(u16, bool)>) {
        let used = self.shared.used_index.0.load(Ordering::Acquire);
        while self.seen != used {
            let head = self.shared.used[usize::from(self.seen) % SLOTS].load(Ordering::Relaxed);
            let slot = (head / 3) as u16;
            let status = self.shared.headers[usize::from(slot)].status.load(Ordering::Relaxed);
            ended.push((slot, status == 0));
            self.seen = self.seen.wrapping_add(1);
        }
    }
}

/// The device: takes what is available, copies, returns.
fn serve(shared: &Shared, stop: &AtomicBool) {
    let mut disk = vec![0; DISK_BYTES];
    let (mut taken, mut spins) = (0u16, 0);
    while !now_and_then(&mut spins) || !is_over(stop) {
        let available = shared.available_index.0.load(Ordering::Acquire);
        if taken == available {
            std::hint::spin_loop();
            continue;
        }
        while taken != available {
            let head = shared.available[usize::from(taken) % SLOTS].load(Ordering::Relaxed);
            answer(shared, head, &mut disk);
            shared.used[usize::from(taken) % SLOTS].store(u32::from(head), Ordering::Relaxed);
            taken = taken.wrapping_add(1);
        }
        shared.used_index.0.store(taken, Ordering::Release);
    }
}

/// Walks the chain and does what the header says.
fn answer(shared: &Shared, head: u16, disk: &mut [u8]) {
    let first = &shared.descriptors[usize::from(head)];
    let data = &shared.descriptors[first.next.load(Ordering::Relaxed) as usize];
    let status = &shared.descriptors[data.next.load(Ordering::Relaxed) as usize];
    let header = &shared.headers[first.slot.load(Ordering::Relaxed) as usize];
    let bytes = data.bytes.load(Ordering::Relaxed) as usize;
    let offset = (header.sector.load(Ordering::Relaxed) * SECTOR_BYTES) as usize;
    let place = shared.data[data.slot.load(Ordering::Relaxed) as usize].0.get().cast::<u8>();
    let sound =
        bytes <= DATA_BYTES && offset.checked_add(bytes).is_some_and(|end| end <= disk.len());
    if sound && header.kind.load(Ordering::Relaxed) == TYPE_IN {
        // SAFETY: the slot's data is the device's now (see Sync); `bytes` fits both sides.
        unsafe { std::ptr::copy_nonoverlapping(disk.as_ptr().add(offset), place, bytes) }
    } else if sound {
        // SAFETY: as above, in the other direction.
        unsafe { std::ptr::copy_nonoverlapping(place, disk.as_mut_ptr().add(offset), bytes) }
    }
    let slot = status.slot.load(Ordering::Relaxed) as usize;
    shared.headers[slot].status.store(u32::from(!sound), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::block::Mix;

    #[test]
    fn data_survives_the_ring() {
        for (depth, mix) in [(1, Mix::Read), (32, Mix::Mixed), (SLOTS as u16, Mix::Write)] {
            let args = LoadArgs::closed(depth, 0.1, 0.0, crate::machine::core_pair().0);
            let block = BlockArgs { mix, full_check: true, working_set_mib: 2, ..<_>::default() };
            // On a busy machine a window may pass without the other thread having run.
            let mut measured = (0..100)
                .map(|_| run(RingEcho::start(), "ring", "memory".into(), &args, &block).unwrap());
            let measured = measured.find(|m| m.iops > Some(0.0)).unwrap();
            assert!(measured.verified > 0);
            assert_eq!((measured.verify_failures, measured.errors), (0, 0), "depth {depth}");
        }
    }
}
