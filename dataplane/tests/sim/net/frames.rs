//! What tenants and far ends put on the wire, byte by byte, and how a tenant reads it.

use super::topology::{UPLINK_MTU, VNIS, uplink_mac, vtep, vtep6};
use outboard_wire::arp::Operation;
use outboard_wire::{
    Arp, Checksum, Ethernet, Ipv4, Ipv6, Mac, Udp, Vxlan, ecn, ethernet, ipv4, ipv6, udp, vxlan,
};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Where the UDP payload of an IP packet starts.
pub const PAYLOAD_AT: usize = ipv4::BYTES + udp::BYTES;
/// Where the inner frame of a tunnel packet starts.
pub const TUNNEL_BYTES: usize = ethernet::BYTES + ipv4::BYTES + udp::BYTES + vxlan::BYTES;

/// An IP header to put in front of something.
pub fn ip_header(source: Ipv4Addr, destination: Ipv4Addr) -> Ipv4 {
    Ipv4 {
        tos: 0,
        total_len: 0,
        id: 0,
        fragment: ipv4::DONT_FRAGMENT,
        ttl: 64,
        protocol: ipv4::UDP,
        source,
        destination,
    }
}

/// An IP packet with `payload` behind the header.
pub fn ip_packet(header: Ipv4, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; ipv4::BYTES + payload.len()];
    let total_len = u16::try_from(bytes.len()).expect("at most 64 KiB");
    Ipv4 { total_len, ..header }.emit(&mut bytes).expect("room");
    bytes[ipv4::BYTES..].copy_from_slice(payload);
    bytes
}

