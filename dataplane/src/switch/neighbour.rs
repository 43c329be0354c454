//! What the virtual gateway answers on the link over IPv6: neighbour and router solicitations
//! (RFC 4861), duplicate address detection (RFC 4862), and echo requests (RFC 4443).
//!
//! As by ARP, a tenant is told the gateway's MAC address for every address that it has a route
//! to. Who asks whether an address is free (a solicitation from the unspecified address) hears
//! from the gateway only if the gateway or a tenant on this host has it: a route to a network does
//! not mean that each address in it is taken.

use super::parse::{Outer, extensions, reason};
use super::tables::{Tables, TenantPort};
use super::transform::cut;
use super::{Verdict, answer};
use crate::drop::DropReason;
use crate::packet::Packet;
use outboard_dma::FreeList;
use outboard_wire::nd::{self, Advertisement, RouterAdvertisement, Solicitation};
use outboard_wire::{Checksum, Ethernet, Ipv6, Mac, ethernet, icmpv6, ipv6};
use std::net::{IpAddr, Ipv6Addr};

/// Hop limit of echo replies, and what tenants are told to begin with.
const HOP_LIMIT: u8 = 64;
/// For how long a router advertisement holds: the most that RFC 4861 section 6.2.1 allows.
/// Advertisements are repeated well before.
const ROUTER_LIFETIME_S: u16 = 9000;
/// For how long the prefix is on the link: for ever (RFC 4861 section 4.6.2).
const PREFIX_LIFETIME_S: u32 = u32::MAX;
/// Bytes in front of a message.
const MESSAGE_AT: usize = ethernet::BYTES + ipv6::BYTES;

/// A frame with a router advertisement.
pub(super) const ROUTER_BYTES: usize = MESSAGE_AT + RouterAdvertisement::BYTES;
/// A frame with a neighbour advertisement.
pub(super) const NEIGHBOUR_BYTES: usize = MESSAGE_AT + Advertisement::BYTES;

/// IPv6 of a tenant that stays on its link.
#[cold]
pub(super) fn tenant(
    packet: &mut Packet,
    port: &TenantPort,
    ip: &Ipv6,
    tables: &Tables,
    free: &mut FreeList,
) -> Result<Verdict, DropReason> {
    let payload = packet.head().get(MESSAGE_AT..).ok_or(DropReason::TooShort)?;
    let upper = extensions(ip, payload)?;
    if upper.protocol != ipv6::ICMP && upper.has_header() {
        return Err(elsewhere(ip));
    }
    if !ip.destination.is_multicast() && upper.is_fragment() {
        return echo(packet, port, ip, upper, free);
    }
    let kind = *payload.get(upper.at).ok_or(DropReason::TooShort)?;
    match kind {
        icmpv6::ECHO_REQUEST if !ip.destination.is_multicast() => {
            echo(packet, port, ip, upper, free)
        }
        nd::ROUTER_SOLICITATION | nd::NEIGHBOUR_SOLICITATION | nd::NEIGHBOUR_ADVERTISEMENT => {
            let message = message(ip, upper, payload)?;
            match kind {
                nd::ROUTER_SOLICITATION => {
                    let mac = nd::parse_router_solicitation(message).map_err(reason)?;
                    check_mac(mac, port)?;
                    router(packet, port, ip, free)
                }
                nd::NEIGHBOUR_SOLICITATION => {
                    let asked = Solicitation::parse(message).map_err(reason)?;
                    check_mac(asked.source_mac, port)?;
                    neighbour(packet, port, ip, &asked, tables, free)
                }
                _ => Err(told(message, port)),
            }
        }
        _ => Err(elsewhere(ip)),
    }
}

/// IPv6 out of a tunnel that stays on its link: from a far end that bridges. The gateway answers
/// for the tenants here, as it does by ARP. The answer goes back the way the question came.
#[cold]
pub(super) fn tunnel(
    packet: &mut Packet,
    outer: &Outer,
    ip: &Ipv6,
    tables: &Tables,
    free: &mut FreeList,
) -> Result<Verdict, DropReason> {
    let inner = packet.head().get(outer.bytes()..).ok_or(DropReason::TooShort)?;
    let frame = Ethernet::parse(inner).map_err(reason)?;
    let payload = inner.get(MESSAGE_AT..).ok_or(DropReason::TooShort)?;
    let upper = extensions(ip, payload)?;
    let is_question =
        upper.protocol == ipv6::ICMP && payload.get(upper.at) == Some(&nd::NEIGHBOUR_SOLICITATION);
    if !is_question {
        return Err(elsewhere(ip));
    }
    let asked = Solicitation::parse(message(ip, upper, payload)?).map_err(reason)?;
    // Whoever asks whether an address of ours is free hears of the tenant there is no way for it
    // to reach; the far end's own tenants ask their own gateway.
    if ip.source.is_unspecified() || !tables.is_tenant(outer.vpc, asked.target.into()) {
        return Err(DropReason::NdIgnored);
    }
    let gateway_mac = tables.vpcs[usize::from(outer.vpc)].gateway_mac;
    let told = Advertisement {
        target: asked.target,
        mac: gateway_mac,
        router: false,
        solicited: true,
        overrides: false,
    };
    let to = asked.source_mac.unwrap_or(frame.source);
    let head = room(packet, outer.bytes() + NEIGHBOUR_BYTES, outer.bytes(), free)?;
    let ends = (asked.target, ip.source);
    emit(&mut head[outer.bytes()..], (gateway_mac, to), ends, &told.emit())?;
    answer::turn_round(head, outer.is_ipv6).ok_or(DropReason::TooShort)?;
    Ok(Verdict::Forward(packet.ingress))
}

