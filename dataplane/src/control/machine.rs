//! What a plan needs of this machine and a file cannot tell.

use crate::config::Plan;
use crate::config::diff::{Difference, Kind};
use crate::config::plan::{Backing, Volume};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CpuSet, capabilities, sched_getaffinity};

/// Why this machine cannot run a plan.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A worker's core is not there, or not for this process.
    #[error(
        "worker {worker} cannot run on core {core}: this process may use {usable}; \
         correct `core` of [[worker]]"
    )]
    NoCore {
        /// The worker's number.
        worker: usize,
        /// Its core.
        core: u16,
        /// The cores there are, as text.
        usable: String,
    },
    /// The kernel does not say which cores there are.
    #[error("cannot ask which cores this process may use: {source}")]
    Unknown {
        /// The system's reason.
        source: std::io::Error,
    },
    /// Privileges are missing.
    #[error(
        "missing {missing}, which AF_XDP ports need; run as root, or grant it (setcap, systemd's \
         AmbientCapabilities)"
    )]
    Capability {
        /// The capabilities' names.
        missing: String,
    },
    /// The plan's memory is touched at start: without this check the kernel would kill somebody.
    #[error(
        "the plan needs {needed_mib} MiB of memory (`region_mib` in [runtime] and volumes of \
         `kind = \"mem\"`), of which {available_mib} MiB are available; lower one of them"
    )]
    Memory {
        /// Frames and volumes.
        needed_mib: u64,
        /// What the kernel has without swapping.
        available_mib: u64,
    },
    /// Frame memory cannot be registered with the kernel.
    #[error(
        "the frame memory of {region_mib} MiB exceeds the limit of {limit_mib} MiB of locked \
         memory; grant CAP_IPC_LOCK, raise `ulimit -l`, or lower `region_mib` in [runtime]"
    )]
    LockedMemory {
        /// The plan's region.
        region_mib: u32,
        /// The process's limit.
        limit_mib: u64,
    },
}

/// Checks everything that can be checked before something is made.
pub fn check(plan: &Plan) -> Result<(), MachineError> {
    check_cores(plan)?;
    let about = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    check_memory(plan, &about)?;
    raise_descriptor_limit();
    if plan.ports.is_empty() { Ok(()) } else { check_privileges(plan) }
}

/// Checks what a plan adds to a daemon that runs.
pub fn check_more(plan: &Plan, difference: &Difference) -> Result<(), MachineError> {
    let about = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let volumes = plan.volumes.iter().filter(|it| difference.begins(Kind::Volume, &it.name));
    check_volumes(0, volumes, &about)?;
    let has_ports = plan.ports.iter().any(|it| difference.begins(it.kind(), &it.name));
    if has_ports { check_privileges(plan) } else { Ok(()) }
}

/// Checks that every worker's core is one that this process may use.
fn check_cores(plan: &Plan) -> Result<(), MachineError> {
    let set =
        sched_getaffinity(None).map_err(|errno| MachineError::Unknown { source: errno.into() })?;
    let usable: Vec<u16> =
        (0..CpuSet::MAX_CPU as u16).filter(|c| set.is_set((*c).into())).collect();
    let missing = plan.workers.iter().enumerate().find(|(_, w)| !usable.contains(&w.core));
    missing.map_or(Ok(()), |(worker, found)| {
        Err(MachineError::NoCore { worker, core: found.core, usable: ranges(&usable) })
    })
}

/// Checks the plan's memory against the text of /proc/meminfo; where that does not tell, nothing.
fn check_memory(plan: &Plan, about: &str) -> Result<(), MachineError> {
    check_volumes(plan.runtime.region_mib.into(), plan.volumes.iter(), about)
}

fn check_volumes<'a>(
    region_mib: u64,
    volumes: impl Iterator<Item = &'a Volume>,
    about: &str,
) -> Result<(), MachineError> {
    let line = about.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let Some(available_mib) = kib.map(|kib| kib >> 10) else { return Ok(()) };
    let volumes = volumes.map(|volume| match volume.backing {
        Backing::Mem { bytes } => bytes >> 20,
        _ => 0,
    });
    let needed_mib = volumes.fold(region_mib, u64::saturating_add);
    match needed_mib > available_mib {
        true => Err(MachineError::Memory { needed_mib, available_mib }),
        false => Ok(()),
    }
}

