//! Next hops follow the kernel. Host `a` has the uplink; `b` is the other host and `c` a router.

use crate::namespace::Namespace;
use outboard::config::parse;
use outboard::control::netlink::underlay::{Underlay, UnderlayError};
use outboard::packet::PortId;
use outboard::switch::NextHop;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// How long a change may take in a test that shares its machine; it is followed within a second.
const DEADLINE: Duration = Duration::from_secs(30);
const MAC_A: &str = "02:00:00:00:00:0a";
const MAC_B: &str = "02:00:00:00:00:0b";

fn far_end() -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 2)
}

/// `a` and `b`, joined by a veth pair, both ends up and with addresses.
struct Bed {
    a: Namespace,
    b: Namespace,
}

impl Bed {
    fn new() -> Bed {
        let bed = Bed { a: Namespace::new(), b: Namespace::new() };
        let peer = format!("peer name up0 address {MAC_B} netns {}", bed.b.name());
        bed.a.ip(&format!("link add up0 address {MAC_A} mtu 9000 type veth {peer}"));
        bed.a.ip("address add 192.0.2.1/24 dev up0");
        bed.b.ip("address add 192.0.2.2/24 dev up0");
        bed.a.ip("link set up0 up");
        bed.b.ip("link set up0 up");
        bed
    }
}

/// An underlay, and what it told last.
struct Follower {
    underlay: Underlay,
    told: Option<NextHop>,
}

impl Follower {
    fn new(bed: &Bed) -> Follower {
        let underlay = bed.a.inside(|| open("192.0.2.1", "up0", "192.0.2.2"));
        Follower { underlay: underlay.unwrap_or_else(|error| panic!("{error}")), told: None }
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
                assert_eq!((table.len(), table[0].0), (1, far_end().into()));
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
            src_ip: Ipv4Addr::new(192, 0, 2, 1).into(),
            src_mac: src.parse().unwrap(),
            dst_mac: dst.parse().unwrap(),
            path_mtu: mtu,
        };
        self.until(&format!("{wanted:?}"), |told| told == wanted);
    }
}

fn open(vtep: &str, interface: &str, via: &str) -> Result<Underlay, UnderlayError> {
    let text = format!(
        "name = 'test'\n\
         [[vpc]]\nname = 'blue'\nvni = 100\ngateway = '10.0.0.254'\n\
         [[vpc.route]]\nto = '10.0.1.0/24'\nvia = '{via}'\n\
         [[vpc.route]]\nto = '10.0.2.0/24'\nvia = '{via}'\n\
         [[uplink]]\nname = 'up'\ninterface = '{interface}'\nvtep = '{vtep}'\n"
    );
    let plan = parse("test.toml", text.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"));
    Underlay::new(&plan)
}

#[test]
fn a_neighbour_is_resolved_and_its_changes_are_followed() {
    let bed = Bed::new();
    // Learned addresses may change at once; the other host announces its changes.
    bed.a.sysctl("net/ipv4/neigh/up0/locktime", "0");
    bed.b.sysctl("net/ipv4/conf/up0/arp_notify", "1");
    let mut follower = Follower::new(&bed);
    follower.until_resolved(MAC_A, MAC_B, 9000);
    bed.b.ip("link set up0 address 02:00:00:00:00:bb");
    follower.until_resolved(MAC_A, "02:00:00:00:00:bb", 9000);
    bed.a.ip("link set up0 address 02:00:00:00:00:aa");
    follower.until_resolved("02:00:00:00:00:aa", "02:00:00:00:00:bb", 9000);
    bed.a.ip("link set up0 mtu 1500");
    follower.until_resolved("02:00:00:00:00:aa", "02:00:00:00:00:bb", 1500);
    bed.a.ip("route add 192.0.2.2/32 dev up0 src 192.0.2.1 mtu 1400");
    follower.until_resolved("02:00:00:00:00:aa", "02:00:00:00:00:bb", 1400);
}

#[test]
fn an_absent_host_is_unresolved_until_it_comes() {
    let bed = Bed::new();
    bed.b.ip("address del 192.0.2.2/24 dev up0");
    let mut follower = Follower::new(&bed);
    follower.until("unresolved", |told| told == NextHop::Unresolved);
    bed.b.ip("address add 192.0.2.2/24 dev up0");
    follower.until_resolved(MAC_A, MAC_B, 9000);
    // A host that goes is noticed when its entry is not confirmed; the kernel's own patience is
    // shortened for the test.
    for (name, value) in [
        ("base_reachable_time_ms", "300"),
        ("delay_first_probe_time", "1"),
        ("retrans_time_ms", "100"),
    ] {
        bed.a.sysctl(&format!("net/ipv4/neigh/up0/{name}"), value);
    }
    bed.b.ip("address del 192.0.2.2/24 dev up0");
    bed.a.ip("neigh change 192.0.2.2 dev up0 nud stale");
    follower.until("unresolved", |told| told == NextHop::Unresolved);
    bed.b.ip("address add 192.0.2.2/24 dev up0");
    follower.until_resolved(MAC_A, MAC_B, 9000);
}

#[test]
fn an_entry_in_use_is_confirmed_and_a_permanent_one_left_alone() {
    let bed = Bed::new();
    let mut follower = Follower::new(&bed);
    follower.until_resolved(MAC_A, MAC_B, 9000);
    bed.a.sysctl("net/ipv4/neigh/up0/delay_first_probe_time", "1");
    bed.a.ip("neigh change 192.0.2.2 dev up0 nud stale");
    let state = |wanted: &str| {
        let neighbours = bed.a.show("neigh show 192.0.2.2 dev up0");
        neighbours[0]["state"].as_array().is_some_and(|state| state.contains(&wanted.into()))
    };
    let end = Instant::now() + DEADLINE;
    while !state("REACHABLE") {
        assert!(Instant::now() < end, "the stale entry was not confirmed");
        assert_eq!(follower.underlay.poll(Duration::from_millis(100)).unwrap(), None);
    }
    bed.a.ip("neigh replace 192.0.2.2 dev up0 lladdr 02:00:00:00:00:cc nud permanent");
    follower.until_resolved(MAC_A, "02:00:00:00:00:cc", 9000);
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        assert_eq!(follower.underlay.poll(Duration::from_millis(500)).unwrap(), None);
    }
    assert!(state("PERMANENT"));
}

