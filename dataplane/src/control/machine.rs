//! What a plan needs of this machine and a file cannot tell.

use crate::config::Plan;
use rustix::thread::{CpuSet, sched_getaffinity};

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
}

/// Checks that every worker's core is one that this process may use.
pub fn check_cores(plan: &Plan) -> Result<(), MachineError> {
    let set =
        sched_getaffinity(None).map_err(|errno| MachineError::Unknown { source: errno.into() })?;
    let usable: Vec<u16> =
        (0..CpuSet::MAX_CPU as u16).filter(|c| set.is_set((*c).into())).collect();
    let missing = plan.workers.iter().enumerate().find(|(_, w)| !usable.contains(&w.core));
    missing.map_or(Ok(()), |(worker, found)| {
        Err(MachineError::NoCore { worker, core: found.core, usable: ranges(&usable) })
    })
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
    fn cores_are_listed_as_people_write_them() {
        assert_eq!(ranges(&[3]), "core 3");
        assert_eq!(ranges(&[0, 1, 2, 3, 6, 8, 9]), "cores 0-3, 6, 8-9");
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
