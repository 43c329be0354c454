//! A daemon as a child process with a configuration of its own, its log and its statistics.

use outboard::control::api::ask_stats;
use outboard::control::stats::{Count, DiskStats, ExportStats, Stats, VolumeStats};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The program under test.
const OUTBOARD: &str = env!("CARGO_BIN_EXE_outboard");
/// How long anything may take before a test fails; no test measures time.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// The subsystem that targets serve unless a test says otherwise.
pub const NQN: &str = "nqn.2025-01.org.example:data";

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

/// A directory that ends with the test.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        let name = format!("outboard-storage-{}-{}", std::process::id(), unique());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A number that no other part of this process has.
fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A loopback address that no other test uses, with a free port.
pub fn address() -> SocketAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    let ip = IpAddr::from(Ipv4Addr::new(127, 1 + unique() as u8 % 250, high, low.max(1)));
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

/// The same of IPv6, which has one loopback address: the port is no other test's, and none that
/// the kernel gives to who connects (from 32768 on).
pub fn address6() -> SocketAddr {
    let first = (std::process::id() * 64 + unique()) % 16_384;
    let free = (0..).map(|more| 16_384 + ((first + more) % 16_384) as u16);
    let mut bound = free.flat_map(|port| TcpListener::bind((Ipv6Addr::LOCALHOST, port)));
    bound.next().unwrap().local_addr().unwrap()
}

/// One host's daemon: its files, whether it runs or not.
pub struct Host {
    pub config: PathBuf,
    pub log: PathBuf,
    pub socket: PathBuf,
}

impl Host {
    /// A host with this configuration behind the usual top; `DIR` in it stands for the directory.
    pub fn new(scratch: &Scratch, name: &str, text: &str) -> Host {
        Host::with_top(scratch, name, "region_mib = 16", "[[worker]]\ncore = 0", text)
    }

    /// The same with other lines of `[runtime]`, and other workers.
    pub fn with_top(
        scratch: &Scratch,
        name: &str,
        runtime: &str,
        workers: &str,
        text: &str,
    ) -> Host {
        let dir = scratch.0.display().to_string();
        let host = Host {
            config: scratch.path(&format!("{name}.toml")),
            log: scratch.path(&format!("{name}.log")),
            socket: scratch.path(&format!("{name}.sock")),
        };
        let own = std::process::id();
        let text = format!(
            "name = 'storage-{own}-{name}'\n[runtime]\nmode = 'adaptive'\n{runtime}\n\
             [control]\nsocket = 'DIR/{name}.sock'\n{workers}\n{text}"
        );
        std::fs::write(&host.config, text.replace("DIR", &dir)).unwrap();
        host
    }

