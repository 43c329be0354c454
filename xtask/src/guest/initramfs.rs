//! Kernel and first file system of a guest, from a folder of unpacked packages.
//!
//! The kernel is unpacked to its ELF file, which QEMU starts directly (PVH): under emulation that
//! spares seconds of decompression, as does an archive that is not compressed. Modules come with
//! all that modules.dep names for them; programs with all their libraries.

use super::cpio;
use super::packages::{self, Root};
use crate::error::Error;
use crate::process;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The guest's first program.
pub const INIT: &str = include_str!("init.sh");

/// Drivers of the devices that jobs use, and what the kernel asks for by name while it runs
/// (`request_module`): checksums of ext4 and of NVMe/TCP's digests.
pub const MODULES: &[&str] = &[
    "crc32c_generic",
    "crc32c_intel",
    "ext4",
    "nvme_tcp",
    "qemu_fw_cfg",
    "virtio_blk",
    "virtio_net",
    "virtio_pci",
];

/// Programs of the guest beside busybox, whose applets are found last.
pub const PROGRAMS: &[&str] = &[
    "usr/bin/bash",
    "usr/bin/busybox",
    "usr/bin/cat",
    "usr/bin/dd",
    "usr/bin/fio",
    "usr/bin/kmod",
    "usr/bin/mount",
    "usr/bin/sha256sum",
    "usr/bin/sync",
    "usr/bin/tar",
    "usr/bin/timeout",
    "usr/bin/umount",
    "usr/sbin/blkdiscard",
    "usr/sbin/blockdev",
    "usr/sbin/dumpe2fs",
    "usr/sbin/e2fsck",
    "usr/sbin/fstrim",
    "usr/sbin/ip",
    "usr/sbin/mke2fs",
    "usr/sbin/nvme",
];
/// Other names of programs.
const LINKS: &[(&str, &str)] = &[
    ("usr/sbin/modprobe", "../bin/kmod"),
    ("usr/sbin/mkfs.ext4", "mke2fs"),
    ("usr/sbin/fsck.ext4", "e2fsck"),
];
/// Folders that are empty, or mounted on.
const FOLDERS: &[&str] =
    &["busybox", "dev", "etc/nvme", "mnt", "proc", "root", "run", "sys", "tmp", "usr/lib/modules"];
