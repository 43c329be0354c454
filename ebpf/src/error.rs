//! Why steering could not be set up.

use std::io;
use std::path::PathBuf;

/// What failed, on which interface, why, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum Error {
    #[error("there is no network interface `{interface}` in this network namespace; see `ip link`")]
    NoInterface { interface: String },
    #[error(
        "not permitted to attach an XDP program to `{interface}`: run as root, or give the program \
         CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    )]
    Capability { interface: String },
    #[error(
        "the MTU of `{interface}` is too large for its driver's native XDP ({reason}); lower it \
         (`ip link set {interface} mtu 3498`) or use a driver with XDP multi-buffer support"
    )]
    Mtu { interface: String, reason: String },
    #[error(
        "`{interface}` has fewer receive queues than XDP needs (for a veth: than its peer has \
         transmit queues); see `ethtool -l`, set with `ethtool -L` or `ip link add … numrxqueues N`"
    )]
    TooFewQueues { interface: String },
    #[error(
        "another XDP program is attached to `{interface}`; detach it (`ip link set {interface} xdp \
         off`) or stop the process that attached it (`bpftool net`)"
    )]
    Occupied { interface: String },
    #[error("cannot attach the XDP program to `{interface}`: {reason}")]
    Attach { interface: String, reason: String },
    #[error(
        "the kernel refuses the XDP programs: {reason}; Linux 6.6 or newer with CONFIG_XDP_SOCKETS \
         is needed"
    )]
    Load { reason: String },
    #[error(
        "cannot keep BPF objects in {}: {source}; `mount -t bpf bpf /sys/fs/bpf` as root",
        directory.display()
    )]
    Directory { directory: PathBuf, source: io::Error },
    #[error("another process holds {}; stop it first", directory.display())]
    Held { directory: PathBuf },
    #[error("cannot pin {}: {reason}", path.display())]
    Pin { path: PathBuf, reason: String },
    #[error("queue {queue} of `{interface}` cannot be steered to its socket: {reason}")]
    Socket { interface: String, queue: u32, reason: String },
    #[error("the tunnel addresses of this host cannot be steered on `{interface}`: {reason}")]
    Vteps { interface: String, reason: String },
    #[error("cannot read the XDP counters of `{interface}`: {reason}")]
    Counters { interface: String, reason: String },
    #[error("cannot detach the XDP program from `{interface}`: {reason}")]
    Detach { interface: String, reason: String },
}

/// The error and everything it says was the reason, joined by colons.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

/// The operating system's error number at the bottom of an error.
pub(crate) fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(number);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_found_at_the_bottom() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] io::Error);
        let error = Outer(io::Error::from_raw_os_error(libc::ERANGE));
        assert_eq!(errno(&error), Some(libc::ERANGE));
        assert!(chain(&error).starts_with("outer: Numerical result out of range"));
        assert_eq!(errno(&Outer(io::Error::other("text"))), None);
    }
}
