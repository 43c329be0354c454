//! The block suite's peers: QEMU's storage stack under the same driver, and fio on the same file.

use super::bed::Daemon;
use super::block::{
    Exported, FILE, NQN, Served, VOLUME_MIB, free_address, load, measured, memory_volume,
    null_volume, worker,
};
use super::peers::{Backend, NbdServer, StorageDaemon, fio_p50_ns};
use super::{Figure, Findings, TOO_FEW};
use crate::drivers::block::BlockArgs;
use crate::drivers::vhost_blk::{self, VhostBlkArgs};
use crate::drivers::{LoadArgs, Wait};
use crate::error::Error;
use crate::latency;
use crate::machine::census::Named;
use crate::machine::core_pair;
use crate::schema::Measurement;
use std::path::{Path, PathBuf};

/// Ids of the local disk against qemu-storage-daemon.
pub const BY_QSD: [&str; 3] = ["blk-vs-qsd-p50", "blk-vs-qsd-p99", "blk-vs-qsd-iops"];
/// The same with a null device on either side: what is left when neither moves data.
pub const BY_QSD_NULL: [&str; 3] =
    ["blk-null-vs-qsd-p50", "blk-null-vs-qsd-p99", "blk-null-vs-qsd-iops"];
/// Ids of the remote disk against qemu-storage-daemon with qemu-nbd.
pub const BY_NBD: [&str; 2] = ["remote-vs-qsd-nbd-p50", "remote-vs-qsd-nbd-iops"];
/// The id of the `file` driver against fio.
pub const BY_FIO: [&str; 1] = ["file-vs-fio-pct"];

const QSD: &str = "qemu-storage-daemon";
const NULL_ONE: &str = "4 KiB read through vhost-user-blk, nothing compared, one at a time";
const NULL_DEEP: &str = "4 KiB read through vhost-user-blk, nothing compared, 32 in flight";
const FILE_ONE: &str = "4 KiB read of a local file through vhost-user-blk, one at a time";
const FILE_DEEP: &str = "4 KiB read of a local file through vhost-user-blk, 32 in flight";
const CHAIN_ONE: &str = "4 KiB read of a remote file through vhost-user-blk, one at a time";
const CHAIN_DEEP: &str = "4 KiB read of a remote file through vhost-user-blk, 32 in flight";
const DEEP: u16 = 32;
/// What qemu-storage-daemon's I/O thread may poll for before it sleeps; 32 768 is its default.
const POLL_MAX_NS: [u64; 5] = [0, 32_768, 200_000, 2_000_000, 20_000_000];
/// Length of a run that looks for the best of these.
const PROBE_S: f64 = 0.4;

/// The `poll-max-ns` with the lowest median, and that with the most I/Os per busy core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BestPoll {
    one: u64,
    deep: u64,
}

/// A disk to drive, whoever serves it.
struct Disk<'a> {
    path: &'a str,
    socket: PathBuf,
    processes: Vec<Named>,
    medium: &'a str,
    wait: Wait,
    no_check: bool,
}

impl Disk<'_> {
    fn measure(&self, mut load: LoadArgs) -> Result<Measurement, Error> {
        load.label.path = Some(self.path.to_owned());
        load.label.name = load.label.group.as_ref().map(|group| format!("{}: {group}", self.path));
        load.label.medium = Some(self.medium.to_owned());
        load.label.watch = self.processes.clone();
        load.label.baseline = false;
        load.label.peer = self.path.starts_with(QSD);
        let block =
            BlockArgs { working_set_mib: VOLUME_MIB, no_check: self.no_check, ..<_>::default() };
        let socket = self.socket.clone();
        vhost_blk::measure(&VhostBlkArgs { socket, queue_size: 128, wait: self.wait, block, load })
    }
}

/// I/Os per second and core that the named processes kept busy.
fn per_core(m: &Measurement, processes: &[&str]) -> Option<f64> {
    let threads = m.census.threads.iter();
    let used = threads.filter(|thread| processes.contains(&thread.process.as_str()));
    let busy_cores = used.map(|thread| thread.cpu_s).sum::<f64>() / m.census.wall_s.max(1e-9);
    (busy_cores > 0.0 && m.rate_per_s > 0.0).then(|| m.rate_per_s / busy_cores)
}

