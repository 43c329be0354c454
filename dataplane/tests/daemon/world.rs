//! Two hosts, the network between them, and tenants in three private networks that have the same
//! addresses: blue (jumbo frames), red (two queues on host b), green (no route to other hosts).
//!
//! Tenants have addresses of both families, and so have the hosts; options say which are used.
//!
//! Host a has one worker and the tenants 10.0.0.1; host b has two, with the uplink and blue on
//! one, red on both, green on the other, and the tenants 10.0.0.2. The second blue tenant of host
//! b, 10.0.0.3, is on the other worker than the first.

use crate::netns::Namespace;
use crate::process::{Daemon, OUTBOARD, until};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// The virtual gateway of every private network.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
/// The same, of IPv6.
pub const GATEWAY6: &str = "fd00::fe";
/// Where the pins of instances are.
pub const PINS: &str = "/sys/fs/bpf/outboard";
/// MTU of the blue tenants: what fits through VXLAN over IPv6 over 9000.
pub const JUMBO_MTU: u32 = 8930;

/// A directory that ends with the test.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("outboard-daemon-{}-{unique}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A tenant's container.
pub struct Tenant {
    pub netns: Namespace,
    /// Of the world's family.
    pub address: IpAddr,
    /// The port's name, which is the host's interface too.
    pub port: &'static str,
}

impl Tenant {
    /// Whether `count` echo requests with these options are all answered.
    pub fn pings(&self, to: impl Into<IpAddr>, options: &str) -> bool {
        pings(&self.netns, to, options)
    }

    /// Waits until one echo request is answered.
    #[track_caller]
    pub fn reaches(&self, to: impl Into<IpAddr>) {
        let to = to.into();
        until(&format!("{} reaches {to}", self.port), || self.pings(to, "-c 1").then_some(()));
    }
}

/// Whether echo requests from a namespace are answered.
pub fn pings(netns: &Namespace, to: impl Into<IpAddr>, options: &str) -> bool {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns.name(), "ping", "-q", "-i", "0.02", "-W", "1"]);
    command.args(options.split_whitespace()).arg(to.into().to_string());
    command.output().expect("ping runs").status.success()
}

/// One host.
pub struct Host {
    pub netns: Namespace,
    pub name: String,
    pub config: PathBuf,
    pub log: PathBuf,
    pub socket: PathBuf,
    pub tenants: Vec<Tenant>,
    /// Of the family of the world's underlay.
    pub vtep: IpAddr,
}

impl Host {
    /// The tenant of a port.
    pub fn tenant(&self, port: &str) -> &Tenant {
        self.tenants.iter().find(|tenant| tenant.port == port).expect("there is such a tenant")
    }

    /// Starts the daemon and waits until it is ready.
    #[track_caller]
    pub fn run(&self) -> Daemon {
        let times = std::fs::read_to_string(&self.log).unwrap_or_default();
        self.spawn().ready(times.matches("is ready").count() + 1)
    }

    /// Starts the daemon.
    pub fn spawn(&self) -> Daemon {
        Daemon::spawn(&self.config, self.netns.name(), &self.log, &self.socket)
    }

    /// Runs a command of `outboard` in the host's namespace.
    pub fn outboard(&self, arguments: &[&str]) -> Output {
        let run = || Command::new(OUTBOARD).args(arguments).output().expect("outboard runs");
        self.netns.within(run)
    }

