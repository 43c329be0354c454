//! Every fault has its name and leaves the queue usable, and every layout means the same.

use crate::guest::*;
use outboard::virtio::blk::{self, BlkKind};
use outboard::virtio::driver_ring::DriverRing;
use outboard::virtio::fault::QueueFault;
use outboard::virtio::queue::{
    DescriptorChain, MAX_CHAIN_SEGMENTS, MAX_QUEUE_SIZE, Queue, QueueError, QueueSetup,
};
use outboard_dma::{GuestMemory, GuestRegion, Segment};
use outboard_sim::Rng;
use std::fs::File;
use std::sync::Arc;

/// Pops the chain of `descriptors` that begins at descriptor 0.
fn pop(descriptors: &[(u64, u32, u16, u16)], table: &[(u64, u32, u16, u16)]) -> Option<QueueFault> {
    let (memory, mut ring, mut queue) = ends(128, true);
    for (index, (address, len, flags, next)) in (0..).zip(descriptors) {
        ring.describe(index, *address, *len, *flags, *next);
    }
    write_table(&memory, DATA, table);
    ring.offer(0);
    ring.publish();
    assert_eq!(queue.fetch(), Ok(1));
    let mut chain = DescriptorChain::default();
    let got = queue.pop(&mut chain);
    assert_eq!(queue.pop(&mut chain), Ok(None), "one chain, one answer");
    match got {
        Ok(head) => {
            assert_eq!(head, Some(0));
            None
        }
        Err(QueueError::Chain { head, fault }) => {
            assert_eq!(head, 0);
            queue.push(head, 0);
            queue.publish();
            assert_eq!(ring.take(), Some((0, 0)), "a bad chain comes back");
            Some(fault)
        }
        Err(QueueError::Ring(fault)) => panic!("{fault:?} broke the ring"),
    }
}

#[test]
fn every_bad_chain_has_its_name_and_comes_back() {
    use QueueFault::*;
    let many = MAX_CHAIN_SEGMENTS as u16;
    let line = |count: u16| -> Vec<_> {
        (0..count).map(|i| (DATA, 1, if i + 1 < count { N } else { 0 }, i + 1)).collect()
    };
    let circle: Vec<_> = vec![(DATA, 1, N, 1), (DATA, 1, N, 0)];
    // Chains in the queue's own table.
    for (descriptors, want) in [
        (vec![(DATA, 1, 0, 0)], None),
        (vec![(DATA, 1, N, 1), (DATA, 1, W, 0)], None),
        (vec![(DATA, 1, N, 128)], Some(NextOutOfRange)),
        (vec![(DATA, 1, N, 127), (0, 0, 0, 0)], Some(ZeroLength)),
        (vec![(DATA, 0, W, 0)], Some(ZeroLength)),
        (vec![(DATA, 1, N | W, 1), (DATA, 1, 0, 0)], Some(Direction)),
        (vec![(GUEST - 1, 1, 0, 0)], Some(Address)),
        (vec![(GAP - 1, 1, 0, 0)], None),
        (vec![(GAP - 1, 2, 0, 0)], Some(Address)),
        (vec![(GUEST + REGION_BYTES - 1, 2, 0, 0)], None),
        (vec![(END - 1, 1, 0, 0)], None),
        (vec![(END - 1, 2, 0, 0)], Some(Address)),
        (vec![(END, 1, 0, 0)], Some(Address)),
        (vec![(u64::MAX, 1, 0, 0)], Some(Address)),
        (vec![(u64::MAX, 2, 0, 0)], Some(Address)),
        (vec![(DATA, u32::MAX, 0, 0)], Some(Address)),
        (line(many), None),
        (line(many + 1), Some(TooManySegments)),
        (circle.clone(), Some(TooManySegments)),
        (vec![(DATA, 16, I | N, 1)], Some(IndirectNext)),
        (vec![(DATA, 0, I, 0)], Some(IndirectLength)),
        (vec![(DATA, 15, I, 0)], Some(IndirectLength)),
        (vec![(DATA, 17, I, 0)], Some(IndirectLength)),
        (vec![(DATA, 1 << 20, I, 0)], Some(IndirectLength)),
        (vec![(GAP, 16, I, 0)], Some(Address)),
        (vec![(GAP - 8, 16, I, 0)], Some(Address)),
        (vec![(u64::MAX - 7, 16, I, 0)], Some(Address)),
    ] {
        assert_eq!(pop(&descriptors, &[(DATA, 1, 0, 0)]), want, "{descriptors:?}");
    }
    // Chains in an indirect table, alone and behind a direct descriptor.
    for (table, want) in [
        (vec![(DATA, 1, 0, 0)], None),
        (vec![(DATA, 1, N, 1), (DATA, 1, W, 0)], None),
        (vec![(DATA, 1, N, 1)], Some(NextOutOfRange)),
        (vec![(DATA, 1, N, 0)], Some(Loop)),
        (circle, Some(Loop)),
        (vec![(DATA, 16, I, 0)], Some(IndirectNested)),
        (vec![(DATA, 0, 0, 0)], Some(ZeroLength)),
        (line(many), None),
        (line(many + 1), Some(TooManySegments)),
    ] {
        let bytes = table.len() as u32 * 16;
        assert_eq!(pop(&[(DATA, bytes, I, 0)], &table), want, "{table:?}");
        if table.len() < usize::from(many) {
            let direct = [(DATA, 1, N, 1), (DATA, bytes, I, 0)];
            assert_eq!(pop(&direct, &table), want, "behind one more: {table:?}");
        }
    }
}

