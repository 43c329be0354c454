//! The daemon's life: make everything, run the workers, follow the machine, stop cleanly.
//!
//! This thread is control: it follows rtnetlink, hands tables to the workers, frees what they no
//! longer use, and ends on SIGTERM or SIGINT. Workers are threads of their own, one pinned to
//! each core of the plan.

use super::api::{ApiError, Bound};
use super::assemble::{self, Handle, House};
use super::confine::{self, ConfineError, WorkerRights};
use super::dpdk;
use super::machine::{self, MachineError};
use super::netlink::{self, underlay::UnderlayError};
use super::ports::Ports;
use super::snapshot::Snapshot;
use super::stores::{self, StoreError};
use super::ways::Ways;
use crate::bell::Bell;
use crate::config::Plan;
use crate::switch::Tables;
use crate::worker::{Message, Worker};
use outboard_dma::{FreeList, Region, RegionError, XskError};
use outboard_ebpf::Instance;
use rustix::thread::{CpuSet, sched_setaffinity};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Where the XDP programs' pins are, a directory per instance.
const PINS: &str = "/sys/fs/bpf/outboard";
/// How often control looks at signals and workers.
const LOOK: Duration = Duration::from_millis(100);

/// Why a daemon did not start or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The machine lacks something.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// No frame memory.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// An XDP program could not be attached.
    #[error(transparent)]
    Steering(#[from] outboard_ebpf::Error),
    /// A tenant's interface is missing.
    #[error(
        "the interface {interface} of port \"{port}\" does not exist in this network namespace; \
         make it with `outboard attach --port {port} --netns … --config …`"
    )]
    NotAttached {
        /// The port.
        port: String,
        /// Its interface.
        interface: String,
    },
    /// An interface is too small for what its port promises, or an uplink for the tenants.
    #[error(
        "the interface {interface} of \"{port}\" has an MTU of {found}, and {needed} are needed \
         for {reason}; run `ip link set {interface} mtu {needed}`, or lower `mtu` of that [[port]]"
    )]
    Mtu {
        /// The port or uplink.
        port: String,
        /// Its interface.
        interface: String,
        /// Its MTU.
        found: usize,
        /// The MTU that it must have.
        needed: usize,
        /// What for.
        reason: String,
    },
    /// An interface has queues that no worker would read.
    #[error(
        "the interface {interface} of \"{port}\" receives on {found} queues, the configuration \
         names {wanted}, and packets on the others would be lost; give it `queues = {found}`, or \
         run `ethtool -L {interface} rx {wanted}` (`combined {wanted}` for most NICs)"
    )]
    Queues {
        /// The port or uplink.
        port: String,
        /// Its interface.
        interface: String,
        /// Receive queues of the interface.
        found: u32,
        /// Queues of the port.
        wanted: u32,
    },
    /// A port of DPDK's in a build without it.
    #[error(
        "port \"{port}\" has `driver = \"dpdk\"`, and this `outboard` was built without DPDK; \
         build it with `--features dpdk`, or take another driver"
    )]
    NoDpdk {
        /// The port.
        port: String,
    },
    /// DPDK's environment did not start.
    #[cfg(feature = "dpdk")]
    #[error(transparent)]
    Eal(#[from] crate::port::dpdk::EalError),
    /// A port of DPDK's could not be opened.
    #[cfg(feature = "dpdk")]
    #[error("port \"{port}\": {source}")]
    Dpdk {
        /// The port.
        port: String,
        /// What is wrong.
        source: crate::port::dpdk::DpdkError,
    },
    /// An AF_XDP socket could not be opened.
    #[error(transparent)]
    Socket(#[from] XskError),
    /// The kernel's routes cannot be followed.
    #[error(transparent)]
    Underlay(#[from] UnderlayError),
    /// A volume, disk or export could not be made.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The control socket could not be served.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Privileges could not be given up.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// A thread, descriptor or signal handler could not be had.
    #[error("cannot set up {what}: {source}")]
    System {
        /// What was being set up.
        what: &'static str,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// Another process is this instance.
    #[error("an instance \"{name}\" is running; stop it, or give this one another `name`")]
    Running {
        /// The instance.
        name: String,
    },
    /// A worker panicked: a defect.
    #[error("worker {0} ended by a panic; its message stands above: this is a defect")]
    WorkerPanicked(usize),
}

fn system(what: &'static str) -> impl Fn(std::io::Error) -> RunError {
    move |source| RunError::System { what, source }
}

/// Runs the plan until SIGTERM or SIGINT; everything it made is gone when it returns.
pub fn run(plan: Plan) -> Result<(), RunError> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // A second signal ends the process at once.
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .map_err(system("signal handlers"))?;
    }
    machine::check(&plan)?;
    let rights = confine::process()?;
    // First what a second daemon of this plan is refused by, while it has touched nothing else.
    let socket = Bound::new(&plan.control_socket)?;
    let instance = claim(&plan)?;
    let region = Region::new(plan.runtime.region_mib * 256)?;
    tracing::info!("{} MiB of frames in {}", region.bytes() >> 20, region.backing().name());
    let bells = bells(plan.workers.len())?;
    let mut ways = Ways::new(&plan)?;
    let tables = Arc::new(ways.tables(&plan));
    let mut shares = shares(region, plan.workers.len());
    let (mut stores, storage) = stores::make(&plan, &bells, &mut shares)?;
    let storage = storage.into_iter().zip(shares).collect();
    let pins = instance.as_ref().map_or(Path::new(""), Instance::directory);
    let House { workers, handles, steering } =
        assemble::assemble(&plan, pins, region, bells, &tables, storage)?;
    let handles = Arc::new(handles);
    let steering = Arc::new(Mutex::new(steering));
    let snapshot = Snapshot::new(&plan, &handles, &steering, &stores);
    let mut ports = Ports::new(pins.to_owned(), region, &handles, &steering);
    stores.keep_files();
    let mut forbidden = confine::Watch::new();
    let outcome = start(&plan, workers, &handles, &rights).and_then(|threads| {
        let served = socket.serve(move || snapshot.take());
        if served.is_ok() {
            tracing::info!("{} is ready; stats at {}", plan.name, plan.control_socket.display());
            supervise(&plan, &mut ways, &mut ports, &handles, &threads, &stop, &mut forbidden);
        }
        let failed = served.err();
        // Guests and hosts leave while the workers still turn and can end their I/O.
        drop(stores);
        let ended = finish(&handles, threads);
        failed.map_or(ended, |error| Err(error.into()))
    });
    let steering = steering.lock().map(|mut all| std::mem::take(&mut *all)).unwrap_or_default();
    assemble::detach(steering);
    forbidden.look();
    if outcome.is_ok() {
        tracing::info!("stopped");
    }
    outcome
}

/// Takes the right to the instance's pins, and removes those on interfaces that the plan no longer
/// has. A plan without ports has no pins.
fn claim(plan: &Plan) -> Result<Option<Instance>, RunError> {
    if plan.ports.is_empty() {
        return Ok(None);
    }
    let instance = Instance::claim(Path::new(PINS), &plan.name).map_err(|error| match error {
        outboard_ebpf::Error::Held { .. } => RunError::Running { name: plan.name.clone() },
        error => error.into(),
    })?;
    // An earlier run may have had a program where DPDK receives now.
    let programs = plan.ports.iter().filter(|port| port.dpdk.is_none());
    let interfaces: Vec<&str> = programs.map(|port| port.interface.as_str()).collect();
    for interface in instance.forget_others(&interfaces)? {
        tracing::info!("took the XDP program of an earlier run off {interface}");
    }
    // Of a plan that had another name then: its programs would be in the way.
    let programs = netlink::xdp_programs(interfaces.iter().copied()).map_err(system("netlink"))?;
    for interface in instance.inherit(&programs)? {
        tracing::info!("took the XDP program of a dead instance of another name off {interface}");
    }
    Ok(Some(instance))
}

fn bells(count: usize) -> Result<Vec<Arc<Bell>>, RunError> {
    (0..count).map(|_| Bell::new().map(Arc::new).map_err(system("a worker's eventfd"))).collect()
}

/// The region in equal shares.
fn shares(region: &'static Region, workers: usize) -> Vec<FreeList> {
    let share = assemble::share_frames(region, workers);
    (0..workers).filter_map(|_| region.carve(share)).collect()
}

/// Starts a thread for every worker; those that run when one cannot be started end again.
fn start(
    plan: &Plan,
    workers: Vec<Worker>,
    handles: &[Handle],
    rights: &WorkerRights,
) -> Result<Vec<JoinHandle<Worker>>, RunError> {
    let mut threads = Vec::new();
    for (index, worker) in workers.into_iter().enumerate() {
        let rights = rights.clone();
        let core = usize::from(plan.workers[index].core);
        let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            let mut cores = CpuSet::new();
            cores.set(core);
            if let Err(error) = sched_setaffinity(None, &cores) {
                tracing::warn!("worker {index} cannot be pinned to core {core}: {error}");
            }
            dpdk::enter_thread();
            if let Err(error) = rights.enter() {
                // Tried before: only a machine that changes its mind comes here.
                tracing::error!("worker {index} does not run: {error}");
                return worker;
            }
            worker.run()
        });
        match thread {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                let _ = finish(handles, threads);
                return Err(system("a worker's thread")(error));
            }
        }
    }
    Ok(threads)
}

