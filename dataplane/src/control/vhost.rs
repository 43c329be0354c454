//! The vhost-user socket of one disk: a thread that accepts front ends and handles their messages.
//!
//! A message is handled once it has arrived whole, so that a front end which sends half of one
//! holds nobody up; it has [`MESSAGE_TIMEOUT`] for the rest. Two front ends are served at a time
//! (a guest that moves between processes has both open); a third is turned away. A front end that
//! goes, however it goes, leaves its rings and memory to be freed, and the next one can come.

use super::local_socket::{Access, LocalSocket, SocketError};
use crate::clock::now_ns;
use crate::config::plan::SocketAccess;
use crate::virtio::blk::BlkShape;
use crate::virtio::mailbox::{DiskControl, Wake};
use crate::virtio::vhost_user::{DRAIN_TIMEOUT, DiskLink, SESSIONS, Session, is_harmless};
use crossbeam::channel::{Sender, bounded};
use outboard_dma::EventFd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, recv};
use rustix::time::Timespec;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use vhost::vhost_user::{BackendReqHandler, Error as ProtocolError};

/// How long a front end may take to send one message whole, or to read an answer.
pub const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Length of a message's header; the last of its three 32-bit words is the body's length.
const HEADER_BYTES: usize = 12;
/// The longest body there is.
const MAX_BODY_BYTES: usize = 4096;
/// How often a message that is not whole, or a ring that is leaving, is looked at again.
const RETRY: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// Why a disk's socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// There is no socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The kernel refused what its thread needs.
    #[error("cannot {what} socket {}: {source}", path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// The kernel's reason.
        source: std::io::Error,
    },
}

