//! Links, their addresses and routes: each function asks or changes one thing in the namespace
//! of the socket.

use super::socket::Rtnetlink;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use outboard_wire::Mac;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;

/// A link as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its hardware address, if it is an Ethernet one.
    pub mac: Option<Mac>,
    /// Its MTU in bytes of IP packet.
    pub mtu: u32,
    /// Whether it is up and its carrier is there.
    pub up: bool,
    /// Text that its maker attached.
    pub alias: String,
    /// Whether it is one end of a veth pair.
    pub is_veth: bool,
    /// The number of a veth's other end, in the other end's namespace.
    pub peer: u32,
    /// Receive queues and transmit queues.
    pub queues: (u32, u32),
}

impl Link {
    fn of(message: &LinkMessage) -> Link {
        let up = LinkFlags::Up | LinkFlags::LowerUp;
        let mut link = Link { index: message.header.index, ..Link::default() };
        link.up = message.header.flags.contains(up);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Address(bytes) => {
                    link.mac = bytes.as_slice().try_into().ok().map(Mac);
                }
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
                LinkAttribute::Link(peer) => link.peer = *peer,
                LinkAttribute::NumRxQueues(count) => link.queues.0 = *count,
                LinkAttribute::NumTxQueues(count) => link.queues.1 = *count,
                LinkAttribute::LinkInfo(infos) => {
                    link.is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                }
                _ => {}
            }
        }
        link
    }
}

/// The link of this name, if there is one.
pub(super) fn find(netlink: &mut Rtnetlink, name: &str) -> io::Result<Option<Link>> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    get(netlink, message)
}

/// The link of this number, if there is one.
pub(super) fn find_index(netlink: &mut Rtnetlink, index: u32) -> io::Result<Option<Link>> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    get(netlink, message)
}

fn get(netlink: &mut Rtnetlink, message: LinkMessage) -> io::Result<Option<Link>> {
    match netlink.get(RouteNetlinkMessage::GetLink(message)) {
        Ok(RouteNetlinkMessage::NewLink(message)) => Ok(Some(Link::of(&message))),
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a veth pair shall be. Both ends stay down and without addresses.
pub(super) struct VethPair<'a> {
    /// The end in the socket's namespace.
    pub host: &'a str,
    /// The other end, made in another namespace.
    pub tenant: &'a str,
    /// That namespace.
    pub netns: RawFd,
    /// The other end's MAC address.
    pub mac: Mac,
    /// MTU of both.
    pub mtu: u32,
    /// Receive and transmit queues of both.
    pub queues: u32,
}

/// Makes a veth pair, all or nothing.
pub(super) fn make_veth(netlink: &mut Rtnetlink, pair: &VethPair) -> io::Result<()> {
    let end = |name: &str| {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_string()),
            LinkAttribute::Mtu(pair.mtu),
            LinkAttribute::NumRxQueues(pair.queues),
            LinkAttribute::NumTxQueues(pair.queues),
        ];
        message
    };
    let mut tenant = end(pair.tenant);
    tenant.attributes.push(LinkAttribute::NetNsFd(pair.netns));
    tenant.attributes.push(LinkAttribute::Address(pair.mac.0.to_vec()));
    let mut host = end(pair.host);
    host.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(tenant))),
    ]));
    netlink.change(RouteNetlinkMessage::NewLink(host), NLM_F_CREATE | NLM_F_EXCL)
}

/// Changes attributes of a link.
fn set(netlink: &mut Rtnetlink, index: u32, attributes: Vec<LinkAttribute>) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    netlink.change(RouteNetlinkMessage::SetLink(message), 0)
}

/// Attaches a text to a link.
pub(super) fn set_alias(netlink: &mut Rtnetlink, index: u32, alias: &str) -> io::Result<()> {
    set(netlink, index, vec![LinkAttribute::IfAlias(alias.to_string())])
}

/// Sets the MTU.
pub(super) fn set_mtu(netlink: &mut Rtnetlink, index: u32, mtu: u32) -> io::Result<()> {
    set(netlink, index, vec![LinkAttribute::Mtu(mtu)])
}

/// Sets the MAC address.
pub(super) fn set_mac(netlink: &mut Rtnetlink, index: u32, mac: Mac) -> io::Result<()> {
    set(netlink, index, vec![LinkAttribute::Address(mac.0.to_vec())])
}

/// Keeps the kernel from giving the link an IPv6 address when it comes up, and with it from
/// soliciting routers and reporting multicast groups. Without IPv6 in the kernel there is
/// nothing to keep it from.
pub(super) fn set_no_ipv6_address(netlink: &mut Rtnetlink, index: u32) -> io::Result<()> {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let spec = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]);
    match set(netlink, index, vec![spec]) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(()),
        result => result,
    }
}

