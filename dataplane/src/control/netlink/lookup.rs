//! What the kernel knows about one address: the route to it, and a neighbour's MAC address.

use super::addresses::{bits, family};
use super::socket::Rtnetlink;
use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use outboard_wire::Mac;
use std::io;
use std::net::IpAddr;

/// The kernel's route to a far end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    /// The link that it leads over.
    pub link: u32,
    /// The next hop: the far end itself, or a router, of either family (RFC 8950).
    pub gateway: IpAddr,
    /// The largest IP packet, where the route says so.
    pub mtu: Option<u32>,
}

/// The route from a tunnel address to a far end; `None` when there is none.
pub(super) fn path(
    netlink: &mut Rtnetlink,
    from: IpAddr,
    far_end: IpAddr,
) -> io::Result<Option<Path>> {
    let mut request = RouteMessage::default();
    request.header.address_family = family(far_end);
    request.header.destination_prefix_length = bits(far_end);
    request.header.source_prefix_length = bits(from);
    request.attributes = vec![
        RouteAttribute::Destination(RouteAddress::from(far_end)),
        RouteAttribute::Source(RouteAddress::from(from)),
    ];
    let answer = match netlink.get(RouteNetlinkMessage::GetRoute(request)) {
        Ok(RouteNetlinkMessage::NewRoute(answer)) => answer,
        Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
        // No route, an unreachable, prohibit or blackhole route, or `from` is not local.
        Err(error) if says_no_route(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Path::of(&answer, far_end))
}

impl Path {
    /// From the kernel's answer; `None` when nothing can be sent to the far end.
    pub fn of(answer: &RouteMessage, far_end: IpAddr) -> Option<Path> {
        if answer.header.kind != RouteType::Unicast {
            return None;
        }
        let mut path = Path { link: 0, gateway: far_end, mtu: None };
        for attribute in &answer.attributes {
            match attribute {
                RouteAttribute::Oif(link) => path.link = *link,
                RouteAttribute::Gateway(RouteAddress::Inet(gateway))
                | RouteAttribute::Via(RouteVia::Inet(gateway)) => path.gateway = (*gateway).into(),
                RouteAttribute::Gateway(RouteAddress::Inet6(gateway))
                | RouteAttribute::Via(RouteVia::Inet6(gateway)) => path.gateway = (*gateway).into(),
                RouteAttribute::Via(_) => return None,
                RouteAttribute::Metrics(metrics) => {
                    path.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        Some(path)
    }
}

/// The state of a neighbour's entry, and its MAC address if that is known.
pub(super) fn neighbour(
    netlink: &mut Rtnetlink,
    link: u32,
    address: IpAddr,
) -> io::Result<(NeighbourState, Option<Mac>)> {
    let request = neighbour_message(link, address);
    let answer = match netlink.get(RouteNetlinkMessage::GetNeighbour(request)) {
        Ok(RouteNetlinkMessage::NewNeighbour(answer)) => answer,
        Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound || is_gone(&error) => {
            return Ok((NeighbourState::None, None));
        }
        Err(error) => return Err(error),
    };
    Ok(entry(&answer))
}

/// The state and the MAC address in the kernel's answer.
pub(super) fn entry(answer: &NeighbourMessage) -> (NeighbourState, Option<Mac>) {
    let state = answer.header.state;
    let mac = answer.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok().map(Mac),
        _ => None,
    });
    let valid = !matches!(
        state,
        NeighbourState::None | NeighbourState::Incomplete | NeighbourState::Failed
    );
    (state, mac.filter(|_| valid))
}

/// Has the kernel use the neighbour as if it had a packet for it: it resolves or confirms. For
/// IPv6 it asks from the link's own link-local address (RFC 4861 section 7.2.2).
pub(super) fn solicit(netlink: &mut Rtnetlink, link: u32, address: IpAddr) -> io::Result<()> {
    let mut request = neighbour_message(link, address);
    request.header.flags = NeighbourFlags::Use;
    match netlink.change(RouteNetlinkMessage::NewNeighbour(request), NLM_F_CREATE) {
        // The link went meanwhile; the next reading sees it.
        Err(error) if is_gone(&error) => Ok(()),
        result => result,
    }
}

fn neighbour_message(link: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = link;
    let address = match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    message.attributes.push(NeighbourAttribute::Destination(address));
    message
}

fn says_no_route(error: &io::Error) -> bool {
    let reasons = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL];
    is_gone(error) || error.raw_os_error().is_some_and(|errno| reasons.contains(&errno))
}

/// Whether the link went away, or went down, between two requests.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO | libc::ENETDOWN))
}