/// A disk's socket, served until dropped.
#[derive(Debug)]
pub struct VhostServer {
    socket: Arc<LocalSocket>,
    /// The thread begins when something comes, and ends when this goes.
    gate: Option<Sender<()>>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl VhostServer {
    /// Binds `path` and serves the disk `name` there. `control` is the other end of the disk's
    /// mailbox, which must have room for two times `shape.queues` rings; `wake` wakes its worker.
    pub fn start(
        name: &str,
        path: &Path,
        access: &SocketAccess,
        shape: BlkShape,
        control: DiskControl,
        wake: Wake,
    ) -> Result<VhostServer, VhostError> {
        let socket = VhostServer::bind(path, access)?;
        let server = VhostServer::prepare(name, socket, path, shape, control, wake)?;
        server.open();
        Ok(server)
    }

    /// As [`start`](Self::start) on a socket at `path` that is bound already, perhaps that of
    /// another server, which ends before. Front ends wait until [`open`](Self::open).
    pub(super) fn prepare(
        name: &str,
        socket: Arc<LocalSocket>,
        path: &Path,
        shape: BlkShape,
        control: DiskControl,
        wake: Wake,
    ) -> Result<VhostServer, VhostError> {
        let system =
            |what| move |source| VhostError::System { what, path: path.to_owned(), source };
        let stop = Arc::new(EventFd::new().map_err(system("make an eventfd for"))?);
        let server = Server {
            name: name.to_owned(),
            socket: Arc::clone(&socket),
            shape,
            link: Arc::new(Mutex::new(DiskLink::new(control, wake, DRAIN_TIMEOUT))),
            stop: Arc::clone(&stop),
            connections: (0..SESSIONS).map(|_| None).collect(),
        };
        let (gate, opened) = bounded(1);
        let thread = std::thread::Builder::new()
            .name(format!("vhost-{name}"))
            .spawn(move || {
                if opened.recv().is_ok() {
                    server.run();
                }
            })
            .map_err(system("start a thread for"))?;
        Ok(VhostServer { socket, gate: Some(gate), stop, thread: Some(thread) })
    }

    /// Begins to serve.
    pub(super) fn open(&self) {
        // There is room for one, and one is enough.
        let _ = self.gate.as_ref().map(|gate| gate.try_send(()));
    }

    /// The socket at `path`; front ends wait.
    pub(super) fn bind(path: &Path, access: &SocketAccess) -> Result<Arc<LocalSocket>, VhostError> {
        Ok(Arc::new(LocalSocket::bind(path, Access::of(access, path)?)?))
    }

    /// Whether who may use the socket at `path` is known.
    pub(super) fn check(path: &Path, access: &SocketAccess) -> Result<(), VhostError> {
        Ok(Access::of(access, path).map(drop)?)
    }

    /// Opens the socket to those who may use it, and to nobody else.
    pub(super) fn admit(&self, access: &SocketAccess) -> Result<(), VhostError> {
        Ok(self.socket.admit(Access::of(access, self.path())?)?)
    }

    /// Where it serves.
    pub(super) fn path(&self) -> &Path {
        self.socket.path()
    }

    /// What it serves on.
    pub(super) fn socket(&self) -> Arc<LocalSocket> {
        Arc::clone(&self.socket)
    }

    /// Begins to end: nobody is taken in any more, and the rings stop.
    pub(super) fn begin_to_end(&mut self) {
        // This, and the thread; one more each when another server takes the socket over.
        if Arc::strong_count(&self.socket) <= 2 {
            self.socket.close();
        }
        self.gate.take();
        self.stop.signal();
    }

    /// Whether it has ended: every ring has come back.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for VhostServer {
    /// Removes the socket, stops the rings and ends the connections. The worker must still run:
    /// rings are given up by it.
    fn drop(&mut self) {
        self.begin_to_end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a connection has to offer now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readiness {
    /// A whole message, and room for the answer.
    Message,
    /// Part of one, or no room for an answer.
    Unfinished,
    /// Nothing.
    Idle,
    /// Its end.
    Ended,
    /// What cannot be a message.
    Nonsense,
}

/// One front end.
struct Connection {
    stream: UnixStream,
    handler: BackendReqHandler<Mutex<Session>>,
    session: Arc<Mutex<Session>>,
    /// Since when a message has been unfinished.
    unfinished_since_ns: Option<u64>,
}

impl Connection {
    fn readiness(&self) -> Readiness {
        let mut header = [0; HEADER_BYTES];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let got = match recv(&self.stream, &mut header[..], flags) {
            Ok((0, _)) => return Readiness::Ended,
            Ok((got, _)) => got,
            Err(rustix::io::Errno::AGAIN) => return Readiness::Idle,
            Err(_) => return Readiness::Ended,
        };
        let body = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]) as usize;
        if got == HEADER_BYTES && body > MAX_BODY_BYTES {
            return Readiness::Nonsense;
        }
        let waiting = rustix::io::ioctl_fionread(&self.stream).unwrap_or(0);
        let whole = got == HEADER_BYTES && waiting >= (HEADER_BYTES + body) as u64;
        let mut state = [PollFd::new(&self.stream, PollFlags::OUT)];
        let _ = poll(&mut state, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        let state = state[0].revents();
        match whole {
            true if state.contains(PollFlags::OUT) => Readiness::Message,
            _ if state.intersects(PollFlags::HUP | PollFlags::ERR) => Readiness::Ended,
            _ => Readiness::Unfinished,
        }
    }
}

/// The thread's state.
struct Server {
    name: String,
    socket: Arc<LocalSocket>,
    shape: BlkShape,
    link: Arc<Mutex<DiskLink>>,
    stop: Arc<EventFd>,
    connections: Vec<Option<Connection>>,
}

impl Server {
    fn run(mut self) {
        while !self.wait() {
            for index in 0..self.connections.len() {
                if let Err(reason) = self.serve(index) {
                    self.end(index, &reason);
                }
            }
            // Last, so that one who has left makes room for one who comes.
            self.accept();
        }
        for connection in self.connections.iter().flatten() {
            connection.session.lock().unwrap_or_else(PoisonError::into_inner).end();
        }
        // Rings come back when their I/O has ended; the worker still runs now. Until then front
        // ends keep their connections: who loses one takes what he finds in the rings for final.
        let give_up_ns = now_ns() + MESSAGE_TIMEOUT.as_nanos() as u64;
        while self.lock_link().collect() && now_ns() < give_up_ns {
            std::thread::sleep(Duration::from_millis(1));
        }
        for index in 0..self.connections.len() {
            self.end(index, "the disk ends");
        }
    }

    fn lock_link(&self) -> std::sync::MutexGuard<'_, DiskLink> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something may be done; `true` when the thread shall end.
    fn wait(&mut self) -> bool {
        let leaving = self.lock_link().collect();
        let unfinished =
            self.connections.iter().flatten().any(|one| one.unfinished_since_ns.is_some());
        let mut fds = vec![PollFd::new(&*self.stop, PollFlags::IN)];
        if self.can_accept() {
            fds.push(PollFd::new(&self.socket.listener, PollFlags::IN));
        }
        for connection in self.connections.iter().flatten() {
            // One with half a message is readable all the time: it is looked at by the clock.
            if connection.unfinished_since_ns.is_none() {
                fds.push(PollFd::new(&connection.stream, PollFlags::IN));
            }
        }
        // An error (EINTR) means looking once more.
        let _ = poll(&mut fds, (leaving || unfinished).then_some(&RETRY));
        fds[0].revents().contains(PollFlags::IN)
    }

    /// Whether a front end that knocks gets an answer now: its rings are free, or it is to be
    /// turned away. While rings of a former one are leaving, it waits.
    fn can_accept(&self) -> bool {
        self.free_place().is_some() || self.connections.iter().all(Option::is_some)
    }

    fn free_place(&self) -> Option<usize> {
        let link = self.lock_link();
        let queues = self.shape.queues;
        (0..self.connections.len()).find(|index| {
            self.connections[*index].is_none() && link.is_free(*index as u16 * queues, queues)
        })
    }

    fn accept(&mut self) {
        if !self.can_accept() {
            return;
        }
        let Ok((stream, _)) = self.socket.listener.accept() else { return };
        let Some(place) = self.free_place() else {
            tracing::warn!(disk = self.name, "a third front end was turned away");
            return;
        };
        let prepared = stream.set_nonblocking(false).and_then(|()| stream.try_clone());
        let Ok(copy) = prepared else {
            tracing::warn!(disk = self.name, "no descriptor left for a front end");
            return;
        };
        let first_ring = place as u16 * self.shape.queues;
        let session = Session::new(self.shape, Arc::clone(&self.link), first_ring);
        let session = Arc::new(Mutex::new(session));
        let handler = BackendReqHandler::from_stream(copy, Arc::clone(&session));
        tracing::info!(disk = self.name, place, "a front end is connected");
        let unfinished_since_ns = None;
        self.connections[place] =
            Some(Connection { stream, handler, session, unfinished_since_ns });
    }

    /// Handles at most one message; the reason when the connection must end.
    fn serve(&mut self, index: usize) -> Result<(), String> {
        let Some(connection) = &mut self.connections[index] else { return Ok(()) };
        match connection.readiness() {
            Readiness::Idle => {
                connection.unfinished_since_ns = None;
                Ok(())
            }
            Readiness::Ended => Err("it disconnected".into()),
            Readiness::Nonsense => Err("it sent what is not a vhost-user message".into()),
            Readiness::Unfinished => {
                let now = now_ns();
                let since = *connection.unfinished_since_ns.get_or_insert(now);
                let limit = MESSAGE_TIMEOUT.as_nanos() as u64;
                match now.saturating_sub(since) > limit {
                    true => Err("it did not finish a message in time".into()),
                    false => Ok(()),
                }
            }
            Readiness::Message => {
                connection.unfinished_since_ns = None;
                match connection.handler.handle_request() {
                    Ok(()) => Ok(()),
                    Err(error) if is_harmless(&error) => {
                        tracing::info!(disk = self.name, %error, "declined");
                        Ok(())
                    }
                    Err(ProtocolError::ReqHandlerError(error)) => Err(error.to_string()),
                    Err(error) => Err(error.to_string()),
                }
            }
        }
    }

    fn end(&mut self, index: usize, reason: &str) {
        let Some(connection) = self.connections[index].take() else { return };
        tracing::info!(disk = self.name, place = index, reason, "a front end is gone");
        connection.session.lock().unwrap_or_else(PoisonError::into_inner).end();
    }
}
