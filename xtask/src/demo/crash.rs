//! The remote disk's target dies with SIGKILL and starts again while host A's disk is under a
//! verified load: a pause, no error and no wrong byte.

use super::checks::{READY_WAIT, Subject};
use super::daemons::{self, Daemons, Places};
use super::drivers::{self, Bench};
use super::facts::{Fact, Facts};
use super::topology::{ADDRESSES, FAMILIES, VPCS};
use crate::child::Child;
use crate::error::Error;
use crate::process;
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

/// The load: everything that is read is compared with what was written last.
const LOAD: &[&str] = &[
    "--mix",
    "mixed",
    "--full-check",
    "--depth",
    "8",
    "--working-set-mib",
    "16",
    "--wait",
    "block",
    "--seconds",
    "6",
    "--warmup",
    "0",
];
/// Requests that fill the working set, and some more: then the load itself runs.
const REQUESTS_BEFORE: u64 = (16 << 20) / 4096 + 256;
/// How long that may take.
const LOAD_WAIT: Duration = Duration::from_secs(120);

/// What the crash is tried on.
pub struct Crash<'a> {
    /// The tenants.
    pub subject: &'a Subject<'a>,
    /// The daemons' files.
    pub places: &'a Places<'a>,
    /// The load.
    pub bench: &'a Bench<'a>,
}

impl Crash<'_> {
    /// Kills host B's daemon in the middle of the load and starts it again.
    pub fn check(&self, daemons: &mut Daemons, facts: &mut Facts) -> Result<(), Error> {
        println!("  ...   host B's outboard is killed under a verified load and started again");
        let stop = self.subject.stop;
        let before = self.requests()?;
        let document = self.subject.logs.join("crash.json");
        let mut load = Command::new(self.bench.program);
        load.arg("vhost-blk").arg(self.places.disk()).args(LOAD).arg("--json").arg(&document);
        let command = process::describe(&load);
        let mut load = Child::spawn(&mut load, &self.subject.logs.join("crash.log"))?;
        let works = stop.wait_for(LOAD_WAIT, || {
            load.must_run()?;
            Ok((self.requests()? >= before + REQUESTS_BEFORE).then_some(()))
        })?;
        works.ok_or_else(|| {
            let what = format!("the load did not begin within {LOAD_WAIT:?}");
            Error::task(what, "is the disk connected? its daemon's log says")
        })?;
        daemons.kill(1)?;
        load.must_run()?;
        daemons.run(self.subject.topology, self.places, 1, stop)?;
        load.finish(drivers::DRIVER_WAIT, stop)?;
        facts.note(self.load_fact(&drivers::measurement(&document)?, command));
        facts.note(self.reach()?);
        Ok(())
    }

    /// Requests that ended on host A's disk.
    fn requests(&self) -> Result<u64, Error> {
        let stats = daemons::stats(self.places, 0, self.subject.stop)?;
        stats["disks"][0]["requests"].as_u64().ok_or_else(|| {
            Error::task("outboard stats counts no requests of host A's disk", "report this")
        })
    }

    fn load_fact(&self, seen: &Value, command: String) -> Fact {
        Fact {
            kind: "note",
            title: "remote disk: its target killed (SIGKILL) and restarted, longest pause".into(),
            path: self.subject.path.into(),
            ok: Some(survived(seen)),
            value: seen["latency"]["max_ns"].as_f64().map(|ns| (ns / 1e6, "ms")),
            text: load_text(seen),
            command,
            ..Fact::default()
        }
    }

    /// Host B's tenants, too, were without their daemon.
    fn reach(&self) -> Result<Fact, Error> {
        let mut silent = Vec::new();
        for (vpc, it) in VPCS.iter().enumerate() {
            for family in FAMILIES {
                let (from, to) = (self.subject.topology.tenant(0, vpc), ADDRESSES[family][1]);
                if !self.subject.answers(from, to, READY_WAIT)? {
                    silent.push(format!("{} {to}", it.name));
                }
            }
        }
        Ok(Fact {
            kind: "reach",
            title: "tenants reach each other after the restart".into(),
            path: self.subject.path.into(),
            ok: Some(silent.is_empty()),
            text: match silent.is_empty() {
                true => "both networks, IPv4 and IPv6".into(),
                false => format!("no answer: {}", silent.join(", ")),
            },
            ..Fact::default()
        })
    }
}

/// Whether the load saw a pause and nothing else.
fn survived(seen: &Value) -> bool {
    let none = |key: &str| seen[key].as_u64() == Some(0);
    seen["verified"].as_u64().is_some_and(|verified| verified > 0)
        && ["errors", "lost", "verify_failures"].into_iter().all(none)
}

fn load_text(seen: &Value) -> String {
    format!(
        "{} reads compared byte for byte, {} wrong; {} I/Os failed, {} lost",
        seen["verified"], seen["verify_failures"], seen["errors"], seen["lost"]
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_wrong_byte_and_a_failed_io_are_both_too_much() {
        let seen = |errors: u64, wrong: u64| {
            let mut seen = json!({"errors": errors, "lost": 0, "verify_failures": wrong});
            seen["verified"] = 100.into();
            seen
        };
        assert!(survived(&seen(0, 0)));
        assert!(!survived(&seen(1, 0)) && !survived(&seen(0, 1)) && !survived(&json!({})));
        let text = "100 reads compared byte for byte, 2 wrong; 1 I/Os failed, 0 lost";
        assert_eq!(load_text(&seen(1, 2)), text);
    }
}