/// The unsolicited advertisements with which the gateway greets a tenant (RFC 4861 sections 6.2.4
/// and 7.2.6), to every node on its link; `None` when the VPC has no IPv6.
pub(super) fn greetings(port: &TenantPort) -> Option<([u8; NEIGHBOUR_BYTES], [u8; ROUTER_BYTES])> {
    let (gateway, _) = port.gateway6.zip(port.address6)?;
    let told = Advertisement {
        target: gateway,
        mac: port.gateway_mac,
        router: true,
        solicited: false,
        overrides: true,
    };
    let macs = (port.gateway_mac, nd::multicast_mac(nd::ALL_NODES));
    let (mut neighbour, mut router) = ([0; NEIGHBOUR_BYTES], [0; ROUTER_BYTES]);
    emit(&mut neighbour, macs, (gateway, nd::ALL_NODES), &told.emit()).ok()?;
    let ends = (port.gateway_link_local(), nd::ALL_NODES);
    emit(&mut router, macs, ends, &router_advertisement(port)?.emit()).ok()?;
    Some((neighbour, router))
}

/// A solicitation of a tenant.
fn neighbour(
    packet: &mut Packet,
    port: &TenantPort,
    ip: &Ipv6,
    asked: &Solicitation,
    tables: &Tables,
    free: &mut FreeList,
) -> Result<Verdict, DropReason> {
    let target = asked.target;
    let is_gateway = port.gateway6 == Some(target)
        || (port.gateway6.is_some() && port.gateway_link_local() == target);
    let detects = ip.source.is_unspecified();
    // RFC 4861 section 7.1.1: to the solicited-node address, and without the asker's address.
    if detects && (ip.destination != nd::solicited_node(target) || asked.source_mac.is_some()) {
        return Err(DropReason::NdMalformed);
    }
    if port.address6 == Some(target) {
        return Err(DropReason::NdIgnored);
    }
    let is_there = match detects {
        _ if is_gateway => true,
        _ if target.is_unicast_link_local() => false,
        true => tables.is_tenant(port.vpc, target.into()),
        false => match tables.route(port.vpc, IpAddr::V6(target)) {
            Some(_) => true,
            None => return Err(DropReason::NoRoute),
        },
    };
    if !is_there {
        return Err(DropReason::NdIgnored);
    }
    let told = Advertisement {
        target,
        mac: port.gateway_mac,
        router: is_gateway,
        solicited: !detects,
        // RFC 4861 section 7.2.8: who answers for others does not override.
        overrides: is_gateway,
    };
    // RFC 4861 section 7.2.4: whoever has no address hears it with all others.
    let (to, to_mac) = match detects {
        true => (nd::ALL_NODES, nd::multicast_mac(nd::ALL_NODES)),
        false => (ip.source, port.mac),
    };
    let head = room(packet, NEIGHBOUR_BYTES, 0, free)?;
    emit(head, (port.gateway_mac, to_mac), (target, to), &told.emit())?;
    Ok(Verdict::Forward(packet.ingress))
}

/// A router solicitation of a tenant.
fn router(
    packet: &mut Packet,
    port: &TenantPort,
    ip: &Ipv6,
    free: &mut FreeList,
) -> Result<Verdict, DropReason> {
    let told = router_advertisement(port).ok_or(DropReason::NdIgnored)?;
    let (to, to_mac) = match ip.source.is_unspecified() {
        true => (nd::ALL_NODES, nd::multicast_mac(nd::ALL_NODES)),
        false => (ip.source, port.mac),
    };
    let head = room(packet, ROUTER_BYTES, 0, free)?;
    let ends = (port.gateway_link_local(), to);
    emit(head, (port.gateway_mac, to_mac), ends, &told.emit())?;
    Ok(Verdict::Forward(packet.ingress))
}

/// What a tenant shall know of its link: `None` when it has no IPv6.
fn router_advertisement(port: &TenantPort) -> Option<RouterAdvertisement> {
    let (prefix, _) = port.prefix6.zip(port.gateway6)?;
    Some(RouterAdvertisement {
        hop_limit: HOP_LIMIT,
        lifetime_s: ROUTER_LIFETIME_S,
        mac: port.gateway_mac,
        mtu: u32::from(port.mtu),
        prefix: (prefix.address(), prefix.len()),
        prefix_lifetime_s: PREFIX_LIFETIME_S,
    })
}

