//! What the switch knows: ports, VPCs, routes and the way to each far end.
//!
//! Built from the plan and the kernel's next hops off the data path, then immutable; a worker
//! swaps a whole new one in at the start of a turn.

use super::lpm::{Lpm, Lpm6};
use super::transform::Transform;
use crate::config::Plan;
use crate::config::plan::{Role, Tenant, Vpc};
use crate::packet::PortId;
use outboard_wire::{IpPrefix, Ipv4Prefix, Ipv6Prefix, Mac, nd};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
    vteps6: Box<[Ipv6Addr]>,
    /// Tunnel addresses of other hosts, ascending; the index is the [`NextHopId`].
    far_ends: Box<[IpAddr]>,
    /// The largest outer IP packet to each far end; 0 where there is no way to it.
    path_mtus: Box<[u32]>,
    marks: FarEndMarks,
}

/// What a packet's ingress port tells about it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ingress {
    Tenant(TenantPort),
    Uplink {
        /// Whether a datagram over IPv6 may come without a checksum.
        zero_checksum6: bool,
    },
}

/// A tenant's port, with what every packet from it needs of its VPC.
#[derive(Clone, Copy, Debug)]
pub(super) struct TenantPort {
    pub(super) vpc: u16,
    pub(super) mac: Mac,
    pub(super) gateway_mac: Mac,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) address: Option<Ipv4Addr>,
    pub(super) gateway6: Option<Ipv6Addr>,
    pub(super) address6: Option<Ipv6Addr>,
    /// Its network.
    pub(super) prefix6: Option<Ipv6Prefix>,
    pub(super) mtu: u16,
}

impl TenantPort {
    /// The gateway's link-local address: the same wherever the tenant is, as the MAC address is.
    pub(super) fn gateway_link_local(&self) -> Ipv6Addr {
        nd::link_local(self.gateway_mac)
    }
}

/// One VPC.
#[derive(Debug)]
pub(super) struct VpcTable {
    pub(super) vni: u32,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) gateway6: Option<Ipv6Addr>,
    pub(super) gateway_mac: Mac,
    /// Destinations to indices of transforms.
    pub(super) routes: Lpm,
    pub(super) routes6: Lpm6,
    /// Marks of the tunnel addresses that its routes name, ascending.
    far_ends: Box<[u32]>,
}

impl VpcTable {
    /// Whether a route of the VPC leads to the tunnel address of this mark.
    pub(super) fn has_far_end(&self, mark: u32) -> bool {
        self.far_ends.binary_search(&mark).is_ok()
    }
}

