//! One queue of a device each way: chains of frames in and out, a burst at a time.
//!
//! With [`Memory::Shared`] frames themselves are lent to the driver and nothing is copied here.
//! The queue keeps about as many lent as both rings have entries (its *level*): those in the
//! driver's rings are then never all of them, so that it finds frames to receive into. A level is
//! kept within [`SLACK`], so that a queue which sends what it receives need not touch the pool.
//! With [`Memory::Copied`] the driver works on a pool of its own and each packet is copied once.

use crate::device::Device;
use crate::eal::Eal;
use crate::error::DeviceError;
use crate::pool::{BUFFER_BYTES, BUFFER_START, Copies, Pool, pages};
use crate::raw;
use arrayvec::ArrayVec;
use outboard_dma::{
    Chain, DATA_BYTES, FRAME_BYTES, Frame, FreeList, HEADROOM_BYTES, LINK_BYTES, MAX_FRAMES, Region,
};

/// The most packets of one burst.
pub const BURST: usize = raw::OUTBOARD_BURST as usize;
/// By how much the frames lent may differ from the level before it is put right.
const SLACK: usize = 2 * BURST;
/// The most segments that one burst has.
const PIECES: usize = BURST * MAX_FRAMES;

/// What the driver works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// The region's frames.
    Shared,
    /// Memory of its own, with room for packets of so many bytes; every packet is copied.
    Copied {
        /// The largest packet.
        packet_bytes: usize,
    },
}

/// What names a queue.
#[derive(Clone, Debug)]
pub struct QueueConfig<'a> {
    /// The device and its arguments.
    pub device: &'a str,
    /// The process's frame memory.
    pub region: &'static Region,
    /// Entries of the ring that packets are received into, as far as the driver has one.
    pub rx_entries: u16,
    /// Entries of the ring that packets are sent from.
    pub tx_entries: u16,
    /// The MTU to set, in bytes of IP packet.
    pub mtu: Option<u16>,
    /// What the driver works on.
    pub memory: Memory,
}

/// Received packets that could not be handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// No frame was free to copy them to.
    pub no_frames: u64,
    /// They need more frames than a chain has.
    pub too_many_frames: u64,
}

/// The queue.
#[derive(Debug)]
pub struct Queue {
    device: Device,
    region: &'static Region,
    memory: Pools,
    /// Frames to keep lent.
    level: usize,
    closed: bool,
}

#[derive(Debug)]
enum Pools {
    Shared(Pool),
    Copied(Copies),
}

// SAFETY: the raw pointers are to a device and pools that any one thread at a time may use; the
// queue is used by its owner alone.
unsafe impl Send for Queue {}

impl Queue {
    /// Opens a device with one queue each way, made where it is not there. Frames to receive into
    /// are taken from `free`; none is missing there when this fails. The environment runs; a thread
    /// that is not registered with it works without its cache of the pool.
    pub fn open(
        _eal: Eal,
        config: &QueueConfig,
        free: &mut FreeList,
    ) -> Result<Queue, DeviceError> {
        let device = Device::probe(config.device)?;
        let level = usize::from(config.rx_entries) + usize::from(config.tx_entries);
        let memory = match config.memory {
            Memory::Shared => Pool::new(config.device, config.region).map(Pools::Shared),
            Memory::Copied { packet_bytes } => {
                Copies::new(config.device, level, packet_bytes).map(Pools::Copied)
            }
        };
        let mut device = device;
        let memory = match memory {
            Ok(memory) => memory,
            Err(error) => {
                device.close(&[]);
                return Err(error);
            }
        };
        let (region, closed) = (config.region, false);
        let mut queue = Queue { device, region, memory, level, closed };
        match queue.start(config, free) {
            Ok(()) => Ok(queue),
            Err(error) => {
                queue.close(free);
                Err(error)
            }
        }
    }

    fn start(&mut self, config: &QueueConfig, free: &mut FreeList) -> Result<(), DeviceError> {
        let wanted = (config.rx_entries, config.tx_entries);
        let entries = self.device.configure(config.mtu, wanted)?;
        self.level = usize::from(entries.0) + usize::from(entries.1);
        let pool = match &mut self.memory {
            Pools::Shared(pool) => {
                self.device.map(&pages(self.region))?;
                if free.len() < self.level {
                    let (device, wanted) = (config.device.to_string(), self.level);
                    return Err(DeviceError::Frames { device, wanted });
                }
                pool.fill(self.level, free);
                pool.raw()
            }
            Pools::Copied(copies) => copies.raw(),
        };
        // SAFETY: `close` closes the device before the pool.
        unsafe { self.device.start(entries, pool) }
    }

    /// The device's MTU in bytes of IP packet.
    pub fn mtu(&self) -> usize {
        self.device.mtu().into()
    }

