//! Frames that an uplink may see: crafted ones, with what must become of them, and random ones.

use outboard_ebpf::abi::Outcome;
use outboard_sim::Rng;
use outboard_wire::{Ethernet, Ipv4, Mac, Udp, ipv4};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The tunnel's port, and another one.
pub const PORT: u16 = 4789;
pub const OTHER_PORT: u16 = 8472;
const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// The tunnel addresses of the host.
pub const VTEPS: [IpAddr; 4] = [
    IpAddr::V4(V4),
    IpAddr::V6(V6),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)),
];
const OTHER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3);

const ETHER_TYPE_AT: usize = 12;
const IP_AT: usize = 14;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;
/// More than one page: the program sees the beginning of such a frame only.
const JUMBO_BYTES: usize = 9014;

/// What a crafted frame is, and what must become of it.
pub struct Name {
    pub text: String,
    pub outcome: Outcome,
}

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; IP_AT];
    let (destination, source) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
    Ethernet { destination, source, ethertype }.emit(&mut frame).unwrap();
    frame.extend_from_slice(payload);
    frame
}

fn v4(to: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; ipv4::BYTES];
    let total_len = (ipv4::BYTES + payload.len()) as u16;
    let source = Ipv4Addr::new(192, 0, 2, 2);
    Ipv4 { tos: 0, total_len, id: 7, fragment, ttl: 64, protocol, source, destination: to }
        .emit(&mut packet)
        .unwrap();
    packet.extend_from_slice(payload);
    ethernet(0x0800, &packet)
}

fn v6(to: Ipv6Addr, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    packet.extend_from_slice(&[next_header, 64]);
    packet.extend_from_slice(&Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2).octets());
    packet.extend_from_slice(&to.octets());
    packet.extend_from_slice(payload);
    ethernet(0x86dd, &packet)
}

/// A datagram with VXLAN and a small frame in it, `bytes` more behind.
fn datagram(port: u16, bytes: usize) -> Vec<u8> {
    let mut datagram = vec![0; 8 + 8 + 14 + 28 + bytes];
    let len = datagram.len() as u16;
    Udp { source: 49_200, destination: port, len, checksum: 0 }.emit(&mut datagram).unwrap();
    datagram[8] = 0x08;
    datagram
}

/// ICMP or ICMPv6 "too big" about a tunnel's packet; checksums are not looked at.
fn too_big(kind: [u8; 2], quoted: &[u8]) -> Vec<u8> {
    let mut message = vec![kind[0], kind[1], 0, 0, 0, 0, 5, 0x14];
    message.extend_from_slice(&quoted[IP_AT..]);
    message
}

