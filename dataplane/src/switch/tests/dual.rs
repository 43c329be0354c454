//! Two hosts of both families: what every test of IPv6 builds on, and all four combinations of
//! inside and outside.

use super::*;
use crate::config::plan::Ipv6Interface;
use outboard_wire::{IpPrefix, Ipv6, ecn, nd};
use std::net::Ipv6Addr;

pub(super) const VTEP6_A: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub(super) const VTEP6_B: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
pub(super) const GATEWAY6: Ipv6Addr = inside(0, 1);

/// fd00:0:0:net::host
pub(super) const fn inside(net: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, net, 0, 0, 0, host)
}

fn route6(net: u16, via: IpAddr) -> Route {
    let to = IpPrefix::new(inside(net, 0).into(), 64).unwrap();
    Route { to, via, mac: GATEWAY_MAC }
}

fn with_both(mut plan: Plan, vtep6: Ipv6Addr, own: &[(usize, Ipv6Addr)]) -> Plan {
    for vpc in &mut plan.vpcs {
        vpc.gateway6 = Some(GATEWAY6);
    }
    for port in &mut plan.ports {
        if let Role::Uplink { vtep6: own, .. } = &mut port.role {
            *own = Some(vtep6);
        }
    }
    for (index, address) in own {
        let Role::Tenant(tenant) = &mut plan.ports[*index].role else { panic!("an uplink") };
        tenant.address6 = Some(Ipv6Interface { address: *address, prefix_len: 64 });
    }
    plan
}

/// Host A also has fd00::2 in red and in blue, and fd00::3 in red. Over IPv4 are 10.0.1.0/24 and
/// fd00:0:0:1::/64, over IPv6 10.0.2.0/24 and fd00:0:0:2::/64, all behind host B.
pub(super) fn dual_a() -> Plan {
    let own = [(0, inside(0, 2)), (1, inside(0, 2)), (3, inside(0, 3))];
    let mut plan = with_both(plan_a(), VTEP6_A, &own);
    for vpc in &mut plan.vpcs {
        let over6 = Route { via: VTEP6_B.into(), ..route([10, 0, 2, 0], 24, VTEP_B) };
        vpc.routes.extend([route6(1, VTEP_B.into()), over6, route6(2, VTEP6_B.into())]);
    }
    plan
}

/// Host B also has fd00:0:0:1::7 in red and blue, and 10.0.2.7 with fd00:0:0:2::7 in red.
fn dual_b() -> Plan {
    let mut plan = plan_b();
    plan.ports.push(tenant(0, [10, 0, 2, 7], mac(2, 7)));
    plan.ports = numbered(plan.ports);
    let own = [(0, inside(1, 7)), (1, inside(1, 7)), (3, inside(2, 7))];
    let mut plan = with_both(plan, VTEP6_B, &own);
    for vpc in &mut plan.vpcs {
        vpc.routes.push(route6(0, VTEP6_A.into()));
    }
    plan
}

fn hop(src_ip: IpAddr, src_mac: Mac, dst_mac: Mac) -> NextHop {
    NextHop::Resolved { port: UPLINK, src_ip, src_mac, dst_mac, path_mtu: UPLINK_MTU }
}

pub(super) fn dual_tables_a(plan: &Plan) -> Arc<Tables> {
    let hops = [
        (VTEP_B.into(), hop(VTEP_A.into(), mac(1, 1), mac(1, 2))),
        (VTEP6_B.into(), hop(VTEP6_A.into(), mac(1, 1), mac(1, 2))),
        (UNRESOLVED.into(), NextHop::Unresolved),
    ];
    Arc::new(Tables::new(plan, &hops))
}

impl Host {
    pub(super) fn dual_a() -> Host {
        Host::new(dual_tables_a(&dual_a()))
    }

    pub(super) fn dual_b() -> Host {
        let hops = [
            (VTEP_A.into(), hop(VTEP_B.into(), mac(1, 2), mac(1, 1))),
            (VTEP6_A.into(), hop(VTEP6_B.into(), mac(1, 2), mac(1, 1))),
        ];
        Host::new(Arc::new(Tables::new(&dual_b(), &hops)))
    }
}

