//! IPv6 headers and their extension headers (RFC 8200).

use crate::Malformed;
use core::net::Ipv6Addr;

/// Bytes of the fixed header.
pub const BYTES: usize = 40;
/// Bytes of a fragment header (RFC 8200 section 4.5).
pub const FRAGMENT_BYTES: usize = 8;
/// What every link of IPv6 carries in one packet (RFC 8200 section 5).
pub const MTU_MIN: u16 = 1280;
/// The most extension headers of one packet: each kind once, destination options twice.
pub const EXTENSIONS_MAX: usize = 8;
/// The most bytes of all extension headers of one packet.
pub const EXTENSION_BYTES_MAX: usize = 256;

/// Next header: hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// Next header: routing.
pub const ROUTING: u8 = 43;
/// Next header: fragment.
pub const FRAGMENT: u8 = 44;
/// Next header: authentication (RFC 4302).
pub const AUTHENTICATION: u8 = 51;
/// Next header: ICMPv6.
pub const ICMP: u8 = 58;
/// Next header: nothing follows.
pub const NO_NEXT: u8 = 59;
/// Next header: destination options.
pub const DESTINATION_OPTIONS: u8 = 60;
/// Next header: mobility (RFC 6275).
pub const MOBILITY: u8 = 135;
/// Next header: host identity protocol (RFC 7401).
pub const HOST_IDENTITY: u8 = 139;
/// Next header: shim6 (RFC 5533).
pub const SHIM6: u8 = 140;

/// One fixed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// 20 bits.
    pub flow_label: u32,
    /// Bytes behind this header.
    pub payload_len: u16,
    /// What follows.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: Ipv6Addr,
    /// Destination address.
    pub destination: Ipv6Addr,
}

impl Ipv6 {
    /// Reads and checks the header at the front of `bytes`, of a packet that has `available` bytes
    /// from there on (further frames and padding included). Jumbograms (RFC 2675) are not known.
    #[inline(always)]
    pub fn parse(bytes: &[u8], available: usize) -> Result<Ipv6, Malformed> {
        let h = bytes.first_chunk::<BYTES>().ok_or(Malformed::TooShort)?;
        let payload_len = u16::from_be_bytes([h[4], h[5]]);
        if h[0] >> 4 != 6 || BYTES + usize::from(payload_len) > available {
            return Err(Malformed::Ipv6Header);
        }
        let first = u32::from_be_bytes([h[0], h[1], h[2], h[3]]);
        Ok(Ipv6 {
            traffic_class: (first >> 20) as u8,
            flow_label: first & 0xf_ffff,
            payload_len,
            next_header: h[6],
            hop_limit: h[7],
            source: Ipv6Addr::from_bits(address_at(h, 8)),
            destination: Ipv6Addr::from_bits(address_at(h, 24)),
        })
    }

    /// Writes the header to the front of `out`; `None`, and nothing written, when it is too short.
    pub fn emit(&self, out: &mut [u8]) -> Option<()> {
        let h = out.first_chunk_mut::<BYTES>()?;
        let class = u32::from(self.traffic_class) << 20;
        let first = 6 << 28 | class | self.flow_label & 0xf_ffff;
        h[..4].copy_from_slice(&first.to_be_bytes());
        h[4..6].copy_from_slice(&self.payload_len.to_be_bytes());
        h[6] = self.next_header;
        h[7] = self.hop_limit;
        h[8..24].copy_from_slice(&self.source.octets());
        h[24..].copy_from_slice(&self.destination.octets());
        Some(())
    }

    /// Bytes of the header and what is behind it.
    #[inline(always)]
    pub fn total_len(&self) -> usize {
        BYTES + usize::from(self.payload_len)
    }
}

#[inline(always)]
fn address_at(header: &[u8; BYTES], at: usize) -> u128 {
    let mut octets = [0; 16];
    octets.copy_from_slice(&header[at..at + 16]);
    u128::from_be_bytes(octets)
}

/// The traffic class in a header.
#[inline(always)]
pub fn traffic_class(header: &[u8; BYTES]) -> u8 {
    header[0] << 4 | header[1] >> 4
}

/// Sets the traffic class in a header.
#[inline(always)]
pub fn set_traffic_class(header: &mut [u8; BYTES], class: u8) {
    header[0] = 0x60 | class >> 4;
    header[1] = class << 4 | header[1] & 0xf;
}

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Offset in bytes.
    pub offset: u16,
    /// Whether more follow.
    pub more: bool,
    /// What the fragmentable part starts with: the same in all fragments of a packet, while the
    /// header that is found in it is known in the first fragment only.
    pub next_header: u8,
}

