//! The block suite: a local disk and a remote volume beside the bare mechanisms.

use super::bed::{Daemon, Scratch};
use super::block_peers::{self, BY_FIO, BY_NBD, BY_QSD, BY_QSD_NULL};
use super::steady::{Steady, steady};
use super::{Effort, Figure, Findings, OPEN_LOOP_SHARES, TOO_FEW};
use crate::drivers::block::BlockArgs;
use crate::drivers::file::{self, FileArgs};
use crate::drivers::remote::{self, RemoteArgs};
use crate::drivers::vhost_blk::{self, VhostBlkArgs};
use crate::drivers::{LabelArgs, LoadArgs, Wait};
use crate::error::Error;
use crate::machine::census::Named;
use crate::machine::core_pair;
use crate::reference::{ring_echo, sockets};
use crate::schema::Measurement;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

/// Size of every volume and of every working set.
pub const VOLUME_MIB: u64 = 64;
/// The subsystem of an exported volume.
pub const NQN: &str = "nqn.2025-01.org.outboard:bench";

const LOCAL: &str = "4 KiB read, local, one at a time";
const REMOTE: &str = "4 KiB read over TCP, one at a time";
/// The group of what reads a file.
pub const FILE: &str = "4 KiB read of a file, one at a time";

const LOCAL_IDS: [&str; 2] = ["blk-local-p50-us", "blk-local-vs-echo-p50"];
const REMOTE_IDS: [&str; 2] = ["nvme-tcp-p50-us", "nvme-tcp-vs-raw-p50"];
const BY_RAW_TCP: [&str; 1] = ["nvme-tcp-vs-raw-p50"];
const BY_FILE: [&str; 2] = ["remote-file-added-us", "remote-file-added-20-us"];

/// Runs everything of the suite.
pub fn run(findings: &mut Findings) -> Result<(), Error> {
    // Beside the program, where cargo puts its output: a disk, while /tmp may be memory.
    let own = std::env::current_exe().map_err(Error::system("cannot find this program"))?;
    let files = Scratch::new(own.parent().unwrap_or(Path::new(".")))?;
    let image = files.path().join("volume.img");
    let (mut best_local, mut best_remote) = (None, None);
    for round in 1..=findings.effort.rounds {
        eprintln!("round {round} of {}", findings.effort.rounds);
        findings.part(&LOCAL_IDS, local)?;
        findings.part(&[BY_QSD, BY_QSD_NULL].concat(), |findings| {
            block_peers::local(findings, &mut best_local)
        })?;
        findings.part(&REMOTE_IDS, remote_memory)?;
        findings.part(&BY_FILE, |findings| remote_file(findings, &image))?;
        findings.part(&BY_FIO, |findings| block_peers::fio(findings, &image))?;
        findings
            .part(&BY_NBD, |findings| block_peers::remote(findings, &image, &mut best_remote))?;
    }
    let best_local = best_local.unwrap_or_default();
    findings.part(&[], |findings| block_peers::local_file(findings, &image, best_local))?;
    match findings.effort.open_loops {
        true => findings.part(&LOCAL_IDS, open_loops),
        false => Ok(()),
    }
}

/// The local disk with 32 in flight, then at shares of that rate. Reported, not judged.
fn open_loops(findings: &mut Findings) -> Result<(), Error> {
    let mut measured: Vec<Measurement> = Vec::new();
    let served = Served::start(&memory_volume(), "memory")?;
    for share in [None].into_iter().chain(OPEN_LOOP_SHARES.map(Some)) {
        let group = match share {
            None => "4 KiB read, local, 32 in flight".to_owned(),
            Some(share) => format!("4 KiB read, local, open loop, {share} % of the highest rate"),
        };
        let mut load = load(findings.effort, &group, "Outboard", Some(&served.daemon));
        load.depth = Some(32);
        load.window = 64;
        let most = measured.first().map(|m| m.rate_per_s);
        load.rate = most.zip(share).map(|(most, share)| most * f64::from(share) / 100.0);
        measured.push(served.measure(load)?);
    }
    measured.into_iter().for_each(|m| findings.keep(m));
    Ok(())
}

