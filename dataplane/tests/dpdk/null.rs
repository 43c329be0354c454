//! A device that receives packets without end and sends into nothing.

use crate::queue::{Options, PORT, Queue};
use outboard::packet::{BURST, Burst, PortId};
use outboard::port::Port;
use outboard_dma::CountingAllocator;

#[test]
fn what_is_received_is_sent_without_an_allocation() {
    // A million packets.
    const ROUNDS: usize = 31_250;
    let mut queue = Queue::open("net_null0", Options::default());
    let (mut allocations, mut packets) = (0, 0);
    for _ in 0..ROUNDS {
        let before = CountingAllocator::count();
        let mut burst = Burst::new();
        queue.port.rx(&mut burst, &mut queue.free);
        let received = burst.len();
        queue.port.tx(&mut burst, &mut queue.free);
        allocations += CountingAllocator::count() - before;
        assert_eq!((received, burst.len()), (BURST, 0));
        queue.conserved(0);
        packets += received as u64;
    }
    assert_eq!(allocations, 0, "in {ROUNDS} turns");
    assert_eq!(
        (queue.counters.rx_packets.get(), queue.counters.tx_packets.get()),
        (packets, packets)
    );
    assert_eq!(queue.counters.rx_bytes.get(), 64 * packets);
    queue.close();
}

#[test]
fn a_received_frame_is_as_on_other_ports() {
    let mut queue = Queue::open("net_null1", Options::default());
    let mut burst = Burst::new();
    queue.port.rx(&mut burst, &mut queue.free);
    for packet in &burst {
        assert_eq!((packet.ingress, packet.frames(), packet.bytes()), (PORT, 1, 64));
        assert_eq!(packet.headroom(), 240, "256 bytes less the link");
    }
    queue.conserved(burst.len());
    // What begins in front of a driver's buffer is moved, or dropped where it cannot be.
    let mut packets = burst.drain(..);
    let mut moved = packets.next().unwrap();
    moved.grow_front(240).unwrap();
    let mut out: Burst = [moved].into_iter().collect();
    let rest: Burst = packets.collect();
    queue.port.tx(&mut out, &mut queue.free);
    assert_eq!((out.len(), queue.counters.tx_bytes.get()), (0, 304));
    for packet in rest {
        packet.into_chain().free(&mut queue.free);
    }
    queue.close();
    let mut queue = Queue::open("net_ring2", Options { mtu: 9000, ..Options::default() });
    let mut full = outboard_dma::Chain::from_slice(&[7; 3840], &mut queue.free).unwrap();
    full.grow_front(129).unwrap();
    out.push(outboard::packet::Packet::new(full, PortId(0)));
    queue.port.tx(&mut out, &mut queue.free);
    let drops = &queue.counters.drops;
    assert_eq!((out.len(), drops.get(outboard::drop::DropReason::NoHeadroom)), (0, 1));
    queue.close();
}
