//! The ledger suite: where packets and I/Os spend their time in a daemon, stage by stage, and what
//! it costs to know.
//!
//! A cost is the worker's own time per packet or I/O, from its counts: the same daemon under one
//! load, with ledgers kept and not, by turns.

use super::bed::{Daemon, NetBed, Pins, Scratch};
use super::block::{self, Exported, NQN, Served, VOLUME_MIB};
use super::net::{self, Device, WINDOW};
use super::steady::{Steady, steady};
use super::{Effort, Findings};
use crate::drivers::block::BlockArgs;
use crate::drivers::file::{self, FileArgs};
use crate::drivers::vhost_blk::{self, VhostBlkArgs};
use crate::drivers::{LoadArgs, Wait, afxdp};
use crate::error::Error;
use crate::latency;
use crate::machine::{census, core_pair, cores, pin};
use crate::schema::{Ledger, Measurement};
use crate::stop;
use outboard::control::api::{ask_stats, ledger::ask_ledger};
use outboard::control::stats::Stats;
use outboard::ledger::Report;
use outboard::volume::{Marks, Op, Timing};
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

const COST_PACKET: &str = "ledger-cost-ns-packet";
const COST_IO: &str = "ledger-cost-ns-io";
const OFF_IO: &str = "ledger-off-ns-io";
/// Working set: it is written first, one block after the other, which takes its time on a disk.
const WORKING_SET_MIB: u64 = 8;
/// Of the slowest, so many are told.
const SLOWEST: usize = 8;
/// A load goes on for so long beyond what is looked at.
const MARGIN_S: f64 = 1.5;
/// A look while a cost is taken: the window, and time to begin and end.
const COST_LOOK_S: u32 = 2;
/// From when a look is asked for until every worker keeps its ledger.
const BEGUN: Duration = Duration::from_millis(300);

/// Runs everything of the suite.
pub fn run(findings: &mut Findings) -> Result<(), Error> {
    let _pins = Pins;
    findings.part(&[COST_PACKET], packets)?;
    findings.part(&[COST_IO], memory)?;
    findings.part(&[OFF_IO], off)?;
    // Beside the program, where cargo puts its output: a disk, while /tmp may be memory.
    let own = std::env::current_exe().map_err(Error::system("cannot find this program"))?;
    let files = Scratch::new(own.parent().unwrap_or(Path::new(".")))?;
    let image = files.path().join("volume.img");
    local_file(findings, &image)?;
    remote_file(findings, &image)
}

/// One way through tenant port, switch and uplink.
fn packets(findings: &mut Findings) -> Result<(), Error> {
    let bed = NetBed::new()?;
    let config = net::configuration_of("busy", &[]);
    let daemon = Daemon::start("ledger", Some(bed.device.name()), &config)?;
    let generate = |load: LoadArgs| afxdp::measure(&net::generator(&bed, Device::Outboard, load));
    let sent = |stats: &Stats| stats.ports.iter().map(|port| port.tx_packets).sum();
    for (title, depth) in [("one at a time", 1), ("256 in flight", WINDOW)] {
        let title = format!("64 B from a tenant's port to the uplink, {title}");
        let look = Look { title: &title, daemons: &[&daemon], notes: &[] };
        look.take(findings, depth, &sent, generate)?;
    }
    cost(findings, COST_PACKET, &daemon, WINDOW, &sent, generate)
}

/// A mem volume through vhost-user-blk.
fn memory(findings: &mut Findings) -> Result<(), Error> {
    let served = Served::start(&block::memory_volume(), "memory")?;
    let title = "4 KiB read, mem volume, one at a time";
    let look = Look { title, daemons: &[&served.daemon], notes: &[] };
    look.take(findings, 1, &read, |load| drive(&served, Wait::Spin, load))?;
    cost(findings, COST_IO, &served.daemon, 32, &read, |load| drive(&served, Wait::Spin, load))
}

/// A file through vhost-user-blk.
fn local_file(findings: &mut Findings, image: &Path) -> Result<(), Error> {
    let create = FileArgs {
        target: image.to_owned(),
        create_mib: Some(VOLUME_MIB),
        buffered: false,
        block: blocks(),
        load: load(1, 0.1),
    };
    let medium = file::measure(&create)?.medium;
    let config = block::worker() + &super::block_peers::file_volume(image);
    let served = Served::start(&config, "file")?;
    let title = format!("4 KiB read, {medium}, one at a time");
    let look = Look { title: &title, daemons: &[&served.daemon], notes: &[] };
    look.take(findings, 1, &read, |load| drive(&served, Wait::Spin, load))
}

