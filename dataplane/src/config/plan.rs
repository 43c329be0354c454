//! The checked configuration. Names are resolved to indices into this plan's lists.

use super::diff::Kind;
use crate::packet::PortId;
use crate::volume::export::{GUARANTEED_FRAMES, SHARED_FRAMES};
use outboard_wire::{IpPrefix, Ipv4Prefix, Ipv6Prefix, Mac};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Frames that a worker needs for each queue that it owns: a fill ring of 64, and as many on their
/// way (the longest packet has 18).
pub const FRAMES_PER_QUEUE_MIN: u32 = 128;

/// Connections that one export serves: hosts have an admin and an I/O connection each.
pub const EXPORT_CONNECTIONS: u16 = 32;

/// Frames that an export takes from the share of the worker that owns its volume.
pub const EXPORT_FRAMES: u32 = EXPORT_CONNECTIONS as u32 * GUARANTEED_FRAMES as u32 + SHARED_FRAMES;

/// The most volumes of a host.
pub const VOLUMES_MAX: usize = 256;
/// The most exports of a host.
pub const EXPORTS_MAX: usize = 256;
/// The most disks of a host.
pub const DISKS_MAX: usize = 256;

/// The most queues that one worker owns.
pub const WORKER_QUEUES_MAX: usize = 1024;

/// Everything that a daemon shall be.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The instance's name: names its BPF pins and appears in reports.
    pub name: String,
    /// How workers wait and how much frame memory there is.
    pub runtime: Runtime,
    /// The local socket of `outboard stats`.
    pub control_socket: PathBuf,
    /// Where metrics are served, if they are.
    pub metrics: Option<SocketAddr>,
    /// Workers, one thread each.
    pub workers: Vec<Worker>,
    /// Arguments of DPDK's environment, for ports of its devices.
    pub eal: Vec<String>,
    /// Virtual private networks.
    pub vpcs: Vec<Vpc>,
    /// Tenants' ports and uplinks.
    pub ports: Vec<Port>,
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// Volumes served to other hosts.
    pub exports: Vec<Export>,
    /// Disks given to guests.
    pub disks: Vec<Disk>,
}

/// What a worker does when a turn found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitMode {
    /// Turns again at once: lowest latency, one core per worker.
    Busy,
    /// Yields the core to other threads between empty turns.
    Yield,
    /// Spins for `spin_us`, then sleeps until something arrives.
    Adaptive,
}

/// `[runtime]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// How workers wait.
    pub mode: WaitMode,
    /// For how long an adaptive worker spins before it sleeps.
    pub spin_us: u32,
    /// Size of the frame memory.
    pub region_mib: u32,
    /// The most flows that one worker's cache holds; a power of two.
    pub flows: u32,
    /// Whether workers always keep ledgers of where packets and I/Os spend their time.
    pub ledger: bool,
}

/// `[[worker]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// The core it is pinned to.
    pub core: u16,
}

/// `[[vpc]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vpc {
    /// Name in the configuration and in reports.
    pub name: String,
    /// VXLAN network identifier, 1 to 2^24 - 1.
    pub vni: u32,
    /// The virtual gateway's IPv4 address; the VPC has one of this and the next, or both.
    pub gateway: Option<Ipv4Addr>,
    /// The virtual gateway's IPv6 address.
    pub gateway6: Option<Ipv6Addr>,
    /// The virtual gateway's MAC address, the same on all hosts.
    pub gateway_mac: Mac,
    /// What outer packets carry as DSCP.
    pub dscp: Dscp,
    /// Destinations behind other hosts.
    pub routes: Vec<Route>,
}

/// The differentiated services codepoint of outer packets (RFC 2983).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dscp {
    /// The inner packet's: the uniform model.
    Copy,
    /// This one, below 64, whatever is inside: the pipe model.
    Fixed(u8),
}

/// `[[vpc.route]]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination inside the VPC.
    pub to: IpPrefix,
    /// Tunnel address of the host behind which it is, of either family.
    pub via: IpAddr,
    /// Inner destination MAC; the VPC's gateway MAC when the far end is Outboard.
    pub mac: Mac,
}

/// `[[port]]` and `[[uplink]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its number in the process: as long as the port is there it keeps it, whatever others come
    /// and go. In a file's plan it is the place in the list.
    pub id: PortId,
    /// Name in the configuration and in reports.
    pub name: String,
    /// The network interface on this host; empty where a device of DPDK's is none of the kernel's.
    pub interface: String,
    /// The device of DPDK's that packets come from and go to; `None`: the interface, by AF_XDP.
    pub dpdk: Option<String>,
    /// The worker (index) that owns each queue; the length is the number of queues.
    pub queues: Vec<u16>,
    /// What is behind it.
    pub role: Role,
}

/// What is behind a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// A tenant: a container's or a VM's interface.
    Tenant(Tenant),
    /// The network between hosts.
    Uplink {
        /// This host's IPv4 tunnel address, assigned to the interface; the uplink has one of this
        /// and the next, or both.
        vtep: Option<Ipv4Addr>,
        /// This host's IPv6 tunnel address.
        vtep6: Option<Ipv6Addr>,
        /// Whether tunnel packets over IPv6 may come without a UDP checksum (RFC 6936).
        zero_checksum6: bool,
    },
}

