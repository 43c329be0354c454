//! The hosts' configurations, as a user would write them, in the two states that the demo shows.

use super::daemons::Places;
use super::topology::{
    ADDRESSES, FAMILIES, HOSTS, LATE, TENANT_MTU, UNDERLAY, V4, V6, VPCS, VTEPS, Vpc,
};
use crate::netns::own_name;

/// How the daemons' workers wait: two daemons, a generator and its far end share two cores.
pub const WAIT_MODE: &str = "yield";
/// The name of the port that comes by apply, of its volume and of its disk.
pub const LATE_NAME: &str = "late";
/// The name of host B's file volume on the network between the hosts.
const NQN: &str = "nqn.2025-01.org.outboard:demo.shared";
/// Size of host B's file volume.
const VOLUME: &str = "256MiB";
/// Size of the volume that comes by apply.
const LATE_VOLUME: &str = "32MiB";
/// Bits of a host's own address, by family.
const HOST_BITS: [u8; 2] = [32, 128];
/// Bits of a VPC's subnet, by family.
const SUBNET_BITS: [u8; 2] = [24, 64];

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Two tenants, a disk. Red's IPv4 goes through IPv4 tunnels and its IPv6 through IPv6
    /// tunnels; all of blue through IPv6 tunnels.
    Usual,
    /// Red's tunnels are exchanged; on host A there are a third tenant in it and a second disk.
    /// Both states name both tunnel addresses of the other host for red: a host takes packets of
    /// a VPC from far ends that its routes name and from no others, and the hosts change one
    /// after the other.
    Changed,
}

/// A host's file.
pub fn text(host: usize, state: State, places: &Places) -> String {
    let socket = places.sockets.join(HOSTS[host]);
    let mut text = format!(
        "name = \"{}\"\n\n[runtime]\nmode = \"{WAIT_MODE}\"\n\n[control]\nsocket = \"{}\"\n\n\
         [[worker]]\ncore = {host}\n\n[[uplink]]\nname = \"uplink\"\ninterface = \"{UNDERLAY}\"\n\
         vtep = \"{}\"\nvtep6 = \"{}\"\n",
        own_name(HOSTS[host]),
        socket.display(),
        VTEPS[V4][host],
        VTEPS[V6][host]
    );
    for (index, vpc) in VPCS.iter().enumerate() {
        text += &network(host, vpc, state, index == 0);
        text += &port(vpc.name, vpc.name, [ADDRESSES[V4][host], ADDRESSES[V6][host]]);
    }
    text += &storage(host, places);
    match (host, state) {
        (0, State::Changed) => text + &late(places),
        _ => text,
    }
}

/// A VPC and its routes to the other host. The first one is what an apply changes.
fn network(host: usize, vpc: &Vpc, state: State, changes: bool) -> String {
    let Vpc { name, vni, .. } = vpc;
    let changed = changes && state == State::Changed;
    let mut text = format!(
        "\n[[vpc]]\nname = \"{name}\"\nvni = {vni}\ngateway = \"10.0.0.254\"\n\
         gateway6 = \"fd00::fe\"\n"
    );
    for family in FAMILIES {
        let tunnel = match (changes, changed) {
            (false, _) => vpc.tunnels,
            (true, false) => family,
            (true, true) => 1 - family,
        };
        let via = VTEPS[tunnel][1 - host];
        let late = (changed && host == 1).then_some(LATE[family]);
        for to in [ADDRESSES[family][1 - host]].into_iter().chain(late) {
            let bits = HOST_BITS[family];
            text += &format!("\n[[vpc.route]]\nto = \"{to}/{bits}\"\nvia = \"{via}\"\n");
        }
    }
    text
}

fn port(name: &str, vpc: &str, addresses: [&str; 2]) -> String {
    format!(
        "\n[[port]]\nname = \"{name}\"\ninterface = \"ob-{name}\"\nvpc = \"{vpc}\"\n\
         address = \"{}/{}\"\naddress6 = \"{}/{}\"\nmtu = {TENANT_MTU}\n",
        addresses[V4], SUBNET_BITS[V4], addresses[V6], SUBNET_BITS[V6]
    )
}

