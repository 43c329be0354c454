//! Two hosts, two VPCs with the same addresses in both, two tenants per host and VPC.

use outboard::config::Plan;
use outboard::config::plan::{
    Dscp, Ipv4Interface, Ipv6Interface, Port, Role, Route, Runtime, Tenant, Vpc, WaitMode,
};
use outboard::packet::PortId;
use outboard::switch::{NextHop, Tables};
use outboard_wire::{IpPrefix, Mac};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

pub const HOSTS: usize = 2;
/// Tenants of a host; ports 0 to 3 of it.
pub const TENANTS: usize = 4;
/// The port after the tenants'.
pub const UPLINK: PortId = PortId(TENANTS as u16);
/// Further apart than the bits that a link flips at once: no fault turns one into the other.
pub const VNIS: [u32; 2] = [0x12_3456, 0x6d_cba9];
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 255, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0xff, 1);
pub const GATEWAY_MAC: Mac = Mac([2, 0, 0x5e, 0, 0, 1]);
pub const TENANT_MTU: u16 = 8950;
pub const UPLINK_MTU: u32 = 9000;
/// Behind this far end lies 10.8.0.0/16; its next hop never resolves.
pub const UNRESOLVED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 8);
/// Behind this far end lies 10.9.0.0/16; there is no route to it.
pub const UNREACHABLE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

/// Where a tenant is and what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub host: usize,
    pub port: PortId,
    pub vpc: usize,
    pub address: Ipv4Addr,
    pub address6: Ipv6Addr,
    pub mac: Mac,
}

/// Every tenant; the index is its number.
pub fn places() -> Vec<Place> {
    (0..HOSTS).flat_map(|host| (0..TENANTS).map(move |port| place(host, port))).collect()
}

fn place(host: usize, port: usize) -> Place {
    let (vpc, number) = (port / 2, port % 2);
    Place {
        host,
        port: PortId(port as u16),
        vpc,
        address: Ipv4Addr::new(10, 0, host as u8, 2 + number as u8),
        address6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, host as u16, 2 + number as u16),
        mac: Mac([2, 0, 0, 1, host as u8, port as u8]),
    }
}

pub fn vtep(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 1 + host as u8)
}

pub fn vtep6(host: usize) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1 + host as u16)
}

/// Where the tenants of a host are.
fn network6(host: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, host as u16, 0)
}

pub fn uplink_mac(host: usize) -> Mac {
    Mac([2, 0, 0, 2, host as u8, 0])
}

pub fn plan(host: usize) -> Plan {
    let other = 1 - host;
    let route = |to: [u8; 4], len, via: Ipv4Addr| Route {
        to: IpPrefix::new(IpAddr::from(to), len).expect("a prefix"),
        via: via.into(),
        mac: GATEWAY_MAC,
    };
    let vpc = |vni| Vpc {
        name: String::new(),
        vni,
        gateway: Some(GATEWAY),
        gateway6: Some(GATEWAY6),
        gateway_mac: GATEWAY_MAC,
        dscp: Dscp::Fixed(0),
        routes: vec![
            route([10, 0, other as u8, 0], 24, vtep(other)),
            route([10, 8, 0, 0], 16, UNRESOLVED),
            route([10, 9, 0, 0], 16, UNREACHABLE),
            Route {
                to: IpPrefix::new(network6(other).into(), 112).expect("a prefix"),
                via: vtep6(other).into(),
                mac: GATEWAY_MAC,
            },
        ],
    };
    let port = |id, role| Port {
        id,
        name: String::new(),
        interface: String::new(),
        dpdk: None,
        queues: vec![0],
        role,
    };
    let tenants = (0..TENANTS).map(|number| {
        let Place { vpc, address, address6, mac, port: id, .. } = place(host, number);
        let vpc = vpc as u16;
        let address = Some(Ipv4Interface { address, prefix_len: 16 });
        let address6 = Some(Ipv6Interface { address: address6, prefix_len: 64 });
        port(id, Role::Tenant(Tenant { vpc, address, address6, mac, mtu: TENANT_MTU }))
    });
    let uplink =
        Role::Uplink { vtep: Some(vtep(host)), vtep6: Some(vtep6(host)), zero_checksum6: false };
    Plan {
        name: String::new(),
        runtime: Runtime {
            mode: WaitMode::Busy,
            spin_us: 0,
            region_mib: 2,
            flows: 16,
            ledger: false,
        },
        control_socket: "".into(),
        workers: Vec::new(),
        metrics: None,
        eal: Vec::new(),
        vpcs: VNIS.map(vpc).into(),
        ports: tenants.chain([port(UPLINK, uplink)]).collect(),
        volumes: Vec::new(),
        exports: Vec::new(),
        disks: Vec::new(),
    }
}

/// What the kernel says about the way to the other host.
pub fn resolved(host: usize) -> NextHop {
    NextHop::Resolved {
        port: UPLINK,
        src_ip: vtep(host).into(),
        src_mac: uplink_mac(host),
        dst_mac: uplink_mac(1 - host),
        path_mtu: UPLINK_MTU,
    }
}

/// The tables of a host.
pub fn tables(host: usize, to_other: NextHop) -> Arc<Tables> {
    Arc::new(Tables::new(&plan(host), &hops(host, to_other)))
}

/// The same behaviour from another configuration: one more route in front moves everything that
/// flows remember by its place.
pub fn tables_in_another_order(host: usize) -> Arc<Tables> {
    let mut plan = plan(host);
    for vpc in &mut plan.vpcs {
        let route = Route { mac: Mac([2, 0, 0, 3, 0, 0]), ..vpc.routes[1] };
        let to = IpPrefix::new(Ipv4Addr::new(10, 7, 0, 0).into(), 16).expect("a prefix");
        vpc.routes.insert(0, Route { to, ..route });
    }
    Arc::new(Tables::new(&plan, &hops(host, resolved(host))))
}

/// The tables of a host whose uplink was taken out of the configuration.
pub fn tables_without_uplink(host: usize) -> Arc<Tables> {
    let mut plan = plan(host);
    plan.ports.truncate(TENANTS);
    Arc::new(Tables::new(&plan, &[]))
}

fn hops(host: usize, to_other: NextHop) -> [(IpAddr, NextHop); 3] {
    let mut to_other6 = to_other;
    if let NextHop::Resolved { src_ip, .. } = &mut to_other6 {
        *src_ip = vtep6(host).into();
    }
    [
        (vtep(1 - host).into(), to_other),
        (vtep6(1 - host).into(), to_other6),
        (UNRESOLVED.into(), NextHop::Unresolved),
    ]
}
