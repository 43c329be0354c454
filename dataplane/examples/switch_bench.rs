//! Prints what the switch costs per packet: 64-byte UDP frames through a simulated port (frames
//! that are rewritten in memory), out into a tunnel and in from one, with 1 to 100 000 flows whose
//! transforms are cached. `cargo run --release -p outboard --example switch_bench`
//!
//! The time to write the frames anew is measured apart and subtracted.

use arrayvec::ArrayVec;
use outboard::clock::now_ns;
use outboard::config::Plan;
use outboard::config::plan::{Port, Role, Route, Runtime, Tenant, Vpc, WaitMode};
use outboard::packet::{BURST, Burst, Packet, PortId};
use outboard::switch::{NextHop, Seed, Switch, Tables, Verdict};
use outboard_dma::{Chain, FreeList, Region};
use outboard_wire::{Ethernet, Ipv4, Ipv4Prefix, Mac, Udp, Vxlan, ethernet, ipv4, vxlan};
use std::net::Ipv4Addr;
use std::sync::Arc;

const FRAME_BYTES: usize = 64;
const OUTER_BYTES: usize = 50;
const ROUNDS: usize = 5;
const PACKETS: usize = 4_000_000;
const CACHE_FLOWS: u32 = 1 << 17;

const TENANT: PortId = PortId(0);
const UPLINK: PortId = PortId(1);
const GATEWAY_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const HERE: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(10, 0, 0, 2));
const THERE: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(192, 0, 2, 2), Ipv4Addr::new(10, 0, 1, 2));

fn tables() -> Tables {
    let gateway = Ipv4Addr::new(10, 0, 0, 1);
    let to = Ipv4Prefix::containing(THERE.1, 24).unwrap();
    let routes = vec![Route { to, via: THERE.0, mac: GATEWAY_MAC }];
    let vpc = Vpc { name: "red".into(), vni: 100, gateway, gateway_mac: GATEWAY_MAC, routes };
    let tenant =
        Tenant { vpc: 0, address: HERE.1, prefix_len: 24, mac: Mac([2, 0, 0, 0, 0, 2]), mtu: 1500 };
    let port = |name: &str, role| Port {
        name: name.into(),
        interface: name.into(),
        queues: vec![0],
        role,
    };
    let plan = Plan {
        name: "bench".into(),
        runtime: Runtime { mode: WaitMode::Busy, spin_us: 0, region_mib: 2, flows: CACHE_FLOWS },
        control_socket: "".into(),
        workers: Vec::new(),
        vpcs: vec![vpc],
        ports: vec![
            port("tenant", Role::Tenant(tenant)),
            port("uplink", Role::Uplink { vtep: HERE.0 }),
        ],
        volumes: Vec::new(),
        exports: Vec::new(),
        disks: Vec::new(),
    };
    let hop = NextHop::Resolved {
        port: UPLINK,
        src_ip: HERE.0,
        src_mac: Mac([2, 0, 0, 0, 1, 1]),
        dst_mac: Mac([2, 0, 0, 0, 1, 2]),
        mtu: 9000,
    };
    Tables::new(&plan, &[(THERE.0, hop)])
}

fn udp_packet(out: &mut [u8], source: Ipv4Addr, destination: Ipv4Addr, port: u16) {
    let total_len = out.len() as u16;
    let ip = Ipv4 {
        tos: 0,
        total_len,
        id: 0,
        fragment: ipv4::DONT_FRAGMENT,
        ttl: 64,
        protocol: ipv4::UDP,
        source,
        destination,
    };
    ip.emit(out).unwrap();
    let udp = Udp { source: 1, destination: port, len: ip.payload_len(), checksum: 0 };
    udp.emit(&mut out[ipv4::BYTES..]).unwrap();
}

/// What one direction's frames look like, and how much the switch moves their front.
struct Direction {
    name: &'static str,
    ingress: PortId,
    egress: PortId,
    frame: Vec<u8>,
    /// Where the tenant's UDP ports lie.
    ports_at: usize,
    encapsulates: bool,
}

