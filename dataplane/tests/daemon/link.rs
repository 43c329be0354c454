//! Interfaces that go down, come up, change and vanish under traffic.

use crate::clean::nothing_is_left;
use crate::netns::run;
use crate::process::until;
use crate::traffic::exchange;
use crate::wait::workers_sleep;
use crate::world::{Options, Tenant, World, both, give_addresses};
use rustix::process::Signal;
use std::process::{Child, Command, Stdio};

/// Echo requests without end, until dropped.
struct Flow(Child);

impl Flow {
    fn start(from: &Tenant, to: &Tenant) -> Flow {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", from.netns.name(), "ping", "-q", "-i", "0.01"]);
        let command = command.arg(to.address.to_string()).stdout(Stdio::null());
        Flow(command.stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

both! {
    underlay_goes_down
    underlay_changes
    tenant_goes_down
    tenant_vanishes
    all_is_made_anew
}

/// Traffic flows again after the underlay was down.
fn underlay_goes_down(options: Options) {
    let (world, a, b) = World::running(options);
    let (near, far) = (world.a.tenant("blue"), world.b.tenant("blue"));
    // As the kernel does with those of IPv4.
    world.a.netns.sysctl("net/ipv6/conf/veth/keep_addr_on_down", "1");
    let _flows = [Flow::start(near, far), Flow::start(far, near)];
    for _ in 0..2 {
        let before = a.drops("blue", "no_underlay_route");
        world.a.netns.ip("link set veth down");
        until("the drops are named", || {
            (a.drops("blue", "no_underlay_route") > before + 3).then_some(())
        });
        assert_eq!(a.port("up").mode, "down");
        world.a.netns.ip("link set veth up");
        world.all_reach();
        assert_eq!(a.port("up").mode, "native");
    }
    let (log, far_end) = (a.log(), world.b.vtep);
    let gone = format!("far end {far_end}: no route over an uplink that is up");
    assert!(log.contains(&gone), "{log}");
    assert!(log.contains(&format!("far end {far_end}: over veth to ")), "{log}");
    drop(_flows);
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}

/// A new underlay address is followed.
fn underlay_changes(options: Options) {
    let (world, a, b) = World::running(options);
    let _flow = Flow::start(world.a.tenant("red"), world.b.tenant("red"));
    let mac = "02:00:5e:10:00:01";
    // IPv4's question for the next hop tells the new address; IPv6's comes from the link-local one.
    world.b.netns.sysctl("net/ipv6/conf/veth/ndisc_notify", "1");
    world.b.netns.ip(&format!("link set veth address {mac}"));
    until("the other host knows", || a.log().contains(mac).then_some(()));
    world.all_reach();
    drop(_flow);
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}

/// A tenant that was down is reached again.
fn tenant_goes_down(options: Options) {
    let (world, a, b) = World::running(options);
    let (near, far) = (world.a.tenant("blue"), world.b.tenant("blue"));
    let _flow = Flow::start(far, near);
    for (netns, interface) in [(&near.netns, "eth0"), (&world.a.netns, "blue")] {
        netns.ip(&format!("link set {interface} down"));
        let before = a.port("blue").rx_packets;
        assert!(!far.pings(near.address, "-c 3"));
        world.a.tenant("red").reaches(far.address);
        assert_eq!(a.port("blue").mode, "down");
        let _ = before;
        netns.ip(&format!("link set {interface} up"));
        if near.address.is_ipv6() {
            // The kernel has taken the addresses away.
            world.a.attach(near);
        }
        far.reaches(near.address);
        near.reaches(far.address);
    }
    drop(_flow);
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}

/// A tenant that vanishes disturbs nobody, and comes back several times.
fn tenant_vanishes(options: Options) {
    let (world, a, b) = World::running(options);
    let (near, far) = (world.a.tenant("blue"), world.b.tenant("blue"));
    let flow = Flow::start(far, near);
    // What happens when a container ends: its end goes, and with it the host's.
    run("ip", &["-n", near.netns.name(), "link", "del", "eth0"]);
    world.a.tenant("red").reaches(world.b.tenant("red").address);
    until("the port is known to be down", || (a.port("blue").mode == "down").then_some(()));
    drop(flow);
    workers_sleep(&a);
    assert!(a.log().contains("port blue: its interface blue is gone"), "{}", a.log());
    // The container starts again, several times: the frames of the old interface come back.
    for _ in 0..3 {
        world.a.attach(near);
        near.reaches(far.address);
        far.reaches(near.address);
        exchange(&near.netns, near.address, &far.netns);
        assert_eq!(a.port("blue").mode, "native");
        run("ip", &["-n", near.netns.name(), "link", "del", "eth0"]);
    }
    world.a.attach(near);
    far.reaches(near.address);
    a.stop_having_warned(Signal::TERM);
    b.stop(Signal::TERM);
    nothing_is_left(&world, &world.a);
}

/// A port of two queues and an uplink are made anew.
fn all_is_made_anew(options: Options) {
    let (world, a, b) = World::running(options);
    let (near, far) = (world.b.tenant("red"), world.a.tenant("red"));
    run("ip", &["-n", near.netns.name(), "link", "del", "eth0"]);
    world.b.attach(near);
    far.reaches(near.address);
    exchange(&near.netns, near.address, &far.netns);
    world.a.netns.ip("link del veth");
    world.a.netns.join(&world.b.netns, 1, 9000);
    for (host, last) in [(&world.a, 1), (&world.b, 2)] {
        give_addresses(&host.netns, last);
    }
    world.all_reach();
    exchange(&near.netns, near.address, &far.netns);
    for (daemon, host) in [(a, &world.a), (b, &world.b)] {
        daemon.stop_having_warned(Signal::TERM);
        nothing_is_left(&world, host);
    }
}
