//! Every limit and one past it, every reason for a drop.

use super::*;
use outboard_dma::{DATA_BYTES, MAX_FRAMES};

#[test]
fn ethernet_and_vlan() {
    let mut host = Host::a();
    for port in [RED, UPLINK] {
        for len in 0..14 {
            host.drops(port, &[0; 13][..len.min(13)], DropReason::TooShort);
        }
    }
    let with_type = |ethertype: u16| {
        let mut frame = Datagram::NEW.frame();
        frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        frame
    };
    for (ethertype, tenant, uplink) in [
        (0x8100, DropReason::VlanTag, DropReason::VlanTag),
        (0x88a8, DropReason::VlanTag, DropReason::VlanTag),
        (0x86dd, DropReason::Ipv6Header, DropReason::Ipv6Header),
        (0x0805, DropReason::EtherType, DropReason::NotTunnelled),
        (0x0807, DropReason::EtherType, DropReason::NotTunnelled),
    ] {
        host.drops(RED, &with_type(ethertype), tenant);
        host.drops(UPLINK, &with_type(ethertype), uplink);
    }
    for (destination, reason) in [
        (mac(0, 3), DropReason::NotGateway),
        (Mac::BROADCAST, DropReason::Broadcast),
        (Mac([1, 0, 0x5e, 0, 0, 1]), DropReason::Multicast),
    ] {
        host.drops(RED, &framed(destination, mac(0, 2), &Datagram::NEW.packet()), reason);
    }
    host.drops(PortId(4), &Datagram::NEW.frame(), DropReason::PortDown);
}

#[test]
fn ipv4_headers() {
    // The same faults inside a tunnel are found by the same code, one header further in.
    for (port, ip_at) in [(RED, 14), (UPLINK, 64)] {
        let mut host = Host::a();
        let right = match port {
            RED => Datagram::NEW.frame(),
            _ => Datagram::to([10, 0, 0, 2]).tunnelled(100),
        };
        let len = (right.len() - ip_at) as u8;
        let mut with = |at: usize, value: u8, reason: DropReason| {
            let mut frame = right.clone();
            edit_ip(&mut frame, ip_at, |ip| ip[at] = value);
            host.drops(port, &frame, reason);
        };
        for version_and_len in [0x00, 0x44, 0x55, 0x65] {
            with(0, version_and_len, DropReason::Ipv4Header);
        }
        with(0, 0x46, DropReason::Ipv4Options);
        with(0, 0x4f, DropReason::Ipv4Options);
        with(3, 19, DropReason::Ipv4Header);
        with(3, len + 1, DropReason::Ipv4Header);
        with(2, 0xff, DropReason::Ipv4Header);
        let mut damaged = right.clone();
        damaged[ip_at + 10] ^= 0x10;
        host.drops(port, &damaged, DropReason::Ipv4Checksum);
        let mut shortest = right.clone();
        edit_ip(&mut shortest, ip_at, |ip| ip[3] = 20);
        assert!(host.send(port, &shortest).is_ok(), "a header and nothing else");
        assert!(host.send(port, &right).is_ok());
    }
}

#[test]
fn time_to_live() {
    let mut host = Host::a();
    for destination in [[10, 0, 0, 3], [10, 0, 1, 7]] {
        for ttl in [0, 1] {
            let frame = Datagram { ttl, ..Datagram::to(destination) }.frame();
            host.drops(RED, &frame, DropReason::TtlExceeded);
        }
        for ttl in [2, 255] {
            let frame = Datagram { ttl, ..Datagram::to(destination) }.frame();
            let (port, bytes) = host.send(RED, &frame).unwrap();
            let ip_at = if port == UPLINK { 64 } else { 14 };
            assert_eq!(bytes[ip_at + 8], ttl - 1);
            assert!(Ipv4::parse(&bytes[ip_at..], 9000).is_ok());
        }
    }
    let arrived = Datagram { ttl: 1, ..Datagram::to([10, 0, 0, 2]) }.tunnelled(100);
    let (_, bytes) = host.send(UPLINK, &arrived).unwrap();
    assert_eq!(bytes[22], 1, "the far end counted the hop");
}

