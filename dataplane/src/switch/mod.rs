//! The virtual switch: frames in, verdicts out. Pure: no I/O, no clock, no randomness of its own.
//!
//! A tenant's VPC follows from its port, a tunnel packet's from its VNI, and from nothing else; so
//! VPCs with the same addresses never meet. The first packet of a flow looks its route up; the
//! flow cache then holds the transform that the route was compiled to. Inner packets are IPv4
//! (RFC 791) or IPv6 (RFC 8200), routed by a virtual gateway (RFC 1812, RFC 4443: hops counted,
//! headers checked, senders told by ICMP), outer ones VXLAN over either (RFC 7348) with ECN
//! carried through (RFC 6040).

mod answer;
mod flow;
mod icmp_error;
mod lpm;
mod meter;
mod neighbour;
mod parse;
mod payload;
mod saved;
mod tables;
mod transform;

#[cfg(test)]
mod tests;

pub use flow::{FiveTuple, MIN_FLOWS, Seed, owner};
pub use saved::{FlowState, STATE_VERSION, SwitchState, SwitchStateError};
pub use tables::{NextHop, NextHopId, Tables};

use crate::counters::Counter;
use crate::drop::DropReason;
use crate::packet::{BURST, Packet, PortId};
use arrayvec::ArrayVec;
use flow::{Addresses6, Flow, FlowCache, Inserted};
use meter::Meter;
use outboard_dma::{Chain, FreeList, prefetch};
use outboard_wire::{ethernet, ipv4, ipv6, udp, vxlan};
use parse::{Kind, Seen};
use std::net::IpAddr;
use std::sync::Arc;
use tables::Ingress;

/// Bytes of the outer Ethernet, IPv4, UDP and VXLAN headers.
const OUTER_BYTES: usize = ethernet::BYTES + ipv4::BYTES + udp::BYTES + vxlan::BYTES;
/// The same over IPv6.
const OUTER6_BYTES: usize = ethernet::BYTES + ipv6::BYTES + udp::BYTES + vxlan::BYTES;
/// 2^26 ns: how fine the age of flows is, and how often a flow's checksums are looked at.
const TICK_SHIFT: u32 = 26;
/// The most frames with which the gateway greets a tenant.
pub const GREETINGS: usize = 3;
/// How many packets ahead headers are asked for.
const AHEAD: usize = 4;

/// What shall happen to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it, rewritten, through this port.
    Forward(PortId),
    /// Drop it.
    Drop(DropReason),
    /// Hold it, untouched, until this far end's MAC address is known, or drop it with
    /// [`DropReason::NextHopUnresolved`]. What was held is decided anew.
    Unresolved(NextHopId),
}

/// What the flow cache did. Every packet that belongs to a flow counts once in the first three.
#[derive(Debug, Default)]
pub struct SwitchCounters {
    /// Packets whose flow was there.
    pub hits: Counter,
    /// Packets whose flow was not.
    pub misses: Counter,
    /// Packets whose flow was there but compiled from older tables, or for another far end.
    pub recompiles: Counter,
    /// Flows that made room for another.
    pub evictions: Counter,
    /// Flows that were evicted, or not remembered, because their VPC had more than its share of
    /// the cache.
    pub over_share: Counter,
    /// Packets that were turned into an ICMP error for their sender.
    pub errors_sent: Counter,
    /// Packets that were dropped because their sender had been told too often.
    pub errors_withheld: Counter,
}

/// One worker's switch.
#[derive(Debug)]
pub struct Switch {
    tables: Arc<Tables>,
    /// Counts tables; flows of another generation are compiled again when next seen. Never 0.
    generation: u32,
    flows: FlowCache,
    lanes: Box<[Lane; BURST]>,
    /// The addresses of the burst's packets of IPv6.
    addresses6: Box<[Addresses6; BURST]>,
    /// How often senders are told.
    meter: Meter,
    counters: Arc<SwitchCounters>,
}

/// One packet of the burst between the steps.
#[derive(Clone, Copy, Debug)]
struct Lane {
    seen: Seen,
    step: Step,
}

/// How far a packet has come.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Not found in its first bucket, or not usable as found.
    Search,
    /// Its transform is known; whether its checksum is to be looked at.
    Run { transform: u32, inspect: bool },
    /// There is no transform for it.
    Refused(DropReason),
    /// Nothing left to do.
    Done(Verdict),
}

