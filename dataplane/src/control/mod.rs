//! Control: everything around the workers that may wait, log and allocate.

pub mod api;
pub mod machine;
pub mod netlink;
pub mod stats;
pub mod vhost;