/// 5 GiB without a page behind them: lengths cost nothing.
fn huge() -> Arc<GuestMemory> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create(c"huge", flags).unwrap());
    file.set_len(5 << 30).unwrap();
    let region =
        GuestRegion { guest_address: 0, bytes: 5 << 30, user_address: 0, file_offset_bytes: 0 };
    GuestMemory::map(&[(region, file)]).unwrap()
}

#[test]
fn a_request_has_a_limit() {
    let memory = huge();
    let most = blk::MAX_REQUEST_BYTES as u32;
    for (bytes, want) in [(most, None), (most + 1, Some(QueueFault::RequestTooLong))] {
        let mut ring = DriverRing::new(&memory, 8, 0, false, false).unwrap();
        let mut queue = Queue::new(&memory, &ring.setup()).unwrap();
        ring.describe(0, DATA, 16, N, 1);
        ring.describe(1, 1 << 30, bytes, N | W, 2);
        ring.describe(2, DATA + 16, 1, W, 0);
        ring.offer(0);
        ring.publish();
        queue.fetch().unwrap();
        let mut chain = DescriptorChain::default();
        assert_eq!(queue.pop(&mut chain), Ok(Some(0)));
        assert_eq!(blk::parse(&chain).err().map(|bad| bad.fault), want);
        ring.publish_index(0);
    }
}

#[test]
fn more_than_four_gigabytes_is_too_long() {
    let memory = huge();
    for (second, want) in [(1, Ok(Some(0))), (2, Err(QueueFault::TooLong))] {
        let mut ring = DriverRing::new(&memory, 8, 0, false, false).unwrap();
        let mut queue = Queue::new(&memory, &ring.setup()).unwrap();
        ring.describe(0, 0, u32::MAX - 1, N, 1);
        ring.describe(1, 0, second, 0, 0);
        ring.offer(0);
        ring.publish();
        queue.fetch().unwrap();
        let got = queue.pop(&mut DescriptorChain::default());
        assert_eq!(got, want.map_err(|fault| QueueError::Chain { head: 0, fault }));
        ring.publish_index(0);
    }
}

#[test]
fn a_loop_through_a_small_queue_is_a_loop() {
    let (_memory, mut ring, mut queue) = ends(4, false);
    for index in 0..4 {
        ring.describe(index, DATA, 1, N, (index + 1) % 4);
    }
    ring.offer(2);
    ring.publish();
    assert_eq!(queue.fetch(), Ok(1));
    let want = QueueError::Chain { head: 2, fault: QueueFault::Loop };
    assert_eq!(queue.pop(&mut DescriptorChain::default()), Err(want));
}

