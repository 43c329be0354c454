//! `vhost-blk`: drives any vhost-user-blk backend from this process, through shared memory and
//! without a guest.

use super::block::{self, BlockArgs, BlockTarget, Op};
use super::{LoadArgs, publish};
use crate::error::Error;
use crate::schema::Measurement;
use clap::Args;
use outboard::virtio::driver::{BlkDriver, DriverOp};
use std::path::PathBuf;

/// Measure a vhost-user-blk backend: Outboard's disks, or any other's.
///
/// This process is the virtio driver: it shares memory with the backend and polls its queue. What
/// the disk held at the start of the working set is lost.
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
    block::run(Disk(driver), "vhost-blk", "vhost-user disk".into(), &args.load, &args.block)
}

struct Disk(BlkDriver);

impl BlockTarget for Disk {
    fn size_bytes(&self) -> u64 {
        self.0.capacity_bytes()
    }

    /// A virtio disk counts in sectors whatever its block size.
    fn block_bytes(&self) -> u32 {
        512
    }

    fn store(&mut self, slot: u16, at: usize, data: &[u8]) {
        self.0.write_data(slot, at, data);
    }

    fn load(&self, slot: u16, at: usize, out: &mut [u8]) {
        self.0.read_data(slot, at, out);
    }

    fn submit(&mut self, slot: u16, op: Op, offset_bytes: u64, bytes: u32, _now_ns: u64) -> bool {
        let op = match op {
            Op::Read => DriverOp::Read,
            Op::Write => DriverOp::Write,
        };
        // There are as many slots as requests, so there is always room.
        self.0.submit(op, offset_bytes, slot, bytes);
        true
    }

    fn kick(&mut self) {
        self.0.kick();
    }

    fn reap(&mut self, _now_ns: u64, ended: &mut Vec<(u16, bool)>) {
        while let Some(completion) = self.0.poll() {
            ended.push((completion.slot, completion.status == 0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::block::Mix;
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
            let server = VhostServer::start("disk", &path, shape, control, Arc::new(|| {}));
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
        for (mix, depth, size) in [(Mix::Read, 1, 4096), (Mix::Mixed, 64, 8192)] {
            let args = VhostBlkArgs {
                socket: served.directory.join("disk"),
                queue_size: 128,
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
        }
    }

    #[test]
    fn a_socket_without_a_backend_is_named() {
        let args = VhostBlkArgs {
            socket: "/nonexistent/disk.sock".into(),
            queue_size: 128,
            block: BlockArgs::default(),
            load: LoadArgs { core: None, ..LoadArgs::closed(1, 0.2, 0.0, 0) },
        };
        let error = measure(&args).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/disk.sock") && error.contains("running"), "{error}");
    }
}
