//! A daemon that is killed, and the next one.

use crate::clean::nothing_is_left;
use crate::netns::{Namespace, run};
use crate::process::until;
use crate::traffic::exchange;
use crate::world::{Host, Options, Tenant, World, pings};
use rustix::process::Signal;
use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

/// Echo requests without end, each answer noted with its time; until dropped.
struct Watch {
    child: Child,
    notes: PathBuf,
}

impl Watch {
    fn start(from: &Namespace, to: IpAddr, notes: PathBuf) -> Watch {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", from.name(), "ping", "-D", "-i", "0.01"]);
        let out = File::create(&notes).unwrap();
        let command = command.arg(to.to_string()).stdout(out).stderr(Stdio::null());
        Watch { child: command.spawn().unwrap(), notes }
    }

    /// When answers came, in seconds.
    fn answers(&self) -> Vec<f64> {
        let notes = std::fs::read_to_string(&self.notes).unwrap();
        let answers = notes.lines().filter(|line| line.contains("bytes from"));
        let time = |line: &str| line.strip_prefix('[')?.split_once(']')?.0.parse().ok();
        answers.filter_map(time).collect()
    }

    /// Waits until a few more have come.
    #[track_caller]
    fn goes_on(&self, what: &str) {
        let before = self.answers().len();
        until(what, || (self.answers().len() > before + 5).then_some(()));
    }

