//! What a split queue has in flight, kept where it survives this process (QEMU,
//! docs/interop/vhost-user.rst, "Inflight I/O tracking").
//!
//! The front end holds the region's memory. A device that comes back after a crash is given it
//! again, and finds which heads were taken and not given back, and in which order they were taken.
//!
//! Layout per queue, little-endian: features u64, version u16, desc_num u16, last_batch_head u16,
//! used_idx u16; then per descriptor inflight u8, five bytes of padding, next u16, counter u64.
//! The order of the stores is what makes it right at whichever instruction the process dies:
//! counter, then inflight; and `next`, `last_batch_head`, the used ring's index, inflight of the
//! batch, `used_idx`.

use outboard_dma::{GuestError, GuestMemory, GuestRegion, Window};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
const VERSION_AT: usize = 8;
const COUNT_AT: usize = 10;
const LAST_BATCH_HEAD_AT: usize = 12;
const USED_INDEX_AT: usize = 14;
/// In an entry. The byte that says "in flight" is stored with the padding behind it.
const NEXT: usize = 6;
const COUNTER: usize = 8;
/// The layout's version; 0 in a region that was not used yet.
const VERSION: u16 = 1;
/// Queues begin at multiples of it.
const ALIGN_BYTES: usize = 64;
/// Where the region lies in the addresses of its own mapping.
const BASE: u64 = 1 << 16;

/// Why an in-flight region cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InflightError {
    /// The numbers do not fit together.
    #[error("an in-flight region of {bytes} bytes for {queues} queues of {queue_size} entries")]
    Shape {
        /// Its length.
        bytes: u64,
        /// Its queues.
        queues: u16,
        /// Their entries.
        queue_size: u16,
    },
    /// It cannot be mapped.
    #[error("the in-flight region: {0}")]
    Memory(#[from] GuestError),
    /// The queue is not in it.
    #[error("queue {index} of {size} entries is not in the in-flight region")]
    Queue {
        /// Which queue.
        index: u16,
        /// Its entries.
        size: u16,
    },
    /// It was written by something else.
    #[error("the in-flight region has version {version} and {count} entries; is it another's?")]
    Foreign {
        /// The version it claims.
        version: u16,
        /// The entries it claims.
        count: u16,
    },
    /// A descriptor that does not exist is in flight.
    #[error("the in-flight region names descriptor {0}, which the ring does not have")]
    Head(u16),
}

/// The in-flight memory of one front end's queues.
#[derive(Clone, Debug)]
pub struct InflightRegion {
    memory: Arc<GuestMemory>,
    queues: u16,
    queue_size: u16,
}

impl InflightRegion {
    /// A new region, and the file to hand to the front end.
    pub fn make(queues: u16, queue_size: u16) -> Result<(InflightRegion, File), InflightError> {
        let bytes = bytes(queues, queue_size);
        let (memory, _, file) = GuestMemory::share(bytes, 0, BASE)?;
        Ok((InflightRegion { memory, queues, queue_size }, file))
    }

    /// A region that the front end has kept: `bytes` from `offset_bytes` of `file`.
    pub fn adopt(
        file: File,
        offset_bytes: u64,
        bytes: u64,
        queues: u16,
        queue_size: u16,
    ) -> Result<InflightRegion, InflightError> {
        if queues == 0 || queue_size == 0 || bytes < self::bytes(queues, queue_size) {
            return Err(InflightError::Shape { bytes, queues, queue_size });
        }
        let region = GuestRegion {
            guest_address: 0,
            bytes,
            user_address: BASE,
            file_offset_bytes: offset_bytes,
        };
        let memory = GuestMemory::map(&[(region, file)])?;
        Ok(InflightRegion { memory, queues, queue_size })
    }

    /// The part of queue `index`, which has `size` entries.
    pub fn queue(&self, index: u16, size: u16) -> Result<Inflight, InflightError> {
        if index >= self.queues || size > self.queue_size {
            return Err(InflightError::Queue { index, size });
        }
        let stride = queue_bytes(self.queue_size);
        let at = BASE + u64::from(index) * stride as u64;
        let window = self.memory.window("in-flight region", at, stride, 8)?;
        Ok(Inflight {
            memory: Arc::clone(&self.memory),
            window,
            count: self.queue_size,
            size,
            last_batch_head: 0,
            counter: 0,
        })
    }
}

/// Length of a region.
pub fn bytes(queues: u16, queue_size: u16) -> u64 {
    u64::from(queues) * queue_bytes(queue_size) as u64
}

fn queue_bytes(queue_size: u16) -> usize {
    (HEADER_BYTES + usize::from(queue_size) * ENTRY_BYTES).next_multiple_of(ALIGN_BYTES)
}

