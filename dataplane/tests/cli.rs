//! The `outboard` command as a user runs it.

use outboard::control::api::Api;
use outboard::control::stats::{DiskStats, PortStats, Stats, VpcStats};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn outboard(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_outboard")).args(args).output().unwrap()
}

#[track_caller]
fn ends(output: &Output, code: i32, stdout: &str, stderr: &str) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(text(&output.stdout), stdout);
    assert_eq!(text(&output.stderr), stderr);
    assert_eq!(output.status.code(), Some(code));
}

/// A directory that ends with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let name = format!("outboard-cli-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn check_accepts_the_examples() {
    for (host, what) in [
        ("host-a", "2 workers, 2 VPCs, 1 uplink, 2 ports, 3 volumes, 1 export, 2 disks"),
        ("host-b", "1 worker, 2 VPCs, 1 uplink, 2 ports, 1 volume, 1 export"),
    ] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/config");
        let example = folder.join(format!("{host}.toml")).display().to_string();
        let stdout = format!("{example} is right: \"{host}\" with {what}\n");
        ends(&outboard(&["check", "--config", &example]), 0, &stdout, "");
    }
}

#[test]
fn check_shows_mistakes_and_fails() {
    let scratch = Scratch::new("check");
    let file = scratch.file("a.toml", "name = \"a\"\n[[worker]]\ncore = \"0\"\n");
    let stderr = format!(
        "error: `core` of [[worker]] is a string\n \
         --> {file}:3:8\n  |\n3 | core = \"0\"\n  |        ^^^ want a number from 0 to 65535\n\n\
         error: 1 mistake in {file}\n"
    );
    ends(&outboard(&["check", "--config", &file]), 1, "", &stderr);
    let stderr = "error: cannot read the configuration /nonexistent: \
                  No such file or directory (os error 2)\n";
    ends(&outboard(&["check", "--config", "/nonexistent"]), 1, "", stderr);
}

#[test]
fn wrong_usage_ends_with_2() {
    for args in
        [&["check"][..], &["frobnicate"], &[], &["stats", "--socket", "/x", "--config", "/y"]]
    {
        let output = outboard(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(!output.stderr.is_empty());
    }
    assert_eq!(outboard(&["--help"]).status.code(), Some(0));
}

#[test]
fn stats_prints_tables_or_json() {
    let scratch = Scratch::new("stats");
    let socket = scratch.0.join("a.sock");
    let file = scratch
        .file("a.toml", &format!("name = \"a\"\n[control]\nsocket = \"{}\"\n", socket.display()));
    let stderr = format!(
        "error: no daemon at {}: there is no such socket; is `outboard run` running?\n",
        socket.display()
    );
    ends(&outboard(&["stats", "--config", &file]), 1, "", &stderr);

    let port = PortStats { name: "p".into(), rx_packets: 5, ..PortStats::default() };
    let stats = Stats { instance: "a".into(), ports: vec![port], ..Stats::default() };
    let snapshot = stats.clone();
    let _api = Api::start(&socket, move || snapshot.clone()).unwrap();
    ends(&outboard(&["stats", "--config", &file]), 0, &stats.to_string(), "");
    let json = outboard(&["stats", "--socket", &socket.display().to_string(), "--json"]);
    assert_eq!(serde_json::from_slice::<Stats>(&json.stdout).unwrap(), stats);
}

#[test]
fn stats_shows_what_is_named_and_nothing_else() {
    let scratch = Scratch::new("only");
    let socket = scratch.0.join("a.sock");
    let port = |name: &str| PortStats { name: name.into(), ..PortStats::default() };
    let vpc = |name: &str| VpcStats { name: name.into(), ..VpcStats::default() };
    let disk = |name: &str| DiskStats { name: name.into(), ..DiskStats::default() };
    let stats = Stats {
        instance: "a".into(),
        ports: vec![port("web"), port("db"), port("up")],
        vpcs: vec![vpc("blue"), vpc("red")],
        disks: vec![disk("vda"), disk("vdb")],
        ..Stats::default()
    };
    let _api = Api::start(&socket, move || stats.clone()).unwrap();
    let named = |arguments: &[&str]| {
        let socket = socket.display().to_string();
        outboard(&[&["stats", "--json", "--socket", &socket], arguments].concat())
    };
    for (arguments, wanted) in [
        (&["--port", "up", "--port", "web"][..], "web up"),
        (&["--vpc", "red"], "red"),
        (&["--disk", "vdb"], "vdb"),
        (&["-p", "db", "--vpc", "blue", "-d", "vda"], "db blue vda"),
    ] {
        let output = named(arguments);
        let left: Stats = serde_json::from_slice(&output.stdout).unwrap();
        let ports = left.ports.iter().map(|it| it.name.as_str());
        let vpcs = left.vpcs.iter().map(|it| it.name.as_str());
        let disks = left.disks.iter().map(|it| it.name.as_str());
        let names: Vec<&str> = ports.chain(vpcs).chain(disks).collect();
        assert_eq!(names.join(" "), wanted);
    }
    let stderr = "error: no VPC is named \"bleu\"; did you mean `blue`?\n";
    ends(&named(&["--vpc", "bleu"]), 1, "", stderr);
    let stderr = "error: no disk is named \"vdx\"; did you mean `vda`?\n";
    ends(&named(&["--disk", "vdx"]), 1, "", stderr);
}
