//! One queue of any device that DPDK has a driver for, an Ethernet NIC or a virtual device.
//!
//! Frames are shared: they are lent to the driver and come back with packets in them, as with
//! AF_XDP; chains are mbufs of several segments. Drivers that cannot work on frames ([`Memory`])
//! have memory of their own, and every packet is copied once. On a device that is also an interface
//! of the kernel (`net_af_packet`) the kernel sees a copy of everything, so that on an uplink what
//! is not a tunnel's is left to it.

mod memory;

pub use outboard_dpdk_sys::{DeviceError, Eal, EalError, Memory};

use super::Port;
use crate::counters::PortCounters;
use crate::drop::DropReason;
use crate::packet::{BURST, Burst, Packet, PortId};
use arrayvec::ArrayVec;
use memory::Fit;
use outboard_dma::{DATA_BYTES, FreeList, MAX_FRAMES, Region};
use outboard_dpdk_sys::{Lost, Queue, QueueConfig};
use outboard_wire::ethernet;
use outboard_wire::{STEER_BYTES, STEER_V6_BYTES, Steer, steer, steer_v6, vtep};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::RawFd;
use std::sync::Arc;

/// Everything that names one queue.
#[derive(Clone, Debug)]
pub struct DpdkConfig<'a> {
    /// The device: a driver's name and arguments, or a PCI address.
    pub device: &'a str,
    /// The process's frame memory.
    pub region: &'static Region,
    /// Frames that may lie in the driver's rings, half of them to receive into.
    pub ring_frames: u16,
    /// The largest packet wanted, in bytes of IP packet.
    pub mtu: usize,
    /// Whether the device is an interface of the kernel, which has set its MTU.
    pub kernel_interface: bool,
    /// What the driver works on; `None`: frames, unless it cannot.
    pub memory: Option<Memory>,
    /// This host's tunnel addresses: of what arrives, only what is for one of them is taken, and
    /// the rest is the kernel's. Empty: everything is taken.
    pub tunnels: Vec<IpAddr>,
    /// The UDP port of tunnels.
    pub tunnel_port: u16,
    /// What received packets have as their ingress.
    pub port: PortId,
    /// Where packets are counted; the queue's worker is their only writer.
    pub counters: Arc<PortCounters>,
}

/// Why a port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DpdkError {
    /// DPDK could not.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The blocks of memory that a packet socket receives into are too small.
    #[error(
        "the DPDK device `{device}` receives packets of {found} bytes at most, and {needed} are \
         needed; give it `{remedy}`"
    )]
    FrameSize {
        /// The device.
        device: String,
        /// Bytes that it receives.
        found: usize,
        /// Bytes that it must receive.
        needed: usize,
        /// Arguments that would do.
        remedy: String,
    },
}

/// The port.
#[derive(Debug)]
pub struct Dpdk {
    queue: Queue,
    port: PortId,
    max_frame_bytes: usize,
    memory: Memory,
    /// `None`: everything is taken.
    tunnels: Option<Tunnels>,
    counters: Arc<PortCounters>,
}

impl Dpdk {
    /// Opens the device, with frames from `free` to receive into.
    pub fn open(eal: Eal, config: DpdkConfig, free: &mut FreeList) -> Result<Dpdk, DpdkError> {
        let Fit { memory, most_bytes, sets_mtu } =
            memory::fit(config.device, config.mtu, config.memory)?;
        let tunnels = Tunnels::new(&config.tunnels, config.tunnel_port);
        let half = (config.ring_frames / 2).max(BURST as u16);
        let set = sets_mtu && !config.kernel_interface;
        let queue = QueueConfig {
            device: config.device,
            region: config.region,
            rx_entries: half,
            tx_entries: half,
            mtu: set.then(|| u16::try_from(config.mtu).unwrap_or(u16::MAX)),
            memory,
        };
        let queue = Queue::open(eal, &queue, free)?;
        let mtu = if set { queue.mtu() } else { config.mtu };
        let most = if queue.sends_segments() { MAX_FRAMES * DATA_BYTES } else { DATA_BYTES };
        Ok(Dpdk {
            max_frame_bytes: (mtu + ethernet::BYTES).min(most).min(most_bytes),
            queue,
            port: config.port,
            memory,
            tunnels,
            counters: config.counters,
        })
    }

    /// What the driver works on.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Whether the device's far side is there; asks the driver.
    pub fn link_is_up(&self) -> bool {
        self.queue.link_is_up()
    }

