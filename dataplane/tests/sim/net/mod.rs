//! Two hosts, each the network rooms of two workers between four tenants and an uplink, joined by
//! a link that loses, reorders, duplicates and corrupts; two VPCs with the same addresses, spread
//! over the workers. All from one seed.
//!
//! What must hold: packets and frames are conserved; nothing reaches another tenant, let alone
//! another VPC; what is delivered is what was sent, or the link changed it and a checksum
//! tells; local datagrams come at most once, others at most as often as the link duplicates. When
//! the faults stop, every datagram arrives exactly once.

mod abuse;
mod frames;
mod host;
mod tenant;
mod topology;

use crate::coverage::Coverage;
use host::{Host, WORKERS};
use outboard::drop::DropReason;
use outboard::switch::NextHop;
use outboard_sim::{Arrival, Link, LinkFaults, Rng};
use outboard_wire::{Ipv4, ecn, ethernet, ipv4};
use tenant::{Ledger, Tenant};
use topology::{
    HOSTS, TENANTS, UPLINK, places, resolved, tables, tables_in_another_order,
    tables_without_uplink,
};

/// Frames that reach a host or the link, per seed.
const EVENTS: u64 = 50_000;
/// Datagrams per seed behind the faults.
const CLEAN_DATAGRAMS: u64 = 2_000;
/// Distinct drop reasons that every seed reaches.
const REASONS_PER_SEED: usize = 24;

/// No worker holds a packet for this long.
const LONGER_THAN_HELD_NS: u64 = 10_000_000_000;

const FAULTS: LinkFaults = LinkFaults {
    loss_ppm: 20_000,
    duplicate_ppm: 20_000,
    corrupt_ppm: 20_000,
    reorder_ppm: 50_000,
    delay_ns: 10_000,
    reorder_ns: 200_000,
    capacity: 64,
};
const CLEAN: LinkFaults = LinkFaults {
    loss_ppm: 0,
    duplicate_ppm: 0,
    corrupt_ppm: 0,
    reorder_ppm: 0,
    delay_ns: 10_000,
    reorder_ns: 0,
    capacity: 64,
};

