//! An uplink over DPDK's packet sockets: host a has it, host b has AF_XDP.

use crate::netns::run;
use crate::process::until;
use crate::traffic::{exchange, no_bad_drops};
use crate::world::{Family, JUMBO_MTU, Options, World, pings};
use rustix::process::Signal;

const EAL: &str = "[dpdk]\neal = ['--no-huge', '--no-pci', '-m', '256']\n";

/// With packets as large as the uplink's, which fit no frame: they are copied.
fn jumbo(family: Family) -> Options {
    Options {
        family,
        underlay: family,
        more: EAL,
        uplink_a: "driver = 'dpdk'\n\
                   device = 'net_af_packet0,iface=veth,framesz=16384,blocksz=65536'\n",
        ..Options::default()
    }
}

#[test]
fn tenants_reach_each_other_over_an_uplink_of_dpdk() {
    reach_each_other(Family::V4);
}

#[test]
fn tenants_reach_each_other_over_an_uplink_of_dpdk_v6() {
    reach_each_other(Family::V6);
}

fn reach_each_other(family: Family) {
    let (world, a, b) = World::running(jumbo(family));
    assert!(a.log().contains("port up: DPDK device net_af_packet0 on worker 0"), "{}", a.log());
    assert!(a.log().contains("a copy per packet") && !world.a.has_program("veth"));
    let headers = if family == Family::V4 { 28 } else { 48 };
    let jumbo = format!("-c 3 -M do -s {}", JUMBO_MTU - headers);
    let (blue_a, blue_b) = (world.a.tenant("blue"), world.b.tenant("blue"));
    assert!(blue_a.pings(blue_b.address, &jumbo) && blue_b.pings(blue_a.address, &jumbo));
    for port in ["blue", "red"] {
        let (client, server) = (world.a.tenant(port), world.b.tenant(port));
        exchange(&server.netns, server.address, &client.netns);
    }
    assert!(world.a.tenant("green").pings(world.gateway, "-c 1"));
    // The host's own traffic is the kernel's, and tunnels are none of its business: it does not
    // tell the far end that nobody listens.
    assert!(pings(&world.b.netns, world.a.vtep, "-c 3"));
    assert!(pings(&world.a.netns, world.b.vtep, "-c 3"));
    let told = world.a.netns.within(|| run("nstat", &["-a", "-s", "-z", "*OutDestUnreachs"]));
    let counts: Vec<_> = told.lines().filter(|line| line.contains("OutDestUnreachs")).collect();
    assert_eq!(counts.len(), 2, "of both families: {told}");
    for line in counts {
        assert_eq!(line.split_whitespace().nth(1), Some("0"), "{told}");
    }
    no_bad_drops(&a.stats());
    no_bad_drops(&b.stats());
    assert_eq!(a.drops("up", "not_tunnelled"), 0, "what the kernel has is no drop");
    assert_eq!(a.stats().ports[0].mode, "dpdk");
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}

/// Frames are shared where a packet of the uplink's fits one: on its way from a tenant to the
/// other host it is copied by the kernel alone.
#[test]
fn an_uplink_of_dpdk_shares_the_tenants_frames() {
    let options = Options {
        more: EAL,
        uplink_a: "driver = 'dpdk'\ndevice = 'net_af_packet0,iface=veth'\n",
        ..Options::default()
    };
    let world = World::new(options);
    for host in [&world.a, &world.b] {
        let text = std::fs::read_to_string(&host.config).unwrap();
        let text = text.replace(&format!("mtu = {JUMBO_MTU}"), "mtu = 1450");
        std::fs::write(&host.config, text).unwrap();
        host.netns.ip("link set veth mtu 1500");
    }
    let (a, b) = (world.a.run(), world.b.run());
    world.all_reach();
    assert!(a.log().contains("on worker 0, on frames"), "{}", a.log());
    let (red_a, red_b) = (world.a.tenant("red"), world.b.tenant("red"));
    exchange(&red_b.netns, red_b.address, &red_a.netns);
    no_bad_drops(&a.stats());
    no_bad_drops(&b.stats());
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}

#[test]
fn what_is_wrong_with_a_device_is_told_before_anything_runs() {
    let refused = |options: Options, wanted: &[&str]| {
        let world = World::new(options);
        let mut daemon = world.a.spawn();
        let status = daemon.wait();
        let log = daemon.log();
        assert_eq!(status.code(), Some(1), "{log}");
        for text in wanted {
            assert!(log.contains(text), "{text}: {log}");
        }
        until("no program is left", || (!world.a.has_program("blue")).then_some(()));
    };
    let uplink = |uplink_a, more| Options { uplink_a, more, ..Options::default() };
    let device = "driver = 'dpdk'\ndevice = 'net_af_packet0,iface=veth'\n";
    let needed =
        ["port \"up\"", "receives packets of 1982 bytes at most", "`framesz=9216,blocksz="];
    refused(uplink(device, EAL), &needed);
    let unknown = "driver = 'dpdk'\ndevice = 'net_nothing0'\n";
    refused(uplink(unknown, EAL), &["no device `net_nothing0`", "iface=eth1"]);
    let ends = "[dpdk]\neal = ['--help']\n";
    refused(uplink(device, ends), &["`--help` in `eal` of [dpdk]", "leave it out"]);
    let nonsense = "[dpdk]\neal = ['--no-such-option']\n";
    refused(uplink(device, nonsense), &["did not start with", "--no-such-option"]);
}
