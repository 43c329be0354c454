//! Two hosts end to end, isolation, congestion marks, ARP, fragments, leaked checksums.

use super::*;
use outboard_wire::{arp, ecn};

#[test]
fn a_packet_crosses_two_hosts_unchanged_but_for_ttl_and_macs() {
    let mut hosts = (Host::a(), Host::b());
    bolero::check!().with_type::<(u16, u16, u8, u8, u16, bool)>().for_each(
        |&(from, to, tos, ttl, payload, more)| {
            let sent = Datagram {
                ports: (from, to),
                tos,
                ttl: ttl.max(2),
                fragment: if more { ipv4::MORE_FRAGMENTS } else { 0 },
                payload: usize::from(payload) % 8900,
                ..Datagram::NEW
            };
            let (port, outer) = hosts.0.send(RED, &sent.frame()).unwrap();
            assert_eq!(port, UPLINK);
            assert_eq!(ecn::of_tos(outer[15]), ecn::of_tos(tos));
            assert_eq!(outer[15] & !0b11, 0, "no DSCP outside");
            let (port, received) = hosts.1.send(UPLINK, &outer).unwrap();
            assert_eq!(port, PortId(0));
            let want = Datagram { ttl: sent.ttl - 1, ..sent };
            assert_eq!(received, framed(mac(1, 7), GATEWAY_MAC, &want.packet()));
        },
    );
}

#[test]
fn vpcs_with_the_same_addresses_never_meet() {
    // Every packet of one VPC, in every order, also when the other's flow is cached.
    let (mut a, mut b) = (Host::a(), Host::b());
    for (tenant, own, vni, delivered) in [
        (RED, mac(0, 2), 100, 0),
        (BLUE, mac(9, 2), 200, 1),
        (RED, mac(0, 2), 100, 0),
        (BLUE, mac(9, 2), 200, 1),
    ] {
        let (_, outer) = a.send(tenant, &sent_by(own, Datagram::NEW.frame())).unwrap();
        assert_eq!(outer[46..49], [0, 0, vni]);
        let (port, received) = b.send(UPLINK, &outer).unwrap();
        assert_eq!(port, PortId(delivered));
        assert_eq!(received[..6], [mac(1, 7), mac(8, 7)][usize::from(delivered)].0);
    }
    // 10.0.0.3 exists in red only.
    let to_neighbour = Datagram::to([10, 0, 0, 3]).frame();
    assert_eq!(a.send(RED, &to_neighbour).unwrap().0, RED_TOO);
    a.drops(BLUE, &sent_by(mac(9, 2), to_neighbour), DropReason::NoRoute);
    let from_far = Datagram { source: [10, 0, 1, 7], ..Datagram::to([10, 0, 0, 3]) };
    assert_eq!(a.send(UPLINK, &from_far.tunnelled(100)).unwrap().0, RED_TOO);
    a.drops(UPLINK, &from_far.tunnelled(200), DropReason::NoRoute);
    // Nor does blue's tenant hear red's packets to the address that both have.
    let to_both = Datagram { source: [10, 0, 1, 7], ..Datagram::to([10, 0, 0, 2]) };
    assert_eq!(a.send(UPLINK, &to_both.tunnelled(100)).unwrap().0, RED);
    assert_eq!(a.send(UPLINK, &to_both.tunnelled(200)).unwrap().0, BLUE);
    // A tenant that is asked for by ARP in one VPC is not there in the other.
    let arp = arp_request([10, 0, 0, 2], [10, 0, 0, 3]);
    assert!(a.send(RED, &arp).is_ok());
    a.drops(BLUE, &sent_by(mac(9, 2), arp), DropReason::NoRoute);
}

#[test]
fn a_tenant_cannot_tunnel_and_a_tunnel_cannot_route() {
    let mut host = Host::a();
    // A whole tunnel packet for another VPC, sent by a tenant: it is an IPv4 packet like others.
    let mut frame = Datagram::to([10, 0, 0, 2]).tunnelled(200);
    frame[..6].copy_from_slice(&GATEWAY_MAC.0);
    host.drops(RED, &frame, DropReason::SpoofedMac);
    let mut frame = sent_by(mac(0, 2), frame);
    host.drops(RED, &frame, DropReason::SpoofedSource);
    edit_ip(&mut frame, 14, |ip| ip[12..16].copy_from_slice(&[10, 0, 0, 2]));
    host.drops(RED, &frame, DropReason::NoRoute);
    // From one tunnel into another.
    let onward = Datagram::to([10, 0, 1, 9]);
    host.drops(UPLINK, &onward.tunnelled(100), DropReason::NoRoute);
    assert!(host.send(RED, &onward.frame()).is_ok(), "a tenant may send there");
    host.drops(UPLINK, &onward.tunnelled(100), DropReason::NoRoute);
    host.drops(UPLINK, &Datagram::to([10, 0, 0, 1]).tunnelled(100), DropReason::ToGateway);
}

