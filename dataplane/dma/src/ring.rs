//! One side of a ring that the kernel shares with us: a single producer, a single consumer.
//!
//! Cursors are free-running u32; an index is a cursor modulo the size, a power of two. Each side
//! keeps a copy of the other's cursor and reads the shared one only when the copy says that there
//! is too little: one `acquire` and one `release` per burst. The side that publishes its cursor
//! does so with Release after touching the entries, and reads the other's with Acquire before
//! (Linux `Documentation/networking/af_xdp.rst`; `net/xdp/xsk_queue.h`).

use crate::sync::{AtomicU32, Ordering, Slot};
use std::ptr::NonNull;

/// Where a ring's shared words and entries are.
#[derive(Debug)]
pub struct Words<T> {
    /// The cursor of the side that writes entries.
    pub producer: NonNull<AtomicU32>,
    /// The cursor of the side that reads them.
    pub consumer: NonNull<AtomicU32>,
    /// The kernel's flags.
    pub flags: NonNull<AtomicU32>,
    /// The first entry.
    pub entries: NonNull<Slot<T>>,
    /// How many there are.
    pub size: u32,
}

impl<T: Copy> Words<T> {
    fn producer(&self) -> &AtomicU32 {
        // SAFETY: mapped for as long as the ring lives (promise of both `new`s).
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as in producer.
        unsafe { self.consumer.as_ref() }
    }

    fn entry(&self, cursor: u32) -> &Slot<T> {
        // SAFETY: the masked index is below `size`, the number of mapped entries.
        unsafe { self.entries.add((cursor & (self.size - 1)) as usize).as_ref() }
    }

    fn flags(&self) -> u32 {
        // SAFETY: as in producer.
        unsafe { self.flags.as_ref() }.load(Ordering::Relaxed)
    }
}

/// The side that writes entries (fill and tx rings).
#[derive(Debug)]
pub struct Producer<T> {
    words: Words<T>,
    next: u32,
    end: u32,
}

// SAFETY: the words are shared with the kernel only, through atomics; one owner on our side.
unsafe impl<T: Send> Send for Producer<T> {}

impl<T: Copy> Producer<T> {
    /// # Safety
    /// The words point into memory that stays mapped while this value lives, `size` is a power of
    /// two and the number of entries, and nobody else on our side produces.
    pub unsafe fn new(words: Words<T>) -> Producer<T> {
        assert!(words.size.is_power_of_two());
        let next = words.producer().load(Ordering::Relaxed);
        let end = words.consumer().load(Ordering::Acquire).wrapping_add(words.size);
        Producer { words, next, end }
    }

    /// How many entries can be pushed; looks at the consumer's cursor only when its last known
    /// place leaves fewer than `want`.
    #[inline(always)]
    pub fn acquire(&mut self, want: u32) -> u32 {
        if self.end.wrapping_sub(self.next) < want {
            self.end = self.words.consumer().load(Ordering::Acquire).wrapping_add(self.words.size);
        }
        self.end.wrapping_sub(self.next)
    }

    /// Writes the next entry; seen by the consumer after [`release`](Self::release).
    ///
    /// # Panics
    /// When more is pushed than was acquired.
    #[inline(always)]
    pub fn push(&mut self, entry: T) {
        assert!(self.next != self.end, "more pushed than acquired");
        // SAFETY: between our cursor and the consumer's: the entry is ours to write.
        unsafe { self.words.entry(self.next).write(entry) };
        self.next = self.next.wrapping_add(1);
    }

    /// Publishes what was pushed.
    #[inline(always)]
    pub fn release(&mut self) {
        self.words.producer().store(self.next, Ordering::Release);
    }

    /// Pushed entries that the consumer has not taken yet.
    #[inline(always)]
    pub fn waiting(&self) -> u32 {
        self.next.wrapping_sub(self.words.consumer().load(Ordering::Relaxed))
    }

    /// The flags word, set by the kernel.
    #[inline(always)]
    pub fn flags(&self) -> u32 {
        self.words.flags()
    }
}

/// The side that reads entries (rx and completion rings).
#[derive(Debug)]
pub struct Consumer<T> {
    words: Words<T>,
    next: u32,
    end: u32,
}

// SAFETY: as for Producer.
unsafe impl<T: Send> Send for Consumer<T> {}

