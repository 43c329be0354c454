//! Media that are full, cut, or read-only.

use crate::guest::{Guest, Oracle};
use crate::host::{Host, NQN, Scratch, address, count, disk, export, remote, remote_disk};
use outboard::virtio::driver::DriverOp;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small memory file system, unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(scratch: &Scratch) -> Mount {
        let path = scratch.path("small");
        std::fs::create_dir(&path).unwrap();
        let mut mount = Command::new("mount");
        let mount = mount.args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(&path);
        assert!(mount.status().unwrap().success());
        Mount(path)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn set_size(path: &Path, bytes: u64) {
    let file = std::fs::File::options().create(true).truncate(false).write(true).open(path);
    file.unwrap().set_len(bytes).unwrap();
}

#[test]
fn a_full_medium_is_named_near_and_far_and_the_others_go_on() {
    let (scratch, address) = (Scratch::new(), address());
    let mount = Mount::new(&scratch);
    set_size(&mount.0.join("sparse.img"), 4 << 20);
    let text = "[[volume]]\nname = 'small'\nkind = 'file'\npath = 'DIR/small/sparse.img'\n\
                [[volume]]\nname = 'large'\nkind = 'file'\npath = 'DIR/large.img'\n\
                create = '1MiB'\n"
        .to_owned()
        + &disk("near", "small")
        + &disk("large", "large")
        + &export("small", NQN, address);
    let target = Host::new(&scratch, "b", &text).run();
    let initiator = Host::new(&scratch, "a", &remote_disk(address)).run();
    let mut large = Guest::new(&scratch, "large", Oracle::new(1 << 20));
    large.runs(100);

    let mut far = Guest::new(&scratch, "vda", Oracle::new(4 << 20));
    let outcome = far.run(200);
    assert!(outcome.failed > 0 && outcome.done > 0, "{outcome:?}");
    assert_eq!(initiator.ended("vda", "no_space"), outcome.failed);
    assert_eq!(count(&target.export(NQN).errors, "no_space"), outcome.failed);
    assert_eq!(initiator.volume("far").state, "ready", "no reason to lose the connection");
    far.verify();

    let mut near = Guest::new(&scratch, "near", far.kill());
    let outcome = near.run(100);
    assert!(outcome.failed > 0 && outcome.done > 0, "{outcome:?}");
    assert_eq!(target.ended("near", "no_space"), outcome.failed);
    near.verify();
    large.runs(100);
    large.verify();
    assert_eq!(target.ended("large", "no_space"), 0);
    initiator.stop();
    target.stop();
    drop(mount);
}

#[test]
fn a_file_cut_behind_our_back_reads_as_zeros_and_grows_again() {
    let scratch = Scratch::new();
    let text = "[[volume]]\nname = 'data'\nkind = 'file'\npath = 'DIR/data.img'\ncreate = '1MiB'\n";
    let daemon = Host::new(&scratch, "a", &(text.to_owned() + &disk("vda", "data"))).run();
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(1 << 20));
    guest.runs(300);
    for bytes in [512 << 10, 0] {
        set_size(&scratch.path("data.img"), bytes);
        guest.forget_behind(bytes);
        guest.verify();
        guest.runs(300);
        guest.verify();
    }
    daemon.stop();
}

#[test]
fn a_volume_that_is_read_only_is_so_near_and_far() {
    let (scratch, address) = (Scratch::new(), address());
    set_size(&scratch.path("data.img"), 1 << 20);
    let text = "[[volume]]\nname = 'data'\nkind = 'file'\npath = 'DIR/data.img'\nread_only = true\n"
        .to_owned()
        + &disk("near", "data") + &export("data", NQN, address);
    let target = Host::new(&scratch, "b", &text).run();
    let text = remote("far", NQN, address) + &disk("far", "far");
    let initiator = Host::new(&scratch, "a", &text).run();
    for (daemon, name) in [(&target, "near"), (&initiator, "far")] {
        let mut guest = Guest::new(&scratch, name, Oracle::new(1 << 20));
        // VIRTIO_BLK_F_RO (virtio 1.2, section 5.2.3).
        assert!(guest.driver.features() & 1 << 5 != 0, "{name} is not told");
        assert!(!guest.does(DriverOp::Write, 3, 1));
        assert_eq!(daemon.ended(name, "read_only"), 1);
        assert!(guest.does(DriverOp::Read, 3, 1) && guest.does(DriverOp::Flush, 0, 0));
    }
    initiator.stop();
    target.stop();
    let content = std::fs::read(scratch.path("data.img")).unwrap();
    assert!(content.iter().all(|byte| *byte == 0));
}

#[test]
fn a_remote_volume_may_be_read_only_here_alone() {
    let (scratch, address) = (Scratch::new(), address());
    let target = Host::new(&scratch, "b", &crate::host::file_target("data.img", address)).run();
    let text = remote("far", NQN, address) + "read_only = true\n" + &disk("far", "far");
    let initiator = Host::new(&scratch, "a", &text).run();
    let mut guest = Guest::new(&scratch, "far", Oracle::new(4 << 20));
    assert!(!guest.does(DriverOp::Write, 3, 1) && guest.does(DriverOp::Read, 3, 1));
    assert_eq!(initiator.ended("far", "read_only"), 1);
    initiator.stop();
    target.stop();
}
