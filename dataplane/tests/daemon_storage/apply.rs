//! Volumes, disks and exports that come, change and go while others serve I/O, of which none may
//! fail; and applies that fail and change nothing.

use crate::guest::{Guest, Oracle};
use crate::host::{
    Daemon, Host, NQN, Scratch, address, disk, entries, export, file_target, remote, until,
};
use std::process::{Command, Output};

const OTHER: &str = "nqn.2025-01.org.example:other";
const ROUNDS: usize = 20;

fn mem(name: &str, size: &str) -> String {
    format!("[[volume]]\nname = '{name}'\nkind = 'mem'\nsize = '{size}'\n")
}

impl Host {
    /// Replaces the part of the configuration behind the usual top, and applies it.
    fn apply(&self, scratch: &Scratch, top: &str, text: &str, more: &[&str]) -> Output {
        let text = format!("{top}{text}").replace("DIR", &scratch.0.display().to_string());
        std::fs::write(&self.config, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_outboard"));
        command.args(["apply", "--config"]).arg(&self.config).args(more).output().unwrap()
    }

    #[track_caller]
    pub fn applies(&self, scratch: &Scratch, top: &str, text: &str) -> String {
        let output = self.apply(scratch, top, text, &[]);
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
        out
    }

    /// The configuration up to the first volume.
    pub fn top(&self) -> String {
        let text = std::fs::read_to_string(&self.config).unwrap();
        text.split("[[volume]]").next().unwrap().to_owned()
    }
}

#[test]
fn what_does_not_differ_fails_no_io() {
    let (scratch, listen, second) = (Scratch::new(), address(), address());
    let base = file_target("data.img", listen) + &disk("vda", "data");
    let target = Host::with_top(&scratch, "b", "region_mib = 48", "[[worker]]\ncore = 0", &base);
    let top = target.top();
    let running = target.run();
    let far = remote("far", NQN, listen) + &disk("far", "far");
    let initiator = Host::new(&scratch, "a", &far).run();
    let mut guests = [Guest::new(&scratch, "far", Oracle::new(4 << 20))];
    let file = |name: &str| {
        format!(
            "[[volume]]\nname = '{name}'\nkind = 'file'\npath = 'DIR/{name}.img'\ncreate = '1MiB'\n"
        )
    };
    let texts = [
        base.clone() + &mem("ram", "1MiB") + &disk("vdb", "ram") + &export("ram", OTHER, second),
        // The same names, the same socket and the same address on another volume.
        base.clone() + &file("two") + &disk("vdb", "two") + &export("two", OTHER, second),
        base.clone() + &mem("ram", "2MiB") + &disk("vdb", "ram").replace("disk-vdb", "disk-vdc"),
        base.clone() + &disk("vdb", "data"),
        base.clone(),
    ];
    for round in 0..ROUNDS {
        guests.iter_mut().for_each(Guest::fill);
        let text = &texts[round % texts.len()];
        let applied = std::thread::scope(|scope| {
            let apply = scope.spawn(|| target.applies(&scratch, &top, text));
            while !apply.is_finished() {
                guests[0].runs(20);
            }
            apply.join().unwrap()
        });
        assert!(applied.ends_with("applied\n"), "{applied}");
        // What has come works, and a guest is there when it goes again.
        if let 0 | 1 | 3 = round % texts.len() {
            let mut guest = Guest::new(&scratch, "vdb", Oracle::new(0));
            guest.until_served();
        }
        guests[0].runs(20);
    }
    guests[0].verify();
    let names: Vec<_> = running.stats().disks.iter().map(|it| it.name.clone()).collect();
    assert_eq!(names, ["vda"]);
    drop(guests);
    initiator.stop();
    running.stop();
}

/// On the side of the initiator: a remote volume comes, gets another target, and goes.
#[test]
fn a_remote_volume_comes_and_changes_its_target_and_goes_beside_others() {
    let (scratch, at_one, at_two) = (Scratch::new(), address(), address());
    let targets = [("one", NQN, at_one), ("two", OTHER, at_two)].map(|(name, nqn, at)| {
        let text = mem("data", "1MiB") + &export("data", nqn, at);
        (Host::new(&scratch, name, &text).run(), nqn)
    });
    let base = mem("ram", "4MiB") + &disk("vda", "ram");
    let host = Host::new(&scratch, "a", &base);
    let top = host.top();
    let running = host.run();
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(4 << 20));
    let far = |nqn, at| base.clone() + &remote("far", nqn, at) + &disk("vdb", "far");
    let mut oracles = [Oracle::new(1 << 20), Oracle::new(1 << 20)].map(Some);
    for round in 0..6 {
        let (text, target) = match round % 3 {
            0 => (far(NQN, at_one), Some(0)),
            1 => (far(OTHER, at_two), Some(1)),
            _ => (base.clone(), None),
        };
        let applied = std::thread::scope(|scope| {
            let apply = scope.spawn(|| host.applies(&scratch, &top, &text));
            while !apply.is_finished() {
                guest.runs(20);
            }
            apply.join().unwrap()
        });
        assert!(applied.ends_with("applied\n"), "{applied}");
        for (index, (it, nqn)) in targets.iter().enumerate() {
            let wanted = if target == Some(index) { 2 } else { 0 };
            let what = format!("target {index} has {wanted} connections in round {round}");
            until(&what, || (it.export(nqn).connections == wanted).then_some(()));
        }
        if let Some(index) = target {
            let (target, nqn) = &targets[index];
            let before = target.export(nqn).commands;
            let mut other = Guest::new(&scratch, "vdb", oracles[index].take().unwrap());
            other.verify();
            other.runs(200);
            other.verify();
            assert!(target.export(nqn).commands > before, "the I/O went elsewhere");
            oracles[index] = Some(other.kill());
        }
    }
    guest.verify();
    drop(guest);
    running.stop();
    for (target, _) in targets {
        target.stop();
    }
}

