//! A vhost-user disk from end to end: our driver, a real socket, our device, a memory volume; then
//! drivers that misbehave, front ends that come and go, and a backend that is not ours.

mod calls;
mod contain;
mod foreign;
mod hostile;
mod io;
mod manual;
#[path = "../rig/mod.rs"]
mod rig;
mod session;
mod socket;
