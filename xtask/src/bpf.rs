//! `bpf`: builds the XDP programs into the object that is committed, so that users need no BPF
//! compiler.
//!
//! The build depends on the sources and the compiler, not on where the checkout lies: paths are
//! mapped to fixed ones and DWARF is dropped (BTF stays). `ebpf/outboard-xdp.built-by` records
//! which compiler made the object from which sources, so that `--check` can tell "stale" from
//! "made by another compiler" and finds changed sources even where there is no compiler.

mod linker;
mod toolchain;

use crate::error::Error;
use crate::process;
use crate::setup::Finding;
use std::path::{Path, PathBuf};
use std::process::Command;
use toolchain::Toolchain;

/// Builds the XDP programs
///
/// Writes ebpf/outboard-xdp.o. Needs Debian's rustc-web with its sources or rustup's nightly with
/// rust-src, and bpf-linker; `cargo xtask setup --ebpf` installs the former.
#[derive(clap::Args)]
pub struct Args {
    /// Rebuilds and compares with the committed object, byte for byte; changes nothing.
    #[arg(long)]
    check: bool,
    /// Installs bpf-linker into the cache folder when it is missing.
    #[arg(long)]
    install: bool,
}

const OBJECT: &str = "ebpf/outboard-xdp.o";
const BUILT_BY: &str = "ebpf/outboard-xdp.built-by";
const PROGRAM: &str = "ebpf/prog";
const TARGET: &str = "bpfel-unknown-none";

/// Everything of ours that ends up in the object.
const SOURCES: &[&str] = &[
    "dataplane/wire/src/steer.rs",
    "ebpf/prog/Cargo.lock",
    "ebpf/prog/Cargo.toml",
    "ebpf/prog/src/main.rs",
    "ebpf/src/abi.rs",
];

/// Builds or checks the object.
pub fn run(args: &Args) -> Result<(), Error> {
    match args.check {
        true => check(args.install),
        false => write(args.install),
    }
}

/// What CI runs: with a compiler at hand everything must be checked.
pub fn check_for_ci() -> Result<(), Error> {
    check(true)
}

/// The step of `setup --ebpf` after the packages: the linker, if there is a compiler.
pub fn set_up_linker(change: bool) -> Finding {
    let toolchain = match Toolchain::find() {
        Ok(toolchain) => toolchain,
        Err(why) => return Finding::Optional(why),
    };
    let was_there = linker::installed(&toolchain).is_some();
    match linker::find(&toolchain, change) {
        Ok(path) if was_there => Finding::Fine(path.display().to_string()),
        Ok(path) => Finding::Done(format!("installed {}", path.display())),
        Err(error) => Finding::Missing {
            what: error.to_string(),
            remedy: "only `cargo xtask bpf` needs it".into(),
        },
    }
}

fn write(install: bool) -> Result<(), Error> {
    let toolchain = Toolchain::find().map_err(|why| {
        Error::task(why, "run `cargo xtask setup --ebpf`, or use the committed object as it is")
    })?;
    let object = build(&toolchain, install)?;
    let path = process::root().join(OBJECT);
    let same = std::fs::read(&path).is_ok_and(|old| old == object);
    if !same {
        std::fs::write(&path, &object).map_err(Error::file("write", &path))?;
    }
    let built_by = process::root().join(BUILT_BY);
    let text = format!("{}\nsources {}\n", toolchain.name(), sources_digest()?);
    std::fs::write(&built_by, text).map_err(Error::file("write", &built_by))?;
    let outcome = if same { "as committed" } else { "changed: commit it" };
    println!("bpf: {OBJECT}, {} bytes by {}: {outcome}", object.len(), toolchain.name());
    Ok(())
}

fn check(install: bool) -> Result<(), Error> {
    let record = process::root().join(BUILT_BY);
    let record = std::fs::read_to_string(&record).map_err(Error::file("read", &record))?;
    let (compiler, digest) = parse_record(&record)
        .ok_or_else(|| Error::task(format!("{BUILT_BY} is damaged"), "run `cargo xtask bpf`"))?;
    if digest != sources_digest()? {
        let what = format!("{OBJECT} is older than its sources ({})", SOURCES.join(", "));
        return Err(Error::task(what, "run `cargo xtask bpf` and commit the result"));
    }
    let toolchain = match Toolchain::find() {
        Ok(toolchain) => toolchain,
        Err(why) => return not_checked(&why),
    };
    if toolchain.name() != compiler {
        let why = format!("the object is by {compiler}; here is {}", toolchain.name());
        return not_checked(&why);
    }
    let may_be_missing = std::env::var("CI").is_ok_and(|ci| ci == "true");
    if !install && !may_be_missing && linker::installed(&toolchain).is_none() {
        return not_checked("bpf-linker is not installed; `--install` does it");
    }
    let object = build(&toolchain, install)?;
    let path = process::root().join(OBJECT);
    let committed = std::fs::read(&path).map_err(Error::file("read", &path))?;
    if object != committed {
        let what = format!("{OBJECT} is not what its sources give with {compiler}");
        return Err(Error::task(what, "run `cargo xtask bpf` and commit the result"));
    }
    println!("bpf: {OBJECT} is, byte for byte, what its sources give with {compiler}");
    Ok(())
}

