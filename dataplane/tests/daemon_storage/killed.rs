//! A daemon that is killed under a guest which lives on, as QEMU does: the front end holds the list
//! of what is in flight, the next daemon goes on with it, and the guest never sees an error.

use crate::guest::{Guest, Oracle, Outcome, SLOTS};
use crate::host::{Daemon, Host, Scratch, disk, until};
use outboard::virtio::driver::DriverOp;
use outboard_sim::Rng;
use std::time::Duration;

const BYTES: u64 = 4 << 20;
const KILLS: u64 = 8;

fn local_disk() -> String {
    let volume = "[[volume]]\nname = 'data'\nkind = 'file'\npath = 'DIR/data.img'\n\
                  create = '4MiB'\n";
    volume.to_owned() + &disk("vda", "data")
}

#[track_caller]
fn again(host: &Host, scratch: &Scratch, guest: &mut Guest) -> Daemon {
    let daemon = host.run();
    let socket = scratch.path("disk-vda.sock");
    until("the disk is there again", || guest.driver.reconnect(&socket).ok());
    daemon
}

#[test]
fn what_is_in_flight_when_the_daemon_is_killed_ends_once_and_well() {
    let scratch = Scratch::new();
    let host = Host::new(&scratch, "a", &local_disk());
    let mut daemon = host.run();
    let mut guest = Guest::tracked(&scratch, "vda", Oracle::new(BYTES));
    guest.runs(200);
    let mut rng = Rng::new(u64::from(std::process::id()));
    let mut in_flight = 0;
    for _ in 0..KILLS {
        // A load that is never empty, until some moment in it.
        for _ in 0..rng.below(200) {
            guest.fill();
            while guest.in_flight() == usize::from(SLOTS) {
                let ended = guest.poll();
                assert!(ended.is_none_or(|(_, is_done)| is_done));
            }
        }
        guest.fill();
        std::thread::sleep(Duration::from_micros(rng.below(500)));
        daemon.kill();
        let waiting = guest.in_flight() as u64;
        daemon = again(&host, &scratch, &mut guest);
        let outcome = guest.drain();
        assert_eq!(outcome, Outcome { done: waiting, failed: 0 });
        in_flight += waiting;
    }
    assert!(in_flight > KILLS, "nothing was in flight: {in_flight}");
    guest.verify();
    guest.runs(200);
    assert!(guest.does(DriverOp::Flush, 0, 0));
    guest.verify();
    assert!(daemon.disk("vda").queue_faults.is_empty());
    drop(guest);
    daemon.stop();
}

#[test]
fn a_front_end_that_comes_back_after_a_stop_goes_on_too() {
    let scratch = Scratch::new();
    let host = Host::new(&scratch, "a", &local_disk());
    let daemon = host.run();
    let mut guest = Guest::tracked(&scratch, "vda", Oracle::new(BYTES));
    guest.runs(200);
    guest.fill();
    daemon.stop();
    let waiting = guest.in_flight() as u64;
    let daemon = again(&host, &scratch, &mut guest);
    assert_eq!(guest.drain(), Outcome { done: waiting, failed: 0 });
    // The same daemon, once more: the connection is made anew.
    guest.fill();
    let socket = scratch.path("disk-vda.sock");
    until("it takes the same front end again", || guest.driver.reconnect(&socket).ok());
    let waiting = guest.in_flight() as u64;
    assert_eq!(guest.drain(), Outcome { done: waiting, failed: 0 });
    guest.verify();
    drop(guest);
    daemon.stop();
}
