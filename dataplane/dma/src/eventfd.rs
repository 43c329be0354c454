//! Event descriptors: our own, and those that a front end passes for kicks and calls.

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode};
use std::fs::File;
use std::io::{Error, ErrorKind, Result, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A counter that the kernel keeps and that can be slept on (eventfd(2)).
#[derive(Debug)]
pub struct EventFd(File);

impl EventFd {
    /// A new one, at zero.
    pub fn new() -> Result<EventFd> {
        // SAFETY: plain system call; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: fd was just made and is owned by nobody else.
        Ok(EventFd(unsafe { File::from_raw_fd(fd) }))
    }

    /// Takes a descriptor from another process after checking that it is an eventfd, and makes it
    /// non-blocking, so that no call here can wait.
    pub fn adopt(fd: OwnedFd) -> Result<EventFd> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        if link.as_os_str() != "anon_inode:[eventfd]" {
            let what = format!("the descriptor passed is {}, not an eventfd", link.display());
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        // SAFETY: plain system calls on an owned descriptor; the results are checked.
        let done = unsafe {
            let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
            flags >= 0 && libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) == 0
        };
        if !done {
            return Err(Error::last_os_error());
        }
        Ok(EventFd(File::from(fd)))
    }

    /// Another handle to the eventfd behind `descriptor`, for libraries with a type of their own.
    pub fn same_as(descriptor: &impl AsRawFd) -> Result<EventFd> {
        // SAFETY: plain system call without pointers; the result is checked.
        let fd = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: fd was just made and is owned by nobody else.
        EventFd::adopt(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Adds one. A full counter stays as it is: whoever sleeps on it is awake already.
    #[inline]
    pub fn signal(&self) {
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }

    /// Sets it to zero and returns what it was; never waits, whatever the other side does to the
    /// descriptor's flags (RWF_NOWAIT).
    #[inline]
    pub fn drain(&self) -> u64 {
        let mut value = 0u64;
        let into = libc::iovec { iov_base: (&raw mut value).cast(), iov_len: 8 };
        // SAFETY: `into` describes eight writable bytes of `value`.
        let got = unsafe { libc::preadv2(self.0.as_raw_fd(), &into, 1, -1, libc::RWF_NOWAIT) };
        if got == 8 { value } else { 0 }
    }
}

/// A way to signal an eventfd of another process that cannot wait, whatever that process does to
/// it.
///
/// A write to an eventfd waits while its counter is full and O_NONBLOCK is off, and the flag
/// belongs to whoever holds the descriptor; `pwritev2` knows no RWF_NOWAIT for it (Linux 6.18,
/// EOPNOTSUPP). A ring's completion signals the eventfd that is registered with the ring from
/// inside the kernel, where nothing waits and a full counter stays full (`eventfd_signal` in
/// `fs/eventfd.c`). So this is a ring of its own for each descriptor, on which a signal is one
/// no-op.
pub struct Signaller {
    ring: Option<Box<IoUring>>,
    event: EventFd,
}

impl Signaller {
    /// A way to signal `event`. Where there is no io_uring it is written to, which can wait.
    pub fn new(event: EventFd) -> Signaller {
        let build = || {
            let ring = IoUring::builder().setup_r_disabled().dontfork().build(1)?;
            let submitter = ring.submitter();
            submitter.register_eventfd(event.as_raw_fd())?;
            // A ring is otherwise a way around a list of system calls.
            submitter.register_restrictions(&mut [Restriction::sqe_op(opcode::Nop::CODE)])?;
            submitter.register_enable_rings()?;
            Ok::<_, Error>(Box::new(ring))
        };
        Signaller { ring: build().ok(), event }
    }

    /// Whether nothing that another process does can make [`signal`](Self::signal) wait.
    pub fn never_waits(&self) -> bool {
        self.ring.is_some()
    }

    /// Adds one. A full counter stays as it is: whoever sleeps on it is awake already.
    #[inline]
    pub fn signal(&mut self) {
        let Some(ring) = &mut self.ring else {
            return self.event.signal();
        };
        // SAFETY: a no-op touches no memory. The queue is full only after a failed submit; then
        // what is in it is submitted now.
        let _ = unsafe { ring.submission().push(&opcode::Nop::new().build()) };
        // Fails when the kernel has no memory for it or a signal came; the second time it is late.
        if ring.submit().is_err() {
            let _ = ring.submit();
        }
        ring.completion().for_each(drop);
    }
}

impl std::fmt::Debug for Signaller {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Signaller {{ event: {:?}, waits: {} }}", self.event, !self.never_waits())
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<EventFd> for OwnedFd {
    fn from(event: EventFd) -> OwnedFd {
        event.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_never_waits() {
        let ours = EventFd::new().unwrap();
        assert_eq!(ours.drain(), 0);
        ours.signal();
        ours.signal();
        assert_eq!(ours.drain(), 2);
        let theirs = EventFd::adopt(OwnedFd::from(ours)).unwrap();
        (&theirs.0).write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
        theirs.signal();
        assert_eq!(theirs.drain(), u64::MAX - 1);
    }

    #[test]
    fn signalling_never_waits_even_when_the_counter_is_full_and_the_flag_is_cleared() {
        let theirs = EventFd::new().unwrap();
        let mut ours = Signaller::new(EventFd::same_as(&theirs).unwrap());
        assert!(ours.never_waits(), "io_uring is there where tests run");
        for count in 1..1_000 {
            ours.signal();
            if count % 100 == 0 {
                assert_eq!(theirs.drain(), 100);
            }
        }
        assert_eq!(theirs.drain(), 99);
        (&theirs.0).write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
        // SAFETY: plain system call on an open descriptor.
        assert_eq!(unsafe { libc::fcntl(theirs.as_raw_fd(), libc::F_SETFL, 0) }, 0);
        (0..1_000).for_each(|_| ours.signal());
        assert!(theirs.drain() >= u64::MAX - 1);
        ours.signal();
        assert_eq!(theirs.drain(), 1);
    }

    #[test]
    fn only_an_eventfd_is_taken() {
        let file = File::open("/dev/null").unwrap();
        let error = EventFd::same_as(&file).unwrap_err().to_string();
        assert!(error.contains("/dev/null"), "{error}");
        let error = EventFd::adopt(file.into()).unwrap_err().to_string();
        assert!(error.contains("/dev/null"), "{error}");
    }

    #[test]
    fn both_handles_count_in_one() {
        let one = EventFd::new().unwrap();
        let other = EventFd::same_as(&one).unwrap();
        one.signal();
        drop(one);
        other.signal();
        assert_eq!(other.drain(), 2);
    }
}
