//! Thread census: which threads used which core during a measurement, from /proc.
//!
//! Listed are all threads of this process and of the processes named to it, and whoever else used
//! at least [`STRANGER_SHARE`] of the time, kernel threads included: a figure taken beside a
//! compiler says so. Processor time comes in ticks of 10 ms (proc(5), `/proc/pid/stat`).

use crate::schema::{Census, Core, Thread};
use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

/// Ticks per second of processor times in /proc: USER_HZ, 100 on every architecture of Linux.
const TICKS_PER_S: f64 = 100.0;
/// Threads of other processes appear from this share of the time on.
const STRANGER_SHARE: f64 = 0.02;
/// Other programs together may use so many cores before a figure says so.
const STRANGERS_MAX: f64 = 0.05;
/// What the census puts before the name of a process that nobody named to it.
const OTHER: &str = "other: ";
/// PF_KTHREAD of the kernel's `include/linux/sched.h`.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// A process whose threads are listed whatever they used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// As it appears in the census.
    pub name: String,
    /// Its process identifier.
    pub pid: u32,
}

impl std::str::FromStr for Named {
    type Err = String;

    /// `NAME=PID`
    fn from_str(text: &str) -> Result<Named, String> {
        let (name, pid) = text.split_once('=').ok_or("expected NAME=PID, as in `hostA=4711`")?;
        let pid = pid.parse().map_err(|_| format!("`{pid}` is not a process identifier"))?;
        Ok(Named { name: name.to_owned(), pid })
    }
}

/// A census that has begun.
pub struct Watch {
    began: Instant,
    named: Vec<Named>,
    threads: BTreeMap<u32, Stat>,
    cores: Vec<CoreTicks>,
}

impl Watch {
    /// Begins; `named` are processes beside this one.
    pub fn begin(named: &[Named]) -> Watch {
        Watch {
            began: Instant::now(),
            named: named.to_vec(),
            threads: all_threads(),
            cores: core_ticks(&fs::read_to_string("/proc/stat").unwrap_or_default()),
        }
    }

    /// Ends, while the threads to be listed still live.
    pub fn end(self) -> Census {
        let wall_s = self.began.elapsed().as_secs_f64();
        let now = all_threads();
        let cores = core_ticks(&fs::read_to_string("/proc/stat").unwrap_or_default());
        let mut threads: Vec<Thread> = now
            .iter()
            .filter_map(|(tid, stat)| {
                let before = self.threads.get(tid).filter(|old| old.pid == stat.pid);
                let ticks = stat.ticks.saturating_sub(before.map_or(0, |old| old.ticks));
                self.listed(*tid, stat, ticks as f64 / TICKS_PER_S, wall_s)
            })
            .collect();
        threads.sort_by(|a, b| b.cpu_s.total_cmp(&a.cpu_s));
        let cpu_s = threads.iter().map(|thread| thread.cpu_s).sum();
        let cores = self.cores.iter().zip(&cores).map(|(old, new)| new.share(old)).collect();
        Census { wall_s, threads, cores, cpu_s }
    }

    fn listed(&self, tid: u32, stat: &Stat, cpu_s: f64, wall_s: f64) -> Option<Thread> {
        let share = cpu_s / wall_s.max(1e-9);
        let known = self.named.iter().find(|named| named.pid == stat.pid);
        let process = if stat.pid == std::process::id() {
            "outboard-bench".to_owned()
        } else if let Some(named) = known {
            named.name.clone()
        } else if share < STRANGER_SHARE {
            return None;
        } else if stat.kernel {
            "kernel".to_owned()
        } else {
            format!("{OTHER}{}", stat.process)
        };
        let state = state(share);
        let thread = stat.comm.clone();
        Some(Thread { process, thread, tid, core: stat.core, cpu_s, state: state.to_owned() })
    }
}

/// The word for a share of the time.
fn state(share: f64) -> &'static str {
    match share {
        share if share >= 0.9 => "busy",
        share if share > 0.1 => "part",
        _ => "sleep",
    }
}

/// What other programs took of the processor, when that is more than a figure can bear.
pub fn strangers(census: &Census) -> Option<String> {
    let others = || census.threads.iter().filter(|t| t.process.starts_with(OTHER));
    let share = others().map(|t| t.cpu_s).sum::<f64>() / census.wall_s.max(1e-9);
    let first = others().next().map(|t| t.thread.as_str()).unwrap_or_default();
    (share > STRANGERS_MAX).then(|| format!("others used {share:.2} cores meanwhile (`{first}` …)"))
}

/// `process/thread @core state` of each thread, for a target's row.
pub fn lines(census: &Census) -> Vec<String> {
    let line = |t: &Thread| format!("{}/{} @{} {}", t.process, t.thread, t.core, t.state);
    census.threads.iter().map(line).collect()
}

#[derive(Clone, Debug, PartialEq)]
struct Stat {
    pid: u32,
    process: String,
    comm: String,
    ticks: u64,
    core: u32,
    kernel: bool,
}

fn all_threads() -> BTreeMap<u32, Stat> {
    let mut all = BTreeMap::new();
    for pid in numbers("/proc") {
        let process = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        for tid in numbers(&format!("/proc/{pid}/task")) {
            let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat"));
            if let Some(stat) = text.ok().and_then(|text| parse(pid, process.trim(), &text)) {
                all.insert(tid, stat);
            }
        }
    }
    all
}