impl Switch {
    /// A switch whose cache holds `flows` flows, a power of two from [`MIN_FLOWS`] on.
    ///
    /// # Panics
    /// When `flows` is anything else.
    pub fn new(flows: u32, seed: Seed, tables: Arc<Tables>) -> Switch {
        let lane = Lane { seen: Seen::default(), step: Step::Search };
        Switch {
            tables,
            generation: 1,
            flows: FlowCache::new(flows, seed),
            lanes: Box::new([lane; BURST]),
            addresses6: Box::new([Addresses6::default(); BURST]),
            meter: Meter::new(),
            counters: Arc::default(),
        }
    }

    /// What the flow cache did so far.
    pub fn counters(&self) -> Arc<SwitchCounters> {
        self.counters.clone()
    }

    /// The tables in force.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// Swaps the tables and returns the old ones, to be freed elsewhere. Takes the same time
    /// whatever the cache holds: its flows are compiled again one by one as they are seen.
    pub fn set_tables(&mut self, tables: Arc<Tables>) -> Arc<Tables> {
        if !planted!("switch-stale-flow") {
            self.generation = self.generation.checked_add(1).unwrap_or(1);
        }
        std::mem::replace(&mut self.tables, tables)
    }

    /// Decides on up to [`BURST`] packets: one verdict each, in order, in place of what `verdicts`
    /// held. Packets to forward are rewritten; frames that their padding took go to `free`.
    ///
    /// # Panics
    /// When there are more than [`BURST`] packets.
    pub fn decide(
        &mut self,
        now_ns: u64,
        packets: &mut [Packet],
        free: &mut FreeList,
        verdicts: &mut ArrayVec<Verdict, BURST>,
    ) {
        assert!(packets.len() <= BURST, "a burst of {} packets", packets.len());
        verdicts.clear();
        let tick = (now_ns >> TICK_SHIFT) as u32;
        self.look(packets, free);
        self.find(packets.len(), tick);
        for (index, packet) in packets.iter_mut().enumerate() {
            let verdict = self.act(index, packet, free, tick);
            verdicts.push(match verdict {
                Verdict::Drop(reason) => self.complain(reason, index, packet, free, now_ns),
                verdict => verdict,
            });
        }
    }

    /// The frames with which the gateway tells a tenant of itself, to be sent when its port
    /// appears and from time to time: gratuitous ARP, unsolicited neighbour and router
    /// advertisement. None for an uplink, and none for which there is no frame.
    pub fn greet(&self, port: PortId, free: &mut FreeList) -> ArrayVec<Packet, GREETINGS> {
        let mut packets = ArrayVec::new();
        let Some(Ingress::Tenant(tenant)) = self.tables.ingress(port) else { return packets };
        let mut add = |frame: &[u8]| {
            packets.extend(Chain::from_slice(frame, free).map(|chain| Packet::new(chain, port)));
        };
        if let Some(frame) = answer::greeting(tenant) {
            add(&frame);
        }
        if let Some((neighbour, router)) = neighbour::greetings(tenant) {
            add(&neighbour);
            add(&router);
        }
        packets
    }

    /// First step: parse, hash, ask for the bucket.
    #[inline(always)]
    fn look(&mut self, packets: &mut [Packet], free: &mut FreeList) {
        for packet in packets.iter().take(AHEAD) {
            packet.prefetch();
        }
        for index in 0..packets.len() {
            if let Some(packet) = packets.get(index + AHEAD) {
                packet.prefetch();
            }
            let lane = &mut self.lanes[index];
            match look_at(&mut packets[index], &self.tables, free) {
                Ok(mut seen) => {
                    if seen.key.is_v6() {
                        let addresses = seen.addresses6(packets[index].head());
                        self.flows.complete(&mut seen.key, &addresses);
                        self.addresses6[index] = addresses;
                    }
                    seen.hash = self.flows.hash(seen.key);
                    self.flows.prefetch_first(seen.hash);
                    if seen.key.is_v6() {
                        self.flows.prefetch_addresses(seen.hash);
                    }
                    *lane = Lane { seen, step: Step::Search };
                }
                Err(verdict) => lane.step = Step::Done(verdict),
            }
        }
    }

