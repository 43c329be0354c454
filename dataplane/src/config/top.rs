//! The document as a whole: general settings, workers, and what the other parts share.

use super::error::Sink;
use super::plan::{Plan, Runtime, WORKER_QUEUES_MAX, WaitMode, Worker};
use super::section::{At, Section, advice};
use super::{network, storage, value};
use outboard_dma::FRAME_BYTES;
use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use toml::de::DeTable;

/// The most workers of one daemon.
const WORKERS_MAX: usize = 64;
/// The longest time that an adaptive worker may spin before it sleeps.
const SPIN_US_MAX: u64 = 10_000;
/// Bounds of the frame memory.
const REGION_MIB: std::ops::RangeInclusive<u64> = 4..=65_536;
/// Bounds of a worker's flow cache.
const FLOWS: std::ops::RangeInclusive<u64> = 1024..=16_777_216;
const MODES: &[(&str, WaitMode)] =
    &[("adaptive", WaitMode::Adaptive), ("yield", WaitMode::Yield), ("busy", WaitMode::Busy)];

/// What every part of the configuration may need.
#[derive(Default)]
pub(super) struct Shared {
    pub sink: Sink,
    /// Number of workers.
    pub workers: usize,
    /// Files and sockets in use.
    pub paths: Claims<PathBuf>,
}

/// Things that may be used once: what, and where it was used first.
pub(super) struct Claims<K>(HashMap<K, Range<usize>>);

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Claims(HashMap::new())
    }
}

impl<K: Hash + Eq> Claims<K> {
    /// Takes `key`, or reports who has it: "`WHAT` is taken already". Says whether it was free.
    pub(super) fn claim(
        &mut self,
        key: K,
        span: &Range<usize>,
        what: impl Display,
        want: &str,
        sink: &mut Sink,
    ) -> bool {
        if let Some(first) = self.0.get(&key) {
            let what = format!("{what} is taken already");
            sink.push_with(span.clone(), what, want, (first.clone(), "taken first"));
            return false;
        }
        self.0.insert(key, span.clone());
        true
    }

    /// Where `key` was taken.
    pub(super) fn get(&self, key: &K) -> Option<&Range<usize>> {
        self.0.get(key)
    }
}

/// Declared names of one kind, in the order of their tables.
#[derive(Default)]
pub(super) struct Names {
    list: Vec<Option<String>>,
    claims: Claims<String>,
}

impl Names {
    /// Declares the next table's name; one that is missing or wrong was reported by its reader.
    pub(super) fn declare(&mut self, kind: &str, name: &Option<At<String>>, sink: &mut Sink) {
        if let Some(name) = name {
            let what = format!("the {kind} name \"{}\"", name.value);
            self.claims.claim(name.value.clone(), &name.span, what, "want another name", sink);
        }
        self.list.push(name.as_ref().map(|name| name.value.clone()));
    }

    /// The index of a name that is referred to; one that is unknown is reported.
    pub(super) fn resolve(&self, kind: &str, name: &At<String>, sink: &mut Sink) -> Option<u16> {
        let index = self.list.iter().position(|known| known.as_ref() == Some(&name.value));
        if index.is_none() {
            let known: Vec<&str> = self.list.iter().flatten().map(String::as_str).collect();
            let want = match known.is_empty() {
                true => format!("add a [[{kind}]] with this name"),
                false => advice(&name.value, &known),
            };
            sink.push(
                name.span.clone(),
                format!("no [[{kind}]] is named \"{}\"", name.value),
                &want,
            );
        }
        index.map(|index| index as u16)
    }
}

/// Reads a whole document. With anything reported to `sink`, the result means nothing.
pub(super) fn read(source: &str, sink: &mut Sink) -> Option<Plan> {
    let (document, errors) = DeTable::parse_recoverable(source);
    for error in &errors {
        let span = error.span().unwrap_or(source.len()..source.len());
        sink.push(span, format!("not valid TOML: {}", error.message()), "");
    }
    if !errors.is_empty() {
        return None;
    }
    let mut shared = Shared { sink: std::mem::take(sink), ..Shared::default() };
    let mut top = Section::new("", document.get_ref(), 0..0);
    let plan = read_sections(&mut top, &mut shared);
    top.finish(&mut shared.sink);
    *sink = shared.sink;
    plan
}

fn read_sections(top: &mut Section, shared: &mut Shared) -> Option<Plan> {
    let name = top.required("name", "\"host-a\"", &mut shared.sink, value::name);
    let (runtime, region_span) = read_runtime(top, &mut shared.sink);
    let control_socket = read_control(top, name.as_ref(), shared);
    let metrics = read_metrics(top, &mut shared.sink);
    let workers = read_workers(top, &mut shared.sink);
    shared.workers = workers.len();
    let eal = read_dpdk(top, &mut shared.sink);
    let networks = network::read(top, shared);
    let storages = storage::read(top, shared);
    let (networks, storages) = (networks?, storages?);
    let plan = Plan {
        name: name?.value,
        runtime,
        control_socket: control_socket?,
        metrics,
        workers,
        eal,
        vpcs: networks.vpcs,
        ports: networks.ports,
        volumes: storages.volumes,
        exports: storages.exports,
        disks: storages.disks,
    };
    check_shares(&plan, region_span, shared);
    Some(plan)
}

