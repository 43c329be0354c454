//! One host: the network rooms of two workers between ports in memory, with a small stock of
//! frames. Keeps the books that the oracles look at.

use outboard::bell::Bell;
use outboard::counters::PortCounters;
use outboard::drop::DropReason;
use outboard::packet::PortId;
use outboard::port::AnyPort;
use outboard::port::peer::Peer;
use outboard::port::test::TestPort;
use outboard::switch::{Seed, Switch, SwitchCounters, SwitchState, Tables};
use outboard::worker::{Exit, Network, Queue};
use outboard_dma::{Chain, DATA_BYTES, FreeList, HEADROOM_BYTES, Region};
use outboard_sim::Rng;
use std::sync::Arc;

/// Workers of a host.
pub const WORKERS: usize = 2;
/// Frames of a worker: few, so that it runs out of them.
const FRAMES: u32 = 128;
/// Packets that wait in a port, in each direction: few, so that queues fill.
const QUEUE: usize = 48;
/// Flows in a worker's cache: few, so that some are evicted.
const FLOWS: u32 = 32;

/// Two workers with their ports: those of even number belong to the first.
pub struct Host {
    workers: Vec<Worker>,
    ports: usize,
    /// Packets that found no room in a port or no frames.
    pub refused: u64,
    rng: Rng,
}

struct Worker {
    network: Network,
    free: FreeList,
    counters: Vec<Arc<PortCounters>>,
    flows: Arc<SwitchCounters>,
    /// Hits, misses, recompilations and evictions of its earlier switches.
    past_flows: [u64; 4],
    tables: Arc<Tables>,
}

/// The worker that owns a port.
pub fn owner(port: PortId) -> usize {
    usize::from(port.0) % WORKERS
}

/// The port's place among its worker's.
fn place(port: PortId) -> usize {
    usize::from(port.0) / WORKERS
}

impl Host {
    pub fn new(ports: usize, tables: &Arc<Tables>, mut rng: Rng) -> Host {
        let bell = || Arc::new(Bell::new().unwrap());
        let region = Region::new(FRAMES * WORKERS as u32).unwrap();
        let (first, second) = Peer::pair(bell(), bell());
        let peers = [[None, Some(first)], [Some(second), None]];
        let workers = peers.into_iter().enumerate().map(|(index, peers)| {
            let seed = Seed::new(rng.next_u64());
            let switch = (Switch::new(FLOWS, seed, tables.clone()), tables.clone());
            Worker::new(index, ports, peers.into(), switch, region.carve(FRAMES).unwrap())
        });
        Host { workers: workers.collect(), ports, refused: 0, rng }
    }

    /// A frame arrives at a port; `false` when it found no room. Its frames are cut at random.
    pub fn arrive(&mut self, port: PortId, bytes: &[u8]) -> bool {
        let worker = owner(port);
        let chain = if self.rng.chance(300_000) && bytes.len() > 200 {
            self.chain_in_pieces(worker, bytes)
        } else {
            Chain::from_slice(bytes, &mut self.workers[worker].free)
        };
        let left = match chain.map(|chain| self.workers[worker].port(port).inject_chain(chain)) {
            Some(Ok(())) => return true,
            Some(Err(chain)) => Some(chain),
            None => None,
        };
        if let Some(chain) = left {
            chain.free(&mut self.workers[worker].free);
        }
        self.refused += 1;
        false
    }

    /// The headers in the first frame, the rest in pieces of any size.
    fn chain_in_pieces(&mut self, worker: usize, bytes: &[u8]) -> Option<Chain> {
        let mut lens = vec![128];
        let mut left = bytes.len() - 128;
        let least = left.div_ceil(8);
        while left > 0 {
            let most = left.min(DATA_BYTES);
            lens.push(self.rng.between(least.min(most) as u64, most as u64) as usize);
            left -= lens[lens.len() - 1];
        }
        let free = &mut self.workers[worker].free;
        if free.len() < lens.len() {
            return None;
        }
        let mut rest = bytes;
        let mut chain: Option<Chain> = None;
        for len in lens {
            let (piece, behind) = rest.split_at(len);
            rest = behind;
            let mut frame = free.take()?;
            frame.bytes_mut()[HEADROOM_BYTES..][..len].copy_from_slice(piece);
            match &mut chain {
                Some(chain) => chain.push(frame, HEADROOM_BYTES, len).expect("few pieces"),
                None => chain = Some(Chain::new(frame, HEADROOM_BYTES, len)),
            }
        }
        chain
    }

    /// A turn of one worker.
    pub fn turn(&mut self, worker: usize, now_ns: u64) {
        let Worker { network, free, .. } = &mut self.workers[worker];
        network.turn(now_ns, free);
        assert!(self.sent() + self.drops() <= self.received(), "more came out than went in");
    }

    /// Takes at most `most` frames that the host sent through a port.
    pub fn sent_through(&mut self, port: PortId, most: usize) -> Vec<Vec<u8>> {
        let worker = &mut self.workers[owner(port)];
        let AnyPort::Test(port) = worker.network.port_mut(place(port)) else { unreachable!() };
        (0..most).map_while(|_| port.collect(&mut worker.free)).collect()
    }

