//! The ways to the other hosts as the kernel knows them, told in the log when they change.

use super::netlink::underlay::{Underlay, UnderlayError};
use crate::config::Plan;
use crate::packet::PortId;
use crate::switch::{NextHop, Tables};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

/// Every far end's next hop.
#[derive(Debug)]
pub struct Ways {
    underlay: Underlay,
    /// Each port's interface.
    interfaces: HashMap<PortId, String>,
    known: Vec<(IpAddr, NextHop)>,
}

impl Ways {
    /// Begins to follow the far ends of a plan's routes, perhaps to replace `others`: those that
    /// are as they knew are not told again, and what routers said of tunnels that stay holds.
    pub fn new(plan: &Plan, others: Option<&mut Ways>) -> Result<Ways, UnderlayError> {
        let mut underlay = Underlay::new(plan)?;
        let named = plan.ports.iter().map(|port| (port.id, port.interface.clone()));
        let interfaces = named.collect();
        let mut known = Vec::new();
        if let Some(others) = others {
            underlay.inherit(&mut others.underlay);
            known.clone_from(&others.known);
        }
        let mut ways = Ways { underlay, interfaces, known };
        ways.changed(Duration::ZERO)?;
        Ok(ways)
    }

    /// Waits for at most `timeout` for a change; whether there was one.
    pub fn changed(&mut self, timeout: Duration) -> Result<bool, UnderlayError> {
        let Some(next_hops) = self.underlay.poll(timeout)? else { return Ok(false) };
        for way in &next_hops {
            if !self.known.contains(way) {
                tracing::info!("far end {}: {}", way.0, self.text(&way.1));
            }
        }
        self.known = next_hops;
        Ok(true)
    }

    /// Whether the kernel could not be asked when that was last tried.
    pub fn is_failing(&self) -> bool {
        self.underlay.is_failing()
    }

    /// Tables with the ways as they are.
    pub fn tables(&self, plan: &Plan) -> Tables {
        Tables::new(plan, &self.known)
    }

    fn text(&self, next_hop: &NextHop) -> String {
        match next_hop {
            NextHop::Resolved { port, dst_mac, path_mtu, .. } => {
                let interface = self.interfaces.get(port).map_or("", String::as_str);
                format!("over {interface} to {dst_mac}, MTU {path_mtu}")
            }
            NextHop::Unresolved => "unresolved: nobody has answered for its MAC address yet".into(),
            NextHop::NoRoute => "no route over an uplink that is up; see `ip route get`".into(),
        }
    }
}