#[test]
fn indirect_must_have_been_agreed_on() {
    let memory = memory();
    let mut ring = DriverRing::new(&memory, 8, USER, false, false).unwrap();
    let mut queue = Queue::new(&memory, &ring.setup()).unwrap();
    ring.describe(0, DATA, 16, I, 0);
    ring.offer(0);
    ring.publish();
    queue.fetch().unwrap();
    let want = QueueError::Chain { head: 0, fault: QueueFault::IndirectNotOffered };
    assert_eq!(queue.pop(&mut DescriptorChain::default()), Err(want));
}

#[test]
fn indices_without_sense_break_the_ring_for_good() {
    let mut chain = DescriptorChain::default();
    for (jump, want) in [(8, Ok(8)), (9, Err(QueueError::Ring(QueueFault::AvailJump)))] {
        let (_memory, mut ring, mut queue) = ends(8, true);
        ring.publish_index(jump);
        assert_eq!(queue.fetch(), want);
        if want.is_err() {
            ring.publish_index(0);
            assert_eq!(queue.fetch(), want, "it stays broken");
            assert_eq!(queue.pop(&mut chain), Err(QueueError::Ring(QueueFault::AvailJump)));
            assert!(!queue.arm(), "nothing to stay awake for");
        }
    }
    let (_memory, mut ring, mut queue) = ends(8, true);
    ring.offer(8);
    ring.publish();
    assert_eq!(queue.fetch(), Ok(1));
    let want = QueueError::Ring(QueueFault::HeadOutOfRange);
    assert_eq!(queue.pop(&mut chain), Err(want));
    assert_eq!(queue.broken(), Some(QueueFault::HeadOutOfRange));
}

#[test]
fn impossible_queues_are_refused() {
    let memory = memory();
    let good = DriverRing::new(&memory, 128, USER, true, true).unwrap().setup();
    assert!(Queue::new(&memory, &good).is_ok());
    let last = USER + 3 * REGION_BYTES;
    for bad in [
        QueueSetup { size: 0, ..good },
        QueueSetup { size: 3, ..good },
        QueueSetup { size: MAX_QUEUE_SIZE * 2, ..good },
        QueueSetup { descriptors: USER + 8, ..good },
        QueueSetup { descriptors: USER - 16, ..good },
        QueueSetup { descriptors: last - 128 * 16 + 16, ..good },
        QueueSetup { available: USER + 1, ..good },
        QueueSetup { available: last - 128 * 2, ..good },
        QueueSetup { used: USER + 2, ..good },
        QueueSetup { used: last - 128 * 8 - 4, ..good },
        QueueSetup { used: u64::MAX - 3, ..good },
        QueueSetup { descriptors: USER + REGION_BYTES - 16, ..good },
    ] {
        let error = Queue::new(&memory, &bad).expect_err("refused").to_string();
        assert!(error.contains("queue of") || error.contains("front-end address"), "{error}");
    }
}

/// A request as the driver's bytes, cut into descriptors at the given places.
fn cut(at: u64, bytes: u32, cuts: &[u32], flags: u16, out: &mut Vec<(u64, u32, u16, u16)>) {
    let mut borders = vec![0, bytes];
    borders.extend(cuts.iter().filter(|cut| (1..bytes).contains(*cut)));
    borders.sort_unstable();
    borders.dedup();
    for pair in borders.windows(2) {
        let next = out.len() as u16 + 1;
        out.push((at + u64::from(pair[0]), pair[1] - pair[0], flags | N, next));
    }
}

fn bytes_of(segments: &[Segment]) -> Vec<u8> {
    let mut all = Vec::new();
    for segment in segments {
        let mut part = vec![0; segment.len()];
        assert!(segment.copy_to(0, &mut part));
        all.extend(part);
    }
    all
}

