//! The promise of a port, over drivers that pass mbufs on, that copy them, and that give them to
//! the kernel.

use crate::queue::{Options, PORT, Queue};
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
