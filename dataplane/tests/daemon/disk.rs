//! The daemon's disks, driven over their vhost-user sockets while tenants talk.

use crate::clean::nothing_is_left;
use crate::process::{PATIENCE, until};
use crate::world::{Options, World};
use outboard::virtio::driver::{BlkDriver, BlkOptions, Completion, DriverOp};
use outboard_sim::Rng;
use rustix::process::Signal;
use std::path::Path;
use std::time::Instant;

const DISKS: &str = "
[[volume]]
name = 'ram'
kind = 'mem'
size = '16MiB'
[[volume]]
name = 'image'
kind = 'file'
path = 'SCRATCH/HOST.img'
create = '16MiB'
block_bytes = 4096
[[disk]]
name = 'vda'
volume = 'ram'
socket = 'SCRATCH/HOST-vda.sock'
queues = 2
[[disk]]
name = 'vdb'
volume = 'image'
socket = 'SCRATCH/HOST-vdb.sock'
";
const DISK_BYTES: u64 = 16 << 20;
const IO_BYTES: u32 = 16 << 10;
const SLOTS: u16 = 16;

fn connect(socket: &Path, queues: u16) -> BlkDriver {
    let options = BlkOptions { queues, ..BlkOptions::new(64, SLOTS, IO_BYTES) };
    // A front end before may still be leaving.
    until("the disk answers", || BlkDriver::connect_with(socket, options).ok())
}

#[track_caller]
fn wait(driver: &mut BlkDriver) -> Completion {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(completion) = driver.poll() {
            assert_eq!(completion.status, 0, "{completion:?}");
            return completion;
        }
        assert!(Instant::now() < deadline, "no completion came");
        std::thread::yield_now();
    }
}

/// The bytes of the disk's `n`-th I/O in a round.
fn content(round: u64, n: u64) -> Vec<u8> {
    let mut rng = Rng::new(round << 32 | n);
    (0..IO_BYTES / 8).flat_map(|_| rng.next_u64().to_ne_bytes()).collect()
}

/// Does `op` on the whole disk with many I/Os in flight; `each` sees every slot before a write and
/// after a read.
fn whole(driver: &mut BlkDriver, op: DriverOp, mut each: impl FnMut(&mut BlkDriver, u16, u64)) {
    let count = DISK_BYTES / u64::from(IO_BYTES);
    let mut at = [0; SLOTS as usize];
    let mut free: Vec<u16> = (0..SLOTS).collect();
    let (mut begun, mut ended) = (0, 0);
    while ended < count {
        while begun < count
            && let Some(slot) = free.pop()
        {
            at[usize::from(slot)] = begun;
            if op == DriverOp::Write {
                each(driver, slot, begun);
            }
            driver.submit(op, begun * u64::from(IO_BYTES), slot, IO_BYTES);
            begun += 1;
        }
        driver.kick();
        let slot = wait(driver).slot;
        if op == DriverOp::Read {
            each(driver, slot, at[usize::from(slot)]);
        }
        free.push(slot);
        ended += 1;
    }
}

fn write_all(driver: &mut BlkDriver, round: u64) {
    whole(driver, DriverOp::Write, |driver, slot, n| {
        driver.write_data(slot, 0, &content(round, n));
    });
    driver.submit(DriverOp::Flush, 0, 0, 0);
    driver.kick();
    wait(driver);
}

fn verify(driver: &mut BlkDriver, round: u64) {
    let mut got = vec![0; IO_BYTES as usize];
    whole(driver, DriverOp::Read, |driver, slot, n| {
        driver.read_data(slot, 0, &mut got);
        assert!(got == content(round, n), "I/O {n} reads other bytes than were written");
    });
}

#[test]
fn disks_keep_what_was_written_whoever_comes_and_goes() {
    let (world, a, b) = World::running(Options { more: DISKS, ..Options::default() });
    for (name, queues) in [("vda", 2), ("vdb", 1)] {
        let socket = world.scratch.0.join(format!("a-{name}.sock"));
        let mut driver = connect(&socket, queues);
        assert_eq!(driver.capacity_bytes(), DISK_BYTES);
        write_all(&mut driver, 1);
        verify(&mut driver, 1);
        // Gone in the middle of its I/O; the next one finds all that was written.
        for slot in 0..SLOTS {
            driver.submit(DriverOp::Read, 0, slot, IO_BYTES);
        }
        driver.kick();
        drop(driver);
        let mut driver = connect(&socket, queues);
        verify(&mut driver, 1);
        world.a.tenant("blue").reaches(world.b.tenant("blue").address);
    }
    let disks = a.stats().disks;
    for disk in disks {
        assert!(disk.queue_faults.is_empty() && disk.requests > 3072, "{disk:?}");
    }
    // The daemon ends while guests are connected, with I/O in flight.
    let mut left: Vec<_> = ["vda", "vdb"]
        .map(|name| connect(&world.scratch.0.join(format!("a-{name}.sock")), 1))
        .into();
    for driver in &mut left {
        (0..SLOTS).for_each(|slot| driver.submit(DriverOp::Read, 0, slot, IO_BYTES));
        driver.kick();
    }
    a.stop(Signal::TERM);
    nothing_is_left(&world, &world.a);
    // A file keeps its content over a restart, memory does not.
    let a = world.a.run();
    verify(&mut connect(&world.scratch.0.join("a-vdb.sock"), 1), 1);
    a.stop(Signal::INT);
    b.stop(Signal::TERM);
}
