//! Disks' contents. The promise that every volume keeps:
//!
//! - `submit` takes an I/O or says [`Full`] and has no effect; it never blocks.
//! - Every I/O taken ends exactly once, through `reap`, in any order.
//! - Segments stay valid until then: the submitter's duty.
//! - A flush ends after everything that ended before it was submitted is on stable media.
//! - Reads of what was never written give zeros.
//! - After a discard a read gives zeros or the old data, after write-zeroes it gives zeros; both
//!   happen block by block, and so does a compare.

#[cfg(test)]
pub(crate) mod conformance;
pub mod disk;
pub mod export;
mod file;
mod latency;
mod mem;
mod null;
pub mod remote;
mod timing;

pub use file::{File, FileCounters, FileError};
pub use latency::Latencies;
pub use mem::Mem;
pub use null::Null;
pub use remote::Remote;
pub use timing::Timing;

use arrayvec::ArrayVec;
use outboard_dma::{MAX_SEGMENTS, Segment};
use std::os::fd::RawFd;

/// What an I/O does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// From the volume into the segments.
    Read,
    /// From the segments to the volume.
    Write,
    /// Make everything that has ended durable; no range, no segments.
    Flush,
    /// The range is not needed any more: its space may be given back. No segments.
    Discard,
    /// The range reads as zeros from now on. No segments.
    WriteZeroes,
    /// Ends as `Miscompare` unless the volume holds what is in the segments.
    Compare,
}

impl Op {
    /// Whether it changes the content.
    pub fn is_change(self) -> bool {
        matches!(self, Op::Write | Op::Discard | Op::WriteZeroes)
    }

    /// The name in ledgers.
    pub fn name(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Write => "write",
            Op::Flush => "flush",
            Op::Discard => "discard",
            Op::WriteZeroes => "write-zeroes",
            Op::Compare => "compare",
        }
    }

    /// Whether its length is `range_bytes`, and not that of segments.
    pub fn is_ranged(self) -> bool {
        matches!(self, Op::Discard | Op::WriteZeroes)
    }
}

/// Names an I/O among those in flight: chosen by the submitter, returned in [`Done`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag {
    /// Which of the volume's users (a disk, an export) on this worker.
    pub owner: u16,
    /// The user's own number.
    pub slot: u16,
}

/// One I/O. `offset_bytes` and the length are multiples of the volume's block size, checked by
/// the volume.
#[derive(Clone, Copy, Debug)]
pub struct Io<'a> {
    /// Returned with the outcome.
    pub tag: Tag,
    /// What to do.
    pub op: Op,
    /// Where on the volume.
    pub offset_bytes: u64,
    /// The length of a `Discard` or `WriteZeroes`; 0 otherwise.
    pub range_bytes: u64,
    /// The data's place, in order; none for an operation without data.
    pub segments: &'a [Segment],
}

impl Io<'_> {
    /// Length of the data, or of the range.
    #[inline]
    pub fn bytes(&self) -> u64 {
        if self.op.is_ranged() {
            return self.range_bytes;
        }
        self.segments.iter().map(|segment| segment.len() as u64).sum()
    }
}

/// The outcome of one I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// The range leaves the volume.
    OutOfRange,
    /// Offset or length is not a multiple of the block size.
    Unaligned,
    /// The volume is read-only.
    ReadOnly,
    /// The operation is not known, or it has more than [`MAX_SEGMENTS`] segments.
    Unsupported,
    /// The medium failed.
    Media,
    /// The medium is full.
    NoSpace,
    /// The connection to the target was lost while the I/O was in flight.
    ConnectionLost,
    /// There is no connection to the target now.
    NotConnected,
    /// The target refused it.
    Target,
    /// The daemon stopped or the device went away before it ended.
    Aborted,
    /// A compare found other data.
    Miscompare,
    /// The target came back with another medium: what was written is not there.
    MediumReplaced,
    /// It belongs to an epoch of the past.
    Stale,
    /// A flush: the target's machine has started again, and changes that had ended well and were
    /// not flushed may be lost.
    WritesLost,
}

impl Status {
    /// Every status, in the order of their discriminants.
    pub const ALL: &[Status] = &[
        Status::Ok,
        Status::OutOfRange,
        Status::Unaligned,
        Status::ReadOnly,
        Status::Unsupported,
        Status::Media,
        Status::NoSpace,
        Status::ConnectionLost,
        Status::NotConnected,
        Status::Target,
        Status::Aborted,
        Status::Miscompare,
        Status::MediumReplaced,
        Status::Stale,
        Status::WritesLost,
    ];

    /// The name in counters and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::OutOfRange => "out_of_range",
            Status::Unaligned => "unaligned",
            Status::ReadOnly => "read_only",
            Status::Unsupported => "unsupported",
            Status::Media => "media",
            Status::NoSpace => "no_space",
            Status::ConnectionLost => "connection_lost",
            Status::NotConnected => "not_connected",
            Status::Target => "target",
            Status::Aborted => "aborted",
            Status::Miscompare => "miscompare",
            Status::MediumReplaced => "medium_replaced",
            Status::Stale => "stale",
            Status::WritesLost => "writes_lost",
        }
    }
}

