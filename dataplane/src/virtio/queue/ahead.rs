//! Looking ahead: asks the processor for what the chains behind the next one are made of, so that
//! it is there when their turn comes. Each step from ring to data is a cache line that another
//! core has written; taken one after the other, those waits are most of what a chain costs.
//!
//! Hints only. What is read here is read again, and checked, when the chain is taken.

use super::{
    DESC_BYTES, DESC_INDIRECT, DESC_NEXT, Descriptor, DescriptorChain, ENTRIES, Queue, Segment,
};
use std::sync::atomic::Ordering;

/// How far ahead the descriptors, the first buffer and its content are asked for.
const DESCRIPTORS_AHEAD: u16 = 12;
const TABLE_AHEAD: u16 = 10;
const HEADER_AHEAD: u16 = 7;
const CONTENT_AHEAD: u16 = 3;
/// Length of the front of the first buffer that [`Upcoming`] tells.
pub const FRONT_BYTES: usize = 16;

/// How far each step has come, as available indices, and the chain that was taken last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ahead {
    recent: u16,
    /// Its first buffer: only ever prefetched, whether it is still there or not.
    recent_front: Option<Segment>,
    descriptors: u16,
    tables: u16,
    headers: u16,
    contents: u16,
}

/// What a chain behind the next one seems to begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upcoming {
    /// The front of its first buffer.
    pub front: [u8; FRONT_BYTES],
    /// Length of its second buffer, 0 when there is none.
    pub bytes: u32,
}

impl Queue {
    /// Looks ahead a little further; to be called before each [`pop`](Queue::pop). What has come
    /// close enough to be read is given to `each`, once per chain.
    #[inline]
    pub fn look_ahead(&mut self, mut each: impl FnMut(Upcoming)) {
        if self.seen_available.wrapping_sub(self.next_available) < 2 {
            return;
        }
        let mut ahead = self.ahead;
        self.advance(&mut ahead.descriptors, DESCRIPTORS_AHEAD, |queue, head| {
            queue.prefetch_descriptors(head);
        });
        self.advance(&mut ahead.tables, TABLE_AHEAD, |queue, head| queue.prefetch_table(head));
        self.advance(&mut ahead.headers, HEADER_AHEAD, |queue, head| queue.prefetch_header(head));
        self.advance(&mut ahead.contents, CONTENT_AHEAD, |queue, head| {
            queue.upcoming(head).into_iter().for_each(&mut each);
        });
        self.ahead = ahead;
    }

    /// After an idle queue has become busy: a driver that has one request in flight uses the same
    /// descriptors and header again (free lists are stacks), so they are asked for at once.
    #[inline(always)]
    pub(super) fn guess(&self) {
        let entry = ENTRIES + usize::from(self.next_available & (self.size - 1)) * 2;
        self.available.prefetch(entry);
        self.prefetch_descriptors(self.ahead.recent);
        if let Some(front) = &self.ahead.recent_front {
            front.prefetch_to_write();
        }
    }

    /// A chain was taken: what [`guess`](Self::guess) guesses next time.
    #[inline(always)]
    pub(super) fn took(&mut self, head: u16, chain: &DescriptorChain) {
        self.ahead.recent = head;
        self.ahead.recent_front = chain.segments.first().copied();
    }

    /// Takes a step for every chain that `cursor` has not passed and that is less than `distance`
    /// behind the next one.
    #[inline(always)]
    fn advance(&self, cursor: &mut u16, distance: u16, mut step: impl FnMut(&Queue, u16)) {
        // The next chain is taken at once: for it, every step would be too late.
        let first = self.next_available.wrapping_add(1);
        let behind = self.seen_available.wrapping_sub(first);
        let end = first.wrapping_add(behind.min(distance));
        // A cursor that was overtaken goes on there.
        if cursor.wrapping_sub(first) > behind {
            *cursor = first;
        }
        while (end.wrapping_sub(*cursor) as i16) > 0 {
            let entry = ENTRIES + usize::from(*cursor & (self.size - 1)) * 2;
            let head = self.available.load_u16(entry, Ordering::Relaxed);
            if head < self.size {
                step(self, head);
            }
            *cursor = cursor.wrapping_add(1);
        }
    }

    /// A chain of a request with data has three descriptors, as a rule side by side.
    #[inline(always)]
    fn prefetch_descriptors(&self, head: u16) {
        let at = usize::from(head) * DESC_BYTES;
        self.descriptors.prefetch(at);
        self.descriptors.prefetch(at + 2 * DESC_BYTES);
    }

    #[inline(always)]
    fn prefetch_table(&self, head: u16) {
        let descriptor = self.descriptor(head);
        if descriptor.flags & DESC_INDIRECT != 0
            && let Some(table) = self.memory.segment(descriptor.address, DESC_BYTES as u32)
        {
            table.prefetch();
        }
    }

    /// The status of a request is where its header is, more often than not.
    #[inline(always)]
    fn prefetch_header(&self, head: u16) {
        let (first, _) = self.first_two(head);
        if let Some(header) = first.and_then(|first| self.memory.segment(first.address, 1)) {
            header.prefetch_to_write();
        }
    }

    #[inline(always)]
    fn upcoming(&self, head: u16) -> Option<Upcoming> {
        let (first, second) = self.first_two(head);
        let header = self.memory.segment(first?.address, FRONT_BYTES as u32)?;
        let mut front = [0; FRONT_BYTES];
        let bytes = second.map_or(0, |second| second.len);
        (header.len() == FRONT_BYTES && header.copy_to(0, &mut front))
            .then_some(Upcoming { front, bytes })
    }

    /// The first two descriptors of a chain, wherever they are.
    #[inline(always)]
    fn first_two(&self, head: u16) -> (Option<Descriptor>, Option<Descriptor>) {
        let first = self.descriptor(head);
        if first.flags & DESC_INDIRECT == 0 {
            let second = (first.flags & DESC_NEXT != 0 && first.next < self.size)
                .then(|| self.descriptor(first.next));
            return (Some(first), second);
        }
        let mut raw = [0; 2 * DESC_BYTES];
        let table = self.memory.segment(first.address, raw.len() as u32);
        if !table.is_some_and(|table| table.len() == raw.len() && table.copy_to(0, &mut raw)) {
            return (None, None);
        }
        let word = |at: usize| raw[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        let [first, second] =
            [0, DESC_BYTES].map(|at| Descriptor::from_words(word(at), word(at + 8)));
        (Some(first), (first.flags & DESC_NEXT != 0).then_some(second))
    }
}
