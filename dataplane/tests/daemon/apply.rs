//! Ports, private networks and routes that come, change and go while others have traffic, of
//! which not one packet may be lost; and applies that fail and change nothing.

use crate::process::{Daemon, OUTBOARD, until};
use crate::world::{Family, Host, Options, Tenant, World, both};
use rustix::process::Signal;
use std::net::{IpAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// Echo requests of one flow, and the time between them.
const ECHOES: &str = "3000";
const EVERY_S: &str = "0.005";
/// Applies under traffic, at least.
const ROUNDS: usize = 20;

/// What comes and goes beside the tenants of the world; of a world of IPv6 see [`World::more`].
const MORE: &str = "
[[vpc]]
name = 'pink'
vni = 400
gateway = '10.0.0.254'
[[vpc.route]]
to = '10.0.1.0/24'
via = '192.0.2.77'
[[port]]
name = 'extra'
interface = 'extra'
vpc = 'pink'
address = '10.0.0.1/24'
worker = 1
[[volume]]
name = 'ram'
kind = 'mem'
size = '1MiB'
[[disk]]
name = 'vda'
volume = 'ram'
socket = 'SCRATCH/extra.sock'
";

/// Echo requests that run by themselves.
pub struct Flow(Child);

impl Flow {
    pub fn start(from: &Tenant, to: IpAddr) -> Flow {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", from.netns.name(), "ping", "-q", "-W", "5"]);
        command.args(["-i", EVERY_S, "-c", ECHOES]).arg(to.to_string());
        Flow(command.stdout(Stdio::piped()).spawn().expect("ping runs"))
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// What ping says at its end: nothing may be missing.
    #[track_caller]
    pub fn lost_nothing(mut self) {
        let mut said = String::new();
        let mut out = self.0.stdout.take().unwrap();
        std::io::Read::read_to_string(&mut out, &mut said).unwrap();
        let all = format!("{ECHOES} packets transmitted, {ECHOES} received");
        assert!(said.contains(&all), "{said}");
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A configuration without the tables of this kind and name, and what belongs to them.
fn without(text: &str, kind: &str, name: &str) -> String {
    let mut kept = String::new();
    let mut drops = false;
    for (index, piece) in text.split("[[").enumerate() {
        let is_route = piece.starts_with("vpc.route]]");
        if !is_route {
            let is_kind = piece.starts_with(&format!("{kind}]]"));
            drops = is_kind && piece.contains(&format!("name = '{name}'\n"));
        }
        if !drops {
            kept += if index == 0 { "" } else { "[[" };
            kept += piece;
        }
    }
    kept
}

impl World {
    /// [`MORE`] in the world's family.
    fn more(&self) -> String {
        let v6 = [
            ("gateway = '10.0.0.254'", "gateway6 = 'fd00::fe'"),
            ("'10.0.1.0/24'", "'fd00:1::/64'"),
            ("192.0.2.", "2001:db8::"),
            ("address = '10.0.0.1/24'", "address6 = 'fd00::1/64'"),
        ];
        let v6 = v6.iter().filter(|_| self.gateway.is_ipv6());
        v6.fold(MORE.to_owned(), |text, (from, to)| text.replace(from, to))
    }

    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.scratch.0.join(name);
        let text = text.replace("SCRATCH", &self.scratch.0.display().to_string());
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Host {
    pub fn text(&self) -> String {
        std::fs::read_to_string(&self.config).unwrap()
    }

    pub fn apply(&self, file: &PathBuf, more: &[&str]) -> Output {
        let mut command = Command::new(OUTBOARD);
        command.args(["apply", "--config"]).arg(file).args(more).output().expect("it runs")
    }

    #[track_caller]
    pub fn applies(&self, file: &PathBuf) -> String {
        let output = self.apply(file, &[]);
        let (out, err) = (&output.stdout, &output.stderr);
        let (out, err) = (String::from_utf8_lossy(out), String::from_utf8_lossy(err));
        assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
        out.into_owned()
    }

    /// Everything of it that an apply may touch, from outside.
    #[track_caller]
    pub fn state(&self, daemon: &Daemon, world: &World) -> Vec<String> {
        let mut all: Vec<String> =
            names(self.pins()).into_iter().chain(names(&world.scratch.0)).collect();
        let stats = daemon.stats();
        all.extend(stats.ports.iter().map(|it| format!("port {} {}", it.name, it.mode)));
        all.extend(stats.volumes.iter().map(|it| format!("volume {}", it.name)));
        all.extend(stats.disks.iter().map(|it| format!("disk {}", it.name)));
        all.extend(stats.exports.iter().map(|it| format!("export {}", it.nqn)));
        let links = crate::netns::run("ip", &["-n", self.netns.name(), "-o", "link", "show"]);
        let programs = links.lines().filter(|line| line.contains("xdp"));
        all.extend(programs.filter_map(|line| Some(line.split(": ").nth(1)?.to_owned())));
        let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
        all.push(format!("{} threads", tasks.count()));
        let files = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
        all.push(format!("{} descriptors", files.count()));
        all
    }
}

fn names(path: impl AsRef<std::path::Path>) -> Vec<String> {
    let entries = std::fs::read_dir(path).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn add_interface(host: &Host) {
    host.netns.ip("link add extra type veth peer name extra-peer");
    host.netns.ip("link set extra up");
    host.netns.ip("link set extra-peer up");
}

both! {
    what_does_not_differ_loses_no_packet
    a_route_follows_and_counts_go_on
    an_uplink_comes_and_goes
}

fn what_does_not_differ_loses_no_packet(options: Options) {
    let (world, a, b) = World::running(options);
    let (near, far) = (world.a.tenant("blue"), world.b.tenant("blue"));
    add_interface(&world.b);
    let base = world.b.text();
    let third = world.b.tenant("blue3");
    let more = base.clone() + &world.more();
    let less = without(&without(&without(&base, "port", "red"), "vpc", "red"), "port", "green");
    let moved = [("'10.0.0.1/24", "'10.0.0.9/24"), ("'fd00::1/64", "'fd00::9/64"), ("77'", "78'")];
    let moved = moved.iter().fold(more.clone(), |text, (from, to)| text.replace(from, to));
    let files = [("more", &more), ("moved", &moved), ("less", &less), ("base", &base)]
        .map(|(name, text)| world.file(&format!("b-{name}.toml"), text));
    let mut flows = [
        Flow::start(near, far.address),
        Flow::start(far, near.address),
        Flow::start(third, near.address),
    ];
    let mut rounds = 0;
    while rounds < ROUNDS || !flows.iter_mut().all(Flow::has_ended) {
        let output = world.b.applies(&files[rounds % files.len()]);
        assert!(output.ends_with("applied\n"), "{output}");
        rounds += 1;
    }
    flows.into_iter().for_each(Flow::lost_nothing);
    world.b.applies(&files[3]);
    // What came back works, too.
    let red = (world.a.tenant("red"), world.b.tenant("red"));
    red.0.reaches(red.1.address);
    red.1.reaches(world.gateway);
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
    crate::clean::nothing_is_left(&world, &world.b);
}

fn a_route_follows_and_counts_go_on(options: Options) {
    let (world, a, b) = World::running(options);
    let (near, far) = (world.a.tenant("blue"), world.b.tenant("blue"));
    let base = world.a.text();
    let (there, nobody) = (world.b.vtep, options.underlay.host(66));
    let text = base.replace(&format!("via = '{there}'"), &format!("via = '{nobody}'"));
    let nowhere = world.file("a-nowhere.toml", &text);
    let before = a.port("blue");
    let shown = world.a.apply(&nowhere, &["--dry-run"]);
    assert_eq!(shown.status.code(), Some(3));
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(text.contains("~   vpc \"blue\" (in place)"), "{text}");
    assert!(text.contains(&format!("= via {nobody} (was via {there})")), "{text}");
    assert!(near.pings(far.address, "-c 3"), "a dry run changed something");
    world.a.applies(&nowhere);
    assert!(!near.pings(far.address, "-c 1"));
    // The daemon's own file still says the old way.
    a.signal(Signal::HUP);
    near.reaches(far.address);
    assert!(a.port("blue").rx_packets > before.rx_packets);
    until("the log tells", || a.log().contains("applied: ~   vpc \"blue\"").then_some(()));
    let json = world.a.apply(&world.a.config, &["--dry-run", "--json"]);
    assert_eq!(json.status.code(), Some(0));
    let text = String::from_utf8_lossy(&json.stdout);
    assert_eq!(text.trim(), r#"{"difference":{"changes":[],"refusals":[]},"outcome":"not_tried"}"#);
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}

/// A second uplink, over which the green tenants reach each other while it is there.
fn an_uplink_comes_and_goes(options: Options) {
    let (world, a, b) = World::running(options);
    let peer = world.b.netns.name();
    world.a.netns.ip(&format!("link add second mtu 9000 type veth peer name second netns {peer}"));
    world.b.netns.ip("link set second mtu 9000");
    let (green, len) =
        ((world.a.tenant("green"), world.b.tenant("green")), options.underlay.prefix_len());
    let second = |last: u8| match options.underlay {
        Family::V4 => IpAddr::from([198, 51, 100, last]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from(last)]),
    };
    let key = if second(1).is_ipv6() { "vtep6" } else { "vtep" };
    let mut files = Vec::new();
    for (host, own, far, to) in
        [(&world.a, 1, 2, green.1.address), (&world.b, 2, 1, green.0.address)]
    {
        host.netns.ip("link set second up");
        host.netns.allow_ipv6("second");
        host.netns.ip(&format!("address add {}/{len} dev second", second(own)));
        let uplink = format!(
            "[[uplink]]\nname = 'up2'\ninterface = 'second'\n{key} = '{}'\n[[uplink]]\n",
            second(own)
        );
        let bits = if to.is_ipv6() { 128 } else { 32 };
        let route = format!("[[vpc.route]]\nto = '{to}/{bits}'\nvia = '{}'\n", second(far));
        let base = host.text();
        let (before, after) = base.split_once("[[uplink]]\n").unwrap();
        let name = |what: &str| format!("{own}-{what}.toml");
        let with = format!("{before}{route}{uplink}{after}");
        files.push((host, world.file(&name("with"), &with), world.file(&name("base"), &base)));
    }
    let (near, far) = (world.a.tenant("blue"), world.b.tenant("blue"));
    let third = world.b.tenant("blue3");
    let mut flows = [
        Flow::start(near, far.address),
        Flow::start(far, near.address),
        Flow::start(third, near.address),
    ];
    let mut rounds = 0;
    while rounds < ROUNDS / 4 || !flows.iter_mut().all(Flow::has_ended) {
        assert!(!green.0.pings(green.1.address, "-c 1"));
        files.iter().for_each(|(host, with, _)| drop(host.applies(with)));
        green.0.reaches(green.1.address);
        green.1.reaches(green.0.address);
        assert!(a.port("up2").tx_packets > 0 && b.port("up2").tx_packets > 0);
        files.iter().for_each(|(host, _, base)| drop(host.applies(base)));
        assert!(!world.a.has_program("second") && !world.b.has_program("second"));
        rounds += 1;
    }
    flows.into_iter().for_each(Flow::lost_nothing);
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
    crate::clean::nothing_is_left(&world, &world.b);
}

/// The uplink takes tunnel packets for its new addresses, and the others no longer.
#[test]
fn a_tunnel_address_changes_and_so_does_its_family() {
    let (world, a, b) = World::running(Options::default());
    let (near, far) = (world.a.tenant("blue"), world.b.tenant("blue"));
    let (base_a, base_b) = (world.a.text(), world.b.text());
    world.a.netns.ip("address add 192.0.2.11/24 dev veth");
    for (name, own, via) in [
        ("v4", "vtep = '192.0.2.11'", "192.0.2.11"),
        ("both", "vtep = '192.0.2.11'\nvtep6 = '2001:db8::1'", "2001:db8::1"),
        ("v6", "vtep6 = '2001:db8::1'", "2001:db8::1"),
        ("back", "vtep = '192.0.2.1'", "192.0.2.1"),
    ] {
        let (mut to_a, mut to_b) = (base_a.replace("vtep = '192.0.2.1'", own), base_b.clone());
        to_b = to_b.replace("via = '192.0.2.1'", &format!("via = '{via}'"));
        if via.contains(':') {
            to_a = to_a.replace("via = '192.0.2.2'", "via = '2001:db8::2'");
            to_b = to_b.replace("vtep = '192.0.2.2'", "vtep6 = '2001:db8::2'");
        }
        world.a.applies(&world.file(&format!("a-{name}.toml"), &to_a));
        world.b.applies(&world.file(&format!("b-{name}.toml"), &to_b));
        near.reaches(far.address);
        assert!(far.pings(near.address, "-c 3"), "{name}");
    }
    // Tunnel packets for the address of the past are the kernel's, which nobody has to answer.
    let before = a.port("up").rx_packets;
    let stray = world.file("b-stray.toml", &base_b.replace("'192.0.2.1'", "'192.0.2.11'"));
    world.b.applies(&stray);
    assert!(!far.pings(near.address, "-c 3"));
    assert_eq!(a.port("up").rx_packets, before);
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}

/// The new one is opened while the old one works, and both have one name.
#[test]
fn a_port_moves_to_another_interface() {
    let (world, a, b) = World::running(Options::default());
    add_interface(&world.b);
    world.b.netns.ip("link add other type veth peer name other-peer");
    world.b.netns.ip("link set other up");
    let base = world.b.text();
    let more = format!("{base}{MORE}");
    let moved = more.replace("interface = 'extra'", "interface = 'other'");
    for (name, text, wanted) in
        [("more", &more, Some("extra")), ("moved", &moved, Some("other")), ("base", &base, None)]
    {
        world.b.applies(&world.file(&format!("b-{name}.toml"), text));
        let stats = b.stats();
        let there = stats.ports.iter().filter(|port| port.name == "extra").count();
        assert_eq!(there, usize::from(wanted.is_some()), "after {name}");
        for interface in ["extra", "other"] {
            let has = world.b.has_program(interface);
            assert_eq!(has, wanted == Some(interface), "{interface} after {name}");
        }
    }
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}

#[test]
fn what_cannot_be_changes_nothing() {
    let (world, a, b) = World::running(Options::default());
    let base = world.b.text();
    let more = format!("{base}{MORE}");
    add_interface(&world.b);
    let same = world.file("b-same.toml", &base);
    let missing = more.replace("interface = 'extra'", "interface = 'nope'");
    let narrow = more.replace("worker = 1\n[[volume]]", "mtu = 9000\n[[volume]]");
    let taken = format!("{}/b.log", world.scratch.0.display());
    let cases = [
        (missing, "the interface nope of port \"extra\" does not exist"),
        (narrow, "has an MTU of"),
        (more.replace("SCRATCH/extra.sock", &taken), "b.log is not a socket"),
        (more.replace("192.0.2.2'", "192.0.2.9'"), "does not have the address 192.0.2.9"),
        (base.replace("'blue3'\ninterface", "'blue4'\ninterface"), "cannot be opened on blue3"),
        (base.replace("region_mib = 32", "region_mib = 64"), "`region_mib` of [runtime] cannot"),
    ];
    let files: Vec<_> = (0..)
        .zip(&cases)
        .map(|(index, (text, words))| (world.file(&format!("b-{index}.toml"), text), words))
        .collect();
    let before = world.b.state(&b, &world);
    let near = world.a.tenant("blue");
    let mut flow = Flow::start(near, world.b.tenant("blue").address);
    let mut rounds = 0;
    while rounds < 2 || !flow.has_ended() {
        for (file, words) in &files {
            let refused = world.b.apply(file, &[]);
            let stderr = String::from_utf8_lossy(&refused.stderr);
            assert_eq!(refused.status.code(), Some(1), "{words}: {stderr}");
            assert!(stderr.contains(*words), "wanted `{words}`: {stderr}");
            assert!(stderr.trim_end().ends_with("error: nothing was changed"), "{stderr}");
            // The client's connection ends a moment later.
            until(&format!("all is as before `{words}`"), || {
                (world.b.state(&b, &world) == before).then_some(())
            });
            assert_eq!(world.b.apply(&same, &["--dry-run"]).status.code(), Some(0));
        }
        rounds += 1;
    }
    flow.lost_nothing();
    world.all_reach();
    a.stop(Signal::TERM);
    b.stop_having_refused(Signal::TERM);
}

/// A file that contradicts itself, given to the command and then as the daemon's own.
#[test]
fn a_file_that_contradicts_itself_changes_nothing() {
    let (world, a, b) = World::running(Options::default());
    let base = world.b.text();
    // Two ports of one VPC with one address, and a port in a VPC that there is not; each named
    // with its place.
    let broken = base.replace("'10.0.0.3/24'", "'10.0.0.2/24'").replace(
        "name = 'red'\ninterface = 'red'\nvpc = 'red'",
        "name = 'red'\ninterface = 'red'\nvpc = 'rod'",
    );
    let line = |text: &str| 1 + broken[..broken.find(text).unwrap()].matches('\n').count();
    let twice = broken.rfind("'10.0.0.2/24'").unwrap();
    let twice = 1 + broken[..twice].matches('\n').count();
    let file = world.file("b-broken.toml", &broken);
    let before = world.b.state(&b, &world);
    let flow = Flow::start(world.a.tenant("blue"), world.b.tenant("blue").address);
    let refused = world.b.apply(&file, &[]);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{stderr}");
    for line in [line("vpc = 'rod'"), twice] {
        assert!(stderr.contains(&format!("b-broken.toml:{line}:")), "{stderr}");
    }
    assert!(stderr.contains("2 mistakes in"), "{stderr}");
    std::fs::write(&world.b.config, &broken).unwrap();
    for times in 1..=3 {
        b.signal(Signal::HUP);
        let words = "nothing was changed: ";
        until("the log tells", || (b.log().matches(words).count() == times).then_some(()));
    }
    until("all is as before", || (world.b.state(&b, &world) == before).then_some(()));
    flow.lost_nothing();
    world.all_reach();
    // The daemon goes on from what it had, not from what it was told.
    std::fs::write(&world.b.config, &base).unwrap();
    assert_eq!(world.b.apply(&world.b.config, &["--dry-run"]).status.code(), Some(0));
    a.stop(Signal::TERM);
    b.stop_having_refused(Signal::TERM);
}

/// An apply waits for a target that says nothing; the far host's MAC address changes meanwhile.
#[test]
fn an_apply_that_waits_holds_up_no_next_hop() {
    let (world, a, b) = World::running(Options::default());
    let listener = world.a.netns.within(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let address = listener.local_addr().unwrap();
    let remote = "[[volume]]\nname = 'far'\nkind = 'remote'\nnqn = 'nqn.2025-01.org.example:far'\n";
    let text = format!("{}{remote}address = '{address}'\n", world.a.text());
    let file = world.file("a-remote.toml", &text);
    std::thread::scope(|scope| {
        let apply = scope.spawn(|| world.a.apply(&file, &[]));
        let (silent, _) = listener.accept().unwrap();
        let mac = "02:00:00:00:00:77";
        world.a.netns.ip(&format!("neigh replace 192.0.2.2 dev veth lladdr {mac} nud permanent"));
        until("the next hop is followed", || {
            a.log().contains(&format!("192.0.2.2: over veth to {mac}")).then_some(())
        });
        assert!(!apply.is_finished(), "it was followed after the apply only");
        drop((silent, listener));
        let refused = apply.join().unwrap();
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("volume `far`"), "{stderr}");
    });
    a.stop_having_refused(Signal::TERM);
    b.stop(Signal::TERM);
}

#[test]
fn a_daemon_that_is_killed_in_the_middle_starts_again() {
    let (world, a, mut b) = World::running(Options::default());
    add_interface(&world.b);
    let more = world.file("b-more.toml", &format!("{}{MORE}", world.b.text()));
    for delay_ms in [0, 10, 40, 90, 150] {
        let mut command = Command::new(OUTBOARD);
        let command = command.args(["apply", "--config"]).arg(&more);
        let mut apply = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay_ms));
        b.signal(Signal::KILL);
        b.wait();
        apply.wait().unwrap();
        b = world.b.run();
        world.all_reach();
        assert!(!world.b.has_program("extra"), "a program was left on an interface");
    }
    world.b.applies(&more);
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
    crate::clean::nothing_is_left(&world, &world.b);
}
