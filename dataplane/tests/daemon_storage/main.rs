//! The storage side of the daemon from outside: real daemons on loopback addresses, guests on
//! their vhost-user disks, volumes in files, in memory and at other daemons, and everything that
//! can go wrong with them. Guests' data is checked against an oracle throughout.
//!
//! Needs root for one small file system that a test mounts.

mod apply;
mod cold;
mod discovery;
#[path = "../exposition/mod.rs"]
mod exposition;
mod full;
mod guest;
mod host;
mod hostile;
mod killed;
mod kills;
mod ledger;
mod many;
mod metrics;
mod refused;
mod remote;
mod restart;
mod rights;
mod silent;
