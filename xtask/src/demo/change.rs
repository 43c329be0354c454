//! `outboard apply` while tenants have traffic: red's routes exchange their tunnels (IPv4 packets
//! move to tunnels over IPv6, and the other way round), a third tenant and a disk come, and all of
//! it is taken back. Streams of numbered datagrams over those routes must not lose one.

use super::checks::{READY_WAIT, Subject, endpoint};
use super::config::{LATE_NAME, State};
use super::daemons::{self, COMMAND_WAIT, Places};
use super::drivers::{self, Bench};
use super::facts::{Fact, Facts};
use super::topology::{ADDRESSES, FAMILIES, HOSTS, LATE, V4};
use crate::child::{self, Child, Ended};
use crate::error::Error;
use crate::netns::Namespace;
use crate::process;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Datagrams per second of each stream.
const RATE: &str = "500";
/// How many seconds the streams run: longer than everything that happens meanwhile. When they
/// were not, on a machine that is busy with other things too, all of it is done again.
const STREAM_S: [&str; 2] = ["8", "60"];
/// A datagram without answer for so many seconds is lost.
const LOST_AFTER_S: &str = "3";
/// The exit code of a dry run that found a difference.
const DIFFERS: i32 = 3;
/// What the new disk must show.
const DISK_LOAD: &[&str] = &[
    "--mix",
    "mixed",
    "--full-check",
    "--working-set-mib",
    "8",
    "--wait",
    "block",
    "--seconds",
    "0.5",
    "--warmup",
    "0",
];

/// What the change is tried on.
pub struct Change<'a> {
    /// The tenants.
    pub subject: &'a Subject<'a>,
    /// The daemons' files.
    pub places: &'a Places<'a>,
    /// The generator of the streams.
    pub bench: &'a Bench<'a>,
}

/// A stream of one family, and the echo side.
struct Stream {
    family: usize,
    client: Child,
    server: Child,
    document: PathBuf,
    command: String,
}

