//! The switch as its ports see it: bytes in, verdict and bytes out.

mod cache;
mod dual;
mod errors;
mod fuzz;
mod golden;
mod golden6;
mod limits;
mod link6;
mod overlay;
mod saved;

use super::*;
use crate::config::Plan;
use crate::config::plan::{Dscp, Ipv4Interface, Port, Role, Route, Runtime, Tenant, Vpc, WaitMode};
use crate::packet::Burst;
use outboard_dma::{Chain, HEADROOM_BYTES, Region};
use outboard_wire::{Checksum, Ethernet, IpPrefix, Ipv4, Mac, Udp};
use std::net::{IpAddr, Ipv4Addr};

const RED: PortId = PortId(0);
const BLUE: PortId = PortId(1);
const UPLINK: PortId = PortId(2);
const RED_TOO: PortId = PortId(3);

const GATEWAY_MAC: Mac = Mac([2, 0, 0x5e, 0, 0, 1]);
const VTEP_A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const VTEP_B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const UNRESOLVED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 8);
const UNREACHABLE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const UPLINK_MTU: u32 = 9000;
const TENANT_MTU: u16 = 8950;

/// The MAC address of a tenant or uplink: 02:00:00:00:a:b.
fn mac(a: u8, b: u8) -> Mac {
    Mac([2, 0, 0, 0, a, b])
}

fn tenant(vpc: u16, address: [u8; 4], mac: Mac) -> Port {
    let address = Some(Ipv4Interface { address: address.into(), prefix_len: 24 });
    let tenant = Tenant { vpc, address, address6: None, mac, mtu: TENANT_MTU };
    port(Role::Tenant(tenant))
}

fn port(role: Role) -> Port {
    let (name, interface) = (String::new(), String::new());
    Port { id: PortId(0), name, interface, dpdk: None, queues: vec![0], role }
}

/// Gives ports their place in the list as their number.
fn numbered(mut ports: Vec<Port>) -> Vec<Port> {
    ports.iter_mut().zip(0..).for_each(|(port, number)| port.id = PortId(number));
    ports
}

fn uplink(vtep: Ipv4Addr) -> Role {
    Role::Uplink { vtep: Some(vtep), vtep6: None, zero_checksum6: false }
}

fn route(to: [u8; 4], len: u8, via: Ipv4Addr) -> Route {
    let to = IpPrefix::new(IpAddr::from(to), len).unwrap();
    Route { to, via: via.into(), mac: GATEWAY_MAC }
}

fn vpc(vni: u32, routes: Vec<Route>) -> Vpc {
    Vpc {
        name: String::new(),
        vni,
        gateway: Some(Ipv4Addr::new(10, 0, 0, 1)),
        gateway6: None,
        gateway_mac: GATEWAY_MAC,
        dscp: Dscp::Fixed(0),
        routes,
    }
}

/// Host A: 10.0.0.2 in red (VNI 100) and in blue (VNI 200), 10.0.0.3 in red. Behind host B lies
/// 10.0.1.0/24 of both.
fn plan_a() -> Plan {
    let remote = |via| {
        vec![
            route([10, 0, 1, 0], 24, via),
            route([10, 0, 8, 0], 24, UNRESOLVED),
            route([10, 0, 9, 0], 24, UNREACHABLE),
        ]
    };
    Plan {
        name: String::new(),
        runtime: Runtime {
            mode: WaitMode::Busy,
            spin_us: 0,
            region_mib: 2,
            flows: 1024,
            ledger: false,
        },
        control_socket: "".into(),
        workers: Vec::new(),
        metrics: None,
        eal: Vec::new(),
        vpcs: vec![vpc(100, remote(VTEP_B)), vpc(200, remote(VTEP_B))],
        ports: numbered(vec![
            tenant(0, [10, 0, 0, 2], mac(0, 2)),
            tenant(1, [10, 0, 0, 2], mac(9, 2)),
            port(uplink(VTEP_A)),
            tenant(0, [10, 0, 0, 3], mac(0, 3)),
        ]),
        volumes: Vec::new(),
        exports: Vec::new(),
        disks: Vec::new(),
    }
}

