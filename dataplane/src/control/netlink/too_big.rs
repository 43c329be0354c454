//! What routers on the underlay say about packets that do not fit (RFC 1191, RFC 8201).
//!
//! The kernel remembers such messages for its own sockets only; tunnels are none of them. So
//! control hears them itself, on raw sockets: the uplinks' programs leave ICMP to the kernel,
//! which gives every raw socket a copy. A message counts when it quotes a tunnel's packet from an
//! own tunnel address to a far end, larger than what it says fits; it can lower the path MTU, not
//! below the smallest that the family promises, and is forgotten after ten minutes.

use outboard_dma::socket::{receive_icmp_only, receive_icmpv6_only};
use outboard_wire::{Checksum, vxlan};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, ipproto, recvfrom};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a path is believed to be narrow (RFC 1191 section 6.3, RFC 8201 section 4).
const FORGET: Duration = Duration::from_secs(600);
/// Messages that are read at once, so that a flood of them ends too.
const MESSAGES_MAX: u32 = 64;
/// More than a message has to have: RFC 1812 section 4.3.2.3 and RFC 4443 section 2.4 end them.
const MESSAGE_BYTES: usize = 2048;

/// Destination unreachable, and its code "fragmentation needed" (RFC 792).
const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
/// Packet too big (RFC 4443 section 3.2).
const PACKET_TOO_BIG: u8 = 2;
/// What every IPv4 host takes, in one piece or several (RFC 791); routers may say less, but a path
/// that needs it carries no tunnel of use.
const SMALLEST_V4: u32 = 576;
/// What every IPv6 link carries (RFC 8200 section 5).
const SMALLEST_V6: u32 = 1280;
/// Sizes to try when an old router does not say what fits (RFC 1191 section 7.1).
const PLATEAUS: [u32; 8] = [32_000, 17_914, 8166, 4352, 2002, 1492, 1006, SMALLEST_V4];
const UDP: u8 = 17;

/// Narrow paths, as routers told.
#[derive(Debug)]
pub(super) struct TooBig {
    v4: OwnedFd,
    /// None where the kernel has no IPv6.
    v6: Option<OwnedFd>,
    vteps: Vec<IpAddr>,
    far_ends: Vec<IpAddr>,
    /// The largest packet by tunnel (own address, far end), and when that was heard.
    told: HashMap<(IpAddr, IpAddr), (u32, Instant)>,
}

