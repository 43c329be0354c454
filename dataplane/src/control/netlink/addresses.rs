//! Addresses of links, and routes: each function asks or changes one thing in the namespace of the
//! socket, in the family of the addresses that it is given.

use super::socket::Rtnetlink;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The family of an address.
pub(super) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Bits of an address.
pub(super) fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The IPv4 and IPv6 addresses of a link, but none that another host was found to have.
pub(super) fn addresses(netlink: &mut Rtnetlink, index: u32) -> io::Result<Vec<IpAddr>> {
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for message in address_messages(netlink, index, family)? {
            let duplicate = message.header.flags.contains(AddressHeaderFlags::Dadfailed);
            all.extend(local(&message).filter(|_| !duplicate));
        }
    }
    Ok(all)
}

/// The address that a message is about. IPv6 names it once, unless it has a peer.
pub(super) fn local(message: &AddressMessage) -> Option<IpAddr> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => return Some(*address),
            AddressAttribute::Address(address) => found = Some(*address),
            _ => {}
        }
    }
    found
}

fn address_messages(
    netlink: &mut Rtnetlink,
    index: u32,
    family: AddressFamily,
) -> io::Result<Vec<AddressMessage>> {
    let mut request = AddressMessage::default();
    request.header.family = family;
    let all = netlink.dump(RouteNetlinkMessage::GetAddress(request))?;
    let of_link = |message| match message {
        RouteNetlinkMessage::NewAddress(message)
            if message.header.index == index && message.header.family == family =>
        {
            Some(message)
        }
        _ => None,
    };
    Ok(all.into_iter().filter_map(of_link).collect())
}

/// Gives a link exactly this address of its family, beside link-local ones of IPv6. It has it at
/// once: duplicates are not looked for (RFC 4862 section 5.4), since nobody else can have it.
pub(super) fn set_address(
    netlink: &mut Rtnetlink,
    index: u32,
    address: IpAddr,
    prefix_len: u8,
) -> io::Result<()> {
    let mut found = false;
    for message in address_messages(netlink, index, family(address))? {
        match local(&message) {
            Some(IpAddr::V6(other)) if other.is_unicast_link_local() => {}
            Some(other) if other == address && message.header.prefix_len == prefix_len => {
                found = true;
            }
            _ => netlink.change(RouteNetlinkMessage::DelAddress(message), 0)?,
        }
    }
    if found {
        return Ok(());
    }
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.index = index;
    message.header.prefix_len = prefix_len;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    match address {
        IpAddr::V4(address) if prefix_len <= 30 => {
            let hosts = u32::MAX >> prefix_len;
            let broadcast = Ipv4Addr::from_bits(address.to_bits() | hosts);
            message.attributes.push(AddressAttribute::Broadcast(broadcast));
        }
        IpAddr::V4(_) => {}
        IpAddr::V6(_) => message.header.flags = AddressHeaderFlags::Nodad,
    }
    netlink.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
}

fn route(index: u32, to: IpAddr, len: u8, via: Option<IpAddr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(to),
        destination_prefix_length: len,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        // IPv6 has no such scope and takes any.
        scope: if via.is_some() { RouteScope::Universe } else { RouteScope::Link },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes.push(RouteAttribute::Oif(index));
    if len > 0 {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(to)));
    }
    if let Some(via) = via {
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(via)));
    }
    message
}

/// Makes a host reachable over the link itself, although no address of the link covers it.
pub(super) fn add_on_link(netlink: &mut Rtnetlink, index: u32, host: IpAddr) -> io::Result<()> {
    let message = RouteNetlinkMessage::NewRoute(route(index, host, bits(host), None));
    match netlink.change(message, NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// A default route: the link it leaves by, and the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DefaultRoute {
    pub index: u32,
    pub via: Option<IpAddr>,
}

/// Adds the default route of the gateway's family; when there is one already, that one is the
/// result.
pub(super) fn add_default(
    netlink: &mut Rtnetlink,
    index: u32,
    via: IpAddr,
) -> io::Result<DefaultRoute> {
    let anywhere = match via {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let message = route(index, anywhere, 0, Some(via));
    match netlink.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL) {
        Ok(()) => Ok(DefaultRoute { index, via: Some(via) }),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            find_default(netlink, family(via))?.ok_or(error)
        }
        Err(error) => Err(error),
    }
}

/// The main table's default route of the lowest metric, which is what a new one collides with.
fn find_default(
    netlink: &mut Rtnetlink,
    family: AddressFamily,
) -> io::Result<Option<DefaultRoute>> {
    let mut all = RouteMessage::default();
    all.header.address_family = family;
    let mut best: Option<(u32, DefaultRoute)> = None;
    for message in netlink.dump(RouteNetlinkMessage::GetRoute(all))? {
        let RouteNetlinkMessage::NewRoute(message) = message else { continue };
        let Some((metric, found)) = default_route(&message) else { continue };
        if best.is_none_or(|(lowest, _)| metric < lowest) {
            best = Some((metric, found));
        }
    }
    Ok(best.map(|(_, found)| found))
}

/// The default route that a message tells of, with its metric.
pub(super) fn default_route(message: &RouteMessage) -> Option<(u32, DefaultRoute)> {
    let main = message.header.table == RouteHeader::RT_TABLE_MAIN;
    if !main || message.header.destination_prefix_length != 0 {
        return None;
    }
    let (mut metric, mut found) = (0, DefaultRoute { index: 0, via: None });
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(index) => found.index = *index,
            RouteAttribute::Gateway(RouteAddress::Inet(via)) => found.via = Some((*via).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(via)) => found.via = Some((*via).into()),
            _ => {}
        }
    }
    Some((metric, found))
}
