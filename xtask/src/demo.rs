//! `demo`: the main job on real traffic, beside what the kernel does with the same tenants.
//!
//! Two hosts as network namespaces, two tenants each in two VPCs with the same addresses of both
//! families. First bridge and VXLAN of the kernel join them, then Outboard, so that neither costs
//! the other a core. Then Outboard is changed under traffic, and killed under load. Everything made
//! is in a guard: it goes on success, on failure and on Ctrl-C. What a killed run left is removed
//! by the next.

mod change;
mod checks;
mod config;
mod crash;
mod daemons;
mod drivers;
mod facts;
pub mod marker;
mod topology;

use crate::error::Error;
use crate::netns::{self, Scratch};
use crate::stop::Stop;
use crate::{bench, process, setup};
use change::Change;
use checks::Subject;
use crash::Crash;
use daemons::{Daemons, Pins, Places};
use drivers::Bench;
use facts::Facts;
use std::fs;
use std::path::{Path, PathBuf};
use topology::Topology;

const KERNEL: &str = "kernel bridge + VXLAN";
const OUTBOARD: &str = "Outboard";
/// Size of the local file that the remote one is compared with.
const VOLUME_MIB: u32 = 256;
/// Where sockets are.
const RUN: &str = "/run";

/// Shows Outboard at work: networks, a remote disk, a change and a crash under load
///
/// Sets the machine up and builds in release mode (some minutes the first time). Then, in one to
/// two minutes: tenants on two hosts (network namespaces) talk over IPv4 and IPv6, through the
/// kernel and through Outboard; a remote disk is read; routes, a tenant and a disk change under
/// traffic; the disk's target is killed under a verified load. Prints a report and writes it to
/// target/demo/report.json and report.html. Fails when anything is not as it should be. Cleans up
/// after itself, also on Ctrl-C.
#[derive(clap::Args)]
pub struct Args {
    /// Only the kernel's path and without measurements; builds nothing.
    #[arg(long, hide = true)]
    rehearse: bool,
}

/// The whole demo, as a user runs it.
pub fn run_for_ci() -> Result<(), Error> {
    run(&Args { rehearse: false })
}

/// Runs the demo; fails when anything observed is not as it should be.
pub fn run(args: &Args) -> Result<(), Error> {
    let stop = Stop::install()?;
    let results = process::root().join("target/demo");
    fs::create_dir_all(&results).map_err(Error::file("create", &results))?;
    for left in netns::remove_leftovers(&[&results, Path::new(RUN), Path::new(daemons::PINS)])? {
        println!("removed {left}, left by a run that was killed");
    }
    let mut facts = Facts::default();
    match args.rehearse {
        true => rehearse(&results, &stop, &mut facts)?,
        false => perform(&results, &stop, &mut facts)?,
    }
    let wrong = facts.wrong();
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(Error::task(
            format!("not as it should be: {}", wrong.join(", ")),
            format!("logs are in {}", results.join("logs").display()),
        )),
    }
}

/// The kernel's path, checked.
fn rehearse(results: &Path, stop: &Stop, facts: &mut Facts) -> Result<(), Error> {
    let scratch = Scratch::new(results, "logs")?;
    let topology = Topology::new("kernel")?;
    topology.join_by_kernel()?;
    println!("== {KERNEL}");
    Subject { path: KERNEL, topology: &topology, logs: scratch.path(), stop }.check(facts)
}

/// All of it.
fn perform(results: &Path, stop: &Stop, facts: &mut Facts) -> Result<(), Error> {
    setup::prepare()?;
    println!("== building");
    let programs = bench::build_release(stop)?;
    stop.check()?;
    let logs = fresh_results(results)?;
    let bench = Bench { program: &programs.join("outboard-bench"), results };
    by_kernel(&logs, stop, facts, &bench)?;
    by_outboard(results, &logs, stop, facts, &programs)?;
    facts.write(&results.join(drivers::FACTS))?;
    println!("== report");
    bench.report(stop)?;
    println!("written: {0}/report.json, {0}/report.html", results.display());
    Ok(())
}

/// Removes what an earlier run wrote, so that no figure of it can stand in this report.
fn fresh_results(results: &Path) -> Result<PathBuf, Error> {
    for entry in fs::read_dir(results).map_err(Error::file("list", results))?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|ext| ext == "json" || ext == "html") {
            fs::remove_file(&path).map_err(Error::file("remove", &path))?;
        }
    }
    let logs = results.join("logs");
    if logs.exists() {
        fs::remove_dir_all(&logs).map_err(Error::file("remove", &logs))?;
    }
    fs::create_dir_all(&logs).map_err(Error::file("create", &logs))?;
    Ok(logs)
}

/// What a user would have without Outboard. Its namespaces are gone before the next part.
fn by_kernel(logs: &Path, stop: &Stop, facts: &mut Facts, bench: &Bench) -> Result<(), Error> {
    println!("== {KERNEL}");
    let topology = Topology::new("kernel")?;
    topology.join_by_kernel()?;
    let subject = Subject { path: KERNEL, topology: &topology, logs, stop };
    subject.check(facts)?;
    bench.udp(&subject, drivers::UDP_KERNEL, &["--baseline".into()])?;
    Ok(())
}

fn by_outboard(
    results: &Path,
    logs: &Path,
    stop: &Stop,
    facts: &mut Facts,
    programs: &Path,
) -> Result<(), Error> {
    println!("== {OUTBOARD}");
    let sockets = Scratch::new(Path::new(RUN), "run")?;
    let files = Scratch::new(results, "files")?;
    let places = Places {
        outboard: &programs.join("outboard"),
        sockets: sockets.path(),
        files: files.path(),
        logs,
    };
    let bench = Bench { program: &programs.join("outboard-bench"), results };
    let topology = Topology::new("outboard")?;
    let subject = Subject { path: OUTBOARD, topology: &topology, logs, stop };
    // The local file before the daemons run, the remote one while they do.
    bench.local_file(&subject, &files.path().join("local.img"), VOLUME_MIB)?;
    let _pins = Pins;
    let mut daemons = Daemons::start(&topology, &places, stop)?;
    subject.check(facts)?;
    let mut labels = daemons.watch();
    labels.extend(["--note".into(), format!("workers wait in {} mode", config::WAIT_MODE)]);
    bench.udp(&subject, drivers::UDP_OUTBOARD, &labels)?;
    bench.vhost(&subject, &places.disk(), &labels)?;
    Change { subject: &subject, places: &places, bench: &bench }.check(facts)?;
    Crash { subject: &subject, places: &places, bench: &bench }.check(&mut daemons, facts)?;
    daemons.stop()
}
