//! The digest of data that is arriving (TCP 3.3.1.2): of any bytes in any cut, then compared with
//! the four bytes that follow.

use super::pdu::DIGEST_BYTES;

/// The data of one PDU, and what has come of its digest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Check {
    pub crc: u32,
    pub received: [u8; DIGEST_BYTES],
    pub have: u8,
}

impl Check {
    /// Further data.
    pub fn data(&mut self, bytes: &[u8]) {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
    }

    /// Takes bytes of the digest and returns how many; once it is whole, whether it matches, and
    /// begins anew.
    pub fn take(&mut self, bytes: &[u8]) -> (usize, Option<bool>) {
        let have = usize::from(self.have);
        let used = bytes.len().min(DIGEST_BYTES - have);
        self.received[have..have + used].copy_from_slice(&bytes[..used]);
        self.have += used as u8;
        if usize::from(self.have) < DIGEST_BYTES {
            return (used, None);
        }
        let matches = self.received == self.crc.to_le_bytes();
        *self = Check::default();
        (used, Some(matches))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvmf::pdu;

    #[test]
    fn it_matches_in_any_cut_and_never_when_a_bit_differs() {
        let data: Vec<u8> = (0..40).collect();
        let good = pdu::digest(&data);
        for (cut, bit) in (1..45).flat_map(|cut| (0..=32).map(move |bit| (cut, bit))) {
            let mut digest = u32::from_le_bytes(good);
            digest ^= if bit < 32 { 1 << bit } else { 0 };
            let mut check = Check::default();
            data.chunks(cut).for_each(|part| check.data(part));
            let mut outcome = None;
            for part in digest.to_le_bytes().chunks(cut) {
                assert_eq!(outcome, None);
                let (used, matches) = check.take(part);
                assert_eq!(used, part.len());
                outcome = matches;
            }
            assert_eq!(outcome, Some(bit == 32));
            assert_eq!(check, Check::default());
        }
    }
}