#[test]
fn a_disk_that_goes_ends_its_guests_io_first() {
    let scratch = Scratch::new();
    let one = mem("ram", "4MiB") + &disk("vda", "ram");
    let host = Host::new(&scratch, "a", &one);
    let top = host.top();
    let running = host.run();
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(4 << 20));
    for _ in 0..5 {
        guest.runs(50);
        guest.fill();
        host.applies(&scratch, &top, &mem("ram", "4MiB"));
        assert!(!scratch.path("disk-vda.sock").exists(), "its socket is left");
        let oracle = guest.kill();
        host.applies(&scratch, &top, &one);
        // The volume stayed, and with it the content.
        guest = Guest::new(&scratch, "vda", oracle);
        guest.verify();
    }
    drop(guest);
    running.stop();
}

#[track_caller]
fn state(daemon: &Daemon, scratch: &Scratch) -> Vec<String> {
    let mut all = entries(&scratch.0);
    let stats = daemon.stats();
    all.extend(stats.volumes.iter().map(|it| format!("volume {}", it.name)));
    all.extend(stats.disks.iter().map(|it| format!("disk {}", it.name)));
    all.extend(stats.exports.iter().map(|it| format!("export {} {}", it.nqn, it.listen)));
    for what in ["fd", "task"] {
        let count = std::fs::read_dir(format!("/proc/{}/{what}", daemon.pid())).unwrap().count();
        all.push(format!("{count} {what}"));
    }
    all
}

#[test]
fn what_cannot_be_changes_nothing() {
    let (scratch, listen, busy) = (Scratch::new(), address(), address());
    let base = file_target("data.img", listen) + &disk("vda", "data");
    let host = Host::with_top(&scratch, "a", "region_mib = 24", "[[worker]]\ncore = 0", &base);
    let top = host.top();
    let running = host.run();
    let _held = std::net::TcpListener::bind(busy).unwrap();
    let more = base.clone()
        + "[[volume]]\nname = 'new'\nkind = 'file'\npath = 'DIR/new.img'\ncreate = '1MiB'\n"
        + &mem("ram", "1MiB")
        + &disk("vdb", "ram");
    let missing = "[[volume]]\nname = 'none'\nkind = 'file'\npath = 'DIR/none.img'\n";
    let cases = [
        (more.clone() + missing, "none.img: no such file"),
        (more.clone() + &export("ram", OTHER, busy), "cannot listen on"),
        (more.clone() + &remote("far", OTHER, address()), "is the target running"),
        (
            more.clone()
                + &export("ram", OTHER, address())
                + "[[disk]]\nname = 'vdc'\nvolume = \
          'ram'\nsocket = 'DIR/a.log'\n",
            "a.log is not a socket",
        ),
        (base.replace("create = '4MiB'", "read_only = true"), "as it is now, has it locked"),
    ];
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(4 << 20));
    guest.runs(10);
    let before = state(&running, &scratch);
    for _ in 0..3 {
        for (text, words) in &cases {
            let refused = host.apply(&scratch, &top, text, &[]);
            let stderr = String::from_utf8_lossy(&refused.stderr);
            assert_eq!(refused.status.code(), Some(1), "{words}: {stderr}");
            assert!(stderr.contains(words), "wanted `{words}`: {stderr}");
            assert!(stderr.trim_end().ends_with("error: nothing was changed"), "{stderr}");
            // The client's connection ends a moment later.
            until(&format!("all is as before `{words}`"), || {
                (state(&running, &scratch) == before).then_some(())
            });
            assert_eq!(host.apply(&scratch, &top, &base, &["-n"]).status.code(), Some(0));
            guest.runs(20);
        }
    }
    guest.verify();
    drop(guest);
    // What was taken for exports that never came is there for one that comes.
    host.applies(&scratch, &top, &(base + &mem("ram", "1MiB") + &export("ram", OTHER, address())));
    until("it is there", || (running.stats().exports.len() == 2).then_some(()));
    running.stop_having_refused();
}
