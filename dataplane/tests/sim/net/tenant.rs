//! Tenants: they resolve their gateway, send numbered datagrams to each other, and check what they
//! get against a ledger of everything that was ever sent.

use super::frames::{
    PAYLOAD_AT, arp_frame, frame, ip_header, ip_header6, repair_ip, udp_is_whole, udp_is_whole6,
    udp_packet, udp_packet6,
};
use super::topology::{GATEWAY, GATEWAY_MAC, Place, TENANT_MTU, UPLINK_MTU};
use outboard_sim::Rng;
use outboard_wire::arp::Operation;
use outboard_wire::{
    Arp, Checksum, Ethernet, Ipv4, Ipv6, Mac, ecn, ethernet, icmp, ipv4, ipv6, udp,
};
use std::collections::HashMap;

/// The largest IP packet of a tenant that fits a tunnel: outer IPv4, UDP, VXLAN, Ethernet.
pub const LARGEST: usize = {
    let tunnel = UPLINK_MTU as usize - 50;
    let own = TENANT_MTU as usize;
    if tunnel < own { tunnel } else { own }
};

/// The same for IPv6: outer IPv6, UDP, VXLAN, Ethernet.
const LARGEST6: usize = UPLINK_MTU as usize - 70;

/// A tenant.
#[derive(Clone, Debug)]
pub struct Tenant {
    pub place: Place,
    /// The gateway's MAC address, once it answered.
    gateway: Option<Mac>,
    pub arp_replies: u64,
    pub echo_replies: u64,
    /// ICMP errors of the gateway; what it said over IPv6.
    pub errors: u64,
    pub errors6: u64,
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

    /// Tenant `to` got the datagram of this payload.
    fn delivery(&mut self, to: Place, payload: &[u8]) -> &Sent {
        let id = u64::from_be_bytes(*payload.first_chunk().expect("a numbered datagram"));
        let Some(sent) = self.sent.get_mut(&id) else {
            panic!("{to:?} got what nobody sent: {payload:02x?}");
        };
        assert_eq!(sent.to, to, "datagram {id} of {:?} reached another tenant", sent.from);
        sent.deliveries += 1;
        let copies = if sent.from.host == sent.to.host { 1 } else { 2 };
        assert!(sent.deliveries <= copies, "datagram {id} came {} times", sent.deliveries);
        self.delivered += 1;
        sent
    }

    /// The number of the next datagram.
    pub fn next_id(&self) -> u64 {
        self.sent.len() as u64
    }
}

impl Tenant {
    pub fn new(place: Place) -> Tenant {
        Tenant { place, gateway: None, arp_replies: 0, echo_replies: 0, errors: 0, errors6: 0 }
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
        if rng.chance(300_000) {
            return self.datagram6(to, ledger, rng);
        }
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

    /// The same in IPv6.
    fn datagram6(&self, to: &Place, ledger: &mut Ledger, rng: &mut Rng) -> Vec<u8> {
        let id = ledger.next_id();
        let most = [LARGEST6, 1472, 200, 200, 200][rng.index(5)];
        let most = most - ipv6::BYTES - udp::BYTES;
        let mut payload = vec![0; rng.between(8, most as u64) as usize];
        rng.fill(&mut payload[8..]);
        payload[..8].copy_from_slice(&id.to_be_bytes());
        let header = Ipv6 {
            traffic_class: rng.next_u64() as u8,
            flow_label: rng.below(1 << 20) as u32,
            hop_limit: rng.between(2, 255) as u8,
            ..ip_header6(self.place.address6, to.address6)
        };
        let packet = udp_packet6(header, (1000 + rng.below(2) as u16, 2000), &payload);
        let mut bytes = frame(GATEWAY_MAC, self.place.mac, ethernet::IPV6, &packet);
        bytes.resize(bytes.len() + if rng.chance(100_000) { rng.index(20) } else { 0 }, 0xee);
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
        if header.ethertype == ethernet::IPV6 {
            return self.receive6(packet, ledger);
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

    fn receive6(&mut self, packet: &[u8], ledger: &mut Ledger) {
        let ip = Ipv6::parse(packet, packet.len()).expect("the switch forwards right headers only");
        assert_eq!(ip.total_len(), packet.len(), "padding is not forwarded");
        if ip.next_header != ipv4::UDP || !udp_is_whole6(packet) {
            // The gateway speaks too: advertisements, and why a packet got no further.
            self.errors6 += u64::from(ip.next_header == ipv6::ICMP);
            ledger.caught += u64::from(ip.next_header != ipv6::ICMP);
            return;
        }
        assert_eq!(ip.destination, self.place.address6, "to this tenant's address");
        let sent = ledger.delivery(self.place, &packet[ipv6::BYTES + udp::BYTES..]);
        let mut expected = sent.packet.clone();
        expected[7] -= 1;
        let was = Ipv6::parse(&expected, expected.len()).expect("our own").traffic_class;
        if was != ip.traffic_class {
            assert_eq!(was >> 2, ip.traffic_class >> 2, "DSCP stays");
            assert_ne!(ecn::of_tos(was), ecn::NOT_ECT, "marked what cannot carry the mark");
            expected[..2].copy_from_slice(&packet[..2]);
        }
        assert!(packet == expected, "a datagram of IPv6 was changed on its way");
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
        let sent = ledger.delivery(self.place, &packet[PAYLOAD_AT..]);
        let mut expected = sent.packet.clone();
        expected[8] -= 1;
        let (was, is) = (ecn::of_tos(expected[1]), ecn::of_tos(ip.tos));
        if was != is {
            assert_eq!(is, ecn::CE, "only congestion is ever marked");
            assert_ne!(was, ecn::NOT_ECT, "marked what cannot carry the mark");
            expected[1] |= ecn::CE;
        }
        repair_ip(&mut expected);
        assert!(packet == expected, "a datagram was changed on its way");
        ledger.marked += u64::from(was != is);
    }
}