impl Tables {
    /// The tables of a plan, given the way to each far end; a far end that is not in `next_hops`
    /// has no route. Where a route and a local tenant name the same address, the tenant wins.
    pub fn new(plan: &Plan, next_hops: &[(IpAddr, NextHop)]) -> Tables {
        let routes = || plan.vpcs.iter().flat_map(|vpc| &vpc.routes);
        let far_ends = distinct(routes().map(|route| route.via));
        let marks = FarEndMarks::new(&far_ends);
        let next_hops: BTreeMap<_, _> = next_hops.iter().copied().collect();
        let mut transforms = Vec::new();
        let mut vpcs = Vec::new();
        for (index, vpc) in plan.vpcs.iter().enumerate() {
            let mut routes = tunnels(vpc, &far_ends, &next_hops, &mut transforms);
            routes.extend(tenants(plan, index, vpc, &mut transforms));
            vpcs.push(VpcTable {
                vni: vpc.vni,
                gateway: vpc.gateway,
                gateway6: vpc.gateway6,
                gateway_mac: vpc.gateway_mac,
                routes: Lpm::new(of_ipv4(&routes)),
                routes6: Lpm6::new(of_ipv6(&routes)),
                far_ends: distinct(vpc.routes.iter().filter_map(|route| marks.of(route.via))),
            });
        }
        Tables {
            ports: ingresses(plan),
            vnis: VniMap::new(plan.vpcs.iter().map(|vpc| vpc.vni)),
            vteps: distinct(plan.ports.iter().filter_map(|port| match port.role {
                Role::Uplink { vtep, .. } => vtep,
                Role::Tenant(_) => None,
            })),
            vteps6: distinct(plan.ports.iter().filter_map(|port| match port.role {
                Role::Uplink { vtep6, .. } => vtep6,
                Role::Tenant(_) => None,
            })),
            vpcs: vpcs.into(),
            transforms: transforms.into(),
            path_mtus: far_ends.iter().map(|far_end| path_mtu(next_hops.get(far_end))).collect(),
            far_ends,
            marks,
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

    /// The same for IPv6.
    #[inline(always)]
    pub(super) fn is_vtep6(&self, address: Ipv6Addr) -> bool {
        self.vteps6.contains(&address)
    }

    /// The mark of an outer source address of IPv6, if any route of any VPC names it.
    #[inline(always)]
    pub(super) fn mark6(&self, far_end: Ipv6Addr) -> Option<u32> {
        self.marks.of6(far_end)
    }

    /// The mark of any far end's address.
    pub(super) fn mark(&self, far_end: IpAddr) -> Option<u32> {
        self.marks.of(far_end)
    }

    /// Every far end by its mark.
    pub(super) fn far_ends_by_mark(&self) -> BTreeMap<u32, IpAddr> {
        self.far_ends.iter().filter_map(|far_end| Some((self.mark(*far_end)?, *far_end))).collect()
    }

    /// The transform of a destination in a VPC.
    pub(super) fn route(&self, vpc: u16, destination: IpAddr) -> Option<u32> {
        let vpc = &self.vpcs[usize::from(vpc)];
        match destination {
            IpAddr::V4(destination) => vpc.routes.get(destination),
            IpAddr::V6(destination) => vpc.routes6.get(destination),
        }
    }

    /// Whether a tenant of the VPC on this host has the address.
    pub(super) fn is_tenant(&self, vpc: u16, address: IpAddr) -> bool {
        let transform = self.route(vpc, address);
        transform.is_some_and(|transform| self.transforms[transform as usize].is_local())
    }

    /// What is behind a port, if there is one.
    #[inline(always)]
    pub(super) fn ingress(&self, port: PortId) -> Option<&Ingress> {
        self.ports.get(usize::from(port.0))?.as_ref()
    }
}

fn path_mtu(next_hop: Option<&NextHop>) -> u32 {
    match next_hop {
        Some(NextHop::Resolved { path_mtu, .. }) => *path_mtu,
        _ => 0,
    }
}

fn of_ipv4(routes: &[(IpPrefix, u32)]) -> Vec<(Ipv4Prefix, u32)> {
    let of = |(prefix, value): &(IpPrefix, u32)| match prefix {
        IpPrefix::V4(prefix) => Some((*prefix, *value)),
        IpPrefix::V6(_) => None,
    };
    routes.iter().filter_map(of).collect()
}

fn of_ipv6(routes: &[(IpPrefix, u32)]) -> Vec<(Ipv6Prefix, u32)> {
    let of = |(prefix, value): &(IpPrefix, u32)| match prefix {
        IpPrefix::V4(_) => None,
        IpPrefix::V6(prefix) => Some((*prefix, *value)),
    };
    routes.iter().filter_map(of).collect()
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
        Role::Uplink { zero_checksum6, .. } => Ingress::Uplink { zero_checksum6: *zero_checksum6 },
        Role::Tenant(tenant) => {
            let vpc = &plan.vpcs[usize::from(tenant.vpc)];
            let Tenant { vpc: index, address, address6, mac, mtu } = *tenant;
            Ingress::Tenant(TenantPort {
                vpc: index,
                mac,
                gateway_mac: vpc.gateway_mac,
                gateway: vpc.gateway,
                address: address.map(|own| own.address),
                gateway6: vpc.gateway6,
                address6: address6.map(|own| own.address),
                prefix6: address6.map(|own| own.network()),
                mtu,
            })
        }
    }
}

/// Appends the transforms of a VPC's routes and returns which prefix has which. Routes to one far
/// end and MAC share a transform, so that the transforms in use stay in the nearest cache; IPv4
/// and IPv6 have their own, because the EtherType inside is part of it.
fn tunnels(
    vpc: &Vpc,
    far_ends: &[IpAddr],
    next_hops: &BTreeMap<IpAddr, NextHop>,
    transforms: &mut Vec<Transform>,
) -> Vec<(IpPrefix, u32)> {
    let mut shared = BTreeMap::new();
    let mut routes = Vec::new();
    for route in &vpc.routes {
        let is_ipv6 = matches!(route.to, IpPrefix::V6(_));
        let transform = *shared.entry((route.via, route.mac, is_ipv6)).or_insert_with(|| {
            let id = far_ends.partition_point(|far_end| *far_end < route.via) as u32;
            let next_hop = next_hops.get(&route.via).unwrap_or(&NextHop::NoRoute);
            transforms.push(Transform::tunnel(vpc, route, next_hop, NextHopId(id)));
            transforms.len() as u32 - 1
        });
        routes.push((route.to, transform));
    }
    routes
}

/// As [`tunnels`], for the VPC's tenants on this host.
fn tenants(
    plan: &Plan,
    index: usize,
    vpc: &Vpc,
    transforms: &mut Vec<Transform>,
) -> Vec<(IpPrefix, u32)> {
    let mut routes = Vec::new();
    for port in &plan.ports {
        let Role::Tenant(tenant) = &port.role else { continue };
        if usize::from(tenant.vpc) != index {
            continue;
        }
        let own = [
            tenant.address.map(|own| IpAddr::V4(own.address)),
            tenant.address6.map(|own| IpAddr::V6(own.address)),
        ];
        for address in own.into_iter().flatten() {
            transforms.push(Transform::tenant(vpc, tenant, address.is_ipv6(), port.id));
            routes.push((IpPrefix::host(address), transforms.len() as u32 - 1));
        }
    }
    routes
}

/// Far ends as 32 bits, which a flow remembers. Those of IPv4 are their own mark; those of IPv6
/// have numbers that begin at 1, which would be addresses in 0.0.0.0/8: no host has one (RFC 1122
/// section 3.2.1.3), and a packet that says so is refused before.
#[derive(Debug)]
struct FarEndMarks {
    /// Addresses of IPv6 and their marks: open addressing at no more than half load. Mark 0 is a
    /// free slot.
    slots: Box<[(Ipv6Addr, u32)]>,
}

impl FarEndMarks {
    fn new(far_ends: &[IpAddr]) -> FarEndMarks {
        let six = far_ends.iter().filter_map(|far_end| match far_end {
            IpAddr::V4(_) => None,
            IpAddr::V6(far_end) => Some(*far_end),
        });
        let slots = (far_ends.len() * 2).next_power_of_two().max(2);
        let mut slots = vec![(Ipv6Addr::UNSPECIFIED, 0); slots];
        for (far_end, mark) in six.zip(1..) {
            let mut at = FarEndMarks::place(far_end, slots.len());
            while slots[at].1 != 0 {
                at = (at + 1) % slots.len();
            }
            slots[at] = (far_end, mark);
        }
        FarEndMarks { slots: slots.into() }
    }

