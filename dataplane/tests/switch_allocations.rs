//! A million packets through the switch allocate nothing: hits, 10 % misses, evictions, table
//! changes, padding that frees frames, answers of the gateway, and drops.

use arrayvec::ArrayVec;
use outboard::config::Plan;
use outboard::config::plan::{
    Dscp, Ipv4Interface, Port, Role, Route, Runtime, Tenant, Vpc, WaitMode,
};
use outboard::packet::{BURST, Burst, Packet, PortId};
use outboard::switch::{NextHop, Seed, Switch, Tables, Verdict};
use outboard_dma::{Chain, CountingAllocator, Region};
use outboard_sim::Rng;
use outboard_wire::{Ethernet, IpPrefix, Ipv4, Mac, Udp, Vxlan, ethernet, ipv4, vxlan};
use std::net::Ipv4Addr;
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

fn tables() -> Arc<Tables> {
    let to = IpPrefix::containing(THERE.1.into(), 24).unwrap();
    let routes = vec![Route { to, via: THERE.0.into(), mac: GATEWAY_MAC }];
    let vpc = Vpc {
        name: "red".into(),
        vni: 7,
        gateway: Some(GATEWAY),
        gateway6: None,
        gateway_mac: GATEWAY_MAC,
        dscp: Dscp::Fixed(0),
        routes,
    };
    let mac = TENANT_MAC;
    let address = Some(Ipv4Interface { address: HERE.1, prefix_len: 24 });
    let tenant = Tenant { vpc: 0, address, address6: None, mac, mtu: 8950 };
    let port = |id, name: &str, role| Port {
        id,
        name: name.into(),
        interface: name.into(),
        dpdk: None,
        queues: vec![0],
        role,
    };
    let uplink = Role::Uplink { vtep: Some(HERE.0), vtep6: None, zero_checksum6: false };
    let plan = Plan {
        name: "test".into(),
        runtime: Runtime { mode: WaitMode::Busy, spin_us: 0, region_mib: 2, flows: CACHE_FLOWS },
        control_socket: "".into(),
        workers: Vec::new(),
        eal: Vec::new(),
        vpcs: vec![vpc],
        ports: vec![port(TENANT, "tenant", Role::Tenant(tenant)), port(UPLINK, "uplink", uplink)],
        volumes: Vec::new(),
        exports: Vec::new(),
        disks: Vec::new(),
    };
    let (src_mac, dst_mac) = (Mac([2, 0, 0, 0, 1, 1]), Mac([2, 0, 0, 0, 1, 2]));
    let src_ip = HERE.0.into();
    let hop = NextHop::Resolved { port: UPLINK, src_ip, src_mac, dst_mac, path_mtu: 9000 };
    Arc::new(Tables::new(&plan, &[(THERE.0.into(), hop)]))
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

/// The next packet into `out`: where it comes in and how long it is.
fn packet(rng: &mut Rng, out: &mut [u8], next_flow: &mut u16) -> (PortId, usize) {
    // One in ten starts a flow; the others belong to one of the sixteen newest.
    *next_flow = next_flow.wrapping_add(u16::from(rng.below(10) == 0));
    let ports = (next_flow.wrapping_sub(rng.below(16) as u16), 80);
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
                Verdict::Forward(_) => forwarded += 1,
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
}
