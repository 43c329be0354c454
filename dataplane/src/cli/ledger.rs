//! `outboard ledger`

use super::Failure;
use super::socket::Which;
use clap::Args;
use outboard::control::api::ledger::{SECONDS_MAX, ask_ledger};
use std::io::Write;

/// Show where packets and I/Os spend their time, stage by stage, at p50, p99 and p99.9
///
/// The daemon's workers keep ledgers for some seconds: each packet and I/O with its time in every
/// stage, and the slowest ones spelled out. Off by default, because it reads the clock several
/// times per burst and per I/O; off, it costs a branch at each of these places.
#[derive(Debug, Args)]
#[command(after_help = "\
Shares are those of the packets and I/Os around a percentile: what made them as slow as that. A
percentile with fewer than 10 samples beyond it is shown as –. `unseen` is an upper bound: nobody
knows when something came, only when the worker looked last. An answer of the gateway counts as a
packet from a port to itself. Dropped packets are left out, and so are I/Os that were in flight when
the look began.

An I/O on a disk is told from the guest's ring and back to it. On a `remote I/O`, `target` is the
network and everything at the other host; what it did there is in that host's own ledger, as `export
I/O`: from the last bytes of the command, or of the data of a write, until its response was given to
the socket. A discard of several ranges, and a durable write with its flush, is one I/O there.

`outboard-bench suite ledger` shows the ledgers of packets and of I/Os on every kind of volume on
this machine, with plots, and what keeping them costs.

Examples:
  outboard ledger --config host-a.toml               look for 5 seconds
  outboard ledger --config host-a.toml --seconds 60  the longer, the more of p99.9
  outboard ledger --config host-a.toml --seconds 0   since the last look, of a daemon that always
                                                     keeps ledgers (`ledger = true` in [runtime])")]
pub struct Ledger {
    #[command(flatten)]
    which: Which,
    /// How long to look
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(..=i64::from(SECONDS_MAX)))]
    seconds: u32,
    /// Print one line of JSON
    #[arg(long, short)]
    json: bool,
}

impl Ledger {
    pub fn run(self) -> Result<(), Failure> {
        let report = ask_ledger(&self.which.socket()?, self.seconds)?;
        let text =
            if self.json { serde_json::to_string(&report)? + "\n" } else { report.to_string() };
        match std::io::stdout().lock().write_all(text.as_bytes()) {
            // The reader, such as `head`, has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            result => Ok(result?),
        }
    }
}
