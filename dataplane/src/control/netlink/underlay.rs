//! How to reach the other hosts' tunnel addresses, as the kernel sees it.
//!
//! The kernel stays the resolver: it chooses routes, answers and asks ARP, and knows the links.
//! [`Underlay`] asks it for each far end (route with this host's tunnel address as source,
//! neighbour, link), asks again whenever it tells of a change, and tells the caller what came out.
//! What the kernel tells is taken as a hint only, so that nothing is wrong after a lost message.
//!
//! The kernel does not see what leaves over AF_XDP and would let an entry that is in use go stale
//! and fade: entries are asked to be confirmed as long as there is a route that needs them. Nor
//! does it know what routers answer to tunnels; [`TooBig`] does.

use super::addresses;
use super::links::{self, Link};
use super::lookup;
use super::socket::Rtnetlink;
use super::too_big::TooBig;
use crate::config::Plan;
use crate::config::plan::{Port, Role};
use crate::packet::PortId;
use crate::switch::NextHop;
use netlink_packet_route::neighbour::NeighbourState;
use netlink_sys::{Socket, SocketAddr, protocols};
use outboard_wire::Mac;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
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
/// linux/rtnetlink.h: RTNLGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR,
/// _IPV6_ROUTE, _IPV6_RULE, _NEXTHOP.
const GROUPS: [u32; 9] = [1, 3, 5, 7, 8, 9, 11, 19, 32];
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
         correct `{key}` or run `ip addr add {vtep}/LEN dev {interface}`"
    )]
    NoAddress {
        /// The uplink.
        uplink: String,
        /// Its interface.
        interface: String,
        /// The key that names it: `vtep` or `vtep6`.
        key: &'static str,
        /// Its tunnel address.
        vtep: IpAddr,
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
    /// The interface's number when it was last seen under its name.
    index: u32,
    vtep: Option<Ipv4Addr>,
    vtep6: Option<Ipv6Addr>,
}

impl Uplink {
    /// The tunnel address towards a far end: of the same family.
    fn vtep(&self, far_end: IpAddr) -> Option<IpAddr> {
        match far_end {
            IpAddr::V4(_) => self.vtep.map(IpAddr::V4),
            IpAddr::V6(_) => self.vtep6.map(IpAddr::V6),
        }
    }
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
    /// Whether the last reading failed.
    failing: bool,
    /// When the kernel was last asked to resolve or confirm a neighbour.
    asked: HashMap<(u32, IpAddr), Instant>,
    /// What routers say about the way.
    too_big: TooBig,
}

