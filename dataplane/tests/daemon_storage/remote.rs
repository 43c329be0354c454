//! A guest's disk at another host, whose daemon goes and comes back.

use crate::guest::{Guest, Oracle, Outcome, SLOTS};
use crate::host::{
    Daemon, Host, NQN, Scratch, address, address6, count, disk, export, file_target, remote,
    remote_disk, until,
};
use outboard::virtio::driver::DriverOp;
use std::net::SocketAddr;

const BYTES: u64 = 4 << 20;

/// Two hosts: `a` has a disk on a remote volume that `b` exports.
struct Pair {
    scratch: Scratch,
    address: SocketAddr,
    a: Host,
    b: Host,
}

impl Pair {
    fn new(target: impl FnOnce(SocketAddr) -> String) -> Pair {
        Pair::at(address(), target)
    }

    fn at(address: SocketAddr, target: impl FnOnce(SocketAddr) -> String) -> Pair {
        let scratch = Scratch::new();
        let b = Host::new(&scratch, "b", &target(address));
        let a = Host::new(&scratch, "a", &remote_disk(address));
        Pair { scratch, address, a, b }
    }

    fn run(&self) -> (Daemon, Daemon, Guest) {
        let target = self.b.run();
        let initiator = self.a.run();
        let mut guest = Guest::new(&self.scratch, "vda", Oracle::new(BYTES));
        guest.runs(300);
        assert!(guest.does(DriverOp::Flush, 0, 0));
        (initiator, target, guest)
    }
}

/// Asserts that the loss is known, said, and ends no I/O: it waits.
#[track_caller]
fn is_awaited(pair: &Pair, initiator: &Daemon, guest: &mut Guest) {
    initiator.says("far", "is the target running, and reachable?");
    // What had ended before; then nothing ends.
    while guest.poll().is_some() {}
    guest.fill();
    until("they wait in line", || {
        (initiator.volume("far").in_flight == u32::from(SLOTS)).then_some(())
    });
    assert_eq!(guest.poll(), None);
    let shown = pair.a.shown();
    assert!(shown.contains(&format!("cannot connect to {}", pair.address)), "{shown}");
    assert!(shown.contains("losses"), "{shown}");
}

/// How often the connection of volume `far` went through this.
fn connection(initiator: &Daemon, what: &str) -> u64 {
    count(&initiator.volume("far").connection, what)
}

/// Asserts that all is well again, with what was there before.
#[track_caller]
fn is_back(initiator: &Daemon, guest: &mut Guest) {
    initiator.is_ready("far");
    guest.until_served();
    guest.verify();
    guest.runs(300);
    guest.verify();
}

#[test]
fn io_in_flight_survives_a_target_that_is_killed() {
    let pair = Pair::new(|address| file_target("data.img", address));
    let (initiator, target, mut guest) = pair.run();
    // Stopped first, so that all of these are in flight when it dies.
    target.freeze();
    guest.fill();
    until("I/Os are in flight", || {
        (initiator.volume("far").in_flight == u32::from(SLOTS)).then_some(())
    });
    target.kill();
    is_awaited(&pair, &initiator, &mut guest);
    let target = pair.b.run();
    assert_eq!(guest.drain(), Outcome { done: u64::from(SLOTS), failed: 0 });
    is_back(&initiator, &mut guest);
    assert!(connection(&initiator, "reissued") >= u64::from(SLOTS));
    // And once more, wherever it is in its work.
    guest.fill();
    target.kill();
    let target = pair.b.run();
    assert_eq!(guest.drain().failed, 0);
    is_back(&initiator, &mut guest);
    assert_eq!(connection(&initiator, "losses"), 2);
    assert_eq!(connection(&initiator, "reconnects"), 2);
    assert_eq!(connection(&initiator, "fences"), 3);
    assert_eq!(connection(&initiator, "ended_by_loss"), 0);
    assert_eq!(initiator.disk("vda").queue_faults, []);
    initiator.stop();
    target.stop();
}

