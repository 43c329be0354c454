//! What the gateway answers on the link over IPv6, and what it does not.

use super::dual::*;
use super::*;
use outboard_wire::nd::{self, Advertisement};
use std::net::Ipv6Addr;

const OWN: Ipv6Addr = inside(0, 2);

fn gateway_link_local() -> Ipv6Addr {
    nd::link_local(GATEWAY_MAC)
}

/// Who has `target`? As fd00::2 asks it.
fn solicitation(source: Ipv6Addr, target: Ipv6Addr, mac: Option<Mac>) -> Packet6 {
    let mut message = vec![0; 24];
    message[0] = nd::NEIGHBOUR_SOLICITATION;
    message[8..].copy_from_slice(&target.octets());
    if let Some(mac) = mac {
        message.extend([1, 1]);
        message.extend(mac.0);
    }
    let packet = Packet6::icmp(nd::solicited_node(target), &message);
    Packet6 { source, ..packet }.with_checksum(2)
}

fn ask(target: Ipv6Addr) -> Packet6 {
    solicitation(OWN, target, Some(mac(0, 2)))
}

/// The advertisement in a frame whose headers are right.
#[track_caller]
fn told(frame: &[u8], from: Ipv6Addr, to: Ipv6Addr, to_mac: Mac) -> Advertisement {
    let header = Ethernet::parse(frame).unwrap();
    assert_eq!((header.destination, header.source), (to_mac, GATEWAY_MAC));
    let ip = outboard_wire::Ipv6::parse(&frame[14..], frame.len() - 14).unwrap();
    assert_eq!((ip.source, ip.destination, ip.hop_limit), (from, to, 255));
    assert_eq!((ip.total_len(), upper_sum(&frame[14..])), (frame.len() - 14, 0xffff));
    Advertisement::parse(&frame[54..]).unwrap()
}

#[test]
fn neighbours_are_where_the_gateway_is() {
    let mut host = Host::dual_a();
    let unresolved = IpPrefix::new(inside(8, 0).into(), 64).unwrap();
    for (target, router) in [
        (GATEWAY6, true),
        (gateway_link_local(), true),
        (inside(0, 3), false),
        (inside(1, 200), false),
        (inside(2, 1), false),
    ] {
        for source_mac in [Some(mac(0, 2)), None] {
            let frame = solicitation(OWN, target, source_mac).frame();
            let (port, answer) = host.send(RED, &frame).unwrap();
            assert_eq!(port, RED);
            let want = Advertisement {
                target,
                mac: GATEWAY_MAC,
                router,
                solicited: true,
                overrides: router,
            };
            assert_eq!(told(&answer, target, OWN, mac(0, 2)), want);
        }
    }
    // Asked straight, as to confirm, and from a link-local address.
    let mut straight = ask(GATEWAY6);
    (straight.source, straight.destination) = ("fe80::5".parse().unwrap(), GATEWAY6);
    let (_, answer) = host.send(RED, &straight.with_checksum(2).frame()).unwrap();
    told(&answer, GATEWAY6, "fe80::5".parse().unwrap(), mac(0, 2));

    host.drops(RED, &ask(inside(7, 1)).frame(), DropReason::NoRoute);
    host.drops(RED, &ask(OWN).frame(), DropReason::NdIgnored);
    host.drops(RED, &ask("fe80::77".parse().unwrap()).frame(), DropReason::NdIgnored);
    assert!(!unresolved.contains(OWN.into()));
}

#[test]
fn addresses_in_use_are_defended() {
    let mut host = Host::dual_a();
    let detect = |target| solicitation(Ipv6Addr::UNSPECIFIED, target, None);
    for (target, router) in [(GATEWAY6, true), (gateway_link_local(), true), (inside(0, 3), false)]
    {
        let (_, answer) = host.send(RED, &detect(target).frame()).unwrap();
        let all = nd::multicast_mac(nd::ALL_NODES);
        let told = told(&answer, target, nd::ALL_NODES, all);
        assert_eq!((told.solicited, told.router), (false, router));
    }
    // Its own, one that nobody has, one that only a route covers, a link-local one.
    for free in [OWN, inside(0, 99), inside(1, 9), "fe80::9".parse().unwrap()] {
        host.drops(RED, &detect(free).frame(), DropReason::NdIgnored);
    }
    let with_mac = solicitation(Ipv6Addr::UNSPECIFIED, inside(0, 3), Some(mac(0, 2)));
    host.drops(RED, &with_mac.frame(), DropReason::NdMalformed);
    let elsewhere = Packet6 { destination: nd::ALL_NODES, ..detect(inside(0, 3)) };
    host.drops(RED, &elsewhere.with_checksum(2).frame(), DropReason::NdMalformed);
}

