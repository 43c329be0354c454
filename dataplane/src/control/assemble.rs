//! Opens the network side of one port: its XDP program and a socket on each of its queues. On
//! failure nothing of it stays.

use super::netlink;
use super::run::RunError;
use super::workers::Workers;
use crate::config::Plan;
use crate::config::plan::{FRAMES_PER_QUEUE_MIN, Port, Role};
use crate::counters::PortCounters;
use crate::port::afxdp::{AfXdp, AfXdpConfig};
use crate::port::{AnyPort, Port as _};
use outboard_dma::{Region, RingSizes};
use outboard_ebpf::{Program, Steering};
use outboard_wire::{ethernet, ipv4, udp, vxlan};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

/// What a tunnel adds to a tenant's IP packet: the inner Ethernet header, VXLAN, UDP and IPv4.
const TUNNEL_BYTES: usize = ethernet::BYTES + vxlan::BYTES + udp::BYTES + ipv4::BYTES;
/// What it adds more when it is in IPv6.
const TUNNEL_MORE_BYTES_V6: usize = 20;
/// The IANA port of VXLAN (RFC 7348, section 8).
pub const VXLAN_PORT: u16 = 4789;
/// Entries of the smallest and of the largest rings.
const RING_ENTRIES: std::ops::RangeInclusive<u32> = FRAMES_PER_QUEUE_MIN / 2..=2048;
/// Queues of a worker that rings are sized for at least, so that ports can come at run time.
const QUEUES_EXPECTED: usize = 8;

/// A port that is open: its program, and what is counted for it.
#[derive(Debug)]
pub struct OpenPort {
    /// The port as it was planned.
    pub port: Port,
    /// Its program; a device of DPDK's has none.
    pub steering: Option<Steering>,
    /// Entries of each ring of its queues.
    pub entries: u32,
    /// The largest IP packet that its interface carried when it was opened.
    pub mtu: usize,
    /// What each worker counts for it.
    pub counters: Vec<Arc<PortCounters>>,
}

/// Where ports are opened.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// Where programs are pinned.
    pub pins: &'a Path,
    /// The process's frame memory.
    pub region: &'static Region,
    /// The plan that has the port.
    pub plan: &'a Plan,
}

/// Takes the XDP program off its interface; what cannot be taken off is told.
pub fn detach(program: Option<Steering>) {
    if let Some(Err(error)) = program.map(Steering::detach) {
        tracing::warn!("{error}");
    }
}

/// Claims frames for the queues of a port: the entries that its rings can have. Half of what is
/// claimed may lie in fill rings, the other half is on the way.
pub fn claim(
    plan: &Plan,
    port: &Port,
    workers: &mut Workers,
    region: &Region,
) -> Result<u32, RunError> {
    let wanted = entries(plan, region);
    let mut entries = wanted;
    loop {
        let short = try_claim(port, entries, workers);
        let Some((worker, free)) = short else { return Ok(entries) };
        if entries / 2 < *RING_ENTRIES.start() {
            let port = port.name.clone();
            return Err(RunError::Frames { port, worker, free, needed: 2 * entries });
        }
        entries /= 2;
    }
}

/// The worker that has not enough frames, and how many it has.
fn try_claim(port: &Port, entries: u32, workers: &mut Workers) -> Option<(u16, u32)> {
    for (index, worker) in port.queues.iter().enumerate() {
        if !workers.claim(*worker, 2 * entries) {
            let free = workers.unclaimed(*worker);
            for worker in &port.queues[..index] {
                workers.disclaim(*worker, 2 * entries);
            }
            return Some((*worker, free));
        }
    }
    None
}

/// Takes the claims of a port back.
pub fn disclaim(port: &Port, entries: u32, workers: &mut Workers) {
    for worker in &port.queues {
        workers.disclaim(*worker, 2 * entries);
    }
}

/// Entries of rings such that the worker with the most to do can have as many for each queue.
fn entries(plan: &Plan, region: &Region) -> u32 {
    let share = region.frames() / plan.workers.len() as u32;
    let each = (0..plan.workers.len() as u16).map(|worker| {
        let (queues, _) = plan.owned(worker);
        let for_exports =
            plan.frames_needed(worker) - queues as u64 * u64::from(FRAMES_PER_QUEUE_MIN);
        let rest = u64::from(share).saturating_sub(for_exports) as u32;
        rest / 2 / queues.max(QUEUES_EXPECTED) as u32
    });
    let least = each.min().unwrap_or(0);
    1 << least.clamp(*RING_ENTRIES.start(), *RING_ENTRIES.end()).ilog2()
}

