//! Opening, and when asked making, the file or block device of a volume.
//!
//! Ends with a locked descriptor, its size, and how direct I/O must be aligned. The alignment
//! comes from statx(STATX_DIOALIGN) (Linux 6.1), for block devices also from ioctl(BLKSSZGET); a
//! file system that tells neither is asked by reading one block.

use super::medium;
use crate::clock::now_ns;
use crate::volume::Geometry;
use outboard_dma::Pages;
use rustix::fs::{self, AtFlags, CWD, FileType, FlockOperation, OFlags, StatxFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a lock may be held by a process that has ended: the kernel closes the files of an
/// io_uring only once what was in flight has ended, a while after the process is gone. That is
/// what keeps a write of the past from landing behind the next process's back.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
/// The same for a process that lives, which may be about to end.
const LOCK_PATIENCE_LIVING: Duration = Duration::from_secs(1);
/// How often it is tried meanwhile.
const LOCK_LOOK: Duration = Duration::from_millis(10);

/// Why a file volume could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is nothing at the path.
    #[error("{path}: no such file; set `create` to have it made, or run `truncate -s 1G {path}`")]
    Missing {
        /// The volume's path.
        path: PathBuf,
    },
    /// The kernel refused to open it.
    #[error("cannot open {path}: {source}; check the path and who may read and write it")]
    Open {
        /// The volume's path.
        path: PathBuf,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// It is a folder, a pipe, a socket or a character device.
    #[error("{path} is neither a regular file nor a block device; name one that is")]
    Kind {
        /// The volume's path.
        path: PathBuf,
    },
    /// Another volume or process holds its lock, or the device is mounted.
    #[error(
        "{path} is in use by another volume, daemon or mount; stop that, or name another file{}",
        holder.as_ref().map_or(String::new(), |who| format!(" (its lock is held by {who})"))
    )]
    InUse {
        /// The volume's path.
        path: PathBuf,
        /// Who holds it, as far as this host's kernel tells.
        holder: Option<String>,
    },
    /// Its size is no number of blocks.
    #[error(
        "{path} has {bytes} bytes, which is not a multiple (above zero) of \
         block_bytes = {block_bytes}; resize it with `truncate`, or set `create` right"
    )]
    Size {
        /// The volume's path.
        path: PathBuf,
        /// Its size, or the size to make.
        bytes: u64,
        /// The volume's block size.
        block_bytes: u32,
    },
    /// The device's blocks are larger than the volume's.
    #[error(
        "{path} takes direct I/O only in blocks of {need} bytes, not {block_bytes}; \
         set block_bytes = {need}"
    )]
    Block {
        /// The volume's path.
        path: PathBuf,
        /// The volume's block size.
        block_bytes: u32,
        /// The device's block size.
        need: u32,
    },
    /// It could not be made.
    #[error("cannot make {path} of {bytes} bytes: {source}; free space, or lower `create`")]
    Create {
        /// The volume's path.
        path: PathBuf,
        /// The size asked for.
        bytes: u64,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// There is no io_uring for it.
    #[error(
        "cannot set up io_uring for {path}: {source}; \
         set kernel.io_uring_disabled = 0 and raise the memlock limit"
    )]
    Ring {
        /// The volume's path.
        path: PathBuf,
        /// The kernel's reason.
        source: std::io::Error,
    },
}

/// An open file, ready to be a volume.
#[derive(Debug)]
pub(super) struct Opened {
    pub file: File,
    pub geometry: Geometry,
    /// How direct I/O must be aligned; `None`: the file system refuses it.
    pub direct: Option<Alignment>,
    /// Whether it was made just now.
    pub made: bool,
    /// What tells it from another medium; empty: nothing does.
    pub medium: String,
}

/// What direct I/O demands, in bytes; powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Of addresses.
    pub memory: u32,
    /// Of offsets and lengths.
    pub offset: u32,
}

