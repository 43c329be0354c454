//! Ctrl-C and SIGTERM: the first asks everything to end and clean up, the second ends at once.

use crate::error::Error;
use crate::load::LoadError;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Whether the user asked to stop. The first call installs the handlers.
pub fn flag() -> &'static AtomicBool {
    STOP.get_or_init(|| {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Both only fail for signals that cannot be caught, which these can.
            let _ = signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone());
            let _ = signal_hook::flag::register(signal, stop.clone());
        }
        stop
    })
}

/// An error once the user asked to stop.
pub fn check() -> Result<(), Error> {
    match flag().load(Ordering::Relaxed) {
        true => Err(LoadError::Interrupted.into()),
        false => Ok(()),
    }
}
