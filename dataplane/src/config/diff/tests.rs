//! Differences read as intended, and applying one leads from any plan to any other.

use super::{Action, Difference, Kind, PORT_NUMBERS_MAX};
use crate::config::{Plan, parse};
use std::collections::BTreeSet;

const BASE: &str = "
[[vpc]]
name = 'blue'
vni = 100
gateway = '10.0.0.254'
[[vpc.route]]
to = '10.0.1.0/24'
via = '192.0.2.2'
[[uplink]]
name = 'up'
interface = 'eth1'
vtep = '192.0.2.1'
[[port]]
name = 'web'
interface = 'ob-web'
vpc = 'blue'
address = '10.0.0.1/24'
[[volume]]
name = 'data'
kind = 'file'
path = '/data.img'
[[volume]]
name = 'ram'
kind = 'mem'
size = '1MiB'
[[export]]
volume = 'data'
nqn = 'nqn.2025-01.org.example:a'
listen = '127.0.0.1:4420'
[[disk]]
name = 'vda'
volume = 'ram'
socket = '/run/vda.sock'
";

fn plan(text: &str) -> Plan {
    parse("a.toml", format!("name = 'a'\n{text}").as_bytes()).unwrap_or_else(|it| panic!("{it}"))
}

/// The difference that replacing a text makes.
#[track_caller]
fn with(from: &str, to: &str) -> Difference {
    assert!(BASE.contains(from));
    Difference::between(&plan(BASE), &plan(&BASE.replace(from, to)))
}

fn actions(difference: &Difference) -> Vec<(Kind, &str, Action)> {
    difference.changes.iter().map(|it| (it.kind, it.name.as_str(), it.action)).collect()
}

#[test]
fn the_same_plan_in_another_order_does_not_differ() {
    let old = plan(BASE);
    assert!(Difference::between(&old, &old).is_empty());
    let (volumes, disk) = BASE.split_at(BASE.find("[[disk]]").unwrap());
    let ram = "[[volume]]\nname = 'ram'\nkind = 'mem'\nsize = '1MiB'\n";
    let first = format!("{ram}{}{disk}", volumes.replace(ram, ""));
    let difference = Difference::between(&old, &plan(&first));
    assert!(difference.is_empty(), "{difference}");
    assert_eq!(difference.to_string(), "nothing differs\n");
}

#[test]
fn what_only_tables_hold_is_changed_in_place() {
    use Action::Change;
    let difference = with("via = '192.0.2.2'", "via = '192.0.2.3'");
    assert_eq!(actions(&difference), [(Kind::Vpc, "blue", Change)]);
    assert_eq!(
        difference.to_string(),
        "~   vpc \"blue\" (in place)\n      route 10.0.1.0/24 = via 192.0.2.3 (was via 192.0.2.2)\n\
         1 to change in place\n"
    );
    assert_eq!(actions(&with("10.0.0.1/24", "10.0.0.7/24")), [(Kind::Port, "web", Change)]);
    assert_eq!(actions(&with("vni = 100", "vni = 101"))[0], (Kind::Vpc, "blue", Change));
    assert_eq!(actions(&with("192.0.2.1'", "192.0.2.9'")), [(Kind::Uplink, "up", Change)]);
}

#[test]
fn another_volume_is_another_disk() {
    use Action::{Add, Remake, Remove};
    let difference = with("size = '1MiB'", "size = '2MiB'");
    let expected = [(Kind::Volume, "ram", Remake), (Kind::Disk, "vda", Remake)];
    assert_eq!(actions(&difference), expected);
    let text = difference.to_string();
    assert!(text.contains("-/+ disk \"vda\" (made anew with its volume)\n"), "{text}");
    assert!(text.contains("      size = 2MiB (was 1MiB)\n"), "{text}");
    let difference = with("'ram'", "'rom'");
    let expected =
        [(Kind::Volume, "ram", Remove), (Kind::Volume, "rom", Add), (Kind::Disk, "vda", Remake)];
    assert_eq!(actions(&difference), expected);
    assert!(difference.refusals.is_empty());
}

#[test]
fn what_is_fixed_is_refused_by_name() {
    let change =
        |text: &str| Difference::between(&plan(BASE), &plan(&format!("{text}\n{BASE}"))).refusals;
    for (text, words) in [
        ("[runtime]\nregion_mib = 65", "`region_mib` of [runtime] cannot change"),
        ("[runtime]\nflows = 1024", "`flows` of [runtime] cannot change"),
        ("[runtime]\nmode = 'busy'", "it is adaptive, the new configuration says busy; restart"),
        ("[runtime]\nspin_us = 1", "`spin_us`"),
        ("[control]\nsocket = '/x.sock'", "`socket` of [control] cannot change"),
        ("[[worker]]\ncore = 1", "it is cores 0, the new configuration says cores 1"),
        ("[[worker]]\ncore = 0\n[[worker]]\ncore = 1", "cores 0, 1"),
    ] {
        let refusals = change(text);
        assert_eq!(refusals.len(), 1, "{refusals:?}");
        assert!(refusals[0].contains(words), "{refusals:?}");
    }
    let renamed = parse("b.toml", format!("name = 'b'\n{BASE}").as_bytes()).unwrap();
    let refusals = Difference::between(&plan(BASE), &renamed).refusals;
    assert!(refusals[0].starts_with("`name` cannot change"), "{refusals:?}");
}

