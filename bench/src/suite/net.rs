//! The net suite: the same one-way pass through a bare reflector, Outboard, and the kernel.

use super::bed::{Daemon, FAR_VTEP, NetBed, Pins, Scratch, TENANT_MTU, VTEP};
use super::steady::{Steady, steady};
use super::{
    Figure, Findings, OPEN_LOOP_SHARES, dpdk, families, handoff, idle, memory, switch_hit,
};
use crate::drivers::afxdp::{self, AfxdpArgs};
use crate::drivers::{LabelArgs, LoadArgs};
use crate::error::Error;
use crate::machine::census::Named;
use crate::machine::{core_pair, pin};
use crate::reference::reflector::Running;
use crate::report::terminal::count;
use crate::schema::Measurement;
use outboard_wire::Mac;
use std::net::Ipv4Addr;

/// The VPC's number.
pub const VNI: u32 = 100;
/// The tenant.
pub const TENANT_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The tenant behind the far end.
pub const FAR_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The tenant's MAC address; frames from another would be dropped.
pub const TENANT_MAC: Mac = Mac([2, 0, 0, 0, 1, 1]);
const FAR_TENANT_MAC: Mac = Mac([2, 0, 0, 0, 1, 2]);
/// The virtual gateway's.
pub const GATEWAY_MAC: Mac = Mac([2, 0, 0, 0, 1, 0xfe]);
/// Frames in flight of a throughput run.
pub const WINDOW: u16 = 256;
/// Above this share of the generator's own ceiling a rate says nothing about the device.
const GENERATOR_SHARE: f64 = 0.85;

/// What a one-way pass tells.
const PASS: [&str; 4] = [
    "net-throughput-vs-reflector",
    "net-p50-vs-reflector",
    "net-p99-vs-reflector",
    "net-p50-vs-kernel",
];
const HANDOFF: [&str; 1] = ["net-handoff-cost"];
/// What of a DPDK port is measured.
const DPDK: &str = "dpdk-port-added-ns";
const SWITCH: [&str; 3] = ["switch-hit-ns", "switch-hit-scaling", "switch-hit-v6-ns"];
/// What is divided by the reflector's figures.
const BY_REFLECTOR: [&str; 3] =
    ["net-throughput-vs-reflector", "net-p50-vs-reflector", "net-p99-vs-reflector"];

const THROUGHPUT: &str = "one-way pass 64 B, 256 in flight";
const LATENCY: &str = "one-way pass 64 B, one at a time";

/// What is between the interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// A bare AF_XDP program.
    Reflector,
    /// The daemon.
    Outboard,
    /// Bridge and VXLAN.
    Kernel,
}

impl Device {
    /// Its name in reports.
    pub fn path(self) -> &'static str {
        match self {
            Device::Reflector => "bare AF_XDP reflector",
            Device::Outboard => "Outboard",
            Device::Kernel => "kernel bridge + VXLAN",
        }
    }

    /// Whom a tenant's frame is addressed to at the link layer.
    fn dst_mac(self) -> Mac {
        match self {
            Device::Outboard => GATEWAY_MAC,
            Device::Reflector | Device::Kernel => FAR_TENANT_MAC,
        }
    }
}

/// A throughput and a latency run of one device.
struct Pair {
    throughput: Measurement,
    latency: Measurement,
    remark: Option<String>,
}

/// Runs everything of the suite.
pub fn run(findings: &mut Findings) -> Result<(), Error> {
    let _pins = Pins;
    findings.part(&PASS, passes)?;
    findings.part(&families::IDS, families::run)?;
    findings
        .part(&SWITCH, |findings| (0..findings.effort.rounds).try_for_each(|_| switch(findings)))?;
    findings.part(&[DPDK], |findings| {
        (0..findings.effort.rounds).try_for_each(|_| dpdk_port(findings))
    })?;
    findings.part(&["rss-mib"], rss)?;
    findings.part(&HANDOFF, handoff)?;
    findings.part(&idle::IDS, idle::run)
}

