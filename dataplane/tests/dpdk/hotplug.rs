//! Devices that come and go while another one works on the same memory.

use crate::queue::{Options, PORT, Queue, eal};
use outboard::counters::PortCounters;
use outboard::packet::{BURST, Burst, Packet, PortId};
use outboard::port::Port;
use outboard::port::dpdk::{Dpdk, DpdkConfig, DpdkError};
use outboard_dma::{Chain, FreeList, Region};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn open(device: &str, region: &'static Region, free: &mut FreeList) -> Result<Dpdk, DpdkError> {
    let config = DpdkConfig {
        device,
        region,
        ring_frames: 256,
        mtu: 1500,
        kernel_interface: device.contains("af_packet"),
        memory: None,
        tunnels: Vec::new(),
        tunnel_port: 4789,
        port: PORT,
        counters: Arc::new(PortCounters::default()),
    };
    Dpdk::open(eal(), config, free)
}

/// Turns of a port that receives without end, until told; how many packets it passed on.
fn turns(port: &mut Dpdk, free: &mut FreeList, stop: &AtomicBool) -> u64 {
    eal().register_thread();
    let (frames, mut packets) = (free.len() + port.held(), 0);
    while !stop.load(Ordering::Relaxed) {
        let mut burst = Burst::new();
        port.rx(&mut burst, free);
        assert_eq!(burst.len(), BURST, "after {packets} packets");
        packets += burst.len() as u64;
        port.tx(&mut burst, free);
        assert!(burst.is_empty());
        assert_eq!(free.len() + port.held(), frames);
    }
    packets
}

#[test]
fn a_port_works_on_while_others_come_go_and_fail() {
    const ROUNDS: usize = 50;
    let region = Region::new(2048).unwrap();
    let (mut near, mut far) = (region.carve(1024).unwrap(), region.carve(1024).unwrap());
    let (own, others) = (near.len(), far.len());
    let mut port = open("net_null10", region, &mut near).unwrap();
    let stop = AtomicBool::new(false);
    let packets = std::thread::scope(|scope| {
        let worker = scope.spawn(|| turns(&mut port, &mut near, &stop));
        for round in 0..ROUNDS {
            let mut guest = open("net_null11", region, &mut far).unwrap();
            let mut burst = Burst::new();
            guest.rx(&mut burst, &mut far);
            assert_eq!(burst.len(), BURST, "in round {round}");
            burst.into_iter().for_each(|packet| packet.into_chain().free(&mut far));
            guest.close(&mut far);
            assert_eq!((far.len(), guest.held()), (others, 0), "in round {round}");
            let missing = open("net_af_packet11,iface=nobody", region, &mut far).unwrap_err();
            assert!(missing.to_string().contains("`net_af_packet11,iface=nobody`"), "{missing}");
            let taken = open("net_null10", region, &mut far).unwrap_err().to_string();
            assert!(taken.contains("`net_null10` is another port's already"), "{taken}");
            assert_eq!(far.len(), others, "a port that does not open has no frame");
        }
        stop.store(true, Ordering::Relaxed);
        worker.join().unwrap()
    });
    assert!(packets > 0);
    port.close(&mut near);
    assert_eq!((near.len(), port.held()), (own, 0));
}

/// What a ring of the driver's own holds when the port goes.
#[test]
fn frames_in_a_drivers_own_memory_come_back() {
    let mut queue = Queue::open("net_ring12", Options::default());
    let mut burst = Burst::new();
    for _ in 0..BURST {
        let chain = Chain::from_slice(&[1; 64], &mut queue.free).unwrap();
        burst.push(Packet::new(chain, PortId(0)));
    }
    queue.port.tx(&mut burst, &mut queue.free);
    assert!(burst.is_empty());
    queue.close();
}

#[test]
fn a_device_that_cannot_come_later_is_refused_by_name() {
    let refused = |device| eal().check_plugged(device).unwrap_err().to_string();
    for device in ["net_null0", "net_memif7,role=client", "0000:01:00.0"] {
        assert!(eal().check_plugged(device).is_ok(), "{device}");
    }
    let unknown = refused("net_nothing0");
    assert!(unknown.contains("no device `net_nothing0`: no driver has that name"), "{unknown}");
    let guid = "f8615163-df3e-46c5-913f-f2d2f965ed0e";
    let fixed = refused(guid);
    assert!(fixed.contains(&format!("`{guid}` is on the bus `vmbus`")), "{fixed}");
}
