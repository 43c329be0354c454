//! What runs, and the one way to change it: a start applies the plan to a daemon that has nothing
//! but its workers, a later apply to what is there.
//!
//! An apply is all or nothing. Everything that can fail (interfaces, sockets, programs, volumes,
//! connections, memory) is made aside first, while everything old goes on; when something cannot
//! be made, what was made is undone. Only then are workers told, which cannot fail. New tables
//! reach every worker before a port goes, so that no packet is decided for one that is not there;
//! what has I/O in flight leaves when that has ended. Whatever an apply waits for, the kernel and
//! the interfaces are followed meanwhile.

use super::api::apply::{Outcome, Report, Request};
use super::api::capture;
use super::api::ledger::Looks;
use super::assemble::Site;
use super::capture::Captures;
use super::confine::WorkerRights;
use super::dpdk;
use super::ledger::Keeper;
use super::machine;
use super::netlink;
use super::opening::Opening;
use super::ports::{NewPort, Ports};
use super::run::{RunError, system};
use super::snapshot::Snapshot;
use super::stats::Stats;
use super::stores::{NewStores, RINGS_PATIENCE, Stores};
use super::ways::Ways;
use super::workers::Workers;
use crate::config::diff::{Difference, Kind};
use crate::config::plan::Port;
use crate::config::{self, Plan};
use crate::ledger::Subject;
use outboard_dma::Region;
use outboard_ebpf::Instance;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where the XDP programs' pins are, a directory per instance.
const PINS: &str = "/sys/fs/bpf/outboard";
/// How long an apply waits for the I/O of what leaves; what takes longer leaves later.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often an apply that waits looks whether it is over.
const STEP: Duration = Duration::from_millis(2);

/// Everything of a daemon.
#[derive(Debug)]
pub struct House {
    plan: Plan,
    region: &'static Region,
    workers: Workers,
    /// The right to the instance's pins; a plan without ports needs none.
    instance: Option<Instance>,
    ways: Ways,
    ports: Ports,
    stores: Stores,
    captures: Captures,
    started: Instant,
    /// Whether the first plan is in force.
    has_started: bool,
    snapshot: Arc<Mutex<Snapshot>>,
    ledger: Keeper,
}

/// What was made aside for a plan.
#[derive(Debug, Default)]
struct Ready {
    instance: Option<Instance>,
    ways: Option<Ways>,
    ports: Vec<NewPort>,
    stores: NewStores,
}

/// What came of an apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// What differed.
    pub difference: Difference,
    /// What is still to leave, because its I/O takes long.
    pub leaving: Vec<String>,
}

impl House {
    /// The workers of a plan, with nothing to do.
    pub fn new(plan: &Plan, rights: &WorkerRights) -> Result<House, RunError> {
        let region = Region::new(plan.runtime.region_mib * 256)?;
        tracing::info!("{} MiB of frames in {}", region.bytes() >> 20, region.backing().name());
        let plan = plan.bare();
        let ways = Ways::new(&plan, None)?;
        let mut workers = Workers::start(&plan, region, &Arc::new(ways.tables(&plan)), rights)?;
        let (ports, stores, started) = (Ports::new(), Stores::default(), Instant::now());
        let snapshot = Snapshot::new(&plan, started, workers.handles(), &ports.shared(), &stores);
        let snapshot = Arc::new(Mutex::new(snapshot));
        let instance = None;
        let ledger = Keeper::new(plan.runtime.ledger, &mut workers);
        Ok(House {
            plan,
            region,
            workers,
            instance,
            ways,
            ports,
            stores,
            captures: Captures::default(),
            started,
            has_started: false,
            snapshot,
            ledger,
        })
    }

