//! UDP headers (RFC 768), and the ports, which TCP has in the same place (RFC 9293 section 3.1).

use crate::Malformed;

/// Bytes of a UDP header.
pub const BYTES: usize = 8;
/// Where the checksum lies in a UDP header.
pub const CHECKSUM_AT: usize = 6;
/// Where the checksum lies in a TCP header.
pub const TCP_CHECKSUM_AT: usize = 16;

/// One UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Bytes of header and payload.
    pub len: u16,
    /// The checksum as it stands; 0 when the sender made none.
    pub checksum: u16,
}

impl Udp {
    /// Reads the header at the front of `bytes`, in an IP payload of `available` bytes.
    #[inline(always)]
    pub fn parse(bytes: &[u8], available: usize) -> Result<Udp, Malformed> {
        let h = bytes.first_chunk::<BYTES>().ok_or(Malformed::TooShort)?;
        let len = u16::from_be_bytes([h[4], h[5]]);
        if usize::from(len) < BYTES || usize::from(len) > available {
            return Err(Malformed::UdpLength);
        }
        Ok(Udp {
            source: u16::from_be_bytes([h[0], h[1]]),
            destination: u16::from_be_bytes([h[2], h[3]]),
            len,
            checksum: u16::from_be_bytes([h[6], h[7]]),
        })
    }

    /// Writes the header as it is to the front of `out`; `None`, and nothing written, when it is
    /// too short.
    pub fn emit(&self, out: &mut [u8]) -> Option<()> {
        let h = out.first_chunk_mut::<BYTES>()?;
        h[..2].copy_from_slice(&self.source.to_be_bytes());
        h[2..4].copy_from_slice(&self.destination.to_be_bytes());
        h[4..6].copy_from_slice(&self.len.to_be_bytes());
        h[6..].copy_from_slice(&self.checksum.to_be_bytes());
        Some(())
    }
}

/// Source and destination port at the front of a UDP or TCP header.
#[inline(always)]
pub fn ports(header: &[u8]) -> Option<(u16, u16)> {
    let h = header.first_chunk::<4>()?;
    Some((u16::from_be_bytes([h[0], h[1]]), u16::from_be_bytes([h[2], h[3]])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_the_layout() {
        let bytes = [0xc0, 0x01, 0x12, 0xb5, 0x00, 0x0a, 0xbe, 0xef];
        let header = Udp::parse(&bytes, 10).unwrap();
        let want = Udp { source: 0xc001, destination: 4789, len: 10, checksum: 0xbeef };
        assert_eq!(header, want);
        assert_eq!(ports(&bytes), Some((0xc001, 4789)));
        assert_eq!(ports(&bytes[..3]), None);
        let mut out = [0; 8];
        header.emit(&mut out).unwrap();
        assert_eq!(out, bytes);
        assert_eq!(header.emit(&mut out[..7]), None);
    }

    #[test]
    fn length_limits() {
        let with = |len: u8, available| Udp::parse(&[0, 1, 0, 2, 0, len, 0, 0], available);
        assert!(with(8, 8).is_ok() && with(8, 9).is_ok() && with(10, 10).is_ok());
        assert_eq!(with(7, 10), Err(Malformed::UdpLength));
        assert_eq!(with(11, 10), Err(Malformed::UdpLength));
        assert_eq!(Udp::parse(&[0; 7], 10), Err(Malformed::TooShort));
    }
}
