//! What the virtual gateway answers itself, in the packet that asked: ARP and echo requests over
//! IPv4; [`neighbour`](super::neighbour) does the same over IPv6.

use super::Verdict;
use super::parse::{Outer, not_gateway, reason};
use super::tables::{Tables, TenantPort};
use super::transform::{cut, ip_header};
use crate::drop::DropReason;
use crate::packet::Packet;
use outboard_dma::FreeList;
use outboard_wire::arp::{self, Operation};
use outboard_wire::{
    Arp, Checksum, Ethernet, Ipv4, Ipv6, Mac, Udp, ethernet, icmp, ipv4, ipv6, udp, vxlan,
};

/// TTL of replies (RFC 1700).
const TTL: u8 = 64;
/// An ARP message with its Ethernet header.
pub(super) const ARP_FRAME_BYTES: usize = ethernet::BYTES + arp::BYTES;

/// ARP from a tenant: the gateway answers for itself and for every address that it has a route to.
#[cold]
pub(super) fn arp(
    packet: &mut Packet,
    port: &TenantPort,
    tables: &Tables,
    free: &mut FreeList,
) -> Result<Verdict, DropReason> {
    let frame = Ethernet::parse(packet.head()).map_err(reason)?;
    if frame.destination != Mac::BROADCAST && frame.destination != port.gateway_mac {
        return Err(not_gateway(frame.destination));
    }
    let message = message(packet.head())?;
    // A tenant speaks for its own addresses; a probe (RFC 5227) has none yet.
    let own = Some(message.sender) == port.address || message.sender.is_unspecified();
    if !own || message.sender_mac != port.mac {
        return Err(DropReason::SpoofedNeighbour);
    }
    let request = asks(message)?;
    if Some(request.target) == port.address {
        return Err(DropReason::ArpIgnored);
    }
    let vpc = &tables.vpcs[usize::from(port.vpc)];
    if Some(request.target) != port.gateway && vpc.routes.get(request.target).is_none() {
        return Err(DropReason::NoRoute);
    }
    cut(packet, ARP_FRAME_BYTES, free);
    reply(packet.head_mut(), &frame, &request, port.gateway_mac)?;
    Ok(Verdict::Forward(packet.ingress))
}

/// ARP out of a tunnel, from a far end that bridges: the gateway answers for the tenants here, so
/// that the far end sends their packets to the gateway's address. The reply goes back the way the
/// request came.
#[cold]
pub(super) fn tunnel_arp(
    packet: &mut Packet,
    outer: &Outer,
    tables: &Tables,
    free: &mut FreeList,
) -> Result<Verdict, DropReason> {
    let inner = packet.head().get(outer.bytes()..).ok_or(DropReason::TooShort)?;
    let frame = Ethernet::parse(inner).map_err(reason)?;
    let request = asks(message(inner)?)?;
    if !tables.is_tenant(outer.vpc, request.target.into()) {
        return Err(DropReason::ArpIgnored);
    }
    cut(packet, outer.bytes() + ARP_FRAME_BYTES, free);
    let gateway_mac = tables.vpcs[usize::from(outer.vpc)].gateway_mac;
    let head = packet.head_mut();
    reply(&mut head[outer.bytes()..], &frame, &request, gateway_mac)?;
    turn_round(head, outer.is_ipv6).ok_or(DropReason::TooShort)?;
    Ok(Verdict::Forward(packet.ingress))
}

/// ICMP from a tenant to its gateway.
#[cold]
pub(super) fn to_gateway(
    packet: &mut Packet,
    port: &TenantPort,
    ip: &Ipv4,
    free: &mut FreeList,
) -> Result<Verdict, DropReason> {
    cut(packet, ethernet::BYTES + usize::from(ip.total_len), free);
    let head = packet.head_mut();
    let frame = Ethernet::parse(head).map_err(reason)?;
    // Later fragments carry data only: sent back as they are, they complete the reply.
    if ip.has_payload_header() && !icmp::echo_reply(&mut head[ethernet::BYTES + ipv4::BYTES..]) {
        return Err(DropReason::ToGateway);
    }
    let header = ip_header(head)?;
    header[12..16].copy_from_slice(&ip.destination.octets());
    header[16..20].copy_from_slice(&ip.source.octets());
    ipv4::set_ttl(header, TTL);
    let back = Ethernet { destination: frame.source, source: port.gateway_mac, ..frame };
    back.emit(head).ok_or(DropReason::TooShort)?;
    Ok(Verdict::Forward(packet.ingress))
}

