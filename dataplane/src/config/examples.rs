//! The two example files: each is right, and together they are two ends of the same networks.

use super::plan::{Backing, Role};
use super::{Plan, parse};
use std::net::IpAddr;

const A: &str = include_str!("../../examples/config/host-a.toml");
const B: &str = include_str!("../../examples/config/host-b.toml");

fn plan(name: &str, text: &str) -> Plan {
    parse(name, text.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn the_examples_are_two_ends_of_the_same_networks() {
    let (a, b) = (plan("host-a.toml", A), plan("host-b.toml", B));
    for (near, far) in [(&a, &b), (&b, &a)] {
        let Role::Uplink { vtep, vtep6, .. } = far.ports[0].role else { panic!("an uplink") };
        let far_ends = [vtep.map(IpAddr::V4), vtep6.map(IpAddr::V6)];
        for (index, vpc) in near.vpcs.iter().enumerate() {
            let other = &far.vpcs[index];
            assert_eq!((&vpc.name, vpc.vni), (&other.name, other.vni));
            assert_eq!((vpc.gateway, vpc.gateway6), (other.gateway, other.gateway6));
            let Role::Tenant(tenant) = far.ports[index + 1].role else { panic!("a tenant") };
            let addresses = [
                format!("{}/32", tenant.address.unwrap().address),
                format!("{}/128", tenant.address6.unwrap().address),
            ];
            let routes: Vec<_> = vpc.routes.iter().map(|route| route.to.to_string()).collect();
            assert_eq!(routes, addresses);
            assert!(vpc.routes.iter().all(|route| far_ends.contains(&Some(route.via))));
        }
    }
    let Backing::Remote { address, nqn, .. } = &a.volumes[2].backing else { panic!("remote") };
    assert_eq!((address, nqn), (&b.exports[0].listen, &b.exports[0].nqn));
}
