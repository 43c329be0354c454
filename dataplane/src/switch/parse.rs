//! From a frame to what the flow cache needs of it, or to a verdict at once.
//!
//! Every byte here comes from a tenant or from the network. All headers that later steps touch are
//! checked to lie in the packet's head frame; nothing is changed.
//!
//! A tenant sends from its own MAC address and its own IP addresses only. A flow is addresses,
//! protocol, and the ports of TCP and UDP; every fragment, the first too, has ports 0, and of IPv6
//! the protocol that its fragment header names, so that all fragments take one path.

use super::flow::{Addresses6, Key};
use super::tables::{Tables, TenantPort};
use super::{OUTER_BYTES, OUTER6_BYTES, payload};
use crate::drop::DropReason;
use crate::packet::Packet;
use outboard_wire::{
    Ethernet, Ipv4, Ipv6, Mac, Malformed, Udp, Vxlan, arp, ethernet, ipv4, ipv6, udp, vxlan,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where the outer IPv4 payload starts.
const OUTER_UDP_AT: usize = ethernet::BYTES + ipv4::BYTES;
/// Where the outer IPv6 payload starts.
const OUTER6_UDP_AT: usize = ethernet::BYTES + ipv6::BYTES;

/// What a packet that takes part in a flow was found to be.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) key: Key,
    pub(super) hash: u64,
    /// The outer source address as the tables mark it; 0 when it comes from a tenant.
    pub(super) far_end: u32,
    /// Total length of the (inner) IP packet.
    pub(super) ip_len: u16,
    /// Where the (inner) IP header lies in the packet as it came in.
    ip_at: u8,
}

impl Seen {
    /// A packet from a tenant, its Ethernet header in front.
    pub(super) fn from_tenant(key: Key, hash: u64, ip_len: u16) -> Seen {
        Seen { key, hash, far_end: 0, ip_len, ip_at: ethernet::BYTES as u8 }
    }

    /// What is known of a flow without a packet of it.
    pub(super) fn of_flow(key: Key, hash: u64, far_end: u32) -> Seen {
        Seen { key, hash, far_end, ..Seen::default() }
    }

    /// Where the (inner) IP header lies in the packet as it came in.
    #[inline(always)]
    pub(super) fn ip_at(&self) -> usize {
        usize::from(self.ip_at)
    }

    /// The addresses of an IPv6 packet as it came in.
    #[inline(always)]
    pub(super) fn addresses6(&self, head: &[u8]) -> Addresses6 {
        let bytes = head.get(self.ip_at() + 8..).and_then(|rest| rest.first_chunk::<32>());
        Addresses6::new(bytes.unwrap_or(&[0; 32]))
    }
}

/// What a packet is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// An IP packet between tenants.
    Flow(Seen),
    /// ARP from a tenant.
    Arp,
    /// ICMP of IPv4 from a tenant to its virtual gateway.
    ToGateway(Ipv4),
    /// IPv6 from a tenant that goes no further than its link: to a group, to or from a
    /// link-local address, or ICMPv6 to the virtual gateway.
    Link6(Ipv6),
    /// ARP out of a tunnel.
    TunnelArp(Outer),
    /// IPv6 to a group or from a link-local address out of a tunnel.
    TunnelLink6(Outer, Ipv6),
}

/// Looks at a packet from a tenant.
#[inline(always)]
pub(super) fn tenant(packet: &Packet, port: &TenantPort) -> Result<Kind, DropReason> {
    let head = packet.head();
    let frame = Ethernet::parse(head).map_err(reason)?;
    if frame.source != port.mac {
        return Err(DropReason::SpoofedMac);
    }
    match frame.ethertype {
        ethernet::IPV4 => {}
        ethernet::IPV6 => return tenant6(packet, &frame, port),
        ethertype => return other(ethertype).map(|()| Kind::Arp),
    }
    if frame.destination != port.gateway_mac {
        return Err(not_gateway(frame.destination));
    }
    let available = packet.bytes() - ethernet::BYTES;
    let ip = Ipv4::parse(&head[ethernet::BYTES..], available).map_err(reason)?;
    if Some(ip.source) != port.address {
        return Err(DropReason::SpoofedSource);
    }
    if Some(ip.destination) == port.gateway && ip.protocol == ipv4::ICMP {
        return Ok(Kind::ToGateway(ip));
    }
    let key = key(head, ethernet::BYTES, &ip, port.vpc, false)?;
    Ok(Kind::Flow(Seen::from_tenant(key, 0, ip.total_len)))
}