    /// Starts the daemon and waits until it is ready.
    #[track_caller]
    pub fn run(&self) -> Daemon {
        let before = std::fs::read_to_string(&self.log).unwrap_or_default();
        let stderr = File::options().create(true).append(true).open(&self.log).unwrap();
        let child = Command::new(OUTBOARD)
            .args(["run", "--config"])
            .arg(&self.config)
            .env_remove("OUTBOARD_LOG")
            .stdin(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("the daemon starts");
        let (log, socket) = (self.log.clone(), self.socket.clone());
        let mut daemon = Daemon { child, log, socket, log_from: before.len() };
        until("the daemon is ready", || {
            let ended = daemon.child.try_wait().unwrap();
            assert!(ended.is_none(), "the daemon ended: {ended:?}\n{}", daemon.log());
            daemon.log().contains("is ready").then_some(())
        });
        daemon
    }

    /// Runs a daemon that must be refused: one sentence with these words, exit code 1.
    #[track_caller]
    pub fn is_refused(&self, words: &str) -> String {
        let mut command = Command::new(OUTBOARD);
        let command = command.args(["run", "--config"]).arg(&self.config);
        let output: Output = command.stdin(Stdio::null()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        let errors: Vec<_> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{stderr}");
        assert!(stderr.trim_end().ends_with(errors[0]), "{stderr}");
        assert!(errors[0].contains(words), "wanted `{words}`:\n{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        errors[0].to_owned()
    }
}

impl Host {
    /// What `outboard stats` shows people.
    #[track_caller]
    pub fn shown(&self) -> String {
        let mut command = Command::new(OUTBOARD);
        let output = command.args(["stats", "--config"]).arg(&self.config).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    log: PathBuf,
    socket: PathBuf,
    log_from: usize,
}

impl Daemon {
    /// What it has logged so far.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.get(self.log_from..).unwrap_or_default().to_owned()
    }

    /// What it counts.
    #[track_caller]
    pub fn stats(&self) -> Stats {
        ask_stats(&self.socket).unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    #[track_caller]
    pub fn volume(&self, name: &str) -> VolumeStats {
        let volumes = self.stats().volumes;
        volumes.into_iter().find(|volume| volume.name == name).expect("the plan has the volume")
    }

    #[track_caller]
    pub fn disk(&self, name: &str) -> DiskStats {
        let disks = self.stats().disks;
        disks.into_iter().find(|disk| disk.name == name).expect("the plan has the disk")
    }

    #[track_caller]
    pub fn export(&self, nqn: &str) -> ExportStats {
        let exports = self.stats().exports;
        exports.into_iter().find(|export| export.nqn == nqn).expect("the plan has the export")
    }

    /// How many requests of a disk ended so.
    #[track_caller]
    pub fn ended(&self, disk: &str, status: &str) -> u64 {
        count(&self.disk(disk).statuses, status)
    }

    /// Waits until a volume is ready.
    #[track_caller]
    pub fn is_ready(&self, volume: &str) {
        until("the volume is ready", || (self.volume(volume).state == "ready").then_some(()));
    }

    /// Waits until a volume's state has these words.
    #[track_caller]
    pub fn says(&self, volume: &str, words: &str) {
        until(words, || self.volume(volume).state.contains(words).then_some(()));
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
    }

    /// Stops all of its threads where they are, until SIGCONT.
    #[track_caller]
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let is_stopped = |task: std::fs::DirEntry| {
            // After the name in brackets: the state (proc(5)).
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        };
        until("it has stopped", || {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
            tasks.flatten().all(is_stopped).then_some(())
        });
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        until("the daemon has ended", || self.child.try_wait().unwrap())
    }

    /// Ends it without any chance to clean up.
    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// As [`stop`](Self::stop) where applies were refused, which are errors in the log.
    #[track_caller]
    pub fn stop_having_refused(mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        let log = self.log();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("did not come back") && !log.contains("panicked"), "{log}");
        let errors = log.lines().filter(|line| line.contains(" ERROR "));
        errors.for_each(|line| assert!(line.contains("nothing was changed: "), "{line}"));
    }

    /// Stops it by SIGTERM: it must end well and have every frame back. Gives its log.
    #[track_caller]
    pub fn stop(self) -> String {
        self.signal(Signal::TERM);
        self.stops()
    }

    /// The same after SIGTERM.
    #[track_caller]
    pub fn stops(mut self) -> String {
        let status = self.wait();
        let log = self.log();
        assert_eq!(status.code(), Some(0), "{log}");
        for word in ["did not come back", "panicked", " ERROR ", "may not make"] {
            assert!(!log.contains(word), "{log}");
        }
        assert!(log.trim_end().ends_with("stopped"), "{log}");
        assert!(!self.socket.exists(), "its control socket is left");
        log
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

/// How often `name` was counted.
pub fn count(counts: &[Count], name: &str) -> u64 {
    counts.iter().find(|count| count.name == name).map_or(0, |count| count.count)
}

/// A file volume `data` of 4 MiB in `file`, exported at `address`.
pub fn file_target(file: &str, address: SocketAddr) -> String {
    format!(
        "[[volume]]\nname = 'data'\nkind = 'file'\npath = 'DIR/{file}'\ncreate = '4MiB'\n{}",
        export("data", NQN, address)
    )
}

/// An export.
pub fn export(volume: &str, nqn: &str, address: SocketAddr) -> String {
    format!("[[export]]\nvolume = '{volume}'\nnqn = '{nqn}'\nlisten = '{address}'\n")
}

/// A remote volume `far` of the subsystem at `address`, with a disk `vda`.
pub fn remote_disk(address: SocketAddr) -> String {
    remote("far", NQN, address) + &disk("vda", "far")
}

/// A remote volume.
pub fn remote(name: &str, nqn: &str, address: SocketAddr) -> String {
    format!("[[volume]]\nname = '{name}'\nkind = 'remote'\naddress = '{address}'\nnqn = '{nqn}'\n")
}

/// A disk with its socket named after it.
pub fn disk(name: &str, volume: &str) -> String {
    format!("[[disk]]\nname = '{name}'\nvolume = '{volume}'\nsocket = 'DIR/disk-{name}.sock'\n")
}

/// What is in a directory, by name.
pub fn entries(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
