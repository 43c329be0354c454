//! The directory of one instance's pins, and the right to use it.
//!
//! A pinned link is taken over by whoever comes next, so the next one must not come while the
//! first one lives. The lock is on the directory itself: it covers exactly what it protects, and
//! the kernel ends it with the process, however that ends.

use crate::bpffs;
use crate::error::Error;
use crate::link::Pinned;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How often the directory may be removed by an instance that ends while this one begins.
const ATTEMPTS: u32 = 16;

/// The directory, held until this is dropped; then it is removed, unless something is pinned there.
#[derive(Debug)]
pub struct Instance {
    directory: PathBuf,
    _lock: File,
}

impl Instance {
    /// Makes and holds the directory of the instance `name` under `parent`, on a BPF file system;
    /// [`Error::Held`] when another process does.
    pub fn claim(parent: &Path, name: &str) -> Result<Instance, Error> {
        let directory = parent.join(bpffs::name(name));
        let failed = |source| Error::Directory { directory: directory.clone(), source };
        for _ in 0..ATTEMPTS {
            bpffs::prepare(&directory).map_err(failed)?;
            match lock(&directory) {
                Ok(Some(lock)) => return Ok(Instance { directory, _lock: lock }),
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(Error::Held { directory });
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Err(failed(io::Error::other("it is removed again and again")))
    }

    /// Where the instance's pins are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Detaches and removes what an earlier process of this instance left on interfaces other than
    /// `interfaces`; the names under which it was found.
    pub fn forget_others(&self, interfaces: &[&str]) -> Result<Vec<String>, Error> {
        let failed = |source| Error::Directory { directory: self.directory.clone(), source };
        let kept: Vec<String> = interfaces.iter().map(|name| bpffs::name(name)).collect();
        let mut forgotten = Vec::new();
        let entries = std::fs::read_dir(&self.directory).and_then(Iterator::collect);
        let entries: Vec<std::fs::DirEntry> = entries.map_err(failed)?;
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            let interface = name.rsplit_once('-').map_or(name.as_str(), |(interface, _)| interface);
            if kept.iter().any(|kept| kept == interface) {
                continue;
            }
            if name.ends_with("-link")
                && let Ok(Some(link)) = Pinned::open(&entry.path())
            {
                // It has nothing to detach when its interface is gone.
                let _ = link.detach();
                forgotten.push(interface.replace(':', "."));
            }
            std::fs::remove_file(entry.path()).map_err(failed)?;
        }
        Ok(forgotten)
    }

    /// Detaches and removes those of the XDP `programs` (their numbers in the kernel) that dead
    /// instances of other names left attached; the names of their interfaces.
    pub fn inherit(&self, programs: &[u32]) -> Result<Vec<String>, Error> {
        let failed = |source| Error::Directory { directory: self.directory.clone(), source };
        let Some(parent) = self.directory.parent() else { return Ok(Vec::new()) };
        let mut inherited = Vec::new();
        for other in paths(parent).map_err(failed)? {
            let held = held(&other, programs);
            if held.is_empty() {
                continue;
            }
            // Our own directory is locked, as is that of any instance that lives.
            let Ok(Some(_lock)) = lock(&other) else { continue };
            for (interface, link) in held {
                link.detach().map_err(failed)?;
                for what in ["link", "prog", "xsks", "counters"] {
                    let _ = std::fs::remove_file(other.join(format!("{interface}-{what}")));
                }
                inherited.push(interface.replace(':', "."));
            }
            // Fails while it has pins on other interfaces.
            let _ = std::fs::remove_dir(&other);
        }
        Ok(inherited)
    }
}

/// The links in a directory that are of these programs, by the names of their interfaces there.
fn held(directory: &Path, programs: &[u32]) -> Vec<(String, Pinned)> {
    let mut held = Vec::new();
    for pin in paths(directory).unwrap_or_default() {
        let name = pin.file_name().unwrap_or_default().to_string_lossy();
        let Some(interface) = name.strip_suffix("-link") else { continue };
        let Ok(Some(link)) = Pinned::open(&pin) else { continue };
        if link.program().is_some_and(|program| programs.contains(&program)) {
            held.push((interface.to_owned(), link));
        }
    }
    held
}

fn paths(directory: &Path) -> Result<Vec<PathBuf>, io::Error> {
    std::fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Still locked: who waits for the lock finds that this is not the directory any more.
        let _ = std::fs::remove_dir(&self.directory);
    }
}

/// The locked directory; `None` when it is not the one at its path any more.
fn lock(directory: &Path) -> Result<Option<File>, io::Error> {
    let file = File::open(directory)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(ErrorKind::WouldBlock.into()),
        Err(errno) => return Err(errno.into()),
    }
    let (ours, there) = (file.metadata()?, std::fs::metadata(directory)?);
    Ok(((ours.dev(), ours.ino()) == (there.dev(), there.ino())).then_some(file))
}
