//! How to reach the other hosts' tunnel addresses, as the kernel sees it.
//!
//! The kernel stays the resolver: it chooses routes, answers and asks ARP, and knows the links.
//! [`Underlay`] asks it for each far end (route with this host's tunnel address as source,
//! neighbour, link), asks again whenever it tells of a change, and tells the caller what came out.
//! What the kernel tells is taken as a hint only, so that nothing is wrong after a lost message.
//!
//! The kernel does not see what leaves over AF_XDP and would let an entry that is in use go stale
//! and fade: entries are asked to be confirmed as long as there is a route that needs them.

use super::links::{self, Link};
use super::socket::Rtnetlink;
use crate::config::Plan;
use crate::config::plan::Role;
use crate::packet::PortId;
use crate::switch::NextHop;
use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols};
use outboard_wire::Mac;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// The shortest time between two readings of everything: changes come in swarms.
const SETTLE: Duration = Duration::from_millis(50);
/// Time between two readings while something is unresolved, and between two requests to resolve.
const RETRY: Duration = Duration::from_millis(500);
/// Time between two readings when everything is resolved, and between two requests to confirm.
const RECHECK: Duration = Duration::from_secs(5);
/// The most messages that are thrown away at once, so that a flood of them ends too.
const DRAIN_MESSAGES_MAX: u32 = 4096;
/// linux/rtnetlink.h: RTNLGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _NEXTHOP.
const GROUPS: [u32; 6] = [1, 3, 5, 7, 8, 32];
/// RTNLGRP_NEXTHOP came with Linux 5.3; where it is missing there is nothing to tell.
const GROUP_NEXTHOP: u32 = 32;

/// Why next hops cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum UnderlayError {
    /// The kernel refused something that always works.
    #[error("cannot ask the kernel about {what}: {source}")]
    Refused {
        /// What was asked for.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// An uplink's interface is not there.
    #[error("the interface {interface} of uplink \"{uplink}\" does not exist; see `ip link`")]
    NoInterface {
        /// The uplink.
        uplink: String,
        /// Its interface.
        interface: String,
    },
    /// An uplink's tunnel address is not on its interface.
    #[error(
        "the interface {interface} of uplink \"{uplink}\" does not have the address {vtep}; \
         correct `vtep` or run `ip addr add {vtep}/LEN dev {interface}`"
    )]
    NoAddress {
        /// The uplink.
        uplink: String,
        /// Its interface.
        interface: String,
        /// Its tunnel address.
        vtep: Ipv4Addr,
    },
}

fn refused(what: impl Into<String>) -> impl FnOnce(io::Error) -> UnderlayError {
    move |source| UnderlayError::Refused { what: what.into(), source }
}

/// A way out of this host.
#[derive(Debug)]
struct Uplink {
    port: PortId,
    interface: String,
    vtep: Ipv4Addr,
}

/// Follows the kernel's view. It belongs to the namespace in which it was made.
#[derive(Debug)]
pub struct Underlay {
    netlink: Rtnetlink,
    /// Tells that something changed.
    events: Socket,
    uplinks: Vec<Uplink>,
    /// What the caller knows, ascending by far end.
    known: Vec<(IpAddr, NextHop)>,
    /// Whether the caller knows nothing yet.
    fresh: bool,
    /// When everything is to be read again.
    due: Instant,
    last_read: Option<Instant>,
    /// When the kernel was last asked to resolve or confirm a neighbour.
    asked: HashMap<(u32, Ipv4Addr), Instant>,
}

/// The kernel's route to a far end.
struct Path {
    link: u32,
    gateway: Ipv4Addr,
    mtu: Option<u32>,
}

/// What is read only once while everything is read.
struct Reading {
    now: Instant,
    links: Vec<Option<Link>>,
    neighbours: HashMap<(u32, Ipv4Addr), Option<Mac>>,
}

