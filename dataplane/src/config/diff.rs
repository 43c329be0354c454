//! What differs between two plans, by name: what an apply adds, changes in place, makes anew and
//! removes, and what it must refuse. Pure.
//!
//! An object is changed in place when only the switch's tables tell the difference: no packet is
//! lost by it. Everything else that differs is removed and added again, and so is whatever uses
//! it. Order in a file means nothing.

mod settings;
#[cfg(test)]
mod tests;

use super::Plan;
use super::plan::{Backing, Port, Role, Volume};
use crate::packet::PortId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Numbers that ports may have at once: those of a plan, and those of the plan that replaces it.
pub const PORT_NUMBERS_MAX: usize = 2 * super::network::PORTS_AND_UPLINKS_MAX;

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `[[vpc]]`
    Vpc,
    /// `[[uplink]]`
    Uplink,
    /// `[[port]]`
    Port,
    /// `[[volume]]`
    Volume,
    /// `[[export]]`, named by its `nqn`.
    Export,
    /// `[[disk]]`
    Disk,
}

impl Kind {
    /// The name in texts and in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Vpc => "vpc",
            Kind::Uplink => "uplink",
            Kind::Port => "port",
            Kind::Volume => "volume",
            Kind::Export => "export",
            Kind::Disk => "disk",
        }
    }
}

/// What is done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It comes.
    Add,
    /// Its settings change while it works on.
    Change,
    /// It is removed and comes again.
    Remake,
    /// It goes.
    Remove,
}

/// One setting that differs; `None` on the side that does not have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Its key.
    pub key: String,
    /// In the plan in force.
    pub old: Option<String>,
    /// In the new plan.
    pub new: Option<String>,
}

/// One object that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// What is done to it.
    pub action: Action,
    /// What differs in it; for a new object everything, for one that goes nothing.
    pub settings: Vec<Setting>,
}

/// Everything that differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Objects, by kind and name.
    pub changes: Vec<Change>,
    /// Why it cannot be applied to a daemon that runs, each with its remedy; empty: it can.
    pub refusals: Vec<String>,
}

impl Difference {
    /// What leads from `old` to `new`.
    pub fn between(old: &Plan, new: &Plan) -> Difference {
        let mut changes: BTreeMap<(Kind, String), Change> = BTreeMap::new();
        let (before, after) = (settings::of(old), settings::of(new));
        let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        for (kind, name) in names {
            let key = (*kind, name.clone());
            if let Some(change) = compare(*kind, name, before.get(&key), after.get(&key)) {
                changes.insert(key, change);
            }
        }
        remake_users(new, &mut changes);
        let mut difference =
            Difference { changes: changes.into_values().collect(), refusals: frozen(old, new) };
        difference.refuse_interfaces(old, new);
        difference.refuse_vteps(old, new);
        difference.refuse_files(old, new);
        difference
    }

    /// Whether nothing differs and nothing is refused.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.refusals.is_empty()
    }

    /// What is done to an object; `None`: it stays as it is.
    pub fn action(&self, kind: Kind, name: &str) -> Option<Action> {
        let same = |change: &&Change| change.kind == kind && change.name == name;
        self.changes.iter().find(same).map(|change| change.action)
    }

    /// Whether an object of the plan in force ends, to come again or not.
    pub fn ends(&self, kind: Kind, name: &str) -> bool {
        matches!(self.action(kind, name), Some(Action::Remove | Action::Remake))
    }

    /// Whether an object of the new plan is to be made.
    pub fn begins(&self, kind: Kind, name: &str) -> bool {
        matches!(self.action(kind, name), Some(Action::Add | Action::Remake))
    }

    /// An interface or a device of DPDK's carries one port at a time, and the new one is opened
    /// while the old one works.
    fn refuse_interfaces(&mut self, old: &Plan, new: &Plan) {
        let ends = |port: &&Port| self.ends(port.kind(), &port.name);
        let leaving: Vec<_> = old.ports.iter().filter(ends).collect();
        let mut refusals = Vec::new();
        for port in new.ports.iter().filter(|port| self.begins(port.kind(), &port.name)) {
            let both = leaving.iter().find_map(|old| Some((old, carrier(old, port)?)));
            let Some((held, (carrier, carrier_name))) = both else { continue };
            let what = port.kind().name();
            refusals.push(match held.name == port.name {
                true => format!(
                    "{what} \"{}\" cannot be made anew on the {carrier} {carrier_name} while it \
                     works there; remove it by one apply, and add it by a second one",
                    port.name
                ),
                false => format!(
                    "{what} \"{}\" cannot be opened on {carrier_name} while \"{}\" has it; remove \
                     that by one apply, and add this by a second one",
                    port.name, held.name
                ),
            });
        }
        self.refusals.append(&mut refusals);
    }

    /// Of what the kernel has too, a device of DPDK's takes the tunnel packets for the addresses
    /// that it was opened with.
    fn refuse_vteps(&mut self, old: &Plan, new: &Plan) {
        if vteps(new).is_subset(&vteps(old)) {
            return;
        }
        let stays = |port: &&Port| port.dpdk.is_some() && !self.begins(port.kind(), &port.name);
        let uplinks = new.ports.iter().filter(|port| port.kind() == Kind::Uplink).filter(stays);
        let refusals: Vec<_> = uplinks
            .map(|port| {
                format!(
                    "uplink \"{}\" is a device of DPDK's, and takes tunnel packets for the \
                     addresses that it was opened with; remove it by one apply, and add it with \
                     the new ones by a second one",
                    port.name
                )
            })
            .collect();
        self.refusals.extend(refusals);
    }

    /// A file carries one volume that writes at a time, and a target one volume of a name. One of
    /// another name is another user there, whose first I/O waits for none of the old one's.
    fn refuse_files(&mut self, old: &Plan, new: &Plan) {
        let leaving: Vec<_> =
            old.volumes.iter().filter(|volume| self.ends(Kind::Volume, &volume.name)).collect();
        let mut refusals = Vec::new();
        for volume in new.volumes.iter().filter(|it| self.begins(Kind::Volume, &it.name)) {
            refusals.extend(leaving.iter().find_map(|held| late(volume, held)));
            let Some(path) = file(volume) else { continue };
            let clashes =
                |old: &&&Volume| file(old) == Some(path) && !(old.read_only && volume.read_only);
            let Some(held) = leaving.iter().find(clashes) else { continue };
            refusals.push(format!(
                "volume \"{}\" cannot be opened on {} while \"{}\", as it is now, has it locked; \
                 remove that by one apply, and add this by a second one",
                volume.name,
                path.display(),
                held.name
            ));
        }
        self.refusals.append(&mut refusals);
    }
}