/// A short run per candidate finds qemu-storage-daemon's best; `run` measures at a depth.
fn best_poll(
    processes: &[&str],
    mut run: impl FnMut(u64, u16) -> Result<Measurement, Error>,
) -> Result<BestPoll, Error> {
    let (mut one, mut deep) = ((f64::MAX, 0), (0.0, 0));
    for poll_max_ns in POLL_MAX_NS {
        let single = run(poll_max_ns, 1)?;
        let many = run(poll_max_ns, DEEP)?;
        let p50_ns = Figure::P50.of(&single).unwrap_or(f64::MAX);
        let rate = per_core(&many, processes).unwrap_or_default();
        eprintln!(
            "  {QSD}, poll-max-ns {poll_max_ns}: p50 {}, {rate:.0} IOPS per busy core at {DEEP}",
            latency::text(Some(p50_ns as u64))
        );
        if p50_ns < one.0 {
            one = (p50_ns, poll_max_ns);
        }
        if rate > deep.0 {
            deep = (rate, poll_max_ns);
        }
    }
    Ok(BestPoll { one: one.1, deep: deep.1 })
}

/// The local disk, with and without content, and qemu-storage-daemon's null device under the same
/// driver.
pub fn local(findings: &mut Findings, best: &mut Option<BestPoll>) -> Result<(), Error> {
    let effort = findings.effort;
    let core = core_pair().1;
    let null = |poll_max_ns: u64, group: &str, depth: u16, seconds: f64| {
        let daemon = StorageDaemon::start(Backend::Null, poll_max_ns, core)?;
        let mut load = load(effort, group, QSD, None);
        (load.depth, load.window, load.seconds) = (Some(depth), depth, seconds);
        load.label.notes.push(format!("iothread with poll-max-ns={poll_max_ns}, null-co"));
        let disk = Disk {
            path: QSD,
            socket: daemon.socket().to_owned(),
            processes: vec![Named { name: QSD.into(), pid: daemon.pid() }],
            medium: "null device",
            wait: Wait::Spin,
            no_check: true,
        };
        disk.measure(load)
    };
    let best = match *best {
        Some(best) => best,
        None => *best.insert(best_poll(&[QSD], |ns, depth| null(ns, NULL_ONE, depth, PROBE_S))?),
    };
    let seconds = effort.seconds;
    let theirs = measured(findings, &BY_QSD, QSD, || null(best.one, NULL_ONE, 1, seconds))?;
    let deep = measured(findings, &BY_QSD, QSD, || null(best.deep, NULL_DEEP, DEEP, seconds))?;
    for (ids, volume, medium) in
        [(&BY_QSD, memory_volume(), "mem volume"), (&BY_QSD_NULL, null_volume(), "null volume")]
    {
        let one = measured(findings, ids, OUTBOARD, || ours(effort, &volume, medium, 1))?;
        let many = measured(findings, ids, OUTBOARD, || ours(effort, &volume, medium, DEEP))?;
        findings.add_ratio(ids[0], Figure::P50, &theirs, &one);
        findings.add_ratio(ids[1], Figure::P99, &theirs, &one);
        match per_core(&many, &[OUTBOARD_PROCESS]).zip(per_core(&deep, &[QSD])) {
            Some((ours, theirs)) => findings.add(ids[2], ours / theirs, &many),
            None => findings.remark(ids[2], TOO_FEW),
        }
        [one, many].into_iter().for_each(|m| findings.keep(m));
    }
    [theirs, deep].into_iter().for_each(|m| findings.keep(m));
    Ok(())
}

/// Our disk with a volume under the driver that qemu-storage-daemon's is measured with.
fn ours(
    effort: super::Effort,
    volume: &str,
    medium: &str,
    depth: u16,
) -> Result<Measurement, Error> {
    let served = Served::start(volume, "memory")?;
    let group = if depth == 1 { NULL_ONE } else { NULL_DEEP };
    let mut load = load(effort, group, OUTBOARD, Some(&served.daemon));
    (load.depth, load.window) = (Some(depth), depth);
    let processes = load.label.watch.clone();
    let (wait, no_check) = (Wait::Spin, true);
    let socket = served.socket.clone();
    Disk { path: OUTBOARD, socket, processes, medium, wait, no_check }.measure(load)
}

