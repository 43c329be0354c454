//! What `outboard stats` shows, read from the counters that workers write.

use super::assemble::OpenPort;
use super::netlink;
use super::stats::{
    Count, DiskStats, ExportStats, LatencyStats, PortStats, Stats, SwitchStats, VolumeStats,
    VpcStats, WorkerStats,
};
use super::stores::{OpenVolume, Stores};
use super::workers::{Handle, mode_name};
use crate::config::Plan;
use crate::config::plan::{self, Backing, Role};
use crate::counters::PortCounters;
use crate::virtio::fault::QueueFault;
use crate::volume::Status;
use crate::volume::disk::DiskCounters;
use crate::volume::export::ExportCounters;
use outboard_ebpf::Steering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Everything that is counted, with the plan that names it. Each list is in the order of the
/// plan's.
#[derive(Debug)]
pub struct Snapshot {
    plan: Plan,
    started: Instant,
    handles: Arc<Vec<Handle>>,
    ports: Arc<Mutex<Vec<OpenPort>>>,
    volumes: Vec<OpenVolume>,
    disks: Vec<Arc<DiskCounters>>,
    exports: Vec<Arc<ExportCounters>>,
}

impl Snapshot {
    /// A source over what is there by `plan`.
    pub fn new(
        plan: &Plan,
        started: Instant,
        handles: &Arc<Vec<Handle>>,
        ports: &Arc<Mutex<Vec<OpenPort>>>,
        stores: &Stores,
    ) -> Snapshot {
        let volume = |it: &plan::Volume| stores.volume(&it.name).cloned();
        let disk = |it: &plan::Disk| stores.disk(&it.name).cloned();
        let export = |it: &plan::Export| stores.export(&it.nqn).cloned();
        Snapshot {
            plan: plan.clone(),
            started,
            handles: Arc::clone(handles),
            ports: Arc::clone(ports),
            volumes: plan.volumes.iter().filter_map(volume).collect(),
            disks: plan.disks.iter().filter_map(disk).collect(),
            exports: plan.exports.iter().filter_map(export).collect(),
        }
    }

    /// The counts now.
    pub fn take(&self) -> Stats {
        let ports = self.ports();
        Stats {
            instance: self.plan.name.clone(),
            uptime_s: self.started.elapsed().as_secs(),
            wait_mode: mode_name(self.plan.runtime.mode).into(),
            forbidden_calls: outboard_dma::forbidden_calls().count,
            workers: self.workers(),
            vpcs: self.vpcs(&ports),
            ports,
            switch: self.switch(),
            volumes: self.volumes(),
            exports: self.exports(),
            disks: self.disks(),
        }
    }

    fn workers(&self) -> Vec<WorkerStats> {
        let elapsed_ns = self.started.elapsed().as_nanos().max(1) as f64;
        let workers = self.plan.workers.iter().zip(self.handles.iter());
        let stats = workers.map(|(worker, handle)| WorkerStats {
            core: worker.core,
            turns: handle.counters.turns.get(),
            busy_share: handle.counters.busy_ns.get() as f64 / elapsed_ns,
            busy_ns: handle.counters.busy_ns.get(),
            sleeps: handle.counters.sleeps.get(),
            overruns: handle.counters.network_overruns.get()
                + handle.counters.storage_overruns.get(),
        });
        stats.collect()
    }

    fn ports(&self) -> Vec<PortStats> {
        let all = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let open = |port: &plan::Port| all.iter().find(|open| open.port.id == port.id);
        let mut ports = Vec::new();
        for port in &self.plan.ports {
            let Some(OpenPort { steering, counters, .. }) = open(port) else { continue };
            // When the kernel does not tell, nothing is known to be down.
            let up = |it: &Steering| netlink::are_up([it.interface_index()].into_iter());
            let mode = match steering {
                Some(program) if matches!(up(program).as_deref(), Ok([false])) => "down",
                Some(program) => program.mode().name(),
                None => "dpdk",
            };
            let counters: Vec<&PortCounters> = counters.iter().map(|it| &**it).collect();
            let mut stats = PortStats::of(&port.name, &port.interface, mode, &counters);
            if let Role::Tenant(tenant) = &port.role {
                stats.vpc = Some(self.plan.vpcs[usize::from(tenant.vpc)].name.clone());
            }
            stats.xdp = steering.as_ref().map(xdp_outcomes).unwrap_or_default();
            ports.push(stats);
        }
        ports
    }