    /// `outboard attach` for a tenant.
    #[track_caller]
    pub fn attach(&self, tenant: &Tenant) {
        let config = self.config.to_str().unwrap();
        let netns = tenant.netns.name();
        let done =
            self.outboard(&["attach", "--config", config, "--netns", netns, "--port", tenant.port]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// Where the instance has its pins.
    pub fn pins(&self) -> PathBuf {
        Path::new(PINS).join(self.name.replace('.', ":"))
    }

    /// Whether an XDP program is on an interface of the host.
    pub fn has_program(&self, interface: &str) -> bool {
        let show = ["-n", self.netns.name(), "link", "show", "dev", interface];
        crate::netns::run("ip", &show).contains("xdp")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What a daemon that was killed left, when no next one took it over.
        let _ = std::fs::remove_dir_all(self.pins());
    }
}

/// Everything.
pub struct World {
    pub a: Host,
    pub b: Host,
    pub scratch: Scratch,
    /// The virtual gateway, of the world's family.
    pub gateway: IpAddr,
}

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// A tenant's address.
    pub fn tenant(self, last: u8) -> IpAddr {
        match self {
            Family::V4 => IpAddr::from([10, 0, 0, last]),
            Family::V6 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)]),
        }
    }

    /// A host's address.
    pub fn host(self, last: u8) -> IpAddr {
        match self {
            Family::V4 => IpAddr::from([192, 0, 2, last]),
            Family::V6 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)]),
        }
    }

    /// The length of the networks that these are in.
    pub fn prefix_len(self) -> u8 {
        if self == Family::V4 { 24 } else { 64 }
    }
}

/// What the worlds of tests differ in.
#[derive(Clone, Copy)]
pub struct Options {
    /// How workers wait.
    pub mode: &'static str,
    /// Frame memory of each host.
    pub region_mib: u32,
    /// More text for both configurations.
    pub more: &'static str,
    /// What tenants speak.
    pub family: Family,
    /// What the tunnels are in.
    pub underlay: Family,
    /// More text for the uplink of host a.
    pub uplink_a: &'static str,
}

impl Options {
    /// IPv6 inside and outside.
    pub fn v6() -> Options {
        Options { family: Family::V6, underlay: Family::V6, ..Options::default() }
    }
}

impl Default for Options {
    fn default() -> Options {
        let (family, underlay) = (Family::V4, Family::V4);
        Options { mode: "adaptive", region_mib: 32, more: "", family, underlay, uplink_a: "" }
    }
}

impl World {
    /// The hosts with their tenants attached; no daemon runs yet.
    pub fn new(options: Options) -> World {
        let scratch = Scratch::new();
        let (a, b) = (Namespace::new(), Namespace::new());
        a.join(&b, 1, 9000);
        for (netns, last) in [(&a, 1), (&b, 2)] {
            give_addresses(netns, last);
        }
        let vteps = [1, 2].map(|last| options.underlay.host(last));
        let on_a = [("blue", 1), ("red", 1), ("green", 1)];
        let on_b = [("blue", 2), ("red", 2), ("green", 2), ("blue3", 3)];
        let a = host(a, "a", vteps, &on_a, options, &scratch);
        let b = host(b, "b", [vteps[1], vteps[0]], &on_b, options, &scratch);
        let gateway = match options.family {
            Family::V4 => GATEWAY.into(),
            Family::V6 => GATEWAY6.parse().unwrap(),
        };
        World { a, b, scratch, gateway }
    }

    /// The default world with both daemons, after every tenant has reached its peer.
    #[track_caller]
    pub fn running(options: Options) -> (World, Daemon, Daemon) {
        let world = World::new(options);
        let (a, b) = (world.a.spawn(), world.b.spawn());
        let (a, b) = (a.ready(1), b.ready(1));
        world.all_reach();
        (world, a, b)
    }

    /// Waits until the blue and red tenants reach each other and their gateways.
    #[track_caller]
    pub fn all_reach(&self) {
        for port in ["blue", "red"] {
            let (a, b) = (self.a.tenant(port), self.b.tenant(port));
            a.reaches(b.address);
            b.reaches(a.address);
            a.reaches(self.gateway);
            b.reaches(self.gateway);
        }
    }
}

/// Gives a host's uplink its addresses of both families.
pub fn give_addresses(netns: &Namespace, last: u8) {
    netns.allow_ipv6("veth");
    for family in [Family::V4, Family::V6] {
        let (address, len) = (family.host(last), family.prefix_len());
        netns.ip(&format!("address add {address}/{len} dev veth"));
    }
}

