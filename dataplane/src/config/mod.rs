//! One TOML file in, a checked [`Plan`] out. After this nothing can be wrong in itself; what is
//! left to fail is the machine (an interface that is missing, a socket path in use).

pub mod plan;

pub use plan::Plan;