/// Sockets, eventfds and maps of many ports and disks are more than the usual 1024 descriptors.
fn raise_descriptor_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Refused, it stays as it was, and what does not fit is told where it fails.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Checks what AF_XDP ports need. Where the kernel does not tell, attaching will.
fn check_privileges(plan: &Plan) -> Result<(), MachineError> {
    let Ok(sets) = capabilities(None) else { return Ok(()) };
    let missing = missing(sets.effective);
    if !missing.is_empty() {
        return Err(MachineError::Capability { missing: missing.join(", ") });
    }
    let limit = getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX);
    let region_mib = plan.runtime.region_mib;
    let may_lock = sets.effective.contains(CapabilitySet::IPC_LOCK);
    if !may_lock && limit < u64::from(region_mib) << 20 {
        return Err(MachineError::LockedMemory { region_mib, limit_mib: limit >> 20 });
    }
    Ok(())
}

/// The names of those that AF_XDP ports need and that are not there.
fn missing(effective: CapabilitySet) -> Vec<&'static str> {
    let has = |set| effective.contains(set);
    // CAP_SYS_ADMIN covers BPF and PERFMON (capabilities(7)).
    let admin = has(CapabilitySet::SYS_ADMIN);
    let wanted = [
        (has(CapabilitySet::NET_ADMIN), "CAP_NET_ADMIN"),
        (has(CapabilitySet::NET_RAW), "CAP_NET_RAW"),
        (has(CapabilitySet::BPF) || admin, "CAP_BPF"),
        (has(CapabilitySet::PERFMON) || admin, "CAP_PERFMON"),
    ];
    wanted.iter().filter(|(there, _)| !there).map(|(_, name)| *name).collect()
}

/// "core 3", "cores 0-3, 6": ascending numbers as people write them.
fn ranges(cores: &[u16]) -> String {
    let mut parts: Vec<(u16, u16)> = Vec::new();
    for core in cores {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *core => *last = *core,
            _ => parts.push((*core, *core)),
        }
    }
    let text = |(first, last): &(u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    let list: Vec<_> = parts.iter().map(text).collect();
    format!("{} {}", if cores.len() == 1 { "core" } else { "cores" }, list.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_capability_is_named() {
        let all = CapabilitySet::NET_ADMIN
            | CapabilitySet::NET_RAW
            | CapabilitySet::BPF
            | CapabilitySet::PERFMON;
        assert!(missing(all).is_empty());
        for (set, name) in [
            (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
            (CapabilitySet::NET_RAW, "CAP_NET_RAW"),
            (CapabilitySet::BPF, "CAP_BPF"),
            (CapabilitySet::PERFMON, "CAP_PERFMON"),
        ] {
            assert_eq!(missing(all - set), [name]);
        }
        let old = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW | CapabilitySet::SYS_ADMIN;
        assert!(missing(old).is_empty());
    }

    #[test]
    fn cores_are_listed_as_people_write_them() {
        assert_eq!(ranges(&[3]), "core 3");
        assert_eq!(ranges(&[0, 1, 2, 3, 6, 8, 9]), "cores 0-3, 6, 8-9");
    }

    #[test]
    fn memory_that_is_not_there_is_not_touched() {
        let text = "name = 'a'\n[runtime]\nregion_mib = 100\n\
                    [[volume]]\nname = 'm'\nkind = 'mem'\nsize = '924MiB'\n";
        let plan = crate::config::parse("a.toml", text.as_bytes()).unwrap();
        let with =
            |kib: u64| check_memory(&plan, &format!("MemFree: 1 kB\nMemAvailable: {kib} kB"));
        with(1 << 20).unwrap();
        let error = with((1 << 20) - 1).unwrap_err().to_string();
        assert!(error.starts_with("the plan needs 1024 MiB of memory"), "{error}");
        assert!(error.contains("1023 MiB are available"), "{error}");
        check_memory(&plan, "").unwrap();
    }

    #[test]
    fn a_core_that_is_not_there_is_named() {
        let plan = |core: u16| {
            let text = format!("name = 'a'\n[[worker]]\ncore = {core}\n");
            crate::config::parse("a.toml", text.as_bytes()).unwrap()
        };
        let set = sched_getaffinity(None).unwrap();
        let usable = (0..CpuSet::MAX_CPU).find(|core| set.is_set(*core)).unwrap();
        check_cores(&plan(usable as u16)).unwrap();
        let error = check_cores(&plan(u16::MAX)).unwrap_err().to_string();
        assert!(error.starts_with("worker 0 cannot run on core 65535: this process"), "{error}");
    }
}
