//! Stream sockets that read into segments and write from them: one system call for many places,
//! never waiting (MSG_DONTWAIT).
//!
//! A guest may take its memory away while a segment names it. The kernel says EFAULT then, and has
//! moved nothing; the pages are touched, so that zeros take their place as after any access (see
//! `sigbus`), and the call is made once more: the stream goes on.

use crate::Segment;
use arrayvec::ArrayVec;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The most places of one call: four I/Os of 128 KiB in pages, or many small ones. The kernel's
/// own limit is 1024 (UIO_MAXIOV).
pub const MAX_PLACES: usize = 128;

/// What one call sends, in order.
#[derive(Debug)]
pub struct Gather<'a> {
    places: ArrayVec<libc::iovec, MAX_PLACES>,
    bytes: usize,
    _borrowed: PhantomData<&'a [u8]>,
}

/// Where one call receives to, in order.
#[derive(Debug)]
pub struct Scatter<'a> {
    places: ArrayVec<libc::iovec, MAX_PLACES>,
    _borrowed: PhantomData<&'a mut [u8]>,
}

impl<'a> Gather<'a> {
    /// Nothing yet.
    #[allow(clippy::new_without_default, reason = "an empty list is of no use by itself")]
    pub fn new() -> Gather<'a> {
        Gather { places: ArrayVec::new(), bytes: 0, _borrowed: PhantomData }
    }

    /// Adds bytes; `false`: no room, and nothing added.
    #[inline]
    pub fn push(&mut self, bytes: &'a [u8]) -> bool {
        self.add(bytes.as_ptr().cast_mut(), bytes.len())
    }

    /// Adds a segment's bytes; `false`: no room, and nothing added.
    #[inline]
    pub fn push_segment(&mut self, segment: &Segment) -> bool {
        self.add(segment.address(), segment.len())
    }

    /// Bytes in the list.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn add(&mut self, start: *mut u8, len: usize) -> bool {
        let place = libc::iovec { iov_base: start.cast(), iov_len: len };
        self.bytes += if self.places.is_full() { 0 } else { len };
        self.places.try_push(place).is_ok()
    }

    /// Sends what the socket takes now; how much. `WouldBlock`: it takes nothing now.
    pub fn send(&self, socket: BorrowedFd) -> io::Result<usize> {
        match self.send_once(socket) {
            Err(error) if is_fault(&error) => {
                touch(&self.places);
                self.send_once(socket)
            }
            outcome => outcome,
        }
    }

    #[inline(always)]
    fn send_once(&self, socket: BorrowedFd) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        if let [place] = self.places[..] {
            // SAFETY: the place is a slice that is borrowed for 'a, or a segment, whose maker
            // keeps it mapped; the kernel only reads it.
            let sent =
                unsafe { libc::send(socket.as_raw_fd(), place.iov_base, place.iov_len, flags) };
            return checked(sent);
        }
        let message = message(self.places.as_ptr().cast_mut(), self.places.len());
        // SAFETY: `message` names `places`, which lives over the call; each place as above.
        checked(unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags) })
    }
}

impl<'a> Scatter<'a> {
    /// Nothing yet.
    #[allow(clippy::new_without_default, reason = "an empty list is of no use by itself")]
    pub fn new() -> Scatter<'a> {
        Scatter { places: ArrayVec::new(), _borrowed: PhantomData }
    }

    /// Adds a buffer; `false`: no room, and nothing added.
    pub fn push(&mut self, buffer: &'a mut [u8]) -> bool {
        let place = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        self.places.try_push(place).is_ok()
    }

    /// Adds a segment; `false`: no room, and nothing added.
    pub fn push_segment(&mut self, segment: &Segment) -> bool {
        let place = libc::iovec { iov_base: segment.address().cast(), iov_len: segment.len() };
        self.places.try_push(place).is_ok()
    }

    /// Receives what is there; how much, 0 when the peer has closed. `WouldBlock`: nothing is.
    pub fn receive(&mut self, socket: BorrowedFd) -> io::Result<usize> {
        match self.receive_once(socket) {
            Err(error) if is_fault(&error) => {
                touch(&self.places);
                self.receive_once(socket)
            }
            outcome => outcome,
        }
    }

    #[inline(always)]
    fn receive_once(&mut self, socket: BorrowedFd) -> io::Result<usize> {
        let mut message = message(self.places.as_mut_ptr(), self.places.len());
        // SAFETY: `message` names `places`, which lives over the call; each place is a slice that
        // is borrowed mutably for 'a, or a segment, whose maker keeps it mapped and writable.
        checked(unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) })
    }
}

