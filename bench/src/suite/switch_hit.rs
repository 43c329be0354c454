//! The switch on a simulated port: what a packet costs whose flow is in the cache.
//!
//! Timed are parse, lookup and encapsulation of bursts of 32 64-byte packets, the two looks at the
//! clock included. Between the bursts the packets are put back into their first form, untimed,
//! and given the next flows.

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
use outboard_wire::{Ethernet, Ipv4, Mac, Udp, ethernet, ipv4, udp, vxlan};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Outer Ethernet, IPv4, UDP and VXLAN.
const OUTER_BYTES: usize = ethernet::BYTES + ipv4::BYTES + udp::BYTES + vxlan::BYTES;
const FRAME_BYTES: usize = 64;
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
[[vpc.route]]
to = "10.0.1.0/24"
via = "192.0.2.2"
[[port]]
name = "tenant"
interface = "t1"
vpc = "one"
address = "10.0.0.1/24"
[[uplink]]
name = "uplink"
interface = "u1"
vtep = "192.0.2.1"
"#;

/// Nanoseconds per packet with one flow and with many, measured in turn on the same switch code.
pub struct Cost {
    /// With one flow.
    pub one_ns: f64,
    /// With 100 000 flows.
    pub many_ns: f64,
}

/// Many flows.
pub const MANY: u32 = 100_000;

/// Measures both for `seconds` each.
pub fn measure(seconds: f64) -> Result<Cost, Error> {
    let region = Region::new(256).map_err(|error| Error::Refused(error.to_string()))?;
    let free = region.carve(256).ok_or_else(|| Error::Refused("no frames".into()))?;
    let mut bench = Bench::new(free)?;
    let one_ns = bench.run(1, seconds)?;
    let many_ns = bench.run(MANY, seconds)?;
    Ok(Cost { one_ns, many_ns })
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
        let far_end = Ipv4Addr::new(192, 0, 2, 2);
        let next_hop = NextHop::Resolved {
            port: ports.1,
            src_ip: Ipv4Addr::new(192, 0, 2, 1).into(),
            src_mac: Mac([2, 0, 0, 0, 1, 1]),
            dst_mac: Mac([2, 0, 0, 0, 1, 2]),
            path_mtu: 1500,
        };
        let tables = Arc::new(Tables::new(&plan, &[(far_end.into(), next_hop)]));
        Ok(Bench { tables, ports, gateway_mac: plan.vpcs[0].gateway_mac, free })
    }

    /// Nanoseconds per packet: the median burst's.
    fn run(&mut self, flows: u32, seconds: f64) -> Result<f64, Error> {
        let mut switch = Switch::new(CACHE_FLOWS, Seed::new(0x5eed), self.tables.clone());
        let mut port = TestPort::new(self.ports.0, BURST, Arc::new(PortCounters::default()));
        for _ in 0..BURST {
            let made = port.inject(&self.frame(), &mut self.free);
            assert!(made, "the port has room for a burst");
        }
        let mut flow = Flows { count: flows, next: 0 };
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
            put_back(packet, port);
        }
        match forwarded {
            true => Ok(took_ns),
            false => Err(Error::Refused(format!("the switch decided {:?}", verdicts[0]))),
        }
    }

    fn frame(&self) -> Vec<u8> {
        let mut frame = vec![0; FRAME_BYTES];
        let ip_bytes = (FRAME_BYTES - ethernet::BYTES) as u16;
        let ip = Ipv4 {
            tos: 0,
            total_len: ip_bytes,
            id: 0,
            fragment: ipv4::DONT_FRAGMENT,
            ttl: 64,
            protocol: ipv4::UDP,
            source: Ipv4Addr::new(10, 0, 0, 1),
            destination: Ipv4Addr::new(10, 0, 1, 2),
        };
        let len = ip_bytes - ipv4::BYTES as u16;
        let udp = Udp { source: 1, destination: 1, len, checksum: 0 };
        let source = Mac([6, 100, 10, 0, 0, 1]);
        let done = Ethernet { destination: self.gateway_mac, source, ethertype: ethernet::IPV4 }
            .emit(&mut frame)
            .and_then(|()| ip.emit(&mut frame[ethernet::BYTES..]))
            .and_then(|()| udp.emit(&mut frame[ethernet::BYTES + ipv4::BYTES..]));
        assert!(done.is_some(), "64 bytes hold all headers");
        frame
    }
}

/// Takes the tunnel's headers off and makes the packet arrive anew. Its inner destination MAC is
/// the far gateway's, which is this gateway's too.
fn put_back(packet: Packet, port: &mut TestPort) {
    let mut chain = packet.into_chain();
    if chain.bytes() > FRAME_BYTES {
        let _ = chain.shrink_front(OUTER_BYTES);
    }
    let back = port.inject_chain(chain);
    assert!(back.is_ok(), "the port has room for a burst");
}

/// Hands out flows in turn.
struct Flows {
    count: u32,
    next: u32,
}

impl Flows {
    /// Writes the next flow's ports, and the TTL that routing took.
    fn give_next(&mut self, frame: &mut [u8]) {
        let (ip, rest) = frame[ethernet::BYTES..].split_at_mut(ipv4::BYTES);
        if let Some(ip) = ip.first_chunk_mut() {
            ipv4::set_ttl(ip, 64);
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
        for flows in [1, 33, 1_000] {
            assert!(bench.run(flows, 0.02).unwrap() > 0.0, "{flows}");
            assert_eq!(bench.free.len(), 256);
        }
    }
}