/// Opens `path`; makes it with `create_bytes` bytes when it is missing and that is given. What was
/// made and cannot be used is not left.
pub(super) fn open(
    path: &Path,
    block_bytes: u32,
    read_only: bool,
    create_bytes: Option<u64>,
) -> Result<Opened, FileError> {
    let mut made = false;
    if let Some(bytes) = create_bytes
        && !path.exists()
    {
        if bytes == 0 || !bytes.is_multiple_of(u64::from(block_bytes)) {
            return Err(FileError::Size { path: path.into(), bytes, block_bytes });
        }
        made = create(path, bytes).map_err(|source| FileError::Create {
            path: path.into(),
            bytes,
            source,
        })?;
    }
    let since_ns = now_ns();
    let outcome = loop {
        let outcome = open_made(path, block_bytes, read_only);
        let Err(FileError::InUse { holder, .. }) = &outcome else { break outcome };
        let is_living = holder.is_some();
        let patience = if is_living { LOCK_PATIENCE_LIVING } else { LOCK_PATIENCE };
        if now_ns().saturating_sub(since_ns) >= patience.as_nanos() as u64 {
            break outcome;
        }
        std::thread::sleep(LOCK_LOOK);
    };
    match outcome {
        Ok(opened) => Ok(Opened { made, ..opened }),
        // Somebody else uses it already.
        Err(error @ FileError::InUse { .. }) => Err(error),
        Err(error) => {
            if made {
                // Best effort: the reason why it cannot be used is what counts.
                let _ = std::fs::remove_file(path);
            }
            Err(error)
        }
    }
}

/// Opens what is there.
fn open_made(path: &Path, block_bytes: u32, read_only: bool) -> Result<Opened, FileError> {
    let (fd, kind, refused) = open_existing(path, read_only)?;
    let lock = if read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    let open_error = |error: Errno| FileError::Open { path: path.into(), source: error.into() };
    match fs::flock(&fd, lock) {
        Err(Errno::WOULDBLOCK) => {
            return Err(FileError::InUse { path: path.into(), holder: holder(&fd) });
        }
        locked => locked.map_err(open_error)?,
    }
    let mut file = File::from(fd);
    let bytes = file
        .seek(SeekFrom::End(0))
        .map_err(|source| FileError::Open { path: path.into(), source })?;
    if bytes == 0 || !bytes.is_multiple_of(u64::from(block_bytes)) {
        return Err(FileError::Size { path: path.into(), bytes, block_bytes });
    }
    let direct =
        if refused { None } else { alignment(&file, kind, block_bytes).map_err(open_error)? };
    match direct {
        Some(Alignment { offset, .. }) if offset > block_bytes => {
            return Err(FileError::Block { path: path.into(), block_bytes, need: offset });
        }
        Some(_) => {}
        None => buffered(&file).map_err(open_error)?,
    }
    let blocks = bytes / u64::from(block_bytes);
    let geometry = Geometry { block_bytes, blocks, read_only };
    let medium = medium::name(&file, kind).map_err(open_error)?;
    Ok(Opened { file, geometry, direct, made: false, medium })
}

/// The living process that holds a lock on this file (`man 5 proc_locks`); `None`: it has ended,
/// or is of another PID namespace.
fn holder(file: &OwnedFd) -> Option<String> {
    let stat = fs::fstat(file).ok()?;
    let (major, minor) = (fs::major(stat.st_dev), fs::minor(stat.st_dev));
    let place = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let is_here = |line: &&str| line.contains(" FLOCK ") && line.split(' ').any(|at| at == place);
    let holders = locks.lines().filter(is_here).filter_map(|line| {
        line.split_whitespace().find_map(|word| word.parse::<u32>().ok().filter(|pid| *pid > 0))
    });
    let mut living = holders.filter_map(|pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name in brackets: the state; Z and X have ended (`man 5 proc_pid_stat`).
        let (before, behind) = status.rsplit_once(") ")?;
        let name = before.split_once('(')?.1;
        (!behind.starts_with(['Z', 'X'])).then(|| format!("process {pid}, {name}"))
    });
    living.next()
}

