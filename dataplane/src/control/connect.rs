//! Connects remote volumes to their NVMe/TCP targets, and keeps them connected: the admin queue
//! stays here, with its keep-alives; the I/O queue is handed to the worker.
//!
//! When either connection is lost, both are ended and made again, with pauses from
//! [`FIRST_PAUSE`] to [`LAST_PAUSE`]. A target that then offers another namespace, or one of
//! another size, is refused: I/O keeps failing instead of reaching somebody else's data.

use crate::clock::now_ns;
use crate::volume::remote::{DEPTH, Link, LossReason, Remote, RemoteControl, RemoteCounters};
use crate::volume::{BlockDevice, Geometry};
use outboard_dma::EventFd;
use outboard_rdma::nvmf::capsule::{Sqe, admin};
use outboard_rdma::nvmf::fabrics::{ANY_CONTROLLER, ConnectData};
use outboard_rdma::nvmf::identify::Namespace;
use outboard_rdma::nvmf::initiator::{
    Found, Progress, Queue, QueueConfig, Setup, SetupError, State,
};
use outboard_rdma::nvmf::{Digests, Fault, Nqn, Piece, StatusCode};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long connecting and setting up may take, all together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pauses between attempts: doubled each time.
pub const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest.
pub const LAST_PAUSE: Duration = Duration::from_secs(5);
/// After this without a sign of us the target gives up the association.
const KEEP_ALIVE_MS: u32 = 10_000;
/// How often a keep-alive is sent. One that is not answered by the next ends the association.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(4);

/// Why a target cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name is not one.
    #[error("`{0}` is no NVMe qualified name; it has 1 to 223 bytes")]
    Name(String),
    /// A descriptor or thread could not be made.
    #[error("cannot prepare a connection to {address}: {source}")]
    Prepare {
        /// The target.
        address: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Nobody answers there.
    #[error("cannot connect to {address}: {source}; is the target running, and reachable?")]
    Connect {
        /// The target.
        address: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The connection ended, or stood still, during the set-up.
    #[error(
        "{address} was reached, but {what} failed: {source}; is an NVMe/TCP target there, with \
         room for another host?"
    )]
    Broken {
        /// The target.
        address: SocketAddr,
        /// What was being done.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The target speaks, and says no.
    #[error("{address}, subsystem {nqn}: {source}{}", hint(source))]
    Setup {
        /// The target.
        address: SocketAddr,
        /// The subsystem asked for.
        nqn: String,
        /// What it said.
        source: SetupError,
    },
    /// Another namespace than before is there.
    #[error(
        "{address}, subsystem {nqn}: another namespace, or one of another size, is there now; \
         it is not used. Restart the daemon to accept it"
    )]
    Changed {
        /// The target.
        address: SocketAddr,
        /// The subsystem.
        nqn: String,
    },
}

fn hint(error: &SetupError) -> &'static str {
    match error {
        SetupError::Refused { status, .. } if status.plain() == StatusCode::CONNECT_PARAMETER => {
            "; is the subsystem's name right?"
        }
        SetupError::Refused { status, .. } if status.plain() == StatusCode::INVALID_NAMESPACE => {
            "; is `nsid` right? An export of Outboard has namespace 1 alone"
        }
        _ => "",
    }
}

/// Where a volume is.
#[derive(Clone, Debug)]
struct Place {
    address: SocketAddr,
    nqn: Nqn,
    nsid: u32,
    digests: Digests,
    host_id: [u8; 16],
    host: Nqn,
}

/// Keeps a remote volume connected until dropped.
#[derive(Debug)]
pub struct Connector {
    stop: Arc<EventFd>,
    state: Arc<Mutex<String>>,
    counters: Arc<RemoteCounters>,
    thread: Option<JoinHandle<()>>,
}

impl Connector {
    /// `ready`, or why the volume is not.
    pub fn state(&self) -> String {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the volume counts.
    pub fn counters(&self) -> &RemoteCounters {
        &self.counters
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        self.stop.signal();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a connector panicked");
        }
    }
}

