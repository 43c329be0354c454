//! A packet on its way through a worker: a chain of frames and where it came from.
//!
//! Plain, `Send`, without reference count. It has two legal ends: a port's `tx`, or
//! [`Packet::drop_with`], which counts the reason. Any other end fails a debug build.

use crate::counters::Drops;
use crate::drop::DropReason;
use crate::ledger::Stamp;
use arrayvec::ArrayVec;
use outboard_dma::{Chain, FreeList};
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

/// Packets that move together through a turn.
pub const BURST: usize = 32;
/// At most [`BURST`] packets.
pub type Burst = ArrayVec<Packet, BURST>;

/// A port's number in this process: an index into the plan's ports, uplinks included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

/// One packet, Ethernet header first.
#[derive(Debug)]
pub struct Packet {
    chain: ManuallyDrop<Chain>,
    /// The port it came in from.
    pub ingress: PortId,
    /// Its stages so far, while a ledger is kept.
    pub stamp: Stamp,
}

impl Packet {
    /// A packet that came in from `ingress`.
    #[inline(always)]
    pub fn new(chain: Chain, ingress: PortId) -> Packet {
        Packet { chain: ManuallyDrop::new(chain), ingress, stamp: Stamp::NONE }
    }

    /// Ends the packet by sending it: the port owns the frames from here.
    #[inline(always)]
    pub fn into_chain(mut self) -> Chain {
        #[allow(unsafe_code)]
        // SAFETY: `self` is forgotten on the next line, so the chain is taken once.
        let chain = unsafe { ManuallyDrop::take(&mut self.chain) };
        std::mem::forget(self);
        chain
    }

    /// Ends the packet by dropping it for a reason.
    #[inline]
    pub fn drop_with(self, reason: DropReason, drops: &Drops, free: &mut FreeList) {
        drops.count(reason);
        let chain = self.into_chain();
        if planted!("frames-leak-on-drop") && reason == DropReason::NotGateway {
            return;
        }
        chain.free(free);
    }
}

impl Deref for Packet {
    type Target = Chain;

    #[inline(always)]
    fn deref(&self) -> &Chain {
        &self.chain
    }
}

impl DerefMut for Packet {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Chain {
        &mut self.chain
    }
}

#[cfg(debug_assertions)]
impl Drop for Packet {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("a packet from port {} ended without tx or a drop reason", self.ingress.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outboard_dma::Region;

    #[test]
    fn dropping_counts_and_returns_the_frames() {
        let mut free = Region::new(8).unwrap().carve(8).unwrap();
        let drops = Drops::default();
        let packet = Packet::new(Chain::from_slice(&[0; 5000], &mut free).unwrap(), PortId(3));
        packet.drop_with(DropReason::NoRoute, &drops, &mut free);
        assert_eq!((drops.get(DropReason::NoRoute), drops.total(), free.len()), (1, 1, 8));
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "without tx or a drop reason")]
    fn losing_a_packet_fails_a_debug_build() {
        let mut free = Region::new(8).unwrap().carve(8).unwrap();
        drop(Packet::new(Chain::from_slice(&[0; 60], &mut free).unwrap(), PortId(0)));
    }
}
