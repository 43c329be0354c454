//! `[[vpc]]`, `[[uplink]]`, `[[port]]`: tenants, what joins them, and the way to other hosts.

use super::plan::{Port, Role, Route, Tenant, Vpc};
use super::section::{At, Section};
use super::top::{Claims, Names, Shared, check_worker};
use super::value;
use crate::packet::PortId;
use outboard_wire::{Ipv4Prefix, Mac};
use std::net::Ipv4Addr;

/// The most queues of a port.
pub(super) const QUEUES_MAX: u64 = 16;
/// The most VPCs of a host.
const VPCS_MAX: usize = 1024;
/// The most routes of a VPC.
const ROUTES_MAX: usize = 4096;
/// The most uplinks of a host.
const UPLINKS_MAX: usize = 8;
/// The most tenants' ports of a host.
const PORTS_MAX: usize = 256;
/// Ports and uplinks together.
pub(super) const PORTS_AND_UPLINKS_MAX: usize = UPLINKS_MAX + PORTS_MAX;
/// RFC 7348, 5: a VNI has 24 bits; 0 is left out, it is what an unset field holds.
const VNI_MAX: u64 = (1 << 24) - 1;
/// RFC 791, 3.2: every host accepts 68 bytes; 9216 is the most that switches commonly carry.
const MTU_BYTES: std::ops::RangeInclusive<u64> = 68..=9216;
/// What fits through VXLAN (50 bytes) over an underlay of 1500.
const MTU_DEFAULT_BYTES: u64 = 1450;

/// What this file reads.
pub(super) struct Networks {
    pub vpcs: Vec<Vpc>,
    pub ports: Vec<Port>,
}

/// A VPC while the rest is checked against it. What is wrong is `None`.
#[derive(Default)]
struct Draft {
    name: Option<String>,
    vni: Option<u32>,
    gateway: Option<At<Ipv4Addr>>,
    gateway_mac: Option<Mac>,
    routes: Vec<(At<Ipv4Prefix>, At<Ipv4Addr>, Option<Mac>)>,
    route_claims: Claims<Ipv4Prefix>,
    addresses: Claims<Ipv4Addr>,
    macs: Claims<Mac>,
}

/// The virtual gateway's MAC address of a VNI: the same on every host.
fn derived_gateway_mac(vni: u32) -> Mac {
    let [_, a, b, c] = vni.to_be_bytes();
    Mac([0x02, b'o', b'b', a, b, c])
}

/// A tenant's MAC address: unique within its VPC because the address is, and never a gateway's.
fn derived_tenant_mac(vni: u32, address: Ipv4Addr) -> Mac {
    let [_, v0, v1, v2] = vni.to_be_bytes();
    let [a, b, c, d] = address.octets();
    Mac([0x06, v0 ^ v1 ^ v2, a, b, c, d])
}

pub(super) fn read(top: &mut Section, shared: &mut Shared) -> Option<Networks> {
    let mut vpc_names = Names::default();
    let mut vnis = Claims::default();
    let mut drafts = Vec::new();
    for section in top.tables("vpc", "[[vpc]]", VPCS_MAX, &mut shared.sink) {
        drafts.push(read_vpc(section, &mut vpc_names, &mut vnis, shared));
    }
    let mut reader = Ports { vpc_names, drafts, ..Ports::default() };
    for section in top.tables("uplink", "[[uplink]]", UPLINKS_MAX, &mut shared.sink) {
        let port = reader.read_uplink(section, shared);
        reader.list.push(port);
    }
    for section in top.tables("port", "[[port]]", PORTS_MAX, &mut shared.sink) {
        let port = reader.read_port(section, shared);
        reader.list.push(port);
    }
    check_routes(&reader, shared);
    Some(Networks {
        vpcs: reader.drafts.into_iter().map(finish_vpc).collect::<Option<_>>()?,
        ports: reader.list.into_iter().collect::<Option<_>>()?,
    })
}