    /// Whether the device sends packets of several frames.
    pub fn sends_segments(&self) -> bool {
        matches!(self.memory, Pools::Copied(_)) || self.device.sends_segments()
    }

    /// Whether the device's far side is there; asks the driver.
    pub fn link_is_up(&self) -> bool {
        !self.closed && self.device.link_is_up()
    }

    /// Frames that DPDK has.
    pub fn held(&self) -> usize {
        match &self.memory {
            Pools::Shared(pool) => pool.lent(),
            Pools::Copied(_) => 0,
        }
    }

    /// Whether the chain can be lent as it lies in its frames: not if its first bytes are in front
    /// of where a driver's buffer begins, and there is no room to move them.
    #[inline(always)]
    pub fn fits(chain: &Chain) -> bool {
        chain.headroom() + LINK_BYTES >= BUFFER_START || chain.head().len() <= BUFFER_BYTES
    }

    /// Receives up to `room` packets, in order.
    #[inline]
    pub fn receive(
        &mut self,
        room: usize,
        free: &mut FreeList,
        mut sink: impl FnMut(Chain),
    ) -> Lost {
        let mut lost = Lost::default();
        if self.closed {
            return lost;
        }
        let mut views: [raw::outboard_view; BURST] = [EMPTY_VIEW; BURST];
        let (port, room) = (self.device.port(), room.min(BURST) as u16);
        let pool = match &self.memory {
            Pools::Shared(pool) => pool.raw(),
            Pools::Copied(_) => std::ptr::null_mut(),
        };
        // SAFETY: a started port that this thread alone uses; room for that many views.
        let received = unsafe { raw::shim_receive(port, pool, views.as_mut_ptr(), room) };
        for view in &views[..usize::from(received)] {
            let chain = match &mut self.memory {
                Pools::Shared(pool) if view.ours != 0 => adopt(pool, view, free, &mut lost),
                _ => copy(view, free, &mut lost),
            };
            if let Some(mut chain) = chain {
                if view.tag_stripped != 0 {
                    restore_tag(&mut chain, view.tag);
                }
                sink(chain);
            }
        }
        self.balance(free);
        lost
    }

    /// Sends up to [`BURST`] packets; those that were not taken go to `unsent`, in order. How many
    /// were taken.
    #[inline]
    pub fn transmit(
        &mut self,
        chains: impl Iterator<Item = Chain>,
        free: &mut FreeList,
        unsent: impl FnMut(Chain),
    ) -> usize {
        if self.closed {
            let mut unsent = unsent;
            chains.for_each(&mut unsent);
            return 0;
        }
        let sent = match &mut self.memory {
            Pools::Shared(pool) => lend(pool, self.device.port(), chains, free, unsent),
            Pools::Copied(copies) => send_copies(copies, self.device.port(), chains, free, unsent),
        };
        self.balance(free);
        sent
    }

    /// Keeps about `level` frames lent.
    #[inline]
    fn balance(&mut self, free: &mut FreeList) {
        let Pools::Shared(pool) = &mut self.memory else { return };
        let lent = pool.lent();
        if lent + SLACK <= self.level {
            pool.fill(self.level - lent, free);
        } else if lent >= self.level + SLACK {
            pool.drain(lent - self.level, free);
        }
    }

    /// Stops, closes and removes the device, and gives every frame back that DPDK returns; how many
    /// it does not, which stay with it. Not on a worker with other work: drivers take their time.
    pub fn close(&mut self, free: &mut FreeList) -> usize {
        if self.closed {
            return 0;
        }
        self.take_leftovers(free);
        self.closed = true;
        match &mut self.memory {
            Pools::Shared(pool) => {
                self.device.close(&pages(self.region));
                pool.close(free)
            }
            Pools::Copied(copies) => {
                self.device.close(&[]);
                copies.close();
                0
            }
        }
    }
}

impl Queue {
    /// Receives what lies in the driver's own memory (net_ring), which would go with it: as much
    /// as the rings have entries, and not what comes without end.
    fn take_leftovers(&mut self, free: &mut FreeList) {
        if !self.device.is_running() {
            return;
        }
        for _ in 0..self.level.div_ceil(BURST) {
            let mut leftovers: ArrayVec<Chain, BURST> = ArrayVec::new();
            let lost = self.receive(BURST, free, |chain| leftovers.push(chain));
            if leftovers.is_empty() && lost == Lost::default() {
                return;
            }
            leftovers.into_iter().for_each(|chain| chain.free(free));
        }
    }
}

impl Drop for Queue {
    /// The device does not outlive its queue; frames that it had are lost, as its owner's are.
    fn drop(&mut self) {
        if !self.closed {
            self.closed = true;
            self.device.close(&[]);
        }
    }
}

