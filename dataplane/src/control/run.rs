//! The daemon's life: start the workers, apply the plan, follow the machine, stop cleanly.
//!
//! This thread is control: it follows rtnetlink, hands tables to the workers, frees what they no
//! longer use, applies other plans when it is asked to, and ends on SIGTERM or SIGINT. Workers are
//! threads of their own, one pinned to each core of the plan.

use super::api::{ApiError, Bound, Desk};
use super::confine::{self, ConfineError};
use super::dpdk;
use super::house::House;
use super::machine::{self, MachineError};
use super::metrics::{Metrics, MetricsError};
use super::netlink::underlay::UnderlayError;
use super::stores::StoreError;
use crate::config::{self, Plan};
use outboard_dma::{RegionError, XskError};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often control looks at signals, requests and workers.
const LOOK: Duration = Duration::from_millis(100);

/// Why a daemon did not start, did not apply a plan, or did not end well.
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
    /// Metrics could not be served.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
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
    /// A worker has not enough frames for another port.
    #[error(
        "port \"{port}\" needs {needed} frames for each queue and worker {worker} has {free} left; \
         raise `region_mib` in [runtime] and restart, or use another worker"
    )]
    Frames {
        /// The port.
        port: String,
        /// The worker.
        worker: u16,
        /// Frames for each queue.
        needed: u32,
        /// Frames that nobody has claimed.
        free: u32,
    },
    /// A plan contradicts what runs.
    #[error("{}", .0.join("; "))]
    Refused(Vec<String>),
    /// A worker panicked: a defect.
    #[error("worker {0} ended by a panic; its message stands above: this is a defect")]
    WorkerPanicked(usize),
}

/// Names what was being set up when the kernel refused.
pub fn system(what: &'static str) -> impl Fn(std::io::Error) -> RunError {
    move |source| RunError::System { what, source }
}

/// What signals ask for.
#[derive(Clone, Debug, Default)]
struct Signals {
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
}

impl Signals {
    fn register() -> Result<Signals, RunError> {
        let signals = Signals::default();
        let set_up = || {
            for signal in [SIGTERM, SIGINT] {
                // A second signal ends the process at once.
                let stop = || Arc::clone(&signals.stop);
                signal_hook::flag::register_conditional_shutdown(signal, 1, stop())?;
                signal_hook::flag::register(signal, stop())?;
            }
            signal_hook::flag::register(SIGHUP, Arc::clone(&signals.reload))
        };
        set_up().map_err(system("signal handlers"))?;
        Ok(signals)
    }
}

/// Runs the plan of the configuration `file` until SIGTERM or SIGINT; everything it made is gone
/// when it returns. On SIGHUP the file is read and applied again.
pub fn run(plan: Plan, file: &Path) -> Result<(), RunError> {
    let signals = Signals::register()?;
    machine::check(&plan)?;
    let rights = confine::process()?;
    // First what a second daemon of this plan is refused by, while it has touched nothing else.
    let socket = Bound::new(&plan.control_socket)?;
    let metrics = plan.metrics.map(Metrics::bind).transpose()?;
    // Before the workers' threads, which enter it.
    dpdk::start(&plan)?;
    let mut house = House::new(&plan, &rights)?;
    let mut forbidden = confine::Watch::new();
    let outcome = house.apply(plan).map(drop).and_then(|()| {
        let desk = Desk::default();
        let _served = socket.serve_with(house.snapshot(), &desk)?;
        let serve = |listener| Metrics::serve(listener, house.snapshot());
        let _metrics = metrics.map(serve).transpose().map_err(system("the thread of metrics"))?;
        let (name, path) = house.names();
        tracing::info!("{name} is ready; stats at {}", path.display());
        supervise(&mut house, &signals, &desk, file, &mut forbidden);
        Ok(())
    });
    let ended = house.end();
    forbidden.look();
    let outcome = outcome.and(ended);
    if outcome.is_ok() {
        tracing::info!("stopped");
    }
    outcome
}

/// Follows the kernel's routes and interfaces, and does what is asked for, until a stop is asked
/// for or a worker has died.
fn supervise(
    house: &mut House,
    signals: &Signals,
    desk: &Desk,
    file: &Path,
    forbidden: &mut confine::Watch,
) {
    let mut told = String::new();
    while !signals.stop.load(Ordering::Relaxed) && house.is_alive() {
        match house.follow(LOOK) {
            Ok(()) if house.is_failing() => {}
            Ok(()) => told.clear(),
            Err(error) => {
                let text = format!("{error}; the next hops stay as they were");
                if text != told {
                    tracing::warn!("{text}");
                }
                told = text;
                std::thread::sleep(LOOK);
            }
        }
        forbidden.look();
        if signals.reload.swap(false, Ordering::Relaxed) {
            reload(house, file);
        }
        desk.captures().for_each(|job| house.capture(job));
        house.follow_looks(&desk.looks);
        desk.work(|request| house.answer(request));
    }
}

/// Applies the file once more; the log tells what came of it.
fn reload(house: &mut House, file: &Path) {
    tracing::info!("SIGHUP: applying {}", file.display());
    match config::load(file) {
        Ok(plan) => drop(house.apply_and_tell(plan)),
        Err(error) => tracing::error!("nothing was changed: {error}"),
    }
}