/// Receives into one buffer what is there; as [`Scatter::receive`], and cheaper.
#[inline]
pub fn receive(socket: BorrowedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is valid for writes of its length.
    checked(unsafe {
        libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
    })
}

/// The parts of `segments` that hold `len` bytes from `offset` of their data.
pub fn range(
    segments: &[Segment],
    mut offset: usize,
    mut len: usize,
) -> impl Iterator<Item = Segment> + '_ {
    segments.iter().filter_map(move |segment| {
        if offset >= segment.len() {
            offset -= segment.len();
            return None;
        }
        let take = len.min(segment.len() - offset);
        let part = segment.part(offset, take).filter(|part| !part.is_empty());
        offset = 0;
        len -= take;
        part
    })
}

fn message(places: *mut libc::iovec, count: usize) -> libc::msghdr {
    // SAFETY: all fields of a msghdr are integers or pointers, for which zero is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = places;
    message.msg_iovlen = count as _;
    message
}

fn is_fault(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EFAULT)
}

/// Reads a byte of every page of these places.
#[cold]
fn touch(places: &[libc::iovec]) {
    const PAGE_BYTES: usize = 4096;
    for place in places {
        let start = place.iov_base as usize;
        let end = start + place.iov_len;
        let mut at = start;
        while at < end {
            let offset = at - start;
            // SAFETY: inside of a place, which is mapped (see `send` and `receive`); where pages
            // behind the mapping were taken away the SIGBUS handler puts others. The value is not
            // used, and a volatile read of a byte that others write is a plain load.
            unsafe { place.iov_base.cast::<u8>().add(offset).read_volatile() };
            at = (at / PAGE_BYTES + 1) * PAGE_BYTES;
        }
    }
}

