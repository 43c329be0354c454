//! A snapshot of some things only.

use super::Stats;
use crate::config::advice;

/// What is of interest; with nothing named, everything is.
#[derive(Clone, Debug, Default)]
pub struct Only {
    /// Ports and uplinks.
    pub ports: Vec<String>,
    /// Private networks.
    pub vpcs: Vec<String>,
    /// Disks.
    pub disks: Vec<String>,
}

impl Only {
    /// Leaves in the snapshot what is named; a name that is not there is told with one that is.
    pub fn narrow(&self, stats: &mut Stats) -> Result<(), String> {
        let Only { ports, vpcs, disks } = self;
        if ports.is_empty() && vpcs.is_empty() && disks.is_empty() {
            return Ok(());
        }
        stats.workers.clear();
        stats.volumes.clear();
        stats.exports.clear();
        retain("port or uplink", ports, &mut stats.ports, |it| &it.name)?;
        retain("VPC", vpcs, &mut stats.vpcs, |it| &it.name)?;
        retain("disk", disks, &mut stats.disks, |it| &it.name)
    }
}

fn retain<T>(
    kind: &str,
    wanted: &[String],
    all: &mut Vec<T>,
    name: fn(&T) -> &String,
) -> Result<(), String> {
    if let Some(unknown) = wanted.iter().find(|wanted| !all.iter().any(|it| name(it) == *wanted)) {
        let known: Vec<&str> = all.iter().map(|it| name(it).as_str()).collect();
        let known = match known.is_empty() {
            true => "the daemon has none".into(),
            false => advice(unknown, &known),
        };
        return Err(format!("no {kind} is named \"{unknown}\"; {known}"));
    }
    all.retain(|it| wanted.contains(name(it)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::stats::tests::sample;

    #[test]
    fn what_is_named_stays() {
        let mut stats = sample();
        Only::default().narrow(&mut stats).unwrap();
        assert_eq!(stats, sample());
        let named = |name: &str| Only { ports: vec![name.into()], ..Only::default() };
        named("blue-web").narrow(&mut stats).unwrap();
        assert_eq!(stats.ports, sample().ports[1..]);
        assert!(stats.disks.is_empty() && stats.vpcs.is_empty() && stats.volumes.is_empty());
        let told = named("blue-wbe").narrow(&mut sample()).unwrap_err();
        let expected = "no port or uplink is named \"blue-wbe\"; did you mean `blue-web`?";
        assert_eq!(told, expected);
    }
}