/// An IPv6 packet of a tenant.
#[derive(Clone)]
pub(super) struct Packet6 {
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
    pub class: u8,
    pub hop_limit: u8,
    pub next_header: u8,
    /// Extension headers and what is behind them.
    pub payload: Vec<u8>,
}

impl Packet6 {
    /// UDP from fd00::2, with its checksum.
    pub(super) fn udp(destination: Ipv6Addr, ports: (u16, u16), bytes: usize) -> Packet6 {
        let mut payload: Vec<u8> = (0..8 + bytes).map(|at| (at * 5 + 3) as u8).collect();
        let len = payload.len() as u16;
        let udp = Udp { source: ports.0, destination: ports.1, len, checksum: 0 };
        udp.emit(&mut payload).unwrap();
        let source = inside(0, 2);
        let packet = Packet6 {
            source,
            destination,
            class: 0,
            hop_limit: 64,
            next_header: ipv4::UDP,
            payload,
        };
        packet.with_checksum(6)
    }

    /// ICMPv6 from fd00::2.
    pub(super) fn icmp(destination: Ipv6Addr, message: &[u8]) -> Packet6 {
        let (next_header, payload) = (ipv6::ICMP, message.to_vec());
        let empty = Packet6::udp(destination, (0, 0), 0);
        Packet6 { next_header, payload, hop_limit: 255, ..empty }.with_checksum(2)
    }

    /// Makes the checksum at `at` of the payload right.
    pub(super) fn with_checksum(mut self, at: usize) -> Packet6 {
        let (from, to) = (self.source.octets(), self.destination.octets());
        let len = self.payload.len() as u32;
        let mut sum = Checksum::pseudo_header6(from, to, self.next_header, len);
        self.payload[at..at + 2].fill(0);
        sum.add(&self.payload);
        self.payload[at..at + 2].copy_from_slice(&sum.finish().to_be_bytes());
        self
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 40];
        let header = Ipv6 {
            traffic_class: self.class,
            flow_label: 0x5_4321,
            payload_len: self.payload.len() as u16,
            next_header: self.next_header,
            hop_limit: self.hop_limit,
            source: self.source,
            destination: self.destination,
        };
        header.emit(&mut bytes).unwrap();
        bytes.extend(&self.payload);
        bytes
    }

    /// As the tenant fd00::2 sends it to its gateway, or to the group that the destination is.
    pub(super) fn frame(&self) -> Vec<u8> {
        let to = match self.destination.is_multicast() {
            true => nd::multicast_mac(self.destination),
            false => GATEWAY_MAC,
        };
        framed6(to, mac(0, 2), &self.bytes())
    }
}

pub(super) fn framed6(destination: Mac, source: Mac, packet: &[u8]) -> Vec<u8> {
    let mut frame = framed(destination, source, packet);
    frame[12..14].copy_from_slice(&ethernet::IPV6.to_be_bytes());
    frame
}

/// The sum over an IPv6 packet without extension headers, and its pseudo-header.
pub(super) fn upper_sum(packet: &[u8]) -> u16 {
    let ip = Ipv6::parse(packet, packet.len()).unwrap();
    let payload = &packet[40..ip.total_len()];
    let (from, to) = (ip.source.octets(), ip.destination.octets());
    let len = payload.len() as u32;
    let mut sum = Checksum::pseudo_header6(from, to, ip.next_header, len);
    sum.add(payload);
    sum.folded()
}

/// A frame in a tunnel packet over IPv6 from host B to host A, with its checksum.
pub(super) fn tunnelled6(vni: u32, frame: &[u8]) -> Vec<u8> {
    let mut payload = vec![0; 16];
    let len = (16 + frame.len()) as u16;
    let udp = Udp { source: 50_000, destination: vxlan::PORT, len, checksum: 0 };
    udp.emit(&mut payload).unwrap();
    payload[8] = 8;
    payload[12..16].copy_from_slice(&(vni << 8).to_be_bytes());
    payload.extend(frame);
    let next_header = ipv4::UDP;
    let packet = Packet6 {
        source: VTEP6_B,
        destination: VTEP6_A,
        class: 0,
        hop_limit: 64,
        next_header,
        payload,
    };
    framed6(mac(1, 1), mac(1, 2), &packet.with_checksum(6).bytes())
}

