//! Front ends that try to hold up or bring down what they are connected to: each ends or breaks its
//! own disk by name, and the disk beside it, on the same worker, goes on.

use crate::io::{OK, options};
use crate::manual::{BYTES, GUEST, Manual, USER, gated, is_closed};
use crate::rig::{Content, Rig, io, until, wait};
use outboard::virtio::driver::{BlkDriver, DriverOp};
use outboard::virtio::driver_ring::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, DriverRing};
use outboard::virtio::fault::QueueFault;
use outboard_dma::EventFd;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VringConfigData};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

fn two_disks() -> Rig {
    let content = || Content::mem(512, 1 << 20, false);
    Rig::start(vec![(content(), 1), (content(), 1)])
}

/// A read works.
#[track_caller]
fn is_well(driver: &mut BlkDriver) {
    assert_eq!(io(driver, DriverOp::Read, 0, 0, 4096), (OK, 4097));
}

/// The file description is shared: its flags are the front end's to change at any moment.
#[test]
fn a_call_descriptor_that_would_block_holds_no_worker_up() {
    let rig = two_disks();
    let mut other = rig.connect(1, options(1, 4, false, true));
    let mut guest = Manual::connect(&rig.path(0), c"blocking-call");
    guest.start();
    guest.call.write(u64::MAX - 2).unwrap();
    let same = EventFd::same_as(&guest.call).unwrap();
    let flags = rustix::fs::fcntl_getfl(same.as_fd()).unwrap();
    rustix::fs::fcntl_setfl(same.as_fd(), flags - rustix::fs::OFlags::NONBLOCK).unwrap();
    for _ in 0..10 {
        guest.ring.want_calls(true);
        guest.read();
        is_well(&mut other);
    }
    assert!(rig.counters(0).calls.get() >= 10, "it was called every time");
}

/// A message of `code` with this body, as bytes.
fn message(code: u32, body: &[u8]) -> Vec<u8> {
    [&code.to_ne_bytes()[..], &1u32.to_ne_bytes(), &(body.len() as u32).to_ne_bytes(), body]
        .concat()
}

/// Descriptors of this process that name a file of this name.
fn descriptors(name: &str) -> usize {
    let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let links = all.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.filter(|link| link.to_string_lossy().contains(name)).count()
}

#[test]
fn descriptors_of_messages_that_make_no_sense_are_closed() {
    let rig = two_disks();
    let mut other = rig.connect(1, options(1, 4, false, true));
    let memfd = rustix::fs::memfd_create(c"flood-of-fds", rustix::fs::MemfdFlags::CLOEXEC);
    let file = File::from(memfd.unwrap());
    let one = file.as_raw_fd();
    let index = 0u64.to_ne_bytes();
    let table = [&1u32.to_ne_bytes()[..], &[0; 4], &[0; 32]].concat();
    for (bytes, count) in [
        // GET_FEATURES and a message that nobody knows, neither of which has descriptors.
        (message(1, &[]), 1),
        (message(99, &[]), 3),
        // One descriptor is wanted.
        (message(12, &index), 2),
        (message(32, &[0; 24]), 2),
        // As many as there are regions.
        (message(5, &table), 2),
        (message(5, &table), 32),
        // More than a message can have, and wrong sizes.
        (message(5, &table), 100),
        (message(5, &table[..20]), 1),
        (message(13, &[]), 1),
        (message(37, &[0; 8]), 1),
    ] {
        let mut stream = UnixStream::connect(rig.path(0)).unwrap();
        stream.send_with_fds(&[&bytes[..]], &vec![one; count]).unwrap();
        assert!(is_closed(&mut stream), "{count} descriptors with {bytes:?}");
    }
    // With the body instead of the header.
    let mut stream = UnixStream::connect(rig.path(0)).unwrap();
    let kick = message(12, &index);
    stream.write_all(&kick[..12]).unwrap();
    stream.send_with_fds(&[&kick[12..]], &[one; 5]).unwrap();
    assert!(is_closed(&mut stream));
    until("every copy is closed", || descriptors("flood-of-fds") == 1);
    is_well(&mut other);
}

