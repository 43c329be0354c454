//! What a daemon cannot start with: one sentence that says what to do, and nothing left behind.

use crate::host::{
    Host, NQN, Scratch, address, disk, entries, export, file_target, remote, remote_disk,
};
use std::net::TcpListener;

/// Runs a daemon with this configuration: refused with these words, and leaves nothing.
#[track_caller]
fn refuse(scratch: &Scratch, text: &str, words: &str) {
    refuse_host(scratch, &Host::new(scratch, "refused", text), words);
}

#[track_caller]
fn refuse_host(scratch: &Scratch, host: &Host, words: &str) {
    let before = entries(&scratch.0);
    host.is_refused(words);
    assert_eq!(entries(&scratch.0), before, "something is left");
}

/// Disks and volumes that are made before the thing that fails.
fn others() -> String {
    "[[volume]]\nname = 'ram'\nkind = 'mem'\nsize = '1MiB'\n\
     [[volume]]\nname = 'new'\nkind = 'file'\npath = 'DIR/new.img'\ncreate = '1MiB'\n"
        .to_owned()
        + &disk("ram", "ram")
        + &disk("new", "new")
}

#[test]
fn addresses_that_cannot_be_listened_on() {
    let scratch = Scratch::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let words = "another process listens there; stop it or choose another port";
    refuse(&scratch, &(others() + &export("ram", NQN, address)), words);
    let words = "export of volume `new`: cannot listen on";
    refuse(&scratch, &(others() + &export("new", NQN, address)), words);
    let nowhere = "192.0.2.1:4420".parse().unwrap();
    let words = "this host does not have the address; assign it or choose one that it has";
    refuse(&scratch, &(others() + &export("ram", NQN, nowhere)), words);
}

#[test]
fn targets_that_do_not_have_what_is_wanted() {
    let scratch = Scratch::new();
    let nobody = address();
    let words = format!("volume `far`: cannot connect to {nobody}: Connection refused");
    refuse(&scratch, &(others() + &remote_disk(nobody)), &words);
    let address = address();
    let target = Host::new(&scratch, "b", &file_target("data.img", address)).run();
    let other = remote("far", "nqn.2025-01.org.example:other", address);
    let words = "subsystem nqn.2025-01.org.example:other: ";
    refuse(&scratch, &(others() + &other), words);
    refuse(&scratch, &(others() + &other), "is the subsystem's name right?");
    let second = remote("far", NQN, address) + "nsid = 2\n";
    refuse(
        &scratch,
        &(others() + &second),
        "is `nsid` right? An export of Outboard has namespace 1 alone",
    );
    let blocks = remote("far", NQN, address) + "block_bytes = 4096\n";
    refuse(&scratch, &(others() + &blocks), "its target's have 512; set `block_bytes = 512`");
    // None of them stays at the target.
    crate::host::until("they are gone", || (target.export(NQN).connections == 0).then_some(()));
    target.stop();
}

#[test]
fn a_target_that_never_answers() {
    let scratch = Scratch::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    refuse(
        &scratch,
        &(others() + &remote_disk(address)),
        "setting up failed: no answer in time; is an NVMe/TCP target there",
    );
}

#[test]
fn a_file_that_another_daemon_has() {
    let scratch = Scratch::new();
    let text = file_target("data.img", address()) + &disk("first", "data");
    let first = Host::new(&scratch, "b", &text).run();
    let text = "[[volume]]\nname = 'mine'\nkind = 'file'\npath = 'DIR/data.img'\n";
    let words = "data.img is in use by another volume, daemon or mount; stop that";
    for more in ["", "read_only = true\n"] {
        refuse(&scratch, &(others() + text + more + &disk("mine", "mine")), words);
    }
    // Its socket too.
    let words = "is in use: another process answers there; stop it";
    refuse(&scratch, &(others() + &disk("first", "ram")), words);
    first.stop();
}

#[test]
fn files_that_are_missing_or_odd() {
    let scratch = Scratch::new();
    let text = others() + "[[volume]]\nname = 'mine'\nkind = 'file'\npath = 'DIR/mine.img'\n";
    // The key is the configuration's own.
    refuse(&scratch, &text, "mine.img: no such file; set `create` to have it made");
    std::fs::write(scratch.path("mine.img"), [0; 700]).unwrap();
    refuse(&scratch, &text, "mine.img has 700 bytes, which is not a multiple");
}