    /// Makes everything as `plan` says, or changes nothing.
    pub fn apply(&mut self, plan: Plan) -> Result<Applied, RunError> {
        let difference = self.difference(&plan);
        if !difference.refusals.is_empty() {
            return Err(RunError::Refused(difference.refusals));
        }
        let plan = plan.placed(&self.plan, &difference, &[]);
        let mut ready = Ready::default();
        if let Err(error) = self.prepare(&plan, &difference, &mut ready) {
            self.undo(ready);
            return Err(error);
        }
        self.stores.stop_rings(&difference);
        let give_up = Instant::now() + RINGS_PATIENCE;
        self.follow_until(|house| {
            house.stores.have_rings_ended(&difference) || Instant::now() >= give_up
        });
        self.commit(plan, &difference, ready);
        self.has_started = true;
        let give_up = Instant::now() + PATIENCE;
        self.follow_until(|house| {
            house.stores.leaving().len() == 0 || Instant::now() >= give_up || !house.is_alive()
        });
        let leaving = self.stores.leaving().map(str::to_owned).collect();
        Ok(Applied { difference, leaving })
    }

    /// Follows the kernel and the interfaces while an apply waits for something, so that nothing
    /// goes stale.
    fn follow_until(&mut self, is_over: impl Fn(&House) -> bool) {
        while !is_over(self) {
            // What cannot be followed for longer than the apply takes is told after it.
            if self.follow(STEP).is_err() {
                std::thread::sleep(STEP);
            }
        }
    }

    /// What differs, and what cannot be on this daemon.
    fn difference(&self, plan: &Plan) -> Difference {
        // DPDK's arguments are the environment's, not the last plan's: the first port starts it.
        let now = Plan { eal: dpdk::arguments_for(plan), ..self.plan.clone() };
        let mut difference = Difference::between(&now, plan);
        if self.has_started {
            let begins = |port: &&Port| difference.begins(port.kind(), &port.name);
            let refusals: Vec<_> =
                plan.ports.iter().filter(begins).filter_map(dpdk::refusal).collect();
            difference.refusals.extend(refusals);
        }
        difference
    }

    fn prepare(
        &mut self,
        plan: &Plan,
        difference: &Difference,
        ready: &mut Ready,
    ) -> Result<(), RunError> {
        machine::check_more(plan, difference)?;
        if self.instance.is_none() && !plan.ports.is_empty() {
            ready.instance = Some(claim(plan)?);
        }
        let is_network = |kind| matches!(kind, Kind::Vpc | Kind::Port | Kind::Uplink);
        if difference.changes.iter().any(|change| is_network(change.kind)) {
            ready.ways = Some(Ways::new(plan, Some(&mut self.ways))?);
        }
        self.stores.check_leaving(plan, difference)?;
        let opening = Opening::begin(plan, difference)?;
        self.follow_until(|_| opening.is_over());
        let (opened, workers) = (opening.finish()?, &mut self.workers);
        self.stores.prepare(plan, difference, opened, workers, &mut ready.stores)?;
        let instance = ready.instance.as_ref().or(self.instance.as_ref());
        let pins = instance.map_or(Path::new(""), Instance::directory);
        let site = Site { pins, region: self.region, plan };
        self.ports.prepare(site, difference, &mut self.workers, &mut ready.ports)
    }

    fn undo(&mut self, ready: Ready) {
        self.ports.undo(ready.ports, &mut self.workers);
        self.stores.undo(ready.stores, &mut self.workers);
    }

