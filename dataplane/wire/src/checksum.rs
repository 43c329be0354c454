//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Words are added as they lie in memory, four bytes at a time into 64 bits, and swapped once at
//! the end: the sum does not depend on the byte order (RFC 1071 section 2 (B)).

/// A running ones' complement sum over bytes that may come in pieces of any length.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checksum {
    /// In memory order; at most 2^32 four-byte words fit.
    sum: u64,
    /// An odd number of bytes was added: the next one is the second half of a word.
    odd: bool,
}

impl Checksum {
    /// The sum of nothing.
    #[inline(always)]
    pub const fn new() -> Checksum {
        Checksum { sum: 0, odd: false }
    }

    /// The sum of the TCP and UDP pseudo-header (RFC 768, RFC 9293 section 3.1): addresses as
    /// they lie in the IPv4 header, protocol and length of what the IP header carries.
    #[inline(always)]
    pub fn pseudo_header(source: [u8; 4], destination: [u8; 4], protocol: u8, len: u16) -> Self {
        let addresses =
            u64::from(u32::from_ne_bytes(source)) + u64::from(u32::from_ne_bytes(destination));
        let mut checksum = Checksum { sum: addresses, odd: false };
        checksum.add_word(u16::from(protocol));
        checksum.add_word(len);
        checksum
    }

    /// The same for IPv6 (RFC 8200 section 8.1).
    #[inline(always)]
    pub fn pseudo_header6(
        source: [u8; 16],
        destination: [u8; 16],
        protocol: u8,
        len: u32,
    ) -> Checksum {
        let mut checksum = Checksum { sum: sum(&source) + sum(&destination), odd: false };
        checksum.add_word(u16::from(protocol));
        checksum.add_word((len >> 16) as u16);
        checksum.add_word(len as u16);
        checksum
    }

    /// Adds the bytes that follow those added so far.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        let sum = sum(bytes);
        // A piece that starts in the middle of a word has its halves exchanged.
        self.sum += if self.odd { u64::from(fold(sum).swap_bytes()) } else { sum };
        self.odd ^= bytes.len() % 2 == 1;
    }

    /// Adds a number that is not in the bytes, as a pseudo-header's fields are.
    #[inline(always)]
    pub fn add_word(&mut self, word: u16) {
        self.sum += u64::from(word.to_be());
    }

    /// The sum in 16 bits, not complemented: 0xffff over data with a correct checksum in it.
    #[inline(always)]
    pub fn folded(self) -> u16 {
        u16::from_be(fold(self.sum))
    }

    /// The checksum: the complement of the sum.
    #[inline(always)]
    pub fn finish(self) -> u16 {
        !self.folded()
    }
}

/// The checksum after a 16-bit word that it covers changed from `old` to `new` (RFC 1624,
/// equation 3: HC' = ~(~HC + ~m + m')).
#[inline(always)]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// The sum of the words in `bytes` in memory order; an odd last byte counts as if a zero followed.
#[inline(always)]
fn sum(bytes: &[u8]) -> u64 {
    let mut sum = 0;
    // Blocks of a fixed size let the compiler add in vector registers.
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        for word in block.as_chunks::<4>().0 {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        sum += u64::from(u32::from_ne_bytes(*word));
    }
    let (halves, rest) = rest.as_chunks::<2>();
    for half in halves {
        sum += u64::from(u16::from_ne_bytes(*half));
    }
    for last in rest {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    sum
}

/// Adds the carries back until 16 bits are left.
#[inline(always)]
fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    /// RFC 1071 section 1 word for word.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum: u32 = 0;
        for word in bytes.chunks(2) {
            let low = word.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([word[0], low]));
            if sum > 0xffff {
                sum -= 0xffff;
            }
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let mut checksum = Checksum::new();
        checksum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(checksum.folded(), 0xddf2);
        assert_eq!(checksum.finish(), !0xddf2);
    }

    #[test]
    fn any_bytes_in_any_pieces_as_the_naive_sum() {
        bolero::check!().with_type::<(Vec<u8>, Vec<u8>)>().for_each(|(bytes, cuts)| {
            let mut checksum = Checksum::new();
            let mut rest = &bytes[..];
            for cut in cuts {
                let (piece, after) = rest.split_at(usize::from(*cut).min(rest.len()));
                checksum.add(piece);
                rest = after;
            }
            checksum.add(rest);
            assert_eq!(checksum.finish(), naive(bytes));
        });
    }

    #[test]
    fn long_runs_of_ones_keep_their_carries() {
        let bytes = [0xff; 70_001];
        for len in [0, 1, 2, 3, 31, 32, 33, 63, 64, 65, 1500, 65_535, 70_001] {
            let mut checksum = Checksum::new();
            checksum.add(&bytes[..len]);
            assert_eq!(checksum.finish(), naive(&bytes[..len]), "{len}");
        }
    }

    #[test]
    fn an_update_equals_a_new_sum() {
        bolero::check!().with_type::<([u8; 20], u16)>().for_each(|(bytes, new)| {
            let mut bytes = *bytes;
            let old = u16::from_be_bytes([bytes[8], bytes[9]]);
            bytes[10..12].fill(0);
            let before = naive(&bytes);
            bytes[8..10].copy_from_slice(&new.to_be_bytes());
            let after = naive(&bytes);
            let updated = update(before, old, *new);
            // Data of zeros only has two checksums that verify: 0xffff and, as an update finds it
            // (RFC 1624 section 3), 0x0000. No IPv4 header is all zeros.
            let zeros = bytes.iter().all(|byte| *byte == 0);
            assert!(updated == after || zeros, "{updated:04x} {after:04x}");
        });
    }

    #[test]
    fn the_example_of_rfc_1624() {
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn pseudo_header_as_written_out() {
        let bytes = [192, 0, 2, 1, 198, 51, 100, 7, 0, 17, 0x12, 0x34];
        let sum = Checksum::pseudo_header([192, 0, 2, 1], [198, 51, 100, 7], 17, 0x1234);
        assert_eq!(sum.finish(), naive(&bytes));
    }

    #[test]
    fn pseudo_header_of_ipv6_as_written_out() {
        bolero::check!().with_type::<([u8; 16], [u8; 16], u8, u32)>().for_each(
            |(source, destination, protocol, len)| {
                let sum = Checksum::pseudo_header6(*source, *destination, *protocol, *len);
                let last = [0, 0, 0, *protocol];
                let bytes = [&source[..], destination, &len.to_be_bytes(), &last].concat();
                assert_eq!(sum.finish(), naive(&bytes));
            },
        );
    }
}