/// The descriptor, what it is, and whether O_DIRECT was refused.
fn open_existing(path: &Path, read_only: bool) -> Result<(OwnedFd, FileType, bool), FileError> {
    let failed = |error: Errno| match error {
        Errno::NOENT => FileError::Missing { path: path.into() },
        // A mount or another claim, which no lock tells of: there is nothing to wait for.
        Errno::BUSY => FileError::InUse { path: path.into(), holder: Some("the kernel".into()) },
        Errno::ISDIR => FileError::Kind { path: path.into() },
        _ => FileError::Open { path: path.into(), source: error.into() },
    };
    // Looked at before it is opened: opening a pipe would wait.
    let kind = fs::stat(path).map(|stat| FileType::from_raw_mode(stat.st_mode)).map_err(failed)?;
    if kind != FileType::RegularFile && kind != FileType::BlockDevice {
        return Err(FileError::Kind { path: path.into() });
    }
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let mut flags = access | OFlags::CLOEXEC;
    if kind == FileType::BlockDevice && !read_only {
        // Without O_CREAT: refuse a device that is mounted or claimed (`man 2 open`).
        flags |= OFlags::EXCL;
    }
    match fs::open(path, flags | OFlags::DIRECT, fs::Mode::empty()) {
        Ok(fd) => Ok((fd, kind, false)),
        Err(Errno::INVAL) => {
            let fd = fs::open(path, flags, fs::Mode::empty()).map_err(failed)?;
            Ok((fd, kind, true))
        }
        Err(error) => Err(failed(error)),
    }
}

/// How direct I/O must be aligned, or `None` when the file system does not do it.
fn alignment(
    file: &File,
    kind: FileType,
    block_bytes: u32,
) -> rustix::io::Result<Option<Alignment>> {
    let asked = fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    if let Ok(stat) = asked
        && stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0
    {
        let (memory, offset) = (stat.stx_dio_mem_align, stat.stx_dio_offset_align);
        return Ok((offset != 0).then_some(Alignment { memory, offset }));
    }
    if kind == FileType::BlockDevice {
        let block = fs::ioctl_blksszget(file)?;
        return Ok(Some(Alignment { memory: block, offset: block }));
    }
    // Nobody tells: try. Page-aligned addresses satisfy every file system.
    let mut page = Pages::new(4096, true).map_err(|_| Errno::NOMEM)?;
    for offset in [block_bytes, 4096] {
        match file.read_at(&mut page[..offset as usize], 0) {
            Ok(_) => return Ok(Some(Alignment { memory: 4096, offset })),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
    }
    Ok(None)
}

/// Clears O_DIRECT.
fn buffered(file: &File) -> rustix::io::Result<()> {
    let flags = fs::fcntl_getfl(file)?;
    fs::fcntl_setfl(file, flags - OFlags::DIRECT)
}

/// Makes the whole file under another name first, so that nobody ever opens half of one. `false`:
/// somebody else has made it meanwhile.
fn create(path: &Path, bytes: u64) -> std::io::Result<bool> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = PathBuf::from(name);
    let made = fill_and_name(&new, path, bytes);
    if made.is_err() {
        // Best effort: the reason why it could not be made is what counts.
        let _ = std::fs::remove_file(&new);
    }
    match made {
        // Somebody else was faster; then it is not missing any more.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) && path.exists() => Ok(false),
        made => made.map(|()| true),
    }
}

fn fill_and_name(new: &Path, path: &Path, bytes: u64) -> std::io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let file = File::from(fs::open(new, flags, fs::Mode::RUSR | fs::Mode::WUSR)?);
    match fs::fallocate(&file, fs::FallocateFlags::empty(), 0, bytes) {
        // The file system cannot reserve space: the file stays sparse.
        Err(Errno::OPNOTSUPP) => file.set_len(bytes)?,
        reserved => reserved?,
    }
    file.sync_all()?;
    fs::renameat_with(CWD, new, CWD, path, fs::RenameFlags::NOREPLACE)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