    /// The longest time without an answer, which tests tell and do not judge.
    fn longest_pause(&self) -> f64 {
        let answers = self.answers();
        answers.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_next_one_takes_over_from_one_that_was_killed() {
    takes_over(Options::default());
}

#[test]
fn the_next_one_takes_over_from_one_that_was_killed_v6() {
    takes_over(Options::v6());
}

fn takes_over(options: Options) {
    let (world, mut a, b) = World::running(options);
    for _ in 0..2 {
        a.signal(Signal::KILL);
        a.wait();
        assert!(world.a.has_program("veth") && world.a.pins().exists());
        // The uplink's other traffic does not suffer.
        assert!(pings(&world.b.netns, world.a.vtep, "-c 3"));
        assert!(pings(&world.a.netns, world.b.vtep, "-c 3"));
        assert!(!world.b.tenant("blue").pings(world.a.tenant("blue").address, "-c 1"));
        a = world.a.run();
        world.all_reach();
    }
    let (client, server) = (world.a.tenant("red"), world.b.tenant("red"));
    exchange(&server.netns, server.address, &client.netns);
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
    nothing_is_left(&world, &world.a);
    nothing_is_left(&world, &world.b);
}

#[test]
fn what_was_killed_leaves_nothing_on_interfaces_that_are_no_longer_in_the_plan() {
    let world = World::new(Options::default());
    let mut a = world.a.run();
    a.signal(Signal::KILL);
    a.wait();
    // One interface is gone, another one is there but not in the plan any more.
    world.a.netns.ip("link del red");
    let text = std::fs::read_to_string(&world.a.config).unwrap();
    let ports: Vec<_> = text.split("[[port]]").collect();
    let kept = ports.iter().filter(|port| !port.contains("name = 'red'\ninterface"));
    let kept = kept.filter(|port| !port.contains("name = 'green'\ninterface"));
    let text = kept.copied().collect::<Vec<_>>().join("[[port]]");
    std::fs::write(&world.a.config, text).unwrap();
    assert!(world.a.has_program("green"));
    let a = world.a.run();
    until("the old program is gone", || (!world.a.has_program("green")).then_some(()));
    assert!(a.log().contains("took the XDP program of an earlier run off green"), "{}", a.log());
    a.stop(Signal::TERM);
    assert!(!world.a.pins().exists());
}

#[test]
fn an_instance_of_another_name_takes_over_from_one_that_was_killed() {
    let (world, mut a, b) = World::running(Options::default());
    a.signal(Signal::KILL);
    a.wait();
    let text = std::fs::read_to_string(&world.a.config).unwrap();
    let renamed = text.replace(&world.a.name, &format!("{}-renamed", world.a.name));
    // What the dead one had and the new one has not stays until somebody wants it.
    let ports: Vec<_> = renamed.split("[[port]]").collect();
    let kept = ports.iter().filter(|port| !port.contains("name = 'green'\ninterface"));
    std::fs::write(&world.a.config, kept.copied().collect::<Vec<_>>().join("[[port]]")).unwrap();
    a = world.a.run();
    world.all_reach();
    assert!(a.log().contains("a dead instance of another name off veth"), "{}", a.log());
    assert!(world.a.has_program("green") && world.a.pins().exists());
    // Under the old name again, which still has green's pins and takes them over.
    std::fs::write(&world.a.config, &text).unwrap();
    a.stop(Signal::TERM);
    let a = world.a.run();
    world.all_reach();
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
    nothing_is_left(&world, &world.a);
}

/// Host a's plan without green, with red's interface under another name, and with a tenant more.
fn change_the_plan(host: &mut Host) {
    host.netns.ip("link set red down");
    host.netns.ip("link set red name crimson");
    host.netns.ip("link set crimson up");
    let text = std::fs::read_to_string(&host.config).unwrap();
    let ports: Vec<_> = text.split("[[port]]").collect();
    let kept = ports.iter().filter(|port| !port.contains("name = 'green'\ninterface"));
    let text = kept.copied().collect::<Vec<_>>().join("[[port]]");
    let text = text.replace("interface = 'red'", "interface = 'crimson'")
        + "[[port]]\nname = 'amber'\ninterface = 'amber'\nvpc = 'blue'\n\
           address = '10.0.0.9/24'\n";
    std::fs::write(&host.config, text).unwrap();
    let address = IpAddr::from([10, 0, 0, 9]);
    host.tenants.push(Tenant { netns: Namespace::new(), address, port: "amber" });
    host.attach(host.tenant("amber"));
}

#[test]
fn traffic_goes_on_after_a_kill_with_another_plan() {
    let (mut world, mut a, b) = World::running(Options::default());
    let notes = |name: &str| world.scratch.0.join(name);
    let (blue, far) = (world.a.tenant("blue").address, world.b.tenant("blue").address);
    let tenants = [
        Watch::start(&world.a.tenant("blue").netns, far, notes("blue-a")),
        Watch::start(&world.b.tenant("blue").netns, blue, notes("blue-b")),
        Watch::start(&world.b.tenant("red").netns, blue, notes("red-b")),
    ];
    let hosts = [
        Watch::start(&world.a.netns, world.b.vtep, notes("host-a")),
        Watch::start(&world.b.netns, world.a.vtep, notes("host-b")),
    ];
    tenants.iter().chain(&hosts).for_each(|watch| watch.goes_on("traffic flows"));
    a.signal(Signal::KILL);
    a.wait();
    // The hosts' own traffic does not care, and the tenants' goes nowhere else.
    hosts.iter().for_each(|watch| watch.goes_on("the hosts still talk"));
    assert!(world.a.has_program("blue") && world.a.has_program("green"));
    change_the_plan(&mut world.a);
    let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    a = world.a.run();
    for watch in tenants.iter().chain(&hosts) {
        watch.goes_on("traffic flows again");
    }
    world.a.tenant("amber").reaches(blue);
    assert!(a.log().contains("took the XDP program of an earlier run off green"), "{}", a.log());
    for interface in ["veth", "blue", "crimson", "amber"] {
        assert!(world.a.has_program(interface), "{interface}");
    }
    // What is no port any more is an interface like any other.
    assert!(!world.a.has_program("green"));
    world.a.netns.ip("address add 10.0.0.254/24 dev green");
    let green = world.a.tenant("green");
    let answered =
        run("ip", &["netns", "exec", green.netns.name(), "ping", "-c", "2", "10.0.0.254"]);
    assert!(answered.contains(" 0% packet loss"), "{answered}");
    for watch in &tenants {
        let first = watch.answers().into_iter().find(|time| *time > start).unwrap();
        println!(
            "told: {}: longest pause {:.3} s, first answer {:.3} s after the start",
            watch.notes.file_name().unwrap().display(),
            watch.longest_pause(),
            first - start
        );
    }
    drop((tenants, hosts));
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
    world.a.netns.ip("link set crimson down");
    world.a.netns.ip("link set crimson name red");
    nothing_is_left(&world, &world.a);
}
