//! A guest leaves nothing behind: not when its run is told to end, and what a killed run could not
//! remove goes with the next. QEMU and the daemons do not even outlive a killed run.

mod left;

use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a killed run's programs may take to be gone.
const GONE_WAIT: Duration = Duration::from_secs(60);

struct Run {
    process: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Run {
    fn start(job: &str) -> Run {
        let mut process = Command::new(env!("CARGO_BIN_EXE_xtask"))
            .args(["guest", job])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Run { process, lines }
    }

    /// Reads on until a line contains `word`.
    fn until(&mut self, word: &str) {
        let mut said = Vec::new();
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            if line.contains(word) {
                return;
            }
            said.push(line);
        }
        panic!("the run ended before \"{word}\": {}", said.join("\n"));
    }

    /// Waits until the guest is connected; the run's number and its programs.
    fn at_work(&mut self) -> (u32, Vec<(u32, String)>) {
        self.until("connect, identify");
        let pid = self.process.id();
        assert_eq!(made_by(pid).len(), 2, "a namespace and a directory");
        let programs = left::programs_of(pid);
        assert_eq!(programs.len(), 3, "QEMU, the daemon and tcpdump");
        (pid, programs)
    }

    /// Sends a signal and waits for the end.
    fn end(&mut self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        self.lines.by_ref().for_each(drop);
        self.process.wait().unwrap();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Only after a failed assertion: lets it clean up after itself.
        if self.process.try_wait().unwrap().is_none() {
            self.end(Signal::TERM);
        }
    }
}

/// Namespaces and directories that a run has made.
fn made_by(pid: u32) -> Vec<PathBuf> {
    left::named_after(pid, &[Path::new("/run/netns"), Path::new("/run")])
}

/// Why a guest cannot run here now, if it cannot.
fn obstacle() -> Option<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["setup", "--check", "--guest"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.contains(" guest: ")).expect("setup has a step guest");
    match line.trim_start().starts_with("ok ") {
        true => None,
        false => Some(line.split_once(" guest: ").unwrap().1.to_string()),
    }
}

#[test]
fn a_run_that_ends_early_leaves_nothing() {
    if let Some(why) = obstacle() {
        println!("not run here: {why}");
        return;
    }
    let mut stopped = Run::start("nvme-tcp");
    let (pid, programs) = stopped.at_work();
    stopped.end(Signal::TERM);
    assert_eq!(made_by(pid), Vec::<PathBuf>::new());
    assert_eq!(left::alive(&programs), None);

    let mut killed = Run::start("nvme-tcp");
    let (pid, programs) = killed.at_work();
    killed.end(Signal::KILL);
    let start = Instant::now();
    while let Some(program) = left::alive(&programs) {
        assert!(start.elapsed() < GONE_WAIT, "{program:?} runs on");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(made_by(pid).len(), 2, "a killed run cleans nothing up");

    let mut next = Run::start("boot");
    next.until("exit code 0");
    next.end(Signal::TERM);
    assert_eq!(made_by(pid), Vec::<PathBuf>::new());
    assert_eq!(made_by(next.process.id()), Vec::<PathBuf>::new());
}
