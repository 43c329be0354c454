//! Front ends that come, go, change their mind, and die.

use crate::io::{OK, options};
use crate::manual::{BYTES, GUEST, Manual, USER, gated, is_closed, mappings, share};
use crate::rig::{Content, PATIENCE, Rig, io, turn, until, wait};
use outboard::virtio::blk::BlkShape;
use outboard::virtio::driver::{BlkDriver, DriverOp};
use outboard::virtio::driver_ring::DriverRing;
use outboard::virtio::fault::QueueFault;
use outboard::virtio::mailbox::mailbox;
use outboard::virtio::vhost_user::{DiskLink, Session, is_harmless};
use outboard::volume::Dones;
use outboard::volume::disk::Disk;
use outboard_dma::{GuestMemory, GuestRegion};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserInflight, VhostUserMemoryRegion, VhostUserVringAddrFlags,
};
use vhost::vhost_user::{VhostUserBackendReqHandlerMut, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

#[test]
fn messages_may_come_in_qemus_order() {
    let rig = Rig::start(vec![(Content::mem(512, 1 << 20, false), 1)]);
    let mut guest = Manual::connect(&rig.path(0), c"qemu-order");
    let (first_call, frontend) = (EventFd::new(EFD_NONBLOCK).unwrap(), &mut guest.frontend);
    frontend.set_vring_call(0, &first_call).unwrap();
    for _ in 0..10 {
        frontend.set_vring_enable(0, true).unwrap();
    }
    assert_eq!(frontend.get_queue_num().unwrap(), 1);
    guest.share(&[guest.region]).unwrap();
    guest.describe_ring();
    guest.frontend.set_vring_kick(0, &guest.kick).unwrap();
    guest.ring.want_calls(true);
    guest.read();
    until("the first descriptor is signalled", || first_call.read().is_ok());
    guest.frontend.set_vring_call(0, &guest.call).unwrap();
    guest.ring.want_calls(true);
    guest.read();
    until("the second descriptor is signalled", || guest.call.read().is_ok());
    // Rings that are disabled do nothing until they are enabled again.
    guest.frontend.set_vring_enable(0, false).unwrap();
    assert_eq!(rig.counters(0).rings.get(), 0);
    guest.offer_read();
    guest.frontend.set_vring_enable(0, true).unwrap();
    until("what was offered meanwhile is done", || guest.ring.take().is_some());
    assert_eq!(guest.frontend.get_vring_base(0).unwrap(), 3);
    assert_eq!(rig.counters(0).rings.get(), 0);
    guest.frontend.set_vring_base(0, 3).unwrap();
    guest.frontend.set_vring_kick(0, &guest.kick).unwrap();
    guest.read();
}

#[test]
fn the_configuration_space_can_be_read_and_not_written() {
    let rig = Rig::start(vec![(Content::mem(4096, 1 << 20, false), 2)]);
    let mut guest = Manual::connect(&rig.path(0), c"config");
    let flags = VhostUserConfigFlags::empty();
    let (_, space) = guest.frontend.get_config(0, 60, flags, &[0; 60]).unwrap();
    assert_eq!(space[0..8], 2048u64.to_le_bytes(), "capacity in sectors");
    assert_eq!(space[12..16], 32u32.to_le_bytes(), "seg_max");
    assert_eq!(space[20..24], 4096u32.to_le_bytes(), "blk_size");
    assert_eq!(space[24..28], [0, 0, 1, 0], "topology");
    assert_eq!(space[34..36], 2u16.to_le_bytes(), "num_queues");
    assert_eq!(space[36..40], (1u32 << 21).to_le_bytes(), "max_discard_sectors");
    assert_eq!(space[40..44], 1u32.to_le_bytes(), "max_discard_seg");
    assert_eq!(space[44..48], 8u32.to_le_bytes(), "discard_sector_alignment");
    assert_eq!(space[48..52], (1u32 << 17).to_le_bytes(), "max_write_zeroes_sectors");
    assert_eq!(space[52..57], [1, 0, 0, 0, 0], "max_write_zeroes_seg, may_unmap");
    assert!(guest.frontend.set_config(0, flags, &[1]).is_err());
    let (_, space) = guest.frontend.get_config(250, 6, flags, &[0; 6]).unwrap();
    assert_eq!(space, [0; 6], "the connection goes on");

    let shape = BlkShape { bytes: 512, block_bytes: 512, read_only: false, queues: 1 };
    let link = DiskLink::new(mailbox(2).0, Arc::new(|| {}), PATIENCE);
    let mut session = Session::new(shape, Arc::new(Mutex::new(link)), 0);
    assert_eq!(session.get_config(0, 256, flags).unwrap().len(), 256);
    for (offset, size) in [(0, 257), (250, 7), (u32::MAX, 2)] {
        assert!(is_harmless(&session.get_config(offset, size, flags).unwrap_err()));
    }
}

#[test]
fn stopping_waits_for_what_is_in_flight() {
    let (rig, gate) = gated(64, 1);
    let mut driver = rig.connect(0, options(1, 8, true, true));
    gate.closed.store(true, Ordering::Release);
    for slot in 0..8 {
        driver.submit(DriverOp::Write, u64::from(slot) * 4096, slot, 4096);
    }
    driver.kick();
    until("all are in flight", || gate.waiting.load(Ordering::Acquire) == 8);
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| driver.stop(0).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!stopping.is_finished(), "it answered while I/Os were in flight");
        gate.closed.store(false, Ordering::Release);
        assert_eq!(stopping.join().unwrap(), 8);
    });
    for _ in 0..8 {
        assert_eq!(driver.poll().expect("ended before the answer").status, OK);
    }
    assert_eq!(rig.counters(0).rings.get(), 0);
}