#[inline(always)]
fn tenant6(packet: &Packet, frame: &Ethernet, port: &TenantPort) -> Result<Kind, DropReason> {
    let head = packet.head();
    if frame.destination != port.gateway_mac && !frame.destination.is_group() {
        return Err(DropReason::NotGateway);
    }
    let available = packet.bytes() - ethernet::BYTES;
    let ip = Ipv6::parse(&head[ethernet::BYTES..], available).map_err(reason)?;
    if Some(ip.source) != port.address6 || stays_on_link(ip.destination) {
        return link6(&ip, frame, port);
    }
    if frame.destination.is_group() {
        return Err(not_gateway(frame.destination));
    }
    let (key, protocol) = key6(head, ethernet::BYTES, &ip, port.vpc, false)?;
    if Some(ip.destination) == port.gateway6 && protocol == ipv6::ICMP {
        return Ok(Kind::Link6(ip));
    }
    let ip_len = total_len(&ip)?;
    Ok(Kind::Flow(Seen::from_tenant(key, 0, ip_len)))
}

/// Whether a packet to this address never leaves the link that it was sent on.
#[inline(always)]
pub(super) fn stays_on_link(address: Ipv6Addr) -> bool {
    address.is_multicast() || address.is_unicast_link_local()
}

/// What a tenant may send from another address than its own: from any link-local one (it has as
/// many as it likes, and they mean nothing beyond its port), or from none at all while it asks
/// whether an address is free; in both cases to its gateway or to a group.
#[cold]
fn link6(ip: &Ipv6, frame: &Ethernet, port: &TenantPort) -> Result<Kind, DropReason> {
    let own = Some(ip.source) == port.address6;
    if !own && !ip.source.is_unicast_link_local() && !ip.source.is_unspecified() {
        return Err(DropReason::SpoofedSource);
    }
    if ip.destination.is_multicast() != frame.destination.is_group() {
        return Err(not_gateway(frame.destination));
    }
    let gateway = port.gateway_link_local();
    let to_gateway = ip.destination == gateway || Some(ip.destination) == port.gateway6;
    match (ip.destination.is_multicast(), to_gateway) {
        (false, true) | (true, _) => Ok(Kind::Link6(*ip)),
        // Beyond the link with an address that means nothing there (RFC 4291 section 2.5.6).
        (false, false) if stays_on_link(ip.destination) => Err(DropReason::NoRoute),
        (false, false) => Err(DropReason::SpoofedSource),
    }
}

/// Looks at a packet from an uplink.
#[inline(always)]
pub(super) fn uplink(
    packet: &Packet,
    tables: &Tables,
    zero_checksum6: bool,
) -> Result<Kind, DropReason> {
    let head = packet.head();
    let frame = Ethernet::parse(head).map_err(reason)?;
    let outer = match frame.ethertype {
        ethernet::IPV4 => tunnel(packet, tables)?,
        ethernet::IPV6 => tunnel6(packet, tables, zero_checksum6)?,
        ethernet::VLAN | ethernet::SERVICE_VLAN => return Err(DropReason::VlanTag),
        _ => return Err(DropReason::NotTunnelled),
    };
    let inner = head.get(outer.bytes()..).ok_or(DropReason::TooShort)?;
    let frame = Ethernet::parse(inner).map_err(reason)?;
    if frame.ethertype == ethernet::ARP {
        if usize::from(outer.frame_len) < ethernet::BYTES + arp::BYTES {
            return Err(DropReason::TooShort);
        }
        return known(&outer, tables).map(|()| Kind::TunnelArp(outer));
    }
    let available = usize::from(outer.frame_len) - ethernet::BYTES;
    let packet = &inner[ethernet::BYTES..];
    let Outer { vpc, far_end, .. } = outer;
    let ip_at = outer.bytes() + ethernet::BYTES;
    let (key, ip_len) = match frame.ethertype {
        ethernet::IPV4 if !frame.destination.is_group() => {
            let ip = Ipv4::parse(packet, available).map_err(reason)?;
            (key(head, ip_at, &ip, vpc, true)?, ip.total_len)
        }
        ethernet::IPV6 => {
            let ip = Ipv6::parse(packet, available).map_err(reason)?;
            if stays_on_link(ip.destination) || ip.source.is_unicast_link_local() {
                return known(&outer, tables).map(|()| Kind::TunnelLink6(outer, ip));
            }
            if frame.destination.is_group() {
                return Err(not_gateway(frame.destination));
            }
            (key6(head, ip_at, &ip, vpc, true)?.0, total_len(&ip)?)
        }
        ethernet::IPV4 => return Err(not_gateway(frame.destination)),
        ethertype => return Err(other(ethertype).err().unwrap_or(DropReason::EtherType)),
    };
    Ok(Kind::Flow(Seen { key, hash: 0, far_end, ip_len, ip_at: ip_at as u8 }))
}

