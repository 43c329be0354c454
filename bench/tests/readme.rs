//! The workflow in README.md is YAML that a runner takes, and every command in it is one that the
//! programs here know, with every option.

use std::path::Path;
use std::process::Command;
use yaml_rust2::{Yaml, YamlLoader};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn workflow() -> Yaml {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, rest) = readme.split_once("```yaml\n").expect("README.md shows a workflow");
    let (text, _) = rest.split_once("```").unwrap();
    YamlLoader::load_from_str(text).unwrap_or_else(|error| panic!("{error}")).remove(0)
}

/// The option that the subcommand's help must name; nothing when the word is a value.
fn option(word: &str) -> Option<&str> {
    word.starts_with("--").then(|| word.split('=').next().unwrap())
}

/// An `outboard-bench` command: its subcommand exists and has the options and arguments.
fn check_bench(words: &[&str]) {
    let program = env!("CARGO_BIN_EXE_outboard-bench");
    let output = Command::new(program).args([words[0], "--help"]).output().unwrap();
    assert!(output.status.success(), "{words:?}: no such subcommand");
    let help = String::from_utf8(output.stdout).unwrap();
    for option in words.iter().filter_map(|word| option(word)) {
        let knows = help.split_whitespace().any(|word| word == option);
        assert!(knows, "{words:?}: no option {option}\n{help}");
    }
    if words[0] == "suite" {
        assert!(help.contains(&format!("{}:", words[1])), "no suite {}\n{help}", words[1]);
    }
}

/// A `cargo build` command: its packages are in the workspace.
fn check_build(words: &[&str]) {
    for pair in words.windows(2).filter(|pair| pair[0] == "-p") {
        let found = [root().join("dataplane"), root().join("bench")].iter().any(|folder| {
            let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
            manifest.contains(&format!("name = \"{}\"", pair[1]))
        });
        assert!(found, "there is no package {}", pair[1]);
    }
}

#[test]
fn the_workflow_runs_commands_that_exist() {
    let workflow = workflow();
    let steps = workflow["jobs"]["net"]["steps"].as_vec().expect("a job with steps");
    let mut commands = 0;
    for step in steps {
        let (uses, run) = (step["uses"].as_str(), step["run"].as_str());
        assert!(uses.is_some() != run.is_some(), "a step uses an action or runs: {step:?}");
        let words: Vec<&str> = run.unwrap_or("").split_whitespace().collect();
        match words.iter().position(|word| word.ends_with("outboard-bench") && word.contains('/')) {
            Some(at) => check_bench(&words[at + 1..]),
            None if words.first() == Some(&"cargo") => check_build(&words),
            None => continue,
        }
        commands += 1;
    }
    assert_eq!(commands, 3, "it builds, measures and compares");
}

#[test]
fn what_one_step_writes_the_next_reads() {
    let workflow = workflow();
    let steps = workflow["jobs"]["net"]["steps"].as_vec().unwrap();
    let of = |what: &str| {
        let named = |step: &&Yaml| step["uses"].as_str().is_some_and(|uses| uses.contains(what));
        steps.iter().find(named).unwrap_or_else(|| panic!("no step uses {what}"))
    };
    let (restore, save) = (&of("cache/restore")["with"], &of("cache/save")["with"]);
    assert_eq!((&restore["path"], &restore["key"]), (&save["path"], &save["key"]));
    let prefix = restore["restore-keys"].as_str().unwrap();
    assert!(save["key"].as_str().unwrap().starts_with(prefix));
    let runs: Vec<&str> = steps.iter().filter_map(|step| step["run"].as_str()).collect();
    let (base, new) = (
        restore["path"].as_str().unwrap(),
        of("upload-artifact")["with"]["path"].as_str().unwrap(),
    );
    assert!(runs.iter().any(|run| run.ends_with(&format!("--json {new}"))), "{runs:?}");
    assert!(runs.iter().any(|run| run.ends_with(&format!("compare {base} {new}"))), "{runs:?}");
}
