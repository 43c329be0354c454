//! Why DPDK could not be had, with what to do about it.

use crate::raw;
use std::ffi::CStr;

/// Why DPDK's environment did not come up.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EalError {
    /// An argument that would end the process, or that cannot be passed on.
    #[error("`{argument}` in `eal` of [dpdk] {why}")]
    Argument {
        /// The argument.
        argument: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It refused.
    #[error(
        "DPDK's environment did not start with `{arguments}`: {reason}; what it said stands \
         above; without huge pages want `--no-huge`, without PCI devices `--no-pci`, in `eal` of \
         [dpdk]"
    )]
    Refused {
        /// All arguments.
        arguments: String,
        /// DPDK's reason.
        reason: String,
    },
    /// It can start once in a process, with one set of arguments.
    #[error("DPDK's environment runs with `{running}`; other arguments need a restart")]
    Running {
        /// The arguments that it runs with.
        running: String,
    },
}

/// Why a queue could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No driver took the device.
    #[error(
        "DPDK has no device `{device}`: {reason}; want a driver's name and arguments as in \
         `net_af_packet0,iface=eth1`, or the PCI address of a NIC bound to a driver of DPDK \
         (`dpdk-devbind.py --status`)"
    )]
    NoDevice {
        /// What was asked for.
        device: String,
        /// DPDK's reason.
        reason: String,
    },
    /// Another port of this process has it.
    #[error("the DPDK device `{device}` is another port's already")]
    Taken {
        /// The device.
        device: String,
    },
    /// It comes and goes with the process alone.
    #[error(
        "the DPDK device `{device}` is on the bus `{bus}`, whose devices cannot come while the \
         daemon runs; restart the daemon with it in its file"
    )]
    Fixed {
        /// The device.
        device: String,
        /// Its bus.
        bus: String,
    },
    /// It does not carry packets of that size.
    #[error(
        "the DPDK device `{device}` carries no packets of {mtu} bytes (its largest is {most}); \
         lower `mtu` of that [[port]], or those of the tenants behind the uplink"
    )]
    Mtu {
        /// The device.
        device: String,
        /// The MTU that was asked for.
        mtu: u16,
        /// The most that it has.
        most: u16,
    },
    /// The worker has too few frames for its rings.
    #[error(
        "too few frames for the DPDK device `{device}`: {wanted} are needed; raise `region_mib` \
         in [runtime]"
    )]
    Frames {
        /// The device.
        device: String,
        /// Frames that its rings need.
        wanted: usize,
    },
    /// A call failed.
    #[error("{call} for the DPDK device `{device}`: {reason}")]
    Call {
        /// What was done.
        call: &'static str,
        /// The device.
        device: String,
        /// DPDK's reason.
        reason: String,
    },
}

/// The text of an error number of DPDK's, which also has numbers of its own; the sign is ignored.
pub(crate) fn text(number: i32) -> String {
    // SAFETY: the function takes any number and returns a NUL-terminated text that is valid until
    // this thread asks again; it is copied here.
    let text = unsafe { CStr::from_ptr(raw::rte_strerror(number.saturating_abs())) };
    text.to_string_lossy().into_owned()
}

/// The reason of the last failure on this thread.
pub(crate) fn last() -> String {
    // SAFETY: reads a thread-local number.
    text(unsafe { raw::shim_errno() })
}
