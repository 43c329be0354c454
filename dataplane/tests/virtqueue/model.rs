//! Driver against device, with a model between them.

use crate::guest::*;
use outboard::virtio::driver_ring::DriverRing;
use outboard::virtio::fault::QueueFault;
use outboard::virtio::queue::{
    DescriptorChain, Queue, QueueError, QueueSetup, QueueState, QueueStateError, STATE_VERSION,
};
use outboard_dma::GuestMemory;
use outboard_sim::Rng;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What must have happened often enough for a run to prove something.
#[derive(Debug, Default)]
struct Reached {
    indirect: u32,
    kicks: u32,
    pops: u32,
    calls: u32,
    takes: u32,
    sleeps: u32,
}

/// Both ends of a queue, and what must be where.
struct Game {
    rng: Rng,
    memory: Arc<GuestMemory>,
    ring: DriverRing,
    queue: Queue,
    chain: DescriptorChain,
    free: Vec<u16>,
    /// Descriptors of a chain in flight, by head.
    taken: BTreeMap<u16, Vec<u16>>,
    /// Offered chains in order: head and what their segments must be (address, writable).
    offered: VecDeque<(u16, Vec<(u64, bool)>)>,
    /// How many of the offered ones the device can see.
    visible: usize,
    /// Popped and not pushed.
    held: Vec<u16>,
    /// Pushed in order: head and bytes.
    pushed: VecDeque<(u16, u32)>,
    /// How many of the pushed ones the driver can see.
    returned: usize,
    /// The driver sleeps until called.
    driver_sleeps: bool,
    /// The device sleeps until kicked.
    device_sleeps: bool,
    reached: Reached,
}

/// The bytes of every buffer.
const BUFFER_BYTES: u32 = 3;

impl Game {
    fn new(seed: u64, event_idx: bool) -> Game {
        let mut rng = Rng::new(seed);
        let size = 1u16 << rng.below(6);
        let (memory, ring, queue) = ends(size, event_idx);
        Game {
            rng,
            memory,
            ring,
            queue,
            chain: DescriptorChain::default(),
            free: (0..size).collect(),
            taken: BTreeMap::new(),
            offered: VecDeque::new(),
            visible: 0,
            held: Vec::new(),
            pushed: VecDeque::new(),
            returned: 0,
            driver_sleeps: false,
            device_sleeps: false,
            reached: Reached::default(),
        }
    }

    /// The driver makes a chain of up to five buffers out of free descriptors.
    fn offer(&mut self, step: u64) {
        let Game { rng, free, .. } = self;
        if free.is_empty() {
            return;
        }
        let count = 1 + rng.index(free.len().min(5));
        let used: Vec<u16> = (0..count).map(|_| free.swap_remove(rng.index(free.len()))).collect();
        let readable = rng.index(count + 1);
        let parts: Vec<(u64, bool)> = (0..count)
            .map(|index| (DATA + (step * 8 + index as u64) % 8000, index >= readable))
            .collect();
        let flags = |index: usize| {
            (if parts[index].1 { W } else { 0 }) | if index + 1 < count { N } else { 0 }
        };
        if rng.chance(300_000) {
            // The same in a table of its own, placed by its head.
            let table = FAR + u64::from(used[0]) * 128;
            let entry =
                |index: usize| (parts[index].0, BUFFER_BYTES, flags(index), index as u16 + 1);
            let entries: Vec<_> = (0..count).map(entry).collect();
            write_table(&self.memory, table, &entries);
            self.ring.describe(used[0], table, count as u32 * 16, I, 0);
            self.reached.indirect += 1;
        } else {
            for (index, (address, _)) in parts.iter().enumerate() {
                let next = used.get(index + 1).copied().unwrap_or(0);
                self.ring.describe(used[index], *address, BUFFER_BYTES, flags(index), next);
            }
        }
        self.ring.offer(used[0]);
        self.offered.push_back((used[0], parts));
        self.taken.insert(used[0], used);
    }

