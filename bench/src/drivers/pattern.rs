//! Block content that proves where it belongs and when it was written.
//!
//! Every 512-byte sector starts with its byte offset on the volume and the generation of the
//! write, 8 bytes each, little-endian; the rest are 62 words derived from both. The quick check
//! looks at the front of the first and the end of the last sector of every 4 KiB; the full check
//! looks at every byte.

/// Unit of the pattern: the smallest block of any volume.
pub const SECTOR_BYTES: usize = 512;
/// What one quick look covers.
const SPAN_BYTES: usize = 4096;
const WORDS: usize = SECTOR_BYTES / 8;
const SEED: u64 = 0x6f75_7462_6f61_7264;

/// Fills `out`, which lies at `offset_bytes` of the volume, for `generation`.
pub fn fill(out: &mut [u8], offset_bytes: u64, generation: u32) {
    for (index, sector) in out.chunks_exact_mut(SECTOR_BYTES).enumerate() {
        let sector_offset = offset_bytes + (index * SECTOR_BYTES) as u64;
        for (word, bytes) in sector.chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&expected(sector_offset, generation, word).to_le_bytes());
        }
    }
}

/// Whether every byte of `data` is as [`fill`] makes it.
pub fn is_right(data: &[u8], offset_bytes: u64, generation: u32) -> bool {
    data.chunks_exact(SECTOR_BYTES).enumerate().all(|(index, sector)| {
        let sector_offset = offset_bytes + (index * SECTOR_BYTES) as u64;
        sector.chunks_exact(8).enumerate().all(|(word, bytes)| {
            bytes == expected(sector_offset, generation, word).to_le_bytes().as_slice()
        })
    })
}

/// The quick check of `bytes` bytes that `load(at, out)` copies from.
pub fn is_plausible(
    bytes: usize,
    offset_bytes: u64,
    generation: u32,
    mut load: impl FnMut(usize, &mut [u8]),
) -> bool {
    let mut from = 0;
    while from < bytes {
        let end = (from + SPAN_BYTES).min(bytes);
        let (mut front, mut back) = ([0; 16], [0; 8]);
        load(from, &mut front);
        load(end - 8, &mut back);
        let first = offset_bytes + from as u64;
        let last = offset_bytes + (end - SECTOR_BYTES) as u64;
        let right = front[..8] == expected(first, generation, 0).to_le_bytes()
            && front[8..] == expected(first, generation, 1).to_le_bytes()
            && back == expected(last, generation, WORDS - 1).to_le_bytes();
        if !right {
            return false;
        }
        from = end;
    }
    true
}

#[inline(always)]
fn expected(sector_offset: u64, generation: u32, word: usize) -> u64 {
    match word {
        0 => sector_offset,
        1 => u64::from(generation),
        _ => {
            let base = (sector_offset ^ SEED).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let base = base ^ u64::from(generation).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            base.wrapping_add((word as u64).wrapping_mul(0x94d0_49bb_1331_11eb))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quick(data: &[u8], offset_bytes: u64, generation: u32) -> bool {
        is_plausible(data.len(), offset_bytes, generation, |at, out| {
            out.copy_from_slice(&data[at..at + out.len()]);
        })
    }

    #[test]
    fn right_content_passes_both_checks() {
        for sectors in [1, 7, 8, 9, 16, 256] {
            let mut data = vec![0; sectors * SECTOR_BYTES];
            fill(&mut data, 1 << 40, 77);
            assert!(is_right(&data, 1 << 40, 77) && quick(&data, 1 << 40, 77), "{sectors}");
        }
    }

    #[test]
    fn a_misplaced_or_stale_block_fails_both_checks() {
        let mut data = vec![0; 4096];
        fill(&mut data, 8192, 3);
        for (offset, generation) in [(0, 3), (8704, 3), (8192, 2), (8192, 4)] {
            assert!(!is_right(&data, offset, generation) && !quick(&data, offset, generation));
        }
        assert!(!quick(&[0; 4096], 0, 1));
    }

    #[test]
    fn one_flipped_bit_anywhere_fails_the_full_check() {
        let mut data = vec![0; 1024];
        fill(&mut data, 512, 9);
        for at in 0..data.len() {
            data[at] ^= 0x10;
            assert!(!is_right(&data, 512, 9), "byte {at}");
            data[at] ^= 0x10;
        }
    }

    #[test]
    fn half_a_block_fails_the_quick_check() {
        // A torn transfer: the second half is another block's.
        let (mut data, mut other) = (vec![0; 4096], vec![0; 4096]);
        fill(&mut data, 0, 1);
        fill(&mut other, 4096, 1);
        data[2048..].copy_from_slice(&other[2048..]);
        assert!(!quick(&data, 0, 1));
    }
}
