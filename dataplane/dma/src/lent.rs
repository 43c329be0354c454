//! Which frames one AF_XDP socket has lent to the kernel: one bit per frame of the region.
//!
//! The bit is what makes taking a frame back sound (it was lent, and is taken back once), and it
//! finds every frame again when the socket is closed, wherever the kernel kept it: in a ring, or in
//! the pool's own lists, which no ring shows.

use crate::{FRAME_BYTES, Frame, FreeList, Region};

#[derive(Debug)]
pub(crate) struct Lent {
    region: &'static Region,
    words: Box<[u64]>,
    count: usize,
}

impl Lent {
    pub fn new(region: &'static Region) -> Lent {
        let words = (region.frames() as usize).div_ceil(64);
        Lent { region, words: vec![0; words].into_boxed_slice(), count: 0 }
    }

    /// Frames lent now.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Records the frame as lent; its offset in the region.
    #[inline(always)]
    pub fn lend(&mut self, frame: Frame) -> u64 {
        let offset = self.region.release(frame);
        let index = offset as usize / FRAME_BYTES;
        self.words[index / 64] |= 1 << (index % 64);
        self.count += 1;
        offset
    }

    /// Takes the frame back that contains `offset`.
    ///
    /// # Panics
    /// When it is not lent: the kernel returned what it was not given.
    #[inline(always)]
    pub fn take_back(&mut self, offset: u64) -> Frame {
        let index = offset as usize / FRAME_BYTES;
        let bit = 1 << (index % 64);
        let word = self.words.get_mut(index / 64).expect("an offset outside the region");
        assert!(*word & bit != 0, "the kernel returned a frame that it was not given");
        *word &= !bit;
        self.count -= 1;
        // SAFETY: lent through `lend` (its bit was set) and taken back once (it is cleared now).
        unsafe { self.region.adopt(offset) }.expect("an offset outside the region")
    }

    /// Takes every lent frame back. The kernel must be done with all of them.
    pub fn take_all(&mut self, free: &mut FreeList) {
        for at in 0..self.words.len() {
            while self.words[at] != 0 {
                let index = at * 64 + self.words[at].trailing_zeros() as usize;
                free.give(self.take_back((index * FRAME_BYTES) as u64));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lent_frame_comes_back_once() {
        let region = Region::new(512).unwrap();
        let mut free = region.carve(512).unwrap();
        let mut lent = Lent::new(region);
        let offsets: Vec<u64> =
            std::iter::from_fn(|| free.take()).map(|frame| lent.lend(frame)).collect();
        assert_eq!(lent.count(), 512);
        for offset in offsets.iter().step_by(2) {
            free.give(lent.take_back(offset + 256));
        }
        assert_eq!((lent.count(), free.len()), (256, 256));
        lent.take_all(&mut free);
        assert_eq!((lent.count(), free.len()), (0, 512));
    }

    #[test]
    #[should_panic(expected = "not given")]
    fn taking_back_twice_is_refused() {
        let region = Region::new(512).unwrap();
        let mut free = region.carve(1).unwrap();
        let mut lent = Lent::new(region);
        let offset = lent.lend(free.take().unwrap());
        let _first = lent.take_back(offset);
        let _second = lent.take_back(offset);
    }
}
