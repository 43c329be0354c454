//! One host: a switch between test ports, driven like a worker drives them, with a small stock of
//! frames. Keeps the books that the oracles look at.

use arrayvec::ArrayVec;
use outboard::counters::PortCounters;
use outboard::drop::DropReason;
use outboard::packet::{BURST, Burst, Packet, PortId};
use outboard::port::Port;
use outboard::port::test::TestPort;
use outboard::switch::{NextHopId, Seed, Switch, Tables, Verdict};
use outboard_dma::{Chain, DATA_BYTES, FreeList, HEADROOM_BYTES, Region};
use outboard_sim::Rng;
use std::sync::Arc;

/// Frames of a host: few, so that it runs out of them.
const FRAMES: u32 = 192;
/// Packets that wait in a port, in each direction: few, so that queues fill.
const QUEUE: usize = 48;
/// Flows in the cache: few, so that some are evicted.
const FLOWS: u32 = 64;
/// Packets held for one next hop, and how long.
const HELD_PER_HOP: usize = 3;
const HELD_NS: u64 = 2_000_000;

/// A switch with its ports.
pub struct Host {
    switch: Switch,
    ports: Vec<TestPort>,
    out: Vec<Burst>,
    held: Vec<Held>,
    free: FreeList,
    counters: Vec<Arc<PortCounters>>,
    /// Packets that found no room in a port or no frames.
    pub refused: u64,
    /// Packets that waited for a next hop and were sent in the end.
    pub held_and_sent: u64,
    rng: Rng,
}

struct Held {
    packet: Packet,
    hop: NextHopId,
    until_ns: u64,
}

impl Host {
    pub fn new(ports: usize, tables: Arc<Tables>, mut rng: Rng) -> Host {
        let counters: Vec<Arc<PortCounters>> = (0..ports).map(|_| Arc::default()).collect();
        let port = |(counters, id): (&Arc<PortCounters>, u16)| {
            TestPort::new(PortId(id), QUEUE, counters.clone())
        };
        Host {
            switch: Switch::new(FLOWS, Seed::new(rng.next_u64()), tables),
            ports: counters.iter().zip(0..).map(port).collect(),
            out: (0..ports).map(|_| Burst::new()).collect(),
            held: Vec::new(),
            free: Region::new(FRAMES).unwrap().carve(FRAMES).unwrap(),
            counters,
            refused: 0,
            held_and_sent: 0,
            rng,
        }
    }

    /// A frame arrives at a port; `false` when it found no room. Its frames are cut at random.
    pub fn arrive(&mut self, port: PortId, bytes: &[u8]) -> bool {
        let chain = if self.rng.chance(300_000) && bytes.len() > 200 {
            self.chain_in_pieces(bytes)
        } else {
            Chain::from_slice(bytes, &mut self.free)
        };
        let left = match chain.map(|chain| self.ports[usize::from(port.0)].inject_chain(chain)) {
            Some(Ok(())) => return true,
            Some(Err(chain)) => Some(chain),
            None => None,
        };
        if let Some(chain) = left {
            chain.free(&mut self.free);
        }
        self.refused += 1;
        false
    }

    /// The headers in the first frame, the rest in pieces of any size.
    fn chain_in_pieces(&mut self, bytes: &[u8]) -> Option<Chain> {
        let mut lens = vec![128];
        let mut left = bytes.len() - 128;
        let least = left.div_ceil(8);
        while left > 0 {
            let most = left.min(DATA_BYTES);
            lens.push(self.rng.between(least.min(most) as u64, most as u64) as usize);
            left -= lens[lens.len() - 1];
        }
        if self.free.len() < lens.len() {
            return None;
        }
        let mut rest = bytes;
        let mut chain: Option<Chain> = None;
        for len in lens {
            let (piece, behind) = rest.split_at(len);
            rest = behind;
            let mut frame = self.free.take()?;
            frame.bytes_mut()[HEADROOM_BYTES..][..len].copy_from_slice(piece);
            match &mut chain {
                Some(chain) => chain.push(frame, HEADROOM_BYTES, len).expect("few pieces"),
                None => chain = Some(Chain::new(frame, HEADROOM_BYTES, len)),
            }
        }
        chain
    }

    /// One turn: receive, decide, send.
    pub fn turn(&mut self, now_ns: u64) {
        for index in 0..self.ports.len() {
            let mut burst = Burst::new();
            self.ports[index].rx(&mut burst, &mut self.free);
            self.decide(now_ns, burst, false);
        }
        for (port, out) in self.ports.iter_mut().zip(&mut self.out) {
            port.tx(out, &mut self.free);
        }
        while let Some(index) = self.held.iter().position(|held| held.until_ns <= now_ns) {
            let held = self.held.remove(index);
            self.drop(held.packet, DropReason::NextHopUnresolved);
        }
        self.check_books();
    }

