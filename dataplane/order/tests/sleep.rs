//! A worker's sleep: with an arrival at every step, from another worker and from a guest at once,
//! no wake-up is lost.
//!
//! The sleep, the announcement and the virtqueue's wishes are the data plane's own code. Modelled
//! are the descriptors (a counter that a `signal` raises, level-triggered), what the worker does
//! in a turn, and the far ends' first half: publish, then ask whether to signal. There is no
//! longest sleep here: a lost wake-up ends a run as a deadlock, which is what the wrong orders
//! below are caught by.

use loom::sync::{Condvar, Mutex};
use outboard_order::check;
use outboard_order::notify::{Wish, Words};
use outboard_order::sync::{AtomicBool, AtomicU16, AtomicU32, Ordering, fence};
use outboard_order::wake::{Announcement, Sleeper, sleep};
use std::sync::Arc;

const QUEUE_SIZE: u16 = 2;
const BELL: usize = 0;
const KICK: usize = 1;

/// Descriptors that can be slept on together.
#[derive(Default)]
struct Descriptors {
    readable: Mutex<[bool; 2]>,
    changed: Condvar,
}

impl Descriptors {
    fn signal(&self, which: usize) {
        self.readable.lock().unwrap()[which] = true;
        self.changed.notify_one();
    }

    fn drain(&self, which: usize) {
        self.readable.lock().unwrap()[which] = false;
    }

    fn wait(&self) {
        let mut readable = self.readable.lock().unwrap();
        while *readable == [false; 2] {
            readable = self.changed.wait(readable).unwrap();
        }
    }
}

/// A ring's words that matter here: flags, index, and the event index behind the entries.
struct RingWords {
    flags: AtomicU16,
    index: AtomicU16,
    event: AtomicU16,
}

impl RingWords {
    fn new(flags: u16, event: u16) -> RingWords {
        RingWords {
            flags: AtomicU16::new(flags),
            index: AtomicU16::new(0),
            event: AtomicU16::new(event),
        }
    }

    fn at(&self, offset: usize) -> &AtomicU16 {
        match offset {
            0 => &self.flags,
            2 => &self.index,
            _ => &self.event,
        }
    }
}

impl Words for RingWords {
    fn load_u16(&self, offset: usize, order: Ordering) -> u16 {
        self.at(offset).load(order)
    }

    fn store_u16(&self, offset: usize, value: u16, order: Ordering) {
        self.at(offset).store(value, order);
    }
}

/// What the threads share.
struct World {
    announcement: Announcement,
    /// The announcement of a worker without a fence.
    unfenced: AtomicBool,
    descriptors: Descriptors,
    /// A mailbox or another worker's ring: how many messages were put in.
    sent: AtomicU32,
    available: RingWords,
    used: RingWords,
    kicks: Wish,
}

impl World {
    fn new(event_idx: bool) -> Arc<World> {
        let kicks = Wish::of_device(QUEUE_SIZE, event_idx);
        // As a worker that polls leaves it: no kicks wanted.
        let (available, used) = (RingWords::new(0, 0), RingWords::new(0, 0));
        kicks.decline(&used, 0);
        Arc::new(World {
            announcement: Announcement::new(),
            unfenced: AtomicBool::new(false),
            descriptors: Descriptors::default(),
            sent: AtomicU32::new(0),
            available,
            used,
            kicks,
        })
    }

    /// Another worker, or control: publishes, then rings (`Bell::ring`).
    fn send(&self, order: Order) {
        let publish = || self.sent.fetch_add(1, Ordering::Release);
        if order != Order::RingsFirst {
            publish();
        }
        let due = match order {
            Order::NoFence => {
                fence(Ordering::SeqCst);
                self.unfenced.load(Ordering::Relaxed)
            }
            _ => self.announcement.claim(),
        };
        if due {
            self.descriptors.signal(BELL);
        }
        if order == Order::RingsFirst {
            publish();
        }
    }

    /// A guest's driver: publishes its index, then kicks if the device wants it.
    fn offer(&self, index: u16, order: Order) {
        self.available.store_u16(2, index, Ordering::Release);
        if order == Order::DriverWithoutFence {
            if self.used.load_u16(0, Ordering::Relaxed) == 0 {
                self.descriptors.signal(KICK);
            }
            return;
        }
        if self.kicks.is_due(&self.used, Some(index - 1), index) {
            self.descriptors.signal(KICK);
        }
    }
}

/// In which order a worker goes to sleep: ours, and such as lose a wake-up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Ours,
    /// Looks, then announces, then waits.
    LooksFirst,
    /// Announces without a fence before its look.
    NoFence,
    /// Waits right after the announcement.
    NoSecondLook,
    /// Looks at the virtqueue, then asks for kicks.
    QueueLooksFirst,
    /// Never asks for kicks.
    NeverAsks,
    /// The other worker rings, then publishes.
    RingsFirst,
    /// The guest's driver has no fence between its index and its look at the wish.
    DriverWithoutFence,
}

