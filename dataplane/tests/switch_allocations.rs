//! A million packets of both families through the switch allocate nothing: hits, 10 % misses,
//! evictions, table changes, padding that frees frames, answers of the gateway, and drops.

use arrayvec::ArrayVec;
use outboard::config::Plan;
use outboard::config::plan::{
    Dscp, Ipv4Interface, Ipv6Interface, Port, Role, Route, Runtime, Tenant, Vpc, WaitMode,
};
use outboard::packet::{BURST, Burst, Packet, PortId};
use outboard::switch::{NextHop, Seed, Switch, Tables, Verdict};
use outboard_dma::{Chain, CountingAllocator, Region};
use outboard_sim::Rng;
use outboard_wire::{
    Checksum, Ethernet, IpPrefix, Ipv4, Ipv6, Mac, Udp, Vxlan, ethernet, icmpv6, ipv4, ipv6, nd,
    vxlan,
};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const PACKETS: usize = 1_000_000;
const CACHE_FLOWS: u32 = 256;
const TENANT: PortId = PortId(0);
const UPLINK: PortId = PortId(1);
const GATEWAY_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const TENANT_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const HERE: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(10, 0, 0, 2));
const THERE: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(192, 0, 2, 2), Ipv4Addr::new(10, 0, 1, 2));
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const HERE6: (Ipv6Addr, Ipv6Addr) =
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));
const THERE6: (Ipv6Addr, Ipv6Addr) =
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2), Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 2));

fn tables() -> Arc<Tables> {
    let to = IpPrefix::containing(THERE.1.into(), 24).unwrap();
    let to6 = IpPrefix::containing(THERE6.1.into(), 64).unwrap();
    let mac = GATEWAY_MAC;
    let routes =
        vec![Route { to, via: THERE.0.into(), mac }, Route { to: to6, via: THERE6.0.into(), mac }];
    let vpc = Vpc {
        name: "red".into(),
        vni: 7,
        gateway: Some(GATEWAY),
        gateway6: Some(GATEWAY6),
        gateway_mac: GATEWAY_MAC,
        dscp: Dscp::Fixed(0),
        routes,
    };
    let mac = TENANT_MAC;
    let address = Some(Ipv4Interface { address: HERE.1, prefix_len: 24 });
    let address6 = Some(Ipv6Interface { address: HERE6.1, prefix_len: 64 });
    let tenant = Tenant { vpc: 0, address, address6, mac, mtu: 8930 };
    let port = |id, name: &str, role| Port {
        id,
        name: name.into(),
        interface: name.into(),
        dpdk: None,
        queues: vec![0],
        role,
    };
    let (vtep, vtep6) = (Some(HERE.0), Some(HERE6.0));
    let uplink = Role::Uplink { vtep, vtep6, zero_checksum6: false };
    let plan = Plan {
        name: "test".into(),
        runtime: Runtime {
            mode: WaitMode::Busy,
            spin_us: 0,
            region_mib: 2,
            flows: CACHE_FLOWS,
            ledger: false,
        },
        control_socket: "".into(),
        workers: Vec::new(),
        metrics: None,
        eal: Vec::new(),
        vpcs: vec![vpc],
        ports: vec![port(TENANT, "tenant", Role::Tenant(tenant)), port(UPLINK, "uplink", uplink)],
        volumes: Vec::new(),
        exports: Vec::new(),
        disks: Vec::new(),
    };
    let (src_mac, dst_mac) = (Mac([2, 0, 0, 0, 1, 1]), Mac([2, 0, 0, 0, 1, 2]));
    let hop = |src_ip| {
        let (port, path_mtu) = (UPLINK, 9000);
        NextHop::Resolved { port, src_ip, src_mac, dst_mac, path_mtu }
    };
    let hops = [(THERE.0.into(), hop(HERE.0.into())), (THERE6.0.into(), hop(HERE6.0.into()))];
    Arc::new(Tables::new(&plan, &hops))
}

