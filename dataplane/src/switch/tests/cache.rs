//! The flow cache: what it counts, and that it never changes what happens to a packet.

use super::*;

fn counts(host: &Host) -> (u64, u64, u64, u64) {
    let counters = host.switch.counters();
    let all = [&counters.hits, &counters.misses, &counters.recompiles, &counters.evictions];
    let [hits, misses, recompiles, evictions] = all.map(Counter::get);
    (hits, misses, recompiles, evictions)
}

#[test]
fn hits_misses_and_recompiles() {
    let mut host = Host::a();
    host.send(RED, &Datagram::NEW.frame()).unwrap();
    assert_eq!(counts(&host), (0, 1, 0, 0));
    host.send(RED, &Datagram::NEW.frame()).unwrap();
    assert_eq!(counts(&host), (1, 1, 0, 0));
    let old = host.switch.set_tables(tables_a(&plan_a()));
    assert_eq!(Arc::strong_count(&old), 1, "control alone has the old tables");
    host.send(RED, &Datagram::NEW.frame()).unwrap();
    host.send(RED, &Datagram::NEW.frame()).unwrap();
    assert_eq!(counts(&host), (2, 1, 1, 0));
    host.drops(RED, &Datagram::to([10, 0, 7, 7]).frame(), DropReason::NoRoute);
    host.drops(RED, &Datagram::to([10, 0, 7, 7]).frame(), DropReason::NoRoute);
    assert_eq!(counts(&host), (2, 3, 1, 0), "no route is not cached");
}

#[test]
fn packets_of_a_new_flow_in_one_burst_are_one_flow() {
    let mut host = Host::a();
    let frames: Vec<_> = (0..BURST as u16)
        .map(|n| Datagram { ports: (n % 3, 1), ..Datagram::NEW }.frame())
        .collect();
    let mut burst: Burst = frames
        .iter()
        .map(|frame| Packet::new(Chain::from_slice(frame, &mut host.free).unwrap(), RED))
        .collect();
    let mut verdicts = ArrayVec::new();
    host.switch.decide(0, &mut burst, &mut host.free, &mut verdicts);
    assert_eq!(verdicts.as_slice(), [Verdict::Forward(UPLINK); BURST]);
    assert_eq!(counts(&host), (29, 3, 0, 0));
    burst.into_iter().for_each(|packet| packet.into_chain().free(&mut host.free));
}

#[test]
fn a_flow_from_another_far_end_is_checked_again() {
    let mut plan = plan_a();
    plan.vpcs[0].routes.push(route([10, 0, 2, 0], 24, UNRESOLVED));
    let mut host = Host::new(tables_a(&plan));
    let from_b = Datagram::to([10, 0, 0, 2]).tunnelled(100);
    let from = |last: u8| {
        let mut frame = from_b.clone();
        edit_ip(&mut frame, 14, |ip| ip[15] = last);
        frame
    };
    assert!(host.send(UPLINK, &from_b).is_ok());
    assert!(host.send(UPLINK, &from(8)).is_ok());
    host.drops(UPLINK, &from(77), DropReason::UnknownVtep);
    assert!(host.send(UPLINK, &from(8)).is_ok());
    assert_eq!(counts(&host), (1, 1, 2, 0), "a stranger does not disturb the flow");
}

#[test]
fn no_eviction_below_three_quarters_and_counted_above() {
    let mut host = Host::with_flows(tables_a(&plan_a()), 256);
    let flow = |n: u16| Datagram { ports: (n, 1), ..Datagram::NEW }.frame();
    for n in 0..192 {
        host.send(RED, &flow(n)).unwrap();
    }
    assert_eq!(counts(&host), (0, 192, 0, 0));
    for n in 192..1192 {
        host.send(RED, &flow(n)).unwrap();
    }
    let (hits, misses, _, evictions) = counts(&host);
    assert_eq!((hits, misses), (0, 1192));
    assert!((1192 - 256..1000).contains(&evictions), "{evictions}");
}

/// Tables of one of eight kinds: routes, next hops and tenants come and go.
fn tables(kind: u8) -> Arc<Tables> {
    let mut plan = plan_a();
    if kind & 1 != 0 {
        plan.vpcs[0].routes.push(route([10, 0, 1, 7], 32, UNRESOLVED));
    }
    if kind & 2 != 0 {
        plan.ports.truncate(3);
    }
    if kind & 4 != 0 {
        plan.vpcs.swap(0, 1);
    }
    tables_a(&plan)
}

#[test]
fn a_cache_never_changes_an_outcome() {
    // Against a switch that has never seen the flow: any order of packets and table changes.
    bolero::check!().with_type::<Vec<(u8, u8, u8)>>().with_iterations(300).for_each(|steps| {
        let fresh: Vec<_> = (0..8).map(tables).collect();
        let mut host = Host::with_flows(fresh[0].clone(), 16);
        let mut oracle = Host::with_flows(fresh[0].clone(), 16);
        let mut kind = 0;
        for (n, (action, flow, port)) in steps.iter().enumerate() {
            if action % 8 == 0 {
                kind = flow % 8;
                host.switch.set_tables(fresh[usize::from(kind)].clone());
                continue;
            }
            let destination = [[10, 0, 1, 7], [10, 0, 0, 2], [10, 0, 0, 3], [10, 0, 8, 1]];
            let datagram = Datagram {
                ports: (u16::from(flow >> 2), 1),
                ..Datagram::to(destination[usize::from(flow % 4)])
            };
            let (port, frame) = match port % 4 {
                0 => (RED, datagram.frame()),
                1 => (BLUE, sent_by(mac(9, 2), datagram.frame())),
                2 => (UPLINK, datagram.tunnelled(100)),
                _ => (UPLINK, datagram.tunnelled(200)),
            };
            let now_ns = n as u64 * 20_000_000;
            oracle.switch = Switch::new(4, Seed::new(42), fresh[usize::from(kind)].clone());
            oracle.switch.meter = Meter::empty();
            host.switch.meter = Meter::empty();
            let want = oracle.send_at(now_ns, port, &frame);
            assert_eq!(host.send_at(now_ns, port, &frame), want);
        }
        let (hits, misses, recompiles, evictions) = counts(&host);
        assert!(evictions <= misses && hits + misses + recompiles <= steps.len() as u64);
    });
}
