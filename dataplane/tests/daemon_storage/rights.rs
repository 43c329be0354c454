//! What a daemon's threads may do, as the kernel sees it (proc(5), /proc/PID/status).

use crate::guest::{Guest, Oracle};
use crate::host::{Daemon, Host, Scratch, disk};
use rustix::thread::CapabilitySet;

/// The threads of a daemon: each one's name, and what its status says. Those that io_uring has in
/// the kernel are not the daemon's.
fn threads(daemon: &Daemon) -> Vec<(String, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap();
    tasks
        .map(|task| {
            let task = task.unwrap().path();
            (read(task.join("comm")).trim().to_owned(), read(task.join("status")))
        })
        .filter(|(name, _): &(String, String)| !name.starts_with("iou-"))
        .collect()
}

/// The value of a line of a status.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.expect("the kernel tells it").trim()
}

fn capabilities(status: &str, name: &str) -> CapabilitySet {
    CapabilitySet::from_bits_retain(u64::from_str_radix(field(status, name), 16).unwrap())
}

/// Of a daemon under load, workers have no capability and a list of system calls, of which none
/// was missed; control has no capability that opening things again does not take.
#[test]
fn workers_have_no_rights_and_control_those_it_needs() {
    let scratch = Scratch::new();
    let text = "[[volume]]\nname = 'data'\nkind = 'file'\npath = 'DIR/data.img'\n\
                create = '1MiB'\n";
    let text = text.to_owned() + &disk("vda", "data");
    let workers = "[[worker]]\ncore = 0\n[[worker]]\ncore = 1";
    let host = Host::with_top(&scratch, "a", "region_mib = 16", workers, &text);
    let daemon = host.run();
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(1 << 20));
    guest.runs(100);
    let threads = threads(&daemon);
    let (workers, control): (Vec<_>, Vec<_>) =
        threads.iter().partition(|(name, _)| name.starts_with("worker-"));
    assert_eq!(workers.len(), 2, "{threads:?}");
    for (name, status) in &workers {
        for set in ["CapInh", "CapPrm", "CapEff"] {
            assert!(capabilities(status, set).is_empty(), "{name}: {set}");
        }
        // SECCOMP_MODE_FILTER
        assert_eq!((field(status, "Seccomp"), field(status, "NoNewPrivs")), ("2", "1"), "{name}");
    }
    assert!(control.len() > 1, "{threads:?}");
    for (name, status) in &control {
        assert_eq!((field(status, "Seccomp"), field(status, "NoNewPrivs")), ("0", "1"), "{name}");
        let given_up = CapabilitySet::SYS_ADMIN
            | CapabilitySet::SYS_PTRACE
            | CapabilitySet::SYS_MODULE
            | CapabilitySet::SYS_RAWIO
            | CapabilitySet::SYS_BOOT
            | CapabilitySet::SETUID
            | CapabilitySet::DAC_READ_SEARCH
            | CapabilitySet::MKNOD;
        for set in ["CapPrm", "CapEff"] {
            let has = capabilities(status, set);
            assert!(!has.intersects(given_up), "{name}: {set} {has:?}");
        }
    }
    assert_eq!(daemon.stats().forbidden_calls, 0);
    guest.verify();
    daemon.stop();
}
