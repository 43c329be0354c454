//! The program as a user runs it: drivers write documents, `report` merges them, errors are told.

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("obb-cli-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn bench(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_outboard-bench");
    Command::new(program).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn json(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// An echo side that is killed whatever happens.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start() -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_outboard-bench"))
            .args(["udp", "--server", "127.0.0.1:0", "--wait", "block"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("echoing on ").unwrap().to_owned();
        Server { child, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn drivers_write_documents_and_report_merges_them() {
    let scratch = Scratch::new("report");
    let server = Server::start();
    let udp = scratch.path("udp.json");
    let watch = format!("echo={}", server.child.id());
    let short = ["--seconds", "0.3", "--warmup", "0.1", "--wait", "block", "--json", udp.as_str()];
    let mut arguments =
        vec!["udp", "--to", &server.address, "--watch", &watch, "--path", "Outboard"];
    arguments.extend(short);
    let output = bench(&arguments);
    assert!(output.status.success(), "{}", said(&output));
    let document = json(&udp);
    let m = &document["measurements"][0];
    assert!(m["latency"]["samples"].as_u64().unwrap() > 0 && m["verify_failures"] == 0);
    assert!(m["command"].as_str().unwrap().contains("--watch echo="));
    let threads = m["census"]["threads"].as_array().unwrap();
    assert!(threads.iter().any(|t| t["process"] == "echo"), "{threads:?}");
    assert!(document["fingerprint"]["kernel"].as_str().is_some_and(|kernel| !kernel.is_empty()));

    let (image, file) = (scratch.path("disk.img"), scratch.path("file.json"));
    let output = bench(&[
        "file",
        &image,
        "--create-mib",
        "2",
        "--working-set-mib",
        "2",
        "--seconds",
        "0.2",
        "--warmup",
        "0",
        "--mix",
        "mixed",
        "--depth",
        "4",
        "--full-check",
        "--baseline",
        "--json",
        &file,
    ]);
    assert!(output.status.success(), "{}", said(&output));

    let facts = scratch.path("facts.json");
    let fact = r#"{"facts":[{"kind":"isolation","title":"red <> blue","ok":true}]}"#;
    std::fs::write(&facts, fact).unwrap();
    let out = scratch.path("out");
    let output = bench(&["report", "--out", &out, &udp, &file, &facts]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("red <> blue"));
    let merged = json(&format!("{out}/report.json"));
    assert_eq!(merged["measurements"].as_array().unwrap().len(), 2);
    let page = std::fs::read_to_string(format!("{out}/report.html")).unwrap();
    assert!(page.contains("red &lt;&gt; blue") && page.matches("<svg").count() == 2);
}

#[test]
fn wrong_use_is_told_with_its_remedy() {
    let scratch = Scratch::new("wrong");
    let broken = scratch.path("broken.json");
    std::fs::write(&broken, "{\"facts\": 7}").unwrap();
    let (out, missing) = (scratch.path("out"), scratch.path("missing.img"));
    for (arguments, words) in [
        (vec!["report", "--out", &out, &broken], vec!["broken.json", "--help"]),
        (vec!["file", &missing], vec!["missing.img", "--create-mib"]),
        (vec!["vhost-blk", &missing], vec!["missing.img", "running"]),
        (vec!["afxdp", "--tx", "no-such-if", "--rx", "x"], vec!["no-such-if"]),
        (vec!["reference", "ping-pong", "--a", "no-such-if", "--b", "x"], vec!["no-such-if"]),
        (vec!["vhost-blk", &missing, "--wait", "block"], vec!["missing.img", "running"]),
        (vec!["udp", "--to", "127.0.0.1:9", "--payload", "7"], vec!["--payload"]),
    ] {
        let output = bench(&arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let text = said(&output);
        assert!(words.iter().all(|word| text.contains(word)), "{arguments:?}: {text}");
    }
    for arguments in [vec!["udp"], vec!["file", "x", "--rate", "5", "--depth", "2"], vec!["suite"]]
    {
        assert_eq!(bench(&arguments).status.code(), Some(2), "{arguments:?}");
    }
}

/// A document of a suite with one ratio of five runs.
fn ratio(id: &str, factor: f64) -> String {
    let runs: Vec<f64> = [1.0, 1.01, 0.99, 1.02, 1.0].map(|run| run * factor).into();
    let target = serde_json::json!({
        "id": id, "unit": "ratio", "runs": runs, "value": factor, "want": "<= 9", "met": true,
        "threads": [], "cause": "",
    });
    serde_json::json!({ "targets": [target] }).to_string()
}

#[test]
fn compare_says_by_its_exit_code_what_became_of_the_figures() {
    let scratch = Scratch::new("compare");
    let file = |name: &str, text: String| {
        std::fs::write(scratch.path(name), text).unwrap();
        scratch.path(name)
    };
    let base = file("base.json", ratio("some-ratio", 1.0));
    let slower = file("slower.json", ratio("some-ratio", 1.5));
    let other = file("other.json", ratio("another-ratio", 1.0));
    let compared = scratch.path("compared.json");
    for (old, new, code, words) in [
        (&base, &base, 0, "0 worse, 0 better"),
        (&slower, &base, 0, "0 worse, 1 better"),
        (&base, &slower, 3, "1 worse, 0 better"),
        (&base, &other, 1, "have no figure in common; compare documents of the same suite"),
    ] {
        let output = bench(&["compare", old, new, "--json", &compared]);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(words), "{text}");
        if code != 1 {
            assert_eq!(json(&compared)["regressions"], u64::from(code == 3));
        }
    }
    // What is no document cannot be compared either.
    let text = file("text.json", "faster!".into());
    assert_eq!(bench(&["compare", &base, &text]).status.code(), Some(1));
    assert_eq!(bench(&["compare", &base, &scratch.path("missing.json")]).status.code(), Some(1));
}

#[test]
fn every_command_explains_itself() {
    for command in ["udp", "afxdp", "vhost-blk", "file", "reference", "suite", "report", "compare"]
    {
        let output = bench(&[command, "--help"]);
        assert!(output.status.success() && said(&output).contains("Example"), "{command}");
    }
    let output = bench(&["reference", "ping-pong", "--help"]);
    assert!(said(&output).contains("Example"), "{}", said(&output));
}

/// Namespaces that a process of this number made.
fn namespaces_of(pid: u32) -> usize {
    let prefix = format!("obb{pid}-");
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count()
}

#[test]
fn a_suite_cleans_up_when_it_is_interrupted() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_outboard-bench"))
        .args(["suite", "net"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    let began = Instant::now();
    while namespaces_of(pid) < 2 && child.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < Duration::from_secs(60), "no namespaces appeared");
        std::thread::sleep(Duration::from_millis(5));
    }
    let process = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert_eq!(namespaces_of(pid), 0);
    let pins = format!("/sys/fs/bpf/outboard-bench-{pid}");
    assert!(!std::path::Path::new(&pins).exists());
}
