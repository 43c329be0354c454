//! The promise of a port, over drivers that pass mbufs on, that copy them, and that give them to
//! the kernel.

use crate::netns::Namespace;
use crate::netns::packet::PacketSocket;
use crate::queue::{Options, PORT, Queue, wait_for_links};
use outboard::packet::{Burst, Packet, PortId};
use outboard::port::Port;
use outboard::port::conformance::{self, Subject};
use outboard::port::dpdk::{Dpdk, Memory};
use outboard_dma::{Chain, FreeList};
use std::collections::VecDeque;

/// The largest MTU: packets of 18 frames.
const LARGEST: usize = 65_535;

/// A ring whose two ends are the same port: what it sends it receives.
struct Loop {
    port: Dpdk,
    arrived: VecDeque<Vec<u8>>,
}

impl Subject for Loop {
    fn port(&mut self) -> &mut dyn Port {
        &mut self.port
    }

    fn ingress(&self) -> PortId {
        PORT
    }

    fn send(&mut self, data: &[u8], free: &mut FreeList) {
        let mut burst = Burst::new();
        burst.push(Packet::new(Chain::from_slice(data, free).unwrap(), PORT));
        self.port.tx(&mut burst, free);
        assert!(burst.is_empty());
    }

    /// Empties the ring, so that the port under test finds nothing of what it sent.
    fn receive(&mut self, free: &mut FreeList) -> Option<Vec<u8>> {
        loop {
            let mut burst = Burst::new();
            self.port.rx(&mut burst, free);
            if burst.is_empty() {
                return self.arrived.pop_front();
            }
            for packet in burst {
                self.arrived.push_back(packet.segments().flatten().copied().collect());
                packet.into_chain().free(free);
            }
        }
    }

    fn held(&mut self) -> usize {
        self.port.held()
    }

    fn stall(&mut self) {}

    fn resume(&mut self) {}
}

/// Two ports of DPDK's, the second as the first one's far side.
struct Pair {
    port: Dpdk,
    far: Queue,
    arrived: VecDeque<Vec<u8>>,
    stalled: bool,
}

impl Subject for Pair {
    fn port(&mut self) -> &mut dyn Port {
        &mut self.port
    }

    fn ingress(&self) -> PortId {
        PORT
    }

    fn send(&mut self, data: &[u8], _free: &mut FreeList) {
        assert!(self.far.offer(data));
    }

    fn receive(&mut self, _free: &mut FreeList) -> Option<Vec<u8>> {
        if self.stalled {
            return None;
        }
        if self.arrived.is_empty() {
            self.arrived.extend(self.far.receive());
        }
        self.arrived.pop_front()
    }

    fn held(&mut self) -> usize {
        self.port.held()
    }

    fn stall(&mut self) {
        self.stalled = true;
    }

    fn resume(&mut self) {
        self.stalled = false;
    }
}

/// The second one is the port under test; it may need that the first is there.
fn conforms(far: Queue, near: Queue, mtu: usize) {
    let (mut near, mut far) = (near, far);
    wait_for_links(&mut [&mut near, &mut far]);
    // A memory interface can send once its far side has looked for packets.
    assert!(near.receive().is_empty() && far.receive().is_empty());
    let Queue { port, mut free, counters, .. } = near;
    assert_eq!(port.max_frame_bytes(), mtu + 14);
    let mut pair = Pair { port, far, arrived: VecDeque::new(), stalled: false };
    conformance::run(&mut pair, &mut free);
    assert_eq!(counters.drops.total(), 0);
    pair.far.close();
}

fn loops(name: &str, options: Options) {
    let Queue { port, mut free, counters, .. } = Queue::open(name, options);
    assert_eq!(port.max_frame_bytes(), options.mtu + 14);
    let mut subject = Loop { port, arrived: VecDeque::new() };
    conformance::run(&mut subject, &mut free);
    assert_eq!(counters.drops.total(), 0);
}

#[test]
fn over_a_ring_that_passes_mbufs_on() {
    loops("net_ring0", Options { frames: 8192, mtu: LARGEST, ..Options::default() });
}

#[test]
fn over_a_ring_with_copies() {
    let memory = Some(Memory::Copied { packet_bytes: 9014 });
    loops("net_ring1", Options { frames: 8192, mtu: 9000, memory, ..Options::default() });
}

/// Both ends of a memory interface in this process, with slots for such packets.
fn memif(number: u32, mtu: usize) -> [String; 2] {
    let name = format!("@outboard-memif-{}-{number}", std::process::id());
    ["server", "client"].map(|role| {
        let slots = format!("rsize=7,bsize={}", mtu + 14);
        format!("net_memif_{role}{number},role={role},socket={name},socket-abstract=yes,{slots}")
    })
}

#[test]
fn over_memory_that_two_drivers_share() {
    // 18 frames, as far as a slot goes.
    for (number, mtu) in [(0, 1500), (1, 65_521)] {
        let options = Options { frames: 8192, mtu, ..Options::default() };
        let [server, client] = memif(number, mtu).map(|device| Queue::open(&device, options));
        conforms(server, client, mtu);
    }
    let options = Options { frames: 8192, mtu: 9000, ..Options::default() };
    let [server, client] = memif(2, 9000).map(|device| Queue::open(&device, options));
    conforms(client, server, 9000);
}

/// The port over a packet socket, the kernel's own at the far side.
struct OverVeth {
    port: Dpdk,
    socket: PacketSocket,
}

impl Subject for OverVeth {
    fn port(&mut self) -> &mut dyn Port {
        &mut self.port
    }

    fn ingress(&self) -> PortId {
        PORT
    }

    fn send(&mut self, data: &[u8], _free: &mut FreeList) {
        self.socket.send(data);
    }

    fn receive(&mut self, _free: &mut FreeList) -> Option<Vec<u8>> {
        self.socket.receive()
    }

    fn held(&mut self) -> usize {
        self.port.held()
    }

    /// What the driver has put into the kernel's ring while the link is down leaves with the next
    /// packet that is sent, and only then.
    fn stalls(&self) -> bool {
        false
    }

    fn stall(&mut self) {}

    fn resume(&mut self) {}
}

fn over_veth(number: u32, mtu: u32, arguments: &str, shared: bool) {
    let (near, far) = (Namespace::new(), Namespace::new());
    near.join(&far, 1, mtu);
    near.enter();
    let device = format!("net_af_packet{number},iface=veth{arguments}");
    let mtu = mtu as usize;
    let options = Options { frames: 4096, mtu, kernel_interface: true, ..Options::default() };
    let Queue { port, mut free, counters, .. } = Queue::open(&device, options);
    assert_eq!((port.memory() == Memory::Shared, port.max_frame_bytes()), (shared, mtu + 14));
    let socket = far.within(|| PacketSocket::open("veth", 0x88b5));
    conformance::run(&mut OverVeth { port, socket }, &mut free);
    assert_eq!(counters.drops.total(), 0);
}

#[test]
fn over_a_packet_socket() {
    over_veth(0, 1500, "", true);
}

#[test]
fn over_a_packet_socket_with_the_largest_frames() {
    over_veth(1, 3760, ",framesz=3840,blocksz=61440", true);
}

#[test]
fn over_a_packet_socket_with_jumbo_frames() {
    over_veth(2, 9000, ",framesz=16384,blocksz=65536", false);
}
