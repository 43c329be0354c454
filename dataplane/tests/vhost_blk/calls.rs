//! A front end's requests as calls, in any order and with any numbers, on memory that it rewrites:
//! each is done or refused, every ring comes back, and the next front end finds a working disk.

use crate::manual::{BYTES, GUEST, USER};
use crate::rig::{Content, turn};
use outboard::virtio::blk::BlkShape;
use outboard::virtio::driver_ring::{DESC_NEXT, DESC_WRITE, DriverRing};
use outboard::virtio::inflight;
use outboard::virtio::mailbox::mailbox;
use outboard::virtio::vhost_user::{DRAIN_TIMEOUT, DiskLink, Session, is_harmless};
use outboard::volume::Dones;
use outboard::volume::disk::Disk;
use outboard_dma::GuestMemory;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserInflight, VhostUserMemoryRegion, VhostUserSingleMemoryRegion,
    VhostUserVringAddrFlags,
};
use vhost::vhost_user::{Result, VhostUserBackendReqHandlerMut};

const QUEUES: u16 = 2;
const SIZE: u16 = 16;
/// The second ring lies behind the first.
const RING_STEP: u64 = 4096;
/// Steps of one front end.
const STEPS_MAX: usize = 48;
/// Numbers at which something may change, beside those that are right.
const NUMBERS: [u64; 10] =
    [0, 1, 512, RING_STEP, BYTES, GUEST, USER, u32::MAX as u64, 1 << 63, u64::MAX];

/// What it does, to which ring, and with which two numbers.
type Step = (u8, u8, u16, u8);

/// A front end and the worker of its disk, in one thread: whoever wakes the worker runs it.
struct Rig {
    link: Arc<Mutex<DiskLink>>,
    worker: Arc<Mutex<(Disk, Content, Dones)>>,
    /// Memory as the front end sees it, and its rings there.
    memory: Arc<GuestMemory>,
    file: File,
    kept: File,
}

impl Rig {
    fn new() -> Rig {
        let (control, inbox) = mailbox(QUEUES);
        let disk = Disk::new(0, "calls", QUEUES, inbox);
        let volume = Content::mem(512, 1 << 20, false);
        let worker = Arc::new(Mutex::new((disk, volume, Dones::new())));
        let woken = Arc::clone(&worker);
        let wake = Arc::new(move || run(&woken));
        let link = Arc::new(Mutex::new(DiskLink::new(control, wake, DRAIN_TIMEOUT)));
        let (memory, _, file) = GuestMemory::share(BYTES, GUEST, USER).unwrap();
        let (_, kept) = inflight::InflightRegion::make(QUEUES, SIZE).unwrap();
        Rig { link, worker, memory, file, kept }
    }

    fn session(&self) -> Session {
        let shape = BlkShape { bytes: 1 << 20, block_bytes: 512, read_only: false, queues: QUEUES };
        Session::new(shape, Arc::clone(&self.link), 0)
    }

    /// A ring of zeros.
    fn ring(&self, index: u64) -> DriverRing {
        let bytes = DriverRing::bytes(SIZE) as usize;
        self.file.write_all_at(&vec![0; bytes], index * RING_STEP).unwrap();
        DriverRing::new(&self.memory, SIZE, USER + index * RING_STEP, true, true).unwrap()
    }

    /// Ends a connection: nothing may be left of it.
    fn end(&self, mut session: Session) {
        session.end();
        run(&self.worker);
        assert!(!self.link.lock().unwrap().collect(), "a ring did not come back");
        let worker = self.worker.lock().unwrap();
        assert!(worker.0.is_idle(), "{} in flight", worker.0.in_flight());
    }
}

fn run(worker: &Mutex<(Disk, Content, Dones)>) {
    let (disk, volume, dones) = &mut *worker.lock().unwrap();
    turn(disk, volume, dones);
}

fn event() -> File {
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    File::from(event)
}

/// What a right front end says before its rings, and for one of them.
fn begin(rig: &Rig, session: &mut Session) -> Result<()> {
    let features = session.get_features()?;
    session.set_features(features)?;
    let table = [VhostUserMemoryRegion::new(GUEST, BYTES, USER, 0)];
    session.set_mem_table(&table, vec![rig.file.try_clone().unwrap()], None).map(drop)
}

fn start(rig: &Rig, session: &mut Session, index: u8) -> Result<DriverRing> {
    let ring = rig.ring(index.into());
    let (setup, at) = (ring.setup(), u32::from(index));
    session.set_vring_num(at, SIZE.into())?;
    session.set_vring_base(at, 0)?;
    let flags = VhostUserVringAddrFlags::empty();
    session.set_vring_addr(at, flags, setup.descriptors, setup.used, setup.available, 0)?;
    session.set_vring_kick(index, Some(event()))?;
    session.set_vring_enable(at, true)?;
    Ok(ring)
}

