//! What nobody should send: frames that must never be delivered to anybody.

use super::frames::{
    TUNNEL_BYTES, arp_frame, frame, ip_header, ip_packet, pseudo_sum, repair_ip, tunnelled,
    udp_is_whole, udp_packet,
};
use super::topology::{
    GATEWAY, GATEWAY_MAC, Place, TENANT_MTU, UNREACHABLE, VNIS, places, uplink_mac, vtep,
};
use outboard_sim::Rng;
use outboard_wire::arp::Operation;
use outboard_wire::{Ipv4, Mac, ethernet, icmp, ipv4, udp};
use std::net::Ipv4Addr;

/// Ports and payload of what must not be delivered: no number in the ledger.
const PORTS: (u16, u16) = (6666, 6666);
const PAYLOAD: [u8; 40] = [0xff; 40];

/// A frame that a tenant should not send.
pub fn from_tenant(place: &Place, rng: &mut Rng) -> Vec<u8> {
    let peer = Ipv4Addr::new(10, 0, 1 - place.host as u8, 2);
    let header = ip_header(place.address, peer);
    let framed = |packet: &[u8]| frame(GATEWAY_MAC, place.mac, ethernet::IPV4, packet);
    let to = |address: [u8; 4]| {
        framed(&udp_packet(Ipv4 { destination: address.into(), ..header }, PORTS, &PAYLOAD))
    };
    let mut good = framed(&udp_packet(header, PORTS, &PAYLOAD));
    let at = ethernet::BYTES;
    let sender = (place.mac, place.address);
    match rng.below(22) {
        0 => return good[..rng.index(ethernet::BYTES)].to_vec(),
        1 => return good[..ethernet::BYTES + rng.index(ipv4::BYTES)].to_vec(),
        2 => good[12..14].copy_from_slice(&0x86ddu16.to_be_bytes()),
        3 => good[12..14].copy_from_slice(&ethernet::VLAN.to_be_bytes()),
        4 => good[..6].fill(0xff),
        5 => good[5] ^= 0x40,
        6 => good[at] = 0x46,
        7 => good[at] = 0x65,
        8 => good[at + 3] = 0xff,
        9 => good[at + 10] ^= 1 << rng.index(8),
        10 => {
            good[at + 8] = rng.index(2) as u8;
            repair_ip(&mut good[at..]);
        }
        11 => return to([172, 16, 0, 1]),
        12 => return to([10, 8, 0, rng.below(256) as u8]),
        13 => return to([10, 9, 0, 1]),
        14 => return to([224, 0, 0, 251]),
        15 => return to([10, 0, 1 - place.host as u8, 99]),
        16 => return to(GATEWAY.octets()),
        17 => return too_big(header, place),
        18 => return partial_checksum(header, place, rng),
        19 => {
            let target = Ipv4Addr::new(172, 16, 0, 1);
            return arp_frame(Mac::BROADCAST, Operation::Request, sender, target);
        }
        20 => return arp_frame(Mac::BROADCAST, Operation::Request, sender, place.address),
        _ => {
            let mut bytes = arp_frame(Mac::BROADCAST, Operation::Request, sender, GATEWAY);
            bytes[ethernet::BYTES + rng.index(6)] ^= 0x40;
            return bytes;
        }
    }
    good
}

fn too_big(header: Ipv4, place: &Place) -> Vec<u8> {
    let packet = udp_packet(header, PORTS, &[0xff; TENANT_MTU as usize]);
    frame(GATEWAY_MAC, place.mac, ethernet::IPV4, &packet)
}

/// As Linux leaves a packet to an offload: the sum of the pseudo-header in the checksum's place.
fn partial_checksum(header: Ipv4, place: &Place, rng: &mut Rng) -> Vec<u8> {
    loop {
        // A flow of its own: only the first packets of a flow are looked at.
        let ports = (10_000 + rng.below(50_000) as u16, rng.next_u64() as u16);
        let mut packet = udp_packet(header, ports, &PAYLOAD);
        let partial = pseudo_sum(&packet).folded();
        packet[ipv4::BYTES + udp::CHECKSUM_AT..][..2].copy_from_slice(&partial.to_be_bytes());
        // One in 65 536 is the right checksum after all.
        if !udp_is_whole(&packet) {
            return frame(GATEWAY_MAC, place.mac, ethernet::IPV4, &packet);
        }
    }
}