impl Underlay {
    /// Begins to follow the far ends of a plan's routes; the uplinks must be there.
    pub fn new(plan: &Plan) -> Result<Underlay, UnderlayError> {
        let mut far_ends: Vec<_> =
            plan.vpcs.iter().flat_map(|vpc| &vpc.routes).map(|route| route.via).collect();
        far_ends.sort_unstable();
        far_ends.dedup();
        let mut netlink = Rtnetlink::route().map_err(refused("the network"))?;
        // Subscribed before anything is read: no change can fall in between.
        let events = subscribe().map_err(refused("changes of the network"))?;
        let mut uplinks = Vec::new();
        for port in &plan.ports {
            let Role::Uplink { vtep: Some(vtep), .. } = port.role else { continue };
            let (uplink, interface) = (port.name.clone(), port.interface.clone());
            let found = links::find(&mut netlink, &interface);
            let Some(link) = found.map_err(refused(format!("the interface {interface}")))? else {
                return Err(UnderlayError::NoInterface { uplink, interface });
            };
            let addresses = links::addresses(&mut netlink, link.index)
                .map_err(refused(format!("the addresses of {interface}")))?;
            if !addresses.contains(&vtep) {
                return Err(UnderlayError::NoAddress { uplink, interface, vtep });
            }
            uplinks.push(Uplink { port: port.id, interface, vtep });
        }
        Ok(Underlay {
            netlink,
            events,
            uplinks,
            known: far_ends.into_iter().map(|far_end| (far_end, NextHop::NoRoute)).collect(),
            fresh: true,
            due: Instant::now(),
            last_read: None,
            asked: HashMap::new(),
        })
    }

    /// Waits for at most `timeout` for a change, and gives the next hop of every far end then, in
    /// ascending order; `None` when nothing changed. The first call tells at once.
    ///
    /// After an error the next call tries again.
    pub fn poll(
        &mut self,
        timeout: Duration,
    ) -> Result<Option<Vec<(IpAddr, NextHop)>>, UnderlayError> {
        let end = Instant::now() + timeout;
        loop {
            let now = Instant::now();
            if now >= self.due {
                if self.read(now)? {
                    return Ok(Some(self.known.clone()));
                }
                continue;
            }
            let until = end.min(self.due);
            if self.wait(until.saturating_duration_since(now)).map_err(refused("changes"))? {
                let settled = self.last_read.map_or(now, |last| last + SETTLE);
                self.due = self.due.min(settled);
            }
            // A reading that is due now is not put off to the next call.
            if Instant::now() >= end && self.due > end {
                return Ok(None);
            }
        }
    }