/// What is read only once while everything is read.
struct Reading {
    now: Instant,
    links: Vec<Option<Link>>,
    /// The addresses of each link.
    addresses: Vec<Vec<IpAddr>>,
    neighbours: HashMap<(u32, IpAddr), Option<Mac>>,
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
            uplinks.extend(uplink(port, &mut netlink)?);
        }
        let vteps = uplinks.iter().flat_map(|uplink: &Uplink| {
            [uplink.vtep.map(IpAddr::V4), uplink.vtep6.map(IpAddr::V6)]
        });
        let too_big = TooBig::open(vteps.flatten().collect(), far_ends.clone())
            .map_err(refused("what routers say about the way (CAP_NET_RAW)"))?;
        Ok(Underlay {
            netlink,
            events,
            uplinks,
            known: far_ends.into_iter().map(|far_end| (far_end, NextHop::NoRoute)).collect(),
            fresh: true,
            due: Instant::now(),
            last_read: None,
            failing: false,
            asked: HashMap::new(),
            too_big,
        })
    }

    /// Takes over what `other`, which this one is to replace, has heard of tunnels that stay. To
    /// be called before the first [`poll`](Self::poll).
    pub fn inherit(&mut self, other: &mut Underlay) {
        let now = Instant::now();
        if self.too_big.inherit(&mut other.too_big, now) {
            other.due = now;
        }
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

    /// Whether the last reading failed: the next one is tried soon.
    pub fn is_failing(&self) -> bool {
        self.failing
    }

    /// Waits for messages of the kernel, which are thrown away, and of routers; whether there was
    /// something that may change a next hop.
    fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        let nanoseconds = timeout.subsec_nanos().into();
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: nanoseconds };
        let mut fds = vec![PollFd::from_borrowed_fd(self.events.as_fd(), PollFlags::IN)];
        let routers = self.too_big.sockets();
        fds.extend(routers.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN)));
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        let changes = !fds[0].revents().is_empty();
        let lowered = self.too_big.receive(Instant::now());
        if changes {
            self.drain()?;
        }
        Ok(changes || lowered)
    }

    /// Throws away what the kernel has told.
    fn drain(&self) -> io::Result<()> {
        let mut message = Vec::with_capacity(64);
        for _ in 0..DRAIN_MESSAGES_MAX {
            message.clear();
            match self.events.recv(&mut message, libc::MSG_TRUNC) {
                Ok(_) => {}
                // Messages were lost; everything is read anew anyway.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads everything; says whether there is something new to tell.
    fn read(&mut self, now: Instant) -> Result<bool, UnderlayError> {
        self.last_read = Some(now);
        self.due = now + RETRY;
        self.failing = true;
        let mut reading =
            Reading { now, links: Vec::new(), addresses: Vec::new(), neighbours: HashMap::new() };
        for index in 0..self.uplinks.len() {
            let link = self.find(index)?;
            let addresses = link
                .as_ref()
                .map_or(Ok(Vec::new()), |link| addresses::addresses(&mut self.netlink, link.index));
            let addresses = addresses.map_err(refused("the addresses of the uplinks"))?;
            reading.links.push(link);
            reading.addresses.push(addresses);
        }
        let far_ends: Vec<_> = self.known.iter().map(|(far_end, _)| *far_end).collect();
        let mut next_hops = Vec::with_capacity(far_ends.len());
        for far_end in far_ends {
            let next_hop = self
                .next_hop(far_end, &mut reading)
                .map_err(refused(format!("the way to {far_end}")))?;
            next_hops.push((far_end, next_hop));
        }
        self.asked.retain(|neighbour, _| reading.neighbours.contains_key(neighbour));
        if !next_hops.iter().any(|(_, next_hop)| matches!(next_hop, NextHop::Unresolved)) {
            self.due = now + RECHECK;
        }
        let new = self.fresh || next_hops != self.known;
        self.known = next_hops;
        self.fresh = false;
        self.failing = false;
        Ok(new)
    }

    /// The interface of an uplink: the one of its name, or the one that had it, which was renamed.
    fn find(&mut self, index: usize) -> Result<Option<Link>, UnderlayError> {
        let uplink = &mut self.uplinks[index];
        let failed = || refused(format!("the interface {}", uplink.interface));
        let named = links::find(&mut self.netlink, &uplink.interface).map_err(failed())?;
        if let Some(link) = named {
            uplink.index = link.index;
            return Ok(Some(link));
        }
        links::find_index(&mut self.netlink, uplink.index).map_err(failed())
    }

    /// The next hop of one far end: over the first uplink that the kernel would take.
    fn next_hop(&mut self, far_end: IpAddr, reading: &mut Reading) -> io::Result<NextHop> {
        for index in 0..self.uplinks.len() {
            let uplink = &self.uplinks[index];
            let Some(vtep) = uplink.vtep(far_end) else { continue };
            let port = uplink.port;
            let Some(link) = reading.links[index].clone().filter(|link| link.up) else { continue };
            let Some(src_mac) = link.mac else { continue };
            // The kernel looks at an IPv4 source itself.
            if vtep.is_ipv6() && !reading.addresses[index].contains(&vtep) {
                continue;
            }
            let Some(path) = lookup::path(&mut self.netlink, vtep, far_end)? else { continue };
            if path.link != link.index {
                continue;
            }
            let Some(dst_mac) = self.neighbour(path.link, path.gateway, reading)? else {
                return Ok(NextHop::Unresolved);
            };
            let told = self.too_big.path_mtu(vtep, far_end, reading.now);
            let path_mtu = [path.mtu, told].into_iter().flatten().fold(link.mtu, u32::min);
            return Ok(NextHop::Resolved { port, src_ip: vtep, src_mac, dst_mac, path_mtu });
        }
        Ok(NextHop::NoRoute)
    }

    /// A neighbour's MAC address. The kernel is asked to find one that it does not have, and to
    /// confirm one that it has not heard of for a while.
    fn neighbour(
        &mut self,
        link: u32,
        address: IpAddr,
        reading: &mut Reading,
    ) -> io::Result<Option<Mac>> {
        let key = (link, address);
        if let Some(mac) = reading.neighbours.get(&key) {
            return Ok(*mac);
        }
        let (state, mac) = lookup::neighbour(&mut self.netlink, link, address)?;
        let patience = match state {
            // These need no confirmation; and a request on a permanent entry makes it fade.
            NeighbourState::Permanent | NeighbourState::Noarp => None,
            NeighbourState::Reachable | NeighbourState::Delay | NeighbourState::Probe => None,
            NeighbourState::Stale => Some(RECHECK),
            _ => Some(RETRY),
        };
        let last = self.asked.get(&key).map(|last| reading.now.saturating_duration_since(*last));
        if patience.is_some_and(|patience| last.is_none_or(|last| last >= patience)) {
            lookup::solicit(&mut self.netlink, link, address)?;
            self.asked.insert(key, reading.now);
        }
        reading.neighbours.insert(key, mac);
        Ok(mac)
    }
}

/// The uplink that a port is, after a look whether its interface has its tunnel addresses.
fn uplink(port: &Port, netlink: &mut Rtnetlink) -> Result<Option<Uplink>, UnderlayError> {
    let Role::Uplink { vtep, vtep6, .. } = port.role else { return Ok(None) };
    let (uplink, interface) = (port.name.clone(), port.interface.clone());
    let found = links::find(netlink, &interface);
    let Some(link) = found.map_err(refused(format!("the interface {interface}")))? else {
        return Err(UnderlayError::NoInterface { uplink, interface });
    };
    let addresses = addresses::addresses(netlink, link.index)
        .map_err(refused(format!("the addresses of {interface}")))?;
    for (key, vtep) in [("vtep", vtep.map(IpAddr::V4)), ("vtep6", vtep6.map(IpAddr::V6))] {
        if let Some(vtep) = vtep.filter(|vtep| !addresses.contains(vtep)) {
            return Err(UnderlayError::NoAddress { uplink, interface, key, vtep });
        }
    }
    Ok(Some(Uplink { port: port.id, interface, index: link.index, vtep, vtep6 }))
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