/// What two ports cannot both have, and its name: an interface, or a device of DPDK's.
fn carrier<'a>(old: &Port, new: &'a Port) -> Option<(&'static str, &'a str)> {
    if !new.interface.is_empty() && new.interface == old.interface {
        return Some(("interface", &new.interface));
    }
    let old = old.dpdk.as_deref()?.split(',').next()?;
    let new = new.dpdk.as_deref()?.split(',').next()?;
    (old == new).then_some(("device", new))
}

/// The tunnel addresses of a plan.
fn vteps(plan: &Plan) -> BTreeSet<std::net::IpAddr> {
    let of = |port: &Port| match port.role {
        Role::Uplink { vtep, vtep6, .. } => [vtep.map(Into::into), vtep6.map(Into::into)],
        Role::Tenant(_) => [None, None],
    };
    plan.ports.iter().flat_map(of).flatten().collect()
}

fn file(volume: &Volume) -> Option<&std::path::Path> {
    match &volume.backing {
        Backing::File { path, .. } => Some(path),
        _ => None,
    }
}

/// The subsystem and namespace of a remote volume.
fn target(volume: &Volume) -> Option<(&str, u32)> {
    match &volume.backing {
        Backing::Remote { nqn, nsid, .. } => Some((nqn, *nsid)),
        _ => None,
    }
}

/// Why a remote volume cannot come while `held`, which leaves, may have I/O in flight; `None`: it
/// can.
fn late(volume: &Volume, held: &Volume) -> Option<String> {
    let ((nqn, nsid), (held_nqn, held_nsid)) = (target(volume)?, target(held)?);
    if nqn != held_nqn {
        return None;
    }
    let name = &volume.name;
    if held.name == *name {
        return Some(format!(
            "volume \"{name}\" cannot be connected to {nqn} anew without ending the I/O of the one \
             that is there; remove it by one apply, and add it by a second one"
        ));
    }
    (nsid == held_nsid).then(|| {
        format!(
            "volume \"{name}\" cannot be connected to {nqn}, namespace {nsid}, while \"{}\" may \
             have I/O in flight there; remove that by one apply, and add this by a second one",
            held.name
        )
    })
}

/// What is done to an object with these settings before and after.
fn compare(
    kind: Kind,
    name: &str,
    before: Option<&settings::Settings>,
    after: Option<&settings::Settings>,
) -> Option<Change> {
    let none = settings::Settings::new();
    let (old, new) = (before.unwrap_or(&none), after.unwrap_or(&none));
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let mut differing = Vec::new();
    let mut in_place = true;
    for key in keys {
        let (old, new) = (old.get(key), new.get(key));
        if old != new {
            in_place &= settings::is_in_tables(kind, key);
            differing.push(Setting { key: key.clone(), old: old.cloned(), new: new.cloned() });
        }
    }
    let action = match (before, after) {
        (None, Some(_)) => Action::Add,
        (Some(_), None) => Action::Remove,
        _ if differing.is_empty() => return None,
        _ if in_place => Action::Change,
        _ => Action::Remake,
    };
    if action == Action::Remove {
        differing.clear();
    }
    Some(Change { kind, name: name.to_owned(), action, settings: differing })
}

