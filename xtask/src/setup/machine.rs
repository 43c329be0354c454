//! What the kernel offers and what this user may do. Everything is probed by using it where that
//! is possible: a kernel's version or configuration says little inside a container.

use super::{Finding, Ledger};
use crate::process;
use std::fs;
use std::path::Path;
use std::process::Command;

/// AF_XDP packets of more than one frame (XDP_USE_SG) and thus MTU 9000: Linux 6.6.
const KERNEL_AT_LEAST: (u32, u32) = (6, 6);
/// Frame memory and rings of two daemons, with room.
const MEMLOCK_BYTES: u64 = 512 << 20;
/// Two daemons, their volumes and the link step of a release build.
const MEMORY_MIB: u64 = 2048;
/// Debug and release builds and the demo's volumes.
const DISK_MIB: u64 = 6144;
/// Where pinned BPF programs live.
const BPFFS: &str = "/sys/fs/bpf";
/// statfs(2) f_type of bpffs (linux/magic.h).
const BPF_FS_MAGIC: i128 = 0xcafe4a11;

/// Number and name (linux/capability.h) and what needs it.
const CAPABILITIES: &[(u32, &str, &str)] = &[
    (12, "CAP_NET_ADMIN", "interfaces and XDP"),
    (13, "CAP_NET_RAW", "AF_XDP sockets"),
    (14, "CAP_IPC_LOCK", "frame memory that stays in RAM"),
    (21, "CAP_SYS_ADMIN", "network namespaces of the demo and the tests"),
    (38, "CAP_PERFMON", "BPF programs that read packets"),
    (39, "CAP_BPF", "loading XDP programs"),
];

/// Looks at everything; mounts the BPF filesystem when `change` allows it.
pub fn walk(change: bool, ledger: &mut Ledger) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = effective_capabilities(&status);
    for finding in capabilities(held) {
        ledger.note("privileges", finding);
    }
    ledger.note("kernel", kernel_version());
    ledger.note("BPF", bpf());
    ledger.note("BPF filesystem", bpffs(change));
    ledger.note("AF_XDP", af_xdp());
    ledger.note("network devices", network_devices());
    ledger.note("io_uring", io_uring());
    ledger.note("locked memory", locked_memory(held));
    ledger.note("memory", memory());
    ledger.note("disk", disk());
    ledger.note("cores", cores());
}

/// The CapEff line of /proc/self/status (proc_pid_status(5)).
fn effective_capabilities(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

fn capabilities(held: u64) -> Vec<Finding> {
    let lacking: Vec<Finding> = CAPABILITIES
        .iter()
        .filter(|(bit, _, _)| held & (1 << bit) == 0)
        .map(|(_, name, what_for)| {
            let what = format!("{name} is missing ({what_for})");
            Finding::missing(what, "run as root, in a container with --privileged")
        })
        .collect();
    if lacking.is_empty() {
        let names: Vec<&str> = CAPABILITIES.iter().map(|(_, name, _)| *name).collect();
        return vec![Finding::Fine(names.join(", "))];
    }
    lacking
}

fn kernel_version() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match parse_version(release) {
        Some(version) if version >= KERNEL_AT_LEAST => Finding::Fine(format!("Linux {release}")),
        _ => Finding::missing(
            format!("Linux {release} has no AF_XDP packets of several frames (MTU 9000)"),
            "boot Linux 6.6 or newer; on Debian 12 install linux-image-amd64 from \
             bookworm-backports",
        ),
    }
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn bpf() -> Finding {
    // This sysctl exists exactly when the kernel has bpf(2).
    if !Path::new("/proc/sys/kernel/unprivileged_bpf_disabled").exists() {
        let remedy = "boot a kernel with CONFIG_BPF_SYSCALL";
        return Finding::missing("the kernel has no bpf system call", remedy);
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        let remedy = "boot a kernel with CONFIG_DEBUG_INFO_BTF (distributions' kernels have it)";
        return Finding::missing("the kernel carries no type information (BTF)", remedy);
    }
    Finding::Fine("system call and type information".into())
}

fn bpffs(change: bool) -> Finding {
    if is_bpffs() {
        return Finding::Fine(format!("mounted on {BPFFS}"));
    }
    let remedy = format!("run `mount -t bpf bpf {BPFFS}` as root");
    if !change {
        return Finding::missing(format!("not mounted on {BPFFS}"), remedy);
    }
    match process::read(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS])) {
        Ok(_) if is_bpffs() => Finding::Done(format!("mounted on {BPFFS}")),
        Ok(_) => Finding::missing(format!("mounting it on {BPFFS} had no effect"), remedy),
        Err(error) => Finding::missing(error.to_string(), remedy),
    }
}

fn is_bpffs() -> bool {
    rustix::fs::statfs(BPFFS).is_ok_and(|stat| i128::from(stat.f_type) == BPF_FS_MAGIC)
}

fn af_xdp() -> Finding {
    use rustix::net::{AddressFamily, SocketType, socket};
    match socket(AddressFamily::XDP, SocketType::RAW, None) {
        Ok(_) => Finding::Fine("sockets can be opened".into()),
        Err(rustix::io::Errno::PERM) => {
            let remedy = "run as root; in a container allow it in the seccomp profile";
            Finding::missing("opening an AF_XDP socket is not permitted", remedy)
        }
        Err(error) => Finding::missing(
            format!("the kernel opens no AF_XDP socket ({error})"),
            "boot a kernel with CONFIG_XDP_SOCKETS",
        ),
    }
}