    fn vpcs(&self, ports: &[PortStats]) -> Vec<VpcStats> {
        let sum = |vpc: &plan::Vpc| {
            let mut sum = VpcStats { name: vpc.name.clone(), vni: vpc.vni, ..VpcStats::default() };
            for port in ports.iter().filter(|port| port.vpc.as_ref() == Some(&vpc.name)) {
                sum.rx_packets += port.rx_packets;
                sum.rx_bytes += port.rx_bytes;
                sum.tx_packets += port.tx_packets;
                sum.tx_bytes += port.tx_bytes;
                sum.dropped += port.drops.iter().map(|drop| drop.count).sum::<u64>();
            }
            sum
        };
        self.plan.vpcs.iter().map(sum).collect()
    }

    fn switch(&self) -> SwitchStats {
        let mut stats = SwitchStats::default();
        for handle in self.handles.iter() {
            stats.hits += handle.switch.hits.get();
            stats.misses += handle.switch.misses.get() + handle.switch.recompiles.get();
            stats.evictions += handle.switch.evictions.get();
            stats.over_share += handle.switch.over_share.get();
            stats.errors_sent += handle.switch.errors_sent.get();
            stats.errors_withheld += handle.switch.errors_withheld.get();
        }
        stats
    }

    fn volumes(&self) -> Vec<VolumeStats> {
        let volumes = self.plan.volumes.iter().zip(&self.volumes);
        let stats = volumes.enumerate().map(|(index, (volume, open))| VolumeStats {
            name: volume.name.clone(),
            kind: kind(volume).into(),
            state: open.connector.as_ref().map_or("ready".into(), |link| link.state()),
            bytes: open.geometry.bytes(),
            in_flight: self.in_flight(index),
            connection: open
                .connector
                .as_ref()
                .map_or_else(Vec::new, |link| Count::occurred(link.counters().occurrences())),
            latency: open.connector.as_ref().map_or_else(Vec::new, |link| {
                LatencyStats::all([("command", &link.counters().round_trip)])
            }),
        });
        stats.collect()
    }

    /// I/Os of guests and other hosts in flight on volume `index`.
    fn in_flight(&self, index: usize) -> u32 {
        let disks = self.plan.disks.iter().zip(&self.disks);
        let own = disks.filter(|(disk, _)| usize::from(disk.volume) == index);
        let guests: u64 = own.map(|(_, counters)| counters.in_flight.get()).sum();
        let exports = self.plan.exports.iter().zip(&self.exports);
        let own = exports.filter(|(export, _)| usize::from(export.volume) == index);
        let hosts: u64 = own.map(|(_, counters)| counters.in_flight.get()).sum();
        (guests + hosts) as u32
    }

    fn exports(&self) -> Vec<ExportStats> {
        let exports = self.plan.exports.iter().zip(&self.exports);
        let stats = exports.map(|(export, counters)| ExportStats {
            nqn: export.nqn.clone(),
            listen: export.listen.to_string(),
            connections: counters.connections.get(),
            commands: counters.commands.get(),
            errors: Count::occurred(counters.errors()),
            latency: LatencyStats::all(counters.latency.classes()),
        });
        stats.collect()
    }

    fn disks(&self) -> Vec<DiskStats> {
        let disks = self.plan.disks.iter().zip(&self.disks);
        let stats = disks.map(|(disk, counters)| DiskStats {
            name: disk.name.clone(),
            socket: disk.socket.display().to_string(),
            connected: counters.rings.get() > 0,
            requests: Status::ALL.iter().map(|status| counters.status(*status)).sum(),
            read_bytes: counters.read_bytes.get(),
            written_bytes: counters.written_bytes.get(),
            latency: LatencyStats::all(counters.latency.classes()),
            statuses: Count::occurred(
                Status::ALL.iter().map(|status| (status.name(), counters.status(*status))),
            ),
            queue_faults: Count::occurred(
                QueueFault::ALL.iter().map(|fault| (fault.name(), counters.faults.get(*fault))),
            ),
        });
        stats.collect()
    }
}

fn kind(volume: &plan::Volume) -> &'static str {
    match volume.backing {
        Backing::Mem { .. } => "mem",
        Backing::Null { .. } => "null",
        Backing::File { .. } => "file",
        Backing::Remote { .. } => "remote",
    }
}

fn xdp_outcomes(program: &Steering) -> Vec<Count> {
    let Ok(counts) = program.counters() else { return Vec::new() };
    let names = outboard_ebpf::abi::Outcome::ALL.iter().map(|outcome| outcome.name());
    Count::occurred(names.zip(counts))
}