impl Remote {
    /// Connects to namespace `nsid` of subsystem `nqn` and waits until I/O is possible. The
    /// volume belongs to a worker; the connector keeps it connected.
    pub fn connect(
        address: SocketAddr,
        nqn: &str,
        nsid: u32,
    ) -> Result<(Remote, Connector), ConnectError> {
        Remote::connect_with(address, nqn, nsid, Digests::NONE)
    }

    /// As [`connect`](Self::connect), with these digests on all connections.
    pub fn connect_with(
        address: SocketAddr,
        nqn: &str,
        nsid: u32,
        digests: Digests,
    ) -> Result<(Remote, Connector), ConnectError> {
        let name = Nqn::from(nqn).ok().filter(|nqn| !nqn.is_empty());
        let nqn = name.ok_or_else(|| ConnectError::Name(nqn.to_owned()))?;
        let (host_id, host) = host();
        let place = Place { address, nqn, nsid, digests, host_id, host };
        let prepare = |source| ConnectError::Prepare { address, source };
        let (association, link, found) = associate(&place)?;
        let namespace = found.namespace;
        let geometry = Geometry {
            block_bytes: namespace.block_bytes,
            blocks: namespace.blocks,
            read_only: namespace.read_only,
        };
        let (mut remote, control) =
            Remote::new(geometry, found.max_transfer_bytes).map_err(prepare)?;
        control.hand_over(link);
        remote.reap(now_ns(), &mut crate::volume::Dones::new());
        let stop = Arc::new(EventFd::new().map_err(prepare)?);
        let state = Arc::new(Mutex::new("ready".to_owned()));
        let counters = control.counters();
        let keeper = Keeper {
            place,
            namespace,
            control,
            stop: Arc::clone(&stop),
            state: Arc::clone(&state),
        };
        let thread = std::thread::Builder::new()
            .name("connect".into())
            .spawn(move || keeper.run(association))
            .map_err(prepare)?;
        Ok((remote, Connector { stop, state, counters, thread: Some(thread) }))
    }
}

/// The admin queue's connection, and a second handle of the I/O queue's.
#[derive(Debug)]
struct Association {
    socket: TcpStream,
    queue: Queue,
    io: TcpStream,
}

/// What ended an association.
#[derive(Debug)]
enum Ended {
    Stopped,
    /// The worker lost the I/O queue.
    Io(LossReason),
    /// The admin queue failed.
    Admin(String),
}

struct Keeper {
    place: Place,
    namespace: Namespace,
    control: RemoteControl,
    stop: Arc<EventFd>,
    state: Arc<Mutex<String>>,
}

impl Keeper {
    fn run(self, first: Association) {
        let Place { address, nqn, .. } = self.place;
        let mut association = first;
        loop {
            tracing::info!("connected to {address}, subsystem {nqn}");
            self.say("ready".into());
            let why = match self.watch(&mut association) {
                Ended::Stopped => return,
                Ended::Io(reason) => reason.to_string(),
                Ended::Admin(why) => {
                    // The worker finds its end, and gives the link back.
                    let _ = association.io.shutdown(Shutdown::Both);
                    why
                }
            };
            drop(association);
            tracing::warn!("lost {address}, subsystem {nqn}: {why}");
            self.say(format!("lost the connection: {why}"));
            let Some(again) = self.reconnect() else { return };
            association = again;
        }
    }

    /// Sends keep-alives until something ends.
    fn watch(&self, association: &mut Association) -> Ended {
        let mut due = Instant::now() + KEEP_ALIVE_EVERY;
        loop {
            let left = due.saturating_duration_since(Instant::now());
            let socket = association.socket.as_fd();
            let [is_stopped, is_readable] = match self.wait(Some(socket), left) {
                Ok(ready) => ready,
                Err(error) => return Ended::Admin(format!("cannot wait: {error}")),
            };
            if is_stopped {
                return Ended::Stopped;
            }
            if let Some(lost) = self.control.take_lost() {
                return Ended::Io(lost.reason);
            }
            let outcome = if is_readable {
                association.receive()
            } else if Instant::now() >= due {
                due = Instant::now() + KEEP_ALIVE_EVERY;
                association.keep_alive()
            } else {
                Ok(())
            };
            if let Err(error) = outcome {
                return Ended::Admin(format!("admin queue: {error}"));
            }
        }
    }