/// Host B: 10.0.1.7 in red and in blue; behind host A lies 10.0.0.0/24 of both.
fn plan_b() -> Plan {
    let routes = || vec![route([10, 0, 0, 0], 24, VTEP_A)];
    let ports = numbered(vec![
        tenant(0, [10, 0, 1, 7], mac(1, 7)),
        tenant(1, [10, 0, 1, 7], mac(8, 7)),
        port(uplink(VTEP_B)),
    ]);
    Plan { vpcs: vec![vpc(100, routes()), vpc(200, routes())], ports, ..plan_a() }
}

fn resolved(src_ip: Ipv4Addr, src_mac: Mac, dst_mac: Mac) -> NextHop {
    let src_ip = src_ip.into();
    NextHop::Resolved { port: UPLINK, src_ip, src_mac, dst_mac, path_mtu: UPLINK_MTU }
}

fn tables_a(plan: &Plan) -> Arc<Tables> {
    let to_b = resolved(VTEP_A, mac(1, 1), mac(1, 2));
    Arc::new(Tables::new(plan, &[(VTEP_B.into(), to_b), (UNRESOLVED.into(), NextHop::Unresolved)]))
}

fn tables_b() -> Arc<Tables> {
    Arc::new(Tables::new(&plan_b(), &[(VTEP_A.into(), resolved(VTEP_B, mac(1, 2), mac(1, 1)))]))
}

/// A switch with frames.
struct Host {
    switch: Switch,
    free: FreeList,
    frames: usize,
}

impl Host {
    fn new(tables: Arc<Tables>) -> Host {
        Host::with_flows(tables, 1024)
    }

    fn with_flows(tables: Arc<Tables>, flows: u32) -> Host {
        let free = Region::new(256).unwrap().carve(256).unwrap();
        let frames = free.len();
        Host { switch: Switch::new(flows, Seed::new(42), tables), free, frames }
    }

    fn a() -> Host {
        Host::new(tables_a(&plan_a()))
    }

    fn b() -> Host {
        Host::new(tables_b())
    }

    /// Decides on one frame; what it was turned into when it is forwarded.
    fn send(&mut self, port: PortId, frame: &[u8]) -> Result<(PortId, Vec<u8>), Verdict> {
        self.send_at(0, port, frame)
    }

    fn send_at(
        &mut self,
        now_ns: u64,
        port: PortId,
        frame: &[u8],
    ) -> Result<(PortId, Vec<u8>), Verdict> {
        let chain = Chain::from_slice(frame, &mut self.free).unwrap();
        let (verdict, bytes) = self.send_chain(now_ns, port, chain);
        match verdict {
            Verdict::Forward(port) => Ok((port, bytes)),
            Verdict::Unresolved(_) => {
                assert_eq!(bytes, frame, "a packet that waits stays as it is");
                Err(verdict)
            }
            Verdict::Drop(_) => Err(verdict),
        }
    }

    /// Decides on one chain, whose frames must all come back.
    fn send_chain(&mut self, now_ns: u64, port: PortId, chain: Chain) -> (Verdict, Vec<u8>) {
        let mut burst = Burst::new();
        let mut verdicts = ArrayVec::new();
        burst.push(Packet::new(chain, port));
        self.switch.decide(now_ns, &mut burst, &mut self.free, &mut verdicts);
        assert_eq!(verdicts.len(), 1);
        let chain = burst.pop().unwrap().into_chain();
        assert_eq!(self.free.len() + chain.frames(), self.frames);
        let mut bytes = vec![0; chain.bytes()];
        chain.copy_to(&mut bytes).unwrap();
        chain.free(&mut self.free);
        (verdicts[0], bytes)
    }

    /// The reason with which a frame ends when its sender has been told too often.
    #[track_caller]
    fn drops(&mut self, port: PortId, frame: &[u8], reason: DropReason) {
        let meter = std::mem::replace(&mut self.switch.meter, Meter::empty());
        assert_eq!(self.send(port, frame), Err(Verdict::Drop(reason)));
        self.switch.meter = meter;
    }
}

/// What a tenant's UDP packet is made of.
#[derive(Clone, Copy)]
struct Datagram {
    source: [u8; 4],
    destination: [u8; 4],
    ports: (u16, u16),
    tos: u8,
    ttl: u8,
    fragment: u16,
    payload: usize,
}

