//! Programs that the demo and the tests run, and the packages that bring them.
//!
//! What counts is whether the program is there, not which package it came from: a machine that
//! has it by other means is left alone.

use super::distro::Distro;
use super::{Finding, Ledger, apt};
use crate::error::Error;
use crate::process;
use std::path::Path;

/// A program, or a file by its path, and the packages that may bring it, in the order to try them.
struct Program {
    name: &'static str,
    what_for: &'static str,
    packages: &'static [&'static str],
}

const fn program(
    name: &'static str,
    what_for: &'static str,
    packages: &'static [&'static str],
) -> Program {
    Program { name, what_for, packages }
}

const PROGRAMS: &[Program] = &[
    program("ip", "namespaces, veth pairs, routes", &["iproute2"]),
    program("nsenter", "programs inside a namespace", &["util-linux"]),
    program("ping", "reachability", &["iputils-ping"]),
    program("ethtool", "offloads of veth pairs", &["ethtool"]),
    program("iperf3", "TCP between tenants", &["iperf3"]),
    program("tcpdump", "captures", &["tcpdump"]),
    program("tshark", "a second opinion on captures", &["tshark"]),
    program("fio", "a second opinion on the bare disk", &["fio"]),
    // Debian moved it from qemu-system-common to qemu-utils with QEMU 10; backports carry either.
    program(
        "qemu-storage-daemon",
        "a second vhost-user-blk server to compare with",
        &["qemu-utils", "qemu-system-common"],
    ),
    // libbpf comes as source with the tests' second loader of the XDP programs.
    program("make", "building libbpf for tests", &["make"]),
    program("pkg-config", "building libbpf for tests", &["pkg-config", "pkgconf"]),
    program("/usr/include/libelf.h", "building libbpf for tests", &["libelf-dev"]),
    program("/usr/include/zlib.h", "building libbpf for tests", &["zlib1g-dev"]),
];

/// What rebuilds the XDP programs with Debian's own compiler; the versions belong together.
const EBPF_TOOLCHAIN: &[&str] = &[
    "rustc-web",
    "cargo-web",
    "rust-web-src",
    "llvm-22-dev",
    "libzstd-dev",
    "zlib1g-dev",
    "pkg-config",
];

/// What ports of DPDK's are built with, and the forwarder that tests have at their far side.
const DPDK: &[&str] = &["libdpdk-dev", "dpdk-dev", "libclang-19-dev", "pkg-config"];

/// Looks for the programs and, where it may, installs what is missing.
pub fn programs(distro: &Distro, change: bool, ledger: &mut Ledger) -> Result<(), Error> {
    let missing: Vec<&Program> = PROGRAMS.iter().filter(|p| !present(p)).collect();
    if missing.is_empty() {
        let names: Vec<&str> = PROGRAMS.iter().map(|p| p.name).collect();
        ledger.note("programs", Finding::Fine(names.join(", ")));
        return Ok(());
    }
    if !change || matches!(distro, Distro::Other(_)) {
        for program in missing {
            ledger.note("programs", not_installed(program, distro));
        }
        return Ok(());
    }
    must_be_root()?;
    update_lists();
    for rank in 0.. {
        let wanted = next_packages(distro, rank, present);
        if wanted.is_empty() {
            break;
        }
        apt::install(&wanted)?;
    }
    for program in missing {
        let finding = match present(program) {
            true => Finding::Done(format!("installed {}", program.name)),
            false => not_installed(program, distro),
        };
        ledger.note("programs", finding);
    }
    Ok(())
}

/// Whether builds with the feature `dpdk` have what they need.
pub fn has_dpdk() -> bool {
    DPDK.iter().all(|package| apt::installed(package))
}

/// Looks for DPDK and what binds it and, where it may, installs it. A build without the feature
/// `dpdk` needs none of it.
pub fn dpdk(distro: &Distro, change: bool, ledger: &mut Ledger) -> Result<(), Error> {
    const STEP: &str = "DPDK";
    let missing: Vec<&str> =
        DPDK.iter().copied().filter(|package| !apt::installed(package)).collect();
    if missing.is_empty() {
        ledger.note(STEP, Finding::Fine(DPDK.join(", ")));
        return Ok(());
    }
    if !change || matches!(distro, Distro::Other(_)) {
        let what = format!("{} not installed", missing.join(", "));
        let remedy = "run `cargo xtask setup --dpdk` on Debian or Ubuntu, or install them";
        ledger.note(STEP, Finding::missing(what, remedy));
        return Ok(());
    }
    must_be_root()?;
    update_lists();
    apt::install(&missing)?;
    ledger.note(STEP, Finding::Done(format!("installed {}", missing.join(", "))));
    Ok(())
}

