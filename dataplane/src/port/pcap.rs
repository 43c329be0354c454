//! Writes packets as a pcap file with nanosecond time stamps, readable by tcpdump and tshark.
//! Format: pcap-savefile(5), magic 0xa1b23c4d, link type 1 (Ethernet), little-endian.

use std::io::{Result, Write};

const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const LINK_TYPE_ETHERNET: u32 = 1;
/// The most bytes of one packet that are written: what tcpdump uses by default.
const SNAP_BYTES: u32 = 262_144;

/// A capture that is being written.
#[derive(Debug)]
pub struct Pcap<W> {
    out: W,
}

impl<W: Write> Pcap<W> {
    /// Writes the file header.
    pub fn new(mut out: W) -> Result<Pcap<W>> {
        let (major, minor) = (2u16, 4u16);
        out.write_all(&MAGIC_NANOSECONDS.to_le_bytes())?;
        out.write_all(&major.to_le_bytes())?;
        out.write_all(&minor.to_le_bytes())?;
        // Time zone and accuracy, both always zero.
        out.write_all(&[0; 8])?;
        out.write_all(&SNAP_BYTES.to_le_bytes())?;
        out.write_all(&LINK_TYPE_ETHERNET.to_le_bytes())?;
        Ok(Pcap { out })
    }

    /// Writes one packet, given as its parts in order.
    pub fn record<'a>(
        &mut self,
        time_ns: u64,
        parts: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Result<()> {
        let bytes: usize = parts.clone().map(<[u8]>::len).sum();
        let mut left = bytes.min(SNAP_BYTES as usize);
        let seconds = (time_ns / 1_000_000_000) as u32;
        let nanoseconds = (time_ns % 1_000_000_000) as u32;
        for word in [seconds, nanoseconds, left as u32, bytes as u32] {
            self.out.write_all(&word.to_le_bytes())?;
        }
        for part in parts {
            let piece = &part[..part.len().min(left)];
            self.out.write_all(piece)?;
            left -= piece.len();
        }
        Ok(())
    }

    /// Writes out what is buffered and returns the writer.
    pub fn finish(mut self) -> Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_and_record_stand_as_specified() {
        let mut pcap = Pcap::new(Vec::new()).unwrap();
        pcap.record(3_000_000_007, [&[1u8, 2][..], &[3]].into_iter()).unwrap();
        let bytes = pcap.finish().unwrap();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(bytes[..8], [0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0]);
        assert_eq!((word(8), word(12), word(16), word(20)), (0, 0, SNAP_BYTES, 1));
        assert_eq!((word(24), word(28), word(32), word(36)), (3, 7, 3, 3));
        assert_eq!(bytes[40..], [1, 2, 3]);
    }

    #[test]
    fn a_packet_is_cut_at_the_limit_and_not_before() {
        let whole = vec![5u8; SNAP_BYTES as usize];
        let written = |parts: &[&[u8]]| {
            let mut pcap = Pcap::new(Vec::new()).unwrap();
            pcap.record(0, parts.iter().copied()).unwrap();
            let bytes = pcap.finish().unwrap();
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            (word(32), word(36), bytes.len() - 40)
        };
        let limit = SNAP_BYTES as usize;
        assert_eq!(written(&[&whole]), (SNAP_BYTES, SNAP_BYTES, limit));
        assert_eq!(written(&[&whole, &[1]]), (SNAP_BYTES, SNAP_BYTES + 1, limit));
    }
}