struct Worker {
    world: Arc<World>,
    order: Order,
    seen: u32,
    next_available: u16,
}

impl Worker {
    fn turn(&mut self) -> bool {
        let sent = self.world.sent.load(Ordering::Acquire);
        let index = self.world.available.load_u16(2, Ordering::Acquire);
        let found = sent != self.seen || index != self.next_available;
        (self.seen, self.next_available) = (sent, index);
        found
    }

    /// As `virtio/queue`: asks for kicks, then looks at the index once more.
    fn arm_queue(&mut self) -> bool {
        let World { kicks, used, available, .. } = &*self.world;
        if !matches!(self.order, Order::NeverAsks | Order::QueueLooksFirst) {
            kicks.ask(used, self.next_available);
        }
        let waiting = available.load_u16(2, Ordering::Acquire) != self.next_available;
        if self.order == Order::QueueLooksFirst {
            kicks.ask(used, self.next_available);
        }
        waiting
    }

    /// Turns and sleeps until `messages` were seen, and `chains` taken.
    fn run(mut self, messages: u32, chains: u16) {
        while self.seen < messages || self.next_available < chains {
            if self.turn() {
                continue;
            }
            sleep(&mut self);
        }
    }
}

impl Sleeper for Worker {
    fn arm(&mut self) {
        match self.order {
            Order::LooksFirst => {}
            Order::NoFence => self.world.unfenced.store(true, Ordering::Relaxed),
            _ => self.world.announcement.make(),
        }
    }

    fn look(&mut self) -> bool {
        if self.order == Order::NoSecondLook {
            return self.arm_queue();
        }
        let found = self.turn() | self.arm_queue();
        if self.order == Order::LooksFirst {
            self.world.announcement.make();
        }
        found
    }

    fn wait(&mut self) {
        self.world.descriptors.wait();
    }

    fn disarm(&mut self) {
        let World { kicks, used, announcement, descriptors, .. } = &*self.world;
        kicks.decline(used, self.next_available);
        descriptors.drain(KICK);
        announcement.take_back();
        descriptors.drain(BELL);
    }
}

/// `messages` from as many other threads, and `chains` from one guest, while a worker turns and
/// sleeps.
fn arrivals(order: Order, event_idx: bool, messages: u32, chains: u16) {
    check(move || {
        let world = World::new(event_idx);
        let mut threads = Vec::new();
        for _ in 0..messages {
            let world = Arc::clone(&world);
            threads.push(loom::thread::spawn(move || world.send(order)));
        }
        if chains > 0 {
            let world = Arc::clone(&world);
            threads.push(loom::thread::spawn(move || {
                (1..=chains).for_each(|i| world.offer(i, order))
            }));
        }
        Worker { world, order, seen: 0, next_available: 0 }.run(messages, chains);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn no_message_is_slept_through() {
    arrivals(Order::Ours, false, 2, 0);
}

#[test]
fn no_chain_is_slept_through_with_flags() {
    arrivals(Order::Ours, false, 0, 2);
}

#[test]
fn no_chain_is_slept_through_with_event_indices() {
    arrivals(Order::Ours, true, 0, 2);
}

#[test]
fn a_message_and_a_chain_at_once_are_both_found() {
    arrivals(Order::Ours, true, 1, 1);
    arrivals(Order::Ours, false, 1, 1);
}

#[test]
#[should_panic(expected = "deadlock")]
fn looking_before_the_announcement_is_caught() {
    arrivals(Order::LooksFirst, false, 1, 0);
}

#[test]
#[should_panic(expected = "deadlock")]
fn no_second_look_is_caught() {
    arrivals(Order::NoSecondLook, false, 1, 0);
}

#[test]
#[should_panic(expected = "deadlock")]
fn looking_at_the_queue_before_asking_is_caught() {
    arrivals(Order::QueueLooksFirst, true, 0, 1);
}

#[test]
#[should_panic(expected = "deadlock")]
fn never_asking_for_kicks_is_caught() {
    arrivals(Order::NeverAsks, false, 0, 1);
}

#[test]
#[should_panic(expected = "deadlock")]
fn an_announcement_without_a_fence_is_caught() {
    arrivals(Order::NoFence, false, 1, 0);
}

#[test]
#[should_panic(expected = "deadlock")]
fn ringing_before_publishing_is_caught() {
    arrivals(Order::RingsFirst, false, 1, 0);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_driver_without_a_fence_is_caught() {
    arrivals(Order::DriverWithoutFence, false, 0, 1);
}
