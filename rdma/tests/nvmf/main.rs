//! Both engines against each other, against a recorded Linux session, and against hostile peers.

mod bad_targets;
mod capture;
mod corruption;
mod ends;
mod fencing;
mod golden;
mod hostile;
mod lists;
mod loopback;
mod refusals;
mod saved;
