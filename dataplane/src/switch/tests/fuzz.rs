//! Any bytes from any port: no panic, one verdict each, no frame lost, and what is forwarded is
//! well formed. The same function serves random bytes and damaged packets.

use super::dual::*;
use super::*;
use outboard_wire::{Ipv6, icmpv6, nd};

/// How a frame is spread over a chain and where it comes in.
type Shape = (u8, Vec<u16>);

/// A chain of the bytes, cut where `cuts` says; as many pieces as frames allow.
fn chain(bytes: &[u8], cuts: &[u16], free: &mut FreeList) -> Chain {
    let mut rest = &bytes[..bytes.len().min(3000)];
    let mut chain: Option<Chain> = None;
    let mut cuts = cuts.iter().take(5);
    loop {
        let cut = cuts.next().map_or(rest.len(), |cut| usize::from(*cut).min(rest.len()));
        let (piece, after) = rest.split_at(cut);
        match &mut chain {
            None => chain = Chain::from_slice(piece, free),
            Some(chain) => {
                let mut frame = free.take().unwrap();
                frame.bytes_mut()[HEADROOM_BYTES..][..cut].copy_from_slice(piece);
                chain.push(frame, HEADROOM_BYTES, cut).unwrap();
            }
        }
        rest = after;
        if rest.is_empty() {
            return chain.unwrap();
        }
    }
}

/// Decides on a burst and checks what must hold whatever the bytes are.
fn check(host: &mut Host, now_ns: u64, frames: &[(Shape, Vec<u8>)]) {
    let mut burst = Burst::new();
    for ((port, cuts), bytes) in frames.iter().take(BURST) {
        let chain = chain(bytes, cuts, &mut host.free);
        burst.push(Packet::new(chain, PortId(u16::from(port % 5))));
    }
    let before: Vec<Vec<u8>> = burst.iter().map(all_bytes).collect();
    let mut verdicts = ArrayVec::new();
    host.switch.decide(now_ns, &mut burst, &mut host.free, &mut verdicts);
    assert_eq!(verdicts.len(), burst.len());
    let held: usize = burst.iter().map(|packet| packet.frames()).sum();
    assert_eq!(host.free.len() + held, host.frames);
    for ((packet, verdict), before) in burst.into_iter().zip(verdicts).zip(before) {
        let after = all_bytes(&packet);
        match verdict {
            Verdict::Forward(port) => well_formed(packet.ingress, port, &before, &after),
            Verdict::Unresolved(_) => assert_eq!(before, after),
            Verdict::Drop(_) => {}
        }
        packet.into_chain().free(&mut host.free);
    }
}

fn all_bytes(packet: &Packet) -> Vec<u8> {
    packet.segments().flatten().copied().collect()
}

/// What leaves has a right Ethernet and IP header and the sizes that these say; what is in a
/// tunnel over IPv6, and what the gateway itself says, has a right checksum.
fn well_formed(ingress: PortId, egress: PortId, before: &[u8], after: &[u8]) {
    let frame = Ethernet::parse(after).unwrap();
    if frame.ethertype == ethernet::ARP {
        assert_eq!((ingress, after.len()), (egress, 42));
        return;
    }
    let (source, ip_bytes, payload_bytes) = match frame.ethertype {
        ethernet::IPV6 => {
            let ip = Ipv6::parse(&after[14..], after.len() - 14).unwrap();
            assert_eq!(ip.total_len(), after.len() - 14);
            (IpAddr::from(ip.source), ipv6::BYTES, ip.payload_len)
        }
        ethertype => {
            assert_eq!(ethertype, ethernet::IPV4);
            let ip = Ipv4::parse(&after[14..], after.len() - 14).unwrap();
            assert_eq!(usize::from(ip.total_len), after.len() - 14);
            (IpAddr::from(ip.source), ipv4::BYTES, ip.payload_len())
        }
    };
    if egress != UPLINK {
        assert_eq!(frame.source, GATEWAY_MAC);
        // An echo's checksum is updated, so a damaged request has a damaged reply.
        let is_message = frame.ethertype == ethernet::IPV6 && after[20] == ipv6::ICMP;
        if source == IpAddr::from(GATEWAY6) && is_message && after[54] != icmpv6::ECHO_REPLY {
            assert_eq!(upper_sum(&after[14..]), 0xffff);
        }
        return;
    }
    let udp = Udp::parse(&after[14 + ip_bytes..], usize::from(payload_bytes)).unwrap();
    assert_eq!((udp.destination, udp.len), (vxlan::PORT, payload_bytes));
    if frame.ethertype == ethernet::IPV6 {
        assert_eq!(upper_sum(&after[14..]), 0xffff);
        assert_ne!(udp.checksum, 0);
    }
    if ingress != UPLINK && !is_told(&after[30 + ip_bytes..]) {
        let len = |at: usize| usize::from(u16::from_be_bytes([before[at], before[at + 1]]));
        let inner = if before[12..14] == [8, 0] { len(16) } else { ipv6::BYTES + len(18) };
        assert_eq!(after.len(), 14 + ip_bytes + 16 + 14 + inner);
    }
}

/// Whether an inner frame is the gateway's word about another packet.
fn is_told(inner: &[u8]) -> bool {
    let gateway = [10, 0, 0, 1];
    inner[26..30] == gateway || inner[22..38] == GATEWAY6.octets()
}

#[test]
fn random_frames() {
    let mut host = Host::dual_a();
    bolero::check!()
        .with_type::<(u64, Vec<(Shape, Vec<u8>)>)>()
        .for_each(|(now_ns, frames)| check(&mut host, *now_ns, frames));
}