/// Where a packet of one family goes over one family, and where it arrives.
fn ways(is_v6: bool, over_v6: bool) -> (Vec<u8>, PortId, Mac) {
    let (net, port, to) =
        if over_v6 { (2, PortId(3), mac(2, 7)) } else { (1, PortId(0), mac(1, 7)) };
    let frame = match is_v6 {
        false => Datagram::to([10, 0, net as u8, 7]).frame(),
        true => Packet6::udp(inside(net, 7), (1000, 2000), 18).frame(),
    };
    (frame, port, to)
}

#[test]
fn either_family_inside_over_either_outside() {
    for (is_v6, over_v6) in [(false, false), (false, true), (true, false), (true, true)] {
        let (mut a, mut b) = (Host::dual_a(), Host::dual_b());
        let (frame, arrives_at, to) = ways(is_v6, over_v6);
        for round in 0..3 {
            let mut padded = frame.clone();
            padded.resize(frame.len() + round * 7, 0xee);
            let (port, outer) = a.send(RED, &padded).unwrap();
            let overhead = if over_v6 { 70 } else { 50 };
            assert_eq!((port, outer.len()), (UPLINK, frame.len() + overhead));
            if over_v6 {
                assert_eq!(upper_sum(&outer[14..]), 0xffff, "a real checksum");
                assert_ne!(outer[60..62], [0, 0]);
                assert!(u16::from_be_bytes([outer[54], outer[55]]) >= 0xc000);
            }
            let (port, received) = b.send(UPLINK, &outer).unwrap();
            assert_eq!(port, arrives_at);
            // The hop is counted, the Ethernet header written, the rest as it was.
            let mut want = frame.clone();
            want[..12].copy_from_slice(&[to.0, GATEWAY_MAC.0].concat());
            if is_v6 {
                want[21] -= 1;
            } else {
                edit_ip(&mut want, 14, |ip| ip[8] -= 1);
            }
            assert_eq!(received, want, "{is_v6} {over_v6}");
        }
        let counters = a.switch.counters();
        assert_eq!((counters.hits.get(), counters.misses.get()), (2, 1));
    }
}

#[test]
fn any_ipv6_packet_crosses_both_underlays_unchanged() {
    let mut hosts = (Host::dual_a(), Host::dual_b());
    bolero::check!().with_type::<(u16, u16, u8, u8, u16, bool)>().for_each(
        |&(from, to, class, hop_limit, bytes, over_v6)| {
            let net = if over_v6 { 2 } else { 1 };
            let bytes = usize::from(bytes) % 8800;
            let udp = Packet6::udp(inside(net, 7), (from, to), bytes);
            let sent = Packet6 { class, hop_limit: hop_limit.max(2), ..udp };
            let (_, outer) = hosts.0.send(RED, &sent.frame()).unwrap();
            let outer_class = if over_v6 { outer[14] << 4 | outer[15] >> 4 } else { outer[15] };
            assert_eq!(outer_class, ecn::of_tos(class), "ECN, and no DSCP");
            if over_v6 {
                assert_eq!(upper_sum(&outer[14..]), 0xffff);
            }
            let (_, received) = hosts.1.send(UPLINK, &outer).unwrap();
            let want = Packet6 { hop_limit: sent.hop_limit - 1, ..sent };
            assert_eq!(received[14..], want.bytes());
        },
    );
}

#[test]
fn tenants_of_one_host_and_vpcs_apart() {
    let mut host = Host::dual_a();
    let to_neighbour = Packet6::udp(inside(0, 3), (1, 2), 10).frame();
    let (port, bytes) = host.send(RED, &to_neighbour).unwrap();
    assert_eq!((port, &bytes[..6], bytes[21]), (RED_TOO, &mac(0, 3).0[..], 63));
    // fd00::3 exists in red only.
    host.drops(BLUE, &sent_by(mac(9, 2), to_neighbour), DropReason::NoRoute);
    let from_far = Packet6 { source: inside(2, 7), ..Packet6::udp(inside(0, 2), (1, 2), 10) };
    let inner = framed6(GATEWAY_MAC, GATEWAY_MAC, &from_far.with_checksum(6).bytes());
    assert_eq!(host.send(UPLINK, &tunnelled6(100, &inner)).unwrap().0, RED);
    assert_eq!(host.send(UPLINK, &tunnelled6(200, &inner)).unwrap().0, BLUE);
    assert_eq!(host.send(UPLINK, &tunnelled(100, &inner)).unwrap().0, RED, "over either");
    host.drops(UPLINK, &tunnelled6(300, &inner), DropReason::UnknownVni);
    // What left one tunnel never enters another.
    let onward = Packet6 { source: inside(2, 7), ..Packet6::udp(inside(1, 7), (1, 2), 10) };
    let onward = framed6(GATEWAY_MAC, GATEWAY_MAC, &onward.bytes());
    host.drops(UPLINK, &tunnelled6(100, &onward), DropReason::NoRoute);
}

