//! Attaching and detaching a container, seen through `ip` and `ethtool`.

use crate::netns::Namespace;
use crate::show::Show;
use outboard::config::{Plan, parse};
use outboard::control::netlink::attach::{AttachError, Attached, attach, detach};
use serde_json::Value;

fn plan(port: &str) -> Plan {
    let text = format!(
        "name = 'test'\n\
         [[vpc]]\nname = 'blue'\nvni = 100\ngateway = '10.0.0.254'\n\
         gateway6 = 'fd00::fe'\n\
         [[uplink]]\nname = 'up'\ninterface = 'up0'\nvtep = '192.0.2.1'\n\
         [[port]]\nname = 'web'\ninterface = 'ob-web'\nvpc = 'blue'\n{port}\n"
    );
    parse("test.toml", text.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"))
}

fn usual() -> Plan {
    plan("address = '10.0.0.1/24'\nmtu = 8950\nqueues = 2")
}

/// With addresses of both families.
fn dual() -> Plan {
    plan("address = '10.0.0.1/24'\naddress6 = 'fd00::1/64'\nmtu = 8950\nqueues = 2")
}

struct Bed {
    host: Namespace,
    tenant: Namespace,
}

impl Bed {
    fn new() -> Bed {
        Bed { host: Namespace::untouched(), tenant: Namespace::untouched() }
    }

    fn attach(&self, plan: &Plan) -> Result<Attached, AttachError> {
        self.attach_as(plan, "eth0")
    }

    fn attach_as(&self, plan: &Plan, ifname: &str) -> Result<Attached, AttachError> {
        self.host.within(|| attach(plan, "web", self.tenant.name(), ifname))
    }

    fn detach(&self, netns: Option<&str>) -> Result<bool, AttachError> {
        self.host.within(|| detach(&usual(), "web", netns))
    }

    fn links(&self) -> (usize, usize) {
        let count = |namespace: &Namespace| namespace.show("link").as_array().unwrap().len();
        (count(&self.host), count(&self.tenant))
    }
}

/// Only the loopback interface on each side.
const NOTHING: (usize, usize) = (1, 1);

fn link(namespace: &Namespace, name: &str) -> Value {
    namespace.show(&format!("address show dev {name}"))[0].take()
}

fn is_up(link: &Value) -> bool {
    link["flags"].as_array().unwrap().contains(&"LOWER_UP".into())
}

fn addresses(link: &Value) -> Vec<(String, u64)> {
    let infos = link["addr_info"].as_array().unwrap();
    let one = |info: &Value| {
        (info["local"].as_str().unwrap().to_string(), info["prefixlen"].as_u64().unwrap())
    };
    infos.iter().map(one).collect()
}

fn check_attached(bed: &Bed, mac: &str) {
    let host = link(&bed.host, "ob-web");
    assert!(is_up(&host) && addresses(&host).is_empty(), "{host:#}");
    assert_eq!(host["mtu"], 8950);
    assert_eq!((&host["num_rx_queues"], &host["num_tx_queues"]), (&2.into(), &2.into()));
    assert_eq!(host["linkinfo"]["info_kind"], "veth");
    let tenant = link(&bed.tenant, "eth0");
    assert!(is_up(&tenant), "{tenant:#}");
    assert_eq!((tenant["mtu"].as_u64(), tenant["address"].as_str()), (Some(8950), Some(mac)));
    assert_eq!((&tenant["num_rx_queues"], &tenant["num_tx_queues"]), (&2.into(), &2.into()));
    assert_eq!(addresses(&tenant), [("10.0.0.1".to_string(), 24)]);
    assert_eq!(tenant["addr_info"][0]["broadcast"], "10.0.0.255");
    let default = bed.tenant.show("route show default");
    assert_eq!(default.as_array().unwrap().len(), 1);
    let route = (&default[0]["gateway"], &default[0]["dev"]);
    assert_eq!(route, (&"10.0.0.254".into(), &"eth0".into()));
    let features = bed.tenant.exec("ethtool -k eth0");
    let off = |name: &str| features.lines().any(|line| line == format!("{name}: off"));
    for name in ["tx-checksumming", "tcp-segmentation-offload", "generic-segmentation-offload"] {
        assert!(off(name), "{name}\n{features}");
    }
}

#[test]
fn a_container_gets_its_interface_and_loses_it() {
    let bed = Bed::new();
    assert_eq!(bed.attach(&usual()).unwrap(), Attached::New);
    check_attached(&bed, "06:64:0a:00:00:01");
    assert!(bed.detach(Some(bed.tenant.name())).unwrap());
    assert_eq!(bed.links(), NOTHING);
    assert!(!bed.detach(None).unwrap());
}

#[test]
fn attaching_again_repairs() {
    let bed = Bed::new();
    bed.attach(&usual()).unwrap();
    assert_eq!(bed.attach(&usual()).unwrap(), Attached::Again);
    check_attached(&bed, "06:64:0a:00:00:01");

    bed.tenant.ip("route del default");
    bed.tenant.ip("address flush dev eth0");
    bed.tenant.ip("address add 10.0.0.9/24 dev eth0");
    bed.tenant.ip("link set eth0 down address 02:00:00:00:00:09 mtu 1000");
    bed.tenant.exec("ethtool -K eth0 tx on gso on tso on");
    bed.host.ip("link set ob-web down mtu 1000");
    assert_eq!(bed.attach(&usual()).unwrap(), Attached::Again);
    check_attached(&bed, "06:64:0a:00:00:01");
}

/// The addresses of IPv6 that are no link-local ones, with their flags.
fn addresses6(link: &Value) -> Vec<(String, Option<bool>)> {
    let infos = link["addr_info"].as_array().unwrap().iter();
    let global = infos.filter(|info| info["family"] == "inet6" && info["scope"] == "global");
    let one = |info: &Value| {
        let text = format!("{}/{}", info["local"].as_str().unwrap(), info["prefixlen"]);
        (text, info["tentative"].as_bool())
    };
    global.map(one).collect()
}

fn check_v6(bed: &Bed, address: &str) {
    let host = link(&bed.host, "ob-web");
    assert!(addresses(&host).is_empty(), "{host:#}");
    let tenant = link(&bed.tenant, "eth0");
    assert_eq!(addresses6(&tenant), [(address.to_string(), None)], "{tenant:#}");
    assert_eq!(tenant["mtu"], 8950);
    let default = bed.tenant.show("-6 route show default");
    let routes = default.as_array().unwrap();
    assert_eq!(routes.len(), 1, "{default:#}");
    let route = (&routes[0]["gateway"], &routes[0]["dev"]);
    assert_eq!(route, (&"fd00::fe".into(), &"eth0".into()));
    for (name, value) in [("accept_ra", "0"), ("autoconf", "0"), ("disable_ipv6", "0")] {
        let path = format!("/proc/sys/net/ipv6/conf/eth0/{name}");
        let found = bed.tenant.within(|| std::fs::read_to_string(&path)).unwrap();
        assert_eq!(found.trim(), value, "{name}");
    }
}

#[test]
fn a_container_of_both_families_has_two_addresses_and_two_ways_out() {
    let bed = Bed::new();
    // As container engines do.
    bed.tenant.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
    bed.tenant.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    assert_eq!(bed.attach(&dual()).unwrap(), Attached::New);
    check_v6(&bed, "fd00::1/64");
    let v4 = bed.tenant.show("-4 address show dev eth0");
    assert_eq!(addresses(&v4[0]), [("10.0.0.1".to_string(), 24)]);
    bed.tenant.ip("-6 route del default");
    bed.tenant.ip("address add fd00::9/64 dev eth0");
    assert_eq!(bed.attach(&dual()).unwrap(), Attached::Again);
    check_v6(&bed, "fd00::1/64");
    assert!(bed.detach(None).unwrap());
    assert_eq!(bed.links(), NOTHING);
}

#[test]
fn a_container_may_have_ipv6_alone_and_its_gateway_beyond_the_prefix() {
    let bed = Bed::new();
    let plan = plan("address6 = 'fd00:1::1/128'\nmac = '02:00:00:00:00:01'\nmtu = 8950");
    for _ in 0..2 {
        bed.attach(&plan).unwrap();
        check_v6(&bed, "fd00:1::1/128");
        assert!(bed.tenant.show("-4 address show dev eth0")[0]["addr_info"].is_null());
    }
    // Another way out of the container is named with the command that shows it.
    bed.tenant.ip("-6 route del default");
    bed.tenant.ip("link add other type bridge");
    bed.tenant.ip("link set other up");
    bed.tenant.ip("-6 address add 2001:db8::5/64 dev other nodad");
    bed.tenant.ip("-6 route add default via 2001:db8::1");
    let error = bed.attach(&plan).unwrap_err().to_string();
    let expected = format!(
        "the namespace \"{0}\" has another default route via 2001:db8::1; \
         remove it with `ip -6 -n {0} route del default`",
        bed.tenant.name()
    );
    assert_eq!(error, expected);
}

#[test]
fn a_gateway_beyond_the_prefix_is_reached_over_the_link() {
    let bed = Bed::new();
    let plan = plan("address = '172.16.0.1/32'\nmac = '02:00:00:00:00:01'");
    bed.attach(&plan).unwrap();
    bed.attach(&plan).unwrap();
    let tenant = link(&bed.tenant, "eth0");
    assert_eq!(addresses(&tenant), [("172.16.0.1".to_string(), 32)]);
    assert_eq!(tenant["address"], "02:00:00:00:00:01");
    let get = bed.tenant.show("route get 192.0.2.77");
    assert_eq!((&get[0]["gateway"], &get[0]["dev"]), (&"10.0.0.254".into(), &"eth0".into()));
}

#[test]
fn the_namespace_may_be_a_process_or_a_path_and_the_interface_have_another_name() {
    let bed = Bed::new();
    let path = format!("/run/netns/{}", bed.tenant.name());
    let plan = usual();
    bed.host.within(|| attach(&plan, "web", &path, "net1")).unwrap();
    assert!(is_up(&link(&bed.tenant, "net1")));
    assert!(bed.detach(Some(&path)).unwrap());

    let mut sleeper = std::process::Command::new("ip")
        .args(["netns", "exec", bed.tenant.name(), "sleep", "60"])
        .spawn()
        .unwrap();
    let pid = sleeper.id().to_string();
    // `ip` enters the namespace before it becomes `sleep`.
    let entered =
        || std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "sleep\n");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !entered() && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let attached = bed.host.within(|| attach(&plan, "web", &pid, "net2"));
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    attached.unwrap();
    assert!(is_up(&link(&bed.tenant, "net2")));
}

