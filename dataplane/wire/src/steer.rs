//! The first look at a frame from the network between hosts: is it ours or the kernel's?
//!
//! The XDP program asks it of every frame. It agrees with this package's parsers, which the switch
//! uses: what they take for a datagram to the tunnel's port is let through, and nothing else.
//! Offsets: IEEE 802.3 header of 14 bytes, RFC 791, RFC 768; the port is RFC 7348, section 5.

/// Bytes of Ethernet, IPv4 without options, and UDP: what [`steer`] looks at.
pub const STEER_BYTES: usize = 42;

const ETHER_TYPE: usize = 12;
const VERSION_AND_LENGTH: usize = 14;
const FLAGS_AND_OFFSET: usize = 20;
const PROTOCOL: usize = 23;
const DESTINATION_PORT: usize = 36;

const ETHER_TYPE_IPV4: u16 = 0x0800;
const PROTOCOL_UDP: u8 = 17;
/// Version 4, five words of header.
const IPV4_WITHOUT_OPTIONS: u8 = 0x45;
/// More-fragments flag and the thirteen bits of offset.
const FRAGMENT: u16 = 0x3fff;

/// Who a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steer {
    /// A whole UDP datagram to the tunnel port: ours.
    Tunnel,
    /// Not IPv4, not UDP, or to another port: the kernel's.
    Other,
    /// A piece of a UDP datagram, which the kernel puts together.
    Fragment,
    /// UDP behind IPv4 options, which a tunnel's far end never sends.
    Options,
}

/// Decides by the first bytes of a frame; `port` is the tunnel's UDP port in host order.
#[inline(always)]
pub fn steer(head: &[u8; STEER_BYTES], port: u16) -> Steer {
    let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    if word(ETHER_TYPE) != ETHER_TYPE_IPV4 || head[PROTOCOL] != PROTOCOL_UDP {
        return Steer::Other;
    }
    if word(FLAGS_AND_OFFSET) & FRAGMENT != 0 {
        return Steer::Fragment;
    }
    if head[VERSION_AND_LENGTH] != IPV4_WITHOUT_OPTIONS {
        return Steer::Options;
    }
    if word(DESTINATION_PORT) == port { Steer::Tunnel } else { Steer::Other }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Checksum, Ethernet, Ipv4, Udp, ethernet, ipv4};

    const PORT: u16 = 4789;

    fn tunnel() -> [u8; STEER_BYTES] {
        let mut head = [0; STEER_BYTES];
        head[12..16].copy_from_slice(&[0x08, 0x00, 0x45, 0x00]);
        head[23] = 17;
        head[36..38].copy_from_slice(&PORT.to_be_bytes());
        head
    }

    #[test]
    fn each_field_decides() {
        assert_eq!(steer(&tunnel(), PORT), Steer::Tunnel);
        let cases: [(usize, u8, Steer); 10] = [
            (12, 0x86, Steer::Other),
            (13, 0x06, Steer::Other),
            (14, 0x46, Steer::Options),
            (14, 0x55, Steer::Options),
            (20, 0x20, Steer::Fragment),
            (20, 0x1f, Steer::Fragment),
            (21, 0x01, Steer::Fragment),
            (23, 6, Steer::Other),
            (36, 0, Steer::Other),
            (37, 0, Steer::Other),
        ];
        for (at, value, expected) in cases {
            let mut head = tunnel();
            head[at] = value;
            assert_eq!(steer(&head, PORT), expected, "byte {at} = {value:#x}");
        }
        assert_eq!(steer(&tunnel(), 8472), Steer::Other);
    }

    #[test]
    fn do_not_fragment_and_the_rest_are_ignored() {
        let mut head = tunnel();
        head[20] = 0xc0;
        for at in (0..12).chain(15..20).chain(22..23).chain(24..36).chain(38..42) {
            head[at] = 0xff;
        }
        assert_eq!(steer(&head, PORT), Steer::Tunnel);
    }
    /// The same question to the parsers; they also check what a first look does not.
    fn parsed(head: &[u8; STEER_BYTES], port: u16) -> bool {
        let is_ipv4 = Ethernet::parse(head).is_ok_and(|e| e.ethertype == ethernet::IPV4);
        let rest = &head[ethernet::BYTES..];
        let Some(ip) = Ipv4::parse(rest, usize::MAX).ok().filter(|_| is_ipv4) else {
            return false;
        };
        let whole = ip.fragment & (ipv4::MORE_FRAGMENTS | ipv4::FRAGMENT_OFFSET) == 0;
        let udp = Udp::parse(&rest[ipv4::BYTES..], usize::MAX);
        whole && ip.protocol == ipv4::UDP && udp.is_ok_and(|udp| udp.destination == port)
    }

    #[test]
    fn agrees_with_the_parsers() {
        type Case = ([u8; STEER_BYTES], [(u8, u8); 2]);
        bolero::check!().with_type::<Case>().for_each(|(random, changes)| {
            // A datagram to the port, then a few of its bytes changed.
            let mut head = *random;
            for (at, byte) in tunnel().into_iter().enumerate() {
                if matches!(at, 12..=15 | 20 | 21 | 23 | 36 | 37) {
                    head[at] = byte;
                }
            }
            for (at, byte) in changes {
                head[usize::from(*at) % STEER_BYTES] = *byte;
            }
            // Lengths and checksum such that the parsers look at the rest.
            head[16..18].copy_from_slice(&[1, 0]);
            head[24..26].copy_from_slice(&[0, 0]);
            let mut sum = Checksum::new();
            sum.add(&head[ethernet::BYTES..][..ipv4::BYTES]);
            head[24..26].copy_from_slice(&sum.finish().to_be_bytes());
            head[38..40].copy_from_slice(&[0, 8]);
            assert_eq!(steer(&head, PORT) == Steer::Tunnel, parsed(&head, PORT), "{head:x?}");
        });
    }
}
