//! What simulations are made of: seeded randomness, a virtual clock, and parts that fail.
//!
//! Everything follows from one `u64` seed: the same seed and the same calls give the same run on
//! every machine. Time is `now_ns: u64`, moved only by the caller. Nothing here knows what is
//! simulated: links carry byte vectors, streams carry bytes, the disk holds blocks.
#![forbid(unsafe_code)]

mod disk;
mod events;
mod link;
mod rng;
mod seeds;
mod stream;

pub use disk::{Disk, DiskFaults, DiskOp, DiskOutcome, DiskStatistics, Ended, SECTOR_BYTES};
pub use events::Events;
pub use link::{Arrival, Link, LinkFaults, LinkStatistics};
pub use rng::{MILLION, Rng};
pub use seeds::for_each_seed;
pub use stream::{Stream, StreamFaults};
