//! Two workers, two tenants, one on each: packets cross in both directions, nothing is lost,
//! nothing is allocated, and every frame is there at the end.

use crossbeam::channel::{Receiver, Sender, bounded};
use outboard::bell::Bell;
use outboard::capture::{Drain, Filter, Stage, Wanted, tap};
use outboard::config::Plan;
use outboard::config::plan::{Role, WaitMode};
use outboard::counters::PortCounters;
use outboard::drop::DropReason;
use outboard::packet::PortId;
use outboard::port::AnyPort;
use outboard::port::peer::Peer;
use outboard::port::test::TestPort;
use outboard::switch::{NextHop, Seed, Switch, Tables};
use outboard::worker::{
    Exit, Fittings, Message, Network, Queue, Retired, Storage, Waiting, Worker, WorkerCounters,
};
use outboard_dma::{Chain, CountingAllocator, FreeList, Region};
use outboard_sim::Rng;
use outboard_wire::{Ethernet, Ipv4, Mac, Udp, ethernet, ipv4};
use std::net::Ipv4Addr;
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const CONFIG: &str = r#"
name = "two-workers"
[[worker]]
core = 0
[[worker]]
core = 1
[[vpc]]
name = "red"
vni = 100
gateway = "10.0.0.254"
[[vpc.route]]
to = "10.0.1.0/24"
via = "192.0.2.2"
[[uplink]]
name = "up"
interface = "up0"
vtep = "192.0.2.1"
worker = 0
[[port]]
name = "left"
interface = "left0"
vpc = "red"
address = "10.0.0.1/24"
worker = 0
[[port]]
name = "right"
interface = "right0"
vpc = "red"
address = "10.0.0.2/24"
worker = 1
"#;

const SHARE: u32 = 4096;
const FAR_END: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// A worker with control's end of its mailbox.
struct Made {
    worker: Worker,
    mailbox: Sender<Message>,
    retired: Receiver<Retired>,
    counters: Vec<Arc<PortCounters>>,
}

/// The two workers of `CONFIG`. Worker 0 has the uplink (queue 0) and `left` (queue 1), worker 1
/// has `right` (queue 0).
fn workers(plan: &Plan, region: &'static Region) -> [Made; 2] {
    let bells = [0, 1].map(|_| Arc::new(Bell::new().unwrap()));
    let (a, b) = Peer::pair(Arc::clone(&bells[0]), Arc::clone(&bells[1]));
    let mut peers = [vec![None, Some(a)], vec![Some(b), None]];
    let tables = Arc::new(Tables::new(plan, &[(FAR_END.into(), NextHop::Unresolved)]));
    let exits = [
        vec![Exit::Queue(0), Exit::Queue(1), Exit::Peer(1)],
        vec![Exit::Peer(0), Exit::Peer(0), Exit::Queue(0)],
    ];
    let owned: [&[u16]; 2] = [&[0, 1], &[2]];
    [0, 1].map(|index| {
        let counters: Vec<Arc<PortCounters>> = (0..3).map(|_| Arc::default()).collect();
        let queue = |id: &u16| {
            let counters = Arc::clone(&counters[usize::from(*id)]);
            let port = TestPort::new(PortId(*id), 256, counters);
            Queue::new(PortId(*id), AnyPort::Test(port))
        };
        let network = Network::new(
            owned[index].iter().map(queue).collect(),
            exits[index].clone(),
            std::mem::take(&mut peers[index]),
            Switch::new(1024, Seed::new(7), Arc::clone(&tables)),
            counters.clone(),
        );
        let (mailbox, inbox) = bounded(4);
        let (outbox, retired) = bounded(4);
        let fittings = Fittings {
            free: region.carve(SHARE).unwrap(),
            share_frames: SHARE as usize,
            mailbox: inbox,
            retired: outbox,
            bell: Arc::clone(&bells[index]),
            waiting: Waiting { mode: WaitMode::Adaptive, spin_ns: 1000 },
            counters: Arc::<WorkerCounters>::default(),
        };
        Made {
            worker: Worker::new(network, Storage::default(), fittings),
            mailbox,
            retired,
            counters,
        }
    })
}