/// The same file over NVMe/TCP: the disk's side, and the target's.
fn remote_file(findings: &mut Findings, image: &Path) -> Result<(), Error> {
    // Where there is no core for it, the target shares the generator's, and both make way.
    let third = cores().get(2).copied();
    let (mode, core) = third.map_or(("yield", core_pair().0), |core| ("busy", core));
    let wait = if third.is_some() { Wait::Spin } else { Wait::Block };
    let volume = super::block_peers::file_volume(image);
    let worker = format!("[runtime]\nmode = \"{mode}\"\n\n[[worker]]\ncore = {core}\n");
    let exported = Exported::start(&(worker + &volume), "file")?;
    let config = block::worker()
        + &format!(
            "\n[[volume]]\nname = \"far\"\nkind = \"remote\"\naddress = \"{}\"\nnqn = \"{NQN}\"\n\
             nsid = 1\n",
            exported.address
        );
    let served = Served::start(&config, "far")?;
    let shared = "two cores: the target's worker shares one with the load, which sleeps while it \
                  waits; `target`, `unseen` and the tail are longer than with a core for each";
    let notes: &[&str] = if third.is_some() { &[] } else { &[shared] };
    let title = "4 KiB read, the same file over NVMe/TCP on loopback, one at a time";
    let look = Look { title, daemons: &[&served.daemon, &exported.daemon], notes };
    look.take(findings, 1, &read, |load| drive(&served, wait, load))
}

fn read(stats: &Stats) -> u64 {
    stats.disks.iter().map(|disk| disk.read_bytes / 4096).sum()
}

fn blocks() -> BlockArgs {
    BlockArgs { working_set_mib: WORKING_SET_MIB, ..BlockArgs::default() }
}

fn drive(served: &Served, wait: Wait, load: LoadArgs) -> Result<Measurement, Error> {
    let socket = served.socket.clone();
    vhost_blk::measure(&VhostBlkArgs { socket, queue_size: 128, wait, block: blocks(), load })
}

fn load(depth: u16, seconds: f64) -> LoadArgs {
    let mut load = LoadArgs::closed(depth, seconds, 0.1, core_pair().0);
    load.calibrate = false;
    load
}

fn counts(daemon: &Daemon) -> Result<Stats, Error> {
    ask_stats(&daemon.control()).map_err(|error| Error::Refused(error.to_string()))
}

fn ledger(daemon: &Daemon, seconds: u32) -> Result<Report, Error> {
    ask_ledger(&daemon.control(), seconds).map_err(|error| Error::Refused(error.to_string()))
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<Result<T, Error>>) -> Result<T, Error> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn pause(time: Duration) -> Result<(), Error> {
    stop::check()?;
    std::thread::sleep(time);
    Ok(())
}

/// A look at daemons while a load runs.
struct Look<'a> {
    title: &'a str,
    /// The first one counts what the load does.
    daemons: &'a [&'a Daemon],
    notes: &'a [&'a str],
}

impl Look<'_> {
    /// Looks while `run` keeps `depth` in flight, and keeps what is told.
    fn take(
        &self,
        findings: &mut Findings,
        depth: u16,
        done: &(impl Fn(&Stats) -> u64 + Sync),
        run: impl Fn(LoadArgs) -> Result<Measurement, Error> + Sync,
    ) -> Result<(), Error> {
        let seconds = findings.effort.seconds.ceil() as u32 + 1;
        eprintln!("  {}", self.title);
        let mut load = load(depth, f64::from(seconds) + MARGIN_S);
        let named = |daemon: &&Daemon| census::Named { name: "outboard".into(), pid: daemon.pid() };
        load.label.watch = self.daemons.iter().map(named).collect();
        let Steady { outcome: (reports, measured), remark, .. } = steady(self.title, || {
            std::thread::scope(|scope| {
                let before = done(&counts(self.daemons[0])?);
                let running = scope.spawn(|| run(load.clone()));
                // What fills the disk first is no part of it.
                while done(&counts(self.daemons[0])?) == before && !running.is_finished() {
                    pause(Duration::from_millis(10))?;
                }
                let looks: Vec<_> = self
                    .daemons
                    .iter()
                    .map(|daemon| scope.spawn(move || ledger(daemon, seconds)))
                    .collect();
                let reports: Result<Vec<_>, _> = looks.into_iter().map(joined).collect();
                Ok((reports?, joined(running)?))
            })
        })?;
        let notes = self.notes.iter().map(|note| (*note).to_owned()).chain(remark);
        let notes: Vec<String> = notes.chain(census::strangers(&measured.census)).collect();
        for report in reports {
            for mut table in report.tables {
                table.slowest.truncate(SLOWEST);
                findings.ledgers.push(Ledger {
                    title: self.title.to_owned(),
                    seconds: report.seconds,
                    threads: census::lines(&measured.census),
                    notes: notes.clone(),
                    table,
                });
            }
        }
        Ok(())
    }
}