const EMPTY_VIEW: raw::outboard_view = raw::outboard_view {
    mbuf: std::ptr::null_mut(),
    next: std::ptr::null_mut(),
    buffer: std::ptr::null_mut(),
    start: 0,
    len: 0,
    segments: 0,
    tag: 0,
    bytes: 0,
    tag_stripped: 0,
    ours: 0,
};

/// The frame of a received segment, and where its data is.
///
/// # Safety
/// The segment is of the pool, was received just now, and is unlinked.
#[inline(always)]
unsafe fn frame_of(pool: &mut Pool, view: &raw::outboard_view) -> (Frame, usize, usize) {
    let start = view.buffer as usize % FRAME_BYTES + usize::from(view.start);
    // SAFETY: the caller's promise.
    (unsafe { pool.take_back(view.buffer) }, start, usize::from(view.len))
}

/// A received packet whose segments are all frames of ours.
#[inline(always)]
fn adopt(
    pool: &mut Pool,
    view: &raw::outboard_view,
    free: &mut FreeList,
    lost: &mut Lost,
) -> Option<Chain> {
    // SAFETY: `ours` says that it is of the pool, and the shim has unlinked it.
    let (frame, start, len) = unsafe { frame_of(pool, view) };
    let mut chain = Chain::new(frame, start, len);
    if view.segments == 1 {
        return Some(chain);
    }
    let (mut next, mut too_long, mut part) = (view.next, false, EMPTY_VIEW);
    while !next.is_null() {
        // SAFETY: a segment of the packet, which is ours whole.
        unsafe { raw::shim_unlink(next, &raw mut part) };
        // SAFETY: as above; unlinked in the line before.
        let (frame, start, len) = unsafe { frame_of(pool, &part) };
        if let Err(frame) = chain.push(frame, start, len) {
            free.give(frame);
            too_long = true;
        }
        next = part.next;
    }
    if too_long {
        chain.free(free);
        lost.too_many_frames += 1;
        return None;
    }
    Some(chain)
}

/// A received packet in memory of somebody else's, copied into frames.
fn copy(view: &raw::outboard_view, free: &mut FreeList, lost: &mut Lost) -> Option<Chain> {
    let bytes = view.bytes as usize;
    let frames = bytes.div_ceil(DATA_BYTES).max(1);
    let chain = if frames > MAX_FRAMES {
        lost.too_many_frames += 1;
        None
    } else if free.len() < frames {
        lost.no_frames += 1;
        None
    } else {
        copy_segments(view, bytes, free)
    };
    // SAFETY: the packet was received, and nothing refers to it any more.
    unsafe { raw::shim_free(view.mbuf) };
    chain
}

/// Copies segment after segment into frame after frame. `free` has enough.
fn copy_segments(head: &raw::outboard_view, bytes: usize, free: &mut FreeList) -> Option<Chain> {
    let mut part = *head;
    let (mut at, mut left, mut chain) = (0, bytes, None::<Chain>);
    loop {
        let mut frame = free.take()?;
        let len = left.min(DATA_BYTES);
        let mut filled = 0;
        while filled < len {
            if at == usize::from(part.len) {
                if part.next.is_null() {
                    break;
                }
                let next = part.next;
                // SAFETY: a segment of a packet that we have.
                unsafe { raw::shim_look(next, &raw mut part) };
                at = 0;
                continue;
            }
            let take = (usize::from(part.len) - at).min(len - filled);
            // SAFETY: the segment's data: `len` bytes from `start` on in its buffer, which the
            // driver has finished writing.
            let data = unsafe {
                let data = part.buffer.add(usize::from(part.start) + at);
                std::slice::from_raw_parts(data, take)
            };
            frame.bytes_mut()[HEADROOM_BYTES + filled..][..take].copy_from_slice(data);
            filled += take;
            at += take;
        }
        left -= len;
        match &mut chain {
            None => chain = Some(Chain::new(frame, HEADROOM_BYTES, filled)),
            Some(chain) => chain.push(frame, HEADROOM_BYTES, filled).ok()?,
        }
        if left == 0 {
            return chain;
        }
    }
}

/// Puts a tag back that the driver took out (IEEE 802.1Q, 9.6), so that it is seen and judged.
fn restore_tag(chain: &mut Chain, tag: u16) {
    const ADDRESSES: usize = 12;
    if chain.head().len() < ADDRESSES {
        return;
    }
    if let Some(head) = chain.grow_front(4) {
        head.copy_within(4..4 + ADDRESSES, 0);
        head[ADDRESSES..ADDRESSES + 2].copy_from_slice(&[0x81, 0x00]);
        head[ADDRESSES + 2..ADDRESSES + 4].copy_from_slice(&tag.to_be_bytes());
    }
}

