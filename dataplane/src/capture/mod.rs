//! Packets copied on their way, for people: a tap in a worker's network room, a byte ring to
//! control. A tap never delays a packet: what does not fit into the ring is counted as missed.

mod filter;
mod look;
mod tap;

pub use filter::{Filter, FilterError};
pub use look::{Headers, Look};
pub use tap::{Drain, RING_BYTES, Record, SNAP_BYTES_MAX, Stage, Tap, Wanted, tap};
