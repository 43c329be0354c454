//! `kill -9` at random moments of a verified load: of the target, of the initiator, of both. No
//! I/O may fail, and every block holds what was written to it last.

use crate::guest::{Guest, Oracle};
use crate::host::{Host, Scratch, address, address6, count, file_target, remote_disk, until};
use outboard_sim::Rng;
use std::net::SocketAddr;
use std::time::Duration;

const BYTES: u64 = 4 << 20;
/// The most I/Os between two kills.
const IOS: u64 = 400;

/// Rounds of each kind: a few, or many when the long tests are asked for.
fn rounds() -> u64 {
    if std::env::var_os("OUTBOARD_TEST_LONG").is_some() { 20 } else { 3 }
}

/// One of the rounds is over IPv6.
#[test]
fn kills_at_random_moments_cost_no_io() {
    let longest = kills(address(), rounds() - 1).max(kills(address6(), 1));
    println!("told: the longest pause of I/O was {longest:?}");
}

/// Kills a target at this address and its initiator; the longest pause of I/O.
fn kills(address: SocketAddr, rounds: u64) -> Duration {
    let scratch = Scratch::new();
    let far = Host::new(&scratch, "b", &file_target("data.img", address));
    let near = Host::new(&scratch, "a", &remote_disk(address));
    let (mut target, mut initiator) = (far.run(), near.run());
    // A front end that outlives the daemon, as QEMU does.
    let mut guest = Guest::tracked(&scratch, "vda", Oracle::new(BYTES));
    let socket = scratch.path("disk-vda.sock");
    // The moments are different in every run, as kills are.
    let mut rng = Rng::new(u64::from(std::process::id()));
    let mut longest = Duration::ZERO;
    for _ in 0..rounds {
        for (of_target, of_initiator) in [(true, false), (false, true), (true, true)] {
            guest.keep_busy(1 + rng.below(IOS));
            std::thread::sleep(Duration::from_micros(rng.below(3_000)));
            if of_target {
                target.kill();
                target = far.run();
            }
            if of_initiator {
                initiator.kill();
                initiator = near.run();
                until("the disk is there again", || guest.driver.reconnect(&socket).ok());
            }
            guest.keep_busy(IOS);
            longest = longest.max(guest.longest_pause);
        }
        assert_eq!(guest.drain().failed, 0);
        guest.verify();
    }
    assert_eq!(count(&initiator.volume("far").connection, "ended_by_loss"), 0);
    assert_eq!(initiator.disk("vda").queue_faults, []);
    initiator.stop();
    target.stop();
    longest
}

#[test]
fn a_target_that_is_killed_while_the_initiator_comes_back_costs_no_io() {
    let (scratch, address) = (Scratch::new(), address());
    let far = Host::new(&scratch, "b", &file_target("data.img", address));
    let near = Host::new(&scratch, "a", &remote_disk(address));
    let (mut target, initiator) = (far.run(), near.run());
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(BYTES));
    for _ in 0..rounds() {
        guest.keep_busy(100);
        target.kill();
        target = far.run();
        // Perhaps before the volume is back.
        target.kill();
        target = far.run();
        guest.keep_busy(100);
    }
    assert_eq!(guest.drain().failed, 0);
    guest.verify();
    until("the counts are there", || {
        let losses = count(&initiator.volume("far").connection, "losses");
        (losses >= rounds()).then_some(())
    });
    initiator.stop();
    target.stop();
}