#[test]
fn congestion_marks_and_dscp_through_both_tunnels() {
    for over_v6 in [false, true] {
        for inner in 0..4 {
            for outer in 0..4 {
                let packet = Packet6 {
                    source: inside(1, 7),
                    class: 0xb8 | inner,
                    ..Packet6::udp(inside(0, 2), (1, 2), 10)
                };
                let packet = packet.with_checksum(6);
                let frame = framed6(GATEWAY_MAC, GATEWAY_MAC, &packet.bytes());
                let mut bytes =
                    if over_v6 { tunnelled6(100, &frame) } else { tunnelled(100, &frame) };
                match over_v6 {
                    true => bytes[15] |= outer << 4,
                    false => edit_ip(&mut bytes, 14, |ip| ip[1] = outer),
                }
                let got = Host::dual_a().send(UPLINK, &bytes);
                match ecn::decapsulate(inner, outer) {
                    None => assert_eq!(got, Err(Verdict::Drop(DropReason::EcnInvalid))),
                    Some(ecn) => {
                        let want = Packet6 { class: 0xb8 | ecn, ..packet };
                        assert_eq!(got.unwrap().1[14..], want.bytes());
                    }
                }
            }
        }
    }
    for (dscp, want) in [(Dscp::Fixed(0), 0b10), (Dscp::Copy, 0xba), (Dscp::Fixed(63), 0xfe)] {
        let mut plan = dual_a();
        plan.vpcs[0].dscp = dscp;
        let mut host = Host::new(dual_tables_a(&plan));
        for (is_v6, over_v6) in [(false, false), (false, true), (true, false), (true, true)] {
            let (mut frame, ..) = ways(is_v6, over_v6);
            match is_v6 {
                true => (frame[14], frame[15]) = (0x6b, 0xa0),
                false => edit_ip(&mut frame, 14, |ip| ip[1] = 0xba),
            }
            let (_, outer) = host.send(RED, &frame).unwrap();
            let tos = if over_v6 { outer[14] << 4 | outer[15] >> 4 } else { outer[15] };
            assert_eq!(tos, want, "{dscp:?}");
            if !over_v6 {
                assert!(Ipv4::parse(&outer[14..], outer.len()).is_ok());
            }
        }
    }
}

#[test]
fn outer_headers_of_ipv6() {
    let inner = Datagram { source: [10, 0, 2, 7], ..Datagram::to([10, 0, 0, 2]) };
    let right = tunnelled6(100, &framed(GATEWAY_MAC, GATEWAY_MAC, &inner.packet()));
    let mut host = Host::dual_a();
    assert!(host.send(UPLINK, &right).is_ok());
    let mut byte = |at: usize, value: u8, reason| {
        let mut frame = right.clone();
        frame[at] = value;
        host.drops(UPLINK, &frame, reason);
    };
    byte(14, 0x40, DropReason::Ipv6Header);
    byte(18, 0xff, DropReason::Ipv6Header);
    byte(20, 44, DropReason::OuterFragment);
    byte(20, 6, DropReason::NotTunnelled);
    byte(20, 0, DropReason::NotTunnelled);
    byte(53, 0x77, DropReason::NotOurVtep);
    byte(57, 0xb6, DropReason::NotTunnelled);
    byte(58, 0xff, DropReason::VxlanMalformed);
    byte(61, right[61] ^ 1, DropReason::UdpChecksum);
    byte(right.len() - 1, 0, DropReason::UdpChecksum);
    let mut stranger = right.clone();
    stranger[37] = 0x77;
    // The sum stays right: what the source gained the checksum loses.
    let checksum = u16::from_be_bytes([right[60], right[61]]);
    let changed = outboard_wire::checksum::update(checksum, 2, 0x77);
    stranger[60..62].copy_from_slice(&changed.to_be_bytes());
    host.drops(UPLINK, &stranger, DropReason::UnknownVtep);
    // 0.0.0.1 is no far end, though a far end of IPv6 is called 1.
    let mut zero = inner.tunnelled(100);
    edit_ip(&mut zero, 14, |ip| ip[12..16].copy_from_slice(&[0, 0, 0, 1]));
    host.drops(UPLINK, &zero, DropReason::UnknownVtep);
    for len in 54..right.len() {
        assert!(host.send(UPLINK, &right[..len]).is_err(), "cut to {len}");
    }
}

