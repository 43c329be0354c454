//! The daemon and Linux: on the far host there is no Outboard but the kernel's own VXLAN device,
//! which checks every outer header that comes and makes those that go.

use crate::netns::errors::{self, Told};
use crate::netns::{Namespace, run};
use crate::process::{Daemon, PATIENCE, until};
use crate::traffic::exchange;
use crate::world::{Family, GATEWAY, GATEWAY6, Host, Scratch, Tenant};
use rustix::process::Signal;
use std::net::{IpAddr, UdpSocket};

/// The MAC address of the far tenant, which is the device itself.
const FAR_MAC: &str = "02:00:00:00:00:07";
/// MTU of the network between the hosts, and of the tenants.
const UNDERLAY_MTU: u32 = 9000;
const TENANT_MTU: u32 = 8930;

/// Where nobody listens: traceroute's first port.
const CLOSED_PORT: u16 = 33_434;

/// A far host of the kernel, and what is between.
struct Lab {
    host: Host,
    far: Namespace,
    /// Between the two when the far host is behind a router.
    router: Option<Namespace>,
    inner: Family,
    _scratch: Scratch,
}

impl Lab {
    /// Two hosts on one link. `device` are options of the kernel's VXLAN device.
    fn new(underlay: Family, inner: Family, device: &str) -> Lab {
        let (near, far) = (Namespace::new(), Namespace::new());
        near.join(&far, 1, UNDERLAY_MTU);
        give(&near, "veth", underlay.host(1), underlay.prefix_len());
        give(&far, "veth", underlay.host(2), underlay.prefix_len());
        let ends = [underlay.host(1), underlay.host(2)];
        Lab::between(near, far, ends, inner, TENANT_MTU, device)
    }

    /// The far host behind a router, whose other link carries less.
    fn routed(underlay: Family, inner: Family, mtu: u32) -> Lab {
        let (near, router, far) = (Namespace::new(), Namespace::new(), Namespace::new());
        near.join(&router, 1, UNDERLAY_MTU);
        let peer = format!("peer name veth netns {} mtu {mtu}", far.name());
        router.ip(&format!("link add narrow mtu {mtu} type veth {peer}"));
        router.ip("link set narrow up");
        far.ip("link set veth up");
        let (there, gateways, forwarding) = match underlay {
            Family::V4 => (
                IpAddr::from([198, 51, 100, 2]),
                [underlay.host(254), IpAddr::from([198, 51, 100, 254])],
                "ipv4/ip_forward",
            ),
            Family::V6 => (
                "2001:db8:1::2".parse().unwrap(),
                [underlay.host(254), "2001:db8:1::fe".parse().unwrap()],
                "ipv6/conf/all/forwarding",
            ),
        };
        let len = underlay.prefix_len();
        give(&near, "veth", underlay.host(1), len);
        give(&router, "veth", gateways[0], len);
        give(&router, "narrow", gateways[1], len);
        give(&far, "veth", there, len);
        router.within(|| std::fs::write(format!("/proc/sys/net/{forwarding}"), "1").unwrap());
        near.ip(&format!("route add default via {}", gateways[0]));
        far.ip(&format!("route add default via {}", gateways[1]));
        // What the far host sends fits, so that only the way there is narrow.
        let ends = [underlay.host(1), there];
        let mut lab = Lab::between(near, far, ends, inner, 1280, "udpcsum");
        lab.router = Some(router);
        lab
    }

