//! Our driver against a backend that is not ours: qemu-storage-daemon.

use crate::io::{OK, Verifier, options};
use crate::rig::{Scratch, io, until};
use outboard::virtio::driver::{BlkDriver, DriverOp};
use outboard_sim::Rng;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

const DISK_BYTES: u64 = 4 << 20;

/// A running qemu-storage-daemon, ended with the test.
struct StorageDaemon {
    child: Child,
    socket: PathBuf,
    _scratch: Scratch,
}

impl StorageDaemon {
    fn start(queues: u16) -> StorageDaemon {
        let scratch = Scratch::new("qsd");
        let (image, socket) = (scratch.0.join("image"), scratch.0.join("socket"));
        std::fs::File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
        let blockdev = format!("driver=file,node-name=disk,filename={}", image.display());
        let export = format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues={queues},\
             addr.type=unix,addr.path={}",
            socket.display()
        );
        let child = Command::new("qemu-storage-daemon")
            .args(["--blockdev", &blockdev, "--export", &export])
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-storage-daemon runs; on Debian it comes with the package qemu-utils");
        let mut daemon = StorageDaemon { child, socket, _scratch: scratch };
        until("qemu-storage-daemon listens", || {
            assert!(daemon.child.try_wait().unwrap().is_none(), "qemu-storage-daemon ended");
            crate::rig::exists(&daemon.socket)
        });
        daemon
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn our_driver_drives_qemu_storage_daemon() {
    let daemon = StorageDaemon::start(2);
    let mut rng = Rng::new(5);
    for (queues, indirect, event_idx) in [(1, false, false), (1, true, true), (2, true, true)] {
        let shape = options(queues, 8, indirect, event_idx);
        // Its socket is there a moment before it listens.
        let mut driver = None;
        until("it answers", || {
            driver = BlkDriver::connect_with(&daemon.socket, shape).ok();
            driver.is_some()
        });
        let mut driver = driver.unwrap();
        assert_eq!(driver.capacity_bytes(), DISK_BYTES);
        // The verifier begins with a disk of zeros.
        for offset in (0..DISK_BYTES).step_by(128 << 10) {
            driver.write_data(0, 0, &vec![0; 128 << 10]);
            let (status, _) = io(&mut driver, DriverOp::Write, offset, 0, 128 << 10);
            assert_eq!(status, OK);
        }
        Verifier::new(&mut rng, &mut driver, shape, 512).run(500);
        assert_eq!(io(&mut driver, DriverOp::Flush, 0, 0, 0).0, OK);
        assert_ne!(io(&mut driver, DriverOp::Read, DISK_BYTES, 0, 512).0, OK);
        assert!(driver.is_connected());
        for queue in 0..queues {
            assert!(driver.stop(queue).unwrap() > 0);
        }
    }
}
