//! `setup`: makes a machine ready for the demo and the tests, or says what is in the way.
//!
//! Every step is named and idempotent: it looks first, says `ok` when there is nothing to do, and
//! changes something only when it must. All steps are looked at before the task fails, so that
//! one run tells everything that is missing. Known: Debian 12 and 13, Ubuntu 24.04; elsewhere
//! nothing is installed, only listed.

pub mod apt;
pub mod distro;
mod machine;
mod packages;

use crate::error::Error;
use crate::{bpf, guest};
use distro::Distro;

/// Prepares the machine: packages, kernel, privileges
///
/// Installs the missing packages with apt on Debian 12 and 13 and Ubuntu 24.04 (elsewhere it
/// lists them and stops), mounts the BPF filesystem, and checks the kernel and this user's
/// privileges. Run it as often as you like: what is there is left alone.
#[derive(clap::Args)]
pub struct Args {
    /// Changes nothing; fails when something is missing.
    #[arg(long)]
    check: bool,
    /// Also installs the compiler that rebuilds the XDP programs (`cargo xtask bpf`). Not needed
    /// to run Outboard: the built object is in the repository.
    #[arg(long)]
    ebpf: bool,
    /// Also installs DPDK, for builds with `--features dpdk`.
    #[arg(long)]
    dpdk: bool,
    /// Also downloads and unpacks what `cargo xtask guest` runs: a Linux kernel, its programs and
    /// QEMU (170 MB). Nothing of it is installed.
    #[arg(long)]
    guest: bool,
}

/// What one step found.
#[derive(Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nothing to do; says what is there.
    Fine(String),
    /// Was missing and has been put right.
    Done(String),
    /// Not there, and not needed.
    Optional(String),
    /// In the way: what, and the remedy.
    Missing {
        /// What is wrong.
        what: String,
        /// What to do about it.
        remedy: String,
    },
}

impl Finding {
    fn missing(what: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding::Missing { what: what.into(), remedy: remedy.into() }
    }
}

/// Prints a line per step and counts what is missing.
#[derive(Default)]
pub struct Ledger {
    missing: u32,
}

impl Ledger {
    /// Takes note of what a step found.
    pub fn note(&mut self, step: &str, finding: Finding) {
        match finding {
            Finding::Fine(what) => println!("  ok       {step}: {what}"),
            Finding::Done(what) => println!("  done     {step}: {what}"),
            Finding::Optional(what) => println!("  -        {step}: {what}"),
            Finding::Missing { what, remedy } => {
                self.missing += 1;
                println!("  MISSING  {step}: {what}; {remedy}");
            }
        }
    }
}

/// Prepares the machine, or with `--check` only looks.
pub fn run(args: &Args) -> Result<(), Error> {
    walk(!args.check, More { ebpf: args.ebpf, dpdk: args.dpdk, guest: args.guest })
}

/// What `demo` does first.
pub fn prepare() -> Result<(), Error> {
    walk(true, More::default())
}

/// What `test` does first: also the guest.
pub fn prepare_for_tests() -> Result<(), Error> {
    walk(true, More { guest: true, ..More::default() })
}

/// What CI does first: everything.
pub fn prepare_for_ci() -> Result<(), Error> {
    walk(true, More { ebpf: true, dpdk: true, guest: true })
}

/// Whether DPDK is installed, with which `test` then builds too.
pub fn has_dpdk() -> bool {
    packages::has_dpdk()
}

/// What not every task needs.
#[derive(Clone, Copy, Default)]
struct More {
    ebpf: bool,
    dpdk: bool,
    guest: bool,
}

fn walk(change: bool, more: More) -> Result<(), Error> {
    let distro = Distro::read();
    println!("setup: {}", distro.title());
    let mut ledger = Ledger::default();
    packages::programs(&distro, change, &mut ledger)?;
    if more.ebpf {
        packages::ebpf_toolchain(&distro, change, &mut ledger)?;
        ledger.note("BPF linker", bpf::set_up_linker(change));
    }
    if more.dpdk {
        packages::dpdk(&distro, change, &mut ledger)?;
    }
    if more.guest {
        ledger.note("guest", guest::set_up(change));
    }
    machine::walk(change, &mut ledger);
    if ledger.missing == 0 {
        return Ok(());
    }
    Err(Error::task(
        format!("this machine lacks {} of the things listed above", ledger.missing),
        "each line says what to do",
    ))
}
