//! Checksums over payloads: the outer UDP checksum of tunnel packets, and the search for packets
//! whose sender left the checksum to an offload that nobody carries out.

use super::parse::Seen;
use crate::drop::DropReason;
use crate::packet::Packet;
use outboard_dma::Chain;
use outboard_wire::{Checksum, Ipv4, Udp, ethernet, ipv4, udp};

/// Verifies the checksum of a tunnel's datagram, which lies right behind the outer IP header.
#[cold]
pub(super) fn check_tunnel(packet: &Packet, outer: &Ipv4, udp: &Udp) -> Result<(), DropReason> {
    let (source, destination) = (outer.source.octets(), outer.destination.octets());
    let pseudo = Checksum::pseudo_header(source, destination, ipv4::UDP, udp.len);
    let at = ethernet::BYTES + ipv4::BYTES;
    if sum(packet, at, usize::from(udp.len), pseudo).folded() == 0xffff {
        Ok(())
    } else if udp.checksum == pseudo.folded() {
        Err(DropReason::PartialChecksum)
    } else {
        Err(DropReason::UdpChecksum)
    }
}

/// Whether a tenant's packet carries the sum of its pseudo-header where TCP's or UDP's checksum
/// should be: what Linux leaves in a packet whose checksum an offload shall complete
/// (CHECKSUM_PARTIAL). About one right packet in 65 536 looks like that too, so then the whole is
/// verified.
#[cold]
pub(super) fn is_partial(packet: &Packet, seen: &Seen) -> bool {
    let head = packet.head();
    let at = seen.ip_at();
    let Some(ip) = head.get(at..).and_then(|rest| Ipv4::parse(rest, packet.bytes() - at).ok())
    else {
        return false;
    };
    let field = match ip.protocol {
        ipv4::TCP => udp::TCP_CHECKSUM_AT,
        ipv4::UDP => udp::CHECKSUM_AT,
        _ => return false,
    };
    // A fragment's checksum covers the other fragments too; Linux completes it before it cuts.
    let len = ip.payload_len();
    if ip.is_fragment() || usize::from(len) < field + 2 {
        return false;
    }
    let payload_at = at + ipv4::BYTES;
    let Some(stored) = head.get(payload_at + field..).and_then(|rest| rest.first_chunk::<2>())
    else {
        return false;
    };
    let stored = u16::from_be_bytes(*stored);
    let (source, destination) = (ip.source.octets(), ip.destination.octets());
    let pseudo = Checksum::pseudo_header(source, destination, ip.protocol, len);
    // A UDP sender that makes no checksum writes zero; no pseudo-header sums to that.
    stored == pseudo.folded()
        && sum(packet, payload_at, usize::from(len), pseudo).folded() != 0xffff
}

/// Adds `len` bytes of a packet from `at` on to a sum.
fn sum(packet: &Chain, at: usize, len: usize, mut sum: Checksum) -> Checksum {
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