/// A namespace that exists for one probe.
struct ProbeNamespace(String);

impl Drop for ProbeNamespace {
    fn drop(&mut self) {
        let _ = process::read(Command::new("ip").args(["netns", "del", &self.0]));
    }
}

/// Makes one device of every kind that the demo and the tests use, in a namespace of its own.
fn network_devices() -> Finding {
    let name = format!("obprobe{}", std::process::id());
    if let Err(error) = process::read(Command::new("ip").args(["netns", "add", &name])) {
        let what = format!("a network namespace cannot be made: {error}");
        return Finding::missing(what, "run as root, in a container with --privileged");
    }
    let namespace = ProbeNamespace(name);
    let devices: &[(&str, &str)] = &[
        ("veth", "probe0 type veth peer name probe1"),
        ("vxlan", "probe2 type vxlan id 1 dstport 4789 local 127.0.0.1"),
        ("bridge", "probe3 type bridge"),
    ];
    for (kind, arguments) in devices {
        let mut add = Command::new("ip");
        add.args(["-n", &namespace.0, "link", "add"]).args(arguments.split(' '));
        if let Err(error) = process::read(&mut add) {
            return Finding::missing(
                format!("no {kind} device can be made: {error}"),
                format!("`modprobe {kind}`, or boot a kernel that has it"),
            );
        }
    }
    let kinds: Vec<&str> = devices.iter().map(|(kind, _)| *kind).collect();
    Finding::Fine(format!("namespaces, {}", kinds.join(", ")))
}

fn io_uring() -> Finding {
    match io_uring::IoUring::new(8) {
        Ok(_) => Finding::Fine("rings can be made".into()),
        Err(error) => {
            let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
            let remedy = match disabled.as_deref().map(str::trim) {
                Ok("1" | "2") => "run `sysctl kernel.io_uring_disabled=0` as root",
                _ => {
                    "boot a kernel with CONFIG_IO_URING; in a container allow it in the \
                      seccomp profile"
                }
            };
            Finding::missing(format!("a ring cannot be made ({error})"), remedy)
        }
    }
}

fn locked_memory(capabilities: u64) -> Finding {
    if capabilities & (1 << 14) != 0 {
        return Finding::Fine("not limited (CAP_IPC_LOCK)".into());
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    match limit {
        None => Finding::Fine("not limited".into()),
        Some(bytes) if bytes >= MEMLOCK_BYTES => Finding::Fine(format!("{} MiB", bytes >> 20)),
        Some(bytes) => Finding::missing(
            format!("only {} KiB may be locked", bytes >> 10),
            format!("raise it (`ulimit -l {}`) or grant CAP_IPC_LOCK", MEMLOCK_BYTES >> 10),
        ),
    }
}

fn memory() -> Finding {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available_mib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .map(|kib| kib / 1024);
    match available_mib {
        Some(mib) if mib < MEMORY_MIB => Finding::missing(
            format!("{mib} MiB available"),
            format!("free some: {MEMORY_MIB} MiB are needed"),
        ),
        Some(mib) => Finding::Fine(format!("{mib} MiB available")),
        None => Finding::Optional("/proc/meminfo does not tell".into()),
    }
}

fn disk() -> Finding {
    match rustix::fs::statvfs(process::root()) {
        Ok(stat) => {
            let mib = (stat.f_bavail * stat.f_frsize) >> 20;
            let what = format!("{mib} MiB free below {}", process::root().display());
            match mib < DISK_MIB {
                true => Finding::missing(what, format!("free some: {DISK_MIB} MiB are needed")),
                false => Finding::Fine(what),
            }
        }
        Err(error) => Finding::Optional(format!("free space is not known: {error}")),
    }
}

fn cores() -> Finding {
    match std::thread::available_parallelism() {
        Ok(cores) if cores.get() >= 2 => Finding::Fine(cores.to_string()),
        _ => Finding::Optional("one: everything works, no figure means anything".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_and_the_lacking_named() {
        let status = "Name:\txtask\nCapPrm:\t0000000000000000\nCapEff:\t000000c000207000\n";
        let held = effective_capabilities(status);
        assert_eq!(held, 0x00c0_0020_7000);
        let found = capabilities(held & !(1 << 39));
        let [Finding::Missing { what, .. }] = &found[..] else { panic!("{found:?}") };
        assert!(what.starts_with("CAP_BPF is missing"), "{what}");
        assert_eq!(capabilities(0).len(), CAPABILITIES.len());
    }

    #[test]
    fn kernel_versions_are_compared_as_numbers() {
        assert_eq!(parse_version("6.18.44-fc"), Some((6, 18)));
        assert!(parse_version("6.6.0").unwrap() >= KERNEL_AT_LEAST);
        assert!(parse_version("6.5.13-generic").unwrap() < KERNEL_AT_LEAST);
        assert!(parse_version("10.0-rc1").unwrap() >= KERNEL_AT_LEAST);
        assert_eq!(parse_version("strange"), None);
    }

    #[test]
    fn memlock_without_the_capability_is_judged_by_its_limit() {
        assert_eq!(locked_memory(1 << 14), Finding::Fine("not limited (CAP_IPC_LOCK)".into()));
    }
}