    /// Swaps one worker's tables; what it held is decided anew.
    pub fn set_tables(&mut self, worker: usize, now_ns: u64, tables: Arc<Tables>) {
        let Worker { network, free, tables: own, .. } = &mut self.workers[worker];
        *own = Arc::clone(&tables);
        network.set_tables(tables, now_ns, free);
    }

    /// One worker goes on with a switch of what its own has saved, as another process would; how
    /// many flows that has.
    pub fn reload(&mut self, worker: usize, now_ns: u64) -> usize {
        let seed = Seed::new(self.rng.next_u64());
        let Worker { network, free, flows, past_flows, tables, .. } = &mut self.workers[worker];
        let saved = serde_json::to_string(&network.switch().save()).unwrap();
        let saved: SwitchState = serde_json::from_str(&saved).unwrap();
        let switch = Switch::load(FLOWS, seed, Arc::clone(tables), &saved).unwrap();
        for (sum, count) in past_flows.iter_mut().zip(counts(flows)) {
            *sum += count;
        }
        *flows = switch.counters();
        network.set_switch(switch, now_ns, free);
        saved.flows.len()
    }

    /// The laws of conservation, when nothing is under way: packets and frames.
    pub fn check_books(&mut self) {
        for Worker { network, free, .. } in &mut self.workers {
            network.before_sleep(free);
            assert!(!network.has_backlog(), "nothing waits");
        }
        for Worker { network, free, .. } in &mut self.workers {
            assert!(!network.before_sleep(free));
        }
        assert_eq!(self.received(), self.sent() + self.drops(), "packets in = out + dropped");
        let mut frames = [0; WORKERS];
        for port in (0..self.ports as u16).map(PortId) {
            frames[owner(port)] += self.workers[owner(port)].port(port).held();
        }
        // What was lent to another worker has come back as well.
        let all = self.workers.iter().zip(frames).map(|(worker, held)| worker.free.len() + held);
        assert!(all.eq([FRAMES as usize; WORKERS]), "every worker has its frames");
    }

    fn sum(&self, count: impl Fn(&PortCounters) -> u64) -> u64 {
        let all = self.workers.iter().flat_map(|worker| &worker.counters);
        all.map(|counters| count(counters)).sum()
    }

    fn received(&self) -> u64 {
        self.sum(|port| port.rx_packets.get())
    }

    fn sent(&self) -> u64 {
        self.sum(|port| port.tx_packets.get())
    }

    fn drops(&self) -> u64 {
        self.sum(|port| port.drops.total())
    }

    /// Packets dropped for a reason, over all ports.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.sum(|port| port.drops.get(reason))
    }

    /// Packets sent through a port.
    pub fn sent_packets(&self, port: PortId) -> u64 {
        self.workers[owner(port)].counters[usize::from(port.0)].tx_packets.get()
    }

    /// Hits, misses, recompilations and evictions of the flow caches.
    pub fn flows(&self) -> [u64; 4] {
        let mut sum = [0; 4];
        for worker in &self.workers {
            let all = counts(&worker.flows).into_iter().zip(worker.past_flows);
            sum.iter_mut().zip(all).for_each(|(sum, (now, past))| *sum += now + past);
        }
        sum
    }

    /// Ends every packet, as when the daemon stops; all frames must be there.
    pub fn close(mut self) {
        for _ in 0..2 {
            for Worker { network, free, .. } in &mut self.workers {
                network.drain(free);
            }
        }
        for Worker { network, free, .. } in &mut self.workers {
            network.close(free);
        }
        assert_eq!(self.received(), self.sent() + self.drops(), "packets in = out + dropped");
        let frames: usize = self.workers.iter().map(|worker| worker.free.len()).sum();
        assert_eq!(frames, FRAMES as usize * WORKERS, "every frame comes back");
    }
}

fn counts(flows: &SwitchCounters) -> [u64; 4] {
    [flows.hits.get(), flows.misses.get(), flows.recompiles.get(), flows.evictions.get()]
}

impl Worker {
    fn new(
        index: usize,
        ports: usize,
        peers: Vec<Option<Peer>>,
        (switch, tables): (Switch, Arc<Tables>),
        free: FreeList,
    ) -> Worker {
        let counters: Vec<Arc<PortCounters>> = (0..ports).map(|_| Arc::default()).collect();
        let mut queues = Vec::new();
        let mut exits = Vec::new();
        for (port, counters) in (0..ports as u16).map(PortId).zip(&counters) {
            if owner(port) == index {
                exits.push(Exit::Queue(place(port) as u16));
                let memory = TestPort::new(port, QUEUE, counters.clone());
                queues.push(Queue::new(port, AnyPort::Test(memory)));
            } else {
                exits.push(Exit::Peer(owner(port) as u16));
            }
        }
        let flows = switch.counters();
        let network = Network::new(queues, exits, peers, switch, counters.clone());
        Worker { network, free, counters, flows, past_flows: [0; 4], tables }
    }

    fn port(&mut self, port: PortId) -> &mut TestPort {
        match self.network.port_mut(place(port)) {
            AnyPort::Test(port) => port,
            _ => unreachable!("all ports are in memory"),
        }
    }
}