#[test]
fn a_route_moves_to_another_gateway() {
    let bed = Bed::new();
    let router = "02:00:00:00:00:0c";
    bed.a.ip("address del 192.0.2.1/24 dev up0");
    bed.a.ip("address add 192.0.2.1/32 dev up0");
    bed.a.ip("route add 198.51.100.0/24 dev up0");
    bed.b.ip("address add 198.51.100.1/24 dev up0");
    let mut follower = Follower::new(&bed);
    follower.until("no route", |told| told == NextHop::NoRoute);
    bed.a.ip("route add 192.0.2.0/24 via 198.51.100.1");
    follower.until_resolved(MAC_A, MAC_B, 9000);
    bed.a.ip(&format!("neigh replace 198.51.100.2 dev up0 lladdr {router} nud permanent"));
    bed.a.ip("route replace 192.0.2.0/24 via 198.51.100.2");
    follower.until_resolved(MAC_A, router, 9000);
    bed.a.ip("route add unreachable 192.0.2.2/32");
    follower.until("no route", |told| told == NextHop::NoRoute);
    bed.a.ip("route del unreachable 192.0.2.2/32");
    follower.until_resolved(MAC_A, router, 9000);
    // Another interface than the uplink is no way out.
    bed.a.ip("link add other type bridge");
    bed.a.ip("link set other up");
    bed.a.ip("route add 192.0.2.2/32 dev other");
    follower.until("no route", |told| told == NextHop::NoRoute);
    bed.a.ip("link del other");
    follower.until_resolved(MAC_A, router, 9000);
    // Without this host's own address nothing may leave.
    bed.a.ip("address del 192.0.2.1/32 dev up0");
    follower.until("no route", |told| told == NextHop::NoRoute);
}

#[test]
fn a_link_goes_down_loses_its_carrier_and_comes_back() {
    let bed = Bed::new();
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
    let peer = format!("peer name up0 address {MAC_B} netns {}", bed.b.name());
    bed.a.ip(&format!("link add up0 address {MAC_A} type veth {peer}"));
    bed.a.ip("address add 192.0.2.1/24 dev up0");
    bed.b.ip("address add 192.0.2.2/24 dev up0");
    bed.a.ip("link set up0 up");
    bed.b.ip("link set up0 up");
    follower.until_resolved(MAC_A, MAC_B, 1500);
}

#[test]
fn lost_messages_lose_no_change() {
    let bed = Bed::new();
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

#[test]
fn an_uplink_that_is_not_there_is_named() {
    let bed = Bed::new();
    let text = |vtep: &str, interface: &str| {
        bed.a.inside(|| open(vtep, interface, "192.0.2.2")).unwrap_err().to_string()
    };
    assert_eq!(
        text("192.0.2.1", "up9"),
        "the interface up9 of uplink \"up\" does not exist; see `ip link`"
    );
    assert_eq!(
        text("192.0.2.7", "up0"),
        "the interface up0 of uplink \"up\" does not have the address 192.0.2.7; correct `vtep` \
         or run `ip addr add 192.0.2.7/LEN dev up0`"
    );
}