/// `[runtime]`, and where the size of the region is given.
fn read_runtime(top: &mut Section, sink: &mut Sink) -> (Runtime, Range<usize>) {
    let mut plan = Runtime {
        mode: WaitMode::Adaptive,
        spin_us: 50,
        region_mib: 64,
        flows: 65_536,
        ledger: false,
    };
    let mut region_span = 0..0;
    let Some(mut section) = top.table("runtime", "[runtime]", sink) else {
        return (plan, region_span);
    };
    if let Some(mode) = section.optional("mode", sink, value::choice(MODES)) {
        plan.mode = mode.value;
    }
    if let Some(spin) = section.optional("spin_us", sink, value::number(0..=SPIN_US_MAX)) {
        plan.spin_us = spin.value as u32;
        if plan.mode != WaitMode::Adaptive {
            let want = "want it only with mode = \"adaptive\"";
            sink.push(spin.span, "`spin_us` of [runtime] has no effect in this mode", want);
        }
    }
    if let Some(region) = section.optional("region_mib", sink, value::number(REGION_MIB)) {
        plan.region_mib = region.value as u32;
        region_span = region.span;
    }
    if let Some(flows) = section.optional("flows", sink, value::power_of_two(FLOWS)) {
        plan.flows = flows.value as u32;
    }
    if let Some(ledger) = section.optional("ledger", sink, value::boolean) {
        plan.ledger = ledger.value;
    }
    section.finish(sink);
    (plan, region_span)
}

/// Every worker has an equal share of the frames, which must do for the queues that it owns and
/// the exports of its volumes.
fn check_shares(plan: &Plan, span: Range<usize>, shared: &mut Shared) {
    let needs = (0..plan.workers.len()).map(|worker| plan.frames_needed(worker as u16));
    let Some((needed, worker)) = needs.zip(0u16..).max() else { return };
    let (queues, exports) = plan.owned(worker);
    if queues > WORKER_QUEUES_MAX {
        let what = format!("worker {worker} owns {queues} queues");
        let want = format!("want {WORKER_QUEUES_MAX} at most; give some to other workers");
        shared.sink.push(span.clone(), what, &want);
    }
    let needed_frames = needed * plan.workers.len() as u64;
    let needed_mib = (needed_frames * FRAME_BYTES as u64).div_ceil(1 << 20);
    let region_mib = plan.runtime.region_mib;
    if u64::from(region_mib) >= needed_mib {
        return;
    }
    let with_exports = match exports {
        0 => String::new(),
        1 => " and an export".into(),
        _ => format!(" and {exports} exports"),
    };
    let what = format!(
        "`region_mib` of [runtime] is {region_mib}: too little for a worker with {queues} \
         queues{with_exports}"
    );
    let want = format!("want {needed_mib} at least, better four times that");
    shared.sink.push(span, what, &want);
}

/// `[dpdk]`
fn read_dpdk(top: &mut Section, sink: &mut Sink) -> Vec<String> {
    let Some(mut section) = top.table("dpdk", "[dpdk]", sink) else { return Vec::new() };
    let arguments = section.optional("eal", sink, value::arguments);
    section.finish(sink);
    arguments.map_or(Vec::new(), |arguments| arguments.value)
}

/// `[metrics]`
fn read_metrics(top: &mut Section, sink: &mut Sink) -> Option<SocketAddr> {
    let mut section = top.table("metrics", "[metrics]", sink)?;
    let want = "\"127.0.0.1:9464\"";
    let listen = section.required("listen", want, sink, value::socket_address);
    let insecure = section.optional("insecure", sink, value::boolean);
    section.finish(sink);
    let listen = listen?;
    if listen.value.ip().is_multicast() {
        let what = format!("`listen` of [metrics] is {}", listen.value);
        sink.push(listen.span.clone(), what, "want an address of this host");
    }
    if listen.value.ip().is_unspecified() && !insecure.is_some_and(|it| it.value) {
        let what = "`listen` of [metrics] is open to every network of this host";
        let want = "want one address of this host, or add `insecure = true`";
        sink.push(listen.span, what, want);
    }
    Some(listen.value)
}

fn read_control(
    top: &mut Section,
    name: Option<&At<String>>,
    shared: &mut Shared,
) -> Option<PathBuf> {
    let sink = &mut shared.sink;
    let socket = top.table("control", "[control]", sink).and_then(|mut section| {
        let socket = section.optional("socket", sink, value::socket_path);
        section.finish(sink);
        socket
    });
    let (path, span) = match socket {
        Some(socket) => (socket.value, socket.span),
        None => (default_control_socket(&name?.value), name?.span.clone()),
    };
    let what = format!("the path {}", path.display());
    shared.paths.claim(path.clone(), &span, what, "want another path", sink);
    Some(path)
}

/// Where the control socket of an instance is unless `[control] socket` says otherwise.
fn default_control_socket(name: &str) -> PathBuf {
    PathBuf::from(format!("/run/outboard/{name}.sock"))
}

fn read_workers(top: &mut Section, sink: &mut Sink) -> Vec<Worker> {
    let mut workers = Vec::new();
    let mut cores = Claims::default();
    for mut section in top.tables("worker", "[[worker]]", WORKERS_MAX, sink) {
        let core = value::number(0..=u64::from(u16::MAX));
        let core = section.required("core", "0", sink, core);
        if let Some(core) = &core {
            let what = format!("core {}", core.value);
            let want = "want one worker per core";
            cores.claim(core.value, &core.span, what, want, sink);
        }
        workers.push(Worker { core: core.map_or(0, |core| core.value as u16) });
        section.finish(sink);
    }
    if workers.is_empty() {
        workers.push(Worker { core: 0 });
    }
    workers
}

/// Checks a worker's number.
pub(super) fn check_worker(worker: u16, span: &Range<usize>, shared: &mut Shared) {
    if usize::from(worker) >= shared.workers {
        let what = format!("there is no worker {worker}");
        let want = match shared.workers {
            1 => "want 0; workers are numbered from 0 in the order of [[worker]]".to_string(),
            count => format!("want 0 to {}, the order of [[worker]]", count - 1),
        };
        shared.sink.push(span.clone(), what, &want);
    }
}
