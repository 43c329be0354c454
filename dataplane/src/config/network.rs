//! `[[vpc]]`, `[[uplink]]`, `[[port]]`: tenants, what joins them, and the way to other hosts.

use super::error::Sink;
use super::plan::{Dscp, Ipv4Interface, Ipv6Interface, Port, Role, Route, Tenant, Vpc};
use super::section::{At, Section};
use super::top::{Claims, Names, Shared, check_worker};
use super::value;
use crate::packet::PortId;
use outboard_wire::{IpPrefix, Mac};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

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
/// RFC 8200, 5: what every link of IPv6 carries.
const MTU_MIN6_BYTES: u64 = 1280;
/// What fits through VXLAN over IPv4 (50 bytes) and an underlay of 1500.
const MTU_DEFAULT_BYTES: u64 = 1450;
/// What fits through VXLAN over IPv6 (70 bytes) and an underlay of 1500.
const MTU_DEFAULT6_BYTES: u64 = 1430;

/// Where a port's packets come from: its interface, and a device of DPDK's.
type Way = (String, Option<String>);

/// Who moves a port's packets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Driver {
    AfXdp,
    Dpdk,
}

const DRIVERS: &[(&str, Driver)] = &[("af_xdp", Driver::AfXdp), ("dpdk", Driver::Dpdk)];

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
    gateway6: Option<At<Ipv6Addr>>,
    /// Whether a key is there for IPv4, for IPv6, right or wrong.
    has_gateway: (bool, bool),
    gateway_mac: Option<Mac>,
    dscp: Option<Dscp>,
    routes: Vec<(At<IpPrefix>, At<IpAddr>, Option<Mac>)>,
    route_claims: Claims<IpPrefix>,
    addresses: Claims<IpAddr>,
    macs: Claims<Mac>,
    /// Its table.
    span: Range<usize>,
}

/// The virtual gateway's MAC address of a VNI: the same on every host.
fn derived_gateway_mac(vni: u32) -> Mac {
    let [_, a, b, c] = vni.to_be_bytes();
    Mac([0x02, b'o', b'b', a, b, c])
}

