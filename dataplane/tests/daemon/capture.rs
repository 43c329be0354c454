//! `outboard capture` on running daemons; tshark judges what it writes.

use crate::netns::run;
use crate::process::{Daemon, OUTBOARD, PATIENCE, until};
use crate::world::{Family, Host, Options, World};
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A capture as a child process; killed when dropped.
struct Capture {
    child: Child,
    log: PathBuf,
    file: PathBuf,
}

impl Capture {
    /// Starts one and waits until the daemon has begun it.
    #[track_caller]
    fn on(world: &World, host: &Host, name: &str, arguments: &[&str]) -> Capture {
        let file = world.scratch.0.join(format!("{name}.pcapng"));
        let log = world.scratch.0.join(format!("{name}.log"));
        let child = Command::new(OUTBOARD)
            .args(["capture", "--socket", host.socket.to_str().unwrap(), "--write"])
            .arg(&file)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let capture = Capture { child, log, file };
        until("the capture has begun", || capture.log().contains("capturing on").then_some(()));
        capture
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end; nothing may be missed.
    #[track_caller]
    fn ended(&mut self, packets: usize) {
        let status = until("the capture has ended", || self.child.try_wait().unwrap());
        assert!(status.success(), "{}", self.log());
        let summary = format!("{packets} packets, none missed");
        assert!(self.log().contains(&summary), "{}", self.log());
    }

    #[track_caller]
    fn interrupted(&mut self, packets: usize) {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        self.ended(packets);
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What tshark says of fields, one line per frame; first it must find nothing wrong.
#[track_caller]
fn tshark(file: &Path, fields: &[&str]) -> Vec<String> {
    const WRONG: &str = "_ws.malformed || _ws.expert.severity >= 6291456";
    const CHECKS: [&str; 4] = ["-o", "udp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"];
    let file = file.to_str().unwrap();
    let ask = |rest: &[&str]| run("tshark", &[&["-n", "-r", file], &CHECKS[..], rest].concat());
    let wrong =
        ask(&["-Y", WRONG, "-T", "fields", "-e", "frame.number", "-e", "_ws.expert.message"]);
    assert_eq!(wrong, "");
    let fields: Vec<&str> = fields.iter().flat_map(|field| ["-e", field]).collect();
    ask(&[&["-T", "fields"], fields.as_slice()].concat()).lines().map(String::from).collect()
}

#[test]
fn tunnels_and_what_is_in_them_are_captured_in_ipv4() {
    captures_what_passes(Family::V4, "icmp");
}

#[test]
fn tunnels_and_what_is_in_them_are_captured_in_ipv6() {
    captures_what_passes(Family::V6, "icmp6");
}

fn captures_what_passes(family: Family, icmp: &str) {
    let options = Options { family, underlay: family, ..Options::default() };
    let (world, a, b) = World::running(options);
    // Longer than what neighbours and gateways say of themselves.
    let inner = format!("{icmp} and greater 140");
    let outer = format!("vni 100 and inner {icmp} and greater 190");
    // The blue port of host b is on one worker, its uplink too; red is on both.
    let count = ["--count", "10"];
    let on = |host: &Host, name: &str, port: &str, filter: &str| {
        Capture::on(&world, host, name, &[&["--port", port], &count[..], &[filter]].concat())
    };
    let mut tenant = on(&world.a, "tenant", "blue", &inner);
    let mut uplink = on(&world.b, "uplink", "up", &outer);
    // Elsewhere there is nothing of it, whatever passes.
    let mut other = on(&world.b, "other", "up", &format!("vni 300 and inner {icmp}"));
    let (from, to) = (world.a.tenant("blue"), world.b.tenant("blue"));
    assert!(from.pings(to.address, "-c 5 -s 100"));
    tenant.ended(10);
    uplink.ended(10);
    assert!(other.is_running());
    other.interrupted(0);
    assert_eq!(tshark(&other.file, &["frame.number"]).len(), 0);

    let seen = tshark(&tenant.file, &["frame.interface_name", "frame.packet_flags_direction"]);
    assert_eq!(seen.len(), 10);
    for direction in ["blue\t0x00000001", "blue\t0x00000002"] {
        assert_eq!(seen.iter().filter(|line| *line == direction).count(), 5, "{seen:?}");
    }
    let address = if family == Family::V4 { "ip.src" } else { "ipv6.src" };
    let seen = tshark(&uplink.file, &["vxlan.vni", address, "frame.time_epoch"]);
    assert_eq!(seen.len(), 10);
    let own = format!("100\t{},{}\t", world.a.vtep, from.address);
    assert_eq!(seen.iter().filter(|line| line.starts_with(&own)).count(), 5, "{seen:?}");
    let times: Vec<&str> = seen.iter().map(|line| line.rsplit('\t').next().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    stop(a, b);
}

#[test]
fn both_workers_of_a_port_are_seen_and_packets_are_cut_to_the_snap_length() {
    let (world, a, b) = World::running(Options::default());
    let arguments = ["--port", "red", "--stage", "in", "--snap", "60", "icmp and greater 140"];
    let mut red = Capture::on(&world, &world.b, "red", &arguments);
    let arguments = ["--port", "red", "--stage", "out", "icmp and greater 140"];
    let mut out = Capture::on(&world, &world.b, "out", &arguments);
    // Each ping is a flow of its own to the steering: both queues get some.
    for _ in 0..10 {
        assert!(world.b.tenant("red").pings(world.a.tenant("red").address, "-c 1 -s 100"));
    }
    red.interrupted(10);
    let seen = tshark(&red.file, &["frame.len", "frame.cap_len"]);
    assert_eq!(seen, vec!["142\t60"; 10]);
    // What goes to the tenant are the answers, and they alone.
    out.interrupted(10);
    let (from, to) = (world.a.tenant("red").address, world.b.tenant("red").address);
    let fields = ["ip.src", "ip.dst", "icmp.type", "frame.packet_flags_direction"];
    let seen = tshark(&out.file, &fields);
    assert_eq!(seen, vec![format!("{from}\t{to}\t0\t0x00000002"); 10]);
    stop(a, b);
}

#[test]
fn what_is_dropped_is_captured_with_its_reason() {
    let world = World::new(Options::default());
    let a = world.a.run();
    let arguments = ["--port", "green", "--stage", "drop", "--count", "3", "icmp"];
    let mut green = Capture::on(&world, &world.a, "green", &arguments);
    let tenant = world.a.tenant("green");
    tenant.reaches(world.gateway);
    // In another's name.
    tenant.netns.ip("address add 10.0.0.77/24 dev eth0");
    assert!(!tenant.pings(world.gateway, "-I 10.0.0.77 -c 3"));
    green.ended(3);
    let seen = tshark(&green.file, &["frame.comment", "ip.src"]);
    let is_right = |line: &String| {
        line.starts_with("dropped: spoofed_source: The source") && line.ends_with("\t10.0.0.77")
    };
    assert!(seen.len() == 3 && seen.iter().all(is_right), "{seen:?}");
    a.stop(Signal::TERM);
}

#[test]
fn what_cannot_be_captured_is_told_before_a_file_is_written() {
    let world = World::new(Options::default());
    let a = world.a.run();
    let file = world.scratch.0.join("never.pcapng");
    let refused = |arguments: &[&str]| {
        let output = Command::new(OUTBOARD)
            .args(["capture", "--socket", world.a.socket.to_str().unwrap(), "--write"])
            .arg(&file)
            .args(arguments)
            .output()
            .unwrap();
        assert!(!output.status.success() && !file.exists(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let told = refused(&["--port", "bleu"]);
    assert!(told.contains("\"bleu\"; did you mean `blue`?"), "{told}");
    let told = refused(&["--port", "blue", "udp", "prot", "53"]);
    assert!(told.contains("filter, at \"prot\": expected"), "{told}");
    let told = refused(&["--port", "blue", "--stage", "middle"]);
    assert!(told.contains("want in, out or drop"), "{told}");
    // Four at a time, and one more when one of them has ended.
    let arguments = ["--port", "blue", "icmp"];
    let on = |name: &str| Capture::on(&world, &world.a, name, &arguments);
    let mut running: Vec<_> = ["1", "2", "3", "4"].map(on).into();
    let told = refused(&arguments);
    assert!(told.contains("4 captures run already"), "{told}");
    running[0].interrupted(0);
    until("there is room again", || {
        let mut child = Command::new(OUTBOARD)
            .args(["capture", "--socket", world.a.socket.to_str().unwrap(), "-w", "-"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The header of the section is there at once, packets or not.
        let mut magic = [0; 4];
        let stdout = child.stdout.as_mut().unwrap();
        let has_begun = std::io::Read::read_exact(stdout, &mut magic).is_ok();
        let _ = child.kill();
        child.wait().unwrap();
        (has_begun && magic == [0x0a, 0x0d, 0x0d, 0x0a]).then_some(())
    });
    // A daemon that stops ends them well, and does not wait for one that does not read.
    let stuck = std::os::unix::net::UnixStream::connect(&world.a.socket).unwrap();
    stuck.set_read_timeout(Some(PATIENCE)).unwrap();
    a.stop(Signal::TERM);
    running.iter_mut().skip(1).for_each(|capture| capture.ended(0));
}

fn stop(a: Daemon, b: Daemon) {
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}