#[test]
fn a_tunnel_without_checksum_is_refused_unless_allowed() {
    let inner = Datagram { source: [10, 0, 2, 7], ..Datagram::to([10, 0, 0, 2]) };
    let mut frame = tunnelled6(100, &framed(GATEWAY_MAC, GATEWAY_MAC, &inner.packet()));
    frame[60..62].fill(0);
    Host::dual_a().drops(UPLINK, &frame, DropReason::ZeroChecksum);
    let mut plan = dual_a();
    if let Role::Uplink { zero_checksum6, .. } = &mut plan.ports[2].role {
        *zero_checksum6 = true;
    }
    let mut host = Host::new(dual_tables_a(&plan));
    assert!(host.send(UPLINK, &frame).is_ok());
    frame[61] = 1;
    host.drops(UPLINK, &frame, DropReason::UdpChecksum);
}

#[test]
fn checksums_over_many_frames() {
    let (mut a, mut b) = (Host::dual_a(), Host::dual_b());
    for bytes in [0, 1, 2, 63, 1400, 3700, 3701, 3702, 7800, 7801, 8700] {
        let sent = Packet6::udp(inside(2, 7), (1, 2), bytes);
        let (_, outer) = a.send(RED, &sent.frame()).unwrap();
        assert_eq!(upper_sum(&outer[14..]), 0xffff, "{bytes}");
        assert!(b.send(UPLINK, &outer).is_ok());
    }
}

#[test]
fn extension_headers_and_fragments() {
    let mut host = Host::dual_a();
    let udp = Packet6::udp(inside(1, 7), (1000, 2000), 18);
    let behind = |next_header, headers: &[u8]| {
        let payload = [headers, &udp.payload].concat();
        Packet6 { next_header, payload, ..udp.clone() }
    };
    // Hop-by-hop, destination options, routing: the ports behind them make the flow.
    let mut ports = std::collections::BTreeSet::new();
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    for packet in [
        udp.clone(),
        behind(ipv6::HOP_BY_HOP, &options(17)),
        behind(ipv6::HOP_BY_HOP, &[options(60), options(43), options(17)].concat()),
    ] {
        let (_, outer) = host.send(RED, &packet.frame()).unwrap();
        assert_eq!(outer[64..][..40], Packet6 { hop_limit: 63, ..packet }.bytes()[..40]);
        ports.insert([outer[34], outer[35]]);
    }
    assert_eq!((ports.len(), host.switch.counters().misses.get()), (1, 1), "one flow");
    // Every fragment takes one path, and the first is no other flow than the rest.
    let mut ports = std::collections::BTreeSet::new();
    for (field, next) in [(1_u16, 17), (1448 | 1, 17), (2896, 17)] {
        let [high, low] = field.to_be_bytes();
        let piece = behind(ipv6::FRAGMENT, &[next, 0, high, low, 0, 0, 0, 9]);
        let (_, outer) = host.send(RED, &piece.frame()).unwrap();
        ports.insert([outer[34], outer[35]]);
    }
    assert_eq!((ports.len(), host.switch.counters().misses.get()), (1, 2));
    let nine: Vec<u8> = (0..9).flat_map(|_| options(60)).collect();
    for bad in [
        behind(ipv6::DESTINATION_OPTIONS, &nine),
        behind(ipv6::DESTINATION_OPTIONS, &[17, 255]),
        behind(ipv6::ROUTING, &[0, 0, 0, 0, 0, 0, 0, 0]),
        behind(ipv6::FRAGMENT, &[44, 0, 0, 1, 0, 0, 0, 9]),
    ] {
        host.drops(RED, &bad.frame(), DropReason::Ipv6Extensions);
    }
    let esp = behind(50, &[1, 2, 3, 4]);
    assert!(host.send(RED, &esp.frame()).is_ok(), "an unknown protocol is carried");
}

