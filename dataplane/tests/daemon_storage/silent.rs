//! Hosts and targets that neither answer nor end: stopped processes.

use crate::guest::{Guest, Oracle, SLOTS};
use crate::host::{Host, NQN, Scratch, address, address6, count, file_target, remote_disk, until};
use rustix::process::Signal;

const BYTES: u64 = 4 << 20;

#[test]
fn a_host_that_falls_silent_is_given_up_and_comes_back() {
    let (scratch, address) = (Scratch::new(), address());
    let target = Host::new(&scratch, "b", &file_target("data.img", address)).run();
    let initiator = Host::new(&scratch, "a", &remote_disk(address)).run();
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(BYTES));
    guest.runs(100);
    initiator.freeze();
    guest.fill();
    until("it is given up", || (target.export(NQN).connections == 0).then_some(()));
    assert_eq!(count(&target.export(NQN).errors, "keep_alive_expired"), 1);
    initiator.signal(Signal::CONT);
    assert_eq!(guest.drain().failed, 0);
    guest.verify();
    guest.runs(100);
    initiator.is_ready("far");
    assert_eq!(target.export(NQN).connections, 2);
    initiator.stop();
    target.stop();
}

#[test]
fn a_target_that_falls_silent_is_given_up_and_comes_back() {
    let (scratch, address) = (Scratch::new(), address6());
    let target = Host::new(&scratch, "b", &file_target("data.img", address)).run();
    let initiator = Host::new(&scratch, "a", &remote_disk(address)).run();
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(BYTES));
    guest.runs(100);
    target.freeze();
    guest.fill();
    initiator.says("far", "a keep-alive was not answered");
    target.signal(Signal::CONT);
    assert_eq!(guest.drain().failed, 0);
    initiator.is_ready("far");
    guest.verify();
    guest.runs(100);
    initiator.stop();
    target.stop();
}

#[test]
fn a_guest_that_dies_with_slow_io_leaves_the_disk_to_the_next_one() {
    let (scratch, address) = (Scratch::new(), address());
    let target = Host::new(&scratch, "b", &file_target("data.img", address)).run();
    let text = remote_disk(address)
        + "[[volume]]\nname = 'ram'\nkind = 'mem'\nsize = '1MiB'\n"
        + &crate::host::disk("vdb", "ram");
    let initiator = Host::new(&scratch, "a", &text).run();
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(BYTES));
    let mut other = Guest::new(&scratch, "vdb", Oracle::new(1 << 20));
    guest.runs(100);
    target.freeze();
    guest.fill();
    until("I/Os are in flight", || {
        (initiator.volume("far").in_flight == u32::from(SLOTS)).then_some(())
    });
    let oracle = guest.kill();
    other.runs(200);
    target.signal(Signal::CONT);
    let mut guest = Guest::new(&scratch, "vda", oracle);
    guest.until_served();
    guest.verify();
    guest.runs(100);
    other.verify();
    assert_eq!(initiator.disk("vda").queue_faults, []);
    initiator.stop();
    target.stop();
}

#[test]
fn a_daemon_ends_though_its_target_does_not_answer() {
    let (scratch, address) = (Scratch::new(), address());
    let target = Host::new(&scratch, "b", &file_target("data.img", address)).run();
    let initiator = Host::new(&scratch, "a", &remote_disk(address)).run();
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(BYTES));
    guest.runs(100);
    target.freeze();
    guest.fill();
    until("I/Os are in flight", || {
        (initiator.volume("far").in_flight == u32::from(SLOTS)).then_some(())
    });
    initiator.stop();
    target.signal(Signal::CONT);
    target.stop();
}
