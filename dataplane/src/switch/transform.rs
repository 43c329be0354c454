//! A route compiled: the headers to write in front of a packet, ready but for what depends on it.
//!
//! `run` is what a flow-cache hit costs beyond the look-up. It changes the packet only when the
//! verdict is to forward it, or to drop it; a packet that waits for its next hop stays untouched.

use super::parse::Seen;
use super::tables::{NextHop, NextHopId};
use super::{INNER_AT, OUTER_BYTES, Verdict};
use crate::config::plan::{Route, Tenant, Vpc};
use crate::drop::DropReason;
use crate::packet::{Packet, PortId};
use outboard_dma::FreeList;
use outboard_wire::{Checksum, Ethernet, Ipv4, Mac, Udp, Vxlan, ecn, ethernet, ipv4, udp, vxlan};
use std::net::IpAddr;

/// Bytes of outer headers and inner Ethernet header: what encapsulation writes.
const HEADER_BYTES: usize = OUTER_BYTES + ethernet::BYTES;
/// Bytes that VXLAN adds to an IP packet, seen from the underlay's IP.
const OVERHEAD_BYTES: usize = HEADER_BYTES - ethernet::BYTES;
/// Where the gateway's address lies in what encapsulation writes.
const GATEWAY_AT: usize = OUTER_BYTES + 6;
/// TTL of outer packets.
const OUTER_TTL: u8 = 64;
/// The first of the 2^14 dynamic ports that RFC 7348 section 5 recommends as source.
const FIRST_SOURCE_PORT: u16 = 0xc000;

/// What is done to the packets of a route.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Transform {
    /// Outer Ethernet, IPv4, UDP and VXLAN, then the inner Ethernet header; the last alone when
    /// the destination is local. Lengths, ECN, outer checksum and source port are zero here.
    header: [u8; HEADER_BYTES],
    to: To,
    port: PortId,
    /// The largest IP packet that may leave; the outer one when tunnelled.
    mtu: u32,
    /// The sum of the outer IPv4 header as it stands in `header`.
    sum: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Tenant,
    Tunnel,
    Unresolved(NextHopId),
    NoUnderlayRoute,
}

impl Transform {
    /// Delivery to a tenant on this host.
    pub(super) fn tenant(vpc: &Vpc, tenant: &Tenant, port: PortId) -> Transform {
        let mut header = [0; HEADER_BYTES];
        emit_inner(&mut header, tenant.mac, vpc.gateway_mac);
        Transform { header, to: To::Tenant, port, mtu: u32::from(tenant.mtu), sum: 0 }
    }

    /// Delivery to another host.
    pub(super) fn tunnel(vpc: &Vpc, route: &Route, hop: &NextHop, id: NextHopId) -> Transform {
        let header = [0; HEADER_BYTES];
        let none = |to| Transform { header, to, port: PortId(0), mtu: 0, sum: 0 };
        let (port, mtu, src_ip, src_mac, dst_mac) = match *hop {
            NextHop::Resolved { port, src_ip, src_mac, dst_mac, path_mtu } => {
                (port, path_mtu, src_ip, src_mac, dst_mac)
            }
            NextHop::Unresolved => return none(To::Unresolved(id)),
            NextHop::NoRoute => return none(To::NoUnderlayRoute),
        };
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (src_ip, route.via) else {
            return none(To::NoUnderlayRoute);
        };
        let outer = Ipv4 {
            tos: 0,
            total_len: 0,
            // Any value will do in a packet that may not be fragmented (RFC 6864 section 4.1).
            id: 0,
            fragment: ipv4::DONT_FRAGMENT,
            ttl: OUTER_TTL,
            protocol: ipv4::UDP,
            source,
            destination,
        };
        let mut header = header;
        emit_outer(
            &mut header,
            &Ethernet { destination: dst_mac, source: src_mac, ethertype: ethernet::IPV4 },
            &outer,
            vpc.vni,
        );
        emit_inner(&mut header, route.mac, vpc.gateway_mac);
        header[24..26].fill(0);
        let mut sum = Checksum::new();
        sum.add(&header[ethernet::BYTES..][..ipv4::BYTES]);
        Transform { header, to: To::Tunnel, port, mtu, sum: sum.folded() }
    }

    /// Whether it delivers on this host.
    pub(super) fn is_local(&self) -> bool {
        self.to == To::Tenant
    }

    /// Rewrites the packet and says where it goes.
    #[inline(always)]
    pub(super) fn run(&self, seen: &Seen, packet: &mut Packet, free: &mut FreeList) -> Verdict {
        let done = match self.to {
            To::Tunnel => self.encapsulate(seen, packet, free),
            To::Tenant if seen.key.is_from_uplink() => self.decapsulate(seen, packet, free),
            To::Tenant => self.route(seen, packet, free),
            To::Unresolved(id) => return Verdict::Unresolved(id),
            To::NoUnderlayRoute => Err(DropReason::NoUnderlayRoute),
        };
        match done {
            Ok(()) => Verdict::Forward(self.port),
            Err(reason) => Verdict::Drop(reason),
        }
    }

