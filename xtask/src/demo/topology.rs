//! Two hosts joined by an underlay, and on each a tenant of either VPC, all with IPv4 and IPv6.
//! The tenants' addresses are the same in both VPCs: 10.0.0.1 and fd00::1 on host A, 10.0.0.2 and
//! fd00::2 on host B. The kernel's tunnels are IPv4 for red and IPv6 for blue.
//!
//! Everything is a network namespace; dropping the topology removes it. The same shape carries
//! both paths that the demo compares: Outboard, and bridge + VXLAN of the kernel.

use crate::error::Error;
use crate::netns::{Namespace, veth};

/// MTU between the hosts.
pub const UNDERLAY_MTU: u32 = 9000;
/// MTU of tenants: Ethernet, IPv6, UDP and VXLAN headers take 70 bytes.
pub const TENANT_MTU: u32 = UNDERLAY_MTU - 70;
/// The interface between the hosts, on either.
pub const UNDERLAY: &str = "under0";
/// Tunnel addresses by family, of host A and B.
pub const VTEPS: [[&str; 2]; 2] = [["192.0.2.1", "192.0.2.2"], ["2001:db8::1", "2001:db8::2"]];
/// Tenants' addresses by family, on host A and B, in both VPCs.
pub const ADDRESSES: [[&str; 2]; 2] = [["10.0.0.1", "10.0.0.2"], ["fd00::1", "fd00::2"]];
/// The tenant that comes to red on host A while the others have traffic, by family.
pub const LATE: [&str; 2] = ["10.0.0.3", "fd00::3"];
/// The families' index in these lists.
pub const FAMILIES: [usize; 2] = [V4, V6];
/// IPv4.
pub const V4: usize = 0;
/// IPv6.
pub const V6: usize = 1;
/// Hosts' labels.
pub const HOSTS: [&str; 2] = ["a", "b"];

/// A private network.
#[derive(Debug)]
pub struct Vpc {
    /// Its name.
    pub name: &'static str,
    /// Its VXLAN network identifier.
    pub vni: u32,
    /// The family of its tunnels.
    pub tunnels: usize,
}

/// The two private networks.
pub const VPCS: [Vpc; 2] =
    [Vpc { name: "red", vni: 100, tunnels: V4 }, Vpc { name: "blue", vni: 200, tunnels: V6 }];

/// The namespaces. Tenants come first: they are removed before their hosts.
#[derive(Debug)]
pub struct Topology {
    /// `[host][vpc]`
    tenants: Vec<[Namespace; 2]>,
    hosts: Vec<Namespace>,
}

impl Topology {
    /// Makes the namespaces and the underlay; `label` tells several topologies apart.
    pub fn new(label: &str) -> Result<Topology, Error> {
        let mut hosts = Vec::new();
        let mut tenants = Vec::new();
        for host in HOSTS {
            hosts.push(Namespace::dual_stack(&format!("{label}-{host}"))?);
            let tenant = |vpc: &Vpc| {
                Namespace::dual_stack(&format!("{label}-{host}-{name}", name = vpc.name))
            };
            tenants.push([tenant(&VPCS[0])?, tenant(&VPCS[1])?]);
        }
        veth((&hosts[0], UNDERLAY), (&hosts[1], UNDERLAY), UNDERLAY_MTU)?;
        for (index, host) in hosts.iter().enumerate() {
            host.ip(&format!("address add {}/24 dev {UNDERLAY}", VTEPS[V4][index]))?;
            host.ip(&format!("address add {}/64 dev {UNDERLAY} nodad", VTEPS[V6][index]))?;
        }
        Ok(Topology { tenants, hosts })
    }

    /// A host: 0 or 1.
    pub fn host(&self, host: usize) -> &Namespace {
        &self.hosts[host]
    }

    /// A tenant by host and VPC.
    pub fn tenant(&self, host: usize, vpc: usize) -> &Namespace {
        &self.tenants[host][vpc]
    }

    /// Joins the tenants as one would without Outboard: per VPC a bridge and a VXLAN device.
    pub fn join_by_kernel(&self) -> Result<(), Error> {
        for host in 0..HOSTS.len() {
            for vpc in 0..VPCS.len() {
                self.join_tenant_by_kernel(host, vpc)?;
            }
        }
        Ok(())
    }

    fn join_tenant_by_kernel(&self, host: usize, vpc: usize) -> Result<(), Error> {
        let (space, tenant) = (self.host(host), self.tenant(host, vpc));
        let Vpc { name, vni, tunnels } = &VPCS[vpc];
        let (local, remote) = (VTEPS[*tunnels][host], VTEPS[*tunnels][1 - host]);
        space.ip(&format!("link add br-{name} mtu {TENANT_MTU} type bridge"))?;
        space.ip(&format!(
            "link add vx-{name} mtu {TENANT_MTU} type vxlan id {vni} dstport 4789 \
             local {local} remote {remote} dev {UNDERLAY}"
        ))?;
        veth((space, &format!("t-{name}")), (tenant, "eth0"), TENANT_MTU)?;
        for device in ["vx", "t"] {
            space.ip(&format!("link set {device}-{name} master br-{name} up"))?;
        }
        space.ip(&format!("link set br-{name} up"))?;
        tenant.ip(&format!("address add {}/24 dev eth0", ADDRESSES[V4][host]))?;
        tenant.ip(&format!("address add {}/64 dev eth0 nodad", ADDRESSES[V6][host]))?;
        Ok(())
    }
}