impl Port {
    /// Whether it is a tenant's port or an uplink.
    pub fn kind(&self) -> Kind {
        match self.role {
            Role::Tenant(_) => Kind::Port,
            Role::Uplink { .. } => Kind::Uplink,
        }
    }
}

/// A tenant's end of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Index of its VPC.
    pub vpc: u16,
    /// Its IPv4 address; a tenant has one of this and the next, or both.
    pub address: Option<Ipv4Interface>,
    /// Its IPv6 address.
    pub address6: Option<Ipv6Interface>,
    /// Its MAC address.
    pub mac: Mac,
    /// MTU of its interface in bytes of IP packet.
    pub mtu: u16,
}

/// An IPv4 address with the prefix length of its on-link network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Interface {
    /// The address.
    pub address: Ipv4Addr,
    /// The prefix length in bits, 1 to 32.
    pub prefix_len: u8,
}

impl Ipv4Interface {
    /// The on-link network.
    pub fn network(self) -> Ipv4Prefix {
        let network = Ipv4Prefix::containing(self.address, self.prefix_len);
        network.expect("the configuration checks prefix lengths")
    }
}

impl fmt::Display for Ipv4Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

/// An IPv6 address with the prefix length of its on-link network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6Interface {
    /// The address.
    pub address: Ipv6Addr,
    /// The prefix length in bits, 1 to 128.
    pub prefix_len: u8,
}

impl Ipv6Interface {
    /// The on-link network.
    pub fn network(self) -> Ipv6Prefix {
        let network = Ipv6Prefix::containing(self.address, self.prefix_len);
        network.expect("the configuration checks prefix lengths")
    }
}

impl fmt::Display for Ipv6Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

/// `[[volume]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Name in the configuration and in reports.
    pub name: String,
    /// The worker (index) that owns it, its disks and its exports.
    pub worker: u16,
    /// Bytes per block: 512 or 4096; 0 for a remote volume: what its target has.
    pub block_bytes: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Where the data is.
    pub backing: Backing,
}

/// Where a volume's data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// In memory, gone when the daemon ends.
    Mem {
        /// Size; a multiple of the block size.
        bytes: u64,
    },
    /// Nowhere: I/O ends at once and moves nothing.
    Null {
        /// Size; a multiple of the block size.
        bytes: u64,
    },
    /// In a file or on a block device.
    File {
        /// The path.
        path: PathBuf,
        /// Created at this size when missing; `None`: it must exist.
        create_bytes: Option<u64>,
    },
    /// At an NVMe/TCP target.
    Remote {
        /// The target's address.
        address: SocketAddr,
        /// The subsystem's NVMe qualified name.
        nqn: String,
        /// Namespace identifier, from 1.
        nsid: u32,
        /// Its size; `None`: whatever the target has.
        bytes: Option<u64>,
        /// How long I/O waits for a connection that was lost; zero: not at all.
        loss_timeout: Duration,
        /// How long a target that does not fence may still work on what it was sent before.
        quiesce: Duration,
        /// Digests on its connections.
        digests: Digests,
    },
}

/// `[[export]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Index of the volume, namespace 1 of the subsystem.
    pub volume: u16,
    /// The subsystem's NVMe qualified name.
    pub nqn: String,
    /// Where the target listens (NVMe/TCP).
    pub listen: SocketAddr,
    /// Digests that a host has to ask for; it is given all that it asks for.
    pub require_digests: Digests,
}

/// Digests of NVMe/TCP: checksums that are stronger than TCP's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Digests {
    /// None.
    #[default]
    None,
    /// Of headers.
    Header,
    /// Of data.
    Data,
    /// Of headers and data.
    Both,
}

impl Digests {
    /// The word in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Digests::None => "none",
            Digests::Header => "header",
            Digests::Data => "data",
            Digests::Both => "both",
        }
    }
}

/// `[[disk]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Name in the configuration and in reports; also the serial that the guest reads.
    pub name: String,
    /// Index of the volume.
    pub volume: u16,
    /// Path of the vhost-user socket.
    pub socket: PathBuf,
    /// Who may use it.
    pub access: SocketAccess,
    /// Virtqueues, 1 to 16.
    pub queues: u16,
}

/// Who may use a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketAccess {
    /// A user's name or number; `None`: the daemon's.
    pub owner: Option<String>,
    /// A group's name or number; `None`: the daemon's.
    pub group: Option<String>,
    /// Permissions, at most 0o777; `None`: 0o660.
    pub mode: Option<u16>,
}

impl Plan {
    /// How many queues and exports a worker owns.
    pub fn owned(&self, worker: u16) -> (usize, usize) {
        let owners = self.ports.iter().flat_map(|port| &port.queues);
        let volume = |export: &&Export| self.volumes.get(usize::from(export.volume));
        let is_own = |export: &&Export| volume(export).is_some_and(|it| it.worker == worker);
        let exports = self.exports.iter().filter(is_own).count();
        (owners.filter(|owner| **owner == worker).count(), exports)
    }

    /// Frames that a worker's share must have at least.
    pub fn frames_needed(&self, worker: u16) -> u64 {
        let (queues, exports) = self.owned(worker);
        queues as u64 * u64::from(FRAMES_PER_QUEUE_MIN) + exports as u64 * u64::from(EXPORT_FRAMES)
    }

    /// The number of a port by its name.
    pub fn port(&self, name: &str) -> Option<PortId> {
        self.ports.iter().find(|port| port.name == name).map(|port| port.id)
    }
}
