//! One TOML file in, a checked [`Plan`] out. After this nothing can be wrong in itself; what is
//! left to fail is the machine (an interface that is missing, a socket path in use, a core that
//! does not exist).
//!
//! [`parse`] takes any bytes and gives a plan or [`Errors`]: every independent mistake at once,
//! each with file, line, column, the key and what would be right. The syntax is shown, with every
//! key, in `dataplane/examples/config/host-a.toml`.

pub mod diff;
mod error;
#[cfg(test)]
mod examples;
mod network;
pub mod plan;
mod section;
mod storage;
#[cfg(test)]
mod tests;
mod top;
mod value;

pub use error::Errors;
pub use plan::Plan;
pub(crate) use section::advice;
pub use value::{EXTENT_BYTES_MAX, is_interface_name};

use std::io::Read;
use std::path::{Path, PathBuf};

/// The largest configuration file, in bytes.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Its content is wrong.
    #[error(transparent)]
    Wrong(#[from] Errors),
}

/// Reads and checks a configuration file.
pub fn load(path: &Path) -> Result<Plan, LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: path.to_path_buf(), source };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    // One byte more than allowed, so that parse sees that it is too much.
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(parse(&path.display().to_string(), &bytes)?)
}

/// Checks a configuration's bytes; `file` is the name that errors show.
pub fn parse(file: &str, bytes: &[u8]) -> Result<Plan, Errors> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(Errors::whole_file(file, "the file is larger than 1 MiB"));
    }
    let source = match std::str::from_utf8(bytes) {
        Ok(source) => source,
        Err(error) => return Err(Errors::not_utf8(file, bytes, error.valid_up_to())),
    };
    let mut sink = error::Sink::default();
    match top::read(source, &mut sink) {
        Some(plan) if sink.is_empty() => Ok(plan),
        _ => Err(sink.into_errors(file, source)),
    }
}
