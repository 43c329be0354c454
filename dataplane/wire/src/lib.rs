//! Header views and checksums: bytes in, named fields out. No allocation, no unsafe code, no
//! knowledge of anything above; also compiled into the XDP programs.
//!
//! `parse` reads a header from the front of a slice and says by name what is wrong with it;
//! `emit` writes one to the front of a slice. Numbers are in host order once parsed.
#![no_std]
#![forbid(unsafe_code)]

mod address;
pub mod arp;
pub mod checksum;
pub mod ecn;
pub mod ethernet;
pub mod icmp;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
mod malformed;
pub mod nd;
mod steer;
pub mod udp;
pub mod vxlan;

pub use address::{AddressError, IpPrefix, Ipv4Prefix, Ipv6Prefix, Mac};
pub use arp::Arp;
pub use checksum::Checksum;
pub use ethernet::Ethernet;
pub use ipv4::Ipv4;
pub use ipv6::Ipv6;
pub use malformed::Malformed;
pub use steer::{STEER_BYTES, STEER_V6_BYTES, Steer, steer, steer_v6, vtep};
pub use udp::Udp;
pub use vxlan::Vxlan;
