//! Tenants and strangers that send whatever they like.

use crate::netns::packet::PacketSocket;
use crate::process::Daemon;
use crate::traffic::exchange;
use crate::world::{GATEWAY, Options, Tenant, World};
use outboard_sim::Rng;
use outboard_wire::{Ethernet, Ipv4, Mac, Udp, ethernet, ipv4};
use rustix::process::Signal;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};

/// Frames of one kind.
const COUNT: usize = 200;
/// Of so many at most the sender may be told by ICMP instead.
const TOLD: usize = 60;
/// The gateway of the blue network (VNI 100), as the configuration derives it.
const GATEWAY_MAC: Mac = Mac([0x02, b'o', b'b', 0, 0, 100]);
const VXLAN_PORT: u16 = 4789;

fn v4(address: impl Into<IpAddr>) -> Ipv4Addr {
    match address.into() {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("these tests speak IPv4, not {address}"),
    }
}

/// A tenant's MAC address in the blue network, as the configuration derives it.
fn derived_mac(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    Mac([0x06, 100, a, b, c, d])
}

/// A right UDP frame from a tenant.
fn udp_frame(from: &Tenant, to: impl Into<IpAddr>, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 42];
    let source = derived_mac(v4(from.address));
    let ethernet = Ethernet { destination: GATEWAY_MAC, source, ethertype: ethernet::IPV4 };
    ethernet.emit(&mut out).unwrap();
    let udp_len = (8 + payload.len()) as u16;
    let ip = Ipv4 {
        tos: 0,
        total_len: 20 + udp_len,
        id: 0,
        fragment: 0,
        ttl: 64,
        protocol: ipv4::UDP,
        source: v4(from.address),
        destination: v4(to),
    };
    ip.emit(&mut out[14..]).unwrap();
    let udp = Udp { source: 9, destination: port, len: udp_len, checksum: 0 };
    udp.emit(&mut out[34..]).unwrap();
    out.extend_from_slice(payload);
    out
}

fn changed(frame: &[u8], at: usize, byte: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at] = byte;
    frame
}

fn arp_request(target: Ipv4Addr, source: Ipv4Addr) -> Vec<u8> {
    let mac = derived_mac(source);
    let mut out = vec![0xff; 6];
    out.extend(mac.0);
    out.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    out.extend(mac.0);
    out.extend(source.octets());
    out.extend([0; 6]);
    out.extend(target.octets());
    out
}

/// Every kind with the name under which the daemon must count it.
fn kinds(from: &Tenant, to: IpAddr) -> Vec<(&'static str, Vec<u8>)> {
    let right = udp_frame(from, to, 9, b"payload");
    let mut tagged = right[..12].to_vec();
    tagged.extend([0x81, 0x00, 0x00, 0x05]);
    tagged.extend(&right[12..]);
    let mut options = right.clone();
    options[14] = 0x46;
    options.splice(34..34, [0; 4]);
    fix_checksum(&mut options, 24);
    let mut short_total = right.clone();
    short_total[16..18].copy_from_slice(&19u16.to_be_bytes());
    fix_checksum(&mut short_total, 20);
    let mut long_total = right.clone();
    long_total[16..18].copy_from_slice(&2000u16.to_be_bytes());
    fix_checksum(&mut long_total, 20);
    let mut last_hop = right.clone();
    last_hop[22] = 1;
    fix_checksum(&mut last_hop, 20);
    let mut ipv6 = right.clone();
    ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
    ipv6.resize(64, 0);
    let mut spoofed = right.clone();
    spoofed[29] ^= 1;
    fix_checksum(&mut spoofed, 20);
    let mut broadcast = right.clone();
    broadcast[..6].fill(0xff);
    vec![
        ("vlan_tag", tagged),
        ("ipv4_checksum", changed(&right, 24, right[24] ^ 0x40)),
        ("ipv4_header", changed(&right, 14, 0x55)),
        ("ipv4_header", changed(&right, 14, 0x44)),
        ("ipv4_header", short_total),
        ("ipv4_header", long_total),
        ("ipv4_options", options),
        ("ttl_exceeded", last_hop),
        ("ipv6_header", ipv6),
        ("ether_type", changed(&right, 12, 0x99)),
        ("spoofed_mac", changed(&right, 11, 0x99)),
        ("spoofed_source", spoofed),
        ("broadcast", broadcast),
        ("not_gateway", changed(&right, 5, 0x77)),
        ("multicast", changed(&right, 0, 0x03)),
        ("to_gateway", udp_frame(from, GATEWAY, 9, b"payload")),
        ("no_route", udp_frame(from, Ipv4Addr::new(203, 0, 113, 9), 9, b"payload")),
        ("no_route", arp_request(Ipv4Addr::new(203, 0, 113, 9), v4(from.address))),
        ("arp_malformed", changed(&arp_request(GATEWAY, v4(from.address)), 18, 7)),
        ("too_short", right[..14].to_vec()),
        ("too_short", right[..20].to_vec()),
    ]
}