/// A UDP packet with its checksum.
pub fn udp_packet(header: Ipv4, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut bytes = ip_packet(header, &[&[0; udp::BYTES], payload].concat());
    let len = (bytes.len() - ipv4::BYTES) as u16;
    let datagram = Udp { source: ports.0, destination: ports.1, len, checksum: 0 };
    datagram.emit(&mut bytes[ipv4::BYTES..]).expect("room");
    // Zero means none; the other zero of one's complement stands for it (RFC 768).
    let sum = match udp_sum(&bytes).finish() {
        0 => 0xffff,
        sum => sum,
    };
    bytes[ipv4::BYTES + udp::CHECKSUM_AT..][..2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// A UDP packet of IPv6 with its checksum.
pub fn udp_packet6(header: Ipv6, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let len = (udp::BYTES + payload.len()) as u16;
    let mut bytes = vec![0; ipv6::BYTES + usize::from(len)];
    Ipv6 { payload_len: len, ..header }.emit(&mut bytes).expect("room");
    let datagram = Udp { source: ports.0, destination: ports.1, len, checksum: 0 };
    datagram.emit(&mut bytes[ipv6::BYTES..]).expect("room");
    bytes[ipv6::BYTES + udp::BYTES..].copy_from_slice(payload);
    let sum = match udp_sum6(&bytes).finish() {
        0 => 0xffff,
        sum => sum,
    };
    bytes[ipv6::BYTES + udp::CHECKSUM_AT..][..2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// An IPv6 header to put in front of something.
pub fn ip_header6(source: Ipv6Addr, destination: Ipv6Addr) -> Ipv6 {
    Ipv6 {
        traffic_class: 0,
        flow_label: 0,
        payload_len: 0,
        next_header: ipv4::UDP,
        hop_limit: 64,
        source,
        destination,
    }
}

fn udp_sum6(packet: &[u8]) -> Checksum {
    let address = |at: usize| *packet[at..].first_chunk::<16>().expect("an IP header");
    let len = (packet.len() - ipv6::BYTES) as u32;
    let mut sum = Checksum::pseudo_header6(address(8), address(24), ipv4::UDP, len);
    sum.add(&packet[ipv6::BYTES..]);
    sum
}

/// Whether a UDP packet of IPv6 has the right checksum.
pub fn udp_is_whole6(packet: &[u8]) -> bool {
    let Some(datagram) = packet.get(ipv6::BYTES..) else { return false };
    match Udp::parse(datagram, datagram.len()) {
        Ok(udp) => {
            udp.checksum != 0
                && usize::from(udp.len) == datagram.len()
                && udp_sum6(packet).folded() == 0xffff
        }
        Err(_) => false,
    }
}

/// The sum over a UDP packet's pseudo-header and datagram.
pub fn udp_sum(packet: &[u8]) -> Checksum {
    let mut sum = pseudo_sum(packet);
    sum.add(&packet[ipv4::BYTES..]);
    sum
}

/// The sum over a UDP packet's pseudo-header alone.
pub fn pseudo_sum(packet: &[u8]) -> Checksum {
    let address = |at: usize| *packet[at..].first_chunk::<4>().expect("an IP header");
    let len = (packet.len() - ipv4::BYTES) as u16;
    Checksum::pseudo_header(address(12), address(16), ipv4::UDP, len)
}

/// Whether a UDP packet carries a checksum and it is right.
pub fn udp_is_whole(packet: &[u8]) -> bool {
    let Some(datagram) = packet.get(ipv4::BYTES..) else { return false };
    match Udp::parse(datagram, datagram.len()) {
        Ok(udp) => {
            udp.checksum != 0
                && usize::from(udp.len) == datagram.len()
                && udp_sum(packet).folded() == 0xffff
        }
        Err(_) => false,
    }
}

/// Makes an IP header's checksum right again after a change.
pub fn repair_ip(header: &mut [u8]) {
    header[10..12].fill(0);
    let mut sum = Checksum::new();
    sum.add(&header[..ipv4::BYTES]);
    header[10..12].copy_from_slice(&sum.finish().to_be_bytes());
}

/// A frame.
pub fn frame(destination: Mac, source: Mac, ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; ethernet::BYTES + packet.len()];
    Ethernet { destination, source, ethertype }.emit(&mut bytes).expect("room");
    bytes[ethernet::BYTES..].copy_from_slice(packet);
    bytes
}

/// An ARP message in its frame.
pub fn arp_frame(
    destination: Mac,
    operation: Operation,
    sender: (Mac, Ipv4Addr),
    target: Ipv4Addr,
) -> Vec<u8> {
    let message =
        Arp { operation, sender_mac: sender.0, sender: sender.1, target_mac: Mac([0; 6]), target };
    let mut bytes = [0; outboard_wire::arp::BYTES];
    message.emit(&mut bytes).expect("room");
    frame(destination, sender.0, ethernet::ARP, &bytes)
}

/// A frame in a tunnel between two hosts, without a UDP checksum (RFC 7348 section 5).
pub fn tunnelled(macs: (Mac, Mac), vteps: (Ipv4Addr, Ipv4Addr), vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![0; udp::BYTES + vxlan::BYTES];
    let len = (payload.len() + inner.len()) as u16;
    Udp { source: 50_000, destination: vxlan::PORT, len, checksum: 0 }
        .emit(&mut payload)
        .expect("room");
    Vxlan { vni }.emit(&mut payload[udp::BYTES..]).expect("room");
    payload.extend_from_slice(inner);
    frame(macs.0, macs.1, ethernet::IPV4, &ip_packet(ip_header(vteps.1, vteps.0), &payload))
}

/// What a host sends to the other must be right to the last byte.
///
/// # Panics
/// When it is not.
pub fn check_tunnel(host: usize, bytes: &[u8]) {
    let outer = Ethernet::parse(bytes).expect("an Ethernet header");
    assert_eq!((outer.destination, outer.source), (uplink_mac(1 - host), uplink_mac(host)));
    if outer.ethertype == ethernet::IPV6 {
        return check_tunnel6(host, &bytes[ethernet::BYTES..]);
    }
    let packet = &bytes[ethernet::BYTES..];
    let ip = Ipv4::parse(packet, packet.len()).expect("an outer IP header");
    assert_eq!((ip.source, ip.destination), (vtep(host), vtep(1 - host)));
    assert_eq!((ip.protocol, usize::from(ip.total_len)), (ipv4::UDP, packet.len()));
    assert!(packet.len() <= UPLINK_MTU as usize, "larger than the underlay's MTU");
    let datagram = &packet[ipv4::BYTES..];
    let udp = Udp::parse(datagram, datagram.len()).expect("an outer UDP header");
    assert_eq!((udp.destination, usize::from(udp.len)), (vxlan::PORT, datagram.len()));
    assert!(udp.checksum == 0 || udp_sum(packet).folded() == 0xffff);
    let tunnel = Vxlan::parse(&datagram[udp::BYTES..]).expect("a VXLAN header");
    assert!(VNIS.contains(&tunnel.vni));
    let inner = &bytes[TUNNEL_BYTES..];
    let frame = Ethernet::parse(inner).expect("an inner Ethernet header");
    if frame.ethertype == ethernet::ARP {
        return;
    }
    let inner = &inner[ethernet::BYTES..];
    let inner_ip = Ipv4::parse(inner, inner.len()).expect("an inner IP header");
    assert_eq!(usize::from(inner_ip.total_len), inner.len(), "padding is not carried");
    assert_eq!(ecn::of_tos(ip.tos), ecn::of_tos(inner_ip.tos), "RFC 6040: ECN is copied");
}

/// The same for a tunnel packet of IPv6, which carries IPv6 here.
fn check_tunnel6(host: usize, packet: &[u8]) {
    let ip = Ipv6::parse(packet, packet.len()).expect("an outer IP header");
    assert_eq!((ip.source, ip.destination), (vtep6(host), vtep6(1 - host)));
    assert_eq!((ip.next_header, ip.total_len()), (ipv4::UDP, packet.len()));
    assert!(packet.len() <= UPLINK_MTU as usize, "larger than the underlay's MTU");
    assert!(udp_is_whole6(packet), "RFC 8200 section 8.1: UDP over IPv6 has a checksum");
    let payload = &packet[ipv6::BYTES + udp::BYTES..];
    let tunnel = Vxlan::parse(payload).expect("a VXLAN header");
    assert!(VNIS.contains(&tunnel.vni));
    let inner = &payload[vxlan::BYTES + ethernet::BYTES..];
    let inner_ip = Ipv6::parse(inner, inner.len()).expect("an inner IP header");
    assert_eq!(inner_ip.total_len(), inner.len(), "padding is not carried");
    let classes = (ip.traffic_class, inner_ip.traffic_class);
    assert_eq!(ecn::of_tos(classes.0), ecn::of_tos(classes.1), "RFC 6040: ECN is copied");
}
