//! Network namespaces: running a piece of code in one that has a name.
//!
//! Sockets stay in the namespace in which they were made, so a generator makes the sockets of its
//! far ends in theirs and then drives them all from one thread.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

/// A namespace cannot be entered.
#[derive(Debug, thiserror::Error)]
#[error("cannot enter network namespace `{name}`: {source}; `ip netns list` shows those there are")]
pub struct NetnsError {
    name: String,
    source: std::io::Error,
}

/// Runs `work` in the namespace `name` (as `ip netns` knows it), or where the thread is when
/// `None`, and comes back.
pub fn within<T>(name: Option<&str>, work: impl FnOnce() -> T) -> Result<T, NetnsError> {
    let Some(name) = name else { return Ok(work()) };
    let fail = |source| NetnsError { name: name.to_owned(), source };
    let home = File::open("/proc/thread-self/ns/net").map_err(fail)?;
    let there = File::open(PathBuf::from("/run/netns").join(name)).map_err(fail)?;
    enter(&there).map_err(fail)?;
    let outcome = work();
    enter(&home).map_err(fail)?;
    Ok(outcome)
}

fn enter(namespace: &File) -> std::io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_namespace_is_named() {
        let error = within(Some("no-such-namespace"), || ()).unwrap_err().to_string();
        assert!(error.contains("`no-such-namespace`") && error.contains("ip netns list"));
        assert_eq!(within(None, || 7).unwrap(), 7);
    }
}
