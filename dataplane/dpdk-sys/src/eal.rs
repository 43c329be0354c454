//! DPDK's environment abstraction layer: once per process, started by control.
//!
//! It pins the thread that starts it and makes threads of its own; the calling thread gets its
//! affinity back. `rte_eal_init` ends the process itself for `--help`, which is refused here; on
//! other errors it returns. What remains is DPDK's own `rte_panic`, an abort with a message, where
//! it cannot create one of its threads or finds its own memory damaged.

use crate::device::Device;
use crate::error::{self, DeviceError, EalError};
use crate::raw;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::ffi::CString;
use std::sync::{Mutex, PoisonError};

/// The proof that the environment runs.
#[derive(Clone, Copy, Debug)]
pub struct Eal(());

/// The arguments of the one start, and how it went.
type Started = (Vec<String>, Result<(), EalError>);

static STARTED: Mutex<Option<Started>> = Mutex::new(None);

impl Eal {
    /// Starts the environment with these arguments (as on the command line of a DPDK program,
    /// without its name) and what Outboard wants unless they say otherwise: no files that other
    /// processes see, no telemetry, no threads besides the calling one. A second start with the
    /// same arguments is the first one's.
    pub fn start(arguments: &[String]) -> Result<Eal, EalError> {
        check(arguments)?;
        let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        let (running, outcome) = started
            .get_or_insert_with(|| (arguments.to_vec(), init(&with_defaults(arguments, core()))));
        if running != arguments {
            return Err(EalError::Running { running: running.join(" ") });
        }
        outcome.clone().map(|()| Eal(()))
    }

    /// The environment, if it runs.
    pub fn running() -> Option<Eal> {
        let started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(&*started, Some((_, Ok(())))).then_some(Eal(()))
    }

    /// The arguments of the one start, whether it succeeded or not; `None` before it.
    pub fn arguments() -> Option<Vec<String>> {
        let started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        started.as_ref().map(|(arguments, _)| arguments.clone())
    }

    /// Refuses, by name, a device that cannot come while others work.
    pub fn check_plugged(self, device: &str) -> Result<(), DeviceError> {
        Device::check_plugged(device)
    }

    /// Gives the calling thread a number in DPDK, for which the pools keep a cache, until the
    /// thread ends. Without a number (there are 128) pools work, only slower.
    pub fn register_thread(self) {
        thread_local! {
            static THREAD: Registered = Registered::new();
        }
        THREAD.with(|_| ());
    }
}

/// A thread's number in DPDK.
struct Registered(bool);

impl Registered {
    fn new() -> Registered {
        // SAFETY: both calls may be made by any thread once the environment runs, which the Eal
        // proves that `register_thread` takes.
        unsafe { Registered(raw::shim_has_lcore() == 0 && raw::rte_thread_register() == 0) }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if self.0 {
            // SAFETY: this thread registered, and it ends.
            unsafe { raw::rte_thread_unregister() };
        }
    }
}

/// Refuses what would end the process or cannot be an argument.
fn check(arguments: &[String]) -> Result<(), EalError> {
    let refuse =
        |argument: &String, why| Err(EalError::Argument { argument: argument.clone(), why });
    for argument in arguments {
        let name = argument.split('=').next().unwrap_or_default();
        // getopt_long takes unique beginnings of names; `--h` alone is ambiguous, and refused too.
        let is_help = name.len() >= 3 && "--help".starts_with(name);
        let is_short = name.starts_with('-') && !name.starts_with("--");
        if is_help || (is_short && name.contains('h') && !name.starts_with("-d")) {
            return refuse(argument, "prints DPDK's help and ends the process; leave it out");
        }
        if argument == "--" {
            return refuse(argument, "ends DPDK's arguments; leave it out");
        }
        if argument.contains('\0') {
            return refuse(argument, "contains a NUL byte");
        }
        if name == "--proc-type" {
            return refuse(argument, "is Outboard's to choose; leave it out");
        }
    }
    Ok(())
}

/// The arguments, with what Outboard wants unless they say otherwise. `core` is where this process
/// may run: DPDK would start a thread on every other one.
fn with_defaults(arguments: &[String], core: usize) -> Vec<String> {
    let has = |names: &[&str]| {
        arguments.iter().any(|argument| {
            names.iter().any(|name| match name.strip_prefix("--") {
                Some(_) => argument.split('=').next() == Some(name),
                None => !argument.starts_with("--") && argument.starts_with(name),
            })
        })
    };
    let mut all = vec!["outboard".to_string()];
    if !has(&["-l", "-c", "--lcores"]) {
        all.extend(["-l".to_string(), core.to_string()]);
    }
    if !has(&["--in-memory", "--no-shconf", "--file-prefix"]) {
        // Without huge pages DPDK manages its memory in its old way, for which that has no name.
        let private =
            if has(&["--no-huge", "--legacy-mem"]) { "--no-shconf" } else { "--in-memory" };
        all.push(private.into());
    }
    if !has(&["--telemetry", "--no-telemetry"]) {
        all.push("--no-telemetry".into());
    }
    if !has(&["--log-level"]) {
        all.push("--log-level=warning".into());
    }
    all.extend_from_slice(arguments);
    all
}

/// A core that this thread may run on.
fn core() -> usize {
    let cores = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::MAX_CPU).find(|core| cores.is_set(*core)).unwrap_or(0)
}

fn init(arguments: &[String]) -> Result<(), EalError> {
    let affinity = sched_getaffinity(None);
    // DPDK keeps addresses of its arguments, and may permute the list: neither is ever freed.
    let words = arguments.iter().flat_map(|word| CString::new(word.as_str()));
    let list: Vec<*mut std::ffi::c_char> = words.map(CString::into_raw).collect();
    let list: &'static mut [*mut std::ffi::c_char] = list.leak();
    // SAFETY: `list` is argc pointers to NUL-terminated texts that live as long as the process;
    // the lock of STARTED keeps this call the only one.
    let result = unsafe { raw::rte_eal_init(list.len() as i32, list.as_mut_ptr()) };
    let reason = error::last();
    if let Ok(affinity) = affinity {
        let _ = sched_setaffinity(None, &affinity);
    }
    match result {
        0.. => Ok(()),
        _ => Err(EalError::Refused { arguments: arguments[1..].join(" "), reason }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn what_ends_the_process_is_refused() {
        for text in ["-h", "--help", "--hel", "--h", "-vh", "--", "--proc-type=secondary"] {
            let refused = check(&words(text)).unwrap_err().to_string();
            assert!(refused.contains(text) && refused.contains("[dpdk]"), "{refused}");
        }
        for text in ["--huge-dir=/mnt", "--no-huge --no-pci", "-l 0", "-m 512", "-d /x/h.so"] {
            assert!(check(&words(text)).is_ok(), "{text}");
        }
    }

    #[test]
    fn defaults_give_way() {
        let all = with_defaults(&words("--no-huge"), 3);
        let wanted = "outboard -l 3 --no-shconf --no-telemetry --log-level=warning --no-huge";
        assert_eq!(all.join(" "), wanted);
        assert!(with_defaults(&[], 3).contains(&"--in-memory".to_string()));
        let own = "--lcores=0@1 --file-prefix=x --telemetry --log-level=debug";
        assert_eq!(with_defaults(&words(own), 3).join(" "), format!("outboard {own}"));
        assert!(!with_defaults(&words("-l0"), 3).contains(&"-l".to_string()));
    }
}
