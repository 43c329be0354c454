//! Tenants: they resolve their gateway, send numbered datagrams to each other, and check what they
//! get against a ledger of everything that was ever sent.

use crate::frames::{PAYLOAD_AT, arp_frame, frame, ip_header, repair_ip, udp_is_whole, udp_packet};
use crate::topology::{GATEWAY, GATEWAY_MAC, Place, TENANT_MTU, UPLINK_MTU};
use outboard_sim::Rng;
use outboard_wire::arp::Operation;
use outboard_wire::{Arp, Checksum, Ethernet, Ipv4, Mac, ecn, ethernet, icmp, ipv4};
use std::collections::HashMap;

/// The largest IP packet of a tenant that fits a tunnel: outer IPv4, UDP, VXLAN, Ethernet.
pub const LARGEST: usize = {
    let tunnel = UPLINK_MTU as usize - 50;
    let own = TENANT_MTU as usize;
    if tunnel < own { tunnel } else { own }
};

/// A tenant.
#[derive(Clone, Debug)]
pub struct Tenant {
    pub place: Place,
    /// The gateway's MAC address, once it answered.
    gateway: Option<Mac>,
    pub arp_replies: u64,
    pub echo_replies: u64,
    /// ICMP errors of the gateway.
    pub errors: u64,
}

/// Every datagram that was sent, by number, and what became of all of them.
#[derive(Debug, Default)]
pub struct Ledger {
    sent: HashMap<u64, Sent>,
    pub delivered: u64,
    /// Datagrams whose UDP checksum told that the link had changed them.
    pub caught: u64,
    /// Delivered with the congestion mark of the underlay.
    pub marked: u64,
}

#[derive(Debug)]
struct Sent {
    from: Place,
    to: Place,
    packet: Vec<u8>,
    deliveries: u32,
}

impl Ledger {
    /// How often the datagrams of the numbers from `first` on were delivered.
    pub fn deliveries_since(&self, first: u64) -> impl Iterator<Item = (u64, u32)> {
        let recent = self.sent.iter().filter(move |(id, _)| **id >= first);
        recent.map(|(id, sent)| (*id, sent.deliveries))
    }

    /// The number of the next datagram.
    pub fn next_id(&self) -> u64 {
        self.sent.len() as u64
    }
}

impl Tenant {
    pub fn new(place: Place) -> Tenant {
        Tenant { place, gateway: None, arp_replies: 0, echo_replies: 0, errors: 0 }
    }

    /// Forgets the gateway's address, as an ARP cache does.
    pub fn forget(&mut self) {
        self.gateway = None;
    }

    pub fn knows_gateway(&self) -> bool {
        self.gateway.is_some()
    }

    /// The question for the gateway's address.
    pub fn ask(&self) -> Vec<u8> {
        let sender = (self.place.mac, self.place.address);
        arp_frame(Mac::BROADCAST, Operation::Request, sender, GATEWAY)
    }

    /// A datagram to a tenant of the same VPC, entered into the ledger.
    pub fn datagram(&self, to: &Place, ledger: &mut Ledger, rng: &mut Rng) -> Vec<u8> {
        assert_eq!(self.place.vpc, to.vpc);
        let id = ledger.next_id();
        let most = match rng.below(20) {
            0 => LARGEST,
            1..4 => 1472,
            _ => 200,
        };
        let mut payload = vec![0; rng.between(8, (most - PAYLOAD_AT) as u64) as usize];
        if rng.chance(100_000) {
            payload.resize(most - PAYLOAD_AT, 0);
        }
        rng.fill(&mut payload[8..]);
        payload[..8].copy_from_slice(&id.to_be_bytes());
        let header = Ipv4 {
            tos: rng.next_u64() as u8,
            id: rng.next_u64() as u16,
            ttl: rng.between(2, 255) as u8,
            ..ip_header(self.place.address, to.address)
        };
        let ports = (1000 + rng.below(2) as u16, 2000);
        let packet = udp_packet(header, ports, &payload);
        let mut bytes = frame(GATEWAY_MAC, self.place.mac, ethernet::IPV4, &packet);
        // Ethernet pads to 60 bytes, and some drivers pad more.
        let padding = rng.index(20);
        bytes.resize(bytes.len().max(60) + if rng.chance(100_000) { padding } else { 0 }, 0xee);
        ledger.sent.insert(id, Sent { from: self.place, to: *to, packet, deliveries: 0 });
        bytes
    }

