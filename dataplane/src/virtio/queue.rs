//! A split virtqueue, device side, polled (virtio 1.2, section 2.7).
//!
//! A burst is: [`fetch`](Queue::fetch) reads the available index once, [`pop`](Queue::pop) takes
//! that many chains, [`push`](Queue::push) gives chains back, [`publish`](Queue::publish) writes
//! the used index once and says whether the driver wants to be called.
//!
//! A queue may keep what it has in flight in memory that survives this process
//! ([`Inflight`]); then it first takes again what a process before it had taken.
//!
//! Everything the driver wrote is checked before use. A bad chain is an error that still names
//! its head, so that it can be given back; a ring whose indices make no sense is broken and stays
//! so until the driver resets it. Neither is ever a panic or an endless loop.

mod ahead;

pub use ahead::Upcoming;

use crate::virtio::fault::QueueFault;
use crate::virtio::inflight::{Inflight, InflightError};
use crate::virtio::notify::{Wish, Words};
use arrayvec::ArrayVec;
use outboard_dma::{GuestError, GuestMemory, Segment, Window};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The largest queue that is accepted: QEMU's own limit.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// The most segments of one chain: data (34), and a header and a status cut into any pieces that
/// still make sense (16 + 1), with room for buffers that straddle two memory regions.
pub const MAX_CHAIN_SEGMENTS: usize = 64;

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;
const DESC_BYTES: usize = 16;
/// Offset of the index in the available and the used ring; entries follow at 4.
const INDEX: usize = 2;
const ENTRIES: usize = 4;

/// Where a queue lies, as the front end describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSetup {
    /// Entries: a power of two up to [`MAX_QUEUE_SIZE`].
    pub size: u16,
    /// Front-end address of the descriptor table.
    pub descriptors: u64,
    /// Front-end address of the available ring.
    pub available: u64,
    /// Front-end address of the used ring.
    pub used: u64,
    /// The available index to begin at.
    pub base: u16,
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
}

/// A queue as plain data, for another process to go on with. Chains that were popped and not
/// pushed are their taker's to remember.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// What the rest means: [`STATE_VERSION`].
    pub version: u32,
    /// Where the queue lies; its base is the next available entry to take.
    pub setup: QueueSetup,
    /// Where the next used element goes, and the used index as the driver sees it.
    pub used: [u16; 2],
    /// The used index at which the driver's wish to be called was last looked at.
    pub called_at: Option<u16>,
    /// Heads to take again, the first at the end.
    pub again: Vec<u16>,
    /// The name of what broke the ring.
    pub broken: Option<String>,
}

/// The version of [`QueueState`] that is written and read.
pub const STATE_VERSION: u32 = 1;

impl Words for Window {
    #[inline(always)]
    fn load_u16(&self, offset: usize, order: Ordering) -> u16 {
        Window::load_u16(self, offset, order)
    }

    #[inline(always)]
    fn store_u16(&self, offset: usize, value: u16, order: Ordering) {
        Window::store_u16(self, offset, value, order);
    }
}

/// Why a saved queue cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum QueueStateError {
    /// Another version wrote it.
    #[error("a saved queue of version {0}, not {STATE_VERSION}; stop the guest's disk instead")]
    Version(u32),
    /// The queue is not where it was, or never was.
    #[error("a saved queue: {0}")]
    Setup(#[from] QueueSetupError),
    /// What is in it cannot be.
    #[error("a saved queue whose {0} makes no sense")]
    Value(&'static str),
}

/// Why a queue cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum QueueSetupError {
    /// The size is impossible.
    #[error("a queue of {0} entries; a power of two from 1 to {MAX_QUEUE_SIZE} is possible")]
    Size(u32),
    /// A ring is not in the guest's memory.
    #[error(transparent)]
    Place(#[from] GuestError),
}

/// What stopped a [`Queue::pop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// One chain is bad; the device gives its head back and goes on.
    Chain {
        /// The chain's head.
        head: u16,
        /// What is wrong with it.
        fault: QueueFault,
    },
    /// The ring is broken: nothing more is taken from it.
    Ring(QueueFault),
}

/// A chain of descriptors, resolved: checked segments in order, readable ones first.
#[derive(Debug, Default)]
pub struct DescriptorChain {
    segments: ArrayVec<Segment, MAX_CHAIN_SEGMENTS>,
    readable: usize,
}

impl DescriptorChain {
    /// What the driver wrote for the device.
    #[inline(always)]
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable]
    }

    /// What the device shall write.
    #[inline(always)]
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.readable..]
    }
}

