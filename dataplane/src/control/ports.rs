//! The ports that are open: they come, go, and follow their interfaces.
//!
//! A container that starts again gets another veth pair of the same name, to which the program and
//! the sockets of the old one do not belong: control attaches and opens everything anew, the
//! worker only swaps one port for the other; the old one is closed here, and its frames go back
//! to the worker.

use super::assemble::{self, OpenPort, Site};
use super::run::RunError;
use super::workers::Workers;
use super::{dpdk, netlink};
use crate::config::Plan;
use crate::config::diff::{Difference, Kind};
use crate::config::plan::Port;
use crate::counters::PortCounters;
use crate::packet::PortId;
use crate::port::{AnyPort, Port as _};
use crate::worker::{Message, PortParts, Queue, Retired};
use outboard_dma::FreeList;
use outboard_ebpf::Steering;
use outboard_wire::ethernet;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often interfaces are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// A port that is open and that no worker knows yet.
#[derive(Debug)]
pub struct NewPort {
    open: OpenPort,
    queues: Vec<AnyPort>,
}

/// All ports. To be used in the network namespace of the daemon.
#[derive(Debug)]
pub struct Ports {
    open: Arc<Mutex<Vec<OpenPort>>>,
    /// What was last said about a port; those that nothing is wrong with are not there.
    told: HashMap<PortId, String>,
    due: Instant,
}

impl Ports {
    /// None yet.
    pub fn new() -> Ports {
        Ports { open: Arc::default(), told: HashMap::new(), due: Instant::now() + LOOK }
    }

