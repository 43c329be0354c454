//! Load generation on virtual time: what a stall must look like, what is lost, what is excluded.

use super::*;
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

const MS: u64 = 1_000_000;

/// Every look at the clock costs 100 ns.
#[derive(Clone, Default)]
struct Virtual(Rc<Cell<u64>>);

impl Clock for Virtual {
    fn now_ns(&mut self) -> u64 {
        self.0.set(self.0.get() + 100);
        self.0.get()
    }
}

/// Answers in order after `service_ns`, except while stalled.
struct Server {
    clock: Virtual,
    service_ns: u64,
    stall: std::ops::Range<u64>,
    lose_every: Option<u64>,
    queue: VecDeque<(Request, u64)>,
    started: u64,
    abandoned: u64,
    duplicate_next: bool,
}

impl Server {
    fn new(service_ns: u64, stall: std::ops::Range<u64>) -> Server {
        Server {
            clock: Virtual::default(),
            service_ns,
            stall,
            lose_every: None,
            queue: VecDeque::new(),
            started: 0,
            abandoned: 0,
            duplicate_next: false,
        }
    }

    fn run(&mut self, load: &Load) -> Tally {
        let mut clock = self.clock.clone();
        run(self, &mut clock, load, &AtomicBool::new(false)).unwrap()
    }
}

impl Work for Server {
    const MAY_LOSE: bool = true;

    fn prepare(&mut self, _slot: u16) {}

    fn start(&mut self, request: Request, now_ns: u64) -> bool {
        self.started += 1;
        if self.lose_every.is_some_and(|every| self.started.is_multiple_of(every)) {
            return true;
        }
        let mut at = now_ns + self.service_ns;
        if self.stall.contains(&at) {
            at = self.stall.end;
        }
        self.queue.push_back((request, at));
        true
    }

    fn poll(&mut self, now_ns: u64, ended: &mut Vec<Ended>) {
        while let Some(&(request, at)) = self.queue.front()
            && at <= now_ns
        {
            self.queue.pop_front();
            ended.push(Ended { request, ok: true });
            if std::mem::take(&mut self.duplicate_next) {
                ended.push(Ended { request, ok: true });
            }
        }
    }

    fn check(&mut self, _ended: &Ended) -> Content {
        Content::Right
    }

    fn abandon(&mut self, _slot: u16) {
        self.abandoned += 1;
    }

    fn idle(&mut self, now_ns: u64, until_ns: u64) {
        let next = self.queue.front().map_or(until_ns, |&(_, at)| at.min(until_ns));
        self.clock.0.set(self.clock.0.get().max(next.max(now_ns)));
    }
}

fn load(pace: Pace, depth: u16, warmup_ms: u64, measure_ms: u64) -> Load {
    Load {
        pace,
        depth,
        warmup_ns: warmup_ms * MS,
        measure_ns: measure_ms * MS,
        lost_after_ns: 5_000 * MS,
    }
}

#[test]
fn an_open_loop_charges_a_stall_to_every_request_behind_it() {
    // 1 000/s for 1 s; nothing answers for 100 ms: about 100 requests waited 0..100 ms.
    let mut server = Server::new(10_000, 500 * MS..600 * MS);
    let tally = server.run(&load(Pace::Open { rate_per_s: 1_000.0 }, 256, 0, 1_000));
    let latency = tally.latency.summary().unwrap();
    assert_eq!(latency.samples, 1_000);
    assert!((95 * MS..=101 * MS).contains(&latency.max_ns), "{}", latency.max_ns);
    assert!((45 * MS..55 * MS).contains(&tally.latency.percentile(950_000).unwrap()));
    assert!(latency.p50_ns.unwrap() < 20_000);
}

#[test]
fn the_stall_also_shows_when_slots_run_out() {
    // Depth 1: the requests behind the stall cannot even be sent, and are charged all the same.
    let mut server = Server::new(10_000, 500 * MS..600 * MS);
    let tally = server.run(&load(Pace::Open { rate_per_s: 1_000.0 }, 1, 0, 1_000));
    assert_eq!(tally.latency.samples(), 1_000);
    assert!((45 * MS..55 * MS).contains(&tally.latency.percentile(950_000).unwrap()));
    assert_eq!(tally.unsent, 0);
}