#[test]
fn bytes_that_never_become_a_message_hold_neither_disks_nor_the_stop_up() {
    let rig = two_disks();
    let mut streams: Vec<UnixStream> = Vec::new();
    for cut in [3, 12, 15] {
        let mut stream = UnixStream::connect(rig.path((cut + 1) % 2)).unwrap();
        stream.write_all(&message(12, &[0; 8])[..cut]).unwrap();
        streams.push(stream);
    }
    let mut other = rig.connect(1, options(1, 4, false, true));
    is_well(&mut other);
    // The rig stops here, and the worker with it, while they hold on.
    drop(rig);
    for mut stream in streams {
        assert!(matches!(stream.read(&mut [0; 64]), Ok(0) | Err(_)));
    }
}

/// Two parts of a ring in one place: whatever the device reads there, it is the guest's nonsense.
#[test]
fn rings_that_overlap_hurt_their_own_disk_only() {
    let rig = two_disks();
    let mut other = rig.connect(1, options(1, 4, false, true));
    let setup = Manual::connect(&rig.path(0), c"overlap").ring.setup();
    let places = [setup.descriptors, setup.available, setup.used];
    for case in 0..27 {
        let pick = |at: usize| places[case / 3usize.pow(at as u32) % 3];
        let mut guest = Manual::connect(&rig.path(0), c"overlap");
        guest.share(&[guest.region]).unwrap();
        let addresses = VringConfigData {
            queue_max_size: setup.size,
            queue_size: setup.size,
            flags: 0,
            desc_table_addr: pick(0) & !15,
            used_ring_addr: pick(1) & !3,
            avail_ring_addr: pick(2),
            log_addr: None,
        };
        guest.frontend.set_vring_num(0, setup.size).unwrap();
        guest.frontend.set_vring_addr(0, &addresses).unwrap();
        guest.frontend.set_vring_kick(0, &guest.kick).unwrap();
        guest.frontend.set_vring_enable(0, true).unwrap();
        for _ in 0..20 {
            guest.offer_read();
            is_well(&mut other);
        }
        assert!(guest.frontend.get_vring_base(0).is_ok(), "it can be stopped");
    }
    assert_eq!(rig.counters(1).faults.total(), 0);
}

/// As many of the longest, deepest and most circular chains as a ring holds, again and again.
#[test]
fn floods_of_descriptors_starve_nobody() {
    let rig = two_disks();
    let mut other = rig.connect(1, options(1, 4, false, true));
    let mut driver = rig.connect(0, options(1, 4, true, true));
    let data = driver.data_address(0);
    // An indirect table as long as there can be, whose entries follow each other in a circle.
    let entries: Vec<u8> = (0..4096u64)
        .flat_map(|index| {
            let rest = 1 | u64::from(DESC_NEXT) << 32 | ((index + 1) % 4096) << 48;
            [data.to_le_bytes(), rest.to_le_bytes()].concat()
        })
        .collect();
    driver.write_data(0, 0, &entries);
    let ring = driver.ring_mut(0);
    for index in 0..128 {
        ring.describe(index, data, 65_535 * 16, DESC_INDIRECT, 0);
    }
    for round in 0..50 {
        let ring = driver.ring_mut(0);
        if round == 25 {
            // Then chains through the whole table, one byte each, in a circle.
            (0..128).for_each(|index| {
                ring.describe(index, data, 1, DESC_NEXT | DESC_WRITE, (index + 1) % 128);
            });
        }
        (0..128).for_each(|index| ring.offer(index));
        ring.publish();
        is_well(&mut other);
        let ring = driver.ring_mut(0);
        let mut ended = 0;
        until("the flood has passed", || {
            ended += std::iter::from_fn(|| ring.take()).count();
            ended == 128
        });
    }
    let faults = &rig.counters(0).faults;
    assert_eq!(faults.total(), 50 * 128, "{faults:?}");
    assert!(faults.get(QueueFault::Address) + faults.get(QueueFault::TooManySegments) > 0);
    assert_eq!(rig.counters(0).in_flight.get(), 0);
}

