//! What a packet costs that is received by one worker and sent by another: the ring pair between
//! them, with the frames that come back, both workers' time together.
//!
//! Two threads on two cores, as the workers are. Timed are only turns that moved packets, so that
//! neither waiting nor the making of packets counts; the cache lines really cross.

use crate::error::Error;
use crate::machine::{core_pair, pin};
use crate::stop;
use outboard::bell::Bell;
use outboard::clock::now_ns;
use outboard::packet::{BURST, Packet, PortId};
use outboard::port::peer::Peer;
use outboard_dma::{Chain, FreeList, Region};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const FRAMES: u32 = 4096;
const PORT: PortId = PortId(1);
/// Time of either side.
#[derive(Clone, Copy, Debug, Default)]
struct Side {
    packets: u64,
    ns: u64,
}

impl Side {
    fn ns_per_packet(self) -> Option<f64> {
        (self.packets > 0).then(|| self.ns as f64 / self.packets as f64)
    }
}

/// Nanoseconds of both workers together per packet that crosses, in bursts of 32.
pub fn measure(seconds: f64) -> Result<f64, Error> {
    let refused = |error: &dyn std::fmt::Display| Error::Refused(error.to_string());
    let region = Region::new(2 * FRAMES).map_err(|error| refused(&error))?;
    let shares = region.carve(FRAMES).zip(region.carve(FRAMES));
    let (near, far) = shares.ok_or_else(|| refused(&"no frames"))?;
    let bell = || Bell::new().map(Arc::new).map_err(Error::system("cannot make an eventfd"));
    let (a, b) = Peer::pair(bell()?, bell()?);
    let stop = AtomicBool::new(false);
    let (sent, received) = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(b, far, &stop));
        let sender = scope.spawn(|| send(a, near, Duration::from_secs_f64(seconds), &stop));
        (sender.join(), receiver.join())
    });
    let panicked = || Error::Refused("a side of the hand-off panicked: a defect".into());
    let (sent, received) = (sent.map_err(|_| panicked())??, received.map_err(|_| panicked())??);
    let sum = sent.ns_per_packet().zip(received.ns_per_packet());
    sum.map(|(a, b)| a + b).ok_or_else(|| refused(&"no packet crossed: is a core taken by others?"))
}

fn send(
    mut peer: Peer,
    mut free: FreeList,
    time: Duration,
    stop: &AtomicBool,
) -> Result<Side, Error> {
    let outcome = pin(core_pair().0).map_err(Error::from).and_then(|_pinned| {
        let (began, mut side) = (Instant::now(), Side::default());
        while began.elapsed() < time {
            stop::check()?;
            for _ in 0..1_000 {
                send_burst(&mut peer, &mut free, &mut side);
            }
        }
        Ok(side)
    });
    stop.store(true, Ordering::Release);
    outcome
}

fn send_burst(peer: &mut Peer, free: &mut FreeList, side: &mut Side) {
    if peer.lent_frames() + BURST > BURST * 8 {
        // The other side is behind: what comes back is taken, and nothing is timed.
        return peer.settle(free, false);
    }
    let mut burst: Vec<Packet> = Vec::with_capacity(BURST);
    while burst.len() < BURST
        && let Some(frame) = free.take()
    {
        burst.push(Packet::new(Chain::new(frame, 256, 64), PortId(0)));
    }
    let began_ns = now_ns();
    for packet in burst {
        match peer.send(packet, PORT) {
            Ok(()) => side.packets += 1,
            Err(packet) => packet.into_chain().free(free),
        }
    }
    peer.settle(free, false);
    side.ns += now_ns() - began_ns;
}

fn receive(mut peer: Peer, mut free: FreeList, stop: &AtomicBool) -> Result<Side, Error> {
    let _pinned = pin(core_pair().1)?;
    let mut side = Side::default();
    let mut burst: Vec<Packet> = Vec::with_capacity(BURST);
    while !stop.load(Ordering::Acquire) {
        let began_ns = now_ns();
        while burst.len() < BURST
            && let Some((packet, _)) = peer.receive()
        {
            burst.push(packet);
        }
        let count = burst.len() as u64;
        if count > 0 {
            peer.settle(&mut free, false);
            side.ns += now_ns() - began_ns;
            side.packets += count;
        } else {
            std::hint::spin_loop();
        }
        for packet in burst.drain(..) {
            packet.into_chain().free(&mut free);
        }
    }
    while let Some((packet, _)) = peer.receive() {
        packet.into_chain().free(&mut free);
    }
    Ok(side)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_cross_and_cost_something() {
        let cost_ns = measure(0.2).unwrap();
        assert!(cost_ns > 0.0, "{cost_ns}");
    }
}