/// Attaches the program of a port and opens a socket on each of its queues, in their order.
pub fn open_port(
    site: Site,
    port: &Port,
    entries: u32,
    counters: Vec<Arc<PortCounters>>,
) -> Result<(OpenPort, Vec<AnyPort>), RunError> {
    let vteps = vteps(site.plan);
    let program = match port.role {
        Role::Tenant(_) => Program::Tenant,
        Role::Uplink { .. } => Program::Uplink { vxlan_port: VXLAN_PORT, vteps: &vteps },
    };
    let attached = Steering::attach(&port.interface, program, site.pins);
    let mut steering = attached.map_err(|error| match (error, &port.role) {
        (outboard_ebpf::Error::NoInterface { interface }, Role::Tenant(_)) => {
            RunError::NotAttached { port: port.name.clone(), interface }
        }
        (error, _) => error.into(),
    })?;
    match open_queues(site, port, entries, &counters, &mut steering) {
        Ok((queues, mtu)) => {
            let steering = Some(steering);
            Ok((OpenPort { port: port.clone(), steering, entries, mtu, counters }, queues))
        }
        Err(error) => {
            detach(Some(steering));
            Err(error)
        }
    }
}

fn open_queues(
    site: Site,
    port: &Port,
    entries: u32,
    counters: &[Arc<PortCounters>],
    steering: &mut Steering,
) -> Result<(Vec<AnyPort>, usize), RunError> {
    check_queues(port)?;
    let rings = RingSizes { fill: entries, rx: entries, tx: entries, completion: entries };
    let (mut opened, mut mtu) = (Vec::new(), usize::MAX);
    for (queue, worker) in port.queues.iter().enumerate() {
        let way = AfXdp::open(AfXdpConfig {
            interface: &port.interface,
            queue: queue as u32,
            region: site.region,
            rings,
            port: port.id,
            counters: Arc::clone(&counters[usize::from(*worker)]),
        })?;
        mtu = mtu.min(way.max_frame_bytes() - ethernet::BYTES);
        check_mtu(site.plan, port, mtu)?;
        if let Some(socket) = way.socket() {
            steering.set_socket(queue as u32, socket)?;
        }
        let copy = if way.zero_copy() { "zero-copy" } else { "copy" };
        tracing::info!(
            "port {}: queue {queue} of {} on worker {worker}, {} XDP, {copy}",
            port.name,
            port.interface,
            steering.mode().name()
        );
        opened.push(AnyPort::AfXdp(way));
    }
    Ok((opened, mtu))
}

/// The tunnel addresses of all uplinks: each takes what is for any of them.
pub fn vteps(plan: &Plan) -> Vec<IpAddr> {
    plan.ports.iter().flat_map(vteps_of).collect()
}

/// The tunnel addresses of a port; a tenant's has none.
pub fn vteps_of(port: &Port) -> Vec<IpAddr> {
    match port.role {
        Role::Uplink { vtep, vtep6, .. } => {
            vtep.map(IpAddr::V4).into_iter().chain(vtep6.map(IpAddr::V6)).collect()
        }
        Role::Tenant(_) => Vec::new(),
    }
}

/// Packets on queues that nobody reads would be lost.
fn check_queues(port: &Port) -> Result<(), RunError> {
    // Where the kernel does not tell, the program counts those packets as `no_socket`.
    let found = netlink::receive_queues(&port.interface).ok().flatten();
    let wanted = port.queues.len() as u32;
    match found {
        Some(found) if found > wanted => Err(RunError::Queues {
            port: port.name.clone(),
            interface: port.interface.clone(),
            found,
            wanted,
        }),
        _ => Ok(()),
    }
}

/// Checks that the interface of a port, whose MTU is `found`, carries the largest packet
/// that may leave through it: a tenant's own, or on an uplink any tenant's in its tunnel headers.
pub fn check_mtu(plan: &Plan, port: &Port, found: usize) -> Result<(), RunError> {
    let (needed, reason) = needed_mtu(plan, port);
    if found >= needed {
        return Ok(());
    }
    let (port, interface) = (port.name.clone(), port.interface.clone());
    Err(RunError::Mtu { port, interface, found, needed, reason })
}

/// The largest packet that may leave through a port, and what for.
pub fn needed_mtu(plan: &Plan, port: &Port) -> (usize, String) {
    match &port.role {
        Role::Tenant(tenant) => (usize::from(tenant.mtu), "its tenant".to_string()),
        Role::Uplink { vtep6, .. } => {
            let mut routes = plan.vpcs.iter().flat_map(|vpc| &vpc.routes);
            let in_v6 = vtep6.is_some() && routes.any(|route| route.via.is_ipv6());
            let tunnel_bytes = TUNNEL_BYTES + if in_v6 { TUNNEL_MORE_BYTES_V6 } else { 0 };
            let tenants = plan.ports.iter().filter_map(|port| match &port.role {
                Role::Tenant(tenant) => Some((usize::from(tenant.mtu), &port.name)),
                Role::Uplink { .. } => None,
            });
            let Some((mtu, name)) = tenants.max() else { return (0, String::new()) };
            (mtu + tunnel_bytes, format!("the packets of \"{name}\" ({mtu}) in their tunnel"))
        }
    }
}