/// Everything about a ring that runs, and has I/O in flight, is told anew: nothing is lost.
#[test]
fn a_running_ring_can_be_told_anything_again() {
    let (rig, gate) = gated(64, 1);
    let mut guest = Manual::connect(&rig.path(0), c"told-again");
    guest.start();
    guest.read();
    for (round, what) in (0..40u32).zip([0, 1, 2, 3, 4, 5, 6, 7].into_iter().cycle()) {
        gate.closed.store(true, Ordering::Release);
        guest.offer_read();
        until("the I/O is in flight", || gate.waiting.load(Ordering::Acquire) == 1);
        let setup = guest.ring.setup();
        let addresses = VringConfigData {
            queue_max_size: setup.size,
            queue_size: setup.size,
            flags: 0,
            desc_table_addr: setup.descriptors,
            used_ring_addr: setup.used,
            avail_ring_addr: setup.available,
            log_addr: None,
        };
        let base = round as u16 + 2;
        std::thread::scope(|scope| {
            let (guest, gate) = (&mut guest, &gate);
            scope.spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(2));
                gate.closed.store(false, Ordering::Release);
            });
            let features = guest.frontend.get_features().unwrap();
            match what {
                0 => guest.frontend.set_vring_num(0, setup.size).unwrap(),
                1 => guest.frontend.set_vring_base(0, base).unwrap(),
                2 => guest.frontend.set_vring_addr(0, &addresses).unwrap(),
                3 => guest.frontend.set_vring_kick(0, &guest.kick).unwrap(),
                4 => guest.frontend.set_vring_call(0, &guest.call).unwrap(),
                5 => guest.frontend.set_vring_err(0, &guest.call).unwrap(),
                6 => guest.frontend.set_features(features).unwrap(),
                _ => guest.share(&[guest.region]).unwrap(),
            }
        });
        until("the I/O in flight has ended", || guest.ring.take() == Some((0, 513)));
        assert_eq!(guest.ring.take(), None);
    }
    assert_eq!(rig.counters(0).reads.get(), 41);
    assert_eq!(rig.counters(0).faults.total(), 0);
}

/// Rings where no memory is, at the edges of what is there, and of impossible sizes.
#[test]
fn rings_that_are_nowhere_end_their_connection_by_name() {
    let rig = two_disks();
    let mut other = rig.connect(1, options(1, 4, false, true));
    let bytes = DriverRing::bytes(16);
    for (size, at) in [
        (16, USER + BYTES - 16),
        (16, USER - 16),
        (16, GUEST),
        (16, u64::MAX - 15),
        (1024, USER + BYTES - bytes),
        (2048, USER),
        (3, USER),
    ] {
        let mut guest = Manual::connect(&rig.path(0), c"nowhere");
        guest.share(&[guest.region]).unwrap();
        let addresses = VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: 0,
            desc_table_addr: at,
            used_ring_addr: at,
            avail_ring_addr: at,
            log_addr: None,
        };
        let told = guest.frontend.set_vring_num(0, size).is_ok()
            && guest.frontend.set_vring_addr(0, &addresses).is_ok()
            && guest.frontend.set_vring_kick(0, &guest.kick).is_ok();
        let started = told && guest.frontend.set_vring_enable(0, true).is_ok();
        assert!(!started, "a ring of {size} at {at:#x} started");
        until("its connection has ended", || guest.frontend.get_features().is_err());
    }
    is_well(&mut other);
    let mut again = rig.connect(0, options(1, 4, false, true));
    again.submit(DriverOp::Read, 0, 0, 512);
    again.kick();
    assert_eq!(wait(&mut again).status, OK);
}