    /// Waits for a message of the kernel, and throws all of them away.
    fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let nanoseconds = timeout.subsec_nanos().into();
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: nanoseconds };
        let mut fds = [PollFd::from_borrowed_fd(self.events.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut message = Vec::with_capacity(64);
        for _ in 0..DRAIN_MESSAGES_MAX {
            message.clear();
            match self.events.recv(&mut message, libc::MSG_TRUNC) {
                Ok(_) => {}
                // Messages were lost; everything is read anew anyway.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Reads everything; says whether there is something new to tell.
    fn read(&mut self, now: Instant) -> Result<bool, UnderlayError> {
        self.last_read = Some(now);
        self.due = now + RETRY;
        let mut reading = Reading { now, links: Vec::new(), neighbours: HashMap::new() };
        for uplink in &self.uplinks {
            let link = links::find(&mut self.netlink, &uplink.interface)
                .map_err(refused(format!("the interface {}", uplink.interface)))?;
            reading.links.push(link);
        }
        let far_ends: Vec<_> = self.known.iter().map(|(far_end, _)| *far_end).collect();
        let mut next_hops = Vec::with_capacity(far_ends.len());
        for far_end in far_ends {
            let next_hop = match far_end {
                IpAddr::V4(far_end) => self.next_hop(far_end, &mut reading),
                IpAddr::V6(_) => Ok(NextHop::NoRoute),
            };
            let next_hop = next_hop.map_err(refused(format!("the way to {far_end}")))?;
            next_hops.push((far_end, next_hop));
        }
        self.asked.retain(|neighbour, _| reading.neighbours.contains_key(neighbour));
        if !next_hops.iter().any(|(_, next_hop)| matches!(next_hop, NextHop::Unresolved)) {
            self.due = now + RECHECK;
        }
        let new = self.fresh || next_hops != self.known;
        self.known = next_hops;
        self.fresh = false;
        Ok(new)
    }

    /// The next hop of one far end: over the first uplink that the kernel would take.
    fn next_hop(&mut self, far_end: Ipv4Addr, reading: &mut Reading) -> io::Result<NextHop> {
        for index in 0..self.uplinks.len() {
            let Uplink { port, vtep, .. } = self.uplinks[index];
            let Some(link) = reading.links[index].clone().filter(|link| link.up) else { continue };
            let Some(src_mac) = link.mac else { continue };
            let Some(path) = self.path(vtep, far_end)? else { continue };
            if path.link != link.index {
                continue;
            }
            let Some(dst_mac) = self.neighbour(path.link, path.gateway, reading)? else {
                return Ok(NextHop::Unresolved);
            };
            let path_mtu = path.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
            let src_ip = vtep.into();
            return Ok(NextHop::Resolved { port, src_ip, src_mac, dst_mac, path_mtu });
        }
        Ok(NextHop::NoRoute)
    }

    /// The kernel's route from a tunnel address to a far end.
    fn path(&mut self, vtep: Ipv4Addr, far_end: Ipv4Addr) -> io::Result<Option<Path>> {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        request.header.destination_prefix_length = 32;
        request.header.source_prefix_length = 32;
        request.attributes = vec![
            RouteAttribute::Destination(RouteAddress::Inet(far_end)),
            RouteAttribute::Source(RouteAddress::Inet(vtep)),
        ];
        let answer = match self.netlink.get(RouteNetlinkMessage::GetRoute(request)) {
            Ok(RouteNetlinkMessage::NewRoute(answer)) => answer,
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            // No route, an unreachable, prohibit or blackhole route, or `vtep` is not local.
            Err(error) if says_no_route(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        if answer.header.kind != RouteType::Unicast {
            return Ok(None);
        }
        let mut path = Path { link: 0, gateway: far_end, mtu: None };
        for attribute in &answer.attributes {
            match attribute {
                RouteAttribute::Oif(link) => path.link = *link,
                RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => path.gateway = *gateway,
                // An IPv6 gateway; the overlay's underlay is IPv4.
                RouteAttribute::Via(_) => return Ok(None),
                RouteAttribute::Metrics(metrics) => {
                    path.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        Ok(Some(path))
    }

    /// A neighbour's MAC address. The kernel is asked to find one that it does not have, and to
    /// confirm one that it has not heard of for a while.
    fn neighbour(
        &mut self,
        link: u32,
        address: Ipv4Addr,
        reading: &mut Reading,
    ) -> io::Result<Option<Mac>> {
        let key = (link, address);
        if let Some(mac) = reading.neighbours.get(&key) {
            return Ok(*mac);
        }
        let (state, mac) = self.ask_neighbour(link, address)?;
        let patience = match state {
            // These need no confirmation; and a request on a permanent entry makes it fade.
            NeighbourState::Permanent | NeighbourState::Noarp => None,
            NeighbourState::Reachable | NeighbourState::Delay | NeighbourState::Probe => None,
            NeighbourState::Stale => Some(RECHECK),
            _ => Some(RETRY),
        };
        let last = self.asked.get(&key).map(|last| reading.now.saturating_duration_since(*last));
        if patience.is_some_and(|patience| last.is_none_or(|last| last >= patience)) {
            self.solicit(link, address)?;
            self.asked.insert(key, reading.now);
        }
        reading.neighbours.insert(key, mac);
        Ok(mac)
    }

    fn ask_neighbour(
        &mut self,
        link: u32,
        address: Ipv4Addr,
    ) -> io::Result<(NeighbourState, Option<Mac>)> {
        let request = neighbour_message(link, address);
        let answer = match self.netlink.get(RouteNetlinkMessage::GetNeighbour(request)) {
            Ok(RouteNetlinkMessage::NewNeighbour(answer)) => answer,
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok((NeighbourState::None, None));
            }
            Err(error) if is_gone(&error) => return Ok((NeighbourState::None, None)),
            Err(error) => return Err(error),
        };
        let state = answer.header.state;
        let mac = answer.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                bytes.as_slice().try_into().ok().map(Mac)
            }
            _ => None,
        });
        let valid = !matches!(
            state,
            NeighbourState::None | NeighbourState::Incomplete | NeighbourState::Failed
        );
        Ok((state, mac.filter(|_| valid)))
    }

    /// Has the kernel use the neighbour as if it had a packet for it: it resolves or confirms.
    fn solicit(&mut self, link: u32, address: Ipv4Addr) -> io::Result<()> {
        let mut request = neighbour_message(link, address);
        request.header.flags = NeighbourFlags::Use;
        match self.netlink.change(RouteNetlinkMessage::NewNeighbour(request), NLM_F_CREATE) {
            // The link went meanwhile; the next reading sees it.
            Err(error) if is_gone(&error) => Ok(()),
            result => result,
        }
    }
}

fn neighbour_message(link: u32, address: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = link;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
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

fn subscribe() -> io::Result<Socket> {
    let mut socket = Socket::new(protocols::NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    for group in GROUPS {
        match socket.add_membership(group) {
            Err(_) if group == GROUP_NEXTHOP => {}
            result => result?,
        }
    }
    Ok(socket)
}
