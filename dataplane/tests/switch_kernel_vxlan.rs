//! The switch against Linux: its uplink is one end of a veth pair, and behind the other the
//! kernel's VXLAN device is the far end. The kernel checks what the switch writes, and the switch
//! reads what the kernel writes.
//!
//! Both ends lie in network namespaces of the test's own. Needs root.

mod netns;

use arrayvec::ArrayVec;
use netns::Namespace;
use netns::packet::PacketSocket;
use outboard::config::Plan;
use outboard::config::plan::{
    Dscp, Ipv4Interface, Port, Role, Route, Runtime, Tenant, Vpc, WaitMode,
};
use outboard::packet::{Burst, Packet, PortId};
use outboard::switch::{NextHop, Seed, Switch, Tables, Verdict};
use outboard_dma::{Chain, FreeList, Region};
use outboard_wire::{Checksum, Ethernet, IpPrefix, Ipv4, Mac, Udp, ecn, ethernet, ipv4};
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// How often something is looked for, a millisecond apart.
const PATIENCE: u32 = 10_000;
const TENANT: PortId = PortId(0);
const UPLINK: PortId = PortId(1);
const GATEWAY_MAC: Mac = Mac([2, 0, 0x5e, 0, 0, 1]);
const NEAR_MAC: Mac = Mac([2, 0, 0, 0, 1, 1]);
const FAR_MAC: Mac = Mac([2, 0, 0, 0, 1, 2]);
const FAR_TENANT_MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);
const HERE: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(10, 0, 0, 2));
const THERE: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(192, 0, 2, 2), Ipv4Addr::new(10, 0, 1, 7));

fn tables() -> Arc<Tables> {
    let to = IpPrefix::containing(THERE.1.into(), 24).unwrap();
    let routes = vec![Route { to, via: THERE.0.into(), mac: FAR_TENANT_MAC }];
    let vpc = Vpc {
        name: "red".into(),
        vni: 100,
        gateway: Some(Ipv4Addr::new(10, 0, 0, 1)),
        gateway6: None,
        gateway_mac: GATEWAY_MAC,
        dscp: Dscp::Fixed(0),
        routes,
    };
    let mac = Mac([2, 0, 0, 0, 0, 2]);
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
        runtime: Runtime {
            mode: WaitMode::Busy,
            spin_us: 0,
            region_mib: 2,
            flows: 64,
            ledger: false,
        },
        control_socket: "".into(),
        workers: Vec::new(),
        metrics: None,
        eal: Vec::new(),
        vpcs: vec![vpc],
        ports: vec![port(TENANT, "tenant", Role::Tenant(tenant)), port(UPLINK, "near", uplink)],
        volumes: Vec::new(),
        exports: Vec::new(),
        disks: Vec::new(),
    };
    let hop = NextHop::Resolved {
        port: UPLINK,
        src_ip: HERE.0.into(),
        src_mac: NEAR_MAC,
        dst_mac: FAR_MAC,
        path_mtu: 9000,
    };
    Arc::new(Tables::new(&plan, &[(THERE.0.into(), hop)]))
}

/// The switch between a tenant that the test plays and the kernel.
struct Host {
    switch: Switch,
    free: FreeList,
    wire: PacketSocket,
    far: Namespace,
    _near: Namespace,
    arp_answers: u32,
}

impl Host {
    fn decide(&mut self, ingress: PortId, frame: &[u8]) -> (Verdict, Vec<u8>) {
        let mut burst = Burst::new();
        let chain = Chain::from_slice(frame, &mut self.free).unwrap();
        burst.push(Packet::new(chain, ingress));
        let mut verdicts = ArrayVec::new();
        self.switch.decide(0, &mut burst, &mut self.free, &mut verdicts);
        let chain = burst.pop().unwrap().into_chain();
        let mut bytes = vec![0; chain.bytes()];
        chain.copy_to(&mut bytes).unwrap();
        chain.free(&mut self.free);
        (verdicts[0], bytes)
    }

    /// A frame from the tenant to the kernel.
    fn send(&mut self, frame: &[u8]) {
        let (verdict, outer) = self.decide(TENANT, frame);
        assert_eq!(verdict, Verdict::Forward(UPLINK));
        self.wire.send(&outer);
    }

    /// The next frame from the kernel that reaches the tenant; ARP in between is answered.
    fn receive(&mut self) -> Vec<u8> {
        for _ in 0..PATIENCE {
            let Some(outer) = self.wire.receive() else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            match self.decide(UPLINK, &outer) {
                (Verdict::Forward(TENANT), inner) => return inner,
                (Verdict::Forward(_), answer) => {
                    self.arp_answers += 1;
                    self.wire.send(&answer);
                }
                (verdict, _) => panic!("{verdict:?}: {outer:x?}"),
            }
        }
        panic!("no frame from the kernel");
    }
}