    fn of(&self, far_end: IpAddr) -> Option<u32> {
        match far_end {
            IpAddr::V4(far_end) => Some(far_end.to_bits()),
            IpAddr::V6(far_end) => self.of6(far_end),
        }
    }

    #[inline(always)]
    fn of6(&self, far_end: Ipv6Addr) -> Option<u32> {
        let mask = self.slots.len() - 1;
        let mut at = FarEndMarks::place(far_end, self.slots.len());
        loop {
            match self.slots[at & mask] {
                (_, 0) => return None,
                (found, mark) if found == far_end => return Some(mark),
                _ => at += 1,
            }
        }
    }

    #[inline(always)]
    fn place(far_end: Ipv6Addr, slots: usize) -> usize {
        let bits = far_end.to_bits();
        let folded = (bits >> 64) as u64 ^ (bits as u64).rotate_left(21);
        (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & (slots - 1)
    }
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
    fn every_far_end_has_its_own_mark() {
        let six = |n: u32| Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(n) << 16);
        let four = Ipv4Addr::new(192, 0, 2, 1);
        for count in [0, 1, 2, 3, 500] {
            let far_ends: Vec<_> = (0..count).map(|n| IpAddr::V6(six(n))).collect();
            let marks = FarEndMarks::new(&far_ends);
            let of: std::collections::BTreeSet<_> =
                (0..count).map(|n| marks.of6(six(n)).unwrap()).collect();
            assert_eq!(of.len(), count as usize);
            assert!(of.iter().all(|mark| (1..1 << 24).contains(mark)));
            assert_eq!((marks.of6(six(500)), marks.of(four.into())), (None, Some(four.to_bits())));
        }
    }

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
