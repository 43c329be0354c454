//! DPDK as far as Outboard's port uses it: the environment, one queue of one device, and the pool
//! that lends frames of the process's region to it.
//!
//! Everything unsafe about DPDK is here, behind types that are safe to use. The binding is made at
//! build time from the machine's own headers, for the few functions that are called. Source: DPDK
//! Programmer's Guide 22.11 (mbuf, mempool, ethdev) and the headers.
//! Without the feature `link` the package is empty.
#![cfg(feature = "link")]
#![allow(unsafe_code)]

mod device;
mod eal;
mod error;
mod pool;
mod queue;

pub use eal::Eal;
pub use error::{DeviceError, EalError};
pub use queue::{BURST, Lost, Memory, Queue, QueueConfig};

/// The binding.
#[allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    clippy::all,
    clippy::cast_lossless,
    clippy::undocumented_unsafe_blocks,
    unnecessary_transmutes,
    unused_qualifications,
    dead_code,
    reason = "made by bindgen"
)]
mod raw {
    include!(concat!(env!("OUT_DIR"), "/raw.rs"));
}
