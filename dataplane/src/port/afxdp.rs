//! One queue of a network interface through an AF_XDP socket.
//!
//! Steering the queue's frames to the socket is `outboard_ebpf::Steering`'s part. Packets longer
//! than a frame are chains on both ways. Frames that the kernel cannot send now (no buffers, link
//! down) stay in the tx ring, and the port asks again by itself: at once after EAGAIN and the
//! like, less and less often while the link is down.

use super::Port;
use crate::counters::PortCounters;
use crate::drop::DropReason;
use crate::packet::{Burst, Packet, PortId};
use outboard_dma::{Chain, Frame, FreeList, Kick, Region, RingSizes, Xsk, XskError, XskStatistics};
use outboard_wire::ethernet;
use std::os::fd::RawFd;
use std::sync::Arc;

/// The most calls between two attempts to send while the link is down.
const MAX_PAUSE: u32 = 1024;

/// Everything that names one queue.
#[derive(Clone, Debug)]
pub struct AfXdpConfig<'a> {
    /// The interface, in the calling thread's network namespace.
    pub interface: &'a str,
    /// The queue's number.
    pub queue: u32,
    /// The process's frame memory.
    pub region: &'static Region,
    /// The rings' sizes.
    pub rings: RingSizes,
    /// What received packets have as their ingress.
    pub port: PortId,
    /// Where packets are counted; the queue's worker is their only writer.
    pub counters: Arc<PortCounters>,
}

/// The port.
#[derive(Debug)]
pub struct AfXdp {
    /// `None` once closed.
    xsk: Option<Xsk>,
    port: PortId,
    max_frame_bytes: usize,
    counters: Arc<PortCounters>,
    assembly: Assembly,
    retry: Retry,
}

/// A packet of which more frames are to come.
#[derive(Debug)]
enum Assembly {
    Empty,
    Partial(Chain),
    /// It has more frames than a chain; the rest of it is thrown away.
    TooLong,
}

/// When to ask the kernel again to send what is in the tx ring.
#[derive(Clone, Copy, Debug, Default)]
struct Retry {
    wanted: bool,
    /// Calls to let pass before.
    pause: u32,
    /// The pause after the next failure.
    next_pause: u32,
}

impl AfXdp {
    /// Opens the queue. Nothing arrives until its [`socket`](Self::socket) is in the steering
    /// program's map.
    pub fn open(config: AfXdpConfig) -> Result<AfXdp, XskError> {
        let xsk = Xsk::open(config.interface, config.queue, config.region, config.rings)?;
        Ok(AfXdp {
            max_frame_bytes: xsk.mtu() + ethernet::BYTES,
            xsk: Some(xsk),
            port: config.port,
            counters: config.counters,
            assembly: Assembly::Empty,
            retry: Retry::default(),
        })
    }

    /// The socket, for the steering program's map; `None` once closed.
    pub fn socket(&self) -> Option<RawFd> {
        self.xsk.as_ref().map(Xsk::fd)
    }

    /// Whether the driver works on the frames without a copy by the kernel.
    pub fn zero_copy(&self) -> bool {
        self.xsk.as_ref().is_some_and(Xsk::zero_copy)
    }

    /// Frames that the port and the kernel hold.
    pub fn held(&self) -> usize {
        let partial = match &self.assembly {
            Assembly::Partial(chain) => chain.frames(),
            _ => 0,
        };
        partial + self.xsk.as_ref().map_or(0, Xsk::held)
    }

    /// What the kernel counted for the socket; a system call.
    pub fn statistics(&self) -> XskStatistics {
        self.xsk.as_ref().map_or(XskStatistics::default(), Xsk::statistics)
    }
}

impl Port for AfXdp {
    #[inline]
    fn rx(&mut self, burst: &mut Burst, free: &mut FreeList) {
        let Some(xsk) = &mut self.xsk else { return };
        xsk.complete(free);
        if self.retry.due() {
            self.retry.kick(xsk, &self.counters);
        }
        if !burst.is_full() {
            let (port, assembly) = (self.port, &mut self.assembly);
            let (before, mut bytes, mut too_long) = (burst.len(), 0, 0);
            xsk.receive(|frame, start, len, more| {
                if let Some(chain) = assembly.add(frame, start, len, more, free, &mut too_long) {
                    bytes += chain.bytes() as u64;
                    burst.push(Packet::new(chain, port));
                }
                !burst.is_full()
            });
            let packets = (burst.len() - before) as u64;
            if packets > 0 {
                self.counters.rx_packets.add(packets);
                self.counters.rx_bytes.add(bytes);
            }
            for _ in 0..too_long {
                self.counters.drops.count(DropReason::TooManyFrames);
            }
        }
        xsk.refill(free);
        xsk.wake_receiver();
    }

    #[inline]
    fn tx(&mut self, burst: &mut Burst, free: &mut FreeList) {
        let Some(xsk) = &mut self.xsk else { return };
        xsk.complete(free);
        let taken = how_many_fit(xsk, burst);
        let (mut packets, mut bytes) = (0, 0);
        for packet in burst.drain(..taken) {
            if packet.bytes() < ethernet::BYTES {
                packet.drop_with(DropReason::TooShort, &self.counters.drops, free);
                continue;
            }
            packets += 1;
            bytes += packet.bytes() as u64;
            transmit(xsk, packet.into_chain(), free);
        }
        if packets > 0 {
            self.counters.tx_packets.add(packets);
            self.counters.tx_bytes.add(bytes);
        }
        if self.retry.due() || (taken > 0 && !self.retry.wanted) {
            self.retry.kick(xsk, &self.counters);
        }
    }

