//! The daemon's life: make everything, run the workers, follow the machine, stop cleanly.
//!
//! This thread is control: it follows rtnetlink, hands tables to the workers, frees what they no
//! longer use, and ends on SIGTERM or SIGINT. Workers are threads of their own, one pinned to
//! each core of the plan.

use super::api::{Api, ApiError};
use super::assemble::{self, Handle, House};
use super::machine::{self, MachineError};
use super::netlink::underlay::{Underlay, UnderlayError};
use super::snapshot::Snapshot;
use super::stores::{self, StoreError};
use crate::bell::Bell;
use crate::config::Plan;
use crate::switch::{NextHop, Tables};
use crate::worker::{Message, Worker};
use outboard_dma::{FreeList, Region, RegionError, XskError};
use rustix::thread::{CpuSet, sched_setaffinity};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

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
    /// A thread, descriptor or signal handler could not be had.
    #[error("cannot set up {what}: {source}")]
    System {
        /// What was being set up.
        what: &'static str,
        /// The kernel's reason.
        source: std::io::Error,
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
    let region = Region::new(plan.runtime.region_mib * 256)?;
    tracing::info!("{} MiB of frames in {}", region.bytes() >> 20, region.backing().name());
    let bells = bells(plan.workers.len())?;
    let mut underlay = Underlay::new(&plan)?;
    let next_hops = underlay.poll(Duration::ZERO)?.unwrap_or_default();
    let tables = Arc::new(Tables::new(&plan, &next_hops));
    let (stores, storage) = stores::make(&plan, &bells)?;
    let storage = storage.into_iter().zip(shares(region, plan.workers.len())).collect();
    let house = assemble::assemble(&plan, region, bells, &tables, storage)?;
    let House { workers, handles, steering } = house;
    let handles = Arc::new(handles);
    let steering = Arc::new(std::sync::Mutex::new(steering));
    let snapshot = Snapshot::new(&plan, &handles, &steering, &stores);
    let served = Api::start(&plan.control_socket, move || snapshot.take());
    let outcome = served.map_err(RunError::from).and_then(|api| {
        let threads = start(&plan, workers)?;
        tracing::info!("{} is ready; stats at {}", plan.name, plan.control_socket.display());
        supervise(&plan, &mut underlay, &handles, &threads, &stop);
        drop(api);
        finish(&handles, threads)
    });
    drop(stores);
    if let Ok(mut steering) = steering.lock() {
        assemble::detach(std::mem::take(&mut steering));
    }
    outcome
}

fn bells(count: usize) -> Result<Vec<Arc<Bell>>, RunError> {
    (0..count).map(|_| Bell::new().map(Arc::new).map_err(system("a worker's eventfd"))).collect()
}

/// The region in equal shares.
fn shares(region: &'static Region, workers: usize) -> Vec<FreeList> {
    let share = region.frames() / workers as u32;
    (0..workers).filter_map(|_| region.carve(share)).collect()
}

fn start(plan: &Plan, workers: Vec<Worker>) -> Result<Vec<JoinHandle<Worker>>, RunError> {
    let mut threads = Vec::new();
    for (index, worker) in workers.into_iter().enumerate() {
        let core = usize::from(plan.workers[index].core);
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                let mut cores = CpuSet::new();
                cores.set(core);
                if let Err(error) = sched_setaffinity(None, &cores) {
                    tracing::warn!("worker {index} cannot be pinned to core {core}: {error}");
                }
                worker.run()
            })
            .map_err(system("a worker's thread"))?;
        threads.push(thread);
    }
    Ok(threads)
}

/// Follows the kernel's routes until a stop is asked for or a worker has died.
fn supervise(
    plan: &Plan,
    underlay: &mut Underlay,
    handles: &[Handle],
    threads: &[JoinHandle<Worker>],
    stop: &AtomicBool,
) {
    while !stop.load(Ordering::Relaxed) && threads.iter().all(|thread| !thread.is_finished()) {
        match underlay.poll(LOOK) {
            Ok(None) => {}
            Ok(Some(next_hops)) => publish(plan, &next_hops, handles),
            Err(error) => {
                tracing::warn!("{error}; the next hops stay as they were");
                std::thread::sleep(LOOK);
            }
        }
        for handle in handles {
            while handle.retired.try_recv().is_ok() {}
        }
    }
}

/// Gives every worker tables with these next hops.
fn publish(plan: &Plan, next_hops: &[(Ipv4Addr, NextHop)], handles: &[Handle]) {
    for (far_end, next_hop) in next_hops {
        tracing::info!("far end {far_end}: {next_hop:?}");
    }
    let tables = Arc::new(Tables::new(plan, next_hops));
    for handle in handles {
        // A worker takes a message every turn, so a full mailbox has room again at once.
        if handle.mailbox.send(Message::Tables(Arc::clone(&tables))).is_ok() {
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
    let mut workers = Vec::new();
    for (index, thread) in threads.into_iter().enumerate() {
        workers.push(thread.join().map_err(|_| RunError::WorkerPanicked(index))?);
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
    tracing::info!("stopped");
    Ok(())
}
