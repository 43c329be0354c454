//! Drivers: each puts load on one kind of path and returns one [`Measurement`].

pub mod afxdp;
pub mod block;
pub mod device;
pub mod file;
pub mod pattern;
pub mod remote;
pub mod udp;
pub mod vhost_blk;

use crate::error::Error;
use crate::load::{self, Load, Monotonic, Pace, Tally, Work};
use crate::machine::census::{Named, Watch};
use crate::machine::{fingerprint, pin};
use crate::reference::cacheline;
use crate::report::terminal;
use crate::schema::{Measurement, Report};
use crate::stop;
use clap::{Args, ValueEnum};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use std::os::fd::AsFd;
use std::path::PathBuf;

/// What every driver takes.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// Open loop: requests per second. Latency counts from the intended send time.
    #[arg(long, value_name = "PER_S", conflicts_with = "depth")]
    pub rate: Option<f64>,
    /// Closed loop: requests kept in flight. The default, with depth 1.
    #[arg(long, value_name = "N")]
    pub depth: Option<u16>,
    /// Open loop: the most requests in flight before the next has to wait.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub window: u16,
    /// Length of the measured window.
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    pub seconds: f64,
    /// Time before the window; nothing of it is recorded.
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub warmup: f64,
    /// Pin the generator to this core.
    #[arg(long, value_name = "CORE")]
    pub core: Option<usize>,
    /// Write the measurement as JSON (`-`: standard output, instead of the table).
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Measure the cache-line round trip around the run.
    #[arg(skip = true)]
    pub calibrate: bool,
    #[command(flatten)]
    pub label: LabelArgs,
}

/// How a measurement is named and compared in reports.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "In reports")]
pub struct LabelArgs {
    /// Name in tables; the driver's name and parameters when not given.
    #[arg(long)]
    pub name: Option<String>,
    /// Measurements of one group share a plot and are compared.
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// The path measured, for the legend: "Outboard", "kernel bridge + VXLAN".
    #[arg(long, value_name = "LABEL")]
    pub path: Option<String>,
    /// What carries the bytes: "veth", "mem volume", "file on ext4".
    #[arg(long, value_name = "TEXT")]
    pub medium: Option<String>,
    /// The others of the group are divided by this one.
    #[arg(long)]
    pub baseline: bool,
    /// What is measured is not ours: `compare` tells its changes, but does not judge them.
    #[arg(long)]
    pub peer: bool,
    /// A process whose threads the census lists; repeatable.
    #[arg(long = "watch", value_name = "NAME=PID")]
    pub watch: Vec<Named>,
    /// A line that stands below the measurement; repeatable.
    #[arg(long = "note", value_name = "TEXT")]
    pub notes: Vec<String>,
}

impl LoadArgs {
    /// Arguments of a suite's run: `depth` in a closed loop for `seconds`.
    pub fn closed(depth: u16, seconds: f64, warmup: f64, core: usize) -> LoadArgs {
        LoadArgs {
            rate: None,
            depth: Some(depth),
            window: depth,
            seconds,
            warmup,
            core: Some(core),
            json: None,
            calibrate: true,
            label: LabelArgs::default(),
        }
    }

    /// Checked, with this time-out for requests that do not end.
    pub fn load(&self, lost_after_s: f64) -> Result<Load, Error> {
        let positive = |value: f64, name: &str, limit: f64| match value {
            value if value.is_finite() && value > 0.0 && value <= limit => Ok(value),
            _ => Err(Error::Refused(format!("--{name} must be above 0 and at most {limit}"))),
        };
        let ns = |seconds: f64| (seconds * 1e9) as u64;
        let seconds = positive(self.seconds, "seconds", 86_400.0)?;
        if !(0.0..=86_400.0).contains(&self.warmup) {
            return Err(Error::Refused("--warmup must be 0 to 86400 seconds".into()));
        }
        let pace = match self.rate {
            Some(rate) => Pace::Open { rate_per_s: positive(rate, "rate", 1e8)? },
            None => Pace::Closed,
        };
        let depth = if self.rate.is_some() { self.window } else { self.depth.unwrap_or(1) };
        if depth == 0 {
            return Err(Error::Refused("--depth and --window must be at least 1".into()));
        }
        Ok(Load {
            pace,
            depth,
            warmup_ns: ns(self.warmup),
            measure_ns: ns(seconds),
            lost_after_ns: ns(lost_after_s),
        })
    }

    /// `depth 4` or `50000/s`, for names.
    pub fn pace_text(&self) -> String {
        match self.rate {
            Some(rate) => format!("{rate:.0}/s"),
            None => format!("depth {}", self.depth.unwrap_or(1)),
        }
    }
}

/// What a side does when nothing has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wait {
    /// Look again at once: one core, lowest latency.
    Spin,
    /// Sleep until something comes.
    Block,
}

impl Wait {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Wait::Spin => "spin",
            Wait::Block => "block",
        }
    }
}

/// Waits until `source` is readable, at most `limit_ns`; whether it is. Errors are met again by
/// the next call on it.
fn sleep(source: impl AsFd, limit_ns: u64) -> bool {
    let seconds = (limit_ns / 1_000_000_000) as i64;
    let limit = Timespec { tv_sec: seconds, tv_nsec: (limit_ns % 1_000_000_000) as _ };
    poll(&mut [PollFd::new(&source, PollFlags::IN)], Some(&limit)).is_ok_and(|ready| ready > 0)
}