    fn reconnect(&self) -> Option<Association> {
        let mut pause = FIRST_PAUSE;
        let mut told = String::new();
        loop {
            let [is_stopped, _] = self.wait(None, pause).unwrap_or([true, false]);
            if is_stopped {
                return None;
            }
            // Links that the worker gave back since are closed here.
            while self.control.take_lost().is_some() {}
            pause = (pause * 2).min(LAST_PAUSE);
            match self.attempt() {
                Ok(association) => return Some(association),
                Err(error) => {
                    let text = error.to_string();
                    // A target may be away for days: what has been said is not said again.
                    if text != told {
                        tracing::warn!("{text}; trying again");
                        told.clone_from(&text);
                    }
                    self.say(text);
                }
            }
        }
    }

    fn attempt(&self) -> Result<Association, ConnectError> {
        let (association, link, found) = associate(&self.place)?;
        let Place { address, nqn, .. } = self.place;
        if found.namespace != self.namespace {
            return Err(ConnectError::Changed { address, nqn: nqn.to_string() });
        }
        if self.control.hand_over(link) {
            return Ok(association);
        }
        // The worker has not taken the last one yet: it will, and lose it.
        let source = io::Error::from(ErrorKind::ResourceBusy);
        Err(ConnectError::Prepare { address, source })
    }

