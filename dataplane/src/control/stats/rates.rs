//! What happened per second between two snapshots.

use super::{DiskStats, ExportStats, PortStats, Stats, Table, VpcStats, total};
use std::fmt::{self, Display};

/// Two snapshots of one daemon.
#[derive(Clone, Copy, Debug)]
pub struct Rates<'a> {
    /// The earlier one.
    pub before: &'a Stats,
    /// The later one.
    pub now: &'a Stats,
    /// Time between them.
    pub seconds: f64,
}

impl Rates<'_> {
    /// Differences of counters per second. What counts less than before began anew meanwhile.
    fn of<const N: usize>(&self, before: [u64; N], now: [u64; N]) -> [String; N] {
        let mut before = before.into_iter();
        now.map(|now| {
            let before = before.next().filter(|before| *before <= now).unwrap_or(0);
            let rate = (now - before) as f64 / self.seconds.max(f64::MIN_POSITIVE);
            format!("{rate:.0}")
        })
    }

    /// Prints a row for each of `now` that was there before.
    fn table<T, const N: usize>(
        &self,
        f: &mut fmt::Formatter<'_>,
        heads: (&str, [&str; N]),
        (before, now): (&[T], &[T]),
        name: fn(&T) -> &String,
        counts: fn(&T) -> [u64; N],
    ) -> fmt::Result {
        let mut table = Table::new(&[&[heads.0], &heads.1[..]].concat());
        for item in now {
            let Some(old) = before.iter().find(|old| name(old) == name(item)) else { continue };
            let rates = self.of(counts(old), counts(item));
            let mut cells: Vec<&dyn Display> = vec![name(item)];
            cells.extend(rates.iter().map(|rate| rate as &dyn Display));
            table.row(&cells);
        }
        table.print(f)
    }
}

/// A packet's way has these.
const PACKETS: [&str; 5] =
    ["#rx packets/s", "#rx bytes/s", "#tx packets/s", "#tx bytes/s", "#dropped/s"];

impl Display for Rates<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rates { before, now, .. } = self;
        let ports = (&before.ports[..], &now.ports[..]);
        self.table(
            f,
            ("port", PACKETS),
            ports,
            |it: &PortStats| &it.name,
            |it| [it.rx_packets, it.rx_bytes, it.tx_packets, it.tx_bytes, total(&it.drops)],
        )?;
        let vpcs = (&before.vpcs[..], &now.vpcs[..]);
        self.table(
            f,
            ("VPC", PACKETS),
            vpcs,
            |it: &VpcStats| &it.name,
            |it| [it.rx_packets, it.rx_bytes, it.tx_packets, it.tx_bytes, it.dropped],
        )?;
        let disks = (&before.disks[..], &now.disks[..]);
        let heads = ["#requests/s", "#read bytes/s", "#written bytes/s"];
        self.table(
            f,
            ("disk", heads),
            disks,
            |it: &DiskStats| &it.name,
            |it| [it.requests, it.read_bytes, it.written_bytes],
        )?;
        let exports = (&before.exports[..], &now.exports[..]);
        self.table(
            f,
            ("export", ["#commands/s"]),
            exports,
            |it: &ExportStats| &it.nqn,
            |it| [it.commands],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::stats::tests::sample;

    #[test]
    fn rates_are_differences_per_second() {
        let (before, mut now) = (sample(), sample());
        now.ports[1].rx_packets += 300;
        now.ports[1].tx_bytes = 0;
        now.disks[0].requests += 7;
        now.exports.clear();
        let shown = Rates { before: &before, now: &now, seconds: 2.0 }.to_string();
        let expected = "
port      rx packets/s  rx bytes/s  tx packets/s  tx bytes/s  dropped/s
uplink               0           0             0           0          0
blue-web           150           0             0           0          0

VPC   rx packets/s  rx bytes/s  tx packets/s  tx bytes/s  dropped/s
blue             0           0             0           0          0

disk  requests/s  read bytes/s  written bytes/s
vda            4             0                0
";
        assert_eq!(shown, expected, "\n{shown}");
    }
}
