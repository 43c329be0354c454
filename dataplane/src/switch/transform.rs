//! A route compiled: the headers to write in front of a packet, ready but for what depends on it.
//!
//! `run` is what a flow-cache hit costs beyond the look-up. It changes the packet only when the
//! verdict is to forward it, or to drop it; a packet that waits for its next hop stays untouched,
//! and one that is dropped because of its size or its hops loses its padding at most.
//!
//! IPv4 and IPv6 inside go over either outside. Over IPv4 the outer datagram has no checksum
//! (RFC 7348 section 5); over IPv6 it has a real one: RFC 6935 allows zero only where every
//! router on the way is known to cope (RFC 6936), and the switch knows nothing of the underlay.

use super::parse::Seen;
use super::payload;
use super::tables::{NextHop, NextHopId};
use super::{OUTER_BYTES, OUTER6_BYTES, Verdict};
use crate::config::plan::{Dscp, Route, Tenant, Vpc};
use crate::drop::DropReason;
use crate::packet::{Packet, PortId};
use outboard_dma::FreeList;
use outboard_wire::{
    Checksum, Ethernet, IpPrefix, Ipv4, Ipv6, Mac, Udp, Vxlan, ecn, ethernet, ipv4, ipv6, udp,
    vxlan,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of outer headers and inner Ethernet header: what encapsulation over IPv4 writes.
const HEADER_BYTES: usize = OUTER_BYTES + ethernet::BYTES;
/// The same over IPv6.
const HEADER6_BYTES: usize = OUTER6_BYTES + ethernet::BYTES;
/// Bytes that VXLAN over IPv4 adds to an IP packet, seen from the underlay's IP.
pub(super) const OVERHEAD_BYTES: usize = HEADER_BYTES - ethernet::BYTES;
/// The same over IPv6.
pub(super) const OVERHEAD6_BYTES: usize = HEADER6_BYTES - ethernet::BYTES;
/// Where the gateway's address lies in the header of a tenant's transform.
const GATEWAY_AT: usize = OUTER_BYTES + 6;
/// Where the UDP header lies in a tunnel packet over IPv6.
const UDP6_AT: usize = ethernet::BYTES + ipv6::BYTES;
/// TTL and hop limit of outer packets.
const OUTER_TTL: u8 = 64;
/// The first of the 2^14 dynamic ports that RFC 7348 section 5 recommends as source.
const FIRST_SOURCE_PORT: u16 = 0xc000;

/// What is done to the packets of a route.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Transform {
    /// Outer Ethernet, IP, UDP and VXLAN, then the inner Ethernet header; this alone, where it
    /// lies in a tunnel over IPv4, when the destination is local. Lengths, traffic class, flow
    /// label, outer checksum and source port are zero here.
    header: [u8; HEADER6_BYTES],
    to: To,
    port: PortId,
    /// Which bits of the inner TOS byte the outer one gets, and which are set in it besides.
    tos: (u8, u8),
    /// The largest IP packet that may leave; the outer one when tunnelled.
    mtu: u32,
    /// Over IPv4 the sum of the outer IP header as it stands in `header`; over IPv6 of the
    /// pseudo-header and of everything from the UDP header to the inner Ethernet header.
    sum: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Tenant,
    Tunnel,
    Tunnel6,
    Unresolved(NextHopId),
    NoUnderlayRoute,
}

impl Transform {
    /// Delivery to a tenant on this host, of packets of one family.
    pub(super) fn tenant(vpc: &Vpc, tenant: &Tenant, is_ipv6: bool, port: PortId) -> Transform {
        let mut header = [0; HEADER6_BYTES];
        emit_inner(&mut header[OUTER_BYTES..], tenant.mac, vpc.gateway_mac, is_ipv6);
        let mtu = u32::from(tenant.mtu);
        Transform { header, to: To::Tenant, port, tos: (0, 0), mtu, sum: 0 }
    }

    /// Delivery to another host, of packets of the route's family.
    pub(super) fn tunnel(vpc: &Vpc, route: &Route, hop: &NextHop, id: NextHopId) -> Transform {
        let none = Transform {
            header: [0; HEADER6_BYTES],
            to: To::NoUnderlayRoute,
            port: PortId(0),
            tos: outer_tos(vpc.dscp),
            mtu: 0,
            sum: 0,
        };
        match *hop {
            NextHop::Resolved { port, src_ip, src_mac, dst_mac, path_mtu } => {
                let none = Transform { port, mtu: path_mtu, ..none };
                match (src_ip, route.via) {
                    (IpAddr::V4(source), IpAddr::V4(via)) => {
                        none.over_ipv4(vpc, route, (src_mac, dst_mac), (source, via))
                    }
                    (IpAddr::V6(source), IpAddr::V6(via)) => {
                        none.over_ipv6(vpc, route, (src_mac, dst_mac), (source, via))
                    }
                    _ => none,
                }
            }
            NextHop::Unresolved => Transform { to: To::Unresolved(id), ..none },
            NextHop::NoRoute => none,
        }
    }