    /// Waits for the stop, a lost link, the admin socket, or the time: whether it is the stop,
    /// and whether the socket has something.
    fn wait(&self, socket: Option<BorrowedFd>, time: Duration) -> io::Result<[bool; 2]> {
        // The lost bell is looked at by the caller in any case.
        let mut fds = [
            PollFd::new(&*self.stop, PollFlags::IN),
            PollFd::new(self.control.lost_bell(), PollFlags::IN),
            PollFd::from_borrowed_fd(socket.unwrap_or(self.stop.as_fd()), PollFlags::IN),
        ];
        let timeout =
            Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
        // While reconnecting, a link that comes back is no reason to hurry.
        let watched = if socket.is_some() { &mut fds[..] } else { &mut fds[..1] };
        match poll(watched, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_readable = socket.is_some() && !fds[2].revents().is_empty();
        Ok([!fds[0].revents().is_empty(), is_readable])
    }

    fn say(&self, state: String) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

impl Association {
    fn receive(&mut self) -> io::Result<()> {
        read_once(&mut self.socket, &mut self.queue)?;
        while let Some(end) = self.queue.take_control_end() {
            if !end.status.is_success() {
                return Err(io::Error::other(format!("keep-alive refused: {}", end.status)));
            }
        }
        Ok(())
    }

    fn keep_alive(&mut self) -> io::Result<()> {
        if self.queue.is_control_in_flight() {
            return Err(io::Error::new(ErrorKind::TimedOut, "a keep-alive was not answered"));
        }
        self.queue.control(Sqe::new(admin::KEEP_ALIVE, 0, 0), 0);
        write_all(&mut self.socket, &mut self.queue)
    }
}

/// Makes an association: admin queue, set-up, one I/O queue.
fn associate(place: &Place) -> Result<(Association, Link, Found), ConnectError> {
    let Place { address, nqn, nsid, .. } = *place;
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    let setup_failed = |source| ConnectError::Setup { address, nqn: nqn.to_string(), source };
    let mut socket = open(address, deadline)?;
    let mut queue = Queue::new(config(place, 0, 1, ANY_CONTROLLER, 0));
    let mut setup = Setup::new(nsid);
    let found = loop {
        let step = |source| ConnectError::Broken { address, what: "setting up", source };
        match setup.poll(now_ns(), &mut queue).map_err(setup_failed)? {
            Progress::Done(found) => break found,
            Progress::Answer => {
                exchange(&mut socket, &mut queue, deadline).map_err(step)?;
            }
            Progress::Time { at_ns } => {
                std::thread::sleep(Duration::from_nanos(at_ns.saturating_sub(now_ns())));
            }
        }
    };
    let mut io = open(address, deadline)?;
    let depth = found.max_in_flight.min(DEPTH);
    let config = config(place, 1, depth, found.controller, found.in_capsule_bytes);
    let mut io_queue = Queue::new(config);
    loop {
        let step = |source| ConnectError::Broken { address, what: "connecting a queue", source };
        match io_queue.state() {
            State::Ready { .. } => break,
            State::Connecting => exchange(&mut io, &mut io_queue, deadline).map_err(step)?,
            State::Refused(status) => {
                let step = "to connect an I/O queue";
                return Err(setup_failed(SetupError::Refused { step, status }));
            }
            State::Failed(fault) => return Err(setup_failed(SetupError::Failed(fault))),
        }
    }
    let prepare = |source| ConnectError::Prepare { address, source };
    let timeout = socket.set_write_timeout(Some(CONNECT_TIMEOUT));
    timeout.and_then(|()| io.set_nonblocking(true)).map_err(prepare)?;
    let second = io.try_clone().map_err(prepare)?;
    let link = Link { socket: io, queue: io_queue };
    Ok((Association { socket, queue, io: second }, link, found))
}

fn config(place: &Place, queue: u16, depth: u16, controller: u16, in_capsule: u32) -> QueueConfig {
    QueueConfig {
        queue,
        depth,
        keep_alive_ms: KEEP_ALIVE_MS,
        in_capsule_bytes: in_capsule,
        nsid: place.nsid,
        digests: place.digests,
        names: ConnectData {
            host_id: place.host_id,
            controller,
            subsystem: place.nqn,
            host: place.host,
        },
    }
}

fn open(address: SocketAddr, deadline: Instant) -> Result<TcpStream, ConnectError> {
    let refused = |source| ConnectError::Connect { address, source };
    let left = remaining(deadline).map_err(refused)?;
    let socket = TcpStream::connect_timeout(&address, left).map_err(refused)?;
    socket.set_nodelay(true).map_err(refused)?;
    Ok(socket)
}

fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::Error::new(ErrorKind::TimedOut, "no answer in time"));
    }
    Ok(left)
}

/// Sends what the engine has, then waits for some bytes.
fn exchange(socket: &mut TcpStream, queue: &mut Queue, deadline: Instant) -> io::Result<()> {
    let left = remaining(deadline)?;
    socket.set_write_timeout(Some(left))?;
    socket.set_read_timeout(Some(left))?;
    write_all(socket, queue)?;
    match read_once(socket, queue) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Err(io::Error::new(ErrorKind::TimedOut, "no answer in time"))
        }
        outcome => outcome,
    }
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

