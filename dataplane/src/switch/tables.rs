//! What the switch knows: ports, VPCs, routes and the way to each far end.
//!
//! Built from the plan and the kernel's next hops off the data path, then immutable; a worker
//! swaps a whole new one in at the start of a turn.

use super::lpm::Lpm;
use super::transform::Transform;
use crate::config::Plan;
use crate::config::plan::{Role, Vpc};
use crate::packet::PortId;
use outboard_wire::{IpPrefix, Ipv4Prefix, Mac};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

/// A far end's number in [`Tables`]. Tables made from one plan number alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NextHopId(pub u32);

/// How to reach a far end over the underlay, as the kernel resolved it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// Frames can be addressed.
    Resolved {
        /// The uplink.
        port: PortId,
        /// This host's tunnel address on it.
        src_ip: IpAddr,
        /// The uplink's MAC address.
        src_mac: Mac,
        /// The far end's MAC address, or that of the router towards it.
        dst_mac: Mac,
        /// The largest outer IP packet in bytes that reaches the far end: the link's and the
        /// route's MTU, and what routers on the way told.
        path_mtu: u32,
    },
    /// There is a route, but no MAC address yet.
    Unresolved,
    /// There is no route, or it is not over an uplink.
    NoRoute,
}

/// Everything that decides where packets go; immutable.
#[derive(Debug)]
pub struct Tables {
    /// By port number; the numbers between that no port has are `None`.
    pub(super) ports: Box<[Option<Ingress>]>,
    pub(super) vpcs: Box<[VpcTable]>,
    pub(super) transforms: Box<[Transform]>,
    vnis: VniMap,
    /// This host's tunnel addresses.
    vteps: Box<[Ipv4Addr]>,
    /// Tunnel addresses of other hosts, ascending; the index is the [`NextHopId`].
    far_ends: Box<[IpAddr]>,
    /// The largest outer IP packet to each far end; 0 where there is no way to it.
    path_mtus: Box<[u32]>,
}

/// What a packet's ingress port tells about it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ingress {
    Tenant(TenantPort),
    Uplink,
}

/// A tenant's port, with what every packet from it needs of its VPC.
#[derive(Clone, Copy, Debug)]
pub(super) struct TenantPort {
    pub(super) vpc: u16,
    pub(super) gateway_mac: Mac,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) address: Option<Ipv4Addr>,
}

/// One VPC.
#[derive(Debug)]
pub(super) struct VpcTable {
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) gateway_mac: Mac,
    /// Destinations to indices of transforms.
    pub(super) routes: Lpm,
    /// Tunnel addresses that its routes name, ascending.
    far_ends: Box<[Ipv4Addr]>,
}

impl VpcTable {
    /// Whether a route of the VPC leads to this tunnel address.
    pub(super) fn has_far_end(&self, far_end: Ipv4Addr) -> bool {
        self.far_ends.binary_search(&far_end).is_ok()
    }
}

impl Tables {
    /// The tables of a plan, given the way to each far end; a far end that is not in `next_hops`
    /// has no route. Where a route and a local tenant name the same address, the tenant wins.
    pub fn new(plan: &Plan, next_hops: &[(IpAddr, NextHop)]) -> Tables {
        let routes = || plan.vpcs.iter().flat_map(|vpc| &vpc.routes);
        let far_ends = distinct(routes().map(|route| route.via));
        let next_hops: BTreeMap<_, _> = next_hops.iter().copied().collect();
        let mut transforms = Vec::new();
        let mut vpcs = Vec::new();
        for (index, vpc) in plan.vpcs.iter().enumerate() {
            let tunnels = tunnels(vpc, &far_ends, &next_hops, &mut transforms);
            let tenants = tenants(plan, index, vpc, &mut transforms);
            vpcs.push(VpcTable {
                gateway: vpc.gateway,
                gateway_mac: vpc.gateway_mac,
                routes: Lpm::new(tunnels.into_iter().chain(tenants).collect()),
                far_ends: distinct(vpc.routes.iter().filter_map(|route| ipv4(route.via))),
            });
        }
        Tables {
            ports: ingresses(plan),
            vnis: VniMap::new(plan.vpcs.iter().map(|vpc| vpc.vni)),
            vteps: distinct(plan.ports.iter().filter_map(|port| match port.role {
                Role::Uplink { vtep, .. } => vtep,
                Role::Tenant(_) => None,
            })),
            vpcs: vpcs.into(),
            transforms: transforms.into(),
            path_mtus: far_ends.iter().map(|far_end| path_mtu(next_hops.get(far_end))).collect(),
            far_ends,
        }
    }

    /// How many far ends there are: every [`NextHopId`] is below.
    pub fn next_hops(&self) -> usize {
        self.far_ends.len()
    }

    /// The tunnel address behind a [`NextHopId`] of these tables.
    pub fn far_end(&self, id: NextHopId) -> Option<IpAddr> {
        self.far_ends.get(id.0 as usize).copied()
    }

    /// The largest outer IP packet in bytes to a far end; `None` when there is no way to it now.
    pub fn path_mtu(&self, far_end: IpAddr) -> Option<u32> {
        let index = self.far_ends.binary_search(&far_end).ok()?;
        self.path_mtus.get(index).copied().filter(|mtu| *mtu > 0)
    }