#[test]
fn congestion_marks_through_the_tunnel() {
    for inner in 0..4 {
        for outer in 0..4 {
            let datagram = Datagram { tos: 0xb8 | inner, ..Datagram::to([10, 0, 0, 2]) };
            let mut frame = datagram.tunnelled(100);
            edit_ip(&mut frame, 14, |ip| ip[1] = outer);
            let got = Host::a().send(UPLINK, &frame);
            match ecn::decapsulate(inner, outer) {
                None => assert_eq!(got, Err(Verdict::Drop(DropReason::EcnInvalid))),
                Some(ecn) => {
                    let want = Datagram { tos: 0xb8 | ecn, ..datagram }.packet();
                    assert_eq!(got.unwrap().1, framed(mac(0, 2), GATEWAY_MAC, &want));
                }
            }
        }
    }
}

#[test]
fn next_hops_as_the_kernel_knows_them() {
    let mut host = Host::a();
    for _ in 0..2 {
        let verdict = host.send(RED, &Datagram::to([10, 0, 8, 8]).frame()).unwrap_err();
        let Verdict::Unresolved(id) = verdict else { panic!("{verdict:?}") };
        assert_eq!(host.switch.tables().far_end(id), Some(UNRESOLVED.into()));
        assert!((id.0 as usize) < host.switch.tables().next_hops());
        host.drops(RED, &Datagram::to([10, 0, 9, 9]).frame(), DropReason::NoUnderlayRoute);
    }
    assert_eq!(host.switch.tables().far_end(NextHopId(3)), None);
}

fn arp_request(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut frame = framed(Mac::BROADCAST, mac(0, 2), &[0; arp::BYTES]);
    frame[13] = 6;
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&mac(0, 2).0);
    frame[28..32].copy_from_slice(&sender);
    frame[38..42].copy_from_slice(&target);
    frame
}

#[test]
fn arp_that_is_answered_and_arp_that_is_not() {
    let mut host = Host::a();
    let own = [10, 0, 0, 2];
    for target in [[10, 0, 0, 1], [10, 0, 0, 3], [10, 0, 1, 200], [10, 0, 8, 1], [10, 0, 9, 1]] {
        let (port, reply) = host.send(RED, &arp_request(own, target)).unwrap();
        assert_eq!((port, &reply[22..28], &reply[28..32]), (RED, &GATEWAY_MAC.0[..], &target[..]));
    }
    let mut unicast = arp_request(own, [10, 0, 0, 1]);
    unicast[..6].copy_from_slice(&GATEWAY_MAC.0);
    assert!(host.send(RED, &unicast).is_ok(), "a refresh");
    unicast[..6].copy_from_slice(&mac(0, 3).0);
    host.drops(RED, &unicast, DropReason::NotGateway);
    unicast[..6].copy_from_slice(&[1, 0, 0, 0, 0, 0]);
    host.drops(RED, &unicast, DropReason::Multicast);

    host.drops(RED, &arp_request(own, own), DropReason::ArpIgnored);
    host.drops(RED, &arp_request([10, 0, 0, 9], own), DropReason::SpoofedNeighbour);
    let mut other = arp_request(own, [10, 0, 0, 1]);
    other[22..28].copy_from_slice(&mac(0, 3).0);
    host.drops(RED, &other, DropReason::SpoofedNeighbour);
    host.drops(RED, &arp_request([0; 4], [10, 0, 0, 3]), DropReason::ArpIgnored);
    host.drops(RED, &arp_request(own, [10, 0, 7, 1]), DropReason::NoRoute);
    let mut reply = arp_request(own, [10, 0, 0, 1]);
    reply[21] = 2;
    host.drops(RED, &reply, DropReason::ArpIgnored);
    for (at, value) in [(15, 6), (17, 6), (18, 8), (19, 16), (21, 3), (20, 1)] {
        let mut bad = arp_request(own, [10, 0, 0, 1]);
        bad[at] = value;
        host.drops(RED, &bad, DropReason::ArpMalformed);
    }
    let whole = arp_request(own, [10, 0, 0, 1]);
    host.drops(RED, &whole[..41], DropReason::TooShort);
}

#[test]
fn arp_out_of_a_tunnel() {
    let mut host = Host::a();
    let ask = |target| tunnelled(100, &arp_request([10, 0, 1, 7], target));
    assert!(host.send(UPLINK, &ask([10, 0, 0, 3])).is_ok());
    host.drops(UPLINK, &ask([10, 0, 1, 8]), DropReason::ArpIgnored);
    host.drops(UPLINK, &ask([10, 0, 0, 77]), DropReason::ArpIgnored);
    host.drops(UPLINK, &ask([10, 0, 1, 7]), DropReason::ArpIgnored);
    let mut stranger = ask([10, 0, 0, 3]);
    edit_ip(&mut stranger, 14, |ip| ip[15] = 77);
    host.drops(UPLINK, &stranger, DropReason::UnknownVtep);
    // One byte less in the datagram than the message needs.
    let mut cut = ask([10, 0, 0, 3]);
    cut[39] -= 1;
    host.drops(UPLINK, &cut, DropReason::TooShort);
}

