//! A daemon as a child process, its log and its statistics.

use outboard::control::api::ask_stats;
use outboard::control::stats::{PortStats, Stats};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The program under test.
pub const OUTBOARD: &str = env!("CARGO_BIN_EXE_outboard");
/// How long anything may take before a test fails; no test measures time.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until `condition` gives something.
#[track_caller]
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(LOOK);
    }
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    log: PathBuf,
    socket: PathBuf,
}

impl Daemon {
    /// Starts a daemon that logs to `log`; it may not be ready yet.
    pub fn spawn(config: &Path, netns: &str, log: &Path, socket: &Path) -> Daemon {
        let stderr = File::options().create(true).append(true).open(log).unwrap();
        let child = Command::new(OUTBOARD)
            .args(["run", "--netns", netns, "--config"])
            .arg(config)
            .env_remove("OUTBOARD_LOG")
            .stdin(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("the daemon starts");
        Daemon { child, log: log.to_owned(), socket: socket.to_owned() }
    }

    /// One that was started in another way, with its log elsewhere.
    pub fn adopt(child: Child, log: &Path, socket: &Path) -> Daemon {
        Daemon { child, log: log.to_owned(), socket: socket.to_owned() }
    }

    /// Waits until it says that it is ready.
    #[track_caller]
    pub fn ready(mut self, times: usize) -> Daemon {
        until("the daemon is ready", || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the daemon ended: {ended:?}\n{}", self.log());
            (self.log().matches("is ready").count() >= times).then_some(())
        });
        self
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it counts.
    #[track_caller]
    pub fn stats(&self) -> Stats {
        ask_stats(&self.socket).unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    /// What it counts for a port.
    #[track_caller]
    pub fn port(&self, name: &str) -> PortStats {
        let ports = self.stats().ports;
        ports.into_iter().find(|port| port.name == name).expect("the plan has the port")
    }

    /// How many packets from a port were dropped for a reason.
    #[track_caller]
    pub fn drops(&self, port: &str, reason: &str) -> u64 {
        let drops = self.port(port).drops;
        drops.iter().find(|count| count.name == reason).map_or(0, |count| count.count)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        until("the daemon has ended", || self.child.try_wait().unwrap())
    }

    /// Stops it by a signal: it must end well and have every frame back. Gives its log.
    #[track_caller]
    pub fn stop(self, signal: Signal) -> String {
        let log = self.stop_having_warned(signal);
        assert!(!log.contains(" WARN "), "{log}");
        log
    }

    /// The same where there was something to warn of.
    #[track_caller]
    pub fn stop_having_warned(mut self, signal: Signal) -> String {
        self.signal(signal);
        let status = self.wait();
        let log = self.log();
        assert_eq!(status.code(), Some(0), "{log}");
        for word in ["did not come back", "panicked", " ERROR ", "may not make"] {
            assert!(!log.contains(word), "{log}");
        }
        assert!(log.trim_end().ends_with("stopped"), "{log}");
        log
    }

    /// The same where applies were refused, which are errors in the log.
    #[track_caller]
    pub fn stop_having_refused(mut self, signal: Signal) {
        self.signal(signal);
        let status = self.wait();
        let log = self.log();
        assert_eq!(status.code(), Some(0), "{log}");
        for word in ["did not come back", "panicked", " WARN "] {
            assert!(!log.contains(word), "{log}");
        }
        let errors = log.lines().filter(|line| line.contains(" ERROR "));
        errors.for_each(|line| assert!(line.contains("nothing was changed: "), "{line}"));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}", self.log.display(), self.log());
        }
    }
}
