//! A port whose far side is in the same memory: what is injected is received, what is sent is
//! collected. For simulation, fuzzing and benches. Both queues are bounded and made at start;
//! packets cross them without a copy.

use super::Port;
use super::pcap::Pcap;
use crate::counters::PortCounters;
use crate::packet::{Burst, Packet, PortId};
use outboard_dma::{Chain, DATA_BYTES, FreeList, MAX_FRAMES};
use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::RawFd;
use std::sync::Arc;

/// The port.
pub struct TestPort {
    port: PortId,
    capacity: usize,
    counters: Arc<PortCounters>,
    incoming: VecDeque<Chain>,
    sent: VecDeque<Chain>,
    capture: Option<Pcap<Box<dyn Write + Send>>>,
    now_ns: u64,
}

impl TestPort {
    /// A port with room for `capacity` packets in each direction.
    pub fn new(port: PortId, capacity: usize, counters: Arc<PortCounters>) -> TestPort {
        TestPort {
            port,
            capacity,
            counters,
            incoming: VecDeque::with_capacity(capacity),
            sent: VecDeque::with_capacity(capacity),
            capture: None,
            now_ns: 0,
        }
    }

    /// Writes everything received and sent from now on to `out` as pcap, with the times given to
    /// [`set_now`](Self::set_now).
    pub fn capture(&mut self, out: Box<dyn Write + Send>) -> std::io::Result<()> {
        self.capture = Some(Pcap::new(out)?);
        Ok(())
    }

    /// Ends the capture.
    pub fn end_capture(&mut self) -> std::io::Result<()> {
        match self.capture.take() {
            Some(pcap) => pcap.finish().map(|_| ()),
            None => Ok(()),
        }
    }

    /// The time for the capture.
    pub fn set_now(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    /// Makes a packet arrive; `false` when the queue is full or frames are missing.
    pub fn inject(&mut self, data: &[u8], free: &mut FreeList) -> bool {
        if self.incoming.len() == self.capacity {
            return false;
        }
        match Chain::from_slice(data, free) {
            Some(chain) => self.inject_chain(chain).is_ok(),
            None => false,
        }
    }

    /// As [`inject`](Self::inject), with a packet that is in frames already; hands it back when
    /// the queue is full.
    pub fn inject_chain(&mut self, chain: Chain) -> Result<(), Chain> {
        if self.incoming.len() == self.capacity {
            return Err(chain);
        }
        self.incoming.push_back(chain);
        Ok(())
    }

    /// The next packet that was sent.
    pub fn collect(&mut self, free: &mut FreeList) -> Option<Vec<u8>> {
        let chain = self.sent.pop_front()?;
        let data = chain.segments().flatten().copied().collect();
        chain.free(free);
        Some(data)
    }

    /// As [`collect`](Self::collect), with the frames.
    pub fn collect_chain(&mut self) -> Option<Chain> {
        self.sent.pop_front()
    }

    /// Frames in both queues.
    pub fn held(&self) -> usize {
        self.incoming.iter().chain(&self.sent).map(Chain::frames).sum()
    }

    fn record(&mut self, chain: &Chain) {
        // A capture that cannot be written ends; the packets go on.
        let segments: Vec<&[u8]> = match self.capture {
            Some(_) => chain.segments().collect(),
            None => return,
        };
        let written =
            self.capture.as_mut().map(|pcap| pcap.record(self.now_ns, segments.iter().copied()));
        if matches!(written, Some(Err(_))) {
            self.capture = None;
        }
    }
}

impl Port for TestPort {
    fn rx(&mut self, burst: &mut Burst, _free: &mut FreeList) {
        while !burst.is_full() {
            let Some(chain) = self.incoming.pop_front() else { break };
            self.record(&chain);
            self.counters.rx_packets.add(1);
            self.counters.rx_bytes.add(chain.bytes() as u64);
            burst.push(Packet::new(chain, self.port));
        }
    }

    fn tx(&mut self, burst: &mut Burst, _free: &mut FreeList) {
        let taken = burst.len().min(self.capacity - self.sent.len());
        for packet in burst.drain(..taken) {
            let chain = packet.into_chain();
            self.record(&chain);
            self.counters.tx_packets.add(1);
            self.counters.tx_bytes.add(chain.bytes() as u64);
            self.sent.push_back(chain);
        }
    }

