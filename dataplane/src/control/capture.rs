//! Captures that run: a tap in every worker, and a thread that writes what the taps saw, in the
//! order of time, as pcapng to whoever asked. A slow reader costs packets that are counted as
//! missed, and delays neither workers nor control.

mod pcapng;

use super::api::capture::{Begun, Job};
use super::workers::Workers;
use crate::capture::{Drain, Wanted, tap};
use crate::clock;
use crate::config::{Plan, advice};
use crate::packet::PortId;
use crate::worker::{Message, Retired, TAPS};
use pcapng::{Outlet, Writer};
use serde_json::json;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the rings are looked at while nothing comes.
const LOOK: Duration = Duration::from_millis(10);
/// How long a packet waits for an earlier one of another worker. Time is of the turn's beginning.
const HOLD_NS: u64 = 20_000_000;
/// The most bytes of a ring that are taken in one round: what comes meanwhile is the next one's.
const ROUND_BYTES: usize = crate::capture::RING_BYTES;

/// One capture.
#[derive(Debug)]
struct Active {
    id: u64,
    name: String,
    port: PortId,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// All captures.
#[derive(Debug, Default)]
pub struct Captures {
    active: Vec<Active>,
    next_id: u64,
}

impl Captures {
    /// Begins a capture, or tells the client why not.
    pub fn begin(&mut self, mut job: Job, plan: &Plan, workers: &mut Workers) {
        if let Err(why) = self.try_begin(&mut job, plan, workers) {
            tell(&mut job.stream, &json!({ "error": why }));
        }
    }

    fn try_begin(
        &mut self,
        job: &mut Job,
        plan: &Plan,
        workers: &mut Workers,
    ) -> Result<(), String> {
        self.settle(plan, workers);
        if self.active.len() == TAPS {
            return Err(format!("{TAPS} captures run already; end one of them"));
        }
        let name = &job.request.port;
        let Some(port) = plan.ports.iter().find(|port| port.name == *name) else {
            let known: Vec<&str> = plan.ports.iter().map(|port| port.name.as_str()).collect();
            let known = match known.is_empty() {
                true => "the daemon has no ports".into(),
                false => advice(name, &known),
            };
            return Err(format!("no port or uplink is named \"{name}\"; {known}"));
        };
        let stream = job.stream.try_clone().map_err(|error| format!("no descriptor: {error}"))?;
        let id = self.next_id;
        self.next_id += 1;
        let wanted = Wanted {
            port: port.id,
            stages: job.request.stages.clone(),
            filter: job.filter.clone(),
            snap_bytes: job.request.snap,
        };
        let mut drains = Vec::new();
        for worker in 0..workers.count() {
            let (tap, drain) = tap(id, wanted.clone());
            drains.push(drain);
            drop(workers.ask(worker, Message::Tap(Box::new(tap))));
        }
        let stop = Arc::<AtomicBool>::default();
        let begun = Begun { port: port.name.clone(), interface: port.interface.clone() };
        let (outlet, count) = (Outlet::new(stream, Arc::clone(&stop)), job.request.count);
        let (snap_bytes, filter) = (job.request.snap, job.request.filter.clone());
        let run = move || {
            // The client has left, or does not read any more: there is nobody to tell.
            let _ = begin_stream(outlet, &begun, snap_bytes, &filter)
                .and_then(|writer| Stream::new(writer, drains, count).run());
        };
        let thread = std::thread::Builder::new().name("capture".into()).spawn(run);
        let thread = thread.map_err(|error| {
            untap(id, workers);
            format!("no thread for the capture: {error}")
        })?;
        tracing::info!("capture on {name} begins");
        self.active.push(Active { id, name: name.clone(), port: port.id, stop, thread });
        Ok(())
    }

    /// Takes out the taps of captures that have ended, and of ports that `plan` does not have.
    pub fn settle(&mut self, plan: &Plan, workers: &mut Workers) {
        let stays = |it: &Active| {
            let has = plan.ports.iter().any(|port| port.id == it.port && port.name == it.name);
            has && !it.thread.is_finished()
        };
        for ended in self.active.extract_if(.., |it| !stays(it)) {
            // Without its taps a thread writes what is left and ends.
            untap(ended.id, workers);
            tracing::info!("capture on {} ends", ended.name);
        }
    }

    /// Ends all of them.
    pub fn end(self) {
        self.active.iter().for_each(|it| it.stop.store(true, Ordering::Relaxed));
        for active in self.active {
            let _ = active.thread.join();
        }
    }
}

fn untap(id: u64, workers: &mut Workers) {
    for worker in 0..workers.count() {
        // What comes back is freed here.
        if let Some(Retired::Tap(tap)) = workers.ask(worker, Message::Untap(id)) {
            drop(tap);
        }
    }
}

/// One line to a client that has read nothing yet: it fits into an empty socket, or nobody reads.
fn tell(stream: &mut UnixStream, answer: &serde_json::Value) {
    let _ = stream.write_all(format!("{answer}\n").as_bytes());
}

fn begin_stream(
    mut outlet: Outlet,
    begun: &Begun,
    snap_bytes: usize,
    filter: &str,
) -> io::Result<Writer> {
    let mut line = json!({ "capture": begun }).to_string();
    line.push('\n');
    outlet.write_all(line.as_bytes())?;
    Writer::new(outlet, &begun.port, &begun.interface, snap_bytes, filter)
}

/// What one thread does.
struct Stream {
    writer: Writer,
    drains: Vec<Drain>,
    /// Packets that may still be written.
    left: u64,
    pending: Vec<crate::capture::Record>,
}

impl Stream {
    fn new(writer: Writer, drains: Vec<Drain>, count: Option<u64>) -> Stream {
        Stream { writer, drains, left: count.unwrap_or(u64::MAX), pending: Vec::new() }
    }

    fn run(mut self) -> io::Result<()> {
        loop {
            let is_last = self.writer.outlet().is_stopping()
                || self.writer.outlet().has_client_ended()?
                || self.drains.iter().all(Drain::has_ended);
            let taken = self.gather();
            let until_ns = match is_last {
                true => u64::MAX,
                false => clock::now_ns().saturating_sub(HOLD_NS),
            };
            self.write(until_ns)?;
            if is_last || self.left == 0 {
                let missed = self.drains.iter().map(Drain::missed).sum();
                return self.writer.end(missed);
            }
            self.writer.flush()?;
            if taken == 0 {
                self.writer.outlet().wait(LOOK);
            }
        }
    }

    /// Takes what the rings have; bytes taken.
    fn gather(&mut self) -> usize {
        let before = self.pending.len();
        let mut all = 0;
        for drain in &mut self.drains {
            let mut taken = 0;
            while taken < ROUND_BYTES
                && let Some(record) = drain.next()
            {
                taken += record.data.len();
                self.pending.push(record);
            }
            all += taken;
        }
        if self.pending.len() > before {
            self.pending.sort_by_key(|record| record.time_ns);
        }
        all
    }

    /// Writes what was seen until then.
    fn write(&mut self, until_ns: u64) -> io::Result<()> {
        let due = self.pending.partition_point(|record| record.time_ns <= until_ns);
        for record in self.pending.drain(..due) {
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            self.writer.packet(&record)?;
        }
        Ok(())
    }
}

impl Outlet {
    /// Whether the client has ended its sending side; what it sends is of no interest.
    fn has_client_ended(&mut self) -> io::Result<bool> {
        let mut ignored = [0; 64];
        match self.stream().read(&mut ignored) {
            Ok(count) => Ok(count == 0),
            Err(error) if is_transient(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
