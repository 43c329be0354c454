//! A port under test with its memory.

use outboard::counters::PortCounters;
use outboard::packet::{Burst, PortId};
use outboard::port::Port;
use outboard::port::dpdk::{Dpdk, DpdkConfig, Eal, Memory};
use outboard_dma::{FreeList, Region};
use std::sync::Arc;

pub const PORT: PortId = PortId(5);
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
    pub only_tunnels: Option<u16>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            frames: 1024,
            ring_frames: 256,
            mtu: 1500,
            kernel_interface: false,
            memory: None,
            only_tunnels: None,
        }
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
            only_tunnels: options.only_tunnels,
            port: PORT,
            counters: Arc::clone(&counters),
        };
        let port = Dpdk::open(eal(), config, &mut free).unwrap();
        Queue { port, free, counters, frames }
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
