//! What the process and its workers may do once everything is open (DESIGN: who may do what).
//!
//! Control keeps the capabilities that opening things again takes, and gives up the others.
//! Workers touch what guests and peers send: they give up every capability and run under a list
//! of system calls (seccomp(2)), in which nothing opens, connects, executes or changes rights. A
//! call that is not on it fails with EPERM, is counted in `stats` and told in the log.

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
use std::collections::BTreeMap;

/// What control keeps: AF_XDP sockets, BPF programs and locked memory for ports that come back or
/// are added, and files and sockets that have other owners.
const KEPT: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SYS_NICE)
    // Registered I/O buffers and sockets of many workers (setrlimit(2)).
    .union(CapabilitySet::SYS_RESOURCE);

/// What a worker calls, and what its thread needs to live and to end. Numbers alone, without
/// rules on arguments: the kernel then answers from a bitmap, and a call costs nothing more.
const WORKER_CALLS: &[libc::c_long] = &[
    // Sockets, eventfds, rings, waiting.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    // Discovery tells a host the address that it came to.
    libc::SYS_getsockname,
    libc::SYS_ppoll,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    // A volume's ring belongs to the thread that enables it; control makes it, restricted.
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_enter,
    libc::SYS_sched_yield,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    // Files of volumes, where a ring cannot do it.
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    // Memory: what ends with a guest or a volume, and the handler of SIGBUS.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mprotect,
    libc::SYS_brk,
    libc::SYS_close,
    // The standard library asks in debug builds whether what it closes is open.
    libc::SYS_fcntl,
    // Signals, and the end of the thread, by a panic too.
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // The older forms that only some machines have.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
];

/// Why the rights could not be given up.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot give up {what}: {reason}; the kernel must have seccomp filters \
     (CONFIG_SECCOMP_FILTER), and the daemon must be allowed to set its own"
)]
pub struct ConfineError {
    what: &'static str,
    reason: String,
}

fn refused<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> ConfineError {
    move |error| ConfineError { what, reason: error.to_string() }
}

/// The list of a worker's system calls, made once by control.
#[derive(Clone, Debug)]
pub struct WorkerRights(BpfProgram);

/// Gives up what control does not need, for this thread and those that it starts from now on, and
/// prepares what workers will be left with.
pub fn process() -> Result<WorkerRights, ConfineError> {
    // Its first reading opens files to find the kernel's page; a worker could not.
    crate::clock::now_ns();
    outboard_dma::count_forbidden_calls().map_err(refused("unlisted system calls"))?;
    set_no_new_privs(true).map_err(refused("the way to new privileges"))?;
    let sets = capabilities(None).map_err(refused("capabilities"))?;
    keep(sets, KEPT).map_err(refused("capabilities"))?;
    let arch = TargetArch::try_from(std::env::consts::ARCH);
    let arch = arch.map_err(refused("unlisted system calls"))?;
    let rules = WORKER_CALLS.iter().map(|call| (*call, Vec::new()));
    let filter = SeccompFilter::new(
        rules.collect::<BTreeMap<_, _>>(),
        SeccompAction::Trap,
        SeccompAction::Allow,
        arch,
    );
    let program = filter.and_then(BpfProgram::try_from);
    let rights = WorkerRights(program.map_err(refused("unlisted system calls"))?);
    // Tried once where it harms nobody: no worker shall find out that it cannot.
    let trial = rights.clone();
    let outcome = std::thread::spawn(move || trial.enter()).join();
    outcome.unwrap_or_else(|_| Err(refused("capabilities")("the trial ended by a panic")))?;
    Ok(rights)
}

impl WorkerRights {
    /// Leaves the calling thread with a worker's rights, for good.
    pub fn enter(&self) -> Result<(), ConfineError> {
        let none = CapabilitySet::empty();
        let sets = capabilities(None).map_err(refused("capabilities"))?;
        keep(sets, none).map_err(refused("capabilities"))?;
        apply_filter(&self.0).map_err(refused("unlisted system calls"))
    }
}

/// Tells the log of refused calls that it has not heard of.
#[derive(Debug)]
pub struct Watch(u64);

impl Watch {
    /// Begins with what is known now.
    pub fn new() -> Watch {
        Watch(outboard_dma::forbidden_calls().count)
    }

    /// Looks for new ones.
    pub fn look(&mut self) {
        let calls = outboard_dma::forbidden_calls();
        if calls.count != std::mem::replace(&mut self.0, calls.count) {
            tracing::warn!(
                "workers tried {} system calls that they may not make, the last one number {}; \
                 each failed: please report this",
                calls.count,
                calls.last
            );
        }
    }
}

/// Reduces the calling thread's capabilities to `kept`.
fn keep(sets: CapabilitySets, kept: CapabilitySet) -> rustix::io::Result<()> {
    let CapabilitySets { effective, permitted, inheritable } = sets;
    set_capabilities(
        None,
        CapabilitySets {
            effective: effective & kept,
            permitted: permitted & kept,
            inheritable: inheritable & kept,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use outboard_dma::forbidden_calls;
    use std::io::ErrorKind;

    /// On a thread of its own: what it gives up is gone.
    fn on_thread<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(run).join().expect("the thread ends well")
    }

    // One test, because the count is the process's.
    #[test]
    fn a_worker_that_breaks_its_list_is_refused_counted_and_lives_on() {
        on_thread(|| {
            let rights = process().unwrap();
            let control = capabilities(None).unwrap();
            assert!(KEPT.contains(control.effective) && KEPT.contains(control.permitted));
            let before = forbidden_calls().count;
            on_thread(move || {
                let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
                rights.enter().unwrap();
                let refused = std::fs::File::open("/dev/null").unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
                // capget(2)
                assert_eq!(capabilities(None).unwrap_err(), rustix::io::Errno::PERM);
                let refused = std::net::TcpListener::bind("127.0.0.1:0").unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
                // What a worker does for a living still works.
                std::io::Write::write_all(&mut &near, b"x").unwrap();
                std::io::Read::read_exact(&mut &far, &mut [0]).unwrap();
                std::thread::yield_now();
            });
            let after = forbidden_calls();
            assert_eq!((after.count - before, after.last), (3, libc::SYS_socket));
            // The thread that started it has kept its own rights.
            assert_eq!(capabilities(None).unwrap(), control);
            std::fs::File::open("/dev/null").unwrap();
        });
    }

    #[test]
    fn no_capability_is_left_without_the_list() {
        let sets = on_thread(|| {
            let sets = capabilities(None).unwrap();
            keep(sets, CapabilitySet::empty()).unwrap();
            capabilities(None).unwrap()
        });
        assert!(sets.effective.is_empty() && sets.permitted.is_empty());
    }
}