fn host(
    netns: Namespace,
    letter: &str,
    [vtep, far]: [IpAddr; 2],
    tenants: &[(&'static str, u8)],
    options: Options,
    scratch: &Scratch,
) -> Host {
    // With a dot, which a BPF file system has not.
    let name = format!("{}.{letter}", netns.name());
    let socket = scratch.0.join(format!("{letter}.sock"));
    let log = scratch.0.join(format!("{letter}.log"));
    let config = scratch.0.join(format!("{letter}.toml"));
    let text = configuration(&name, &socket, [vtep, far], options, letter, scratch);
    std::fs::write(&config, text).unwrap();
    let tenants = tenants.iter().map(|(port, last)| Tenant {
        netns: Namespace::new(),
        address: options.family.tenant(*last),
        port,
    });
    let tenants = tenants.collect();
    let host = Host { netns, name, config, log, socket, tenants, vtep };
    host.tenants.iter().for_each(|tenant| host.attach(tenant));
    host
}

fn configuration(
    name: &str,
    socket: &Path,
    [vtep, far]: [IpAddr; 2],
    options: Options,
    letter: &str,
    scratch: &Scratch,
) -> String {
    let Options { mode, region_mib, more, uplink_a, .. } = options;
    let socket = socket.display();
    let on_b = letter == "b";
    let own = if on_b { 2 } else { 1 };
    let remotes = match on_b {
        true => ["10.0.0.1/32", "fd00::1/128"],
        false => ["10.0.0.2/31", "fd00::2/127"],
    };
    let mut text = format!(
        "name = '{name}'\n[runtime]\nmode = '{mode}'\nregion_mib = {region_mib}\n\
         [control]\nsocket = '{socket}'\n[[worker]]\ncore = 0\n"
    );
    if on_b {
        text += "[[worker]]\ncore = 1\n";
    }
    for (vpc, vni) in [("blue", 100), ("red", 200), ("green", 300)] {
        text += &format!("[[vpc]]\nname = '{vpc}'\nvni = {vni}\n");
        text += &format!("gateway = '{GATEWAY}'\ngateway6 = '{GATEWAY6}'\n");
        for remote in remotes.iter().filter(|_| vpc != "green") {
            text += &format!("[[vpc.route]]\nto = '{remote}'\nvia = '{far}'\n");
        }
    }
    let key = if vtep.is_ipv6() { "vtep6" } else { "vtep" };
    text += &format!("[[uplink]]\nname = 'up'\ninterface = 'veth'\n{key} = '{vtep}'\n");
    if !on_b {
        text += uplink_a;
    }
    let mut port = |name: &str, vpc: &str, last: u8, rest: &str| {
        text += &format!(
            "[[port]]\nname = '{name}'\ninterface = '{name}'\nvpc = '{vpc}'\n\
             address = '10.0.0.{last}/24'\naddress6 = 'fd00::{last}/64'\n{rest}\n"
        );
    };
    let jumbo = format!("mtu = {JUMBO_MTU}");
    port("blue", "blue", own, &jumbo);
    port("red", "red", own, if on_b { "queues = 2\nworkers = [0, 1]" } else { "" });
    port("green", "green", own, if on_b { "worker = 1" } else { "" });
    if on_b {
        port("blue3", "blue", 3, &format!("{jumbo}\nworker = 1"));
    }
    text + &more.replace("SCRATCH", &scratch.0.display().to_string()).replace("HOST", letter)
}

/// Makes tests of every function, for both families.
macro_rules! both {
    ($($name:ident)*) => {
        mod v4 {
            $(#[test]
            fn $name() {
                super::$name(crate::world::Options::default());
            })*
        }

        mod v6 {
            $(#[test]
            fn $name() {
                super::$name(crate::world::Options::v6());
            })*
        }
    };
}
pub(crate) use both;
