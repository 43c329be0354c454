//! Connects remote volumes to their NVMe/TCP targets, and keeps them connected: the admin queue
//! stays here, with its keep-alives; the I/O queue is handed to the worker.
//!
//! When either connection is lost, both are ended and made again: at once, and then with pauses
//! from [`FIRST_PAUSE`] to [`LAST_PAUSE`]. I/O waits meanwhile (`volume/remote`), and is sent again
//! when the past can have no effect any more: a target that knows the Fence command says when, any
//! other is given `quiesce`. A target that then offers another namespace, or one of another size,
//! is not used, and I/O ends as `MediumReplaced` until the right one is back; one that has given
//! this volume's place to another process ends it as `Stale` for good.
//!
//! A volume whose size and unit are stated needs no target to begin with: it starts without a
//! connection, as after a loss, and a target that has another size or unit is not used.
//!
//! A target that does not fence may still work on what an earlier process was sent: what changes
//! the content waits `quiesce` after the first connection too. The time runs from when the kernel
//! can deliver nothing more: a connection that is given up is reset, and what it had not sent is
//! dropped, by whichever way it ends (`association`). What the network itself still has is part of
//! what `quiesce` is for.
//!
//! What notices that a target has gone: its closing of the connection; [`UNACKNOWLEDGED_MAX`]
//! without an acknowledgement of its kernel; [`ANSWER_MAX`] without an answer to a keep-alive,
//! which is sent every [`KEEP_ALIVE_EVERY`] on the admin queue. A slow medium is none of these: an
//! I/O may take as long as it does.

mod association;
mod keeper;

use crate::clock::now_ns;
use crate::volume::remote::{Remote, RemoteCounters};
use crate::volume::{BlockDevice, Dones, Geometry};
use association::{Epoch, Expected, Patience, associate};
use keeper::Keeper;
use outboard_dma::EventFd;
use outboard_rdma::nvmf::fence::{Boot, Life};
use outboard_rdma::nvmf::identify::Namespace;
use outboard_rdma::nvmf::initiator::SetupError;
use outboard_rdma::nvmf::{Digests, Nqn, StatusCode};
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long connecting, setting up and fencing may take, all together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pauses between attempts, but for the first one: doubled each time.
pub const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest.
pub const LAST_PAUSE: Duration = Duration::from_secs(2);
/// After this without a sign of us the target gives up the association.
const KEEP_ALIVE_MS: u32 = 10_000;
/// How often a keep-alive is sent.
pub const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(2);
/// How long its answer may take before the target counts as gone. A target's worker answers
/// between two turns, so that this is a process that does not run at all.
pub const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long sent data may go without an acknowledgement before the connection counts as lost.
pub const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(8);
/// How long I/O in flight may take to end when the volume stops.
const STOP_MAX: Duration = Duration::from_secs(1);
/// How long I/O waits for a connection unless told otherwise.
const LOSS_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a target that does not fence may still work on what it was sent before, unless told
/// otherwise.
const QUIESCE: Duration = Duration::from_secs(30);

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
    /// The target has another size or unit than is stated.
    #[error(
        "{address}, subsystem {nqn}: {difference}; it is not used. Correct `size`, `block_bytes` \
         or `read_only`"
    )]
    Geometry {
        /// The target.
        address: SocketAddr,
        /// The subsystem.
        nqn: String,
        /// What is there, and what is stated.
        difference: String,
    },
    /// Another process has taken this volume's place.
    #[error(
        "{address}, subsystem {nqn}: another process with the name and volume of this one on this \
         machine has taken its place, so that this one's epoch is of the past; its I/O fails. Give \
         one of them another `name`, and restart this daemon"
    )]
    Stale {
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

/// What a remote volume is made with.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The target's address.
    pub address: SocketAddr,
    /// Its subsystem.
    pub nqn: String,
    /// The namespace.
    pub nsid: u32,
    /// Digests to ask for, on all connections.
    pub digests: Digests,
    /// Tells this volume from others that this machine has at that subsystem, and is the same
    /// after a restart: whoever connects as the same user ends what the one before has in flight.
    pub user: String,
    /// How long I/O that changes the content waits before it is sent again to a target that does
    /// not fence.
    pub quiesce: Duration,
    /// How long I/O waits for a connection that was lost; zero: not at all.
    pub loss_timeout: Duration,
    /// The size and unit that the target must have; with them the volume starts without it.
    pub stated: Option<Geometry>,
}