/// One ended I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// As submitted.
    pub tag: Tag,
    /// How it ended.
    pub status: Status,
    /// When it reached the medium and came back, from a volume that keeps times.
    pub marks: Marks,
}

impl Done {
    /// An outcome without times.
    pub fn new(tag: Tag, status: Status) -> Done {
        Done { tag, status, marks: Marks::default() }
    }
}

/// Times of one I/O below the volume, for the ledger; 0: not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// When the kernel was told of it, or its first command was with the socket.
    pub told_ns: u64,
    /// When its completion, or its last answer, was first seen.
    pub answered_ns: u64,
}

/// Ended I/Os handed over at once.
pub type Dones = ArrayVec<Done, 64>;

/// The volume cannot take another I/O now; try again after `reap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A volume's size and unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes per block: 512 or 4096.
    pub block_bytes: u32,
    /// Blocks in the volume.
    pub blocks: u64,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl Geometry {
    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.blocks * u64::from(self.block_bytes)
    }

    /// What is wrong with the I/O for a volume of this geometry, if anything.
    #[inline]
    pub fn check(&self, io: &Io) -> Result<(), Status> {
        if io.op == Op::Flush {
            return Ok(());
        }
        let bytes = io.bytes();
        let block = u64::from(self.block_bytes);
        if io.op.is_change() && self.read_only {
            return Err(Status::ReadOnly);
        }
        if io.segments.len() > MAX_SEGMENTS {
            return Err(Status::Unsupported);
        }
        if !io.offset_bytes.is_multiple_of(block) || !bytes.is_multiple_of(block) {
            return Err(Status::Unaligned);
        }
        match io.offset_bytes.checked_add(bytes) {
            Some(end) if end <= self.bytes() => Ok(()),
            _ => Err(Status::OutOfRange),
        }
    }
}

/// Why a volume could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The kernel refused the memory.
    #[error("cannot map {mib} MiB for a memory volume: {source}; make it smaller, or free memory")]
    Memory {
        /// The volume's size.
        mib: u64,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// A file volume could not be opened.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A volume as a worker sees it.
pub trait BlockDevice {
    /// Size and unit; fixed while the volume lives.
    fn geometry(&self) -> Geometry;

    /// Starts an I/O, or has no effect.
    fn submit(&mut self, now_ns: u64, io: &Io) -> Result<(), Full>;

    /// Something like this may be submitted soon: a hint, which has no effect but on speed.
    fn expect(&self, _op: Op, _offset_bytes: u64, _bytes: u32) {}

    /// Tells the kernel or the peer about what was submitted since the last call, and appends
    /// what has ended, as far as `done` has room.
    fn reap(&mut self, now_ns: u64, done: &mut Dones);

    /// Takes an I/O back that nobody works on or can begin to work on now: it ends as `Aborted`.
    /// Nothing happens to any other.
    fn withdraw(&mut self, _tag: Tag) {}

    /// I/Os taken and not yet reaped.
    fn in_flight(&self) -> u32;

    /// A descriptor that becomes readable when `reap` may find something, to sleep on.
    fn wake_fd(&self) -> Option<RawFd>;
}

/// Any kind of volume: the kind is looked at once per call.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a worker has a few volumes, and touches them often")]
pub enum Volume {
    /// In memory.
    Mem(Mem),
    /// Nowhere.
    Null(Null),
    /// In a file or on a block device.
    File(File),
    /// At an NVMe/TCP target.
    Remote(Remote),
}

/// Calls the same verb of whichever volume it is.
macro_rules! each {
    ($volume:expr, $inner:ident => $call:expr) => {
        match $volume {
            Volume::Mem($inner) => $call,
            Volume::Null($inner) => $call,
            Volume::File($inner) => $call,
            Volume::Remote($inner) => $call,
        }
    };
}

impl Volume {
    /// Has I/Os carry [`Marks`] from now on, or not.
    pub fn keep_times(&mut self, is_on: bool) {
        match self {
            Volume::Mem(_) | Volume::Null(_) => {}
            Volume::File(file) => file.keep_times(is_on),
            Volume::Remote(remote) => remote.keep_times(is_on),
        }
    }
}

impl BlockDevice for Volume {
    fn geometry(&self) -> Geometry {
        each!(self, volume => volume.geometry())
    }

    #[inline]
    fn submit(&mut self, now_ns: u64, io: &Io) -> Result<(), Full> {
        each!(self, volume => volume.submit(now_ns, io))
    }

    #[inline]
    fn expect(&self, op: Op, offset_bytes: u64, bytes: u32) {
        each!(self, volume => volume.expect(op, offset_bytes, bytes));
    }

    #[inline]
    fn reap(&mut self, now_ns: u64, done: &mut Dones) {
        each!(self, volume => volume.reap(now_ns, done));
    }

    fn withdraw(&mut self, tag: Tag) {
        each!(self, volume => volume.withdraw(tag));
    }

    fn in_flight(&self) -> u32 {
        each!(self, volume => volume.in_flight())
    }

    fn wake_fd(&self) -> Option<RawFd> {
        each!(self, volume => volume.wake_fd())
    }
}