/// The worker's time per item, with ledgers less without, under one load of `depth`. Windows with
/// and without alternate; each one with is compared with both of its neighbours.
fn cost(
    findings: &mut Findings,
    id: &'static str,
    daemon: &Daemon,
    depth: u16,
    done: &(impl Fn(&Stats) -> u64 + Sync),
    run: impl Fn(LoadArgs) -> Result<Measurement, Error> + Sync,
) -> Result<(), Error> {
    let Effort { rounds, seconds, .. } = findings.effort;
    let window = Duration::from_secs_f64(seconds / 3.0);
    let all_s = f64::from(rounds) * (f64::from(COST_LOOK_S) + window.as_secs_f64())
        + window.as_secs_f64()
        + MARGIN_S;
    let mut load = load(depth, all_s);
    load.label.watch = vec![census::Named { name: "outboard".into(), pid: daemon.pid() }];
    let Steady { outcome: (windows, measured), remark, .. } = steady(id, || {
        std::thread::scope(|scope| {
            let before = done(&counts(daemon)?);
            let running = scope.spawn(|| run(load.clone()));
            while done(&counts(daemon)?) == before && !running.is_finished() {
                pause(Duration::from_millis(10))?;
            }
            pause(BEGUN)?;
            let mut windows = vec![(0.0, busy_ns(daemon, window, done)?)];
            for _ in 0..rounds {
                let look = scope.spawn(|| ledger(daemon, COST_LOOK_S));
                pause(BEGUN)?;
                let with_ns = busy_ns(daemon, window, done)?;
                joined(look)?;
                windows.push((with_ns, busy_ns(daemon, window, done)?));
            }
            Ok((windows, joined(running)?))
        })
    })?;
    for pair in windows.windows(2) {
        let ((_, before_ns), (with_ns, after_ns)) = (pair[0], pair[1]);
        let without_ns = f64::midpoint(before_ns, after_ns);
        findings.add(id, with_ns - without_ns, &measured);
        let text = |ns: f64| latency::text(Some(ns as u64));
        let detail = format!("worker's {} with, {} without", text(with_ns), text(without_ns));
        findings.remark(id, &(detail + " (last window)"));
    }
    remark.iter().for_each(|remark| findings.remark(id, remark));
    Ok(())
}

/// The worker's time in turns that found something, per item, during a window.
fn busy_ns(daemon: &Daemon, window: Duration, done: &impl Fn(&Stats) -> u64) -> Result<f64, Error> {
    let busy = |stats: &Stats| stats.workers.iter().map(|worker| worker.busy_ns).sum::<u64>();
    let before = counts(daemon)?;
    pause(window)?;
    let after = counts(daemon)?;
    match done(&after) - done(&before) {
        0 => Err(Error::Refused("the load ended before the windows did".into())),
        items => Ok((busy(&after) - busy(&before)) as f64 / items as f64),
    }
}

/// What a disk's marks cost while no ledger is kept.
fn off(findings: &mut Findings) -> Result<(), Error> {
    let seconds = findings.effort.seconds / 3.0;
    for _ in 0..findings.effort.rounds {
        let Steady { outcome: ns, remark, .. } = steady("marks while off", || {
            let _pinned = pin(core_pair().0)?;
            Ok(marks_ns(seconds))
        })?;
        findings.add(OFF_IO, ns, &Measurement::default());
        remark.iter().for_each(|remark| findings.remark(OFF_IO, remark));
    }
    findings.found.entry(OFF_IO).or_default().threads =
        vec![format!("outboard-bench/marks @{} busy", core_pair().0)];
    Ok(())
}

/// Every mark of one I/O, each as if the compiler knew nothing of the others.
fn marks_ns(seconds: f64) -> f64 {
    const BATCH: u64 = 100_000;
    let mut timing = Timing::new(128);
    let (began, mut ios) = (Instant::now(), 0);
    while began.elapsed().as_secs_f64() < seconds {
        for io in 0..BATCH {
            let slot = io as u16 % 128;
            black_box(&mut timing).look(io);
            black_box(&mut timing).taken(slot, Op::Read, 4096);
            black_box(&mut timing).submitted(slot);
            black_box(&mut timing).ended(slot, Marks::default());
            black_box(&mut timing).answered();
            black_box(&mut timing).notified();
        }
        ios += BATCH;
    }
    began.elapsed().as_secs_f64() * 1e9 / ios as f64
}
