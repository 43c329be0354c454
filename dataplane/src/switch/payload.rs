//! Checksums over payloads: the outer UDP checksum of tunnel packets, and the search for packets
//! whose sender left the checksum to an offload that nobody carries out.

use super::parse::{Seen, extensions};
use crate::drop::DropReason;
use crate::packet::Packet;
use outboard_dma::Chain;
use outboard_wire::{Checksum, Ipv4, Ipv6, Udp, ethernet, ipv4, ipv6, udp};

/// Verifies the checksum of a tunnel's datagram, which lies right behind the outer IP header.
#[cold]
pub(super) fn check_tunnel(packet: &Packet, outer: &Ipv4, udp: &Udp) -> Result<(), DropReason> {
    let (source, destination) = (outer.source.octets(), outer.destination.octets());
    let pseudo = Checksum::pseudo_header(source, destination, ipv4::UDP, udp.len);
    check(packet, ethernet::BYTES + ipv4::BYTES, udp, pseudo)
}

/// The same over IPv6, where every datagram has one.
pub(super) fn check_tunnel6(packet: &Packet, outer: &Ipv6, udp: &Udp) -> Result<(), DropReason> {
    let (source, destination) = (outer.source.octets(), outer.destination.octets());
    let pseudo = Checksum::pseudo_header6(source, destination, ipv4::UDP, u32::from(udp.len));
    check(packet, ethernet::BYTES + ipv6::BYTES, udp, pseudo)
}

#[inline]
fn check(packet: &Packet, at: usize, udp: &Udp, pseudo: Checksum) -> Result<(), DropReason> {
    if sum(packet, at, usize::from(udp.len), pseudo).folded() == 0xffff {
        Ok(())
    } else if udp.checksum == pseudo.folded() {
        Err(DropReason::PartialChecksum)
    } else {
        Err(DropReason::UdpChecksum)
    }
}

/// Where a packet's TCP or UDP header is: its protocol, where it starts, bytes from there on, and
/// the sum of its pseudo-header.
struct Upper {
    protocol: u8,
    at: usize,
    len: usize,
    pseudo: Checksum,
}

/// Whether a tenant's packet carries the sum of its pseudo-header where TCP's or UDP's checksum
/// should be: what Linux leaves in a packet whose checksum an offload shall complete
/// (CHECKSUM_PARTIAL). About one right packet in 65 536 looks like that too, so then the whole is
/// verified.
#[cold]
pub(super) fn is_partial(packet: &Packet, seen: &Seen) -> bool {
    let head = packet.head();
    let upper = if seen.key.is_v6() { upper6(head, seen) } else { upper(head, seen) };
    let Some(Upper { protocol, at, len, pseudo }) = upper else { return false };
    let field = match protocol {
        ipv4::TCP => udp::TCP_CHECKSUM_AT,
        ipv4::UDP => udp::CHECKSUM_AT,
        _ => return false,
    };
    if len < field + 2 {
        return false;
    }
    let Some(stored) = head.get(at + field..).and_then(|rest| rest.first_chunk::<2>()) else {
        return false;
    };
    let stored = u16::from_be_bytes(*stored);
    // A UDP sender that makes no checksum writes zero; no pseudo-header sums to that.
    stored == pseudo.folded() && sum(packet, at, len, pseudo).folded() != 0xffff
}

/// `None` for a fragment: its checksum covers the other fragments too; Linux completes it before
/// it cuts.
fn upper(head: &[u8], seen: &Seen) -> Option<Upper> {
    let at = seen.ip_at();
    let ip = Ipv4::parse(head.get(at..)?, usize::MAX).ok()?;
    let len = ip.payload_len();
    let (source, destination) = (ip.source.octets(), ip.destination.octets());
    let pseudo = Checksum::pseudo_header(source, destination, ip.protocol, len);
    let at = at + ipv4::BYTES;
    let upper = Upper { protocol: ip.protocol, at, len: usize::from(len), pseudo };
    (!ip.is_fragment()).then_some(upper)
}

fn upper6(head: &[u8], seen: &Seen) -> Option<Upper> {
    let at = seen.ip_at();
    let ip = Ipv6::parse(head.get(at..)?, usize::MAX).ok()?;
    let found = extensions(&ip, head.get(at + ipv6::BYTES..)?).ok()?;
    let len = usize::from(ip.payload_len).checked_sub(found.at)?;
    let (source, destination) = (ip.source.octets(), ip.destination.octets());
    let pseudo = Checksum::pseudo_header6(source, destination, found.protocol, len as u32);
    let at = at + ipv6::BYTES + found.at;
    (!found.is_fragment()).then_some(Upper { protocol: found.protocol, at, len, pseudo })
}

/// Adds `len` bytes of a packet from `at` on to a sum.
#[inline]
pub(super) fn sum(packet: &Chain, at: usize, len: usize, mut sum: Checksum) -> Checksum {
    let (mut skip, mut left) = (at, len);
    for segment in packet.segments() {
        let skipped = skip.min(segment.len());
        skip -= skipped;
        let wanted = &segment[skipped..];
        let wanted = &wanted[..wanted.len().min(left)];
        sum.add(wanted);
        left -= wanted.len();
        if left == 0 {
            break;
        }
    }
    sum
}
