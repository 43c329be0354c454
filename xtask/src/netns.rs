//! Network namespaces of a task: named `obdemo<pid>-<label>`, removed when dropped, and found
//! again by name when their process was killed before it could.

use crate::error::Error;
use crate::process;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// What the name of everything that the demo makes begins with; the process number follows.
pub const PREFIX: &str = "obdemo";
/// Where `ip netns` keeps names.
const NAMES: &str = "/run/netns";
/// How long what runs in a leftover namespace may take to end after SIGTERM.
const TERM_WAIT: Duration = Duration::from_secs(3);

/// The name of something that this process makes.
pub fn own_name(label: &str) -> String {
    format!("{PREFIX}{}-{label}", std::process::id())
}

/// A network namespace, with its loopback up. Without IPv6 unless asked for: its neighbour
/// discovery would stand in every counter.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes it.
    pub fn new(label: &str) -> Result<Namespace, Error> {
        let name = own_name(label);
        process::read(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Namespace { name };
        namespace.ip("link set lo up")?;
        for scope in ["all", "default"] {
            namespace.ipv6_setting(scope, "disable_ipv6", "1")?;
        }
        Ok(namespace)
    }

    /// Makes one whose interfaces have IPv6 too, with nothing but the addresses that they are
    /// given and their link-local one, at once.
    pub fn dual_stack(label: &str) -> Result<Namespace, Error> {
        let namespace = Namespace::new(label)?;
        for scope in ["all", "default"] {
            for (key, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("disable_ipv6", "0")] {
                namespace.ipv6_setting(scope, key, value)?;
            }
        }
        Ok(namespace)
    }

    /// Sets one of the kernel's settings, where it has IPv6.
    fn ipv6_setting(&self, scope: &str, key: &str, value: &str) -> Result<(), Error> {
        let file = format!("/proc/sys/net/ipv6/conf/{scope}/{key}");
        let script = format!("if [ -e {file} ]; then echo {value} > {file}; fi");
        process::read(self.command("sh").args(["-c", &script]))?;
        Ok(())
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` on it: `ip("link set eth0 up")`.
    pub fn ip(&self, arguments: &str) -> Result<String, Error> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name]).args(arguments.split_whitespace());
        process::read(&mut command)
    }

    /// A program inside it; the process that is started becomes the program.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={NAMES}/{}", self.name)).arg("--").arg(program);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = process::read(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("error: {error}");
        }
    }
}

/// One end of a veth pair: namespace and interface.
pub type End<'a> = (&'a Namespace, &'a str);

/// Joins two namespaces by a veth pair, both ends up, with the MTU.
pub fn veth(one: End, other: End, mtu: u32) -> Result<(), Error> {
    let ((space, name), (peer_space, peer)) = (one, other);
    let peer_name = peer_space.name();
    space.ip(&format!(
        "link add {name} mtu {mtu} type veth peer name {peer} mtu {mtu} netns {peer_name}"
    ))?;
    for (space, name) in [one, other] {
        space.ip(&format!("link set {name} up"))?;
    }
    Ok(())
}

/// A directory that this process made, removed with its content when dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes `parent/obdemo<pid>-<label>`.
    pub fn new(parent: &Path, label: &str) -> Result<Scratch, Error> {
        let path = parent.join(own_name(label));
        fs::create_dir_all(&path).map_err(Error::file("create", &path))?;
        Ok(Scratch(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("error: cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Removes what earlier runs left behind because they were killed: namespaces with the programs
/// that run in them, and files and directories below `parents`. Returns their names.
pub fn remove_leftovers(parents: &[&Path]) -> Result<Vec<String>, Error> {
    let mut removed = leftovers(Path::new(NAMES));
    for name in &removed {
        remove_namespace(name)?;
    }
    for parent in parents {
        for name in leftovers(parent) {
            let path = parent.join(&name);
            let outcome = match path.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            outcome.map_err(Error::file("remove", &path))?;
            removed.push(path.display().to_string());
        }
    }
    Ok(removed)
}

fn remove_namespace(name: &str) -> Result<(), Error> {
    let outcome = end_programs_in(name).and_then(|()| {
        process::read(Command::new("ip").args(["netns", "del", name]))?;
        Ok(())
    });
    // Another run may have removed it in the meantime.
    match Path::new(NAMES).join(name).exists() {
        true => outcome,
        false => Ok(()),
    }
}

/// Names in a directory whose process is no more.
fn leftovers(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> =
        names.filter(|name| owner(name).is_some_and(|pid| !is_task(pid))).collect();
    names.sort();
    names
}

/// The process number in a name that [`own_name`] made.
fn owner(name: &str) -> Option<u32> {
    let (pid, _label) = name.strip_prefix(PREFIX)?.split_once('-')?;
    pid.parse().ok()
}

/// Whether a process runs and is a task of this kind: numbers are used again.
fn is_task(pid: u32) -> bool {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    comm.starts_with("xtask")
}

/// Ends what runs in a leftover namespace: SIGTERM, then SIGKILL.
fn end_programs_in(namespace: &str) -> Result<(), Error> {
    let programs = || -> Result<Vec<Pid>, Error> {
        let text = process::read(Command::new("ip").args(["netns", "pids", namespace]))?;
        Ok(text.lines().filter_map(|line| Pid::from_raw(line.trim().parse().ok()?)).collect())
    };
    let start = Instant::now();
    let mut signal = Signal::TERM;
    loop {
        let running = programs()?;
        if running.is_empty() {
            return Ok(());
        }
        for pid in running {
            // Fails only when it has ended meanwhile.
            let _ = kill_process(pid, signal);
        }
        if start.elapsed() > TERM_WAIT {
            signal = Signal::KILL;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::{self, Child};
    use crate::stop::Stop;

    fn exists(name: &str) -> bool {
        Path::new(NAMES).join(name).exists()
    }

    #[test]
    fn a_pair_carries_traffic_and_everything_goes_with_its_guard() {
        let a = Namespace::new("pair-a").unwrap();
        let b = Namespace::new("pair-b").unwrap();
        veth((&a, "eth0"), (&b, "eth0"), 9000).unwrap();
        a.ip("address add 10.0.0.1/24 dev eth0").unwrap();
        b.ip("address add 10.0.0.2/24 dev eth0").unwrap();
        let mut ping = a.command("ping");
        // 8972 + 8 + 20 = 9000: the largest packet that must not be cut.
        ping.args("-n -c 1 -W 5 -M do -s 8972 10.0.0.2".split(' '));
        let text = child::read(&mut ping, Duration::from_secs(10), &Stop::default()).unwrap();
        assert!(text.contains(" 0% packet loss"), "{text}");
        let names = [a.name().to_string(), b.name().to_string()];
        assert!(names.iter().all(|name| exists(name)));
        drop((a, b));
        assert!(!names.iter().any(|name| exists(name)));
    }

    #[test]
    fn what_a_dead_process_left_is_removed_with_what_runs_in_it() {
        // A process number above the kernel's largest (PID_MAX_LIMIT is 2^22).
        let dead = 1 << 30;
        let name = format!("{PREFIX}{dead}-left{}", std::process::id());
        process::read(Command::new("ip").args(["netns", "add", &name])).unwrap();
        let left = Namespace { name: name.clone() };
        let log = std::env::temp_dir().join(own_name("left.log"));
        let mut child = Child::spawn(left.command("sleep").arg("600"), &log).unwrap();
        let mine = Namespace::new("stays").unwrap();
        let inside = || {
            let text = process::read(Command::new("ip").args(["netns", "pids", &name]))?;
            Ok(text.contains(&child.pid().to_string()).then_some(()))
        };
        Stop::default().wait_for(Duration::from_secs(60), inside).unwrap().unwrap();

        let found = leftovers(Path::new(NAMES));
        assert!(found.contains(&name) && !found.contains(&mine.name), "{found:?}");
        remove_namespace(&name).unwrap();
        std::mem::forget(left);
        assert!(!exists(&name));
        assert!(child.must_run().is_err(), "the program in it has ended");
        fs::remove_file(&log).unwrap();
    }

    #[test]
    fn only_directories_of_dead_processes_are_leftovers() {
        let parent = Scratch::new(&std::env::temp_dir(), "parent").unwrap();
        let dead = format!("{PREFIX}{}-files", 1 << 30);
        for name in [dead.as_str(), &own_name("files"), "somebody-else"] {
            fs::create_dir_all(parent.path().join(name)).unwrap();
        }
        assert_eq!(leftovers(parent.path()), [dead]);
        let path = parent.path().to_path_buf();
        drop(parent);
        assert!(!path.exists());
    }

    #[test]
    fn names_carry_their_process() {
        assert_eq!(owner(&own_name("host-a")), Some(std::process::id()));
        assert_eq!(owner("obdemo77-host-a"), Some(77));
        assert_eq!(owner("obdemo-host"), None);
        assert_eq!(owner("somebody-else"), None);
        assert!(is_task(std::process::id()));
    }
}