/// Writes an Ethernet and IPv4 header; the payload follows at 34.
fn headers(out: &mut [u8], source: Ipv4Addr, destination: Ipv4Addr, protocol: u8) {
    let frame = Ethernet { destination: GATEWAY_MAC, source: TENANT_MAC, ethertype: 0x0800 };
    frame.emit(out).unwrap();
    let ip = Ipv4 {
        tos: 0,
        total_len: (out.len() - ethernet::BYTES) as u16,
        id: 0,
        fragment: 0,
        ttl: 64,
        protocol,
        source,
        destination,
    };
    ip.emit(&mut out[ethernet::BYTES..]).unwrap();
}

fn datagram(out: &mut [u8], source: Ipv4Addr, destination: Ipv4Addr, ports: (u16, u16)) {
    headers(out, source, destination, ipv4::UDP);
    let len = (out.len() - 34) as u16;
    let udp = Udp { source: ports.0, destination: ports.1, len, checksum: 0 };
    udp.emit(&mut out[34..]).unwrap();
}

/// Writes Ethernet and IPv6 headers and makes the checksum right that is at `sum_at`.
fn packet6(out: &mut [u8], ends: (Ipv6Addr, Ipv6Addr), next_header: u8, sum_at: usize) {
    let ethertype = ethernet::IPV6;
    let frame = Ethernet { destination: GATEWAY_MAC, source: TENANT_MAC, ethertype };
    frame.emit(out).unwrap();
    let payload_len = (out.len() - ethernet::BYTES - ipv6::BYTES) as u16;
    let ip = Ipv6 {
        traffic_class: 0,
        flow_label: 0,
        payload_len,
        next_header,
        // What discovery asks for (RFC 4861 section 7.1.1) serves everybody.
        hop_limit: 255,
        source: ends.0,
        destination: ends.1,
    };
    ip.emit(&mut out[ethernet::BYTES..]).unwrap();
    out[sum_at..sum_at + 2].fill(0);
    let (source, destination) = (ends.0.octets(), ends.1.octets());
    let mut sum = Checksum::pseudo_header6(source, destination, next_header, payload_len.into());
    sum.add(&out[ethernet::BYTES + ipv6::BYTES..]);
    out[sum_at..sum_at + 2].copy_from_slice(&sum.finish().to_be_bytes());
}

fn datagram6(out: &mut [u8], ends: (Ipv6Addr, Ipv6Addr), ports: (u16, u16)) {
    let len = (out.len() - 54) as u16;
    let udp = Udp { source: ports.0, destination: ports.1, len, checksum: 0 };
    udp.emit(&mut out[54..]).unwrap();
    packet6(out, ends, ipv4::UDP, 60);
}

