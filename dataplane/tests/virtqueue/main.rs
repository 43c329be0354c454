//! The split virtqueue: every fault by its name, any layout of a block request, driver against
//! device with a model, and guest memory full of anything at all.

mod disk;
mod faults;
mod fuzz;
mod guest;
mod inflight;
mod model;
#[path = "../rig/mod.rs"]
mod rig;
