//! Network namespaces, veth pairs and a BPF file system of a test's own, gone when it ends.
//! Names carry the process id; everything is removed on drop, also when the test fails.
#![allow(dead_code, reason = "every test file uses its own part of it")]

pub mod errors;
pub mod packet;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A number that no other object of this process has.
fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Runs a program to its end and returns what it printed.
///
/// # Panics
/// When it fails, with what it said.
#[track_caller]
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("cannot start {program}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {} {errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A network namespace without a way out.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes it as the kernel does, with nothing up.
    pub fn untouched() -> Namespace {
        let name = format!("obt{}-{}", std::process::id(), unique());
        run("ip", &["netns", "add", &name]);
        Namespace { name }
    }

    /// Makes it, with loopback up and IPv6 off, so that the kernel sends nothing unasked.
    pub fn new() -> Namespace {
        let namespace = Namespace::untouched();
        namespace.within(|| {
            for which in ["all", "default"] {
                let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
                // A kernel without IPv6 has no such file and needs none.
                let _ = std::fs::write(path, "1");
            }
        });
        namespace.ip("link set lo up");
        namespace
    }

    /// Switches IPv6 on for an interface: with a link-local address, without listening to routers
    /// or looking for duplicates.
    pub fn allow_ipv6(&self, interface: &str) {
        let settings = [
            ("addr_gen_mode", "0"),
            ("accept_ra", "0"),
            ("accept_dad", "0"),
            ("disable_ipv6", "0"),
        ];
        for (setting, value) in settings {
            self.sysctl(&format!("net/ipv6/conf/{interface}/{setting}"), value);
        }
    }

    /// The name that `ip netns` knows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves the calling thread into the namespace; programs that it starts are in it too.
    pub fn enter(&self) {
        let file = File::open(Path::new("/run/netns").join(&self.name)).unwrap();
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(file.as_fd(), kind).unwrap();
    }

    /// Runs `work` in the namespace, on a thread of its own.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let work = || {
            self.enter();
            work()
        };
        std::thread::scope(|scope| match scope.spawn(work).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// `ip` with words separated by spaces.
    #[track_caller]
    pub fn ip(&self, words: &str) {
        let words: Vec<&str> = words.split_whitespace().collect();
        run("ip", &[&["-n", &self.name], words.as_slice()].concat());
    }

    /// Writes a file of /proc/sys as the namespace has it.
    #[track_caller]
    pub fn sysctl(&self, path: &str, value: &str) {
        let path = format!("/proc/sys/{path}");
        self.within(|| std::fs::write(&path, value))
            .unwrap_or_else(|error| panic!("writing {path}: {error}"));
    }

    /// Runs a command, words separated by spaces, in the namespace and gives what it prints.
    #[track_caller]
    pub fn exec(&self, words: &str) -> String {
        let command = ["netns", "exec", &self.name].into_iter().chain(words.split_whitespace());
        run("ip", &command.collect::<Vec<_>>())
    }

    /// Joins this namespace to another by a pair of interfaces named `veth`, both up, with
    /// `queues` queues in each direction and without offloads.
    pub fn join(&self, other: &Namespace, queues: u32, mtu: u32) {
        let there = &other.name;
        self.ip(&format!(
            "link add veth mtu {mtu} numrxqueues {queues} numtxqueues {queues} type veth \
             peer name veth netns {there} mtu {mtu} numrxqueues {queues} numtxqueues {queues}"
        ));
        for side in [self, other] {
            side.ip("link set veth up");
            side.within(|| {
                run("ethtool", &["-K", "veth", "tx", "off", "gso", "off", "tso", "off"])
            });
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// A BPF file system.
pub struct Bpffs {
    path: PathBuf,
}

impl Bpffs {
    /// Mounts one on a new directory.
    pub fn new() -> Bpffs {
        let name = format!("outboard-bpffs-{}-{}", std::process::id(), unique());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        let bpffs = Bpffs { path };
        run("mount", &["-t", "bpf", "bpf", bpffs.path.to_str().unwrap()]);
        bpffs
    }

    /// A directory on it.
    pub fn directory(&self) -> PathBuf {
        self.path.join("outboard/test")
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.path).status();
        let _ = std::fs::remove_dir(&self.path);
    }
}