#[test]
fn io_in_flight_survives_a_target_that_is_stopped() {
    let pair = Pair::at(address6(), |address| file_target("data.img", address));
    let (initiator, target, mut guest) = pair.run();
    guest.fill();
    target.stop();
    is_awaited(&pair, &initiator, &mut guest);
    let target = pair.b.run();
    assert_eq!(guest.drain().failed, 0);
    is_back(&initiator, &mut guest);
    let log = initiator.stop();
    target.stop();
    assert!(log.contains(&format!("lost {}", pair.address)), "{log}");
    assert_eq!(log.matches("cannot connect to").count(), 1, "said again and again: {log}");
}

#[test]
fn a_volume_that_is_not_to_wait_fails_its_io_by_name() {
    let (scratch, address) = (Scratch::new(), address());
    let b = Host::new(&scratch, "b", &file_target("data.img", address));
    let text = remote("far", NQN, address) + "loss_timeout_s = 0\n" + &disk("vda", "far");
    let (target, initiator) = (b.run(), Host::new(&scratch, "a", &text).run());
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(BYTES));
    guest.runs(100);
    target.freeze();
    guest.fill();
    until("I/Os are in flight", || {
        (initiator.volume("far").in_flight == u32::from(SLOTS)).then_some(())
    });
    target.kill();
    let in_flight = guest.drain();
    assert!(in_flight.failed > 0, "{in_flight:?}");
    assert_eq!(initiator.ended("vda", "connection_lost"), in_flight.failed);
    let failed = u64::from(SLOTS);
    assert_eq!(guest.run(failed), Outcome { done: 0, failed });
    assert_eq!(initiator.ended("vda", "not_connected"), failed);
    let target = b.run();
    is_back(&initiator, &mut guest);
    initiator.stop();
    target.stop();
}

#[test]
fn a_daemon_of_the_same_name_takes_the_place_of_the_one_before() {
    let pair = Pair::new(|address| file_target("data.img", address));
    let (initiator, target, mut guest) = pair.run();
    // The same instance as another process, with a control socket of its own.
    let text = std::fs::read_to_string(&pair.a.config).unwrap().replace("a.sock", "c.sock");
    let second = Host::new(&pair.scratch, "c", "");
    std::fs::write(&second.config, text.replace("disk-vda", "disk-vdc")).unwrap();
    let second = second.run();
    initiator.says("far", "this one's epoch is of the past; its I/O fails");
    assert_eq!(guest.run(20).done, 0);
    assert!(initiator.ended("vda", "stale") > 0);
    until("the refusal is counted", || {
        (count(&target.export(NQN).errors, "stale_refusals") > 0).then_some(())
    });
    let mut guest = Guest::new(&pair.scratch, "vdc", guest.kill());
    guest.verify();
    guest.runs(100);
    second.stop();
    initiator.stop();
    target.stop();
}

#[test]
fn memory_that_is_new_after_a_restart_is_not_taken_for_the_old() {
    let volume = "[[volume]]\nname = 'data'\nkind = 'mem'\nsize = '4MiB'\n";
    let pair = Pair::new(|address| volume.to_owned() + &export("data", NQN, address));
    let (initiator, target, mut guest) = pair.run();
    target.freeze();
    guest.fill();
    until("I/Os are in flight", || {
        (initiator.volume("far").in_flight == u32::from(SLOTS)).then_some(())
    });
    target.kill();
    let target = pair.b.run();
    initiator.says("far", "another namespace, or one of another size, is there now");
    let outcome = guest.drain();
    assert_eq!((outcome.done, outcome.failed), (0, u64::from(SLOTS)), "what was in flight");
    let outcome = guest.run(u64::from(SLOTS));
    assert_eq!(outcome.done, 0, "I/O reached another volume");
    assert_eq!(initiator.ended("vda", "medium_replaced"), 2 * u64::from(SLOTS));
    until("it leaves", || (target.export(NQN).connections == 0).then_some(()));
    assert_eq!(target.export(NQN).commands, 0);
    // Whoever restarts it accepts the new one.
    initiator.stop();
    drop(guest);
    let initiator = pair.a.run();
    Guest::new(&pair.scratch, "vda", Oracle::new(BYTES)).runs(100);
    initiator.stop();
    target.stop();
}

