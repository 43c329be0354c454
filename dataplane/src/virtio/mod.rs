//! Virtio devices: rings in guest memory, and the vhost-user protocol that hands them over.

pub mod blk;
pub mod driver;
pub mod driver_ring;
pub mod fault;
pub mod inflight;
pub mod mailbox;
pub mod notify;
pub mod queue;
pub mod vhost_user;