#[test]
fn a_closed_loop_sees_the_same_stall_once() {
    // The contrast that shows why the open loop exists.
    let mut server = Server::new(10_000, 500 * MS..600 * MS);
    let tally = server.run(&load(Pace::Closed, 1, 0, 1_000));
    assert!(tally.latency.samples() > 10_000);
    assert!(tally.latency.percentile(999_000).unwrap() < 20_000);
    assert!(tally.latency.summary().unwrap().max_ns > 95 * MS);
}

#[test]
fn requests_never_sent_are_charged_until_the_end() {
    // Answers take 1 ms one at a time; 2 000/s are asked for: half is never sent.
    let mut server = Server::new(MS, 0..0);
    let tally = server.run(&load(Pace::Open { rate_per_s: 2_000.0 }, 1, 0, 1_000));
    assert!((980..1_020).contains(&tally.unsent), "{}", tally.unsent);
    assert!((980..1_002).contains(&tally.ended_in_window), "{}", tally.ended_in_window);
    assert_eq!(tally.latency.samples(), 2_000);
    assert!(tally.latency.percentile(500_000).unwrap() > 200 * MS);
}

#[test]
fn the_warm_up_is_excluded() {
    // A stall within the warm-up leaves no trace.
    let mut server = Server::new(10_000, 0..100 * MS);
    let tally = server.run(&load(Pace::Open { rate_per_s: 1_000.0 }, 64, 200, 500));
    assert_eq!(tally.latency.samples(), 500);
    assert!(tally.latency.summary().unwrap().max_ns < MS);
    assert!((tally.rate_per_s() - 1_000.0).abs() < 5.0, "{}", tally.rate_per_s());
}

#[test]
fn depth_bounds_what_is_in_flight() {
    for depth in [1, 2, 7, 64] {
        let mut server = Server::new(100_000, 0..0);
        let tally = server.run(&load(Pace::Closed, depth, 0, 100));
        let expected = f64::from(depth) * 10_000.0;
        assert!((tally.rate_per_s() / expected - 1.0).abs() < 0.1, "{}", tally.rate_per_s());
        assert!(tally.latency.percentile(500_000).unwrap() >= 100_000);
    }
}

#[test]
fn lost_requests_free_their_slot_and_are_counted() {
    let mut server = Server::new(10_000, 0..0);
    server.lose_every = Some(100);
    let mut plan = load(Pace::Open { rate_per_s: 1_000.0 }, 64, 0, 1_000);
    plan.lost_after_ns = 50 * MS;
    let tally = server.run(&plan);
    assert_eq!((tally.lost, server.abandoned), (10, 10));
    assert_eq!(tally.latency.samples(), 990);
}

#[test]
fn answers_to_nothing_in_flight_are_strays() {
    let mut server = Server::new(10_000, 0..0);
    server.duplicate_next = true;
    let tally = server.run(&load(Pace::Closed, 1, 0, 10));
    assert_eq!(tally.strays, 1);
}

/// Never answers and may not lose.
struct Dead(Virtual);

impl Work for Dead {
    const MAY_LOSE: bool = false;
    fn prepare(&mut self, _slot: u16) {}
    fn start(&mut self, _request: Request, _now_ns: u64) -> bool {
        true
    }
    fn poll(&mut self, _now_ns: u64, _ended: &mut Vec<Ended>) {}
    fn check(&mut self, _ended: &Ended) -> Content {
        Content::Unchecked
    }
    fn idle(&mut self, _now_ns: u64, until_ns: u64) {
        self.0.0.set(self.0.0.get().max(until_ns));
    }
}

#[test]
fn a_stuck_device_and_a_stop_end_the_run() {
    let clock = Virtual::default();
    let plan = load(Pace::Closed, 1, 0, 60_000);
    let go = AtomicBool::new(false);
    let outcome = run(&mut Dead(clock.clone()), &mut clock.clone(), &plan, &go);
    assert!(matches!(outcome, Err(LoadError::Stuck { .. })));
    let stop = AtomicBool::new(true);
    let outcome = run(&mut Dead(clock.clone()), &mut clock.clone(), &plan, &stop);
    assert!(matches!(outcome, Err(LoadError::Interrupted)));
}
