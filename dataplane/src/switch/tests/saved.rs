//! A saved switch goes on as if it had never stopped, and no saved state disturbs one.

use super::dual::{Packet6, dual_a, dual_tables_a, framed6, inside, tunnelled6};
use super::*;
use crate::switch::saved::{FlowState, STATE_VERSION, SwitchState, SwitchStateError};

fn load(tables: Arc<Tables>, state: &SwitchState) -> Result<Switch, SwitchStateError> {
    Switch::load(1024, Seed::new(42), tables, state)
}

/// One of the frames that the tests send, and the port that it comes in by.
fn frame(kind: u8, flow: u8) -> (PortId, Vec<u8>) {
    let ports = (u16::from(flow), 9);
    let datagram = |to| Datagram { ports, ..Datagram::to(to) };
    let six = |source, destination| Packet6 { source, ..Packet6::udp(destination, ports, 32) };
    let inner = |packet: Packet6| {
        let inner = framed6(GATEWAY_MAC, GATEWAY_MAC, &packet.with_checksum(6).bytes());
        tunnelled6(100, &inner)
    };
    match kind % 8 {
        0 => (RED, datagram([10, 0, 1, 7]).frame()),
        1 => (RED, datagram([10, 0, 0, 3]).frame()),
        2 => (UPLINK, datagram([10, 0, 0, 2]).tunnelled(100)),
        3 => (RED, Packet6::udp(inside(1, 7), ports, 32).frame()),
        4 => (UPLINK, inner(six(inside(2, 7), inside(0, 2)))),
        5 => (RED, Datagram { ttl: 1, ..datagram([10, 0, 1, 7]) }.frame()),
        6 => (RED, datagram([10, 0, 7, 7]).frame()),
        _ => (BLUE, sent_by(mac(9, 2), datagram([10, 0, 1, 7]).frame())),
    }
}

#[test]
fn what_was_saved_goes_on_as_if_it_had_not_stopped() {
    bolero::check!().with_type::<(Vec<(u8, u8)>, Vec<(u8, u8)>)>().with_iterations(300).for_each(
        |(before, after)| {
            let tables = dual_tables_a(&dual_a());
            let mut stays = Host::with_flows(tables.clone(), 1024);
            let mut now_ns = 1 << 40;
            let send = |host: &mut Host, now_ns, (kind, flow)| {
                let (port, frame) = frame(kind, flow);
                host.send_at(now_ns, port, &frame)
            };
            for step in before.iter().take(40) {
                now_ns += 1_000_000;
                let _ = send(&mut stays, now_ns, *step);
            }
            let state = stays.switch.save();
            let mut comes = Host::with_flows(tables.clone(), 4);
            comes.switch = load(tables, &state).unwrap();
            assert_eq!(sorted(comes.switch.save()), sorted(state), "nothing is lost");
            let misses = |host: &Host| host.switch.counters().misses.get();
            let missed = misses(&stays);
            for step in after.iter().take(40) {
                now_ns += 1_000_000;
                let want = send(&mut stays, now_ns, *step);
                assert_eq!(send(&mut comes, now_ns, *step), want);
            }
            assert_eq!(misses(&comes), misses(&stays) - missed, "flows are found again");
            assert_eq!(comes.switch.counters().recompiles.get(), 0);
        },
    );
}

/// The order is that of places in the cache.
fn sorted(mut state: SwitchState) -> SwitchState {
    state.flows.sort_by_key(|flow| format!("{flow:?}"));
    state
}

fn saved() -> SwitchState {
    let mut host = Host::new(dual_tables_a(&dual_a()));
    for kind in 0..8 {
        let (port, frame) = frame(kind, 1);
        let _ = host.send_at(1 << 40, port, &frame);
    }
    let state = host.switch.save();
    assert!(state.flows.len() >= 5 && !state.told.is_empty(), "{state:?}");
    assert!(state.flows.iter().any(|flow| flow.far_end.is_some_and(|end| end.is_ipv6())));
    state
}

#[test]
fn other_tables_give_the_flows_other_transforms_or_forget_them() {
    let state = saved();
    let mut plan = dual_a();
    plan.vpcs.swap(0, 1);
    let swapped = load(dual_tables_a(&plan), &state).unwrap();
    assert!(swapped.save().flows.len() < state.flows.len(), "blue has not all routes of red");
    plan.vpcs.iter_mut().for_each(|vpc| vpc.vni += 1000);
    assert_eq!(load(dual_tables_a(&plan), &state).unwrap().save().flows, []);
    let small = Switch::load(4, Seed::new(1), dual_tables_a(&dual_a()), &state).unwrap();
    assert_eq!(small.save().flows.len(), 4, "a smaller cache keeps what fits");
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let tables = || dual_tables_a(&dual_a());
    let refused = |change: &dyn Fn(&mut SwitchState)| {
        let mut state = saved();
        change(&mut state);
        load(tables(), &state).unwrap_err()
    };
    let value = SwitchStateError::Value;
    assert_eq!(refused(&|state| state.version = 2), SwitchStateError::Version(2));
    assert_eq!(refused(&|state| state.told.push((u16::MAX, 1))), value("port number"));
    let twice = |state: &mut SwitchState| state.flows.push(state.flows[0].clone());
    assert_eq!(refused(&twice), value("flow that is there twice"));
    let mixed = |state: &mut SwitchState| {
        state.flows[0].source = Ipv4Addr::LOCALHOST.into();
        state.flows[0].destination = inside(1, 7).into();
    };
    assert_eq!(refused(&mixed), value("pair of addresses"));
}

type RoughFlow = (u8, Option<u8>, [u8; 2], [u8; 4], (bool, bool), u8, u32);

fn rough(
    &(vni, far_end, [from, to], ports, (six, mixed), protocol, seen): &RoughFlow,
) -> FlowState {
    let four = |last: u8| IpAddr::from([10, 0, last & 1, last >> 1]);
    let address = |last: u8, six| match six {
        true => inside((last & 3).into(), (last >> 2).into()).into(),
        false => four(last),
    };
    let far_end = far_end.map(|kind| match kind % 3 {
        0 => IpAddr::from(VTEP_B),
        1 => IpAddr::from([0; 4]),
        _ => IpAddr::from([0; 16]),
    });
    FlowState {
        vni: [100, 200, 0, u32::MAX][usize::from(vni % 4)],
        far_end,
        source: address(from, six),
        destination: address(to, six != (mixed && protocol == 0)),
        ports,
        protocol,
        seen,
    }
}

#[test]
fn any_state_is_a_switch_or_an_error() {
    let tables = dual_tables_a(&dual_a());
    bolero::check!().with_type::<(bool, Vec<RoughFlow>, Vec<(u16, u64)>)>().for_each(
        |(version, flows, told)| {
            let state = SwitchState {
                version: u32::from(!version) * 7 + STATE_VERSION,
                flows: flows.iter().map(rough).collect(),
                told: told.iter().map(|(port, full_ns)| (port % 520, *full_ns)).collect(),
            };
            let Ok(switch) = Switch::load(16, Seed::new(3), tables.clone(), &state) else { return };
            assert!(switch.save().flows.len() <= state.flows.len());
            let mut host = Host::with_flows(tables.clone(), 4);
            host.switch = switch;
            for kind in 0..8 {
                let (port, frame) = frame(kind, kind);
                let _ = host.send_at(1 << 40, port, &frame);
            }
        },
    );
}