    fn between(
        near: Namespace,
        far: Namespace,
        [here, there]: [IpAddr; 2],
        inner: Family,
        mtu: u32,
        device: &str,
    ) -> Lab {
        far.ip(&format!(
            "link add vx mtu {mtu} address {FAR_MAC} type vxlan id 100 local {there} \
             remote {here} dev veth dstport 4789 tos inherit {device}"
        ));
        far.ip("link set vx up");
        give(&far, "vx", inner.tenant(2), inner.prefix_len());
        let scratch = Scratch::new();
        let (name, place) = (near.name().to_string(), |file: &str| scratch.0.join(file));
        let (config, log, socket) = (place("host.toml"), place("host.log"), place("host.sock"));
        let text = configuration(&name, &socket.display().to_string(), [here, there]);
        std::fs::write(&config, text).unwrap();
        let address = inner.tenant(1);
        let tenants = vec![Tenant { netns: Namespace::new(), address, port: "blue" }];
        let host = Host { netns: near, name, config, log, socket, tenants, vtep: here };
        host.attach(host.tenant("blue"));
        Lab { host, far, router: None, inner, _scratch: scratch }
    }

    fn tenant(&self) -> &Tenant {
        self.host.tenant("blue")
    }

    fn there(&self) -> IpAddr {
        self.inner.tenant(2)
    }

    /// Starts the daemon; both tenants reach each other then.
    #[track_caller]
    fn run(&self) -> Daemon {
        let daemon = self.host.run();
        self.tenant().reaches(self.there());
        daemon
    }

    /// Bytes of echo data that fill an IP packet of the tenant.
    fn echo_bytes(&self, ip_bytes: u32) -> u32 {
        ip_bytes - if self.inner == Family::V4 { 28 } else { 48 }
    }

    /// A counter of UDP at the far host's kernel, by its name in /proc/net.
    fn far_counter(&self, name: &str) -> u64 {
        let read = |path: &str| self.far.within(|| std::fs::read_to_string(path).unwrap());
        let v6 = read("/proc/net/snmp6");
        let v6 = v6.lines().find_map(|line| line.strip_prefix(&format!("Udp6{name}")));
        let v6: u64 = v6.map_or(0, |value| value.trim().parse().unwrap());
        let v4 = read("/proc/net/snmp");
        let mut lines = v4.lines().filter_map(|line| line.strip_prefix("Udp: "));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let at = names.split(' ').position(|found| found == name).unwrap();
        let v4: u64 = values.split(' ').nth(at).unwrap().parse().unwrap();
        v4 + v6
    }
}

/// Gives an interface an address that is there at once.
fn give(netns: &Namespace, interface: &str, address: IpAddr, len: u8) {
    netns.allow_ipv6(interface);
    netns.ip(&format!("address add {address}/{len} dev {interface}"));
}

fn configuration(name: &str, socket: &str, [here, there]: [IpAddr; 2]) -> String {
    let key = if here.is_ipv6() { "vtep6" } else { "vtep" };
    let mut text = format!(
        "name = '{name}'\n[runtime]\nregion_mib = 16\n[control]\nsocket = '{socket}'\n\
         [[worker]]\ncore = 0\n\
         [[uplink]]\nname = 'up'\ninterface = 'veth'\n{key} = '{here}'\n\
         [[port]]\nname = 'blue'\ninterface = 'blue'\nvpc = 'blue'\nmtu = {TENANT_MTU}\n\
         address = '10.0.0.1/24'\naddress6 = 'fd00::1/64'\n\
         [[vpc]]\nname = 'blue'\nvni = 100\ngateway = '{GATEWAY}'\ngateway6 = '{GATEWAY6}'\n"
    );
    for to in ["10.0.0.2/32", "fd00::2/128"] {
        text += &format!("[[vpc.route]]\nto = '{to}'\nvia = '{there}'\nmac = '{FAR_MAC}'\n");
    }
    text
}

/// Echoes, datagrams and streams in both directions, up to the largest that fits.
fn talks(underlay: Family, inner: Family, device: &str) {
    let lab = Lab::new(underlay, inner, device);
    let daemon = lab.run();
    let (tenant, there) = (lab.tenant(), lab.there());
    let largest = format!("-c 3 -M do -s {}", lab.echo_bytes(TENANT_MTU));
    assert!(tenant.pings(there, &largest));
    assert!(crate::world::pings(&lab.far, tenant.address, &largest));
    // The hop limit counts one hop: the gateway's.
    assert!(tenant.pings(there, "-c 1 -t 2"));
    datagrams(&lab.far, there, &tenant.netns, tenant.address);
    datagrams(&tenant.netns, tenant.address, &lab.far, there);
    exchange(&lab.far, there, &tenant.netns);
    exchange(&tenant.netns, tenant.address, &lab.far);
    assert_eq!(lab.far_counter("InCsumErrors"), 0);
    daemon.stop(Signal::TERM);
}