/// What is behind the extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upper {
    /// The upper-layer protocol; in a fragment other than the first what its header says.
    pub protocol: u8,
    /// Where it starts, behind the fixed header.
    pub at: usize,
    /// The fragment header, if there is one.
    pub fragment: Option<Fragment>,
}

impl Upper {
    /// Whether the upper-layer header is in this packet: whole, or a first fragment.
    #[inline(always)]
    pub fn has_header(&self) -> bool {
        self.fragment.is_none_or(|fragment| fragment.offset == 0)
    }

    /// Whether the packet is a piece of a larger one, the first piece included. An atomic fragment
    /// (RFC 6946), which is the whole, counts as one.
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        self.fragment.is_some()
    }
}

/// Whether a next header value is an extension header's (the IANA registry of RFC 7045): those for
/// experiments and ESP, behind which nothing can be read, are not.
#[inline(always)]
pub fn is_extension(next_header: u8) -> bool {
    matches!(
        next_header,
        HOP_BY_HOP
            | ROUTING
            | FRAGMENT
            | AUTHENTICATION
            | DESTINATION_OPTIONS
            | MOBILITY
            | HOST_IDENTITY
            | SHIM6
    )
}

/// Walks over the extension headers in `payload`, which is what follows the fixed header. Wrong
/// is a chain of more than [`EXTENSIONS_MAX`] headers or [`EXTENSION_BYTES_MAX`] bytes, one that
/// the bytes end in, hop-by-hop options that are not first, and a second fragment header.
#[inline]
pub fn walk(next_header: u8, payload: &[u8]) -> Result<Upper, Malformed> {
    let mut upper = Upper { protocol: next_header, at: 0, fragment: None };
    for index in 0..=EXTENSIONS_MAX {
        if !is_extension(upper.protocol) {
            return Ok(upper);
        }
        let rest = payload.get(upper.at..).unwrap_or(&[]);
        let h = rest.first_chunk::<8>().ok_or(Malformed::Ipv6Extensions)?;
        let bytes = match upper.protocol {
            HOP_BY_HOP if index > 0 => return Err(Malformed::Ipv6Extensions),
            FRAGMENT if upper.fragment.is_some() => return Err(Malformed::Ipv6Extensions),
            FRAGMENT => FRAGMENT_BYTES,
            AUTHENTICATION => (usize::from(h[1]) + 2) * 4,
            _ => (usize::from(h[1]) + 1) * 8,
        };
        if upper.protocol == FRAGMENT {
            let field = u16::from_be_bytes([h[2], h[3]]);
            let fragment = Fragment { offset: field & !7, more: field & 1 == 1, next_header: h[0] };
            upper.fragment = Some(fragment);
        }
        upper.protocol = h[0];
        upper.at += bytes;
        if upper.at > payload.len() || upper.at > EXTENSION_BYTES_MAX {
            return Err(Malformed::Ipv6Extensions);
        }
        if !upper.has_header() {
            return Ok(upper);
        }
    }
    Err(Malformed::Ipv6Extensions)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    const HEADER: [u8; 40] = [
        0x6b, 0xa1, 0x23, 0x45, 0x00, 0x08, 0x11, 0x40, // class 0xba, label 0x12345, UDP, 64
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, // 2001:db8::1
        0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, // fd00::2
    ];

    #[test]
    fn reads_and_writes_the_layout() {
        let header = Ipv6::parse(&HEADER, 48).unwrap();
        assert_eq!((header.traffic_class, header.flow_label), (0xba, 0x1_2345));
        assert_eq!((header.payload_len, header.total_len()), (8, 48));
        assert_eq!((header.next_header, header.hop_limit), (17, 64));
        assert_eq!(header.source, "2001:db8::1".parse::<Ipv6Addr>().unwrap());
        assert_eq!(header.destination, "fd00::2".parse::<Ipv6Addr>().unwrap());
        let mut out = [0xee; 40];
        header.emit(&mut out).unwrap();
        assert_eq!(out, HEADER);
        assert_eq!(header.emit(&mut out[..39]), None);
        assert_eq!(traffic_class(&out), 0xba);
        set_traffic_class(&mut out, 0x47);
        let changed = Ipv6::parse(&out, 48).unwrap();
        assert_eq!(changed, Ipv6 { traffic_class: 0x47, ..header });
    }

    #[test]
    fn every_limit_and_one_past_it() {
        assert_eq!(Ipv6::parse(&HEADER[..39], 48), Err(Malformed::TooShort));
        assert!(Ipv6::parse(&HEADER, 49).is_ok(), "padding behind the packet");
        assert_eq!(Ipv6::parse(&HEADER, 47), Err(Malformed::Ipv6Header));
        for version in [0x00, 0x45, 0x50, 0x70] {
            let mut bytes = HEADER;
            bytes[0] = version;
            assert_eq!(Ipv6::parse(&bytes, 48), Err(Malformed::Ipv6Header));
        }
    }

    #[test]
    fn chains_at_their_limits() {
        let plain = walk(17, &[]).unwrap();
        assert_eq!((plain.protocol, plain.at, plain.is_fragment()), (17, 0, false));
        // Destination options without end, eight bytes each.
        let mut chain = Vec::new();
        for _ in 0..EXTENSIONS_MAX {
            chain.extend([DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0]);
        }
        let last = chain.len() - 8;
        chain[last] = 6;
        assert_eq!(walk(DESTINATION_OPTIONS, &chain).unwrap().at, 8 * EXTENSIONS_MAX);
        assert_eq!(walk(DESTINATION_OPTIONS, &chain[..63]), Err(Malformed::Ipv6Extensions));
        assert_eq!(walk(HOP_BY_HOP, &chain).unwrap().protocol, 6);
        chain.splice(..0, [DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0]);
        assert_eq!(walk(DESTINATION_OPTIONS, &chain), Err(Malformed::Ipv6Extensions));
        // One header of 256 bytes, and one of 264.
        let mut long = [0; 272];
        (long[0], long[1]) = (17, 31);
        assert_eq!(walk(ROUTING, &long).unwrap().at, EXTENSION_BYTES_MAX);
        long[1] = 32;
        assert_eq!(walk(ROUTING, &long), Err(Malformed::Ipv6Extensions));
    }

    #[test]
    fn orders_that_are_wrong() {
        let two =
            |first, second| walk(first, &[second, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(two(HOP_BY_HOP, ROUTING).unwrap().protocol, 17);
        assert_eq!(two(ROUTING, HOP_BY_HOP), Err(Malformed::Ipv6Extensions));
        assert_eq!(two(FRAGMENT, FRAGMENT), Err(Malformed::Ipv6Extensions));
        assert_eq!(walk(AUTHENTICATION, &[17, 4, 0, 0, 0, 0, 0, 0]).ok(), None);
        assert_eq!(walk(AUTHENTICATION, &[17; 76]).unwrap().at, 76);
        assert_eq!(walk(NO_NEXT, &[]).unwrap().protocol, NO_NEXT);
    }

    #[test]
    fn fragments() {
        let first =
            walk(FRAGMENT, &[DESTINATION_OPTIONS, 0, 0, 1, 0, 0, 0, 7, 17, 0, 0, 0, 0, 0, 0, 0]);
        let first = first.unwrap();
        assert!(first.is_fragment() && first.has_header());
        assert_eq!((first.protocol, first.at), (17, 16));
        let later = walk(FRAGMENT, &[DESTINATION_OPTIONS, 0, 0x05, 0xa8, 0, 0, 0, 7]).unwrap();
        let want = Fragment { offset: 1448, more: false, next_header: DESTINATION_OPTIONS };
        assert_eq!(later.fragment, Some(want));
        assert_eq!((later.protocol, later.at, later.has_header()), (DESTINATION_OPTIONS, 8, false));
        let next = |upper: Upper| upper.fragment.map(|fragment| fragment.next_header);
        assert_eq!(next(first), next(later), "known alike in every fragment");
    }

    #[test]
    fn any_bytes_parse_or_name_the_fault() {
        bolero::check!().with_type::<(u8, Vec<u8>, u16)>().for_each(|(next, bytes, available)| {
            if let Ok(header) = Ipv6::parse(bytes, usize::from(*available)) {
                let mut out = [0; BYTES];
                header.emit(&mut out).unwrap();
                assert_eq!(out, bytes[..BYTES]);
                assert!(header.total_len() <= usize::from(*available));
            }
            if let Ok(upper) = walk(*next, bytes) {
                assert!(upper.at <= bytes.len() && upper.at <= EXTENSION_BYTES_MAX);
                assert!(!upper.has_header() || !is_extension(upper.protocol));
            }
        });
    }
}