struct World {
    rng: Rng,
    now_ns: u64,
    hosts: Vec<Host>,
    /// From the host of that index to the other.
    links: Vec<Link>,
    tenants: Vec<Tenant>,
    ledger: Ledger,
    /// Frames that the link had changed, by the host they reached.
    corrupted: [u64; HOSTS],
    events: u64,
    /// Switches that went on from what was saved: without flows, with some.
    reloads: [u64; 2],
    /// Whether routers on the way mark congestion.
    congested: bool,
    /// The hosts' workers, then what takes the hosts' frames.
    stalled_until_ns: [u64; HOSTS * (WORKERS + 1)],
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let host = |index| {
            let tables = tables(index, resolved(index));
            Host::new(TENANTS + 1, &tables, rng.fork())
        };
        let hosts = (0..HOSTS).map(host).collect();
        World {
            hosts,
            links: (0..HOSTS).map(|_| Link::new(rng.fork(), FAULTS)).collect(),
            tenants: places().into_iter().map(Tenant::new).collect(),
            ledger: Ledger::default(),
            corrupted: [0; HOSTS],
            events: 0,
            reloads: [0; 2],
            congested: true,
            stalled_until_ns: [0; HOSTS * (WORKERS + 1)],
            now_ns: 1,
            rng,
        }
    }

    fn step(&mut self) {
        self.now_ns += self.rng.between(1_000, 40_000);
        for index in 0..self.tenants.len() {
            if self.rng.chance(300_000) {
                self.act(index);
            }
        }
        for host in 0..HOSTS {
            self.arrivals(host);
            if self.rng.chance(100_000) {
                let junk = abuse::from_underlay(host, &mut self.rng);
                self.arrive(host, UPLINK, &junk);
            }
            if self.rng.chance(5_000) {
                self.change_tables(host);
            }
            if self.rng.chance(2_000) {
                let worker = self.rng.index(WORKERS);
                self.reloads[usize::from(self.hosts[host].reload(worker, self.now_ns) > 0)] += 1;
            }
            // Now and then a host is late, or nobody takes what it sends.
            for worker in 0..WORKERS {
                if self.is_awake(host * WORKERS + worker) {
                    self.hosts[host].turn(worker, self.now_ns);
                }
            }
            if self.is_awake(HOSTS * WORKERS + host) {
                self.departures(host, 64);
            }
        }
    }

    /// Whether a worker, or what is behind a host, is not stalled now; sometimes a stall begins.
    fn is_awake(&mut self, which: usize) -> bool {
        if self.rng.chance(3_000) {
            self.stalled_until_ns[which] = self.now_ns + self.rng.below(2_000_000);
        }
        self.stalled_until_ns[which] <= self.now_ns
    }

    /// Something that a tenant does.
    fn act(&mut self, index: usize) {
        let place = self.tenants[index].place;
        let bytes = match self.rng.below(100) {
            0 => {
                self.tenants[index].forget();
                return;
            }
            1 => abuse::echo_request(&place),
            2..12 => abuse::from_tenant(&place, &mut self.rng),
            _ if !self.tenants[index].knows_gateway() => self.tenants[index].ask(),
            _ => {
                let to = self.peer_of(index);
                self.tenants[index].datagram(&to, &mut self.ledger, &mut self.rng)
            }
        };
        self.arrive(place.host, place.port, &bytes);
    }

    /// Another tenant of the same VPC.
    fn peer_of(&mut self, index: usize) -> topology::Place {
        let me = self.tenants[index].place;
        loop {
            let other = self.tenants[self.rng.index(self.tenants.len())].place;
            if other != me && other.vpc == me.vpc {
                return other;
            }
        }
    }

    fn arrive(&mut self, host: usize, port: outboard::packet::PortId, bytes: &[u8]) -> bool {
        self.events += 1;
        self.hosts[host].arrive(port, bytes)
    }

    /// What the link brings to a host.
    fn arrivals(&mut self, host: usize) {
        while let Some(arrival) = self.links[1 - host].receive(self.now_ns) {
            let Arrival { mut bytes, corrupted, .. } = arrival;
            if corrupted {
                self.corrupted[host] += 1;
            } else if self.congested && self.rng.chance(30_000) {
                mark_congestion(&mut bytes);
            }
            if self.rng.chance(50_000) {
                let trailer = self.rng.index(30);
                bytes.resize(bytes.len() + trailer, 0xcc);
            }
            self.arrive(host, UPLINK, &bytes);
        }
    }

    /// What a host sends.
    fn departures(&mut self, host: usize, most: usize) {
        for index in 0..self.tenants.len() {
            let place = self.tenants[index].place;
            if place.host == host {
                for bytes in self.hosts[host].sent_through(place.port, most) {
                    self.tenants[index].receive(&bytes, &mut self.ledger);
                }
            }
        }
        for bytes in self.hosts[host].sent_through(UPLINK, most) {
            self.events += 1;
            frames::check_tunnel(host, &bytes);
            self.links[host].send(self.now_ns, bytes);
        }
    }

    fn change_tables(&mut self, host: usize) {
        let tables = match self.rng.below(10) {
            0 | 1 => tables(host, NextHop::Unresolved),
            2 => tables(host, NextHop::NoRoute),
            3 => tables_without_uplink(host),
            4..7 => tables_in_another_order(host),
            _ => tables(host, resolved(host)),
        };
        // Each worker hears of it on its own.
        let worker = self.rng.index(WORKERS);
        self.hosts[host].set_tables(worker, self.now_ns, tables);
    }

    /// Lets everything under way end, and looks at the books.
    fn settle(&mut self) {
        for _ in 0..400 {
            self.now_ns += 10_000;
            for host in 0..HOSTS {
                self.arrivals(host);
                self.turn(host);
                self.departures(host, 64);
            }
        }
        // What is still held waits for a next hop in vain.
        self.now_ns += LONGER_THAN_HELD_NS;
        for host in 0..HOSTS {
            self.turn(host);
            self.departures(host, 64);
            self.hosts[host].check_books();
        }
    }

    fn turn(&mut self, host: usize) {
        // The first has a turn for what the second handed over.
        for worker in (0..WORKERS).chain(0..WORKERS) {
            self.hosts[host].turn(worker, self.now_ns);
        }
    }

    /// Without faults everything arrives, whatever happened before.
    fn everything_arrives_once(&mut self) {
        self.links.iter_mut().for_each(|link| link.set_faults(CLEAN));
        self.congested = false;
        for host in 0..HOSTS {
            for worker in 0..WORKERS {
                let tables = tables(host, resolved(host));
                self.hosts[host].set_tables(worker, self.now_ns, tables);
            }
        }
        self.settle();
        for index in 0..self.tenants.len() {
            let place = self.tenants[index].place;
            let ask = self.tenants[index].ask();
            assert!(self.arrive(place.host, place.port, &ask));
            self.settle();
            assert!(self.tenants[index].knows_gateway());
        }
        let first = self.ledger.next_id();
        while self.ledger.next_id() < first + CLEAN_DATAGRAMS {
            for index in 0..self.tenants.len() {
                let to = self.peer_of(index);
                let bytes = self.tenants[index].datagram(&to, &mut self.ledger, &mut self.rng);
                let place = self.tenants[index].place;
                assert!(self.arrive(place.host, place.port, &bytes), "room for eight packets");
            }
            self.now_ns += 20_000;
            for host in 0..HOSTS {
                self.turn(host);
                self.departures(host, 64);
            }
            for host in 0..HOSTS {
                self.arrivals(host);
            }
        }
        self.settle();
        let lost: Vec<u64> = self
            .ledger
            .deliveries_since(first)
            .filter(|(_, deliveries)| *deliveries != 1)
            .map(|(id, _)| id)
            .collect();
        assert!(lost.is_empty(), "{} of the clean datagrams not delivered once", lost.len());
    }

    fn check_links(&self) {
        for (host, link) in self.links.iter().enumerate() {
            let s = link.statistics();
            assert_eq!(s.sent, self.hosts[host].sent_packets(UPLINK));
            let ended = s.lost + s.overflowed + s.delivered + link.in_flight() as u64;
            assert_eq!(s.sent + s.duplicated, ended, "{s:?}");
        }
        let corrupted: u64 = self.corrupted.iter().sum();
        assert!(self.ledger.caught <= corrupted, "changed, but not by the link");
    }
}

