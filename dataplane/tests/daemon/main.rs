//! The daemon from outside: two hosts as network namespaces joined by an underlay, one
//! `outboard run` on each, tenants attached by `outboard attach`, real traffic.
//!
//! Needs root, iproute2, ethtool and ping. Everything has names of this process's own and goes
//! when the test ends, however it ends.

#[path = "../netns/mod.rs"]
mod netns;

mod apply;
mod capture;
mod clean;
mod crash;
mod disk;
#[cfg(feature = "dpdk")]
mod dpdk;
mod greeting;
mod hostile;
mod hostile6;
mod interop;
mod ledger;
mod link;
mod process;
mod refused;
mod rights;
mod traffic;
mod wait;
mod world;
