//! A disk turn by turn, without a worker: messages, sleeping, stopping.

use crate::guest::*;
use crate::rig::{Content, Gate, Gated, geometry, turn};
use outboard::virtio::driver_ring::DriverRing;
use outboard::virtio::fault::QueueFault;
use outboard::virtio::mailbox::{DiskControl, DiskMessage, DiskReturn, Ring, mailbox};
use outboard::volume::Dones;
use outboard::volume::disk::{BURST, Disk, SLOTS};
use outboard_dma::{EventFd, GuestMemory, Signaller};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A disk with one ring, and everything around it.
struct Bench {
    memory: Arc<GuestMemory>,
    ring: DriverRing,
    control: DiskControl,
    disk: Disk,
    volume: Content,
    gate: Arc<Gate>,
    kick: EventFd,
    call: EventFd,
    done: Dones,
}

/// The same event descriptor once more.
fn again(event: &EventFd) -> EventFd {
    use std::os::fd::AsFd;
    EventFd::adopt(event.as_fd().try_clone_to_owned().unwrap()).unwrap()
}

fn signaller(event: &EventFd) -> Signaller {
    Signaller::new(again(event))
}

impl Bench {
    fn new(size: u16, event_idx: bool) -> Bench {
        let (memory, ring, queue) = ends(size, event_idx);
        let gate = Arc::new(Gate::default());
        let volume = Gated::new(geometry(512, 64 << 10, false), 1000, &gate);
        let (control, inbox) = mailbox(2);
        let disk = Disk::new(5, "bench", 2, inbox);
        let (kick, call) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        let with =
            Ring { queue, kick: Some(again(&kick)), call: Some(signaller(&call)), error: None };
        control.send(DiskMessage::Start { ring: 1, with }).unwrap();
        let volume = Content::Gated(volume);
        let done = Dones::new();
        let mut bench = Bench { memory, ring, control, disk, volume, gate, kick, call, done };
        assert_eq!(bench.turn(), 1, "the message");
        bench
    }

    fn turn(&mut self) -> u32 {
        turn(&mut self.disk, &mut self.volume, &mut self.done)
    }

    /// Offers a read of the first block as descriptors `at` to `at + 2`.
    fn offer(&mut self, at: u16) {
        let data = DATA + 512;
        write(&self.memory, DATA, &[0; 16]);
        self.ring.describe(at, DATA, 16, N, at + 1);
        self.ring.describe(at + 1, data, 512, N | W, at + 2);
        self.ring.describe(at + 2, DATA + 16, 1, W, 0);
        self.ring.offer(at);
    }

    fn is_readable(event: &EventFd) -> bool {
        use rustix::event::{PollFd, PollFlags, poll};
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(event, PollFlags::IN)], Some(&now)).unwrap() == 1
    }
}

#[test]
fn a_disk_asks_for_kicks_only_to_sleep() {
    for event_idx in [false, true] {
        let mut bench = Bench::new(64, event_idx);
        bench.offer(0);
        assert!(!bench.ring.publish(), "it is polled");
        assert!(bench.disk.arm(), "there is work");
        bench.disk.disarm();
        assert_eq!(bench.turn(), 2, "a chain and its end");
        assert_eq!(bench.ring.take(), Some((0, 513)));
        assert!(!bench.disk.arm(), "it may sleep");
        let fds: Vec<_> = bench.disk.wake_fds().collect();
        assert_eq!(fds.len(), 1);
        bench.offer(0);
        assert!(bench.ring.publish(), "it wants a kick");
        bench.kick.signal();
        assert!(Bench::is_readable(&bench.kick));
        bench.disk.disarm();
        assert!(!Bench::is_readable(&bench.kick), "it does not wake twice");
        assert_eq!(bench.turn(), 2);
        // With a message in the mailbox it does not sleep either.
        assert!(!bench.disk.arm());
        bench.control.send(DiskMessage::Stop { ring: 1 }).unwrap();
        assert!(bench.disk.arm());
        bench.turn();
        assert_eq!(bench.disk.wake_fds().count(), 0);
        assert!(!bench.disk.arm());
    }
}

#[test]
fn a_ring_without_a_kick_keeps_the_worker_awake() {
    let mut bench = Bench::new(64, true);
    let (_memory, _ring, queue) = ends(8, true);
    let with = Ring { queue, kick: None, call: None, error: None };
    bench.control.send(DiskMessage::Start { ring: 0, with }).unwrap();
    bench.turn();
    assert!(bench.disk.arm());
    assert_eq!(bench.disk.wake_fds().count(), 1);
}