/// An echo request to the gateway, which answers it.
pub fn echo_request(place: &Place) -> Vec<u8> {
    let mut message = vec![icmp::ECHO_REQUEST, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let mut sum = outboard_wire::Checksum::new();
    sum.add(&message);
    message[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    let header = Ipv4 { protocol: ipv4::ICMP, ..ip_header(place.address, GATEWAY) };
    frame(GATEWAY_MAC, place.mac, ethernet::IPV4, &ip_packet(header, &message))
}

/// A frame that should not arrive at a host's uplink.
pub fn from_underlay(host: usize, rng: &mut Rng) -> Vec<u8> {
    let all = places();
    let target = loop {
        let place = all[rng.index(all.len())];
        if place.host == host {
            break place;
        }
    };
    let far = Ipv4Addr::new(10, 0, 1 - host as u8, 2);
    let header = ip_header(far, target.address);
    let inner = |header| {
        let packet = udp_packet(header, PORTS, &PAYLOAD);
        frame(GATEWAY_MAC, GATEWAY_MAC, ethernet::IPV4, &packet)
    };
    let vni = VNIS[target.vpc];
    let (macs, vteps) = ((uplink_mac(host), uplink_mac(1 - host)), (vtep(host), vtep(1 - host)));
    let wrap = |inner: &[u8]| tunnelled(macs, vteps, vni, inner);
    let mut good = wrap(&inner(header));
    let udp_at = ethernet::BYTES + ipv4::BYTES;
    match rng.below(18) {
        0 => return good[..rng.index(good.len())].to_vec(),
        1 => return tunnelled(macs, vteps, rng.below(0x10_0000) as u32, &inner(header)),
        2 => return tunnelled(macs, (vtep(host), UNREACHABLE), 0x7_7777, &inner(header)),
        3 => {
            let unknown = (vtep(host), Ipv4Addr::new(192, 0, 2, 77));
            return tunnelled(macs, unknown, vni, &inner(header));
        }
        4 => {
            let elsewhere = (Ipv4Addr::new(192, 0, 2, 33), vtep(1 - host));
            return tunnelled(macs, elsewhere, vni, &inner(header));
        }
        5 => good[udp_at + udp::BYTES] = 0,
        6 => good[udp_at + udp::CHECKSUM_AT] = 0x55,
        7 => good[udp_at + 2] ^= 1,
        8 => {
            good[ethernet::BYTES + 6..][..2].copy_from_slice(&0x2000u16.to_be_bytes());
            repair_ip(&mut good[ethernet::BYTES..]);
        }
        9 => {
            good[ethernet::BYTES + 9] = ipv4::TCP;
            repair_ip(&mut good[ethernet::BYTES..]);
        }
        10 => good[12..14].copy_from_slice(&ethernet::ARP.to_be_bytes()),
        11 => good[12..14].copy_from_slice(&ethernet::VLAN.to_be_bytes()),
        // To a destination behind this host's own tunnels: would go round in circles.
        12 => return wrap(&inner(Ipv4 { destination: far, ..header })),
        13 => return wrap(&inner(Ipv4 { destination: GATEWAY, ..header })),
        14 => good[TUNNEL_BYTES..][..6].fill(0xff),
        15 => good[TUNNEL_BYTES + 5] ^= 0x40,
        16 => {
            let sender = (GATEWAY_MAC, far);
            // Asks for nobody here.
            return wrap(&arp_frame(Mac::BROADCAST, Operation::Request, sender, UNREACHABLE));
        }
        _ => rng.fill(&mut good[ethernet::BYTES..]),
    }
    good
}
