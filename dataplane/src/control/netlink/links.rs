//! Links: each function asks or changes one thing in the namespace of the socket.

use super::socket::Rtnetlink;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage, LinkXdp,
};
use outboard_wire::Mac;
use std::io;
use std::os::fd::RawFd;

/// A link as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name there.
    pub name: String,
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
    /// The number of its XDP program.
    pub xdp_program: Option<u32>,
    /// Receive queues and transmit queues.
    pub queues: (u32, u32),
}

impl Link {
    /// From the kernel's answer.
    pub fn of(message: &LinkMessage) -> Link {
        let up = LinkFlags::Up | LinkFlags::LowerUp;
        let mut link = Link { index: message.header.index, ..Link::default() };
        link.up = message.header.flags.contains(up);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Address(bytes) => {
                    link.mac = bytes.as_slice().try_into().ok().map(Mac);
                }
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
                LinkAttribute::Link(peer) => link.peer = *peer,
                LinkAttribute::Xdp(infos) => {
                    link.xdp_program = infos.iter().find_map(|info| match info {
                        LinkXdp::ProgId(program) => Some(*program),
                        _ => None,
                    });
                }
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

/// Whether the kernel gives the link an IPv6 link-local address when it comes up. Keeping it from
/// that also keeps it from soliciting routers and reporting multicast groups. Without IPv6 in the
/// kernel there is nothing to keep it from.
pub(super) fn set_link_local(netlink: &mut Rtnetlink, index: u32, wanted: bool) -> io::Result<()> {
    let mode = if wanted { In6AddrGenMode::Eui64 } else { In6AddrGenMode::None };
    let mode = AfSpecInet6::AddrGenMode(mode);
    let spec = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]);
    match set(netlink, index, vec![spec]) {
        Err(error) if !wanted && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(()),
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
