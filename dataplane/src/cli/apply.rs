//! `outboard apply`

use super::{Failure, load};
use clap::Args;
use outboard::control::api::apply::{Outcome, Report, Request, ask_apply};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit code of a dry run that found a difference.
const DIFFERS: u8 = 3;

/// Make a running daemon what a configuration says, without a restart
///
/// The daemon compares the file with what it runs and changes only what differs, all or nothing:
/// what comes is opened first, and when something cannot be opened everything stays as it was.
/// Ports, VPCs, routes, volumes, exports and disks that do not differ lose no packet and fail no
/// I/O.
#[derive(Debug, Args)]
#[command(after_help = "\
What is shown:
  +    comes
  ~    changes in place: addresses, MTUs, MACs, VPCs and their routes; no packet is lost by it
  -/+  is removed and made anew: everything else that differs, and disks and exports of a volume
       that is made anew; a guest sees its disk go and come; a volume in memory is empty again
  -    goes, when the I/O that it has in flight has ended

What only a restart changes, and is refused: `name`, [runtime], [control] and the [[worker]]s;
`eal` of [dpdk] once a port needed it.
A port that keeps its interface but gets other queues or workers, and a file that gets another
volume, cannot be opened while the old one has them: apply the removal first, then the addition.

Exit codes: 0 done, or with --dry-run nothing differs; 3 with --dry-run: something differs;
1 nothing was changed, the reason is told; 2 wrong usage.

Examples:
  outboard apply --config host-a.toml --dry-run    what would change?
  outboard apply --config host-a.toml              change it
  kill -HUP PID                                    the daemon applies the file that it was started
                                                   with; the log tells what came of it

A daemon that starts again reads the file that it is started with: keep that one up to date.")]
pub struct Apply {
    /// The configuration that shall be in force
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    /// Only show what would change; exit code 3 when something would
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Print the difference and what came of it as one line of JSON
    #[arg(long, short)]
    json: bool,
    /// The daemon's control socket, when it is not the one that the configuration names
    #[arg(long, short, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Apply {
    pub fn run(self) -> Result<ExitCode, Failure> {
        // Checked here too, so that a mistake is shown without a daemon.
        let plan = load(&self.config)?;
        let config = std::fs::read_to_string(&self.config)?;
        let socket = self.socket.unwrap_or(plan.control_socket);
        let file = self.config.display().to_string();
        let report = ask_apply(&socket, Request { file, config, dry_run: self.dry_run })?;
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(&report)?)?;
        } else {
            write!(out, "{}", report.difference)?;
        }
        outcome(&report, self.json, &mut out)
    }
}

fn outcome(report: &Report, json: bool, out: &mut impl Write) -> Result<ExitCode, Failure> {
    match &report.outcome {
        Outcome::NotTried if report.difference.is_empty() => Ok(ExitCode::SUCCESS),
        Outcome::NotTried => Ok(ExitCode::from(DIFFERS)),
        Outcome::Applied { leaving } => {
            if !json && !report.difference.is_empty() {
                writeln!(out, "applied")?;
                for what in leaving {
                    writeln!(out, "{what} has I/O in flight and leaves when that has ended")?;
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Refused => {
            let reasons = report.difference.refusals.iter().map(|it| format!("error: {it}"));
            let reasons: Vec<_> = reasons.collect();
            Err(Failure(format!("{}\nerror: nothing was changed", reasons.join("\n"))))
        }
        Outcome::Failed { reason } => {
            Err(Failure(format!("error: {reason}\nerror: nothing was changed")))
        }
    }
}
