//! What tenants see: echoes, jumbo frames, isolation, streams.

use crate::netns::{Namespace, run};
use crate::process::until;
use crate::world::{Family, GATEWAY, JUMBO_MTU, Options, Tenant, World, pings};
use rustix::process::Signal;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

const MARKER_PORT: u16 = 7777;
/// Bytes of one stream.
const STREAM_BYTES: usize = 24 << 20;

#[test]
fn tenants_reach_each_other_and_their_gateways() {
    reach_each_other(Options::default());
}

#[test]
fn tenants_reach_each_other_and_their_gateways_v6() {
    reach_each_other(Options::v6());
}

fn reach_each_other(options: Options) {
    let (world, a, b) = World::running(options);
    let headers = if options.family == Family::V4 { 28 } else { 48 };
    let jumbo = format!("-c 3 -M do -s {}", JUMBO_MTU - headers);
    let (blue_a, blue_b) = (world.a.tenant("blue"), world.b.tenant("blue"));
    assert!(blue_a.pings(blue_b.address, &jumbo) && blue_b.pings(blue_a.address, &jumbo));
    assert!(blue_a.pings(world.gateway, &jumbo));
    // One byte more does not fit, and the tenant's own kernel says so.
    let too_big = format!("-c 1 -M do -s {}", JUMBO_MTU - headers + 1);
    assert!(!blue_a.pings(blue_b.address, &too_big));
    // Between two tenants of one host, on one worker each.
    let blue3 = world.b.tenant("blue3");
    assert!(blue3.pings(blue_b.address, &jumbo) && blue_b.pings(blue3.address, &jumbo));
    assert!(blue_a.pings(blue3.address, "-c 20") && blue3.pings(blue_a.address, "-c 20"));
    // The two queues of a port, by the two workers.
    let (red_a, red_b) = (world.a.tenant("red"), world.b.tenant("red"));
    assert!(red_a.pings(red_b.address, "-c 20") && red_b.pings(red_a.address, "-c 20"));
    no_bad_drops(&a.stats());
    no_bad_drops(&b.stats());
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}

/// Only what the kernel of a tenant sends unasked, and what waited for the first next hop.
pub fn no_bad_drops(stats: &outboard::control::stats::Stats) {
    const FINE: [&str; 4] = ["multicast", "ether_type", "arp_ignored", "next_hop_unresolved"];
    for port in &stats.ports {
        for drop in &port.drops {
            let known = FINE.contains(&drop.name.as_str());
            // Two hosts do not start at once, and a port's link may come after its greeting.
            let early = ["no_underlay_route", "port_down"].contains(&drop.name.as_str());
            assert!(known || early, "{}: {} {}", port.name, drop.count, drop.name);
        }
    }
}

#[test]
fn private_networks_with_the_same_addresses_are_apart() {
    let (world, a, b) = World::running(Options::default());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for port in ["blue", "red", "green"] {
            let (tenant, stop) = (world.b.tenant(port), &stop);
            scope.spawn(move || {
                tenant.netns.enter();
                let socket = UdpSocket::bind((tenant.address, MARKER_PORT)).unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                let mut question = [0; 64];
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    if let Ok((_, from)) = socket.recv_from(&mut question) {
                        socket.send_to(port.as_bytes(), from).unwrap();
                    }
                }
            });
        }
        let marker = |tenant: &Tenant, to| {
            let ask = || {
                let socket = UdpSocket::bind((tenant.address, 0)).unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                socket.send_to(b"who are you?", (to, MARKER_PORT)).ok()?;
                let mut answer = [0; 64];
                let bytes = socket.recv(&mut answer).ok()?;
                Some(String::from_utf8_lossy(&answer[..bytes]).into_owned())
            };
            tenant.netns.within(ask)
        };
        let far = Ipv4Addr::new(10, 0, 0, 2);
        let check = || {
            for port in ["blue", "red"] {
                for _ in 0..20 {
                    let tenant = world.a.tenant(port);
                    let answer = until("the marker comes", || marker(tenant, far));
                    assert_eq!(answer, port, "a tenant of {port} reads another network");
                }
            }
            assert_eq!(marker(world.a.tenant("green"), far), None);
        };
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    // Not even ARP leads out of a network without routes; an address that is not of the subnet
    // goes to the gateway, which has no way either.
    assert!(a.drops("green", "no_route") > 0, "{:?}", a.port("green"));
    let before = a.drops("green", "no_route");
    // More than the gateway tells the sender of.
    assert!(!world.a.tenant("green").pings(Ipv4Addr::new(203, 0, 113, 1), "-c 60 -i 0.002"));
    assert!(a.drops("green", "no_route") > before);
    assert!(world.a.tenant("green").pings(GATEWAY, "-c 1"));
    // Nothing but what the gateway tells of itself, a few frames at a time; a leak were sixty.
    assert!(b.port("green").tx_packets < 20, "{:?}", b.port("green"));
    // The underlay is not part of any of them.
    assert!(!pings(&world.a.tenant("blue").netns, world.b.vtep, "-c 1"));
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}