#[test]
fn a_request_means_the_same_in_any_layout() {
    let mut rng = Rng::new(3);
    for round in 0..2_000 {
        let (memory, mut ring, mut queue) = ends(128, false);
        let write_request = round % 2 == 0;
        let data = 1 + rng.below(3000) as u32;
        let sector = rng.next_u64();
        let mut request = u32::from(write_request).to_le_bytes().to_vec();
        request.extend([0; 4]);
        request.extend(sector.to_le_bytes());
        // The readable part ends in one region and goes on in the next.
        let readable = GUEST + REGION_BYTES - 1000;
        let writable = FAR + rng.below(4000);
        let mut sent = vec![0; data as usize];
        rng.fill(&mut sent);
        if write_request {
            request.extend(&sent);
        }
        write(&memory, readable, &request);
        let writable_bytes = if write_request { 1 } else { data + 1 };
        let cuts = |rng: &mut Rng, bytes: u32| -> Vec<u32> {
            (0..rng.below(16)).map(|_| rng.below(u64::from(bytes)) as u32).collect()
        };
        let mut descriptors = Vec::new();
        let reads = cuts(&mut rng, request.len() as u32);
        cut(readable, request.len() as u32, &reads, 0, &mut descriptors);
        let writes = cuts(&mut rng, writable_bytes);
        cut(writable, writable_bytes, &writes, W, &mut descriptors);
        let last = descriptors.last_mut().unwrap();
        last.2 &= !N;
        for (index, (address, len, flags, next)) in (0..).zip(&descriptors) {
            ring.describe(index, *address, *len, *flags, *next);
        }
        ring.offer(0);
        ring.publish();
        queue.fetch().unwrap();
        let mut chain = DescriptorChain::default();
        assert_eq!(queue.pop(&mut chain), Ok(Some(0)));
        let parsed = blk::parse(&chain).unwrap();
        assert_eq!(parsed.sector, sector);
        assert!(parsed.status.copy_from(0, &[0xa5]));
        let mut status = [0];
        assert!(memory.read(writable + u64::from(writable_bytes) - 1, &mut status));
        assert_eq!(status, [0xa5], "the status is the last writable byte");
        if write_request {
            assert_eq!(parsed.kind, BlkKind::Write);
            assert!(bytes_of(&parsed.data) == sent);
        } else {
            assert_eq!(parsed.kind, BlkKind::Read);
            assert_eq!(parsed.data.iter().map(Segment::len).sum::<usize>(), data as usize);
            assert_eq!(parsed.data[0].address(), memory.segment(writable, 1).unwrap().address());
        }
    }
}

#[test]
fn a_request_without_sense_has_its_name() {
    use QueueFault::*;
    let header = |kind: u32| [&kind.to_le_bytes()[..], &[0; 12]].concat();
    let pieces = |count: u32, flags: u16| -> Vec<(u64, u32, u16, u16)> {
        (0..count).map(|_| (DATA + 4096, 512, flags, 0)).collect()
    };
    let status = [(DATA + 8192, 1, W, 0)];
    let head = [(DATA, 16, 0, 0)];
    for (kind, parts, want, told) in [
        (1, [&head[..], &status[..]].concat(), None, true),
        (0, [&head[..], &pieces(34, W), &status].concat(), None, true),
        (0, [&head[..], &pieces(35, W), &status].concat(), Some(TooManySegments), true),
        (1, [&head[..], &pieces(35, 0), &status].concat(), Some(TooManySegments), true),
        (0, vec![(DATA, 15, 0, 0), status[0]], Some(Header), true),
        (0, status.to_vec(), Some(Header), true),
        (0, vec![(DATA, 15, 0, 0)], Some(Header), false),
        (1, head.to_vec(), Some(Status), false),
        (0, vec![(DATA, 17, 0, 0), status[0]], Some(Data), true),
        (1, [&head[..], &pieces(1, W), &status].concat(), Some(Data), true),
        (8, [&head[..], &pieces(1, 0), &status].concat(), Some(Data), true),
        (4, [&head[..], &pieces(1, 0), &status].concat(), None, true),
        (77, [&head[..], &pieces(1, W), &status].concat(), None, true),
    ] {
        let (memory, mut ring, mut queue) = ends(128, false);
        write(&memory, DATA, &header(kind));
        let count = parts.len() as u16;
        for (index, (address, len, flags, _)) in (0..).zip(&parts) {
            let more = if index + 1 < count { N } else { 0 };
            ring.describe(index, *address, *len, flags | more, index + 1);
        }
        ring.offer(0);
        ring.publish();
        queue.fetch().unwrap();
        let mut chain = DescriptorChain::default();
        assert_eq!(queue.pop(&mut chain), Ok(Some(0)));
        let got = blk::parse(&chain);
        assert_eq!(got.as_ref().err().map(|bad| bad.fault), want, "type {kind}, {count} parts");
        if let Err(bad) = got {
            assert_eq!(bad.status.is_some(), told);
        }
    }
}