    fn driver_publishes(&mut self) {
        let fresh = self.offered.len() > self.visible;
        let kick = self.ring.publish();
        self.visible = self.offered.len();
        assert!(fresh || !kick, "a kick for nothing");
        if fresh && self.device_sleeps {
            assert!(kick, "the device asked for a kick and did not get it");
            self.device_sleeps = false;
            self.reached.kicks += 1;
        }
    }

    fn device_pops(&mut self) {
        assert_eq!(usize::from(self.queue.fetch().unwrap()), self.visible);
        for _ in 0..self.rng.below(8) {
            let Some(head) = self.queue.pop(&mut self.chain).unwrap() else { break };
            let (want_head, want) = self.offered.pop_front().unwrap();
            self.visible -= 1;
            assert_eq!(head, want_head);
            let place = |at| self.memory.segment(at, BUFFER_BYTES).unwrap().address();
            let want: Vec<_> = want.iter().map(|(at, writable)| (place(*at), *writable)).collect();
            let got: Vec<_> = (self.chain.readable().iter().map(|part| (part.address(), false)))
                .chain(self.chain.writable().iter().map(|part| (part.address(), true)))
                .collect();
            assert_eq!(got, want);
            self.held.push(head);
            self.reached.pops += 1;
        }
    }

    fn device_pushes(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let head = self.held.swap_remove(self.rng.index(self.held.len()));
        let written = self.rng.below(1000) as u32;
        self.queue.push(head, written);
        self.pushed.push_back((head, written));
    }

    fn device_publishes(&mut self) {
        let fresh = self.pushed.len() > self.returned;
        let call = self.queue.publish();
        self.returned = self.pushed.len();
        assert!(fresh || !call, "a call for nothing");
        if fresh && self.driver_sleeps {
            assert!(call, "the driver asked for a call and did not get it");
            self.driver_sleeps = false;
            self.reached.calls += 1;
        }
    }

    fn driver_takes(&mut self) {
        for _ in 0..self.rng.below(8) {
            let got = self.ring.take();
            if self.returned == 0 {
                assert_eq!(got, None);
                break;
            }
            let (head, written) = self.pushed.pop_front().unwrap();
            self.returned -= 1;
            assert_eq!(got, Some((u32::from(head), written)));
            self.free.extend(self.taken.remove(&head).unwrap());
            self.reached.takes += 1;
        }
    }

    /// One end falls asleep or wakes up.
    fn doze(&mut self) {
        match self.rng.below(4) {
            0 => self.driver_sleeps = !self.ring.want_calls(true) && self.returned == 0,
            1 => {
                self.ring.want_calls(false);
                self.driver_sleeps = false;
            }
            2 => {
                let waiting = self.queue.arm();
                assert_eq!(waiting, self.visible > 0);
                self.device_sleeps = !waiting;
            }
            _ => {
                self.queue.disarm();
                self.device_sleeps = false;
            }
        }
        self.reached.sleeps += u32::from(self.driver_sleeps) + u32::from(self.device_sleeps);
    }
}

impl Game {
    /// Another process goes on with the device's end, from what was saved as text.
    fn hand_over(&mut self) {
        let saved = serde_json::to_string(&self.queue.save()).unwrap();
        let state: QueueState = serde_json::from_str(&saved).unwrap();
        self.queue = Queue::load(&self.memory, &state).unwrap();
        assert_eq!(self.queue.save(), state);
    }
}

/// Nothing is lost, doubled, reordered or changed, and nobody who sleeps is forgotten; also when
/// the device is saved and loaded at any moment.
fn play(seed: u64, event_idx: bool) -> Reached {
    let mut game = Game::new(seed, event_idx);
    for step in 0..4_000 {
        if game.rng.chance(50_000) {
            game.hand_over();
        }
        match game.rng.below(7) {
            0 => game.offer(step),
            1 => game.driver_publishes(),
            2 => game.device_pops(),
            3 => game.device_pushes(),
            4 => game.device_publishes(),
            5 => game.driver_takes(),
            _ => game.doze(),
        }
    }
    game.reached
}