impl<T: Copy> Consumer<T> {
    /// # Safety
    /// As for [`Producer::new`], with nobody else on our side consuming.
    pub unsafe fn new(words: Words<T>) -> Consumer<T> {
        assert!(words.size.is_power_of_two());
        let next = words.consumer().load(Ordering::Relaxed);
        Consumer { words, next, end: next }
    }

    /// How many entries can be popped; looks at the producer's cursor only when fewer than `want`
    /// are known.
    #[inline(always)]
    pub fn acquire(&mut self, want: u32) -> u32 {
        if self.end.wrapping_sub(self.next) < want {
            self.end = self.words.producer().load(Ordering::Acquire);
        }
        self.end.wrapping_sub(self.next)
    }

    /// Reads the next entry; its place goes back to the producer with
    /// [`release`](Self::release). `None` when all that was acquired is read.
    #[inline(always)]
    pub fn pop(&mut self) -> Option<T> {
        if self.next == self.end {
            return None;
        }
        // SAFETY: between our cursor and the producer's: written, and not written again yet.
        let entry = unsafe { self.words.entry(self.next).read() };
        self.next = self.next.wrapping_add(1);
        Some(entry)
    }

    /// Gives the places of all popped entries back.
    #[inline(always)]
    pub fn release(&mut self) {
        self.words.consumer().store(self.next, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u32 = 8;

    /// A ring in ordinary memory, both of whose sides are ours.
    struct Memory {
        producer: AtomicU32,
        consumer: AtomicU32,
        flags: AtomicU32,
        entries: [u64; SIZE as usize],
    }

    impl Memory {
        fn sides(start: u32) -> (Producer<u64>, Consumer<u64>) {
            let memory = Box::leak(Box::new(Memory {
                producer: AtomicU32::new(start),
                consumer: AtomicU32::new(start),
                flags: AtomicU32::new(0),
                entries: [0; SIZE as usize],
            }));
            let entries = NonNull::from(&mut memory.entries).cast();
            let words = || Words {
                producer: NonNull::from(&memory.producer),
                consumer: NonNull::from(&memory.consumer),
                flags: NonNull::from(&memory.flags),
                entries,
                size: SIZE,
            };
            // SAFETY: leaked memory of SIZE entries; one producer and one consumer are made.
            unsafe { (Producer::new(words()), Consumer::new(words())) }
        }
    }

    #[test]
    fn full_and_empty_at_every_start_around_the_wrap() {
        for start in (0..20).map(|back| 10u32.wrapping_sub(back)) {
            let (mut producer, mut consumer) = Memory::sides(start);
            assert_eq!(consumer.acquire(1), 0);
            assert_eq!(consumer.pop(), None);
            assert_eq!(producer.acquire(SIZE + 1), SIZE);
            (0..u64::from(SIZE)).for_each(|value| producer.push(value));
            assert_eq!(producer.acquire(1), 0, "full");
            assert_eq!(consumer.acquire(1), 0, "nothing is seen before release");
            producer.release();
            assert_eq!(producer.waiting(), SIZE);
            assert_eq!(consumer.acquire(1), SIZE);
            (0..u64::from(SIZE)).for_each(|value| assert_eq!(consumer.pop(), Some(value)));
            assert_eq!(consumer.pop(), None);
            assert_eq!(producer.acquire(1), 0, "places come back with release");
            consumer.release();
            assert_eq!((producer.acquire(1), producer.waiting()), (SIZE, 0));
        }
    }

    #[test]
    #[should_panic(expected = "more pushed than acquired")]
    fn pushing_past_the_end_is_refused() {
        let (mut producer, _consumer) = Memory::sides(0);
        (0..=u64::from(SIZE)).for_each(|value| producer.push(value));
    }

    #[test]
    fn order_and_count_hold_between_threads() {
        const COUNT: u64 = 50_000;
        let (mut producer, mut consumer) = Memory::sides(u32::MAX - 100);
        let writer = std::thread::spawn(move || {
            let mut value = 0;
            while value < COUNT {
                let room = u64::from(producer.acquire(3)).min(3).min(COUNT - value);
                (0..room).for_each(|step| producer.push(value + step));
                producer.release();
                value += room;
                if room == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let mut expected = 0;
        while expected < COUNT {
            if consumer.acquire(1) == 0 {
                std::thread::yield_now();
            }
            while let Some(value) = consumer.pop() {
                assert_eq!(value, expected);
                expected += 1;
            }
            consumer.release();
        }
        writer.join().unwrap();
        assert_eq!(consumer.acquire(1), 0);
    }
}