#[test]
fn fragments_of_a_datagram_take_one_path() {
    let mut host = Host::a();
    let mut ports = std::collections::BTreeSet::new();
    let more = ipv4::MORE_FRAGMENTS;
    for (fragment, inner_ports) in [(more, (1, 2)), (more | 1, (3, 4)), (5, (5, 6))] {
        let piece = Datagram { fragment, ports: inner_ports, ..Datagram::NEW };
        let (_, outer) = host.send(RED, &piece.frame()).unwrap();
        ports.insert([outer[34], outer[35]]);
    }
    assert_eq!(ports.len(), 1);
    assert_eq!(host.switch.counters().misses.get(), 1);
    host.send(RED, &Datagram::NEW.frame()).unwrap();
    assert_eq!(host.switch.counters().misses.get(), 2, "a whole datagram is another flow");
}

#[test]
fn a_fragmented_echo_request_comes_back_whole() {
    let mut host = Host::a();
    let mut first = Datagram { payload: 16, ..Datagram::to([10, 0, 0, 1]) }.frame();
    first[34..42].copy_from_slice(&[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
    edit_ip(&mut first, 14, |ip| {
        ip[9] = 1;
        ip[6] = 0x20;
    });
    let (_, back) = host.send(RED, &first).unwrap();
    assert_eq!(back[34..38], [0, 0, 0xff, 0xff]);
    let mut rest = first.clone();
    edit_ip(&mut rest, 14, |ip| ip[6..8].copy_from_slice(&[0, 3]));
    let (_, back) = host.send(RED, &rest).unwrap();
    assert_eq!(back[34..], rest[34..]);
    assert_eq!(back[26..34], [10, 0, 0, 1, 10, 0, 0, 2]);
}

/// The frame with the sum of its pseudo-header for a checksum, as CHECKSUM_PARTIAL leaves it.
fn leaked(datagram: &Datagram) -> Vec<u8> {
    let mut frame = datagram.frame();
    let len = frame.len() as u16 - 34;
    let sum = Checksum::pseudo_header(datagram.source, datagram.destination, ipv4::UDP, len);
    frame[40..42].copy_from_slice(&sum.folded().to_be_bytes());
    frame
}

#[test]
fn leaked_checksums_are_named() {
    const TICK: u64 = 1 << TICK_SHIFT;
    let mut host = Host::a();
    let partial = Err(Verdict::Drop(DropReason::PartialChecksum));
    for payload in [0, 1, 18, 5000] {
        let datagram = Datagram { payload, ports: (payload as u16, 9), ..Datagram::NEW };
        assert_eq!(host.send_at(0, RED, &leaked(&datagram)), partial, "on a miss");
        assert!(host.send_at(TICK - 1, RED, &leaked(&datagram)).is_ok(), "not in the same tick");
        assert_eq!(host.send_at(TICK, RED, &leaked(&datagram)), partial, "in the next tick");
        assert!(host.send_at(2 * TICK, RED, &datagram.frame()).is_ok(), "a right one");
    }
    let none = Datagram { ports: (7, 7), ..Datagram::NEW };
    let mut frame = none.frame();
    frame[40..42].fill(0);
    assert!(host.send(RED, &frame).is_ok(), "UDP may go without");
    let piece = Datagram { fragment: ipv4::MORE_FRAGMENTS, ..Datagram::NEW };
    assert!(host.send(RED, &leaked(&piece)).is_ok(), "a fragment cannot be judged");
}

#[test]
fn a_right_checksum_that_looks_leaked_is_right() {
    // The header and data sum to 0xffff, so that checksum and pseudo-header sum are the same.
    let datagram = Datagram { payload: 2, ports: (1, 2), ..Datagram::NEW };
    let mut frame = leaked(&datagram);
    let mut sum = Checksum::new();
    sum.add(&frame[34..40]);
    let mut pseudo = Checksum::pseudo_header([10, 0, 0, 2], [10, 0, 1, 7], ipv4::UDP, 10);
    pseudo.add_word(pseudo.folded());
    pseudo.add_word(sum.folded());
    frame[42..44].copy_from_slice(&pseudo.finish().to_be_bytes());
    assert!(Host::a().send(RED, &frame).is_ok());
    frame[43] ^= 1;
    Host::a().drops(RED, &frame, DropReason::PartialChecksum);
}