impl Change<'_> {
    /// All of it.
    pub fn check(&self, facts: &mut Facts) -> Result<(), Error> {
        println!("  ...   outboard apply while red's tenants have traffic");
        let mut seen = Vec::new();
        for seconds in STREAM_S {
            let (in_time, all) = self.once(seconds)?;
            seen = all;
            if in_time {
                break;
            }
        }
        seen.into_iter().for_each(|fact| facts.note(fact));
        Ok(())
    }

    /// The change with streams of so many seconds; whether they outlasted it, and what was seen.
    fn once(&self, seconds: &str) -> Result<(bool, Vec<Fact>), Error> {
        let late = Namespace::dual_stack("outboard-a-late")?;
        let [v4, v6] = FAMILIES.map(|family| self.stream(family, seconds));
        let mut streams = [v4?, v6?];
        let before = self.late_answers(Duration::ZERO)?;
        let mut facts = self.there(&late)?;
        let during = self.late_answers(READY_WAIT)?;
        facts.push(self.disk()?);
        self.back()?;
        let after = self.late_answers(Duration::ZERO)?;
        self.write_counts()?;
        let in_time = streams.iter_mut().all(|stream| stream.client.must_run().is_ok());
        for family in FAMILIES {
            let seen = [before[family], during[family], after[family]];
            facts.push(self.tenant_fact(family, seen));
        }
        for stream in streams {
            facts.push(self.stream_fact(stream, in_time)?);
        }
        Ok((in_time, facts))
    }

    fn stream(&self, family: usize, seconds: &str) -> Result<Stream, Error> {
        let label = ["stream-v4", "stream-v6"][family];
        let address = endpoint(ADDRESSES[family][1], 7001);
        let mut server = Command::new(self.bench.program);
        server.args(["udp", "--server", &address, "--wait", "block"]);
        let server = self.subject.serve(0, &mut server, label, "echoing")?;
        let mut client = self.subject.topology.tenant(0, 0).command(self.bench.program);
        client.args(["udp", "--to", &address, "--wait", "block", "--rate", RATE]);
        client.args(["--seconds", seconds, "--warmup", "0", "--lost-after", LOST_AFTER_S]);
        let document = self.subject.logs.join(format!("{label}.json"));
        client.arg("--json").arg(&document);
        let log = self.subject.logs.join(format!("outboard-a-red-{label}.log"));
        let command = process::describe(&client);
        Ok(Stream { family, client: Child::spawn(&mut client, &log)?, server, document, command })
    }

    /// Attaches the new tenant, shows the difference, applies it, and applies it again.
    fn there(&self, late: &Namespace) -> Result<Vec<Fact>, Error> {
        for host in [0, 1] {
            self.places.write_config(host, State::Changed)?;
        }
        let mut attach = self.places.command(self.subject.topology, 0, "attach");
        attach.args(["--port", LATE_NAME, "--netns", late.name()]);
        child::read(&mut attach, COMMAND_WAIT, self.subject.stop)?;
        let (shown, command) = self.apply(0, &["--dry-run"])?;
        let difference = Fact {
            kind: "note",
            title: "host A: apply --dry-run tells what differs".into(),
            path: self.subject.path.into(),
            ok: Some(shown.status.code() == Some(DIFFERS)),
            text: "and changes nothing".into(),
            output: shown.stdout + &shown.stderr,
            command,
            ..Fact::default()
        };
        // The host that gets packets by the new way first.
        let (first, _) = self.apply(1, &[])?;
        let (second, command) = self.apply(0, &[])?;
        let (again, _) = self.apply(0, &[])?;
        let done = [&first, &second, &again].iter().all(|ended| ended.status.success());
        let said: String = [first, second].map(|ended| ended.stderr).concat();
        let applied = Fact {
            kind: "note",
            title: "both hosts: apply, and once more on host A".into(),
            path: self.subject.path.into(),
            ok: Some(done && again.stdout.trim() == NOTHING),
            text: format!("{said}second time: \"{}\"", again.stdout.trim()),
            command,
            ..Fact::default()
        };
        Ok(vec![difference, applied])
    }

    /// What the daemons count, for who wants to know why something is not as it should be.
    fn write_counts(&self) -> Result<(), Error> {
        for (index, host) in HOSTS.into_iter().enumerate() {
            let path = self.subject.logs.join(format!("stats-{host}.json"));
            let counts = daemons::stats(self.places, index, self.subject.stop)?;
            fs::write(&path, format!("{counts:#}\n")).map_err(Error::file("write", &path))?;
        }
        Ok(())
    }

    /// As it was.
    fn back(&self) -> Result<(), Error> {
        for host in [0, 1] {
            self.places.write_config(host, State::Usual)?;
            let (ended, command) = self.apply(host, &[])?;
            if !ended.status.success() {
                let what = format!("`{command}` failed: {}", ended.stderr.trim());
                return Err(Error::task(what, "the daemons' logs say more"));
            }
        }
        Ok(())
    }

    fn apply(&self, host: usize, more: &[&str]) -> Result<(Ended, String), Error> {
        let mut command = self.places.command(self.subject.topology, host, "apply");
        command.args(more);
        let ended = child::outcome(&mut command, COMMAND_WAIT, self.subject.stop)?;
        Ok((ended, process::describe(&command)))
    }

    /// Whether the new tenant answers red's tenant on host B, by family.
    fn late_answers(&self, patience: Duration) -> Result<[bool; 2], Error> {
        let from = self.subject.topology.tenant(1, 0);
        let answers = |family: usize| self.subject.answers(from, LATE[family], patience);
        let [v4, v6] = FAMILIES.map(answers);
        Ok([v4?, v6?])
    }

    fn tenant_fact(&self, family: usize, seen: [bool; 3]) -> Fact {
        let word = |answers: bool| if answers { "answers" } else { "no answer" };
        let [before, during, after] = seen.map(word);
        Fact {
            kind: "reach",
            title: format!("red: a tenant comes and goes by apply, {}", LATE[family]),
            path: self.subject.path.into(),
            ok: Some(seen == [false, true, false]),
            text: format!("before: {before}; applied: {during}; taken back: {after}"),
            ..Fact::default()
        }
    }

    /// The disk that came, under a verified load.
    fn disk(&self) -> Result<Fact, Error> {
        let document = self.subject.logs.join("late-disk.json");
        let mut load = Command::new(self.bench.program);
        load.arg("vhost-blk").arg(self.places.late_disk()).args(DISK_LOAD);
        load.arg("--json").arg(&document);
        child::read(&mut load, drivers::DRIVER_WAIT, self.subject.stop)?;
        let load_shown = drivers::measurement(&document)?;
        let count = |key: &str| load_shown[key].as_u64().unwrap_or(0);
        Ok(Fact {
            kind: "note",
            title: "host A: a disk comes by apply".into(),
            path: self.subject.path.into(),
            ok: Some(count("verified") > 0 && count("errors") + count("lost") == 0),
            text: format!("{} reads verified, every byte", count("verified")),
            command: process::describe(&load),
            ..Fact::default()
        })
    }

    fn stream_fact(&self, stream: Stream, in_time: bool) -> Result<Fact, Error> {
        let Stream { family, client, server, document, command } = stream;
        client.finish(drivers::DRIVER_WAIT, self.subject.stop)?;
        server.stop()?;
        let seen = drivers::measurement(&document)?;
        let name = if family == V4 { "IPv4" } else { "IPv6" };
        let text = match in_time {
            true => stream_text(&seen),
            false => format!("{}; ended before the last apply did", stream_text(&seen)),
        };
        Ok(Fact {
            kind: "reach",
            title: format!("red: {name} stream while its routes moved, longest round trip"),
            path: self.subject.path.into(),
            ok: Some(in_time && is_whole(&seen)),
            value: seen["latency"]["max_ns"].as_f64().map(|ns| (ns / 1e6, "ms")),
            text,
            command,
            ..Fact::default()
        })
    }
}

/// What `outboard apply` prints when nothing differs.
const NOTHING: &str = "nothing differs";

/// Whether every datagram came back as it was sent.
fn is_whole(measurement: &Value) -> bool {
    let none = |key: &str| measurement[key].as_u64() == Some(0);
    measurement["latency"]["samples"].as_u64().is_some_and(|samples| samples > 0)
        && ["lost", "errors", "verify_failures", "strays"].into_iter().all(none)
}

fn stream_text(measurement: &Value) -> String {
    let samples = measurement["latency"]["samples"].as_u64().unwrap_or(0);
    let lost = measurement["lost"].as_u64().unwrap_or(0);
    format!("{samples} datagrams came back, {lost} lost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_lost_datagram_is_one_too_many() {
        let seen = |samples: u64, lost: u64| {
            json!({"latency": {"samples": samples}, "lost": lost, "errors": 0,
                "verify_failures": 0, "strays": 0})
        };
        assert!(is_whole(&seen(4000, 0)));
        assert!(!is_whole(&seen(3999, 1)) && !is_whole(&seen(0, 0)) && !is_whole(&json!({})));
        assert_eq!(stream_text(&seen(3999, 1)), "3999 datagrams came back, 1 lost");
    }
}