/// Makes the checksum of UDP or ICMPv6 right where there is one and the length says so.
fn mend6(frame: &mut [u8]) {
    let at = match frame[20] {
        ipv4::UDP => 60,
        ipv6::ICMP => 56,
        _ => return,
    };
    frame[at..at + 2].fill(0);
    if Ipv6::parse(&frame[14..], frame.len() - 14).is_ok_and(|ip| ip.payload_len >= 8) {
        let sum = !upper_sum(&frame[14..]);
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Where and what a right packet is changed to.
type Damage = (Shape, u8, Vec<(u8, u8)>, u8, bool);

/// Which of [`right_packets`] come from the uplink.
const FROM_UPLINK: std::ops::Range<usize> = 5..11;
/// Which of them waits for its next hop.
const WAITS: usize = 2;

/// One of each kind, of both families.
fn right_packets() -> Vec<Vec<u8>> {
    let arp = {
        let mut frame = framed(Mac::BROADCAST, mac(0, 2), &[0; 28]);
        frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame[22..28].copy_from_slice(&mac(0, 2).0);
        frame[28..32].copy_from_slice(&[10, 0, 0, 2]);
        frame[38..42].copy_from_slice(&[10, 0, 0, 3]);
        frame
    };
    let mut ping = Datagram::to([10, 0, 0, 1]).frame();
    edit_ip(&mut ping, 14, |ip| ip[9] = 1);
    ping[34..36].copy_from_slice(&[8, 0]);
    let asked = |kind: u8, target: &[u8]| {
        let about = [&[kind, 0, 0, 0, 0, 0, 0, 0], target, &[1, 1], &mac(0, 2).0].concat();
        let to = if target.is_empty() { "ff02::2".parse().unwrap() } else { GATEWAY6 };
        Packet6::icmp(to, &about).frame()
    };
    let inner6 = Packet6 { source: inside(2, 7), ..Packet6::udp(inside(0, 2), (5, 6), 18) };
    let inner6 = framed6(GATEWAY_MAC, GATEWAY_MAC, &inner6.with_checksum(6).bytes());
    let inner4 = Datagram { source: [10, 0, 2, 7], ..Datagram::to([10, 0, 0, 2]) };
    let inner4 = framed(GATEWAY_MAC, GATEWAY_MAC, &inner4.packet());
    let mut pieces = Packet6::udp(inside(1, 7), (1, 2), 18);
    pieces.next_header = ipv6::DESTINATION_OPTIONS;
    pieces.payload.splice(..0, [ipv6::FRAGMENT, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 9]);
    vec![
        Datagram::NEW.frame(),
        Datagram::to([10, 0, 0, 3]).frame(),
        Datagram::to([10, 0, 8, 1]).frame(),
        ping,
        arp.clone(),
        Datagram::to([10, 0, 0, 2]).tunnelled(100),
        Datagram::to([10, 0, 0, 2]).tunnelled(200),
        tunnelled(100, &arp),
        tunnelled6(100, &inner6),
        tunnelled6(100, &inner4),
        tunnelled(100, &inner6),
        Packet6::udp(inside(1, 7), (1, 2), 18).frame(),
        Packet6::udp(inside(2, 7), (1, 2), 18).frame(),
        Packet6::udp(inside(0, 3), (1, 2), 18).frame(),
        Packet6 { hop_limit: 1, ..Packet6::udp(inside(1, 7), (1, 2), 18) }.frame(),
        pieces.frame(),
        Packet6::icmp(GATEWAY6, &[128, 0, 0, 0, 0, 1, 0, 2]).frame(),
        asked(nd::NEIGHBOUR_SOLICITATION, &inside(1, 7).octets()),
        asked(nd::ROUTER_SOLICITATION, &[]),
    ]
}

#[test]
fn damaged_packets() {
    let mut host = Host::with_flows(dual_tables_a(&dual_a()), 32);
    let right = right_packets();
    for (kind, frame) in right.iter().enumerate() {
        let port = if FROM_UPLINK.contains(&kind) { UPLINK } else { RED };
        assert_eq!(host.send(port, frame).is_ok(), kind != WAITS, "{kind}");
    }
    bolero::check!().with_type::<(u64, Vec<Damage>)>().for_each(|(now_ns, damages)| {
        let frames: Vec<_> = damages
            .iter()
            .map(|(shape, kind, changes, len, mend)| {
                let kind = usize::from(*kind) % right.len();
                let mut frame = right[kind].clone();
                for (at, value) in changes.iter().take(4) {
                    let at = usize::from(*at) % frame.len();
                    frame[at] = *value;
                }
                // Half of them with right header checksums, so that the damage gets further.
                for at in [14, 64, 84] {
                    if *mend && frame.len() >= at + 20 && frame[at] >> 4 == 4 {
                        edit_ip(&mut frame, at, |_| {});
                    }
                }
                if *mend && frame.len() >= 62 && frame[14] >> 4 == 6 {
                    mend6(&mut frame);
                }
                if *len < 64 {
                    frame.truncate(usize::from(*len) * 2);
                } else if *len > 200 {
                    frame.resize(frame.len() + usize::from(*len), 0xee);
                }
                let port = if FROM_UPLINK.contains(&kind) { 2 } else { shape.0 % 5 };
                ((port, shape.1.clone()), frame)
            })
            .collect();
        check(&mut host, *now_ns, &frames);
    });
    let counters = host.switch.counters();
    assert!(counters.hits.get() > 100 && counters.misses.get() > 100, "{counters:?}");
}