    /// The VPC with this VNI.
    #[inline(always)]
    pub(super) fn vpc_of(&self, vni: u32) -> Option<u16> {
        self.vnis.get(vni)
    }

    /// Whether the address is one of this host's tunnel addresses. There are few.
    #[inline(always)]
    pub(super) fn is_vtep(&self, address: Ipv4Addr) -> bool {
        self.vteps.contains(&address)
    }
}

fn path_mtu(next_hop: Option<&NextHop>) -> u32 {
    match next_hop {
        Some(NextHop::Resolved { path_mtu, .. }) => *path_mtu,
        _ => 0,
    }
}

fn ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn distinct<A: Ord>(addresses: impl Iterator<Item = A>) -> Box<[A]> {
    let mut list: Vec<_> = addresses.collect();
    list.sort_unstable();
    list.dedup();
    list.into()
}

fn ingresses(plan: &Plan) -> Box<[Option<Ingress>]> {
    let count = plan.ports.iter().map(|port| usize::from(port.id.0) + 1).max().unwrap_or(0);
    let mut ingresses = vec![None; count];
    for port in &plan.ports {
        ingresses[usize::from(port.id.0)] = Some(ingress(plan, &port.role));
    }
    ingresses.into()
}

fn ingress(plan: &Plan, role: &Role) -> Ingress {
    match role {
        Role::Uplink { .. } => Ingress::Uplink,
        Role::Tenant(tenant) => {
            let vpc = &plan.vpcs[usize::from(tenant.vpc)];
            Ingress::Tenant(TenantPort {
                vpc: tenant.vpc,
                gateway_mac: vpc.gateway_mac,
                gateway: vpc.gateway,
                address: tenant.address.map(|own| own.address),
            })
        }
    }
}

/// Appends the transforms of a VPC's routes and returns which prefix has which. Routes to one far
/// end and MAC share a transform, so that the transforms in use stay in the nearest cache.
fn tunnels(
    vpc: &Vpc,
    far_ends: &[IpAddr],
    next_hops: &BTreeMap<IpAddr, NextHop>,
    transforms: &mut Vec<Transform>,
) -> Vec<(Ipv4Prefix, u32)> {
    let mut shared = BTreeMap::new();
    let mut routes = Vec::new();
    for route in &vpc.routes {
        // What is of IPv6 has no transform yet.
        let (IpPrefix::V4(to), true) = (route.to, route.via.is_ipv4()) else { continue };
        let transform = *shared.entry((route.via, route.mac)).or_insert_with(|| {
            let id = far_ends.partition_point(|far_end| *far_end < route.via) as u32;
            let next_hop = next_hops.get(&route.via).unwrap_or(&NextHop::NoRoute);
            transforms.push(Transform::tunnel(vpc, route, next_hop, NextHopId(id)));
            transforms.len() as u32 - 1
        });
        routes.push((to, transform));
    }
    routes
}

/// As [`tunnels`], for the VPC's tenants on this host.
fn tenants(
    plan: &Plan,
    index: usize,
    vpc: &Vpc,
    transforms: &mut Vec<Transform>,
) -> Vec<(Ipv4Prefix, u32)> {
    let mut routes = Vec::new();
    for port in &plan.ports {
        let Role::Tenant(tenant) = &port.role else { continue };
        if usize::from(tenant.vpc) != index {
            continue;
        }
        let Some(own) = tenant.address else { continue };
        transforms.push(Transform::tenant(vpc, tenant, port.id));
        let host = Ipv4Prefix::containing(own.address, 32);
        routes.extend(host.map(|host| (host, transforms.len() as u32 - 1)));
    }
    routes
}

/// VNIs to VPCs: open addressing at no more than half load.
#[derive(Debug)]
struct VniMap {
    /// VNI and VPC; VNI 0 marks a free slot (the configuration refuses it).
    slots: Box<[(u32, u16)]>,
}

impl VniMap {
    fn new(vnis: impl ExactSizeIterator<Item = u32>) -> VniMap {
        let mut slots = vec![(0, 0); (vnis.len() * 2).next_power_of_two().max(2)];
        for (vni, vpc) in vnis.zip(0..) {
            let mut at = VniMap::place(vni, slots.len());
            while slots[at].0 != 0 && slots[at].0 != vni {
                at = (at + 1) % slots.len();
            }
            slots[at] = (vni, vpc);
        }
        VniMap { slots: slots.into() }
    }

    #[inline(always)]
    fn get(&self, vni: u32) -> Option<u16> {
        let mask = self.slots.len() - 1;
        let mut at = VniMap::place(vni, self.slots.len());
        loop {
            match self.slots[at & mask] {
                (0, _) => return None,
                (found, vpc) if found == vni => return Some(vpc),
                _ => at += 1,
            }
        }
    }

    #[inline(always)]
    fn place(vni: u32, slots: usize) -> usize {
        (vni.wrapping_mul(0x9e37_79b1) >> 8) as usize & (slots - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vni_is_found_and_no_other() {
        for count in [0, 1, 2, 3, 500] {
            let vni = |n: u32| 1 + n * 4096 % 0xff_ffff;
            let map = VniMap::new((0..count).map(vni).collect::<Vec<_>>().into_iter());
            for n in 0..count {
                assert_eq!(map.get(vni(n)), Some(n as u16));
            }
            for absent in [0, 2, 0xff_ffff] {
                assert_eq!(map.get(absent), None);
            }
        }
    }
}