impl TooBig {
    /// Hears routers about tunnels between these addresses, in this thread's network namespace.
    pub fn open(vteps: Vec<IpAddr>, far_ends: Vec<IpAddr>) -> io::Result<TooBig> {
        let raw = |family, protocol| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            rustix::net::socket_with(family, SocketType::RAW, flags, Some(protocol))
        };
        let v4 = raw(AddressFamily::INET, ipproto::ICMP)?;
        receive_icmp_only(v4.as_fd(), UNREACHABLE)?;
        let v6 = match raw(AddressFamily::INET6, ipproto::ICMPV6) {
            Ok(socket) => Some(socket),
            Err(rustix::io::Errno::AFNOSUPPORT) => None,
            Err(errno) => return Err(errno.into()),
        };
        if let Some(socket) = &v6 {
            receive_icmpv6_only(socket.as_fd(), PACKET_TOO_BIG)?;
        }
        Ok(TooBig { v4, v6, vteps, far_ends, told: HashMap::new() })
    }

    /// Readable when a router has said something.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.v4.as_fd()).chain(self.v6.as_ref().map(AsFd::as_fd))
    }

    /// Takes over what another one has heard of tunnels that are here too. Both hear everything
    /// since this one was opened, so that nothing falls in between; whether the other one's paths
    /// are narrower than they were.
    pub fn inherit(&mut self, other: &mut TooBig, now: Instant) -> bool {
        let lowered = other.receive(now);
        for ((from, to), (mtu, heard)) in &other.told {
            self.take(Narrow { from: *from, to: *to, mtu: *mtu }, *heard);
        }
        lowered
    }

    /// Takes what routers have said; whether a path is narrower than it was.
    pub fn receive(&mut self, now: Instant) -> bool {
        let mut lowered = false;
        let mut buffer = [0; MESSAGE_BYTES];
        for v6 in [false, true] {
            for _ in 0..MESSAGES_MAX {
                let socket = if v6 { self.v6.as_ref() } else { Some(&self.v4) };
                let Some(socket) = socket else { break };
                let received = recvfrom(socket, &mut buffer, RecvFlags::DONTWAIT);
                let Ok((bytes, ..)) = received else { break };
                let message = &buffer[..bytes.min(MESSAGE_BYTES)];
                let found = if v6 { parse_v6(message) } else { parse_v4(message) };
                lowered |= found.is_some_and(|narrow| self.take(narrow, now));
            }
        }
        lowered
    }

    fn take(&mut self, narrow: Narrow, now: Instant) -> bool {
        if !self.vteps.contains(&narrow.from) || !self.far_ends.contains(&narrow.to) {
            return false;
        }
        let old = self.path_mtu(narrow.from, narrow.to, now);
        if old.is_some_and(|old| old < narrow.mtu) {
            return false;
        }
        self.told.insert((narrow.from, narrow.to), (narrow.mtu, now));
        old != Some(narrow.mtu)
    }

    /// The largest packet that fits through a tunnel, if a router has said so lately.
    pub fn path_mtu(&self, vtep: IpAddr, far_end: IpAddr, now: Instant) -> Option<u32> {
        let (mtu, heard) = self.told.get(&(vtep, far_end))?;
        (now.saturating_duration_since(*heard) < FORGET).then_some(*mtu)
    }
}

/// A tunnel's way, and what fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Narrow {
    from: IpAddr,
    to: IpAddr,
    mtu: u32,
}

/// Reads what a raw ICMP socket gives: an IPv4 header, then the message. The kernel has checked
/// the header, but not the message's checksum.
fn parse_v4(packet: &[u8]) -> Option<Narrow> {
    let header_bytes = usize::from(packet.first()? & 0xf) * 4;
    let message = packet.get(header_bytes..)?;
    let mut sum = Checksum::new();
    sum.add(message);
    if sum.folded() != 0xffff || message.get(..2)? != [UNREACHABLE, FRAGMENTATION_NEEDED] {
        return None;
    }
    let quoted = message.get(8..)?;
    let header = quoted.first_chunk::<20>()?;
    let destination_port = quoted.get(22..24)?;
    if header[0] != 0x45 || header[9] != UDP || destination_port != vxlan::PORT.to_be_bytes() {
        return None;
    }
    let address = |at: usize| {
        let octets: Option<[u8; 4]> = header[at..at + 4].try_into().ok();
        octets.map(|octets| IpAddr::V4(Ipv4Addr::from(octets)))
    };
    let sent = u32::from(u16::from_be_bytes([header[2], header[3]]));
    let mtu = match u32::from(u16::from_be_bytes([message[6], message[7]])) {
        0 => *PLATEAUS.iter().find(|plateau| **plateau < sent)?,
        mtu => mtu,
    };
    (mtu < sent).then_some(Narrow {
        from: address(12)?,
        to: address(16)?,
        mtu: mtu.max(SMALLEST_V4),
    })
}