/// A tenant's MAC address: unique within its VPC because the address is (of IPv6 its last four
/// bytes, which may coincide and are then reported), and never a gateway's.
fn derived_tenant_mac(vni: u32, address: IpAddr) -> Mac {
    let [_, v0, v1, v2] = vni.to_be_bytes();
    let (kind, last) = match address {
        IpAddr::V4(address) => (0x06, address.to_bits()),
        IpAddr::V6(address) => (0x0a, address.to_bits() as u32),
    };
    let [a, b, c, d] = last.to_be_bytes();
    Mac([kind, v0 ^ v1 ^ v2, a, b, c, d])
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
    draft.span = section.span.clone();
    draft.gateway = section.optional("gateway", sink, value::ipv4);
    if let Some(gateway) = &draft.gateway {
        draft.addresses.claim(gateway.value.into(), &gateway.span, "the gateway", "", sink);
    }
    draft.gateway6 = section.optional("gateway6", sink, value::ipv6);
    if let Some(gateway) = &draft.gateway6 {
        draft.addresses.claim(gateway.value.into(), &gateway.span, "the gateway", "", sink);
    }
    draft.has_gateway = (section.has("gateway"), section.has("gateway6"));
    if draft.has_gateway == (false, false) {
        let want = "add `gateway = \"10.0.0.254\"`, `gateway6 = \"fd00::fe\"`, or both";
        sink.push(section.span.clone(), "`gateway` of [[vpc]] is missing", want);
    }
    let dscp = section.optional("dscp", sink, value::dscp);
    draft.dscp = Some(dscp.map_or(Dscp::Fixed(0), |dscp| dscp.value));
    let place = section.span.clone();
    let mac = section.optional("gateway_mac", sink, value::mac);
    let span = mac.as_ref().map_or(place, |mac| mac.span.clone());
    draft.gateway_mac = mac.map(|mac| mac.value).or(draft.vni.map(derived_gateway_mac));
    if let Some(mac) = draft.gateway_mac {
        draft.macs.claim(mac, &span, "the gateway's MAC", "", sink);
    }
    for mut route in section.tables("route", "[[vpc.route]]", ROUTES_MAX, sink) {
        let to = route.required("to", "\"10.0.1.0/24\"", sink, value::network);
        let via = route.required("via", "\"192.0.2.2\"", sink, value::ip);
        let mac = route.optional("mac", sink, value::mac).map(|mac| mac.value);
        if let Some(to) = &to {
            check_family(&draft, matches!(to.value, IpPrefix::V4(_)), "to", &to.span, sink);
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
    let route = |(to, via, mac): (At<IpPrefix>, At<IpAddr>, Option<Mac>)| Route {
        to: to.value,
        via: via.value,
        mac: mac.unwrap_or(gateway_mac),
    };
    Some(Vpc {
        name: draft.name?,
        vni: draft.vni?,
        gateway: draft.gateway.map(|gateway| gateway.value),
        gateway6: draft.gateway6.map(|gateway| gateway.value),
        gateway_mac,
        dscp: draft.dscp?,
        routes: draft.routes.into_iter().map(route).collect(),
    })
}

/// What is of one family needs the VPC's gateway of that family.
fn check_family(draft: &Draft, is_ipv4: bool, key: &str, span: &Range<usize>, sink: &mut Sink) {
    let (family, missing, has) = match is_ipv4 {
        true => ("IPv4", "gateway", draft.has_gateway.0),
        false => ("IPv6", "gateway6", draft.has_gateway.1),
    };
    // A VPC without any gateway was reported by its reader.
    if has || draft.has_gateway == (false, false) {
        return;
    }
    let what = format!("`{key}` is {family}, but the VPC has no `{missing}`");
    let want = format!("add `{missing}` to the VPC, or use the other family");
    sink.push_with(span.clone(), what, &want, (draft.span.clone(), "the VPC is"));
}

/// A route needs an uplink to leave by, with a tunnel address of the far end's family, and must
/// not lead back to this host.
fn check_routes(reader: &Ports, shared: &mut Shared) {
    let routes = reader.drafts.iter().flat_map(|draft| &draft.routes);
    for (to, via, _) in routes {
        if !reader.has_uplink {
            let want = "add an [[uplink]] with `vtep`, this host's tunnel address";
            shared.sink.push(to.span.clone(), "a route to another host without an uplink", want);
            return;
        }
        let (has, key) = match via.value {
            IpAddr::V4(_) => (reader.has_vtep.0, "vtep"),
            IpAddr::V6(_) => (reader.has_vtep.1, "vtep6"),
        };
        if !has {
            let what =
                format!("`via` of [[vpc.route]] is {}, but no uplink has `{key}`", via.value);
            let want =
                format!("add `{key}` to an [[uplink]], or use the other host's other address");
            shared.sink.push(via.span.clone(), what, &want);
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
    devices: Claims<String>,
    vteps: Claims<IpAddr>,
    /// Whether any uplink has a tunnel address of IPv4, of IPv6, right or wrong.
    has_vtep: (bool, bool),
    has_uplink: bool,
    list: Vec<Option<Port>>,
}

impl Ports {
    fn read_uplink(&mut self, mut section: Section, shared: &mut Shared) -> Option<Port> {
        self.has_uplink = true;
        let (name, way) = self.read_head(&mut section, "\"eth1\"", true, shared);
        let sink = &mut shared.sink;
        let vtep = section.optional("vtep", sink, value::ipv4);
        let vtep6 = section.optional("vtep6", sink, value::ipv6);
        let own = vtep.iter().map(|vtep| (IpAddr::V4(vtep.value), &vtep.span));
        for (vtep, span) in own.chain(vtep6.iter().map(|vtep| (vtep.value.into(), &vtep.span))) {
            let what = format!("the tunnel address {vtep}");
            self.vteps.claim(vtep, span, what, "want one per uplink", sink);
        }
        let has = (section.has("vtep"), section.has("vtep6"));
        self.has_vtep = (self.has_vtep.0 || has.0, self.has_vtep.1 || has.1);
        if has == (false, false) {
            let want = "add `vtep = \"192.0.2.1\"`, `vtep6 = \"2001:db8::1\"`, or both";
            sink.push(section.span.clone(), "`vtep` of [[uplink]] is missing", want);
        }
        let zero_checksum6 = section.optional("zero_checksum6", sink, value::boolean);
        if let (Some(zero), false) = (&zero_checksum6, has.1) {
            let what = "`zero_checksum6` of [[uplink]] has no effect without `vtep6`";
            sink.push(zero.span.clone(), what, "want it only with `vtep6`");
        }
        let queues = read_queues(&mut section, shared);
        check_dpdk_queues(&section, &queues, shared);
        section.finish(&mut shared.sink);
        let role = Role::Uplink {
            vtep: vtep.map(|vtep| vtep.value),
            vtep6: vtep6.map(|vtep| vtep.value),
            zero_checksum6: zero_checksum6.is_some_and(|zero| zero.value),
        };
        let id = PortId(self.list.len() as u16);
        let (interface, dpdk) = way?;
        Some(Port { id, name: name?, interface, dpdk, queues: queues?, role })
    }

    fn read_port(&mut self, mut section: Section, shared: &mut Shared) -> Option<Port> {
        let (name, way) = self.read_head(&mut section, "\"web0\"", false, shared);
        let sink = &mut shared.sink;
        let vpc = section.required("vpc", "\"blue\"", sink, value::name);
        let vpc = vpc.and_then(|vpc| self.vpc_names.resolve("vpc", &vpc, sink));
        let address = section.optional("address", sink, value::interface4);
        let address6 = section.optional("address6", sink, value::interface6);
        if !section.has("address") && !section.has("address6") {
            let want = "add `address = \"10.0.0.1/24\"`, `address6 = \"fd00::1/64\"`, or both";
            sink.push(section.span.clone(), "`address` of [[port]] is missing", want);
        }
        let mac = section.optional("mac", sink, value::mac);
        let mtu = section.optional("mtu", sink, value::number(MTU_BYTES));
        if let (Some(mtu), true) = (&mtu, section.has("address6"))
            && mtu.value < MTU_MIN6_BYTES
        {
            let what = format!("`mtu` of [[port]] is {}: too little for IPv6", mtu.value);
            sink.push(mtu.span.clone(), what, "want at least 1280 with `address6`");
        }
        let queues = read_queues(&mut section, shared);
        check_dpdk_queues(&section, &queues, shared);
        let (place, own_mac) = (section.span.clone(), section.has("mac"));
        section.finish(&mut shared.sink);

        let vpc = vpc?;
        let draft = &mut self.drafts[usize::from(vpc)];
        let free4 = address.as_ref().is_none_or(|address| check_address4(draft, address, shared));
        let free6 = address6.as_ref().is_none_or(|address| check_address6(draft, address, shared));
        let span = mac.as_ref().map_or(place, |mac| mac.span.clone());
        let first = address.as_ref().map(|address| IpAddr::V4(address.value.address));
        let first = first.or(address6.as_ref().map(|address| address.value.address.into()));
        let mac = match mac {
            Some(mac) => mac.value,
            None => derived_tenant_mac(draft.vni?, first?),
        };
        // A MAC address made from an address that is taken would be taken too.
        if (free4 && free6) || own_mac {
            let what = format!("the MAC address {mac} in this VPC");
            draft.macs.claim(mac, &span, what, "want another `mac`", &mut shared.sink);
        }
        let default = if self.has_vtep.1 { MTU_DEFAULT6_BYTES } else { MTU_DEFAULT_BYTES };
        let tenant = Tenant {
            vpc,
            address: address.map(|address| address.value),
            address6: address6.map(|address| address.value),
            mac,
            mtu: mtu.map_or(default, |mtu| mtu.value) as u16,
        };
        let role = Role::Tenant(tenant);
        let id = PortId(self.list.len() as u16);
        let (interface, dpdk) = way?;
        Some(Port { id, name: name?, interface, dpdk, queues: queues?, role })
    }

    fn read_head(
        &mut self,
        section: &mut Section,
        example: &str,
        is_uplink: bool,
        shared: &mut Shared,
    ) -> (Option<String>, Option<Way>) {
        let sink = &mut shared.sink;
        let name = section.required("name", example, sink, value::name);
        self.names.declare("port", &name, sink);
        let driver = section.optional("driver", sink, value::choice(DRIVERS));
        let is_dpdk = driver.is_some_and(|driver| driver.value == Driver::Dpdk);
        // Next hops are the kernel's to find: it must know the device of an uplink.
        let interface = match is_uplink || !is_dpdk {
            true => section.required("interface", example, sink, value::interface),
            false => section.optional("interface", sink, value::interface),
        };
        if let Some(interface) = &interface {
            let what = format!("the interface \"{}\"", interface.value);
            let key = interface.value.clone();
            self.interfaces.claim(key, &interface.span, what, "want another interface", sink);
        }
        let name = name.map(|name| name.value);
        if !is_dpdk {
            section.refuse("device", "has no effect without `driver = \"dpdk\"`", sink);
            return (name, interface.map(|interface| (interface.value, None)));
        }
        let example = "\"net_af_packet0,iface=eth1\"";
        let device = section.required("device", example, sink, value::device);
        if let Some(device) = &device {
            let short = device.value.split(',').next().unwrap_or_default().to_string();
            let what = format!("the device \"{short}\"");
            self.devices.claim(short, &device.span, what, "want another number", sink);
        }
        let missing = is_uplink && interface.is_none();
        let interface = interface.map_or(String::new(), |interface| interface.value);
        (name, device.filter(|_| !missing).map(|device| (interface, Some(device.value))))
    }
}

/// A port of a device of DPDK's has one queue.
fn check_dpdk_queues(section: &Section, queues: &Option<Vec<u16>>, shared: &mut Shared) {
    let more = queues.as_ref().is_some_and(|queues| queues.len() > 1);
    if section.has("device") && more {
        let what = format!("several queues of {}", section.named("device"));
        shared.sink.push(section.span.clone(), what, "want one: leave `queues` out");
    }
}

fn check_address4(draft: &mut Draft, at: &At<Ipv4Interface>, shared: &mut Shared) -> bool {
    check_family(draft, true, "address", &at.span, &mut shared.sink);
    let Ipv4Interface { address, prefix_len } = at.value;
    let gateway = draft.gateway.as_ref().map(|gateway| (gateway.value, gateway.span.clone()));
    // With /32 nothing is on-link: the route to the gateway is then made explicitly.
    let beyond =
        gateway.filter(|(gateway, _)| prefix_len < 32 && !at.value.network().contains(*gateway));
    let beyond = beyond.map(|(gateway, span)| (gateway.into(), span));
    check_address(draft, (address.into(), prefix_len), &at.span, beyond, shared)
}

fn check_address6(draft: &mut Draft, at: &At<Ipv6Interface>, shared: &mut Shared) -> bool {
    check_family(draft, false, "address6", &at.span, &mut shared.sink);
    let Ipv6Interface { address, prefix_len } = at.value;
    let gateway = draft.gateway6.as_ref().map(|gateway| (gateway.value, gateway.span.clone()));
    let beyond =
        gateway.filter(|(gateway, _)| prefix_len < 128 && !at.value.network().contains(*gateway));
    let beyond = beyond.map(|(gateway, span)| (gateway.into(), span));
    check_address(draft, (address.into(), prefix_len), &at.span, beyond, shared)
}

/// A tenant's address must be its own in the VPC (the result), and reach the gateway, which
/// `beyond` names when it does not.
fn check_address(
    draft: &mut Draft,
    (ip, len): (IpAddr, u8),
    span: &Range<usize>,
    beyond: Option<(IpAddr, Range<usize>)>,
    shared: &mut Shared,
) -> bool {
    let sink = &mut shared.sink;
    let what = format!("the address {ip} in this VPC");
    let free = draft.addresses.claim(ip, span, what, "want another address", sink);
    if let Some(route) = draft.route_claims.get(&IpPrefix::host(ip)) {
        let what = format!("a route of the VPC sends {ip} to another host");
        let want = "want the address here or the route, not both";
        sink.push_with(span.clone(), what, want, (route.clone(), "the route is"));
    }
    if let Some((gateway, place)) = beyond {
        let what = format!("{ip}/{len} does not reach the VPC's gateway {gateway}");
        let all = if ip.is_ipv4() { 32 } else { 128 };
        let want = format!("want an address in the gateway's network, or /{all}");
        sink.push_with(span.clone(), what, &want, (place, "the gateway is"));
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
        let tenant = derived_tenant_mac(0x01_02_03, Ipv4Addr::new(10, 0, 0, 1).into());
        assert_eq!(tenant.to_string(), "06:00:0a:00:00:01");
        let tenant6 = derived_tenant_mac(0x01_02_03, Ipv6Addr::from_bits(0xfd << 120 | 7).into());
        assert_eq!(tenant6.to_string(), "0a:00:00:00:00:07");
        for mac in [gateway, tenant, tenant6] {
            assert!(!mac.is_group() && mac.0[0] & 2 == 2);
        }
    }
}