/// A UDP frame of `bytes` payload from a tenant to the gateway's MAC.
fn frame(plan: &Plan, from: PortId, to: Ipv4Addr, flow: u16, bytes: usize) -> Vec<u8> {
    let Role::Tenant(tenant) = plan.ports[usize::from(from.0)].role else { panic!("an uplink") };
    let udp = Udp { source: flow, destination: 7, len: (8 + bytes) as u16, checksum: 0 };
    let ip = Ipv4 {
        tos: 0,
        total_len: 20 + udp.len,
        id: 0,
        fragment: 0,
        ttl: 64,
        protocol: ipv4::UDP,
        source: tenant.address.expect("an IPv4 address").address,
        destination: to,
    };
    let destination = plan.vpcs[0].gateway_mac;
    let mut out = vec![flow as u8; 14 + 20 + 8 + bytes];
    Ethernet { destination, source: tenant.mac, ethertype: ethernet::IPV4 }.emit(&mut out).unwrap();
    ip.emit(&mut out[14..]).unwrap();
    udp.emit(&mut out[34..]).unwrap();
    out
}

fn port(worker: &mut Worker, queue: usize) -> &mut TestPort {
    match worker.network_mut().port_mut(queue) {
        AnyPort::Test(port) => port,
        other => panic!("not a test port: {other:?}"),
    }
}

/// Ends both workers as control does and checks that every frame came back.
fn end(made: [Made; 2], tenants: Tenants) {
    let mut workers = made.map(|made| made.worker);
    workers.iter_mut().for_each(Worker::drain);
    let ended = workers.map(Worker::end);
    let total: usize = ended.iter().map(|ended| ended.total_frames).sum();
    let recovered: usize = ended.iter().map(|ended| ended.recovered_frames).sum();
    assert_eq!(total, 2 * SHARE as usize);
    // Frames of the tenants' packets that were dropped ended in the workers' stocks.
    assert_eq!(recovered + tenants.free.len(), 3 * SHARE as usize);
}

/// The tests' own frames, and what they have sent and seen.
struct Tenants {
    free: FreeList,
    sent: u64,
    seen: u64,
}

impl Tenants {
    fn send(&mut self, worker: &mut Worker, queue: usize, data: &[u8]) {
        let Some(chain) = Chain::from_slice(data, &mut self.free) else { return };
        match port(worker, queue).inject_chain(chain) {
            Ok(()) => self.sent += 1,
            Err(chain) => chain.free(&mut self.free),
        }
    }

    fn collect(&mut self, worker: &mut Worker, queue: usize, destination: Mac) {
        while let Some(chain) = port(worker, queue).collect_chain() {
            assert_eq!(&chain.head()[..6], &destination.0, "delivered to the wrong tenant");
            self.seen += 1;
            chain.free(&mut self.free);
        }
    }
}

/// Lets a tap look at each tenant's port, both ways, but not at flows from 32 to 63.
fn tap_both(made: &mut [Made; 2], ports: [PortId; 2]) -> [Drain; 2] {
    let mut workers = made.iter_mut();
    ports.map(|port| {
        let filter = Filter::parse("src portrange 0-31 or src portrange 64-4096").unwrap();
        let stages = vec![Stage::In, Stage::Out];
        let (tap, drain) = tap(1, Wanted { port, stages, filter, snap_bytes: 100 });
        let worker = &mut workers.next().unwrap().worker;
        assert!(worker.network_mut().add_tap(Box::new(tap)).is_none());
        drain
    })
}

/// Packets that taps have seen since the last call.
fn count(drains: &mut [Drain; 2]) -> u64 {
    drains.iter_mut().map(|drain| drain.by_ref().count() as u64).sum()
}