    /// The ports, to read what they count.
    pub fn shared(&self) -> Arc<Mutex<Vec<OpenPort>>> {
        Arc::clone(&self.open)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<OpenPort>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens what is to come by `difference`, aside, and appends it to `new`; checks that what
    /// stays can be what the plan says.
    pub fn prepare(
        &self,
        site: Site,
        difference: &Difference,
        workers: &mut Workers,
        new: &mut Vec<NewPort>,
    ) -> Result<(), RunError> {
        for port in &site.plan.ports {
            if !difference.begins(port.kind(), &port.name) {
                let open = self.lock();
                if let Some(open) = open.iter().find(|open| open.port.id == port.id) {
                    assemble::check_mtu(site.plan, port, open.mtu)?;
                }
                continue;
            }
            let entries = assemble::claim(site.plan, port, workers, site.region)?;
            let counters = (0..workers.count()).map(|_| Arc::default()).collect();
            let opened = match &port.dpdk {
                None => assemble::open_port(site, port, entries, counters),
                Some(device) => open_device(site, port, device, entries, counters, workers),
            };
            match opened {
                Ok((open, queues)) => new.push(NewPort { open, queues }),
                Err(error) => {
                    assemble::disclaim(port, entries, workers);
                    return Err(error);
                }
            }
        }
        let wanted = assemble::vteps(site.plan);
        let ours = self.lock().iter().flat_map(|open| assemble::vteps_of(&open.port)).collect();
        self.set_vteps([wanted, ours].concat())
    }

    /// Closes what was opened in vain.
    pub fn undo(&self, new: Vec<NewPort>, workers: &mut Workers) {
        for NewPort { open, mut queues } in new {
            // Sockets have no frames before a worker has them; devices of DPDK's do.
            let mut frames = workers.empty_list();
            queues.iter_mut().for_each(|queue| close(&open.port.name, queue, &mut frames));
            workers.give_frames(open.port.queues[0], frames);
            drop(queues);
            assemble::disclaim(&open.port, open.entries, workers);
            assemble::detach(open.steering);
        }
        let ours = self.lock().iter().flat_map(|open| assemble::vteps_of(&open.port)).collect();
        if let Err(error) = self.set_vteps(ours) {
            tracing::warn!("{error}");
        }
    }

    /// Has the programs of the uplinks take tunnel packets for these addresses.
    fn set_vteps(&self, vteps: Vec<std::net::IpAddr>) -> Result<(), RunError> {
        let mut all = self.lock();
        for open in all.iter_mut().filter(|open| open.port.kind() == Kind::Uplink) {
            if let Some(program) = &mut open.steering {
                program.set_vteps(&vteps)?;
            }
        }
        Ok(())
    }

    /// Gives the workers new ports. Nothing leads there until there are tables that know them.
    pub fn add(&self, new: Vec<NewPort>, workers: &mut Workers) {
        for NewPort { open, queues } in new {
            let port = &open.port;
            let mut own: Vec<Vec<Queue>> = (0..workers.count()).map(|_| Vec::new()).collect();
            for (worker, way) in port.queues.iter().zip(queues) {
                own[usize::from(*worker)].push(Queue::new(port.id, way));
            }
            for (worker, queues) in own.into_iter().enumerate() {
                let counters = Arc::clone(&open.counters[worker]);
                let owner = port.queues[0];
                let parts = PortParts { id: port.id, counters, owner, queues };
                workers.ask(worker as u16, Message::AddPort(Box::new(parts)));
            }
            self.lock().push(open);
        }
    }

    /// The ports that leave: they are no longer shown or followed.
    pub fn take_leaving(&self, difference: &Difference) -> Vec<OpenPort> {
        let mut leaving = Vec::new();
        let mut all = self.lock();
        while let Some(index) =
            all.iter().position(|open| difference.ends(open.port.kind(), &open.port.name))
        {
            leaving.push(all.remove(index));
        }
        leaving
    }

    /// Removes ports that no worker's tables know any more.
    pub fn remove(&mut self, leaving: Vec<OpenPort>, workers: &mut Workers) {
        for OpenPort { port, steering, entries, counters, .. } in leaving {
            self.told.remove(&port.id);
            assemble::detach(steering);
            for worker in 0..workers.count() {
                let own = port.queues.iter().filter(|owner| **owner == worker).count();
                let parts = PortParts {
                    id: port.id,
                    counters: Arc::clone(&counters[usize::from(worker)]),
                    owner: worker,
                    queues: Vec::with_capacity(own),
                };
                let gone = workers.ask(worker, Message::RemovePort(Box::new(parts)));
                let Some(Retired::Parts(parts)) = gone else { continue };
                let mut frames = workers.empty_list();
                for mut queue in parts.queues {
                    close(&port.name, &mut queue.port, &mut frames);
                }
                workers.give_frames(worker, frames);
            }
            assemble::disclaim(&port, entries, workers);
        }
    }

    /// From now on ports are what the plan says.
    pub fn settle(&self, plan: &Plan) {
        for open in self.lock().iter_mut() {
            if let Some(port) = plan.ports.iter().find(|port| port.id == open.port.id) {
                open.port = port.clone();
            }
        }
        if let Err(error) = self.set_vteps(assemble::vteps(plan)) {
            tracing::warn!("{error}");
        }
    }

    /// Takes the programs off all interfaces: the daemon ends.
    pub fn detach_all(&self) {
        for open in std::mem::take(&mut *self.lock()) {
            assemble::detach(open.steering);
        }
    }

    /// Looks at the interfaces, when it is time, and opens those that were made anew.
    pub fn follow(&mut self, site: Site, workers: &mut Workers) {
        if Instant::now() < self.due {
            return;
        }
        let names = site.plan.ports.iter().map(|port| port.interface.as_str());
        // When the kernel does not tell, it is asked again.
        if let Ok(found) = netlink::indices(names) {
            for (port, found) in site.plan.ports.iter().zip(found) {
                self.look_at(site, port, found, workers);
            }
        }
        self.due = Instant::now() + LOOK;
    }

    fn look_at(&mut self, site: Site, port: &Port, found: Option<u32>, workers: &mut Workers) {
        if port.dpdk.is_some() {
            return;
        }
        let index = |open: &OpenPort| open.steering.as_ref().map(Steering::interface_index);
        let attached = self.lock().iter().find(|open| open.port.id == port.id).and_then(index);
        let text = match found {
            _ if found == attached => String::new(),
            None => missing(port, attached),
            Some(_) => match self.reopen(site, port, workers) {
                Ok(()) => String::new(),
                Err(error) => format!("port {}: {error}; it is tried again", port.name),
            },
        };
        if text.is_empty() {
            self.told.remove(&port.id);
        } else if self.told.get(&port.id) != Some(&text) {
            tracing::warn!("{text}");
            self.told.insert(port.id, text);
        }
    }

    fn reopen(&self, site: Site, port: &Port, workers: &mut Workers) -> Result<(), RunError> {
        let known = |open: &OpenPort| (open.entries, open.counters.clone());
        let known = self.lock().iter().find(|open| open.port.id == port.id).map(known);
        let Some((entries, counters)) = known else { return Ok(()) };
        let (open, queues) = assemble::open_port(site, port, entries, counters)?;
        // The old program's interface is gone, and its pins are replaced: nothing to detach.
        if let Some(place) = self.lock().iter_mut().find(|open| open.port.id == port.id) {
            *place = open;
        }
        let mut nth = vec![0; usize::from(workers.count())];
        for (worker, way) in port.queues.iter().zip(queues) {
            let own = &mut nth[usize::from(*worker)];
            swap(workers, *worker, port.id, *own, way);
            *own += 1;
        }
        Ok(())
    }
}

/// Opens a device of DPDK's, with frames of its worker's to receive into.
fn open_device(
    site: Site,
    port: &Port,
    device: &str,
    entries: u32,
    counters: Vec<Arc<PortCounters>>,
    workers: &mut Workers,
) -> Result<(OpenPort, Vec<AnyPort>), RunError> {
    let worker = port.queues[0];
    let mut frames = workers.take_frames(worker, 2 * entries);
    let own = Arc::clone(&counters[usize::from(worker)]);
    let opened = dpdk::open_port(site, port, device, entries, own, &mut frames);
    workers.give_frames(worker, frames);
    let way = opened?;
    let mtu = way.max_frame_bytes() - ethernet::BYTES;
    let open = OpenPort { port: port.clone(), steering: None, entries, mtu, counters };
    Ok((open, vec![way]))
}

/// Closes a queue, whose frames come back; one that its driver keeps is the worker's no more.
fn close(name: &str, queue: &mut AnyPort, frames: &mut FreeList) {
    queue.close(frames);
    if queue.lost() > 0 {
        tracing::warn!("port {name}: its driver kept {} frames for good", queue.lost());
    }
}

/// What to say of a port without an interface of its name. One that was renamed goes on as it is,
/// with its program and its sockets, until another one takes the name.
fn missing(port: &Port, attached: Option<u32>) -> String {
    let Port { name, interface, .. } = port;
    match attached.and_then(|index| netlink::name(index).ok().flatten()) {
        Some(now) => format!(
            "port {name}: its interface {interface} is called {now} now and stays in use; the \
             next start needs the old name, or `interface = \"{now}\"`"
        ),
        None => format!("port {name}: its interface {interface} is gone"),
    }
}

/// Gives a worker another port for one of its queues, closes the old one, and gives the worker
/// the frames that it had.
fn swap(workers: &mut Workers, worker: u16, id: PortId, nth: u16, way: AnyPort) {
    if let Some(Retired::Port(mut old)) = workers.ask(worker, Message::Port(id, nth, Box::new(way)))
    {
        let mut frames = workers.empty_list();
        old.close(&mut frames);
        workers.give_frames(worker, frames);
    }
}
