//! Filters against packets, and texts that are none.

use super::*;
use outboard_wire::{Ipv4, Ipv6, Udp, Vxlan, udp, vxlan};
use std::net::{Ipv4Addr, Ipv6Addr};

const NEAR: Mac = Mac([2, 0, 0, 0, 0, 1]);
const FAR: Mac = Mac([2, 0, 0, 0, 0, 2]);

fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; ethernet::BYTES];
    let header = outboard_wire::Ethernet { destination: FAR, source: NEAR, ethertype };
    header.emit(&mut bytes).unwrap();
    bytes.extend(payload);
    bytes
}

fn datagram(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; udp::BYTES];
    let len = (udp::BYTES + payload.len()) as u16;
    let header = Udp { source: from, destination: to, len, checksum: 0 };
    header.emit(&mut bytes).unwrap();
    bytes.extend(payload);
    bytes
}

fn over_ipv4(protocol: u8, from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; ipv4::BYTES];
    let header = Ipv4 {
        tos: 0,
        total_len: (ipv4::BYTES + payload.len()) as u16,
        id: 0,
        fragment: 0,
        ttl: 64,
        protocol,
        source: Ipv4Addr::from(from),
        destination: Ipv4Addr::from(to),
    };
    header.emit(&mut bytes).unwrap();
    bytes.extend(payload);
    frame(ethernet::IPV4, &bytes)
}

fn over_ipv6(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; ipv6::BYTES];
    let address = |last| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last);
    let header = Ipv6 {
        traffic_class: 0,
        flow_label: 0,
        payload_len: payload.len() as u16,
        next_header,
        hop_limit: 64,
        source: address(1),
        destination: address(2),
    };
    header.emit(&mut bytes).unwrap();
    bytes.extend(payload);
    frame(ethernet::IPV6, &bytes)
}

fn in_tunnel(vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![0; vxlan::BYTES];
    Vxlan { vni }.emit(&mut payload).unwrap();
    payload.extend(inner);
    let tunnel = datagram(50_000, vxlan::PORT, &payload);
    over_ipv4(ipv4::UDP, [192, 0, 2, 1], [192, 0, 2, 2], &tunnel)
}

/// Packets by name.
fn packets() -> Vec<(&'static str, Vec<u8>)> {
    let dns = over_ipv4(ipv4::UDP, [10, 0, 0, 1], [10, 0, 0, 2], &datagram(4000, 53, b"?"));
    let web = over_ipv4(ipv4::TCP, [10, 0, 0, 1], [10, 9, 0, 3], &datagram(4001, 443, &[0; 12]));
    let mut late = dns.clone();
    // The second fragment of something: no ports.
    late[ethernet::BYTES + 7] = 1;
    let mut tagged = vec![0; 12];
    tagged.extend([0x81, 0, 0, 7, 8, 0]);
    tagged.extend(&dns[ethernet::BYTES..]);
    let mut arp = vec![0; 28];
    arp[14..18].copy_from_slice(&[10, 0, 0, 1]);
    arp[24..28].copy_from_slice(&[10, 0, 0, 254]);
    // Behind hop-by-hop options.
    let mut options = vec![ipv4::UDP, 0, 1, 4, 0, 0, 0, 0];
    options.extend(datagram(546, 547, b"solicit"));
    vec![
        ("dns", dns.clone()),
        ("web", web),
        ("late", late),
        ("tagged", tagged),
        ("arp", frame(ethernet::ARP, &arp)),
        ("six", over_ipv6(ipv6::HOP_BY_HOP, &options)),
        ("ping6", over_ipv6(ipv6::ICMP, &[128, 0, 0, 0, 0, 0, 0, 0])),
        ("tunnel", in_tunnel(100, &dns)),
        ("torn", in_tunnel(200, &dns[..9])),
    ]
}

#[track_caller]
fn taken(text: &str, names: &[&str]) {
    let filter = Filter::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let all = packets();
    let found: Vec<&str> = all
        .iter()
        .filter(|(_, bytes)| filter.takes(bytes, bytes.len()))
        .map(|(name, _)| *name)
        .collect();
    assert_eq!(found, names, "{text}");
}

