//! Tenants and strangers that send whatever they like, over IPv6.

use crate::netns::packet::PacketSocket;
use crate::netns::run;
use crate::process::{Daemon, until};
use crate::traffic::exchange;
use crate::world::{Host, Options, Tenant, World};
use outboard_wire::nd::{self, Advertisement};
use outboard_wire::{Checksum, Ethernet, Ipv6, Mac, Udp, Vxlan, ethernet, ipv4, ipv6, udp, vxlan};
use rustix::process::Signal;
use std::net::{IpAddr, Ipv6Addr};

/// Frames of one kind.
const COUNT: usize = 200;
/// Of so many at most the sender may be told by ICMP instead.
const TOLD: usize = 60;
/// The gateways of the blue and the red network, as the configuration derives them.
const GATEWAY_MAC: Mac = Mac([0x02, b'o', b'b', 0, 0, 100]);
const RED_GATEWAY_MAC: Mac = Mac([0x02, b'o', b'b', 0, 0, 200]);
const RED_VNI: u32 = 200;
/// Where the IP packet and its payload start.
const IP_AT: usize = ethernet::BYTES;
const PAYLOAD_AT: usize = IP_AT + ipv6::BYTES;
/// Nowhere, with a host's route or without.
const NOWHERE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);

fn v6(address: impl Into<IpAddr>) -> Ipv6Addr {
    match address.into() {
        IpAddr::V6(address) => address,
        IpAddr::V4(address) => panic!("these tests speak IPv6, not {address}"),
    }
}

/// The MAC address of a tenant in the blue network: it follows from the address of IPv4.
fn mac_of(address: Ipv6Addr) -> Mac {
    Mac([0x06, 100, 10, 0, 0, address.octets()[15]])
}

/// An IPv6 frame with any payload.
fn frame(macs: (Mac, Mac), ends: (Ipv6Addr, Ipv6Addr), next: u8, hops: u8, rest: &[u8]) -> Vec<u8> {
    let mut out = vec![0; PAYLOAD_AT];
    let header = Ethernet { source: macs.0, destination: macs.1, ethertype: ethernet::IPV6 };
    header.emit(&mut out).unwrap();
    let ip = Ipv6 {
        traffic_class: 0,
        flow_label: 0,
        payload_len: rest.len() as u16,
        next_header: next,
        hop_limit: hops,
        source: ends.0,
        destination: ends.1,
    };
    ip.emit(&mut out[IP_AT..]).unwrap();
    out.extend_from_slice(rest);
    out
}

/// Writes the checksum of what is behind the IP header.
fn sum_up(frame: &mut [u8], next: u8, at: usize) {
    let address = |at: usize| *frame[at..].first_chunk::<16>().unwrap();
    let bytes = (frame.len() - PAYLOAD_AT) as u32;
    let mut sum = Checksum::pseudo_header6(address(IP_AT + 8), address(IP_AT + 24), next, bytes);
    sum.add(&frame[PAYLOAD_AT..]);
    let sum = sum.finish();
    frame[PAYLOAD_AT + at..][..2].copy_from_slice(&sum.to_be_bytes());
}

/// A right datagram in a frame.
fn datagram(
    macs: (Mac, Mac),
    ends: (Ipv6Addr, Ipv6Addr),
    ports: (u16, u16),
    data: &[u8],
) -> Vec<u8> {
    let len = (udp::BYTES + data.len()) as u16;
    let mut bytes = vec![0; udp::BYTES];
    Udp { source: ports.0, destination: ports.1, len, checksum: 0 }.emit(&mut bytes).unwrap();
    bytes.extend_from_slice(data);
    let mut frame = frame(macs, ends, ipv4::UDP, 64, &bytes);
    sum_up(&mut frame, ipv4::UDP, udp::CHECKSUM_AT);
    frame
}

/// A message of ICMPv6 of the link, whose checksum is right.
fn link(ends: (Ipv6Addr, Ipv6Addr), to: Mac, hops: u8, message: &[u8]) -> Vec<u8> {
    let mut frame = frame((mac_of(ends.0), to), ends, ipv6::ICMP, hops, message);
    frame[PAYLOAD_AT + 2..][..2].fill(0);
    sum_up(&mut frame, ipv6::ICMP, 2);
    frame
}

