//! The cursors of a ring that the kernel shares with us (AF_XDP's order), both sides of it.
//!
//! The kernel's side is written out here as `net/xdp/xsk_queue.h` has it. Wrong orders of either
//! side must be caught: an entry that both touch at once, or one that is lost.
#![allow(unsafe_code)]

use outboard_order::check;
use outboard_order::ring::{Consumer, Producer, Words};
use outboard_order::sync::{AtomicU32, Ordering, Slot};
use std::ptr::NonNull;
use std::sync::Arc;

const SIZE: u32 = 2;
/// One more than the ring holds, so that a place is used again.
const COUNT: u32 = SIZE + 1;
/// Cursors wrap on the way.
const START: u32 = u32::MAX;

struct Memory {
    producer: AtomicU32,
    consumer: AtomicU32,
    flags: AtomicU32,
    entries: [Slot<u32>; SIZE as usize],
}

impl Memory {
    fn new() -> Arc<Memory> {
        Arc::new(Memory {
            producer: AtomicU32::new(START),
            consumer: AtomicU32::new(START),
            flags: AtomicU32::new(0),
            entries: std::array::from_fn(|_| Slot::new(u32::MAX)),
        })
    }

    fn words(&self) -> Words<u32> {
        Words {
            producer: NonNull::from(&self.producer),
            consumer: NonNull::from(&self.consumer),
            flags: NonNull::from(&self.flags),
            entries: NonNull::from(&self.entries).cast(),
            size: SIZE,
        }
    }

    fn entry(&self, cursor: u32) -> &Slot<u32> {
        &self.entries[(cursor % SIZE) as usize]
    }

    /// The kernel takes `COUNT` entries: sees the producer's cursor by `see`, gives places back
    /// by `give`, and does so before it reads when it is `hasty`.
    fn kernel_consumes(&self, see: Ordering, give: Ordering, hasty: bool) {
        for step in 0..COUNT {
            let cursor = START.wrapping_add(step);
            while self.producer.load(see) == cursor {
                loom::thread::yield_now();
            }
            let give_back = || self.consumer.store(cursor.wrapping_add(1), give);
            if hasty {
                give_back();
            }
            // SAFETY: loom checks it.
            assert_eq!(unsafe { self.entry(cursor).read() }, step);
            if !hasty {
                give_back();
            }
        }
    }

    /// The kernel gives `COUNT` entries, as above.
    fn kernel_produces(&self, see: Ordering, publish: Ordering, hasty: bool) {
        for step in 0..COUNT {
            let cursor = START.wrapping_add(step);
            while cursor.wrapping_sub(self.consumer.load(see)) == SIZE {
                loom::thread::yield_now();
            }
            let publish = || self.producer.store(cursor.wrapping_add(1), publish);
            if hasty {
                publish();
            }
            // SAFETY: loom checks it.
            unsafe { self.entry(cursor).write(step) };
            if !hasty {
                publish();
            }
        }
    }
}

/// Our producer, in bursts as large as there is room.
fn produce(memory: &Memory) {
    // SAFETY: the memory outlives the producer, which is the only one on this side.
    let mut producer = unsafe { Producer::new(memory.words()) };
    let mut step = 0;
    while step < COUNT {
        let room = producer.acquire(COUNT - step).min(COUNT - step);
        (0..room).for_each(|more| producer.push(step + more));
        producer.release();
        step += room;
        if room == 0 {
            loom::thread::yield_now();
        }
    }
}

/// Our consumer, in bursts as large as there is something.
fn consume(memory: &Memory) {
    // SAFETY: as in produce.
    let mut consumer = unsafe { Consumer::new(memory.words()) };
    let mut step = 0;
    while step < COUNT {
        if consumer.acquire(1) == 0 {
            loom::thread::yield_now();
        }
        while let Some(value) = consumer.pop() {
            assert_eq!(value, step);
            step += 1;
        }
        consumer.release();
    }
}

/// Both at once, over one ring.
fn both(one: fn(&Memory), other: fn(&Memory)) {
    check(move || {
        let memory = Memory::new();
        let theirs = Arc::clone(&memory);
        let thread = loom::thread::spawn(move || other(&theirs));
        one(&memory);
        thread.join().unwrap();
    });
}

#[test]
fn our_producer_and_the_kernel() {
    both(produce, |memory| memory.kernel_consumes(Ordering::Acquire, Ordering::Release, false));
}

#[test]
fn our_consumer_and_the_kernel() {
    both(consume, |memory| memory.kernel_produces(Ordering::Acquire, Ordering::Release, false));
}

#[test]
fn our_producer_and_our_consumer() {
    both(produce, consume);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_consumer_that_does_not_acquire_is_caught() {
    both(produce, |memory| memory.kernel_consumes(Ordering::Relaxed, Ordering::Release, false));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_consumer_that_does_not_release_is_caught() {
    both(produce, |memory| memory.kernel_consumes(Ordering::Acquire, Ordering::Relaxed, false));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_consumer_that_gives_back_before_it_reads_is_caught() {
    both(produce, |memory| memory.kernel_consumes(Ordering::Acquire, Ordering::Release, true));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_producer_that_does_not_acquire_is_caught() {
    both(consume, |memory| memory.kernel_produces(Ordering::Relaxed, Ordering::Release, false));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_producer_that_does_not_release_is_caught() {
    both(consume, |memory| memory.kernel_produces(Ordering::Acquire, Ordering::Relaxed, false));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_producer_that_publishes_before_it_writes_is_caught() {
    both(consume, |memory| memory.kernel_produces(Ordering::Acquire, Ordering::Release, true));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn our_producer_used_in_the_wrong_order_is_caught() {
    both(
        |memory| {
            // SAFETY: as in produce.
            let mut producer = unsafe { Producer::new(memory.words()) };
            for step in 0..COUNT {
                while producer.acquire(1) == 0 {
                    loom::thread::yield_now();
                }
                // Seen before it is written.
                memory.producer.store(START.wrapping_add(step + 1), Ordering::Release);
                producer.push(step);
            }
        },
        consume,
    );
}
