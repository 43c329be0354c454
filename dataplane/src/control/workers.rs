//! The workers as control sees them: their threads, what they are told, and what comes back.
//!
//! Every message but those about storage and `Stop` has exactly one answer, which control waits
//! for: a worker takes a message every turn, and a turn is short. What leaves the storage rooms
//! comes when its I/O has ended.

use super::confine::WorkerRights;
use super::dpdk;
use super::run::{RunError, system};
use crate::bell::Bell;
use crate::config::Plan;
use crate::config::plan::WaitMode;
use crate::port::peer::Peer;
use crate::switch::{Seed, Switch, SwitchCounters, Tables};
use crate::worker::{
    Fittings, Left, Message, Network, Retired, Storage, Waiting, Worker, WorkerCounters,
};
use crossbeam::channel::{Receiver, Sender, bounded};
use outboard_dma::{FreeList, Region};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Messages that wait for one worker.
const MAILBOX: usize = 64;
/// How often it is looked whether a worker that owes an answer still lives.
const LOOK: Duration = Duration::from_millis(100);

/// Control's side of one worker.
#[derive(Debug)]
pub struct Handle {
    mailbox: Sender<Message>,
    retired: Receiver<Retired>,
    /// What wakes it.
    pub bell: Arc<Bell>,
    /// What it counts about itself.
    pub counters: Arc<WorkerCounters>,
    /// What its flow cache counts.
    pub switch: Arc<SwitchCounters>,
}

/// All workers, running.
#[derive(Debug)]
pub struct Workers {
    handles: Arc<Vec<Handle>>,
    threads: Vec<JoinHandle<Worker>>,
    region: &'static Region,
    /// Frames of each worker's share that no queue and no export has a claim to.
    unclaimed: Vec<u32>,
    /// What has left storage rooms, by worker, and was not looked at yet.
    left: VecDeque<(u16, Left)>,
}

impl Workers {
    /// Starts the workers of a plan with nothing to do. Those that run when one cannot be started
    /// end again.
    pub fn start(
        plan: &Plan,
        region: &'static Region,
        tables: &Arc<Tables>,
        rights: &WorkerRights,
    ) -> Result<Workers, RunError> {
        let count = plan.workers.len();
        let share = region.frames() / count as u32;
        let bells: Result<Vec<_>, _> = (0..count).map(|_| Bell::new().map(Arc::new)).collect();
        let bells = bells.map_err(system("a worker's eventfd"))?;
        let seed = Seed::new(random());
        let (mut handles, mut workers) = (Vec::new(), Vec::new());
        for (index, peers) in peers(&bells).into_iter().enumerate() {
            let (mailbox, inbox) = bounded(MAILBOX);
            let (outbox, retired) = bounded(MAILBOX);
            let switch = Switch::new(plan.runtime.flows, seed, Arc::clone(tables));
            let handle = Handle {
                mailbox,
                retired,
                bell: Arc::clone(&bells[index]),
                counters: Arc::default(),
                switch: switch.counters(),
            };
            let network = Network::new(Vec::new(), Vec::new(), peers, switch, Vec::new());
            let fittings = Fittings {
                free: region.carve(share).expect("the shares are no more than the region"),
                share_frames: share as usize,
                mailbox: inbox,
                retired: outbox,
                bell: Arc::clone(&handle.bell),
                waiting: waiting(plan),
                counters: Arc::clone(&handle.counters),
            };
            workers.push(Worker::new(network, Storage::new(Vec::new()), fittings));
            handles.push(handle);
        }
        let mut started = Workers {
            handles: Arc::new(handles),
            threads: Vec::new(),
            region,
            unclaimed: vec![share; count],
            left: VecDeque::new(),
        };
        for (index, worker) in workers.into_iter().enumerate() {
            match spawn(index, plan.workers[index].core, worker, rights.clone()) {
                Ok(thread) => started.threads.push(thread),
                Err(error) => {
                    let _ = started.finish();
                    return Err(system("a worker's thread")(error));
                }
            }
        }
        Ok(started)
    }

    /// Control's side of each.
    pub fn handles(&self) -> &Arc<Vec<Handle>> {
        &self.handles
    }

    /// How many there are.
    pub fn count(&self) -> u16 {
        self.handles.len() as u16
    }

    /// Whether all of them run.
    pub fn are_alive(&self) -> bool {
        self.threads.iter().all(|thread| !thread.is_finished())
    }

    /// Tells a worker something that has no answer now.
    pub fn tell(&self, worker: u16, message: Message) {
        let handle = &self.handles[usize::from(worker)];
        // A worker that has died is noticed by `are_alive`.
        let _ = handle.mailbox.send(message);
        handle.bell.ring();
    }

    /// Waits for a worker's answer; `None` when it has died.
    fn answer(&mut self, worker: u16) -> Option<Retired> {
        let index = usize::from(worker);
        loop {
            match self.handles[index].retired.recv_timeout(LOOK) {
                Ok(Retired::Storage(left)) => self.left.push_back((worker, left)),
                Ok(answer) => return Some(answer),
                Err(_) if self.threads[index].is_finished() => return None,
                Err(_) => {}
            }
        }
    }

