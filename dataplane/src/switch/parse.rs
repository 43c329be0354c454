//! From a frame to what the flow cache needs of it, or to a verdict at once.
//!
//! Every byte here comes from a tenant or from the network. All headers that later steps touch are
//! checked to lie in the packet's head frame; nothing is changed.

use super::flow::Key;
use super::tables::{Tables, TenantPort};
use super::{INNER_AT, OUTER_BYTES, payload};
use crate::drop::DropReason;
use crate::packet::Packet;
use outboard_wire::{Ethernet, Ipv4, Mac, Malformed, Udp, Vxlan, arp, ethernet, ipv4, udp, vxlan};
use std::net::Ipv4Addr;

/// Where the outer IPv4 payload starts.
const OUTER_UDP_AT: usize = ethernet::BYTES + ipv4::BYTES;

/// What a packet that takes part in a flow was found to be.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) key: Key,
    pub(super) hash: u64,
    /// The outer source address as a number; 0 when it comes from a tenant.
    pub(super) far_end: u32,
    /// Total length of the (inner) IP packet.
    pub(super) ip_len: u16,
}

impl Seen {
    /// Where the (inner) IP header lies in the packet as it came in.
    #[inline(always)]
    pub(super) fn ip_at(&self) -> usize {
        if self.key.is_from_uplink() { INNER_AT } else { ethernet::BYTES }
    }
}

/// What a packet is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// An IPv4 packet between tenants.
    Flow(Seen),
    /// ARP from a tenant.
    Arp,
    /// IPv4 from a tenant to its virtual gateway.
    ToGateway(Ipv4),
    /// ARP out of a tunnel, of this VPC.
    TunnelArp(u16),
}

/// Looks at a packet from a tenant.
#[inline(always)]
pub(super) fn tenant(packet: &Packet, port: &TenantPort) -> Result<Kind, DropReason> {
    let head = packet.head();
    let frame = Ethernet::parse(head).map_err(reason)?;
    if frame.ethertype != ethernet::IPV4 {
        return other(frame.ethertype).map(|()| Kind::Arp);
    }
    if frame.destination != port.gateway_mac {
        return Err(not_gateway(frame.destination));
    }
    let available = packet.bytes() - ethernet::BYTES;
    let ip = Ipv4::parse(&head[ethernet::BYTES..], available).map_err(reason)?;
    if Some(ip.destination) == port.gateway {
        return Ok(Kind::ToGateway(ip));
    }
    let key = key(head, ethernet::BYTES, &ip, port.vpc, false)?;
    Ok(Kind::Flow(Seen { key, hash: 0, far_end: 0, ip_len: ip.total_len }))
}

/// Looks at a packet from an uplink.
#[inline(always)]
pub(super) fn uplink(packet: &Packet, tables: &Tables) -> Result<Kind, DropReason> {
    let (vpc, outer, datagram_len) = tunnel(packet, tables)?;
    let head = packet.head();
    let inner = head.get(OUTER_BYTES..).ok_or(DropReason::TooShort)?;
    let frame = Ethernet::parse(inner).map_err(reason)?;
    if frame.ethertype != ethernet::IPV4 {
        other(frame.ethertype)?;
        if datagram_len < udp::BYTES + vxlan::BYTES + ethernet::BYTES + arp::BYTES {
            return Err(DropReason::TooShort);
        }
        let known = tables.vpcs[usize::from(vpc)].has_far_end(outer.source);
        return if known { Ok(Kind::TunnelArp(vpc)) } else { Err(DropReason::UnknownVtep) };
    }
    if frame.destination.is_group() {
        return Err(DropReason::Multicast);
    }
    let available = OUTER_UDP_AT + datagram_len - INNER_AT;
    let ip = Ipv4::parse(&inner[ethernet::BYTES..], available).map_err(reason)?;
    let key = key(head, INNER_AT, &ip, vpc, true)?;
    let far_end = outer.source.to_bits();
    Ok(Kind::Flow(Seen { key, hash: 0, far_end, ip_len: ip.total_len }))
}