/// Sends chains as they are.
#[inline(always)]
fn lend(
    pool: &mut Pool,
    port: u16,
    chains: impl Iterator<Item = Chain>,
    free: &mut FreeList,
    mut unsent: impl FnMut(Chain),
) -> usize {
    let mut pieces: ArrayVec<raw::outboard_piece, PIECES> = ArrayVec::new();
    let mut packets = 0;
    for chain in chains.take(BURST) {
        let (first, bytes) = (pieces.len(), chain.bytes() as u32);
        chain.into_frames(|frame, start, len| match len {
            0 => free.give(frame),
            _ => pieces.push(piece(pool, frame, start, len)),
        });
        let segments = (pieces.len() - first) as u16;
        assert!(segments > 0, "a packet without data");
        (pieces[first].segments, pieces[first].bytes) = (segments, bytes);
        packets += 1;
    }
    if packets == 0 {
        return 0;
    }
    // SAFETY: a started port that this thread alone uses; `packets` packets in `pieces`, whose
    // mbufs are raw, of the pinned pool, and were aside until now.
    let sent = unsafe { raw::shim_send_pieces(port, pieces.as_ptr(), packets) };
    let mut rest = &pieces[..];
    for index in 0..packets {
        let (packet, behind) = rest.split_at(rest[0].segments.into());
        rest = behind;
        if index >= sent {
            unsent(take_back(pool, packet));
        }
    }
    sent.into()
}

/// Lends a frame that holds data.
#[inline(always)]
fn piece(pool: &mut Pool, mut frame: Frame, start: usize, len: usize) -> raw::outboard_piece {
    let mut start = start;
    if start < BUFFER_START {
        frame.bytes_mut().copy_within(start..start + len, BUFFER_START);
        start = BUFFER_START;
    }
    raw::outboard_piece {
        mbuf: pool.lend(frame),
        start: (start - BUFFER_START) as u16,
        len: len as u16,
        segments: 0,
        bytes: 0,
    }
}

/// The chain of a packet that the driver did not take.
fn take_back(pool: &mut Pool, packet: &[raw::outboard_piece]) -> Chain {
    let mut chain = None::<Chain>;
    for piece in packet {
        // SAFETY: an mbuf of the pool; the driver did not take it, and the shim unlinked it.
        let frame = unsafe { pool.take_back(raw::shim_buffer(piece.mbuf).cast()) };
        let (start, len) = (BUFFER_START + usize::from(piece.start), usize::from(piece.len));
        match &mut chain {
            None => chain = Some(Chain::new(frame, start, len)),
            Some(chain) => {
                let pushed = chain.push(frame, start, len);
                assert!(pushed.is_ok(), "as many frames as the packet had");
            }
        }
    }
    chain.expect("a packet has a first piece")
}

/// Sends copies of chains.
fn send_copies(
    copies: &mut Copies,
    port: u16,
    chains: impl Iterator<Item = Chain>,
    free: &mut FreeList,
    mut unsent: impl FnMut(Chain),
) -> usize {
    let mut waiting: ArrayVec<Chain, BURST> = ArrayVec::new();
    let mut mbufs: ArrayVec<*mut raw::rte_mbuf, BURST> = ArrayVec::new();
    for chain in chains.take(BURST) {
        // In order: behind a packet that found no memory nothing is sent.
        if mbufs.len() == waiting.len()
            && let Some(mbuf) = copy_of(copies, &chain)
        {
            mbufs.push(mbuf);
        }
        waiting.push(chain);
    }
    let count = mbufs.len() as u16;
    // SAFETY: a started port that this thread alone uses; that many packets.
    let sent = unsafe { raw::shim_send(port, mbufs.as_mut_ptr(), count) };
    for mbuf in &mbufs[usize::from(sent)..] {
        // SAFETY: made here, and the driver did not take it.
        unsafe { raw::shim_free(*mbuf) };
    }
    for (index, chain) in waiting.into_iter().enumerate() {
        match index < usize::from(sent) {
            true => chain.free(free),
            false => unsent(chain),
        }
    }
    sent.into()
}

/// A copy of the chain in an mbuf; `None` when there is no memory for it now.
fn copy_of(copies: &mut Copies, chain: &Chain) -> Option<*mut raw::rte_mbuf> {
    // SAFETY: a live pool.
    let mbuf = unsafe { raw::shim_alloc(copies.raw()) };
    if mbuf.is_null() {
        return None;
    }
    // SAFETY: an mbuf of ours; null when it has not that much room.
    let place: *mut u8 = unsafe { raw::shim_append(mbuf, chain.bytes() as u16) }.cast();
    if place.is_null() {
        // SAFETY: made here and given to nobody.
        unsafe { raw::shim_free(mbuf) };
        return None;
    }
    let mut at = 0;
    for segment in chain.segments() {
        // SAFETY: `append` made room for all bytes of the chain, which its segments add up to.
        unsafe { place.add(at).copy_from_nonoverlapping(segment.as_ptr(), segment.len()) };
        at += segment.len();
    }
    Some(mbuf)
}
