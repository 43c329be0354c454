//! Load generation: keeps a number of requests in flight (closed loop) or sends at given times
//! (open loop), and records how long each took.
//!
//! In an open loop a request's latency counts from the time at which it *should* have been sent.
//! A path that stalls is therefore charged for every request that had to wait behind the stall,
//! sent or not: there is no coordinated omission. In a closed loop latency counts from sending.
//! Requests before the end of the warm-up are not recorded. The clock is a parameter, so that
//! tests run on virtual time.

use crate::latency::Recorder;
use std::sync::atomic::{AtomicBool, Ordering};

/// Names a request: its slot (below the depth) and how often the slot was used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which of the slots, from 0.
    pub slot: u16,
    /// Distinguishes successive uses of the slot.
    pub round: u32,
}

/// A request that ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Which.
    pub request: Request,
    /// Whether it succeeded.
    pub ok: bool,
}

/// Whether an answer's content is what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Compared and right.
    Right,
    /// Compared and wrong.
    Wrong,
    /// Nothing to compare.
    Unchecked,
}

/// What load is put on.
pub trait Work {
    /// Whether requests may vanish (datagrams). Where they may not, one that does not end within
    /// the loss time-out ends the measurement with an error.
    const MAY_LOSE: bool;

    /// Makes the slot's next request ready; nothing here is timed.
    fn prepare(&mut self, slot: u16);

    /// Starts the prepared request; `false` when there is no room now.
    fn start(&mut self, request: Request, now_ns: u64) -> bool;

    /// Called after each group of starts: the place to tell the kernel.
    fn flush(&mut self) {}

    /// Appends what has ended.
    fn poll(&mut self, now_ns: u64, ended: &mut Vec<Ended>);

    /// Looks at the content of an answer, after its time was taken.
    fn check(&mut self, ended: &Ended) -> Content;

    /// The request is given up; its answer may still come.
    fn abandon(&mut self, _slot: u16) {}

    /// Nothing to do before `until_ns` unless something ends: the place to sleep.
    fn idle(&mut self, _now_ns: u64, _until_ns: u64) {}
}

/// Where time comes from.
pub trait Clock {
    /// Nanoseconds since an arbitrary start.
    fn now_ns(&mut self) -> u64;
}

/// The machine's monotonic clock.
pub struct Monotonic;

impl Clock for Monotonic {
    #[inline(always)]
    fn now_ns(&mut self) -> u64 {
        outboard::clock::now_ns()
    }
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// One whenever another ended.
    Closed,
    /// Evenly, this many a second, whatever the answers do.
    Open {
        /// Requests per second.
        rate_per_s: f64,
    },
}

/// How much load, for how long.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// When requests are sent.
    pub pace: Pace,
    /// The most requests in flight; exactly these in a closed loop.
    pub depth: u16,
    /// Time before recording starts.
    pub warmup_ns: u64,
    /// Time that is recorded.
    pub measure_ns: u64,
    /// A request that took longer is lost.
    pub lost_after_ns: u64,
}

/// What came of it.
#[derive(Default)]
pub struct Tally {
    /// Latencies of the requests of the window.
    pub latency: Recorder,
    /// Requests that ended inside the window, whenever they started.
    pub ended_in_window: u64,
    /// Requests of the window that ended with an error.
    pub errors: u64,
    /// Requests of the window that never ended.
    pub lost: u64,
    /// Answers to no request in flight.
    pub strays: u64,
    /// Requests of the window that were due and never sent. Each is recorded with the time from
    /// when it was due to the end of the window: its latency is at least that.
    pub unsent: u64,
    /// Answers compared, over the whole run.
    pub verified: u64,
    /// Answers that were wrong, over the whole run.
    pub verify_failures: u64,
    /// Length of the window.
    pub window_ns: u64,
}

impl Tally {
    /// Requests completed per second of the window.
    pub fn rate_per_s(&self) -> f64 {
        self.ended_in_window as f64 * 1e9 / (self.window_ns as f64).max(1.0)
    }
}

/// Why a measurement ended early.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A request that may not vanish did not end.
    #[error(
        "a request did not end within {seconds} s: the device or its backend is stuck; \
         look at its log, and at `outboard stats` when it is Outboard"
    )]
    Stuck {
        /// The time-out.
        seconds: f64,
    },
    /// The user stopped it.
    #[error("interrupted")]
    Interrupted,
}

