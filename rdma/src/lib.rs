//! Block transports as sans-IO engines: bytes and `now_ns` in, bytes out. They know no port, no
//! switch and no volume.

#[macro_use]
mod planted;
pub mod nvmf;

#[cfg(outboard_planted)]
pub use planted::PLANTED;
