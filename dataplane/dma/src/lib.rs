//! Memory that somebody else may touch: the frames shared with the kernel, and guests' memory.
//!
//! The workspace's unsafe code lives in this package. Everything outside deals in owned
//! [`Frame`]s, [`Chain`]s of them, and [`Segment`]s (checked addresses that are only ever copied
//! from or to): no reference into memory that a guest, a peer or the kernel may write exists.
//!
//! Two promises are the caller's and not the type system's, so that an I/O costs no reference
//! count; a segment that breaks one is a bug of ours, and no guest or peer can bring it about:
//! - who takes a [`Segment`] of a guest's memory holds that memory until the I/O has ended
//!   ([`GuestMemory::hold`]; `volume/disk` does it for every request);
//! - who takes a [`Segment`] of a frame keeps the frame, and does not touch it, until the I/O has
//!   ended ([`Segment::of_frame`]; the pool of an export does it). Frames are never unmapped.
#![allow(unsafe_code)]

mod allocations;
mod chain;
mod eventfd;
mod file_ring;
mod frame;
mod guest;
mod hint;
mod lent;
mod pages;
mod poll;
mod region;
mod ring;
mod segment;
mod sigbus;
mod sigsys;
pub mod socket;
mod sync;
pub mod wake;
mod window;
mod xsk;

pub use allocations::CountingAllocator;
pub use chain::{Chain, MAX_FRAMES};
pub use eventfd::{EventFd, Signaller};
pub use file_ring::{BOUNCE_BYTES, Direction, FileRing};
pub use frame::{DATA_BYTES, FRAME_BYTES, Frame, FreeList, HEADROOM_BYTES, LINK_BYTES};
pub use guest::{GuestError, GuestMemory, GuestRegion, MAX_REGIONS};
pub use hint::prefetch;
pub use lent::Lent;
pub use pages::Pages;
pub use poll::PollList;
pub use region::{Backing, Region, RegionError};
pub use segment::{MAX_SEGMENTS, Segment, Segments};
pub use sigsys::{ForbiddenCalls, count_forbidden_calls, forbidden_calls};
pub use window::Window;
pub use xsk::{Kick, MIN_RING, RingSizes, Xsk, XskError, XskStatistics};
