//! A Rust compiler that can build for BPF: one with the sources of `core` and an LLVM that
//! bpf-linker can be linked with.

use crate::process;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is needed of a compiler, all of one installation.
#[derive(Debug)]
pub struct Toolchain {
    pub rustc: PathBuf,
    pub cargo: PathBuf,
    pub objcopy: PathBuf,
    /// LLVM's major version.
    pub llvm: u32,
    sysroot: PathBuf,
    version: Version,
}

/// What `rustc -vV` tells.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    title: String,
    release: String,
    commit: String,
    llvm: String,
}

impl Toolchain {
    /// Debian's rustc-web, or rustup's nightly; otherwise why neither will do.
    pub fn find() -> Result<Toolchain, String> {
        let debian = Toolchain::at(Path::new("/usr"));
        let why_not_debian = match debian {
            Ok(found) => return Ok(found),
            Err(why) => why,
        };
        let why_not_nightly = match nightly_sysroot() {
            Some(sysroot) => match Toolchain::at(&sysroot) {
                Ok(found) => return Ok(found),
                Err(why) => why,
            },
            None => "rustup has no nightly".to_owned(),
        };
        Err(format!("no compiler for BPF: {why_not_debian}; {why_not_nightly}"))
    }

    fn at(sysroot: &Path) -> Result<Toolchain, String> {
        let (rustc, cargo) = (sysroot.join("bin/rustc"), sysroot.join("bin/cargo"));
        for file in [&rustc, &cargo] {
            if !file.is_file() {
                return Err(format!("no {}", file.display()));
            }
        }
        let text = process::read(Command::new(&rustc).arg("-vV")).map_err(|e| e.to_string())?;
        let version = Version::parse(&text).ok_or(format!("{} tells no LLVM", rustc.display()))?;
        let source = sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs");
        if !source.is_file() {
            return Err(format!("{} ({}) has no sources of core", rustc.display(), version.title));
        }
        let llvm = version.llvm.split('.').next().and_then(|major| major.parse().ok());
        let llvm = llvm.ok_or(format!("{} tells no LLVM", rustc.display()))?;
        let objcopy = objcopy(sysroot, llvm).ok_or(format!("no llvm-objcopy of LLVM {llvm}"))?;
        Ok(Toolchain { rustc, cargo, objcopy, llvm, sysroot: sysroot.to_owned(), version })
    }

    /// What decides about the bytes of what it builds.
    pub fn name(&self) -> String {
        let Version { title, llvm, .. } = &self.version;
        format!("{title}, LLVM {llvm}, bpf-linker {}", super::linker::VERSION)
    }

    /// Where `core` lies, and where its compiled form says that it lay.
    pub fn source_paths(&self) -> [PathBuf; 3] {
        [
            self.sysroot.join("lib/rustlib/src/rust"),
            PathBuf::from(format!("/usr/src/rustc-{}", self.version.release)),
            PathBuf::from(format!("/rustc/{}", self.version.commit)),
        ]
    }
}

impl Version {
    fn parse(text: &str) -> Option<Version> {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().to_owned())
        };
        Some(Version {
            title: text.lines().next()?.to_owned(),
            release: field("release:")?,
            commit: field("commit-hash:")?,
            llvm: field("LLVM version:")?,
        })
    }
}

/// Makes a command unaware of the cargo and the compiler that run this task.
pub fn clean(command: &mut Command) {
    const KEEP: &[&str] = &["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR"];
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        let ours = ["CARGO", "RUSTC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"];
        if ours.iter().any(|ours| name.starts_with(ours))
            && !KEEP.iter().any(|keep| name.starts_with(keep))
        {
            command.env_remove(&*name);
        }
    }
}

fn nightly_sysroot() -> Option<PathBuf> {
    let mut which = Command::new("rustup");
    clean(&mut which);
    let rustc = process::read(which.args(["which", "--toolchain", "nightly", "rustc"])).ok()?;
    Path::new(rustc.trim()).ancestors().nth(2).map(Path::to_owned)
}

fn objcopy(sysroot: &Path, llvm: u32) -> Option<PathBuf> {
    let host = format!("lib/rustlib/{}-unknown-linux-gnu/bin/rust-objcopy", std::env::consts::ARCH);
    let places =
        [PathBuf::from(format!("/usr/lib/llvm-{llvm}/bin/llvm-objcopy")), sysroot.join(host)];
    places.into_iter().find(|path| path.is_file()).or_else(|| process::which("llvm-objcopy"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_field_by_field() {
        let text = "rustc 1.96.0 (ac68 2026-05-25)\nbinary: rustc\ncommit-hash: ac68f\n\
                    commit-date: 2026-05-25\nhost: x86_64-unknown-linux-gnu\nrelease: 1.96.0\n\
                    LLVM version: 22.1.8\n";
        let version = Version::parse(text).unwrap();
        assert_eq!((&*version.release, &*version.commit), ("1.96.0", "ac68f"));
        assert_eq!(version.llvm, "22.1.8");
        assert_eq!(Version::parse("rustc 1.63.0\n"), None);
    }

    #[test]
    fn a_folder_without_a_compiler_says_what_it_lacks() {
        let why = Toolchain::at(Path::new("/nowhere")).unwrap_err();
        assert_eq!(why, "no /nowhere/bin/rustc");
    }

    #[test]
    fn a_clean_command_knows_nothing_of_the_cargo_around_it() {
        let mut command = Command::new("true");
        clean(&mut command);
        let removed = |name: &str| command.get_envs().any(|(n, v)| n == name && v.is_none());
        // Set for every test by cargo.
        assert!(removed("CARGO") && removed("CARGO_MANIFEST_DIR"));
        assert!(!removed("CARGO_HOME"));
    }
}
