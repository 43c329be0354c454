//! Makes everything that a plan names, in an order that leaves nothing behind on failure: what
//! was made is dropped, XDP programs are detached. No worker runs yet.

use super::run::RunError;
use super::{dpdk, netlink};
use crate::bell::Bell;
use crate::config::Plan;
use crate::config::plan::{Port, Role, WaitMode};
use crate::counters::PortCounters;
use crate::packet::PortId;
use crate::port::afxdp::{AfXdp, AfXdpConfig};
use crate::port::peer::Peer;
use crate::port::{AnyPort, Port as _};
use crate::switch::{Seed, Switch, SwitchCounters, Tables};
use crate::worker::{
    Exit, Fittings, Message, Network, Queue, Retired, Storage, Waiting, Worker, WorkerCounters,
};
use crossbeam::channel::{Receiver, Sender, bounded};
use outboard_dma::{FreeList, Region, RingSizes};
use outboard_ebpf::{Program, Steering};
use outboard_wire::{ethernet, ipv4, udp, vxlan};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

/// Messages that wait for one worker.
const MAILBOX: usize = 64;
/// What a tunnel adds to a tenant's IP packet: the inner Ethernet header, VXLAN, UDP and IPv4.
const TUNNEL_BYTES: usize = ethernet::BYTES + vxlan::BYTES + udp::BYTES + ipv4::BYTES;
/// What it adds more when it is in IPv6.
const TUNNEL_MORE_BYTES_V6: usize = 20;
/// The IANA port of VXLAN (RFC 7348, section 8).
pub const VXLAN_PORT: u16 = 4789;

/// Control's side of one worker.
#[derive(Debug)]
pub struct Handle {
    /// Messages to it.
    pub mailbox: Sender<Message>,
    /// What it no longer uses.
    pub retired: Receiver<Retired>,
    /// What wakes it.
    pub bell: Arc<Bell>,
    /// What it counts about itself.
    pub counters: Arc<WorkerCounters>,
    /// What its flow cache counts.
    pub switch: Arc<SwitchCounters>,
    /// What it counts per port, by port number.
    pub ports: Vec<Arc<PortCounters>>,
}

/// XDP programs by port number; devices of DPDK's have none.
pub type Programs = Vec<Option<Steering>>;

/// Everything that was made.
#[derive(Debug)]
pub struct House {
    /// The workers, ready to run.
    pub workers: Vec<Worker>,
    /// Control's side of each.
    pub handles: Vec<Handle>,
    /// The XDP programs.
    pub steering: Programs,
}

/// Makes the network side of the plan and the workers around the given storage rooms, one per
/// worker. XDP programs are pinned under `pins`.
pub fn assemble(
    plan: &Plan,
    pins: &Path,
    region: &'static Region,
    bells: Vec<Arc<Bell>>,
    tables: &Arc<Tables>,
    mut storage: Vec<(Storage, FreeList)>,
) -> Result<House, RunError> {
    let counters: Vec<Vec<Arc<PortCounters>>> =
        plan.workers.iter().map(|_| plan.ports.iter().map(|_| Arc::default()).collect()).collect();
    let shares: Vec<&mut FreeList> = storage.iter_mut().map(|(_, free)| free).collect();
    let (steering, queues) = open_ports(plan, pins, region, &counters, shares)?;
    let seed = Seed::new(random());
    let (mut workers, mut handles) = (Vec::new(), Vec::new());
    let rooms = storage.into_iter().zip(queues).zip(peers(&bells));
    for (index, (((storage, free), queues), peers)) in rooms.enumerate() {
        let (mailbox, inbox) = bounded(MAILBOX);
        let (outbox, retired) = bounded(MAILBOX);
        let switch = Switch::new(plan.runtime.flows, seed, Arc::clone(tables));
        let handle = Handle {
            mailbox,
            retired,
            bell: Arc::clone(&bells[index]),
            counters: Arc::default(),
            switch: switch.counters(),
            ports: counters[index].clone(),
        };
        let ports = handle.ports.clone();
        let network = Network::new(queues, exits(plan, index), peers, switch, ports);
        let fittings = Fittings {
            free,
            share_frames: share_frames(region, plan.workers.len()) as usize,
            mailbox: inbox,
            retired: outbox,
            bell: Arc::clone(&handle.bell),
            waiting: waiting(plan),
            counters: Arc::clone(&handle.counters),
        };
        workers.push(Worker::new(network, storage, fittings));
        handles.push(handle);
    }
    Ok(House { workers, handles, steering })
}

