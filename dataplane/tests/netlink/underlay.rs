//! Next hops follow the kernel. Host `a` has the uplink; `b` is the other host and `c` a router.

use crate::netns::Namespace;
use crate::show::Show;
use outboard::config::parse;
use outboard::control::netlink::underlay::{Underlay, UnderlayError};
use outboard::packet::PortId;
use outboard::switch::NextHop;
use std::time::{Duration, Instant};

/// How long a change may take in a test that shares its machine; it is followed within a second.
const DEADLINE: Duration = Duration::from_secs(30);
const MAC_A: &str = "02:00:00:00:00:0a";
const MAC_B: &str = "02:00:00:00:00:0b";

/// The addresses of a family: the tunnel addresses of `a` and `b`, and what else tests need.
struct Family {
    here: &'static str,
    there: &'static str,
    /// An address of `a` that is not configured.
    absent: &'static str,
    /// The network of the tunnel addresses.
    network: &'static str,
    /// Prefix lengths of the link and of a host.
    len: u8,
    host: u8,
    /// Another network, and two routers in it.
    other: &'static str,
    routers: [&'static str; 2],
    /// Where /proc/sys/net has its settings, and which one announces a changed MAC address.
    sysctl: &'static str,
    announce: &'static str,
    key: &'static str,
}

const V4: Family = Family {
    here: "192.0.2.1",
    there: "192.0.2.2",
    absent: "192.0.2.7",
    network: "192.0.2.0/24",
    len: 24,
    host: 32,
    other: "198.51.100.0/24",
    routers: ["198.51.100.1", "198.51.100.2"],
    sysctl: "ipv4",
    announce: "arp_notify",
    key: "vtep",
};

const V6: Family = Family {
    here: "2001:db8::1",
    there: "2001:db8::2",
    absent: "2001:db8::7",
    network: "2001:db8::/64",
    len: 64,
    host: 128,
    other: "2001:db8:1::/64",
    routers: ["2001:db8:1::1", "2001:db8:1::2"],
    sysctl: "ipv6",
    announce: "ndisc_notify",
    key: "vtep6",
};

/// Makes a test of each function for each family.
macro_rules! of_both_families {
    ($($test:ident)*) => {
        mod v4 {
            $(#[test] fn $test() { super::$test(&super::V4); })*
        }
        mod v6 {
            $(#[test] fn $test() { super::$test(&super::V6); })*
        }
    };
}

of_both_families! {
    a_neighbour_is_resolved_and_its_changes_are_followed
    an_absent_host_is_unresolved_until_it_comes
    an_entry_in_use_is_confirmed_and_a_permanent_one_left_alone
    a_route_moves_to_another_gateway
    a_link_goes_down_loses_its_carrier_and_comes_back
    a_renamed_interface_is_followed
    lost_messages_lose_no_change
    an_uplink_that_is_not_there_is_named
}

/// `a` and `b`, joined by a veth pair, both ends up and with addresses.
struct Bed {
    a: Namespace,
    b: Namespace,
    at: &'static Family,
}

impl Bed {
    fn new(at: &'static Family) -> Bed {
        let bed = Bed { a: Namespace::untouched(), b: Namespace::untouched(), at };
        for side in [&bed.a, &bed.b] {
            // Else IPv6 loses its addresses when a link goes down.
            side.sysctl("net/ipv6/conf/default/keep_addr_on_down", "1");
            side.sysctl("net/ipv6/conf/default/accept_dad", "0");
        }
        bed.join("mtu 9000");
        bed
    }

    fn join(&self, options: &str) {
        let peer = format!("peer name up0 address {MAC_B} netns {}", self.b.name());
        self.a.ip(&format!("link add up0 address {MAC_A} {options} type veth {peer}"));
        self.address(&self.a, "add", self.at.here);
        self.address(&self.b, "add", self.at.there);
        self.a.ip("link set up0 up");
        self.b.ip("link set up0 up");
    }

    fn address(&self, side: &Namespace, verb: &str, address: &str) {
        side.ip(&format!("address {verb} {address}/{} dev up0", self.at.len));
    }

    /// Sets something of the neighbours on `a`'s uplink.
    fn neighbours(&self, name: &str, value: &str) {
        self.a.sysctl(&format!("net/{}/neigh/up0/{name}", self.at.sysctl), value);
    }
}

/// An underlay, and what it told last.
struct Follower {
    underlay: Underlay,
    told: Option<NextHop>,
    at: &'static Family,
}

impl Follower {
    fn new(bed: &Bed) -> Follower {
        let underlay = bed.a.within(|| open(bed.at, bed.at.here, "up0"));
        let underlay = underlay.unwrap_or_else(|error| panic!("{error}"));
        Follower { underlay, told: None, at: bed.at }
    }

    /// Polls until the next hop is as wanted.
    #[track_caller]
    fn until(&mut self, what: &str, wanted: impl Fn(NextHop) -> bool) {
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            if self.told.is_some_and(&wanted) {
                return;
            }
            if let Some(table) = self.underlay.poll(Duration::from_millis(200)).unwrap() {
                assert_eq!((table.len(), table[0].0.to_string()), (1, self.at.there.to_string()));
                assert_ne!(self.told, Some(table[0].1), "told without a change");
                self.told = Some(table[0].1);
            }
        }
        panic!("{what} was not seen; last: {:?}", self.told);
    }

    #[track_caller]
    fn until_resolved(&mut self, src: &str, dst: &str, mtu: u32) {
        let wanted = NextHop::Resolved {
            port: PortId(0),
            src_ip: self.at.here.parse().unwrap(),
            src_mac: src.parse().unwrap(),
            dst_mac: dst.parse().unwrap(),
            path_mtu: mtu,
        };
        self.until(&format!("{wanted:?}"), |told| told == wanted);
    }
}

fn open(at: &Family, vtep: &str, interface: &str) -> Result<Underlay, UnderlayError> {
    let (via, key) = (at.there, at.key);
    let text = format!(
        "name = 'test'\n\
         [[vpc]]\nname = 'blue'\nvni = 100\ngateway = '10.0.0.254'\n\
         [[vpc.route]]\nto = '10.0.1.0/24'\nvia = '{via}'\n\
         [[vpc.route]]\nto = '10.0.2.0/24'\nvia = '{via}'\n\
         [[uplink]]\nname = 'up'\ninterface = '{interface}'\n{key} = '{vtep}'\n"
    );
    let plan = parse("test.toml", text.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"));
    Underlay::new(&plan)
}

fn a_neighbour_is_resolved_and_its_changes_are_followed(at: &'static Family) {
    let bed = Bed::new(at);
    // Learned addresses may change at once; the other host announces its changes.
    bed.neighbours("locktime", "0");
    bed.b.sysctl(&format!("net/{}/conf/up0/{}", at.sysctl, at.announce), "1");
    let mut follower = Follower::new(&bed);
    follower.until_resolved(MAC_A, MAC_B, 9000);
    bed.b.ip("link set up0 address 02:00:00:00:00:bb");
    follower.until_resolved(MAC_A, "02:00:00:00:00:bb", 9000);
    bed.a.ip("link set up0 address 02:00:00:00:00:aa");
    follower.until_resolved("02:00:00:00:00:aa", "02:00:00:00:00:bb", 9000);
    bed.a.ip("link set up0 mtu 1500");
    follower.until_resolved("02:00:00:00:00:aa", "02:00:00:00:00:bb", 1500);
    bed.a.ip(&format!("route add {}/{} dev up0 src {} mtu 1400", at.there, at.host, at.here));
    follower.until_resolved("02:00:00:00:00:aa", "02:00:00:00:00:bb", 1400);
}

fn an_absent_host_is_unresolved_until_it_comes(at: &'static Family) {
    let bed = Bed::new(at);
    bed.address(&bed.b, "del", at.there);
    let mut follower = Follower::new(&bed);
    follower.until("unresolved", |told| told == NextHop::Unresolved);
    bed.address(&bed.b, "add", at.there);
    follower.until_resolved(MAC_A, MAC_B, 9000);
    // A host that goes is noticed when its entry is not confirmed; the kernel's own patience is
    // shortened for the test.
    for (name, value) in [
        ("base_reachable_time_ms", "300"),
        ("delay_first_probe_time", "1"),
        ("retrans_time_ms", "100"),
    ] {
        bed.neighbours(name, value);
    }
    bed.address(&bed.b, "del", at.there);
    bed.a.ip(&format!("neigh change {} dev up0 nud stale", at.there));
    follower.until("unresolved", |told| told == NextHop::Unresolved);
    bed.address(&bed.b, "add", at.there);
    follower.until_resolved(MAC_A, MAC_B, 9000);
}

fn an_entry_in_use_is_confirmed_and_a_permanent_one_left_alone(at: &'static Family) {
    let bed = Bed::new(at);
    let mut follower = Follower::new(&bed);
    follower.until_resolved(MAC_A, MAC_B, 9000);
    bed.neighbours("delay_first_probe_time", "1");
    bed.a.ip(&format!("neigh change {} dev up0 nud stale", at.there));
    let state = |wanted: &str| {
        let neighbours = bed.a.show(&format!("neigh show {} dev up0", at.there));
        neighbours[0]["state"].as_array().is_some_and(|state| state.contains(&wanted.into()))
    };
    let end = Instant::now() + DEADLINE;
    while !state("REACHABLE") {
        assert!(Instant::now() < end, "the stale entry was not confirmed");
        assert_eq!(follower.underlay.poll(Duration::from_millis(100)).unwrap(), None);
    }
    let permanent = "lladdr 02:00:00:00:00:cc nud permanent";
    bed.a.ip(&format!("neigh replace {} dev up0 {permanent}", at.there));
    follower.until_resolved(MAC_A, "02:00:00:00:00:cc", 9000);
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        assert_eq!(follower.underlay.poll(Duration::from_millis(500)).unwrap(), None);
    }
    assert!(state("PERMANENT"));
}

fn a_route_moves_to_another_gateway(at: &'static Family) {
    let bed = Bed::new(at);
    let router = "02:00:00:00:00:0c";
    let Family { here, there, network, other, host, routers: [first, second], .. } = at;
    bed.address(&bed.a, "del", here);
    bed.a.ip(&format!("address add {here}/{host} dev up0"));
    bed.a.ip(&format!("route add {other} dev up0"));
    bed.address(&bed.b, "add", first);
    let mut follower = Follower::new(&bed);
    follower.until("no route", |told| told == NextHop::NoRoute);
    bed.a.ip(&format!("route add {network} via {first}"));
    follower.until_resolved(MAC_A, MAC_B, 9000);
    bed.a.ip(&format!("neigh replace {second} dev up0 lladdr {router} nud permanent"));
    bed.a.ip(&format!("route replace {network} via {second}"));
    follower.until_resolved(MAC_A, router, 9000);
    bed.a.ip(&format!("route add unreachable {there}/{host}"));
    follower.until("no route", |told| told == NextHop::NoRoute);
    bed.a.ip(&format!("route del unreachable {there}/{host}"));
    follower.until_resolved(MAC_A, router, 9000);
    // A router is often known by its link-local address, to tunnels of IPv4 too (RFC 8950).
    let link_local = bed.b.link_local("up0");
    let via = if at.sysctl == "ipv4" { "via inet6" } else { "via" };
    bed.a.ip(&format!("route replace {network} {via} {link_local} dev up0"));
    follower.until_resolved(MAC_A, MAC_B, 9000);
    bed.a.ip(&format!("route replace {network} via {second}"));
    follower.until_resolved(MAC_A, router, 9000);
    // Another interface than the uplink is no way out.
    bed.a.ip("link add other type bridge");
    bed.a.ip("link set other up");
    bed.a.ip(&format!("route add {there}/{host} dev other"));
    follower.until("no route", |told| told == NextHop::NoRoute);
    bed.a.ip("link del other");
    follower.until_resolved(MAC_A, router, 9000);
    // Without this host's own address nothing may leave.
    bed.a.ip(&format!("address del {here}/{host} dev up0"));
    follower.until("no route", |told| told == NextHop::NoRoute);
}

fn a_link_goes_down_loses_its_carrier_and_comes_back(at: &'static Family) {
    let bed = Bed::new(at);
    let mut follower = Follower::new(&bed);
    follower.until_resolved(MAC_A, MAC_B, 9000);
    bed.a.ip("link set up0 down");
    follower.until("no route", |told| told == NextHop::NoRoute);
    bed.a.ip("link set up0 up");
    follower.until_resolved(MAC_A, MAC_B, 9000);
    bed.b.ip("link set up0 down");
    follower.until("no route", |told| told == NextHop::NoRoute);
    bed.b.ip("link set up0 up");
    follower.until_resolved(MAC_A, MAC_B, 9000);
    bed.a.ip("link del up0");
    follower.until("no route", |told| told == NextHop::NoRoute);
    bed.join("");
    follower.until_resolved(MAC_A, MAC_B, 1500);
}

fn a_renamed_interface_is_followed(at: &'static Family) {
    let bed = Bed::new(at);
    let mut follower = Follower::new(&bed);
    follower.until_resolved(MAC_A, MAC_B, 9000);
    bed.a.ip("link set up0 name renamed0");
    bed.a.ip("link set renamed0 mtu 2000");
    follower.until_resolved(MAC_A, MAC_B, 2000);
    // Another interface that takes the name is the uplink.
    bed.a.ip("link add up0 type bridge");
    follower.until("no route", |told| told == NextHop::NoRoute);
    bed.a.ip("link del up0");
    bed.a.ip("link set renamed0 name up0");
    follower.until_resolved(MAC_A, MAC_B, 2000);
}

fn lost_messages_lose_no_change(at: &'static Family) {
    let bed = Bed::new(at);
    let mut follower = Follower::new(&bed);
    follower.until_resolved(MAC_A, MAC_B, 9000);
    // More messages than the socket holds, nobody reading.
    let batch: String = (0..6000)
        .map(|n| format!("route replace 203.0.113.{}/32 dev up0 metric {}\n", n % 250, n / 250))
        .collect();
    let file = std::env::temp_dir().join(format!("outboard-batch-{}", std::process::id()));
    std::fs::write(&file, batch).unwrap();
    bed.a.ip(&format!("-batch {}", file.display()));
    std::fs::remove_file(&file).unwrap();
    bed.a.ip("link set up0 mtu 2000");
    follower.until_resolved(MAC_A, MAC_B, 2000);
}

fn an_uplink_that_is_not_there_is_named(at: &'static Family) {
    let bed = Bed::new(at);
    let text = |vtep: &str, interface: &str| {
        bed.a.within(|| open(at, vtep, interface)).unwrap_err().to_string()
    };
    assert_eq!(
        text(at.here, "up9"),
        "the interface up9 of uplink \"up\" does not exist; see `ip link`"
    );
    let Family { absent, key, .. } = at;
    assert_eq!(
        text(absent, "up0"),
        format!(
            "the interface up0 of uplink \"up\" does not have the address {absent}; correct \
             `{key}` or run `ip addr add {absent}/LEN dev up0`"
        )
    );
}
