//! What a datagram socket is told of its packets that got nowhere: the queue of errors of
//! IP_RECVERR and IPV6_RECVERR (ip(7), ipv6(7)), as traceroute reads it.
#![allow(unsafe_code)]

use std::io::{Error, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;

/// Room for the control messages of one error.
const CONTROL_WORDS: usize = 64;

/// An ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Who sent it.
    pub by: IpAddr,
    /// Its type and code.
    pub what: (u8, u8),
}

/// Has the kernel keep the errors of a socket, whose packets go `hops` hops far.
pub fn watch(socket: &UdpSocket, hops: u8) {
    let options = match socket.local_addr().unwrap().is_ipv4() {
        true => [(libc::IPPROTO_IP, libc::IP_RECVERR, 1), (libc::IPPROTO_IP, libc::IP_TTL, hops)],
        false => [
            (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1),
            (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, hops),
        ],
    };
    for (level, name, value) in options {
        let value = libc::c_int::from(value);
        let (place, bytes) = ((&raw const value).cast(), size_of_val(&value) as libc::socklen_t);
        // SAFETY: a c_int of that size.
        let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, place, bytes) };
        assert_eq!(set, 0, "setsockopt: {}", Error::last_os_error());
    }
}

/// The next error, if there is one.
pub fn next(socket: &UdpSocket) -> Option<Told> {
    let (mut data, mut control) = ([0u8; 2048], [0u64; CONTROL_WORDS]);
    let mut place = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    // SAFETY: all zero is a valid msghdr: no buffers, no lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut place;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the message's buffers are valid for writes of the lengths that it names.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    if got < 0 {
        let error = Error::last_os_error();
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "recvmsg: {error}");
        return None;
    }
    // SAFETY: the kernel has filled the message in; its control buffer is still there.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: not null, so it lies whole and aligned in the control buffer.
        let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
        if (level, kind) == (libc::IPPROTO_IP, libc::IP_RECVERR)
            || (level, kind) == (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        {
            // SAFETY: data of these kinds is a sock_extended_err and the sender's address.
            return Some(unsafe { told(libc::CMSG_DATA(header).cast()) });
        }
        // SAFETY: `header` is one of the message's.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    panic!("an error without what it is");
}

/// # Safety
/// Behind the error lies the address of who sent it, of the family that it names.
unsafe fn told(error: *const libc::sock_extended_err) -> Told {
    // SAFETY: the caller's promise; alignment is not assumed.
    let libc::sock_extended_err { ee_type, ee_code, .. } = unsafe { error.read_unaligned() };
    // SAFETY: the caller's promise.
    let sender = unsafe { error.add(1) };
    // SAFETY: every socket address begins with its family.
    let family = unsafe { sender.cast::<libc::sa_family_t>().read_unaligned() };
    let by = match i32::from(family) {
        libc::AF_INET => {
            // SAFETY: the family says so.
            let address = unsafe { sender.cast::<libc::sockaddr_in>().read_unaligned() };
            IpAddr::from(Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes()))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says so.
            let address = unsafe { sender.cast::<libc::sockaddr_in6>().read_unaligned() };
            IpAddr::from(Ipv6Addr::from(address.sin6_addr.s6_addr))
        }
        family => panic!("an error from an address of family {family}"),
    };
    Told { by, what: (ee_type, ee_code) }
}