/// A daemon with a volume behind a vhost-user socket.
pub struct Served {
    /// The daemon.
    pub daemon: Daemon,
    /// Its disk's socket.
    pub socket: PathBuf,
    _files: Scratch,
}

impl Served {
    /// Starts it with `config`, in which there is that volume.
    pub fn start(config: &str, volume: &str) -> Result<Served, Error> {
        let files = Scratch::new(&std::env::temp_dir())?;
        let socket = files.path().join("disk");
        let config = format!(
            "{config}\n[[disk]]\nname = \"disk\"\nvolume = \"{volume}\"\nsocket = \"{}\"\n",
            socket.display()
        );
        let daemon = Daemon::start("local", None, &config)?;
        Ok(Served { daemon, socket, _files: files })
    }

    fn measure(&self, mut load: LoadArgs) -> Result<Measurement, Error> {
        load.label.medium = Some("mem volume through vhost-user-blk".to_owned());
        let socket = self.socket.clone();
        vhost_blk::measure(&VhostBlkArgs {
            socket,
            queue_size: 128,
            wait: Wait::Spin,
            block: blocks(),
            load,
        })
    }
}

/// A run with its label; the cache-line round trip is taken around the whole set-up.
pub fn load(effort: Effort, group: &str, path: &str, daemon: Option<&Daemon>) -> LoadArgs {
    let mut load = LoadArgs::closed(1, effort.seconds, effort.warmup, core_pair().0);
    load.calibrate = false;
    let named = |daemon: &Daemon| Named { name: "outboard".into(), pid: daemon.pid() };
    load.label = LabelArgs {
        name: Some(format!("{path}: {group}")),
        group: Some(group.to_owned()),
        path: Some(path.to_owned()),
        baseline: daemon.is_none(),
        watch: daemon.map(named).into_iter().collect(),
        ..LabelArgs::default()
    };
    load
}

fn blocks() -> BlockArgs {
    BlockArgs { working_set_mib: VOLUME_MIB, ..BlockArgs::default() }
}