/// The announcement with which the gateway greets a tenant (RFC 5227 section 2.3, RFC 826);
/// `None` when the tenant has no IPv4.
pub(super) fn greeting(port: &TenantPort) -> Option<[u8; ARP_FRAME_BYTES]> {
    let (gateway, _) = port.gateway.zip(port.address)?;
    let announcement = Arp {
        operation: Operation::Request,
        sender_mac: port.gateway_mac,
        sender: gateway,
        target_mac: Mac::default(),
        target: gateway,
    };
    let header = Ethernet {
        destination: Mac::BROADCAST,
        source: port.gateway_mac,
        ethertype: ethernet::ARP,
    };
    let mut frame = [0; ARP_FRAME_BYTES];
    header.emit(&mut frame)?;
    announcement.emit(&mut frame[ethernet::BYTES..])?;
    Some(frame)
}

/// The ARP message in a frame.
fn message(frame: &[u8]) -> Result<Arp, DropReason> {
    let message = frame.get(ethernet::BYTES..).ok_or(DropReason::TooShort)?;
    Arp::parse(message).map_err(reason)
}

/// The message if it is a request; probes and announcements (RFC 5227) are none.
fn asks(message: Arp) -> Result<Arp, DropReason> {
    let asks = message.operation == Operation::Request
        && !message.sender.is_unspecified()
        && message.sender != message.target;
    if asks { Ok(message) } else { Err(DropReason::ArpIgnored) }
}

/// Turns a request into the reply that `target` is at `mac`.
fn reply(frame: &mut [u8], header: &Ethernet, request: &Arp, mac: Mac) -> Result<(), DropReason> {
    let answer = Arp {
        operation: Operation::Reply,
        sender_mac: mac,
        sender: request.target,
        target_mac: request.sender_mac,
        target: request.sender,
    };
    let back = Ethernet { destination: header.source, source: mac, ..*header };
    back.emit(frame)
        .and_then(|()| answer.emit(&mut frame[ethernet::BYTES..]))
        .ok_or(DropReason::TooShort)
}

/// Addresses the outer headers of an answer that lies in the head whole to where the question came
/// from; `None` when they are not whole.
pub(super) fn turn_round(head: &mut [u8], is_ipv6: bool) -> Option<()> {
    let frame = Ethernet::parse(head).ok()?;
    let back = Ethernet { destination: frame.source, source: frame.destination, ..frame };
    back.emit(head)?;
    let packet = &mut head[ethernet::BYTES..];
    if is_ipv6 { turn_round6(packet) } else { turn_round4(packet) }
}

fn turn_round4(packet: &mut [u8]) -> Option<()> {
    let came = Ipv4::parse(packet, usize::MAX).ok()?;
    let source = udp::ports(packet.get(ipv4::BYTES..)?)?.0;
    let outer = Ipv4 {
        tos: 0,
        total_len: packet.len() as u16,
        id: 0,
        fragment: ipv4::DONT_FRAGMENT,
        ttl: TTL,
        source: came.destination,
        destination: came.source,
        ..came
    };
    let datagram = Udp { source, destination: vxlan::PORT, len: outer.payload_len(), checksum: 0 };
    outer.emit(packet)?;
    datagram.emit(&mut packet[ipv4::BYTES..])
}

fn turn_round6(packet: &mut [u8]) -> Option<()> {
    let came = Ipv6::parse(packet, usize::MAX).ok()?;
    let source = udp::ports(packet.get(ipv6::BYTES..)?)?.0;
    let len = (packet.len() - ipv6::BYTES) as u16;
    let outer = Ipv6 {
        traffic_class: 0,
        payload_len: len,
        hop_limit: TTL,
        source: came.destination,
        destination: came.source,
        ..came
    };
    outer.emit(packet)?;
    let (from, to) = (outer.source.octets(), outer.destination.octets());
    let mut sum = Checksum::pseudo_header6(from, to, ipv4::UDP, u32::from(len));
    let datagram = &mut packet[ipv6::BYTES..];
    Udp { source, destination: vxlan::PORT, len, checksum: 0 }.emit(datagram)?;
    sum.add(datagram);
    let checksum = match sum.finish() {
        0 => 0xffff,
        checksum => checksum,
    };
    datagram[udp::CHECKSUM_AT..][..2].copy_from_slice(&checksum.to_be_bytes());
    Some(())
}