/// Datagrams of all sizes to a socket that sends them back.
fn datagrams(server: &Namespace, at: IpAddr, client: &Namespace, from: IpAddr) {
    let open = |address: IpAddr| {
        let socket = UdpSocket::bind((address, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let (server, client) = (server.within(|| open(at)), client.within(|| open(from)));
    let to = server.local_addr().unwrap();
    let largest = TENANT_MTU as usize - if at.is_ipv4() { 28 } else { 48 };
    // The last one comes in fragments.
    for bytes in [0, 1, 18, 1400, 3750, largest, 20_000] {
        let data: Vec<u8> = (0..bytes).map(|n| (n * 5 + 1) as u8).collect();
        let mut buffer = vec![0; 65_536];
        client.send_to(&data, to).unwrap();
        let (got, sender) = server.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..got], sender), (&data[..], client.local_addr().unwrap()));
        server.send_to(&data, sender).unwrap();
        let got = client.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..got], data, "{bytes} bytes on their way back");
    }
}

/// A router's link is narrower than the uplink, and becomes narrower still.
fn a_narrow_path_is_learnt(underlay: Family, inner: Family) {
    let lab = Lab::routed(underlay, inner, 1500);
    let daemon = lab.run();
    let (tenant, there) = (lab.tenant(), lab.there());
    let router = lab.router.as_ref().unwrap();
    for mtu in [1500, 1400] {
        router.ip(&format!("link set narrow mtu {mtu}"));
        lab.far.ip(&format!("link set veth mtu {mtu}"));
        let too_big = format!("-c 1 -M do -s {}", mtu - 20);
        until("the path is known to be narrow", || {
            assert!(!tenant.pings(there, &too_big));
            daemon.log().contains(&format!(", MTU {mtu}\n")).then_some(())
        });
        // The gateway tells the tenant about a packet that may not be cut; its kernel then cuts
        // others itself, and sends smaller segments of streams.
        until("larger echoes pass in pieces", || {
            assert!(!tenant.pings(there, &too_big));
            tenant.pings(there, "-c 1 -M want -s 4000").then_some(())
        });
        let fits = format!("-c 3 -M do -s {}", lab.echo_bytes(mtu - 70));
        assert!(tenant.pings(there, &fits));
        exchange(&lab.far, there, &tenant.netns);
        exchange(&tenant.netns, tenant.address, &lab.far);
    }
    // New tables do not make the path any wider.
    let wide = || daemon.log().matches(&format!(", MTU {UNDERLAY_MTU}\n")).count();
    let before = wide();
    let text = std::fs::read_to_string(&lab.host.config).unwrap();
    let more = format!("{text}[[vpc]]\nname = 'red'\nvni = 200\ngateway = '{GATEWAY}'\n");
    std::fs::write(&lab.host.config, more).unwrap();
    let applied = lab.host.outboard(&["apply", "--config", lab.host.config.to_str().unwrap()]);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    assert_eq!(wide(), before, "the narrow path was forgotten");
    assert!(tenant.pings(there, &format!("-c 3 -M do -s {}", lab.echo_bytes(1400 - 70))));
    daemon.stop(Signal::TERM);
}

