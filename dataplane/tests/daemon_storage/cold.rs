//! Daemons that start without the targets of their remote volumes, whose sizes are stated.

use crate::guest::{Guest, Oracle};
use crate::host::{Host, Scratch, address, count, disk, export, file_target, remote, until};
use outboard::virtio::driver::DriverOp;
use std::net::SocketAddr;

const BYTES: u64 = 4 << 20;
const STATED: &str = "size = '4MiB'\nblock_bytes = 512\n";

/// A host that serves a file, and has a disk of what the other one serves.
fn host(scratch: &Scratch, name: &str, own: SocketAddr, other: &str, there: SocketAddr) -> Host {
    let nqn = |name: &str| format!("nqn.2025-01.org.example:{name}");
    let text = format!(
        "[[volume]]\nname = 'own'\nkind = 'file'\npath = 'DIR/{name}.img'\ncreate = '4MiB'\n"
    );
    let far = remote("far", &nqn(other), there) + STATED;
    let text = text + &export("own", &nqn(name), own) + &far + &disk(&format!("of-{name}"), "far");
    Host::new(scratch, name, &text)
}

#[test]
fn daemons_that_serve_each_other_start_in_any_order() {
    let (scratch, at_a, at_b) = (Scratch::new(), address(), address());
    let a = host(&scratch, "a", at_a, "b", at_b);
    let b = host(&scratch, "b", at_b, "a", at_a);
    let first = a.run();
    assert!(first.volume("far").state.contains("is the target running"));
    // A guest need not wait for the target either.
    let mut of_a = Guest::new(&scratch, "of-a", Oracle::new(BYTES));
    of_a.fill();
    let second = b.run();
    first.is_ready("far");
    second.is_ready("far");
    assert_eq!(of_a.drain().failed, 0);
    let mut of_b = Guest::new(&scratch, "of-b", Oracle::new(BYTES));
    for guest in [&mut of_a, &mut of_b] {
        guest.runs(200);
        guest.verify();
    }
    assert_eq!(count(&first.volume("far").connection, "reconnects"), 0);
    // Both at once, after an end of both.
    let (oracle_a, oracle_b) = (of_a.kill(), of_b.kill());
    first.kill();
    second.kill();
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| a.run());
        let second = b.run();
        (first.join().unwrap(), second)
    });
    for (name, oracle) in [("of-a", oracle_a), ("of-b", oracle_b)] {
        let mut guest = Guest::new(&scratch, name, oracle);
        guest.verify();
        guest.runs(50);
    }
    first.stop();
    second.stop();
}

#[test]
fn a_target_that_has_something_else_is_refused_by_name() {
    let (scratch, address) = (Scratch::new(), address());
    let far = Host::new(&scratch, "b", &file_target("data.img", address));
    let stated = |lines: &str| remote("far", crate::host::NQN, address) + lines;
    let text = stated("size = '8MiB'\nblock_bytes = 512\n") + &disk("vda", "far");
    let near = Host::new(&scratch, "a", &text);
    let daemon = near.run();
    let target = far.run();
    let there = "4194304 bytes in blocks of 512, where the [[volume]] states 8388608 bytes";
    daemon.says("far", there);
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(BYTES));
    until("I/O fails by name", || {
        guest.does(DriverOp::Read, 0, 1);
        (daemon.ended("vda", "medium_replaced") > 0).then_some(())
    });
    drop(guest);
    daemon.stop();
    // A target that is there is asked at the start.
    for (lines, words) in [
        ("size = '8MiB'\nblock_bytes = 512\n", "set `size = 4194304` in that [[volume]]"),
        ("size = '8MiB'\n", "has 8388608 bytes, but its target's has 4194304"),
        ("size = '4MiB'\nblock_bytes = 4096\n", "set `block_bytes = 512` in that [[volume]]"),
    ] {
        Host::new(&scratch, "c", &stated(lines)).is_refused(words);
    }
    target.stop();
    // With one of the two alone the target tells the other: it must be there.
    Host::new(&scratch, "c", &stated("size = '4MiB'\n")).is_refused("is the target running");
}
