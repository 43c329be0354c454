//! What happens when a confined thread makes a system call that its seccomp list does not allow:
//! the kernel raises SIGSYS instead of running it (seccomp(2), SECCOMP_RET_TRAP), this handler
//! counts it and makes it fail with EPERM. Nothing is killed, and nothing goes unseen.
//!
//! Everything in the handler is async-signal-safe: atomics and stores to the saved registers.

use std::io::{Error, Result};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

static COUNT: AtomicU64 = AtomicU64::new(0);
static LAST: AtomicI64 = AtomicI64::new(-1);

/// Forbidden system calls of this process so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForbiddenCalls {
    /// How many.
    pub count: u64,
    /// The number of the last one; meaningless while there was none.
    pub last: i64,
}

/// What was refused so far.
pub fn forbidden_calls() -> ForbiddenCalls {
    ForbiddenCalls { count: COUNT.load(Ordering::Relaxed), last: LAST.load(Ordering::Relaxed) }
}

/// From now on a system call that a filter traps fails with EPERM and is counted, in every
/// thread of this process.
pub fn count_forbidden_calls() -> Result<()> {
    // SAFETY: sigaction is plain data for which zero is valid; the handler has the signature that
    // SA_SIGINFO asks for and only does what is allowed in a handler.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigsys as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut())
    };
    if done == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

/// The front of `siginfo_t` for SIGSYS (sigaction(2), `_sigsys`), which libc does not give.
#[repr(C)]
struct Sigsys {
    signo: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    call_address: *const libc::c_void,
    call: libc::c_int,
    arch: libc::c_uint,
}

/// `si_code` of a trap by seccomp (linux/include/uapi/asm-generic/siginfo.h).
const SYS_SECCOMP: libc::c_int = 1;

extern "C" fn on_sigsys(_: libc::c_int, about: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler, which for SIGSYS begins
    // as `Sigsys`.
    let about = unsafe { &*about.cast::<Sigsys>() };
    if about.code != SYS_SECCOMP {
        return;
    }
    COUNT.fetch_add(1, Ordering::Relaxed);
    LAST.store(about.call.into(), Ordering::Relaxed);
    // SAFETY: the kernel passes the interrupted thread's registers, which it restores from here.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    fail(context);
}

/// Makes the interrupted call return -EPERM.
#[cfg(target_arch = "x86_64")]
fn fail(context: &mut libc::ucontext_t) {
    context.uc_mcontext.gregs[libc::REG_RAX as usize] = -i64::from(libc::EPERM);
}

/// Makes the interrupted call return -EPERM.
#[cfg(target_arch = "aarch64")]
fn fail(context: &mut libc::ucontext_t) {
    context.uc_mcontext.regs[0] = -i64::from(libc::EPERM) as u64;
}