/// A tunnel packet's outer headers, checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outer {
    pub(super) vpc: u16,
    /// The outer source address as the tables mark it.
    far_end: u32,
    /// Bytes of the inner frame; at least its Ethernet header.
    pub(super) frame_len: u16,
    pub(super) is_ipv6: bool,
}

impl Outer {
    /// Bytes of the outer headers.
    #[inline(always)]
    pub(super) fn bytes(&self) -> usize {
        if self.is_ipv6 { OUTER6_BYTES } else { OUTER_BYTES }
    }
}

/// Checks outer headers of IPv4.
#[inline(always)]
fn tunnel(packet: &Packet, tables: &Tables) -> Result<Outer, DropReason> {
    let head = packet.head();
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
    // The marks of far ends of IPv6 look like addresses in 0.0.0.0/8.
    if outer.source.octets()[0] == 0 {
        return Err(DropReason::UnknownVtep);
    }
    let datagram =
        Udp::parse(&head[OUTER_UDP_AT..], usize::from(outer.payload_len())).map_err(reason)?;
    if datagram.destination != vxlan::PORT {
        return Err(DropReason::NotTunnelled);
    }
    if datagram.checksum != 0 {
        payload::check_tunnel(packet, &outer, &datagram)?;
    }
    let (vpc, frame_len) = network(&head[OUTER_UDP_AT..], &datagram, tables)?;
    Ok(Outer { vpc, far_end: outer.source.to_bits(), frame_len, is_ipv6: false })
}

/// Checks outer headers of IPv6. A datagram without checksum is refused unless the uplink allows
/// it: nothing else protects the outer addresses (RFC 6935 section 5, RFC 6936 section 5).
#[inline(always)]
fn tunnel6(packet: &Packet, tables: &Tables, allow_zero: bool) -> Result<Outer, DropReason> {
    let head = packet.head();
    let available = packet.bytes() - ethernet::BYTES;
    let outer = Ipv6::parse(&head[ethernet::BYTES..], available).map_err(reason)?;
    if !tables.is_vtep6(outer.destination) {
        return Err(DropReason::NotOurVtep);
    }
    match outer.next_header {
        ipv4::UDP => {}
        ipv6::FRAGMENT => return Err(DropReason::OuterFragment),
        _ => return Err(DropReason::NotTunnelled),
    }
    let available = usize::from(outer.payload_len);
    let datagram = Udp::parse(&head[OUTER6_UDP_AT..], available).map_err(reason)?;
    if datagram.destination != vxlan::PORT {
        return Err(DropReason::NotTunnelled);
    }
    if datagram.checksum != 0 {
        payload::check_tunnel6(packet, &outer, &datagram)?;
    } else if !allow_zero {
        return Err(DropReason::ZeroChecksum);
    }
    let (vpc, frame_len) = network(&head[OUTER6_UDP_AT..], &datagram, tables)?;
    let far_end = tables.mark6(outer.source).ok_or(DropReason::UnknownVtep)?;
    Ok(Outer { vpc, far_end, frame_len, is_ipv6: true })
}

/// The VPC of a tunnel's datagram, and the bytes of the frame in it.
#[inline(always)]
fn network(bytes: &[u8], datagram: &Udp, tables: &Tables) -> Result<(u16, u16), DropReason> {
    let outside = (udp::BYTES + vxlan::BYTES) as u16;
    let frame_len = datagram.len.checked_sub(outside).ok_or(DropReason::VxlanMalformed)?;
    if usize::from(frame_len) < ethernet::BYTES {
        return Err(DropReason::VxlanMalformed);
    }
    let tunnel = Vxlan::parse(&bytes[udp::BYTES..]).map_err(reason)?;
    let vpc = tables.vpc_of(tunnel.vni).ok_or(DropReason::UnknownVni)?;
    let vpc = if planted!("switch-wrong-vni") { vpc ^ 1 } else { vpc };
    Ok((vpc, frame_len))
}

