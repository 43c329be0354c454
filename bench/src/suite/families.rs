//! IPv6 beside IPv4: the same one-way pass through one daemon, inside and outside in one family.

use super::bed::{Daemon, FAR_VTEP, FAR_VTEP6, NetBed, TENANT_MTU, VTEP, VTEP6};
use super::net::{Device, FAR_IP, GATEWAY_MAC, TENANT_IP, TENANT_MAC, VNI, WINDOW, generator};
use super::steady::{Steady, steady};
use super::{Figure, Findings};
use crate::drivers::afxdp::{self, AfxdpArgs};
use crate::drivers::{LabelArgs, LoadArgs};
use crate::error::Error;
use crate::machine::census::Named;
use crate::machine::core_pair;
use crate::schema::Measurement;
use std::net::Ipv6Addr;

/// The ids of this part.
pub const IDS: [&str; 1] = ["net-v6-vs-v4"];

const TENANT_IP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const FAR_IP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
/// The least that the generator sends over IPv6; over IPv4 as much.
const FRAME_BYTES: u16 = 80;
const THROUGHPUT: &str = "one-way pass 80 B by family, 256 in flight";
const LATENCY: &str = "one-way pass 80 B by family, one at a time";

/// A family, inside and outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn path(self) -> &'static str {
        match self {
            Family::V4 => "Outboard, IPv4 in IPv4",
            Family::V6 => "Outboard, IPv6 in IPv6",
        }
    }
}

/// One time each.
struct Both<T> {
    v4: T,
    v6: T,
}

/// Both families in turn, as often as the suite's effort says.
pub fn run(findings: &mut Findings) -> Result<(), Error> {
    let bed = NetBed::new()?;
    for round in 0..findings.effort.rounds {
        let Steady { outcome, trips, remark } =
            steady("families", || alternate(findings, &bed, round))?;
        let Both { v4: latency4, v6: latency6 } = outcome.0;
        findings.add_ratio(IDS[0], Figure::P50, &latency6, &latency4);
        remark.iter().for_each(|remark| findings.remark(IDS[0], remark));
        let Both { v4: throughput4, v6: throughput6 } = outcome.1;
        for mut measured in [latency4, latency6, throughput4, throughput6] {
            measured.cacheline_ns = trips;
            findings.keep(measured);
        }
    }
    Ok(())
}

/// Latency and throughput of both through a daemon of their own; every other round IPv6 is first.
fn alternate(
    findings: &Findings,
    bed: &NetBed,
    round: u32,
) -> Result<(Both<Measurement>, Both<Measurement>), Error> {
    let daemon = Daemon::start("families", Some(bed.device.name()), &configuration())?;
    let watch = [Named { name: "outboard".into(), pid: daemon.pid() }];
    let both = |group: &str, depth: u16| {
        let run = |family| afxdp::measure(&frames(findings, bed, family, group, depth, &watch));
        if round.is_multiple_of(2) {
            let v4 = run(Family::V4)?;
            return Ok::<_, Error>(Both { v4, v6: run(Family::V6)? });
        }
        let v6 = run(Family::V6)?;
        Ok(Both { v4: run(Family::V4)?, v6 })
    };
    Ok((both(LATENCY, 1)?, both(THROUGHPUT, WINDOW)?))
}

/// What the generator sends.
fn frames(
    findings: &Findings,
    bed: &NetBed,
    family: Family,
    group: &str,
    depth: u16,
    watch: &[Named],
) -> AfxdpArgs {
    let effort = findings.effort;
    let mut load = LoadArgs::closed(depth, effort.seconds, effort.warmup, core_pair().0);
    load.calibrate = false;
    load.label = LabelArgs {
        name: Some(format!("{}: {group}", family.path())),
        group: Some(group.to_owned()),
        path: Some(family.path().to_owned()),
        medium: Some("veth, native XDP".to_owned()),
        baseline: family == Family::V4,
        peer: false,
        watch: watch.to_vec(),
        notes: Vec::new(),
    };
    let args = AfxdpArgs { frame: FRAME_BYTES, ..generator(bed, Device::Outboard, load) };
    match family {
        Family::V4 => args,
        Family::V6 => AfxdpArgs { src_ip: TENANT_IP6.into(), dst_ip: FAR_IP6.into(), ..args },
    }
}

/// One worker on the second core; the tenant and its routes in both families.
fn configuration() -> String {
    let core = core_pair().1;
    format!(
        "[runtime]\nmode = \"busy\"\n\n[[worker]]\ncore = {core}\n\n\
         [[vpc]]\nname = \"one\"\nvni = {VNI}\ngateway = \"10.0.0.254\"\n\
         gateway6 = \"fd00::fe\"\ngateway_mac = \"{GATEWAY_MAC}\"\n\n\
         [[vpc.route]]\nto = \"{FAR_IP}/32\"\nvia = \"{FAR_VTEP}\"\n\n\
         [[vpc.route]]\nto = \"{FAR_IP6}/128\"\nvia = \"{FAR_VTEP6}\"\n\n\
         [[uplink]]\nname = \"uplink\"\ninterface = \"u1\"\nvtep = \"{VTEP}\"\n\
         vtep6 = \"{VTEP6}\"\n\n\
         [[port]]\nname = \"tenant\"\ninterface = \"t1\"\nvpc = \"one\"\n\
         address = \"{TENANT_IP}/24\"\naddress6 = \"{TENANT_IP6}/64\"\n\
         mac = \"{TENANT_MAC}\"\nmtu = {TENANT_MTU}\n"
    )
}