/// What a congested router does to a tunnel packet (RFC 3168): marks it. Some mark without looking
/// whether they may.
fn mark_congestion(bytes: &mut [u8]) {
    let at = ethernet::BYTES;
    if Ipv4::parse(&bytes[at..], usize::MAX).is_ok()
        && let Some(header) = bytes[at..].first_chunk_mut::<{ ipv4::BYTES }>()
    {
        let tos = header[1] | ecn::CE;
        ipv4::set_tos(header, tos);
    }
}

/// Runs a seed: how many events.
pub fn run(seed: u64, coverage: &mut Coverage) -> u64 {
    let mut world = World::new(seed);
    let mut next_check = EVENTS / 8;
    while world.events < EVENTS {
        world.step();
        if world.events >= next_check {
            world.settle();
            next_check += EVENTS / 8;
        }
    }
    world.everything_arrives_once();
    world.check_links();
    let mut reasons = 0;
    for reason in DropReason::ALL {
        let count = world.hosts.iter().map(|host| host.dropped(*reason)).sum();
        coverage.add("drop", reason.name(), count);
        reasons += usize::from(count > 0);
    }
    report(&world, coverage);
    let Ledger { delivered, caught, marked, .. } = world.ledger;
    assert!(delivered > 10_000 && caught > 0 && marked > 0);
    assert!(world.tenants.iter().all(|tenant| tenant.arp_replies > 0));
    assert!(world.tenants.iter().any(|tenant| tenant.echo_replies > 0));
    assert!(world.tenants.iter().all(|tenant| tenant.errors > 0));
    assert!(world.hosts.iter().all(|host| host.flows().iter().all(|count| *count > 0)));
    assert!(world.reloads[1] > 0, "no switch was saved and loaded");
    assert!(reasons >= REASONS_PER_SEED, "{reasons} reasons");
    world.hosts.into_iter().for_each(Host::close);
    world.events
}

fn report(world: &World, coverage: &mut Coverage) {
    let Ledger { delivered, caught, marked, .. } = world.ledger;
    for (name, count) in [("delivered", delivered), ("caught", caught), ("marked", marked)] {
        coverage.add("datagram", name, count);
    }
    coverage.add("saved", "switch", world.reloads[1]);
    for (host, link) in world.hosts.iter().zip(&world.links) {
        let names = ["hits", "misses", "recompiles", "evictions"];
        for (name, count) in names.iter().zip(host.flows()) {
            coverage.add("flow", name, count);
        }
        coverage.add("port", "refused", host.refused);
        let s = link.statistics();
        for (name, count) in [
            ("lost", s.lost),
            ("overflowed", s.overflowed),
            ("duplicated", s.duplicated),
            ("corrupted", s.corrupted),
            ("reordered", s.reordered),
        ] {
            coverage.add("link", name, count);
        }
    }
}