#[test]
fn sizes_at_the_mtu() {
    let mut host = Host::a();
    let sized =
        |destination, ip_len: usize| Datagram { payload: ip_len - 28, ..Datagram::to(destination) };
    let tenant_mtu = usize::from(TENANT_MTU);
    let (_, bytes) = host.send(RED, &sized([10, 0, 0, 3], tenant_mtu).frame()).unwrap();
    assert_eq!(bytes.len(), 14 + tenant_mtu);
    host.drops(RED, &sized([10, 0, 0, 3], tenant_mtu + 1).frame(), DropReason::NotFragmented);

    let most = UPLINK_MTU as usize - 50;
    let (_, bytes) = host.send(RED, &sized([10, 0, 1, 7], most).frame()).unwrap();
    assert_eq!(bytes.len(), 14 + UPLINK_MTU as usize);
    assert_eq!(bytes[16..18], (UPLINK_MTU as u16).to_be_bytes());
    host.drops(RED, &sized([10, 0, 1, 7], most + 1).frame(), DropReason::NotFragmented);
    host.drops(RED, &sized([10, 0, 1, 7], 65_535).frame(), DropReason::NotFragmented);

    assert!(host.send(UPLINK, &sized([10, 0, 0, 2], tenant_mtu).tunnelled(100)).is_ok());
    let past = sized([10, 0, 0, 2], tenant_mtu + 1).tunnelled(100);
    host.drops(UPLINK, &past, DropReason::NotFragmented);
}

#[test]
fn the_largest_outer_packet_is_65535_bytes() {
    let hop = NextHop::Resolved {
        port: UPLINK,
        src_ip: VTEP_A.into(),
        src_mac: mac(1, 1),
        dst_mac: mac(1, 2),
        path_mtu: u32::MAX,
    };
    let mut host = Host::new(Arc::new(Tables::new(&plan_a(), &[(VTEP_B.into(), hop)])));
    let most = Datagram { payload: 65_535 - 50 - 28, ..Datagram::NEW };
    let (_, bytes) = host.send(RED, &most.frame()).unwrap();
    assert_eq!(bytes[16..18], [0xff, 0xff]);
    let past = Datagram { payload: most.payload + 1, ..most };
    host.drops(RED, &past.frame(), DropReason::NotFragmented);
}

#[test]
fn destinations_that_are_never_routed() {
    let mut plan = plan_a();
    plan.vpcs[0].routes.push(route([0, 0, 0, 0], 0, VTEP_B));
    let mut host = Host::new(tables_a(&plan));
    assert!(host.send(RED, &Datagram::to([8, 8, 8, 8]).frame()).is_ok());
    for (destination, reason) in [
        ([0, 0, 0, 0], DropReason::NoRoute),
        ([127, 0, 0, 1], DropReason::NoRoute),
        ([224, 0, 0, 0], DropReason::Multicast),
        ([239, 255, 255, 255], DropReason::Multicast),
        ([240, 0, 0, 0], DropReason::NoRoute),
        ([255, 255, 255, 255], DropReason::Broadcast),
    ] {
        host.drops(RED, &Datagram::to(destination).frame(), reason);
    }
    for destination in [[1, 0, 0, 0], [126, 0, 0, 1], [128, 0, 0, 0], [223, 255, 255, 255]] {
        assert!(host.send(RED, &Datagram::to(destination).frame()).is_ok(), "{destination:?}");
    }
    host.drops(RED, &Datagram::to([10, 0, 0, 1]).frame(), DropReason::ToGateway);
}

#[test]
fn the_longest_route_wins_and_a_tenant_here_before_all() {
    let mut plan = plan_a();
    plan.vpcs[0].routes.push(route([10, 0, 0, 0], 16, UNREACHABLE));
    plan.vpcs[0].routes.push(route([10, 0, 0, 3], 32, UNREACHABLE));
    let mut host = Host::new(tables_a(&plan));
    assert_eq!(host.send(RED, &Datagram::to([10, 0, 1, 7]).frame()).unwrap().0, UPLINK);
    assert_eq!(host.send(RED, &Datagram::to([10, 0, 0, 3]).frame()).unwrap().0, RED_TOO);
    host.drops(RED, &Datagram::to([10, 0, 2, 7]).frame(), DropReason::NoUnderlayRoute);
}