/// Checks the outer headers: VPC, outer IP header, and bytes of the UDP datagram, which has room
/// for VXLAN and inner Ethernet headers.
#[inline(always)]
fn tunnel(packet: &Packet, tables: &Tables) -> Result<(u16, Ipv4, usize), DropReason> {
    let head = packet.head();
    let frame = Ethernet::parse(head).map_err(reason)?;
    match frame.ethertype {
        ethernet::IPV4 => {}
        ethernet::VLAN | ethernet::SERVICE_VLAN => return Err(DropReason::VlanTag),
        _ => return Err(DropReason::NotTunnelled),
    }
    let available = packet.bytes() - ethernet::BYTES;
    let outer = Ipv4::parse(&head[ethernet::BYTES..], available).map_err(reason)?;
    if !tables.is_vtep(outer.destination) {
        return Err(DropReason::NotOurVtep);
    }
    if outer.protocol != ipv4::UDP {
        return Err(DropReason::NotTunnelled);
    }
    if outer.is_fragment() {
        return Err(DropReason::OuterFragment);
    }
    let available = usize::from(outer.payload_len());
    let datagram = Udp::parse(&head[OUTER_UDP_AT..], available).map_err(reason)?;
    if datagram.destination != vxlan::PORT {
        return Err(DropReason::NotTunnelled);
    }
    if datagram.checksum != 0 {
        payload::check_tunnel(packet, &outer, &datagram)?;
    }
    let len = usize::from(datagram.len);
    if len < udp::BYTES + vxlan::BYTES + ethernet::BYTES {
        return Err(DropReason::VxlanMalformed);
    }
    let tunnel = Vxlan::parse(&head[OUTER_UDP_AT + udp::BYTES..]).map_err(reason)?;
    let vpc = tables.vpc_of(tunnel.vni).ok_or(DropReason::UnknownVni)?;
    Ok((vpc, outer, len))
}

/// The flow that an IPv4 packet belongs to, whose header lies at `at` in the head.
#[inline(always)]
fn key(head: &[u8], at: usize, ip: &Ipv4, vpc: u16, uplink: bool) -> Result<Key, DropReason> {
    let header = head.get(at..).ok_or(DropReason::TooShort)?;
    let addresses = *header[12..].first_chunk::<8>().ok_or(DropReason::TooShort)?;
    let has_ports =
        matches!(ip.protocol, ipv4::TCP | ipv4::UDP) && !ip.is_fragment() && ip.payload_len() >= 4;
    let ports = if has_ports {
        *header[ipv4::BYTES..].first_chunk::<4>().ok_or(DropReason::TooShort)?
    } else {
        [0; 4]
    };
    Ok(Key::new(vpc, uplink, addresses, ports, ip.protocol))
}

/// Whether a frame that is not IPv4 is at least ARP.
#[cold]
fn other(ethertype: u16) -> Result<(), DropReason> {
    match ethertype {
        ethernet::ARP => Ok(()),
        ethernet::VLAN | ethernet::SERVICE_VLAN => Err(DropReason::VlanTag),
        _ => Err(DropReason::EtherType),
    }
}

/// Why a frame to this address is not routed.
#[cold]
pub(super) fn not_gateway(destination: Mac) -> DropReason {
    if destination.is_group() { DropReason::Multicast } else { DropReason::NotGateway }
}

/// Why packets to this address are never routed, whatever the routes say (RFC 1812 section 5.3).
pub(super) fn unroutable(destination: Ipv4Addr) -> Option<DropReason> {
    match destination.octets()[0] {
        0 | 127 => Some(DropReason::NoRoute),
        224..=239 => Some(DropReason::Multicast),
        240..=255 if destination.is_broadcast() => Some(DropReason::Multicast),
        240..=255 => Some(DropReason::NoRoute),
        _ => None,
    }
}

/// The drop reason for a header that could not be read.
pub(super) fn reason(malformed: Malformed) -> DropReason {
    match malformed {
        Malformed::TooShort => DropReason::TooShort,
        Malformed::Ipv4Header => DropReason::Ipv4Header,
        Malformed::Ipv4Options => DropReason::Ipv4Options,
        Malformed::Ipv4Checksum => DropReason::Ipv4Checksum,
        Malformed::Arp => DropReason::ArpMalformed,
        Malformed::UdpLength | Malformed::Vxlan => DropReason::VxlanMalformed,
    }
}