/// With a tenant on a device of DPDK's, an uplink on another one, and so changed.
#[track_caller]
fn with_devices(from: &str, to: &str) -> Difference {
    let port = "[[port]]\nname = 'mem'\ndriver = 'dpdk'\ndevice = 'net_memif0,role=server'\n\
                vpc = 'blue'\naddress = '10.0.0.2/24'\n";
    let uplink = "'eth1'\ndriver = 'dpdk'\ndevice = 'net_af_packet0,iface=eth1'";
    let old = format!("{}{port}", BASE.replace("'eth1'", uplink));
    assert!(old.contains(from));
    Difference::between(&plan(&old), &plan(&old.replace(from, to)))
}

#[test]
fn a_device_of_dpdk_is_one_ports_at_a_time() {
    // Neither has an interface, which is nothing that they share.
    let replaced = with_devices(
        "'mem'\ndriver = 'dpdk'\ndevice = 'net_memif0",
        "'mem2'\ndriver = 'dpdk'\ndevice = 'net_memif1",
    );
    assert!(replaced.refusals.is_empty(), "{replaced}");
    let changed = with_devices("net_memif0,role=server", "net_memif1,role=client");
    assert_eq!(actions(&changed), [(Kind::Port, "mem", Action::Remake)]);
    assert!(changed.refusals.is_empty(), "{changed}");
    let in_place = with_devices("'10.0.0.2/24'", "'10.0.0.2/24'\nmtu = 1400");
    assert_eq!(actions(&in_place), [(Kind::Port, "mem", Action::Change)]);
    for (from, to, words) in [
        (
            "role=server",
            "role=client",
            "\"mem\" cannot be made anew on the device net_memif0 while",
        ),
        (
            "'mem'\ndriver",
            "'m'\ndriver",
            "port \"m\" cannot be opened on net_memif0 while \"mem\" has it",
        ),
        ("192.0.2.1'", "192.0.2.9'", "addresses that it was opened with; remove it by one apply"),
    ] {
        let difference = with_devices(from, to);
        assert_eq!(difference.refusals.len(), 1, "{difference}");
        assert!(difference.refusals[0].contains(words), "{difference}");
    }
}

#[test]
fn what_two_may_not_have_at_once_is_refused_by_name() {
    let refused = |from, to, words: &str| {
        let difference = with(from, to);
        assert_eq!(difference.refusals.len(), 1, "{difference}");
        assert!(difference.refusals[0].contains(words), "{difference}");
    };
    refused(
        "'ob-web'",
        "'ob-web'\nqueues = 2",
        "port \"web\" cannot be made anew on the interface ob-web while it works",
    );
    refused("'web'", "'www'", "port \"www\" cannot be opened on ob-web while \"web\" has it");
    refused(
        "'/data.img'",
        "'/data.img'\nread_only = true",
        "\"data\", as it is now, has it locked",
    );
    refused("'data'", "'base'", "volume \"base\" cannot be opened on /data.img while \"data\"");
    let far = |name: &str, nsid: u32| {
        plan(&format!(
            "[[volume]]\nname = '{name}'\nkind = 'remote'\naddress = '192.0.2.2:4420'\n\
             nqn = 'nqn.2025-01.org.example:far'\nnsid = {nsid}\n"
        ))
    };
    let refusals = Difference::between(&far("far", 1), &far("far", 2)).refusals;
    assert!(refusals[0].contains("\"far\" cannot be connected to nqn"), "{refusals:?}");
    assert!(Difference::between(&far("far", 1), &far("near", 2)).refusals.is_empty());
    let refusals = Difference::between(&far("far", 1), &far("near", 1)).refusals;
    let words = "\"near\" cannot be connected to nqn.2025-01.org.example:far, namespace 1, while";
    assert!(refusals[0].contains(words) && refusals[0].contains("\"far\""), "{refusals:?}");
    assert!(with("'ob-web'", "'ob-www'").refusals.is_empty());
    assert!(with("/data.img", "/base.img").refusals.is_empty());
}

