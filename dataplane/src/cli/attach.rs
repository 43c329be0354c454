//! `outboard attach` and `outboard detach`

use super::{Failure, load};
use clap::Args;
use outboard::control::netlink::attach::{Attached, attach, detach};
use std::path::PathBuf;

/// Give a container the interface of a port
///
/// Makes a veth pair: one end is the port's interface on this host, the other the container's,
/// with the MAC address, address, MTU and default route of the port, and without transmit
/// offloads (Outboard takes whole packets with whole checksums). Attach before the daemon starts:
/// it needs the interface. When a container was made anew, attach it again: a daemon that runs
/// takes the new interface. Attaching twice repairs the settings; what fails leaves nothing behind.
#[derive(Debug, Args)]
pub struct Attach {
    /// The configuration that has the port
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    /// The container's network namespace: a name of `ip netns`, a path, or a process id
    #[arg(long, short, value_name = "NAME|PATH|PID")]
    netns: String,
    /// The port's name in the configuration
    #[arg(long, short, value_name = "NAME")]
    port: String,
    /// The name of the interface in the container
    #[arg(long, short, value_name = "NAME", default_value = "eth0")]
    ifname: String,
}

impl Attach {
    pub fn run(self) -> Result<(), Failure> {
        let plan = load(&self.config)?;
        let attached = attach(&plan, &self.port, &self.netns, &self.ifname)?;
        let again = match attached {
            Attached::New => "",
            Attached::Again => " already; its settings are right now",
        };
        println!("port \"{}\" is {} in \"{}\"{again}", self.port, self.ifname, self.netns);
        Ok(())
    }
}

/// Take the interface of a port away from its container
///
/// Removes both ends of the veth pair that `outboard attach` made. Detaching again does nothing.
#[derive(Debug, Args)]
pub struct Detach {
    /// The configuration that has the port
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    /// The port's name in the configuration
    #[arg(long, short, value_name = "NAME")]
    port: String,
    /// Only if it is attached to this network namespace
    #[arg(long, short, value_name = "NAME|PATH|PID")]
    netns: Option<String>,
}

impl Detach {
    pub fn run(self) -> Result<(), Failure> {
        let plan = load(&self.config)?;
        let was = detach(&plan, &self.port, self.netns.as_deref())?;
        println!("port \"{}\" {}", self.port, if was { "is detached" } else { "was not attached" });
        Ok(())
    }
}
