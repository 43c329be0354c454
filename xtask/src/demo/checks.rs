//! What a user would try by hand between the tenants of a topology: ping, who answers, iperf3.
//! They are the same for every path that joins the tenants.

use super::facts::{Fact, Facts};
use super::topology::{ADDRESSES, FAMILIES, Topology, V4, VPCS, Vpc};
use crate::child::{self, Child};
use crate::error::Error;
use crate::netns::Namespace;
use crate::process;
use crate::stop::Stop;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How long a path may take until its first packet goes through.
pub const READY_WAIT: Duration = Duration::from_secs(15);
/// How long a single program may take.
const PROGRAM_WAIT: Duration = Duration::from_secs(30);
/// Requests of each VPC that the other one's server must not see.
const REQUESTS: u32 = 100;
/// Seconds of iperf3 per VPC.
const IPERF_S: u32 = 3;

/// A path that joins the tenants of a topology, and where observations of it go.
pub struct Subject<'a> {
    /// As reports name it.
    pub path: &'a str,
    /// Its tenants.
    pub topology: &'a Topology,
    /// Where programs' logs go.
    pub logs: &'a Path,
    /// Whether to go on.
    pub stop: &'a Stop,
}

impl Subject<'_> {
    /// Every check, in the order in which one would try them.
    pub fn check(&self, facts: &mut Facts) -> Result<(), Error> {
        self.reach(facts)?;
        for family in FAMILIES {
            for fact in self.isolation(family)? {
                facts.note(fact);
            }
        }
        for vpc in 0..VPCS.len() {
            facts.note(self.iperf3(vpc)?);
        }
        Ok(())
    }

    /// Pings between the tenants of both VPCs, in both families.
    pub fn reach(&self, facts: &mut Facts) -> Result<(), Error> {
        for vpc in 0..VPCS.len() {
            for family in FAMILIES {
                facts.note(self.ping(vpc, ADDRESSES[family])?);
            }
        }
        Ok(())
    }

    /// The tenant on host A of a VPC.
    fn near(&self, vpc: usize) -> &Namespace {
        self.topology.tenant(0, vpc)
    }

    /// Starts a server in the tenant on host B and waits for its word that it listens. `log`
    /// tells its log from those of the tenant's other servers.
    pub fn serve(
        &self,
        vpc: usize,
        command: &mut Command,
        log: &str,
        word: &str,
    ) -> Result<Child, Error> {
        let tenant = self.topology.tenant(1, vpc);
        let (_, label) = tenant.name().split_once('-').unwrap_or_default();
        let log = self.logs.join(format!("{label}-{log}.log"));
        let mut inside = tenant.command(command.get_program());
        inside.args(command.get_args());
        let mut child = Child::spawn(&mut inside, &log)?;
        let says_it = || {
            child.must_run()?;
            Ok(fs::read_to_string(&log).ok().filter(|text| text.contains(word)))
        };
        match self.stop.wait_for(READY_WAIT, says_it)? {
            Some(_) => Ok(child),
            None => Err(Error::task(
                format!("`{}` did not say \"{word}\"", process::describe(&inside)),
                format!("see {}", log.display()),
            )),
        }
    }

    /// From the tenant on host A to the one on host B.
    fn ping(&self, vpc: usize, [near, far]: [&str; 2]) -> Result<Fact, Error> {
        // The first packets wait for address resolution and for a daemon's ports to come up.
        self.answers(self.near(vpc), far, READY_WAIT)?;
        let mut ping = self.near(vpc).command("ping");
        ping.args(["-n", "-c", "5", "-i", "0.1", "-W", "2", far]);
        let (text, answered) = match child::read(&mut ping, PROGRAM_WAIT, self.stop) {
            Ok(text) => {
                let answered = text.contains(" 0% packet loss");
                (text, answered)
            }
            // ping fails when nothing came back: an observation, not a reason to stop.
            Err(Error::Failed { output, .. }) => (output, false),
            Err(error) => return Err(error),
        };
        Ok(Fact {
            kind: "reach",
            title: format!("{}: ping {near} to {far}", VPCS[vpc].name),
            path: self.path.into(),
            ok: Some(answered),
            value: ping_average_ms(&text).map(|ms| (ms, "ms")),
            text: ping_summary(&text),
            command: process::describe(&ping),
            ..Fact::default()
        })
    }

    /// Whether an address answers a ping within `patience`; asked once at least.
    pub fn answers(&self, from: &Namespace, to: &str, patience: Duration) -> Result<bool, Error> {
        let answer = self.stop.wait_for(patience, || {
            let mut once = from.command("ping");
            once.args(["-n", "-c", "1", "-W", "1", to]);
            let ended = child::outcome(&mut once, PROGRAM_WAIT, self.stop)?;
            Ok(ended.status.success().then_some(()))
        })?;
        Ok(answer.is_some())
    }

    /// Both VPCs have a server at the same address; each tenant must meet its own.
    fn isolation(&self, family: usize) -> Result<Vec<Fact>, Error> {
        // By process, not by path: a build may have replaced the file since this program began.
        let xtask = format!("/proc/{}/exe", std::process::id());
        let far = ADDRESSES[family][1];
        let address = endpoint(far, 7777);
        let mut servers = Vec::new();
        for (vpc, Vpc { name, .. }) in VPCS.iter().enumerate() {
            let mut server = Command::new(&xtask);
            server.args(["marker", "--serve", &address, name]);
            servers.push(self.serve(vpc, &mut server, "marker", "answering")?);
        }
        let ask = |vpc: usize, times: u32| -> Result<(String, String), Error> {
            let mut ask = self.near(vpc).command(&xtask);
            ask.args(["marker", "--ask", &address, "--times", &times.to_string(), VPCS[vpc].name]);
            let answer = child::read(&mut ask, PROGRAM_WAIT, self.stop)?;
            Ok((answer.trim().to_string(), process::describe(&ask)))
        };
        for vpc in 0..VPCS.len() {
            ask(vpc, REQUESTS)?;
        }
        // Now both servers would have heard from the other VPC.
        let mut facts = Vec::new();
        for (vpc, Vpc { name, .. }) in VPCS.iter().enumerate() {
            let (answer, command) = ask(vpc, 1)?;
            let right = is_own_and_undisturbed(name, &answer);
            facts.push(Fact {
                kind: "isolation",
                title: format!("{name}: who answers at {far}"),
                path: self.path.into(),
                ok: Some(right),
                text: isolation_text(name, &answer, right),
                command,
                ..Fact::default()
            });
        }
        servers.into_iter().try_for_each(Child::stop)?;
        Ok(facts)
    }

    fn iperf3(&self, vpc: usize) -> Result<Fact, Error> {
        let far = ADDRESSES[V4][1];
        let mut server = Command::new("iperf3");
        server.args(["--server", "--one-off", "--forceflush", "--bind", far]);
        let server = self.serve(vpc, &mut server, "iperf3", "listening")?;
        let mut client = self.near(vpc).command("iperf3");
        client.args(["--client", far, "--time", &IPERF_S.to_string(), "--json"]);
        println!("  ...   {}: iperf3 TCP, {IPERF_S} s", VPCS[vpc].name);
        let text = child::read(&mut client, PROGRAM_WAIT, self.stop)?;
        drop(server);
        let report: Value = serde_json::from_str(&text).map_err(|e| {
            Error::task(format!("iperf3's report is not JSON: {e}"), "try it by hand")
        })?;
        let end = &report["end"];
        let bits_per_s = end["sum_received"]["bits_per_second"].as_f64();
        let retransmits = end["sum_sent"]["retransmits"].as_u64();
        Ok(Fact {
            kind: "throughput",
            title: format!("{}: iperf3 TCP", VPCS[vpc].name),
            path: self.path.into(),
            ok: Some(bits_per_s.is_some_and(|rate| rate > 0.0)),
            value: bits_per_s.map(|rate| (rate / 1e9, "Gb/s")),
            text: retransmits.map_or(String::new(), |count| format!("({count} retransmissions)")),
            command: process::describe(&client),
            ..Fact::default()
        })
    }
}

