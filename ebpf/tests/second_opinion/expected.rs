//! What must become of a frame on an uplink, by the parsers that the switch uses.

use outboard_ebpf::abi::Outcome;
use outboard_wire::{
    Checksum, Ethernet, Ipv4, Ipv6, STEER_BYTES, STEER_V6_BYTES, Udp, ethernet, ipv4, ipv6,
};
use std::net::IpAddr;

/// Extension headers that the program names: those that a tunnel's packets could carry.
const EXTENSIONS: [u8; 4] =
    [ipv6::HOP_BY_HOP, ipv6::ROUTING, ipv6::AUTHENTICATION, ipv6::DESTINATION_OPTIONS];

/// The outcome for a frame, when the tunnel is on `port` of `vteps` and every queue has a socket.
pub fn expected(frame: &[u8], port: u16, vteps: &[IpAddr]) -> Outcome {
    if frame.len() < STEER_BYTES {
        return Outcome::PassedShort;
    }
    let rest = &frame[ethernet::BYTES..];
    match Ethernet::parse(frame).unwrap().ethertype {
        ethernet::IPV4 => of_ipv4(rest, port, vteps),
        ethernet::IPV6 if frame.len() < STEER_V6_BYTES => Outcome::PassedShort,
        ethernet::IPV6 => of_ipv6(rest, port, vteps),
        _ => Outcome::Passed,
    }
}

fn of_ipv4(rest: &[u8], port: u16, vteps: &[IpAddr]) -> Outcome {
    // The program does not look at lengths and checksums: the switch does. They are made right,
    // so that the parser says what it thinks of the rest. So is the first byte, with options.
    let mut header: [u8; ipv4::BYTES] = *rest.first_chunk().unwrap();
    header[0] = 0x45;
    header[2..4].copy_from_slice(&(rest.len() as u16).to_be_bytes());
    header[10..12].fill(0);
    let mut sum = Checksum::new();
    sum.add(&header);
    header[10..12].copy_from_slice(&sum.finish().to_be_bytes());
    let ip = Ipv4::parse(&header, rest.len()).unwrap();
    match ip {
        _ if ip.protocol != ipv4::UDP => Outcome::Passed,
        _ if ip.is_fragment() => Outcome::PassedFragment,
        _ if rest[0] != 0x45 => Outcome::PassedOptions,
        _ => of_udp(&rest[ipv4::BYTES..], port, vteps.contains(&ip.destination.into())),
    }
}

fn of_ipv6(rest: &[u8], port: u16, vteps: &[IpAddr]) -> Outcome {
    // As above: the length is made right, and nothing else.
    let mut header: [u8; ipv6::BYTES] = *rest.first_chunk().unwrap();
    let payload_len = (rest.len() - ipv6::BYTES).min(usize::from(u16::MAX)) as u16;
    header[4..6].copy_from_slice(&payload_len.to_be_bytes());
    let Ok(ip) = Ipv6::parse(&header, rest.len()) else { return Outcome::Passed };
    match ip.next_header {
        ipv6::FRAGMENT => Outcome::PassedFragment,
        next if EXTENSIONS.contains(&next) => Outcome::PassedOptions,
        ipv4::UDP => of_udp(&rest[ipv6::BYTES..], port, vteps.contains(&ip.destination.into())),
        _ => Outcome::Passed,
    }
}

fn of_udp(rest: &[u8], port: u16, is_vtep: bool) -> Outcome {
    let mut header: [u8; 8] = *rest.first_chunk().unwrap();
    header[4..6].copy_from_slice(&8u16.to_be_bytes());
    match Udp::parse(&header, 8).unwrap().destination == port {
        true if is_vtep => Outcome::Redirected,
        true => Outcome::PassedAddress,
        false => Outcome::Passed,
    }
}