/// A neighbour solicitation (RFC 4861 section 4.3) that tells the asker's MAC address.
fn solicitation(target: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let mut message = vec![nd::NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    message.extend([1, 1]);
    message.extend(mac.0);
    message
}

fn changed(frame: &[u8], at: usize, byte: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at] = byte;
    frame
}

/// Every kind with the name under which the daemon must count it.
fn kinds(from: &Tenant, to: IpAddr, gateway: IpAddr) -> Vec<(&'static str, Vec<u8>)> {
    let (own, to, gateway) = (v6(from.address), v6(to), v6(gateway));
    let macs = (mac_of(own), GATEWAY_MAC);
    let udp = |to| datagram(macs, (own, to), (9, 9), b"payload");
    let right = udp(to);
    let mut tagged = right[..12].to_vec();
    tagged.extend([0x81, 0x00, 0x00, 0x05]);
    tagged.extend(&right[12..]);
    // Nine headers of options in a row, each 8 bytes of padding (RFC 8200 section 4.2).
    let mut many = [60, 0, 1, 4, 0, 0, 0, 0].repeat(9);
    many[64] = ipv4::UDP;
    many.extend(&right[PAYLOAD_AT..]);
    // A routing header that would end behind the packet.
    let cut_off = [ipv4::UDP, 200, 0, 0, 0, 0, 0, 0];
    let group = Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, 0x101);
    let group_macs = (macs.0, nd::multicast_mac(group));
    let nodes = nd::multicast_mac(nd::ALL_NODES);
    let asks =
        |target, mac, hops| link((own, gateway), GATEWAY_MAC, hops, &solicitation(target, mac));
    let tells = |target, mac| {
        let told = Advertisement { target, mac, router: false, solicited: false, overrides: true };
        link((own, nd::ALL_NODES), nodes, 255, &told.emit())
    };
    let asked = asks(gateway, macs.0, 255);
    vec![
        ("vlan_tag", tagged),
        ("ipv6_header", changed(&right, IP_AT, 0x45)),
        ("ipv6_header", changed(&right, IP_AT + 4, 0x08)),
        ("ipv6_extensions", frame(macs, (own, to), 60, 64, &many)),
        ("ipv6_extensions", frame(macs, (own, to), 43, 64, &cut_off)),
        ("ttl_exceeded", changed(&right, IP_AT + 7, 1)),
        ("ttl_exceeded", changed(&right, IP_AT + 7, 0)),
        ("spoofed_mac", changed(&right, 11, 0x99)),
        ("spoofed_source", changed(&right, IP_AT + 8 + 15, 0x77)),
        ("spoofed_source", datagram(macs, (to, own), (9, 9), b"payload")),
        ("spoofed_neighbour", tells(to, macs.0)),
        ("spoofed_neighbour", tells(gateway, macs.0)),
        ("spoofed_neighbour", tells(own, Mac([2, 0, 0, 0, 0, 9]))),
        ("spoofed_neighbour", asks(gateway, Mac([2, 0, 0, 0, 0, 9]), 255)),
        ("nd_malformed", asks(gateway, macs.0, 64)),
        ("nd_malformed", changed(&asked, PAYLOAD_AT + 2, asked[PAYLOAD_AT + 2] ^ 1)),
        ("nd_ignored", tells(own, macs.0)),
        ("nd_ignored", asks(own, macs.0, 255)),
        ("no_route", asks(NOWHERE, macs.0, 255)),
        ("multicast", datagram(group_macs, (own, group), (9, 9), b"payload")),
        ("multicast", changed(&right, 0, 0x03)),
        ("not_gateway", datagram(macs, (own, group), (9, 9), b"payload")),
        ("not_gateway", changed(&right, 5, 0x77)),
        ("to_gateway", udp(gateway)),
        ("no_route", udp(NOWHERE)),
        ("no_route", udp(Ipv6Addr::LOCALHOST)),
        ("too_short", right[..IP_AT].to_vec()),
        ("too_short", right[..IP_AT + 20].to_vec()),
    ]
}

/// Sends frames of every kind; each must be counted by its name.
#[track_caller]
fn are_counted(socket: &PacketSocket, daemon: &Daemon, port: &str, kinds: &[(&str, Vec<u8>)]) {
    for (name, frame) in kinds {
        let before = daemon.drops(port, name);
        for _ in 0..COUNT {
            socket.send(frame);
        }
        until(&format!("{name} is counted: {:?}", daemon.port(port).drops), || {
            (daemon.drops(port, name) >= before + (COUNT - TOLD) as u64).then_some(())
        });
    }
}