    /// Second step: the first bucket; ask for the transform, or for the second bucket.
    #[inline(always)]
    fn find(&mut self, packets: usize, tick: u32) {
        let mut hits = 0;
        for (lane, addresses) in self.lanes[..packets].iter_mut().zip(self.addresses6.iter()) {
            if matches!(lane.step, Step::Done(_)) {
                continue;
            }
            let seen = &lane.seen;
            match self.flows.find_first(seen.hash, seen.key, addresses) {
                Some(flow) if fits(flow, seen, self.generation) => {
                    lane.step = hit(flow, tick);
                    hits += 1;
                    prefetch(&self.tables.transforms[flow.transform as usize]);
                }
                Some(_) => {}
                None => self.flows.prefetch_second(seen.hash),
            }
        }
        self.counters.hits.add(hits);
    }

    /// Last step: what was not found yet, then the transform.
    #[inline(always)]
    fn act(
        &mut self,
        index: usize,
        packet: &mut Packet,
        free: &mut FreeList,
        tick: u32,
    ) -> Verdict {
        if let Step::Search = self.lanes[index].step {
            self.lanes[index].step = self.search(index, tick);
        }
        let Lane { seen, step } = &self.lanes[index];
        match *step {
            Step::Run { transform, inspect } => {
                if inspect && !seen.key.is_from_uplink() && payload::is_partial(packet, seen) {
                    return Verdict::Drop(DropReason::PartialChecksum);
                }
                self.tables.transforms[transform as usize].run(seen, packet, free)
            }
            Step::Done(verdict) => verdict,
            Step::Refused(reason) => Verdict::Drop(reason),
            Step::Search => unreachable!("a search ends in a transform or a verdict"),
        }
    }

    /// Both buckets (an earlier packet of the burst may have moved or added the flow), then the
    /// routes.
    #[cold]
    fn search(&mut self, index: usize, tick: u32) -> Step {
        let (seen, addresses) = (self.lanes[index].seen, self.addresses6[index]);
        let Seen { key, hash, far_end, .. } = seen;
        let found = self.flows.find(hash, key, &addresses);
        if let Some(flow) = found {
            if fits(flow, &seen, self.generation) {
                self.counters.hits.add(1);
                return hit(flow, tick);
            }
            self.counters.recompiles.add(1);
            return match compile(&self.tables, &seen, &addresses) {
                Ok(transform) => {
                    let generation = self.generation;
                    *flow = Flow { generation, transform, seen: tick, far_end };
                    Step::Run { transform, inspect: true }
                }
                // What is cached stays: it may be right for another far end.
                Err(reason) => Step::Refused(reason),
            };
        }
        self.counters.misses.add(1);
        match compile(&self.tables, &seen, &addresses) {
            Ok(transform) => {
                let flow = Flow { generation: self.generation, transform, seen: tick, far_end };
                let inserted = self.flows.insert(hash, key, &addresses, flow);
                self.count(inserted);
                Step::Run { transform, inspect: true }
            }
            // Not cached: who scans addresses without a route shall not evict anybody's flows.
            Err(reason) => Step::Refused(reason),
        }
    }

    /// Takes note of what a new flow cost others, or itself.
    fn count(&self, inserted: Inserted) {
        let (evicted, over_share) = match inserted {
            Inserted::IntoRoom => (0, 0),
            Inserted::Evicting => (1, 0),
            Inserted::EvictingSurplus => (1, 1),
            Inserted::Refused => (0, 1),
        };
        self.counters.evictions.add(evicted);
        self.counters.over_share.add(over_share);
    }

    /// Tells the sender of a packet that would be dropped, where there is something to tell.
    #[cold]
    fn complain(
        &mut self,
        reason: DropReason,
        index: usize,
        packet: &mut Packet,
        free: &mut FreeList,
        now_ns: u64,
    ) -> Verdict {
        let Lane { seen, step } = self.lanes[index];
        let inner_mtu = match step {
            Step::Run { transform, .. } => self.tables.transforms[transform as usize].inner_mtu(),
            Step::Refused(_) => None,
            // It was not found to be a packet of a flow.
            Step::Done(_) | Step::Search => return Verdict::Drop(reason),
        };
        self.tell(reason, inner_mtu, &seen, packet, free, now_ns)
    }

    /// Ends a packet that was held in vain, [`Verdict::Unresolved`]: turns it into what its sender
    /// is told (RFC 1812 section 5.2.7.1, RFC 4443 section 3.1), or says with which reason to drop
    /// it.
    #[cold]
    pub fn give_up(&mut self, now_ns: u64, packet: &mut Packet, free: &mut FreeList) -> Verdict {
        let reason = DropReason::NextHopUnresolved;
        match look_at(packet, &self.tables, free) {
            Ok(seen) => self.tell(reason, None, &seen, packet, free, now_ns),
            // It can no longer be forwarded anyway: its port or its address is gone.
            Err(_) => Verdict::Drop(reason),
        }
    }

