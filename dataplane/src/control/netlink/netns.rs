//! Network namespaces: how users name them, and running something inside one.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::PathBuf;

/// Where `ip netns add` keeps names.
const NAMES: &str = "/run/netns";

/// A network namespace that is held open.
#[derive(Debug)]
pub struct Netns {
    given: String,
    file: File,
}

/// Why a namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// There is none of this name.
    #[error(
        "no network namespace \"{given}\": {path} does not exist; give a name that `ip netns list` \
         shows, a path, or the process id of a container"
    )]
    Missing {
        /// As the user gave it.
        given: String,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// It exists but cannot be opened.
    #[error("cannot open the network namespace {path}: {source}")]
    Unreadable {
        /// Where it is.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The kernel does not let this thread in.
    #[error("cannot enter the network namespace \"{given}\": {source}{remedy}")]
    NotEntered {
        /// As the user gave it.
        given: String,
        /// The system's reason.
        source: io::Error,
        /// What to do about it.
        remedy: &'static str,
    },
}

impl Netns {
    /// Opens a namespace given as a name in /run/netns, as a path, or as a process id.
    pub fn open(given: &str) -> Result<Netns, NetnsError> {
        let named = PathBuf::from(NAMES).join(given);
        let path = if given.contains('/') {
            PathBuf::from(given)
        } else if !given.is_empty() && given.bytes().all(|b| b.is_ascii_digit()) && !named.exists()
        {
            PathBuf::from(format!("/proc/{given}/ns/net"))
        } else {
            named
        };
        match File::open(&path) {
            Ok(file) => Ok(Netns { given: given.to_string(), file }),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(NetnsError::Missing { given: given.to_string(), path })
            }
            Err(source) => Err(NetnsError::Unreadable { path, source }),
        }
    }

    /// As the user gave it.
    pub fn name(&self) -> &str {
        &self.given
    }

    /// The descriptor, for moving links into the namespace.
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Moves the calling thread, and those that it starts from now on, into the namespace for
    /// good.
    pub fn enter(&self) -> Result<(), NetnsError> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|errno| self.not_entered(errno.into()))
    }

    /// Runs `inside` in the namespace: on a thread of its own, because a thread that entered a
    /// namespace must not be used for anything else.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        std::thread::scope(|scope| {
            let spawned = std::thread::Builder::new()
                .name("netns".into())
                .spawn_scoped(scope, || self.enter().map(|()| inside()));
            match spawned.map_err(|source| self.not_entered(source))?.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn not_entered(&self, source: io::Error) -> NetnsError {
        let remedy = match source.raw_os_error() {
            Some(libc::EINVAL) => "; this is not a network namespace",
            Some(libc::EPERM) => "; run as root (CAP_SYS_ADMIN)",
            _ => "",
        };
        NetnsError::NotEntered { given: self.given.clone(), source, remedy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_name_namespaces_in_three_ways() {
        assert!(Netns::open(&std::process::id().to_string()).is_ok());
        assert!(Netns::open("/proc/self/ns/net").is_ok());
        let missing = |given: &str| match Netns::open(given) {
            Err(NetnsError::Missing { path, .. }) => path.display().to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(missing("no-such-name"), "/run/netns/no-such-name");
        assert_eq!(missing("/no/such/path"), "/no/such/path");
        assert_eq!(missing("4294967295"), "/proc/4294967295/ns/net");
    }

    #[test]
    fn what_is_no_namespace_is_refused() {
        let other = Netns::open("/proc/self/ns/uts").unwrap();
        let error = other.run(|| ()).unwrap_err().to_string();
        assert!(error.ends_with("; this is not a network namespace"), "{error}");
    }
}