/// Brings a link up.
pub(super) fn set_up(netlink: &mut Rtnetlink, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    netlink.change(RouteNetlinkMessage::SetLink(message), 0)
}

/// Deletes a link; a veth's other end goes with it.
pub(super) fn delete(netlink: &mut Rtnetlink, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    netlink.change(RouteNetlinkMessage::DelLink(message), 0)
}

/// The IPv4 addresses of a link.
pub(super) fn addresses(netlink: &mut Rtnetlink, index: u32) -> io::Result<Vec<Ipv4Addr>> {
    let local = |message: &AddressMessage| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
            _ => None,
        })
    };
    Ok(address_messages(netlink, index)?.iter().filter_map(local).collect())
}

fn address_messages(netlink: &mut Rtnetlink, index: u32) -> io::Result<Vec<AddressMessage>> {
    let mut request = AddressMessage::default();
    request.header.family = AddressFamily::Inet;
    let all = netlink.dump(RouteNetlinkMessage::GetAddress(request))?;
    let of_link = |message| match message {
        RouteNetlinkMessage::NewAddress(message)
            if message.header.index == index && message.header.family == AddressFamily::Inet =>
        {
            Some(message)
        }
        _ => None,
    };
    Ok(all.into_iter().filter_map(of_link).collect())
}

/// Gives a link exactly this IPv4 address.
pub(super) fn set_address(
    netlink: &mut Rtnetlink,
    index: u32,
    address: Ipv4Addr,
    prefix_len: u8,
) -> io::Result<()> {
    let mut found = false;
    for message in address_messages(netlink, index)? {
        let local = AddressAttribute::Local(IpAddr::V4(address));
        if message.header.prefix_len == prefix_len && message.attributes.contains(&local) {
            found = true;
        } else {
            netlink.change(RouteNetlinkMessage::DelAddress(message), 0)?;
        }
    }
    if found {
        return Ok(());
    }
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = index;
    message.header.prefix_len = prefix_len;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(address)),
        AddressAttribute::Address(IpAddr::V4(address)),
    ];
    if prefix_len <= 30 {
        let hosts = u32::MAX >> prefix_len;
        let broadcast = Ipv4Addr::from_bits(address.to_bits() | hosts);
        message.attributes.push(AddressAttribute::Broadcast(broadcast));
    }
    netlink.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
}

fn route(index: u32, to: Ipv4Addr, len: u8, via: Option<Ipv4Addr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: AddressFamily::Inet,
        destination_prefix_length: len,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: if via.is_some() { RouteScope::Universe } else { RouteScope::Link },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes.push(RouteAttribute::Oif(index));
    if len > 0 {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(to)));
    }
    if let Some(via) = via {
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(via)));
    }
    message
}

/// Makes a host reachable over the link itself, although no address of the link covers it.
pub(super) fn add_on_link(netlink: &mut Rtnetlink, index: u32, host: Ipv4Addr) -> io::Result<()> {
    let message = RouteNetlinkMessage::NewRoute(route(index, host, 32, None));
    match netlink.change(message, NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// A default route: the link it leaves by, and the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DefaultRoute {
    pub index: u32,
    pub via: Option<Ipv4Addr>,
}

/// Adds the default route; when there is one already, that one is the result.
pub(super) fn add_default(
    netlink: &mut Rtnetlink,
    index: u32,
    via: Ipv4Addr,
) -> io::Result<DefaultRoute> {
    let message = route(index, Ipv4Addr::UNSPECIFIED, 0, Some(via));
    match netlink.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL) {
        Ok(()) => Ok(DefaultRoute { index, via: Some(via) }),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            find_default(netlink)?.ok_or(error)
        }
        Err(error) => Err(error),
    }
}

/// The main table's default route of the lowest metric, which is what a new one collides with.
fn find_default(netlink: &mut Rtnetlink) -> io::Result<Option<DefaultRoute>> {
    let mut all = RouteMessage::default();
    all.header.address_family = AddressFamily::Inet;
    let mut best: Option<(u32, DefaultRoute)> = None;
    for message in netlink.dump(RouteNetlinkMessage::GetRoute(all))? {
        let RouteNetlinkMessage::NewRoute(message) = message else { continue };
        let main = message.header.table == RouteHeader::RT_TABLE_MAIN;
        if !main || message.header.destination_prefix_length != 0 {
            continue;
        }
        let (mut metric, mut found) = (0, DefaultRoute { index: 0, via: None });
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Oif(index) => found.index = *index,
                RouteAttribute::Gateway(RouteAddress::Inet(via)) => found.via = Some(*via),
                _ => {}
            }
        }
        if best.is_none_or(|(lowest, _)| metric < lowest) {
            best = Some((metric, found));
        }
    }
    Ok(best.map(|(_, found)| found))
}