/// Two workers against one, were every packet to cross: in the time that one needs for a packet
/// both together have twice that, and need as much as the pass and the crossing.
fn handoff(findings: &mut Findings) -> Result<(), Error> {
    let pass_ns = busy_ns_per_packet(findings)?;
    for _ in 0..findings.effort.rounds {
        let seconds = findings.effort.seconds;
        let Steady { outcome: crossing_ns, remark, .. } =
            steady("hand-off", || handoff::measure(seconds))?;
        findings.add(HANDOFF[0], 2.0 * pass_ns / (pass_ns + crossing_ns), &Measurement::default());
        let found = findings.found.entry(HANDOFF[0]).or_default();
        found.detail = format!("a pass takes {pass_ns:.0} ns, a crossing {crossing_ns:.0} ns");
        found.threads = vec![
            format!("outboard-bench/sender @{} busy", core_pair().0),
            format!("outboard-bench/receiver @{} busy", core_pair().1),
        ];
        remark.iter().for_each(|remark| findings.remark(HANDOFF[0], remark));
    }
    Ok(())
}

/// Time of one worker's turns that found packets, per packet that it sent, at the highest rate.
fn busy_ns_per_packet(findings: &Findings) -> Result<f64, Error> {
    let bed = NetBed::new()?;
    let daemon = Daemon::start("pass", Some(bed.device.name()), &configuration(&[]))?;
    let mut load = labelled(findings, Device::Outboard, THROUGHPUT, WINDOW, &[]);
    load.warmup = 0.0;
    afxdp::measure(&generator(&bed, Device::Outboard, load))?;
    let stats = daemon.stats()?;
    let busy_ns: u64 = stats.workers.iter().map(|worker| worker.busy_ns).sum();
    let packets: u64 = stats.ports.iter().map(|port| port.tx_packets).sum();
    match packets {
        0 => Err(Error::Refused("no packet passed the worker".into())),
        n => Ok(busy_ns as f64 / n as f64),
    }
}

/// Everything that takes frames through a device.
fn passes(findings: &mut Findings) -> Result<(), Error> {
    let bed = NetBed::new()?;
    let ceiling = ceiling(findings, &bed)?;
    for round in 1..=findings.effort.rounds {
        eprintln!("round {round} of {}", findings.effort.rounds);
        self::round(findings, &bed, ceiling)?;
    }
    match findings.effort.open_loops {
        true => open_loops(findings, &bed),
        false => Ok(()),
    }
}

/// What the generator alone moves between two interfaces that face each other.
fn ceiling(findings: &Findings, bed: &NetBed) -> Result<f64, Error> {
    let effort = findings.effort;
    let load = LoadArgs::closed(WINDOW, effort.seconds, effort.warmup, core_pair().0);
    let args =
        AfxdpArgs { tx: "c0".into(), rx: "c1".into(), ..generator(bed, Device::Reflector, load) };
    let ceiling = afxdp::measure(&args)?.rate_per_s;
    eprintln!("the generator's ceiling is {} frames/s", count(ceiling));
    Ok(ceiling)
}

/// What sends into the device and receives behind it.
pub fn generator(bed: &NetBed, device: Device, load: LoadArgs) -> AfxdpArgs {
    AfxdpArgs {
        tx: "t0".into(),
        rx: "u0".into(),
        netns: Some(bed.far.name().to_owned()),
        rx_netns: None,
        frame: 64,
        flows: 1,
        dst_mac: device.dst_mac(),
        src_mac: TENANT_MAC,
        dst_ip: FAR_IP.into(),
        src_ip: TENANT_IP.into(),
        lost_after: 0.2,
        load,
    }
}

/// Reflector, Outboard, kernel, one after the other; values are ratios inside the round.
fn round(findings: &mut Findings, bed: &NetBed, ceiling: f64) -> Result<(), Error> {
    let reflector = findings.reference(
        "reflector-mpps",
        &BY_REFLECTOR,
        |findings| pass(findings, bed, Device::Reflector, ceiling),
        |pair| pair.throughput.rate_per_s / 1e6,
    )?;
    let outboard = pass(findings, bed, Device::Outboard, ceiling)?;
    let kernel = pass(findings, bed, Device::Kernel, ceiling)?;
    let (ours, theirs) = (&outboard.throughput, &reflector.throughput);
    findings.add_ratio("net-throughput-vs-reflector", Figure::Rate, ours, theirs);
    let (ours, theirs) = (&outboard.latency, &reflector.latency);
    findings.add_ratio("net-p50-vs-reflector", Figure::P50, ours, theirs);
    findings.add_ratio("net-p99-vs-reflector", Figure::P99, ours, theirs);
    findings.add_ratio("net-p50-vs-kernel", Figure::P50, ours, &kernel.latency);
    if outboard.throughput.generator_limited {
        findings.remark("net-throughput-vs-reflector", "limited by the generator");
    }
    for pair in [reflector, outboard, kernel] {
        for id in BY_REFLECTOR {
            pair.remark.iter().for_each(|remark| findings.remark(id, remark));
        }
        findings.keep(pair.throughput);
        findings.keep(pair.latency);
    }
    Ok(())
}