fn numbers(directory: &str) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// One line of `/proc/pid/task/tid/stat`. The name stands in parentheses and may hold anything,
/// parentheses too; fields are counted from behind the last one (proc(5): 9 flags, 14 utime,
/// 15 stime, 39 processor).
fn parse(pid: u32, process: &str, line: &str) -> Option<Stat> {
    let open = line.find('(')?;
    let close = line.rfind(')')?;
    let comm = line.get(open + 1..close)?.to_owned();
    let fields: Vec<&str> = line.get(close + 1..)?.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        pid,
        process: process.to_owned(),
        comm,
        ticks: number(14)? + number(15)?,
        core: number(39)? as u32,
        kernel: number(9)? & KERNEL_THREAD != 0,
    })
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct CoreTicks {
    core: u32,
    user: u64,
    system: u64,
    interrupt: u64,
    steal: u64,
    idle: u64,
}

impl CoreTicks {
    fn share(&self, old: &CoreTicks) -> Core {
        let delta = |new: u64, old: u64| new.saturating_sub(old) as f64;
        let user = delta(self.user, old.user);
        let system = delta(self.system, old.system);
        let interrupt = delta(self.interrupt, old.interrupt);
        let steal = delta(self.steal, old.steal);
        let idle = delta(self.idle, old.idle);
        let all = (user + system + interrupt + steal + idle).max(1.0);
        Core {
            core: self.core,
            user: user / all,
            system: system / all,
            interrupt: interrupt / all,
            steal: steal / all,
            idle: idle / all,
        }
    }
}

/// The `cpuN` lines of /proc/stat (proc(5): user nice system idle iowait irq softirq steal).
fn core_ticks(text: &str) -> Vec<CoreTicks> {
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let core = words.next()?.strip_prefix("cpu")?.parse().ok()?;
        let n: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
        let [user, nice, system, idle, iowait, irq, softirq, steal] = *n.get(..8)? else {
            return None;
        };
        let interrupt = irq + softirq;
        Some(CoreTicks { core, user: user + nice, system, interrupt, steal, idle: idle + iowait })
    };
    text.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "4711 (a (b) c) R 1 4711 4711 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 3 0 \
        9000 1000 200 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0";

    #[test]
    fn a_name_with_parentheses_and_spaces_is_parsed() {
        let stat = parse(4711, "a", LINE).unwrap();
        assert_eq!((stat.comm.as_str(), stat.ticks, stat.core), ("a (b) c", 300, 1));
        assert!(!stat.kernel);
        let kernel = LINE.replace(" 4194304 ", &format!(" {} ", 0x0420_8040));
        assert!(parse(4711, "a", &kernel).unwrap().kernel);
    }

    #[test]
    fn broken_lines_are_nothing() {
        for end in 0..LINE.len() {
            let _ = parse(1, "a", &LINE[..end]);
        }
        for bad in ["", "(", ")(", "1 (x) R", "1 (x) R 1 1 1 1 1 notanumber"] {
            assert_eq!(parse(1, "a", bad), None, "{bad}");
        }
    }

    #[test]
    fn cores_become_shares() {
        let old = core_ticks("cpu  1 1 1 1 1 1 1 1 0 0\ncpu0 10 0 10 10 0 0 0 0 0 0\nintr 5\n");
        let new = core_ticks("cpu0 20 10 20 40 10 5 5 20 0 0\n");
        assert_eq!(old.len(), 1);
        let share = new[0].share(&old[0]);
        assert_eq!((share.user, share.system, share.interrupt), (0.2, 0.1, 0.1));
        assert_eq!((share.steal, share.idle), (0.2, 0.4));
        let sum = share.user + share.system + share.interrupt + share.steal + share.idle;
        assert!((sum - 1.0).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn this_process_and_a_named_one_are_listed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let named = [Named { name: "sleeper".into(), pid: child.id() }];
        let census = Watch::begin(&named).end();
        child.kill().unwrap();
        child.wait().unwrap();
        let sleeper = census.threads.iter().find(|t| t.process == "sleeper").unwrap();
        assert_eq!((sleeper.thread.as_str(), sleeper.state.as_str()), ("sleep", "sleep"));
        assert!(census.threads.iter().any(|t| t.process == "outboard-bench"));
        assert!(lines(&census).iter().any(|line| line.starts_with("sleeper/sleep @")));
        assert!(!census.cores.is_empty());
    }

    #[test]
    fn strangers_are_told_above_a_twentieth_of_a_core() {
        let thread = |process: &str, cpu_s| Thread {
            process: process.into(),
            thread: "t".into(),
            cpu_s,
            ..Thread::default()
        };
        let census = |cpu_s| Census {
            wall_s: 10.0,
            threads: vec![thread("outboard", 9.9), thread("other: cc", cpu_s)],
            ..Census::default()
        };
        assert_eq!(strangers(&census(0.5)), None);
        assert!(strangers(&census(0.51)).unwrap().contains("`t`"));
    }

    #[test]
    fn named_processes_are_parsed() {
        assert_eq!("a=7".parse::<Named>(), Ok(Named { name: "a".into(), pid: 7 }));
        assert!("7".parse::<Named>().unwrap_err().contains("NAME=PID"));
        assert!("a=b".parse::<Named>().unwrap_err().contains("`b`"));
    }
}