/// One descriptor as read from the guest.
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn from_words(address: u64, rest: u64) -> Descriptor {
        Descriptor {
            address,
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }
}

/// The device's end of one queue.
#[derive(Debug)]
pub struct Queue {
    memory: Arc<GuestMemory>,
    setup: QueueSetup,
    descriptors: Window,
    available: Window,
    used: Window,
    size: u16,
    /// Our wish to be kicked, and the driver's to be called.
    kicks: Wish,
    calls: Wish,
    indirect: bool,
    /// The next available entry to take.
    next_available: u16,
    /// The available index as last read.
    seen_available: u16,
    /// Where the next used element goes.
    next_used: u16,
    /// The used index as the driver sees it.
    published_used: u16,
    /// The used index at which the driver's wish to be called was last looked at.
    called_at: Option<u16>,
    ahead: ahead::Ahead,
    inflight: Option<Inflight>,
    /// Heads that a process before this one had taken, the one taken first at the end.
    again: Vec<u16>,
    broken: Option<QueueFault>,
}

impl Queue {
    /// Takes a queue over after checking where it lies.
    pub fn new(memory: &Arc<GuestMemory>, setup: &QueueSetup) -> Result<Queue, QueueSetupError> {
        let size = setup.size;
        if size == 0 || !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(QueueSetupError::Size(u32::from(size)));
        }
        let (n, event) = (usize::from(size), if setup.event_idx { 2 } else { 0 });
        let window = |what, address, bytes, align| memory.window(what, address, bytes, align);
        let descriptors = window("descriptor table", setup.descriptors, n * DESC_BYTES, 16)?;
        let available = window("available ring", setup.available, ENTRIES + n * 2 + event, 2)?;
        let used = window("used ring", setup.used, ENTRIES + n * 8 + event, 4)?;
        // The driver may have results that a former owner of the queue gave it: go on from there.
        let next_used = used.load_u16(INDEX, Ordering::Acquire);
        Ok(Queue {
            memory: Arc::clone(memory),
            setup: *setup,
            descriptors,
            available,
            used,
            size,
            kicks: Wish::of_device(size, setup.event_idx),
            calls: Wish::of_driver(size, setup.event_idx),
            indirect: setup.indirect,
            next_available: setup.base,
            seen_available: setup.base,
            next_used,
            published_used: next_used,
            called_at: None,
            ahead: ahead::Ahead::default(),
            inflight: None,
            again: Vec::new(),
            broken: None,
        })
    }

    /// The queue as plain data. What was pushed is there whether it was published or not.
    pub fn save(&self) -> QueueState {
        QueueState {
            version: STATE_VERSION,
            setup: QueueSetup { base: self.next_available, ..self.setup },
            used: [self.next_used, self.published_used],
            called_at: self.called_at,
            again: self.again.clone(),
            broken: self.broken.map(|fault| fault.name().to_owned()),
        }
    }

    /// Goes on where another process stopped. A queue that was tracked is to be
    /// [tracked](Self::track) again.
    pub fn load(memory: &Arc<GuestMemory>, state: &QueueState) -> Result<Queue, QueueStateError> {
        if state.version != STATE_VERSION {
            return Err(QueueStateError::Version(state.version));
        }
        let mut queue = Queue::new(memory, &state.setup)?;
        let [next_used, published_used] = state.used;
        if state.again.len() > usize::from(queue.size)
            || state.again.iter().any(|head| *head >= queue.size)
        {
            return Err(QueueStateError::Value("list of heads"));
        }
        (queue.next_used, queue.published_used) = (next_used, published_used);
        queue.called_at = state.called_at;
        queue.again.clone_from(&state.again);
        if let Some(name) = &state.broken {
            let fault = QueueFault::ALL.iter().find(|fault| fault.name() == name);
            queue.broken = Some(*fault.ok_or(QueueStateError::Value("fault"))?);
        }
        Ok(queue)
    }

    /// Keeps what is in flight in `inflight`, and takes what is there again before anything new.
    /// To be called before the first [`fetch`](Self::fetch).
    pub fn track(mut self, mut inflight: Inflight) -> Result<Queue, InflightError> {
        let is_new = inflight.is_new();
        self.again = inflight.resume(self.next_used)?;
        if !is_new {
            // What was taken is what was given back and what is in flight. The front end cannot
            // know it: its base is the used index when it noticed that the device had died.
            self.next_available = self.next_used.wrapping_add(self.again.len() as u16);
            self.seen_available = self.next_available;
        }
        self.again.reverse();
        self.inflight = Some(inflight);
        Ok(self)
    }

    /// Whether what is in flight is kept where another process finds it.
    pub fn is_tracked(&self) -> bool {
        self.inflight.is_some()
    }

    /// Reads the available index and returns how many chains wait, at most the queue's size.
    #[inline]
    pub fn fetch(&mut self) -> Result<u16, QueueError> {
        if let Some(fault) = self.broken {
            return Err(QueueError::Ring(fault));
        }
        // Acquire: the entries and descriptors below the index are written before it (2.7.13).
        let index = self.available.load_u16(INDEX, Ordering::Acquire);
        let waiting = index.wrapping_sub(self.next_available);
        if waiting > self.size {
            return Err(self.break_by(QueueFault::AvailJump));
        }
        if waiting > 0 && self.seen_available == self.next_available {
            self.guess();
        }
        self.seen_available = index;
        Ok(waiting.saturating_add(self.again.len() as u16))
    }

    /// How many of the chains that [`fetch`](Self::fetch) counts a process before this one had
    /// taken already.
    pub fn again(&self) -> u16 {
        if self.broken.is_some() { 0 } else { self.again.len() as u16 }
    }

    /// Takes the next chain that [`fetch`](Self::fetch) saw and resolves it into `chain`; `None`
    /// when all of them are taken.
    #[inline]
    pub fn pop(&mut self, chain: &mut DescriptorChain) -> Result<Option<u16>, QueueError> {
        if let Some(fault) = self.broken {
            return Err(QueueError::Ring(fault));
        }
        if let Some(head) = self.again.pop() {
            return self.resolve_head(head, chain);
        }
        if self.next_available == self.seen_available {
            return Ok(None);
        }
        let entry = ENTRIES + usize::from(self.next_available & (self.size - 1)) * 2;
        let head = self.available.load_u16(entry, Ordering::Relaxed);
        if head >= self.size {
            return Err(self.break_by(QueueFault::HeadOutOfRange));
        }
        self.next_available = self.next_available.wrapping_add(1);
        if let Some(inflight) = &mut self.inflight {
            inflight.take(head);
        }
        let taken = self.resolve_head(head, chain);
        self.took(head, chain);
        taken
    }

    #[inline]
    fn resolve_head(
        &self,
        head: u16,
        chain: &mut DescriptorChain,
    ) -> Result<Option<u16>, QueueError> {
        chain.segments.clear();
        chain.readable = 0;
        match self.resolve(head, chain) {
            Ok(()) => Ok(Some(head)),
            Err(fault) => Err(QueueError::Chain { head, fault }),
        }
    }

    /// Gives a chain back with the number of bytes written to it. The driver sees it after
    /// [`publish`](Self::publish).
    #[inline]
    pub fn push(&mut self, head: u16, written: u32) {
        let entry = ENTRIES + usize::from(self.next_used & (self.size - 1)) * 8;
        self.used.store_u32(entry, u32::from(head), Ordering::Relaxed);
        let written = if planted!("virtio-wrong-length") { written - 1 } else { written };
        self.used.store_u32(entry + 4, written, Ordering::Relaxed);
        self.next_used = self.next_used.wrapping_add(1);
        if let Some(inflight) = &mut self.inflight {
            inflight.give(head);
        }
    }

    /// Shows the driver everything pushed since the last call and says whether it wants to be
    /// called for it.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.next_used == self.published_used {
            return false;
        }
        // Release: the elements and the data come before the index (2.7.8.2).
        let ahead = u16::from(planted!("virtio-index-ahead"));
        self.used.store_u16(INDEX, self.next_used.wrapping_add(ahead), Ordering::Release);
        let before = std::mem::replace(&mut self.published_used, self.next_used);
        if let Some(inflight) = &mut self.inflight {
            inflight.show(self.next_used.wrapping_sub(before), self.next_used);
        }
        let last = self.called_at.replace(self.next_used);
        self.calls.is_due(&self.available, last, self.next_used)
    }

    /// Asks the driver to kick from now on; `true` when something came in meanwhile (or the ring
    /// turned out broken), so that sleeping would miss it.
    pub fn arm(&mut self) -> bool {
        if self.broken.is_some() {
            return false;
        }
        if !planted!("virtio-kick-lost") {
            self.kicks.ask(&self.used, self.next_available);
        }
        !planted!("virtio-kick-raced") && self.fetch() != Ok(0)
    }

    /// Tells the driver that kicks are not needed: the ring is polled.
    pub fn disarm(&mut self) {
        self.kicks.decline(&self.used, self.next_available);
    }

    /// Declares the ring broken: nothing more is taken from it.
    pub fn break_by(&mut self, fault: QueueFault) -> QueueError {
        self.broken = Some(fault);
        QueueError::Ring(fault)
    }

    /// What broke the ring, if anything.
    pub fn broken(&self) -> Option<QueueFault> {
        self.broken
    }

    /// Whether the front end took memory away that the queue needs.
    #[inline(always)]
    pub fn is_torn(&self) -> bool {
        self.memory.is_torn() || self.inflight.as_ref().is_some_and(Inflight::is_torn)
    }

    /// The available index to go on from when the queue is stopped and started again.
    pub fn base(&self) -> u16 {
        self.next_available
    }

    /// The memory that the queue and its buffers lie in.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Follows a chain from `head`, checks every step and collects its segments.
    #[inline]
    fn resolve(&self, head: u16, chain: &mut DescriptorChain) -> Result<(), QueueFault> {
        let mut bytes = 0u64;
        let mut index = head;
        for _ in 0..self.size {
            let descriptor = self.descriptor(index);
            if descriptor.flags & DESC_INDIRECT != 0 {
                if !self.indirect {
                    return Err(QueueFault::IndirectNotOffered);
                }
                if descriptor.flags & DESC_NEXT != 0 {
                    return Err(QueueFault::IndirectNext);
                }
                return self.resolve_indirect(&descriptor, chain, &mut bytes);
            }
            self.collect(&descriptor, chain, &mut bytes)?;
            if descriptor.flags & DESC_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
            if index >= self.size {
                return Err(QueueFault::NextOutOfRange);
            }
        }
        Err(QueueFault::Loop)
    }

    /// Follows the chain in an indirect table (2.7.5.3), which begins at its first entry.
    fn resolve_indirect(
        &self,
        table: &Descriptor,
        chain: &mut DescriptorChain,
        bytes: &mut u64,
    ) -> Result<(), QueueFault> {
        let entries = table.len / DESC_BYTES as u32;
        let whole = table.len.is_multiple_of(DESC_BYTES as u32);
        if entries == 0 || entries > u32::from(u16::MAX) || !whole {
            return Err(QueueFault::IndirectLength);
        }
        let mut index = 0;
        for _ in 0..entries {
            let mut raw = [0; DESC_BYTES];
            let at = table.address.checked_add(u64::from(index) * DESC_BYTES as u64);
            if !at.is_some_and(|at| self.memory.read(at, &mut raw)) {
                return Err(QueueFault::Address);
            }
            let (address, rest) = raw.split_at(8);
            let word = |half: &[u8]| half.try_into().map_or(0, u64::from_le_bytes);
            let descriptor = Descriptor::from_words(word(address), word(rest));
            if descriptor.flags & DESC_INDIRECT != 0 {
                return Err(QueueFault::IndirectNested);
            }
            self.collect(&descriptor, chain, bytes)?;
            if descriptor.flags & DESC_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
            if u32::from(index) >= entries {
                return Err(QueueFault::NextOutOfRange);
            }
        }
        Err(QueueFault::Loop)
    }

    #[inline(always)]
    fn descriptor(&self, index: u16) -> Descriptor {
        let at = usize::from(index) * DESC_BYTES;
        let address = self.descriptors.load_u64(at, Ordering::Relaxed);
        Descriptor::from_words(address, self.descriptors.load_u64(at + 8, Ordering::Relaxed))
    }

    /// Translates one buffer, which may lie in several adjacent regions.
    #[inline]
    fn collect(
        &self,
        descriptor: &Descriptor,
        chain: &mut DescriptorChain,
        bytes: &mut u64,
    ) -> Result<(), QueueFault> {
        let writable = descriptor.flags & DESC_WRITE != 0;
        if !writable && chain.readable < chain.segments.len() {
            return Err(QueueFault::Direction);
        }
        if descriptor.len == 0 {
            return Err(QueueFault::ZeroLength);
        }
        *bytes += u64::from(descriptor.len);
        if *bytes > u64::from(u32::MAX) {
            return Err(QueueFault::TooLong);
        }
        let (mut address, mut left) = (descriptor.address, descriptor.len);
        while left > 0 {
            let segment = self.memory.segment(address, left).ok_or(QueueFault::Address)?;
            let len = segment.len() as u32;
            chain.segments.try_push(segment).map_err(|_| QueueFault::TooManySegments)?;
            address = address.wrapping_add(u64::from(len));
            left -= len;
        }
        if !writable {
            chain.readable = chain.segments.len();
        }
        Ok(())
    }
}