#[test]
fn every_word_selects_what_it_says() {
    let all: Vec<&str> = packets().iter().map(|(name, _)| *name).collect();
    taken("", &all);
    taken("ip", &["dns", "web", "late", "tagged", "tunnel", "torn"]);
    taken("ip6", &["six", "ping6"]);
    taken("arp", &["arp"]);
    taken("tcp", &["web"]);
    taken("icmp6", &["ping6"]);
    taken("vxlan", &["tunnel", "torn"]);
    taken("vlan", &["tagged"]);
    taken("vlan 7 and udp", &["tagged"]);
    taken("vlan 8", &[]);
    taken("port 53", &["dns", "tagged"]);
    taken("udp port 443", &[]);
    taken("tcp dst port 443", &["web"]);
    taken("src port 443", &[]);
    taken("portrange 546-547", &["six"]);
    taken("host 10.0.0.254", &["arp"]);
    taken("10.9.0.3", &["web"]);
    taken("dst 10.0.0.2", &["dns", "late", "tagged"]);
    taken("src net 10.0.0.0/8 and not arp", &["dns", "web", "late", "tagged"]);
    taken("net fd00::/16", &["six", "ping6"]);
    taken("ether src 02:00:00:00:00:02", &[]);
    taken("ether dst host 02:00:00:00:00:02 and tcp", &["web"]);
    taken("greater 63 and ip6", &["six"]);
    taken("less 53", &["dns", "late", "tagged", "arp"]);
}

#[test]
fn tunnels_are_looked_into() {
    taken("vni 100", &["tunnel"]);
    taken("inner udp port 53", &["tunnel"]);
    taken("inner (host 10.0.0.1 and not tcp)", &["tunnel"]);
    taken("vni 200 and inner ip", &[]);
    taken("not inner ip and vxlan", &["torn"]);
    // Without the word it is the tunnel itself that is asked about.
    taken("host 10.0.0.1 and vxlan", &[]);
    taken("host 192.0.2.1 and port 4789", &["tunnel", "torn"]);
}

#[test]
fn and_binds_tighter_than_or_and_not_tighter_than_both() {
    taken("arp or ip6 and udp", &["arp", "six"]);
    taken("(arp or ip6) and not udp", &["arp", "ping6"]);
    taken("!(ip||ip6)", &["arp"]);
    taken("not arp and not ip", &["six", "ping6"]);
}

#[test]
fn mistakes_are_named_where_they_are() {
    for (text, at, what) in [
        ("port", "the end", "expected a port"),
        ("port x", "x", "expected a port"),
        ("port 65536", "65536", "expected a port"),
        ("host 10.0.0", "10.0.0", "expected an address"),
        ("net 10.0.0.0/33", "10.0.0.0/33", "expected a network"),
        ("portrange 9-3", "9-3", "expected two ports"),
        ("(udp", "the end", "expected \")\""),
        ("udp)", ")", "expected \"and\""),
        ("udp tcp", "tcp", "expected \"and\""),
        ("udp and", "the end", "an address, or one of"),
        ("frobnicate", "frobnicate", "an address, or one of"),
        ("vni 16777216", "16777216", "a VNI"),
        ("ether src 1", "1", "a MAC address"),
    ] {
        let error = Filter::parse(text).unwrap_err();
        assert_eq!(error.at, at, "{text}: {error}");
        assert!(error.what.contains(what), "{text}: {error}");
    }
}

#[test]
fn depth_and_length_have_limits() {
    let nested = |depth: usize| format!("{}udp{}", "(".repeat(depth), ")".repeat(depth));
    Filter::parse(&nested(DEPTH_MAX - 1)).unwrap();
    assert!(Filter::parse(&nested(DEPTH_MAX)).unwrap_err().what.contains("nested deeper"));
    Filter::parse(&" ".repeat(TEXT_MAX)).unwrap();
    assert!(Filter::parse(&" ".repeat(TEXT_MAX + 1)).is_err());
    // Long without being deep.
    let long = vec!["udp"; 400].join(" or ");
    taken(&long, &["dns", "late", "tagged", "six", "tunnel", "torn"]);
}

#[test]
fn no_text_and_no_packet_disturbs_it() {
    bolero::check!().with_type::<(Vec<u8>, Vec<u8>)>().for_each(|(choices, packet)| {
        const WORDS: [&str; 24] = [
            "udp",
            "tcp",
            "ip",
            "ip6",
            "arp",
            "port",
            "53",
            "host",
            "10.0.0.1",
            "fd00::1",
            "net",
            "10.0.0.0/8",
            "and",
            "or",
            "not",
            "(",
            ")",
            "inner",
            "vni",
            "100",
            "src",
            "vlan",
            "less",
            "greater",
        ];
        let words: Vec<&str> =
            choices.iter().map(|choice| WORDS[usize::from(*choice) % WORDS.len()]).collect();
        if let Ok(filter) = Filter::parse(&words.join(" ")) {
            filter.takes(packet, packet.len());
        }
        let _ = Filter::parse(&String::from_utf8_lossy(packet));
    });
}