    fn max_frame_bytes(&self) -> usize {
        MAX_FRAMES * DATA_BYTES
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }

    fn has_unsent(&self) -> bool {
        false
    }

    fn close(&mut self, free: &mut FreeList) {
        for chain in self.incoming.drain(..).chain(self.sent.drain(..)) {
            chain.free(free);
        }
    }
}

impl std::fmt::Debug for TestPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (incoming, sent) = (self.incoming.len(), self.sent.len());
        f.debug_struct("TestPort").field("incoming", &incoming).field("sent", &sent).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::conformance::{self, Subject};
    use outboard_dma::Region;

    /// The port with its own far side.
    struct Loose {
        port: TestPort,
        stalled: bool,
    }

    impl Subject for Loose {
        fn port(&mut self) -> &mut dyn Port {
            &mut self.port
        }

        fn ingress(&self) -> PortId {
            self.port.port
        }

        fn send(&mut self, data: &[u8], free: &mut FreeList) {
            assert!(self.port.inject(data, free));
        }

        fn receive(&mut self, free: &mut FreeList) -> Option<Vec<u8>> {
            if self.stalled { None } else { self.port.collect(free) }
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

    #[test]
    fn keeps_the_promise_of_a_port() {
        for capacity in [64, 67, 100] {
            let mut free = Region::new(512).unwrap().carve(512).unwrap();
            let port = TestPort::new(PortId(9), capacity, Arc::default());
            conformance::run(&mut Loose { port, stalled: false }, &mut free);
        }
    }

    #[test]
    fn a_full_queue_refuses_the_next_packet_only() {
        let mut free = Region::new(512).unwrap().carve(8).unwrap();
        let mut port = TestPort::new(PortId(0), 2, Arc::default());
        assert!(port.inject(&[1; 60], &mut free) && port.inject(&[2; 60], &mut free));
        assert!(!port.inject(&[3; 60], &mut free));
        assert_eq!((port.held(), free.len()), (2, 6));
        let mut burst = Burst::new();
        port.rx(&mut burst, &mut free);
        assert_eq!(port.counters.rx_packets.get(), 2);
        let extra = Chain::from_slice(&[4; 60], &mut free).unwrap();
        burst.push(Packet::new(extra, PortId(0)));
        port.tx(&mut burst, &mut free);
        assert_eq!((burst.len(), burst[0].head()[0]), (1, 4));
        assert_eq!(port.collect(&mut free).unwrap()[0], 1);
        port.tx(&mut burst, &mut free);
        assert!(burst.is_empty());
        port.close(&mut free);
        assert_eq!(free.len(), 8);
    }

    #[test]
    fn tshark_reads_the_capture() {
        let path = std::env::temp_dir().join(format!("outboard-port-{}.pcap", std::process::id()));
        let mut free = Region::new(512).unwrap().carve(8).unwrap();
        let mut port = TestPort::new(PortId(0), 4, Arc::default());
        port.capture(Box::new(std::fs::File::create(&path).unwrap())).unwrap();
        port.set_now(5_000_000_123);
        let mut frame = vec![0; 4000];
        frame[12..14].copy_from_slice(&[0x88, 0xb5]);
        assert!(port.inject(&frame, &mut free));
        let mut burst = Burst::new();
        port.rx(&mut burst, &mut free);
        port.tx(&mut burst, &mut free);
        port.end_capture().unwrap();
        port.close(&mut free);
        let mut tshark = std::process::Command::new("tshark");
        tshark.args(["-n", "-T", "fields", "-e", "frame.time_epoch", "-e", "frame.len", "-r"]);
        let output = tshark.arg(&path).output();
        std::fs::remove_file(&path).unwrap();
        let output = match output {
            Ok(output) => output,
            Err(error) => return println!("not run here: tshark: {error}"),
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let line = "5.000000123\t4000\n";
        assert_eq!(String::from_utf8_lossy(&output.stdout), line.repeat(2));
    }
}
