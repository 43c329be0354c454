//! Objects as people write them: keys and values as text, with names instead of indices. What two
//! plans differ in is what differs here, so every field of a plan must appear: structures are
//! taken apart without `..`, and a new field does not compile until it is shown.

use super::Kind;
use crate::config::plan::{
    Backing, Disk, Dscp, Export, Plan, Port, Role, Route, Runtime, SocketAccess, Tenant, Volume,
    Vpc, Worker,
};
use std::collections::BTreeMap;

/// One object's keys and values.
pub(super) type Settings = BTreeMap<String, String>;

/// Every object of a plan.
pub(super) fn of(plan: &Plan) -> BTreeMap<(Kind, String), Settings> {
    let Plan { vpcs, ports, volumes, exports, disks, .. } = plan;
    let mut all = BTreeMap::new();
    for it in vpcs {
        all.insert((Kind::Vpc, it.name.clone()), vpc(it));
    }
    for it in ports {
        all.insert((it.kind(), it.name.clone()), port(plan, it));
    }
    for it in volumes {
        all.insert((Kind::Volume, it.name.clone()), volume(it));
    }
    for it in exports {
        all.insert((Kind::Export, it.nqn.clone()), export(plan, it));
    }
    for it in disks {
        all.insert((Kind::Disk, it.name.clone()), disk(plan, it));
    }
    all
}

/// Whether only the switch's tables hold a setting.
pub(super) fn is_in_tables(kind: Kind, key: &str) -> bool {
    match kind {
        Kind::Vpc => true,
        Kind::Port | Kind::Uplink => !["interface", "device", "workers"].contains(&key),
        Kind::Volume | Kind::Export | Kind::Disk => false,
    }
}

/// What is fixed from the start: what it is, and its value.
pub(super) fn fixed(plan: &Plan) -> Vec<(&'static str, String)> {
    let Plan { name, runtime, control_socket, metrics, workers, eal, .. } = plan;
    let Runtime { mode, spin_us, region_mib, flows, ledger } = runtime;
    let cores: Vec<_> = workers.iter().map(|Worker { core }| core.to_string()).collect();
    vec![
        ("`name`", format!("\"{name}\"")),
        ("`mode` of [runtime]", format!("{mode:?}").to_lowercase()),
        ("`spin_us` of [runtime]", spin_us.to_string()),
        ("`region_mib` of [runtime]", region_mib.to_string()),
        ("`flows` of [runtime]", flows.to_string()),
        ("`ledger` of [runtime]", ledger.to_string()),
        ("`socket` of [control]", control_socket.display().to_string()),
        ("`listen` of [metrics]", metrics.map_or("not there".into(), |it| it.to_string())),
        ("the list of [[worker]]", format!("cores {}", cores.join(", "))),
        ("`eal` of [dpdk]", format!("{eal:?}")),
    ]
}

fn settings<const N: usize>(list: [(&str, String); N]) -> Settings {
    list.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn vpc(vpc: &Vpc) -> Settings {
    let Vpc { name: _, vni, gateway, gateway6, gateway_mac, dscp, routes } = vpc;
    let dscp = match dscp {
        Dscp::Copy => "copy".into(),
        Dscp::Fixed(codepoint) => codepoint.to_string(),
    };
    let mut all = settings([
        ("vni", vni.to_string()),
        ("gateway_mac", gateway_mac.to_string()),
        ("dscp", dscp),
    ]);
    all.extend(gateway.map(|gateway| ("gateway".into(), gateway.to_string())));
    all.extend(gateway6.map(|gateway| ("gateway6".into(), gateway.to_string())));
    for Route { to, via, mac } in routes {
        let mac = if mac == gateway_mac { String::new() } else { format!(" mac {mac}") };
        all.insert(format!("route {to}"), format!("via {via}{mac}"));
    }
    all
}

fn port(plan: &Plan, port: &Port) -> Settings {
    // The number is given by the daemon, not by the file.
    let Port { id: _, name: _, interface, dpdk, queues, role } = port;
    let workers: Vec<_> = queues.iter().map(u16::to_string).collect();
    let mut all = settings([
        ("interface", interface.clone()),
        ("workers", format!("[{}]", workers.join(", "))),
    ]);
    all.extend(dpdk.as_ref().map(|device| ("device".into(), device.clone())));
    match role {
        Role::Uplink { vtep, vtep6, zero_checksum6 } => {
            all.extend(vtep.map(|vtep| ("vtep".into(), vtep.to_string())));
            all.extend(vtep6.map(|vtep| ("vtep6".into(), vtep.to_string())));
            all.insert("zero_checksum6".into(), zero_checksum6.to_string());
        }
        Role::Tenant(Tenant { vpc, address, address6, mac, mtu }) => {
            all.extend(settings([
                ("vpc", plan.vpcs[usize::from(*vpc)].name.clone()),
                ("mac", mac.to_string()),
                ("mtu", mtu.to_string()),
            ]));
            all.extend(address.map(|own| ("address".into(), own.to_string())));
            all.extend(address6.map(|own| ("address6".into(), own.to_string())));
        }
    }
    all
}

fn volume(volume: &Volume) -> Settings {
    let Volume { name: _, worker, block_bytes, read_only, backing } = volume;
    let mut all = settings([
        ("worker", worker.to_string()),
        ("block_bytes", block_bytes.to_string()),
        ("read_only", read_only.to_string()),
    ]);
    all.extend(match backing {
        Backing::Mem { bytes } => settings([("kind", "mem".into()), ("size", size(*bytes))]),
        Backing::Null { bytes } => settings([("kind", "null".into()), ("size", size(*bytes))]),
        Backing::File { path, create_bytes } => {
            // What a file is made with when it is missing says nothing about one that is open.
            let _ = create_bytes;
            settings([("kind", "file".into()), ("path", path.display().to_string())])
        }
        Backing::Remote { address, nqn, nsid, bytes, digests, loss_timeout, quiesce } => {
            settings([
                ("kind", "remote".into()),
                ("address", address.to_string()),
                ("nqn", nqn.clone()),
                ("nsid", nsid.to_string()),
                ("size", bytes.map_or("the target's".into(), size)),
                ("loss_timeout_s", loss_timeout.as_secs().to_string()),
                ("quiesce_ms", quiesce.as_millis().to_string()),
                ("digests", digests.name().into()),
            ])
        }
    });
    all
}

/// As one would write it: in the largest unit that divides it.
fn size(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = units.into_iter().find(|(_, shift)| bytes.trailing_zeros() >= *shift && bytes > 0);
    let (name, shift) = unit.unwrap_or(("B", 0));
    format!("{}{name}", bytes >> shift)
}

fn export(plan: &Plan, export: &Export) -> Settings {
    let Export { volume, nqn: _, listen, require_digests } = export;
    settings([
        ("volume", plan.volumes[usize::from(*volume)].name.clone()),
        ("listen", listen.to_string()),
        ("require_digests", require_digests.name().into()),
    ])
}

fn disk(plan: &Plan, disk: &Disk) -> Settings {
    let Disk { name: _, volume, socket, access, queues } = disk;
    let SocketAccess { owner, group, mode } = access;
    let mut all = settings([
        ("volume", plan.volumes[usize::from(*volume)].name.clone()),
        ("socket", socket.display().to_string()),
        ("queues", queues.to_string()),
    ]);
    all.extend(owner.clone().map(|owner| ("owner".into(), owner)));
    all.extend(group.clone().map(|group| ("group".into(), group)));
    all.extend(mode.map(|mode| ("mode".into(), format!("{mode:04o}"))));
    all
}
