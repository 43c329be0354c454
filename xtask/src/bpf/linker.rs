//! bpf-linker: from the cache folder, where it is installed once per user.
//!
//! It links against LLVM's libraries, so one installation belongs to one LLVM.

use super::toolchain::{self, Toolchain};
use crate::error::Error;
use crate::process;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version, which decides about the object's bytes.
pub const VERSION: &str = "0.13.0";
/// SHA-256 of the package of that version.
const SHA256: &str = "998bea250d009a4719ed16ab6d772d519b77b031a0261e69223a35013972594b";
/// LLVM versions that it can be linked with.
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// The linker for this toolchain, installing it when it is missing and `install` is set.
pub fn find(toolchain: &Toolchain, install: bool) -> Result<PathBuf, Error> {
    if let Some(found) = installed(toolchain) {
        return Ok(found);
    }
    if !install {
        let what = format!("bpf-linker {VERSION} for LLVM {} is not installed", toolchain.llvm);
        return Err(Error::task(what, "run `cargo xtask bpf --install`"));
    }
    self::install(toolchain)?;
    installed(toolchain)
        .ok_or_else(|| Error::task("bpf-linker is not where it was installed", "try again"))
}

/// The linker, if it is there.
pub fn installed(toolchain: &Toolchain) -> Option<PathBuf> {
    let file = folder(toolchain)?.join("bin/bpf-linker");
    file.is_file().then_some(file)
}

/// Downloads it, checks what came, and builds it: a minute or two.
fn install(toolchain: &Toolchain) -> Result<(), Error> {
    let llvm = toolchain.llvm;
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    if !LLVM.contains(&llvm) || !prefix.join("bin/llvm-config").is_file() {
        let what =
            format!("bpf-linker {VERSION} needs the libraries of the compiler's LLVM {llvm}");
        return Err(Error::task(what, format!("install llvm-{llvm}-dev")));
    }
    let folder = folder(toolchain)
        .ok_or_else(|| Error::task("neither XDG_CACHE_HOME nor HOME is set", "set one"))?;
    println!("bpf: installing bpf-linker {VERSION} into {} (a minute)", folder.display());
    verify()?;
    let mut install = Command::new(&toolchain.cargo);
    toolchain::clean(&mut install);
    install
        .args(["install", "--locked", "--quiet", "bpf-linker", "--version", VERSION])
        .args(["--no-default-features", "--features", &format!("llvm-{llvm}"), "--root"])
        .arg(&folder)
        .env("RUSTC", &toolchain.rustc)
        // The newer llvm-sys asks for one name, the build script of bpf-linker for the other.
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix)
        .env("LLVM_PREFIX", &prefix);
    process::run(&mut install)
}

/// Has cargo download the package into its cache and compares it with the pinned digest.
fn verify() -> Result<(), Error> {
    let spec = format!("bpf-linker@{VERSION}");
    // Outside the workspace, whose own packages would be looked at first.
    process::read(process::cargo().current_dir("/").args(["info", "--quiet", &spec]))?;
    let caches = super::cargo_home()?.join("registry/cache");
    let entries = std::fs::read_dir(&caches).map_err(Error::file("list", &caches))?;
    let name = format!("bpf-linker-{VERSION}.crate");
    let packages: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path().join(&name))
        .filter(|path| path.is_file())
        .collect();
    if packages.is_empty() {
        let what = format!("cargo did not keep {name} in {}", caches.display());
        return Err(Error::task(what, "set CARGO_HOME to the folder that cargo uses"));
    }
    packages.iter().try_for_each(|package| verify_package(package))
}

fn verify_package(package: &Path) -> Result<(), Error> {
    let digest = process::read(Command::new("sha256sum").arg(package))?;
    if digest.starts_with(SHA256) {
        return Ok(());
    }
    let what = format!("{} is not the bpf-linker {VERSION} that is known", package.display());
    Err(Error::task(what, "remove it; if it comes back so, do not build it"))
}

/// `outboard/tools/bpf-linker-VERSION` in the user's cache folder; LLVM 22 is the usual one, any
/// other is part of the name.
fn folder(toolchain: &Toolchain) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty());
    let cache = match cache {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".cache"),
    };
    let name = match toolchain.llvm {
        22 => format!("bpf-linker-{VERSION}"),
        llvm => format!("bpf-linker-{VERSION}-llvm{llvm}"),
    };
    Some(cache.join("outboard/tools").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_package_is_refused() {
        let path = std::env::temp_dir().join(format!("outboard-crate-{}", std::process::id()));
        std::fs::write(&path, b"something else").unwrap();
        let error = verify_package(&path).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(error.contains("do not build it"), "{error}");
    }
}
