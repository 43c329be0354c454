//! The way to another worker: a pair of single-producer rings in each direction.
//!
//! Packets cross already decided, with the port they shall leave through. The frames they lie in
//! leave the sender's stock, so the receiver returns as many of its own (frames are alike) by the
//! return ring; what has not come back is bounded by [`QUOTA_FRAMES`], so that a worker that
//! stands still cannot take another's memory. Packets crossed = delivered + still in the ring.

use crate::bell::Bell;
use crate::packet::{Packet, PortId};
use outboard_dma::{Frame, FreeList};
use rtrb::{Consumer, Producer, RingBuffer};
use std::sync::Arc;

/// Packets that one direction holds.
pub const RING_PACKETS: usize = 1024;
/// Frames that the receiver may hold of the sender's.
pub const QUOTA_FRAMES: usize = 2048;
/// Frames returned at once.
const RETURN_BURST: usize = 32;

/// One worker's end of the way to one other worker.
#[derive(Debug)]
pub struct Peer {
    out: Producer<(Packet, PortId)>,
    returned: Consumer<Frame>,
    /// Frames of ours that the other end holds.
    lent_frames: usize,
    incoming: Consumer<(Packet, PortId)>,
    give_back: Producer<Frame>,
    /// Frames of the other end's that we hold.
    owed_frames: usize,
    bell: Arc<Bell>,
    pushed: bool,
}

impl Peer {
    /// Both ends of a way between two workers, with the bell that wakes each.
    pub fn pair(first: Arc<Bell>, second: Arc<Bell>) -> (Peer, Peer) {
        let (a_out, b_in) = RingBuffer::new(RING_PACKETS);
        let (b_out, a_in) = RingBuffer::new(RING_PACKETS);
        let (a_give, b_returned) = RingBuffer::new(QUOTA_FRAMES);
        let (b_give, a_returned) = RingBuffer::new(QUOTA_FRAMES);
        let end = |out, returned, incoming, give_back, bell| Peer {
            out,
            returned,
            lent_frames: 0,
            incoming,
            give_back,
            owed_frames: 0,
            bell,
            pushed: false,
        };
        (end(a_out, a_returned, a_in, a_give, second), end(b_out, b_returned, b_in, b_give, first))
    }

    /// Hands a packet over to leave through `port`; gives it back when the ring or the quota is
    /// full.
    #[inline]
    pub fn send(&mut self, packet: Packet, port: PortId) -> Result<(), Packet> {
        let frames = packet.frames();
        if self.lent_frames + frames > QUOTA_FRAMES {
            return Err(packet);
        }
        match self.out.push((packet, port)) {
            Ok(()) => {
                self.lent_frames += frames;
                self.pushed = true;
                Ok(())
            }
            Err(rtrb::PushError::Full((packet, _))) => Err(packet),
        }
    }

    /// The next packet from the other worker and the port it shall leave through.
    #[inline]
    pub fn receive(&mut self) -> Option<(Packet, PortId)> {
        let (packet, port) = self.incoming.pop().ok()?;
        self.owed_frames += packet.frames();
        Some((packet, port))
    }

    /// How many packets [`receive`](Self::receive) would find.
    pub fn waiting(&self) -> usize {
        self.incoming.slots()
    }

    /// Whether [`receive`](Self::receive) would find something.
    pub fn is_waiting(&self) -> bool {
        !self.incoming.is_empty()
    }

    /// Once a turn: wakes the other worker if packets were sent, takes back our frames, and
    /// returns the other's as far as the stock allows. `all`: also less than a burst of them,
    /// for a worker that is about to sleep.
    pub fn settle(&mut self, free: &mut FreeList, all: bool) {
        if std::mem::take(&mut self.pushed) {
            self.bell.ring();
        }
        while let Ok(frame) = self.returned.pop() {
            self.lent_frames -= 1;
            free.give(frame);
        }
        if self.owed_frames >= RETURN_BURST || (all && self.owed_frames > 0) {
            self.give_back(free);
        }
    }