#[test]
fn a_target_of_another_size_is_not_taken_for_the_old() {
    let pair = Pair::new(|address| file_target("data.img", address));
    let (initiator, target, mut guest) = pair.run();
    target.stop();
    let file = std::fs::File::options().write(true).open(pair.scratch.path("data.img")).unwrap();
    file.set_len(2 * BYTES).unwrap();
    let target = pair.b.run();
    initiator.says("far", "another namespace, or one of another size, is there now");
    assert_eq!(guest.run(u64::from(SLOTS)).done, 0);
    target.stop();
    file.set_len(BYTES).unwrap();
    let target = pair.b.run();
    is_back(&initiator, &mut guest);
    initiator.stop();
    target.stop();
}

#[test]
fn a_host_may_pass_on_what_it_has_from_another() {
    let (scratch, first, second) = (Scratch::new(), address(), address());
    let source = Host::new(&scratch, "c", &file_target("data.img", first));
    let target = source.run();
    let nqn = "nqn.2025-01.org.example:passed-on";
    let text = remote("far", NQN, first) + &export("far", nqn, second);
    let relay = Host::new(&scratch, "b", &text).run();
    let text = remote("far", nqn, second) + &disk("vda", "far");
    let initiator = Host::new(&scratch, "a", &text).run();
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(BYTES));
    guest.runs(200);
    target.freeze();
    guest.fill();
    until("I/Os wait in the middle", || {
        (relay.volume("far").in_flight == u32::from(SLOTS)).then_some(())
    });
    target.kill();
    let target = source.run();
    assert_eq!(guest.drain().failed, 0);
    assert_eq!(initiator.volume("far").state, "ready", "the one in the middle is well");
    assert_eq!(count(&relay.volume("far").connection, "losses"), 1);
    guest.verify();
    guest.runs(200);
    initiator.stop();
    relay.stop();
    target.stop();
}

#[test]
fn a_target_that_is_killed_can_be_started_at_once() {
    let pair = Pair::new(|address| file_target("data.img", address));
    let (initiator, mut target, mut guest) = pair.run();
    for _ in 0..8 {
        guest.fill();
        target.kill();
        // Its lock on the file and its port must be free by now.
        target = pair.b.run();
        guest.drain();
        guest.until_served();
    }
    is_back(&initiator, &mut guest);
    initiator.stop();
    target.stop();
}

#[test]
fn a_host_that_dies_gives_its_connections_back() {
    let pair = Pair::new(|address| file_target("data.img", address));
    let (mut initiator, target, mut guest) = pair.run();
    for _ in 0..3 {
        assert_eq!(target.export(NQN).connections, 2);
        guest.fill();
        initiator.kill();
        let oracle = guest.kill();
        until("the target has freed them", || (target.export(NQN).connections == 0).then_some(()));
        initiator = pair.a.run();
        guest = Guest::new(&pair.scratch, "vda", oracle);
        guest.verify();
        guest.runs(200);
    }
    target.stop();
    initiator.stop();
}

#[test]
fn a_second_host_reads_what_the_first_one_wrote() {
    let pair = Pair::new(|address| file_target("data.img", address));
    let (initiator, target, mut guest) = pair.run();
    guest.runs(500);
    initiator.stop();
    let oracle = guest.kill();
    // On the target's own host, from the file itself.
    target.stop();
    let text = "[[volume]]\nname = 'data'\nkind = 'file'\npath = 'DIR/data.img'\n";
    let local = Host::new(&pair.scratch, "c", &(text.to_owned() + &disk("vda", "data")));
    let local = local.run();
    Guest::new(&pair.scratch, "vda", oracle).verify();
    local.stop();
}