fn read_vpc(
    mut section: Section,
    names: &mut Names,
    vnis: &mut Claims<u64>,
    shared: &mut Shared,
) -> Draft {
    let sink = &mut shared.sink;
    let mut draft = Draft::default();
    let name = section.required("name", "\"blue\"", sink, value::name);
    names.declare("VPC", &name, sink);
    let vni = section.required("vni", "100", sink, value::number(1..=VNI_MAX));
    if let Some(vni) = &vni {
        vnis.claim(vni.value, &vni.span, format!("VNI {}", vni.value), "want another VNI", sink);
    }
    draft.vni = vni.map(|vni| vni.value as u32);
    draft.gateway = section.required("gateway", "\"10.0.0.254\"", sink, value::ipv4);
    if let Some(gateway) = &draft.gateway {
        draft.addresses.claim(gateway.value, &gateway.span, "the gateway", "", sink);
    }
    let place = section.span.clone();
    let mac = section.optional("gateway_mac", sink, value::mac);
    let span = mac.as_ref().map_or(place, |mac| mac.span.clone());
    draft.gateway_mac = mac.map(|mac| mac.value).or(draft.vni.map(derived_gateway_mac));
    if let Some(mac) = draft.gateway_mac {
        draft.macs.claim(mac, &span, "the gateway's MAC", "", sink);
    }
    for mut route in section.tables("route", "[[vpc.route]]", ROUTES_MAX, sink) {
        let to = route.required("to", "\"10.0.1.0/24\"", sink, value::network);
        let via = route.required("via", "\"192.0.2.2\"", sink, value::ipv4);
        let mac = route.optional("mac", sink, value::mac).map(|mac| mac.value);
        if let Some(to) = &to {
            let what = format!("the route to {} in this VPC", to.value);
            draft.route_claims.claim(to.value, &to.span, what, "want one route each", sink);
        }
        draft.routes.extend(to.zip(via).map(|(to, via)| (to, via, mac)));
        route.finish(sink);
    }
    section.finish(sink);
    draft.name = name.map(|name| name.value);
    draft
}

fn finish_vpc(draft: Draft) -> Option<Vpc> {
    let gateway_mac = draft.gateway_mac?;
    let route = |(to, via, mac): (At<Ipv4Prefix>, At<Ipv4Addr>, Option<Mac>)| Route {
        to: to.value,
        via: via.value,
        mac: mac.unwrap_or(gateway_mac),
    };
    Some(Vpc {
        name: draft.name?,
        vni: draft.vni?,
        gateway: draft.gateway?.value,
        gateway_mac,
        routes: draft.routes.into_iter().map(route).collect(),
    })
}

/// A route needs an uplink to leave by, and must not lead back to this host.
fn check_routes(reader: &Ports, shared: &mut Shared) {
    let routes = reader.drafts.iter().flat_map(|draft| &draft.routes);
    for (to, via, _) in routes {
        if !reader.has_uplink {
            let want = "add an [[uplink]] with `vtep`, this host's tunnel address";
            shared.sink.push(to.span.clone(), "a route to another host without an uplink", want);
            return;
        }
        if let Some(own) = reader.vteps.get(&via.value) {
            let what = format!("`via` of [[vpc.route]] is {}, this host itself", via.value);
            let want = "want the `vtep` of another host";
            shared.sink.push_with(via.span.clone(), what, want, (own.clone(), "this host's"));
        }
    }
}

/// Ports and uplinks, which share names and interfaces.
#[derive(Default)]
struct Ports {
    vpc_names: Names,
    drafts: Vec<Draft>,
    names: Names,
    interfaces: Claims<String>,
    vteps: Claims<Ipv4Addr>,
    has_uplink: bool,
    list: Vec<Option<Port>>,
}

impl Ports {
    fn read_uplink(&mut self, mut section: Section, shared: &mut Shared) -> Option<Port> {
        self.has_uplink = true;
        let (name, interface) = self.read_head(&mut section, "\"eth1\"", shared);
        let vtep = section.required("vtep", "\"192.0.2.1\"", &mut shared.sink, value::ipv4);
        if let Some(vtep) = &vtep {
            let what = format!("the tunnel address {}", vtep.value);
            let want = "want one per uplink";
            self.vteps.claim(vtep.value, &vtep.span, what, want, &mut shared.sink);
        }
        let queues = read_queues(&mut section, shared);
        section.finish(&mut shared.sink);
        let role = Role::Uplink { vtep: vtep?.value };
        let id = PortId(self.list.len() as u16);
        Some(Port { id, name: name?, interface: interface?, queues: queues?, role })
    }

