//! Guest memory with anything in it: the queue, the parser and a whole disk survive, return only
//! what is inside the guest, and give back everything they took.

use crate::guest::*;
use crate::rig::{Content, turn};
use outboard::virtio::blk;
use outboard::virtio::driver_ring::DriverRing;
use outboard::virtio::fault::QueueFault;
use outboard::virtio::mailbox::{DiskMessage, Ring, mailbox};
use outboard::virtio::queue::{DescriptorChain, Queue, QueueError};
use outboard::volume::disk::Disk;
use outboard::volume::{Dones, Status};
use outboard_dma::{GuestMemory, Segment};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the fuzz targets have reached, so that one which reaches nothing fails.
struct Reached {
    ok: AtomicU64,
    refused: AtomicU64,
    faults: [AtomicU64; QueueFault::ALL.len()],
}

static REACHED: Reached = Reached {
    ok: AtomicU64::new(0),
    refused: AtomicU64::new(0),
    faults: [const { AtomicU64::new(0) }; QueueFault::ALL.len()],
};

const SIZE: u16 = 16;

/// One descriptor from the fuzzer: address, length, flags, next.
type Rough = (u32, u16, u8, u8);

/// Guest memory with anything in it.
fn fill(
    available: u16,
    heads: &[u8],
    rough: &[Rough],
    content: &[u8],
) -> (Arc<GuestMemory>, DriverRing) {
    let memory = memory();
    let mut ring = DriverRing::new(&memory, SIZE, USER, true, true).unwrap();
    let refine = |(address, len, flags, next): &Rough| {
        // Mostly near the regions' borders, sometimes anywhere.
        let address = match address >> 30 {
            0 => GUEST + u64::from(address % (3 * REGION_BYTES as u32)),
            1 => DATA + u64::from(address % 64) * 16,
            2 => GAP - 64 + u64::from(address % 128),
            _ => u64::from(*address) << 32 | u64::from(*address),
        };
        let len = if len >> 15 == 0 { u32::from(*len) % 1100 } else { u32::from(*len) << 16 };
        (address, len, u16::from(*flags), u16::from(*next) % 20)
    };
    for (index, part) in (0..SIZE).zip(rough) {
        let (address, len, flags, next) = refine(part);
        ring.describe(index, address, len, flags, next);
    }
    let tables: Vec<_> = rough.iter().map(refine).take(64).collect();
    write(&memory, GUEST + REGION_BYTES, &content[..content.len().min(4096)]);
    write_table(&memory, DATA, &tables);
    for head in heads.iter().take(16) {
        ring.offer(u16::from(*head) % 18);
    }
    ring.publish_index(available);
    (memory, ring)
}

/// What the queue and the parser return is inside the guest.
fn stays_inside(memory: &Arc<GuestMemory>, ring: &DriverRing) {
    let bounds: Vec<_> = memory
        .regions()
        .map(|region| {
            let start = memory.segment(region.guest_address, 1).unwrap().address() as usize;
            start..start + region.bytes as usize
        })
        .collect();
    let inside = |segment: &Segment| {
        let start = segment.address() as usize;
        bounds.iter().any(|range| range.contains(&start) && start + segment.len() <= range.end)
    };
    let mut queue = Queue::new(memory, &ring.setup()).unwrap();
    let mut chain = DescriptorChain::default();
    let waiting = queue.fetch().unwrap_or(0);
    for _ in 0..waiting {
        match queue.pop(&mut chain) {
            Ok(Some(head)) => {
                assert!(head < SIZE);
                assert!(chain.readable().iter().chain(chain.writable()).all(inside));
                if let Ok(request) = blk::parse(&chain) {
                    assert!(request.data.iter().chain([&request.status]).all(inside));
                }
            }
            Ok(None) => panic!("fetch promised more"),
            Err(QueueError::Chain { head, .. }) => assert!(head < SIZE),
            Err(QueueError::Ring(_)) => break,
        }
    }
}

