//! What a suite sets up around a measurement and removes again: namespaces, links, directories,
//! daemons. Everything is a guard; an error or Ctrl-C unwinds through it.

use crate::error::Error;
use crate::machine::{netns, own_name};
use crate::reference::reflector::pin_directory;
use crate::stop;
use outboard::control::stats::Stats;
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Runs a program to its end; an error carries what it said.
pub fn must<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Result<String, Error> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let output =
        command.output().map_err(Error::system(format!("cannot run `{program}`; install it")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words: Vec<_> = arguments.iter().map(|word| word.as_ref().to_string_lossy()).collect();
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::Refused(format!("`{program} {}` failed: {}", words.join(" "), said.trim())))
}

/// A network namespace without IPv6, whose neighbour discovery would stand between frames, but
/// where [`NetBed`] allows it.
pub struct Namespace(String);

impl Namespace {
    /// Makes it.
    pub fn new(label: &str) -> Result<Namespace, Error> {
        let namespace = Namespace(own_name(label));
        must("ip", &["netns", "add", namespace.name()])?;
        namespace.ip("link set lo up")?;
        netns::within(Some(namespace.name()), || {
            for scope in ["all", "default"] {
                // Absent on a kernel without IPv6.
                let switch = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
                let _ = std::fs::write(switch, "1");
            }
        })?;
        Ok(namespace)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Runs `ip -n NAME …`, words separated by spaces.
    pub fn ip(&self, arguments: &str) -> Result<String, Error> {
        let words: Vec<&str> =
            ["-n", self.name()].into_iter().chain(arguments.split_whitespace()).collect();
        must("ip", &words)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = must("ip", &["netns", "del", self.name()]) {
            eprintln!("outboard-bench: {error}");
        }
    }
}

/// A directory that goes with its content.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes it below `parent`.
    pub fn new(parent: &Path) -> Result<Scratch, Error> {
        let path = parent.join(own_name("files"));
        std::fs::create_dir_all(&path)
            .map_err(Error::system(format!("cannot make {}", path.display())))?;
        Ok(Scratch(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How long a daemon may take until its control socket answers.
const READY: Duration = Duration::from_secs(20);
/// How long it may take to end after SIGTERM.
const END: Duration = Duration::from_secs(10);

/// A running `outboard`, from the directory that this program is in. Ended when dropped.
pub struct Daemon {
    child: Child,
    pins: PathBuf,
    files: Scratch,
}

impl Daemon {
    /// Starts one with `config`, which begins below `name` and `[control]`, in `netns`, and waits
    /// until it answers.
    pub fn start(label: &str, netns: Option<&str>, config: &str) -> Result<Daemon, Error> {
        let program = program()?;
        let name = own_name(label);
        let files = Scratch::new(&std::env::temp_dir())?;
        let (file, log) = (files.path().join("outboard.toml"), files.path().join("log"));
        let socket = files.path().join("control");
        let text = format!(
            "name = \"{name}\"\n\n[control]\nsocket = \"{}\"\n\n{config}",
            socket.display()
        );
        std::fs::write(&file, text)
            .map_err(Error::system(format!("cannot write {}", file.display())))?;
        let said = std::fs::File::create(&log)
            .map_err(Error::system(format!("cannot write {}", log.display())))?;
        let also = said.try_clone().map_err(Error::system("cannot share the daemon's log"))?;
        // setpriv ends the daemon should this process be killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]).arg(&program).args(["run", "--config"]).arg(&file);
        command.stdin(Stdio::null()).stdout(said).stderr(also);
        let child = netns::within(netns, || command.spawn())?
            .map_err(Error::system("cannot start outboard through `setpriv` (util-linux)"))?;
        let pins = Path::new("/sys/fs/bpf/outboard").join(&name);
        let mut daemon = Daemon { child, pins, files };
        daemon.wait_until_ready(&program, &file, &log)?;
        Ok(daemon)
    }

    /// Its process identifier.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its control socket.
    pub fn control(&self) -> PathBuf {
        self.files.path().join("control")
    }

    /// What it counts.
    pub fn stats(&self) -> Result<Stats, Error> {
        let config = self.files.path().join("outboard.toml").display().to_string();
        let program = program()?.display().to_string();
        let text = must(&program, &["stats", "--json", "--config", &config])?;
        serde_json::from_str(&text)
            .map_err(|error| Error::Refused(format!("outboard's counts are not JSON: {error}")))
    }

    fn wait_until_ready(&mut self, program: &Path, file: &Path, log: &Path) -> Result<(), Error> {
        let began = Instant::now();
        loop {
            stop::check()?;
            let ended = self.child.try_wait().map_err(Error::system("cannot watch outboard"))?;
            let said = || std::fs::read_to_string(log).unwrap_or_default();
            if let Some(status) = ended {
                return Err(Error::Refused(format!(
                    "outboard ended ({status}): {}",
                    said().trim()
                )));
            }
            let mut stats = Command::new(program);
            stats.args(["stats", "--json", "--config"]).arg(file);
            stats.stdout(Stdio::null()).stderr(Stdio::null());
            if stats.status().is_ok_and(|status| status.success()) {
                return Ok(());
            }
            if began.elapsed() > READY {
                let why = "outboard runs but its control socket does not answer";
                return Err(Error::Refused(format!("{why}: {}", said().trim())));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The daemon's program: beside this one, as cargo puts it.
fn program() -> Result<PathBuf, Error> {
    let own = std::env::current_exe().map_err(Error::system("cannot find this program"))?;
    let program = own.with_file_name("outboard");
    match program.is_file() {
        true => Ok(program),
        false => Err(Error::Refused(format!(
            "{} is missing: build it with this program, `cargo build --release -p outboard -p \
             outboard-bench`",
            program.display()
        ))),
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if began.elapsed() > END {
                eprintln!("outboard-bench: outboard did not end on SIGTERM; killing it");
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // A daemon leaves its pins for the next one of its name; there is none.
        let _ = std::fs::remove_dir_all(&self.pins);
    }
}

/// A device under test's surroundings: its namespace, and one with both far ends.
pub struct NetBed {
    /// Where the device is: `t1` towards the tenant, `u1` with [`VTEP`] and [`VTEP6`] towards the
    /// underlay.
    pub device: Namespace,
    /// Where the generator is: `t0`, `u0`, and `c0`, `c1` that face each other.
    pub far: Namespace,
}

/// The device's tunnel address.
pub const VTEP: &str = "192.0.2.1";
/// The far end's tunnel address; nobody answers there, its MAC address is entered by hand.
pub const FAR_VTEP: &str = "192.0.2.2";
/// The same two over IPv6.
pub const VTEP6: &str = "2001:db8::1";
/// The far end's.
pub const FAR_VTEP6: &str = "2001:db8::2";
/// MAC address of the far end.
pub const FAR_MAC: &str = "02:00:00:00:02:02";
/// MTU between hosts.
const UNDERLAY_MTU: u32 = 9000;
/// MTU of the tenant.
pub const TENANT_MTU: u32 = 1500;

impl NetBed {
    /// Makes both namespaces and their links.
    pub fn new() -> Result<NetBed, Error> {
        let bed = NetBed { device: Namespace::new("device")?, far: Namespace::new("far")? };
        let (device, far) = (&bed.device, &bed.far);
        let links = [("t0", "t1", TENANT_MTU), ("u0", "u1", UNDERLAY_MTU)];
        for (near, peer, mtu) in links {
            bed.link(near, peer, mtu)?;
        }
        far.ip("link add c0 type veth peer name c1")?;
        for end in ["c0", "c1"] {
            far.ip(&format!("link set {end} up"))?;
        }
        far.ip(&format!("link set u0 address {FAR_MAC}"))?;
        device.ip(&format!("address add {VTEP}/24 dev u1"))?;
        device.ip(&format!("neigh add {FAR_VTEP} lladdr {FAR_MAC} dev u1 nud permanent"))?;
        bed.allow_ipv6()?;
        Ok(bed)
    }

    /// Gives the underlay IPv6 that never speaks of its own accord: no link-local address, no
    /// detection of duplicates, no router, and a neighbour entered by hand.
    fn allow_ipv6(&self) -> Result<(), Error> {
        self.device.ip("link set u1 addrgenmode none")?;
        netns::within(Some(self.device.name()), || {
            let settings = [("accept_ra", "0"), ("accept_dad", "0"), ("disable_ipv6", "0")];
            settings.into_iter().try_for_each(|(name, value)| {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/u1/{name}"), value)
                    .map_err(Error::system(format!("cannot set {name} of IPv6 on u1")))
            })
        })??;
        self.device.ip(&format!("address add {VTEP6}/64 dev u1 nodad"))?;
        self.device.ip(&format!("neigh add {FAR_VTEP6} lladdr {FAR_MAC} dev u1 nud permanent"))?;
        Ok(())
    }

    /// Joins the two namespaces by a veth pair: `near` on the far side, `peer` at the device.
    pub fn link(&self, near: &str, peer: &str, mtu: u32) -> Result<(), Error> {
        let device = self.device.name();
        self.far.ip(&format!(
            "link add {near} mtu {mtu} type veth peer name {peer} mtu {mtu} netns {device}"
        ))?;
        self.far.ip(&format!("link set {near} up"))?;
        self.device.ip(&format!("link set {peer} up"))?;
        Ok(())
    }

    /// Makes the device a bridge with a VXLAN port, as one would without Outboard; both tables
    /// hold the far tenant, so that nothing is flooded.
    pub fn join_by_kernel(&self, vni: u32, far_tenant: &str) -> Result<KernelPath<'_>, Error> {
        let device = &self.device;
        let path = KernelPath(device);
        device.ip(&format!("link add br0 mtu {TENANT_MTU} type bridge"))?;
        device.ip(&format!(
            "link add vx0 mtu {TENANT_MTU} type vxlan id {vni} dstport 4789 local {VTEP} \
             remote {FAR_VTEP} dev u1 nolearning"
        ))?;
        for port in ["t1", "vx0"] {
            device.ip(&format!("link set {port} master br0"))?;
        }
        for link in ["vx0", "br0"] {
            device.ip(&format!("link set {link} up"))?;
        }
        let name = device.name();
        let entry = |rest: &str| {
            let words = format!("-n {name} fdb {rest}");
            must("bridge", &words.split_whitespace().collect::<Vec<_>>())
        };
        entry(&format!("add {far_tenant} dev vx0 master static"))?;
        entry(&format!("append {far_tenant} dev vx0 dst {FAR_VTEP} self"))?;
        Ok(path)
    }
}

/// Removes the kernel's bridge again.
pub struct KernelPath<'a>(&'a Namespace);

impl Drop for KernelPath<'_> {
    fn drop(&mut self) {
        for link in ["vx0", "br0"] {
            // Absent when it could not be made.
            let _ = self.0.ip(&format!("link del {link}"));
        }
    }
}

/// Removes what AF_XDP sockets of this process left pinned.
pub struct Pins;

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(pin_directory());
    }
}
