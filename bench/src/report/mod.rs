//! `report`: documents in, one merged `report.json`, a self-contained `report.html` and a table.
//!
//! A document is what any driver or suite writes with `--json`, or a file of facts that other
//! programs made (see [`FACTS_HELP`]). Order of files is order in the report.

pub mod html;
mod plot;
mod stages;
pub mod summary;
pub mod terminal;

use crate::error::Error;
use crate::schema::Report;
use clap::Args;
use std::path::{Path, PathBuf};

/// The form of a file of facts, for `--help`.
const FACTS_HELP: &str = r#"A file of facts holds what other programs found:
  {"facts": [{"kind": "throughput", "title": "iperf3 TCP, one stream", "path": "Outboard",
              "value": 11.2, "unit": "Gbit/s", "command": "iperf3 -c 10.1.0.2"},
             {"kind": "reach", "title": "ping red-a to red-b", "path": "Outboard", "ok": true,
              "value": 0.08, "unit": "ms", "text": "5 of 5 answered"},
             {"kind": "isolation", "title": "red cannot reach blue", "ok": true},
             {"kind": "note", "title": "workers ran in adaptive mode on 2 cores"}]}
`title` is required and `kind` is throughput (a bar among those of its title), reach, isolation or
note; the rest may be left out."#;

/// Merge measurements into report.json and a self-contained report.html, and print the summary.
///
/// Measurements of one group (--group of the drivers) are compared: one table, one plot. The one
/// marked --baseline is what the others are divided by.
///
/// Example:
///   outboard-bench report --out target/demo net-a.json net-b.json disk.json facts.json
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment, after_help = FACTS_HELP)]
pub struct ReportArgs {
    /// The directory for report.json and report.html; made when missing.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// What stands at the top of the page.
    #[arg(long, default_value = "Outboard: measurement report")]
    pub title: String,
    /// Documents written with --json, and files of facts.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// Merges, writes, prints.
pub fn run(args: &ReportArgs) -> Result<(), Error> {
    let mut report = Report::default();
    for file in &args.files {
        report.merge(read(file)?);
    }
    let out = args.out.display();
    std::fs::create_dir_all(&args.out).map_err(Error::system(format!("cannot make {out}")))?;
    let json = serde_json::to_string_pretty(&report)
        .map_err(|error| Error::Refused(format!("cannot encode the report: {error}")))?;
    write(&args.out.join("report.json"), &(json + "\n"))?;
    write(&args.out.join("report.html"), &html::page(&args.title, &report))?;
    print!("{}", terminal::tables(&report));
    println!("{out}/report.html\n{out}/report.json");
    Ok(())
}

/// Reads a document.
pub fn read(file: &Path) -> Result<Report, Error> {
    let name = file.display();
    let text = std::fs::read(file).map_err(Error::system(format!("cannot read {name}")))?;
    parse(&text).map_err(|error| {
        Error::Refused(format!(
            "{name}: {error}; expected what a driver writes with --json, or a file of facts \
             (`outboard-bench report --help` shows its form)"
        ))
    })
}

/// A document from the content of its file.
pub fn parse(text: &[u8]) -> serde_json::Result<Report> {
    serde_json::from_slice(text)
}

fn write(file: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(file, text).map_err(Error::system(format!("cannot write {}", file.display())))
}
