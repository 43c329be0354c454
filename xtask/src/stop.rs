//! Ctrl-C and SIGTERM: whatever waits looks here, returns [`Error::Interrupted`], and the guards
//! on the way out clean up.

use crate::error::Error;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often a waiter looks.
pub const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Whether the user asked to stop.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Takes over Ctrl-C, SIGTERM and the closing of the terminal.
    pub fn install() -> Result<Stop, Error> {
        let stop = Stop::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, stop.0.clone()).map_err(|e| {
                Error::task(format!("signal {signal} cannot be handled: {e}"), "report this")
            })?;
        }
        Ok(stop)
    }

    /// An error once the user asked to stop.
    pub fn check(&self) -> Result<(), Error> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(Error::Interrupted),
            false => Ok(()),
        }
    }

    /// Waits until `ready` gives something, at most for `patience`; `None` after that.
    pub fn wait_for<T>(
        &self,
        patience: Duration,
        mut ready: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<Option<T>, Error> {
        let start = Instant::now();
        loop {
            self.check()?;
            if let Some(value) = ready()? {
                return Ok(Some(value));
            }
            if start.elapsed() >= patience {
                return Ok(None);
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Asks to stop, as Ctrl-C does.
    #[cfg(test)]
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_what_it_waited_for_or_empty_handed_or_interrupted() {
        let stop = Stop::default();
        let mut tries = 0;
        let third = stop.wait_for(Duration::from_secs(60), || {
            tries += 1;
            Ok((tries == 3).then_some(tries))
        });
        assert_eq!(third.unwrap(), Some(3));
        let never = stop.wait_for(Duration::ZERO, || Ok(None::<()>));
        assert_eq!(never.unwrap(), None);
        stop.ask();
        let asked = stop.wait_for(Duration::from_secs(60), || Ok(None::<()>));
        assert!(matches!(asked, Err(Error::Interrupted)));
    }
}