    /// Tells a worker something and waits for its answer; `None` when it has died.
    pub fn ask(&mut self, worker: u16, message: Message) -> Option<Retired> {
        self.tell(worker, message);
        self.answer(worker)
    }

    /// Gives every worker these tables, and returns when no worker uses the old ones.
    pub fn publish(&mut self, tables: &Arc<Tables>) {
        for worker in 0..self.count() {
            self.tell(worker, Message::Tables(Arc::clone(tables)));
        }
        for worker in 0..self.count() {
            drop(self.answer(worker));
        }
    }

    /// Has `count` frames claimed out of a worker's share; `false`: there are not so many.
    pub fn claim(&mut self, worker: u16, count: u32) -> bool {
        let unclaimed = &mut self.unclaimed[usize::from(worker)];
        let left = unclaimed.checked_sub(count);
        *unclaimed = left.unwrap_or(*unclaimed);
        left.is_some()
    }

    /// Frames of a worker's share that are not claimed.
    pub fn unclaimed(&self, worker: u16) -> u32 {
        self.unclaimed[usize::from(worker)]
    }

    /// Takes a claim back.
    pub fn disclaim(&mut self, worker: u16, count: u32) {
        self.unclaimed[usize::from(worker)] += count;
    }

    /// Takes `count` frames of a worker's stock; a list with fewer when it has not so many.
    pub fn take_frames(&mut self, worker: u16, count: u32) -> Box<FreeList> {
        let list = Box::new(FreeList::with_capacity(self.region.frames() as usize));
        match self.ask(worker, Message::TakeFrames(list, count)) {
            Some(Retired::Frames(list)) => list,
            _ => Box::new(FreeList::with_capacity(0)),
        }
    }

    /// Gives frames back to the worker whose they are.
    pub fn give_frames(&mut self, worker: u16, frames: Box<FreeList>) {
        drop(self.ask(worker, Message::Frames(frames)));
    }

    /// An empty list with room for every frame.
    pub fn empty_list(&self) -> Box<FreeList> {
        Box::new(FreeList::with_capacity(self.region.frames() as usize))
    }

    /// The next thing that has left a worker's storage room.
    pub fn next_left(&mut self) -> Option<(u16, Left)> {
        for worker in 0..self.count() {
            while let Ok(retired) = self.handles[usize::from(worker)].retired.try_recv() {
                if let Retired::Storage(left) = retired {
                    self.left.push_back((worker, left));
                }
            }
        }
        self.left.pop_front()
    }

    /// Tells every worker to stop and waits for them.
    pub fn finish(self) -> Result<(), RunError> {
        for worker in 0..self.count() {
            self.tell(worker, Message::Stop);
        }
        let joined: Vec<_> = self.threads.into_iter().map(JoinHandle::join).collect();
        let mut workers = Vec::new();
        for (index, worker) in joined.into_iter().enumerate() {
            workers.push(worker.map_err(|_| RunError::WorkerPanicked(index))?);
        }
        workers.iter_mut().for_each(Worker::drain);
        let (mut total, mut recovered) = (0, 0);
        for (index, ended) in workers.into_iter().map(Worker::end).enumerate() {
            if !ended.all_ended {
                tracing::warn!("worker {index} stopped while I/O was in flight: it took too long");
            }
            total += ended.total_frames;
            recovered += ended.recovered_frames;
        }
        if total != recovered {
            tracing::warn!("{} of {total} frames did not come back", total.abs_diff(recovered));
        }
        Ok(())
    }
}

fn spawn(
    index: usize,
    core: u16,
    worker: Worker,
    rights: WorkerRights,
) -> std::io::Result<JoinHandle<Worker>> {
    std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        let mut cores = CpuSet::new();
        cores.set(core.into());
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
    })
}

/// The ways between every two workers: `[from][to]`.
fn peers(bells: &[Arc<Bell>]) -> Vec<Vec<Option<Peer>>> {
    let mut ways: Vec<Vec<Option<Peer>>> =
        bells.iter().map(|_| bells.iter().map(|_| None).collect()).collect();
    for first in 0..bells.len() {
        for second in first + 1..bells.len() {
            let (a, b) = Peer::pair(Arc::clone(&bells[first]), Arc::clone(&bells[second]));
            ways[first][second] = Some(a);
            ways[second][first] = Some(b);
        }
    }
    ways
}

fn waiting(plan: &Plan) -> Waiting {
    let spin_ns = u64::from(plan.runtime.spin_us) * 1000;
    Waiting { mode: plan.runtime.mode, spin_ns }
}

/// The name of a wait mode in reports.
pub fn mode_name(mode: WaitMode) -> &'static str {
    match mode {
        WaitMode::Busy => "busy",
        WaitMode::Yield => "yield",
        WaitMode::Adaptive => "adaptive",
    }
}

/// 64 bits that a tenant cannot guess: the seed of the flow hash.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