    fn over_ipv4(
        mut self,
        vpc: &Vpc,
        route: &Route,
        (source, destination): (Mac, Mac),
        ips: (Ipv4Addr, Ipv4Addr),
    ) -> Transform {
        let frame = Ethernet { destination, source, ethertype: ethernet::IPV4 };
        let outer = Ipv4 {
            tos: 0,
            total_len: 0,
            // Any value will do in a packet that may not be fragmented (RFC 6864 section 4.1).
            id: 0,
            fragment: ipv4::DONT_FRAGMENT,
            ttl: OUTER_TTL,
            protocol: ipv4::UDP,
            source: ips.0,
            destination: ips.1,
        };
        let whole = frame
            .emit(&mut self.header)
            .and_then(|()| outer.emit(&mut self.header[ethernet::BYTES..]));
        assert!(whole.is_some(), "the outer headers have their own room");
        emit_tunnel(&mut self.header[ethernet::BYTES + ipv4::BYTES..], vpc.vni);
        let inner = &mut self.header[OUTER_BYTES..];
        emit_inner(inner, route.mac, vpc.gateway_mac, matches!(route.to, IpPrefix::V6(_)));
        self.header[24..26].fill(0);
        let mut sum = Checksum::new();
        sum.add(&self.header[ethernet::BYTES..][..ipv4::BYTES]);
        Transform { to: To::Tunnel, sum: sum.folded(), ..self }
    }

    fn over_ipv6(
        mut self,
        vpc: &Vpc,
        route: &Route,
        (source, destination): (Mac, Mac),
        ips: (Ipv6Addr, Ipv6Addr),
    ) -> Transform {
        let frame = Ethernet { destination, source, ethertype: ethernet::IPV6 };
        let outer = Ipv6 {
            traffic_class: 0,
            flow_label: 0,
            payload_len: 0,
            next_header: ipv4::UDP,
            hop_limit: OUTER_TTL,
            source: ips.0,
            destination: ips.1,
        };
        let whole = frame
            .emit(&mut self.header)
            .and_then(|()| outer.emit(&mut self.header[ethernet::BYTES..]));
        assert!(whole.is_some(), "the outer headers have their own room");
        emit_tunnel(&mut self.header[UDP6_AT..], vpc.vni);
        let inner = &mut self.header[OUTER6_BYTES..];
        emit_inner(inner, route.mac, vpc.gateway_mac, matches!(route.to, IpPrefix::V6(_)));
        let (from, to) = (ips.0.octets(), ips.1.octets());
        let mut sum = Checksum::pseudo_header6(from, to, ipv4::UDP, 0);
        sum.add(&self.header[UDP6_AT..]);
        Transform { to: To::Tunnel6, sum: sum.folded(), ..self }
    }

    /// Whether it delivers on this host.
    pub(super) fn is_local(&self) -> bool {
        self.to == To::Tenant
    }

    /// The largest IP packet of a tenant that it can take; `None` while it has no way.
    pub(super) fn inner_mtu(&self) -> Option<u32> {
        match self.to {
            To::Tenant => Some(self.mtu),
            To::Tunnel => Some(self.mtu.saturating_sub(OVERHEAD_BYTES as u32)),
            To::Tunnel6 => Some(self.mtu.saturating_sub(OVERHEAD6_BYTES as u32)),
            To::Unresolved(_) | To::NoUnderlayRoute => None,
        }
    }

