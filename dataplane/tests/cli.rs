//! The `outboard` command as a user runs it.

use outboard::control::api::Api;
use outboard::control::stats::{PortStats, Stats};
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
