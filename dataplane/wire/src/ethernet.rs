//! Ethernet II headers (IEEE 802.3 clause 3; type field, no tag).

use crate::{Mac, Malformed};

/// Bytes of the header.
pub const BYTES: usize = 14;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of a customer VLAN tag (IEEE 802.1Q).
pub const VLAN: u16 = 0x8100;
/// EtherType of a service VLAN tag (IEEE 802.1ad).
pub const SERVICE_VLAN: u16 = 0x88a8;

/// One header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Destination address.
    pub destination: Mac,
    /// Source address.
    pub source: Mac,
    /// What follows.
    pub ethertype: u16,
}

impl Ethernet {
    /// Reads the header at the front of `bytes`.
    #[inline(always)]
    pub fn parse(bytes: &[u8]) -> Result<Ethernet, Malformed> {
        let h = bytes.first_chunk::<BYTES>().ok_or(Malformed::TooShort)?;
        Ok(Ethernet {
            destination: Mac([h[0], h[1], h[2], h[3], h[4], h[5]]),
            source: Mac([h[6], h[7], h[8], h[9], h[10], h[11]]),
            ethertype: u16::from_be_bytes([h[12], h[13]]),
        })
    }

    /// Writes the header to the front of `out`; `None`, and nothing written, when it is too short.
    #[inline(always)]
    pub fn emit(&self, out: &mut [u8]) -> Option<()> {
        let h = out.first_chunk_mut::<BYTES>()?;
        h[..6].copy_from_slice(&self.destination.0);
        h[6..12].copy_from_slice(&self.source.0);
        h[12..].copy_from_slice(&self.ethertype.to_be_bytes());
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_the_layout() {
        let bytes = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 0x08, 0x06, 0xee];
        let header = Ethernet::parse(&bytes).unwrap();
        assert_eq!(header.destination, Mac([2, 0, 0, 0, 0, 1]));
        assert_eq!(header.source, Mac([2, 0, 0, 0, 0, 9]));
        assert_eq!(header.ethertype, ARP);
        let mut out = [0xee; 15];
        header.emit(&mut out).unwrap();
        assert_eq!(out, bytes);
        assert_eq!(Ethernet::parse(&bytes[..13]), Err(Malformed::TooShort));
        assert_eq!(header.emit(&mut out[..13]), None);
    }
}
