//! What senders are told of their packets.

use super::dual::*;
use super::*;
use crate::switch::meter::{BURST_TOKENS, INTERVAL_NS};
use outboard_wire::{Ipv6, icmp, icmpv6};

/// Checks a message of the gateway to 10.0.0.2 or fd00::2 about a frame; type, code, and the rest
/// of its header.
#[track_caller]
fn message(got: Result<(PortId, Vec<u8>), Verdict>, about: &[u8]) -> (u8, u8, u32) {
    let (port, frame) = got.unwrap();
    assert_eq!(port, RED);
    assert_eq!(frame[..12], [mac(0, 2).0, GATEWAY_MAC.0].concat());
    let is_v6 = frame[12..14] == [0x86, 0xdd];
    let at = if is_v6 { 54 } else { 34 };
    if is_v6 {
        let ip = Ipv6::parse(&frame[14..], frame.len() - 14).unwrap();
        assert_eq!((ip.source, ip.destination), (GATEWAY6, inside(0, 2)));
        assert_eq!((ip.next_header, ip.total_len()), (ipv6::ICMP, frame.len() - 14));
        assert_eq!(upper_sum(&frame[14..]), 0xffff);
    } else {
        let ip = Ipv4::parse(&frame[14..], frame.len() - 14).unwrap();
        assert_eq!(ip.source, Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(ip.destination, Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!((ip.protocol, usize::from(ip.total_len)), (ipv4::ICMP, frame.len() - 14));
        let mut sum = Checksum::new();
        sum.add(&frame[34..]);
        assert_eq!(sum.folded(), 0xffff);
    }
    let most = if is_v6 { 1280 } else { 576 };
    let whole = (about.len() - 14).min(most - (at - 14) - 8);
    assert_eq!(frame[at + 8..], about[14..14 + whole], "quotes the packet as it was");
    let rest = u32::from_be_bytes([frame[at + 4], frame[at + 5], frame[at + 6], frame[at + 7]]);
    (frame[at], frame[at + 1], rest)
}

#[test]
fn hops_routes_and_gateway_over_ipv4() {
    let mut host = Host::dual_a();
    for (datagram, want) in [
        (Datagram { ttl: 1, ..Datagram::NEW }, (11, 0, 0)),
        (Datagram { ttl: 1, ..Datagram::to([10, 0, 0, 3]) }, (11, 0, 0)),
        (Datagram::to([10, 0, 7, 1]), (3, icmp::NET, 0)),
        (Datagram::to([10, 0, 9, 1]), (3, icmp::HOST, 0)),
        (Datagram::to([10, 0, 0, 1]), (3, icmp::PORT, 0)),
        (Datagram { ttl: 1, payload: 2000, ..Datagram::NEW }, (11, 0, 0)),
    ] {
        let frame = datagram.frame();
        assert_eq!(message(host.send(RED, &frame), &frame), want);
    }
    let mut odd = Datagram::to([10, 0, 0, 1]).frame();
    edit_ip(&mut odd, 14, |ip| ip[9] = 47);
    assert_eq!(message(host.send(RED, &odd), &odd), (3, icmp::PROTOCOL, 0));
    assert_eq!(host.switch.counters().errors_sent.get(), 7);
}

#[test]
fn hops_routes_and_gateway_over_ipv6() {
    let mut host = Host::dual_a();
    let to = |destination| Packet6::udp(destination, (33_434, 33_434), 18);
    for (packet, want) in [
        (Packet6 { hop_limit: 1, ..to(inside(1, 7)) }, (3, 0, 0)),
        (Packet6 { hop_limit: 0, ..to(inside(2, 7)) }, (3, 0, 0)),
        (Packet6 { hop_limit: 1, ..to(inside(0, 3)) }, (3, 0, 0)),
        (to(inside(7, 1)), (1, icmpv6::NO_ROUTE, 0)),
        (to(GATEWAY6), (1, icmpv6::PORT, 0)),
        (Packet6 { hop_limit: 1, ..Packet6::udp(inside(1, 7), (1, 2), 3000) }, (3, 0, 0)),
    ] {
        let frame = packet.frame();
        assert_eq!(message(host.send(RED, &frame), &frame), want);
    }
}

#[test]
fn what_is_too_big_is_told_what_fits() {
    let mut host = Host::dual_a();
    let sized4 = |net: u8, ip_len: usize| {
        let frame = Datagram { payload: ip_len - 28, ..Datagram::to([10, 0, net, 7]) };
        Datagram { fragment: ipv4::DONT_FRAGMENT, ..frame }.frame()
    };
    let sized6 =
        |net: u16, ip_len: usize| Packet6::udp(inside(net, 7), (1, 2), ip_len - 48).frame();
    for (net, fits) in [(1, 8950), (2, 8930)] {
        assert!(host.send(RED, &sized4(net, fits)).is_ok());
        let past = sized4(net, fits + 1);
        let told = message(host.send(RED, &past), &past);
        assert_eq!(told, (3, icmp::TOO_BIG, fits as u32));
        assert!(host.send(RED, &sized6(net.into(), fits)).is_ok());
        let past = sized6(net.into(), fits + 1);
        assert_eq!(message(host.send(RED, &past), &past), (icmpv6::TOO_BIG, 0, fits as u32));
        let whole = Datagram { payload: 8950, ..Datagram::to([10, 0, net, 7]) };
        host.drops(RED, &whole.frame(), DropReason::NotFragmented);
    }
    // A tenant here with a smaller MTU.
    let mut plan = dual_a();
    if let Role::Tenant(tenant) = &mut plan.ports[3].role {
        tenant.mtu = 1400;
    }
    let mut host = Host::new(dual_tables_a(&plan));
    let past = Packet6::udp(inside(0, 3), (1, 2), 1401 - 48).frame();
    assert_eq!(message(host.send(RED, &past), &past), (icmpv6::TOO_BIG, 0, 1400));
}

#[test]
fn a_path_too_small_for_ipv6_is_not_told_of() {
    for (path_mtu, told) in [(1330, true), (1329, false)] {
        let hop = NextHop::Resolved {
            port: UPLINK,
            src_ip: VTEP_A.into(),
            src_mac: mac(1, 1),
            dst_mac: mac(1, 2),
            path_mtu,
        };
        let mut host = Host::new(Arc::new(Tables::new(&dual_a(), &[(VTEP_B.into(), hop)])));
        let frame = Packet6::udp(inside(1, 7), (1, 2), 1400).frame();
        match told {
            true => assert_eq!(message(host.send(RED, &frame), &frame), (2, 0, 1280)),
            false => host.drops(RED, &frame, DropReason::TooBig),
        }
        assert_eq!(host.switch.tables().path_mtu(VTEP_B.into()), Some(path_mtu));
    }
}

#[test]
fn a_far_sender_is_told_through_the_tunnel() {
    let mut plan = dual_a();
    if let Role::Tenant(tenant) = &mut plan.ports[0].role {
        tenant.mtu = 1400;
    }
    let mut host = Host::new(dual_tables_a(&plan));
    let source = inside(2, 7);
    let large = Packet6 { source, ..Packet6::udp(inside(0, 2), (1, 2), 2000) };
    let inner = framed6(GATEWAY_MAC, GATEWAY_MAC, &large.with_checksum(6).bytes());
    let (port, outer) = host.send(UPLINK, &tunnelled6(100, &inner)).unwrap();
    assert_eq!((port, upper_sum(&outer[14..])), (UPLINK, 0xffff));
    let (port, told) = Host::dual_b().send(UPLINK, &outer).unwrap();
    assert_eq!((port, upper_sum(&told[14..])), (PortId(3), 0xffff));
    assert_eq!((told[21], &told[54..56]), (64, &[icmpv6::TOO_BIG, 0][..]));
    assert_eq!(told[58..62], 1400_u32.to_be_bytes());
    let large = Datagram { source: [10, 0, 1, 7], payload: 2000, ..Datagram::to([10, 0, 0, 2]) };
    let large = Datagram { fragment: ipv4::DONT_FRAGMENT, ..large };
    let (_, outer) = host.send(UPLINK, &large.tunnelled(100)).unwrap();
    let (port, told) = Host::dual_b().send(UPLINK, &outer).unwrap();
    assert_eq!((port, told[22], &told[34..36]), (PortId(0), 64, &[3, 4][..]));
    assert_eq!(told[40..42], 1400_u16.to_be_bytes());
    // Nothing else out of a tunnel is told of.
    let lost = Datagram { source: [10, 0, 1, 7], ..Datagram::to([10, 0, 7, 7]) };
    assert_eq!(host.send(UPLINK, &lost.tunnelled(100)), Err(Verdict::Drop(DropReason::NoRoute)));
}

/// Holds a frame and gives up on it; what its sender gets, or why nothing.
fn held_in_vain(
    host: &mut Host,
    now_ns: u64,
    port: PortId,
    frame: &[u8],
) -> Result<(PortId, Vec<u8>), Verdict> {
    let held = host.send_at(now_ns, port, frame);
    assert!(matches!(held, Err(Verdict::Unresolved(_))), "{held:?}");
    let mut packet = Packet::new(Chain::from_slice(frame, &mut host.free).unwrap(), port);
    let verdict = host.switch.give_up(now_ns, &mut packet, &mut host.free);
    let chain = packet.into_chain();
    assert_eq!(host.free.len() + chain.frames(), host.frames);
    let mut bytes = vec![0; chain.bytes()];
    chain.copy_to(&mut bytes).unwrap();
    chain.free(&mut host.free);
    match verdict {
        Verdict::Forward(port) => Ok((port, bytes)),
        Verdict::Drop(_) | Verdict::Unresolved(_) => Err(verdict),
    }
}

#[test]
fn who_sent_what_was_held_in_vain_is_told() {
    let mut plan = dual_a();
    let over_unresolved = plan.vpcs[0].routes.iter().find(|r| r.via == UNRESOLVED).unwrap();
    let to = IpPrefix::new(inside(8, 0).into(), 64).unwrap();
    let route6 = Route { to, ..*over_unresolved };
    plan.vpcs[0].routes.push(route6);
    let mut host = Host::new(dual_tables_a(&plan));
    for payload in [18, 4000] {
        let frame = Datagram { payload, ..Datagram::to([10, 0, 8, 1]) }.frame();
        let told = held_in_vain(&mut host, 0, RED, &frame);
        assert_eq!(message(told, &frame), (3, icmp::HOST, 0));
        let frame = Packet6::udp(inside(8, 1), (1, 2), payload).frame();
        let told = held_in_vain(&mut host, 0, RED, &frame);
        assert_eq!(message(told, &frame), (1, icmpv6::ADDRESS, 0));
    }
    assert_eq!(host.switch.counters().errors_sent.get(), 4);
    // Not about an error, and no oftener than about anything else.
    let nothing = Err(Verdict::Drop(DropReason::NextHopUnresolved));
    let mut error = Datagram::to([10, 0, 8, 1]).frame();
    edit_ip(&mut error, 14, |ip| ip[9] = ipv4::ICMP);
    error[34..36].copy_from_slice(&[3, 1]);
    assert_eq!(held_in_vain(&mut host, 0, RED, &error), nothing);
    let frame = Datagram::to([10, 0, 8, 1]).frame();
    for _ in 4..BURST_TOKENS {
        assert!(held_in_vain(&mut host, 0, RED, &frame).is_ok());
    }
    assert_eq!(held_in_vain(&mut host, 0, RED, &frame), nothing);
    assert_eq!(host.switch.counters().errors_withheld.get(), 1);
    assert!(held_in_vain(&mut host, INTERVAL_NS, RED, &frame).is_ok());
    // Its port is gone meanwhile.
    plan.ports.truncate(3);
    plan.ports.remove(0);
    host.switch.set_tables(dual_tables_a(&plan));
    let mut packet = Packet::new(Chain::from_slice(&frame, &mut host.free).unwrap(), RED);
    let verdict = host.switch.give_up(INTERVAL_NS << 8, &mut packet, &mut host.free);
    assert_eq!(verdict, Verdict::Drop(DropReason::NextHopUnresolved));
    packet.into_chain().free(&mut host.free);
}

#[test]
fn errors_fragments_and_groups_are_not_told_of() {
    let mut host = Host::dual_a();
    let exceeded = Err(Verdict::Drop(DropReason::TtlExceeded));
    let rest = Datagram { ttl: 1, fragment: 5, ..Datagram::NEW };
    assert_eq!(host.send(RED, &rest.frame()), exceeded);
    let first = Datagram { ttl: 1, fragment: ipv4::MORE_FRAGMENTS, ..Datagram::NEW };
    assert!(host.send(RED, &first.frame()).is_ok(), "the first fragment is");
    for (kind, told) in [(3, false), (5, false), (11, false), (12, false), (8, true), (0, true)] {
        let mut frame = Datagram { ttl: 1, ..Datagram::NEW }.frame();
        edit_ip(&mut frame, 14, |ip| ip[9] = ipv4::ICMP);
        frame[34..36].copy_from_slice(&[kind, 0]);
        assert_eq!(host.send(RED, &frame).is_ok(), told, "ICMP {kind}");
    }
    for (kind, told) in [(1, false), (2, false), (4, false), (137, false), (128, true)] {
        let packet = Packet6::icmp(inside(1, 7), &[kind, 0, 0, 0, 0, 0, 0, 0]);
        let frame = Packet6 { hop_limit: 1, ..packet }.frame();
        assert_eq!(host.send(RED, &frame).is_ok(), told, "ICMPv6 {kind}");
    }
    let mut piece = Packet6 { hop_limit: 1, ..Packet6::udp(inside(1, 7), (1, 2), 8) };
    piece.next_header = ipv6::FRAGMENT;
    piece.payload.splice(..0, [17, 0, 0x05, 0xa8, 0, 0, 0, 1]);
    assert_eq!(host.send(RED, &piece.frame()), exceeded);
    for group in [[224, 0, 0, 1], [255, 255, 255, 255]] {
        assert!(host.send(RED, &Datagram::to(group).frame()).is_err());
    }
}

#[test]
fn each_port_is_told_so_often() {
    let mut host = Host::dual_a();
    let frame = Datagram { ttl: 1, ..Datagram::NEW }.frame();
    let start_ns = 1 << 40;
    for _ in 0..BURST_TOKENS {
        assert!(host.send_at(start_ns, RED, &frame).is_ok());
    }
    let exceeded = Err(Verdict::Drop(DropReason::TtlExceeded));
    assert_eq!(host.send_at(start_ns, RED, &frame), exceeded);
    let from_other = Datagram { source: [10, 0, 0, 3], ttl: 1, ..Datagram::NEW }.frame();
    assert!(host.send_at(start_ns, RED_TOO, &sent_by(mac(0, 3), from_other)).is_ok());
    assert!(host.send_at(start_ns + INTERVAL_NS, RED, &frame).is_ok());
    assert_eq!(host.send_at(start_ns + INTERVAL_NS, RED, &frame), exceeded);
    let counters = host.switch.counters();
    assert_eq!(counters.errors_sent.get(), BURST_TOKENS + 2);
    assert_eq!(counters.errors_withheld.get(), 2);
}
