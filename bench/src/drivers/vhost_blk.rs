//! `vhost-blk`: drives any vhost-user-blk backend from this process, through shared memory and
//! without a guest. It polls the queue, or sleeps on the call eventfd while nothing has ended.

use super::block::{self, BlockArgs, BlockTarget, Op};
use super::{LoadArgs, Wait, publish, sleep};
use crate::error::Error;
use crate::schema::Measurement;
use clap::Args;
use outboard::virtio::driver::{BlkDriver, DriverOp};
use std::path::PathBuf;

/// Measure a vhost-user-blk backend: Outboard's disks, or any other's.
///
/// This process is the virtio driver: it shares memory with the backend and polls its queue, or
/// sleeps until the backend calls (--wait block). What the disk held at the start of the working
/// set is lost.
///
/// Examples:
///   outboard-bench vhost-blk /run/outboard/host-a-vda.sock
///   outboard-bench vhost-blk disk.sock --depth 32 --mix mixed --full-check
///   outboard-bench vhost-blk disk.sock --rate 20000 --watch outboard=4711 --json disk.json
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct VhostBlkArgs {
    /// The backend's socket.
    pub socket: PathBuf,
    /// Entries of the virtqueue, a power of two.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub queue_size: u16,
    /// How to wait for completions; `block` leaves the core to the backend where there are few.
    #[arg(long, value_enum, default_value = "spin")]
    pub wait: Wait,
    #[command(flatten)]
    pub block: BlockArgs,
    #[command(flatten)]
    pub load: LoadArgs,
}

/// Runs the driver.
pub fn run(args: &VhostBlkArgs) -> Result<(), Error> {
    publish(measure(args)?, args.load.json.as_deref())
}

/// Measures without publishing.
pub fn measure(args: &VhostBlkArgs) -> Result<Measurement, Error> {
    let load = args.load.load(block::STUCK_AFTER_S)?;
    let driver = BlkDriver::connect(&args.socket, args.queue_size, load.depth, args.block.block)
        .map_err(|error| Error::Refused(error.to_string()))?;
    let disk = Disk { driver, wait: args.wait };
    let medium = "vhost-user disk".into();
    let mut measured = block::run(disk, "vhost-blk", medium, &args.load, &args.block)?;
    measured.parameters.insert("wait".into(), args.wait.name().into());
    measured.notes.push(match args.wait {
        Wait::Spin => "the driver polls for completions without sleeping (wait: spin)".into(),
        Wait::Block => "the driver sleeps on the call eventfd (wait: block)".into(),
    });
    Ok(measured)
}

struct Disk {
    driver: BlkDriver,
    wait: Wait,
}

impl Disk {
    /// Sleeps until the device calls, at most `limit_ns`; `false` when it ended by the limit.
    fn wait_for_call(&mut self, limit_ns: u64) -> bool {
        // Asked first, looked at once more, then slept: no call is missed.
        let woken = self.driver.want_calls(0, true) || sleep(self.driver.call_fd(0), limit_ns);
        self.driver.want_calls(0, false);
        self.driver.calls(0);
        woken
    }
}

impl BlockTarget for Disk {
    fn size_bytes(&self) -> u64 {
        self.driver.capacity_bytes()
    }

    /// A virtio disk counts in sectors whatever its block size.
    fn block_bytes(&self) -> u32 {
        512
    }

    fn store(&mut self, slot: u16, at: usize, data: &[u8]) {
        self.driver.write_data(slot, at, data);
    }

    fn load(&self, slot: u16, at: usize, out: &mut [u8]) {
        self.driver.read_data(slot, at, out);
    }

    fn submit(&mut self, slot: u16, op: Op, offset_bytes: u64, bytes: u32, _now_ns: u64) -> bool {
        let op = match op {
            Op::Read => DriverOp::Read,
            Op::Write => DriverOp::Write,
        };
        // There are as many slots as requests, so there is always room.
        self.driver.submit(op, offset_bytes, slot, bytes);
        true
    }

    fn kick(&mut self) {
        self.driver.kick();
    }

    fn reap(&mut self, _now_ns: u64, ended: &mut Vec<(u16, bool)>) {
        while let Some(completion) = self.driver.poll() {
            ended.push((completion.slot, completion.status == 0));
        }
    }

