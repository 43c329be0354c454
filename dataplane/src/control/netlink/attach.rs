//! A container's interface: one end here, for Outboard, the other in the container's namespace.
//!
//! [`attach`] makes a veth pair, or repairs the one it made before: the host's end is the port's
//! `interface`, up, without addresses; the container's end gets the tenant's MAC address, address,
//! MTU, a default route through the VPC's gateway, and no transmit offloads. What fails in between
//! leaves nothing behind. The host's end carries the alias `outboard INSTANCE/PORT`, by which
//! [`detach`] and a second [`attach`] know it as ours.

use super::addresses::{self, DefaultRoute};
use super::links::{self, Link, VethPair};
use super::netns::{Netns, NetnsError};
use super::offload;
use super::socket::Rtnetlink;
use crate::config::Plan;
use crate::config::plan::{Port, Role, Tenant, Vpc};
use std::io;
use std::net::IpAddr;

/// What [`attach`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// Nothing; the pair was made.
    New,
    /// The pair was there; its settings are as configured now.
    Again,
}

/// Why a container could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The configuration has no such port.
    #[error("no [[port]] is named \"{port}\"; the configuration has: {known}")]
    NoPort {
        /// As the user gave it.
        port: String,
        /// The tenants' ports there are.
        known: String,
    },
    /// The name is not possible for an interface.
    #[error("\"{ifname}\" cannot name an interface: 1 to 15 bytes, no '/', ':' or space")]
    BadName {
        /// As the user gave it.
        ifname: String,
    },
    /// The container's namespace cannot be used.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The host's end exists, made by somebody else.
    #[error(
        "the interface {interface} exists and was not made by `outboard attach` for this port; \
         remove it with `ip link del {interface}` or give the port another `interface`"
    )]
    NotOurs {
        /// The host's end.
        interface: String,
    },
    /// The port is in use by another container.
    #[error(
        "port \"{port}\" is attached, but not as {ifname} in \"{netns}\"; \
         detach it first: `outboard detach --port {port} --config …`"
    )]
    Elsewhere {
        /// The port.
        port: String,
        /// The namespace asked for.
        netns: String,
        /// The interface asked for.
        ifname: String,
    },
    /// The port is in use by another container than the one given to detach.
    #[error(
        "port \"{port}\" is not attached to \"{netns}\"; leave --netns out to detach it anyway"
    )]
    NotThere {
        /// The port.
        port: String,
        /// The namespace given.
        netns: String,
    },
    /// The configuration changed in a way that needs a new pair.
    #[error(
        "port \"{port}\" is attached with {found} queues, the configuration says {wanted}; \
         detach it first: `outboard detach --port {port} --config …`"
    )]
    Queues {
        /// The port.
        port: String,
        /// What there is.
        found: u32,
        /// What is configured.
        wanted: u32,
    },
    /// The container has an interface of that name.
    #[error(
        "the namespace \"{netns}\" has an interface {ifname} already; \
         choose another name with --ifname"
    )]
    NameTaken {
        /// The namespace.
        netns: String,
        /// The container's end.
        ifname: String,
    },
    /// The container reaches the world another way.
    #[error(
        "the namespace \"{netns}\" has another default route{via}; \
         remove it with `{ip} -n {netns} route del default`"
    )]
    DefaultRoute {
        /// The namespace.
        netns: String,
        /// " via ADDRESS", or nothing.
        via: String,
        /// The command that shows routes of the family.
        ip: &'static str,
    },
    /// A step was refused.
    #[error("cannot {step}: {source}{remedy}")]
    Refused {
        /// What was to be done.
        step: String,
        /// The system's reason.
        source: io::Error,
        /// What to do about it.
        remedy: &'static str,
    },
}

fn refused(step: impl Into<String>) -> impl FnOnce(io::Error) -> AttachError {
    move |source| {
        let remedy = match source.raw_os_error() {
            Some(libc::EPERM) => "; run as root (CAP_NET_ADMIN)",
            Some(libc::EOPNOTSUPP) => "; the kernel lacks veth or ethtool's netlink interface",
            _ => "",
        };
        AttachError::Refused { step: step.into(), source, remedy }
    }
}

/// A tenant's port of the plan.
struct Wanted<'p> {
    port: &'p Port,
    tenant: &'p Tenant,
    /// Address, prefix length, the gateway, and whether that is in the prefix; one per family.
    addresses: Vec<Address>,
    alias: String,
}

/// An address of the container, and its way out.
struct Address {
    own: IpAddr,
    prefix_len: u8,
    gateway: IpAddr,
    gateway_on_link: bool,
}

impl Address {
    /// Those of a tenant, whose VPC has a gateway for each: the configuration sees to that.
    fn all(tenant: &Tenant, vpc: &Vpc) -> Vec<Address> {
        let v4 = tenant.address.zip(vpc.gateway).map(|(own, gateway)| Address {
            own: own.address.into(),
            prefix_len: own.prefix_len,
            gateway: gateway.into(),
            gateway_on_link: own.network().contains(gateway),
        });
        let v6 = tenant.address6.zip(vpc.gateway6).map(|(own, gateway)| Address {
            own: own.address.into(),
            prefix_len: own.prefix_len,
            gateway: gateway.into(),
            gateway_on_link: own.network().contains(gateway),
        });
        v4.into_iter().chain(v6).collect()
    }
}