    fn max_frame_bytes(&self) -> usize {
        self.max_frame_bytes
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.socket()
    }

    fn has_unsent(&self) -> bool {
        self.retry.wanted
    }

    fn close(&mut self, free: &mut FreeList) {
        if let Some(xsk) = self.xsk.take() {
            xsk.close(free);
        }
        if let Assembly::Partial(chain) = std::mem::replace(&mut self.assembly, Assembly::Empty) {
            chain.free(free);
        }
    }
}

/// How many packets from the front of the burst the tx ring has room for.
#[inline]
fn how_many_fit(xsk: &mut Xsk, burst: &Burst) -> usize {
    let wanted = burst.iter().map(|packet| packet.frames()).sum();
    let mut room = xsk.transmit_room(wanted);
    let fits =
        |packet: &&Packet| room.checked_sub(packet.frames()).inspect(|left| room = *left).is_some();
    burst.iter().take_while(fits).count()
}

/// Gives every frame that holds data to the kernel, and the others back: the kernel refuses a
/// descriptor without data and never returns its frame.
#[inline]
fn transmit(xsk: &mut Xsk, chain: Chain, free: &mut FreeList) {
    let mut left = chain.bytes();
    chain.into_frames(|frame, start, len| {
        left -= len;
        match len {
            0 => free.give(frame),
            _ => xsk.transmit(frame, start, len, left > 0),
        }
    });
}

impl Assembly {
    /// Adds a received frame; the packet, if this was its last. A packet that is too long is
    /// counted in `too_long` when it ends, its frames given back.
    #[inline]
    fn add(
        &mut self,
        frame: Frame,
        start: usize,
        len: usize,
        more: bool,
        free: &mut FreeList,
        too_long: &mut u64,
    ) -> Option<Chain> {
        let grown = match std::mem::replace(self, Assembly::Empty) {
            Assembly::Empty => Assembly::Partial(Chain::new(frame, start, len)),
            Assembly::Partial(mut chain) => match chain.push(frame, start, len) {
                Ok(()) => Assembly::Partial(chain),
                Err(frame) => {
                    free.give(frame);
                    chain.free(free);
                    Assembly::TooLong
                }
            },
            Assembly::TooLong => {
                free.give(frame);
                Assembly::TooLong
            }
        };
        match grown {
            unfinished if more => *self = unfinished,
            Assembly::Partial(chain) => return Some(chain),
            _ => *too_long += 1,
        }
        None
    }
}

impl Retry {
    /// Whether it is time to ask again; counts the call.
    #[inline]
    fn due(&mut self) -> bool {
        if !self.wanted {
            return false;
        }
        let due = self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        due
    }

    /// Asks the kernel to send and notes when to ask again.
    #[inline]
    fn kick(&mut self, xsk: &mut Xsk, counters: &PortCounters) {
        match xsk.kick() {
            Kick::Done => *self = Retry { wanted: false, pause: 0, next_pause: 1 },
            Kick::Later => *self = Retry { wanted: true, pause: 0, next_pause: 1 },
            Kick::LinkDown => {
                counters.link_errors.add(1);
                let pause = self.next_pause.clamp(1, MAX_PAUSE);
                *self = Retry { wanted: true, pause, next_pause: pause * 2 };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outboard_dma::{HEADROOM_BYTES, MAX_FRAMES};

    /// Adds `frames` frames of 10 bytes as one packet.
    fn assemble(frames: usize, free: &mut FreeList) -> (Option<Chain>, u64) {
        let (mut assembly, mut too_long, mut done) = (Assembly::Empty, 0, None);
        for index in 0..frames {
            assert!(done.is_none(), "ended before its last frame");
            let (frame, more) = (free.take().unwrap(), index + 1 < frames);
            done = assembly.add(frame, HEADROOM_BYTES, 10, more, free, &mut too_long);
        }
        assert!(matches!(assembly, Assembly::Empty));
        (done, too_long)
    }

    #[test]
    fn packets_are_assembled_up_to_the_longest_chain() {
        let mut free = Region::new(64).unwrap().carve(64).unwrap();
        for frames in [1, 2, 3, MAX_FRAMES] {
            let (chain, too_long) = assemble(frames, &mut free);
            let chain = chain.unwrap();
            assert_eq!((chain.frames(), chain.bytes(), too_long), (frames, 10 * frames, 0));
            chain.free(&mut free);
            assert_eq!(free.len(), 64);
        }
        for frames in [MAX_FRAMES + 1, MAX_FRAMES + 2, 45] {
            let (chain, too_long) = assemble(frames, &mut free);
            assert!(chain.is_none());
            assert_eq!((too_long, free.len()), (1, 64), "{frames} frames");
        }
    }

    #[test]
    fn a_retry_waits_longer_and_longer_up_to_its_limit() {
        let mut retry = Retry { wanted: true, pause: 2, next_pause: 4 };
        assert_eq!([retry.due(), retry.due(), retry.due()], [false, false, true]);
        assert!(!Retry::default().due());
    }
}
