//! Drivers that are out of their mind hurt only themselves.

use crate::io::{IOERR, OK, options};
use crate::rig::{Content, Rig, io, until, wait};
use outboard::virtio::driver::{BlkDriver, DriverOp};
use outboard::virtio::driver_ring::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE};
use outboard::virtio::fault::QueueFault;
use outboard_sim::Rng;

/// Address, length, flags, next.
type Described = (u64, u32, u16, u16);

const W: u16 = DESC_WRITE;
const N: u16 = DESC_NEXT;

fn two_disks() -> Rig {
    let content = || Content::mem(512, 1 << 20, false);
    Rig::start(vec![(content(), 1), (content(), 1)])
}

/// A read works.
fn is_well(driver: &mut BlkDriver) {
    assert_eq!(io(driver, DriverOp::Read, 0, 0, 4096), (OK, 4097));
}

#[test]
fn a_bad_chain_ends_and_the_queue_goes_on() {
    let rig = two_disks();
    let mut driver = rig.connect(0, options(1, 4, true, true));
    let mut other = rig.connect(1, options(1, 4, false, true));
    let data = driver.data_address(3);
    // Slots use the first four descriptors only.
    let cases: [(QueueFault, &[Described]); 8] = [
        (QueueFault::NextOutOfRange, &[(data, 16, N, 999)]),
        (QueueFault::TooManySegments, &[(data, 16, N, 97), (data, 16, N, 96)]),
        (QueueFault::Address, &[(0, 16, 0, 0)]),
        (QueueFault::Address, &[(data, u32::MAX, W, 0)]),
        (QueueFault::ZeroLength, &[(data, 0, 0, 0)]),
        (QueueFault::Direction, &[(data, 16, W | N, 97), (data, 16, 0, 0)]),
        (QueueFault::IndirectNested, &[(data, 16, DESC_INDIRECT, 0)]),
        (QueueFault::Header, &[(data, 1, W, 0)]),
    ];
    // What an indirect descriptor finds at `data`: one more of its kind.
    let mut nested = data.to_le_bytes().to_vec();
    nested.extend([16, 0, 0, 0, 4, 0, 0, 0]);
    driver.write_data(3, 0, &nested);
    for (fault, chain) in cases {
        let before = rig.counters(0).faults.get(fault);
        for (index, (address, len, flags, next)) in (96..).zip(chain) {
            driver.ring_mut(0).describe(index, *address, *len, *flags, *next);
        }
        driver.ring_mut(0).offer(96);
        driver.ring_mut(0).publish();
        until("the fault is counted", || rig.counters(0).faults.get(fault) == before + 1);
        is_well(&mut driver);
        is_well(&mut other);
    }
    assert_eq!(rig.counters(1).faults.total(), 0);
    assert_eq!(rig.counters(0).in_flight.get(), 0);
}

#[test]
fn a_request_with_a_place_for_its_status_is_told() {
    let rig = two_disks();
    let mut driver = rig.connect(0, options(1, 4, false, true));
    // A write whose data is writable: in the wrong direction, and its last byte is the status.
    driver.submit(DriverOp::Raw(1), 0, 0, 512);
    driver.kick();
    let completion = wait(&mut driver);
    assert_eq!((completion.status, completion.written), (IOERR, 1));
    assert_eq!(rig.counters(0).faults.get(QueueFault::Data), 1);
}

#[test]
fn a_wild_index_breaks_that_ring_until_it_is_set_up_again() {
    let rig = two_disks();
    let mut other = rig.connect(1, options(1, 4, true, true));
    for (fault, index) in [(QueueFault::AvailJump, 40_000), (QueueFault::HeadOutOfRange, 1)] {
        let mut driver = rig.connect(0, options(1, 4, true, true));
        driver.ring_mut(0).offer(5_000);
        driver.ring_mut(0).publish_index(index);
        until("the ring is broken", || rig.counters(0).faults.get(fault) == 1);
        is_well(&mut other);
        assert!(driver.is_connected(), "it can still be told to reset");
        assert!(driver.stop(0).is_ok(), "a broken ring can be stopped");
        drop(driver);
        let mut again = rig.connect(0, options(1, 4, true, true));
        is_well(&mut again);
    }
}

#[test]
fn scribbling_over_the_rings_while_they_are_read_hurts_nobody_else() {
    let rig = two_disks();
    let mut other = rig.connect(1, options(1, 4, true, true));
    let broken = || rig.counters(0).faults.get(QueueFault::HeadOutOfRange);
    for seed in 0..20 {
        let before = broken();
        let is_broken = || broken() > before;
        let mut rng = Rng::new(seed);
        let mut driver = rig.connect(0, options(1, 4, true, true));
        let data = driver.data_address(0);
        let mut waiting = 0;
        for _ in 0..2_000 {
            let address = match rng.below(4) {
                0 => rng.next_u64(),
                _ => data - 8192 + rng.below(16384),
            };
            let (len, flags) = (rng.below(2000) as u32, rng.below(8) as u16);
            let ring = driver.ring_mut(0);
            ring.describe(rng.below(128) as u16, address, len, flags, rng.below(140) as u16);
            ring.offer(if rng.chance(300) { 128 } else { rng.below(128) as u16 });
            waiting += 1;
            if rng.chance(300_000) {
                ring.publish();
            }
            // Not more than fits; a ring that is broken meanwhile gives nothing back.
            while waiting > 100 && !is_broken() {
                ring.publish();
                waiting -= u32::from(ring.take().is_some());
            }
        }
        is_well(&mut other);
        drop(driver);
        until("its ring is gone", || rig.counters(0).rings.get() == 0);
    }
    let faults = &rig.counters(0).faults;
    let kinds = QueueFault::ALL.iter().filter(|fault| faults.get(**fault) > 0).count();
    assert!(faults.total() > 5_000 && kinds >= 8, "{faults:?}");
    assert_eq!(rig.counters(0).in_flight.get(), 0);
    is_well(&mut rig.connect(0, options(1, 4, true, true)));
}