/// Disks and exports of volumes that are made anew are made anew too.
fn remake_users(new: &Plan, changes: &mut BTreeMap<(Kind, String), Change>) {
    let disks = new.disks.iter().map(|disk| (Kind::Disk, &disk.name, disk.volume));
    let exports = new.exports.iter().map(|export| (Kind::Export, &export.nqn, export.volume));
    for (kind, name, volume) in disks.chain(exports) {
        let volume = (Kind::Volume, new.volumes[usize::from(volume)].name.clone());
        if changes.get(&volume).is_none_or(|change| change.action == Action::Change) {
            continue;
        }
        let unchanged =
            || Change { kind, name: name.clone(), action: Action::Remake, settings: Vec::new() };
        changes.entry((kind, name.clone())).or_insert_with(unchanged);
    }
}

/// What only a restart changes.
fn frozen(old: &Plan, new: &Plan) -> Vec<String> {
    let (old, new) = (settings::fixed(old), settings::fixed(new));
    let differs = old.iter().zip(&new).filter(|(old, new)| old != new);
    let refusals = differs.map(|((what, old), (_, new))| {
        format!(
            "{what} cannot change while the daemon runs: it is {old}, the new configuration says \
             {new}; restart the daemon, or keep it"
        )
    });
    refusals.collect()
}

impl Plan {
    /// A plan of the same instance, with the same workers, and nothing else: what a daemon is
    /// before the first apply.
    pub fn bare(&self) -> Plan {
        Plan {
            name: self.name.clone(),
            runtime: self.runtime,
            control_socket: self.control_socket.clone(),
            workers: self.workers.clone(),
            metrics: self.metrics,
            eal: self.eal.clone(),
            vpcs: Vec::new(),
            ports: Vec::new(),
            volumes: Vec::new(),
            exports: Vec::new(),
            disks: Vec::new(),
        }
    }

    /// Numbers the ports for a daemon that runs `old`: what stays keeps its number, what comes
    /// gets one that neither `old` nor `busy` has.
    ///
    /// # Panics
    /// When more than [`PORT_NUMBERS_MAX`] numbers are in use: the limits of a plan forbid it,
    /// as long as `busy` are numbers of `old`.
    pub fn placed(mut self, old: &Plan, difference: &Difference, busy: &[PortId]) -> Plan {
        let mut taken = vec![false; PORT_NUMBERS_MAX];
        for id in old.ports.iter().map(|port| port.id).chain(busy.iter().copied()) {
            taken[usize::from(id.0)] = true;
        }
        for port in &mut self.ports {
            let stays =
                old.ports.iter().find(|old| old.name == port.name && old.kind() == port.kind());
            let stays = stays.filter(|_| !difference.ends(port.kind(), &port.name));
            port.id = stays.map(|old| old.id).unwrap_or_else(|| {
                let free = taken.iter().position(|taken| !taken).expect("a number is free");
                taken[free] = true;
                PortId(free as u16)
            });
        }
        self
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return writeln!(f, "nothing differs");
        }
        for change in &self.changes {
            write!(f, "{change}")?;
        }
        let count = |action| self.changes.iter().filter(|it| it.action == action).count();
        let counts = [
            (count(Action::Add), "to add"),
            (count(Action::Change), "to change in place"),
            (count(Action::Remake), "to make anew"),
            (count(Action::Remove), "to remove"),
        ];
        let there = counts.iter().filter(|(count, _)| *count > 0);
        let text: Vec<_> = there.map(|(count, what)| format!("{count} {what}")).collect();
        if !text.is_empty() {
            writeln!(f, "{}", text.join(", "))?;
        }
        for refusal in &self.refusals {
            writeln!(f, "refused: {refusal}")?;
        }
        Ok(())
    }
}

impl Change {
    /// One line: what is done to what.
    pub fn headline(&self) -> String {
        let (sign, remark) = match self.action {
            Action::Add => ("+", ""),
            Action::Change => ("~", " (in place)"),
            Action::Remake if self.settings.is_empty() => ("-/+", " (made anew with its volume)"),
            Action::Remake => ("-/+", " (made anew)"),
            Action::Remove => ("-", ""),
        };
        format!("{sign:3} {} \"{}\"{remark}", self.kind.name(), self.name)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.headline())?;
        for Setting { key, old, new } in &self.settings {
            match (old, new) {
                (None, Some(new)) => writeln!(f, "      {key} = {new}")?,
                (Some(old), None) => writeln!(f, "      {key} was {old}")?,
                (old, new) => {
                    let text = |it: &Option<String>| it.clone().unwrap_or_default();
                    writeln!(f, "      {key} = {} (was {})", text(new), text(old))?;
                }
            }
        }
        Ok(())
    }
}