#[test]
fn outer_headers() {
    let mut host = Host::a();
    let right = Datagram::to([10, 0, 0, 2]).tunnelled(100);
    assert!(host.send(UPLINK, &right).is_ok());
    let mut ip = |edit: &dyn Fn(&mut [u8]), reason| {
        let mut frame = right.clone();
        edit_ip(&mut frame, 14, edit);
        host.drops(UPLINK, &frame, reason);
    };
    ip(&|ip| ip[0] = 0x46, DropReason::Ipv4Options);
    ip(&|ip| ip[0] = 0x60, DropReason::Ipv4Header);
    ip(&|ip| ip[3] += 1, DropReason::Ipv4Header);
    ip(&|ip| ip[3] -= 1, DropReason::VxlanMalformed);
    ip(&|ip| ip[6] = 0x20, DropReason::OuterFragment);
    ip(&|ip| ip[7] = 1, DropReason::OuterFragment);
    ip(&|ip| ip[9] = 6, DropReason::NotTunnelled);
    ip(&|ip| ip[19] = 77, DropReason::NotOurVtep);
    ip(&|ip| ip[15] = 77, DropReason::UnknownVtep);
    // 192.0.2.1 is no far end either: this host's own address as the source.
    ip(&|ip| ip[15] = 1, DropReason::UnknownVtep);
    let mut byte = |at: usize, value: u8, reason| {
        let mut frame = right.clone();
        frame[at] = value;
        host.drops(UPLINK, &frame, reason);
    };
    byte(24, 0, DropReason::Ipv4Checksum);
    byte(37, 0xb6, DropReason::NotTunnelled);
    byte(39, 7, DropReason::VxlanMalformed);
    byte(39, 29, DropReason::VxlanMalformed);
    byte(39, 30, DropReason::Ipv4Header);
    byte(38, 0x40, DropReason::VxlanMalformed);
    byte(42, 0xf7, DropReason::VxlanMalformed);
    byte(46, 1, DropReason::UnknownVni);
    byte(48, 101, DropReason::UnknownVni);
    byte(48, 0, DropReason::UnknownVni);
    byte(50, 3, DropReason::Multicast);
    byte(55, 0xee, DropReason::NotGateway);
    byte(62, 0x81, DropReason::VlanTag);
    byte(62, 0x86, DropReason::EtherType);
    let mut to_tenant = right.clone();
    to_tenant[50..56].copy_from_slice(&mac(0, 2).0);
    assert!(host.send(UPLINK, &to_tenant).is_ok(), "the tenant's own address");
    let mut reserved = right.clone();
    reserved[42..46].fill(0xff);
    reserved[49] = 0xff;
    assert!(host.send(UPLINK, &reserved).is_ok(), "reserved bits are ignored");
    for len in 34..right.len() {
        assert!(host.send(UPLINK, &right[..len]).is_err(), "cut to {len}");
    }
}

#[test]
fn outer_checksums_over_many_frames() {
    let mut host = Host::a();
    for payload in [0, 1, 18, DATA_BYTES - 92, DATA_BYTES - 91, 8000, 8001] {
        let mut frame = Datagram { payload, ..Datagram::to([10, 0, 0, 2]) }.tunnelled(100);
        let len = frame.len() as u16 - 34;
        let pseudo = Checksum::pseudo_header(VTEP_B.octets(), VTEP_A.octets(), ipv4::UDP, len);
        let mut sum = pseudo;
        sum.add(&frame[34..]);
        frame[40..42].copy_from_slice(&sum.finish().to_be_bytes());
        assert!(host.send(UPLINK, &frame).is_ok(), "{payload}");
        frame[41] ^= 1;
        host.drops(UPLINK, &frame, DropReason::UdpChecksum);
        frame[40..42].copy_from_slice(&pseudo.folded().to_be_bytes());
        host.drops(UPLINK, &frame, DropReason::PartialChecksum);
    }
}