const OUTBOARD: &str = "Outboard";
/// How `load` names the daemon in the census.
const OUTBOARD_PROCESS: &str = "outboard";

/// The same file over the same loopback: our two daemons, and qemu-storage-daemon with qemu-nbd.
/// The driver sleeps on the first core, which it shares with whoever is the initiator.
pub fn remote(
    findings: &mut Findings,
    image: &Path,
    best: &mut Option<BestPoll>,
) -> Result<(), Error> {
    let effort = findings.effort;
    let nbd = |poll_max_ns: u64, group: &str, depth: u16, seconds: f64| {
        by_nbd(image, poll_max_ns, labelled(effort, group, depth, seconds))
    };
    let both = [QSD, QEMU_NBD];
    let best = match *best {
        Some(best) => best,
        None => *best.insert(best_poll(&both, |ns, depth| nbd(ns, CHAIN_ONE, depth, PROBE_S))?),
    };
    for (id, figure, group, depth, poll_max_ns) in [
        (BY_NBD[0], Figure::P50, CHAIN_ONE, 1, best.one),
        (BY_NBD[1], Figure::Rate, CHAIN_DEEP, DEEP, best.deep),
    ] {
        let seconds = effort.seconds;
        let theirs =
            measured(findings, &[id], QEMU_NBD, || nbd(poll_max_ns, group, depth, seconds))?;
        let ours = measured(findings, &[id], OUTBOARD, || {
            by_outboard(image, labelled(effort, group, depth, seconds))
        })?;
        match figure {
            Figure::Rate => findings.add_ratio(id, figure, &ours, &theirs),
            _ => findings.add_ratio(id, figure, &theirs, &ours),
        }
        findings.keep(ours);
        findings.keep(theirs);
    }
    Ok(())
}

const QEMU_NBD: &str = "qemu-nbd";

/// The same local file through our disk and through qemu-storage-daemon's. Reported, not judged:
/// the medium takes most of the time.
pub fn local_file(findings: &mut Findings, image: &Path, best: BestPoll) -> Result<(), Error> {
    let effort = findings.effort;
    for (group, depth, poll_max_ns) in [(FILE_ONE, 1, best.one), (FILE_DEEP, DEEP, best.deep)] {
        let medium = "file, O_DIRECT";
        let load = || labelled(effort, group, depth, effort.seconds);
        let theirs = measured(findings, &[], QSD, || {
            let daemon = StorageDaemon::start(Backend::File(image), poll_max_ns, core_pair().1)?;
            let mut load = load();
            load.label.notes.push(format!("iothread with poll-max-ns={poll_max_ns}"));
            let processes = vec![Named { name: QSD.into(), pid: daemon.pid() }];
            let socket = daemon.socket().to_owned();
            let (wait, no_check) = (Wait::Spin, false);
            Disk { path: QSD, socket, processes, medium, wait, no_check }.measure(load)
        })?;
        let ours = measured(findings, &[], OUTBOARD, || {
            let served = Served::start(&(worker() + &file_volume(image)), "file")?;
            let processes = vec![Named { name: OUTBOARD_PROCESS.into(), pid: served.daemon.pid() }];
            let socket = served.socket.clone();
            let (wait, no_check) = (Wait::Spin, false);
            Disk { path: OUTBOARD, socket, processes, medium, wait, no_check }.measure(load())
        })?;
        findings.keep(ours);
        findings.keep(theirs);
    }
    Ok(())
}

fn labelled(effort: super::Effort, group: &str, depth: u16, seconds: f64) -> LoadArgs {
    let mut load = load(effort, group, OUTBOARD, None);
    (load.depth, load.window, load.seconds) = (Some(depth), depth, seconds);
    load
}

fn by_nbd(image: &Path, poll_max_ns: u64, mut load: LoadArgs) -> Result<Measurement, Error> {
    let (initiator, target) = core_pair();
    let address = free_address()?;
    let server = NbdServer::start(image, address, target)?;
    let daemon = StorageDaemon::start(Backend::Nbd(address), poll_max_ns, initiator)?;
    load.label.notes.push(format!("iothread with poll-max-ns={poll_max_ns}"));
    let disk = Disk {
        path: "qemu-storage-daemon + qemu-nbd",
        socket: daemon.socket().to_owned(),
        processes: vec![
            Named { name: QSD.into(), pid: daemon.pid() },
            Named { name: QEMU_NBD.into(), pid: server.pid() },
        ],
        medium: "file over NBD on loopback",
        wait: Wait::Block,
        no_check: false,
    };
    disk.measure(load)
}

