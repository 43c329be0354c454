//! A switch as plain data, so that its flows and how often senders were told outlive a process.
//!
//! Nothing in it is an index of the tables that were in force: flows name their VPC by its VNI and
//! a far end by its address. Loading compiles each flow from the tables given; what these have no
//! VPC, far end or route for is forgotten, as if its next packet were its first. With another seed
//! tunnels have other source ports. Packets that wait for a next hop are the worker's, which ends
//! them before it saves.

use super::flow::{Addresses6, FlowCache, Key};
use super::{Flow, Seed, Seen, Switch, Tables, compile};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// The version of [`SwitchState`] that is written and read.
pub const STATE_VERSION: u32 = 1;

/// A switch as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchState {
    /// What the rest means: [`STATE_VERSION`].
    pub version: u32,
    /// The flows of its cache.
    pub flows: Vec<FlowState>,
    /// By port number: the time in nanoseconds at which its allowance of ICMP errors is whole.
    pub told: Vec<(u16, u64)>,
}

/// One flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowState {
    /// Its VPC.
    pub vni: u32,
    /// The other host's tunnel address, when its packets come out of a tunnel.
    pub far_end: Option<IpAddr>,
    /// From where.
    pub source: IpAddr,
    /// To where, of the same family.
    pub destination: IpAddr,
    /// The ports as they lie in the header; zero for fragments and for what has none.
    pub ports: [u8; 4],
    /// The protocol number.
    pub protocol: u8,
    /// The tick in which a packet of it was last seen.
    pub seen: u32,
}

/// Why a saved switch cannot be gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchStateError {
    /// Another version wrote it.
    #[error("a saved switch of version {0}, not {STATE_VERSION}; begin with an empty one instead")]
    Version(u32),
    /// What is in it cannot be.
    #[error("a saved switch whose {0} makes no sense; begin with an empty one instead")]
    Value(&'static str),
}

impl Switch {
    /// The switch as plain data, but for its tables, which are control's.
    pub fn save(&self) -> SwitchState {
        let current = |(_, _, flow): &(Key, Addresses6, Flow)| flow.generation == self.generation;
        // What older tables gave has no names any more, and would be compiled anew anyway.
        let flows = self.flows.iter().filter(current);
        let far_ends = self.tables.far_ends_by_mark();
        SwitchState {
            version: STATE_VERSION,
            flows: flows.filter_map(|flow| name(&self.tables, &far_ends, flow)).collect(),
            told: self.meter.save(),
        }
    }

    /// A switch as [`Switch::new`] makes it that goes on where the saved one stopped.
    ///
    /// # Panics
    /// As [`Switch::new`].
    pub fn load(
        flows: u32,
        seed: Seed,
        tables: Arc<Tables>,
        state: &SwitchState,
    ) -> Result<Switch, SwitchStateError> {
        if state.version != STATE_VERSION {
            return Err(SwitchStateError::Version(state.version));
        }
        let mut switch = Switch::new(flows, seed, tables);
        if !switch.meter.load(&state.told) {
            return Err(SwitchStateError::Value("port number"));
        }
        for flow in &state.flows {
            switch.take_up(flow)?;
        }
        Ok(switch)
    }

    fn take_up(&mut self, state: &FlowState) -> Result<(), SwitchStateError> {
        let FlowState { vni, far_end, source, destination, ports, protocol, seen } = *state;
        // The number that no VPC has, and that marks free places in the tables.
        let vpc = if vni == 0 { None } else { self.tables.vpc_of(vni) };
        let mark = match far_end {
            Some(far_end) => self.tables.mark(far_end),
            None => Some(0),
        };
        let from_uplink = far_end.is_some();
        let (mut key, addresses) = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut addresses = [0; 8];
                addresses[..4].copy_from_slice(&source.octets());
                addresses[4..].copy_from_slice(&destination.octets());
                let key = |vpc| Key::new(vpc, from_uplink, addresses, ports, protocol);
                (vpc.map(key), Addresses6::default())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut addresses = [0; 32];
                addresses[..16].copy_from_slice(&source.octets());
                addresses[16..].copy_from_slice(&destination.octets());
                let key = |vpc| Key::new6(vpc, from_uplink, ports, protocol);
                (vpc.map(key), Addresses6::new(&addresses))
            }
            _ => return Err(SwitchStateError::Value("pair of addresses")),
        };
        let (Some(key), Some(far_end)) = (&mut key, mark) else { return Ok(()) };
        if key.is_v6() {
            self.flows.complete(key, &addresses);
        }
        let hash = self.flows.hash(*key);
        if self.flows.find(hash, *key, &addresses).is_some() {
            return Err(SwitchStateError::Value("flow that is there twice"));
        }
        let packet = Seen::of_flow(*key, hash, far_end);
        if let Ok(transform) = compile(&self.tables, &packet, &addresses) {
            let flow = Flow { generation: self.generation, transform, seen, far_end };
            // A smaller cache than before keeps what was seen last.
            self.flows.insert(hash, *key, &addresses, flow);
        }
        Ok(())
    }
}

/// A flow by names that mean the same to every process; `None` if the tables have none for it.
fn name(
    tables: &Tables,
    far_ends: &BTreeMap<u32, IpAddr>,
    (key, addresses, flow): (Key, Addresses6, Flow),
) -> Option<FlowState> {
    let far_end = match key.is_from_uplink() {
        true => Some(*far_ends.get(&flow.far_end)?),
        false => None,
    };
    let (source, destination) = match key.is_v6() {
        false => (IpAddr::V4(key.source()), IpAddr::V4(key.destination())),
        true => (IpAddr::V6(addresses.source()), IpAddr::V6(addresses.destination())),
    };
    Some(FlowState {
        vni: tables.vpcs[usize::from(key.vpc())].vni,
        far_end,
        source,
        destination,
        ports: key.ports(),
        protocol: key.protocol(),
        seen: flow.seen,
    })
}

impl FlowCache {
    /// Every flow, with its addresses when it is of IPv6.
    fn iter(&self) -> impl Iterator<Item = (Key, Addresses6, Flow)> {
        self.places().filter(|(key, _, _)| !key.is_empty())
    }
}

impl Key {
    fn source(&self) -> Ipv4Addr {
        let [a, b, c, d, ..] = self.addresses();
        Ipv4Addr::new(a, b, c, d)
    }
}

impl Addresses6 {
    fn source(&self) -> Ipv6Addr {
        let mut octets = [0; 16];
        octets.copy_from_slice(&self.bytes()[..16]);
        Ipv6Addr::from(octets)
    }
}