/// One request, or one thing that a guest writes.
fn step(rig: &Rig, session: &mut Session, taken: &Step) -> Result<()> {
    let &(what, ring, a, b) = taken;
    let (index, at) = (ring % 3, u32::from(ring % 3));
    let x = NUMBERS[usize::from(a) % NUMBERS.len()];
    let any_event = || match b % 16 {
        0 | 4 | 8 | 12 => None,
        1 => Some(rig.file.try_clone().unwrap()),
        _ => Some(event()),
    };
    match what % 24 {
        0 => session.get_features().map(drop),
        1 => {
            let features = session.get_features()? ^ 1u64.rotate_left(b.into());
            session.set_features(features)
        }
        2 => session.set_protocol_features(x | u64::from(b)),
        3..=5 => share(rig, session, taken),
        6 => session.set_vring_num(at, u32::from(a)),
        7 => {
            let flags = VhostUserVringAddrFlags::empty();
            let near = USER + u64::from(a) * u64::from(b % 17);
            session.set_vring_addr(
                at,
                flags,
                near,
                near + RING_STEP,
                if b > 99 { x } else { near },
                0,
            )
        }
        8 => session.set_vring_base(at, a.into()),
        9 => session.set_vring_kick(index, any_event()),
        10 => session.set_vring_call(index, any_event()),
        11 => session.set_vring_err(index, any_event()),
        12 => session.set_vring_enable(at, b % 2 == 0),
        13 => session.get_vring_base(at).map(drop),
        14 | 15 => keep(rig, session, taken),
        16 => session.reset_device(),
        17 => session.get_config(a.into(), b.into(), VhostUserConfigFlags::empty()).map(drop),
        18 => begin(rig, session),
        19 => start(rig, session, index).map(drop),
        _ => {
            scribble(rig, taken);
            Ok(())
        }
    }
}

/// Regions of memory: all of them, one more, one less.
fn share(rig: &Rig, session: &mut Session, &(what, _, a, b): &Step) -> Result<()> {
    let [x, y] = [usize::from(a), usize::from(b)].map(|from| NUMBERS[from % NUMBERS.len()]);
    let file = || rig.file.try_clone().unwrap();
    // Mostly right in one place, so that a wrong number is not found out by its neighbour.
    let one = VhostUserSingleMemoryRegion::new(
        if a % 3 == 0 { x } else { GUEST + (u64::from(a) << 20) },
        if a % 3 == 1 { x } else { BYTES / 2 },
        if b % 3 == 0 { y } else { USER + (u64::from(a) << 20) },
        if b % 3 == 1 { y } else { 0 },
    );
    let first = if a % 2 == 0 { x } else { BYTES / 2 };
    let many = [
        VhostUserMemoryRegion::new(GUEST, first, USER, 0),
        VhostUserMemoryRegion::new(GUEST + BYTES / 2, BYTES / 2, USER + BYTES / 2, y),
    ];
    match what % 3 {
        0 => session.set_mem_table(&many, vec![file(), file()], None).map(drop),
        1 => session.add_mem_region(&one, file(), None).map(drop),
        _ => session.remove_mem_region(&one),
    }
}

/// The list of what is in flight.
fn keep(rig: &Rig, session: &mut Session, &(what, _, a, b): &Step) -> Result<()> {
    if what % 2 == 0 {
        let want = VhostUserInflight::new(0, 0, u16::from(b), a);
        return session.get_inflight_fd(&want).map(drop);
    }
    let [x, y] = [usize::from(a), usize::from(b)].map(|from| NUMBERS[from % NUMBERS.len()]);
    let bytes = if b % 4 == 0 { x } else { inflight::bytes(QUEUES, SIZE) };
    let kept = VhostUserInflight::new(bytes, if b % 5 == 0 { y } else { 0 }, QUEUES, SIZE);
    session.set_inflight_fd(&kept, rig.kept.try_clone().unwrap())
}

/// What a guest writes where the device reads: the list, the rings, whole chains.
fn scribble(rig: &Rig, &(what, ring, a, b): &Step) {
    let place = u64::from(a);
    match what % 4 {
        0 => rig.kept.write_all_at(&[b], place % inflight::bytes(QUEUES, SIZE)).unwrap(),
        1 | 2 => rig.file.write_all_at(&[b], place % (2 * RING_STEP)).unwrap(),
        _ => {
            let mut ring = rig.ring(u64::from(ring % 2));
            for head in 0..SIZE {
                ring.describe(head, GUEST + place, b.into(), b.into(), head ^ 1);
            }
            ring.offer(a % SIZE);
            ring.publish();
        }
    }
}

/// A right front end reads the first block.
fn is_well(rig: &Rig) {
    let mut session = rig.session();
    begin(rig, &mut session).unwrap();
    let mut ring = start(rig, &mut session, 0).unwrap();
    let at = GUEST + BYTES / 2;
    rig.memory.segment(at, 17).unwrap().copy_from(0, &[0; 17]);
    ring.describe(0, at, 16, DESC_NEXT, 1);
    ring.describe(1, at + 512, 512, DESC_NEXT | DESC_WRITE, 2);
    ring.describe(2, at + 16, 1, DESC_WRITE, 0);
    ring.offer(0);
    ring.publish();
    run(&rig.worker);
    assert_eq!(ring.take(), Some((0, 513)));
    rig.end(session);
}

#[test]
fn any_calls_are_done_or_refused() {
    let rig = AssertUnwindSafe(Rig::new());
    is_well(&rig);
    bolero::check!().with_type::<Vec<Step>>().for_each(|steps| {
        let mut session = rig.session();
        for taken in steps.iter().take(STEPS_MAX) {
            let outcome = step(&rig, &mut session, taken);
            run(&rig.worker);
            // What the server does on such an error: the connection ends.
            if outcome.is_err_and(|error| !is_harmless(&error)) {
                break;
            }
        }
        rig.end(session);
        is_well(&rig);
    });
}
