//! `outboard check`

use super::{Failure, load};
use clap::Args;
use outboard::config::Plan;
use outboard::config::plan::Role;
use std::path::PathBuf;

/// Check a configuration file without starting anything
///
/// Every mistake is shown with its place and what would be right. What depends on this machine
/// (interfaces, cores, sockets in use) is checked when the daemon starts.
#[derive(Debug, Args)]
pub struct Check {
    /// The configuration file (TOML)
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
}

impl Check {
    pub fn run(self) -> Result<(), Failure> {
        let plan = load(&self.config)?;
        println!("{} is right: {}", self.config.display(), summary(&plan));
        Ok(())
    }
}

/// One line of what a plan holds.
fn summary(plan: &Plan) -> String {
    let is_uplink = |role: &Role| matches!(role, Role::Uplink { .. });
    let uplinks = plan.ports.iter().filter(|port| is_uplink(&port.role)).count();
    let counts = [
        (plan.workers.len(), "worker"),
        (plan.vpcs.len(), "VPC"),
        (uplinks, "uplink"),
        (plan.ports.len() - uplinks, "port"),
        (plan.volumes.len(), "volume"),
        (plan.exports.len(), "export"),
        (plan.disks.len(), "disk"),
    ];
    let present = counts.iter().filter(|(count, _)| *count > 0);
    let words = present.map(|(count, what)| match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    });
    format!("\"{}\" with {}", plan.name, words.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::summary;

    #[test]
    fn the_summary_counts() {
        let example = include_bytes!("../../examples/config/host-a.toml");
        let plan = outboard::config::parse("host-a.toml", example).unwrap();
        let expected = "\"host-a\" with 2 workers, 2 VPCs, 1 uplink, 2 ports, 3 volumes, \
                        1 export, 2 disks";
        assert_eq!(summary(&plan), expected);
    }
}
