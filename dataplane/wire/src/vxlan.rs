//! VXLAN headers (RFC 7348 section 5).

use crate::Malformed;

/// Bytes of the header.
pub const BYTES: usize = 8;
/// The UDP destination port assigned by IANA.
pub const PORT: u16 = 4789;
/// The flag that says that the VNI is valid.
const VALID_VNI: u8 = 0x08;

/// One header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
}

impl Vxlan {
    /// Reads the header at the front of `bytes`. Reserved bits are ignored, as section 5 asks.
    #[inline(always)]
    pub fn parse(bytes: &[u8]) -> Result<Vxlan, Malformed> {
        let h = bytes.first_chunk::<BYTES>().ok_or(Malformed::TooShort)?;
        if h[0] & VALID_VNI == 0 {
            return Err(Malformed::Vxlan);
        }
        Ok(Vxlan { vni: u32::from_be_bytes([0, h[4], h[5], h[6]]) })
    }

    /// Writes the header to the front of `out`; `None`, and nothing written, when it is too short.
    pub fn emit(&self, out: &mut [u8]) -> Option<()> {
        let h = out.first_chunk_mut::<BYTES>()?;
        let [_, a, b, c] = self.vni.to_be_bytes();
        *h = [VALID_VNI, 0, 0, 0, a, b, c, 0];
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_the_layout() {
        let bytes = [0x08, 0, 0, 0, 0x12, 0x34, 0x56, 0];
        assert_eq!(Vxlan::parse(&bytes), Ok(Vxlan { vni: 0x12_3456 }));
        let mut out = [0xee; 8];
        Vxlan { vni: 0x12_3456 }.emit(&mut out).unwrap();
        assert_eq!(out, bytes);
        assert_eq!(Vxlan { vni: 1 }.emit(&mut out[..7]), None);
    }

    #[test]
    fn only_the_flag_counts() {
        let reserved = [0xff, 0xff, 0xff, 0xff, 0, 0, 7, 0xff];
        assert_eq!(Vxlan::parse(&reserved), Ok(Vxlan { vni: 7 }));
        assert_eq!(Vxlan::parse(&[0xf7, 0, 0, 0, 0, 0, 7, 0]), Err(Malformed::Vxlan));
        assert_eq!(Vxlan::parse(&reserved[..7]), Err(Malformed::TooShort));
    }
}