/// Reads what a raw ICMPv6 socket gives: the message, whose checksum the kernel has checked.
fn parse_v6(message: &[u8]) -> Option<Narrow> {
    if message.get(..2)? != [PACKET_TOO_BIG, 0] {
        return None;
    }
    let quoted = message.get(8..)?;
    let header = quoted.first_chunk::<40>()?;
    let destination_port = quoted.get(42..44)?;
    if header[0] >> 4 != 6 || header[6] != UDP || destination_port != vxlan::PORT.to_be_bytes() {
        return None;
    }
    let address = |at: usize| {
        let octets: Option<[u8; 16]> = header[at..at + 16].try_into().ok();
        octets.map(|octets| IpAddr::V6(Ipv6Addr::from(octets)))
    };
    let sent = 40 + u32::from(u16::from_be_bytes([header[4], header[5]]));
    let mtu = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
    (mtu < sent).then_some(Narrow {
        from: address(8)?,
        to: address(24)?,
        mtu: mtu.max(SMALLEST_V6),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use outboard_wire::{Ipv4, ipv4};

    const HERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const THERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    fn v4(mtu: u16, sent: u16, port: u16) -> Vec<u8> {
        let mut message = vec![UNREACHABLE, FRAGMENTATION_NEEDED, 0, 0, 0, 0];
        message.extend_from_slice(&mtu.to_be_bytes());
        let mut quoted = [0; 28];
        let header = Ipv4 {
            tos: 0,
            total_len: sent,
            id: 0,
            fragment: ipv4::DONT_FRAGMENT,
            ttl: 64,
            protocol: UDP,
            source: HERE,
            destination: THERE,
        };
        header.emit(&mut quoted).unwrap();
        quoted[22..24].copy_from_slice(&port.to_be_bytes());
        message.extend_from_slice(&quoted);
        let mut sum = Checksum::new();
        sum.add(&message);
        message[2..4].copy_from_slice(&sum.finish().to_be_bytes());
        [&[0x45; 20], message.as_slice()].concat()
    }

    fn v6(mtu: u32, sent: u16, port: u16) -> Vec<u8> {
        let mut message = vec![PACKET_TOO_BIG, 0, 0, 0];
        message.extend_from_slice(&mtu.to_be_bytes());
        message.extend_from_slice(&[0x60, 0, 0, 0]);
        message.extend_from_slice(&(sent - 40).to_be_bytes());
        message.extend_from_slice(&[UDP, 64]);
        message.extend_from_slice(&HERE.to_ipv6_mapped().octets());
        message.extend_from_slice(&THERE.to_ipv6_mapped().octets());
        message.extend_from_slice(&[0xc0, 0]);
        message.extend_from_slice(&port.to_be_bytes());
        message.extend_from_slice(&[0; 4]);
        message
    }

    #[test]
    fn what_fits_is_read_and_bounded() {
        let mtu = |packet: &[u8]| parse_v4(packet).map(|narrow| narrow.mtu);
        assert_eq!(
            parse_v4(&v4(1400, 1500, vxlan::PORT)),
            Some(Narrow { from: HERE.into(), to: THERE.into(), mtu: 1400 })
        );
        assert_eq!(mtu(&v4(1499, 1500, vxlan::PORT)), Some(1499));
        assert_eq!(mtu(&v4(1500, 1500, vxlan::PORT)), None, "what was sent fits");
        assert_eq!(mtu(&v4(68, 1500, vxlan::PORT)), Some(SMALLEST_V4));
        assert_eq!(mtu(&v4(0, 1500, vxlan::PORT)), Some(1492), "an old router");
        assert_eq!(mtu(&v4(0, SMALLEST_V4 as u16, vxlan::PORT)), None);
        assert_eq!(mtu(&v4(1400, 1500, 53)), None, "not a tunnel");
        let mut damaged = v4(1400, 1500, vxlan::PORT);
        damaged[27] ^= 1;
        assert_eq!(mtu(&damaged), None, "checksum");
        let whole = v4(1400, 1500, vxlan::PORT);
        assert!((0..52).all(|bytes| mtu(&whole[..bytes]).is_none()), "cut off");
    }

    #[test]
    fn what_fits_is_read_and_bounded_v6() {
        let mtu = |packet: &[u8]| parse_v6(packet).map(|narrow| narrow.mtu);
        let (from, to) = (HERE.to_ipv6_mapped().into(), THERE.to_ipv6_mapped().into());
        assert_eq!(parse_v6(&v6(1400, 1500, vxlan::PORT)), Some(Narrow { from, to, mtu: 1400 }));
        assert_eq!(mtu(&v6(1500, 1500, vxlan::PORT)), None);
        assert_eq!(mtu(&v6(1279, 1500, vxlan::PORT)), Some(SMALLEST_V6));
        assert_eq!(mtu(&v6(0, 1500, vxlan::PORT)), Some(SMALLEST_V6));
        assert_eq!(mtu(&v6(1400, 1500, 53)), None);
        let whole = v6(1400, 1500, vxlan::PORT);
        assert!((0..52).all(|bytes| mtu(&whole[..bytes]).is_none()), "cut off");
    }

    #[test]
    fn only_lower_and_only_for_a_while() {
        let mut told = TooBig::open(vec![HERE.into()], vec![THERE.into()]).unwrap();
        let (start, to) = (Instant::now(), IpAddr::V4(THERE));
        let narrow = |mtu| Narrow { from: HERE.into(), to, mtu };
        assert!(told.take(narrow(1400), start));
        assert!(!told.take(narrow(1450), start), "wider again");
        assert!(!told.take(narrow(1400), start), "nothing new");
        assert!(told.take(narrow(1300), start));
        assert!(!told.take(Narrow { from: to, ..narrow(600) }, start), "from somebody else");
        assert!(!told.take(Narrow { to: HERE.into(), ..narrow(600) }, start), "to nobody");
        let from = HERE.into();
        assert_eq!(told.path_mtu(from, to, start + FORGET - Duration::from_secs(1)), Some(1300));
        assert_eq!(told.path_mtu(from, to, start + FORGET), None);
        assert!(told.take(narrow(1450), start + FORGET));
    }

    #[test]
    fn another_one_inherits_what_was_heard_of_its_tunnels() {
        let (here, there): (IpAddr, IpAddr) = (HERE.into(), THERE.into());
        let other: IpAddr = Ipv4Addr::new(192, 0, 2, 3).into();
        let mut old = TooBig::open(vec![here], vec![there, other]).unwrap();
        let (start, later) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        old.take(Narrow { from: here, to: there, mtu: 1400 }, start);
        old.take(Narrow { from: here, to: other, mtu: 1300 }, start);
        let mut new = TooBig::open(vec![here], vec![there]).unwrap();
        new.inherit(&mut old, later);
        assert_eq!(new.path_mtu(here, there, later), Some(1400));
        assert_eq!(new.path_mtu(here, there, start + FORGET), None, "it is no news");
        assert_eq!(new.path_mtu(here, other, later), None, "a tunnel that has gone");
        let mut moved = TooBig::open(vec![other], vec![there]).unwrap();
        moved.inherit(&mut old, later);
        assert_eq!(moved.path_mtu(other, there, later), None, "another way");
    }

    #[test]
    fn any_message_is_read_or_left() {
        type Case = (Vec<u8>, u16, Vec<(u8, u8)>);
        bolero::check!().with_type::<Case>().for_each(|(random, mtu, changes)| {
            let mut mended = v4(*mtu, 9000, vxlan::PORT);
            for (at, byte) in changes {
                let at = usize::from(*at) % mended.len();
                mended[at] = *byte;
            }
            let mut six = v6(u32::from(*mtu), 9000, vxlan::PORT);
            for (at, byte) in changes {
                let at = usize::from(*at) % six.len();
                six[at] = *byte;
            }
            for (found, smallest) in [
                (parse_v4(random), SMALLEST_V4),
                (parse_v4(&mended), SMALLEST_V4),
                (parse_v6(random), SMALLEST_V6),
                (parse_v6(&six), SMALLEST_V6),
            ] {
                assert!(found.is_none_or(|narrow| narrow.mtu >= smallest && narrow.mtu <= 65_575));
            }
        });
    }
}
