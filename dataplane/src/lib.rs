//! The Outboard data plane. `worker` is the loop; every other module is a room that it visits.
//! ARCHITECTURE.md tells which room may know which.

#[macro_use(planted)]
extern crate outboard_rdma;

pub mod bell;
pub mod capture;
pub mod clock;
pub mod config;
pub mod control;
pub mod counters;
pub mod drop;
pub mod ledger;
pub mod packet;
pub mod port;
pub mod switch;
pub mod virtio;
pub mod volume;
pub mod worker;

/// `dataplane/order` compiles the files that name it once more, against loom's.
use std::sync::atomic as sync;
