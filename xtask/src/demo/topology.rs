//! Two hosts joined by an underlay, and on each a tenant of either VPC. The tenants' addresses
//! are the same in both VPCs: 10.0.0.1 on host A, 10.0.0.2 on host B.
//!
//! Everything is a network namespace; dropping the topology removes it. The same shape carries
//! both paths that the demo compares: Outboard, and bridge + VXLAN of the kernel.

use crate::error::Error;
use crate::netns::{Namespace, veth};

/// MTU between the hosts.
pub const UNDERLAY_MTU: u32 = 9000;
/// MTU of tenants: Ethernet, IPv4, UDP and VXLAN headers take 50 bytes.
pub const TENANT_MTU: u32 = UNDERLAY_MTU - 50;
/// The interface between the hosts, on either.
pub const UNDERLAY: &str = "under0";
/// Tunnel addresses of host A and B.
pub const VTEPS: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
/// Tenants' addresses on host A and B, in both VPCs.
pub const ADDRESSES: [&str; 2] = ["10.0.0.1", "10.0.0.2"];
/// Hosts' labels.
pub const HOSTS: [&str; 2] = ["a", "b"];

/// A private network.
#[derive(Debug)]
pub struct Vpc {
    /// Its name.
    pub name: &'static str,
    /// Its VXLAN network identifier.
    pub vni: u32,
}

/// The two private networks.
pub const VPCS: [Vpc; 2] = [Vpc { name: "red", vni: 100 }, Vpc { name: "blue", vni: 200 }];

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
            hosts.push(Namespace::new(&format!("{label}-{host}"))?);
            let tenant =
                |vpc: &Vpc| Namespace::new(&format!("{label}-{host}-{name}", name = vpc.name));
            tenants.push([tenant(&VPCS[0])?, tenant(&VPCS[1])?]);
        }
        veth((&hosts[0], UNDERLAY), (&hosts[1], UNDERLAY), UNDERLAY_MTU)?;
        for (host, vtep) in hosts.iter().zip(VTEPS) {
            host.ip(&format!("address add {vtep}/24 dev {UNDERLAY}"))?;
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
        let Vpc { name, vni } = &VPCS[vpc];
        let (local, remote) = (VTEPS[host], VTEPS[1 - host]);
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
        tenant.ip(&format!("address add {}/24 dev eth0", ADDRESSES[host]))?;
        Ok(())
    }
}