/// Attaches every program and opens every queue: programs by port, queues by the worker that owns
/// them, there in the order of the ports. `counters` are by worker and port, `shares` by worker.
fn open_ports(
    plan: &Plan,
    pins: &Path,
    region: &'static Region,
    counters: &[Vec<Arc<PortCounters>>],
    mut shares: Vec<&mut FreeList>,
) -> Result<(Programs, Vec<Vec<Queue>>), RunError> {
    let mut steering = Vec::new();
    let mut queues: Vec<Vec<Queue>> = plan.workers.iter().map(|_| Vec::new()).collect();
    for (index, port) in plan.ports.iter().enumerate() {
        let writer = |worker: u16| Arc::clone(&counters[usize::from(worker)][index]);
        let opened = match &port.dpdk {
            None => open_port(plan, index, pins, region, writer)
                .map(|(program, opened)| (Some(program), opened)),
            Some(device) => {
                let worker = port.queues[0];
                let free = &mut *shares[usize::from(worker)];
                dpdk::open_port(plan, index, device, region, writer(worker), free)
                    .map(|opened| (None, vec![opened]))
            }
        };
        match opened {
            Ok((program, opened)) => {
                steering.push(program);
                for (worker, way) in port.queues.iter().zip(opened) {
                    queues[usize::from(*worker)].push(Queue::new(PortId(index as u16), way));
                }
            }
            Err(error) => {
                detach(steering);
                return Err(error);
            }
        }
    }
    Ok((steering, queues))
}

/// Takes the XDP programs off their interfaces; what cannot be taken off is told.
pub fn detach(steering: Programs) {
    for program in steering.into_iter().flatten() {
        if let Err(error) = program.detach() {
            tracing::warn!("{error}");
        }
    }
}