#[test]
fn frames_of_a_hostile_tenant_end_by_name() {
    let (world, a, b) = World::running(Options::v6());
    let (near, far) = (world.a.tenant("blue"), world.b.tenant("blue"));
    let socket = near.netns.within(|| PacketSocket::open("eth0", 0x88b5));
    are_counted(&socket, &a, "blue", &kinds(near, far.address, world.gateway));
    world.all_reach();
    exchange(&far.netns, far.address, &near.netns);
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}

/// The tenant's own kernel with another's address: not one packet arrives anywhere.
#[test]
fn an_address_of_another_tenant_is_of_no_use() {
    let (world, a, b) = World::running(Options::v6());
    let (near, far) = (world.a.tenant("blue"), world.b.tenant("blue"));
    near.netns.ip("address add fd00::77/64 dev eth0 nodad");
    let before = b.port("blue").tx_packets;
    for to in [far.address, world.gateway] {
        let dropped = a.drops("blue", "spoofed_source");
        assert!(!near.pings(to, "-I fd00::77 -c 20"));
        assert!(a.drops("blue", "spoofed_source") >= dropped + 20);
    }
    // Its own gateway may have told it something meanwhile.
    assert!(b.port("blue").tx_packets < before + 20);
    near.netns.ip("address del fd00::77/64 dev eth0");
    world.all_reach();
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}

fn uplink_mac(host: &Host) -> Mac {
    let shown = run("ip", &["-n", host.netns.name(), "-o", "link", "show", "dev", "veth"]);
    let text = shown.split("link/ether ").nth(1).unwrap();
    let mut octets = text[..17].split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap());
    Mac(std::array::from_fn(|_| octets.next().unwrap()))
}

#[test]
fn tunnels_of_strangers_end_by_name() {
    let (world, a, b) = World::running(Options::v6());
    let (from, to) = (v6(world.b.tenant("red").address), v6(world.a.tenant("red").address));
    let macs = (uplink_mac(&world.b), uplink_mac(&world.a));
    let ends = (v6(world.b.vtep), v6(world.a.vtep));
    let inner = datagram((RED_GATEWAY_MAC, RED_GATEWAY_MAC), (from, to), (9, 9), b"payload");
    let wrapped = |ends, vni, inner: &[u8]| {
        let mut bytes = vec![0; vxlan::BYTES];
        Vxlan { vni }.emit(&mut bytes).unwrap();
        bytes.extend_from_slice(inner);
        datagram(macs, ends, (50_000, vxlan::PORT), &bytes)
    };
    let right = wrapped(ends, RED_VNI, &inner);
    let sum_at = PAYLOAD_AT + udp::CHECKSUM_AT;
    let mut without = right.clone();
    without[sum_at..][..2].fill(0);
    let stranger = v6(Options::v6().underlay.host(99));
    let kinds = [
        ("zero_checksum", without),
        ("udp_checksum", changed(&right, sum_at, right[sum_at] ^ 1)),
        ("udp_checksum", changed(&right, right.len() - 1, 0)),
        ("unknown_vtep", wrapped((stranger, ends.1), RED_VNI, &inner)),
        ("unknown_vni", wrapped(ends, 0x7_7777, &inner)),
        ("vlan_tag", wrapped(ends, RED_VNI, &changed(&changed(&inner, 12, 0x81), 13, 0))),
        ("ipv6_header", wrapped(ends, RED_VNI, &changed(&inner, IP_AT, 0x45))),
        ("multicast", wrapped(ends, RED_VNI, &changed(&inner, 0, 3))),
    ];
    let socket = world.b.netns.within(|| PacketSocket::open("veth", 0x88b5));
    let before = a.port("red").tx_packets;
    are_counted(&socket, &a, "up", &kinds);
    // Only what its neighbours ask may have gone to the tenant meanwhile, and the right one does.
    assert!(a.port("red").tx_packets < before + COUNT as u64);
    let before = a.port("red").tx_packets;
    for _ in 0..COUNT {
        socket.send(&right);
    }
    until("the right ones arrive", || {
        (a.port("red").tx_packets >= before + COUNT as u64).then_some(())
    });
    world.all_reach();
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}