#[test]
fn a_saved_queue_that_makes_no_sense_is_refused() {
    let (memory, _, mut queue) = ends(8, true);
    queue.break_by(QueueFault::AvailJump);
    let state = queue.save();
    let load = |state: &QueueState| Queue::load(&memory, state);
    let mut again = load(&state).unwrap();
    assert_eq!(again.fetch(), Err(QueueError::Ring(QueueFault::AvailJump)));
    let wrong = |change: fn(&mut QueueState)| {
        let mut state = state.clone();
        change(&mut state);
        load(&state).map(|_| ()).unwrap_err()
    };
    let error = wrong(|state| state.version = STATE_VERSION + 1);
    assert!(matches!(error, QueueStateError::Version(_)), "{error}");
    let error = wrong(|state| state.setup.used = 0);
    assert!(matches!(error, QueueStateError::Setup(_)), "{error}");
    let error = wrong(|state| state.again = vec![8]);
    assert!(matches!(error, QueueStateError::Value("list of heads")), "{error}");
    let error = wrong(|state| state.again = vec![0; 9]);
    assert!(matches!(error, QueueStateError::Value("list of heads")), "{error}");
    let error = wrong(|state| state.broken = Some("nothing".into()));
    assert!(matches!(error, QueueStateError::Value("fault")), "{error}");
}

/// Any state at all: refused, or a queue that works or is broken by name.
#[test]
fn fuzz_saved_queues() {
    let (memory, ring, _) = ends(8, true);
    let memory = std::panic::AssertUnwindSafe(memory);
    let setup = ring.setup();
    type Rough = ((u16, u16, u16), Option<u16>, Vec<u8>, (u8, u64, bool));
    bolero::check!().with_type::<Rough>().for_each(|(indices, called_at, again, more)| {
        let (base, used, published) = *indices;
        let (size, moved, event_idx) = *more;
        let place = if moved % 4 == 0 { moved } else { setup.used };
        let size = if size % 4 == 0 { u16::from(size) } else { 8 };
        let state = QueueState {
            version: STATE_VERSION,
            setup: QueueSetup { size, used: place, base, event_idx, ..setup },
            used: [used, published],
            called_at: *called_at,
            again: again.iter().map(|head| u16::from(head % 9)).take(10).collect(),
            broken: None,
        };
        let Ok(mut queue) = Queue::load(&memory, &state) else { return };
        let mut chain = DescriptorChain::default();
        for _ in 0..queue.fetch().unwrap_or(0) {
            match queue.pop(&mut chain) {
                Ok(Some(head)) | Err(QueueError::Chain { head, .. }) => queue.push(head, 0),
                Ok(None) | Err(QueueError::Ring(_)) => break,
            }
        }
        queue.publish();
        queue.arm();
        queue.disarm();
        assert_eq!(Queue::load(&memory, &queue.save()).unwrap().save(), queue.save());
    });
}

#[test]
fn driver_and_device_agree_with_the_model() {
    let mut sum = Reached::default();
    for seed in 0..40 {
        for event_idx in [false, true] {
            let run = std::panic::catch_unwind(|| play(seed, event_idx));
            let run = run.unwrap_or_else(|_| panic!("seed {seed}, event_idx {event_idx}"));
            sum.indirect += run.indirect;
            sum.kicks += run.kicks;
            sum.pops += run.pops;
            sum.calls += run.calls;
            sum.takes += run.takes;
            sum.sleeps += run.sleeps;
        }
    }
    let enough = sum.indirect > 500 && sum.kicks > 500 && sum.calls > 500 && sum.sleeps > 2_000;
    assert!(enough && sum.pops > 10_000 && sum.takes > 10_000, "too little happened: {sum:?}");
}
