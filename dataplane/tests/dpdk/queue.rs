//! A port under test with its memory.

use outboard::counters::PortCounters;
use outboard::packet::{Burst, Packet, PortId};
use outboard::port::Port;
use outboard::port::dpdk::{Dpdk, DpdkConfig, Eal, Memory};
use outboard_dma::{Chain, FreeList, Region};
use std::sync::Arc;

pub const PORT: PortId = PortId(5);
/// How often something is looked for, a millisecond apart.
pub const PATIENCE: u32 = 10_000;

/// The environment of this process.
pub fn eal() -> Eal {
    let arguments = ["--no-huge", "--no-pci", "-m", "512"].map(String::from);
    Eal::start(&arguments).unwrap()
}

/// What is asked for besides the device.
#[derive(Clone, Copy)]
pub struct Options {
    pub frames: u32,
    pub ring_frames: u16,
    pub mtu: usize,
    pub kernel_interface: bool,
    pub memory: Option<Memory>,
}

impl Default for Options {
    fn default() -> Options {
        Options { frames: 1024, ring_frames: 256, mtu: 1500, kernel_interface: false, memory: None }
    }
}

/// One queue's port with its memory.
pub struct Queue {
    pub port: Dpdk,
    pub free: FreeList,
    pub counters: Arc<PortCounters>,
    pub frames: usize,
}

impl Queue {
    pub fn open(device: &str, options: Options) -> Queue {
        let region = Region::new(options.frames).unwrap();
        let mut free = region.carve(options.frames).unwrap();
        let frames = free.len();
        let counters = Arc::new(PortCounters::default());
        let config = DpdkConfig {
            device,
            region,
            ring_frames: options.ring_frames,
            mtu: options.mtu,
            kernel_interface: options.kernel_interface,
            memory: options.memory,
            tunnels: Vec::new(),
            tunnel_port: 4789,
            port: PORT,
            counters: Arc::clone(&counters),
        };
        let eal = eal();
        eal.register_thread();
        let port = Dpdk::open(eal, config, &mut free).unwrap();
        Queue { port, free, counters, frames }
    }

    pub fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut burst = Burst::new();
        self.port.rx(&mut burst, &mut self.free);
        let take = |packet: Packet| {
            let data = packet.segments().flatten().copied().collect();
            packet.into_chain().free(&mut self.free);
            data
        };
        let received = burst.drain(..).map(take).collect();
        self.conserved(0);
        received
    }

    /// Receives until there are `count` packets.
    pub fn expect(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut received = Vec::new();
        for _ in 0..PATIENCE {
            received.extend(self.receive());
            if received.len() >= count {
                assert_eq!(received.len(), count);
                return received;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("{} of {count} packets were received", received.len());
    }

    /// Offers one packet; whether the port took it.
    pub fn offer(&mut self, data: &[u8]) -> bool {
        let chain = Chain::from_slice(data, &mut self.free).unwrap();
        let mut burst = Burst::new();
        burst.push(Packet::new(chain, PortId(0)));
        self.port.tx(&mut burst, &mut self.free);
        let taken = burst.is_empty();
        for packet in burst.drain(..) {
            packet.into_chain().free(&mut self.free);
        }
        self.conserved(0);
        taken
    }

    pub fn conserved(&self, in_hand: usize) {
        assert_eq!(self.free.len() + self.port.held() + in_hand, self.frames);
    }

    /// Ends the port; every frame is back.
    pub fn close(mut self) {
        self.port.close(&mut self.free);
        assert_eq!(self.free.len(), self.frames, "frames after close");
        self.port.rx(&mut Burst::new(), &mut self.free);
        assert_eq!(self.free.len(), self.frames, "a closed port takes nothing");
    }
}

/// Waits until both ends of something are up.
pub fn wait_for_links(queues: &mut [&mut Queue]) {
    for _ in 0..PATIENCE {
        if queues.iter().all(|queue| queue.port.link_is_up()) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("the links did not come up");
}