impl Datagram {
    /// From 10.0.0.2 to 10.0.1.7, 18 bytes: 60 bytes with Ethernet.
    const NEW: Datagram = Datagram {
        source: [10, 0, 0, 2],
        destination: [10, 0, 1, 7],
        ports: (1000, 2000),
        tos: 0,
        ttl: 64,
        fragment: 0,
        payload: 18,
    };

    fn to(destination: [u8; 4]) -> Datagram {
        Datagram { destination, ..Datagram::NEW }
    }

    /// The IP packet, UDP checksum included.
    fn packet(&self) -> Vec<u8> {
        let mut bytes = vec![0; 28 + self.payload];
        let total_len = bytes.len() as u16;
        let ip = Ipv4 {
            tos: self.tos,
            total_len,
            id: 7,
            fragment: self.fragment,
            ttl: self.ttl,
            protocol: ipv4::UDP,
            source: self.source.into(),
            destination: self.destination.into(),
        };
        ip.emit(&mut bytes).unwrap();
        for (at, byte) in bytes[28..].iter_mut().enumerate() {
            *byte = (at * 3 + 1) as u8;
        }
        let udp = Udp {
            source: self.ports.0,
            destination: self.ports.1,
            len: total_len - 20,
            checksum: 0,
        };
        udp.emit(&mut bytes[20..]).unwrap();
        let mut sum =
            Checksum::pseudo_header(self.source, self.destination, ipv4::UDP, total_len - 20);
        sum.add(&bytes[20..]);
        bytes[26..28].copy_from_slice(&sum.finish().to_be_bytes());
        bytes
    }

    /// As the tenant 10.0.0.2 sends it to its gateway.
    fn frame(&self) -> Vec<u8> {
        framed(GATEWAY_MAC, mac(0, 2), &self.packet())
    }

    /// As host B sends it to host A in a VNI.
    fn tunnelled(&self, vni: u32) -> Vec<u8> {
        tunnelled(vni, &framed(GATEWAY_MAC, GATEWAY_MAC, &self.packet()))
    }
}

fn framed(destination: Mac, source: Mac, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 14 + packet.len()];
    Ethernet { destination, source, ethertype: ethernet::IPV4 }.emit(&mut frame).unwrap();
    frame[14..].copy_from_slice(packet);
    frame
}

/// A frame in a tunnel packet from host B to host A.
fn tunnelled(vni: u32, frame: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 50 + frame.len()];
    let ip = Ipv4 {
        tos: 0,
        total_len: (36 + frame.len()) as u16,
        id: 0,
        fragment: ipv4::DONT_FRAGMENT,
        ttl: 64,
        protocol: ipv4::UDP,
        source: VTEP_B,
        destination: VTEP_A,
    };
    let outer = Ethernet { destination: mac(1, 1), source: mac(1, 2), ethertype: ethernet::IPV4 };
    outer.emit(&mut bytes).unwrap();
    ip.emit(&mut bytes[14..]).unwrap();
    let udp = Udp { source: 50_000, destination: vxlan::PORT, len: ip.payload_len(), checksum: 0 };
    udp.emit(&mut bytes[34..]).unwrap();
    bytes[42..46].copy_from_slice(&[8, 0, 0, 0]);
    bytes[46..50].copy_from_slice(&(vni << 8).to_be_bytes());
    bytes[50..].copy_from_slice(frame);
    bytes
}

/// The frame of another tenant.
fn sent_by(mac: Mac, mut frame: Vec<u8>) -> Vec<u8> {
    frame[6..12].copy_from_slice(&mac.0);
    if frame[12..14] == ethernet::ARP.to_be_bytes() {
        frame[22..28].copy_from_slice(&mac.0);
    }
    frame
}

/// Changes a header and makes its checksum right again.
fn edit_ip(frame: &mut [u8], at: usize, edit: impl FnOnce(&mut [u8])) {
    edit(&mut frame[at..]);
    frame[at + 10..at + 12].fill(0);
    let mut sum = Checksum::new();
    sum.add(&frame[at..at + 20]);
    frame[at + 10..at + 12].copy_from_slice(&sum.finish().to_be_bytes());
}