/// Both runs through one device, which is set up before and removed after.
fn pass(findings: &Findings, bed: &NetBed, device: Device, ceiling: f64) -> Result<Pair, Error> {
    let Steady { outcome, trips, remark } = steady(device.path(), || {
        between(bed, device, |watch| {
            let run = |group: &str, depth: u16| {
                let load = labelled(findings, device, group, depth, watch);
                afxdp::measure(&generator(bed, device, load))
            };
            Ok((run(THROUGHPUT, WINDOW)?, run(LATENCY, 1)?))
        })
    })?;
    let (mut throughput, mut latency) = outcome;
    throughput.generator_ceiling_per_s = Some(ceiling);
    throughput.generator_limited = throughput.rate_per_s > GENERATOR_SHARE * ceiling;
    (throughput.cacheline_ns, latency.cacheline_ns) = (trips, trips);
    Ok(Pair { throughput, latency, remark })
}

/// Sets a device up, runs, and removes it; `run` gets the processes to watch.
fn between<T>(
    bed: &NetBed,
    device: Device,
    run: impl FnOnce(&[Named]) -> Result<T, Error>,
) -> Result<T, Error> {
    match device {
        Device::Reflector => {
            let _running = Running::start("t1", "u1", Some(bed.device.name()))?;
            run(&[])
        }
        Device::Outboard => {
            let daemon = Daemon::start("net", Some(bed.device.name()), &configuration(&[]))?;
            run(&[Named { name: "outboard".into(), pid: daemon.pid() }])
        }
        Device::Kernel => {
            let _path = bed.join_by_kernel(VNI, &FAR_TENANT_MAC.to_string())?;
            run(&[])
        }
    }
}

fn labelled(
    findings: &Findings,
    device: Device,
    group: &str,
    depth: u16,
    watch: &[Named],
) -> LoadArgs {
    let effort = findings.effort;
    let mut load = LoadArgs::closed(depth, effort.seconds, effort.warmup, core_pair().0);
    load.calibrate = false;
    load.label = LabelArgs {
        name: Some(format!("{}: {group}", device.path())),
        group: Some(group.to_owned()),
        path: Some(device.path().to_owned()),
        medium: Some("veth, native XDP".to_owned()),
        baseline: device == Device::Reflector,
        peer: device == Device::Kernel,
        watch: watch.to_vec(),
        notes: Vec::new(),
    };
    load
}

/// All devices at the same rates: shares of Outboard's highest. Reported, not judged.
fn open_loops(findings: &mut Findings, bed: &NetBed) -> Result<(), Error> {
    let is_outboard = |m: &&Measurement| {
        m.path == Device::Outboard.path() && m.group == THROUGHPUT && m.rate_per_s > 0.0
    };
    let Some(most) = findings.measurements.iter().find(is_outboard).map(|m| m.rate_per_s) else {
        return Ok(());
    };
    for device in [Device::Reflector, Device::Outboard, Device::Kernel] {
        let measured = between(bed, device, |watch| {
            let runs = OPEN_LOOP_SHARES.iter().map(|share| {
                let group = format!("one-way pass 64 B, open loop, {share} % of Outboard's rate");
                let mut load = labelled(findings, device, &group, WINDOW, watch);
                load.rate = Some(most * f64::from(*share) / 100.0);
                eprintln!("  {}: {}/s", device.path(), count(most * f64::from(*share) / 100.0));
                afxdp::measure(&generator(bed, device, load))
            });
            runs.collect::<Result<Vec<_>, _>>()
        })?;
        measured.into_iter().for_each(|m| findings.keep(m));
    }
    Ok(())
}

/// One worker on the second core with the tenant's port and the uplink; `more` are further ports.
fn configuration(more: &[String]) -> String {
    configuration_of("busy", more)
}