/// Looks for the compiler of the XDP programs and, where it may, installs it. It is never in the
/// way: the built object is in the repository.
pub fn ebpf_toolchain(distro: &Distro, change: bool, ledger: &mut Ledger) -> Result<(), Error> {
    const STEP: &str = "eBPF compiler";
    if matches!(distro, Distro::Other(_)) {
        let what = "its packages are not known here; the committed object is used";
        ledger.note(STEP, Finding::Optional(what.into()));
        return Ok(());
    }
    let missing: Vec<&str> =
        EBPF_TOOLCHAIN.iter().copied().filter(|package| !apt::installed(package)).collect();
    if missing.is_empty() {
        ledger.note(STEP, Finding::Fine(EBPF_TOOLCHAIN.join(", ")));
        return Ok(());
    }
    if change {
        must_be_root()?;
        update_lists();
    }
    let unavailable: Vec<&str> =
        missing.iter().copied().filter(|package| !apt::available(package)).collect();
    if !unavailable.is_empty() {
        let what = format!(
            "{} has no package {}; the committed object is used",
            distro.title(),
            unavailable.join(", ")
        );
        ledger.note(STEP, Finding::Optional(what));
        return Ok(());
    }
    if !change {
        let what = format!("{} not installed", missing.join(", "));
        ledger.note(STEP, Finding::missing(what, "run `cargo xtask setup --ebpf`"));
        return Ok(());
    }
    apt::install(&missing)?;
    ledger.note(STEP, Finding::Done(format!("installed {}", missing.join(", "))));
    Ok(())
}

fn present(program: &Program) -> bool {
    match program.name.starts_with('/') {
        true => Path::new(program.name).exists(),
        false => process::which(program.name).is_some(),
    }
}

/// The `rank`th package of every program that is still missing: one apt-get for all of them,
/// and the next candidates only for those that it did not bring.
fn next_packages(
    distro: &Distro,
    rank: usize,
    present: impl Fn(&Program) -> bool,
) -> Vec<&'static str> {
    let missing = PROGRAMS.iter().filter(|program| !present(program));
    let mut packages: Vec<&str> =
        missing.filter_map(|program| candidates(program, distro).get(rank).copied()).collect();
    packages.dedup();
    packages
}

fn candidates(program: &Program, distro: &Distro) -> Vec<&'static str> {
    let mut packages = program.packages.to_vec();
    if !matches!(distro, Distro::Debian13) {
        packages.reverse();
    }
    packages
}

fn not_installed(program: &Program, distro: &Distro) -> Finding {
    let what = format!("{} is not installed ({})", program.name, program.what_for);
    match distro {
        Distro::Other(_) => Finding::missing(
            what,
            format!("install it; on Debian the package is {}", program.packages.join(" or ")),
        ),
        _ => Finding::missing(
            what,
            format!(
                "run `cargo xtask setup` as root, or install {}",
                candidates(program, distro).join(" or ")
            ),
        ),
    }
}

fn must_be_root() -> Result<(), Error> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::task("packages are missing and only root may install them", "run this as root"))
}

/// Without a network the lists that are there may do; if not, the install says so.
fn update_lists() {
    if let Err(error) = apt::update() {
        println!("  ...      going on with the package lists that are there: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_round_asks_for_every_missing_program() {
        let wanted = next_packages(&Distro::Debian12, 0, |_| false);
        assert_eq!(wanted.len(), PROGRAMS.len());
        assert!(wanted.contains(&"qemu-system-common"));
        assert!(next_packages(&Distro::Debian13, 0, |_| false).contains(&"qemu-utils"));
    }

    #[test]
    fn the_second_round_asks_only_for_what_is_still_missing() {
        let storage_daemon_missing = |p: &Program| p.name != "qemu-storage-daemon";
        let second = next_packages(&Distro::Debian12, 1, storage_daemon_missing);
        assert_eq!(second, ["qemu-utils"]);
        assert!(next_packages(&Distro::Debian12, 2, storage_daemon_missing).is_empty());
        assert!(next_packages(&Distro::Debian12, 1, |_| true).is_empty());
    }

    #[test]
    fn elsewhere_the_program_and_its_debian_package_are_named() {
        let finding = not_installed(&PROGRAMS[0], &Distro::Other("fedora 41".into()));
        let Finding::Missing { what, remedy } = finding else { panic!("{finding:?}") };
        assert!(what.contains("ip is not installed"), "{what}");
        assert!(remedy.contains("iproute2"), "{remedy}");
    }
}
