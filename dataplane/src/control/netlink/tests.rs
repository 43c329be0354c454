//! What the kernel answers, and anything that looks like it.

use super::links::Link;
use super::lookup::{self, Path};
use super::{addresses, socket};
use netlink_packet_core::{NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, LinkXdp};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::net::{IpAddr, Ipv4Addr};

const FAR_END: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 254));
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// A link, an address, a default route and a neighbour, as answers to requests 0 to 3.
fn answers() -> Vec<u8> {
    let mut link = LinkMessage::default();
    link.header.index = 7;
    link.attributes = vec![
        LinkAttribute::IfName("eth7".into()),
        LinkAttribute::Mtu(1500),
        LinkAttribute::Address(MAC.to_vec()),
        LinkAttribute::Xdp(vec![LinkXdp::ProgId(3)]),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
    ];
    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet;
    address.attributes = vec![AddressAttribute::Local(FAR_END)];
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.kind = RouteType::Unicast;
    route.attributes = vec![
        RouteAttribute::Oif(7),
        RouteAttribute::Gateway(RouteAddress::from(ROUTER)),
        RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400)]),
    ];
    let mut neighbour = NeighbourMessage::default();
    neighbour.header.family = AddressFamily::Inet;
    neighbour.header.state = NeighbourState::Reachable;
    neighbour.attributes = vec![NeighbourAttribute::LinkLayerAddress(MAC.to_vec())];
    let all = [
        RouteNetlinkMessage::NewLink(link),
        RouteNetlinkMessage::NewAddress(address),
        RouteNetlinkMessage::NewRoute(route),
        RouteNetlinkMessage::NewNeighbour(neighbour),
    ];
    let mut datagram = Vec::new();
    for (sequence, message) in (0..).zip(all) {
        let mut header = NetlinkHeader::default();
        header.sequence_number = sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
        message.serialize(&mut bytes);
        datagram.extend(bytes);
    }
    datagram
}

/// How many answers to request `sequence` there were, and what they tell.
fn told(datagram: &[u8], sequence: u32) -> Vec<String> {
    let (mut found, mut disturbed) = (Vec::new(), false);
    let mut take = |answer: RouteNetlinkMessage| {
        found.push(match answer {
            RouteNetlinkMessage::NewLink(link) => {
                let link = Link::of(&link);
                format!("{} {:?} {:?}", link.name, link.mac, link.xdp_program)
            }
            RouteNetlinkMessage::NewAddress(address) => format!("{:?}", addresses::local(&address)),
            RouteNetlinkMessage::NewRoute(route) => {
                let default = addresses::default_route(&route).map(|(_, route)| route.via);
                format!("{:?} {default:?}", Path::of(&route, FAR_END).map(|path| path.mtu))
            }
            RouteNetlinkMessage::NewNeighbour(neighbour) => {
                format!("{:?}", lookup::entry(&neighbour))
            }
            _ => String::new(),
        });
    };
    let _ = socket::read(datagram, sequence, &mut take, &mut disturbed);
    found
}

#[test]
fn answers_are_told_apart_and_understood() {
    let datagram = answers();
    let told = |sequence| told(&datagram, sequence).join(";");
    let all = [told(0), told(1), told(2), told(3), told(4)];
    assert!(all[0].starts_with("eth7 Some(") && all[0].ends_with("Some(3)"), "{all:?}");
    assert_eq!(all[1], "Some(192.0.2.2)");
    assert_eq!(all[2], "Some(Some(1400)) Some(Some(192.0.2.254))");
    assert!(all[3].starts_with("(Reachable, Some("), "{all:?}");
    assert_eq!(all[4], "");
}

/// Bytes that are no answer, and answers with bytes changed.
#[test]
fn any_answer_is_understood_or_refused() {
    let right = answers();
    bolero::check!().with_type::<(Vec<u8>, Vec<(u16, u8)>)>().for_each(|(any, changes)| {
        let mut changed = right.clone();
        for (at, byte) in changes {
            let at = usize::from(*at) % changed.len();
            changed[at] = *byte;
        }
        for datagram in [any, &changed] {
            for sequence in 0..4 {
                assert!(told(datagram, sequence).len() <= datagram.len() / 16);
            }
        }
    });
}
