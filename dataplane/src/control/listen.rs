//! The thread that accepts NVMe/TCP connections for an export and hands them to its worker.

use crate::volume::export::Door;
use crossbeam::channel::{Sender, bounded};
use outboard_dma::EventFd;
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long to wait when the process is out of descriptors: then accepting would spin.
const PAUSE: Duration = Duration::from_millis(100);

/// Why an export cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; {}", remedy(source))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A thread or descriptor could not be made.
    #[error("cannot start the listener on {address}: {source}")]
    Start {
        /// The address.
        address: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::AddrInUse => "another process listens there; stop it or choose another port",
        ErrorKind::AddrNotAvailable => {
            "this host does not have the address; assign it or \
            choose one that it has"
        }
        ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => "check the address",
    }
}

/// Accepts until dropped.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    socket: Arc<TcpListener>,
    /// The thread begins when something comes, and ends when this goes.
    gate: Option<Sender<()>>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Listens on `address` and sends what comes through `door`.
    pub fn start(address: SocketAddr, door: Door) -> Result<Listener, ListenError> {
        let listener = Listener::prepare(Listener::bind(address)?, door)?;
        listener.open();
        Ok(listener)
    }

    /// A socket that listens on `address`; who connects waits.
    pub fn bind(address: SocketAddr) -> Result<Arc<TcpListener>, ListenError> {
        let refused = |source| ListenError::Bind { address, source };
        let socket = TcpListener::bind(address).map_err(refused)?;
        let failed = |source| ListenError::Start { address, source };
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Arc::new(socket))
    }

    /// Makes everything but accepts nothing before [`open`](Self::open). The socket may be one
    /// that another listener, which ends before, still accepts on.
    pub fn prepare(socket: Arc<TcpListener>, door: Door) -> Result<Listener, ListenError> {
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let refused = |source| ListenError::Bind { address: unknown, source };
        let address = socket.local_addr().map_err(refused)?;
        let failed = |source| ListenError::Start { address, source };
        let stop = Arc::new(EventFd::new().map_err(failed)?);
        let (stopped, listener) = (Arc::clone(&stop), Arc::clone(&socket));
        let (gate, opened) = bounded(1);
        let thread = std::thread::Builder::new()
            .name(format!("listen-{}", address.port()))
            .spawn(move || {
                if opened.recv().is_ok() {
                    accept(&listener, &stopped, &door);
                }
            })
            .map_err(failed)?;
        Ok(Listener { address, socket, gate: Some(gate), stop, thread: Some(thread) })
    }

    /// Begins to accept.
    pub fn open(&self) {
        // There is room for one, and one is enough.
        let _ = self.gate.as_ref().map(|gate| gate.try_send(()));
    }

    /// What it listens on.
    pub fn socket(&self) -> Arc<TcpListener> {
        Arc::clone(&self.socket)
    }

    /// Where it listens; with the port that the kernel chose, if it was to choose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.gate.take();
        self.stop.signal();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the listener on {} panicked", self.address);
        }
    }
}

fn accept(listener: &TcpListener, stop: &EventFd, door: &Door) {
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        if let Err(error) = poll(&mut fds, None)
            && error != rustix::io::Errno::INTR
        {
            tracing::error!("the listener cannot wait: {error}");
            return;
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        match listener.accept() {
            Ok((socket, peer)) => admit(socket, peer, door),
            // Also connections that ended before they were accepted.
            Err(error) if is_passing(&error) => {}
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                std::thread::sleep(PAUSE);
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted | ConnectionReset)
}

fn admit(socket: TcpStream, peer: SocketAddr, door: &Door) {
    let prepared = socket.set_nonblocking(true).and_then(|()| socket.set_nodelay(true));
    match prepared {
        Ok(()) if door.enter(socket).is_ok() => tracing::debug!("{peer} connected"),
        // Counted, and no warning: whoever can connect could fill the log.
        Ok(()) => tracing::debug!("{peer} was turned away: too many connections at once"),
        Err(error) => tracing::debug!("{peer} went before it was served: {error}"),
    }
}