    /// Frames that the port and DPDK hold.
    pub fn held(&self) -> usize {
        self.queue.held()
    }
}

impl Port for Dpdk {
    #[inline]
    fn rx(&mut self, burst: &mut Burst, free: &mut FreeList) {
        let (port, tunnels) = (self.port, self.tunnels.as_ref());
        let (before, mut bytes) = (burst.len(), 0);
        let mut kernels: Burst = ArrayVec::new();
        let room = burst.remaining_capacity();
        let lost = self.queue.receive(room, free, |chain| {
            let packet = Packet::new(chain, port);
            if tunnels.is_some_and(|tunnels| !tunnels.have(packet.head())) {
                return kernels.push(packet);
            }
            bytes += packet.bytes() as u64;
            burst.push(packet);
        });
        for packet in kernels {
            packet.into_chain().free(free);
        }
        let packets = (burst.len() - before) as u64;
        if packets > 0 {
            self.counters.rx_packets.add(packets);
            self.counters.rx_bytes.add(bytes);
        }
        if lost != Lost::default() {
            for _ in 0..lost.no_frames {
                self.counters.drops.count(DropReason::NoFrames);
            }
            for _ in 0..lost.too_many_frames {
                self.counters.drops.count(DropReason::TooManyFrames);
            }
        }
    }

    #[inline]
    fn tx(&mut self, burst: &mut Burst, free: &mut FreeList) {
        if burst.is_empty() {
            return;
        }
        let drops = &self.counters.drops;
        let mut origin: ArrayVec<(PortId, usize), BURST> = ArrayVec::new();
        let mut sendable: Burst = ArrayVec::new();
        for packet in burst.drain(..) {
            if packet.bytes() < ethernet::BYTES {
                packet.drop_with(DropReason::TooShort, drops, free);
            } else if packet.bytes() > self.max_frame_bytes {
                packet.drop_with(DropReason::TooBig, drops, free);
            } else if !Queue::fits(&packet) {
                packet.drop_with(DropReason::NoHeadroom, drops, free);
            } else {
                origin.push((packet.ingress, packet.bytes()));
                sendable.push(packet);
            }
        }
        let mut at = origin.len();
        let chains = sendable.into_iter().map(Packet::into_chain);
        let mut left: ArrayVec<_, BURST> = ArrayVec::new();
        let sent = self.queue.transmit(chains, free, |chain| left.push(chain));
        at -= left.len();
        for (chain, (ingress, _)) in left.into_iter().zip(&origin[at..]) {
            burst.push(Packet::new(chain, *ingress));
        }
        if sent > 0 {
            self.counters.tx_packets.add(sent as u64);
            let bytes: usize = origin[..sent].iter().map(|(_, bytes)| bytes).sum();
            self.counters.tx_bytes.add(bytes as u64);
        }
    }

    fn max_frame_bytes(&self) -> usize {
        self.max_frame_bytes
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }

    fn must_poll(&self) -> bool {
        true
    }

    fn has_unsent(&self) -> bool {
        false
    }

    fn close(&mut self, free: &mut FreeList) {
        self.queue.close(free);
    }
}

/// What of an uplink's packets is ours, where the kernel has a copy of all of them.
#[derive(Debug)]
struct Tunnels {
    port: u16,
    vteps: Vec<[u8; 16]>,
    /// Sockets of the kernel's that nobody reads: without one it would tell the far ends that
    /// nobody listens on the port.
    _quiet: Vec<UdpSocket>,
}

impl Tunnels {
    /// In the calling thread's network namespace.
    fn new(addresses: &[IpAddr], port: u16) -> Option<Tunnels> {
        if addresses.is_empty() {
            return None;
        }
        // An address that is not there, or a port that is taken, leaves the kernel's answers.
        let quiet = addresses.iter().flat_map(|address| UdpSocket::bind((*address, port)));
        let vteps = addresses.iter().map(|address| vtep(*address)).collect();
        Some(Tunnels { port, vteps, _quiet: quiet.collect() })
    }

    /// Whether a frame is a datagram to the tunnel port of one of the addresses.
    #[inline]
    fn have(&self, head: &[u8]) -> bool {
        let Some(first) = head.first_chunk::<STEER_BYTES>() else { return false };
        let steered = match steer(first, self.port) {
            Steer::Ipv6 => match head.first_chunk::<STEER_V6_BYTES>() {
                Some(first) => steer_v6(first, self.port),
                None => return false,
            },
            steered => steered,
        };
        matches!(steered, Steer::Tunnel(vtep) if self.vteps.contains(&vtep))
    }
}
