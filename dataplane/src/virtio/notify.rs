//! When one side of a virtqueue signals the other (virtio 1.2, sections 2.7.7 and 2.7.10).
//!
//! Each side writes into its own ring whether it wants a signal, and then looks at the other's
//! index once more; the other writes its index, and then looks at that wish. With a sequentially
//! consistent fence in between on both sides at least one of them sees the other.

use crate::sync::{Ordering, fence};

/// The header of a ring: flags and index.
const HEADER_BYTES: usize = 4;
/// VIRTQ_USED_F_NO_NOTIFY and VIRTQ_AVAIL_F_NO_INTERRUPT.
const NO_SIGNAL: u16 = 1;

/// A ring's words.
pub trait Words {
    /// Loads the word at `offset` bytes.
    fn load_u16(&self, offset: usize, order: Ordering) -> u16;
    /// Stores the word at `offset` bytes.
    fn store_u16(&self, offset: usize, value: u16, order: Ordering);
}

/// Where one side says whether it wants to be signalled: in the ring that it writes.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Offset of the event index; without VIRTIO_F_EVENT_IDX the flags say it.
    event: Option<usize>,
}

impl Wish {
    /// The device's, about kicks: in the used ring.
    pub fn of_device(size: u16, event_idx: bool) -> Wish {
        Wish { event: event_idx.then_some(HEADER_BYTES + usize::from(size) * 8) }
    }

    /// The driver's, about calls: in the available ring.
    pub fn of_driver(size: u16, event_idx: bool) -> Wish {
        Wish { event: event_idx.then_some(HEADER_BYTES + usize::from(size) * 2) }
    }

    /// Asks for a signal when the other's index moves past `next`. Whoever asks looks at that
    /// index once more before it relies on the signal.
    #[inline]
    pub fn ask(self, own_ring: &impl Words, next: u16) {
        match self.event {
            Some(event) => own_ring.store_u16(event, next, Ordering::Relaxed),
            None => own_ring.store_u16(0, 0, Ordering::Relaxed),
        }
        fence(Ordering::SeqCst);
    }

    /// Signals are not needed for now.
    #[inline]
    pub fn decline(self, own_ring: &impl Words, next: u16) {
        match self.event {
            // An event behind us is passed only once in 65536 entries.
            Some(event) => own_ring.store_u16(event, next.wrapping_sub(1), Ordering::Relaxed),
            None => own_ring.store_u16(0, NO_SIGNAL, Ordering::Relaxed),
        }
    }

    /// After publishing the index `now`: whether the other side wants a signal. `before`: the
    /// index when this was last asked, `None` when it never was.
    #[inline]
    pub fn is_due(self, others_ring: &impl Words, before: Option<u16>, now: u16) -> bool {
        fence(Ordering::SeqCst);
        match self.event {
            Some(event) => {
                let event = others_ring.load_u16(event, Ordering::Relaxed);
                before.is_none_or(|before| need_event(event, now, before))
            }
            None => others_ring.load_u16(0, Ordering::Relaxed) & NO_SIGNAL == 0,
        }
    }
}

/// Whether moving an index from `old` to `new` passes `event` (2.7.10, vring_need_event).
#[inline(always)]
pub fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
