//! The switch on a simulated port: what a packet costs whose flow is in the cache.
//!
//! Timed are parse, lookup and encapsulation of bursts of 32 packets (64 bytes of IPv4, 80 of
//! IPv6), the two looks at the clock included. Between the bursts the packets are put back into
//! their first form, untimed, and given the next flows.

use crate::error::Error;
use crate::latency::Recorder;
use crate::stop;
use arrayvec::ArrayVec;
use outboard::clock::now_ns;
use outboard::config;
use outboard::counters::PortCounters;
use outboard::packet::{BURST, Burst, Packet, PortId};
use outboard::port::Port;
use outboard::port::test::TestPort;
use outboard::switch::{NextHop, Seed, Switch, Tables, Verdict};
use outboard_dma::{FreeList, Region};
use outboard_wire::{Ethernet, Ipv4, Ipv6, Mac, Udp, ethernet, ipv4, ipv6, udp, vxlan};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Room for 100 000 flows without evictions.
const CACHE_FLOWS: u32 = 1 << 18;
/// Flows differ in destination port, and from here on in source port.
const PORTS: u32 = 50_000;

const CONFIG: &str = r#"
name = "switch-hit"
[runtime]
flows = 262144
[[worker]]
core = 0
[[vpc]]
name = "one"
vni = 100
gateway = "10.0.0.254"
gateway6 = "fd00::fe"
[[vpc.route]]
to = "10.0.1.0/24"
via = "192.0.2.2"
[[vpc.route]]
to = "fd00:0:0:1::/64"
via = "2001:db8::2"
[[port]]
name = "tenant"
interface = "t1"
vpc = "one"
address = "10.0.0.1/24"
address6 = "fd00::1/64"
mac = "02:00:00:00:01:01"
[[uplink]]
name = "uplink"
interface = "u1"
vtep = "192.0.2.1"
vtep6 = "2001:db8::1"
"#;

/// As in the configuration: frames from another would be dropped.
const TENANT_MAC: Mac = Mac([2, 0, 0, 0, 1, 1]);
const VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const FAR_VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const VTEP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const FAR_VTEP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

/// A family, inside and outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn ip_bytes(self) -> usize {
        match self {
            Family::V4 => ipv4::BYTES,
            Family::V6 => ipv6::BYTES,
        }
    }

    /// Outer Ethernet, IP, UDP and VXLAN.
    fn outer_bytes(self) -> usize {
        ethernet::BYTES + self.ip_bytes() + udp::BYTES + vxlan::BYTES
    }

    fn frame_bytes(self) -> usize {
        match self {
            Family::V4 => 64,
            Family::V6 => 80,
        }
    }
}

/// Nanoseconds per packet, measured in turn on the same switch code.
pub struct Cost {
    /// With one flow.
    pub one_ns: f64,
    /// With 100 000 flows.
    pub many_ns: f64,
    /// With one flow of IPv6 in IPv6.
    pub v6_ns: f64,
}

/// Many flows.
pub const MANY: u32 = 100_000;

/// Measures each for `seconds`.
pub fn measure(seconds: f64) -> Result<Cost, Error> {
    let region = Region::new(256).map_err(|error| Error::Refused(error.to_string()))?;
    let free = region.carve(256).ok_or_else(|| Error::Refused("no frames".into()))?;
    let mut bench = Bench::new(free)?;
    let one_ns = bench.run(Family::V4, 1, seconds)?;
    let many_ns = bench.run(Family::V4, MANY, seconds)?;
    let v6_ns = bench.run(Family::V6, 1, seconds)?;
    Ok(Cost { one_ns, many_ns, v6_ns })
}

struct Bench {
    tables: Arc<Tables>,
    /// As the configuration numbers them.
    ports: (PortId, PortId),
    gateway_mac: Mac,
    free: FreeList,
}

impl Bench {
    fn new(free: FreeList) -> Result<Bench, Error> {
        let plan = config::parse("switch-hit", CONFIG.as_bytes())
            .map_err(|error| Error::Refused(error.to_string()))?;
        let port = |name| plan.port(name).ok_or_else(|| Error::Refused(format!("no port {name}")));
        let ports = (port("tenant")?, port("uplink")?);
        let hop = |src_ip: IpAddr| NextHop::Resolved {
            port: ports.1,
            src_ip,
            src_mac: Mac([2, 0, 0, 0, 1, 1]),
            dst_mac: Mac([2, 0, 0, 0, 1, 2]),
            path_mtu: 1500,
        };
        let hops = [(FAR_VTEP.into(), hop(VTEP.into())), (FAR_VTEP6.into(), hop(VTEP6.into()))];
        let tables = Arc::new(Tables::new(&plan, &hops));
        Ok(Bench { tables, ports, gateway_mac: plan.vpcs[0].gateway_mac, free })
    }

