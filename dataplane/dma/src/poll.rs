//! Waiting on many descriptors at once, without an allocation per wait.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// Descriptors to wait on; kept between waits so that the list is built without allocating.
#[derive(Debug, Default)]
pub struct PollList {
    fds: Vec<libc::pollfd>,
}

impl PollList {
    /// A list that holds `capacity` descriptors before it allocates.
    pub fn with_capacity(capacity: usize) -> PollList {
        PollList { fds: Vec::with_capacity(capacity) }
    }

    /// Empties the list.
    pub fn clear(&mut self) {
        self.fds.clear();
    }

    /// Adds a descriptor to wait on until it is readable, or writable too when `write` is set.
    pub fn add(&mut self, fd: RawFd, write: bool) {
        let events = libc::POLLIN | if write { libc::POLLOUT } else { 0 };
        self.fds.push(libc::pollfd { fd, events, revents: 0 });
    }

    /// Waits until one is ready or `timeout` has passed; how many are ready. A descriptor that
    /// was closed meanwhile counts as ready (POLLNVAL). A signal ends the wait with 0.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<usize> {
        let time = libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // SAFETY: the pointer and count describe `self.fds`, which lives over the call; the
        // time is valid; a null mask leaves the signal mask alone.
        let ready = unsafe {
            libc::ppoll(
                self.fds.as_mut_ptr(),
                self.fds.len() as libc::nfds_t,
                &time,
                std::ptr::null(),
            )
        };
        match usize::try_from(ready) {
            Ok(ready) => Ok(ready),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
                error => Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn finds_the_ready_one() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let mut list = PollList::with_capacity(2);
        list.add(far.as_raw_fd(), false);
        assert_eq!(list.wait(Duration::ZERO).unwrap(), 0);
        near.write_all(&[1]).unwrap();
        assert_eq!(list.wait(Duration::from_secs(10)).unwrap(), 1);
        list.clear();
        list.add(far.as_raw_fd(), true);
        list.add(near.as_raw_fd(), false);
        assert_eq!(list.wait(Duration::ZERO).unwrap(), 1);
    }
}
