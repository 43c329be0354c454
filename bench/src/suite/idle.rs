//! A worker that has nothing to do: what it costs, and how long the first packet waits for it.

use super::bed::{Daemon, NetBed, Scratch};
use super::net::{Device, configuration_of, generator, tenant_ports};
use super::{Figure, Findings, TOO_FEW};
use crate::drivers::{LoadArgs, afxdp};
use crate::error::Error;
use crate::latency;
use crate::machine::census::{Named, Watch};
use crate::machine::core_pair;
use crate::reference::wake;
use crate::schema::Measurement;
use crate::stop;
use outboard::virtio::driver::BlkDriver;
use std::time::{Duration, Instant};

/// The ids of this part.
pub const IDS: [&str; 2] = ["idle-pct", "wake-vs-eventfd"];
/// Disks of the idle worker.
const DISKS: usize = 10;
/// First packets after idle, and wakes of the bare eventfd; p99 needs this many.
const WAKES: u64 = 1_100;
/// Between two of them: far beyond the time for which an adaptive worker spins.
const APART: Duration = Duration::from_millis(4);
/// A daemon settles after its start: neighbours, guests' negotiations.
const SETTLE: Duration = Duration::from_secs(2);

const FIRST_PACKET: &str = "first packet after idle, adaptive mode";

/// Measures both.
pub fn run(findings: &mut Findings) -> Result<(), Error> {
    let bed = NetBed::new()?;
    let files = Scratch::new(&std::env::temp_dir())?;
    let mut more = tenant_ports(&bed)?;
    let sockets: Vec<_> =
        (0..DISKS).map(|disk| files.path().join(format!("disk-{disk}"))).collect();
    for (disk, socket) in sockets.iter().enumerate() {
        more.push(format!(
            "[[volume]]\nname = \"volume-{disk}\"\nkind = \"mem\"\nsize = \"1MiB\"\n\n\
             [[disk]]\nname = \"disk-{disk}\"\nvolume = \"volume-{disk}\"\nsocket = \"{}\"\n",
            socket.display()
        ));
    }
    let config = configuration_of("adaptive", &more);
    let daemon = Daemon::start("idle", Some(bed.device.name()), &config)?;
    // Guests that hold their disks and do nothing.
    let guests: Result<Vec<_>, _> =
        sockets.iter().map(|socket| BlkDriver::connect(socket, 128, 1, 4096)).collect();
    let _guests = guests.map_err(|error| Error::Refused(error.to_string()))?;
    pause(SETTLE)?;
    let named = [Named { name: "outboard".into(), pid: daemon.pid() }];
    for _ in 0..findings.effort.rounds {
        idle(findings, &named)?;
        first_packets(findings, &bed, &named)?;
    }
    Ok(())
}

fn pause(time: Duration) -> Result<(), Error> {
    let began = Instant::now();
    while began.elapsed() < time {
        stop::check()?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Processor time of the whole daemon while nothing happens.
fn idle(findings: &mut Findings, daemon: &[Named]) -> Result<(), Error> {
    let used_s = || cpu_s(daemon[0].pid);
    let (began, before_s, watch) = (Instant::now(), used_s()?, Watch::begin(daemon));
    pause(Duration::from_secs_f64(findings.effort.seconds))?;
    let wall_s = began.elapsed().as_secs_f64();
    let share = (used_s()? - before_s) / wall_s;
    let alone = Measurement { census: watch.end(), ..Measurement::default() };
    findings.add(IDS[0], share * 100.0, &alone);
    Ok(())
}

/// Processor seconds of all threads of a process: the first number of schedstat, in nanoseconds
/// (Linux, Documentation/scheduler/sched-stats.rst).
fn cpu_s(pid: u32) -> Result<f64, Error> {
    let tasks = format!("/proc/{pid}/task");
    let cannot = || Error::system(format!("cannot read the threads of process {pid}"));
    let mut sum_ns = 0;
    for task in std::fs::read_dir(&tasks).map_err(cannot())? {
        let task = task.map_err(cannot())?.path().join("schedstat");
        // A thread may end meanwhile.
        let text = std::fs::read_to_string(task).unwrap_or_default();
        sum_ns += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum_ns as f64 / 1e9)
}

/// Packets that each find the worker asleep, beside wakes of a bare eventfd.
fn first_packets(findings: &mut Findings, bed: &NetBed, daemon: &[Named]) -> Result<(), Error> {
    let bare = wake::measure(WAKES, APART)?.percentile(990_000);
    let seconds = WAKES as f64 * APART.as_secs_f64();
    let mut load = LoadArgs::closed(1, seconds, 0.1, core_pair().0);
    load.rate = Some(1.0 / APART.as_secs_f64());
    load.calibrate = false;
    load.label.group = Some(FIRST_PACKET.to_owned());
    load.label.path = Some(Device::Outboard.path().to_owned());
    load.label.medium = Some("veth, native XDP".to_owned());
    load.label.watch = daemon.to_vec();
    let packets = afxdp::measure(&generator(bed, Device::Outboard, load))?;
    match Figure::P99.of(&packets).zip(bare) {
        Some((ours_ns, bare_ns)) => {
            findings.add(IDS[1], ours_ns / bare_ns as f64, &packets);
            let [ours, bare] = [ours_ns as u64, bare_ns].map(|ns| latency::text(Some(ns)));
            findings.found.entry(IDS[1]).or_default().detail =
                format!("p99 of first packets {ours}, of eventfd wakes {bare}");
        }
        None => findings.remark(IDS[1], TOO_FEW),
    }
    findings.keep(packets);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_counted() {
        let before_s = cpu_s(std::process::id()).unwrap();
        let began = Instant::now();
        while cpu_s(std::process::id()).unwrap() - before_s < 0.02 {
            assert!(began.elapsed() < Duration::from_secs(60));
        }
    }
}