/// The gateway answers for a packet whose hops are used up.
fn the_gateway_is_a_hop(underlay: Family, inner: Family) {
    let lab = Lab::new(underlay, inner, "udpcsum");
    let daemon = lab.run();
    let gateway = if inner == Family::V4 { GATEWAY.to_string() } else { GATEWAY6.to_string() };
    let (tenant, there) = (&lab.tenant().netns, lab.there().to_string());
    let said = tenant.within(|| {
        let ping = ["-c", "1", "-t", "1", "-W", "5", &there];
        let output = std::process::Command::new("ping").args(ping).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    assert!(said.contains(&format!("From {gateway}")) && said.contains("exceeded"), "{said}");
    run("ip", &["netns", "exec", tenant.name(), "ping", "-c", "1", "-t", "2", &there]);
    daemon.stop(Signal::TERM);
}

/// A route is traced to its end, as traceroute does it: first the gateway, then the far tenant.
fn a_route_is_traced_to_its_end(underlay: Family, inner: Family) {
    let lab = Lab::new(underlay, inner, "udpcsum");
    let daemon = lab.run();
    let (tenant, there) = (lab.tenant(), lab.there());
    // Time exceeded and port unreachable (RFC 792, RFC 4443 section 3).
    let (gateway, exceeded, unreachable) = match inner {
        Family::V4 => (IpAddr::from(GATEWAY), (11, 0), (3, 3)),
        Family::V6 => (GATEWAY6.parse().unwrap(), (3, 0), (1, 4)),
    };
    for (hops, by, what) in [(1, gateway, exceeded), (2, there, unreachable)] {
        let open = || UdpSocket::bind((tenant.address, 0)).unwrap();
        let socket = tenant.netns.within(open);
        errors::watch(&socket, hops);
        socket.send_to(b"how far is it?", (there, CLOSED_PORT)).unwrap();
        let told = until(&format!("hop {hops} tells"), || errors::next(&socket));
        assert_eq!(told, Told { by, what });
    }
    daemon.stop(Signal::TERM);
}

/// The far host does not answer: the tenant is told, once its packet has waited in vain.
fn a_silent_far_host_is_told_of(underlay: Family, inner: Family) {
    let lab = Lab::new(underlay, inner, "udpcsum");
    lab.far.ip("address flush dev veth");
    let daemon = lab.host.run();
    let (tenant, there) = (&lab.tenant().netns, lab.there().to_string());
    let gateway = if inner == Family::V4 { GATEWAY.to_string() } else { GATEWAY6.to_string() };
    until("the gateway says that nobody is there", || {
        let said = tenant.within(|| {
            let ping = ["-c", "1", "-W", "6", &there];
            let output = std::process::Command::new("ping").args(ping).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        });
        (said.contains(&format!("From {gateway}")) && said.contains("nreachable")).then_some(())
    });
    give(&lab.far, "veth", underlay.host(2), underlay.prefix_len());
    lab.tenant().reaches(lab.there());
    daemon.stop(Signal::TERM);
}

/// Makes tests of every function for an underlay and what is inside.
macro_rules! matrix {
    ($($name:ident: $underlay:ident, $inner:ident;)*) => {
        $(mod $name {
            use crate::world::Family;

            #[test]
            fn talks() {
                super::talks(Family::$underlay, Family::$inner, "udpcsum");
            }

            #[test]
            fn a_narrow_path_is_learnt() {
                super::a_narrow_path_is_learnt(Family::$underlay, Family::$inner);
            }

            #[test]
            fn the_gateway_is_a_hop() {
                super::the_gateway_is_a_hop(Family::$underlay, Family::$inner);
            }

            #[test]
            fn a_route_is_traced_to_its_end() {
                super::a_route_is_traced_to_its_end(Family::$underlay, Family::$inner);
            }

            #[test]
            fn a_silent_far_host_is_told_of() {
                super::a_silent_far_host_is_told_of(Family::$underlay, Family::$inner);
            }
        })*
    };
}

matrix! {
    v4_over_v4: V4, V4;
    v6_over_v4: V4, V6;
    v4_over_v6: V6, V4;
    v6_over_v6: V6, V6;
}

#[test]
fn outer_checksums_may_be_missing_over_ipv4() {
    talks(Family::V4, Family::V4, "noudpcsum");
}
