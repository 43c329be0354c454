//! What tells one medium from another that is found at its path later: hosts that come back must
//! not take the one for the other.
//!
//! A file is named by its inode's number and birth time (statx(2), STATX_BTIME): both stay over a
//! restart of the daemon, a remount and a start of the machine, also when the file is renamed, and
//! a file that was made anew has another birth time. A file system that keeps no birth times may
//! give the number of a file that was removed to the next one: the two cannot be told apart. One
//! whose inode numbers do not outlive a mount (some network and FUSE file systems) shows another
//! medium after each. What is written into the same file, or what a copy of the whole file system
//! has in its place, cannot be told either.
//!
//! A block device is named by what it or its driver says of itself in sysfs: the UUID of a device
//! mapper's or MD device, else a world wide identifier or serial number; a partition by its disk's,
//! its number and its start. A device that says nothing (a loop or RAM disk) has no name here.

use rustix::fs::{self, AtFlags, FileType, StatxFlags};
use rustix::io::Errno;
use std::fs::File;
use std::path::Path;

/// Where below a device's directory in sysfs its name is looked for, best first.
const NAMES: [&str; 7] =
    ["dm/uuid", "md/uuid", "wwid", "uuid", "device/wwid", "serial", "device/serial"];

/// The medium's name; empty: it has none.
pub(super) fn name(file: &File, kind: FileType) -> Result<String, Errno> {
    if kind == FileType::BlockDevice {
        let stat = fs::fstat(file)?;
        let (major, minor) = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
        let directory = format!("/sys/dev/block/{major}:{minor}");
        return Ok(device(Path::new(&directory)).unwrap_or_default());
    }
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let stat = match fs::statx(file, c"", AtFlags::EMPTY_PATH, wanted) {
        Ok(stat) => stat,
        // Before Linux 4.11, or forbidden in a container of old.
        Err(Errno::NOSYS | Errno::PERM) => return Ok(format!("inode {}", fs::fstat(file)?.st_ino)),
        Err(error) => return Err(error),
    };
    let born = match stat.stx_mask & StatxFlags::BTIME.bits() {
        0 => String::new(),
        _ => format!(" of {}.{:09}", stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
    };
    Ok(format!("inode {}{born}", stat.stx_ino))
}

/// The name of the device with this directory in sysfs.
fn device(directory: &Path) -> Option<String> {
    let read = |name: &str| {
        let text = std::fs::read_to_string(directory.join(name)).ok()?;
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    };
    let Some(partition) = read("partition") else { return NAMES.into_iter().find_map(read) };
    // Its directory is in its disk's.
    let disk = std::fs::canonicalize(directory).ok()?;
    let disk = device(disk.parent()?)?;
    Some(format!("{disk} partition {partition} at {}", read("start")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(what: &str) -> Scratch {
            let name = format!("outboard-medium-{what}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }

        /// Writes a file of sysfs.
        fn write(&self, name: &str, text: &str) {
            let path = self.0.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn named(path: &Path) -> String {
        name(&File::open(path).unwrap(), FileType::RegularFile).unwrap()
    }

    #[test]
    fn a_file_keeps_its_name_and_one_made_anew_has_another() {
        let scratch = Scratch::new("file");
        let (path, other) = (scratch.0.join("a"), scratch.0.join("b"));
        std::fs::write(&path, "one").unwrap();
        let first = named(&path);
        assert!(!first.is_empty());
        std::fs::write(&path, "another content, and another length").unwrap();
        assert_eq!(named(&path), first);
        std::fs::rename(&path, &other).unwrap();
        assert_eq!(named(&other), first, "renamed");
        // One that takes its place, as an editor or a restore does it.
        std::fs::write(&path, "one").unwrap();
        assert_ne!(named(&path), first, "a copy");
        std::fs::rename(&path, &other).unwrap();
        assert_ne!(named(&other), first, "replaced");
    }

    #[test]
    fn a_device_is_named_by_the_best_that_it_says() {
        let scratch = Scratch::new("device");
        scratch.write("sda/device/wwid", "naa.5000c500\n");
        scratch.write("sda/sda2/partition", "2\n");
        scratch.write("sda/sda2/start", "2048\n");
        scratch.write("dm-0/dm/uuid", "LVM-7\n");
        scratch.write("dm-0/serial", "never asked for");
        scratch.write("vda/serial", "\n");
        scratch.write("vda/vda1/partition", "1\n");
        scratch.write("vda/vda1/start", "1\n");
        let of = |name: &str| device(&scratch.0.join(name));
        assert_eq!(of("sda").as_deref(), Some("naa.5000c500"));
        assert_eq!(of("sda/sda2").as_deref(), Some("naa.5000c500 partition 2 at 2048"));
        assert_eq!(of("dm-0"), Some("LVM-7".to_owned()));
        assert_eq!(of("vda"), None);
        assert_eq!(of("vda/vda1"), None);
        assert_eq!(of("nowhere"), None);
    }
}