/// Puts `load` on `work` and tells what came of it. `stop` ends it early.
pub fn run<W: Work, C: Clock>(
    work: &mut W,
    clock: &mut C,
    load: &Load,
    stop: &AtomicBool,
) -> Result<Tally, LoadError> {
    let mut generator = Generator::new(work, clock, load);
    generator.generate(stop)?;
    generator.drain(stop)?;
    Ok(generator.tally)
}

/// How often lost requests and the stop flag are looked for.
const SCAN_NS: u64 = 10_000_000;

#[derive(Clone, Copy)]
struct Slot {
    round: u32,
    in_flight: bool,
    /// When the request should have been sent (open loop) or was (closed loop).
    from_ns: u64,
    sent_ns: u64,
}

struct Generator<'a, W, C> {
    work: &'a mut W,
    clock: &'a mut C,
    load: &'a Load,
    slots: Vec<Slot>,
    /// Slots without a request.
    free: Vec<u16>,
    /// Slots with a prepared request that is not started.
    ready: Vec<u16>,
    ended: Vec<Ended>,
    start_ns: u64,
    window: std::ops::Range<u64>,
    interval_ns: f64,
    /// Requests sent so far in an open loop: the next is due at `start + sent * interval`.
    sent: u64,
    next_scan_ns: u64,
    tally: Tally,
}

impl<'a, W: Work, C: Clock> Generator<'a, W, C> {
    fn new(work: &'a mut W, clock: &'a mut C, load: &'a Load) -> Self {
        let depth = usize::from(load.depth);
        assert!(depth > 0, "a load of depth 0 does nothing");
        let start_ns = clock.now_ns();
        let from = start_ns + load.warmup_ns;
        let interval_ns = match load.pace {
            Pace::Closed => 0.0,
            Pace::Open { rate_per_s } => 1e9 / rate_per_s,
        };
        let idle = Slot { round: 0, in_flight: false, from_ns: 0, sent_ns: 0 };
        Generator {
            work,
            clock,
            load,
            slots: vec![idle; depth],
            free: (0..load.depth).rev().collect(),
            ready: Vec::with_capacity(depth),
            ended: Vec::with_capacity(depth.max(64)),
            start_ns,
            window: from..from + load.measure_ns,
            interval_ns,
            sent: 0,
            next_scan_ns: start_ns + SCAN_NS,
            tally: Tally { window_ns: load.measure_ns, ..Tally::default() },
        }
    }

    /// Sends and collects until the window ends.
    fn generate(&mut self, stop: &AtomicBool) -> Result<(), LoadError> {
        loop {
            let now_ns = self.clock.now_ns();
            if now_ns >= self.window.end {
                break;
            }
            let started = match self.load.pace {
                Pace::Closed => self.refill(),
                Pace::Open { .. } => self.send_due(now_ns),
            };
            let ended = self.collect(now_ns);
            if now_ns >= self.next_scan_ns {
                self.scan(now_ns, stop)?;
            }
            if !started && !ended {
                let until_ns = self.next_event_ns();
                self.work.idle(now_ns, until_ns);
            }
        }
        self.charge_unsent();
        Ok(())
    }

    /// Waits for what is in flight when the window has ended.
    fn drain(&mut self, stop: &AtomicBool) -> Result<(), LoadError> {
        loop {
            let now_ns = self.clock.now_ns();
            self.collect(now_ns);
            if self.free.len() + self.ready.len() == self.slots.len() {
                return Ok(());
            }
            if now_ns >= self.next_scan_ns {
                self.scan(now_ns, stop)?;
            }
            self.work.idle(now_ns, self.next_scan_ns);
        }
    }

    /// Closed loop: starts every slot that is free, all with the time just before the start.
    fn refill(&mut self) -> bool {
        while let Some(slot) = self.free.pop() {
            self.work.prepare(slot);
            self.ready.push(slot);
        }
        if self.ready.is_empty() {
            return false;
        }
        let now_ns = self.clock.now_ns();
        let mut started = false;
        while let Some(slot) = self.ready.last().copied() {
            if !self.start(slot, now_ns, now_ns) {
                break;
            }
            self.ready.pop();
            started = true;
        }
        self.work.flush();
        started
    }