/// An address and a port, as programs take them.
pub fn endpoint(address: &str, port: u16) -> String {
    match address.contains(':') {
        true => format!("[{address}]:{port}"),
        false => format!("{address}:{port}"),
    }
}

/// Whether a marker's answer (server, requests it got from the other VPC) is as it should be.
fn is_own_and_undisturbed(vpc: &str, answer: &str) -> bool {
    answer == format!("{vpc} 0")
}

fn isolation_text(vpc: &str, answer: &str, right: bool) -> String {
    match right {
        true => format!("{vpc}'s server, which saw none of the other's {REQUESTS} requests"),
        false => format!("\"{answer}\" (server, requests it got from the other VPC)"),
    }
}

/// The average of ping's last line: `rtt min/avg/max/mdev = 0.03/0.04/0.06/0.01 ms`.
fn ping_average_ms(text: &str) -> Option<f64> {
    let figures = text.lines().find_map(|line| line.strip_prefix("rtt ")?.split_once(" = "))?.1;
    figures.split('/').nth(1)?.parse().ok()
}

/// ping's `5 packets transmitted, 5 received, 0% packet loss`, without the time.
fn ping_summary(text: &str) -> String {
    let line = text.lines().find(|line| line.contains("packet loss")).unwrap_or("no answer");
    line.rsplit_once(", time").map_or(line, |(summary, _)| summary).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_last_lines_are_read() {
        let text = "PING 10.0.0.2\n\n--- 10.0.0.2 ping statistics ---\n\
                    5 packets transmitted, 5 received, 0% packet loss, time 804ms\n\
                    rtt min/avg/max/mdev = 0.031/0.042/0.060/0.010 ms\n";
        assert_eq!(ping_average_ms(text), Some(0.042));
        assert_eq!(ping_summary(text), "5 packets transmitted, 5 received, 0% packet loss");
        assert_eq!(ping_average_ms(""), None);
        assert_eq!(ping_summary(""), "no answer");
    }

    #[test]
    fn endpoints_are_what_sockets_take() {
        for address in ADDRESSES.concat() {
            let endpoint: std::net::SocketAddr = endpoint(address, 7).parse().unwrap();
            assert_eq!((endpoint.ip().to_string().as_str(), endpoint.port()), (address, 7));
        }
    }

    #[test]
    fn another_server_and_a_foreign_request_are_both_wrong() {
        assert!(is_own_and_undisturbed("red", "red 0"));
        assert!(!is_own_and_undisturbed("red", "blue 0"));
        assert!(!is_own_and_undisturbed("red", "red 1"));
        assert!(!is_own_and_undisturbed("red", ""));
    }
}
