//! The promise of [`Port`](super::Port) as a test suite that every port runs: sizes at and around
//! every frame boundary, order of bursts, a full queue, and conservation of frames. A broken
//! promise panics with what was expected.
//!
//! Frames carry the EtherType for local experiments (IEEE 802, 0x88b5), a number and a pattern;
//! whatever else arrives is ignored, so that a kernel at the far side may talk.

use super::Port;
use crate::packet::{BURST, Burst, Packet, PortId};
use outboard_dma::{Chain, DATA_BYTES, FreeList, MAX_FRAMES};
use std::time::Duration;

/// Bytes of the shortest frame in the suite: Ethernet's least, without its checksum.
const MIN_BYTES: usize = 60;
const HEADER_BYTES: usize = 14;
const ETHER_TYPE: [u8; 2] = [0x88, 0xb5];
/// How often something is looked for, a millisecond apart, before it counts as lost.
const PATIENCE: u32 = 10_000;
/// More packets than any port under test may hold.
const MORE_THAN_ANY_QUEUE: u32 = 20_000;

/// A port under test and its far side.
pub trait Subject {
    /// The port.
    fn port(&mut self) -> &mut dyn Port;

    /// What received packets have as their ingress.
    fn ingress(&self) -> PortId;

    /// Makes the far side send a frame.
    fn send(&mut self, data: &[u8], free: &mut FreeList);

    /// The next frame that arrived at the far side.
    fn receive(&mut self, free: &mut FreeList) -> Option<Vec<u8>>;

    /// Frames that the port holds.
    fn held(&mut self) -> usize;

    /// Whether [`stall`](Self::stall) can be done without losing what the port takes meanwhile; if
    /// not, the full queue is not tried.
    fn stalls(&self) -> bool {
        true
    }

    /// From now on nothing that is sent leaves, so that the queue fills.
    fn stall(&mut self);

    /// Ends [`stall`](Self::stall): what was held leaves.
    fn resume(&mut self);
}

/// Runs the suite. `free` is all frames that there are, less what the port holds.
pub fn run(subject: &mut dyn Subject, free: &mut FreeList) {
    let total = free.len() + subject.held();
    let mut bench = Bench { subject, free, total, waiting: 0, number: 0 };
    // Gives the port its frames to receive into.
    bench.idle();
    bench.sizes_received();
    bench.sizes_sent();
    bench.bursts_received();
    bench.bursts_sent();
    if bench.subject.stalls() {
        bench.full_queue();
    }
    bench.close();
}

struct Bench<'a> {
    subject: &'a mut dyn Subject,
    free: &'a mut FreeList,
    total: usize,
    /// Frames of packets that the suite holds back meanwhile.
    waiting: usize,
    number: u32,
}