/// A plan of some of everything, chosen by bits.
fn some(bits: u64) -> Plan {
    let is = |bit: u32| bits >> bit & 1 == 1;
    let mut text = String::from("name = 'a'\n");
    for vpc in 0..3u32 {
        if is(vpc) {
            let route = if is(3 + vpc) && is(8) {
                format!(
                    "[[vpc.route]]\nto = '10.1.{vpc}.0/24'\nvia = '192.0.2.{}'\n",
                    2 + (bits >> 40 & 3)
                )
            } else {
                String::new()
            };
            text += &format!(
                "[[vpc]]\nname = 'vpc{vpc}'\nvni = {}\ngateway = '10.0.0.254'\n{route}",
                1 + vpc + (bits >> 50 & 1) as u32
            );
        }
    }
    if is(8) {
        text += "[[uplink]]\nname = 'up'\ninterface = 'eth1'\nvtep = '192.0.2.1'\n";
    }
    for port in 0..4u32 {
        let vpc = (bits >> (32 + 2 * port) & 3) as u32;
        if is(9 + port) && vpc < 3 && is(vpc) {
            text += &format!(
                "[[port]]\nname = 'p{port}'\ninterface = 'i{port}{}'\nvpc = 'vpc{vpc}'\n\
                 address = '10.0.0.{}/24'\n",
                u8::from(is(20 + port)),
                1 + port
            );
        }
    }
    for volume in 0..3u32 {
        if is(24 + volume) {
            text += &format!(
                "[[volume]]\nname = 'v{volume}'\nkind = 'mem'\nsize = '{}KiB'\n\
                 [[disk]]\nname = 'd{volume}'\nvolume = 'v{volume}'\nsocket = '/d{volume}'\n",
                4 + u8::from(is(28 + volume))
            );
        }
    }
    if is(24) && is(31) {
        text += "[[export]]\nvolume = 'v0'\nnqn = 'nqn.2025-01.org.example:a'\n\
                 listen = '127.0.0.1:4420'\n";
    }
    parse("a.toml", text.as_bytes()).unwrap_or_else(|it| panic!("{it}\n{text}"))
}

/// What a daemon with `old` has after the difference to `new`: names and, for ports, numbers.
fn check(old: &Plan, new: &Plan) -> Plan {
    let difference = Difference::between(old, new);
    let mut names: BTreeSet<_> = super::settings::of(old).into_keys().collect();
    for change in &difference.changes {
        let key = (change.kind, change.name.clone());
        match change.action {
            Action::Add => assert!(names.insert(key), "added twice"),
            Action::Remove => assert!(names.remove(&key), "removed and not there"),
            Action::Change | Action::Remake => assert!(names.contains(&key)),
        }
    }
    assert_eq!(names, super::settings::of(new).into_keys().collect());
    let placed = new.clone().placed(old, &difference, &[]);
    assert!(Difference::between(&placed, new).is_empty(), "numbers are no difference");
    let numbers: BTreeSet<_> = placed.ports.iter().map(|port| port.id).collect();
    assert_eq!(numbers.len(), placed.ports.len(), "two ports have one number");
    for port in &placed.ports {
        assert!(usize::from(port.id.0) < PORT_NUMBERS_MAX);
        let before = old.ports.iter().find(|old| old.name == port.name);
        let stays = before.filter(|_| !difference.ends(port.kind(), &port.name));
        match stays {
            Some(before) => assert_eq!(before.id, port.id, "it stays and has another number"),
            None => assert!(old.ports.iter().all(|old| old.id != port.id), "the number is in use"),
        }
    }
    placed
}

#[test]
fn there_and_back_is_where_it_was() {
    bolero::check!().with_type::<(u64, u64)>().for_each(|(a, b)| {
        let (a, b) = (some(*a), some(*b));
        let at_b = check(&a, &b);
        let back = check(&at_b, &a);
        assert!(Difference::between(&back, &a).is_empty());
        let there: Vec<_> = Difference::between(&a, &b).changes;
        let back: Vec<_> = Difference::between(&b, &a).changes;
        let objects = |list: &[super::Change]| {
            list.iter().map(|it| (it.kind, it.name.clone())).collect::<Vec<_>>()
        };
        assert_eq!(objects(&there), objects(&back));
        // From nothing, everything comes.
        let all = Difference::between(&b.bare(), &b);
        assert!(all.changes.iter().all(|it| it.action == Action::Add) && all.refusals.is_empty());
    });
}

#[test]
fn numbers_do_for_two_whole_plans() {
    let ports = |prefix: &str| {
        let mut text = String::from("[[vpc]]\nname = 'blue'\nvni = 1\ngateway = '10.0.255.254'\n");
        for port in 0..256 {
            let (high, low) = (port / 128, port % 128 + 1);
            text += &format!(
                "[[port]]\nname = '{prefix}{port}'\ninterface = '{prefix}{port}'\nvpc = 'blue'\n\
                 address = '10.0.{high}.{low}/16'\n"
            );
        }
        plan(&format!("[runtime]\nregion_mib = 1024\n{text}"))
    };
    let (a, b) = (ports("a"), ports("b"));
    let at_b = check(&a, &b);
    check(&at_b, &a);
}
