//! What a packet carries of its stages until it is sent: 64 bits, so that it crosses to another
//! worker with them.
//!
//! When it began, in units of 16 ns modulo 4.29 s, and four durations as 5 + 4 bits of floating
//! point: exact below 16 ns, then within 3 %. What rounding leaves falls to the stage that waits.

use super::STAGES_MAX;

const UNIT_BITS: u32 = 4;
const BEGAN_BITS: u32 = 28;
const MANTISSA_BITS: u32 = 4;
const FIELD_BITS: u32 = 5 + MANTISSA_BITS;
/// Stages that are known before the packet waits to be sent.
const FIELDS: usize = 4;
/// Which of them is the way to another worker.
const CROSS: usize = 3;

/// A packet's stages so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp(u64);

impl Stamp {
    /// Not timed.
    pub const NONE: Stamp = Stamp(0);

    /// A packet that was there at `began_ns` at the earliest, looked for at `seen_ns` and received
    /// at `received_ns`.
    pub fn received(began_ns: u64, seen_ns: u64, received_ns: u64) -> Stamp {
        let began = (began_ns >> UNIT_BITS) & ((1 << BEGAN_BITS) - 1);
        let unseen = pack(seen_ns.saturating_sub(began_ns));
        let receive = pack(received_ns.saturating_sub(seen_ns));
        Stamp(began << (64 - BEGAN_BITS) | unseen | receive << FIELD_BITS)
    }

    /// Whether it is timed.
    #[inline]
    pub fn is_timed(self) -> bool {
        self.0 != 0
    }

    /// Ends the stage of deciding.
    pub fn decided(&mut self, now_ns: u64) {
        self.end(2, now_ns);
    }

    /// Ends the way to another worker.
    pub fn crossed(&mut self, now_ns: u64) {
        self.end(CROSS, now_ns);
    }

    /// When it began, and all stages of a packet that was given to its port from `from_ns` to
    /// `until_ns`.
    pub fn sent(self, from_ns: u64, until_ns: u64) -> (u64, [u64; STAGES_MAX]) {
        let began_ns = self.began_ns(from_ns);
        let mut stages_ns = [0; STAGES_MAX];
        for (index, ns) in stages_ns[..FIELDS].iter_mut().enumerate() {
            *ns = self.field(index);
        }
        let known_ns: u64 = stages_ns.iter().sum();
        stages_ns[FIELDS] = (from_ns - began_ns).saturating_sub(known_ns);
        stages_ns[FIELDS + 1] = until_ns.saturating_sub(from_ns);
        (began_ns, stages_ns)
    }

    /// Gives `field` the time that no stage before has.
    fn end(&mut self, field: usize, now_ns: u64) {
        if !self.is_timed() {
            return;
        }
        let before: u64 = (0..field).map(|index| self.field(index)).sum();
        let ns = (now_ns - self.began_ns(now_ns)).saturating_sub(before);
        let shift = field as u32 * FIELD_BITS;
        self.0 &= !(((1 << FIELD_BITS) - 1) << shift);
        self.0 |= pack(ns) << shift;
    }

    /// The last time before `now_ns` with these bits.
    fn began_ns(self, now_ns: u64) -> u64 {
        let now = now_ns >> UNIT_BITS;
        let age = now.wrapping_sub(self.0 >> (64 - BEGAN_BITS)) & ((1 << BEGAN_BITS) - 1);
        now.saturating_sub(age) << UNIT_BITS
    }

    fn field(self, index: usize) -> u64 {
        let bits = self.0 >> (index as u32 * FIELD_BITS);
        let (exponent, mantissa) = ((bits >> MANTISSA_BITS) & 31, bits & 15);
        if exponent == 0 { mantissa } else { (16 + mantissa) << (exponent - 1) }
    }
}

/// Rounds to the nearest.
fn pack(ns: u64) -> u64 {
    let ns = ns.min(31 << 30);
    if ns < 16 {
        return ns;
    }
    let shift = ns.ilog2() - MANTISSA_BITS;
    let rounded = (ns + (1 << shift >> 1)) >> shift;
    // Rounding up to the next power of two carries into the exponent by itself.
    (u64::from(shift + 1) << MANTISSA_BITS) + rounded - 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use outboard_sim::Rng;

    #[test]
    fn durations_come_back_within_three_percent_and_the_sum_is_whole() {
        let mut rng = Rng::new(7);
        for _ in 0..100_000 {
            // Up to half a second each: together less than the clock of the stamp goes round.
            let lengths: [u64; 6] = std::array::from_fn(|_| {
                let bits = rng.below(29);
                rng.below(1 << bits)
            });
            let began_ns = 16 + rng.below(1 << 60);
            let mut at = began_ns;
            let mut next = |index: usize| {
                at += lengths[index];
                at
            };
            let (seen, received) = (next(0), next(1));
            let mut stamp = Stamp::received(began_ns, seen, received);
            stamp.decided(next(2));
            stamp.crossed(next(3));
            let (from, until) = (next(4), next(5));
            assert!(stamp.is_timed() || began_ns % (1 << 32) < 16);
            let (told_ns, stages_ns) = stamp.sent(from, until);
            assert!(began_ns - told_ns < 16, "{told_ns} for {began_ns}");
            let total: u64 = lengths.iter().sum();
            let slack = total / 16 + 20;
            assert!(stages_ns.iter().sum::<u64>().abs_diff(total) <= slack);
            for index in [0, 1, 5] {
                assert!(stages_ns[index].abs_diff(lengths[index]) <= lengths[index] / 32 + 1);
            }
            for index in [2, 3, 4] {
                assert!(stages_ns[index].abs_diff(lengths[index]) <= slack);
            }
        }
    }

    #[test]
    fn what_is_not_timed_stays_so() {
        let mut stamp = Stamp::NONE;
        stamp.decided(1_000_000);
        stamp.crossed(2_000_000);
        assert!(!stamp.is_timed());
    }

    #[test]
    fn the_longest_duration_saturates() {
        let stamp = Stamp::received(160, 160 + (1 << 40), 160 + (1 << 40));
        assert_eq!(stamp.field(0), 31 << 30);
    }
}