    /// Nanoseconds per packet: the median burst's.
    fn run(&mut self, family: Family, flows: u32, seconds: f64) -> Result<f64, Error> {
        let mut switch = Switch::new(CACHE_FLOWS, Seed::new(0x5eed), self.tables.clone());
        let mut port = TestPort::new(self.ports.0, BURST, Arc::new(PortCounters::default()));
        for _ in 0..BURST {
            let made = port.inject(&self.frame(family), &mut self.free);
            assert!(made, "the port has room for a burst");
        }
        let mut flow = Flows { family, count: flows, next: 0 };
        // Two rounds fill the cache and warm it up.
        let warm = flows.div_ceil(BURST as u32) * 2 + 1_000;
        let mut recorder = Recorder::default();
        for _ in 0..warm {
            self.burst(&mut switch, &mut port, &mut flow)?;
        }
        let misses = switch.counters().misses.get();
        let end_ns = now_ns() + (seconds * 1e9) as u64;
        while now_ns() < end_ns {
            stop::check()?;
            for _ in 0..1_000 {
                let burst_ns = self.burst(&mut switch, &mut port, &mut flow)?;
                recorder.record(burst_ns);
            }
        }
        let missed = switch.counters().misses.get() - misses;
        port.close(&mut self.free);
        if missed > 0 {
            return Err(Error::Refused(format!("{missed} of the flows were not in the cache")));
        }
        let median = recorder.percentile(500_000);
        let median = median.ok_or_else(|| Error::Refused("too few bursts".into()))?;
        Ok(median as f64 / BURST as f64)
    }

    /// Receives, decides and puts back one burst; how long deciding took.
    fn burst(
        &mut self,
        switch: &mut Switch,
        port: &mut TestPort,
        flows: &mut Flows,
    ) -> Result<u64, Error> {
        let mut burst = Burst::new();
        port.rx(&mut burst, &mut self.free);
        for packet in &mut burst {
            flows.give_next(packet.head_mut());
        }
        let mut verdicts = ArrayVec::new();
        let began_ns = now_ns();
        switch.decide(began_ns, &mut burst, &mut self.free, &mut verdicts);
        let took_ns = now_ns() - began_ns;
        let forwarded = verdicts.iter().all(|v| *v == Verdict::Forward(self.ports.1));
        for packet in burst.drain(..) {
            put_back(packet, flows.family, port);
        }
        match forwarded {
            true => Ok(took_ns),
            false => Err(Error::Refused(format!("the switch decided {:?}", verdicts[0]))),
        }
    }

    fn frame(&self, family: Family) -> Vec<u8> {
        let mut frame = vec![0; family.frame_bytes()];
        let udp_at = ethernet::BYTES + family.ip_bytes();
        let len = (frame.len() - udp_at) as u16;
        let ip = &mut frame[ethernet::BYTES..];
        let (ethertype, ip_done) = match family {
            Family::V4 => (ethernet::IPV4, ipv4_header(len).emit(ip)),
            Family::V6 => (ethernet::IPV6, ipv6_header(len).emit(ip)),
        };
        let udp = Udp { source: 1, destination: 1, len, checksum: 0 };
        let (destination, source) = (self.gateway_mac, TENANT_MAC);
        let done = Ethernet { destination, source, ethertype }
            .emit(&mut frame)
            .and(ip_done)
            .and_then(|()| udp.emit(&mut frame[udp_at..]));
        assert!(done.is_some(), "a frame holds all headers");
        frame
    }
}

fn ipv4_header(payload_len: u16) -> Ipv4 {
    Ipv4 {
        tos: 0,
        total_len: ipv4::BYTES as u16 + payload_len,
        id: 0,
        fragment: ipv4::DONT_FRAGMENT,
        ttl: 64,
        protocol: ipv4::UDP,
        source: Ipv4Addr::new(10, 0, 0, 1),
        destination: Ipv4Addr::new(10, 0, 1, 2),
    }
}

fn ipv6_header(payload_len: u16) -> Ipv6 {
    Ipv6 {
        traffic_class: 0,
        flow_label: 0,
        payload_len,
        next_header: ipv4::UDP,
        hop_limit: 64,
        source: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
        destination: Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 2),
    }
}

/// Takes the tunnel's headers off and makes the packet arrive anew. Its inner destination MAC is
/// the far gateway's, which is this gateway's too.
fn put_back(packet: Packet, family: Family, port: &mut TestPort) {
    let mut chain = packet.into_chain();
    if chain.bytes() > family.frame_bytes() {
        let _ = chain.shrink_front(family.outer_bytes());
    }
    let back = port.inject_chain(chain);
    assert!(back.is_ok(), "the port has room for a burst");
}

/// In an Ethernet header.
const SOURCE_MAC: std::ops::Range<usize> = 6..12;
/// In an IPv6 header (RFC 8200 section 3).
const HOP_LIMIT_AT: usize = 7;

/// Hands out flows in turn.
struct Flows {
    family: Family,
    count: u32,
    next: u32,
}

impl Flows {
    /// Writes the next flow's ports, and the source MAC and TTL or hop limit that routing took.
    fn give_next(&mut self, frame: &mut [u8]) {
        frame[SOURCE_MAC].copy_from_slice(&TENANT_MAC.0);
        let (ip, rest) = frame[ethernet::BYTES..].split_at_mut(self.family.ip_bytes());
        match self.family {
            Family::V4 => {
                if let Some(ip) = ip.first_chunk_mut() {
                    ipv4::set_ttl(ip, 64);
                }
            }
            Family::V6 => ip[HOP_LIMIT_AT] = 64,
        }
        let source = (1 + self.next / PORTS) as u16;
        let destination = (1 + self.next % PORTS) as u16;
        rest[..2].copy_from_slice(&source.to_be_bytes());
        rest[2..4].copy_from_slice(&destination.to_be_bytes());
        self.next = (self.next + 1) % self.count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_flows_are_hits() {
        let free = Region::new(256).unwrap().carve(256).unwrap();
        let mut bench = Bench::new(free).unwrap();
        for family in [Family::V4, Family::V6] {
            for flows in [1, 33, 1_000] {
                assert!(bench.run(family, flows, 0.02).unwrap() > 0.0, "{family:?} {flows}");
                assert_eq!(bench.free.len(), 256);
            }
        }
    }
}
