//! One frame: the unit in which the kernel, a NIC and workers exchange packet memory.
//!
//! Layout of a frame: `[0, 16)` link to the next frame of a [`Chain`](crate::Chain), `[16, 256)`
//! headroom for encapsulation, `[256, 4096)` data as received. The kernel writes only behind
//! `HEADROOM_BYTES` (XDP_PACKET_HEADROOM; Linux `Documentation/networking/af_xdp.rst`).

use std::ptr::NonNull;

/// Size and alignment of a frame, and of an AF_XDP chunk: one page.
pub const FRAME_BYTES: usize = 4096;
/// Where received data starts in a frame: XDP_PACKET_HEADROOM.
pub const HEADROOM_BYTES: usize = 256;
/// The most data the kernel puts into one frame.
pub const DATA_BYTES: usize = FRAME_BYTES - HEADROOM_BYTES;
/// Bytes at the front of a frame that belong to [`Chain`](crate::Chain).
pub const LINK_BYTES: usize = 16;

/// The only right to read and write one frame of the process's [`Region`](crate::Region).
///
/// Not `Clone`: a frame has one owner. It has no destructor either: a frame that is dropped
/// rather than given back to a [`FreeList`], a chain or the kernel is lost until the process ends,
/// which the conservation checks (free + used = total) find.
#[derive(Debug)]
#[must_use = "a frame that is dropped is lost"]
pub struct Frame(NonNull<u8>);

// SAFETY: a Frame is the unique owner of its bytes, like Box<[u8; FRAME_BYTES]>.
unsafe impl Send for Frame {}

impl Frame {
    /// # Safety
    /// `start` is the start of a frame of a live region, aligned to `FRAME_BYTES`, and nobody else
    /// (no other `Frame`, not the kernel) may use that frame while the returned value lives.
    pub(crate) unsafe fn from_start(start: NonNull<u8>) -> Frame {
        debug_assert_eq!(start.as_ptr() as usize % FRAME_BYTES, 0);
        Frame(start)
    }

    /// The frame's first byte.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.0
    }

    /// All bytes; index `HEADROOM_BYTES` is where received data begins.
    #[inline(always)]
    pub fn bytes(&self) -> &[u8; FRAME_BYTES] {
        // SAFETY: self owns these FRAME_BYTES bytes of a mapping that is never removed.
        unsafe { self.0.cast().as_ref() }
    }

    /// As [`bytes`](Self::bytes), to write.
    #[inline(always)]
    pub fn bytes_mut(&mut self) -> &mut [u8; FRAME_BYTES] {
        // SAFETY: as in bytes; &mut self makes it exclusive.
        unsafe { self.0.cast().as_mut() }
    }
}

/// A worker's stock of frames, last in first out so that warm frames are used first.
#[derive(Debug)]
pub struct FreeList {
    frames: Vec<Frame>,
}

impl FreeList {
    /// A list with room for `capacity` frames, so that giving back never allocates.
    pub fn with_capacity(capacity: usize) -> FreeList {
        FreeList { frames: Vec::with_capacity(capacity) }
    }

    /// Takes one frame, or `None` when the stock is used up.
    #[inline(always)]
    pub fn take(&mut self) -> Option<Frame> {
        self.frames.pop()
    }

    /// Gives one frame back.
    #[inline(always)]
    pub fn give(&mut self, frame: Frame) {
        debug_assert!(self.frames.len() < self.frames.capacity(), "more frames than were made");
        self.frames.push(frame);
    }

    /// Frames in stock.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether the stock is used up.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}
