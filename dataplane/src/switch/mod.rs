//! The virtual switch: frames in, verdicts out. Pure: no I/O, no clock, no randomness of its own.
//!
//! A tenant's VPC follows from its port, a tunnel packet's from its VNI, and from nothing else; so
//! VPCs with the same addresses never meet. The first packet of a flow looks its route up; the
//! flow cache then holds the transform that the route was compiled to. Inner packets are IPv4
//! (RFC 791) routed by a virtual gateway (RFC 1812: TTL, header checks), outer ones VXLAN over
//! IPv4 (RFC 7348) with ECN carried through (RFC 6040).

mod answer;
mod flow;
mod lpm;
mod parse;
mod payload;
mod tables;
mod transform;

#[cfg(test)]
mod tests;

pub use flow::{FiveTuple, MIN_FLOWS, Seed, owner};
pub use tables::{NextHop, NextHopId, Tables};

use crate::counters::Counter;
use crate::drop::DropReason;
use crate::packet::{BURST, Packet, PortId};
use arrayvec::ArrayVec;
use flow::{Flow, FlowCache};
use outboard_dma::{FreeList, prefetch};
use outboard_wire::{ethernet, ipv4, udp, vxlan};
use parse::{Kind, Seen};
use std::net::Ipv4Addr;
use std::sync::Arc;
use tables::Ingress;

/// Bytes of the outer Ethernet, IPv4, UDP and VXLAN headers.
const OUTER_BYTES: usize = ethernet::BYTES + ipv4::BYTES + udp::BYTES + vxlan::BYTES;
/// Where the inner IP header lies in a tunnel packet.
const INNER_AT: usize = OUTER_BYTES + ethernet::BYTES;
/// 2^26 ns: how fine the age of flows is, and how often a flow's checksums are looked at.
const TICK_SHIFT: u32 = 26;
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
}

/// One worker's switch.
#[derive(Debug)]
pub struct Switch {
    tables: Arc<Tables>,
    /// Counts tables; flows of another generation are compiled again when next seen. Never 0.
    generation: u32,
    flows: FlowCache,
    lanes: Box<[Lane; BURST]>,
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
        self.generation = self.generation.checked_add(1).unwrap_or(1);
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
            verdicts.push(self.act(index, packet, free, tick));
        }
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
                    seen.hash = self.flows.hash(seen.key);
                    self.flows.prefetch_first(seen.hash);
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
        for lane in &mut self.lanes[..packets] {
            if matches!(lane.step, Step::Done(_)) {
                continue;
            }
            let seen = &lane.seen;
            match self.flows.find_first(seen.hash, seen.key) {
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
            self.lanes[index].step = self.search(self.lanes[index].seen, tick);
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
            Step::Search => unreachable!("a search ends in a transform or a verdict"),
        }
    }

    /// Both buckets (an earlier packet of the burst may have moved or added the flow), then the
    /// routes.
    #[cold]
    fn search(&mut self, seen: Seen, tick: u32) -> Step {
        let Seen { key, hash, far_end, .. } = seen;
        let found = self.flows.find(hash, key);
        if let Some(flow) = found {
            if fits(flow, &seen, self.generation) {
                self.counters.hits.add(1);
                return hit(flow, tick);
            }
            self.counters.recompiles.add(1);
            return match compile(&self.tables, &seen) {
                Ok(transform) => {
                    let generation = self.generation;
                    *flow = Flow { generation, transform, seen: tick, far_end };
                    Step::Run { transform, inspect: true }
                }
                // What is cached stays: it may be right for another far end.
                Err(reason) => Step::Done(Verdict::Drop(reason)),
            };
        }
        self.counters.misses.add(1);
        match compile(&self.tables, &seen) {
            Ok(transform) => {
                let flow = Flow { generation: self.generation, transform, seen: tick, far_end };
                let evicted = self.flows.insert(hash, key, flow);
                self.counters.evictions.add(u64::from(evicted));
                Step::Run { transform, inspect: true }
            }
            // Not cached: who scans addresses without a route shall not evict anybody's flows.
            Err(reason) => Step::Done(Verdict::Drop(reason)),
        }
    }
}

/// Parses one packet; what needs no flow is decided here.
#[inline(always)]
fn look_at(packet: &mut Packet, tables: &Tables, free: &mut FreeList) -> Result<Seen, Verdict> {
    let answer = match tables.ports.get(usize::from(packet.ingress.0)) {
        Some(Some(Ingress::Tenant(port))) => match parse::tenant(packet, port) {
            Ok(Kind::Flow(seen)) => return Ok(seen),
            Ok(Kind::ToGateway(ip)) => answer::to_gateway(packet, port, &ip, free),
            Ok(_) => answer::arp(packet, port, tables, free),
            Err(reason) => Err(reason),
        },
        Some(Some(Ingress::Uplink)) => match parse::uplink(packet, tables) {
            Ok(Kind::Flow(seen)) => return Ok(seen),
            Ok(Kind::TunnelArp(vpc)) => answer::tunnel_arp(packet, vpc, tables, free),
            Ok(_) => Err(DropReason::NotTunnelled),
            Err(reason) => Err(reason),
        },
        // The tables no longer have the port: it was taken away with packets under way.
        Some(None) | None => Err(DropReason::PortDown),
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

/// The transform of a packet's route.
fn compile(tables: &Tables, seen: &Seen) -> Result<u32, DropReason> {
    let vpc = &tables.vpcs[usize::from(seen.key.vpc())];
    let destination = seen.key.destination();
    let from_uplink = seen.key.is_from_uplink();
    if from_uplink && !vpc.has_far_end(Ipv4Addr::from_bits(seen.far_end)) {
        return Err(DropReason::UnknownVtep);
    }
    if Some(destination) == vpc.gateway {
        return Err(DropReason::ToGateway);
    }
    if let Some(reason) = parse::unroutable(destination) {
        return Err(reason);
    }
    let transform = vpc.routes.get(destination).ok_or(DropReason::NoRoute)?;
    // What left one tunnel never enters another: no loops between hosts.
    if from_uplink && !tables.transforms[transform as usize].is_local() {
        return Err(DropReason::NoRoute);
    }
    Ok(transform)
}