/// The same with a worker that waits in this mode.
pub fn configuration_of(mode: &str, more: &[String]) -> String {
    let core = core_pair().1;
    let text = format!(
        "[runtime]\nmode = \"{mode}\"\n\n[[worker]]\ncore = {core}\n\n\
         [[vpc]]\nname = \"one\"\nvni = {VNI}\ngateway = \"10.0.0.254\"\n\
         gateway_mac = \"{GATEWAY_MAC}\"\n\n\
         [[vpc.route]]\nto = \"{FAR_IP}/32\"\nvia = \"{FAR_VTEP}\"\n\n\
         [[uplink]]\nname = \"uplink\"\ninterface = \"u1\"\nvtep = \"{VTEP}\"\n\n\
         [[port]]\nname = \"tenant\"\ninterface = \"t1\"\nvpc = \"one\"\n\
         address = \"{TENANT_IP}/24\"\nmac = \"{TENANT_MAC}\"\nmtu = {TENANT_MTU}\n"
    );
    more.iter().fold(text, |text, port| text + "\n" + port)
}

fn switch(findings: &mut Findings) -> Result<(), Error> {
    let seconds = findings.effort.seconds;
    let Steady { outcome: cost, remark, .. } = steady("switch", || {
        let _pinned = pin(core_pair().0)?;
        switch_hit::measure(seconds)
    })?;
    let alone = Measurement::default();
    findings.add("switch-hit-ns", cost.one_ns, &alone);
    findings.add("switch-hit-scaling", cost.many_ns / cost.one_ns.max(0.1), &alone);
    findings.add("switch-hit-v6-ns", cost.v6_ns, &alone);
    for id in SWITCH {
        remark.iter().for_each(|remark| findings.remark(id, remark));
        findings.found.entry(id).or_default().threads =
            vec![format!("outboard-bench/switch @{} busy", core_pair().0)];
    }
    Ok(())
}

fn dpdk_port(findings: &mut Findings) -> Result<(), Error> {
    let (seconds, core) = (findings.effort.seconds, core_pair().0);
    let Steady { outcome: cost, remark, .. } = steady("DPDK port", || {
        let _pinned = pin(core)?;
        dpdk::measure(seconds, core)
    })?;
    findings.add(DPDK, cost.ours_ns - cost.testpmd_ns, &Measurement::default());
    remark.iter().for_each(|remark| findings.remark(DPDK, remark));
    let found = findings.found.entry(DPDK).or_default();
    found.detail = format!("{:.1} ns by {:.1} ns", cost.ours_ns, cost.testpmd_ns);
    found.threads = vec![format!("outboard-bench/dpdk or testpmd @{core} busy")];
    Ok(())
}

/// Four ports (the uplink is one of them) and a disk; all ports have seen frames.
fn rss(findings: &mut Findings) -> Result<(), Error> {
    let bed = NetBed::new()?;
    let files = Scratch::new(&std::env::temp_dir())?;
    let mut more = tenant_ports(&bed)?;
    let directory = files.path().display();
    more.push(format!(
        "[[volume]]\nname = \"data\"\nkind = \"file\"\npath = \"{directory}/data.img\"\n\
         create = \"64MiB\"\n\n[[disk]]\nname = \"vda\"\nvolume = \"data\"\n\
         socket = \"{directory}/vda.sock\"\n"
    ));
    let daemon = Daemon::start("rss", Some(bed.device.name()), &configuration(&more))?;
    let named = [Named { name: "outboard".into(), pid: daemon.pid() }];
    let mut load = LoadArgs::closed(WINDOW, 0.5, 0.1, core_pair().0);
    load.calibrate = false;
    load.label.watch = named.to_vec();
    let measured = afxdp::measure(&generator(&bed, Device::Outboard, load))?;
    findings.add("rss-mib", memory::held_mib(daemon.pid())?, &measured);
    Ok(())
}

/// Two more tenants, so that there are four ports with the uplink: their links and sections.
pub fn tenant_ports(bed: &NetBed) -> Result<Vec<String>, Error> {
    let mut sections = Vec::new();
    for n in 2..=3 {
        bed.link(&format!("f{n}"), &format!("p{n}"), TENANT_MTU)?;
        sections.push(format!(
            "[[port]]\nname = \"tenant-{n}\"\ninterface = \"p{n}\"\nvpc = \"one\"\n\
             address = \"10.0.0.1{n}/24\"\nmtu = {TENANT_MTU}\n"
        ));
    }
    Ok(sections)
}
