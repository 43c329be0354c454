//! A daemon that is stopped (SIGTERM) and started again under guests that go on: no I/O fails and
//! nothing is lost. What is in flight ends before the daemon does, or stays in the list that the
//! front end keeps.

use crate::guest::{Guest, Oracle, Outcome};
use crate::host::{
    Daemon, Host, PATIENCE, Scratch, address, count, disk, file_target, remote_disk, until,
};
use rustix::process::Signal;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::time::Instant;

const BYTES: u64 = 4 << 20;
const ROUNDS: u64 = 10;
/// I/Os that end between two stops, at least.
const IOS: u64 = 150;

/// A local volume with a disk `vdb`.
fn local_disk() -> String {
    let volume = "[[volume]]\nname = 'data'\nkind = 'file'\npath = 'DIR/local.img'\n\
                  create = '4MiB'\n";
    volume.to_owned() + &disk("vdb", "data")
}

/// Stops the daemon while the guests go on, and checks that nobody is let in who would be cut off:
/// once a disk's connection has ended, its socket is gone.
#[track_caller]
fn stop_under(mut daemon: Daemon, scratch: &Scratch, guests: &mut [(&str, Guest)]) -> String {
    daemon.signal(Signal::TERM);
    let deadline = Instant::now() + PATIENCE;
    while !daemon.has_ended() {
        for (name, guest) in &mut *guests {
            guest.step();
            if !guest.driver.is_connected() {
                let knocked = UnixStream::connect(scratch.path(&format!("disk-{name}.sock")));
                let refused = knocked.err().map(|error| error.kind());
                assert_eq!(refused, Some(ErrorKind::NotFound), "it is let in");
            }
        }
        assert!(Instant::now() < deadline, "the daemon does not end\n{}", daemon.log());
    }
    daemon.stops()
}

#[track_caller]
fn start_under(host: &Host, scratch: &Scratch, guests: &mut [(&str, Guest)]) -> Daemon {
    let daemon = host.run();
    for (name, guest) in guests {
        let socket = scratch.path(&format!("disk-{name}.sock"));
        until("the disk is there again", || guest.driver.reconnect(&socket).ok());
    }
    daemon
}

#[test]
fn a_daemon_restarted_under_load_costs_no_io() {
    let (scratch, address) = (Scratch::new(), address());
    let far = Host::new(&scratch, "b", &file_target("data.img", address));
    let near = Host::new(&scratch, "a", &(remote_disk(address) + &local_disk()));
    let target = far.run();
    let mut daemon = near.run();
    let guest = |name| (name, Guest::tracked(&scratch, name, Oracle::new(BYTES)));
    let mut guests = [guest("vda"), guest("vdb")];
    for _ in 0..ROUNDS {
        guests.iter_mut().for_each(|(_, guest)| guest.keep_busy(IOS));
        stop_under(daemon, &scratch, &mut guests);
        assert!(guests.iter().all(|(_, guest)| guest.in_flight() > 0), "the load had ended");
        daemon = start_under(&near, &scratch, &mut guests);
    }
    for (_, guest) in &mut guests {
        guest.keep_busy(IOS);
        assert_eq!(guest.drain().failed, 0);
        guest.verify();
    }
    for name in ["vda", "vdb"] {
        assert_eq!(daemon.disk(name).queue_faults, []);
    }
    assert_eq!(count(&daemon.volume("far").connection, "ended_by_loss"), 0);
    drop(guests);
    daemon.stop();
    target.stop();
}

#[test]
fn what_waits_for_a_target_outlives_the_daemon() {
    let (scratch, address) = (Scratch::new(), address());
    let far = Host::new(&scratch, "b", &file_target("data.img", address));
    let near = Host::new(&scratch, "a", &remote_disk(address));
    let mut daemon = near_after(&far, &near);
    let mut guests = [("vda", Guest::tracked(&scratch, "vda", Oracle::new(BYTES)))];
    for _ in 0..3 {
        guests[0].1.keep_busy(IOS);
        daemon.target.kill();
        daemon.near.says("far", "cannot connect");
        // What ended before is replaced, and then nothing ends: it is left to the next daemon.
        while guests[0].1.step() {}
        stop_under(daemon.near, &scratch, &mut guests);
        assert!(!guests[0].1.step(), "something ended without a target");
        let target = far.run();
        daemon = Both { target, near: start_under(&near, &scratch, &mut guests) };
    }
    guests[0].1.keep_busy(IOS);
    assert_eq!(guests[0].1.drain().failed, 0);
    guests[0].1.verify();
    drop(guests);
    daemon.near.stop();
    daemon.target.stop();
}

/// A guest that is paused during an outage: its front end must not wait for the target.
#[test]
fn rings_that_stop_without_a_target_leave_what_they_have() {
    let (scratch, address) = (Scratch::new(), address());
    let far = Host::new(&scratch, "b", &file_target("data.img", address));
    let near = Host::new(&scratch, "a", &remote_disk(address));
    let Both { target, near: daemon } = near_after(&far, &near);
    let mut guest = Guest::tracked(&scratch, "vda", Oracle::new(BYTES));
    guest.keep_busy(IOS);
    target.kill();
    daemon.says("far", "cannot connect");
    while guest.step() {}
    let waiting = guest.in_flight();
    guest.driver.stop(0).expect("the ring stops");
    assert!(guest.poll().is_none(), "something ended without a target");
    let socket = scratch.path("disk-vda.sock");
    until("the disk is there again", || guest.driver.reconnect(&socket).ok());
    let target = far.run();
    let outcome = guest.drain();
    assert_eq!(outcome, Outcome { done: waiting as u64, failed: 0 });
    guest.runs(IOS);
    guest.verify();
    drop(guest);
    daemon.stop();
    target.stop();
}

struct Both {
    target: Daemon,
    near: Daemon,
}

fn near_after(far: &Host, near: &Host) -> Both {
    let target = far.run();
    Both { target, near: near.run() }
}