#[test]
fn discovery_that_is_wrong_or_anothers() {
    let mut host = Host::dual_a();
    let right = ask(GATEWAY6);
    assert!(host.send(RED, &right.frame()).is_ok());
    let far = Packet6 { hop_limit: 254, ..right.clone() };
    host.drops(RED, &far.frame(), DropReason::NdMalformed);
    let mut damaged = right.clone();
    damaged.payload[3] ^= 1;
    host.drops(RED, &damaged.frame(), DropReason::NdMalformed);
    let other = solicitation(OWN, GATEWAY6, Some(mac(0, 3)));
    host.drops(RED, &other.frame(), DropReason::SpoofedNeighbour);
    let from_other = solicitation(inside(0, 3), GATEWAY6, None);
    host.drops(RED, &from_other.frame(), DropReason::SpoofedSource);
    let mut zero = right.clone();
    zero.payload[25] = 0;
    host.drops(RED, &zero.with_checksum(2).frame(), DropReason::NdMalformed);
    // Advertisements: its own is nobody's business, others' are a lie.
    let advertise = |target, mac| {
        let told = Advertisement { target, mac, router: false, solicited: false, overrides: true };
        Packet6::icmp(nd::ALL_NODES, &told.emit()).frame()
    };
    host.drops(RED, &advertise(OWN, mac(0, 2)), DropReason::NdIgnored);
    for (target, mac) in [
        (GATEWAY6, mac(0, 2)),
        (gateway_link_local(), mac(0, 2)),
        (inside(0, 3), mac(0, 2)),
        (OWN, mac(0, 3)),
    ] {
        host.drops(RED, &advertise(target, mac), DropReason::SpoofedNeighbour);
    }
    // Multicast listener reports, mDNS, fragments of discovery (RFC 6980).
    let report = Packet6::icmp("ff02::16".parse().unwrap(), &[143, 0, 0, 0, 0, 0, 0, 0]);
    host.drops(RED, &report.frame(), DropReason::Multicast);
    let mdns = Packet6::udp("ff02::fb".parse().unwrap(), (5353, 5353), 20);
    host.drops(RED, &mdns.frame(), DropReason::Multicast);
    let mut piece = right.clone();
    piece.next_header = ipv6::FRAGMENT;
    piece.payload.splice(..0, [ipv6::ICMP, 0, 0, 0, 0, 0, 0, 1]);
    host.drops(RED, &piece.frame(), DropReason::NdMalformed);
}

#[test]
fn routers_are_asked() {
    let mut host = Host::dual_a();
    let all_routers = "ff02::2".parse().unwrap();
    let asks = Packet6::icmp(all_routers, &[133, 0, 0, 0, 0, 0, 0, 0]);
    for (source, to) in [
        (OWN, OWN),
        ("fe80::5".parse().unwrap(), "fe80::5".parse().unwrap()),
        (Ipv6Addr::UNSPECIFIED, nd::ALL_NODES),
    ] {
        let asks = Packet6 { source, ..asks.clone() }.with_checksum(2);
        let (port, answer) = host.send(RED, &asks.frame()).unwrap();
        assert_eq!((port, answer.len()), (RED, 14 + 40 + 64));
        assert_eq!(upper_sum(&answer[14..]), 0xffff);
        let ip = outboard_wire::Ipv6::parse(&answer[14..], 104).unwrap();
        assert_eq!((ip.source, ip.destination, ip.hop_limit), (gateway_link_local(), to, 255));
        // Lifetime 9000 s; the gateway's MAC, the tenant's MTU, fd00::/64 on-link.
        assert_eq!(answer[54..62], [134, 0, answer[56], answer[57], 64, 0, 0x23, 0x28]);
        assert_eq!(answer[72..78], GATEWAY_MAC.0);
        assert_eq!(answer[78..86], [5, 1, 0, 0, 0, 0, 0x22, 0xf6]);
        assert_eq!(answer[86..90], [3, 4, 64, 0x80]);
        assert_eq!(answer[102..118], inside(0, 0).octets());
    }
    let mut short = asks;
    short.payload.truncate(6);
    host.drops(RED, &short.with_checksum(2).frame(), DropReason::NdMalformed);
}