/// One of each kind.
pub fn crafted() -> Vec<(Name, Vec<u8>)> {
    let tunnel = datagram(PORT, 40);
    let mut all = Vec::new();
    let mut add = |text: &str, outcome, frame: Vec<u8>| {
        all.push((Name { text: text.into(), outcome }, frame));
    };
    for (name, [tunnelled, elsewhere, other_port]) in [
        (
            "v4",
            [(V4, PORT), (OTHER_V4, PORT), (V4, OTHER_PORT)]
                .map(|(to, port)| v4(to, ipv4::UDP, ipv4::DONT_FRAGMENT, &datagram(port, 40))),
        ),
        (
            "v6",
            [(V6, PORT), (OTHER_V6, PORT), (V6, OTHER_PORT)]
                .map(|(to, port)| v6(to, ipv4::UDP, &datagram(port, 40))),
        ),
    ] {
        add(&format!("{name} tunnel"), Outcome::Redirected, tunnelled.clone());
        add(&format!("{name} to another address"), Outcome::PassedAddress, elsewhere);
        add(&format!("{name} to another port"), Outcome::Passed, other_port);
        let mut jumbo = tunnelled.clone();
        jumbo.resize(JUMBO_BYTES, 0x5a);
        add(&format!("{name} jumbo"), Outcome::Redirected, jumbo);
        let mut tagged = tunnelled.clone();
        tagged.splice(ETHER_TYPE_AT..ETHER_TYPE_AT, [0x81, 0, 0, 5]);
        add(&format!("{name} with a VLAN tag"), Outcome::Passed, tagged);
    }
    let from_us = v4(OTHER_V4, ipv4::UDP, ipv4::DONT_FRAGMENT, &tunnel);
    add("v4 too big", Outcome::Passed, v4(V4, ICMP, 0, &too_big([3, 4], &from_us)));
    let from_us = v6(OTHER_V6, ipv4::UDP, &tunnel);
    add("v6 too big", Outcome::Passed, v6(V6, ICMPV6, &too_big([2, 0], &from_us)));
    add("v4 TCP", Outcome::Passed, v4(V4, TCP, 0, &tunnel));
    add("v6 TCP", Outcome::Passed, v6(V6, TCP, &tunnel));
    for fragment in [ipv4::MORE_FRAGMENTS, 1, ipv4::FRAGMENT_OFFSET] {
        add("v4 fragment", Outcome::PassedFragment, v4(V4, ipv4::UDP, fragment, &tunnel));
        add("v4 TCP fragment", Outcome::Passed, v4(V4, TCP, fragment, &tunnel));
    }
    for words in 1..=10 {
        add("v4 options", Outcome::PassedOptions, with_options(words, &tunnel));
    }
    for next_header in [0, 43, 51, 60, 44] {
        let behind = [&[ipv4::UDP, 0, 0, 0, 0, 0, 0, 0], tunnel.as_slice()].concat();
        let outcome = match next_header {
            44 => Outcome::PassedFragment,
            _ => Outcome::PassedOptions,
        };
        add(&format!("v6 extension {next_header}"), outcome, v6(V6, next_header, &behind));
    }
    add("ARP", Outcome::Passed, ethernet(0x0806, &[0; 46]));
    let solicitation = [&[135, 0, 0, 0, 0, 0, 0, 0], V6.octets().as_slice()].concat();
    add("neighbour solicitation", Outcome::Passed, v6(V6, ICMPV6, &solicitation));
    add("runt", Outcome::PassedShort, ethernet(0x0806, &[0; 20]));
    all
}

/// A tunnel's datagram behind `words` of IPv4 options.
fn with_options(words: usize, datagram: &[u8]) -> Vec<u8> {
    let payload = [&vec![1; words * 4], datagram].concat();
    let mut frame = v4(V4, ipv4::UDP, 0, &payload);
    frame[IP_AT] += words as u8;
    frame
}

/// A crafted frame with a few of its bytes changed and perhaps its end missing, or noise behind
/// a plausible beginning.
pub fn random(rng: &mut Rng) -> Vec<u8> {
    let mut frame = if rng.chance(100_000) { noise(rng) } else { changed(rng) };
    if rng.chance(250_000) {
        let bytes = rng.between(14, frame.len().min(100) as u64) as usize;
        frame.truncate(bytes);
    }
    frame
}

fn noise(rng: &mut Rng) -> Vec<u8> {
    let mut frame = vec![0; rng.between(14, 300) as usize];
    rng.fill(&mut frame);
    let types: [u16; 4] = [0x0800, 0x86dd, 0x0806, 0x8100];
    let ethertype = types[rng.index(types.len())];
    frame[ETHER_TYPE_AT..IP_AT].copy_from_slice(&ethertype.to_be_bytes());
    if let Some(first) = frame.get_mut(IP_AT) {
        *first = [0x45, 0x60, *first][rng.index(3)];
    }
    frame
}

fn changed(rng: &mut Rng) -> Vec<u8> {
    let crafted = crafted();
    let (_, mut frame) = crafted.into_iter().nth(rng.index(40)).unwrap_or_else(|| {
        (Name { text: String::new(), outcome: Outcome::Redirected }, v6(V6, ipv4::UDP, &[0; 64]))
    });
    let end = frame.len().min(72);
    for _ in 0..rng.below(4) {
        frame[rng.index(end)] = rng.next_u64() as u8;
    }
    if rng.chance(300_000) {
        // A field that decides, one bit off.
        let decisive = [12, 13, 14, 20, 21, 23, 30, 33, 36, 37, 38, 53, 56, 57];
        let at = decisive[rng.index(decisive.len())];
        if let Some(byte) = frame.get_mut(at) {
            *byte ^= 1 << rng.below(8);
        }
    }
    frame
}
