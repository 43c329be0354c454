//! One association with a target: its set-up, and its admin queue's connection from then on.

use super::{CONNECT_TIMEOUT, ConnectError, KEEP_ALIVE_MS, Place, UNACKNOWLEDGED_MAX, geometry_of};
use crate::clock::now_ns;
use crate::volume::Geometry;
use crate::volume::remote::{DEPTH, Link};
use outboard_dma::EventFd;
use outboard_rdma::nvmf::capsule::{Sqe, admin};
use outboard_rdma::nvmf::fabrics::{ANY_CONTROLLER, ConnectData};
use outboard_rdma::nvmf::identify::Namespace;
use outboard_rdma::nvmf::initiator::{
    Associated, Association as Engine, AssociationError, Next, Queue, Wish,
};
use outboard_rdma::nvmf::{Fault, Piece};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::time::Timespec;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Numbers links.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

/// What a target that fences has given an association; the later, the higher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epoch(u64);

impl Epoch {
    /// No epoch was given: it is the first association, or the target does not fence.
    pub const NONE: Epoch = Epoch(0);
}

/// What a target must have.
#[derive(Clone, Copy, Debug)]
pub(super) enum Expected<'a> {
    /// Whatever it has.
    Anything,
    /// A namespace of this size and unit.
    Geometry(Geometry),
    /// This namespace.
    Namespace(&'a Namespace),
}

impl Expected<'_> {
    fn check(&self, place: &Place, found: &Namespace) -> Result<(), ConnectError> {
        let Place { address, nqn, .. } = *place;
        let nqn = nqn.to_string();
        match self {
            Expected::Namespace(known) if *known != found => {
                Err(ConnectError::Changed { address, nqn })
            }
            Expected::Geometry(stated) => {
                let found = geometry_of(found);
                // What can be written may be used for reading alone.
                let is_it = Geometry { read_only: stated.read_only, ..found } == *stated
                    && (stated.read_only || !found.read_only);
                if is_it {
                    return Ok(());
                }
                let (stated, found) = (words(stated), words(&found));
                let difference = format!("{found}, where the [[volume]] states {stated}");
                Err(ConnectError::Geometry { address, nqn, difference })
            }
            _ => Ok(()),
        }
    }
}

fn words(geometry: &Geometry) -> String {
    let kind = if geometry.read_only { ", read-only" } else { "" };
    format!("{} bytes in blocks of {}{kind}", geometry.bytes(), geometry.block_bytes)
}

/// The admin queue's connection, and a second handle of the I/O queue's.
#[derive(Debug)]
pub(super) struct Association {
    pub socket: TcpStream,
    queue: Queue,
    pub io: TcpStream,
    pub epoch: Epoch,
    /// Its link's number.
    pub number: u64,
}

impl Association {
    /// From when on what changes the content may be sent, on the worker's clock: a target that
    /// does not fence may work for `quiesce` on what it was given before `since`.
    pub fn changes_from_ns(&self, quiesce: Duration, since: Instant) -> u64 {
        if self.epoch != Epoch::NONE {
            return 0;
        }
        now_ns() + quiesce.saturating_sub(since.elapsed()).as_nanos() as u64
    }

    /// Ends the I/O queue's connection, and returns since when nothing of it can be delivered any
    /// more, but for what the network has already.
    pub fn abort(self) -> Instant {
        if let Err(error) = discard(&self.io) {
            tracing::warn!("cannot reset a connection: {error}");
            // Then the worker finds out so, and the last handle to go discards.
            let _ = self.io.shutdown(std::net::Shutdown::Both);
        }
        Instant::now()
    }

    /// Takes what the target sends, and whether it has answered a keep-alive.
    pub fn receive(&mut self) -> io::Result<bool> {
        read_once(&mut self.socket, &mut self.queue)?;
        let Some(end) = self.queue.take_control_end() else { return Ok(false) };
        if !end.status.is_success() {
            return Err(io::Error::other(format!("keep-alive refused: {}", end.status)));
        }
        Ok(true)
    }

    /// Sends a keep-alive; the one before must have been answered.
    pub fn keep_alive(&mut self) -> io::Result<()> {
        if self.queue.is_control_in_flight() {
            return Err(io::Error::new(ErrorKind::TimedOut, "a keep-alive was not answered"));
        }
        self.queue.control(Sqe::new(admin::KEEP_ALIVE, 0, 0), 0);
        write_all(&mut self.socket, &mut self.queue)
    }
}

/// How long to wait, and for what no longer.
pub(super) struct Patience<'a> {
    deadline: Instant,
    stop: &'a EventFd,
}

