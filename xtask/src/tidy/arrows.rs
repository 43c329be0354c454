//! Which package may depend on which: arrows point down only, and xtask stands aside.

use super::Finding;
use super::source::Source;
use crate::process;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Every package with the packages of the project that it may depend on.
const ARROWS: &[(&str, &[&str])] = &[
    ("outboard-wire", &[]),
    ("outboard-dma", &[]),
    ("outboard-dpdk-sys", &["outboard-dma"]),
    ("outboard-order", &[]),
    ("outboard-sim", &[]),
    ("outboard-rdma", &["outboard-dma", "outboard-wire"]),
    ("outboard-ebpf", &["outboard-dma", "outboard-wire"]),
    (
        "outboard",
        &["outboard-rdma", "outboard-ebpf", "outboard-dpdk-sys", "outboard-dma", "outboard-wire"],
    ),
    (
        "outboard-bench",
        &["outboard", "outboard-rdma", "outboard-ebpf", "outboard-dma", "outboard-wire"],
    ),
    ("xtask", &[]),
];

/// Simulation: a dev-dependency of anybody, a dependency of nobody.
const DEV_ONLY: &str = "outboard-sim";

/// The dependencies between the packages of `cargo metadata`.
pub fn check(metadata: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let manifest = relative(package["manifest_path"].as_str().unwrap_or_default());
        let mut note = |what: String| findings.push(Finding::new(&manifest, 1, what));
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
            note(format!("package {name} is not in xtask/src/tidy/arrows.rs; give it its place"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            // Packages from a registry have a source, those of the project none.
            if !dependency["source"].is_null() {
                continue;
            }
            let target = dependency["name"].as_str().unwrap_or_default();
            let is_dev = dependency["kind"].as_str() == Some("dev");
            let fits = allowed.contains(&target) || (is_dev && target == DEV_ONLY);
            if !fits {
                note(format!("{name} must not depend on {target}; arrows point down only"));
            }
        }
    }
    findings
}

fn relative(manifest: &str) -> PathBuf {
    let path = Path::new(manifest);
    path.strip_prefix(process::root()).unwrap_or(path).to_path_buf()
}

/// The root manifest: a dependency has a sentence that says what it is for.
pub fn check_manifest(source: &Source) -> Vec<Finding> {
    if source.path != Path::new("Cargo.toml") {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let mut in_dependencies = false;
    for (number, line) in source.lines() {
        if line.starts_with('[') {
            in_dependencies = line.trim() == "[workspace.dependencies]";
            continue;
        }
        let declares = in_dependencies && line.contains('=') && !line.starts_with('#');
        let own = line.contains("path = ");
        if declares && !own && line.rsplit_once('#').is_none_or(|(_, why)| why.len() <= 3) {
            let what = "dependency without a reason; add `# what it is for` to the line";
            findings.push(Finding::new(&source.path, number, what));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Value {
        let dependencies: Vec<Value> = dependencies
            .iter()
            .map(|(name, kind)| json!({"name": name, "source": null, "kind": kind}))
            .collect();
        json!({"packages": [{
            "name": name, "manifest_path": "a/Cargo.toml", "dependencies": dependencies,
        }]})
    }

    #[test]
    fn arrows_that_point_down_pass() {
        let down = package("outboard", &[("outboard-rdma", None), ("outboard-sim", Some("dev"))]);
        assert_eq!(check(&down), []);
        let foreign = json!({"packages": [{"name": "xtask", "manifest_path": "a",
            "dependencies": [{"name": "clap", "source": "registry", "kind": null}]}]});
        assert_eq!(check(&foreign), []);
    }

    #[test]
    fn planted_arrows_that_point_up_are_found() {
        assert_eq!(check(&package("outboard-rdma", &[("outboard", None)])).len(), 1);
        assert_eq!(check(&package("outboard-rdma", &[("outboard", Some("dev"))])).len(), 1);
        assert_eq!(check(&package("outboard", &[("outboard-sim", None)])).len(), 1);
        assert_eq!(check(&package("xtask", &[("outboard-wire", None)])).len(), 1);
        assert_eq!(check(&package("outboard-new", &[])).len(), 1);
    }

    #[test]
    fn this_workspace_is_known_whole() {
        let metadata = process::metadata().unwrap();
        assert_eq!(metadata["packages"].as_array().unwrap().len(), ARROWS.len());
    }

    #[test]
    fn a_planted_dependency_without_a_reason_is_found() {
        let text = "[workspace.dependencies]\nown = { path = \"own\" }\nlibc = \"0.2\"\n\
                    clap = \"4\" # command lines\n[profile.dev]\na = 1\n";
        let findings = check_manifest(&Source::new("Cargo.toml", text));
        assert_eq!(findings.iter().map(|f| f.line).collect::<Vec<_>>(), [3]);
        assert_eq!(check_manifest(&Source::new("bench/Cargo.toml", text)), []);
    }
}