/// Host A's remote disk, or host B's file and its export.
fn storage(host: usize, places: &Places) -> String {
    let target = format!("{}:4420", VTEPS[V4][1]);
    match host {
        0 => format!(
            "\n[[volume]]\nname = \"remote\"\nkind = \"remote\"\naddress = \"{target}\"\n\
             nqn = \"{NQN}\"\nnsid = 1\n\n[[disk]]\nname = \"vda\"\nvolume = \"remote\"\n\
             socket = \"{}\"\n",
            places.disk().display()
        ),
        _ => format!(
            "\n[[volume]]\nname = \"shared\"\nkind = \"file\"\npath = \"{}\"\n\
             create = \"{VOLUME}\"\nblock_bytes = 4096\n\n[[export]]\nvolume = \"shared\"\n\
             nqn = \"{NQN}\"\nlisten = \"{target}\"\n",
            places.volume().display()
        ),
    }
}

/// What host A gets by apply: a tenant and a disk in memory.
fn late(places: &Places) -> String {
    format!(
        "{}\n[[volume]]\nname = \"{LATE_NAME}\"\nkind = \"mem\"\nsize = \"{LATE_VOLUME}\"\n\n\
         [[disk]]\nname = \"{LATE_NAME}\"\nvolume = \"{LATE_NAME}\"\nsocket = \"{}\"\n",
        port(LATE_NAME, VPCS[0].name, LATE),
        places.late_disk().display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn parse(host: usize, state: State) -> toml::Table {
        let places = Places {
            outboard: Path::new("outboard"),
            sockets: Path::new("sockets"),
            files: Path::new("files"),
            logs: Path::new("logs"),
        };
        text(host, state, &places).parse().unwrap()
    }

    #[test]
    fn both_networks_have_both_families_inside_and_outside() {
        let (a, b) = (parse(0, State::Usual), parse(1, State::Usual));
        let vteps = [("vtep", 0, 0), ("vtep6", 0, 1), ("vtep6", 1, 0), ("vtep6", 1, 1)];
        for (vtep, vpc, route) in vteps {
            assert_eq!(a["vpc"][vpc]["route"][route]["via"], b["uplink"][0][vtep]);
            assert_eq!(b["vpc"][vpc]["route"][route]["via"], a["uplink"][0][vtep]);
            assert_eq!(a["port"][vpc]["address"].as_str(), Some("10.0.0.1/24"));
            assert_eq!(b["port"][vpc]["address6"].as_str(), Some("fd00::2/64"));
        }
        assert_eq!(a["volume"][0]["address"], b["export"][0]["listen"]);
        assert_eq!(a["volume"][0]["nqn"], b["export"][0]["nqn"]);
    }

    #[test]
    fn a_change_exchanges_reds_tunnels_and_adds_a_tenant_and_a_disk() {
        let (a, b) = (parse(0, State::Changed), parse(1, State::Changed));
        assert_eq!(a["vpc"][0]["route"][0]["via"], b["uplink"][0]["vtep6"]);
        assert_eq!(a["vpc"][0]["route"][1]["via"], b["uplink"][0]["vtep"]);
        assert_eq!(b["vpc"][0]["route"][1]["to"].as_str(), Some("10.0.0.3/32"));
        assert_eq!(b["vpc"][0]["route"][3]["to"].as_str(), Some("fd00::3/128"));
        assert_eq!(a["port"][2]["address6"].as_str(), Some("fd00::3/64"));
        assert_eq!(a["disk"][1]["name"].as_str(), Some(LATE_NAME));
        let usual = parse(0, State::Usual);
        assert_eq!(a["vpc"][1], usual["vpc"][1], "blue stays as it is");
        assert_eq!(usual["port"].as_array().unwrap().len(), 2);
    }
}