    /// Turns a packet into the ICMP error about itself, unless there is none to be sent.
    fn tell(
        &mut self,
        reason: DropReason,
        inner_mtu: Option<u32>,
        seen: &Seen,
        packet: &mut Packet,
        free: &mut FreeList,
        now_ns: u64,
    ) -> Verdict {
        let complaint = match icmp_error::about(reason, inner_mtu, seen, packet) {
            Ok(complaint) => complaint,
            Err(reason) => return Verdict::Drop(reason),
        };
        if !self.meter.take(packet.ingress, now_ns) {
            self.counters.errors_withheld.add(1);
            return Verdict::Drop(reason);
        }
        match icmp_error::tell(complaint, seen, packet, &self.tables, free) {
            Ok(Verdict::Forward(port)) => {
                self.counters.errors_sent.add(1);
                Verdict::Forward(port)
            }
            _ => Verdict::Drop(reason),
        }
    }
}

/// Parses one packet; what needs no flow is decided here.
#[inline(always)]
fn look_at(packet: &mut Packet, tables: &Tables, free: &mut FreeList) -> Result<Seen, Verdict> {
    let answer = match tables.ingress(packet.ingress) {
        Some(Ingress::Tenant(port)) => match parse::tenant(packet, port) {
            Ok(Kind::Flow(seen)) => return Ok(seen),
            Ok(Kind::ToGateway(ip)) => answer::to_gateway(packet, port, &ip, free),
            Ok(Kind::Link6(ip)) => neighbour::tenant(packet, port, &ip, tables, free),
            Ok(_) => answer::arp(packet, port, tables, free),
            Err(reason) => Err(reason),
        },
        Some(Ingress::Uplink { zero_checksum6 }) => {
            match parse::uplink(packet, tables, *zero_checksum6) {
                Ok(Kind::Flow(seen)) => return Ok(seen),
                Ok(Kind::TunnelArp(outer)) => answer::tunnel_arp(packet, &outer, tables, free),
                Ok(Kind::TunnelLink6(outer, ip)) => {
                    neighbour::tunnel(packet, &outer, &ip, tables, free)
                }
                Ok(_) => Err(DropReason::NotTunnelled),
                Err(reason) => Err(reason),
            }
        }
        // The tables no longer have the port: it was taken away with packets under way.
        None => Err(DropReason::PortDown),
    };
    Err(answer.unwrap_or_else(Verdict::Drop))
}

/// Whether a cached flow is good for a packet.
#[inline(always)]
fn fits(flow: &Flow, seen: &Seen, generation: u32) -> bool {
    flow.generation == generation && flow.far_end == seen.far_end
}

/// Takes note of a packet of a flow; its checksum is looked at once per tick.
#[inline(always)]
fn hit(flow: &mut Flow, tick: u32) -> Step {
    let inspect = flow.seen != tick;
    if inspect {
        flow.seen = tick;
    }
    Step::Run { transform: flow.transform, inspect }
}

/// The transform of a packet's route; `addresses` are those of a packet of IPv6.
fn compile(tables: &Tables, seen: &Seen, addresses: &Addresses6) -> Result<u32, DropReason> {
    let vpc = &tables.vpcs[usize::from(seen.key.vpc())];
    let from_uplink = seen.key.is_from_uplink();
    if from_uplink && !vpc.has_far_end(seen.far_end) {
        return Err(DropReason::UnknownVtep);
    }
    let (destination, gateway) = match seen.key.is_v6() {
        false => (IpAddr::V4(seen.key.destination()), vpc.gateway.map(IpAddr::V4)),
        true => (IpAddr::V6(addresses.destination()), vpc.gateway6.map(IpAddr::V6)),
    };
    if Some(destination) == gateway {
        return Err(DropReason::ToGateway);
    }
    if let Some(reason) = parse::unroutable(destination) {
        return Err(reason);
    }
    let transform = tables.route(seen.key.vpc(), destination).ok_or(DropReason::NoRoute)?;
    // What left one tunnel never enters another: no loops between hosts.
    if from_uplink && !tables.transforms[transform as usize].is_local() {
        return Err(DropReason::NoRoute);
    }
    Ok(transform)
}