    /// From a tenant to another host.
    #[inline(always)]
    fn encapsulate(
        &self,
        seen: &Seen,
        packet: &mut Packet,
        free: &mut FreeList,
    ) -> Result<(), DropReason> {
        let outer_len = usize::from(seen.ip_len) + OVERHEAD_BYTES;
        let Ok(outer_len_field) = u16::try_from(outer_len) else {
            return Err(DropReason::TooBig);
        };
        if outer_len > self.mtu as usize {
            return Err(DropReason::TooBig);
        }
        cut(packet, ethernet::BYTES + usize::from(seen.ip_len), free);
        let tos = count_hop(packet)?;
        let head = packet.grow_front(OUTER_BYTES).ok_or(DropReason::NoHeadroom)?;
        let h = head.first_chunk_mut::<HEADER_BYTES>().ok_or(DropReason::TooShort)?;
        *h = self.header;
        // RFC 6040 section 4.1, normal mode: the ECN field is copied.
        h[15] = ecn::of_tos(tos);
        let sum = u32::from(self.sum) + u32::from(h[15]) + u32::from(outer_len_field);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        h[16..18].copy_from_slice(&outer_len_field.to_be_bytes());
        h[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        let source_port = FIRST_SOURCE_PORT | (seen.hash >> 50) as u16;
        h[34..36].copy_from_slice(&source_port.to_be_bytes());
        h[38..40].copy_from_slice(&(outer_len_field - ipv4::BYTES as u16).to_be_bytes());
        Ok(())
    }

    /// From another host to a tenant. The far end has counted the hop.
    #[inline(always)]
    fn decapsulate(
        &self,
        seen: &Seen,
        packet: &mut Packet,
        free: &mut FreeList,
    ) -> Result<(), DropReason> {
        if u32::from(seen.ip_len) > self.mtu {
            return Err(DropReason::TooBig);
        }
        let outer_tos = packet.head().get(15).copied().unwrap_or(0);
        cut(packet, INNER_AT + usize::from(seen.ip_len), free);
        let head = packet.shrink_front(OUTER_BYTES).ok_or(DropReason::TooShort)?;
        let header = ip_header(head)?;
        let tos = header[1];
        let ecn = ecn::decapsulate(tos, outer_tos).ok_or(DropReason::EcnInvalid)?;
        if ecn != ecn::of_tos(tos) {
            ipv4::set_tos(header, tos & !0b11 | ecn);
        }
        // A bridging far end may know the tenant by its own address.
        let sent_to = &head[..6];
        if sent_to != &self.header[GATEWAY_AT..][..6] && sent_to != &self.header[OUTER_BYTES..][..6]
        {
            return Err(DropReason::NotGateway);
        }
        self.address(head)
    }

    /// From a tenant to another on this host.
    #[inline(always)]
    fn route(
        &self,
        seen: &Seen,
        packet: &mut Packet,
        free: &mut FreeList,
    ) -> Result<(), DropReason> {
        if u32::from(seen.ip_len) > self.mtu {
            return Err(DropReason::TooBig);
        }
        cut(packet, ethernet::BYTES + usize::from(seen.ip_len), free);
        count_hop(packet)?;
        self.address(packet.head_mut())
    }

    /// Writes the inner Ethernet header.
    #[inline(always)]
    fn address(&self, head: &mut [u8]) -> Result<(), DropReason> {
        let out = head.first_chunk_mut::<{ ethernet::BYTES }>().ok_or(DropReason::TooShort)?;
        out.copy_from_slice(&self.header[OUTER_BYTES..]);
        Ok(())
    }
}

/// Cuts what is behind the first `bytes` of a packet: Ethernet's padding.
#[inline(always)]
pub(super) fn cut(packet: &mut Packet, bytes: usize, free: &mut FreeList) {
    if packet.bytes() > bytes {
        packet.truncate(bytes, free);
    }
}

/// The IPv4 header behind an Ethernet header.
#[inline(always)]
pub(super) fn ip_header(head: &mut [u8]) -> Result<&mut [u8; ipv4::BYTES], DropReason> {
    let rest = head.get_mut(ethernet::BYTES..).ok_or(DropReason::TooShort)?;
    rest.first_chunk_mut().ok_or(DropReason::TooShort)
}

/// Takes one from the TTL; returns the TOS byte.
#[inline(always)]
fn count_hop(packet: &mut Packet) -> Result<u8, DropReason> {
    let header = ip_header(packet.head_mut())?;
    match header[8] {
        0 | 1 => Err(DropReason::TtlExceeded),
        ttl => {
            ipv4::set_ttl(header, ttl - 1);
            Ok(header[1])
        }
    }
}

fn emit_outer(header: &mut [u8; HEADER_BYTES], frame: &Ethernet, packet: &Ipv4, vni: u32) {
    // No UDP checksum: RFC 7348 section 5 asks for zero over IPv4.
    let datagram = Udp { source: 0, destination: vxlan::PORT, len: 0, checksum: 0 };
    let whole = frame
        .emit(&mut header[..])
        .and_then(|()| packet.emit(&mut header[ethernet::BYTES..]))
        .and_then(|()| datagram.emit(&mut header[ethernet::BYTES + ipv4::BYTES..]))
        .and_then(|()| Vxlan { vni }.emit(&mut header[OUTER_BYTES - vxlan::BYTES..]));
    assert!(whole.is_some(), "the outer headers have their own room");
    const { assert!(ethernet::BYTES + ipv4::BYTES + udp::BYTES + vxlan::BYTES == OUTER_BYTES) };
}

fn emit_inner(header: &mut [u8; HEADER_BYTES], destination: Mac, source: Mac) {
    let frame = Ethernet { destination, source, ethertype: ethernet::IPV4 };
    assert!(frame.emit(&mut header[OUTER_BYTES..]).is_some(), "the header has its own room");
}
