//! The first look at a frame from the network between hosts: is it ours or the kernel's?
//!
//! The XDP program asks it of every frame. It agrees with this package's parsers, which the switch
//! uses: what they take for a whole datagram to the tunnel's port is a tunnel's, and nothing else.
//! Offsets: IEEE 802.3 header of 14 bytes, RFC 791, RFC 8200 section 3, RFC 768; the port is
//! RFC 7348, section 5.

/// Bytes of Ethernet, IPv4 without options, and UDP: what [`steer`] looks at.
pub const STEER_BYTES: usize = 42;
/// Bytes of Ethernet, IPv6 without extension headers, and UDP: what [`steer_v6`] looks at.
pub const STEER_V6_BYTES: usize = 62;

const ETHER_TYPE: usize = 12;
const ETHER_TYPE_IPV4: u16 = 0x0800;
const ETHER_TYPE_IPV6: u16 = 0x86dd;
const PROTOCOL_UDP: u8 = 17;

const VERSION_AND_LENGTH: usize = 14;
const FLAGS_AND_OFFSET: usize = 20;
const PROTOCOL: usize = 23;
const DESTINATION: usize = 30;
const DESTINATION_PORT: usize = 36;
/// Version 4, five words of header.
const IPV4_WITHOUT_OPTIONS: u8 = 0x45;
/// More-fragments flag and the thirteen bits of offset.
const FRAGMENT: u16 = 0x3fff;

const NEXT_HEADER: usize = 20;
const V6_DESTINATION: usize = 38;
const V6_DESTINATION_PORT: usize = 56;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT_HEADER: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Who a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steer {
    /// A whole UDP datagram to the tunnel port, and the address it is for, as [`vtep`] writes it:
    /// ours if the address is.
    Tunnel([u8; 16]),
    /// Not IP, not UDP, or to another port: the kernel's.
    Other,
    /// IPv6, to be asked of [`steer_v6`].
    Ipv6,
    /// A piece of a datagram, which the kernel puts together.
    Fragment,
    /// UDP behind IPv4 options, or anything behind IPv6 extension headers, which a tunnel's far
    /// end never sends.
    Options,
}

/// A tunnel address as [`Steer::Tunnel`] has it: IPv4 as in RFC 4291 section 2.5.5.2.
pub fn vtep(address: core::net::IpAddr) -> [u8; 16] {
    match address {
        core::net::IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        core::net::IpAddr::V6(address) => address.octets(),
    }
}

/// Decides by the first bytes of a frame; `port` is the tunnel's UDP port in host order.
#[inline(always)]
pub fn steer(head: &[u8; STEER_BYTES], port: u16) -> Steer {
    let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    match word(ETHER_TYPE) {
        ETHER_TYPE_IPV4 if head[PROTOCOL] == PROTOCOL_UDP => {}
        ETHER_TYPE_IPV6 => return Steer::Ipv6,
        _ => return Steer::Other,
    }
    if word(FLAGS_AND_OFFSET) & FRAGMENT != 0 {
        return Steer::Fragment;
    }
    if head[VERSION_AND_LENGTH] != IPV4_WITHOUT_OPTIONS {
        return Steer::Options;
    }
    if word(DESTINATION_PORT) != port {
        return Steer::Other;
    }
    let mut to = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
    to[12..].copy_from_slice(&head[DESTINATION..DESTINATION + 4]);
    Steer::Tunnel(to)
}

