//! The BPF file system, where programs, maps and links stay by name when a process ends.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::io::Error;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Where the BPF file system belongs.
const MOUNT_POINT: &str = "/sys/fs/bpf";
/// BPF_FS_MAGIC of linux/magic.h.
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

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
    if is_bpffs(Path::new(MOUNT_POINT))? {
        return Ok(());
    }
    let directory = std::fs::File::open(MOUNT_POINT)?;
    // SAFETY: an owned descriptor; the lock ends when it is closed.
    if unsafe { libc::flock(directory.as_raw_fd(), libc::LOCK_EX) } != 0 {
        return Err(Error::last_os_error());
    }
    if is_bpffs(Path::new(MOUNT_POINT))? {
        return Ok(());
    }
    let target = CString::new(MOUNT_POINT)?;
    let (name, none) = (c"bpf".as_ptr(), std::ptr::null());
    // SAFETY: all strings are NUL-terminated; the file system takes no data.
    match unsafe { libc::mount(name, target.as_ptr(), name, 0, none) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

fn is_bpffs(path: &Path) -> Result<bool, Error> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all zero is a valid statfs, a structure of integers.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a NUL-terminated path and a structure to write to.
    match unsafe { libc::statfs(path.as_ptr(), &raw mut about) } {
        0 => Ok(about.f_type as u32 == BPF_FS_MAGIC),
        _ => Err(Error::last_os_error()),
    }
}