/// Other files.
const FILES: &[(&str, &str)] = &[
    ("etc/passwd", "root:x:0:0:root:/root:/bin/bash\n"),
    ("etc/group", "root:x:0:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
    // Host identity of NVMe over Fabrics: the same in every guest.
    ("etc/nvme/hostnqn", "nqn.2014-08.org.nvmexpress:uuid:6f757462-6f61-4264-9067-756573740001\n"),
    ("etc/nvme/hostid", "6f757462-6f61-4264-9067-756573740001\n"),
];

/// Payload offset and length in the kernel's file (Documentation/arch/x86/boot.rst of Linux).
const SETUP_SECTORS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;

/// What goes into an image beside packages.
pub fn fingerprint() -> String {
    let mut text = format!("{INIT}{}{}", MODULES.join(" "), PROGRAMS.join(" "));
    text += &format!("{LINKS:?}{FOLDERS:?}{FILES:?}");
    text
}

/// Writes `vmlinux` and `initramfs` into `folder`; returns the kernel's release.
pub fn build(root: &Root, folder: &Path) -> Result<String, Error> {
    let release = kernel_release(root)?;
    println!("  ...      unpacking Linux {release}");
    let kernel = root.path().join(format!("boot/vmlinuz-{release}"));
    unpack_kernel(root, &kernel, &folder.join("vmlinux"))?;
    let tree = folder.join("tree");
    fill(root, &release, &tree)?;
    let archive = folder.join("initramfs");
    println!("  ...      writing {}", archive.display());
    cpio::write(&tree, &archive)?;
    fs::remove_dir_all(&tree).map_err(Error::file("remove", &tree))?;
    Ok(release)
}

fn kernel_release(root: &Root) -> Result<String, Error> {
    let folder = root.path().join("usr/lib/modules");
    let names = packages::entries(&folder)?;
    let [path] = &names[..] else {
        let what = format!("{} kernels in {}", names.len(), folder.display());
        return Err(Error::task(what, "remove that folder's parent; it is built anew"));
    };
    let name = path.file_name().expect("an entry has a name");
    Ok(name.to_string_lossy().into_owned())
}

fn unpack_kernel(root: &Root, kernel: &Path, vmlinux: &Path) -> Result<(), Error> {
    let file = fs::read(kernel).map_err(Error::file("read", kernel))?;
    let unknown = |why: &str| {
        let what = format!("{} is not a kernel of a known form: {why}", kernel.display());
        Error::task(what, "report this")
    };
    let payload = payload(&file).ok_or_else(|| unknown("no payload"))?;
    let unpacker: &[&str] = match payload {
        // The length of the ELF file follows the payload, which neither may mind.
        [0xfd, b'7', b'z', b'X', b'Z', ..] => &["usr/bin/xz", "-dc", "--single-stream"],
        [0x28, 0xb5, 0x2f, 0xfd, ..] => &["usr/bin/zstd", "-dcq"],
        _ => return Err(unknown("neither xz nor zstd")),
    };
    let packed = vmlinux.with_extension("packed");
    fs::write(&packed, payload).map_err(Error::file("write", &packed))?;
    let input = fs::File::open(&packed).map_err(Error::file("open", &packed))?;
    let output = fs::File::create(vmlinux).map_err(Error::file("create", vmlinux))?;
    let mut unpack = root.command(unpacker[0]);
    unpack.args(&unpacker[1..]).stdin(input).stdout(output).stderr(Stdio::null());
    // zstd complains about what follows the payload; whether it worked shows below.
    unpack.status().map_err(process::start_error(&unpack))?;
    fs::remove_file(&packed).map_err(Error::file("remove", &packed))?;
    let elf = fs::read(vmlinux).map_err(Error::file("read", vmlinux))?;
    match elf.starts_with(b"\x7fELF") {
        true => Ok(()),
        false => Err(unknown("its payload is not ELF")),
    }
}

/// The compressed ELF file in a bzImage.
fn payload(file: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| -> Option<usize> {
        let bytes = file.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    let start = (usize::from(*file.get(SETUP_SECTORS)?) + 1) * SECTOR + number(PAYLOAD_OFFSET)?;
    file.get(start..start + number(PAYLOAD_LENGTH)?)
}

/// The guest's files.
fn fill(root: &Root, release: &str, tree: &Path) -> Result<(), Error> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        create_folder(&tree.join("usr").join(name))?;
        link(&tree.join(name), &format!("usr/{name}"))?;
    }
    for name in FOLDERS {
        create_folder(&tree.join(name))?;
    }
    for (name, text) in FILES {
        write(&tree.join(name), text.as_bytes())?;
    }
    let mut files = BTreeSet::new();
    for name in PROGRAMS {
        let program = root.path().join(name);
        // Of all of them busybox alone is linked statically.
        if !name.ends_with("busybox") {
            files.extend(root.libraries_of(&program)?);
        }
        files.insert(program);
    }
    for file in &files {
        copy(root, file, tree)?;
    }
    for (name, target) in LINKS {
        link(&tree.join(name), target)?;
    }
    fill_modules(root, release, tree)?;
    let init = tree.join("init");
    write(&init, INIT.as_bytes())?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))
        .map_err(Error::file("change", &init))
}

fn fill_modules(root: &Root, release: &str, tree: &Path) -> Result<(), Error> {
    depmod(root, root.path(), release)?;
    let folder = PathBuf::from("usr/lib/modules").join(release);
    let read = |name: &str| {
        let path = root.path().join(&folder).join(name);
        fs::read_to_string(&path).map_err(Error::file("read", &path))
    };
    let (dependencies, builtin) = (read("modules.dep")?, read("modules.builtin")?);
    for module in with_dependencies(MODULES, &dependencies, &builtin)? {
        copy(root, &root.path().join(&folder).join(module), tree)?;
    }
    for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        copy(root, &root.path().join(&folder).join(name), tree)?;
    }
    depmod(root, tree, release)
}

