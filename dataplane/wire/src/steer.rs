//! The first look at a frame from the network between hosts: is it ours or the kernel's?
//!
//! The XDP program and the switch ask the same function, so that what one lets through the other
//! understands. Offsets: IEEE 802.3 header of 14 bytes, RFC 791, RFC 768; the tunnel's destination
//! port is RFC 7348, section 5.

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
}
