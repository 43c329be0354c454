//! What must become of a frame on an uplink, by the parsers that the switch uses.

use outboard_ebpf::abi::Outcome;
use outboard_wire::{Checksum, Ethernet, Ipv4, STEER_BYTES, STEER_V6_BYTES, Udp, ethernet, ipv4};
use std::net::{IpAddr, Ipv6Addr};

/// EtherType of IPv6.
const IPV6: u16 = 0x86dd;
/// Next headers of RFC 8200 section 4.1 and of AH (RFC 4302) that stand before a payload.
const EXTENSIONS: [u8; 4] = [0, 43, 51, 60];
const FRAGMENT_EXTENSION: u8 = 44;

/// The outcome for a frame, when the tunnel is on `port` of `vteps` and every queue has a socket.
pub fn expected(frame: &[u8], port: u16, vteps: &[IpAddr]) -> Outcome {
    if frame.len() < STEER_BYTES {
        return Outcome::PassedShort;
    }
    let rest = &frame[ethernet::BYTES..];
    match Ethernet::parse(frame).unwrap().ethertype {
        ethernet::IPV4 => of_ipv4(rest, port, vteps),
        IPV6 if frame.len() < STEER_V6_BYTES => Outcome::PassedShort,
        IPV6 => of_ipv6(rest, port, vteps),
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
    const HEADER_BYTES: usize = 40;
    let to: [u8; 16] = rest[24..40].try_into().unwrap();
    match rest[6] {
        _ if rest[0] >> 4 != 6 => Outcome::Passed,
        FRAGMENT_EXTENSION => Outcome::PassedFragment,
        next if EXTENSIONS.contains(&next) => Outcome::PassedOptions,
        ipv4::UDP => {
            of_udp(&rest[HEADER_BYTES..], port, vteps.contains(&Ipv6Addr::from(to).into()))
        }
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
