//! A netlink socket that asks one thing at a time: request out, answer in (RFC 3549, 2.3).

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;

/// How long the kernel may take for an answer; it normally answers before `send` returns.
pub const ANSWER_TIMEOUT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
/// How often a dump is repeated that the kernel says was disturbed by changes.
const DUMP_TRIES: u32 = 5;

/// A netlink socket for messages of type `I`.
#[derive(Debug)]
pub struct Netlink<I> {
    socket: Socket,
    sequence: u32,
    messages: PhantomData<I>,
}

/// A socket for links, addresses, routes and neighbours.
pub type Rtnetlink = Netlink<RouteNetlinkMessage>;

impl Rtnetlink {
    /// Opens a socket in this thread's network namespace.
    pub fn route() -> io::Result<Rtnetlink> {
        Netlink::new(protocols::NETLINK_ROUTE)
    }
}

impl<I: NetlinkSerializable + NetlinkDeserializable> Netlink<I> {
    /// Opens a socket of a netlink protocol in this thread's network namespace.
    pub fn new(protocol: isize) -> io::Result<Netlink<I>> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Old kernels lack it; it only shortens what comes back.
        let _ = socket.set_cap_ack(true);
        Ok(Netlink { socket, sequence: 0, messages: PhantomData })
    }

    /// Changes something; the kernel's refusal is the error.
    pub fn change(&mut self, message: I, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.answers(|_| ()).map(drop)
    }

    /// Asks for one thing; the kernel's refusal is the error.
    pub fn get(&mut self, message: I) -> io::Result<I> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK)?;
        let mut found = None;
        self.answers(|answer| found = Some(answer))?;
        found.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an empty answer"))
    }

    /// Asks for everything of a kind.
    pub fn dump(&mut self, message: I) -> io::Result<Vec<I>>
    where
        I: Clone,
    {
        for _ in 0..DUMP_TRIES {
            self.send(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            let mut all = Vec::new();
            if !self.answers(|answer| all.push(answer))? {
                return Ok(all);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "it changes faster than it can be read"))
    }

    fn send(&mut self, message: I, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    /// Takes answers to the last request until its end: an acknowledgement, an error, or the end
    /// of a dump. Says whether a dump was disturbed by changes.
    fn answers(&mut self, mut take: impl FnMut(I)) -> io::Result<bool> {
        let mut disturbed = false;
        while !read(&self.receive()?, self.sequence, &mut take, &mut disturbed)? {}
        Ok(disturbed)
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut fds = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN)];
        loop {
            match poll(&mut fds, Some(&ANSWER_TIMEOUT)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.socket.recv_from_full().map(|(bytes, _)| bytes)
    }
}

/// Takes the answers to request `sequence` that are in a datagram; whether the last one was there.
pub(super) fn read<I: NetlinkDeserializable>(
    datagram: &[u8],
    sequence: u32,
    take: &mut impl FnMut(I),
    disturbed: &mut bool,
) -> io::Result<bool> {
    let mut rest = datagram;
    while let Some((one, after)) = split(rest) {
        rest = after;
        let message = NetlinkMessage::<I>::deserialize(one)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if message.header.sequence_number != sequence {
            continue;
        }
        *disturbed |= message.header.flags & NLM_F_DUMP_INTR != 0;
        match message.payload {
            NetlinkPayload::Error(error) => {
                return error.code.map_or(Ok(true), |_| Err(error.to_io()));
            }
            NetlinkPayload::Done(done) if done.code == 0 => return Ok(true),
            NetlinkPayload::Done(done) => {
                return Err(io::Error::from_raw_os_error(done.code.saturating_abs()));
            }
            NetlinkPayload::InnerMessage(answer) => take(answer),
            _ => {}
        }
    }
    Ok(false)
}

/// The first of several messages in a datagram, and the others. `None` at the end, or when what
/// is left is no message.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    const HEADER_BYTES: usize = 16;
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    if length < HEADER_BYTES || length > bytes.len() {
        return None;
    }
    let aligned = length.next_multiple_of(4).min(bytes.len());
    Some((&bytes[..length], &bytes[aligned..]))
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn any_datagram_ends() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            let (mut rest, mut messages) = (bytes.as_slice(), 0);
            while let Some((one, after)) = split(rest) {
                assert!(one.len() >= 16 && after.len() < rest.len());
                rest = after;
                messages += 1;
            }
            assert!(messages <= bytes.len() / 16);
        });
    }

    #[test]
    fn messages_are_split_at_their_padding() {
        let mut bytes = vec![0; 36];
        bytes[0] = 17;
        bytes[20] = 16;
        let (one, rest) = split(&bytes).unwrap();
        assert_eq!((one.len(), rest.len()), (17, 16));
        assert_eq!(split(rest).map(|(one, rest)| (one.len(), rest.len())), Some((16, 0)));
        assert!(split(&bytes[..19]).is_some() && split(&bytes[..16]).is_none());
    }
}
