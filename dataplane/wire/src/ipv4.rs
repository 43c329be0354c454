//! IPv4 headers without options (RFC 791).

use crate::{Checksum, Malformed, checksum};
use core::net::Ipv4Addr;

/// Bytes of a header without options.
pub const BYTES: usize = 20;
/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// The flag "don't fragment" in [`Ipv4::fragment`].
pub const DONT_FRAGMENT: u16 = 0x4000;
/// The flag "more fragments" in [`Ipv4::fragment`].
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The offset in [`Ipv4::fragment`], in units of 8 bytes.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;

/// One header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// DSCP and ECN.
    pub tos: u8,
    /// Bytes of header and payload.
    pub total_len: u16,
    /// Identification.
    pub id: u16,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// What follows.
    pub protocol: u8,
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
}

impl Ipv4 {
    /// Reads and checks the header at the front of `bytes`, of a packet that has `available` bytes
    /// from there on (further frames and padding included).
    #[inline(always)]
    pub fn parse(bytes: &[u8], available: usize) -> Result<Ipv4, Malformed> {
        let h = bytes.first_chunk::<BYTES>().ok_or(Malformed::TooShort)?;
        if h[0] != 0x45 {
            return Err(match (h[0] >> 4, h[0] & 0xf) {
                (4, 6..) => Malformed::Ipv4Options,
                _ => Malformed::Ipv4Header,
            });
        }
        let total_len = u16::from_be_bytes([h[2], h[3]]);
        if usize::from(total_len) < BYTES || usize::from(total_len) > available {
            return Err(Malformed::Ipv4Header);
        }
        let mut sum = Checksum::new();
        sum.add(h);
        if sum.folded() != 0xffff {
            return Err(Malformed::Ipv4Checksum);
        }
        Ok(Ipv4 {
            tos: h[1],
            total_len,
            id: u16::from_be_bytes([h[4], h[5]]),
            fragment: u16::from_be_bytes([h[6], h[7]]),
            ttl: h[8],
            protocol: h[9],
            source: Ipv4Addr::new(h[12], h[13], h[14], h[15]),
            destination: Ipv4Addr::new(h[16], h[17], h[18], h[19]),
        })
    }

    /// Writes the header with its checksum to the front of `out`; `None`, and nothing written,
    /// when it is too short.
    pub fn emit(&self, out: &mut [u8]) -> Option<()> {
        let h = out.first_chunk_mut::<BYTES>()?;
        h[0] = 0x45;
        h[1] = self.tos;
        h[2..4].copy_from_slice(&self.total_len.to_be_bytes());
        h[4..6].copy_from_slice(&self.id.to_be_bytes());
        h[6..8].copy_from_slice(&self.fragment.to_be_bytes());
        h[8] = self.ttl;
        h[9] = self.protocol;
        h[10..12].fill(0);
        h[12..16].copy_from_slice(&self.source.octets());
        h[16..].copy_from_slice(&self.destination.octets());
        let mut sum = Checksum::new();
        sum.add(h);
        h[10..12].copy_from_slice(&sum.finish().to_be_bytes());
        Some(())
    }

    /// Whether the packet is a piece of a larger one, the first piece included.
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        self.fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0
    }

    /// Whether the packet starts with the header of its payload: whole, or a first fragment.
    #[inline(always)]
    pub fn has_payload_header(&self) -> bool {
        self.fragment & FRAGMENT_OFFSET == 0
    }

    /// Bytes of payload.
    #[inline(always)]
    pub fn payload_len(&self) -> u16 {
        self.total_len - BYTES as u16
    }
}

/// Sets the time to live in a header and updates its checksum.
#[inline(always)]
pub fn set_ttl(header: &mut [u8; BYTES], ttl: u8) {
    let old = u16::from_be_bytes([header[8], header[9]]);
    header[8] = ttl;
    patch_checksum(header, old, u16::from_be_bytes([header[8], header[9]]));
}

/// Sets the TOS byte in a header and updates its checksum.
#[inline(always)]
pub fn set_tos(header: &mut [u8; BYTES], tos: u8) {
    let old = u16::from_be_bytes([header[0], header[1]]);
    header[1] = tos;
    patch_checksum(header, old, u16::from_be_bytes([header[0], header[1]]));
}