/// A disk takes everything there is, and ends it.
fn ends_everything(memory: &Arc<GuestMemory>, ring: &DriverRing) {
    let (control, inbox) = mailbox(1);
    let mut disk = Disk::new(0, "fuzz", 1, inbox);
    let counters = disk.counters();
    let mut volume = Content::mem(512, 64 << 10, false);
    let queue = Queue::new(memory, &ring.setup()).unwrap();
    let with = Ring { queue, kick: None, call: None, error: None };
    control.send(DiskMessage::Start { ring: 0, with }).unwrap();
    let mut done = Dones::new();
    for _ in 0..8 {
        turn(&mut disk, &mut volume, &mut done);
    }
    assert_eq!(disk.in_flight(), 0);
    assert_eq!(memory.holds(), 0);
    assert_eq!(turn(&mut disk, &mut volume, &mut done), 0, "the queue is not stuck");
    control.send(DiskMessage::Stop { ring: 0 }).unwrap();
    turn(&mut disk, &mut volume, &mut done);
    assert!(control.returns.try_recv().is_ok());
    assert_eq!(counters.rings.get(), 0);
    REACHED.ok.fetch_add(counters.status(Status::Ok), Ordering::Relaxed);
    REACHED.refused.fetch_add(counters.status(Status::OutOfRange), Ordering::Relaxed);
    for fault in QueueFault::ALL {
        REACHED.faults[*fault as usize].fetch_add(counters.faults.get(*fault), Ordering::Relaxed);
    }
}

fn survive(available: u16, heads: &[u8], rough: &[Rough], content: &[u8]) {
    let (memory, ring) = fill(available, heads, rough, content);
    stays_inside(&memory, &ring);
    ends_everything(&memory, &ring);
}

#[test]
fn fuzz_guest_memory() {
    bolero::check!().with_type::<(u16, Vec<u8>, Vec<Rough>, Vec<u8>)>().for_each(
        |(available, heads, rough, content)| {
            survive(available % 20, heads, rough, content);
        },
    );
}

/// The same with chains that are nearly right, so that requests reach the disk.
#[test]
fn fuzz_nearly_right_requests() {
    bolero::check!().with_type::<(Vec<Rough>, Vec<u8>, u8)>().for_each(|(noise, content, kind)| {
        let kind = kind % 15;
        let mut header = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        header.extend(content.iter().chain(&[0; 8]).take(2));
        header.extend([0; 6]);
        let first = REGION_BYTES as u32;
        let mut rough: Vec<Rough> = Vec::new();
        // Discard and write-zeroes have one range of 16 bytes.
        let (bytes, most) = if matches!(kind, 11 | 13) { (16, 1) } else { (512, 3) };
        for (index, part) in (0u8..).zip(noise.iter().take(most)) {
            let writable = if kind % 2 == 0 { 2 } else { 0 };
            rough.push((
                (part.0 & 0x3fff_ffff) % (2 * REGION_BYTES as u32 - 512),
                bytes,
                1 | writable,
                index + 2,
            ));
        }
        rough.insert(0, (first, 16, 1, 1));
        let last = rough.len() as u8;
        rough.push((first + 64, 1, 2, 0));
        rough[usize::from(last) - 1].3 = last;
        if let Some(part) = noise.first() {
            // One thing wrong, perhaps.
            let at = usize::from(part.3) % rough.len();
            match part.2 % 5 {
                0 => rough[at].1 = part.1,
                1 => rough[at].2 = part.2,
                2 => rough[at].3 = part.3,
                3 => rough[at].0 = part.0,
                _ => {}
            }
        }
        survive(1 + u16::from(kind % 3), &[0, 0, 0], &rough, &header);
    });
    let faults: Vec<_> = QueueFault::ALL
        .iter()
        .filter(|fault| REACHED.faults[**fault as usize].load(Ordering::Relaxed) > 0)
        .collect();
    let (ok, refused) = (&REACHED.ok, &REACHED.refused);
    let (ok, refused) = (ok.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
    assert!(ok > 20 && refused > 20 && faults.len() >= 6, "{ok} {refused} {faults:?}");
    eprintln!("reached: {ok} ok, {refused} refused, {faults:?}");
}