    /// Rewrites the packet and says where it goes.
    #[inline(always)]
    pub(super) fn run(&self, seen: &Seen, packet: &mut Packet, free: &mut FreeList) -> Verdict {
        let done = match self.to {
            To::Tunnel => self.encapsulate(seen, packet, free),
            To::Tunnel6 => self.encapsulate6(seen, packet, free),
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
        let outer_len_field = self.check_len(outer_len, outer_len)?;
        cut(packet, ethernet::BYTES + usize::from(seen.ip_len), free);
        let tos = count_hop(seen, packet)?;
        let head = packet.grow_front(OUTER_BYTES).ok_or(DropReason::NoHeadroom)?;
        let h = head.first_chunk_mut::<HEADER_BYTES>().ok_or(DropReason::TooShort)?;
        h.copy_from_slice(&self.header[..HEADER_BYTES]);
        h[15] = self.outer_tos(tos);
        let sum = u32::from(self.sum) + u32::from(h[15]) + u32::from(outer_len_field);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        h[16..18].copy_from_slice(&outer_len_field.to_be_bytes());
        h[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        h[34..36].copy_from_slice(&source_port(seen).to_be_bytes());
        h[38..40].copy_from_slice(&(outer_len_field - ipv4::BYTES as u16).to_be_bytes());
        Ok(())
    }

    /// The same over IPv6.
    #[inline(always)]
    fn encapsulate6(
        &self,
        seen: &Seen,
        packet: &mut Packet,
        free: &mut FreeList,
    ) -> Result<(), DropReason> {
        let outer_len = usize::from(seen.ip_len) + OVERHEAD6_BYTES;
        let datagram_len = self.check_len(outer_len - ipv6::BYTES, outer_len)?;
        cut(packet, ethernet::BYTES + usize::from(seen.ip_len), free);
        let tos = count_hop(seen, packet)?;
        let source_port = source_port(seen);
        let mut sum = Checksum::new();
        sum.add_word(self.sum);
        // Once in the pseudo-header and once in the UDP header.
        sum.add_word(datagram_len);
        sum.add_word(datagram_len);
        sum.add_word(source_port);
        // The words of a right IPv4 header sum to zero.
        let skip = if seen.key.is_v6() { 0 } else { ipv4::BYTES };
        let (at, len) = (ethernet::BYTES + skip, usize::from(seen.ip_len) - skip);
        // RFC 8200 section 8.1: a sum of zero is sent as its other form.
        let checksum = match payload::sum(packet, at, len, sum).finish() {
            _ if planted!("switch-no-checksum6") => 0,
            0 => 0xffff,
            checksum => checksum,
        };
        let head = packet.grow_front(OUTER6_BYTES).ok_or(DropReason::NoHeadroom)?;
        let h = head.first_chunk_mut::<HEADER6_BYTES>().ok_or(DropReason::TooShort)?;
        *h = self.header;
        // The flow label is made from the flow, for routers that spread by it (RFC 6438).
        let label = (seen.hash >> 40) as u32 & 0xf_ffff;
        let first = 6 << 28 | u32::from(self.outer_tos(tos)) << 20 | label;
        h[14..18].copy_from_slice(&first.to_be_bytes());
        h[18..20].copy_from_slice(&datagram_len.to_be_bytes());
        h[UDP6_AT..][..2].copy_from_slice(&source_port.to_be_bytes());
        h[UDP6_AT + 4..][..2].copy_from_slice(&datagram_len.to_be_bytes());
        h[UDP6_AT + udp::CHECKSUM_AT..][..2].copy_from_slice(&checksum.to_be_bytes());
        Ok(())
    }

    /// Whether an outer packet may be as large; a length in it as its header's field has it.
    #[inline(always)]
    fn check_len(&self, field: usize, outer_len: usize) -> Result<u16, DropReason> {
        if outer_len > self.mtu as usize {
            return Err(DropReason::TooBig);
        }
        u16::try_from(field).map_err(|_| DropReason::TooBig)
    }

    /// RFC 6040 section 4.1, normal mode: the ECN field is copied; DSCP as configured.
    #[inline(always)]
    fn outer_tos(&self, inner: u8) -> u8 {
        inner & self.tos.0 | self.tos.1
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
        let outer_tos = outer_tos_of(packet.head());
        cut(packet, seen.ip_at() + usize::from(seen.ip_len), free);
        let outer_bytes = seen.ip_at() - ethernet::BYTES;
        let head = packet.shrink_front(outer_bytes).ok_or(DropReason::TooShort)?;
        if seen.key.is_v6() {
            let header = ip_header6(head)?;
            let class = ipv6::traffic_class(header);
            let ecn = ecn::decapsulate(class, outer_tos).ok_or(DropReason::EcnInvalid)?;
            ipv6::set_traffic_class(header, class & !0b11 | ecn);
        } else {
            let header = ip_header(head)?;
            let tos = header[1];
            let ecn = ecn::decapsulate(tos, outer_tos).ok_or(DropReason::EcnInvalid)?;
            if ecn != ecn::of_tos(tos) && !planted!("switch-congestion-lost") {
                ipv4::set_tos(header, tos & !0b11 | ecn);
            }
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
        count_hop(seen, packet)?;
        self.address(packet.head_mut())
    }

    /// Writes the inner Ethernet header.
    #[inline(always)]
    fn address(&self, head: &mut [u8]) -> Result<(), DropReason> {
        let out = head.first_chunk_mut::<{ ethernet::BYTES }>().ok_or(DropReason::TooShort)?;
        out.copy_from_slice(&self.header[OUTER_BYTES..HEADER_BYTES]);
        Ok(())
    }
}

/// Cuts what is behind the first `bytes` of a packet: Ethernet's padding.
#[inline(always)]
pub(super) fn cut(packet: &mut Packet, bytes: usize, free: &mut FreeList) {
    if packet.bytes() > bytes && !planted!("switch-padding-kept") {
        packet.truncate(bytes, free);
    }
}

/// The IPv4 header behind an Ethernet header.
#[inline(always)]
pub(super) fn ip_header(head: &mut [u8]) -> Result<&mut [u8; ipv4::BYTES], DropReason> {
    let rest = head.get_mut(ethernet::BYTES..).ok_or(DropReason::TooShort)?;
    rest.first_chunk_mut().ok_or(DropReason::TooShort)
}

/// The same for IPv6.
#[inline(always)]
fn ip_header6(head: &mut [u8]) -> Result<&mut [u8; ipv6::BYTES], DropReason> {
    let rest = head.get_mut(ethernet::BYTES..).ok_or(DropReason::TooShort)?;
    rest.first_chunk_mut().ok_or(DropReason::TooShort)
}

/// Takes one from the TTL or hop limit; returns the TOS byte or traffic class.
#[inline(always)]
fn count_hop(seen: &Seen, packet: &mut Packet) -> Result<u8, DropReason> {
    if seen.key.is_v6() {
        let header = ip_header6(packet.head_mut())?;
        let hops = if planted!("switch-hops-twice") { 2 } else { 1 };
        header[7] = header[7].checked_sub(hops).filter(|left| *left > 0).ok_or_else(exceeded)?;
        return Ok(ipv6::traffic_class(header));
    }
    let header = ip_header(packet.head_mut())?;
    match header[8] {
        0 | 1 => Err(exceeded()),
        _ if planted!("switch-ttl-not-counted") => Ok(header[1]),
        ttl if planted!("switch-ttl-checksum") => {
            header[8] = ttl - 1;
            Ok(header[1])
        }
        ttl => {
            ipv4::set_ttl(header, ttl - 1);
            Ok(header[1])
        }
    }
}

#[cold]
fn exceeded() -> DropReason {
    DropReason::TtlExceeded
}

/// Spreads the tunnel's packets over paths and queues (RFC 7348 section 5).
#[inline(always)]
fn source_port(seen: &Seen) -> u16 {
    FIRST_SOURCE_PORT | (seen.hash >> 50) as u16
}

/// The TOS byte or traffic class of the outer header of a tunnel packet.
#[inline(always)]
fn outer_tos_of(head: &[u8]) -> u8 {
    match head.get(14..16) {
        Some([first, second]) if first >> 4 == 6 => first << 4 | second >> 4,
        Some([_, second]) => *second,
        _ => 0,
    }
}

/// Which bits of the inner TOS byte are copied out, and which are set besides.
fn outer_tos(dscp: Dscp) -> (u8, u8) {
    match dscp {
        Dscp::Copy => (0xff, 0),
        Dscp::Fixed(codepoint) => (0b11, codepoint << 2),
    }
}

/// Writes UDP and VXLAN headers.
fn emit_tunnel(header: &mut [u8], vni: u32) {
    let datagram = Udp { source: 0, destination: vxlan::PORT, len: 0, checksum: 0 };
    let whole = datagram.emit(header).and_then(|()| Vxlan { vni }.emit(&mut header[udp::BYTES..]));
    assert!(whole.is_some(), "the outer headers have their own room");
}

fn emit_inner(header: &mut [u8], destination: Mac, source: Mac, is_ipv6: bool) {
    let ethertype = if is_ipv6 { ethernet::IPV6 } else { ethernet::IPV4 };
    let frame = Ethernet { destination, source, ethertype };
    assert!(frame.emit(header).is_some(), "the header has its own room");
}