impl Bench<'_> {
    fn sizes_received(&mut self) {
        for bytes in self.sizes() {
            let sent = self.frame(bytes);
            self.subject.send(&sent, self.free);
            assert_same(&self.expect_received(1)[0], &sent);
        }
    }

    fn sizes_sent(&mut self) {
        for bytes in self.sizes() {
            let data = self.frame(bytes);
            let mut burst = Burst::new();
            burst.push(self.packet(&data));
            self.send_all(&mut burst);
            assert_same(&self.expect_arrived(), &data);
        }
        self.settle();
    }

    fn bursts_received(&mut self) {
        let largest = self.subject.port().max_frame_bytes();
        for count in [1, 2, BURST - 1, BURST, BURST + 1, 2 * BURST] {
            let sent: Vec<Vec<u8>> =
                (0..count).map(|index| self.frame((MIN_BYTES + index * 50).min(largest))).collect();
            for data in &sent {
                self.subject.send(data, self.free);
            }
            let received = self.expect_received(count);
            for (packet, data) in received.iter().zip(&sent) {
                assert_same(packet, data);
            }
        }
    }

    fn bursts_sent(&mut self) {
        let largest = self.subject.port().max_frame_bytes();
        for count in [1, 2, BURST - 1, BURST] {
            let data: Vec<Vec<u8>> =
                (0..count).map(|index| self.frame((MIN_BYTES + index * 50).min(largest))).collect();
            let mut burst = data.iter().map(|data| self.packet(data)).collect();
            self.send_all(&mut burst);
            for data in &data {
                assert_same(&self.expect_arrived(), data);
            }
        }
        self.settle();
    }

    /// Sends into a queue that does not drain until it takes nothing more. What it took arrives
    /// later, in order; what it did not take stays in the burst, in order.
    fn full_queue(&mut self) {
        self.subject.stall();
        let largest = self.subject.port().max_frame_bytes();
        let mut waiting: Vec<Vec<u8>> = Vec::new();
        let mut left: Vec<Vec<u8>> = Vec::new();
        let mut burst = Burst::new();
        let mut refused = false;
        while !refused {
            assert!(waiting.len() < MORE_THAN_ANY_QUEUE as usize, "the queue never filled");
            while !burst.is_full() {
                let bytes = [MIN_BYTES, DATA_BYTES + 1, MIN_BYTES][burst.len() % 3].min(largest);
                let data = self.frame(bytes);
                burst.push(self.packet(&data));
                left.push(data);
            }
            self.subject.port().tx(&mut burst, self.free);
            assert!(burst.len() <= left.len(), "a burst grew");
            let taken = left.len() - burst.len();
            waiting.extend(left.drain(..taken));
            for (packet, data) in burst.iter().zip(&left) {
                assert_same(&contents(packet), data);
            }
            refused = taken == 0;
            self.conserved(burst.iter().map(|packet| packet.frames()).sum());
        }
        self.subject.resume();
        self.waiting = burst.iter().map(|packet| packet.frames()).sum();
        for data in waiting {
            assert_same(&self.expect_arrived(), &data);
        }
        self.waiting = 0;
        self.send_all(&mut burst);
        for data in left {
            assert_same(&self.expect_arrived(), &data);
        }
        self.settle();
    }

    /// Ends the port: every frame is back.
    fn close(&mut self) {
        self.subject.port().close(self.free);
        assert_eq!(self.free.len(), self.total, "frames after close");
        assert_eq!(self.subject.held(), 0, "frames that a closed port holds");
    }

    /// Sizes at and around the boundaries of 1, 2, 3 and [`MAX_FRAMES`] frames that the port can
    /// carry, the frames before the last, and the largest it carries.
    fn sizes(&mut self) -> Vec<usize> {
        let largest = self.subject.port().max_frame_bytes();
        let edges = [1, 2, 3, MAX_FRAMES - 1, MAX_FRAMES].map(|frames| frames * DATA_BYTES);
        let around = edges.iter().flat_map(|edge| [edge - 1, *edge, edge + 1]);
        let mut sizes: Vec<usize> = [MIN_BYTES, MIN_BYTES + 1, largest - 1, largest]
            .into_iter()
            .chain(around)
            .filter(|bytes| *bytes <= largest)
            .collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// A numbered frame of `bytes` bytes.
    fn frame(&mut self, bytes: usize) -> Vec<u8> {
        self.number += 1;
        let mut data = vec![0; bytes];
        data[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        data[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
        data[12..14].copy_from_slice(&ETHER_TYPE);
        data[14..18].copy_from_slice(&self.number.to_be_bytes());
        for (index, byte) in data[18..].iter_mut().enumerate() {
            *byte = (index * 31 + bytes * 7) as u8 ^ self.number as u8;
        }
        data
    }

    fn packet(&mut self, data: &[u8]) -> Packet {
        let chain = Chain::from_slice(data, self.free).expect("frames for the suite's packets");
        Packet::new(chain, PortId(u16::MAX))
    }

    /// Calls `tx` until it has taken the whole burst; what is left each time is a suffix.
    fn send_all(&mut self, burst: &mut Burst) {
        for _ in 0..PATIENCE {
            let before: Vec<Vec<u8>> = burst.iter().map(contents).collect();
            self.subject.port().tx(burst, self.free);
            assert!(burst.len() <= before.len(), "a burst grew");
            let kept = &before[before.len() - burst.len()..];
            for (packet, data) in burst.iter().zip(kept) {
                assert_same(&contents(packet), data);
            }
            self.conserved(burst.iter().map(|packet| packet.frames()).sum());
            if burst.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("{} packets were never taken", burst.len());
    }

    /// Receives until `count` packets of the suite are there.
    fn expect_received(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut received = Vec::new();
        for _ in 0..PATIENCE {
            let mut burst = Burst::new();
            self.subject.port().rx(&mut burst, self.free);
            self.conserved(burst.iter().map(|packet| packet.frames()).sum());
            let nothing = burst.is_empty();
            for packet in burst.drain(..) {
                assert_eq!(packet.ingress, self.subject.ingress());
                let data = contents(&packet);
                packet.into_chain().free(self.free);
                if is_ours(&data) {
                    received.push(data);
                }
            }
            if received.len() >= count {
                assert_eq!(received.len(), count, "more received than sent");
                return received;
            }
            if nothing {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        panic!("{} of {count} packets were received", received.len());
    }

    /// The next packet of the suite at the far side; the port is called meanwhile, as a worker
    /// would.
    fn expect_arrived(&mut self) -> Vec<u8> {
        for _ in 0..PATIENCE {
            match self.subject.receive(self.free) {
                Some(data) if is_ours(&data) => return data,
                Some(_) => {}
                None => {
                    self.idle();
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        panic!("a packet did not arrive");
    }

    /// A turn without packets of ours.
    fn idle(&mut self) {
        let mut burst = Burst::new();
        self.subject.port().rx(&mut burst, self.free);
        for packet in burst.drain(..) {
            assert!(!is_ours(&contents(&packet)), "received what nobody sent");
            packet.into_chain().free(self.free);
        }
        self.subject.port().tx(&mut burst, self.free);
        self.conserved(0);
    }

    /// Nothing more arrives at the far side.
    fn settle(&mut self) {
        for _ in 0..10 {
            self.idle();
            while let Some(data) = self.subject.receive(self.free) {
                assert!(!is_ours(&data), "a packet arrived twice, or one that nobody sent");
            }
        }
    }

    fn conserved(&mut self, in_hand: usize) {
        let (free, held, here) = (self.free.len(), self.subject.held(), in_hand + self.waiting);
        assert_eq!(free + held + here, self.total, "{free} free, {held} held, {here} here");
    }
}

fn contents(packet: &Packet) -> Vec<u8> {
    packet.segments().flatten().copied().collect()
}

fn is_ours(data: &[u8]) -> bool {
    data.len() >= MIN_BYTES && data[12..HEADER_BYTES] == ETHER_TYPE
}

/// The number that `frame` wrote.
fn number(data: &[u8]) -> u32 {
    u32::from_be_bytes([data[14], data[15], data[16], data[17]])
}

/// Compares without printing kilobytes.
fn assert_same(got: &[u8], expected: &[u8]) {
    if got == expected {
        return;
    }
    let differs = got.iter().zip(expected).position(|(a, b)| a != b);
    panic!(
        "got packet {} of {} bytes instead of packet {} of {} bytes; first difference: {differs:?}",
        number(got),
        got.len(),
        number(expected),
        expected.len()
    );
}
