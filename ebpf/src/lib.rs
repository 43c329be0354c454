//! The XDP programs' loader and what both sides agree on ([`abi`]). The programs themselves are in
//! `prog`, built by `cargo xtask bpf` into the committed `outboard-xdp.o`.

pub mod abi;
mod bpffs;
mod error;
mod instance;
mod link;
mod loader;

pub use error::Error;
pub use instance::Instance;
pub use loader::{Mode, Program, Steering};
