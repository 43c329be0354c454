//! Ways in and out: one file each. The promise that every port keeps:
//!
//! - `rx` appends at most what is free in the burst; each packet has `ingress` set to the port.
//! - `tx` takes packets from the front of the burst; what it cannot take stays, in order.
//! - Frames come from and go back to the worker's free list: received + sent + free = constant.
//! - Neither call blocks, allocates, logs or panics on anything that a peer sent.

pub mod afxdp;
pub mod conformance;
#[cfg(feature = "dpdk")]
pub mod dpdk;
pub mod pcap;
pub mod peer;
pub mod test;

use crate::packet::Burst;
use outboard_dma::FreeList;
use std::os::fd::RawFd;

/// One queue of a way in and out, owned by one worker.
pub trait Port {
    /// Receives into the free room of `burst` and refills the device from `free`.
    fn rx(&mut self, burst: &mut Burst, free: &mut FreeList);

    /// Sends from the front of `burst`; what does not fit stays in it, in order. Frames whose
    /// sending has ended go to `free`.
    fn tx(&mut self, burst: &mut Burst, free: &mut FreeList);

    /// The largest frame that can be sent, Ethernet header included, in bytes.
    fn max_frame_bytes(&self) -> usize;

    /// A descriptor that becomes readable when there is something to receive, to sleep on.
    fn wake_fd(&self) -> Option<RawFd>;

    /// Whether only a call of `rx` finds out that there is something to receive: no descriptor
    /// tells, so that a worker with such a port may sleep for a moment only.
    fn must_poll(&self) -> bool {
        false
    }

    /// Whether packets that `tx` took still wait until the device takes them, of which `wake_fd`
    /// tells nothing: the next call tries again, so it must not be long in coming.
    fn has_unsent(&self) -> bool;

    /// Ends the port: every frame it can still reach goes to `free`. Called once, last.
    fn close(&mut self, free: &mut FreeList);
}

/// A port of any kind, so that a worker keeps them in one list and calls them without `dyn`.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a worker has a handful, and AfXdp is the usual one")]
pub enum AnyPort {
    /// A queue of a network interface.
    AfXdp(afxdp::AfXdp),
    /// A queue of a device of DPDK's.
    #[cfg(feature = "dpdk")]
    Dpdk(dpdk::Dpdk),
    /// A port in memory, for tests, simulation and benches.
    Test(test::TestPort),
}

impl AnyPort {
    /// Frames that the device of a closed port has not given back.
    pub fn lost(&self) -> usize {
        match self {
            #[cfg(feature = "dpdk")]
            AnyPort::Dpdk(port) => port.held(),
            AnyPort::AfXdp(_) | AnyPort::Test(_) => 0,
        }
    }
}

/// Calls the same method of whatever port it is.
macro_rules! any_port {
    ($port:expr, $name:ident($($argument:expr),*)) => {
        match $port {
            AnyPort::AfXdp(port) => port.$name($($argument),*),
            #[cfg(feature = "dpdk")]
            AnyPort::Dpdk(port) => port.$name($($argument),*),
            AnyPort::Test(port) => port.$name($($argument),*),
        }
    };
}

impl Port for AnyPort {
    #[inline]
    fn rx(&mut self, burst: &mut Burst, free: &mut FreeList) {
        any_port!(self, rx(burst, free))
    }

    #[inline]
    fn tx(&mut self, burst: &mut Burst, free: &mut FreeList) {
        any_port!(self, tx(burst, free))
    }

    fn max_frame_bytes(&self) -> usize {
        any_port!(self, max_frame_bytes())
    }

    fn wake_fd(&self) -> Option<RawFd> {
        any_port!(self, wake_fd())
    }

    fn must_poll(&self) -> bool {
        any_port!(self, must_poll())
    }

    fn has_unsent(&self) -> bool {
        any_port!(self, has_unsent())
    }

    fn close(&mut self, free: &mut FreeList) {
        any_port!(self, close(free))
    }
}