#[inline(always)]
fn patch_checksum(header: &mut [u8; BYTES], old: u16, new: u16) {
    let sum = u16::from_be_bytes([header[10], header[11]]);
    header[10..12].copy_from_slice(&checksum::update(sum, old, new).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header whose checksum 0xb861 is worked out in every text on the subject:
    /// 192.168.0.1 to 192.168.0.199, UDP, 115 bytes, DF.
    const HEADER: [u8; 20] = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00,
        0x01, 0xc0, 0xa8, 0x00, 0xc7,
    ];

    #[test]
    fn reads_and_writes_the_layout() {
        let header = Ipv4::parse(&HEADER, 115).unwrap();
        assert_eq!((header.total_len, header.payload_len(), header.ttl), (115, 95, 64));
        assert_eq!((header.protocol, header.fragment), (UDP, DONT_FRAGMENT));
        assert_eq!(header.source, Ipv4Addr::new(192, 168, 0, 1));
        assert_eq!(header.destination, Ipv4Addr::new(192, 168, 0, 199));
        assert!(!header.is_fragment() && header.has_payload_header());
        let mut out = [0xee; 20];
        header.emit(&mut out).unwrap();
        assert_eq!(out, HEADER);
        assert_eq!(header.emit(&mut out[..19]), None);
    }

    #[test]
    fn every_limit_and_one_past_it() {
        let with = |at: usize, value: u8| {
            let mut bytes = HEADER;
            bytes[at] = value;
            Ipv4::parse(&bytes, 115)
        };
        assert_eq!(Ipv4::parse(&HEADER[..19], 115), Err(Malformed::TooShort));
        assert!(Ipv4::parse(&HEADER, 116).is_ok(), "padding behind the packet");
        assert_eq!(Ipv4::parse(&HEADER, 114), Err(Malformed::Ipv4Header));
        assert_eq!(with(0, 0x44), Err(Malformed::Ipv4Header));
        assert_eq!(with(0, 0x46), Err(Malformed::Ipv4Options));
        assert_eq!(with(0, 0x55), Err(Malformed::Ipv4Header));
        assert_eq!(with(0, 0x65), Err(Malformed::Ipv4Header));
        assert_eq!(with(3, 19), Err(Malformed::Ipv4Header));
        assert_eq!(with(3, 20), Err(Malformed::Ipv4Checksum));
        assert_eq!(with(8, 63), Err(Malformed::Ipv4Checksum));
    }

    #[test]
    fn fragments() {
        let of = |fragment| Ipv4 { fragment, ..Ipv4::parse(&HEADER, 115).unwrap() };
        assert!(of(MORE_FRAGMENTS).is_fragment() && of(MORE_FRAGMENTS).has_payload_header());
        assert!(of(1).is_fragment() && !of(1).has_payload_header());
        assert!(!of(0x8000 | DONT_FRAGMENT).is_fragment());
    }

    #[test]
    fn patches_keep_the_checksum() {
        bolero::check!().with_type::<([u8; 20], u8, u8)>().for_each(|(bytes, ttl, tos)| {
            let mut header = *bytes;
            header[0] = 0x45;
            header[2..4].copy_from_slice(&[0, 20]);
            header[10..12].fill(0);
            let mut sum = Checksum::new();
            sum.add(&header);
            header[10..12].copy_from_slice(&sum.finish().to_be_bytes());
            set_ttl(&mut header, *ttl);
            set_tos(&mut header, *tos);
            let parsed = Ipv4::parse(&header, 20).unwrap();
            assert_eq!((parsed.ttl, parsed.tos), (*ttl, *tos));
        });
    }

    #[test]
    fn any_bytes_parse_or_name_the_fault() {
        bolero::check!().with_type::<([u8; 24], u8, u16)>().for_each(|(bytes, len, available)| {
            let bytes = &bytes[..usize::from(*len).min(24)];
            if let Ok(header) = Ipv4::parse(bytes, usize::from(*available)) {
                let mut out = [0; 20];
                header.emit(&mut out).unwrap();
                assert!(usize::from(header.total_len) <= usize::from(*available));
                assert_eq!(out[..10], bytes[..10]);
                assert_eq!(out[12..], bytes[12..20]);
            }
        });
    }
}