/// What a tenant tells of addresses: nobody needs to hear it, unless it tells of others'.
fn told(message: &[u8], port: &TenantPort) -> DropReason {
    match Advertisement::parse(message) {
        Ok(told) => {
            let own = port.address6 == Some(told.target) || told.target.is_unicast_link_local();
            let is_gateway = told.target == port.gateway_link_local();
            match own && !is_gateway && told.mac == port.mac {
                true => DropReason::NdIgnored,
                false => DropReason::SpoofedNeighbour,
            }
        }
        Err(malformed) => reason(malformed),
    }
}

/// An echo request to the gateway. Later fragments carry data only: sent back as they are, they
/// complete the reply.
fn echo(
    packet: &mut Packet,
    port: &TenantPort,
    ip: &Ipv6,
    upper: ipv6::Upper,
    free: &mut FreeList,
) -> Result<Verdict, DropReason> {
    cut(packet, ethernet::BYTES + ip.total_len(), free);
    let head = packet.head_mut();
    let message = head.get_mut(MESSAGE_AT + upper.at..).ok_or(DropReason::TooShort)?;
    if upper.has_header() && !icmpv6::echo_reply(message) {
        return Err(DropReason::ToGateway);
    }
    let back = Ipv6 { source: ip.destination, destination: ip.source, hop_limit: HOP_LIMIT, ..*ip };
    let frame =
        Ethernet { destination: port.mac, source: port.gateway_mac, ethertype: ethernet::IPV6 };
    frame
        .emit(head)
        .and_then(|()| back.emit(&mut head[ethernet::BYTES..]))
        .ok_or(DropReason::TooShort)?;
    Ok(Verdict::Forward(packet.ingress))
}

/// A whole message of neighbour discovery, of the link (RFC 4861 section 7.1, RFC 6980).
fn message<'p>(ip: &Ipv6, upper: ipv6::Upper, payload: &'p [u8]) -> Result<&'p [u8], DropReason> {
    let message = payload.get(upper.at..usize::from(ip.payload_len)).ok_or(DropReason::TooShort)?;
    let (from, to) = (ip.source.octets(), ip.destination.octets());
    let mut sum = Checksum::pseudo_header6(from, to, ipv6::ICMP, message.len() as u32);
    sum.add(message);
    let right = ip.hop_limit == nd::HOP_LIMIT && !upper.is_fragment() && sum.folded() == 0xffff;
    if right { Ok(message) } else { Err(DropReason::NdMalformed) }
}

/// A tenant speaks for its own MAC address only.
fn check_mac(told: Option<Mac>, port: &TenantPort) -> Result<(), DropReason> {
    match told {
        Some(mac) if mac != port.mac => Err(DropReason::SpoofedNeighbour),
        _ => Ok(()),
    }
}

/// Why a packet that is no neighbour discovery ends on the link.
fn elsewhere(ip: &Ipv6) -> DropReason {
    if ip.destination.is_multicast() { DropReason::Multicast } else { DropReason::ToGateway }
}

/// Makes the packet `bytes` long, all in its head; what its first `keep` bytes were stays.
fn room<'p>(
    packet: &'p mut Packet,
    bytes: usize,
    keep: usize,
    free: &mut FreeList,
) -> Result<&'p mut [u8], DropReason> {
    let in_head = packet.head().len().min(bytes);
    cut(packet, in_head, free);
    let missing = bytes - in_head;
    let head = packet.grow_front(missing).ok_or(DropReason::NoHeadroom)?;
    head.copy_within(missing..missing + keep.min(in_head), 0);
    head.get_mut(..bytes).ok_or(DropReason::TooShort)
}

/// Writes a frame with a message; `macs` and `ends` are from, then to.
fn emit(
    out: &mut [u8],
    macs: (Mac, Mac),
    ends: (Ipv6Addr, Ipv6Addr),
    message: &[u8],
) -> Result<(), DropReason> {
    let frame = Ethernet { destination: macs.1, source: macs.0, ethertype: ethernet::IPV6 };
    let ip = Ipv6 {
        traffic_class: 0,
        flow_label: 0,
        payload_len: message.len() as u16,
        next_header: ipv6::ICMP,
        hop_limit: nd::HOP_LIMIT,
        source: ends.0,
        destination: ends.1,
    };
    let (from, to) = (ends.0.octets(), ends.1.octets());
    let mut sum = Checksum::pseudo_header6(from, to, ipv6::ICMP, message.len() as u32);
    sum.add(message);
    frame
        .emit(out)
        .and_then(|()| ip.emit(&mut out[ethernet::BYTES..]))
        .ok_or(DropReason::TooShort)?;
    let body = out.get_mut(MESSAGE_AT..).ok_or(DropReason::TooShort)?;
    let body = body.get_mut(..message.len()).ok_or(DropReason::TooShort)?;
    body.copy_from_slice(message);
    body[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    Ok(())
}