#[test]
fn the_gateway_answers_echo() {
    let mut host = Host::dual_a();
    let request = [128, 0, 0, 0, 0x12, 0x34, 0, 1, b'a', b'b', b'c'];
    for (source, gateway) in [
        (OWN, GATEWAY6),
        (OWN, gateway_link_local()),
        ("fe80::5".parse().unwrap(), gateway_link_local()),
    ] {
        let ping = Packet6 { source, hop_limit: 1, ..Packet6::icmp(gateway, &request) };
        let (port, pong) = host.send(RED, &ping.with_checksum(2).frame()).unwrap();
        assert_eq!((port, pong.len()), (RED, 14 + 40 + 11));
        let ip = outboard_wire::Ipv6::parse(&pong[14..], 51).unwrap();
        assert_eq!((ip.source, ip.destination, ip.hop_limit), (gateway, source, 64));
        assert_eq!((pong[54], upper_sum(&pong[14..])), (129, 0xffff));
        assert_eq!(pong[58..], request[4..]);
    }
    let other = Packet6::icmp(GATEWAY6, &[130, 0, 0, 0, 0, 0, 0, 0]);
    host.drops(RED, &other.frame(), DropReason::ToGateway);
    // Over many frames, and in pieces.
    let large: Vec<u8> = request.iter().copied().chain((0..6000).map(|n| n as u8)).collect();
    let (_, pong) = host.send(RED, &Packet6::icmp(GATEWAY6, &large).frame()).unwrap();
    assert_eq!((pong.len(), upper_sum(&pong[14..])), (54 + large.len(), 0xffff));
    let mut piece = Packet6::icmp(GATEWAY6, &request);
    piece.next_header = ipv6::FRAGMENT;
    piece.payload.splice(..0, [ipv6::ICMP, 0, 0x05, 0xa8, 0, 0, 0, 1]);
    let (_, back) = host.send(RED, &piece.frame()).unwrap();
    assert_eq!(back[54..], piece.payload, "data only: as it came");
}

#[test]
fn a_bridging_far_end_asks_for_tenants_here() {
    let mut host = Host::dual_a();
    let asker = (inside(2, 9), mac(0, 0x77));
    let question = |target| {
        let packet = solicitation(asker.0, target, Some(asker.1));
        framed6(nd::multicast_mac(packet.destination), asker.1, &packet.bytes())
    };
    for over_v6 in [false, true] {
        let tunnel = |frame: &[u8]| match over_v6 {
            true => tunnelled6(100, frame),
            false => tunnelled(100, frame),
        };
        let (port, answer) = host.send(UPLINK, &tunnel(&question(OWN))).unwrap();
        let at = if over_v6 { 70 } else { 50 };
        assert_eq!((port, answer.len()), (UPLINK, at + 86));
        let told = told(&answer[at..], OWN, asker.0, asker.1);
        assert_eq!((told.target, told.mac, told.solicited), (OWN, GATEWAY_MAC, true));
        assert_eq!(answer[..12], [mac(1, 2).0, mac(1, 1).0].concat());
        if over_v6 {
            assert_eq!(upper_sum(&answer[14..]), 0xffff);
            assert_eq!(answer[38..54], VTEP6_B.octets());
        } else {
            assert!(Ipv4::parse(&answer[14..], answer.len() - 14).is_ok());
            assert_eq!(answer[30..34], VTEP_B.octets());
        }
        for other in [inside(0, 99), inside(2, 1), GATEWAY6] {
            host.drops(UPLINK, &tunnel(&question(other)), DropReason::NdIgnored);
        }
        let report = Packet6::icmp("ff02::16".parse().unwrap(), &[143, 0, 0, 0, 0, 0, 0, 0]);
        host.drops(UPLINK, &tunnel(&report.frame()), DropReason::Multicast);
    }
}

#[test]
fn a_tenant_is_greeted() {
    let mut host = Host::dual_a();
    let frames: Vec<Vec<u8>> = host
        .switch
        .greet(RED, &mut host.free)
        .into_iter()
        .map(|packet| {
            assert_eq!(packet.ingress, RED);
            let chain = packet.into_chain();
            let mut bytes = vec![0; chain.bytes()];
            chain.copy_to(&mut bytes).unwrap();
            chain.free(&mut host.free);
            bytes
        })
        .collect();
    let [arp, neighbour, router] = &frames[..] else { panic!("{} frames", frames.len()) };
    let announced = outboard_wire::Arp::parse(&arp[14..]).unwrap();
    assert_eq!((announced.sender_mac, announced.sender), (GATEWAY_MAC, announced.target));
    assert_eq!((&arp[..6], announced.sender), (&[0xff; 6][..], Ipv4Addr::new(10, 0, 0, 1)));
    let all = nd::multicast_mac(nd::ALL_NODES);
    let told = told(neighbour, GATEWAY6, nd::ALL_NODES, all);
    assert_eq!((told.target, told.router, told.overrides), (GATEWAY6, true, true));
    assert_eq!((router[54], upper_sum(&router[14..])), (134, 0xffff));
    // Only what the tenant has; nothing for an uplink, an unknown port, or without frames.
    for port in [UPLINK, PortId(99)] {
        assert!(host.switch.greet(port, &mut host.free).is_empty());
    }
    let mut none = FreeList::with_capacity(0);
    assert!(host.switch.greet(RED, &mut none).is_empty());
    let mut four = Host::a();
    let packets = four.switch.greet(RED, &mut four.free);
    assert_eq!(packets.len(), 1);
    packets.into_iter().for_each(|packet| packet.into_chain().free(&mut four.free));
}