fn by_outboard(image: &Path, load: LoadArgs) -> Result<Measurement, Error> {
    let volume = worker() + &file_volume(image);
    let exported = Exported::start(&volume, "file")?;
    let files = super::bed::Scratch::new(&std::env::temp_dir())?;
    let socket = files.path().join("disk");
    // It shares its core with the driver: an empty turn yields it.
    let config = format!(
        "[runtime]\nmode = \"yield\"\n\n[[worker]]\ncore = {}\n\n\
         [[volume]]\nname = \"far\"\nkind = \"remote\"\naddress = \"{}\"\nnqn = \"{NQN}\"\n\
         nsid = 1\n\n[[disk]]\nname = \"disk\"\nvolume = \"far\"\nsocket = \"{}\"\n",
        core_pair().0,
        exported.address,
        socket.display()
    );
    let initiator = Daemon::start("initiator", None, &config)?;
    let disk = Disk {
        path: OUTBOARD,
        socket,
        processes: vec![
            Named { name: "initiator".into(), pid: initiator.pid() },
            Named { name: "target".into(), pid: exported.daemon.pid() },
        ],
        medium: "file over NVMe/TCP on loopback",
        wait: Wait::Block,
        no_check: false,
    };
    disk.measure(load)
}

/// A file volume of 4 KiB blocks.
pub fn file_volume(image: &Path) -> String {
    format!(
        "\n[[volume]]\nname = \"file\"\nkind = \"file\"\npath = \"{}\"\nblock_bytes = 4096\n",
        image.display()
    )
}

/// fio on the file that our own driver has just measured: by how much the two disagree.
pub fn fio(findings: &mut Findings, image: &Path) -> Result<(), Error> {
    let is_local = |m: &&Measurement| m.group == FILE && m.driver == "file";
    let Some(ours) = findings.measurements.iter().find(is_local).cloned() else {
        return Ok(());
    };
    let theirs_ns = fio_p50_ns(image, VOLUME_MIB, findings.effort.seconds, core_pair().1)?;
    match Figure::P50.of(&ours) {
        Some(ours_ns) => {
            let apart_pct = (ours_ns / theirs_ns - 1.0).abs() * 100.0;
            findings.add(BY_FIO[0], apart_pct, &ours);
            let [ours, theirs] = [ours_ns, theirs_ns].map(|ns| latency::text(Some(ns as u64)));
            findings.found.entry(BY_FIO[0]).or_default().detail =
                format!("the file driver's p50 {ours}, fio's {theirs}");
        }
        None => findings.remark(BY_FIO[0], TOO_FEW),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Census, Latency, Thread};

    fn run(p50_ns: u64, rate_per_s: f64, cpu_s: f64) -> Measurement {
        let thread =
            |process: &str, cpu_s| Thread { process: process.into(), cpu_s, ..Thread::default() };
        let threads = vec![thread(QSD, cpu_s), thread("outboard-bench", 1.0)];
        Measurement {
            latency: Some(Latency { p50_ns: Some(p50_ns), ..Latency::default() }),
            rate_per_s,
            census: Census { wall_s: 2.0, threads, ..Census::default() },
            ..Measurement::default()
        }
    }

    #[test]
    fn only_the_named_processes_count_as_busy() {
        assert_eq!(per_core(&run(1, 1000.0, 1.0), &[QSD]), Some(2000.0));
        assert_eq!(per_core(&run(1, 1000.0, 0.0), &[QSD]), None);
    }

    #[test]
    fn the_best_polling_is_found_for_latency_and_for_rate() {
        let best = best_poll(&[QSD], |ns, depth| {
            let slow = if ns == 200_000 { 1 } else { 5 };
            let cpu_s = if ns == 0 { 0.5 } else { 2.0 };
            assert!(depth == 1 || depth == DEEP);
            Ok(run(slow, 1000.0, cpu_s))
        });
        assert_eq!(best.unwrap(), BestPoll { one: 200_000, deep: 0 });
    }
}
