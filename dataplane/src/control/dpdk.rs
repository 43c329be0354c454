//! Ports of DPDK's devices, in builds that have it.

use super::assemble::Site;
use super::run::RunError;
use crate::config::Plan;
use crate::config::plan::Port;
use crate::counters::PortCounters;
use crate::port::AnyPort;
use outboard_dma::FreeList;
use std::sync::Arc;

/// Opens the device of port `index`, with frames from `free` to receive into.
#[cfg(not(feature = "dpdk"))]
pub fn open_port(
    _site: Site,
    port: &Port,
    _device: &str,
    _entries: u32,
    _counters: Arc<PortCounters>,
    _free: &mut FreeList,
) -> Result<AnyPort, RunError> {
    Err(RunError::NoDpdk { port: port.name.clone() })
}

/// Opens the device of port `index`, with frames from `free` to receive into. The first one starts
/// DPDK's environment.
#[cfg(feature = "dpdk")]
pub fn open_port(
    site: Site,
    port: &Port,
    device: &str,
    entries: u32,
    counters: Arc<PortCounters>,
    free: &mut FreeList,
) -> Result<AnyPort, RunError> {
    use super::assemble;
    use crate::config::plan::Role;
    use crate::port::Port as _;
    use crate::port::dpdk::{Dpdk, DpdkConfig, Eal, Memory};
    use outboard_wire::ethernet;

    let Site { plan, region, .. } = site;
    let mtu = mtu(plan, port)?;
    if Eal::running().is_none() {
        tracing::info!("DPDK starts now: until a restart the workers are without its caches");
    }
    let eal = Eal::start(&plan.eal)?;
    let is_uplink = matches!(port.role, Role::Uplink { .. });
    let config = DpdkConfig {
        device,
        region,
        ring_frames: entries as u16,
        mtu,
        kernel_interface: !port.interface.is_empty(),
        memory: None,
        tunnels: match is_uplink {
            true => assemble::vteps(plan),
            false => Vec::new(),
        },
        tunnel_port: assemble::VXLAN_PORT,
        port: port.id,
        counters,
    };
    let way = Dpdk::open(eal, config, free)
        .map_err(|source| RunError::Dpdk { port: port.name.clone(), source })?;
    assemble::check_mtu(plan, port, way.max_frame_bytes() - ethernet::BYTES)?;
    let (name, worker) = (&port.name, port.queues[0]);
    let memory = match way.memory() {
        Memory::Shared => "frames",
        Memory::Copied { .. } => "memory of its own, a copy per packet",
    };
    let short = device.split(',').next().unwrap_or_default();
    tracing::info!("port {name}: DPDK device {short} on worker {worker}, on {memory}");
    Ok(AnyPort::Dpdk(way))
}

/// Why a port that is a device of DPDK's cannot come while the daemon runs, as far as that is known
/// without trying.
#[cfg(not(feature = "dpdk"))]
pub fn refusal(port: &Port) -> Option<String> {
    port.dpdk.as_ref()?;
    Some(RunError::NoDpdk { port: port.name.clone() }.to_string())
}

/// Why a port that is a device of DPDK's cannot come while the daemon runs, as far as that is known
/// without trying: drivers are known once the environment runs.
#[cfg(feature = "dpdk")]
pub fn refusal(port: &Port) -> Option<String> {
    let refused = crate::port::dpdk::Eal::running()?.check_plugged(port.dpdk.as_ref()?).err()?;
    Some(RunError::Dpdk { port: port.name.clone(), source: refused.into() }.to_string())
}

/// The arguments that DPDK's environment was started with; those of `plan` where it was not, or
/// where no port needs it.
#[cfg(not(feature = "dpdk"))]
pub fn arguments_for(plan: &Plan) -> Vec<String> {
    plan.eal.clone()
}

/// The arguments that DPDK's environment was started with; those of `plan` where it was not, or
/// where no port needs it.
#[cfg(feature = "dpdk")]
pub fn arguments_for(plan: &Plan) -> Vec<String> {
    let is_needed = plan.ports.iter().any(|port| port.dpdk.is_some());
    let started = crate::port::dpdk::Eal::arguments().filter(|_| is_needed);
    started.unwrap_or_else(|| plan.eal.clone())
}

/// Starts DPDK's environment where the plan needs it.
#[cfg(not(feature = "dpdk"))]
pub fn start(_plan: &Plan) -> Result<(), RunError> {
    Ok(())
}

/// Starts DPDK's environment where the plan has a port or arguments for it: a port that comes
/// later finds workers that have entered it.
#[cfg(feature = "dpdk")]
pub fn start(plan: &Plan) -> Result<(), RunError> {
    if !plan.eal.is_empty() || plan.ports.iter().any(|port| port.dpdk.is_some()) {
        crate::port::dpdk::Eal::start(&plan.eal)?;
    }
    Ok(())
}

/// What a worker's thread does for DPDK before it gives up its rights.
#[cfg(not(feature = "dpdk"))]
pub fn enter_thread() {}

/// What a worker's thread does for DPDK before it gives up its rights: pools keep a cache for it.
#[cfg(feature = "dpdk")]
pub fn enter_thread() {
    if let Some(eal) = crate::port::dpdk::Eal::running() {
        eal.register_thread();
    }
}

/// The MTU of the interface where the kernel knows the device, else what the port needs.
#[cfg(feature = "dpdk")]
fn mtu(plan: &Plan, port: &Port) -> Result<usize, RunError> {
    if port.interface.is_empty() {
        return Ok(super::assemble::needed_mtu(plan, port).0);
    }
    let system = |source| RunError::System { what: "an interface's MTU", source };
    let found = super::netlink::mtu(&port.interface).map_err(system)?;
    let Some(found) = found else {
        return Err(outboard_ebpf::Error::NoInterface { interface: port.interface.clone() }.into());
    };
    super::assemble::check_mtu(plan, port, found as usize)?;
    Ok(found as usize)
}
