//! rtnetlink: how control reads and changes the kernel's view of the network.
//!
//! Sockets block for at most [`socket::ANSWER_TIMEOUT`]; nothing here is ever called by a worker.
//! A socket belongs to the network namespace in which it was made, whatever its thread does later.

mod addresses;
pub mod attach;
mod links;
mod lookup;
mod netns;
mod offload;
mod socket;
#[cfg(test)]
mod tests;
mod too_big;
pub mod underlay;

pub use netns::{Netns, NetnsError};

use std::io;

/// The queues that an interface in the namespace of the calling thread receives on; `None` when
/// its driver does not tell.
pub fn receive_queues(interface: &str) -> io::Result<Option<u32>> {
    offload::receive_queues(interface)
}

/// The numbers of the interfaces of these names, in the namespace of the calling thread.
pub fn indices<'a>(names: impl Iterator<Item = &'a str>) -> io::Result<Vec<Option<u32>>> {
    let mut netlink = socket::Rtnetlink::route()?;
    let mut index = |name| Ok(links::find(&mut netlink, name)?.map(|link| link.index));
    names.map(&mut index).collect()
}

/// The MTU of the interface of this name, if there is one, in the namespace of the calling thread.
pub fn mtu(interface: &str) -> io::Result<Option<u32>> {
    let mut netlink = socket::Rtnetlink::route()?;
    Ok(links::find(&mut netlink, interface)?.map(|link| link.mtu))
}

/// What the interface of this number is called, if there is one, in the namespace of the calling
/// thread.
pub fn name(index: u32) -> io::Result<Option<String>> {
    let mut netlink = socket::Rtnetlink::route()?;
    Ok(links::find_index(&mut netlink, index)?.map(|link| link.name))
}

/// The numbers of the XDP programs on the interfaces of these names, in the namespace of the
/// calling thread.
pub fn xdp_programs<'a>(names: impl Iterator<Item = &'a str>) -> io::Result<Vec<u32>> {
    let mut netlink = socket::Rtnetlink::route()?;
    let mut programs = Vec::new();
    for name in names {
        programs.extend(links::find(&mut netlink, name)?.and_then(|link| link.xdp_program));
    }
    Ok(programs)
}

/// Which of the links with these numbers are up and have their carrier, in the namespace of the
/// calling thread.
pub fn are_up(indices: impl Iterator<Item = u32>) -> io::Result<Vec<bool>> {
    let mut netlink = socket::Rtnetlink::route()?;
    let mut up = |index| Ok(links::find_index(&mut netlink, index)?.is_some_and(|link| link.up));
    indices.map(&mut up).collect()
}
