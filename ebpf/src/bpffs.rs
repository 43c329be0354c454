//! The BPF file system, where programs, maps and links stay by name when a process ends.
//!
//! It reserves dots in names (kernel/bpf/inode.c, `bpf_lookup`), which instances (`host.a`) and
//! interfaces (`eth0.100`) may have; [`name`] puts a colon there, which neither may have.

use rustix::fs::{FlockOperation, flock, statfs};
use rustix::mount::{MountFlags, mount};
use std::io::Error;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Where the BPF file system belongs.
const MOUNT_POINT: &str = "/sys/fs/bpf";
/// BPF_FS_MAGIC of linux/magic.h.
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

/// What an instance or an interface is called on a BPF file system.
pub(crate) fn name(name: &str) -> String {
    name.replace('.', ":")
}

/// Makes `directory` (mode 0700) on a BPF file system, which is mounted on `/sys/fs/bpf` when
/// `directory` lies there and nobody has mounted it yet.
pub(crate) fn prepare(directory: &Path) -> Result<(), Error> {
    if directory.starts_with(MOUNT_POINT) {
        mount_once()?;
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    if is_bpffs(directory)? {
        return Ok(());
    }
    Err(Error::other("it is not on a BPF file system (mount -t bpf bpf DIRECTORY)"))
}

/// Mounts under a lock on the directory, so that two processes that start together do not mount
/// over each other, which would hide the pins of one.
fn mount_once() -> Result<(), Error> {
    let mount_point = Path::new(MOUNT_POINT);
    if is_bpffs(mount_point)? {
        return Ok(());
    }
    let directory = std::fs::File::open(mount_point)?;
    flock(&directory, FlockOperation::LockExclusive)?;
    if is_bpffs(mount_point)? {
        return Ok(());
    }
    Ok(mount("bpf", mount_point, "bpf", MountFlags::empty(), None)?)
}

fn is_bpffs(path: &Path) -> Result<bool, Error> {
    Ok(statfs(path)?.f_type as u32 == BPF_FS_MAGIC)
}
