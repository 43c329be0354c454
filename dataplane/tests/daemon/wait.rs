//! The three ways to wait.

use crate::process::Daemon;
use crate::world::{Options, World};
use rustix::process::Signal;
use std::time::Duration;

/// The same for every mode.
fn echoes(mode: &'static str) {
    let (world, a, b) = World::running(Options { mode, ..Options::default() });
    assert_eq!(a.stats().wait_mode, mode);
    for port in ["blue", "red"] {
        let (near, far) = (world.a.tenant(port), world.b.tenant(port));
        assert!(near.pings(far.address, "-c 10") && near.pings(world.gateway, "-c 10"));
    }
    let sleeps: u64 = a.stats().workers.iter().map(|worker| worker.sleeps).sum();
    assert_eq!(sleeps > 0, mode == "adaptive");
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}

#[test]
fn busy() {
    echoes("busy");
}

#[test]
fn yielding() {
    echoes("yield");
}

/// Clock ticks (of 10 ms) that the workers of a daemon have run.
pub fn worker_ticks(daemon: &Daemon) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().flatten();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    let workers = stats.filter(|stat| stat.contains("(worker-"));
    let ticks = workers.map(|stat| {
        // After the name in brackets: state is field 3, utime 14, stime 15 (proc(5)).
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        let fields: Vec<&str> = rest.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    });
    ticks.sum()
}

/// Asserts that the workers sleep nearly all the time.
#[track_caller]
pub fn workers_sleep(daemon: &Daemon) {
    let (ticks, before) = (worker_ticks(daemon), daemon.stats());
    std::thread::sleep(Duration::from_secs(2));
    let (ticks, after) = (worker_ticks(daemon) - ticks, daemon.stats());
    for (before, after) in before.workers.iter().zip(&after.workers) {
        assert!(after.sleeps > before.sleeps, "a worker does not sleep");
    }
    // A worker that spins runs 200 ticks, less what others take from it.
    assert!(ticks <= 40, "workers that have nothing to do ran {ticks} of 200 ticks each");
}

#[test]
fn adaptive_workers_sleep_when_there_is_nothing_to_do() {
    echoes("adaptive");
    let (_world, a, b) = World::running(Options::default());
    workers_sleep(&b);
    workers_sleep(&a);
}
