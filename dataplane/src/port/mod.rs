//! Ways in and out: one file each. The promise that every port keeps:
//!
//! - `rx` appends at most what is free in the burst; each packet has `ingress` set to the port.
//! - `tx` takes packets from the front of the burst; what it cannot take stays, in order.
//! - Frames come from and go back to the worker's free list: received + sent + free = constant.
//! - Neither call blocks, allocates, logs or panics on anything that a peer sent.

pub mod peer;

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

    /// Ends the port: every frame it can still reach goes to `free`. Called once, last.
    fn close(&mut self, free: &mut FreeList);
}