/// As [`steer`], for a frame that it calls [`Steer::Ipv6`].
#[inline(always)]
pub fn steer_v6(head: &[u8; STEER_V6_BYTES], port: u16) -> Steer {
    if head[VERSION_AND_LENGTH] >> 4 != 6 {
        return Steer::Other;
    }
    match head[NEXT_HEADER] {
        PROTOCOL_UDP => {}
        FRAGMENT_HEADER => return Steer::Fragment,
        HOP_BY_HOP | ROUTING | AUTHENTICATION | DESTINATION_OPTIONS => return Steer::Options,
        _ => return Steer::Other,
    }
    let to_port = [head[V6_DESTINATION_PORT], head[V6_DESTINATION_PORT + 1]];
    if u16::from_be_bytes(to_port) != port {
        return Steer::Other;
    }
    let mut to = [0; 16];
    to.copy_from_slice(&head[V6_DESTINATION..V6_DESTINATION + 16]);
    Steer::Tunnel(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Checksum, Ethernet, Ipv4, Udp, ethernet, ipv4};
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    const PORT: u16 = 4789;
    const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

    fn tunnel() -> [u8; STEER_BYTES] {
        let mut head = [0; STEER_BYTES];
        head[12..16].copy_from_slice(&[0x08, 0x00, 0x45, 0x00]);
        head[23] = 17;
        head[30..34].copy_from_slice(&vtep(V4)[12..]);
        head[36..38].copy_from_slice(&PORT.to_be_bytes());
        head
    }

    fn tunnel_v6() -> [u8; STEER_V6_BYTES] {
        let mut head = [0; STEER_V6_BYTES];
        head[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
        head[20] = 17;
        head[38..54].copy_from_slice(&vtep(V6));
        head[56..58].copy_from_slice(&PORT.to_be_bytes());
        head
    }

    #[test]
    fn each_field_decides() {
        let ours = Steer::Tunnel(vtep(V4));
        assert_eq!(steer(&tunnel(), PORT), ours);
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
        let v6 = tunnel_v6();
        assert_eq!(steer(v6.first_chunk().unwrap(), PORT), Steer::Ipv6);
    }

    #[test]
    fn each_field_of_ipv6_decides() {
        assert_eq!(steer_v6(&tunnel_v6(), PORT), Steer::Tunnel(vtep(V6)));
        let cases: [(usize, u8, Steer); 10] = [
            (14, 0x40, Steer::Other),
            (20, 0, Steer::Options),
            (20, 43, Steer::Options),
            (20, 44, Steer::Fragment),
            (20, 51, Steer::Options),
            (20, 60, Steer::Options),
            (20, 58, Steer::Other),
            (20, 6, Steer::Other),
            (56, 0, Steer::Other),
            (57, 0, Steer::Other),
        ];
        for (at, value, expected) in cases {
            let mut head = tunnel_v6();
            head[at] = value;
            assert_eq!(steer_v6(&head, PORT), expected, "byte {at} = {value:#x}");
        }
        assert_eq!(steer_v6(&tunnel_v6(), 8472), Steer::Other);
    }

    #[test]
    fn do_not_fragment_and_the_rest_are_ignored() {
        let mut head = tunnel();
        head[20] = 0xc0;
        for at in (0..12).chain(15..20).chain(22..23).chain(24..30).chain(34..36).chain(38..42) {
            head[at] = 0xff;
        }
        assert_eq!(steer(&head, PORT), Steer::Tunnel(vtep(V4)));
        let mut head = tunnel_v6();
        head[14] = 0x6f;
        for at in (0..12).chain(15..20).chain(21..38).chain(54..56).chain(58..62) {
            head[at] = 0xff;
        }
        assert_eq!(steer_v6(&head, PORT), Steer::Tunnel(vtep(V6)));
    }

    /// The same question to the parsers; they also check what a first look does not.
    fn parsed(head: &[u8; STEER_BYTES], port: u16) -> Option<[u8; 16]> {
        let is_ipv4 = Ethernet::parse(head).is_ok_and(|e| e.ethertype == ethernet::IPV4);
        let rest = &head[ethernet::BYTES..];
        let ip = Ipv4::parse(rest, usize::MAX).ok().filter(|_| is_ipv4)?;
        let whole = ip.fragment & (ipv4::MORE_FRAGMENTS | ipv4::FRAGMENT_OFFSET) == 0;
        let udp = Udp::parse(&rest[ipv4::BYTES..], usize::MAX).ok()?;
        let ours = whole && ip.protocol == ipv4::UDP && udp.destination == port;
        ours.then(|| vtep(ip.destination.into()))
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
            let steered = match steer(&head, PORT) {
                Steer::Tunnel(to) => Some(to),
                _ => None,
            };
            assert_eq!(steered, parsed(&head, PORT), "{head:x?}");
        });
    }
}