impl Wanted {
    /// Namespace `nsid` of subsystem `nqn` for a user that no other volume is.
    pub fn new(address: SocketAddr, nqn: &str, nsid: u32) -> Wanted {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Wanted {
            address,
            nqn: nqn.to_owned(),
            nsid,
            digests: Digests::NONE,
            user: format!("{}.{number}", std::process::id()),
            quiesce: QUIESCE,
            loss_timeout: LOSS_TIMEOUT,
            stated: None,
        }
    }
}

/// Where a volume is, and as whom it is used.
#[derive(Clone, Debug)]
struct Place {
    address: SocketAddr,
    nqn: Nqn,
    nsid: u32,
    digests: Digests,
    host_id: [u8; 16],
    host: Nqn,
    user: u32,
    life: Life,
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

    /// Begins to end the volume's I/O: what is not done in a moment is aborted, so that nobody
    /// waits for a target that does not answer.
    pub fn stop(&self) {
        self.stop.signal();
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a connector panicked");
        }
    }
}

impl Remote {
    /// Connects to namespace `nsid` of subsystem `nqn` as a user of its own, and waits until I/O
    /// is possible. The volume belongs to a worker; the connector keeps it connected.
    pub fn connect(
        address: SocketAddr,
        nqn: &str,
        nsid: u32,
    ) -> Result<(Remote, Connector), ConnectError> {
        Remote::connect_as(&Wanted::new(address, nqn, nsid))
    }

