//! Reference programs: the bare mechanism, sharing no hot code with Outboard, measured in the
//! same run so that a ratio stands beside every absolute figure.

pub mod bare_file;
pub mod cacheline;