#[test]
fn what_fails_leaves_nothing_behind() {
    let bed = Bed::new();
    // Another way out of the container: found only when everything else is done.
    bed.tenant.ip("link add other type bridge");
    bed.tenant.ip("link set other up");
    bed.tenant.ip("address add 192.0.2.5/24 dev other");
    bed.tenant.ip("route add default via 192.0.2.1");
    let error = bed.attach(&usual()).unwrap_err();
    let expected = format!(
        "the namespace \"{0}\" has another default route via 192.0.2.1; \
         remove it with `ip -n {0} route del default`",
        bed.tenant.name()
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(bed.links(), (1, 2));
    bed.tenant.ip("route del default");
    assert_eq!(bed.attach(&usual()).unwrap(), Attached::New);
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let bed = Bed::new();
    bed.host.ip("link add ob-web type bridge");
    for error in [bed.attach(&usual()).unwrap_err(), bed.detach(None).unwrap_err()] {
        assert!(matches!(error, AttachError::NotOurs { .. }), "{error}");
    }
    assert_eq!(bed.links(), (2, 1));
    bed.host.ip("link del ob-web");

    bed.tenant.ip("link add eth0 type bridge");
    let error = bed.attach(&usual()).unwrap_err();
    assert!(matches!(error, AttachError::NameTaken { .. }), "{error}");
    assert_eq!(bed.links(), (1, 2));
}

#[test]
fn a_port_has_one_container() {
    let bed = Bed::new();
    let other = Namespace::untouched();
    bed.attach(&usual()).unwrap();
    let plan = usual();
    let error = bed.host.within(|| attach(&plan, "web", other.name(), "eth0")).unwrap_err();
    assert!(matches!(error, AttachError::Elsewhere { .. }), "{error}");
    let error = bed.attach_as(&plan, "eth1").unwrap_err();
    assert!(matches!(error, AttachError::Elsewhere { .. }), "{error}");
    let error = bed.detach(Some(other.name())).unwrap_err();
    assert!(matches!(error, AttachError::NotThere { .. }), "{error}");
    let fewer = super::attach::plan("address = '10.0.0.1/24'");
    let error = bed.attach(&fewer).unwrap_err();
    assert!(matches!(error, AttachError::Queues { found: 2, wanted: 1, .. }), "{error}");
    check_attached(&bed, "06:64:0a:00:00:01");
}

#[test]
fn what_does_not_exist_is_named() {
    let bed = Bed::new();
    let plan = usual();
    let text = |port: &str, netns: &str, ifname: &str| {
        bed.host.within(|| attach(&plan, port, netns, ifname)).unwrap_err().to_string()
    };
    assert_eq!(
        text("wbe", bed.tenant.name(), "eth0"),
        "no [[port]] is named \"wbe\"; the configuration has: web"
    );
    assert_eq!(
        text("up", bed.tenant.name(), "eth0"),
        "no [[port]] is named \"up\"; the configuration has: web"
    );
    assert_eq!(
        text("web", "no-such-netns", "eth0"),
        "no network namespace \"no-such-netns\": /run/netns/no-such-netns does not exist; give a \
         name that `ip netns list` shows, a path, or the process id of a container"
    );
    assert_eq!(
        text("web", bed.tenant.name(), "a/b"),
        "\"a/b\" cannot name an interface: 1 to 15 bytes, no '/', ':' or space"
    );
    assert_eq!(bed.links(), NOTHING);
}

#[test]
fn the_command_attaches_and_detaches() {
    let bed = Bed::new();
    let config = std::env::temp_dir().join(format!("outboard-attach-{}", std::process::id()));
    let text = "name = 'test'\n[[vpc]]\nname = 'blue'\nvni = 100\ngateway = '10.0.0.254'\n\
                [[port]]\nname = 'web'\ninterface = 'ob-web'\nvpc = 'blue'\n\
                address = '10.0.0.1/24'\nmtu = 8950\nqueues = 2\n";
    std::fs::write(&config, text).unwrap();
    let outboard = |arguments: &str| {
        let command = env!("CARGO_BIN_EXE_outboard");
        bed.host.exec(&format!("{command} {arguments} --config {} --port web", config.display()))
    };
    let netns = bed.tenant.name();
    let said = outboard(&format!("attach --netns {netns}"));
    assert_eq!(said, format!("port \"web\" is eth0 in \"{netns}\"\n"));
    check_attached(&bed, "06:64:0a:00:00:01");
    let said = outboard(&format!("attach --netns {netns}"));
    let again =
        format!("port \"web\" is eth0 in \"{netns}\" already; its settings are right now\n");
    assert_eq!(said, again);
    assert_eq!(outboard("detach"), "port \"web\" is detached\n");
    assert_eq!(outboard("detach"), "port \"web\" was not attached\n");
    assert_eq!(bed.links(), NOTHING);
    std::fs::remove_file(&config).unwrap();
}