/// Writes modules.dep and the indices beside it.
fn depmod(root: &Root, base: &Path, release: &str) -> Result<(), Error> {
    let mut depmod = Command::new(root.path().join("lib64/ld-linux-x86-64.so.2"));
    depmod.args(["--argv0", "depmod", "--library-path"]);
    depmod.arg(root.path().join("usr/lib/x86_64-linux-gnu"));
    depmod.arg(root.path().join("usr/bin/kmod")).arg("-b").arg(base).arg(release);
    process::read(&mut depmod).map(drop)
}

/// The files of modules and of all that they need (modules.dep(5)); what is built into the kernel
/// has none.
fn with_dependencies(
    names: &[&str],
    dependencies: &str,
    builtin: &str,
) -> Result<BTreeSet<String>, Error> {
    let lines = dependencies.lines().filter_map(|line| line.split_once(':'));
    let known: BTreeMap<String, (&str, &str)> =
        lines.map(|(file, needs)| (module_name(file), (file, needs))).collect();
    let builtin: BTreeSet<String> = builtin.lines().map(module_name).collect();
    let mut files = BTreeSet::new();
    for name in names {
        let Some((file, needs)) = known.get(*name) else {
            if builtin.contains(*name) {
                continue;
            }
            let what = format!("the guest's kernel has no module {name}");
            return Err(Error::task(what, "report this"));
        };
        files.insert(file.to_string());
        files.extend(needs.split_whitespace().map(str::to_string));
    }
    Ok(files)
}

/// `kernel/drivers/nvme/host/nvme-tcp.ko.xz` is nvme_tcp.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

/// Copies a file to the same place of the tree, not as a link.
fn copy(root: &Root, file: &Path, tree: &Path) -> Result<(), Error> {
    let place = file.strip_prefix(root.path()).expect("it lies in the folder");
    let to = tree.join(place);
    create_folder(to.parent().expect("it lies in a folder"))?;
    fs::copy(file, &to).map(drop).map_err(Error::file("copy", file))
}

fn create_folder(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(Error::file("create", path))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    fs::write(path, bytes).map_err(Error::file("write", path))
}

fn link(path: &Path, target: &str) -> Result<(), Error> {
    symlink(target, path).map_err(Error::file("link", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko
kernel/fs/jbd2/jbd2.ko:
kernel/drivers/nvme/host/nvme-tcp.ko.xz: kernel/drivers/nvme/host/nvme-core.ko.xz
kernel/sound/soundcore.ko:
";

    #[test]
    fn modules_come_with_what_they_need_and_nothing_else() {
        let files = with_dependencies(&["ext4", "nvme_tcp"], DEP, "").unwrap();
        let names: Vec<String> = files.iter().map(|file| module_name(file)).collect();
        assert_eq!(names, ["nvme_core", "nvme_tcp", "ext4", "jbd2", "crc16"]);
    }

    #[test]
    fn a_module_may_be_built_in_but_not_missing() {
        let builtin = "kernel/lib/crc32c-generic.ko\n";
        assert!(with_dependencies(&["crc32c_generic"], DEP, builtin).unwrap().is_empty());
        let error = with_dependencies(&["rdma_rxe"], DEP, builtin).unwrap_err().to_string();
        assert!(error.contains("rdma_rxe"), "{error}");
    }

    #[test]
    fn the_payload_is_found_by_the_boot_header_and_bounded_by_the_file() {
        let mut file = vec![0; 2048];
        file[SETUP_SECTORS] = 1;
        file[PAYLOAD_OFFSET] = 16;
        file[PAYLOAD_LENGTH] = 3;
        file[1040..1043].copy_from_slice(b"abc");
        assert_eq!(payload(&file), Some(&b"abc"[..]));
        file[PAYLOAD_LENGTH + 1] = 0xff;
        assert_eq!(payload(&file), None);
        assert_eq!(payload(b"MZ"), None);
    }
}
