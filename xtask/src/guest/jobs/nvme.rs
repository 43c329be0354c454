//! The guest's own NVMe/TCP host on an export of ours, over a TAP that is captured and looked at by
//! tshark.

use super::{Job, Stage};
use crate::child::{self, Child};
use crate::error::Error;
use crate::guest::daemon::{Daemon, file_volume};
use crate::guest::qemu::{Host, Outcome};
use crate::stop::Stop;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The job.
pub const JOB: Job = Job {
    name: "nvme-tcp",
    about: "Linux's NVMe/TCP host: discovery, digests, verified load, target killed under it",
    script: include_str!("nvme-tcp.sh"),
    patience: Duration::from_secs(240),
    run,
};

/// The guest's interface on this side.
const TAP: &str = "tap0";
/// This side's address; the script has the guest's.
const ADDRESS: &str = "10.99.0.1";
const PORT: u16 = 4420;
const NQN: &str = "nqn.2025-01.org.outboard:guest.export";
const SIZE: &str = "64MiB";

/// How long tcpdump may take until it captures.
const CAPTURE_WAIT: Duration = Duration::from_secs(20);
/// How long tshark may take over the capture.
const LOOK_WAIT: Duration = Duration::from_secs(120);
/// tshark's severity "warning".
const WARNING: u32 = 6_291_456;

fn run(stage: &Stage, job: &Job) -> Result<Outcome, Error> {
    make_tap(stage)?;
    let volume = file_volume("data", &stage.disks.join("data.img"), SIZE, 4096);
    let export = format!(
        "\n[[export]]\nvolume = \"data\"\nnqn = \"{NQN}\"\nlisten = \"{ADDRESS}:{PORT}\"\n"
    );
    let target = Daemon::start(stage, "target", &(volume + &export))?;
    let mut far = Target { daemon: target, stop: stage.stop };
    let capture = Capture::start(stage)?;
    let network = [
        "-netdev".to_string(),
        format!("tap,id=net,ifname={TAP},script=no,downscript=no"),
        "-device".to_string(),
        "virtio-net-pci,netdev=net,mac=52:54:00:6f:62:01".to_string(),
    ];
    let outcome = stage.play(job, network.into_iter().map(OsString::from).collect(), &mut far)?;
    far.daemon.stop()?;
    if outcome.exit_code != 0 {
        return Ok(outcome);
    }
    let packets = capture.finish(stage)?;
    println!("  tshark finds nothing wrong in {packets} packets");
    Ok(outcome)
}

fn make_tap(stage: &Stage) -> Result<(), Error> {
    let space = stage.namespace;
    space.ip(&format!("tuntap add dev {TAP} mode tap")).map_err(|error| {
        Error::task(
            format!("no TAP can be made: {error}"),
            "it needs /dev/net/tun and CAP_NET_ADMIN; in a container, --device /dev/net/tun",
        )
    })?;
    space.ip(&format!("address add {ADDRESS}/24 dev {TAP}"))?;
    space.ip(&format!("link set {TAP} up"))?;
    Ok(())
}

/// The daemon with the export, which the guest has restarted.
struct Target<'a> {
    daemon: Daemon,
    stop: &'a Stop,
}

impl Host for Target<'_> {
    fn answer(&mut self, words: &[&str]) -> Result<String, Error> {
        match words {
            ["address"] => Ok(format!("{ADDRESS} {PORT} {NQN}")),
            [how, "target"] => self.daemon.disturb(how, self.stop),
            _ => Err(super::unknown(words)),
        }
    }

    fn watch(&mut self) -> Result<(), Error> {
        self.daemon.must_run()
    }

    fn write_counts(&mut self) -> Result<(), Error> {
        self.daemon.write_counts(self.stop)
    }
}

/// tcpdump on the TAP.
struct Capture {
    tcpdump: Child,
    file: PathBuf,
    log: PathBuf,
}

impl Capture {
    fn start(stage: &Stage) -> Result<Capture, Error> {
        let (file, log) = (stage.logs.join("capture.pcap"), stage.logs.join("tcpdump.log"));
        let mut command = stage.namespace.command("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "tcpdump", "-n", "-U", "-Z", "root"]);
        // 32 MiB of buffer: nothing may be lost while the guest has the core.
        command.args(["-B", "32768", "-s", "0", "-i", TAP, "-w"]).arg(&file);
        command.arg(format!("tcp port {PORT}"));
        let mut tcpdump = Child::spawn(&mut command, &log)?;
        let listening = stage.stop.wait_for(CAPTURE_WAIT, || {
            tcpdump.must_run()?;
            let text = fs::read_to_string(&log).unwrap_or_default();
            Ok(text.contains("listening on").then_some(()))
        })?;
        match listening {
            Some(()) => Ok(Capture { tcpdump, file, log }),
            None => Err(Error::task("tcpdump does not begin", format!("see {}", log.display()))),
        }
    }

    /// Ends it and has tshark look: how many packets there are, none of them wrong.
    fn finish(self, stage: &Stage) -> Result<usize, Error> {
        self.tcpdump.stop()?;
        let log = fs::read_to_string(&self.log).map_err(Error::file("read", &self.log))?;
        if !log.contains("0 packets dropped by kernel") {
            let what = format!("tcpdump lost packets, so that tshark cannot judge: {log}");
            return Err(Error::task(what, "is the machine very busy? Run it again"));
        }
        let packets = tshark(stage, &self.file, "tcp.len > 0", &["frame.number"])?.lines().count();
        // Retransmissions and resets belong to a target that is killed and to a slow guest. An
        // entry of the error log has 64 bytes, whose last field is 63:42 (Base 2.0, 5.16.1.2);
        // tshark 4.0 takes that for two bytes longer, and so calls a page of one entry malformed.
        let wrong = format!(
            "(_ws.malformed || (_ws.expert.severity >= {WARNING} && !tcp.analysis.flags && \
             !tcp.options.sack.dsack && tcp.flags.reset == 0)) && \
             !nvme.cmd.get_logpage.errinf.errcnt"
        );
        let digests = "nvme-tcp.hdgst.status == 0 || nvme-tcp.ddgst.status == 0";
        for filter in [wrong.as_str(), digests] {
            let fields = ["frame.number", "frame.protocols", "_ws.expert.message"];
            let found = tshark(stage, &self.file, filter, &fields)?;
            if !found.trim().is_empty() {
                let what = format!("tshark finds in {}:\n{found}", self.file.display());
                return Err(Error::task(what, "look at these packets"));
            }
        }
        for (digest, filter) in
            [("header", "nvme-tcp.hdgst.status == 1"), ("data", "nvme-tcp.ddgst.status == 1")]
        {
            if tshark(stage, &self.file, filter, &["frame.number"])?.trim().is_empty() {
                let what = format!("no {digest} digest in {}", self.file.display());
                return Err(Error::task(what, "did the guest connect with digests?"));
            }
        }
        Ok(packets)
    }
}

/// The fields of the packets that a filter finds.
fn tshark(stage: &Stage, file: &Path, filter: &str, fields: &[&str]) -> Result<String, Error> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-o", &format!("nvme-tcp.subsystem_ports:{PORT}")]);
    for digest in ["hdgst", "ddgst"] {
        command.args(["-o", &format!("nvme-tcp.check_{digest}:TRUE")]);
    }
    command.arg("-r").arg(file).args(["-Y", filter, "-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    child::read(&mut command, LOOK_WAIT, stage.stop)
}
