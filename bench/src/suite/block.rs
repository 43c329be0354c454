//! The block suite: disks served by Outboard beside the bare mechanisms.

use super::Findings;
use crate::error::Error;

pub fn run(_findings: &mut Findings) -> Result<(), Error> {
    Ok(())
}