    /// Open loop: starts whatever is due, as far as slots and room go.
    fn send_due(&mut self, now_ns: u64) -> bool {
        let mut started = false;
        while self.due_ns() <= now_ns {
            let Some(slot) = self.take_ready() else { break };
            let due_ns = self.due_ns();
            if !self.start(slot, due_ns, now_ns) {
                self.ready.push(slot);
                break;
            }
            self.sent += 1;
            started = true;
        }
        if started {
            self.work.flush();
        } else if self.ready.is_empty()
            && let Some(slot) = self.take_ready()
        {
            self.ready.push(slot);
        }
        started
    }

    fn take_ready(&mut self) -> Option<u16> {
        self.ready.pop().or_else(|| {
            let slot = self.free.pop()?;
            self.work.prepare(slot);
            Some(slot)
        })
    }

    fn due_ns(&self) -> u64 {
        self.start_ns + (self.sent as f64 * self.interval_ns) as u64
    }

    fn next_event_ns(&self) -> u64 {
        let limit = self.next_scan_ns.min(self.window.end);
        match self.load.pace {
            Pace::Closed => limit,
            Pace::Open { .. } if self.free.is_empty() && self.ready.is_empty() => limit,
            Pace::Open { .. } => limit.min(self.due_ns()),
        }
    }

    fn start(&mut self, slot: u16, from_ns: u64, now_ns: u64) -> bool {
        let state = &mut self.slots[usize::from(slot)];
        if !self.work.start(Request { slot, round: state.round }, now_ns) {
            return false;
        }
        (state.in_flight, state.from_ns, state.sent_ns) = (true, from_ns, now_ns);
        true
    }

    fn collect(&mut self, now_ns: u64) -> bool {
        self.work.poll(now_ns, &mut self.ended);
        if self.ended.is_empty() {
            return false;
        }
        let now_ns = self.clock.now_ns();
        let mut ended = std::mem::take(&mut self.ended);
        for end in ended.drain(..) {
            self.end(&end, now_ns);
        }
        self.ended = ended;
        true
    }

    fn end(&mut self, ended: &Ended, now_ns: u64) {
        let Request { slot, round } = ended.request;
        let state = match self.slots.get_mut(usize::from(slot)) {
            Some(state) if state.in_flight && state.round == round => state,
            _ => {
                self.tally.strays += 1;
                return;
            }
        };
        state.in_flight = false;
        state.round = state.round.wrapping_add(1);
        if self.window.contains(&now_ns) {
            self.tally.ended_in_window += u64::from(ended.ok);
        }
        if self.window.contains(&state.from_ns) {
            if ended.ok {
                self.tally.latency.record(now_ns.saturating_sub(state.from_ns));
            } else {
                self.tally.errors += 1;
            }
        }
        match self.work.check(ended) {
            Content::Right => self.tally.verified += 1,
            Content::Wrong => {
                self.tally.verified += 1;
                self.tally.verify_failures += 1;
            }
            Content::Unchecked => {}
        }
        self.free.push(slot);
    }

    /// Finds requests that never ended.
    fn scan(&mut self, now_ns: u64, stop: &AtomicBool) -> Result<(), LoadError> {
        self.next_scan_ns = now_ns + SCAN_NS;
        if stop.load(Ordering::Relaxed) {
            return Err(LoadError::Interrupted);
        }
        for (slot, state) in self.slots.iter_mut().enumerate() {
            let waited_ns = now_ns.saturating_sub(state.sent_ns);
            if !state.in_flight || waited_ns <= self.load.lost_after_ns {
                continue;
            }
            if !W::MAY_LOSE {
                return Err(LoadError::Stuck { seconds: self.load.lost_after_ns as f64 / 1e9 });
            }
            state.in_flight = false;
            state.round = state.round.wrapping_add(1);
            self.tally.lost += u64::from(self.window.contains(&state.from_ns));
            self.work.abandon(slot as u16);
            self.free.push(slot as u16);
        }
        Ok(())
    }

    /// Requests that were due inside the window and never sent took at least until its end.
    fn charge_unsent(&mut self) {
        if self.load.pace == Pace::Closed {
            return;
        }
        while self.due_ns() < self.window.end {
            if self.window.contains(&self.due_ns()) {
                self.tally.unsent += 1;
                self.tally.latency.record(self.window.end - self.due_ns());
            }
            self.sent += 1;
        }
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