#[test]
fn calls_come_once_per_turn_and_only_when_wanted() {
    for event_idx in [false, true] {
        let mut bench = Bench::new(64, event_idx);
        bench.ring.want_calls(true);
        for at in [0, 3, 6, 9] {
            bench.offer(at);
        }
        bench.ring.publish();
        bench.turn();
        assert_eq!(bench.call.drain(), 1, "four requests, one call");
        (0..4).for_each(|_| assert!(bench.ring.take().is_some()));
        bench.ring.want_calls(false);
        bench.offer(0);
        bench.ring.publish();
        bench.turn();
        assert_eq!(bench.call.drain(), 0);
        // Another descriptor is signalled at once: something may have ended before it came.
        let other = EventFd::new().unwrap();
        let call = Some(signaller(&other));
        bench.control.send(DiskMessage::SetCall { ring: 1, call }).unwrap();
        bench.turn();
        assert_eq!(other.drain(), 1);
        let old = bench.control.returns.try_recv().unwrap();
        assert!(matches!(old, DiskReturn::Call { old: Some(_) }), "{old:?}");
        let none = DiskMessage::SetCall { ring: 0, call: Some(signaller(&other)) };
        bench.control.send(none).unwrap();
        bench.turn();
        assert!(bench.control.returns.try_recv().is_ok(), "every message is answered");
    }
}

#[test]
fn a_stop_takes_nothing_more_and_answers_after_the_last_io() {
    let mut bench = Bench::new(64, true);
    bench.gate.closed.store(true, Ordering::Release);
    bench.offer(0);
    bench.offer(3);
    bench.ring.publish();
    bench.turn();
    assert_eq!(bench.disk.in_flight(), 2);
    assert_eq!(bench.memory.holds(), 2);
    bench.offer(6);
    bench.ring.publish();
    bench.control.send(DiskMessage::Stop { ring: 1 }).unwrap();
    bench.turn();
    assert!(bench.control.returns.try_recv().is_err(), "two are in flight");
    bench.gate.closed.store(false, Ordering::Release);
    bench.turn();
    let DiskReturn::Stopped { ring: 1, with: Some(with) } =
        bench.control.returns.try_recv().unwrap()
    else {
        panic!("not what was asked for")
    };
    assert_eq!(with.queue.base(), 2, "the third was not taken");
    assert_eq!((bench.disk.in_flight(), bench.memory.holds()), (0, 0));
    assert_eq!(bench.ring.take(), Some((0, 513)));
    assert_eq!(bench.ring.take(), Some((3, 513)));
    assert_eq!(bench.ring.take(), None);
    // Stopping what is not driven is answered too.
    bench.control.send(DiskMessage::Stop { ring: 1 }).unwrap();
    bench.turn();
    let back = bench.control.returns.try_recv().unwrap();
    assert!(matches!(back, DiskReturn::Stopped { ring: 1, with: None }));
    // The same ring goes on where it stopped.
    bench.control.send(DiskMessage::Start { ring: 1, with }).unwrap();
    bench.turn();
    assert_eq!(bench.ring.take(), Some((6, 513)));
}

#[test]
fn a_turn_takes_a_burst_and_a_disk_no_more_than_its_slots() {
    // One descriptor per flush would do; three per read, offered again and again by head 0.
    let mut bench = Bench::new(512, true);
    bench.gate.closed.store(true, Ordering::Release);
    bench.offer(0);
    for _ in 1..300 {
        bench.ring.offer(0);
    }
    bench.ring.publish();
    assert_eq!(bench.turn(), u32::from(BURST));
    assert_eq!(bench.disk.in_flight(), BURST);
    while bench.turn() > 0 {}
    assert_eq!(bench.disk.in_flight(), SLOTS);
    assert!(!bench.disk.arm(), "only the volume can bring work now");
    bench.gate.closed.store(false, Ordering::Release);
    while bench.turn() > 0 {}
    assert_eq!(bench.disk.in_flight(), 0);
    let ended = std::iter::from_fn(|| bench.ring.take()).count();
    assert_eq!(ended, 300);
}

#[test]
fn a_broken_ring_is_told_once_and_its_neighbour_goes_on() {
    let mut bench = Bench::new(64, true);
    let (_memory, mut other, queue) = ends(8, true);
    let error = EventFd::new().unwrap();
    let with = Ring { queue, kick: None, call: None, error: Some(signaller(&error)) };
    bench.control.send(DiskMessage::Start { ring: 0, with }).unwrap();
    bench.turn();
    other.publish_index(100);
    for _ in 0..3 {
        bench.offer(0);
        bench.ring.publish();
        bench.turn();
        assert_eq!(bench.ring.take(), Some((0, 513)));
    }
    assert_eq!(error.drain(), 1);
    assert_eq!(bench.disk.counters().faults.get(QueueFault::AvailJump), 1);
    assert!(!bench.disk.arm(), "a broken ring keeps nobody awake");
}

#[test]
fn a_disk_that_is_dropped_with_ios_in_flight_leaves_their_memory_mapped() {
    let mut bench = Bench::new(64, true);
    bench.gate.closed.store(true, Ordering::Release);
    bench.offer(0);
    bench.ring.publish();
    bench.turn();
    let Bench { memory, ring, disk, mut volume, gate, .. } = bench;
    drop((disk, ring, memory));
    // The volume still has the I/O, and ends it into memory that is still there.
    gate.closed.store(false, Ordering::Release);
    let mut done = Dones::new();
    outboard::volume::BlockDevice::reap(&mut volume, 0, &mut done);
    assert_eq!(done.len(), 1);
}
