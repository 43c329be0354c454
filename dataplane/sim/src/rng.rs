//! Seeded pseudo-random numbers: xoshiro256** 1.0, its state filled by SplitMix64.
//!
//! Source: D. Blackman and S. Vigna, "Scrambled Linear Pseudorandom Number Generators", ACM TOMS
//! 47 (2021), and their reference code (prng.di.unimi.it), which is in the public domain. Not for
//! secrets.

/// Probabilities are given in parts of this.
pub const MILLION: u32 = 1_000_000;

/// A stream of numbers that follows from its seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Rng {
        let mut mix = seed;
        Rng { state: std::array::from_fn(|_| split_mix(&mut mix)) }
    }

    /// Another stream that follows from this one; the two do not move each other.
    pub fn fork(&mut self) -> Rng {
        Rng::new(self.next_u64())
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let [s0, s1, s2, s3] = &mut self.state;
        let result = s1.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = *s1 << 17;
        *s2 ^= *s0;
        *s3 ^= *s1;
        *s1 ^= *s2;
        *s0 ^= *s3;
        *s2 ^= t;
        *s3 = s3.rotate_left(45);
        result
    }

    /// A number in `[0, end)`; by multiplication, whose bias of at most `end` / 2^64 does not
    /// matter to a test.
    ///
    /// # Panics
    /// When `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        assert!(end > 0, "no number is below zero");
        ((u128::from(self.next_u64()) * u128::from(end)) >> 64) as u64
    }

    /// A number in `[low, high]`.
    ///
    /// # Panics
    /// When `low > high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high);
        match (high - low).checked_add(1) {
            Some(count) => low + self.below(count),
            None => self.next_u64(),
        }
    }

    /// An index into something of length `len`.
    ///
    /// # Panics
    /// When `len` is 0.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True with a probability of `per_million` in a million.
    pub fn chance(&mut self, per_million: u32) -> bool {
        self.below(u64::from(MILLION)) < u64::from(per_million)
    }

    /// Fills `out` with random bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        for piece in out.chunks_mut(8) {
            piece.copy_from_slice(&self.next_u64().to_le_bytes()[..piece.len()]);
        }
    }
}

/// SplitMix64, as the reference code gives it.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_mix_gives_the_published_numbers() {
        // Seed 1234567: the first five outputs of the reference code.
        let mut state = 1_234_567;
        let expected: [u64; 5] = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(expected.map(|_| split_mix(&mut state)), expected);
    }

    #[test]
    fn xoshiro_gives_the_published_numbers() {
        // State 1, 2, 3, 4: the first outputs of the reference code.
        let mut rng = Rng { state: [1, 2, 3, 4] };
        let expected: [u64; 5] =
            [11_520, 0, 1_509_978_240, 1_215_971_899_390_074_240, 1_216_172_134_540_287_360];
        assert_eq!(expected.map(|_| rng.next_u64()), expected);
    }

    #[test]
    fn ranges_are_met_and_not_left() {
        let mut rng = Rng::new(3);
        let mut seen = [0u32; 7];
        for _ in 0..7_000 {
            seen[rng.between(10, 16) as usize - 10] += 1;
        }
        assert!(seen.iter().all(|count| (800..1_200).contains(count)), "{seen:?}");
        assert_eq!(rng.between(5, 5), 5);
        rng.between(0, u64::MAX);
        assert!((0..1_000).all(|_| !rng.chance(0) && rng.chance(MILLION)));
        let hits = (0..100_000).filter(|_| rng.chance(10_000)).count();
        assert!((800..1_200).contains(&hits), "{hits}");
    }

    #[test]
    fn the_same_seed_gives_the_same_stream_and_another_does_not() {
        let bytes = |seed| {
            let mut out = [0; 100];
            Rng::new(seed).fill(&mut out);
            out
        };
        assert_eq!(bytes(1), bytes(1));
        assert_ne!(bytes(1), bytes(2));
        let (mut one, mut two) = (Rng::new(1), Rng::new(1));
        one.fork().next_u64();
        two.fork();
        assert_eq!(one.next_u64(), two.next_u64());
    }
}