/// Follows the kernel's routes and interfaces until a stop is asked for or a worker has died.
fn supervise(
    plan: &Plan,
    ways: &mut Ways,
    ports: &mut Ports,
    handles: &[Handle],
    threads: &[JoinHandle<Worker>],
    stop: &AtomicBool,
    forbidden: &mut confine::Watch,
) {
    let mut told = String::new();
    while !stop.load(Ordering::Relaxed) && threads.iter().all(|thread| !thread.is_finished()) {
        match ways.changed(LOOK) {
            Ok(false) if ways.is_failing() => {}
            Ok(false) => told.clear(),
            Ok(true) => {
                told.clear();
                publish(&Arc::new(ways.tables(plan)), handles);
            }
            Err(error) => {
                let text = format!("{error}; the next hops stay as they were");
                if text != told {
                    tracing::warn!("{text}");
                }
                told = text;
                std::thread::sleep(LOOK);
            }
        }
        ports.follow(plan);
        forbidden.look();
        for handle in handles {
            while handle.retired.try_recv().is_ok() {}
        }
    }
}

/// Gives every worker these tables.
fn publish(tables: &Arc<Tables>, handles: &[Handle]) {
    for handle in handles {
        // A worker takes a message every turn, so a full mailbox has room again at once.
        if handle.mailbox.send(Message::Tables(Arc::clone(tables))).is_ok() {
            handle.bell.ring();
        }
    }
}

/// Tells every worker to stop and waits for them.
fn finish(handles: &[Handle], threads: Vec<JoinHandle<Worker>>) -> Result<(), RunError> {
    for handle in handles {
        let _ = handle.mailbox.send(Message::Stop);
        handle.bell.ring();
    }
    let joined: Vec<_> = threads.into_iter().map(JoinHandle::join).collect();
    let mut workers = Vec::new();
    for (index, worker) in joined.into_iter().enumerate() {
        workers.push(worker.map_err(|_| RunError::WorkerPanicked(index))?);
    }
    workers.iter_mut().for_each(Worker::drain);
    let (mut total, mut recovered) = (0, 0);
    for ended in workers.into_iter().map(Worker::end) {
        total += ended.total_frames;
        recovered += ended.recovered_frames;
    }
    if total != recovered {
        tracing::warn!("{} of {total} frames did not come back", total.abs_diff(recovered));
    }
    Ok(())
}