/// The in-flight memory of one queue.
#[derive(Debug)]
pub struct Inflight {
    memory: Arc<GuestMemory>,
    window: Window,
    /// Entries of the region, and of the ring: the ring may have fewer.
    count: u16,
    size: u16,
    last_batch_head: u16,
    /// What the next chain taken is numbered.
    counter: u64,
}

impl Inflight {
    /// Whether no device has used it yet.
    pub fn is_new(&self) -> bool {
        self.window.load_u16(VERSION_AT, Ordering::Acquire) == 0
    }

    /// Goes on from what the region says, for a used ring whose index is `used_index`. Returns the
    /// heads in flight in the order in which they were taken.
    pub fn resume(&mut self, used_index: u16) -> Result<Vec<u16>, InflightError> {
        let version = self.window.load_u16(VERSION_AT, Ordering::Acquire);
        let count = self.window.load_u16(COUNT_AT, Ordering::Acquire);
        match version {
            0 => self.begin_new(used_index),
            VERSION if count == self.count => self.settle_batch(used_index),
            _ => return Err(InflightError::Foreign { version, count }),
        }
        let mut taken = Vec::new();
        for head in (0..self.count).filter(|head| self.is_taken(*head)) {
            if head >= self.size {
                return Err(InflightError::Head(head));
            }
            taken.push((self.window.load_u64(entry(head) + COUNTER, Ordering::Acquire), head));
        }
        taken.sort_unstable();
        self.counter = taken.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        self.last_batch_head = self.window.load_u16(LAST_BATCH_HEAD_AT, Ordering::Acquire);
        Ok(taken.into_iter().map(|(_, head)| head).collect())
    }

    /// A chain was taken.
    #[inline]
    pub fn take(&mut self, head: u16) {
        self.window.store_u64(entry(head) + COUNTER, self.counter, Ordering::Release);
        self.counter = self.counter.wrapping_add(1);
        self.window.store_u16(entry(head), 1, Ordering::Release);
    }

    /// A chain was written to the used ring, which the driver does not see yet.
    #[inline]
    pub fn give(&mut self, head: u16) {
        self.window.store_u16(entry(head) + NEXT, self.last_batch_head, Ordering::Release);
        self.last_batch_head = head;
        self.window.store_u16(LAST_BATCH_HEAD_AT, head, Ordering::Release);
    }

    /// The used ring's index is `used_index` now, which shows the last `batch` chains given.
    #[inline]
    pub fn show(&mut self, batch: u16, used_index: u16) {
        self.clear(self.last_batch_head, batch);
        self.window.store_u16(USED_INDEX_AT, used_index, Ordering::Release);
    }

    /// Whether the front end took the memory away.
    #[inline(always)]
    pub fn is_torn(&self) -> bool {
        self.memory.is_torn()
    }

    fn is_taken(&self, head: u16) -> bool {
        self.window.load_u16(entry(head), Ordering::Acquire) & 0xff != 0
    }

    /// Clears `batch` entries of the list that begins at `head`. The list is the front end's to
    /// spoil: it is followed only as far as there are entries.
    #[inline]
    fn clear(&self, mut head: u16, batch: u16) {
        for _ in 0..batch {
            if head >= self.count {
                break;
            }
            self.window.store_u16(entry(head), 0, Ordering::Release);
            head = self.window.load_u16(entry(head) + NEXT, Ordering::Relaxed);
        }
    }

    fn begin_new(&mut self, used_index: u16) {
        (0..self.count).for_each(|head| self.window.store_u16(entry(head), 0, Ordering::Release));
        self.window.store_u16(COUNT_AT, self.count, Ordering::Release);
        self.window.store_u16(LAST_BATCH_HEAD_AT, 0, Ordering::Release);
        self.window.store_u16(USED_INDEX_AT, used_index, Ordering::Release);
        self.window.store_u16(VERSION_AT, VERSION, Ordering::Release);
    }

    /// The process may have died after it showed the last batch and before it had cleared it.
    fn settle_batch(&mut self, used_index: u16) {
        let known = self.window.load_u16(USED_INDEX_AT, Ordering::Acquire);
        let batch = used_index.wrapping_sub(known);
        if batch != 0 {
            let head = self.window.load_u16(LAST_BATCH_HEAD_AT, Ordering::Acquire);
            self.clear(head, batch.min(self.count));
            self.window.store_u16(USED_INDEX_AT, used_index, Ordering::Release);
        }
    }
}

/// Where a head's entry is.
#[inline(always)]
fn entry(head: u16) -> usize {
    HEADER_BYTES + usize::from(head) * ENTRY_BYTES
}