    fn idle(&mut self, limit_ns: u64) {
        if self.wait == Wait::Block {
            self.wait_for_call(limit_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::block::Mix;
    use outboard::config::plan::SocketAccess;
    use outboard::control::vhost::VhostServer;
    use outboard::virtio::blk::BlkShape;
    use outboard::virtio::mailbox::mailbox;
    use outboard::volume::disk::Disk as Backend;
    use outboard::volume::{BlockDevice, Dones, Geometry, Mem};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread::JoinHandle;

    /// A memory volume behind a vhost-user socket, driven by a thread.
    struct Served {
        directory: PathBuf,
        server: Option<VhostServer>,
        stop: Arc<AtomicBool>,
        worker: Option<JoinHandle<()>>,
    }

    impl Served {
        fn start(name: &str) -> Served {
            let name = format!("outboard-bench-{}-{name}", std::process::id());
            let directory = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&directory).unwrap();
            let geometry = Geometry { block_bytes: 512, blocks: 8192, read_only: false };
            let bytes = geometry.bytes();
            let shape = BlkShape { bytes, block_bytes: 512, read_only: false, queues: 1 };
            let (control, inbox) = mailbox(2);
            let mut disk = Backend::new(1, "disk", 2, inbox);
            let path = directory.join("disk");
            let server = VhostServer::start(
                "disk",
                &path,
                &SocketAccess::default(),
                shape,
                control,
                Arc::new(|| {}),
            );
            let stop = Arc::new(AtomicBool::new(false));
            let stopping = stop.clone();
            let mut volume = Mem::new(geometry, false).unwrap();
            let worker = std::thread::spawn(move || {
                let mut dones = Dones::new();
                while !stopping.load(Ordering::Relaxed) {
                    let work = disk.poll(0, &mut volume);
                    dones.clear();
                    volume.reap(0, &mut dones);
                    let idle = work == 0 && dones.is_empty();
                    dones.drain(..).for_each(|done| disk.complete(done));
                    disk.notify();
                    if idle {
                        std::thread::yield_now();
                    }
                }
            });
            Served { directory, server: Some(server.unwrap()), stop, worker: Some(worker) }
        }
    }

    impl Drop for Served {
        fn drop(&mut self) {
            drop(self.server.take());
            self.stop.store(true, Ordering::Relaxed);
            let _ = self.worker.take().map(JoinHandle::join);
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }

    #[test]
    fn reads_and_writes_verify_through_shared_memory() {
        let served = Served::start("vhost");
        for (mix, depth, size, wait) in [
            (Mix::Read, 1, 4096, Wait::Spin),
            (Mix::Mixed, 64, 8192, Wait::Spin),
            (Mix::Read, 1, 4096, Wait::Block),
            (Mix::Mixed, 32, 4096, Wait::Block),
        ] {
            let args = VhostBlkArgs {
                socket: served.directory.join("disk"),
                queue_size: 128,
                wait,
                block: BlockArgs {
                    mix,
                    block: size,
                    full_check: true,
                    working_set_mib: 4,
                    ..BlockArgs::default()
                },
                load: LoadArgs { core: None, ..LoadArgs::closed(depth, 0.2, 0.0, 0) },
            };
            let measured = measure(&args).unwrap();
            assert!(measured.verified > 0 && measured.iops.unwrap() > 0.0, "{mix:?}");
            assert_eq!((measured.verify_failures, measured.errors), (0, 0), "{mix:?}");
            assert_eq!(measured.parameters["wait"], wait.name());
            assert!(measured.notes.iter().any(|note| note.contains(wait.name())), "{wait:?}");
        }
    }

    #[test]
    fn a_sleeping_driver_is_called_for_every_completion() {
        const IOS: u32 = 3000;
        const LIMIT_NS: u64 = 60_000_000_000;
        let served = Served::start("called");
        for depth in [1u16, 32] {
            let socket = served.directory.join("disk");
            let driver = BlkDriver::connect(&socket, 128, depth, 4096).unwrap();
            let mut disk = Disk { driver, wait: Wait::Block };
            let mut free: Vec<u16> = (0..depth).collect();
            let (mut submitted, mut done, mut ended) = (0, 0, Vec::new());
            while done < IOS {
                while submitted < IOS
                    && let Some(slot) = free.pop()
                {
                    let offset_bytes = u64::from(submitted % 512) * 4096;
                    assert!(disk.submit(slot, Op::Read, offset_bytes, 4096, 0));
                    submitted += 1;
                }
                disk.kick();
                // A call that never comes ends this by its limit, which is far beyond any I/O.
                assert!(disk.wait_for_call(LIMIT_NS), "{done} of {IOS} at depth {depth}");
                disk.reap(0, &mut ended);
                for (slot, ok) in ended.drain(..) {
                    assert!(ok);
                    free.push(slot);
                    done += 1;
                }
            }
            assert_eq!(free.len(), usize::from(depth));
        }
    }

    #[test]
    fn a_socket_without_a_backend_is_named() {
        let args = VhostBlkArgs {
            socket: "/nonexistent/disk.sock".into(),
            queue_size: 128,
            wait: Wait::Block,
            block: BlockArgs::default(),
            load: LoadArgs { core: None, ..LoadArgs::closed(1, 0.2, 0.0, 0) },
        };
        let error = measure(&args).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/disk.sock") && error.contains("running"), "{error}");
    }
}