/// RFC 1071 over the IPv4 header.
fn fix_checksum(frame: &mut [u8], header_bytes: usize) {
    let header = &mut frame[14..14 + header_bytes];
    header[10..12].fill(0);
    let mut sum: u32 =
        header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

fn total_drops(daemon: &Daemon, port: &str) -> u64 {
    daemon.port(port).drops.iter().map(|count| count.count).sum()
}

#[test]
fn frames_of_a_hostile_tenant_end_by_name() {
    let (world, a, b) = World::running(Options::default());
    let (near, far) = (world.a.tenant("blue"), world.b.tenant("blue"));
    let socket = near.netns.within(|| PacketSocket::open("eth0", 0x88b5));
    for (name, frame) in kinds(near, far.address) {
        let before = a.drops("blue", name);
        for _ in 0..COUNT {
            socket.send(&frame);
        }
        crate::process::until(&format!("{name} is counted"), || {
            (a.drops("blue", name) >= before + (COUNT - TOLD) as u64).then_some(())
        });
        // Somebody else's traffic, meanwhile.
        world.a.tenant("red").reaches(world.b.tenant("red").address);
    }
    // VXLAN in VXLAN is data like any other: for the other tenant, and not unpacked twice.
    let mut inner = vec![8, 0, 0, 0, 0, 0, 200, 0];
    inner.extend(udp_frame(near, far.address, 9, b"into another network"));
    let before = b.port("red").tx_packets;
    for _ in 0..COUNT {
        socket.send(&udp_frame(near, far.address, VXLAN_PORT, &inner));
        socket.send(&udp_frame(near, world.b.vtep, VXLAN_PORT, &inner));
    }
    floods(&world, &socket);
    assert!(b.port("red").tx_packets < before + COUNT as u64);
    world.all_reach();
    exchange(&far.netns, far.address, &near.netns);
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}

/// Many requests for the gateway with ever other senders, and arbitrary bytes.
fn floods(world: &World, socket: &PacketSocket) {
    for number in 0..20_000u32 {
        let sender = Ipv4Addr::from(0x0a00_0000 | number);
        socket.send(&arp_request(GATEWAY, sender));
    }
    let mut rng = Rng::new(7);
    let right = udp_frame(world.a.tenant("blue"), world.b.tenant("blue").address, 9, &[1; 40]);
    for _ in 0..10_000 {
        let mut frame = right.clone();
        for _ in 0..1 + rng.below(6) {
            let at = rng.below(frame.len() as u64) as usize;
            frame[at] = rng.next_u64() as u8;
        }
        frame.truncate(14 + rng.below(frame.len() as u64 - 13) as usize);
        socket.send(&frame);
    }
}

#[test]
fn datagrams_of_strangers_end_by_name() {
    let (world, a, b) = World::running(Options::default());
    let right = udp_frame(world.b.tenant("red"), world.a.tenant("red").address, 9, b"payload");
    let vxlan = |flags: u8, vni: [u8; 3], inner: &[u8]| {
        let mut out = vec![flags, 0, 0, 0, vni[0], vni[1], vni[2], 0];
        out.extend_from_slice(inner);
        out
    };
    // From the other host's kernel: its address is a far end, or is not.
    let socket = |address: IpAddr| world.b.netns.within(|| UdpSocket::bind((address, 0)).unwrap());
    let stranger = Ipv4Addr::new(192, 0, 2, 99);
    world.b.netns.ip(&format!("address add {stranger}/24 dev veth"));
    let second = Ipv4Addr::new(192, 0, 2, 100);
    world.a.netns.ip(&format!("address add {second}/24 dev veth"));
    let (known, unknown) = (socket(world.b.vtep), socket(stranger.into()));
    let to = world.a.vtep;
    let kinds: Vec<(&str, &UdpSocket, Vec<u8>)> = vec![
        ("unknown_vtep", &unknown, vxlan(8, [0, 0, 200], &right)),
        ("unknown_vtep", &known, vxlan(8, [0, 1, 44], &right)),
        ("unknown_vni", &known, vxlan(8, [9, 9, 9], &right)),
        ("vxlan_malformed", &known, vxlan(0, [0, 0, 200], &right)),
        ("vxlan_malformed", &known, vxlan(8, [0, 0, 200], &right[..13])),
        ("vlan_tag", &known, vxlan(8, [0, 0, 200], &changed(&changed(&right, 12, 0x81), 13, 0))),
    ];
    for (name, socket, datagram) in kinds {
        let before = a.drops("up", name);
        for _ in 0..COUNT {
            socket.send_to(&datagram, (to, VXLAN_PORT)).unwrap();
        }
        crate::process::until(&format!("{name} is counted: {:?}", a.port("up")), || {
            (a.drops("up", name) >= before + COUNT as u64).then_some(())
        });
    }
    // What is for another address of the host is the kernel's, tunnel or not.
    let kernel = world.a.netns.within(|| UdpSocket::bind((second, VXLAN_PORT)).unwrap());
    kernel.set_read_timeout(Some(crate::process::PATIENCE)).unwrap();
    let datagram = vxlan(8, [0, 0, 200], &right);
    known.send_to(&datagram, (second, VXLAN_PORT)).unwrap();
    let mut received = [0; 2048];
    assert_eq!(kernel.recv(&mut received).unwrap(), datagram.len());
    let mut rng = Rng::new(9);
    let before = total_drops(&a, "up");
    for _ in 0..10_000 {
        let mut datagram = vxlan(8, [0, 0, 200], &right);
        for _ in 0..1 + rng.below(6) {
            let at = rng.below(datagram.len() as u64) as usize;
            datagram[at] = rng.next_u64() as u8;
        }
        datagram.truncate(rng.below(datagram.len() as u64) as usize);
        known.send_to(&datagram, (to, VXLAN_PORT)).unwrap();
    }
    assert!(total_drops(&a, "up") > before);
    world.all_reach();
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}
