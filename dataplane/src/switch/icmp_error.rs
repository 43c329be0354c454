//! What the virtual gateway tells a sender whose packet it cannot forward: time exceeded,
//! destination unreachable, and too big, over IPv4 (RFC 1812 section 5) and IPv6 (RFC 4443
//! section 3), in the packet that was sent.
//!
//! Never about an ICMP error, about a fragment other than the first, about or to a group, or to a
//! source that is no host (RFC 1812 section 4.3.2.7, RFC 4443 section 2.4 (e)); and no oftener per
//! port than [`Meter`](super::meter::Meter) says. What is not told is dropped for its reason.
//!
//! A packet of IPv4 that is too big and may be fragmented is not: the gateway does not fragment
//! (every tenant's MTU is known, so a sender can), and drops it as `not_fragmented`.

use super::flow::Key;
use super::parse::{Seen, extensions};
use super::tables::{Ingress, Tables, VpcTable};
use super::transform::cut;
use super::{Verdict, parse};
use crate::drop::DropReason;
use crate::packet::Packet;
use outboard_dma::FreeList;
use outboard_wire::{Checksum, Ethernet, Ipv4, Ipv6, Mac, ethernet, icmp, icmpv6, ipv4, ipv6};
use std::net::IpAddr;

/// TTL and hop limit of what arrives on this host; one more where the tunnel counts a hop.
const TTL: u8 = 64;
/// The most bytes of a message over IPv4, its headers included (RFC 1812 section 4.3.2.3).
const BYTES_MAX: usize = 576;
/// The same over IPv6 (RFC 4443 section 2.4 (c)).
const BYTES6_MAX: usize = ipv6::MTU_MIN as usize;

/// A message to be made: type, code, and the last four bytes of its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    kind: u8,
    code: u8,
    rest: u32,
}

/// What is to be told about a packet that would be dropped for this reason, or the reason with
/// which it ends. `inner_mtu` is what its way lets through.
#[cold]
pub(super) fn about(
    reason: DropReason,
    inner_mtu: Option<u32>,
    seen: &Seen,
    packet: &Packet,
) -> Result<Complaint, DropReason> {
    // Packets out of a tunnel were complained about by their own gateway, but for their size.
    if seen.key.is_from_uplink() && reason != DropReason::TooBig {
        return Err(reason);
    }
    let head = packet.head().get(seen.ip_at()..).ok_or(reason)?;
    if seen.key.is_v6() {
        return about6(reason, inner_mtu, head);
    }
    let ip = Ipv4::parse(head, usize::MAX).map_err(|_| reason)?;
    let is_error =
        ip.protocol == ipv4::ICMP && head.get(ipv4::BYTES).is_none_or(|kind| icmp::is_error(*kind));
    let hosts = parse::unroutable(ip.source.into()).is_none()
        && !ip.destination.is_multicast()
        && !ip.destination.is_broadcast();
    if is_error || !ip.has_payload_header() || !hosts {
        return Err(reason);
    }
    let unreachable = |code| Ok(Complaint { kind: icmp::UNREACHABLE, code, rest: 0 });
    match reason {
        DropReason::TtlExceeded => Ok(Complaint { kind: icmp::TIME_EXCEEDED, code: 0, rest: 0 }),
        DropReason::NoRoute => unreachable(icmp::NET),
        DropReason::NoUnderlayRoute | DropReason::NextHopUnresolved => unreachable(icmp::HOST),
        DropReason::ToGateway if matches!(ip.protocol, ipv4::UDP | ipv4::TCP) => {
            unreachable(icmp::PORT)
        }
        DropReason::ToGateway => unreachable(icmp::PROTOCOL),
        DropReason::TooBig if ip.fragment & ipv4::DONT_FRAGMENT == 0 => {
            Err(DropReason::NotFragmented)
        }
        DropReason::TooBig => {
            let rest = inner_mtu.ok_or(reason)?.min(u32::from(u16::MAX));
            Ok(Complaint { kind: icmp::UNREACHABLE, code: icmp::TOO_BIG, rest })
        }
        _ => Err(reason),
    }
}

fn about6(
    reason: DropReason,
    inner_mtu: Option<u32>,
    head: &[u8],
) -> Result<Complaint, DropReason> {
    let ip = Ipv6::parse(head, usize::MAX).map_err(|_| reason)?;
    let payload = head.get(ipv6::BYTES..).ok_or(reason)?;
    let upper = extensions(&ip, payload).map_err(|_| reason)?;
    let is_error = upper.protocol == ipv6::ICMP
        && payload.get(upper.at).is_none_or(|kind| icmpv6::is_error(*kind));
    let hosts = parse::unroutable(ip.source.into()).is_none() && !ip.destination.is_multicast();
    if is_error || !upper.has_header() || !hosts {
        return Err(reason);
    }
    let unreachable = |code| Ok(Complaint { kind: icmpv6::UNREACHABLE, code, rest: 0 });
    match reason {
        DropReason::TtlExceeded => Ok(Complaint { kind: icmpv6::TIME_EXCEEDED, code: 0, rest: 0 }),
        DropReason::NoRoute => unreachable(icmpv6::NO_ROUTE),
        DropReason::NoUnderlayRoute | DropReason::NextHopUnresolved => unreachable(icmpv6::ADDRESS),
        DropReason::ToGateway => unreachable(icmpv6::PORT),
        // A path on which not even the least fits cannot carry IPv6: there is nothing to tell.
        DropReason::TooBig => match inner_mtu {
            Some(mtu) if mtu >= u32::from(ipv6::MTU_MIN) => {
                Ok(Complaint { kind: icmpv6::TOO_BIG, code: 0, rest: mtu })
            }
            _ => Err(reason),
        },
        _ => Err(reason),
    }
}

