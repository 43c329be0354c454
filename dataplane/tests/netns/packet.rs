//! The kernel's own way to raw frames: a packet socket (packet(7)) on one interface.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io::{Error, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The longest frame that is received.
const MAX_BYTES: usize = 1 << 17;

/// Sends any frame, receives those of one EtherType that come in (not those that go out).
pub struct PacketSocket {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl PacketSocket {
    /// A socket on `interface` of the calling thread's network namespace.
    pub fn open(interface: &str, ether_type: u16) -> PacketSocket {
        let (protocol, kind) = (ether_type.to_be(), libc::SOCK_RAW | libc::SOCK_CLOEXEC);
        // SAFETY: plain system call; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(protocol)) };
        assert!(fd >= 0, "packet socket: {}", Error::last_os_error());
        // SAFETY: just made and owned by nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let name = CString::new(interface).unwrap();
        // SAFETY: all zero is a valid sockaddr_ll, a structure of integers.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        // SAFETY: a NUL-terminated name.
        address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
        let bytes = size_of_val(&address) as libc::socklen_t;
        // SAFETY: a sockaddr_ll of that size.
        let bound = unsafe { libc::bind(fd, (&raw const address).cast(), bytes) };
        assert_eq!(bound, 0, "bind {interface}: {}", Error::last_os_error());
        let room: libc::c_int = 256 << 20;
        let (place, bytes) = ((&raw const room).cast(), size_of_val(&room) as libc::socklen_t);
        // SAFETY: a c_int of that size.
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, place, bytes) };
        PacketSocket { socket, buffer: vec![0; MAX_BYTES] }
    }

    /// Sends one frame, Ethernet header first.
    pub fn send(&self, frame: &[u8]) {
        let fd = self.socket.as_raw_fd();
        // SAFETY: `frame` is valid for reads of its length.
        let sent = unsafe { libc::send(fd, frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "send: {}", Error::last_os_error());
    }

    /// The next frame, if there is one.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        let (fd, place) = (self.socket.as_raw_fd(), self.buffer.as_mut_ptr());
        // SAFETY: the buffer is valid for writes of its length.
        let got = unsafe { libc::recv(fd, place.cast(), self.buffer.len(), libc::MSG_DONTWAIT) };
        match usize::try_from(got) {
            Ok(bytes) => Some(self.buffer[..bytes].to_vec()),
            Err(_) => {
                let error = Error::last_os_error();
                // A link that is down says so once.
                let quiet = error.kind() == ErrorKind::WouldBlock
                    || error.raw_os_error() == Some(libc::ENETDOWN);
                assert!(quiet, "receive: {error}");
                None
            }
        }
    }
}