#[test]
fn leaked_checksums_of_ipv6_are_named() {
    let mut host = Host::dual_a();
    let mut packet = Packet6::udp(inside(1, 7), (7, 8), 18);
    let (from, to) = (packet.source.octets(), packet.destination.octets());
    let pseudo = Checksum::pseudo_header6(from, to, ipv4::UDP, packet.payload.len() as u32);
    packet.payload[6..8].copy_from_slice(&pseudo.folded().to_be_bytes());
    host.drops(RED, &packet.frame(), DropReason::PartialChecksum);
    assert!(host.send_at(1 << TICK_SHIFT, RED, &packet.with_checksum(6).frame()).is_ok());
}

#[test]
fn headers_and_destinations_of_ipv6() {
    let mut plan = dual_a();
    let all = IpPrefix::new(Ipv6Addr::UNSPECIFIED.into(), 0).unwrap();
    plan.vpcs[0].routes.push(Route { to: all, via: VTEP_B.into(), mac: GATEWAY_MAC });
    let mut host = Host::new(dual_tables_a(&plan));
    let to = |text: &str| Packet6::udp(text.parse().unwrap(), (1, 2), 18);
    assert!(host.send(RED, &to("2001:db8:9::1").frame()).is_ok());
    for (text, reason) in [
        ("::", DropReason::NoRoute),
        ("::1", DropReason::NoRoute),
        ("::ffff:10.0.0.3", DropReason::NoRoute),
        ("fe80::77", DropReason::NoRoute),
        ("ff02::fb", DropReason::Multicast),
        ("ff0e::1", DropReason::Multicast),
        ("fd00::1", DropReason::ToGateway),
    ] {
        host.drops(RED, &to(text).frame(), reason);
    }
    let right = to("fd00:0:0:1::7").frame();
    for (at, value, reason) in [
        (14, 0x50, DropReason::Ipv6Header),
        (19, 0xff, DropReason::Ipv6Header),
        (0, 0x04, DropReason::NotGateway),
        (21, 1, DropReason::TtlExceeded),
        (21, 0, DropReason::TtlExceeded),
    ] {
        let mut frame = right.clone();
        frame[at] = value;
        host.drops(RED, &frame, reason);
    }
    for len in 14..54 {
        host.drops(RED, &right[..len], DropReason::TooShort);
    }
    let mut group = right.clone();
    group[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
    host.drops(RED, &group, DropReason::Multicast);
}

#[test]
fn nobody_speaks_from_anothers_address() {
    let mut host = Host::dual_a();
    let right = Packet6::udp(inside(1, 7), (1, 2), 18);
    host.drops(RED, &sent_by(mac(0, 3), right.frame()), DropReason::SpoofedMac);
    host.drops(RED, &sent_by(mac(0, 3), Datagram::NEW.frame()), DropReason::SpoofedMac);
    let other = Datagram { source: [10, 0, 0, 3], ..Datagram::NEW };
    host.drops(RED, &other.frame(), DropReason::SpoofedSource);
    for source in ["fd00::3", "fd00::1", "fe80::1", "::", "::1", "2001:db8::1"] {
        let packet = Packet6 { source: source.parse().unwrap(), ..right.clone() };
        host.drops(RED, &packet.frame(), DropReason::SpoofedSource);
    }
    // A tenant without an address of a family sends none of it.
    let mut plan = dual_a();
    if let Role::Tenant(tenant) = &mut plan.ports[0].role {
        tenant.address = None;
    }
    let mut host = Host::new(dual_tables_a(&plan));
    host.drops(RED, &Datagram::NEW.frame(), DropReason::SpoofedSource);
    assert!(host.send(RED, &right.frame()).is_ok());
}