/// Turns the packet into the message and says where it goes: back through the port that it came
/// from, or, out of a tunnel, by the route to its sender.
#[cold]
pub(super) fn tell(
    complaint: Complaint,
    seen: &Seen,
    packet: &mut Packet,
    tables: &Tables,
    free: &mut FreeList,
) -> Result<Verdict, DropReason> {
    let vpc = &tables.vpcs[usize::from(seen.key.vpc())];
    let back = match tables.ingress(packet.ingress).ok_or(DropReason::PortDown)? {
        Ingress::Tenant(port) => Some(port.mac),
        Ingress::Uplink { .. } => None,
    };
    let macs = (vpc.gateway_mac, back.unwrap_or(vpc.gateway_mac));
    // The tunnel takes one off.
    let ttl = if back.is_some() { TTL } else { TTL + 1 };
    cut(packet, seen.ip_at() + usize::from(seen.ip_len), free);
    packet.shrink_front(seen.ip_at()).ok_or(DropReason::TooShort)?;
    let (sender, ip_len) = match seen.key.is_v6() {
        false => write(complaint, vpc, macs, ttl, packet, free)?,
        true => write6(complaint, vpc, macs, ttl, packet, free)?,
    };
    if back.is_some() {
        return Ok(Verdict::Forward(packet.ingress));
    }
    let route = tables.route(seen.key.vpc(), sender).ok_or(DropReason::NoRoute)?;
    let transform = &tables.transforms[route as usize];
    if transform.is_local() {
        return Err(DropReason::NoRoute);
    }
    let key = match seen.key.is_v6() {
        false => Key::new(seen.key.vpc(), false, [0; 8], [0; 4], ipv4::ICMP),
        true => Key::new6(seen.key.vpc(), false, [0; 4], ipv6::ICMP),
    };
    Ok(transform.run(&Seen::from_tenant(key, seen.hash, ip_len), packet, free))
}

/// Writes Ethernet, IPv4 and ICMP headers in front of the packet, which begins with its own IP
/// header; to whom it goes, and its length without Ethernet.
fn write(
    complaint: Complaint,
    vpc: &VpcTable,
    (from, to): (Mac, Mac),
    ttl: u8,
    packet: &mut Packet,
    free: &mut FreeList,
) -> Result<(IpAddr, u16), DropReason> {
    const HEADER_BYTES: usize = ipv4::BYTES + icmp::BYTES;
    let quoted = packet.head().len().min(BYTES_MAX - HEADER_BYTES);
    cut(packet, quoted, free);
    let sender = Ipv4::parse(packet.head(), usize::MAX).map_err(parse::reason)?.source;
    let grown = ethernet::BYTES + HEADER_BYTES;
    let head = packet.grow_front(grown).ok_or(DropReason::NoHeadroom)?;
    let ip = Ipv4 {
        // Precedence 6, internetwork control (RFC 1812 section 4.3.2.5).
        tos: 0xc0,
        total_len: (HEADER_BYTES + quoted) as u16,
        id: 0,
        fragment: 0,
        ttl,
        protocol: ipv4::ICMP,
        source: vpc.gateway.ok_or(DropReason::NoRoute)?,
        destination: sender,
    };
    Ethernet { destination: to, source: from, ethertype: ethernet::IPV4 }
        .emit(head)
        .and_then(|()| ip.emit(&mut head[ethernet::BYTES..]))
        .ok_or(DropReason::TooShort)?;
    write_message(&mut head[ethernet::BYTES + ipv4::BYTES..], complaint, Checksum::new());
    Ok((sender.into(), ip.total_len))
}

/// The same for IPv6.
fn write6(
    complaint: Complaint,
    vpc: &VpcTable,
    (from, to): (Mac, Mac),
    hop_limit: u8,
    packet: &mut Packet,
    free: &mut FreeList,
) -> Result<(IpAddr, u16), DropReason> {
    const HEADER_BYTES: usize = ipv6::BYTES + icmpv6::BYTES;
    let quoted = packet.head().len().min(BYTES6_MAX - HEADER_BYTES);
    cut(packet, quoted, free);
    let sender = Ipv6::parse(packet.head(), usize::MAX).map_err(parse::reason)?.source;
    let grown = ethernet::BYTES + HEADER_BYTES;
    let head = packet.grow_front(grown).ok_or(DropReason::NoHeadroom)?;
    let payload_len = (icmpv6::BYTES + quoted) as u16;
    let source = vpc.gateway6.ok_or(DropReason::NoRoute)?;
    let ip = Ipv6 {
        traffic_class: 0,
        flow_label: 0,
        payload_len,
        next_header: ipv6::ICMP,
        hop_limit,
        source,
        destination: sender,
    };
    Ethernet { destination: to, source: from, ethertype: ethernet::IPV6 }
        .emit(head)
        .and_then(|()| ip.emit(&mut head[ethernet::BYTES..]))
        .ok_or(DropReason::TooShort)?;
    let (from, to) = (source.octets(), sender.octets());
    let pseudo = Checksum::pseudo_header6(from, to, ipv6::ICMP, u32::from(payload_len));
    write_message(&mut head[ethernet::BYTES + ipv6::BYTES..], complaint, pseudo);
    Ok((sender.into(), ip.total_len() as u16))
}

/// Writes the header of the message that `message` becomes, whose rest is the quoted packet.
fn write_message(message: &mut [u8], complaint: Complaint, mut sum: Checksum) {
    message[..4].copy_from_slice(&[complaint.kind, complaint.code, 0, 0]);
    message[4..8].copy_from_slice(&complaint.rest.to_be_bytes());
    sum.add(message);
    message[2..4].copy_from_slice(&sum.finish().to_be_bytes());
}
