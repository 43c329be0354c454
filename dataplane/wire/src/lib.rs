//! Header views and checksums: bytes in, named fields out. No allocation, no unsafe code, no
//! knowledge of anything above; also compiled into the XDP programs.
#![no_std]
#![forbid(unsafe_code)]

mod address;

pub use address::{AddressError, Ipv4Prefix, Mac};