    /// The same for a user with a name. A volume whose geometry is stated does not wait for a
    /// target that cannot be reached.
    pub fn connect_as(wanted: &Wanted) -> Result<(Remote, Connector), ConnectError> {
        let address = wanted.address;
        let name = Nqn::from(&wanted.nqn).ok().filter(|nqn| !nqn.is_empty());
        let nqn = name.ok_or_else(|| ConnectError::Name(wanted.nqn.clone()))?;
        let (host_id, host) = host();
        let user = user_number(&wanted.user);
        let Wanted { nsid, digests, .. } = *wanted;
        let life = life();
        let place = Place { address, nqn, nsid, digests, host_id, host, user, life };
        let prepare = |source| ConnectError::Prepare { address, source };
        let stop = Arc::new(EventFd::new().map_err(prepare)?);
        let patience = Patience::new(&stop);
        // What a process before this one had not sent went with it.
        let begun = Instant::now();
        let first = match associate(&place, Expected::Anything, Epoch::NONE, &patience) {
            Ok(first) => Ok(first),
            Err(error) => match (&error, wanted.stated) {
                (ConnectError::Connect { .. } | ConnectError::Broken { .. }, Some(stated)) => {
                    tracing::warn!("{error}; trying again");
                    Err((error.to_string(), stated))
                }
                _ => return Err(error),
            },
        };
        let geometry = match &first {
            Ok((_, _, namespace)) => geometry_of(namespace),
            Err((_, stated)) => *stated,
        };
        let (mut remote, control) = Remote::new(geometry, wanted.loss_timeout).map_err(prepare)?;
        let state = first.as_ref().map_or_else(|(why, _)| why.clone(), |_| "ready".to_owned());
        let state = Arc::new(Mutex::new(state));
        let (association, namespace) = match first {
            Ok((association, mut link, namespace)) => {
                link.changes_from_ns = association.changes_from_ns(wanted.quiesce, begun);
                control.hand_over(link);
                remote.reap(now_ns(), &mut Dones::new());
                (Some(association), Some(namespace))
            }
            Err(_) => (None, None),
        };
        let counters = control.counters();
        let keeper = Keeper {
            place,
            namespace,
            stated: wanted.stated,
            quiesce: wanted.quiesce,
            epoch: association.as_ref().map_or(Epoch::NONE, |first| first.epoch),
            control,
            counters: Arc::clone(&counters),
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

fn geometry_of(namespace: &Namespace) -> Geometry {
    let Namespace { block_bytes, blocks, read_only, .. } = *namespace;
    Geometry { block_bytes, blocks, read_only }
}

/// What this machine's kernel drew when it started; `None` where it does not tell.
fn boot_id() -> Option<u128> {
    uuid_in("/proc/sys/kernel/random/boot_id")
}

/// The same, as an export tells it to its hosts.
pub(super) fn boot() -> Boot {
    boot_id().map_or(Boot::default(), u128::to_be_bytes)
}

/// The UUID that a file of the system has.
fn uuid_in(path: &str) -> Option<u128> {
    let text = std::fs::read_to_string(path).ok()?;
    u128::from_str_radix(&text.trim().replace('-', ""), 16).ok()
}

/// A volume that is made now, as a process of its user.
fn life() -> Life {
    let time = clock_gettime(ClockId::Boottime);
    // The last 24 bits of a boot identifier are random (RFC 9562, section 5.4); 0 would be none.
    let boot = boot_id().map_or(0, |id| (id as u32 & 0xff_ffff).max(1));
    Life { boot, begun_ns: (time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64).max(1) }
}

/// This machine as a host: its machine-id where there is one, else what its kernel drew when it
/// started, so that a restart of the daemon is the same host.
fn host() -> ([u8; 16], Nqn) {
    let machine = uuid_in("/etc/machine-id").or_else(boot_id);
    let number = machine.unwrap_or_else(|| {
        use std::hash::{BuildHasher, RandomState};
        let half = || u128::from(RandomState::new().hash_one(0));
        half() << 64 | half()
    });
    let hex = format!("{number:032x}");
    let uuid = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
    let name = format!("nqn.2014-08.org.nvmexpress:uuid:{uuid}");
    (number.to_be_bytes(), Nqn::from(&name).unwrap_or_default())
}

/// FNV-1a (Fowler, Noll, Vo): the same for the same name in every version of this program.
fn user_number(name: &str) -> u32 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    name.bytes().fold(0x811c_9dc5, step)
}

/// Nanoseconds since 1970: what grows over restarts, and is never 0.
pub(super) fn wall_clock_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(1, |since| since.as_nanos() as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::listen::Listener;
    use crate::volume::export::{Export, ExportConfig};
    use crate::volume::remote::DEPTH;
    use crate::volume::{Dones, Full, Io, Mem, Op, Volume, conformance};
    use crate::worker::{Storage, User, VolumeSlot};
    use outboard_dma::Region;
    use outboard_rdma::nvmf::identify::Identity;
    use std::io::{Read, Write};
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

    #[test]
    fn a_volume_that_is_made_later_is_a_later_life_of_the_same_start() {
        let (first, second) = (life(), life());
        assert_eq!(first.boot, second.boot);
        assert!(0 < first.begun_ns && first.begun_ns < second.begun_ns);
        assert_eq!(first.boot == 0, boot_id().is_none());
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
            first_epoch: 1,
            boot: boot(),
        };
        let mut free = Region::new(config.frames()).unwrap().carve(config.frames()).unwrap();
        let (export, door) = Export::new(&config, volume.geometry(), &mut free).unwrap();
        let user = User::Export(Box::new(export));
        let mut storage = Storage::new(vec![VolumeSlot::new(0, volume).with(user)]);
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
        let wanted = Wanted { digests, ..Wanted::new(listener.address(), NQN, 1) };
        let (remote, connector) = Remote::connect_as(&wanted).unwrap();
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