    fn give_back(&mut self, free: &mut FreeList) {
        while self.owed_frames > 0 {
            let Some(frame) = free.take() else { return };
            if planted!("ring-return-lost") && self.owed_frames.is_multiple_of(64) {
                self.owed_frames -= 1;
                return free.give(frame);
            }
            if planted!("ring-return-twice") && self.owed_frames == 1 {
                self.owed_frames += 1;
            }
            match self.give_back.push(frame) {
                Ok(()) => self.owed_frames -= 1,
                Err(rtrb::PushError::Full(frame)) => return free.give(frame),
            }
        }
    }

    /// Frames of ours that the other end holds, for the conservation check.
    pub fn lent_frames(&self) -> usize {
        self.lent_frames
    }

    /// Frames of the other end's that we hold, for the conservation check.
    pub fn owed_frames(&self) -> usize {
        self.owed_frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Drops;
    use crate::drop::DropReason;
    use outboard_dma::{Chain, Region};

    const FRAMES: u32 = 4096;

    fn ends() -> (Peer, Peer, FreeList, FreeList) {
        let bell = || Arc::new(Bell::new().unwrap());
        let (a, b) = Peer::pair(bell(), bell());
        let region = Region::new(2 * FRAMES).unwrap();
        (a, b, region.carve(FRAMES).unwrap(), region.carve(FRAMES).unwrap())
    }

    fn packet(bytes: usize, free: &mut FreeList) -> Packet {
        Packet::new(Chain::from_slice(&vec![1; bytes], free).unwrap(), PortId(0))
    }

    #[test]
    fn frames_come_home() {
        let (mut a, mut b, mut free_a, mut free_b) = ends();
        let drops = Drops::default();
        for round in 0..200 {
            for _ in 0..10 {
                a.send(packet(9000, &mut free_a), PortId(1)).unwrap();
            }
            while let Some((packet, port)) = b.receive() {
                assert_eq!(port, PortId(1));
                packet.drop_with(DropReason::NoRoute, &drops, &mut free_b);
            }
            a.settle(&mut free_a, false);
            b.settle(&mut free_b, round == 199);
        }
        a.settle(&mut free_a, true);
        assert_eq!((a.lent_frames(), b.owed_frames()), (0, 0));
        assert_eq!((free_a.len(), free_b.len()), (FRAMES as usize, FRAMES as usize));
        assert_eq!(drops.total(), 2000);
    }

    #[test]
    fn ring_and_quota_are_limits() {
        let (mut a, mut b, mut free_a, mut free_b) = ends();
        let drops = Drops::default();
        let mut sent = 0;
        let refused = loop {
            match a.send(packet(60, &mut free_a), PortId(1)) {
                Ok(()) => sent += 1,
                Err(packet) => break packet,
            }
        };
        assert_eq!(sent, RING_PACKETS);
        refused.drop_with(DropReason::PeerQueueFull, &drops, &mut free_a);
        while let Some((packet, _)) = b.receive() {
            packet.drop_with(DropReason::Stopping, &drops, &mut free_b);
        }
        // Nothing was returned yet: the quota, not the ring, is the limit now.
        let mut more = 0;
        let refused = loop {
            match a.send(packet(9000, &mut free_a), PortId(1)) {
                Ok(()) => more += 1,
                Err(packet) => break packet,
            }
        };
        assert_eq!(more, (QUOTA_FRAMES - RING_PACKETS) / 3);
        refused.drop_with(DropReason::PeerQueueFull, &drops, &mut free_a);
        while let Some((packet, _)) = b.receive() {
            packet.drop_with(DropReason::Stopping, &drops, &mut free_b);
        }
        b.settle(&mut free_b, true);
        a.settle(&mut free_a, true);
        assert_eq!(a.lent_frames(), 0);
        assert_eq!(free_a.len() + free_b.len(), 2 * FRAMES as usize);
    }
}