#[test]
fn packets_cross_both_ways_and_nothing_is_lost_or_allocated() {
    const PACKETS: u64 = 1_000_000;
    let plan = outboard::config::parse("two.toml", CONFIG.as_bytes()).unwrap();
    let region = Region::new(3 * SHARE).unwrap();
    let mut made = workers(&plan, region);
    let mut tenants = Tenants { free: region.carve(SHARE).unwrap(), sent: 0, seen: 0 };
    let (left, right) = (PortId(1), PortId(2));
    let macs = [1, 2].map(|port: usize| match plan.ports[port].role {
        Role::Tenant(tenant) => tenant.mac,
        Role::Uplink { .. } => unreachable!("ports 1 and 2 are tenants"),
    });
    // 4 096 flows over a cache of 1 024: hits, misses and evictions. Some need three frames.
    let to_right: Vec<_> = (0..2048u16)
        .map(|flow| {
            frame(&plan, left, [10, 0, 0, 2].into(), flow, if flow % 64 == 0 { 1300 } else { 22 })
        })
        .collect();
    let to_left: Vec<_> =
        (0..2048u16).map(|flow| frame(&plan, right, [10, 0, 0, 1].into(), flow, 22)).collect();
    let mut rng = Rng::new(1);
    let mut allocated = 0;
    let mut drains = tap_both(&mut made, [left, right]);
    let mut tapped = 0;
    let mut untapped = 0;
    while tenants.seen < PACKETS {
        let [first, second] = &mut made;
        for _ in 0..rng.below(40) {
            // Mostly few flows, so that the cache has something to hit.
            let range = if rng.chance(100_000) { 2048 } else { 64 };
            let flow = rng.index(range);
            let sent_before = tenants.sent;
            if rng.chance(500_000) {
                tenants.send(&mut first.worker, 1, &to_right[flow]);
            } else {
                tenants.send(&mut second.worker, 0, &to_left[flow]);
            }
            if (32..64).contains(&flow) {
                untapped += tenants.sent - sent_before;
            }
        }
        let before = CountingAllocator::count();
        if rng.chance(700_000) {
            first.worker.turn(tenants.seen);
        }
        if rng.chance(700_000) {
            second.worker.turn(tenants.seen);
        }
        allocated += CountingAllocator::count() - before;
        tenants.collect(&mut first.worker, 1, macs[0]);
        tenants.collect(&mut second.worker, 0, macs[1]);
        tapped += count(&mut drains);
    }
    for _ in 0..64 {
        for made in &mut made {
            made.worker.turn(0);
        }
        tenants.collect(&mut made[0].worker, 1, macs[0]);
        tenants.collect(&mut made[1].worker, 0, macs[1]);
    }
    assert_eq!(tenants.sent, tenants.seen, "packets were lost");
    assert_eq!(allocated, 0, "turns allocated");
    tapped += count(&mut drains);
    assert_eq!(drains.iter().map(Drain::missed).sum::<u64>(), 0);
    assert_eq!(tapped, 2 * (tenants.sent - untapped), "once in and once out");
    let dropped: u64 =
        made.iter().flat_map(|made| &made.counters).map(|port| port.drops.total()).sum();
    assert_eq!(dropped, 0);
    assert_eq!(tenants.free.len(), SHARE as usize);
    end(made, tenants);
}

