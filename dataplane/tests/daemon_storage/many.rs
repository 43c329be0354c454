//! Several disks, exports and workers at once; and workers that sleep.

use crate::guest::{Guest, Oracle};
use crate::host::{Host, NQN, Scratch, address, count, disk, export, file_target, remote, until};

const SECOND: &str = "nqn.2025-01.org.example:second";
const FIRST: &str = "nqn.2025-01.org.example:first";

#[test]
fn disks_and_exports_share_workers_and_volumes_have_theirs() {
    let (scratch, first, second) = (Scratch::new(), address(), address());
    let text = "[[volume]]\nname = 'one'\nkind = 'file'\npath = 'DIR/one.img'\ncreate = '2MiB'\n\
                [[volume]]\nname = 'two'\nkind = 'mem'\nsize = '2MiB'\nblock_bytes = 4096\n\
                [[volume]]\nname = 'three'\nkind = 'mem'\nsize = '1MiB'\nworker = 1\n"
        .to_owned()
        + &export("one", FIRST, first)
        + &export("two", SECOND, second)
        + &disk("three", "three");
    let workers = "[[worker]]\ncore = 0\n[[worker]]\ncore = 1";
    let target = Host::with_top(&scratch, "b", "region_mib = 64", workers, &text).run();
    let text = remote("one", FIRST, first)
        + &remote("two", SECOND, second)
        + "worker = 1\n"
        + "[[volume]]\nname = 'ram'\nkind = 'mem'\nsize = '1MiB'\nworker = 1\n"
        + &disk("one", "one")
        + &disk("two", "two")
        + &disk("ram", "ram");
    let initiator = Host::with_top(&scratch, "a", "region_mib = 16", workers, &text).run();
    let mut guests = [("one", 2), ("two", 2), ("three", 1), ("ram", 1)]
        .map(|(name, mib)| Guest::new(&scratch, name, Oracle::new(mib << 20)));
    for _ in 0..20 {
        guests.iter_mut().for_each(Guest::fill);
        for guest in &mut guests {
            assert_eq!(guest.drain().failed, 0);
            guest.runs(20);
        }
    }
    guests.iter_mut().for_each(Guest::verify);
    // One target's export ends with its daemon, the other volumes of the host go on.
    target.kill();
    let [one, two, _three, ram] = &mut guests;
    one.fill();
    two.fill();
    ram.runs(100);
    assert_eq!((one.poll(), two.poll()), (None, None), "they wait for it");
    ram.verify();
    initiator.stop();
}

#[test]
fn two_disks_and_two_exports_of_one_volume() {
    let (scratch, first, second) = (Scratch::new(), address(), address());
    let text = "[[volume]]\nname = 'data'\nkind = 'file'\npath = 'DIR/data.img'\ncreate = '1MiB'\n"
        .to_owned()
        + &disk("vda", "data")
        + &disk("vdb", "data")
        + &export("data", FIRST, first)
        + &export("data", SECOND, second);
    let target = Host::with_top(&scratch, "b", "region_mib = 32", "[[worker]]\ncore = 0", &text);
    let target = target.run();
    let text = remote("one", FIRST, first)
        + &remote("two", SECOND, second)
        + &disk("one", "one")
        + &disk("two", "two");
    let initiator = Host::new(&scratch, "a", &text).run();
    // Each one in turn finds what the one before wrote.
    let mut oracle = Oracle::new(1 << 20);
    for _ in 0..2 {
        for name in ["vda", "one", "vdb", "two"] {
            let mut guest = Guest::new(&scratch, name, oracle);
            guest.verify();
            guest.runs(60);
            oracle = guest.kill();
        }
    }
    initiator.stop();
    target.stop();
}

#[test]
fn workers_that_sleep_wake_for_connections_and_io() {
    let (scratch, address) = (Scratch::new(), address());
    let text = file_target("data.img", address);
    let target = Host::new(&scratch, "b", &text).run();
    let sleeps = |daemon: &crate::host::Daemon| -> u64 {
        daemon.stats().workers.iter().map(|worker| worker.sleeps).sum()
    };
    let asleep = |daemon: &crate::host::Daemon| {
        let before = sleeps(daemon);
        until("it sleeps", || (sleeps(daemon) > before + 2).then_some(()));
    };
    asleep(&target);
    let initiator = Host::new(&scratch, "a", &crate::host::remote_disk(address)).run();
    asleep(&target);
    asleep(&initiator);
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(4 << 20));
    asleep(&initiator);
    for _ in 0..5 {
        guest.fill();
        assert_eq!(guest.drain().failed, 0);
        asleep(&target);
        asleep(&initiator);
    }
    guest.verify();
    initiator.stop();
    asleep(&target);
    target.stop();
}

#[test]
fn as_many_hosts_as_an_export_serves_and_one_more() {
    let (scratch, address) = (Scratch::new(), address());
    let target = Host::new(&scratch, "b", &file_target("data.img", address)).run();
    // Two connections each, of 32.
    let volumes = |count: u32| -> String {
        let text = |n| {
            remote(&format!("far{n}"), NQN, address) + &disk(&format!("d{n}"), &format!("far{n}"))
        };
        (0..count).map(text).collect()
    };
    let all = Host::new(&scratch, "a", &volumes(16)).run();
    assert_eq!(target.export(NQN).connections, 32);
    let mut oracle = Oracle::new(4 << 20);
    for name in ["d0", "d15"] {
        let mut guest = Guest::new(&scratch, name, oracle);
        guest.runs(100);
        oracle = guest.kill();
    }
    let more = Host::new(&scratch, "c", &remote("far", NQN, address));
    more.is_refused("is an NVMe/TCP target there, with room for another host?");
    let mut guest = Guest::new(&scratch, "d7", oracle);
    guest.runs(100);
    assert_eq!(target.export(NQN).connections, 32);
    assert!(count(&target.export(NQN).errors, "connection_refused") > 0);
    all.stop();
    until("they are gone", || (target.export(NQN).connections == 0).then_some(()));
    more.run().stop();
    target.stop();
}

#[test]
fn ipv6_serves_as_well() {
    let scratch = Scratch::new();
    let address = std::net::TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap();
    let target = Host::new(&scratch, "b", &file_target("data.img", address)).run();
    let initiator = Host::new(&scratch, "a", &crate::host::remote_disk(address)).run();
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(4 << 20));
    guest.runs(100);
    guest.verify();
    initiator.stop();
    target.stop();
}