#[test]
fn a_full_volume_keeps_the_order() {
    let (rig, gate) = gated(2, 1);
    let mut driver = rig.connect(0, options(1, 32, true, true));
    for round in 0..20u8 {
        gate.closed.store(true, Ordering::Release);
        for slot in 0..32 {
            driver.write_data(slot, 0, &[round ^ slot as u8; 512]);
            driver.submit(DriverOp::Write, 0, slot, 512);
        }
        driver.kick();
        until("the volume is full", || rig.counters(0).full.get() > u64::from(round));
        gate.closed.store(false, Ordering::Release);
        for slot in 0..32 {
            assert_eq!(wait(&mut driver).slot, slot);
        }
        assert_eq!(io(&mut driver, DriverOp::Read, 0, 0, 512).0, OK);
        let mut last = [0; 512];
        driver.read_data(0, 0, &mut last);
        assert_eq!(last, [round ^ 31; 512], "the last write of a place wins");
    }
}

#[test]
fn a_front_end_that_reconnects_finds_what_was_in_flight_ended_once() {
    let (rig, gate) = gated(64, 2);
    let path = rig.path(0);
    let mut driver = BlkDriver::connect_tracked(&path, options(2, 8, true, true)).unwrap();
    for round in 1..4u64 {
        gate.closed.store(true, Ordering::Release);
        for slot in 0..8 {
            driver.write_data(slot, 0, &[round as u8; 4096]);
            driver.submit(DriverOp::Write, u64::from(slot) * 4096, slot, 4096);
        }
        driver.kick();
        until("all are in flight", || gate.waiting.load(Ordering::Acquire) == 8);
        std::thread::scope(|scope| {
            let connecting = scope.spawn(|| driver.reconnect(&path).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(!connecting.is_finished(), "the old connection's I/O is in flight");
            gate.closed.store(false, Ordering::Release);
        });
        for _ in 0..8 {
            assert_eq!(wait(&mut driver).status, OK);
        }
        assert!(driver.poll().is_none());
        assert_eq!(io(&mut driver, DriverOp::Read, 4096, 1, 4096).0, OK);
        assert_eq!(rig.counters(0).writes.get(), 8 * round, "nothing is done twice");
    }
}

#[test]
fn a_guest_that_dies_in_the_middle_leaves_nothing_behind() {
    let (rig, gate) = gated(64, 1);
    for round in 0..10 {
        let mut guest = Manual::connect(&rig.path(0), c"dies-in-the-middle");
        guest.start();
        guest.read();
        gate.closed.store(true, Ordering::Release);
        guest.offer_read();
        until("the I/O is in flight", || gate.waiting.load(Ordering::Acquire) == 1);
        drop(guest);
        // The next one comes while the I/O of the last one has not ended.
        let mut next = rig.connect(0, options(1, 4, false, true));
        assert_eq!(mappings("dies-in-the-middle"), 1, "mapped while an I/O may write there");
        gate.closed.store(false, Ordering::Release);
        assert_eq!(io(&mut next, DriverOp::Read, 0, 0, 512).0, OK);
        drop(next);
        until("everything is gone", || {
            let counters = rig.counters(0);
            counters.rings.get() == 0
                && counters.in_flight.get() == 0
                && mappings("dies-in-the-middle") == 0
        });
        assert_eq!(rig.counters(0).reads.get(), 3 * (round + 1));
    }
}

#[test]
fn a_new_memory_table_is_used_after_the_old_ones_ios() {
    let (rig, gate) = gated(64, 1);
    let mut guest = Manual::connect(&rig.path(0), c"new-table");
    guest.start();
    guest.read();
    // The same bytes at other addresses, in two regions.
    let half = BYTES / 2;
    let lower = GuestRegion { bytes: half, ..guest.region };
    let upper = GuestRegion {
        guest_address: GUEST + half,
        bytes: half,
        user_address: USER + 8 * BYTES,
        file_offset_bytes: 4096 + half,
    };
    gate.closed.store(true, Ordering::Release);
    guest.offer_read();
    until("the I/O is in flight", || gate.waiting.load(Ordering::Acquire) == 1);
    std::thread::scope(|scope| {
        let (frontend, file) = (&guest.frontend, &guest.file);
        let sharing = scope.spawn(move || share(frontend, file, &[upper, lower]).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!sharing.is_finished(), "it answered while I/Os were in flight");
        gate.closed.store(false, Ordering::Release);
    });
    assert_eq!(guest.ring.take(), Some((0, 513)), "ended before the answer");
    guest.read();
    // A table that the rings are not in ends the connection; one that overlaps does too.
    assert!(guest.share(&[upper]).is_err());
    let mut guest = Manual::connect(&rig.path(0), c"new-table");
    assert!(guest.share(&[guest.region, guest.region]).is_err());
    assert!(guest.frontend.get_queue_num().is_err(), "the connection was closed");
    let mut next = rig.connect(0, options(1, 4, false, true));
    assert_eq!(io(&mut next, DriverOp::Read, 0, 0, 512).0, OK);
}

#[test]
fn memory_slots_come_and_go_after_the_ios_in_them() {
    let (rig, gate) = gated(64, 1);
    let mut guest = Manual::connect(&rig.path(0), c"memory-slots");
    assert_eq!(guest.frontend.get_max_mem_slots().unwrap(), 32);
    guest.describe_ring();
    guest.frontend.set_vring_kick(0, &guest.kick).unwrap();
    guest.frontend.set_vring_enable(0, true).unwrap();
    for _ in 0..3 {
        guest.frontend.add_mem_region(&guest.slot()).unwrap();
        assert_eq!(mappings("memory-slots"), 2, "ours and the device's");
        guest.read();
        gate.closed.store(true, Ordering::Release);
        guest.offer_read();
        until("the I/O is in flight", || gate.waiting.load(Ordering::Acquire) == 1);
        std::thread::scope(|scope| {
            let (slot, frontend) = (guest.slot(), &mut guest.frontend);
            let handle = slot.mmap_handle;
            let removing = scope.spawn(move || {
                let slot = VhostUserMemoryRegionInfo { mmap_handle: handle, ..slot };
                frontend.remove_mem_region(&slot).unwrap();
            });
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(!removing.is_finished(), "it answered while I/Os were in flight");
            assert_eq!(mappings("memory-slots"), 2, "mapped while an I/O may write there");
            gate.closed.store(false, Ordering::Release);
        });
        assert_eq!(guest.ring.take(), Some((0, 513)), "ended before the answer");
        assert_eq!(mappings("memory-slots"), 1);
        assert_eq!(rig.counters(0).rings.get(), 0, "a ring without memory is not driven");
    }
    let unknown = VhostUserMemoryRegionInfo { guest_phys_addr: 1 << 40, ..guest.slot() };
    assert!(guest.frontend.remove_mem_region(&unknown).is_err());
}

/// What QEMU sends when its guest boots, with more queues than the guest uses, and boots again.
#[test]
fn a_guest_that_reboots_starts_with_new_rings_and_a_new_inflight_region() {
    let rig = Rig::start(vec![(Content::mem(512, 1 << 20, false), 4)]);
    let mut guest = Manual::connect(&rig.path(0), c"reboots");
    for boot in 0..4 {
        for ring in 0..4 {
            let call = EventFd::new(EFD_NONBLOCK).unwrap();
            guest.frontend.set_vring_call(ring, &call).unwrap();
            guest.frontend.set_vring_enable(ring, true).unwrap();
        }
        let want = VhostUserInflight { num_queues: 4, queue_size: 128, ..Default::default() };
        let (about, file) = guest.frontend.get_inflight_fd(&want).unwrap();
        assert_eq!((about.num_queues, about.queue_size, about.mmap_offset), (4, 128, 0));
        assert!(file.metadata().unwrap().len() >= about.mmap_size);
        guest.frontend.set_inflight_fd(&about, file.as_raw_fd()).unwrap();
        let features = guest.frontend.get_features().unwrap();
        guest.frontend.set_features(features).unwrap();
        guest.start();
        (0..3).for_each(|_| guest.read());
        assert_eq!(rig.counters(0).rings.get(), 1);
        for ring in 0..4 {
            let base = guest.frontend.get_vring_base(ring).unwrap();
            assert_eq!(base, if ring == 0 { 3 } else { 0 });
        }
        assert_eq!(rig.counters(0).rings.get(), 0);
        if boot % 2 == 1 {
            guest.frontend.reset_device().unwrap();
        }
        guest.clear_ring();
    }
}

#[test]
fn inflight_regions_that_make_no_sense_end_their_connection_only() {
    let rig = Rig::start(vec![(Content::mem(512, 1 << 20, false), 2)]);
    let mut other = rig.connect(0, options(2, 8, false, true));
    let region = |num_queues, queue_size, mmap_size, mmap_offset| VhostUserInflight {
        num_queues,
        queue_size,
        mmap_size,
        mmap_offset,
    };
    for want in [region(3, 16, 0, 0), region(1, 1025, 0, 0), region(u16::MAX, u16::MAX, 0, 0)] {
        let mut guest = Manual::connect(&rig.path(0), c"inflight");
        assert!(guest.frontend.get_inflight_fd(&want).is_err(), "{}", want.queue_size);
        assert!(guest.frontend.get_queue_num().is_err(), "the connection was closed");
    }
    for kept in [
        region(1, 16, 64, 0),
        region(1, 16, 1 << 30, 0),
        region(1, 16, 4096, BYTES + 4096),
        region(1, 16, 4096, u64::MAX),
        region(3, 16, 4096, 0),
    ] {
        let mut guest = Manual::connect(&rig.path(0), c"inflight");
        let handle = guest.file.as_raw_fd();
        assert!(guest.frontend.set_inflight_fd(&kept, handle).is_err(), "{}", kept.mmap_size);
    }
    // One that another program wrote, and one for fewer entries than the ring has.
    for (wrong, size) in [(true, 16), (false, 8)] {
        let mut guest = Manual::connect(&rig.path(0), c"inflight");
        let region = region(1, size, 4096, BYTES);
        if wrong {
            std::os::unix::fs::FileExt::write_all_at(&guest.file, &[9; 16], BYTES).unwrap();
        }
        guest.frontend.set_inflight_fd(&region, guest.file.as_raw_fd()).unwrap();
        guest.share(&[guest.region]).unwrap();
        guest.describe_ring();
        guest.frontend.set_vring_kick(0, &guest.kick).unwrap();
        assert!(guest.frontend.set_vring_enable(0, true).is_err());
    }
    assert_eq!(io(&mut other, DriverOp::Read, 0, 0, 512).0, OK);
}

#[test]
fn memory_that_is_taken_away_breaks_its_own_disk_only() {
    let content = || Content::mem(512, 1 << 20, false);
    let rig = Rig::start(vec![(content(), 1), (content(), 1)]);
    let mut other = rig.connect(1, options(1, 4, false, true));
    let mut guest = Manual::connect(&rig.path(0), c"taken-away");
    guest.start();
    guest.read();
    guest.file.set_len(0).unwrap();
    let torn = || rig.counters(0).faults.get(QueueFault::MemoryTorn) == 1;
    until("the disk is broken by name", torn);
    assert_eq!(io(&mut other, DriverOp::Read, 0, 0, 512).0, OK);
    drop(guest);
    let mut next = rig.connect(0, options(1, 4, false, true));
    assert_eq!(io(&mut next, DriverOp::Read, 0, 0, 512).0, OK);
}

#[test]
fn two_front_ends_are_served_and_a_third_is_turned_away() {
    let rig = Rig::start(vec![(Content::mem(512, 1 << 20, false), 2)]);
    let mut first = rig.connect(0, options(2, 4, false, true));
    let mut second = rig.connect(0, options(2, 4, true, false));
    first.write_data(0, 0, &[7; 512]);
    assert_eq!(io(&mut first, DriverOp::Write, 512, 0, 512).0, OK);
    assert_eq!(io(&mut second, DriverOp::Read, 512, 1, 512).0, OK);
    let mut got = [0; 512];
    second.read_data(1, 0, &mut got);
    assert_eq!(got, [7; 512]);
    assert_eq!(rig.counters(0).rings.get(), 4);
    let mut third = UnixStream::connect(rig.path(0)).unwrap();
    assert!(is_closed(&mut third), "turned away");
    drop(first);
    until("its rings are gone", || rig.counters(0).rings.get() == 2);
    let mut again = rig.connect(0, options(2, 4, false, true));
    assert_eq!(io(&mut again, DriverOp::Read, 512, 0, 512).0, OK);
    assert_eq!(io(&mut second, DriverOp::Read, 512, 0, 512).0, OK);
}

#[test]
fn half_a_message_holds_nobody_up() {
    let rig = Rig::start(vec![(Content::mem(512, 1 << 20, false), 1)]);
    // The header of SET_VRING_NUM, which promises 8 bytes more.
    let mut slow = UnixStream::connect(rig.path(0)).unwrap();
    slow.write_all(&[8, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1]).unwrap();
    let mut driver = rig.connect(0, options(1, 4, false, true));
    assert_eq!(io(&mut driver, DriverOp::Read, 0, 0, 512).0, OK);
    assert!(is_closed(&mut slow), "closed when its time was over");
    assert!(driver.is_connected());
    // Closing in the middle of a message frees the place at once.
    let mut gone = UnixStream::connect(rig.path(0)).unwrap();
    gone.write_all(&[8, 0, 0]).unwrap();
    drop(gone);
    let mut second = rig.connect(0, options(1, 4, false, true));
    assert_eq!(io(&mut second, DriverOp::Read, 0, 0, 512).0, OK);
}

#[test]
fn a_message_with_a_descriptor_of_another_kind_is_refused() {
    let rig = Rig::start(vec![(Content::mem(512, 1 << 20, false), 1)]);
    let mut stream = UnixStream::connect(rig.path(0)).unwrap();
    let mut kick = 12u32.to_ne_bytes().to_vec();
    kick.extend([1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let file = File::open("/dev/zero").unwrap();
    stream.send_with_fds(&[&kick[..]], &[file.as_raw_fd()]).unwrap();
    assert!(is_closed(&mut stream));
    assert!(BlkDriver::connect(&rig.path(0), 128, 4, 4096).is_ok());
}

/// A worker that does not answer ends the connection, not the control thread; its ring is not
/// used again before it has come back.
#[test]
fn draining_is_waited_for_within_bounds() {
    let shape = BlkShape { bytes: 1 << 20, block_bytes: 512, read_only: false, queues: 1 };
    let (control, inbox) = mailbox(2);
    let soon = std::time::Duration::from_millis(20);
    let link = Arc::new(Mutex::new(DiskLink::new(control, Arc::new(|| {}), soon)));
    let mut session = Session::new(shape, Arc::clone(&link), 0);
    let (memory, region, file) = GuestMemory::share(BYTES, GUEST, USER).unwrap();
    let setup = DriverRing::new(&memory, 16, USER, false, false).unwrap().setup();
    let table = VhostUserMemoryRegion::new(GUEST, region.bytes, USER, 0);
    let features = session.get_features().unwrap();
    session.set_features(features).unwrap();
    session.set_mem_table(&[table], vec![file], None).unwrap();
    session.set_vring_num(0, 16).unwrap();
    let flags = VhostUserVringAddrFlags::empty();
    session.set_vring_addr(0, flags, setup.descriptors, setup.used, setup.available, 0).unwrap();
    session.set_vring_enable(0, true).unwrap();
    session.set_vring_kick(0, None).unwrap();
    let error = session.get_vring_base(0).err().unwrap();
    assert!(error.to_string().contains("did not end what the ring had in flight"), "{error}");
    session.end();
    let is_free = || link.lock().unwrap().is_free(0, 1);
    assert!(link.lock().unwrap().collect() && !is_free());
    // The worker comes back to life.
    let mut disk = Disk::new(0, "late", 2, inbox);
    let mut volume = Content::mem(512, 1 << 20, false);
    turn(&mut disk, &mut volume, &mut Dones::new());
    assert!(!link.lock().unwrap().collect() && is_free());
}

/// Any messages at all: the server answers or closes, and serves the next one.
#[test]
fn fuzz_messages() {
    let rig = Rig::start(vec![(Content::mem(512, 1 << 20, false), 1)]);
    let path = rig.path(0);
    let mut driver = rig.connect(0, options(1, 4, false, true));
    bolero::check!().with_type::<Vec<(u8, u8, Vec<u8>)>>().for_each(|messages| {
        let Ok(mut stream) = UnixStream::connect(&path) else { return };
        stream.set_nonblocking(true).unwrap();
        for (code, flags, body) in messages.iter().take(8) {
            let body = &body[..body.len().min(64)];
            let mut message = u32::from(code % 46).to_ne_bytes().to_vec();
            let flags = if flags % 8 == 0 { *flags } else { 1 | flags & 8 };
            message.extend(u32::from(flags).to_ne_bytes());
            message.extend((body.len() as u32).to_ne_bytes());
            message.extend(body);
            let _ = stream.write(&message);
        }
        let _ = stream.read(&mut [0; 64]);
    });
    assert_eq!(io(&mut driver, DriverOp::Read, 0, 0, 512).0, OK);
    until("a place is free", || BlkDriver::connect(&path, 128, 4, 4096).is_ok());
}