fn checked(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Lets a raw ICMP socket receive messages of this type only (`ICMP_FILTER` of raw(7)).
pub fn receive_icmp_only(socket: BorrowedFd<'_>, kind: u8) -> io::Result<()> {
    /// linux/icmp.h.
    const ICMP_FILTER: libc::c_int = 1;
    // A set bit keeps a type out; types from 32 on are always received.
    let filter: u32 = !(1u32.checked_shl(kind.into()).unwrap_or(0));
    set_words(socket, libc::SOL_RAW, ICMP_FILTER, &[filter])
}

/// Lets a raw ICMPv6 socket receive messages of this type only (RFC 3542 section 3.2).
pub fn receive_icmpv6_only(socket: BorrowedFd<'_>, kind: u8) -> io::Result<()> {
    /// linux/icmpv6.h.
    const ICMPV6_FILTER: libc::c_int = 1;
    // A set bit keeps a type out.
    let mut filter = [u32::MAX; 8];
    filter[usize::from(kind / 32)] &= !(1 << (kind % 32));
    set_words(socket, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &filter)
}

fn set_words(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    words: &[u32],
) -> io::Result<()> {
    let bytes = size_of_val(words) as libc::socklen_t;
    // SAFETY: an open descriptor, and words that are valid for reads of their size; the options
    // of the callers hold no pointers.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, words.as_ptr().cast(), bytes) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Frame, FreeList, GuestMemory, Region};
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn frames(count: u32) -> (Vec<Frame>, FreeList) {
        let mut free = Region::new(count).unwrap().carve(count).unwrap();
        let frames = (0..count).map(|_| free.take().unwrap()).collect();
        (frames, free)
    }

    #[test]
    fn bytes_come_out_where_they_were_sent_to() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut pages, mut free) = frames(2);
        pages[0].bytes_mut()[10..20].fill(7);
        let from = Segment::of_frame(&mut pages[0], 10, 10);
        let to = Segment::of_frame(&mut pages[1], 100, 12);
        let header = [1, 2, 3];
        let mut gather = Gather::new();
        assert!(gather.push(&header) && gather.push_segment(&from));
        assert_eq!((gather.bytes(), gather.send(near.as_fd()).unwrap()), (13, 13));
        let mut first = [0; 2];
        let mut scatter = Scatter::new();
        assert!(scatter.push(&mut first) && scatter.push_segment(&to));
        assert_eq!(scatter.receive(far.as_fd()).unwrap(), 13);
        let blocked = scatter.receive(far.as_fd()).unwrap_err();
        assert_eq!(blocked.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(first, [1, 2]);
        assert_eq!(pages[1].bytes()[99..112], [0, 3, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0]);
        drop(near);
        assert_eq!(receive(far.as_fd(), &mut [0; 8]).unwrap(), 0);
        pages.into_iter().for_each(|page| free.give(page));
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error_and_no_signal() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        let mut gather = Gather::new();
        gather.push(&[1]);
        assert_eq!(gather.send(near.as_fd()).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn memory_that_its_owner_took_away_is_zeros_and_ends_no_stream() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        for bytes in [4096, 8192 + 100] {
            let share = || GuestMemory::share(16384, 0, 0x1000).unwrap();
            // Sent from, after a header.
            let (memory, _, file) = share();
            let segment = memory.segment(4000, bytes).unwrap();
            assert!(segment.copy_from(0, &vec![7; bytes as usize]));
            file.set_len(0).unwrap();
            let mut gather = Gather::new();
            assert!(gather.push_segment(&segment));
            assert_eq!(gather.send(near.as_fd()).unwrap(), bytes as usize);
            let mut got = vec![1; bytes as usize];
            far.read_exact(&mut got).unwrap();
            assert!(got.iter().all(|byte| *byte == 0));
            // Received into, and what follows goes where it belongs.
            let (memory, _, file) = share();
            let segment = memory.segment(4000, bytes).unwrap();
            file.set_len(0).unwrap();
            far.write_all(&vec![9; bytes as usize + 1]).unwrap();
            while peeked(&near) <= bytes as usize {
                std::thread::yield_now();
            }
            let mut last = [0];
            let mut scatter = Scatter::new();
            assert!(scatter.push_segment(&segment) && scatter.push(&mut last));
            assert_eq!(scatter.receive(near.as_fd()).unwrap(), bytes as usize + 1);
            assert_eq!(last, [9]);
            assert!(memory.is_torn());
        }
    }

    /// Bytes that wait in a socket.
    fn peeked(socket: &TcpStream) -> usize {
        socket.peek(&mut [0; 16384]).unwrap()
    }

    #[test]
    fn lists_are_bounded() {
        let mut gather = Gather::new();
        for _ in 0..MAX_PLACES {
            assert!(gather.push(&[1]));
        }
        assert!(!gather.push(&[1]));
        assert_eq!(gather.bytes(), MAX_PLACES);
    }

    #[test]
    fn a_range_is_cut_out_of_segments() {
        let (mut pages, mut free) = frames(3);
        let segments: Vec<_> = [5, 0, 7, 9]
            .into_iter()
            .zip([0, 0, 1, 2])
            .map(|(len, page)| Segment::of_frame(&mut pages[page], 0, len))
            .collect();
        let lens = |offset, len| {
            range(&segments, offset, len).map(|segment| segment.len()).collect::<Vec<_>>()
        };
        assert_eq!(lens(0, 21), [5, 7, 9]);
        assert_eq!(lens(4, 2), [1, 1]);
        assert_eq!(lens(5, 7), [7]);
        assert_eq!(lens(12, 100), [9]);
        assert_eq!(lens(3, 0), [0; 0]);
        assert_eq!(lens(21, 1), [0; 0]);
        pages.into_iter().for_each(|page| free.give(page));
    }
}
