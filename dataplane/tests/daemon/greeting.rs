//! What the gateway says of itself on a tenant's wire when its port appears, unasked: nobody has
//! to wait for what its kernel remembers of another gateway (RFC 5227 section 2.3, RFC 4861
//! section 7.2.6).

use crate::netns::packet::PacketSocket;
use crate::netns::run;
use crate::process::until;
use crate::world::{GATEWAY, GATEWAY6, Options, Tenant, World};
use outboard_wire::arp::Operation;
use outboard_wire::{Arp, Ethernet, Ipv6, Mac, ethernet, ipv6, nd};
use rustix::process::Signal;
use std::net::Ipv6Addr;

/// The gateway of the blue network (VNI 100), as the configuration derives it.
const GATEWAY_MAC: Mac = Mac([0x02, b'o', b'b', 0, 0, 100]);
/// Option "target link-layer address" (RFC 4861 section 4.6.1).
const TARGET_MAC: [u8; 2] = [2, 1];

/// What comes to a tenant, from now on.
struct Ears {
    arp: PacketSocket,
    ipv6: PacketSocket,
}

impl Ears {
    fn open(tenant: &Tenant) -> Ears {
        let open = |ethertype| PacketSocket::open("eth0", ethertype);
        tenant.netns.within(|| Ears { arp: open(ethernet::ARP), ipv6: open(ethernet::IPV6) })
    }

    /// Waits for an announcement of each family.
    #[track_caller]
    fn hear_of_the_gateway(mut self, when: &str) {
        until(&format!("the gateway announces itself by ARP {when}"), || {
            std::iter::from_fn(|| self.arp.receive()).find(|frame| is_announcement(frame))
        });
        until(&format!("the gateway advertises itself {when}"), || {
            std::iter::from_fn(|| self.ipv6.receive()).find(|frame| is_advertisement(frame))
        });
    }
}

fn is_announcement(frame: &[u8]) -> bool {
    let header = Ethernet::parse(frame).unwrap();
    let arp = Arp::parse(&frame[ethernet::BYTES..]).unwrap();
    (header.source, header.destination) == (GATEWAY_MAC, Mac::BROADCAST)
        && (arp.operation, arp.sender_mac) == (Operation::Request, GATEWAY_MAC)
        && (arp.sender, arp.target) == (GATEWAY, GATEWAY)
}

/// An unsolicited neighbour advertisement to all, which overrides what they remember.
fn is_advertisement(frame: &[u8]) -> bool {
    let header = Ethernet::parse(frame).unwrap();
    let packet = &frame[ethernet::BYTES..];
    let ip = Ipv6::parse(packet, packet.len()).unwrap();
    let message = &packet[ipv6::BYTES..];
    if ip.next_header != ipv6::ICMP || message[0] != nd::NEIGHBOUR_ADVERTISEMENT {
        return false;
    }
    let gateway: Ipv6Addr = GATEWAY6.parse().unwrap();
    // Router and override, not solicited (RFC 4861 section 4.4).
    let told = message[4] == 0xa0 && message[8..24] == gateway.octets();
    let option = &message[24..32];
    told && (header.source, header.destination) == (GATEWAY_MAC, nd::multicast_mac(nd::ALL_NODES))
        && (ip.source, ip.destination, ip.hop_limit) == (gateway, nd::ALL_NODES, 255)
        && option[..2] == TARGET_MAC
        && option[2..] == GATEWAY_MAC.0
}

#[test]
fn a_tenant_hears_of_its_gateway_when_its_port_appears() {
    let (world, a, b) = World::running(Options::default());
    let tenant = world.b.tenant("blue3");
    // A container that starts again: its pair of interfaces is made anew.
    run("ip", &["-n", tenant.netns.name(), "link", "del", "eth0"]);
    until("the port is known to be down", || (b.port("blue3").mode == "down").then_some(()));
    // Not before somebody listens.
    b.signal(Signal::STOP);
    world.b.attach(tenant);
    let ears = Ears::open(tenant);
    b.signal(Signal::CONT);
    ears.hear_of_the_gateway("after its interface was made anew");
    let base = std::fs::read_to_string(&world.b.config).unwrap();
    let (less, _) = base.split_once("[[port]]\nname = 'blue3'").unwrap();
    let file = world.scratch.0.join("less.toml");
    std::fs::write(&file, less).unwrap();
    let apply = |file: &std::path::Path| {
        let done = world.b.outboard(&["apply", "--config", file.to_str().unwrap()]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    apply(&file);
    let ears = Ears::open(tenant);
    apply(&world.b.config);
    ears.hear_of_the_gateway("after its port was added");
    a.stop(Signal::TERM);
    b.stop_having_warned(Signal::TERM);
}
