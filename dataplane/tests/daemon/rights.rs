//! What the threads of a running daemon may do, as the kernel tells it (proc(5)).

use crate::process::Daemon;
use crate::world::{Options, World};
use rustix::process::Signal;
use std::path::Path;

/// What control needs to open things again: CHOWN, DAC_OVERRIDE, FOWNER, SETPCAP,
/// NET_BIND_SERVICE, NET_ADMIN, NET_RAW, IPC_LOCK, SYS_NICE, SYS_RESOURCE, PERFMON and BPF, by
/// their numbers (capabilities(7), linux/capability.h).
const CONTROL_MAY: [u32; 12] = [0, 1, 3, 8, 10, 12, 13, 14, 23, 24, 38, 39];

/// A thread's name and its rights.
struct Thread {
    name: String,
    status: String,
}

impl Thread {
    fn new(task: &Path) -> Thread {
        let read = |file: &str| std::fs::read_to_string(task.join(file)).unwrap();
        Thread { name: read("comm").trim().to_owned(), status: read("status") }
    }

    /// What the kernel says of a thread.
    #[track_caller]
    fn field(&self, name: &str) -> &str {
        let line = self.status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name} in\n{}", self.status)).trim()
    }

    #[track_caller]
    fn capabilities(&self, set: &str) -> u64 {
        u64::from_str_radix(self.field(set), 16).unwrap()
    }
}

fn threads(daemon: &Daemon) -> Vec<Thread> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    tasks.map(|task| Thread::new(&task.unwrap().path())).collect()
}

#[track_caller]
fn are_confined(daemon: &Daemon, workers: usize) {
    let may = CONTROL_MAY.iter().fold(0, |set, number| set | 1u64 << number);
    let (inside, others): (Vec<_>, Vec<_>) =
        threads(daemon).into_iter().partition(|thread| thread.name.starts_with("worker-"));
    assert_eq!(inside.len(), workers);
    for thread in &inside {
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(thread.capabilities(set), 0, "{set} of {}", thread.name);
        }
        // 2: a filter.
        assert_eq!((thread.field("Seccomp"), thread.field("NoNewPrivs")), ("2", "1"));
    }
    assert!(!others.is_empty());
    for thread in &others {
        for set in ["CapEff", "CapPrm", "CapInh"] {
            let more = thread.capabilities(set) & !may;
            assert_eq!(more, 0, "{set} of {} has {more:#x} more", thread.name);
        }
        assert_eq!(thread.field("NoNewPrivs"), "1", "{}", thread.name);
    }
}

#[test]
fn workers_have_no_capability_and_run_under_their_list_of_calls() {
    let (world, a, b) = World::running(Options::default());
    are_confined(&a, 1);
    are_confined(&b, 2);
    // What an apply makes is made by control: nobody gets rights back for it.
    let file = world.scratch.0.join("other.toml");
    let text = std::fs::read_to_string(&world.b.config).unwrap();
    std::fs::write(&file, text.replace("mtu = 8930", "mtu = 8000")).unwrap();
    let applied = world.b.outboard(&["apply", "--config", file.to_str().unwrap()]);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    are_confined(&b, 2);
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}