#[test]
fn at_most_three_packets_wait_for_a_next_hop_and_go_when_it_is_there() {
    let plan = outboard::config::parse("two.toml", CONFIG.as_bytes()).unwrap();
    let region = Region::new(3 * SHARE).unwrap();
    let mut made = workers(&plan, region);
    let mut tenants = Tenants { free: region.carve(SHARE).unwrap(), sent: 0, seen: 0 };
    let first = &mut made[0];
    for flow in 0..4 {
        let data = frame(&plan, PortId(1), [10, 0, 1, 9].into(), flow, 22);
        tenants.send(&mut first.worker, 1, &data);
    }
    first.worker.turn(0);
    let unresolved = |made: &Made| made.counters[1].drops.get(DropReason::NextHopUnresolved);
    assert_eq!(unresolved(first), 1, "three are held, the fourth is dropped");
    assert!(port(&mut first.worker, 0).collect_chain().is_none());
    let resolved = NextHop::Resolved {
        port: PortId(0),
        src_ip: Ipv4Addr::new(192, 0, 2, 1).into(),
        src_mac: Mac([2, 0, 0, 0, 0, 1]),
        dst_mac: Mac([2, 0, 0, 0, 0, 2]),
        path_mtu: 9000,
    };
    let tables = Arc::new(Tables::new(&plan, &[(FAR_END.into(), resolved)]));
    first.mailbox.send(Message::Tables(tables)).unwrap();
    first.worker.turn(1);
    first.worker.turn(2);
    tenants.collect(&mut first.worker, 0, Mac([2, 0, 0, 0, 0, 2]));
    assert_eq!(tenants.seen, 3);
    assert_eq!(first.retired.try_iter().count(), 1, "the old tables go back to control");
    end(made, tenants);
}

#[test]
fn who_sent_what_is_held_too_long_is_told_and_stopping_ends_the_rest() {
    let plan = outboard::config::parse("two.toml", CONFIG.as_bytes()).unwrap();
    let region = Region::new(3 * SHARE).unwrap();
    let mut made = workers(&plan, region);
    let mut tenants = Tenants { free: region.carve(SHARE).unwrap(), sent: 0, seen: 0 };
    let data = frame(&plan, PortId(1), [10, 0, 1, 9].into(), 1, 22);
    tenants.send(&mut made[0].worker, 1, &data);
    made[0].worker.turn(1);
    made[0].worker.turn(3_000_000_000);
    let counters = Arc::clone(&made[0].counters[1]);
    assert_eq!(counters.drops.total(), 0);
    assert!(port(&mut made[0].worker, 1).collect_chain().is_none());
    made[0].worker.turn(3_000_000_001);
    assert_eq!(counters.drops.total(), 0);
    let told = port(&mut made[0].worker, 1).collect_chain().expect("its sender is told");
    assert_eq!(told.head()[34..36], [3, 1], "host unreachable (RFC 792)");
    told.free(&mut tenants.free);
    tenants.send(&mut made[0].worker, 1, &data);
    made[0].worker.turn(4_000_000_000);
    // One crosses to a worker that never turns again.
    let data = frame(&plan, PortId(1), [10, 0, 0, 2].into(), 1, 22);
    tenants.send(&mut made[0].worker, 1, &data);
    made[0].worker.turn(4_000_000_001);
    let other = Arc::clone(&made[1].counters[1]);
    end(made, tenants);
    assert_eq!(counters.drops.get(DropReason::Stopping), 1);
    assert_eq!(other.drops.get(DropReason::Stopping), 1);
}

#[test]
fn new_tables_give_a_held_packet_no_more_time() {
    let plan = outboard::config::parse("two.toml", CONFIG.as_bytes()).unwrap();
    let region = Region::new(3 * SHARE).unwrap();
    let mut made = workers(&plan, region);
    let mut tenants = Tenants { free: region.carve(SHARE).unwrap(), sent: 0, seen: 0 };
    let data = frame(&plan, PortId(1), [10, 0, 1, 9].into(), 1, 22);
    tenants.send(&mut made[0].worker, 1, &data);
    made[0].worker.turn(1);
    for now_ns in [1_000_000_000, 2_000_000_000, 3_000_000_000] {
        let tables = Arc::new(Tables::new(&plan, &[(FAR_END.into(), NextHop::Unresolved)]));
        made[0].mailbox.send(Message::Tables(tables)).unwrap();
        made[0].worker.turn(now_ns);
        assert!(port(&mut made[0].worker, 1).collect_chain().is_none(), "given up at {now_ns}");
    }
    made[0].worker.turn(3_000_000_001);
    let told = port(&mut made[0].worker, 1).collect_chain().expect("its sender is told");
    assert_eq!(told.head()[34..36], [3, 1], "host unreachable (RFC 792)");
    told.free(&mut tenants.free);
    end(made, tenants);
}
