//! What the virtual gateway answers itself, in the packet that asked: ARP and echo requests.

use super::parse::{not_gateway, reason};
use super::tables::{Tables, TenantPort};
use super::transform::{cut, ip_header};
use super::{OUTER_BYTES, Verdict};
use crate::drop::DropReason;
use crate::packet::Packet;
use outboard_dma::FreeList;
use outboard_wire::arp::{self, Operation};
use outboard_wire::{Arp, Ethernet, Ipv4, Mac, Udp, ethernet, icmp, ipv4, udp, vxlan};

/// TTL of replies (RFC 1700).
const TTL: u8 = 64;
/// An ARP message with its Ethernet header.
const ARP_FRAME_BYTES: usize = ethernet::BYTES + arp::BYTES;

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
    let request = request(packet.head())?;
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
    vpc: u16,
    tables: &Tables,
    free: &mut FreeList,
) -> Result<Verdict, DropReason> {
    let vpc = &tables.vpcs[usize::from(vpc)];
    let inner = packet.head().get(OUTER_BYTES..).ok_or(DropReason::TooShort)?;
    let frame = Ethernet::parse(inner).map_err(reason)?;
    let request = request(inner)?;
    let transform = vpc.routes.get(request.target).ok_or(DropReason::ArpIgnored)?;
    if !tables.transforms[transform as usize].is_local() {
        return Err(DropReason::ArpIgnored);
    }
    cut(packet, OUTER_BYTES + ARP_FRAME_BYTES, free);
    let head = packet.head_mut();
    reply(&mut head[OUTER_BYTES..], &frame, &request, vpc.gateway_mac)?;
    turn_round(head).ok_or(DropReason::TooShort)?;
    Ok(Verdict::Forward(packet.ingress))
}

/// IPv4 from a tenant to its gateway.
#[cold]
pub(super) fn to_gateway(
    packet: &mut Packet,
    port: &TenantPort,
    ip: &Ipv4,
    free: &mut FreeList,
) -> Result<Verdict, DropReason> {
    if ip.protocol != ipv4::ICMP {
        return Err(DropReason::ToGateway);
    }
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

/// The ARP request in a frame; probes and announcements (RFC 5227) are none.
fn request(frame: &[u8]) -> Result<Arp, DropReason> {
    let message = frame.get(ethernet::BYTES..).ok_or(DropReason::TooShort)?;
    let message = Arp::parse(message).map_err(reason)?;
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

/// Addresses the outer headers of an ARP message to where they came from; `None` when they are
/// not whole.
fn turn_round(head: &mut [u8]) -> Option<()> {
    let len = head.len() - ethernet::BYTES;
    let frame = Ethernet::parse(head).ok()?;
    let came = Ipv4::parse(&head[ethernet::BYTES..], usize::MAX).ok()?;
    let udp_at = ethernet::BYTES + ipv4::BYTES;
    let source = udp::ports(head.get(udp_at..)?)?.0;
    let back = Ethernet { destination: frame.source, source: frame.destination, ..frame };
    let outer = Ipv4 {
        tos: 0,
        total_len: len as u16,
        id: 0,
        fragment: ipv4::DONT_FRAGMENT,
        ttl: TTL,
        source: came.destination,
        destination: came.source,
        ..came
    };
    let datagram = Udp { source, destination: vxlan::PORT, len: outer.payload_len(), checksum: 0 };
    back.emit(head)?;
    outer.emit(&mut head[ethernet::BYTES..])?;
    datagram.emit(&mut head[udp_at..])
}