    fn commit(&mut self, plan: Plan, difference: &Difference, ready: Ready) {
        self.instance = ready.instance.or(self.instance.take());
        // Before a number can become another port's.
        self.captures.settle(&plan, &mut self.workers);
        // Before what comes, which may have the name of what goes.
        let leaving = self.ports.take_leaving(difference);
        self.ports.add(ready.ports, &mut self.workers);
        self.stores.commit(&plan, difference, ready.stores, &mut self.workers);
        self.plan = plan;
        if let Some(mut ways) = ready.ways {
            // What has changed meanwhile; what cannot be read now is read again soon.
            if let Err(error) = ways.changed(Duration::ZERO) {
                tracing::warn!("{error}; the next hops stay as they were");
            }
            self.ways = ways;
            self.publish();
        }
        self.ports.remove(leaving, &mut self.workers);
        self.ports.settle(&self.plan);
        let (handles, ports) = (self.workers.handles(), self.ports.shared());
        let snapshot = Snapshot::new(&self.plan, self.started, handles, &ports, &self.stores);
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    fn publish(&mut self) {
        self.workers.publish(&Arc::new(self.ways.tables(&self.plan)));
    }

    /// Waits for at most `time` for a change of the kernel's routes, follows it and the
    /// interfaces, and frees what has left.
    pub fn follow(&mut self, time: Duration) -> Result<(), RunError> {
        let changed = self.ways.changed(time);
        if let Ok(true) = changed {
            self.publish();
        }
        let pins = self.instance.as_ref().map_or(Path::new(""), Instance::directory);
        let site = Site { pins, region: self.region, plan: &self.plan };
        self.ports.follow(site, &mut self.workers);
        self.stores.collect(&mut self.workers);
        self.captures.settle(&self.plan, &mut self.workers);
        changed.map(drop).map_err(RunError::from)
    }

    /// Begins and ends looks at the ledgers.
    pub fn follow_looks(&mut self, looks: &Looks) {
        let port = |id: u16| {
            let port = self.plan.ports.iter().find(|port| port.id.0 == id);
            port.map_or("a port that has left", |port| &port.name)
        };
        self.ledger.follow(&mut self.workers, looks, |subject| match *subject {
            Subject::Packet { from, to } => format!("{} to {}", port(from), port(to)),
            Subject::Io { volume, owner, op } => {
                format!("{op} of {}", self.stores.user_name(volume, owner))
            }
        });
    }

    /// Whether the kernel could not be asked when that was last tried.
    pub fn is_failing(&self) -> bool {
        self.ways.is_failing()
    }

    /// Begins a capture that a client asks for.
    pub fn capture(&mut self, job: capture::Job) {
        self.captures.begin(job, &self.plan, &mut self.workers);
    }

    /// Does what a client asks for.
    pub fn answer(&mut self, request: &Request) -> Result<Report, String> {
        let plan = config::parse(&request.file, request.config.as_bytes());
        let plan = plan.map_err(|errors| errors.to_string())?;
        let difference = self.difference(&plan);
        let report = |difference, outcome| Ok(Report { difference, outcome });
        if !difference.refusals.is_empty() {
            return report(difference, Outcome::Refused);
        }
        if request.dry_run {
            return report(difference, Outcome::NotTried);
        }
        tracing::info!("applying {}", request.file);
        match self.apply_and_tell(plan) {
            Ok(Applied { difference, leaving }) => report(difference, Outcome::Applied { leaving }),
            Err(error) => report(difference, Outcome::Failed { reason: error.to_string() }),
        }
    }

    /// As [`apply`](Self::apply), with the log told what came of it.
    pub fn apply_and_tell(&mut self, plan: Plan) -> Result<Applied, RunError> {
        let outcome = self.apply(plan);
        match &outcome {
            Err(error) => tracing::error!("nothing was changed: {error}"),
            Ok(applied) if applied.difference.is_empty() => tracing::info!("nothing differs"),
            Ok(applied) => {
                for change in &applied.difference.changes {
                    tracing::info!("applied: {}", change.headline());
                }
                for what in &applied.leaving {
                    tracing::warn!("{what} has I/O in flight and leaves when that has ended");
                }
            }
        }
        outcome
    }

    /// What gives the counts now.
    pub fn snapshot(&self) -> impl Fn() -> Stats + Send + 'static {
        let snapshot = Arc::clone(&self.snapshot);
        move || snapshot.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The instance's name and its control socket.
    pub fn names(&self) -> (&str, &Path) {
        (&self.plan.name, &self.plan.control_socket)
    }

    /// Whether all workers run.
    pub fn is_alive(&self) -> bool {
        self.workers.are_alive()
    }

    /// Ends everything.
    pub fn end(self) -> Result<(), RunError> {
        self.captures.end();
        // Guests and hosts leave while the workers still turn and can end their I/O.
        drop(self.stores);
        let ended = self.workers.finish();
        self.ports.detach_all();
        ended
    }
}

/// Takes the right to the instance's pins, and removes those on interfaces that the plan no longer
/// has.
fn claim(plan: &Plan) -> Result<Instance, RunError> {
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
    Ok(instance)
}
