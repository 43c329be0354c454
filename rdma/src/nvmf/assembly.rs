//! Collects a PDU's header and its digest from a stream that may be cut anywhere.

use super::Fault;
use super::pdu::{self, COMMON_BYTES, Common, DIGEST_BYTES, Digests, Header, MAX_HEADER_BYTES};
use super::state::{LoadError, ensure, state_struct};

/// The header that is arriving, or the last one that did.
#[derive(Clone, Debug)]
pub(crate) struct Assembly {
    bytes: [u8; MAX_HEADER_BYTES],
    have: u8,
    /// Bytes of the common header, then of the header and its digest.
    need: u8,
    /// Bytes of the digest among them.
    digest: u8,
    /// What the connection agreed upon.
    pub digests: Digests,
}

impl Assembly {
    pub fn new() -> Assembly {
        Assembly {
            bytes: [0; MAX_HEADER_BYTES],
            have: 0,
            need: COMMON_BYTES as u8,
            digest: 0,
            digests: Digests::NONE,
        }
    }

    /// Takes bytes from the front of `input` and returns how many, and the header once it is
    /// whole. What is wrong is found as early as the common header is there.
    pub fn take(&mut self, input: &[u8]) -> (usize, Result<Option<Header>, Fault>) {
        let mut used = 0;
        loop {
            if self.have == self.need && self.need > COMMON_BYTES as u8 {
                // The last header ended here: a new one begins.
                (self.have, self.need, self.digest) = (0, COMMON_BYTES as u8, 0);
            }
            let count = usize::from(self.need - self.have).min(input.len() - used);
            let have = usize::from(self.have);
            self.bytes[have..have + count].copy_from_slice(&input[used..used + count]);
            self.have += count as u8;
            used += count;
            if self.have < self.need {
                return (used, Ok(None));
            }
            if self.need > COMMON_BYTES as u8 {
                return (used, self.whole().map(Some));
            }
            match self.common() {
                Ok(common) => {
                    self.digest = common.header_digest_bytes() as u8;
                    self.need = common.kind.header_bytes() as u8 + self.digest;
                }
                Err(fault) => return (used, Err(fault)),
            }
        }
    }

    fn common(&self) -> Result<Common, Fault> {
        let mut bytes = [0; COMMON_BYTES];
        bytes.copy_from_slice(&self.bytes[..COMMON_BYTES]);
        let common = Common::parse(&bytes)?;
        if common.agrees_with(self.digests) { Ok(common) } else { Err(Fault::Digest) }
    }

    fn whole(&self) -> Result<Header, Fault> {
        let all = &self.bytes[..usize::from(self.need)];
        let (header, received) = all.split_at(all.len() - usize::from(self.digest));
        if self.digest > 0 && received != pdu::digest(header) {
            return Err(Fault::HeaderDigest);
        }
        Header::parse(header)
    }

    /// What a loaded one must be.
    pub fn check(&self) -> Result<(), LoadError> {
        let is_digest = self.digest == 0 || usize::from(self.digest) == DIGEST_BYTES;
        let least = COMMON_BYTES as u8 + self.digest.min(DIGEST_BYTES as u8);
        let is_inside = self.have <= self.need && usize::from(self.need) <= MAX_HEADER_BYTES;
        ensure(is_digest && self.need >= least && is_inside, "header")
    }

    /// Whether a part of a header has come and the rest has not.
    pub fn is_partial(&self) -> bool {
        self.have > 0 && self.have < self.need
    }

    /// The bytes of the header so far, for a TermReq.
    pub fn so_far(&self) -> &[u8] {
        &self.bytes[..usize::from(self.have)]
    }
}

state_struct!(Assembly { bytes, have, need, digest, digests });

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvmf::capsule::Sqe;
    use crate::nvmf::pdu::Format;

    #[test]
    fn a_header_arrives_in_any_cut() {
        let mut stream = Vec::new();
        let headers: Vec<_> =
            (0..5).map(|cid| Header::command(Sqe::new(2, cid, 1), 0, Format::PLAIN)).collect();
        for header in &headers {
            let mut out = [0; MAX_HEADER_BYTES];
            let len = header.emit(&mut out);
            stream.extend_from_slice(&out[..len]);
        }
        for cut in 1..100 {
            let mut assembly = Assembly::new();
            let mut seen = Vec::new();
            for mut piece in stream.chunks(cut) {
                while !piece.is_empty() {
                    let (used, header) = assembly.take(piece);
                    piece = &piece[used..];
                    let header = header.unwrap();
                    assert_eq!(assembly.is_partial(), header.is_none());
                    seen.extend(header);
                }
            }
            assert_eq!(seen, headers);
        }
    }

    #[test]
    fn a_bad_type_is_found_with_the_eighth_byte() {
        let mut assembly = Assembly::new();
        assert_eq!(assembly.take(&[0x55; 7]), (7, Ok(None)));
        assert_eq!(assembly.take(&[0x55; 9]), (1, Err(Fault::PduType)));
        assert_eq!(assembly.so_far(), [0x55; 8]);
    }
}