impl<'p> Wanted<'p> {
    fn of(plan: &'p Plan, port: &str) -> Result<Wanted<'p>, AttachError> {
        let tenants = plan.ports.iter().filter_map(|port| match &port.role {
            Role::Tenant(tenant) => Some((port, tenant)),
            Role::Uplink { .. } => None,
        });
        match tenants.clone().find(|(candidate, _)| candidate.name == port) {
            Some((port, tenant)) => {
                let addresses = Address::all(tenant, &plan.vpcs[usize::from(tenant.vpc)]);
                let alias = format!("outboard {}/{}", plan.name, port.name);
                Ok(Wanted { port, tenant, addresses, alias })
            }
            None => {
                let known: Vec<_> = tenants.map(|(port, _)| port.name.as_str()).collect();
                let known = if known.is_empty() { "no [[port]]".into() } else { known.join(", ") };
                Err(AttachError::NoPort { port: port.to_string(), known })
            }
        }
    }

    /// The host's end, if it is there and ours.
    fn find(&self, netlink: &mut Rtnetlink) -> Result<Option<Link>, AttachError> {
        let interface = &self.port.interface;
        let found = links::find(netlink, interface)
            .map_err(refused(format!("look for the interface {interface}")))?;
        match found {
            Some(link) if link.is_veth && link.alias == self.alias => Ok(Some(link)),
            Some(_) => Err(AttachError::NotOurs { interface: interface.clone() }),
            None => Ok(None),
        }
    }
}

fn open() -> Result<Rtnetlink, AttachError> {
    Rtnetlink::route().map_err(refused("open a netlink socket"))
}

/// Attaches a container to a port.
pub fn attach(plan: &Plan, port: &str, netns: &str, ifname: &str) -> Result<Attached, AttachError> {
    let wanted = Wanted::of(plan, port)?;
    if !crate::config::is_interface_name(ifname) {
        return Err(AttachError::BadName { ifname: ifname.to_string() });
    }
    let netns = Netns::open(netns)?;
    let mut netlink = open()?;
    if let Some(host) = wanted.find(&mut netlink)? {
        check_same(&wanted, &host, &netns, ifname)?;
        configure(&wanted, &mut netlink, host.index, &netns, ifname)?;
        return Ok(Attached::Again);
    }
    let host = make(&wanted, &mut netlink, &netns, ifname)?;
    if let Err(error) = configure(&wanted, &mut netlink, host, &netns, ifname) {
        // The first error is the one to tell; a link that cannot be deleted is gone or will be
        // met, and named, by the next attempt.
        let _ = links::delete(&mut netlink, host);
        return Err(error);
    }
    Ok(Attached::New)
}

/// Whether the pair that exists is the one asked for.
fn check_same(
    wanted: &Wanted,
    host: &Link,
    netns: &Netns,
    ifname: &str,
) -> Result<(), AttachError> {
    let port = wanted.port.name.clone();
    let inside = netns.run(|| links::find(&mut Rtnetlink::route()?, ifname))?;
    let inside = inside.map_err(refused(format!("look for {ifname} in \"{}\"", netns.name())))?;
    let is_peer = |link: &Link| link.is_veth && link.index == host.peer && link.peer == host.index;
    if !inside.is_some_and(|link| is_peer(&link)) {
        let (netns, ifname) = (netns.name().to_string(), ifname.to_string());
        return Err(AttachError::Elsewhere { port, netns, ifname });
    }
    let wanted = wanted.port.queues.len() as u32;
    if host.queues != (wanted, wanted) {
        return Err(AttachError::Queues { port, found: host.queues.0, wanted });
    }
    Ok(())
}

/// Makes the pair and marks it as ours; the result is the host's end.
fn make(
    wanted: &Wanted,
    netlink: &mut Rtnetlink,
    netns: &Netns,
    ifname: &str,
) -> Result<u32, AttachError> {
    let interface = &wanted.port.interface;
    let taken = netns
        .run(|| Ok(links::find(&mut Rtnetlink::route()?, ifname)?.is_some()))?
        .map_err(refused(format!("look for {ifname} in \"{}\"", netns.name())))?;
    if taken {
        let (netns, ifname) = (netns.name().to_string(), ifname.to_string());
        return Err(AttachError::NameTaken { netns, ifname });
    }
    let pair = VethPair {
        host: interface,
        tenant: ifname,
        netns: netns.raw_fd(),
        mac: wanted.tenant.mac,
        mtu: u32::from(wanted.tenant.mtu),
        queues: wanted.port.queues.len() as u32,
    };
    let step = format!("make the veth pair {interface} - {ifname} in \"{}\"", netns.name());
    links::make_veth(netlink, &pair).map_err(refused(step))?;
    let step = || refused(format!("mark the interface {interface}"));
    let gone = || io::Error::from_raw_os_error(libc::ENODEV);
    let host = links::find(netlink, interface).and_then(|link| link.ok_or_else(gone));
    let host = host.map_err(step())?;
    links::set_alias(netlink, host.index, &wanted.alias).map_err(|error| {
        let _ = links::delete(netlink, host.index);
        step()(error)
    })?;
    Ok(host.index)
}

/// Gives both ends their settings; nothing changes where they are right already.
fn configure(
    wanted: &Wanted,
    netlink: &mut Rtnetlink,
    host: u32,
    netns: &Netns,
    ifname: &str,
) -> Result<(), AttachError> {
    let interface = &wanted.port.interface;
    let mtu = u32::from(wanted.tenant.mtu);
    links::set_mtu(netlink, host, mtu)
        .and_then(|()| links::set_link_local(netlink, host, false))
        .and_then(|()| links::set_up(netlink, host))
        .map_err(refused(format!("set up the interface {interface}")))?;
    netns.run(|| configure_inside(wanted, netns, ifname))?
}

/// The container's end, from within its namespace.
fn configure_inside(wanted: &Wanted, netns: &Netns, ifname: &str) -> Result<(), AttachError> {
    let tenant = wanted.tenant;
    let place = format!("{ifname} in \"{}\"", netns.name());
    let gone = || io::Error::from_raw_os_error(libc::ENODEV);
    let mut netlink = open()?;
    let link = links::find(&mut netlink, ifname).and_then(|link| link.ok_or_else(gone));
    let link = link.map_err(refused(format!("find {place}")))?;
    let index = link.index;
    if link.mac != Some(tenant.mac) {
        links::set_mac(&mut netlink, index, tenant.mac)
            .map_err(refused(format!("set the MAC address of {place}")))?;
    }
    offload::switch_off(ifname).map_err(refused(format!("switch off offloads of {place}")))?;
    let has_v6 = wanted.addresses.iter().any(|address| address.own.is_ipv6());
    if has_v6 {
        settings_v6(ifname).map_err(refused(format!("set up IPv6 on {place}")))?;
    }
    links::set_mtu(&mut netlink, index, u32::from(tenant.mtu))
        .and_then(|()| links::set_link_local(&mut netlink, index, has_v6))
        .and_then(|()| links::set_up(&mut netlink, index))
        .map_err(refused(format!("set up {place}")))?;
    for address in &wanted.addresses {
        let Address { own, prefix_len, gateway, gateway_on_link } = *address;
        addresses::set_address(&mut netlink, index, own, prefix_len)
            .map_err(refused(format!("give {place} the address {own}")))?;
        let step = || refused(format!("route {place} through {gateway}"));
        if !gateway_on_link {
            addresses::add_on_link(&mut netlink, index, gateway).map_err(step())?;
        }
        let default = addresses::add_default(&mut netlink, index, gateway).map_err(step())?;
        if default != (DefaultRoute { index, via: Some(gateway) }) {
            let via = default.via.map_or(String::new(), |via| format!(" via {via}"));
            let ip = if gateway.is_ipv6() { "ip -6" } else { "ip" };
            return Err(AttachError::DefaultRoute { netns: netns.name().to_string(), via, ip });
        }
    }
    Ok(())
}

/// Has the kernel speak IPv6 on an interface of this thread's namespace (container engines may
/// switch it off): without listening to routers, since the gateway is known, and without looking
/// for duplicates, since nobody else can have the addresses.
fn settings_v6(ifname: &str) -> io::Result<()> {
    let settings =
        [("accept_ra", "0"), ("autoconf", "0"), ("accept_dad", "0"), ("disable_ipv6", "0")];
    for (setting, value) in settings {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{ifname}/{setting}"), value)?;
    }
    Ok(())
}

/// Detaches a port: removes both ends. With `netns`, only if the container's end is there. Says
/// whether there was anything to remove.
pub fn detach(plan: &Plan, port: &str, netns: Option<&str>) -> Result<bool, AttachError> {
    let wanted = Wanted::of(plan, port)?;
    let netns = netns.map(Netns::open).transpose()?;
    let mut netlink = open()?;
    let Some(host) = wanted.find(&mut netlink)? else { return Ok(false) };
    if let Some(netns) = netns {
        let peer = netns.run(|| links::find_index(&mut Rtnetlink::route()?, host.peer))?;
        let peer = peer.map_err(refused(format!("look into \"{}\"", netns.name())))?;
        if !peer.is_some_and(|link| link.is_veth && link.peer == host.index) {
            let port = wanted.port.name.clone();
            return Err(AttachError::NotThere { port, netns: netns.name().to_string() });
        }
    }
    let step = format!("remove the interface {}", wanted.port.interface);
    links::delete(&mut netlink, host.index).map_err(refused(step))?;
    Ok(true)
}