    fn decide(&mut self, now_ns: u64, mut burst: Burst, were_held: bool) {
        let mut verdicts: ArrayVec<Verdict, BURST> = ArrayVec::new();
        self.switch.decide(now_ns, &mut burst, &mut self.free, &mut verdicts);
        assert_eq!(verdicts.len(), burst.len(), "one verdict per packet");
        for (packet, verdict) in burst.into_iter().zip(verdicts) {
            match verdict {
                Verdict::Forward(port) => {
                    self.held_and_sent += u64::from(were_held);
                    self.push(packet, port);
                }
                Verdict::Drop(reason) => self.drop(packet, reason),
                Verdict::Unresolved(hop) => {
                    if self.held.iter().filter(|held| held.hop == hop).count() == HELD_PER_HOP {
                        self.drop(packet, DropReason::NextHopUnresolved);
                    } else {
                        self.held.push(Held { packet, hop, until_ns: now_ns + HELD_NS });
                    }
                }
            }
        }
    }

    fn push(&mut self, packet: Packet, port: PortId) {
        let index = usize::from(port.0);
        if self.out[index].is_full() {
            self.ports[index].tx(&mut self.out[index], &mut self.free);
        }
        if let Err(full) = self.out[index].try_push(packet) {
            self.drop(full.element(), DropReason::TxQueueFull);
        }
    }

    fn drop(&mut self, packet: Packet, reason: DropReason) {
        let counters = &self.counters[usize::from(packet.ingress.0)];
        packet.drop_with(reason, &counters.drops, &mut self.free);
    }

    /// Takes at most `most` frames that the host sent through a port.
    pub fn sent(&mut self, port: PortId, most: usize) -> Vec<Vec<u8>> {
        let port = &mut self.ports[usize::from(port.0)];
        (0..most).map_while(|_| port.collect(&mut self.free)).collect()
    }

    /// Swaps the tables; what was held is decided anew.
    pub fn set_tables(&mut self, now_ns: u64, tables: Arc<Tables>) {
        self.switch.set_tables(tables);
        let held: Vec<Held> = std::mem::take(&mut self.held);
        let mut burst = Burst::new();
        for held in held {
            burst.push(held.packet);
            if burst.is_full() {
                self.decide(now_ns, std::mem::take(&mut burst), true);
            }
        }
        self.decide(now_ns, burst, true);
    }

    /// The laws of conservation: packets and frames.
    fn check_books(&self) {
        let count = |counter: fn(&PortCounters) -> u64| -> u64 {
            self.counters.iter().map(|counters| counter(counters)).sum()
        };
        let received = count(|port| port.rx_packets.get());
        let sent = count(|port| port.tx_packets.get());
        let dropped = count(|port| port.drops.total());
        let waiting = self.held.len() + self.out.iter().map(|out| out.len()).sum::<usize>();
        assert_eq!(received, sent + dropped + waiting as u64, "packets in = out + dropped + held");
        let held = self.held.iter().map(|held| held.packet.frames()).sum::<usize>();
        let out = self.out.iter().flatten().map(|packet| packet.frames()).sum::<usize>();
        let in_ports = self.ports.iter().map(TestPort::held).sum::<usize>();
        assert_eq!(self.free.len() + held + out + in_ports, FRAMES as usize, "no frame is lost");
    }

    /// Packets dropped for a reason, over all ports.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.counters.iter().map(|counters| counters.drops.get(reason)).sum()
    }

    /// Packets sent through a port.
    pub fn sent_packets(&self, port: PortId) -> u64 {
        self.counters[usize::from(port.0)].tx_packets.get()
    }

    /// Hits, misses, recompilations and evictions of the flow cache.
    pub fn flows(&self) -> [u64; 4] {
        let flows = self.switch.counters();
        [&flows.hits, &flows.misses, &flows.recompiles, &flows.evictions].map(|count| count.get())
    }

    /// Ends every packet; all frames must be there.
    pub fn close(mut self) {
        for held in std::mem::take(&mut self.held) {
            self.drop(held.packet, DropReason::Stopping);
        }
        let waiting: Vec<Packet> = self.out.iter_mut().flat_map(|out| out.drain(..)).collect();
        waiting.into_iter().for_each(|packet| self.drop(packet, DropReason::Stopping));
        self.check_books();
        for port in &mut self.ports {
            port.close(&mut self.free);
        }
        assert_eq!(self.free.len(), FRAMES as usize, "every frame comes back");
    }
}