/// What a driver says about itself and its path.
pub struct Subject {
    /// The driver's name.
    pub driver: &'static str,
    /// Default of `--name`.
    pub name: String,
    /// Default of `--group`.
    pub group: String,
    /// Default of `--medium`.
    pub medium: String,
    /// Payload bytes of one request.
    pub bytes: u64,
    /// Whether requests are block I/O.
    pub is_block: bool,
    /// Parameters beyond those of the load.
    pub parameters: Vec<(&'static str, Value)>,
}

/// Runs the load with census and calibration around it.
pub fn measure<W: Work>(
    work: &mut W,
    args: &LoadArgs,
    load: &Load,
    subject: Subject,
) -> Result<Measurement, Error> {
    let trip_ns = || args.calibrate.then(cacheline::round_trip_ns).flatten();
    let trip_before = trip_ns();
    let pinned = args.core.map(pin).transpose()?;
    let watch = Watch::begin(&args.label.watch);
    let tally = load::run(work, &mut Monotonic, load, stop::flag())?;
    let census = watch.end();
    drop(pinned);
    let trip_after = trip_ns();
    let mut measurement = describe(args, load, &tally, subject);
    measurement.census = census;
    measurement.cacheline_ns = trip_before.zip(trip_after).map(|(before, after)| [before, after]);
    Ok(measurement)
}

fn describe(args: &LoadArgs, load: &Load, tally: &Tally, subject: Subject) -> Measurement {
    let rate_per_s = tally.rate_per_s();
    let label = &args.label;
    let mut parameters: Vec<(&str, Value)> = vec![
        ("loop", if args.rate.is_some() { "open" } else { "closed" }.into()),
        ("depth", load.depth.into()),
        ("warmup_s", args.warmup.into()),
        ("core", args.core.into()),
    ];
    parameters.extend(subject.parameters);
    Measurement {
        name: label.name.clone().unwrap_or(subject.name),
        driver: subject.driver.to_owned(),
        group: label.group.clone().unwrap_or(subject.group),
        path: label.path.clone().unwrap_or_else(|| subject.driver.to_owned()),
        medium: label.medium.clone().unwrap_or(subject.medium),
        baseline: label.baseline,
        peer: label.peer,
        parameters: parameters.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        latency: tally.latency.summary(),
        rate_per_s,
        iops: subject.is_block.then_some(rate_per_s),
        bytes_per_s: rate_per_s * subject.bytes as f64,
        asked_rate_per_s: args.rate,
        errors: tally.errors,
        lost: tally.lost,
        strays: tally.strays,
        unsent: tally.unsent,
        verified: tally.verified,
        verify_failures: tally.verify_failures,
        seconds: load.measure_ns as f64 / 1e9,
        command: command_line(),
        notes: label.notes.clone(),
        ..Measurement::default()
    }
}

/// This process's command line, quoted where a shell would need it.
pub fn command_line() -> String {
    std::env::args().map(|word| quoted(&word)).collect::<Vec<_>>().join(" ")
}

/// A word as a shell takes it.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Prints the table, or writes the JSON, or both; wrong content makes it an error.
pub fn publish(measurement: Measurement, json: Option<&std::path::Path>) -> Result<(), Error> {
    let failures = measurement.verify_failures;
    let mut fingerprint = fingerprint::take();
    if let Some([before, after]) = measurement.cacheline_ns {
        fingerprint.cacheline_before_ns = Some(before);
        fingerprint.cacheline_after_ns = Some(after);
    }
    let report = Report {
        fingerprint: Some(fingerprint),
        measurements: vec![measurement],
        ..Report::default()
    };
    write(&report, json)?;
    match failures {
        0 => Ok(()),
        n => Err(Error::Refused(format!("{n} answers had wrong content: the path corrupts data"))),
    }
}

/// Writes a document to `json`, and the table to standard output unless the document goes there.
pub fn write(report: &Report, json: Option<&std::path::Path>) -> Result<(), Error> {
    let to_stdout = json.is_some_and(|path| path.as_os_str() == "-");
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(report)
            .map_err(|error| Error::Refused(format!("cannot encode the report: {error}")))?;
        if to_stdout {
            println!("{text}");
        } else {
            std::fs::write(path, text + "\n")
                .map_err(Error::system(format!("cannot write {}", path.display())))?;
        }
    }
    if !to_stdout {
        print!("{}", terminal::tables(report));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_checked() {
        let good = LoadArgs::closed(4, 1.0, 0.5, 0);
        let load = good.load(1.0).unwrap();
        assert_eq!((load.pace, load.depth, load.warmup_ns), (Pace::Closed, 4, 500_000_000));
        for (rate, seconds, depth) in
            [(Some(0.0), 1.0, 1), (Some(f64::NAN), 1.0, 1), (None, 0.0, 1), (None, 1.0, 0)]
        {
            let bad = LoadArgs { rate, seconds, depth: Some(depth), window: depth, ..good.clone() };
            assert!(bad.load(1.0).is_err(), "{rate:?} {seconds} {depth}");
        }
        let open = LoadArgs { rate: Some(1e3), window: 99, ..good };
        assert_eq!(open.load(1.0).unwrap().depth, 99);
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("--rate=5"), "--rate=5");
        assert_eq!(quoted("it's two words"), r"'it'\''s two words'");
        assert_eq!(quoted(""), "''");
    }
}