    fn read_port(&mut self, mut section: Section, shared: &mut Shared) -> Option<Port> {
        let (name, interface) = self.read_head(&mut section, "\"web0\"", shared);
        let sink = &mut shared.sink;
        let vpc = section.required("vpc", "\"blue\"", sink, value::name);
        let vpc = vpc.and_then(|vpc| self.vpc_names.resolve("vpc", &vpc, sink));
        let want = "\"10.0.0.1/24\"";
        let address = section.required("address", want, sink, value::host_address);
        let mac = section.optional("mac", sink, value::mac);
        let mtu = section.optional("mtu", sink, value::number(MTU_BYTES));
        let queues = read_queues(&mut section, shared);
        let (place, own_mac) = (section.span.clone(), section.has("mac"));
        section.finish(&mut shared.sink);

        let (vpc, address) = (vpc?, address?);
        let draft = &mut self.drafts[usize::from(vpc)];
        let free = check_address(draft, &address, shared);
        let span = mac.as_ref().map_or(place, |mac| mac.span.clone());
        let mac = match mac {
            Some(mac) => mac.value,
            None => derived_tenant_mac(draft.vni?, address.value.0),
        };
        // A MAC address made from an address that is taken would be taken too.
        if free || own_mac {
            let what = format!("the MAC address {mac} in this VPC");
            draft.macs.claim(mac, &span, what, "want another `mac`", &mut shared.sink);
        }
        let tenant = Tenant {
            vpc,
            address: address.value.0,
            prefix_len: address.value.1,
            mac,
            mtu: mtu.map_or(MTU_DEFAULT_BYTES, |mtu| mtu.value) as u16,
        };
        let role = Role::Tenant(tenant);
        let id = PortId(self.list.len() as u16);
        Some(Port { id, name: name?, interface: interface?, queues: queues?, role })
    }

    fn read_head(
        &mut self,
        section: &mut Section,
        example: &str,
        shared: &mut Shared,
    ) -> (Option<String>, Option<String>) {
        let sink = &mut shared.sink;
        let name = section.required("name", example, sink, value::name);
        self.names.declare("port", &name, sink);
        let interface = section.required("interface", example, sink, value::interface);
        if let Some(interface) = &interface {
            let what = format!("the interface \"{}\"", interface.value);
            let key = interface.value.clone();
            self.interfaces.claim(key, &interface.span, what, "want another interface", sink);
        }
        (name.map(|name| name.value), interface.map(|interface| interface.value))
    }
}

/// A tenant's address must be its own in the VPC (the result), and reach the gateway.
fn check_address(draft: &mut Draft, address: &At<(Ipv4Addr, u8)>, shared: &mut Shared) -> bool {
    let (ip, len) = address.value;
    let sink = &mut shared.sink;
    let what = format!("the address {ip} in this VPC");
    let free = draft.addresses.claim(ip, &address.span, what, "want another address", sink);
    let host = Ipv4Prefix::containing(ip, 32).and_then(|host| draft.route_claims.get(&host));
    if let Some(route) = host {
        let what = format!("a route of the VPC sends {ip} to another host");
        let want = "want the address here or the route, not both";
        sink.push_with(address.span.clone(), what, want, (route.clone(), "the route is"));
    }
    let Some(gateway) = &draft.gateway else { return free };
    let network = Ipv4Prefix::containing(ip, len);
    // With /32 nothing is on-link: the route to the gateway is then made explicitly.
    if len < 32 && !network.is_some_and(|network| network.contains(gateway.value)) {
        let what = format!("{ip}/{len} does not reach the VPC's gateway {}", gateway.value);
        let want = "want an address in the gateway's network, or /32";
        let other = (gateway.span.clone(), "the gateway is");
        sink.push_with(address.span.clone(), what, want, other);
    }
    free
}

/// `queues`, and `worker` or `workers`: the owner of each queue.
fn read_queues(section: &mut Section, shared: &mut Shared) -> Option<Vec<u16>> {
    let sink = &mut shared.sink;
    let queues = section.optional("queues", sink, value::number(1..=QUEUES_MAX));
    let one = section.optional("worker", sink, value::number(0..=u64::from(u16::MAX)));
    let many = section.optional("workers", sink, value::worker_list);
    if let (Some(one), true) = (&one, section.has("workers")) {
        let what = format!("{} and `workers` at once", section.named("worker"));
        sink.push(one.span.clone(), what, "want one of the two");
    }
    let owners = match (one, many) {
        (_, Some(many)) => many,
        (Some(one), None) => At { value: vec![one.value as u16], span: one.span },
        (None, None) => At { value: vec![0], span: section.span.clone() },
    };
    for worker in &owners.value {
        check_worker(*worker, &owners.span, shared);
    }
    let count = queues.as_ref().map_or(owners.value.len(), |queues| queues.value as usize);
    if owners.value.len() > count {
        let s = if count == 1 { "" } else { "s" };
        let what = format!("{} workers for {count} queue{s}", owners.value.len());
        let want = "want at least as many `queues` as workers";
        shared.sink.push(owners.span, what, want);
        return None;
    }
    Some(owners.value.iter().copied().cycle().take(count).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_addresses_are_unicast_local_and_distinct() {
        let gateway = derived_gateway_mac(0x01_02_03);
        assert_eq!(gateway.to_string(), "02:6f:62:01:02:03");
        let tenant = derived_tenant_mac(0x01_02_03, Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(tenant.to_string(), "06:00:0a:00:00:01");
        for mac in [gateway, tenant] {
            assert!(!mac.is_group() && mac.0[0] & 2 == 2);
        }
    }
}