/// Attaches the program of port `index` and opens a socket on each of its queues, in their order;
/// `counters` gives a worker's own counts of the port.
pub fn open_port(
    plan: &Plan,
    index: usize,
    pins: &Path,
    region: &'static Region,
    counters: impl Fn(u16) -> Arc<PortCounters>,
) -> Result<(Steering, Vec<AnyPort>), RunError> {
    let port = &plan.ports[index];
    let vteps = vteps(plan);
    let program = match port.role {
        Role::Tenant(_) => Program::Tenant,
        Role::Uplink { .. } => Program::Uplink { vxlan_port: VXLAN_PORT, vteps: &vteps },
    };
    let attached = Steering::attach(&port.interface, program, pins);
    let mut steering = attached.map_err(|error| match (error, &port.role) {
        (outboard_ebpf::Error::NoInterface { interface }, Role::Tenant(_)) => {
            RunError::NotAttached { port: port.name.clone(), interface }
        }
        (error, _) => error.into(),
    })?;
    let mut sockets = || {
        check_queues(port)?;
        let mut opened = Vec::new();
        for (queue, worker) in port.queues.iter().enumerate() {
            let way = AfXdp::open(AfXdpConfig {
                interface: &port.interface,
                queue: queue as u32,
                region,
                rings: ring_sizes(plan, region),
                port: PortId(index as u16),
                counters: counters(*worker),
            })?;
            check_mtu(plan, index, way.max_frame_bytes() - ethernet::BYTES)?;
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
        Ok(opened)
    };
    match sockets() {
        Ok(opened) => Ok((steering, opened)),
        Err(error) => {
            detach(vec![Some(steering)]);
            Err(error)
        }
    }
}

/// The tunnel addresses of all uplinks: each takes what is for any of them.
pub fn vteps(plan: &Plan) -> Vec<IpAddr> {
    let of = |port: &Port| match port.role {
        Role::Uplink { vtep, vtep6, .. } => [vtep.map(IpAddr::V4), vtep6.map(IpAddr::V6)],
        Role::Tenant(_) => [None, None],
    };
    plan.ports.iter().flat_map(of).flatten().collect()
}

/// The place of a port's queue among the queues of the worker that owns it.
pub fn place(plan: &Plan, port: usize, queue: usize) -> u16 {
    let owner = plan.ports[port].queues[queue];
    let before = plan.ports[..port].iter().flat_map(|port| &port.queues);
    let before = before.chain(&plan.ports[port].queues[..queue]);
    before.filter(|worker| **worker == owner).count() as u16
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

/// Checks that the interface of port `index`, whose MTU is `found`, carries the largest packet
/// that may leave through it: a tenant's own, or on an uplink any tenant's in its tunnel headers.
pub fn check_mtu(plan: &Plan, index: usize, found: usize) -> Result<(), RunError> {
    let port = &plan.ports[index];
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

/// Rings as large as the worker's share of the frames carries: half of the share may lie in fill
/// rings at once, the other half is on the way.
pub fn ring_sizes(plan: &Plan, region: &Region) -> RingSizes {
    let queues = (0..plan.workers.len()).map(|worker| owned_queues(plan, worker));
    let most = queues.max().unwrap_or(0).max(1);
    let share = share_frames(region, plan.workers.len()) as usize / 2 / most;
    let entries = 1 << share.clamp(64, 2048).ilog2();
    RingSizes { fill: entries, rx: entries, tx: entries, completion: entries }
}

fn owned_queues(plan: &Plan, worker: usize) -> usize {
    let owners = plan.ports.iter().flat_map(|port| &port.queues);
    owners.filter(|owner| usize::from(**owner) == worker).count()
}

/// Where worker `index` sends packets for each port: to a queue of its own if it has one, else to
/// the owner of the port's first queue.
fn exits(plan: &Plan, index: usize) -> Vec<Exit> {
    let mut own = 0;
    let mut exits = Vec::new();
    for port in &plan.ports {
        let mine = port.queues.iter().filter(|owner| usize::from(**owner) == index).count();
        exits.push(match mine {
            0 => Exit::Peer(port.queues[0]),
            _ => Exit::Queue(own),
        });
        own += mine as u16;
    }
    exits
}

/// The ways between every two workers: `[from][to]`.
fn peers(bells: &[Arc<Bell>]) -> Vec<Vec<Option<Peer>>> {
    let mut ways: Vec<Vec<Option<Peer>>> =
        bells.iter().map(|_| bells.iter().map(|_| None).collect()).collect();
    for first in 0..bells.len() {
        for second in first + 1..bells.len() {
            let (a, b) = Peer::pair(Arc::clone(&bells[first]), Arc::clone(&bells[second]));
            ways[first][second] = Some(a);
            ways[second][first] = Some(b);
        }
    }
    ways
}

/// Frames of each worker.
pub fn share_frames(region: &Region, workers: usize) -> u32 {
    region.frames() / workers as u32
}

fn waiting(plan: &Plan) -> Waiting {
    let spin_ns = u64::from(plan.runtime.spin_us) * 1000;
    Waiting { mode: plan.runtime.mode, spin_ns }
}

/// The name of a wait mode in reports.
pub fn mode_name(mode: WaitMode) -> &'static str {
    match mode {
        WaitMode::Busy => "busy",
        WaitMode::Yield => "yield",
        WaitMode::Adaptive => "adaptive",
    }
}

/// 64 bits that a tenant cannot guess: the seed of the flow hash.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