/// The next packet of a flow, or to the gateway, of IPv6.
fn any6(rng: &mut Rng, out: &mut [u8], ports: (u16, u16)) -> (PortId, usize) {
    match rng.below(20) {
        0 => {
            out[54..62].copy_from_slice(&[icmpv6::ECHO_REQUEST, 0, 0, 0, 0, 0, 0, 0]);
            packet6(&mut out[..118], (HERE6.1, GATEWAY6), ipv6::ICMP, 56);
            (TENANT, 118)
        }
        // Who has the gateway's address, or one to which a route leads?
        1 => {
            let target = if rng.below(2) == 0 { GATEWAY6 } else { THERE6.1 };
            out[54..62].copy_from_slice(&[nd::NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
            out[62..78].copy_from_slice(&target.octets());
            out[78..80].copy_from_slice(&[1, 1]);
            out[80..86].copy_from_slice(&TENANT_MAC.0);
            let group = nd::solicited_node(target);
            packet6(&mut out[..86], (HERE6.1, group), ipv6::ICMP, 56);
            out[..6].copy_from_slice(&nd::multicast_mac(group).0);
            (TENANT, 86)
        }
        2 => {
            let nowhere = Ipv6Addr::new(0xfd00, 0, 0, 9, 0, 0, 0, 9);
            datagram6(&mut out[..80], (HERE6.1, nowhere), ports);
            (TENANT, 80)
        }
        3 => {
            datagram6(&mut out[..1000], (HERE6.1, THERE6.1), ports);
            (TENANT, 8900)
        }
        4..=9 => {
            datagram6(&mut out[70..150], (THERE6.1, HERE6.1), ports);
            Vxlan { vni: 7 }.emit(&mut out[62..]).unwrap();
            datagram6(&mut out[..150], (THERE6.0, HERE6.0), (50_000, vxlan::PORT));
            (UPLINK, 150)
        }
        _ => {
            datagram6(&mut out[..80], (HERE6.1, THERE6.1), ports);
            (TENANT, 80)
        }
    }
}

/// The next packet into `out`: where it comes in and how long it is.
fn packet(rng: &mut Rng, out: &mut [u8], next_flow: &mut u16) -> (PortId, usize) {
    // One in ten starts a flow; the others belong to one of the sixteen newest.
    *next_flow = next_flow.wrapping_add(u16::from(rng.below(10) == 0));
    let ports = (next_flow.wrapping_sub(rng.below(16) as u16), 80);
    if rng.below(2) == 0 {
        return any6(rng, out, ports);
    }
    match rng.below(20) {
        0 => {
            headers(&mut out[..98], HERE.1, GATEWAY, ipv4::ICMP);
            out[34..42].copy_from_slice(&[8, 0, 0, 0, 0, 0, 0, 0]);
            (TENANT, 98)
        }
        1 => {
            datagram(&mut out[..60], HERE.1, Ipv4Addr::new(10, 9, 9, 9), ports);
            (TENANT, 60)
        }
        // Padding in frames of its own.
        2 => {
            datagram(&mut out[..1000], HERE.1, THERE.1, ports);
            (TENANT, 9000)
        }
        3..=9 => {
            datagram(&mut out[..110], THERE.0, HERE.0, (50_000, vxlan::PORT));
            Vxlan { vni: 7 }.emit(&mut out[42..]).unwrap();
            datagram(&mut out[50..110], THERE.1, HERE.1, ports);
            (UPLINK, 110)
        }
        _ => {
            datagram(&mut out[..60], HERE.1, THERE.1, ports);
            (TENANT, 60)
        }
    }
}

#[test]
fn a_million_packets_allocate_nothing() {
    let spare = [tables(), tables()];
    let mut switch = Switch::new(CACHE_FLOWS, Seed::new(1), tables());
    let counters = switch.counters();
    let mut free = Region::new(256).unwrap().carve(256).unwrap();
    let frames = free.len();
    let mut rng = Rng::new(1);
    let mut bytes = vec![0; 9000];
    let (mut next_flow, mut forwarded, mut dropped) = (0, 0, 0);
    // Packets of IPv6 that left as IPv6, to the uplink and to the tenant.
    let mut left6 = [0; 2];
    let mut burst = Burst::new();
    let mut verdicts = ArrayVec::new();
    let before = CountingAllocator::count();
    assert!(before > 0, "the counting allocator is in use");
    for round in 0..PACKETS.div_ceil(BURST) {
        for _ in 0..BURST {
            let (ingress, len) = packet(&mut rng, &mut bytes, &mut next_flow);
            burst.push(Packet::new(Chain::from_slice(&bytes[..len], &mut free).unwrap(), ingress));
        }
        if round % 5000 == 0 {
            let old = switch.set_tables(spare[round / 5000 % 2].clone());
            assert!(Arc::strong_count(&old) > 0);
        }
        switch.decide(round as u64 * 1_000_000, &mut burst, &mut free, &mut verdicts);
        for (packet, verdict) in burst.drain(..).zip(&verdicts) {
            match verdict {
                Verdict::Forward(port) => {
                    forwarded += 1;
                    let is_v6 = packet.head()[12..14] == ethernet::IPV6.to_be_bytes();
                    left6[usize::from(*port == TENANT)] += u32::from(is_v6);
                }
                _ => dropped += 1,
            }
            packet.into_chain().free(&mut free);
        }
        assert_eq!(free.len(), frames);
    }
    // The very first swap frees the tables that the switch was made with; freeing is no count.
    assert_eq!(CountingAllocator::count() - before, 0);
    let (hits, misses) = (counters.hits.get(), counters.misses.get());
    assert!(misses * 20 > hits && counters.evictions.get() > 50_000, "{counters:?}");
    assert!(counters.recompiles.get() > 10, "{counters:?}");
    assert!(forwarded > 900_000 && dropped > 30_000, "{forwarded} {dropped}");
    assert!(left6[0] > 250_000 && left6[1] > 150_000, "{left6:?}");
}