fn not_checked(why: &str) -> Result<(), Error> {
    println!("bpf: its sources are those recorded; bytes not checked here: {why}");
    Ok(())
}

/// The compiler's name and the sources' digest in the record.
fn parse_record(text: &str) -> Option<(&str, &str)> {
    let (compiler, rest) = text.split_once('\n')?;
    Some((compiler, rest.trim_end().strip_prefix("sources ")?))
}

/// One digest over all sources, in their order.
fn sources_digest() -> Result<String, Error> {
    let mut command = Command::new("sha256sum");
    let digests = process::read(command.current_dir(process::root()).args(SOURCES))?;
    let words = digests.lines().filter_map(|line| line.get(..16));
    Ok(words.collect::<Vec<_>>().join("-"))
}

/// The object's bytes.
fn build(toolchain: &Toolchain, install: bool) -> Result<Vec<u8>, Error> {
    let linker = linker::find(toolchain, install)?;
    let target = process::target_dir()?.join("ebpf");
    // First, so that the registry's folder is there to be mapped.
    process::read(cargo(toolchain, &linker)?.args(["fetch", "--locked"]))?;
    let mut build = cargo(toolchain, &linker)?;
    build.args(["build", "--release", "--locked", "--quiet", "-Z", "build-std=core"]);
    build.args(["--target", TARGET, "--target-dir"]).arg(&target);
    build.env("CARGO_ENCODED_RUSTFLAGS", flags(toolchain)?.join("\u{1f}"));
    process::run(&mut build)?;
    let built = target.join(TARGET).join("release/outboard-xdp");
    let stripped = target.join("outboard-xdp.o");
    let mut strip = Command::new(&toolchain.objcopy);
    process::run(strip.arg("--strip-debug").arg(&built).arg(&stripped))?;
    let object = std::fs::read(&stripped).map_err(Error::file("read", &stripped))?;
    match leaked_path(&object, &[process::root(), &cargo_home()?]) {
        None => Ok(object),
        Some(path) => Err(Error::task(
            format!("the object names {}, which differs between machines", path.display()),
            "map it in xtask/src/bpf.rs",
        )),
    }
}

/// A cargo of the toolchain, in the program's folder, unaware of the cargo that runs this task.
fn cargo(toolchain: &Toolchain, linker: &Path) -> Result<Command, Error> {
    let mut command = Command::new(&toolchain.cargo);
    toolchain::clean(&mut command);
    let folder = linker.parent().unwrap_or(Path::new("/"));
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .current_dir(process::root().join(PROGRAM))
        .env("PATH", format!("{}:{path}", folder.display()))
        .env("RUSTC", &toolchain.rustc)
        // -Z build-std, with a stable compiler.
        .env("RUSTC_BOOTSTRAP", "1");
    Ok(command)
}

/// What the compiler is told: the program's architecture (aya-ebpf asks), BTF, and fixed names
/// for every place that a path may come from.
fn flags(toolchain: &Toolchain) -> Result<Vec<String>, Error> {
    let mut flags = vec![
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    let mut map = |from: &Path, to: &str| {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    };
    let home = cargo_home()?;
    map(process::root(), "/outboard");
    map(&home, "/cargo");
    // A registry's folder is named after its address, which differs with a mirror.
    let registries = home.join("registry/src");
    let entries = std::fs::read_dir(&registries).map_err(Error::file("list", &registries))?;
    for entry in entries.flatten() {
        map(&entry.path(), "/crates");
    }
    for path in toolchain.source_paths() {
        map(&path, "/rust");
    }
    Ok(flags)
}

fn cargo_home() -> Result<PathBuf, Error> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))
        .ok_or_else(|| Error::task("neither CARGO_HOME nor HOME is set", "set one"))
}

fn leaked_path<'a>(object: &[u8], paths: &[&'a Path]) -> Option<&'a Path> {
    paths.iter().copied().find(|path| {
        let bytes = path.as_os_str().as_encoded_bytes();
        object.windows(bytes.len()).any(|window| window == bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_object_is_of_these_sources() {
        let record = std::fs::read_to_string(process::root().join(BUILT_BY)).unwrap();
        let (_, digest) = parse_record(&record).unwrap();
        assert_eq!(digest, sources_digest().unwrap(), "run `cargo xtask bpf`");
    }

    #[test]
    fn a_record_is_read_or_refused() {
        let read = parse_record("rustc 1\nsources ab\n");
        assert_eq!(read, Some(("rustc 1", "ab")));
        assert_eq!(parse_record("rustc 1\n"), None);
        assert_eq!(parse_record(""), None);
    }

    #[test]
    fn the_committed_object_names_no_place_of_any_machine() {
        let object = std::fs::read(process::root().join(OBJECT)).unwrap();
        for folder in ["home", "root", ".cargo", "registry"] {
            let place = format!("/{folder}/");
            assert_eq!(leaked_path(&object, &[Path::new(&place)]), None);
        }
        assert!(leaked_path(&object, &[Path::new("/outboard/ebpf/prog")]).is_some());
    }
}
