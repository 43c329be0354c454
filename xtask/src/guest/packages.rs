//! Debian packages for a guest and for the QEMU that runs it, unpacked into a folder of the user's
//! cache. The machine's own packages are neither changed nor used, so that a guest is the same
//! everywhere; mirror and keys are those of the machine's own apt.
//!
//! apt works on a state of its own that knows of no installed package: so it names every library
//! down to libc, and programs of the folder run with those (see [`Root::command`]).

use crate::error::Error;
use crate::process;
use crate::setup::apt;
use crate::setup::distro::Distro;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the guest's jobs run.
const GUEST: &[&str] = &[
    "bash",
    "busybox-static",
    "coreutils",
    "e2fsprogs",
    "fio",
    "iproute2",
    "kmod",
    "mount",
    "nvme-cli",
    "tar",
    "util-linux",
];
/// Kernel, and what unpacks it.
const KERNEL: &[&str] = &["linux-image-amd64", "xz-utils", "zstd"];
/// The machine that it runs on.
const QEMU: &[&str] = &["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];

/// Left out when unpacking: nothing runs it here.
const EXCLUDED: &[&str] = &[
    "./usr/share/doc",
    "./usr/share/man",
    "./usr/share/locale",
    "./usr/share/perl*",
    "./usr/lib/python3*",
    "./usr/lib/*/perl*",
    "./usr/lib/modules/*/kernel/drivers/gpu",
    "./usr/lib/modules/*/kernel/drivers/media",
    "./lib/modules/*/kernel/drivers/gpu",
    "./lib/modules/*/kernel/drivers/media",
];
/// Folders that a merged /usr has links for.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib64"];
/// Where the libraries are; Ceph's, which fio links with, have a folder of their own.
const LIBRARIES: &[&str] = &["usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph"];

/// Where packages come from: the machine's release and, where its QEMU is too old to be of use
/// with vhost-user devices (before 8), its backports.
#[derive(Debug, PartialEq, Eq)]
pub struct Release {
    codename: &'static str,
    /// Suffix of the suite that QEMU is taken from.
    qemu_suite: Option<&'static str>,
}

impl Release {
    /// This machine's, or why a guest cannot be built here.
    pub fn of_this_machine() -> Result<Release, String> {
        if cfg!(not(target_arch = "x86_64")) {
            return Err("guests are known for x86-64 only".into());
        }
        match Distro::read() {
            Distro::Debian12 => {
                Ok(Release { codename: "bookworm", qemu_suite: Some("bookworm-backports") })
            }
            Distro::Debian13 => Ok(Release { codename: "trixie", qemu_suite: None }),
            other => Err(format!(
                "guests are built from the packages of Debian 12 or 13, and this is {}",
                other.title()
            )),
        }
    }

    /// The packages, as apt-get takes them.
    pub fn packages(&self) -> Vec<String> {
        let qemu = QEMU.iter().map(|name| match self.qemu_suite {
            Some(suite) => format!("{name}/{suite}"),
            None => name.to_string(),
        });
        GUEST.iter().chain(KERNEL).map(|name| name.to_string()).chain(qemu).collect()
    }

    /// What a folder was made from, for comparison.
    pub fn fingerprint(&self) -> String {
        format!(
            "{}\n{}\nwithout {}\n",
            self.codename,
            self.packages().join(" "),
            EXCLUDED.join(" ")
        )
    }
}

/// A folder with unpacked packages.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// The folder, which exists.
    pub fn at(path: PathBuf) -> Root {
        Root(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A program of it, with its libraries and its loader: none of the machine's.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.loader());
        command.arg("--library-path").arg(self.library_path()).arg(self.0.join(program));
        command
    }

    /// The loader, the libraries and all that a program needs of them, as paths in this folder.
    pub fn libraries_of(&self, program: &Path) -> Result<BTreeSet<PathBuf>, Error> {
        let mut list = Command::new(self.loader());
        list.arg("--library-path").arg(self.library_path()).arg("--list").arg(program);
        let text = process::read(&mut list)?;
        let paths = text.lines().filter_map(|line| {
            let path = line.split_once("=> ").map_or(line, |(_, path)| path);
            path.split_whitespace().next().filter(|path| path.starts_with('/'))
        });
        Ok(paths.map(PathBuf::from).collect())
    }

    fn loader(&self) -> PathBuf {
        self.0.join("lib64/ld-linux-x86-64.so.2")
    }

    fn library_path(&self) -> OsString {
        let paths = LIBRARIES.iter().map(|path| self.0.join(path));
        std::env::join_paths(paths).expect("a cache folder's name has no colon")
    }
}

/// Downloads the packages and unpacks them into `folder`, which must not exist. `scratch` takes
/// apt's state and the packages.
pub fn unpack(release: &Release, scratch: &Path, folder: &Path) -> Result<Root, Error> {
    let apt = Apt::new(release, scratch)?;
    apt.run(&["update".into()], "reading the package lists")?;
    let mut install = vec!["install".into(), "--download-only".into(), "--yes".into()];
    install.push("--no-install-recommends".into());
    install.extend(release.packages());
    apt.run(&install, "downloading kernel, QEMU and the guest's programs (170 MB)")?;
    let mut packages: Vec<PathBuf> = entries(&apt.archives)?;
    packages.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
    packages.sort();
    prepare(folder)?;
    println!("  ...      unpacking {} packages", packages.len());
    for package in &packages {
        unpack_one(package, folder)?;
    }
    Ok(Root(folder.to_path_buf()))
}

/// A merged /usr: packages of either kind then unpack to the same places.
fn prepare(folder: &Path) -> Result<(), Error> {
    for name in MERGED {
        let path = folder.join("usr").join(name);
        fs::create_dir_all(&path).map_err(Error::file("create", &path))?;
        let link = folder.join(name);
        symlink(Path::new("usr").join(name), &link).map_err(Error::file("link", &link))?;
    }
    Ok(())
}

/// dpkg-deb's own extraction would replace the links of a merged /usr by folders.
fn unpack_one(package: &Path, folder: &Path) -> Result<(), Error> {
    let mut read = Command::new("dpkg-deb");
    read.arg("--fsys-tarfile").arg(package).stdout(Stdio::piped());
    let mut reading = read.spawn().map_err(process::start_error(&read))?;
    let mut write = Command::new("tar");
    write.args(["--extract", "--no-same-owner", "--keep-directory-symlink", "--directory"]);
    write.arg(folder).args(EXCLUDED.iter().map(|pattern| format!("--exclude={pattern}")));
    write.stdin(reading.stdout.take().expect("stdout is piped"));
    let written = process::read(&mut write);
    let status = reading.wait().map_err(process::start_error(&read))?;
    process::check(&read, status, String::new())?;
    written.map(drop)
}

/// apt-get with lists, archives and a record of installed packages of its own.
struct Apt {
    options: Vec<String>,
    archives: PathBuf,
}

impl Apt {
    fn new(release: &Release, scratch: &Path) -> Result<Apt, Error> {
        let archives = scratch.join("archives");
        for folder in [scratch.join("lists/partial"), archives.join("partial")] {
            fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        }
        let (sources, status) = (scratch.join("sources.list"), scratch.join("status"));
        let text = sources_list(release, &targets()?)?;
        fs::write(&sources, text).map_err(Error::file("write", &sources))?;
        fs::write(&status, "").map_err(Error::file("write", &status))?;
        let place = scratch.display();
        let options = [
            format!("Dir::Etc::sourcelist={}", sources.display()),
            "Dir::Etc::sourceparts=/dev/null".into(),
            "Dir::Etc::preferences=/dev/null".into(),
            "Dir::Etc::preferencesparts=/dev/null".into(),
            format!("Dir::State::status={}", status.display()),
            format!("Dir::State::lists={place}/lists"),
            format!("Dir::Cache={place}"),
            format!("Dir::Cache::archives={}", archives.display()),
            // The user _apt may not enter a user's cache folder.
            "APT::Sandbox::User=root".into(),
            "Acquire::Languages=none".into(),
        ];
        let options = options.into_iter().flat_map(|option| ["-o".into(), option]).collect();
        Ok(Apt { options, archives })
    }

    fn run(&self, arguments: &[String], title: &str) -> Result<(), Error> {
        let all = self.options.iter().chain(arguments).map(String::as_str);
        let all: Vec<&str> = all.collect();
        apt::run(&all, title).map_err(|error| {
            Error::task(
                format!("packages for the guest are not to be had: {error}"),
                "is the mirror of `apt-get update` reachable from here?",
            )
        })
    }
}

/// What the machine's apt reads package lists from: address, suite and component per line.
fn targets() -> Result<String, Error> {
    let format = "$(REPO_URI) $(RELEASE) $(COMPONENT)";
    let mut list = Command::new("apt-get");
    process::read(list.args(["indextargets", "--format", format, "Created-By: Packages"]))
}

/// The same sources of the release's main component, and its backports where they are wanted.
fn sources_list(release: &Release, targets: &str) -> Result<String, Error> {
    const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let keyring = match Path::new(KEYRING).exists() {
        true => format!("[arch=amd64 signed-by={KEYRING}] "),
        // apt's own trusted keys.
        false => "[arch=amd64] ".into(),
    };
    let mut lines = BTreeSet::new();
    let mut add = |uri: &str, suite: &str| lines.insert(format!("deb {keyring}{uri} {suite} main"));
    for target in targets.lines() {
        let [uri, suite, "main"] = target.split_whitespace().collect::<Vec<_>>()[..] else {
            continue;
        };
        if !suite.starts_with(release.codename) {
            continue;
        }
        add(uri, suite);
        if let Some(backports) = release.qemu_suite.filter(|_| suite == release.codename) {
            add(uri, backports);
        }
    }
    if lines.is_empty() {
        let what = format!("the machine's apt has no source of {} main", release.codename);
        return Err(Error::task(what, "add one to its sources; `apt-get indextargets` lists them"));
    }
    Ok(lines.into_iter().map(|line| line + "\n").collect())
}

/// The paths in a folder.
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(Error::file("list", folder))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Release = Release { codename: "bookworm", qemu_suite: Some("bookworm-backports") };

    #[test]
    fn sources_are_the_machines_own_and_the_backports_beside_them() {
        let targets = "\
            file:///mirror/debian/ bookworm main\n\
            file:///mirror/debian/ bookworm contrib\n\
            file:///mirror/security/ bookworm-security main\n\
            file:///other/ stable main\n";
        let text = sources_list(&OLD, targets).unwrap();
        let lines: Vec<&str> = text.lines().map(|line| line.split_once("] ").unwrap().1).collect();
        assert_eq!(
            lines,
            [
                "file:///mirror/debian/ bookworm main",
                "file:///mirror/debian/ bookworm-backports main",
                "file:///mirror/security/ bookworm-security main",
            ]
        );
    }

    #[test]
    fn without_a_source_of_the_release_the_error_says_so() {
        let error = sources_list(&OLD, "file:///other/ stable main\n").unwrap_err().to_string();
        assert!(error.contains("bookworm") && error.contains("indextargets"), "{error}");
    }

    #[test]
    fn qemu_comes_from_the_backports_and_nothing_else_does() {
        let packages = OLD.packages();
        assert!(packages.contains(&"qemu-system-x86/bookworm-backports".to_string()));
        assert!(packages.contains(&"linux-image-amd64".to_string()));
        let packages = Release { codename: "trixie", qemu_suite: None }.packages();
        assert!(packages.iter().all(|package| !package.contains('/')), "{packages:?}");
    }
}