fn directions() -> [Direction; 2] {
    let frame = |destination, source| Ethernet { destination, source, ethertype: ethernet::IPV4 };
    let mut out = vec![0; FRAME_BYTES];
    frame(GATEWAY_MAC, Mac([2, 0, 0, 0, 0, 2])).emit(&mut out).unwrap();
    udp_packet(&mut out[14..], HERE.1, THERE.1, 2000);
    let mut inside = vec![0; OUTER_BYTES + FRAME_BYTES];
    frame(Mac([2, 0, 0, 0, 1, 1]), Mac([2, 0, 0, 0, 1, 2])).emit(&mut inside).unwrap();
    udp_packet(&mut inside[14..], THERE.0, HERE.0, vxlan::PORT);
    Vxlan { vni: 100 }.emit(&mut inside[42..]).unwrap();
    frame(GATEWAY_MAC, GATEWAY_MAC).emit(&mut inside[50..]).unwrap();
    udp_packet(&mut inside[64..], THERE.1, HERE.1, 2000);
    [
        Direction {
            name: "encapsulate",
            ingress: TENANT,
            egress: UPLINK,
            frame: out,
            ports_at: 34,
            encapsulates: true,
        },
        Direction {
            name: "decapsulate",
            ingress: UPLINK,
            egress: TENANT,
            frame: inside,
            ports_at: 84,
            encapsulates: false,
        },
    ]
}

/// Puts the packets back to what they were before the switch and gives each its flow.
fn refill(direction: &Direction, moved: bool, burst: &mut Burst, next: &mut u32, flows: u32) {
    for packet in burst {
        let head = match (moved, direction.encapsulates) {
            (true, true) => packet.shrink_front(OUTER_BYTES).unwrap(),
            (true, false) => packet.grow_front(OUTER_BYTES).unwrap(),
            (false, _) => packet.head_mut(),
        };
        head.copy_from_slice(&direction.frame);
        // Flow n: source port from its low half, destination port from its high half.
        head[direction.ports_at..][..2].copy_from_slice(&(*next as u16).to_be_bytes());
        let high = 2000 + (*next >> 16) as u16;
        head[direction.ports_at + 2..][..2].copy_from_slice(&high.to_be_bytes());
        *next = if *next + 1 == flows { 0 } else { *next + 1 };
    }
}

/// Nanoseconds per packet of refilling alone, and of refilling and deciding.
fn measure(
    direction: &Direction,
    flows: u32,
    switch: &mut Switch,
    free: &mut FreeList,
) -> (f64, f64) {
    let mut burst: Burst = (0..BURST)
        .map(|_| Packet::new(Chain::from_slice(&direction.frame, free).unwrap(), direction.ingress))
        .collect();
    let mut verdicts = ArrayVec::new();
    let (mut next, mut moved) = (0, false);
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        let start = now_ns();
        for _ in 0..PACKETS / BURST {
            refill(direction, moved, &mut burst, &mut next, flows);
            moved = false;
            std::hint::black_box(&mut burst);
        }
        let middle = now_ns();
        for _ in 0..PACKETS / BURST {
            refill(direction, moved, &mut burst, &mut next, flows);
            switch.decide(now_ns(), &mut burst, free, &mut verdicts);
            moved = true;
            std::hint::black_box((&mut burst, &verdicts));
        }
        assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Forward(direction.egress)));
        // The first round warms up.
        if round > 0 {
            times[0].push((middle - start) as f64 / PACKETS as f64);
            times[1].push((now_ns() - middle) as f64 / PACKETS as f64);
        }
    }
    burst.into_iter().for_each(|packet| packet.into_chain().free(free));
    let [refilling, deciding] = times.map(|mut list| {
        list.sort_by(f64::total_cmp);
        list[ROUNDS / 2]
    });
    (refilling, deciding)
}

fn main() {
    let tables = Arc::new(tables());
    let mut free = Region::new(BURST as u32).unwrap().carve(BURST as u32).unwrap();
    println!("direction     flows    ns/packet  (refill alone)  hits       misses  evictions");
    for direction in directions() {
        for flows in [1, 1_000, 100_000] {
            let mut switch = Switch::new(CACHE_FLOWS, Seed::new(now_ns()), tables.clone());
            let (refilling, deciding) = measure(&direction, flows, &mut switch, &mut free);
            let counters = switch.counters();
            println!(
                "{:<12} {flows:>7}  {:>10.1}  {refilling:>14.1}  {:>9}  {:>7}  {:>9}",
                direction.name,
                deciding - refilling,
                counters.hits.get(),
                counters.misses.get(),
                counters.evictions.get(),
            );
        }
    }
}
