//! An uplink over DPDK's packet sockets: host a has it, host b has AF_XDP. And tenants' ports on
//! them that come and go while the daemon runs.

use crate::apply::Flow;
use crate::netns::{Namespace, run};
use crate::process::until;
use crate::traffic::{exchange, no_bad_drops};
use crate::world::{Family, GATEWAY, Host, JUMBO_MTU, Options, World, pings};
use rustix::process::Signal;
use std::net::{IpAddr, Ipv4Addr};

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

/// The tenant `extra` of host b, on a packet socket of DPDK's; its peer is the container's.
const EXTRA: &str = "
[[port]]
name = 'extra'
driver = 'dpdk'
device = 'net_af_packet1,iface=extra'
vpc = 'green'
address = '10.0.0.7/24'
mac = '02:00:00:00:00:07'
mtu = 1400
worker = 1
";
const EXTRA_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));

/// A container at the far end of `extra`.
fn container(host: &Host) -> Namespace {
    let far = Namespace::new();
    host.netns.ip(&format!("link add extra type veth peer name eth0 netns {}", far.name()));
    host.netns.ip("link set extra up");
    for words in [
        "link set lo up",
        "link set eth0 address 02:00:00:00:00:07",
        "link set eth0 mtu 1400",
        "link set eth0 up",
        "address add 10.0.0.7/24 dev eth0",
    ] {
        far.ip(words);
    }
    // What a tenant of AF_XDP's gets from `attach`: checksums are made, segments are not left.
    far.within(|| run("ethtool", &["-K", "eth0", "tx", "off", "gso", "off", "tso", "off"]));
    far
}

/// Ports of DPDK's come, change and go on a daemon that began without DPDK, while others have
/// traffic; the container's traffic ends at the gateway and at the neighbour on another port.
#[test]
fn ports_of_dpdk_come_and_go_under_load() {
    const ROUNDS: usize = 6;
    let (world, a, b) = World::running(Options::default());
    let far = container(&world.b);
    let base = world.b.text();
    let more = format!("{base}{EAL}{EXTRA}");
    let other = more.replace("net_af_packet1", "net_af_packet2");
    let narrow = other.replace("mtu = 1400", "mtu = 1300");
    let base = format!("{base}{EAL}");
    let files = [("more", &more), ("other", &other), ("narrow", &narrow), ("base", &base)]
        .map(|(name, text)| world.file(&format!("b-{name}.toml"), text));
    let (near, peer) = (world.a.tenant("blue"), world.b.tenant("blue"));
    let third = world.b.tenant("blue3");
    let mut flows = [
        Flow::start(near, peer.address),
        Flow::start(peer, near.address),
        Flow::start(third, near.address),
    ];
    let green = world.b.tenant("green");
    let mut rounds = 0;
    while rounds < ROUNDS || !flows.iter_mut().all(Flow::has_ended) {
        for (index, file) in files.iter().enumerate() {
            let output = world.b.applies(file);
            assert!(output.ends_with("applied\n"), "{output}");
            let is_there = b.stats().ports.iter().any(|port| port.name == "extra");
            assert_eq!(is_there, index < 3, "{output}");
            if is_there {
                until("extra reaches its gateway", || pings(&far, GATEWAY, "-c 1").then_some(()));
                until("extra is reached", || green.pings(EXTRA_ADDRESS, "-c 1").then_some(()));
            }
        }
        rounds += 1;
    }
    flows.into_iter().for_each(Flow::lost_nothing);
    world.all_reach();
    assert!(b.log().contains("DPDK starts now"), "{}", b.log());
    no_bad_drops(&a.stats());
    a.stop(Signal::TERM);
    // It says when a frame did not come back.
    b.stop(Signal::TERM);
}

/// What cannot come is refused, before or after trying, and what is there works on.
#[test]
fn ports_of_dpdk_that_cannot_come_change_nothing() {
    let (world, a, b) = World::running(Options { more: EAL, ..Options::default() });
    let far = container(&world.b);
    let base = world.b.text();
    let more = format!("{base}{EXTRA}");
    let with = |from: &str, to: &str| {
        assert!(more.contains(from));
        more.replace(from, to)
    };
    world.b.applies(&world.file("b-more.toml", &more));
    until("extra reaches its gateway", || pings(&far, GATEWAY, "-c 1").then_some(()));
    let dry = [
        (with("'extra'\ndriver", "'more'\ndriver"), "cannot be opened on net_af_packet1 while"),
        (with("iface=extra", "iface=extra,qpairs=1"), "made anew on the device net_af_packet1"),
        (with("net_af_packet1", "net_nothing1"), "no device `net_nothing1,iface=extra`"),
        (
            with("net_af_packet1,iface=extra", "f8615163-df3e-46c5-913f-f2d2f965ed0e"),
            "on the bus `vmbus`, whose devices cannot come while the daemon runs",
        ),
        (with("'--no-pci'", "'--no-pci', '--no-hpet'"), "`eal` of [dpdk] cannot change"),
    ];
    let tried = [
        (with("net_af_packet1,iface=extra", "net_af_packet3,iface=nobody"), "net_af_packet3"),
        (format!("{more}{}", second("net_memif8,role=nonsense")), "net_memif8"),
    ];
    let before = world.b.state(&b, &world);
    let mut flow = Flow::start(world.a.tenant("blue"), world.b.tenant("blue").address);
    let mut number = 0;
    while !flow.has_ended() || number == 0 {
        for (text, words) in dry.iter().chain(&tried) {
            number += 1;
            let file = world.file("b-wrong.toml", text);
            let is_dry = dry.iter().any(|(other, _)| other == text);
            let refused = world.b.apply(&file, if is_dry { &["--dry-run"] } else { &[] });
            let stderr = String::from_utf8_lossy(&refused.stderr);
            assert_eq!(refused.status.code(), Some(1), "{words}: {stderr}");
            assert!(stderr.contains(words), "wanted `{words}`: {stderr}");
            std::fs::remove_file(&file).unwrap();
            until(&format!("all is as before `{words}`"), || {
                (world.b.state(&b, &world) == before).then_some(())
            });
            assert!(pings(&far, GATEWAY, "-c 1"), "extra works on after `{words}`");
        }
    }
    flow.lost_nothing();
    a.stop(Signal::TERM);
    b.stop_having_refused(Signal::TERM);
}

/// One more tenant on a device.
fn second(device: &str) -> String {
    let text = EXTRA.replace("'extra'\ndriver", "'second'\ndriver").replace("00:07'", "00:08'");
    text.replace("net_af_packet1,iface=extra", device).replace("10.0.0.7", "10.0.0.8")
}