/// The bytes that a stream carries from an offset on.
fn content(offset: usize, out: &mut [u8]) {
    for (index, byte) in out.iter_mut().enumerate() {
        let at = (offset + index) as u64;
        *byte = (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    }
}

fn send_stream(mut stream: &TcpStream) {
    let mut chunk = vec![0; 1 << 16];
    for offset in (0..STREAM_BYTES).step_by(chunk.len()) {
        content(offset, &mut chunk);
        stream.write_all(&chunk).unwrap();
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
}

fn check_stream(mut stream: &TcpStream) {
    let (mut chunk, mut wanted) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut offset = 0;
    loop {
        match stream.read(&mut chunk) {
            // A call with a timeout is not begun again after the process was stopped for a moment.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("{offset} bytes, then {error}"),
            Ok(0) => break,
            Ok(bytes) => {
                content(offset, &mut wanted[..bytes]);
                assert!(chunk[..bytes] == wanted[..bytes], "wrong bytes from {offset} on");
                offset += bytes;
            }
        }
    }
    assert_eq!(offset, STREAM_BYTES);
}

/// A stream in each direction at the same time, checked byte by byte.
pub fn exchange(server: &Namespace, address: IpAddr, client: &Namespace) {
    let to = SocketAddr::from((address, 5001));
    let both = |stream: TcpStream| {
        let patience = Some(crate::process::PATIENCE);
        stream.set_read_timeout(patience).unwrap();
        stream.set_write_timeout(patience).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| send_stream(&stream));
            check_stream(&stream);
        });
    };
    let listener = server.within(|| TcpListener::bind(to).unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| both(listener.accept().unwrap().0));
        let connect = || TcpStream::connect_timeout(&to, crate::process::PATIENCE).unwrap();
        both(client.within(connect));
    });
}

#[test]
fn streams_arrive_whole() {
    streams(Options::default());
}

#[test]
fn streams_arrive_whole_v6() {
    streams(Options::v6());
}

#[test]
fn streams_of_one_family_arrive_whole_in_the_other() {
    streams(Options { underlay: Family::V4, ..Options::v6() });
    streams(Options { underlay: Family::V6, ..Options::default() });
}

fn streams(options: Options) {
    let (world, a, b) = World::running(options);
    for port in ["blue", "red"] {
        let (client, server) = (world.a.tenant(port), world.b.tenant(port));
        exchange(&server.netns, server.address, &client.netns);
    }
    let (client, server) = (world.b.tenant("blue3"), world.b.tenant("blue"));
    exchange(&server.netns, server.address, &client.netns);
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}

#[test]
fn the_smallest_region_is_slow_but_right() {
    let (world, a, b) = World::running(Options { region_mib: 4, ..Options::default() });
    let (client, server) = (world.a.tenant("blue"), world.b.tenant("blue"));
    exchange(&server.netns, server.address, &client.netns);
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}

#[test]
fn a_checksum_that_was_left_to_an_offload_is_named() {
    let (world, a, b) = World::running(Options::default());
    let (blue_a, blue_b) = (world.a.tenant("blue"), world.b.tenant("blue"));
    blue_a.netns.within(|| run("ethtool", &["-K", "eth0", "tx", "on"]));
    let socket = blue_a.netns.within(|| UdpSocket::bind((blue_a.address, 0)).unwrap());
    until("the checksum is noticed", || {
        socket.send_to(b"half a packet", (blue_b.address, MARKER_PORT)).unwrap();
        (a.drops("blue", "partial_checksum") > 0).then_some(())
    });
    assert!(a.port("blue").partial_checksums > 0);
    let stats = world.a.outboard(&["stats", "--socket", world.a.socket.to_str().unwrap()]);
    let text = String::from_utf8(stats.stdout).unwrap();
    assert!(text.contains("ethtool -K IF tx off"), "{text}");
    // The same tenant's other packets and the other tenants go on.
    world.all_reach();
    blue_a.netns.within(|| run("ethtool", &["-K", "eth0", "tx", "off"]));
    let dropped = a.drops("blue", "partial_checksum");
    exchange(&blue_b.netns, blue_b.address, &blue_a.netns);
    assert_eq!(a.drops("blue", "partial_checksum"), dropped);
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}
