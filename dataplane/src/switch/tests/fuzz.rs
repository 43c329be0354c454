//! Any bytes from any port: no panic, one verdict each, no frame lost, and what is forwarded is
//! well formed. The same function serves random bytes and damaged packets.

use super::*;

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

/// What leaves has a right Ethernet and IP header and the sizes that these say.
fn well_formed(ingress: PortId, egress: PortId, before: &[u8], after: &[u8]) {
    let frame = Ethernet::parse(after).unwrap();
    if frame.ethertype == ethernet::ARP {
        assert_eq!((ingress, after.len()), (egress, 42));
        return;
    }
    let ip = Ipv4::parse(&after[14..], after.len() - 14).unwrap();
    assert_eq!(usize::from(ip.total_len), after.len() - 14);
    if egress != UPLINK {
        assert_eq!(frame.source, GATEWAY_MAC);
        return;
    }
    let udp = Udp::parse(&after[34..], usize::from(ip.payload_len())).unwrap();
    assert_eq!((udp.destination, udp.len), (vxlan::PORT, ip.payload_len()));
    if ingress != UPLINK {
        assert_eq!(after.len(), usize::from(u16::from_be_bytes([before[16], before[17]])) + 64);
    }
}

#[test]
fn random_frames() {
    let mut host = Host::a();
    bolero::check!()
        .with_type::<(u64, Vec<(Shape, Vec<u8>)>)>()
        .for_each(|(now_ns, frames)| check(&mut host, *now_ns, frames));
}

/// Where and what a right packet is changed to.
type Damage = (Shape, u8, Vec<(u8, u8)>, u8, bool);

#[test]
fn damaged_packets() {
    let mut host = Host::with_flows(tables_a(&plan_a()), 32);
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
    let right = [
        Datagram::NEW.frame(),
        Datagram::to([10, 0, 0, 3]).frame(),
        Datagram::to([10, 0, 8, 1]).frame(),
        ping,
        arp.clone(),
        Datagram::to([10, 0, 0, 2]).tunnelled(100),
        Datagram::to([10, 0, 0, 2]).tunnelled(200),
        tunnelled(100, &arp),
    ];
    let mut forwarded = [false; 8];
    for (kind, frame) in right.iter().enumerate() {
        let port = if kind < 5 { RED } else { UPLINK };
        forwarded[kind] = host.send(port, frame).is_ok();
    }
    assert_eq!(forwarded, [true, true, false, true, true, true, true, true]);
    bolero::check!().with_type::<(u64, Vec<Damage>)>().for_each(|(now_ns, damages)| {
        let frames: Vec<_> = damages
            .iter()
            .map(|(shape, kind, changes, len, mend)| {
                let mut frame = right[usize::from(kind % 8)].clone();
                for (at, value) in changes.iter().take(4) {
                    let at = usize::from(*at) % frame.len();
                    frame[at] = *value;
                }
                // Half of them with right header checksums, so that the damage gets further.
                for at in [14, 64] {
                    if *mend && frame.len() >= at + 20 {
                        edit_ip(&mut frame, at, |_| {});
                    }
                }
                if *len < 64 {
                    frame.truncate(usize::from(*len) * 2);
                } else if *len > 200 {
                    frame.resize(frame.len() + usize::from(*len), 0xee);
                }
                let port = if kind % 8 < 5 { shape.0 % 5 } else { 2 };
                ((port, shape.1.clone()), frame)
            })
            .collect();
        check(&mut host, *now_ns, &frames);
    });
    let counters = host.switch.counters();
    assert!(counters.hits.get() > 100 && counters.misses.get() > 100, "{counters:?}");
}
