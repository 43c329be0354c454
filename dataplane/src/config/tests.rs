//! The example parses to what it says, errors read as intended, and no bytes cause a panic.

use super::plan::{Backing, Dscp, Role, Runtime, WaitMode};
use super::{FILE_BYTES_MAX, Plan, parse};
use std::path::PathBuf;

const EXAMPLE: &str = include_str!("../../examples/config/host-a.toml");

fn plan(text: &str) -> Plan {
    parse("host.toml", text.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The errors' exact text, and how many there are.
#[track_caller]
fn wrong(text: &str, count: usize, expected: &str) {
    let errors = parse("host.toml", text.as_bytes()).expect_err("the configuration is wrong");
    assert_eq!(errors.to_string(), expected.trim_matches('\n'), "\n{errors}\n");
    assert_eq!(errors.count(), count);
}

/// One error whose first line and label are these.
#[track_caller]
fn wrong_one(text: &str, what: &str, want: &str) {
    let errors = parse("host.toml", text.as_bytes()).expect_err("the configuration is wrong");
    let shown = errors.to_string();
    assert_eq!(errors.count(), 1, "{shown}");
    assert_eq!(shown.lines().next(), Some(format!("error: {what}").as_str()), "{shown}");
    let label = shown.lines().nth(4).and_then(|line| line.split_once("^ ")).map(|(_, text)| text);
    assert_eq!(label, Some(want), "{shown}");
}

#[test]
fn the_example_is_what_it_says() {
    let plan = plan(EXAMPLE);
    assert_eq!(plan.name, "host-a");
    assert_eq!(plan.control_socket, PathBuf::from("/run/outboard/host-a.sock"));
    assert_eq!(plan.workers.iter().map(|worker| worker.core).collect::<Vec<_>>(), [0, 1]);
    let blue = &plan.vpcs[0];
    assert_eq!((blue.name.as_str(), blue.vni), ("blue", 100));
    assert_eq!(blue.gateway_mac.to_string(), "02:6f:62:00:00:64");
    assert_eq!(blue.routes[0].to.to_string(), "10.0.0.2/32");
    assert_eq!(blue.routes[0].mac, blue.gateway_mac);
    let names: Vec<_> = plan.ports.iter().map(|port| port.name.as_str()).collect();
    assert_eq!(names, ["uplink", "blue-web", "red-web"]);
    let vtep = Some("192.0.2.1".parse().unwrap());
    let vtep6 = Some("2001:db8::1".parse().unwrap());
    assert_eq!(plan.ports[0].role, Role::Uplink { vtep, vtep6, zero_checksum6: false });
    let Role::Tenant(tenant) = plan.ports[1].role else { panic!("a tenant") };
    assert_eq!((tenant.vpc, tenant.mtu), (0, 1430));
    assert_eq!(tenant.address.map(|own| own.prefix_len), Some(24));
    assert_eq!(tenant.mac.to_string(), "06:64:0a:00:00:01");
    assert_eq!(plan.ports[2].queues, [0, 1]);
    assert_eq!(plan.volumes[1].backing, Backing::Mem { bytes: 64 << 20 });
    assert_eq!(plan.volumes[0].worker, 1);
    assert_eq!((plan.exports[0].volume, plan.disks[0].volume, plan.disks[1].volume), (0, 2, 1));
}

/// A host whose uplink and tenant say this of themselves.
fn with_dpdk(uplink: &str, port: &str) -> String {
    format!(
        "name = 'h'\n[dpdk]\neal = ['--no-huge', '-m', '256']\n\
         [[vpc]]\nname = 'v'\nvni = 1\ngateway = '10.0.0.254'\n\
         [[uplink]]\nname = 'up'\nvtep = '192.0.2.1'\n{uplink}\n\
         [[port]]\nname = 'p'\nvpc = 'v'\naddress = '10.0.0.1/24'\n{port}\n"
    )
}

#[test]
fn ports_of_dpdk() {
    const UPLINK: &str = "interface = 'e'\ndriver = 'dpdk'\ndevice = 'net_af_packet0,iface=e'";
    const PORT: &str = "driver = 'dpdk'\ndevice = 'net_memif0,role=server'";
    let plan = plan(&with_dpdk(UPLINK, PORT));
    assert_eq!(plan.eal, ["--no-huge", "-m", "256"]);
    assert_eq!(plan.ports[0].dpdk.as_deref(), Some("net_af_packet0,iface=e"));
    assert_eq!((plan.ports[1].interface.as_str(), plan.ports[0].interface.as_str()), ("", "e"));
    let port = "interface = 'i'\ndriver = 'af_xdp'";
    let device = "uplink's device is the kernel's too";
    let plan = parse("h", with_dpdk(UPLINK, port).as_bytes()).expect(device);
    assert_eq!(plan.ports[1].dpdk, None);

    let errors = |uplink: &str, port: &str| {
        let errors = parse("h", with_dpdk(uplink, port).as_bytes()).expect_err("it is wrong");
        errors.to_string()
    };
    for (uplink, port, expected) in [
        ("driver = 'dpdk'\ndevice = 'net_null0'", PORT, "`interface` of [[uplink]] is missing"),
        ("interface = 'e'\ndriver = 'dpdk'", PORT, "`device` of [[uplink]] is missing"),
        ("interface = 'e'\ndevice = 'net_null0'", PORT, "no effect without `driver = \"dpdk\"`"),
        (UPLINK, "driver = 'dpdk'\ndevice = 'net af'", "want a driver with a number"),
        (UPLINK, "driver = 'dpkd'\ndevice = 'net_null0'", "\"dpdk\""),
        (UPLINK, &format!("{PORT}\nqueues = 2"), "several queues of"),
        (UPLINK, "driver = 'dpdk'\ndevice = 'net_af_packet0,iface=f'", "is taken already"),
    ] {
        let shown = errors(uplink, port);
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
}

#[test]
fn what_the_readme_shows_is_right() {
    let readme = include_str!("../../../README.md");
    let blocks = readme.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let blocks: Vec<_> = blocks.collect();
    let [host, storage, metrics] = blocks[..] else { panic!("three blocks of TOML") };
    assert_eq!(plan(host).ports.len(), 2);
    let whole = plan(&format!("{host}{storage}{metrics}"));
    assert_eq!((whole.volumes.len(), whole.disks.len()), (1, 1));
    assert!(whole.metrics.is_some());
}

#[test]
fn an_almost_empty_file_gets_defaults() {
    let plan = plan("name = 'a'");
    let runtime = Runtime {
        mode: WaitMode::Adaptive,
        spin_us: 50,
        region_mib: 64,
        flows: 65_536,
        ledger: false,
    };
    assert_eq!(plan.runtime, runtime);
    assert_eq!(plan.control_socket, PathBuf::from("/run/outboard/a.sock"));
    assert_eq!((plan.workers.len(), plan.workers[0].core), (1, 0));
    assert!(plan.ports.is_empty() && plan.disks.is_empty());
}

#[test]
fn an_unknown_key_suggests_the_known_one() {
    wrong(
        "name = \"a\"\n[runtime]\nspin_ms = 5\n[[vcp]]\nx = 1\n",
        2,
        r#"
error: unknown key `spin_ms` in [runtime]
 --> host.toml:3:1
  |
3 | spin_ms = 5
  | ^^^^^^^ did you mean `spin_us`?

error: unknown key `vcp`
 --> host.toml:4:3
  |
4 | [[vcp]]
  |   ^^^ did you mean `vpc`?
"#,
    );
}

#[test]
fn independent_mistakes_come_together() {
    wrong(
        r#"name = "a"
[[vpc]]
name = "blue"
vni = 0
gateway = "10.0.0.300"
[[uplink]]
name = "up"
interface = "eth1"
[[port]]
name = "web"
interface = "eth1"
vpc = "bleu"
address = "10.0.0.0/24"
worker = 1
"#,
        7,
        r#"
error: `vni` of [[vpc]] is 0
 --> host.toml:4:7
  |
4 | vni = 0
  |       ^ want a number from 1 to 16777215

error: `gateway` of [[vpc]] is "10.0.0.300"
 --> host.toml:5:11
  |
5 | gateway = "10.0.0.300"
  |           ^^^^^^^^^^^^ want an IPv4 address, such as "10.0.0.1"

error: `vtep` of [[uplink]] is missing
 --> host.toml:6:1
  |
6 | [[uplink]]
  | ^^^^^^^^^^ add `vtep = "192.0.2.1"`, `vtep6 = "2001:db8::1"`, or both

error: the interface "eth1" is taken already
  --> host.toml:11:13
   |
11 | interface = "eth1"
   |             ^^^^^^ want another interface
   = taken first at host.toml:8:13

error: no [[vpc]] is named "bleu"
  --> host.toml:12:7
   |
12 | vpc = "bleu"
   |       ^^^^^^ did you mean `blue`?

error: `address` of [[port]] is "10.0.0.0/24"
  --> host.toml:13:11
   |
13 | address = "10.0.0.0/24"
   |           ^^^^^^^^^^^^^ this is the network itself; want a host's address in it

error: there is no worker 1
  --> host.toml:14:10
   |
14 | worker = 1
   |          ^ want 0; workers are numbered from 0 in the order of [[worker]]
"#,
    );
}

#[test]
fn syntax_errors_show_their_place() {
    wrong(
        "name = \"a\nx = 1\n",
        1,
        r#"
error: not valid TOML: invalid basic string, expected `"`
 --> host.toml:1:10
  |
1 | name = "a
  |          ^
"#,
    );
    wrong(
        "name = \"a\"\nname = \"b\"\n",
        1,
        r#"
error: not valid TOML: duplicate key
 --> host.toml:2:1
  |
2 | name = "b"
  | ^^^^
"#,
    );
}

#[test]
fn bytes_that_are_no_text_show_their_place() {
    let errors = parse("host.toml", b"name = \"a\"\n# \xff").unwrap_err();
    let expected = "error: the file is not UTF-8 text\n  --> host.toml:2:3\n   = byte 0xff here";
    assert_eq!(errors.to_string(), expected);
}

#[test]
fn the_size_of_the_file_is_bounded() {
    let mut text = String::from("name = 'a'\n#");
    text.extend(std::iter::repeat_n('x', FILE_BYTES_MAX - text.len()));
    plan(&text);
    text.push('x');
    let errors = parse("host.toml", text.as_bytes()).unwrap_err();
    assert_eq!(errors.to_string(), "error: the file is larger than 1 MiB\n  --> host.toml");
}

#[test]
fn terminals_are_not_steered() {
    let errors = parse("f", "na\u{e9}me = \"\\u001b[2J\"\t# \u{9b}\n".as_bytes()).unwrap_err();
    assert!(!errors.to_string().chars().any(|c| c.is_control() && c != '\n'), "{errors}");
}

const VPC: &str = "name = 'a'\n[[vpc]]\nname = 'v'\nvni = 7\ngateway = '10.0.0.254'\n";
const PORT: &str = "[[port]]\nname = 'p'\ninterface = 'p'\nvpc = 'v'\naddress = '10.0.0.1/24'\n";
const PORT2: &str = "[[port]]\nname = 'q'\ninterface = 'q'\nvpc = 'v'\naddress = '10.0.0.2/24'\n";
const UPLINK: &str = "[[uplink]]\nname = 'u'\ninterface = 'u'\nvtep = '192.0.2.1'\n";
const MEM: &str = "[[volume]]\nname = 'm'\nkind = 'mem'\nsize = '1MiB'\n";

#[test]
fn limits_hold_at_the_edge_and_one_past_it() {
    let runtime = |line: &str| format!("name = 'a'\n[runtime]\n{line}\n");
    for right in ["spin_us = 10000", "region_mib = 4", "flows = 1024", "flows = 16777216"] {
        plan(&runtime(right));
    }
    let cases = [
        ("spin_us = 10001", "`spin_us` of [runtime] is 10001", "want a number from 0 to 10000"),
        ("region_mib = 3", "`region_mib` of [runtime] is 3", "want a number from 4 to 65536"),
        ("flows = 1000", "`flows` of [runtime] is 1000", "want a number from 1024 to 16777216"),
        ("flows = 1025", "`flows` of [runtime] is 1025", "want a power of two, such as 2048"),
        ("flows = -1", "`flows` of [runtime] is -1", "want a number from 1024 to 16777216"),
        (
            "mode = 'lazy'",
            "`mode` of [runtime] is \"lazy\"",
            "want one of \"adaptive\", \"yield\", \"busy\"",
        ),
        (
            "mode = 'busy'\nspin_us = 5",
            "`spin_us` of [runtime] has no effect in this mode",
            "want it only with mode = \"adaptive\"",
        ),
    ];
    for (line, what, want) in cases {
        wrong_one(&runtime(line), what, want);
    }
    plan(&VPC.replace("vni = 7", "vni = 16777215"));
    wrong_one(
        &VPC.replace("vni = 7", "vni = 16777216"),
        "`vni` of [[vpc]] is 16777216",
        "want a number from 1 to 16777215",
    );
}

#[test]
fn networks_are_consistent() {
    plan(&format!("{VPC}{PORT}{PORT2}"));
    plan(&format!("{VPC}{}", PORT.replace("10.0.0.1/24", "172.16.0.1/32")));
    let taken = |a: &str, b: &str| format!("{VPC}{PORT}{}", PORT2.replace(a, b));
    wrong_one(
        &taken("10.0.0.2", "10.0.0.1"),
        "the address 10.0.0.1 in this VPC is taken already",
        "want another address",
    );
    wrong_one(
        &taken("10.0.0.2", "10.0.0.254"),
        "the address 10.0.0.254 in this VPC is taken already",
        "want another address",
    );
    wrong_one(
        &taken("10.0.0.2", "10.0.1.2"),
        "10.0.1.2/24 does not reach the VPC's gateway 10.0.0.254",
        "want an address in the gateway's network, or /32",
    );
    wrong_one(
        &format!("{VPC}{PORT}{PORT2}mac = '06:07:0a:00:00:01'\n"),
        "the MAC address 06:07:0a:00:00:01 in this VPC is taken already",
        "want another `mac`",
    );
    wrong_one(
        &format!("{VPC}{PORT}mac = '01:00:5e:00:00:01'\n"),
        "`mac` of [[port]] is \"01:00:5e:00:00:01\"",
        "this is a group address; want an even first byte",
    );
    wrong_one(
        &format!("{VPC}{PORT}workers = [0, 0]\nqueues = 1\n"),
        "2 workers for 1 queue",
        "want at least as many `queues` as workers",
    );
    wrong_one(
        &format!("{VPC}{PORT}workers = [0]\nworker = 0\n"),
        "`worker` of [[port]] and `workers` at once",
        "want one of the two",
    );
    wrong_one(
        &format!("{VPC}{}", PORT.replace("interface = 'p'", "interface = 'sixteen-bytes-00'")),
        "`interface` of [[port]] is \"sixteen-bytes-00\"",
        "want an interface's name, such as \"eth0\": 1 to 15 bytes, no '/', ':' or space",
    );
}

#[test]
fn routes_are_consistent() {
    let route = |to: &str, via: &str| format!("[[vpc.route]]\nto = '{to}'\nvia = '{via}'\n");
    let good = route("10.0.1.0/24", "192.0.2.2");
    plan(&format!("{VPC}{good}{UPLINK}"));
    wrong_one(
        &format!("{VPC}{good}"),
        "a route to another host without an uplink",
        "add an [[uplink]] with `vtep`, this host's tunnel address",
    );
    wrong_one(
        &format!("{VPC}{good}{good}{UPLINK}"),
        "the route to 10.0.1.0/24 in this VPC is taken already",
        "want one route each",
    );
    wrong_one(
        &format!("{VPC}{}{UPLINK}", route("10.0.1.0/24", "192.0.2.1")),
        "`via` of [[vpc.route]] is 192.0.2.1, this host itself",
        "want the `vtep` of another host",
    );
    wrong_one(
        &format!("{VPC}{}{UPLINK}", route("10.0.1.7/24", "192.0.2.2")),
        "`to` of [[vpc.route]] is \"10.0.1.7/24\"",
        "host bits are set; want \"10.0.1.0/24\"",
    );
    wrong_one(
        &format!("{VPC}{}{UPLINK}{PORT}", route("10.0.0.1/32", "192.0.2.2")),
        "a route of the VPC sends 10.0.0.1 to another host",
        "want the address here or the route, not both",
    );
}

const VPC6: &str = "name = 'a'\n[[vpc]]\nname = 'v'\nvni = 7\ngateway6 = 'fd00::fe'\n";
const PORT6: &str = "[[port]]\nname = 'p'\ninterface = 'p'\nvpc = 'v'\naddress6 = 'fd00::1/64'\n";
const UPLINK6: &str = "[[uplink]]\nname = 'u'\ninterface = 'u'\nvtep6 = '2001:db8::1'\n";

#[test]
fn ipv6_alone_and_both_families() {
    let route = "[[vpc.route]]\nto = 'fd00:0:0:1::/64'\nvia = '2001:db8::2'\n";
    let alone = plan(&format!("{VPC6}{route}{UPLINK6}{PORT6}"));
    let vpc = &alone.vpcs[0];
    assert_eq!((vpc.gateway, vpc.gateway6), (None, Some("fd00::fe".parse().unwrap())));
    assert_eq!((vpc.routes[0].to.to_string().as_str(), vpc.dscp), ("fd00:0:0:1::/64", DSCP_0));
    assert_eq!(vpc.routes[0].via.to_string(), "2001:db8::2");
    let Role::Tenant(tenant) = alone.ports[1].role else { panic!("a tenant") };
    assert_eq!((tenant.address, tenant.mtu), (None, 1430));
    assert_eq!(tenant.mac.to_string(), "0a:07:00:00:00:01");
    // Either family inside goes over either outside.
    let both = VPC6.replace("gateway6", "dscp = 'copy'\ngateway = '10.0.0.254'\ngateway6");
    let mixed = "[[vpc.route]]\nto = '10.0.1.0/24'\nvia = '2001:db8::2'\n\
                 [[vpc.route]]\nto = 'fd00:0:0:1::/64'\nvia = '192.0.2.2'\n";
    let uplink = format!("{UPLINK6}vtep = '192.0.2.1'\nzero_checksum6 = true\n");
    let port = format!("{PORT6}address = '10.0.0.1/24'\n");
    let both = plan(&format!("{both}{mixed}{uplink}{port}"));
    assert_eq!((both.vpcs[0].dscp, both.vpcs[0].routes.len()), (Dscp::Copy, 2));
    let Role::Tenant(tenant) = both.ports[1].role else { panic!("a tenant") };
    assert_eq!(tenant.address6.map(|own| own.prefix_len), Some(64));
    assert_eq!(tenant.mac.to_string(), "06:07:0a:00:00:01");
}

const DSCP_0: Dscp = Dscp::Fixed(0);

#[test]
fn what_is_of_a_family_needs_the_gateway_and_the_tunnel_address_of_it() {
    wrong_one(
        &format!("{VPC6}{PORT}"),
        "`address` is IPv4, but the VPC has no `gateway`",
        "add `gateway` to the VPC, or use the other family",
    );
    wrong_one(
        &format!("{VPC}{PORT6}"),
        "`address6` is IPv6, but the VPC has no `gateway6`",
        "add `gateway6` to the VPC, or use the other family",
    );
    let route = |to: &str, via: &str| format!("[[vpc.route]]\nto = '{to}'\nvia = '{via}'\n");
    wrong_one(
        &format!("{VPC}{}{UPLINK}", route("fd00:1::/64", "192.0.2.2")),
        "`to` is IPv6, but the VPC has no `gateway6`",
        "add `gateway6` to the VPC, or use the other family",
    );
    wrong_one(
        &format!("{VPC}{}{UPLINK}", route("10.0.1.0/24", "2001:db8::2")),
        "`via` of [[vpc.route]] is 2001:db8::2, but no uplink has `vtep6`",
        "add `vtep6` to an [[uplink]], or use the other host's other address",
    );
    wrong_one(
        &format!("{VPC}{}{UPLINK6}", route("10.0.1.0/24", "192.0.2.2")),
        "`via` of [[vpc.route]] is 192.0.2.2, but no uplink has `vtep`",
        "add `vtep` to an [[uplink]], or use the other host's other address",
    );
    wrong_one(
        &format!("{VPC6}{}{UPLINK6}", route("fd00:1::/64", "2001:db8::1")),
        "`via` of [[vpc.route]] is 2001:db8::1, this host itself",
        "want the `vtep` of another host",
    );
    wrong_one(
        "name = 'a'\n[[vpc]]\nname = 'v'\nvni = 7\n",
        "`gateway` of [[vpc]] is missing",
        "add `gateway = \"10.0.0.254\"`, `gateway6 = \"fd00::fe\"`, or both",
    );
    wrong_one(
        &format!("{VPC}{}", PORT.replace("address = '10.0.0.1/24'\n", "")),
        "`address` of [[port]] is missing",
        "add `address = \"10.0.0.1/24\"`, `address6 = \"fd00::1/64\"`, or both",
    );
    wrong_one(
        &format!("{VPC}{UPLINK}zero_checksum6 = true\n"),
        "`zero_checksum6` of [[uplink]] has no effect without `vtep6`",
        "want it only with `vtep6`",
    );
}

#[test]
fn ipv6_addresses_are_consistent() {
    let port = |address: &str| format!("{VPC6}{}", PORT6.replace("fd00::1/64", address));
    plan(&port("fd00::fd/127").replace("fd00::fe", "fd00::fc"));
    plan(&port("2001:db8::7/128"));
    let want = "want address and prefix length, such as \"fd00::1/64\"";
    for (address, want) in [
        ("fe80::1/64", want),
        ("ff02::1/64", want),
        ("::1/64", want),
        ("::ffff:10.0.0.1/64", want),
        ("fd00::1/129", want),
        ("fd00::1/0", want),
        ("10.0.0.1/24", "this is an IPv4 address; want it as `address`"),
        ("fd00::/64", "this is the network itself; want a host's address in it"),
    ] {
        wrong_one(&port(address), &format!("`address6` of [[port]] is \"{address}\""), want);
    }
    wrong_one(
        &format!("{VPC}{}", PORT.replace("10.0.0.1/24", "fd00::1/64")),
        "`address` of [[port]] is \"fd00::1/64\"",
        "this is an IPv6 address; want it as `address6`",
    );
    wrong_one(
        &port("fd00::fe/64"),
        "the address fd00::fe in this VPC is taken already",
        "want another address",
    );
    wrong_one(
        &port("fd00:1::1/64"),
        "fd00:1::1/64 does not reach the VPC's gateway fd00::fe",
        "want an address in the gateway's network, or /128",
    );
    wrong_one(
        &format!("{VPC6}{PORT6}mtu = 1279\n"),
        "`mtu` of [[port]] is 1279: too little for IPv6",
        "want at least 1280 with `address6`",
    );
    plan(&format!("{VPC6}{PORT6}mtu = 1280\n"));
    for (dscp, right) in [("63", true), ("64", false), ("'copy'", true), ("'ef'", false)] {
        let text = format!("{VPC6}dscp = {dscp}\n");
        assert_eq!(parse("f", text.as_bytes()).is_ok(), right, "{dscp}");
    }
}

#[test]
fn volumes_are_consistent() {
    let volume = |lines: &str| format!("name = 'a'\n[[volume]]\nname = 'v'\n{lines}\n");
    plan(&volume("kind = 'mem'\nsize = 512"));
    let cases = [
        (
            "kind = 'mem'\nsize = '1000B'",
            "`size` of [[volume]] is 1000 bytes",
            "want a multiple of `block_bytes`, 512",
        ),
        (
            "kind = 'mem'\nsize = '64MB'",
            "`size` of [[volume]] is \"64MB\"",
            "want a size up to 1024TiB, such as \"64MiB\" (B, KiB, MiB, GiB, TiB)",
        ),
        (
            "kind = 'mem'\nsize = '99999999TiB'",
            "`size` of [[volume]] is \"99999999TiB\"",
            "want a size up to 1024TiB, such as \"64MiB\" (B, KiB, MiB, GiB, TiB)",
        ),
        (
            "kind = 'mem'\nsize = '1MiB'\nblock_bytes = 1024",
            "`block_bytes` of [[volume]] is 1024",
            "want 512 or 4096",
        ),
        (
            "kind = 'file'\npath = '/x'\nsize = '1MiB'",
            "`size` of [[volume]] does not belong here",
            "only for kind = \"mem\", \"null\" and \"remote\"; a file is made with `create = SIZE`",
        ),
        (
            "kind = 'remote'\nnqn = 'nqn.2025-01.x:y'\naddress = '192.0.2.1:1'\nsize = '1536B'\n\
             block_bytes = 4096",
            "`size` of [[volume]] is 1536 bytes",
            "want a multiple of `block_bytes`, 4096",
        ),
        (
            "kind = 'file'\npath = 'x'",
            "`path` of [[volume]] is \"x\"",
            "want an absolute path of a file, without \"..\"",
        ),
        (
            "kind = 'file'\npath = '/x'\ncreate = '1MiB'\nread_only = true",
            "`create` of [[volume]] together with `read_only = true`",
            "a new volume that cannot be written is empty; want one of the two",
        ),
        (
            "kind = 'remote'\nnqn = 'nqn.2025-01.x:y'\naddress = '192.0.2.1'",
            "`address` of [[volume]] is \"192.0.2.1\"",
            "want address and port, such as \"192.0.2.1:4420\"",
        ),
        (
            "kind = 'remote'\nnqn = 'disk1'\naddress = '192.0.2.1:4420'",
            "`nqn` of [[volume]] is \"disk1\"",
            "want an NVMe qualified name, such as \"nqn.2025-01.org.example:disk1\"",
        ),
    ];
    for (lines, what, want) in cases {
        wrong_one(&volume(lines), what, want);
    }
}

#[test]
fn a_disk_says_who_may_connect() {
    let disk = |lines: &str| {
        format!("name = 'a'\n{MEM}[[disk]]\nname = 'd'\nvolume = 'm'\nsocket = '/run/d'\n{lines}\n")
    };
    let access = plan(&disk("owner = 'qemu'\ngroup = '107'\nmode = '0600'")).disks.remove(0).access;
    assert_eq!((access.owner.as_deref(), access.group.as_deref()), (Some("qemu"), Some("107")));
    assert_eq!(access.mode, Some(0o600));
    let want = "want permissions in octal as text, such as \"0660\": at most \"0666\"";
    for wrong in ["0777", "660", "0668", "01660", "rw"] {
        let what = format!("`mode` of [[disk]] is \"{wrong}\"");
        wrong_one(&disk(&format!("mode = '{wrong}'")), &what, want);
    }
    let want = "want a name such as \"kvm\", or a number as text";
    wrong_one(&disk("group = 'a:b'"), "`group` of [[disk]] is \"a:b\"", want);
}

#[test]
fn digests_are_asked_for_and_required() {
    let remote = |digests: &str| {
        format!(
            "name = 'a'\n[[volume]]\nname = 'v'\nkind = 'remote'\naddress = '192.0.2.2:4420'\n\
             nqn = 'nqn.2025-01.org.example:d'\n{digests}\n"
        )
    };
    let of = |digests: &str| match plan(&remote(digests)).volumes.remove(0).backing {
        Backing::Remote { digests, .. } => digests.name(),
        other => panic!("{other:?}"),
    };
    assert_eq!(of(""), "none");
    for name in ["none", "header", "data", "both"] {
        assert_eq!(of(&format!("digests = '{name}'")), name);
    }
    let export = "[[export]]\nvolume = 'm'\nnqn = 'nqn.2025-01.org.example:e'\n\
                  listen = '192.0.2.1:4420'\nrequire_digests = 'header'\n";
    let made = plan(&format!("name = 'a'\n{MEM}{export}")).exports.remove(0);
    assert_eq!(made.require_digests.name(), "header");
    let mem = format!("name = 'a'\n{MEM}digests = 'both'\n");
    let what = "`digests` of [[volume]] does not belong here";
    wrong_one(&mem, what, "only for kind = \"remote\"");
}

#[test]
fn sockets_and_listeners_do_not_overlap() {
    let disk = |name: &str, path: &str| {
        format!("[[disk]]\nname = '{name}'\nvolume = 'm'\nsocket = '{path}'\n")
    };
    plan(&format!("name = 'a'\n{MEM}{}{}", disk("d", "/run/d"), disk("e", "/run/e")));
    wrong_one(
        &format!("name = 'a'\n{MEM}{}", disk("d", "/run/outboard//a.sock")),
        "the path /run/outboard//a.sock is taken already",
        "want another path",
    );
    wrong_one(
        &format!("name = 'a'\n{MEM}{}", disk("twenty-one-characters", "/run/d")),
        "`name` of [[disk]] is \"twenty-one-characters\"",
        "want at most 20 characters: it is the serial that the guest reads",
    );
    let export = |nqn: &str, listen: &str| {
        format!("[[export]]\nvolume = 'm'\nnqn = 'nqn.2025-01.x:{nqn}'\nlisten = '{listen}'\n")
    };
    wrong_one(
        &format!("name = 'a'\n{MEM}{}", export("y", "0.0.0.0:4420")),
        "`listen` of [[export]] is open to every network of this host",
        "want one address of this host, or add `insecure = true`",
    );
    let open = format!("{}insecure = true\n", export("y", "[::]:4420"));
    plan(&format!("name = 'a'\n{MEM}{open}{}", export("z", "192.0.2.1:4421")));
    wrong_one(
        &format!("name = 'a'\n{MEM}{open}{}", export("z", "192.0.2.1:4420")),
        "`listen` of [[export]]: 192.0.2.1:4420 is taken already",
        "want another port for each export",
    );
    wrong_one(
        &format!("name = 'a'\n{}", export("z", "192.0.2.1:4420")),
        "no [[volume]] is named \"m\"",
        "add a [[volume]] with this name",
    );
    let null = "name = 'a'\n[[volume]]\nname = 'm'\nkind = 'null'\nsize = '1MiB'\n";
    wrong_one(
        &format!("{null}{}", export("z", "192.0.2.1:4420")),
        "`volume` of [[export]] is m, of kind \"null\"",
        "reads of it give whatever the buffer held before: want another kind",
    );
}

#[test]
fn the_region_has_frames_for_every_queue() {
    let text = |mib: u32, queues: u32| {
        let port = |n: u32| {
            let head = format!("[[port]]\nname = 'p{n}'\ninterface = 'p{n}'\nvpc = 'v'\n");
            format!("{head}address = '10.0.0.{}/24'\n", n + 1)
        };
        let ports: String = (0..queues).map(port).collect();
        let head = format!("name = 'a'\n[runtime]\nregion_mib = {mib}\n[[worker]]\ncore = 0\n");
        format!("{head}[[vpc]]\nname = 'v'\nvni = 1\ngateway = '10.0.0.254'\n{ports}")
    };
    plan(&text(4, 8));
    wrong_one(
        &text(4, 9),
        "`region_mib` of [runtime] is 4: too little for a worker with 9 queues",
        "want 5 at least, better four times that",
    );
}

#[test]
fn the_region_has_frames_for_every_export() {
    let text = |mib: u32, exports: u32| {
        let export = |n: u32| {
            let nqn = format!("nqn.2025-01.org.example:e{n}");
            format!("[[export]]\nvolume = 'v'\nnqn = '{nqn}'\nlisten = '127.0.0.1:{n}'\n")
        };
        let exports: String = (1..=exports).map(export).collect();
        let head = format!("name = 'a'\n[runtime]\nregion_mib = {mib}\n");
        format!("{head}[[volume]]\nname = 'v'\nkind = 'mem'\nsize = '4KiB'\n{exports}")
    };
    plan(&text(17, 2));
    wrong_one(
        &text(16, 2),
        "`region_mib` of [runtime] is 16: too little for a worker with 0 queues and 2 exports",
        "want 17 at least, better four times that",
    );
}

#[test]
fn tables_and_lists_are_told_apart() {
    wrong_one(
        "name = 'a'\n[worker]\ncore = 0\n",
        "`worker` is a list of tables",
        "want [[worker]], with two brackets",
    );
    wrong_one("name = 'a'\n[[runtime]]\n", "`runtime` is not a table", "want [runtime]");
    wrong_one(
        "name = 3\n",
        "`name` is an integer",
        "want letters, digits, '-', '_', '.'; a letter or digit first; at most 32",
    );
}

#[test]
fn many_mistakes_are_cut_short() {
    let keys: String = (0..30).map(|n| format!("unknown{n} = 1\n")).collect();
    let errors = parse("host.toml", format!("name = 'a'\n{keys}").as_bytes()).unwrap_err();
    assert_eq!(errors.count(), 30);
    assert!(errors.to_string().ends_with("error: and 10 more"), "{errors}");
}

/// What must hold for any bytes: a plan whose references are all good, or errors with a place.
fn check(bytes: &[u8]) {
    let plan = match parse("f", bytes) {
        Ok(plan) => plan,
        Err(errors) => {
            let shown = errors.to_string();
            assert!(errors.count() > 0 && shown.starts_with("error: "), "{shown}");
            assert!(shown.contains("--> f"), "{shown}");
            return;
        }
    };
    let workers = plan.workers.len();
    assert!(workers > 0 && plan.runtime.flows.is_power_of_two());
    for port in &plan.ports {
        assert!(!port.queues.is_empty());
        assert!(port.queues.iter().all(|worker| usize::from(*worker) < workers));
        if let Role::Tenant(tenant) = port.role {
            let vpc = &plan.vpcs[usize::from(tenant.vpc)];
            assert!(tenant.address.is_some() || tenant.address6.is_some());
            assert!(tenant.address.is_none() || vpc.gateway.is_some());
            assert!(tenant.address6.is_none() || vpc.gateway6.is_some() && tenant.mtu >= 1280);
            let _ = tenant.address.map(|own| own.network());
            let _ = tenant.address6.map(|own| own.network());
        }
    }
    assert!(plan.volumes.iter().all(|volume| usize::from(volume.worker) < workers));
    let mut users =
        plan.exports.iter().map(|e| e.volume).chain(plan.disks.iter().map(|d| d.volume));
    assert!(users.all(|volume| usize::from(volume) < plan.volumes.len()));
}

#[test]
fn any_bytes_give_a_plan_or_errors() {
    bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| check(bytes));
}

/// The example with bytes overwritten, removed and doubled: deep into the checks.
#[test]
fn any_damage_to_the_example_gives_a_plan_or_errors() {
    bolero::check!().with_type::<Vec<(u16, u8, u8)>>().for_each(|edits| {
        let mut bytes = EXAMPLE.as_bytes().to_vec();
        for (at, how, byte) in edits.iter().take(8) {
            let at = usize::from(*at) % bytes.len();
            match how % 4 {
                0 => bytes[at] = *byte,
                1 => bytes[at] = b"0123456789\"[]=./ \n"[usize::from(*byte) % 18],
                2 => drop(bytes.drain(at..bytes.len().min(at + usize::from(*byte)))),
                _ => {
                    let copy = bytes[at..bytes.len().min(at + usize::from(*byte))].to_vec();
                    bytes.splice(at..at, copy);
                }
            }
            if bytes.is_empty() {
                return;
            }
        }
        check(&bytes);
    });
}

#[test]
fn metrics_are_open_to_every_network_only_when_that_is_said() {
    let text =
        |listen: &str, rest: &str| format!("name = 'a'\n[metrics]\nlisten = '{listen}'\n{rest}");
    assert_eq!(plan("name = 'a'").metrics, None);
    let listen = "127.0.0.1:9464";
    assert_eq!(plan(&text(listen, "")).metrics, Some(listen.parse().unwrap()));
    wrong_one(
        &text("[::]:9464", ""),
        "`listen` of [metrics] is open to every network of this host",
        "want one address of this host, or add `insecure = true`",
    );
    assert!(plan(&text("[::]:9464", "insecure = true")).metrics.is_some());
}
