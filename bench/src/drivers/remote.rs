//! `remote`: an NVMe/TCP volume driven by Outboard's initiator inside the generator: one thread on
//! one core, so that on two cores the target has the other.

use super::block::{self, BlockArgs};
use super::device::Device;
use super::{LoadArgs, publish};
use crate::error::Error;
use crate::schema::Measurement;
use clap::Args;
use outboard::volume::Remote;
use std::net::SocketAddr;

/// Measure a volume at an NVMe/TCP target, with the initiator in this process.
///
/// What the volume held at the start of the working set is lost.
///
/// Examples:
///   outboard-bench remote 192.0.2.2:4420 --nqn nqn.2025-01.org.example:host-b.data
///   outboard-bench remote 127.0.0.1:4420 --nqn nqn.2025-01.org.example:data --depth 32
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct RemoteArgs {
    /// The target's address.
    #[arg(value_name = "ADDR")]
    pub target: SocketAddr,
    /// The subsystem's NVMe qualified name.
    #[arg(long)]
    pub nqn: String,
    /// The namespace in it.
    #[arg(long, default_value_t = 1)]
    pub nsid: u32,
    #[command(flatten)]
    pub block: BlockArgs,
    #[command(flatten)]
    pub load: LoadArgs,
}

/// Runs the driver.
pub fn run(args: &RemoteArgs) -> Result<(), Error> {
    publish(measure(args)?, args.load.json.as_deref())
}

/// Measures without publishing.
pub fn measure(args: &RemoteArgs) -> Result<Measurement, Error> {
    let load = args.load.load(block::STUCK_AFTER_S)?;
    // The connector keeps the association alive meanwhile; its thread sleeps.
    let (volume, _connector) = Remote::connect(args.target, &args.nqn, args.nsid)
        .map_err(|error| Error::Refused(error.to_string()))?;
    let device = Device::new(volume, load.depth, args.block.block)?;
    block::run(device, "remote", "NVMe/TCP".into(), &args.load, &args.block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::block::Mix;
    use outboard::clock::now_ns;
    use outboard::control::listen::Listener;
    use outboard::volume::export::{Export, ExportConfig};
    use outboard::volume::{BlockDevice, Geometry, Mem, Volume};
    use outboard::worker::{Storage, User, VolumeSlot};
    use outboard_dma::Region;
    use outboard_rdma::nvmf::identify::Identity;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread::JoinHandle;

    const NQN: &str = "nqn.2025-01.org.outboard:bench-test";

    /// An export of a memory volume on loopback, served by a thread.
    struct Target {
        listener: Option<Listener>,
        address: SocketAddr,
        stop: Arc<AtomicBool>,
        worker: Option<JoinHandle<()>>,
    }

    impl Target {
        fn start() -> Target {
            let geometry = Geometry { block_bytes: 4096, blocks: 1024, read_only: false };
            let volume = Volume::Mem(Mem::new(geometry, false).unwrap());
            let config = ExportConfig {
                nqn: NQN.into(),
                serial: "1".into(),
                identity: Identity { nguid: [1; 16], uuid: [0; 16] },
                owner: 0,
                connections: 4,
                shared_frames: 64,
                first_epoch: 1,
                boot: [1; 16],
            };
            let frames = config.frames();
            let mut free = Region::new(frames).unwrap().carve(frames).unwrap();
            let (export, door) = Export::new(&config, volume.geometry(), &mut free).unwrap();
            let user = User::Export(Box::new(export));
            let mut storage = Storage::new(vec![VolumeSlot::new(0, volume).with(user)]);
            let stop = Arc::new(AtomicBool::new(false));
            let stopping = stop.clone();
            let worker = std::thread::spawn(move || {
                while !stopping.load(Ordering::Relaxed) {
                    if storage.turn(now_ns()) == 0 {
                        std::thread::yield_now();
                    }
                }
                assert!(storage.close(&mut free));
            });
            let listener = Listener::start("127.0.0.1:0".parse().unwrap(), door).unwrap();
            let address = listener.address();
            Target { listener: Some(listener), address, stop, worker: Some(worker) }
        }
    }

    impl Drop for Target {
        fn drop(&mut self) {
            drop(self.listener.take());
            self.stop.store(true, Ordering::Relaxed);
            let _ = self.worker.take().map(JoinHandle::join);
        }
    }

    fn args(target: SocketAddr, mix: Mix, depth: u16, block: u32) -> RemoteArgs {
        RemoteArgs {
            target,
            nqn: NQN.into(),
            nsid: 1,
            block: BlockArgs { mix, block, full_check: true, working_set_mib: 4, ..<_>::default() },
            load: LoadArgs { core: None, ..LoadArgs::closed(depth, 0.2, 0.0, 0) },
        }
    }

    #[test]
    fn reads_and_writes_verify_over_the_network() {
        let target = Target::start();
        for (mix, depth, block) in [(Mix::Read, 1, 4096), (Mix::Mixed, 16, 65_536)] {
            let measured = measure(&args(target.address, mix, depth, block)).unwrap();
            assert!(measured.verified > 0 && measured.iops.unwrap() > 0.0, "{mix:?}");
            assert_eq!((measured.verify_failures, measured.errors), (0, 0), "{mix:?}");
        }
    }

    #[test]
    fn a_missing_target_is_named() {
        // Port 1 of loopback: nobody listens on tcpmux.
        let address: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let error = measure(&args(address, Mix::Read, 1, 4096)).unwrap_err().to_string();
        assert!(error.contains("127.0.0.1:1"), "{error}");
    }
}
