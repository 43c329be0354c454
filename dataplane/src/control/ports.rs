//! Ports whose interface is made anew: a container that starts again gets another veth pair of the
//! same name, to which the program and the sockets of the old one do not belong.
//!
//! Control attaches and opens everything anew, the worker only swaps one port for the other; the
//! old one is closed here, and its frames go back to the worker.

use super::assemble::{self, Handle, Programs};
use super::netlink;
use super::run::RunError;
use crate::config::Plan;
use crate::port::{AnyPort, Port};
use crate::worker::{Message, Retired};
use outboard_dma::{FreeList, Region};
use outboard_ebpf::Steering;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often interfaces are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long a worker may take to give the old port back; it takes a turn.
const SWAP_TIMEOUT: Duration = Duration::from_secs(5);

/// Follows the interfaces of all ports. To be used in the network namespace of the daemon.
#[derive(Debug)]
pub struct Ports {
    pins: PathBuf,
    region: &'static Region,
    handles: Arc<Vec<Handle>>,
    steering: Arc<Mutex<Programs>>,
    /// What was last said about each port; empty: nothing is wrong with it.
    told: Vec<String>,
    due: Instant,
}

impl Ports {
    /// Follows the interfaces that the programs are attached to.
    pub fn new(
        pins: PathBuf,
        region: &'static Region,
        handles: &Arc<Vec<Handle>>,
        steering: &Arc<Mutex<Programs>>,
    ) -> Ports {
        let (handles, steering) = (Arc::clone(handles), Arc::clone(steering));
        Ports { pins, region, handles, steering, told: Vec::new(), due: Instant::now() + LOOK }
    }

    /// Looks at the interfaces, when it is time, and opens those that were made anew.
    pub fn follow(&mut self, plan: &Plan) {
        if Instant::now() < self.due {
            return;
        }
        self.told.resize(plan.ports.len(), String::new());
        let names = plan.ports.iter().map(|port| port.interface.as_str());
        // When the kernel does not tell, it is asked again.
        if let Ok(found) = netlink::indices(names) {
            for (index, found) in found.into_iter().enumerate() {
                self.look_at(plan, index, found);
            }
        }
        self.due = Instant::now() + LOOK;
    }

    fn look_at(&mut self, plan: &Plan, index: usize, found: Option<u32>) {
        let port = &plan.ports[index];
        if port.dpdk.is_some() {
            return;
        }
        let attached =
            self.steering().get(index).and_then(Option::as_ref).map(Steering::interface_index);
        let text = match found {
            _ if found == attached => String::new(),
            None => self.missing(plan, index, attached),
            Some(_) => match self.reopen(plan, index) {
                Ok(()) => String::new(),
                Err(error) => format!("port {}: {error}; it is tried again", port.name),
            },
        };
        if text != self.told[index] {
            if !text.is_empty() {
                tracing::warn!("{text}");
            }
            self.told[index] = text;
        }
    }

    /// What to say of a port without an interface of its name. One that was renamed goes on as it
    /// is, with its program and its sockets, until another one takes the name.
    fn missing(&self, plan: &Plan, index: usize, attached: Option<u32>) -> String {
        let port = &plan.ports[index];
        let (name, interface) = (&port.name, &port.interface);
        match attached.and_then(|index| netlink::name(index).ok().flatten()) {
            Some(now) => format!(
                "port {name}: its interface {interface} is called {now} now and stays in use; the \
                 next start needs the old name, or `interface = \"{now}\"`"
            ),
            None => format!("port {name}: its interface {interface} is gone"),
        }
    }

    fn steering(&self) -> std::sync::MutexGuard<'_, Programs> {
        self.steering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reopen(&self, plan: &Plan, index: usize) -> Result<(), RunError> {
        let counters = |worker: u16| Arc::clone(&self.handles[usize::from(worker)].ports[index]);
        let (program, opened) =
            assemble::open_port(plan, index, &self.pins, self.region, counters)?;
        // The old program's interface is gone, and its pins are replaced: nothing to detach.
        self.steering()[index] = Some(program);
        for (queue, way) in opened.into_iter().enumerate() {
            let worker = usize::from(plan.ports[index].queues[queue]);
            swap(&self.handles[worker], assemble::place(plan, index, queue), way, self.region);
        }
        Ok(())
    }
}

/// Gives a worker another port for one of its queues, closes the old one, and gives the worker
/// the frames that it had.
fn swap(handle: &Handle, place: u16, way: AnyPort, region: &Region) {
    if !tell(handle, Message::Port(place, Box::new(way))) {
        return;
    }
    let give_up = Instant::now() + SWAP_TIMEOUT;
    while let Ok(retired) = handle.retired.recv_deadline(give_up) {
        if let Retired::Port(mut old) = retired {
            let mut frames = Box::new(FreeList::with_capacity(region.frames() as usize));
            old.close(&mut frames);
            tell(handle, Message::Frames(frames));
            return;
        }
    }
}

/// Whether the worker still takes messages.
fn tell(handle: &Handle, message: Message) -> bool {
    let told = handle.mailbox.send(message).is_ok();
    handle.bell.ring();
    told
}
