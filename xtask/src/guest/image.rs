//! What guests are started from, built once: `outboard/guest` in the user's cache folder, with
//! `packages-NUMBER` (unpacked packages, QEMU among them) and `image-NUMBER` (kernel and first file
//! system). The number comes from what it was made from, so that another recipe makes another
//! folder; what no run uses any more is removed when a new one is made.

use super::initramfs;
use super::packages::{self, Release, Root};
use super::qemu::Accelerator;
use crate::error::Error;
use crate::netns::Namespace;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The two kinds of folder.
const PACKAGES: &str = "packages-";
const IMAGE: &str = "image-";
/// The file in either that a run holds a shared lock on.
const IN_USE: &str = "in-use";

/// Kernel, first file system and QEMU; not removed while this value is there.
#[derive(Debug)]
pub struct Image {
    root: Root,
    folder: PathBuf,
    _locks: [File; 2],
}

impl Image {
    /// The image if it is built, or why guests cannot be built here.
    pub fn find() -> Result<Option<Image>, String> {
        let places = Places::new()?;
        places.open().map_err(|error| error.to_string())
    }

    /// The image, built if it is not there: a minute, most of it downloading.
    pub fn get() -> Result<Image, Error> {
        let places = Places::new().map_err(|why| Error::task(why, "use such a machine"))?;
        fs::create_dir_all(&places.base).map_err(Error::file("create", &places.base))?;
        let lock = create(&places.base.join("lock"))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            println!("  ...      waiting for another run that builds the guest");
            flock(&lock, FlockOperation::LockExclusive)
                .map_err(|e| Error::file("lock", &places.base)(e.into()))?;
        }
        if let Some(image) = places.open()? {
            return Ok(image);
        }
        places.build()?;
        let image = places.open()?.ok_or_else(|| {
            Error::task(format!("{} vanished", places.base.display()), "run it again")
        })?;
        places.remove_unused()?;
        Ok(image)
    }

    /// The kernel's ELF file.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// The first file system.
    pub fn initramfs(&self) -> PathBuf {
        self.folder.join("initramfs")
    }

    /// The kernel's release.
    pub fn release(&self) -> String {
        fs::read_to_string(self.folder.join("release")).unwrap_or_default()
    }

    /// QEMU in a namespace; the process that is started becomes QEMU, and dies with this task.
    pub fn qemu(&self, namespace: &Namespace) -> Command {
        let program = self.root.command("usr/bin/qemu-system-x86_64");
        let mut command = namespace.command("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program.get_program());
        command.args(program.get_args());
        for folder in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(self.root.path().join(folder));
        }
        command.env("QEMU_MODULE_DIR", self.root.path().join("usr/lib/x86_64-linux-gnu/qemu"));
        command
    }

    /// What was found to run guests here, if it has been tried with this host's kernel.
    pub fn accelerator(&self) -> Option<Accelerator> {
        let text = fs::read_to_string(self.folder.join("accelerator")).ok()?;
        let (kernel, name) = text.trim().split_once(' ')?;
        let known = [Accelerator::Kvm, Accelerator::Tcg].into_iter().find(|a| a.name() == name);
        known.filter(|_| kernel == host_kernel())
    }

    /// Remembers it.
    pub fn set_accelerator(&self, accelerator: Accelerator) -> Result<(), Error> {
        let path = self.folder.join("accelerator");
        let text = format!("{} {}\n", host_kernel(), accelerator.name());
        fs::write(&path, text).map_err(Error::file("write", &path))
    }
}

fn host_kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_string()
}

/// Where packages and image of this recipe are.
struct Places {
    base: PathBuf,
    release: Release,
    packages: PathBuf,
    image: PathBuf,
}

impl Places {
    fn new() -> Result<Places, String> {
        let release = Release::of_this_machine()?;
        let base = cache().ok_or("neither XDG_CACHE_HOME nor HOME is set")?.join("outboard/guest");
        let of_packages = release.fingerprint();
        let of_image = format!("{of_packages}{}", initramfs::fingerprint());
        let packages = base.join(format!("{PACKAGES}{:016x}", number(&of_packages)));
        let image = base.join(format!("{IMAGE}{:016x}", number(&of_image)));
        Ok(Places { base, release, packages, image })
    }

    /// Both folders, if they are there.
    fn open(&self) -> Result<Option<Image>, Error> {
        let (Some(one), Some(other)) = (use_folder(&self.packages)?, use_folder(&self.image)?)
        else {
            return Ok(None);
        };
        let root = Root::at(self.packages.clone());
        Ok(Some(Image { root, folder: self.image.clone(), _locks: [one, other] }))
    }

    /// Makes what is missing: beside its place, then moved there, so that it is whole or not there.
    fn build(&self) -> Result<(), Error> {
        if !self.packages.exists() {
            let scratch = Building::new(&self.base.join("building-packages"))?;
            let folder = scratch.0.join("root");
            packages::unpack(&self.release, &scratch.0, &folder)?;
            finish(&folder, &self.packages)?;
        }
        if !self.image.exists() {
            let scratch = Building::new(&self.base.join("building-image"))?;
            let folder = scratch.0.join("image");
            fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
            let release = initramfs::build(&Root::at(self.packages.clone()), &folder)?;
            let path = folder.join("release");
            fs::write(&path, release).map_err(Error::file("write", &path))?;
            finish(&folder, &self.image)?;
        }
        Ok(())
    }

    /// Removes folders of other recipes that no run uses.
    fn remove_unused(&self) -> Result<(), Error> {
        for path in packages::entries(&self.base)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let ours = path == self.packages || path == self.image;
            if ours || !(name.starts_with(PACKAGES) || name.starts_with(IMAGE)) {
                continue;
            }
            let Ok(lock) = File::open(path.join(IN_USE)) else { continue };
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                println!("  ...      removing {}, of another recipe", path.display());
                fs::remove_dir_all(&path).map_err(Error::file("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// A folder that is being filled; removed with what is left in it.
struct Building(PathBuf);

impl Building {
    fn new(path: &Path) -> Result<Building, Error> {
        // Of a run that was killed: whoever builds holds the lock.
        if path.exists() {
            fs::remove_dir_all(path).map_err(Error::file("remove", path))?;
        }
        fs::create_dir_all(path).map_err(Error::file("create", path))?;
        Ok(Building(path.to_path_buf()))
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn finish(from: &Path, to: &Path) -> Result<(), Error> {
    create(&from.join(IN_USE))?;
    fs::rename(from, to).map_err(Error::file("create", to))
}

/// Marks a folder as in use; nothing if it is not there.
fn use_folder(folder: &Path) -> Result<Option<File>, Error> {
    let path = folder.join(IN_USE);
    let Ok(file) = File::open(&path) else { return Ok(None) };
    flock(&file, FlockOperation::LockShared).map_err(|e| Error::file("lock", &path)(e.into()))?;
    // It may have been removed before it was locked.
    Ok(path.exists().then_some(file))
}

fn create(path: &Path) -> Result<File, Error> {
    File::create(path).map_err(Error::file("create", path))
}

fn number(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

fn cache() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty());
    match cache {
        Some(path) => Some(PathBuf::from(path)),
        None => Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")),
    }
}
