//! Control: everything around the workers that may wait, log and allocate.

pub mod api;
mod assemble;
mod capture;
mod confine;
pub mod connect;
mod dpdk;
mod house;
mod ledger;
pub mod listen;
pub mod local_socket;
mod machine;
mod metrics;
pub mod netlink;
mod opening;
mod ports;
pub mod run;
mod snapshot;
pub mod stats;
mod stores;
pub mod vhost;
mod ways;
mod workers;