    /// Takes a frame that the host sent through the tenant's port.
    ///
    /// # Panics
    /// When the tenant should never have got it.
    pub fn receive(&mut self, bytes: &[u8], ledger: &mut Ledger) {
        let header = Ethernet::parse(bytes).expect("an Ethernet header");
        assert_eq!(header.destination, self.place.mac, "to this tenant");
        assert_eq!(header.source, GATEWAY_MAC, "from the gateway");
        let packet = &bytes[ethernet::BYTES..];
        if header.ethertype == ethernet::ARP {
            return self.receive_arp(packet);
        }
        assert_eq!(header.ethertype, ethernet::IPV4);
        let ip = Ipv4::parse(packet, packet.len()).expect("the switch forwards right headers only");
        assert_eq!(usize::from(ip.total_len), packet.len(), "padding is not forwarded");
        assert_eq!(ip.destination, self.place.address, "to this tenant's address");
        if ip.protocol == ipv4::ICMP && ip.source == GATEWAY {
            match packet[ipv4::BYTES] {
                icmp::ECHO_REPLY => self.echo_replies += 1,
                _ => self.told(&packet[ipv4::BYTES..]),
            }
            return;
        }
        if !udp_is_whole(packet) {
            ledger.caught += 1;
            return;
        }
        self.receive_datagram(packet, &ip, ledger);
    }

    /// The gateway tells why a packet of this tenant got no further.
    fn told(&mut self, message: &[u8]) {
        assert!(matches!(message[0], icmp::UNREACHABLE | icmp::TIME_EXCEEDED), "{message:02x?}");
        let mut sum = Checksum::new();
        sum.add(message);
        assert_eq!(sum.folded(), 0xffff);
        let about = Ipv4::parse(&message[icmp::BYTES..], usize::MAX).expect("the packet's header");
        assert_eq!(about.source, self.place.address, "told of another's packet");
        self.errors += 1;
    }

    fn receive_arp(&mut self, message: &[u8]) {
        let reply = Arp::parse(message).expect("an ARP message");
        assert_eq!(reply.operation, Operation::Reply);
        assert_eq!((reply.sender_mac, reply.target_mac), (GATEWAY_MAC, self.place.mac));
        assert_eq!(reply.target, self.place.address);
        self.arp_replies += 1;
        if reply.sender == GATEWAY {
            self.gateway = Some(reply.sender_mac);
        }
    }

    fn receive_datagram(&mut self, packet: &[u8], ip: &Ipv4, ledger: &mut Ledger) {
        let payload = packet[PAYLOAD_AT..].first_chunk::<8>().expect("a numbered datagram");
        let id = u64::from_be_bytes(*payload);
        let Some(sent) = ledger.sent.get_mut(&id) else {
            panic!("{:?} got what nobody sent: {ip:?}, {:02x?}", self.place, &packet[20..]);
        };
        assert_eq!(sent.to, self.place, "datagram {id} of {:?} reached another tenant", sent.from);
        let mut expected = sent.packet.clone();
        expected[8] -= 1;
        let (was, is) = (ecn::of_tos(expected[1]), ecn::of_tos(ip.tos));
        if was != is {
            assert_eq!(is, ecn::CE, "only congestion is ever marked");
            assert_ne!(was, ecn::NOT_ECT, "marked what cannot carry the mark");
            ledger.marked += 1;
            expected[1] |= ecn::CE;
        }
        repair_ip(&mut expected);
        assert!(packet == expected, "datagram {id} was changed on its way");
        sent.deliveries += 1;
        let copies = if sent.from.host == sent.to.host { 1 } else { 2 };
        assert!(sent.deliveries <= copies, "datagram {id} came {} times", sent.deliveries);
        ledger.delivered += 1;
    }
}
