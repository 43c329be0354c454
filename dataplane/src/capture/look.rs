//! What a filter can ask about a packet, read from its first bytes. Lenient: what a capture is
//! for is often what nobody else accepts, so a field is there or not, and nothing is an error.

use outboard_wire::{Mac, ethernet, ipv4, ipv6, udp, vxlan};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The headers of one layer of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Source and destination at the link layer.
    pub macs: (Mac, Mac),
    /// Behind VLAN tags.
    pub ethertype: u16,
    /// The outermost VLAN identifier.
    pub vlan: Option<u16>,
    /// Source and destination; of ARP the sender's and the target's.
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// The protocol behind IP and its extension headers.
    pub protocol: Option<u8>,
    /// Source and destination port.
    pub ports: Option<(u16, u16)>,
}

/// A packet as filters see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// The packet itself.
    pub outer: Headers,
    /// The VXLAN network identifier, and what is in the tunnel as far as it was there.
    pub tunnel: Option<(u32, Option<Headers>)>,
    /// Bytes of the packet, seen or not.
    pub bytes: usize,
}

/// Offset of the address fields of ARP for Ethernet and IPv4 (RFC 826).
const ARP_ADDRESSES_AT: (usize, usize) = (14, 24);
/// VLAN tags that are read over.
const TAGS_MAX: usize = 2;

impl Look {
    /// Looks at the first bytes of a packet that has `bytes` in all.
    pub fn at(head: &[u8], bytes: usize) -> Option<Look> {
        let (outer, payload) = layer(head)?;
        let is_tunnel = outer.ports.is_some_and(|(_, to)| to == vxlan::PORT)
            && outer.protocol == Some(ipv4::UDP);
        let tunnel = is_tunnel.then(|| tunnel(payload)).flatten();
        Some(Look { outer, tunnel, bytes })
    }
}

fn tunnel(datagram: &[u8]) -> Option<(u32, Option<Headers>)> {
    let payload = datagram.get(udp::BYTES..)?;
    let header = vxlan::Vxlan::parse(payload).ok()?;
    let inner = payload.get(vxlan::BYTES..).and_then(layer);
    Some((header.vni, inner.map(|(headers, _)| headers)))
}

/// The headers at the front of `bytes`, and what is behind IP.
fn layer(bytes: &[u8]) -> Option<(Headers, &[u8])> {
    let head = bytes.first_chunk::<{ ethernet::BYTES }>()?;
    let mac = |at: usize| Mac([0, 1, 2, 3, 4, 5].map(|i| head[at + i]));
    let mut headers = Headers {
        macs: (mac(6), mac(0)),
        ethertype: u16::from_be_bytes([head[12], head[13]]),
        vlan: None,
        addresses: None,
        protocol: None,
        ports: None,
    };
    let mut rest = &bytes[ethernet::BYTES..];
    for _ in 0..TAGS_MAX {
        if !matches!(headers.ethertype, ethernet::VLAN | ethernet::SERVICE_VLAN) {
            break;
        }
        let Some((tag, behind)) = rest.split_first_chunk::<4>() else { break };
        headers.vlan = headers.vlan.or(Some(u16::from_be_bytes([tag[0], tag[1]]) & 0xfff));
        headers.ethertype = u16::from_be_bytes([tag[2], tag[3]]);
        rest = behind;
    }
    let payload = match headers.ethertype {
        ethernet::IPV4 => look_at_ipv4(&mut headers, rest),
        ethernet::IPV6 => look_at_ipv6(&mut headers, rest),
        ethernet::ARP => {
            let (sender, target) = ARP_ADDRESSES_AT;
            headers.addresses = ipv4_at(rest, sender).zip(ipv4_at(rest, target));
            None
        }
        _ => None,
    };
    Some((headers, payload.unwrap_or(&[])))
}

fn ipv4_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets = bytes.get(at..)?.first_chunk::<4>()?;
    Some(Ipv4Addr::from(*octets).into())
}

fn ipv6_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets = bytes.get(at..)?.first_chunk::<16>()?;
    Some(Ipv6Addr::from(*octets).into())
}

fn look_at_ipv4<'a>(headers: &mut Headers, packet: &'a [u8]) -> Option<&'a [u8]> {
    headers.addresses = ipv4_at(packet, 12).zip(ipv4_at(packet, 16));
    headers.protocol = packet.get(9).copied();
    let payload = packet.get(usize::from(packet.first()? & 0xf) * 4..)?;
    let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]);
    if fragment & ipv4::FRAGMENT_OFFSET == 0 {
        look_at_ports(headers, payload);
    }
    Some(payload)
}

fn look_at_ipv6<'a>(headers: &mut Headers, packet: &'a [u8]) -> Option<&'a [u8]> {
    headers.addresses = ipv6_at(packet, 8).zip(ipv6_at(packet, 24));
    headers.protocol = packet.get(6).copied();
    let behind = packet.get(ipv6::BYTES..)?;
    let upper = ipv6::walk(headers.protocol?, behind).ok()?;
    headers.protocol = Some(upper.protocol);
    let payload = behind.get(upper.at..)?;
    if upper.has_header() {
        look_at_ports(headers, payload);
    }
    Some(payload)
}

fn look_at_ports(headers: &mut Headers, payload: &[u8]) {
    if matches!(headers.protocol, Some(ipv4::TCP | ipv4::UDP)) {
        headers.ports = udp::ports(payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_peer_sends_disturbs_it() {
        bolero::check!().with_type::<(Vec<u8>, u16)>().for_each(|(bytes, len)| {
            let look = Look::at(bytes, usize::from(*len));
            assert_eq!(look.is_some(), bytes.len() >= ethernet::BYTES);
            // The same with what makes the deeper layers likely.
            let mut tunnel = vec![2; 12];
            tunnel.extend([8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
            tunnel.extend([0xc0, 0, 0x12, 0xb5, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 100, 0]);
            tunnel.extend(bytes);
            let look = Look::at(&tunnel, tunnel.len()).expect("the outer headers are whole");
            let (vni, inner) = look.tunnel.expect("a tunnel");
            assert_eq!((vni, inner.is_some()), (100, bytes.len() >= ethernet::BYTES));
        });
    }
}
