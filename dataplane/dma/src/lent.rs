//! Which frames one port has lent to its device (an AF_XDP socket to the kernel, a queue of DPDK's
//! to its driver): one bit per frame of the region.
//!
//! The bit is what makes taking a frame back sound (it was lent, and is taken back once), and it
//! finds every frame again when the socket is closed, wherever the kernel kept it: in a ring, or in
//! the pool's own lists, which no ring shows.

use crate::{FRAME_BYTES, Frame, FreeList, Region};

/// The frames that one device has.
#[derive(Debug)]
pub struct Lent {
    region: &'static Region,
    words: Box<[u64]>,
    count: usize,
}

impl Lent {
    /// None yet.
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
    /// When it is not lent: the device returned what it was not given.
    ///
    /// # Safety
    /// The device that this frame was lent to has returned it, and does not touch it any more.
    #[inline(always)]
    pub unsafe fn take_back(&mut self, offset: u64) -> Frame {
        let index = offset as usize / FRAME_BYTES;
        let bit = 1 << (index % 64);
        let word = self.words.get_mut(index / 64).expect("an offset outside the region");
        assert!(*word & bit != 0, "the device returned a frame that it was not given");
        *word &= !bit;
        self.count -= 1;
        // SAFETY: lent through `lend` (its bit was set) and taken back once (it is cleared now);
        // the device is done with it by the caller's promise.
        unsafe { self.region.adopt(offset) }.expect("an offset outside the region")
    }

    /// Takes every lent frame back.
    ///
    /// # Safety
    /// The device touches none of them any more.
    pub unsafe fn take_all(&mut self, free: &mut FreeList) {
        for at in 0..self.words.len() {
            while self.words[at] != 0 {
                let index = at * 64 + self.words[at].trailing_zeros() as usize;
                // SAFETY: the caller's promise, for each.
                free.give(unsafe { self.take_back((index * FRAME_BYTES) as u64) });
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
            // SAFETY: there is no device that could touch it.
            free.give(unsafe { lent.take_back(offset + 256) });
        }
        assert_eq!((lent.count(), free.len()), (256, 256));
        // SAFETY: as above.
        unsafe { lent.take_all(&mut free) };
        assert_eq!((lent.count(), free.len()), (0, 512));
    }

    #[test]
    #[should_panic(expected = "not given")]
    fn taking_back_twice_is_refused() {
        let region = Region::new(512).unwrap();
        let mut free = region.carve(1).unwrap();
        let mut lent = Lent::new(region);
        let offset = lent.lend(free.take().unwrap());
        // SAFETY: there is no device that could touch it.
        let _first = unsafe { lent.take_back(offset) };
        // SAFETY: as above; the frame does not come back twice.
        let _second = unsafe { lent.take_back(offset) };
    }
}