/// Whether a route of the VPC leads to where the packet comes from.
fn known(outer: &Outer, tables: &Tables) -> Result<(), DropReason> {
    let vpc = &tables.vpcs[usize::from(outer.vpc)];
    if vpc.has_far_end(outer.far_end) { Ok(()) } else { Err(DropReason::UnknownVtep) }
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

/// The same for IPv6, without the addresses; and the protocol behind the extension headers.
#[inline(always)]
fn key6(
    head: &[u8],
    at: usize,
    ip: &Ipv6,
    vpc: u16,
    uplink: bool,
) -> Result<(Key, u8), DropReason> {
    let payload = head.get(at + ipv6::BYTES..).ok_or(DropReason::TooShort)?;
    let (mut protocol, mut upper_at, mut flow_protocol) = (ip.next_header, 0, ip.next_header);
    let mut is_fragment = false;
    if ipv6::is_extension(protocol) {
        let upper = extensions(ip, payload)?;
        (protocol, upper_at, flow_protocol) = (upper.protocol, upper.at, upper.protocol);
        if let Some(fragment) = upper.fragment {
            (is_fragment, flow_protocol) = (true, fragment.next_header);
        }
    }
    let has_ports = matches!(protocol, ipv4::TCP | ipv4::UDP)
        && !is_fragment
        && usize::from(ip.payload_len) >= upper_at + 4;
    let ports = if has_ports {
        let rest = payload.get(upper_at..).ok_or(DropReason::TooShort)?;
        *rest.first_chunk::<4>().ok_or(DropReason::TooShort)?
    } else {
        [0; 4]
    };
    Ok((Key::new6(vpc, uplink, ports, flow_protocol), protocol))
}

/// What is behind extension headers; they must lie in the head frame, as the first 256 bytes do.
#[cold]
pub(super) fn extensions(ip: &Ipv6, payload: &[u8]) -> Result<ipv6::Upper, DropReason> {
    let len = usize::from(ip.payload_len).min(payload.len());
    ipv6::walk(ip.next_header, &payload[..len]).map_err(reason)
}

/// No MTU lets a packet through that is longer than 65 535 bytes with its header.
#[inline(always)]
fn total_len(ip: &Ipv6) -> Result<u16, DropReason> {
    u16::try_from(ip.total_len()).map_err(|_| DropReason::TooBig)
}

/// Whether a frame that is not IP is at least ARP.
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
    match destination {
        Mac::BROADCAST => DropReason::Broadcast,
        _ if destination.is_group() => DropReason::Multicast,
        _ => DropReason::NotGateway,
    }
}

/// Why packets to this address are never routed, whatever the routes say.
pub(super) fn unroutable(destination: IpAddr) -> Option<DropReason> {
    match destination {
        IpAddr::V4(destination) => unroutable4(destination),
        IpAddr::V6(destination) => unroutable6(destination),
    }
}

/// RFC 1812 section 5.3.
fn unroutable4(destination: Ipv4Addr) -> Option<DropReason> {
    match destination.octets()[0] {
        0 | 127 => Some(DropReason::NoRoute),
        224..=239 => Some(DropReason::Multicast),
        240..=255 if destination.is_broadcast() => Some(DropReason::Broadcast),
        240..=255 => Some(DropReason::NoRoute),
        _ => None,
    }
}

/// RFC 4291 section 2.5.
fn unroutable6(destination: Ipv6Addr) -> Option<DropReason> {
    match destination.segments() {
        _ if destination.is_multicast() => Some(DropReason::Multicast),
        // Unspecified, loopback, and addresses that stand for IPv4 ones.
        [0, 0, 0, 0, 0, 0 | 0xffff, _, _] => Some(DropReason::NoRoute),
        _ if destination.is_unicast_link_local() => Some(DropReason::NoRoute),
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
        Malformed::Ipv6Header => DropReason::Ipv6Header,
        Malformed::Ipv6Extensions => DropReason::Ipv6Extensions,
        Malformed::Nd => DropReason::NdMalformed,
        Malformed::Arp => DropReason::ArpMalformed,
        Malformed::UdpLength | Malformed::Vxlan => DropReason::VxlanMalformed,
    }
}
