//! The demo leaves nothing behind: not when it is interrupted, not when it is told to end, and
//! what a killed run could not remove goes with the next.
//!
//! Runs the real program as a user does, stops it while a server and a client are at work in its
//! namespaces, and looks for what is left.

mod left;

use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

/// One demo at a time: each loads the machine with iperf3.
static ALONE: Mutex<()> = Mutex::new(());

struct Demo {
    process: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Demo {
    /// Starts it and waits until it prints a line with `word`.
    fn until(word: &str) -> Demo {
        let mut process = Command::new(env!("CARGO_BIN_EXE_xtask"))
            .args(["demo", "--rehearse"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = process.stdout.take().unwrap();
        let mut demo = Demo { process, lines: BufReader::new(stdout).lines() };
        let reached = demo.lines.any(|line| line.unwrap().contains(word));
        if !reached {
            panic!("the demo ended before \"{word}\": {}", demo.errors());
        }
        demo
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        self.process.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// Waits for its end; whether it succeeded, and what it said.
    fn end(&mut self) -> (bool, String) {
        self.lines.by_ref().for_each(drop);
        let errors = self.errors();
        (self.process.wait().unwrap().success(), errors)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Only after a failed assertion: lets it clean up after itself.
        if self.process.try_wait().unwrap().is_none() {
            self.signal(Signal::TERM);
            let _ = self.process.wait();
        }
    }
}

/// Everything named after a demo: namespaces, and its directories.
fn named_after(pid: u32) -> Vec<PathBuf> {
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("target/demo");
    left::named_after(pid, &[Path::new("/run/netns"), Path::new("/run"), &results])
}

fn nothing_is_left_of(pid: u32, programs: &[(u32, String)]) {
    assert_eq!(named_after(pid), Vec::<PathBuf>::new());
    assert_eq!(left::alive(programs), None, "a program outlived the demo");
}

fn stopped_by(signal: Signal) {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut demo = Demo::until("iperf3 TCP, 3 s");
    let pid = demo.pid();
    let programs = left::programs_of(pid);
    assert!(named_after(pid).len() >= 6, "two hosts and four tenants: {:?}", named_after(pid));
    assert!(!programs.is_empty(), "iperf3's server runs");
    demo.signal(signal);
    let (succeeded, errors) = demo.end();
    assert!(!succeeded);
    assert!(errors.contains("interrupted"), "{errors}");
    nothing_is_left_of(pid, &programs);
}

#[test]
fn ctrl_c_leaves_nothing() {
    stopped_by(Signal::INT);
}

#[test]
fn sigterm_leaves_nothing() {
    stopped_by(Signal::TERM);
}

#[test]
fn the_next_run_removes_what_a_killed_one_left() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut killed = Demo::until("iperf3 TCP, 3 s");
    let pid = killed.pid();
    let programs = left::programs_of(pid);
    killed.signal(Signal::KILL);
    killed.end();
    assert!(named_after(pid).len() >= 6, "a killed program cleans nothing up");
    let mut next = Demo::until("== kernel");
    nothing_is_left_of(pid, &programs);
    next.signal(Signal::INT);
    next.end();
    nothing_is_left_of(next.pid(), &[]);
}
