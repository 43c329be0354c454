//! rtnetlink: how control reads and changes the kernel's view of the network.
//!
//! Sockets block for at most [`socket::ANSWER_TIMEOUT`]; nothing here is ever called by a worker.
//! A socket belongs to the network namespace in which it was made, whatever its thread does later.

pub mod attach;
mod links;
mod netns;
mod offload;
mod socket;
pub mod underlay;

pub use netns::{Netns, NetnsError};