fn set_up(vxlan_options: &str) -> Host {
    let (near, far) = (Namespace::new(), Namespace::new());
    near.join(&far, 1, 9000);
    near.ip(&format!("link set veth address {NEAR_MAC}"));
    far.ip(&format!("link set veth address {FAR_MAC}"));
    far.ip(&format!("address add {}/24 dev veth", THERE.0));
    far.ip(&format!("neighbour add {} lladdr {NEAR_MAC} dev veth nud permanent", HERE.0));
    far.ip(&format!(
        "link add vx address {FAR_TENANT_MAC} type vxlan id 100 local {} remote {} dev veth \
         dstport 4789 tos inherit {vxlan_options}",
        THERE.0, HERE.0
    ));
    far.ip("link set vx mtu 8950 up");
    far.ip(&format!("address add {}/16 dev vx", THERE.1));
    let wire = near.within(|| PacketSocket::open("veth", ethernet::IPV4));
    let free = Region::new(64).unwrap().carve(64).unwrap();
    let switch = Switch::new(64, Seed::new(1), tables());
    Host { switch, free, wire, far, _near: near, arp_answers: 0 }
}

fn tenant_frame(protocol: u8, tos: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 34 + payload.len()];
    let source = Mac([2, 0, 0, 0, 0, 2]);
    Ethernet { destination: GATEWAY_MAC, source, ethertype: ethernet::IPV4 }
        .emit(&mut frame)
        .unwrap();
    let ip = Ipv4 {
        tos,
        total_len: (20 + payload.len()) as u16,
        id: 1,
        fragment: 0,
        ttl: 64,
        protocol,
        source: HERE.1,
        destination: THERE.1,
    };
    ip.emit(&mut frame[14..]).unwrap();
    frame[34..].copy_from_slice(payload);
    frame
}

fn echo_request(data: &[u8]) -> Vec<u8> {
    let mut message = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
    message.extend_from_slice(data);
    let mut sum = Checksum::new();
    sum.add(&message);
    message[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    message
}

fn datagram(port: u16, data: &[u8]) -> Vec<u8> {
    let len = (8 + data.len()) as u16;
    let mut message = vec![0; 8];
    Udp { source: 4000, destination: port, len, checksum: 0 }.emit(&mut message).unwrap();
    message.extend_from_slice(data);
    let mut sum = Checksum::pseudo_header(HERE.1.octets(), THERE.1.octets(), ipv4::UDP, len);
    sum.add(&message);
    message[6..8].copy_from_slice(&sum.finish().to_be_bytes());
    message
}

/// Checks the headers of what reached the tenant, and the UDP or ICMP checksum.
fn checked(frame: &[u8]) -> Ipv4 {
    let header = Ethernet::parse(frame).unwrap();
    assert_eq!((header.destination, header.source), (Mac([2, 0, 0, 0, 0, 2]), GATEWAY_MAC));
    let ip = Ipv4::parse(&frame[14..], frame.len() - 14).unwrap();
    assert_eq!((ip.source, ip.destination), (THERE.1, HERE.1));
    let mut sum = match ip.protocol {
        ipv4::UDP => {
            Checksum::pseudo_header(THERE.1.octets(), HERE.1.octets(), ipv4::UDP, ip.payload_len())
        }
        _ => Checksum::new(),
    };
    sum.add(&frame[34..]);
    assert_eq!(sum.folded(), 0xffff, "{frame:x?}");
    ip
}

/// Echo and UDP in both directions, from small to the largest that fits.
fn talks(vxlan_options: &str) {
    let mut host = set_up(vxlan_options);
    for len in [0, 1, 56, 1472, 3700, 8922] {
        let data: Vec<u8> = (0..len).map(|n| (n * 7) as u8).collect();
        host.send(&tenant_frame(ipv4::ICMP, 0, &echo_request(&data)));
        let reply = host.receive();
        checked(&reply);
        assert_eq!((reply[34], &reply[42..]), (0, &data[..]), "the echo of {len} bytes");
    }
    for ecn in [ecn::NOT_ECT, ecn::ECT_0, ecn::ECT_1, ecn::CE] {
        // An echo reply has its request's TOS, and the device copies it outside.
        host.send(&tenant_frame(ipv4::ICMP, ecn, &echo_request(b"mark")));
        let reply = host.receive();
        assert_eq!(ecn::of_tos(checked(&reply).tos), ecn);
    }
    assert!(host.arp_answers > 0, "the kernel asked for the tenant's address");
    let socket = host.far.within(|| UdpSocket::bind((THERE.1, 0)).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let port = socket.local_addr().unwrap().port();
    for len in [0, 1, 18, 1400, 3750, 8922] {
        let data: Vec<u8> = (0..len).map(|n| (n * 5 + 1) as u8).collect();
        let mut buffer = vec![0; 10_000];
        host.send(&tenant_frame(ipv4::UDP, ecn::ECT_0, &datagram(port, &data)));
        let (got, from) =
            socket.recv_from(&mut buffer).expect("the datagram at the kernel's socket");
        assert_eq!((&buffer[..got], from), (&data[..], (HERE.1, 4000).into()));
        socket.send_to(&data, from).unwrap();
        let answer = host.receive();
        assert_eq!(checked(&answer).protocol, ipv4::UDP);
        assert_eq!(answer[42..], data);
    }
}

#[test]
fn linux_with_outer_checksums() {
    talks("udpcsum");
}

#[test]
fn linux_without_outer_checksums() {
    talks("noudpcsum");
}
