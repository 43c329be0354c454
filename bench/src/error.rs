//! Why a command could not do its work: what failed, on which object, and the remedy.

use crate::load::LoadError;
use crate::machine::PinError;
use crate::machine::netns::NetnsError;

/// A command ended without its result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The load itself.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Placing a thread.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// Entering a network namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The operating system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried, on which object, with the remedy where there is one.
        what: String,
        /// The reason.
        source: std::io::Error,
    },
    /// `compare` found figures that became worse.
    #[error("{0} figures became worse by more than their spread")]
    Regressed(usize),
    /// The arguments or the machine do not allow it.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// Wraps an operating system error with what was tried.
    pub fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let what = what.into();
        move |source| Error::System { what, source }
    }

    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Load(LoadError::Interrupted) => 130,
            Error::Regressed(_) => 3,
            _ => 1,
        }
    }

    /// Whether the user stopped it.
    pub fn is_interrupt(&self) -> bool {
        matches!(self, Error::Load(LoadError::Interrupted))
    }
}