#[test]
fn chains_at_every_length() {
    let most = MAX_FRAMES * DATA_BYTES;
    let hop = resolved(VTEP_A, mac(1, 1), mac(1, 2));
    let mut host = Host::new(Arc::new(Tables::new(&plan_a(), &[(VTEP_B.into(), hop)])));
    for edge in [DATA_BYTES, 2 * DATA_BYTES, 3 * DATA_BYTES] {
        for frame_len in [edge - 1, edge, edge + 1] {
            let sent = Datagram { payload: frame_len - 42, ..Datagram::NEW };
            // Padding that reaches into frames of its own, up to the longest chain.
            for padded_to in [frame_len, frame_len + DATA_BYTES, most] {
                let mut frame = sent.frame();
                frame.resize(padded_to, 0xee);
                match host.send(RED, &frame) {
                    Ok((_, bytes)) => {
                        let want = Datagram { ttl: 63, ..sent }.frame();
                        assert_eq!(bytes.len(), 50 + frame_len);
                        assert_eq!(bytes[64..], want[14..]);
                    }
                    Err(verdict) => {
                        assert_eq!(verdict, Verdict::Drop(DropReason::NotFragmented));
                        assert!(frame_len - 14 + 50 > UPLINK_MTU as usize);
                    }
                }
            }
        }
    }
}

#[test]
fn headroom_of_exactly_the_outer_headers() {
    let mut host = Host::a();
    let bytes = Datagram::NEW.frame();
    for (missing, want) in
        [(0, Verdict::Forward(UPLINK)), (1, Verdict::Drop(DropReason::NoHeadroom))]
    {
        let mut chain = Chain::from_slice(&bytes, &mut host.free).unwrap();
        // Moves the data towards the front of the frame.
        let towards_front = chain.headroom() - OUTER_BYTES + missing;
        chain.grow_front(towards_front).unwrap()[..bytes.len()].copy_from_slice(&bytes);
        chain.truncate(bytes.len(), &mut host.free);
        assert_eq!(chain.headroom(), OUTER_BYTES - missing);
        assert_eq!(host.send_chain(0, RED, chain).0, want);
    }
    const { assert!(HEADROOM_BYTES >= OUTER_BYTES + 16) };
}

#[test]
fn a_header_that_ends_with_the_head_frame() {
    // Ports hand over all headers in the head frame; a head that ends earlier is too short.
    for (port, bytes, header) in
        [(RED, Datagram::NEW.frame(), 38), (UPLINK, Datagram::to([10, 0, 0, 2]).tunnelled(100), 88)]
    {
        let mut host = Host::a();
        for head in 0..bytes.len() {
            let mut chain = Chain::from_slice(&bytes[..head], &mut host.free).unwrap();
            let mut frame = host.free.take().unwrap();
            let rest = &bytes[head..];
            frame.bytes_mut()[HEADROOM_BYTES..][..rest.len()].copy_from_slice(rest);
            chain.push(frame, HEADROOM_BYTES, rest.len()).unwrap();
            let (verdict, _) = host.send_chain(0, port, chain);
            let want = Verdict::Drop(DropReason::TooShort);
            assert_eq!(verdict == want, head < header, "{head}: {verdict:?}");
        }
    }
}

#[test]
#[should_panic(expected = "a burst of 33 packets")]
fn a_burst_past_the_limit_is_our_own_bug() {
    let mut host = Host::a();
    let bytes = Datagram::NEW.frame();
    // Leaked on purpose: the panic is what the test wants.
    let mut packets: Vec<_> = (0..BURST + 1)
        .map(|_| Packet::new(Chain::from_slice(&bytes, &mut host.free).unwrap(), RED))
        .collect();
    host.switch.decide(0, &mut packets, &mut host.free, &mut ArrayVec::new());
}