/// This machine as a host: its machine-id where there is one, so that a restart is the same host.
fn host() -> ([u8; 16], Nqn) {
    let text = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let number = u128::from_str_radix(text.trim(), 16).unwrap_or_else(|_| {
        use std::hash::{BuildHasher, RandomState};
        let half = || u128::from(RandomState::new().hash_one(0));
        half() << 64 | half()
    });
    let hex = format!("{number:032x}");
    let uuid = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
    let name = format!("nqn.2014-08.org.nvmexpress:uuid:{uuid}");
    (number.to_be_bytes(), Nqn::from(&name).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::listen::Listener;
    use crate::volume::export::{Export, ExportConfig};
    use crate::volume::{Dones, Full, Io, Mem, Op, Volume, conformance};
    use crate::worker::{Storage, User, VolumeSlot};
    use outboard_dma::Region;
    use outboard_rdma::nvmf::identify::Identity;
    use std::net::TcpListener;
    use std::os::fd::RawFd;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn this_host_has_a_name_and_keeps_it() {
        let (id, name) = host();
        assert_ne!(id, [0; 16]);
        assert!(name.starts_with("nqn.2014-08.org.nvmexpress:uuid:") && name.len() == 68);
        if std::fs::exists("/etc/machine-id").unwrap_or(false) {
            assert_eq!(host(), (id, name));
        }
    }

    #[test]
    fn nobody_there_is_said_with_a_remedy() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = Remote::connect(address, "nqn.a", 1).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("is the target running"));
        let error = Remote::connect(address, "", 1).unwrap_err().to_string();
        assert!(error.contains("no NVMe qualified name"));
    }

    #[test]
    fn a_peer_that_speaks_something_else_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let peer = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            socket.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
            let mut rest = Vec::new();
            let _ = socket.read_to_end(&mut rest);
        });
        let error = Remote::connect(address, "nqn.a", 1).unwrap_err().to_string();
        assert!(error.contains("pdu_type"), "{error}");
        peer.join().unwrap();
    }

    const NQN: &str = "nqn.2025-01.io.outboard:conformance";

    /// A remote volume, and the target that serves it on a thread of its own.
    struct Served {
        remote: Remote,
        _connector: Connector,
        _listener: Listener,
        stop: Arc<AtomicBool>,
        target: Option<JoinHandle<()>>,
    }

    fn serve(geometry: Geometry) -> Served {
        serve_with(geometry, Digests::NONE)
    }

    fn serve_with(geometry: Geometry, digests: Digests) -> Served {
        let volume = Volume::Mem(Mem::new(geometry, false).unwrap());
        let config = ExportConfig {
            nqn: NQN.into(),
            serial: "1".into(),
            identity: Identity { nguid: [7; 16], uuid: [0; 16] },
            owner: 0,
            connections: 2,
            shared_frames: 64,
        };
        let mut free = Region::new(config.frames()).unwrap().carve(config.frames()).unwrap();
        let (export, door) = Export::new(&config, &volume, &mut free).unwrap();
        let users = vec![User::Export(export)];
        let mut storage = Storage::new(vec![VolumeSlot { volume, users }]);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let target = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if storage.turn(now_ns()) == 0 {
                    std::thread::yield_now();
                }
            }
            assert!(storage.close(&mut free));
        });
        let listener = Listener::start("127.0.0.1:0".parse().unwrap(), door).unwrap();
        let (remote, connector) =
            Remote::connect_with(listener.address(), NQN, 1, digests).unwrap();
        assert_eq!(remote.geometry(), geometry);
        let target = Some(target);
        Served { remote, _connector: connector, _listener: listener, stop, target }
    }

    impl Drop for Served {
        fn drop(&mut self) {
            self.stop.store(true, Ordering::Relaxed);
            let outcome = self.target.take().map(JoinHandle::join);
            assert!(std::thread::panicking() || matches!(outcome, Some(Ok(()))));
        }
    }

    impl BlockDevice for Served {
        fn geometry(&self) -> Geometry {
            self.remote.geometry()
        }

        fn submit(&mut self, now_ns: u64, io: &Io) -> Result<(), Full> {
            self.remote.submit(now_ns, io)
        }

        fn reap(&mut self, now_ns: u64, done: &mut Dones) {
            self.remote.reap(now_ns, done);
        }

        fn in_flight(&self) -> u32 {
            self.remote.in_flight()
        }

        fn wake_fd(&self) -> Option<RawFd> {
            self.remote.wake_fd()
        }
    }

    const OPS: [Op; 6] =
        [Op::Read, Op::Write, Op::Flush, Op::Discard, Op::WriteZeroes, Op::Compare];

    #[test]
    fn it_keeps_the_promise_of_volumes() {
        conformance::suite(u32::from(DEPTH), &OPS, serve);
    }

    #[test]
    fn it_keeps_the_promise_of_volumes_with_digests() {
        let serve = |geometry| serve_with(geometry, Digests::BOTH);
        conformance::suite(u32::from(DEPTH), &OPS, serve);
    }
}