impl<'a> Patience<'a> {
    /// For one attempt, unless `stop` is signalled before.
    pub fn new(stop: &'a EventFd) -> Patience<'a> {
        Patience { deadline: Instant::now() + CONNECT_TIMEOUT, stop }
    }

    /// Waits until the socket has or takes something.
    fn wait(&self, socket: BorrowedFd, what: PollFlags) -> io::Result<()> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let (tv_sec, tv_nsec) = (left.as_secs() as i64, i64::from(left.subsec_nanos()));
            let mut fds = [PollFd::from_borrowed_fd(socket, what), PollFd::new(self.stop, IN)];
            match poll(&mut fds, Some(&Timespec { tv_sec, tv_nsec })) {
                Ok(0) => return Err(io::Error::new(ErrorKind::TimedOut, "no answer in time")),
                Ok(_) if !fds[1].revents().is_empty() => {
                    return Err(io::Error::new(ErrorKind::Interrupted, "the volume stops"));
                }
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

const IN: PollFlags = PollFlags::IN;

/// Makes an association: admin queue, set-up, the end of what there was `after`, one I/O queue.
/// The target must have what is `expected`.
pub(super) fn associate(
    place: &Place,
    expected: Expected,
    after: Epoch,
    patience: &Patience,
) -> Result<(Association, Link, Namespace), ConnectError> {
    let Place { address, nqn, .. } = *place;
    let mut engine = Engine::new(wish(place, expected, after));
    let mut socket = open(address, patience)?;
    let mut second = None;
    loop {
        let next = engine.poll(now_ns()).map_err(|error| match error {
            AssociationError::Changed => ConnectError::Changed { address, nqn: nqn.to_string() },
            AssociationError::Stale => ConnectError::Stale { address, nqn: nqn.to_string() },
            AssociationError::Setup(source) => {
                ConnectError::Setup { address, nqn: nqn.to_string(), source }
            }
        })?;
        // Before a fence is sent.
        if let Some(found) = engine.namespace() {
            expected.check(place, found)?;
        }
        let what = engine.doing();
        let exchanged = match (next, engine.io_mut()) {
            (Next::Io, Some(queue)) => {
                let io = match &mut second {
                    Some(io) => io,
                    None => second.insert(open(address, patience)?),
                };
                exchange(io, queue, patience)
            }
            (Next::Time { at_ns }, _) => {
                std::thread::sleep(Duration::from_nanos(at_ns.saturating_sub(now_ns())));
                Ok(())
            }
            (Next::Ready, _) => break,
            (Next::Admin | Next::Io, _) => exchange(&mut socket, engine.admin_mut(), patience),
        };
        exchanged.map_err(|source| ConnectError::Broken { address, what, source })?;
    }
    let (Some(made), Some(io)) = (engine.finish(), second) else {
        unreachable!("it was ready, over two connections")
    };
    let Associated { admin, io: queue, found, epoch } = made;
    let prepare = |source| ConnectError::Prepare { address, source };
    io.set_nonblocking(true).map_err(prepare)?;
    let second = io.try_clone().map_err(prepare)?;
    let max_transfer_bytes = found.max_transfer_bytes;
    let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
    let (boot, changes_from_ns) = (found.boot, 0);
    let link = Link { socket: io, queue, number, max_transfer_bytes, changes_from_ns, boot };
    let epoch = Epoch(epoch);
    Ok((Association { socket, queue: admin, io: second, epoch, number }, link, found.namespace))
}

fn wish(place: &Place, expected: Expected, after: Epoch) -> Wish {
    Wish {
        nsid: place.nsid,
        digests: place.digests,
        keep_alive_ms: KEEP_ALIVE_MS,
        names: ConnectData {
            host_id: place.host_id,
            controller: ANY_CONTROLLER,
            subsystem: place.nqn,
            host: place.host,
        },
        depth: DEPTH,
        expected: match expected {
            Expected::Namespace(known) => Some(*known),
            Expected::Anything | Expected::Geometry(_) => None,
        },
        user: place.user,
        life: place.life,
        after: after.0,
    }
}

fn open(address: SocketAddr, patience: &Patience) -> Result<TcpStream, ConnectError> {
    let refused = |source| ConnectError::Connect { address, source };
    connect(address, patience).map_err(refused)
}

/// Resets a connection at once, whoever else has a handle of it: dissolving the association of a
/// TCP socket makes Linux drop what was not sent (tcp(7), connect(2) with AF_UNSPEC). A shutdown
/// would leave the kernel to deliver it, for as long as the peer takes some of it now and then.
fn discard(socket: &TcpStream) -> io::Result<()> {
    Ok(net::connect_unspec(socket)?)
}

/// A connection that notices when its peer's kernel is gone, and that ends as [`discard`] does it
/// when its last handle goes (socket(7), SO_LINGER of 0), as when the process dies: a later one,
/// of whatever kind, must not meet its bytes.
fn connect(address: SocketAddr, patience: &Patience) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = net::socket_with(family, SocketType::STREAM, flags, None)?;
    match net::connect(&socket, &address) {
        Err(Errno::INPROGRESS) => {
            patience.wait(socket.as_fd(), PollFlags::OUT)?;
            sockopt::socket_error(&socket)??;
        }
        outcome => outcome?,
    }
    let socket = TcpStream::from(socket);
    socket.set_nonblocking(false)?;
    socket.set_write_timeout(Some(CONNECT_TIMEOUT))?;
    socket.set_nodelay(true)?;
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    sockopt::set_tcp_user_timeout(&socket, UNACKNOWLEDGED_MAX.as_millis() as u32)?;
    sockopt::set_tcp_keepidle(&socket, UNACKNOWLEDGED_MAX / 2)?;
    sockopt::set_tcp_keepintvl(&socket, UNACKNOWLEDGED_MAX / 8)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    Ok(socket)
}

/// Sends what the engine has, then waits for some bytes.
fn exchange(socket: &mut TcpStream, queue: &mut Queue, patience: &Patience) -> io::Result<()> {
    write_all(socket, queue)?;
    patience.wait(socket.as_fd(), IN)?;
    read_once(socket, queue)
}

fn write_all(socket: &mut TcpStream, queue: &mut Queue) -> io::Result<()> {
    let mut bytes = Vec::new();
    for piece in queue.pieces() {
        if let Piece::Bytes(part) = piece {
            bytes.extend_from_slice(part);
        }
    }
    socket.write_all(&bytes)?;
    queue.sent(bytes.len());
    Ok(())
}

fn read_once(socket: &mut TcpStream, queue: &mut Queue) -> io::Result<()> {
    let mut bytes = [0; 8192];
    let count = loop {
        match socket.read(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => break outcome?,
        }
    };
    if count == 0 {
        return Err(io::Error::new(ErrorKind::UnexpectedEof, "the target closed it"));
    }
    let mut rest = &bytes[..count];
    while !rest.is_empty() {
        match queue.receive(rest) {
            Ok(0) => return Err(broken(Fault::PduSequence)),
            Ok(used) => rest = &rest[used..],
            Err(fault) => {
                // Tells the target why; that it may not listen any more changes nothing.
                let _ = write_all(socket, queue);
                return Err(broken(fault));
            }
        }
    }
    Ok(())
}

fn broken(fault: Fault) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("protocol violation: {}", fault.name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A peer that reads nothing yet, and a connection to it that takes no more: how much it took.
    fn clogged() -> (TcpStream, TcpStream, usize) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        sockopt::set_socket_recv_buffer_size(&listener, 8192).unwrap();
        let stop = std::sync::Arc::new(EventFd::new().unwrap());
        let address = listener.local_addr().unwrap();
        let mut ours = connect(address, &Patience::new(&stop)).unwrap();
        let (peer, _) = listener.accept().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(count) = ours.write(&[7; 65536]) {
            sent += count;
        }
        (peer, ours, sent)
    }

    /// Reads to the end, which must be a reset.
    fn read_to_reset(mut peer: TcpStream) -> usize {
        let (mut bytes, mut got) = ([0; 65536], 0);
        loop {
            match peer.read(&mut bytes) {
                Ok(0) => panic!("an orderly end, after {got} bytes"),
                Ok(count) => got += count,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                    return got;
                }
            }
        }
    }

    #[test]
    fn a_connection_that_is_given_up_delivers_nothing_more() {
        let (peer, ours, sent) = clogged();
        let workers = ours.try_clone().unwrap();
        discard(&ours).unwrap();
        assert!(read_to_reset(peer) < sent, "the kernel went on with it");
        // The worker finds out.
        assert!((&workers).write(&[7]).is_err());
        let outcome = (&workers).read(&mut [0]);
        let is_waiting = outcome.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        assert!(!is_waiting, "it waits for what never comes");
    }

    #[test]
    fn nor_does_one_whose_process_ends() {
        let (peer, ours, sent) = clogged();
        drop(ours);
        assert!(read_to_reset(peer) < sent, "the kernel went on with it");
    }
}