/// Runs on a steady machine; what was not steady is remarked on `ids`.
pub fn measured(
    findings: &mut Findings,
    ids: &[&'static str],
    what: &str,
    run: impl FnMut() -> Result<Measurement, Error>,
) -> Result<Measurement, Error> {
    let Steady { outcome: mut m, trips, remark } = steady(what, run)?;
    m.cacheline_ns = trips;
    for id in ids {
        remark.iter().for_each(|remark| findings.remark(id, remark));
        if m.verify_failures > 0 {
            findings.remark(id, &format!("{} reads were wrong", m.verify_failures));
        }
    }
    Ok(m)
}

/// A mem volume through vhost-user-blk, and the split ring alone.
fn local(findings: &mut Findings) -> Result<(), Error> {
    let ids = LOCAL_IDS;
    let args = load(findings.effort, LOCAL, "split ring + 4 KiB copy", None);
    let echo = measured(findings, &ids[1..], "ring echo", || ring_echo::measure(&args))?;
    let effort = findings.effort;
    let disk = measured(findings, &ids, "vhost-user-blk", || {
        let served = Served::start(&memory_volume(), "memory")?;
        served.measure(load(effort, LOCAL, "Outboard", Some(&served.daemon)))
    })?;
    findings.add_p50_us(ids[0], &disk);
    findings.add_ratio(ids[1], Figure::P50, &disk, &echo);
    findings.keep(disk);
    findings.keep(echo);
    Ok(())
}

/// A mem volume over NVMe/TCP on loopback, and raw TCP of the same sizes.
fn remote_memory(findings: &mut Findings) -> Result<(), Error> {
    let ids = REMOTE_IDS;
    let args = load(findings.effort, REMOTE, "raw TCP, 72 to 4 120 B", None);
    let raw = findings.reference(
        "raw-tcp-p50-us",
        &BY_RAW_TCP,
        |findings| measured(findings, &BY_RAW_TCP, "raw TCP", || sockets::tcp(&args)),
        |m| Figure::P50.of(m).unwrap_or(f64::MAX) / 1e3,
    )?;
    let effort = findings.effort;
    let ours = measured(findings, &ids, "NVMe/TCP", || {
        let exported = Exported::start(&memory_volume(), "memory")?;
        let load = load(effort, REMOTE, "Outboard", Some(&exported.daemon));
        exported.measure(load, "mem volume, NVMe/TCP over loopback")
    })?;
    findings.add_p50_us(ids[0], &ours);
    findings.add_ratio(ids[1], Figure::P50, &ours, &raw);
    findings.keep(ours);
    findings.keep(raw);
    Ok(())
}

/// The same file locally through io_uring, and over NVMe/TCP.
fn remote_file(findings: &mut Findings, image: &Path) -> Result<(), Error> {
    // From the core on which the target works: the disk's interrupt may be on either core, and
    // would otherwise make the nearer path look faster.
    let mut local = load(findings.effort, FILE, "local file", None);
    local.core = Some(core_pair().1);
    let args = FileArgs {
        target: image.to_owned(),
        create_mib: Some(VOLUME_MIB),
        buffered: false,
        block: blocks(),
        load: local,
    };
    let local = findings.reference(
        "file-p50-us",
        &BY_FILE,
        |findings| measured(findings, &BY_FILE, "local file", || file::measure(&args)),
        |m| Figure::P50.of(m).unwrap_or(f64::MAX) / 1e3,
    )?;
    let volume = worker() + &block_peers::file_volume(image);
    let effort = findings.effort;
    let medium = format!("{}, NVMe/TCP over loopback", local.medium);
    let remote = measured(findings, &BY_FILE, "remote file", || {
        let exported = Exported::start(&volume, "file")?;
        exported.measure(load(effort, FILE, "Outboard, remote", Some(&exported.daemon)), &medium)
    })?;
    match Figure::P50.of(&remote).zip(Figure::P50.of(&local)) {
        Some((remote_ns, local_ns)) => {
            BY_FILE.iter().for_each(|id| findings.add(id, (remote_ns - local_ns) / 1e3, &remote));
        }
        None => BY_FILE.iter().for_each(|id| findings.remark(id, TOO_FEW)),
    }
    findings.keep(remote);
    findings.keep(local);
    Ok(())
}

/// One worker on the second core that never sleeps.
pub fn worker() -> String {
    format!("[runtime]\nmode = \"busy\"\n\n[[worker]]\ncore = {}\n", core_pair().1)
}

/// A mem volume on that worker.
pub fn memory_volume() -> String {
    worker()
        + &format!("\n[[volume]]\nname = \"memory\"\nkind = \"mem\"\nsize = \"{VOLUME_MIB}MiB\"\n")
}

/// A null volume on that worker.
pub fn null_volume() -> String {
    memory_volume().replace("kind = \"mem\"", "kind = \"null\"")
}

/// A daemon that exports a volume on loopback, driven by the initiator in this process.
pub struct Exported {
    /// The daemon.
    pub daemon: Daemon,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Exported {
    /// Starts it with `config`, in which there is that volume.
    pub fn start(config: &str, volume: &str) -> Result<Exported, Error> {
        let address = free_address()?;
        let config = format!(
            "{config}\n[[export]]\nvolume = \"{volume}\"\nnqn = \"{NQN}\"\n\
             listen = \"{address}\"\n"
        );
        Ok(Exported { daemon: Daemon::start("export", None, &config)?, address })
    }

    fn measure(&self, mut load: LoadArgs, medium: &str) -> Result<Measurement, Error> {
        load.label.medium = Some(medium.to_owned());
        let (target, nqn) = (self.address, NQN.to_owned());
        remote::measure(&RemoteArgs { target, nqn, nsid: 1, block: blocks(), load })
    }
}

/// A port of loopback that nobody has now.
pub fn free_address() -> Result<SocketAddr, Error> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let address = listener.and_then(|listener| listener.local_addr());
    address.map_err(Error::system("cannot find a free port on 127.0.0.1"))
}
