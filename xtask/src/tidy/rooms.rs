//! Which module may know which (ARCHITECTURE.md, absences).
//!
//! Inside `dataplane`, port, switch, volume and virtio do not name each other, nor the worker and
//! control above them. Switch, wire and rdma are pure. One file reads the clock.

use super::Finding;
use super::source::{NamedPath, Source};

/// The rooms of the data path.
const ROOMS: &[&str] = &["port", "switch", "volume", "virtio"];
/// What knows the rooms, and is known by none.
const ABOVE: &[&str] = &["worker", "control"];
/// Where rooms are joined: a guest's disk is a virtio device.
const JOINS: &[(&str, &str)] = &[("dataplane/src/volume/disk", "virtio")];

/// Engines without I/O, clock or randomness: bytes and `now_ns` in, bytes out.
const PURE: &[&str] = &["dataplane/src/switch", "dataplane/wire/src", "rdma/src"];
/// What would make them impure. Addresses of std::net are plain data.
const IMPURE: &[&str] = &[
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::net::ToSocketAddrs",
    "std::os::unix::net",
    "std::time",
    "std::fs",
    "std::thread",
    "std::process",
    "std::env",
    "libc",
    "rand",
];

/// Where time is an argument.
const TIMELESS: &[&str] = &["dataplane/src", "dataplane/dma/src", "dataplane/wire/src", "rdma/src"];
/// The clock itself, and what may wait and log.
const TIMED: &[&str] = &["dataplane/src/clock.rs", "dataplane/src/control"];
/// Ways to read a clock.
const CLOCKS: &[&str] =
    &["Instant::now", "SystemTime::now", "clock_gettime", "gettimeofday", "_rdtsc", "__rdtscp"];

/// What one file names that it may not know.
pub fn check(source: &Source) -> Vec<Finding> {
    let Some(rust) = &source.rust else { return Vec::new() };
    let mut findings = Vec::new();
    for path in &rust.paths {
        let wrong = [other_room(source, path), impure(source, path), clock(source, path)];
        for what in wrong.into_iter().flatten() {
            findings.push(Finding::new(&source.path, path.line, what));
        }
    }
    findings
}

/// A room that names another one or what is above. Also in tests: those of two rooms live in
/// dataplane/tests.
fn other_room(source: &Source, path: &NamedPath) -> Option<String> {
    let home = ROOMS.iter().find(|room| in_module(source, &format!("dataplane/src/{room}")))?;
    let [first, room, ..] = &path.segments[..] else { return None };
    if first != "crate" || room == home {
        return None;
    }
    let room = ROOMS.iter().chain(ABOVE).find(|name| *name == room)?;
    if JOINS.iter().any(|(place, joined)| joined == room && in_module(source, place)) {
        return None;
    }
    Some(format!("{home} names {}; only the worker and control know two rooms", path.text()))
}

fn impure(source: &Source, path: &NamedPath) -> Option<String> {
    let home = PURE.iter().find(|place| in_module(source, place))?;
    let text = path.text();
    let text = text.replacen("core::", "std::", 1);
    let forbidden = IMPURE.iter().find(|name| starts_with_path(&text, name))?;
    // Inside a function `time` or `rand` may be a variable; a path of one part is no module.
    if path.in_test || (path.segments.len() == 1 && *forbidden != "libc") {
        return None;
    }
    Some(format!("{home} is pure and names {forbidden}; take bytes and now_ns as arguments"))
}

fn clock(source: &Source, path: &NamedPath) -> Option<String> {
    let timeless = TIMELESS.iter().any(|place| in_module(source, place))
        && !TIMED.iter().any(|place| in_module(source, place));
    if !timeless || path.in_test {
        return None;
    }
    let text = path.text();
    let clock = CLOCKS.iter().find(|name| ends_with_path(&text, name))?;
    Some(format!("{clock} outside clock.rs; take now_ns as an argument"))
}

/// Whether the file is the module `place` (`place.rs`, `place/mod.rs`) or lies in it.
fn in_module(source: &Source, place: &str) -> bool {
    source.is_in(place) || source.is_in(&format!("{place}.rs"))
}

fn starts_with_path(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn ends_with_path(path: &str, suffix: &str) -> bool {
    path.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with("::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        check(&Source::new(path, text)).iter().map(|f| f.to_string()).collect()
    }

    #[test]
    fn planted_knowledge_of_another_room_is_found() {
        let text = "//! A\nuse crate::{packet::Packet, switch::Switch};\n";
        let findings = found("dataplane/src/port/afxdp.rs", text);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].contains(":2: port names crate::switch::Switch"), "{findings:?}");
        assert_eq!(found("dataplane/src/worker/mod.rs", text).len(), 0);
        assert_eq!(found("dataplane/src/switch/mod.rs", text).len(), 0);
        let by_super = "//! A\nuse super::super::volume;\n";
        assert_eq!(found("dataplane/src/virtio/queue.rs", by_super).len(), 1);
        let in_line = "//! A\nfn a() { crate::control::log(); }\n";
        assert_eq!(found("dataplane/src/volume/file.rs", in_line).len(), 1);
        assert_eq!(found("dataplane/src/volume.rs", in_line).len(), 1);
    }

    #[test]
    fn a_join_may_name_virtio_and_nothing_else() {
        let virtio = "//! A\nuse crate::virtio::Queue;\n";
        assert_eq!(found("dataplane/src/volume/disk.rs", virtio).len(), 0);
        assert_eq!(found("dataplane/src/volume/disk/ring.rs", virtio).len(), 0);
        assert_eq!(found("dataplane/src/port/afxdp.rs", virtio).len(), 1);
        assert_eq!(found("dataplane/src/volume/diskette.rs", virtio).len(), 1);
        let switch = "//! A\nuse crate::switch::Switch;\n";
        assert_eq!(found("dataplane/src/volume/disk.rs", switch).len(), 1);
    }

    #[test]
    fn planted_impurity_is_found_outside_tests() {
        for text in [
            "//! A\nuse std::time::Duration;\n",
            "//! A\nuse std::net::{Ipv4Addr, UdpSocket};\n",
            "//! A\nfn a() { std::thread::yield_now(); }\n",
            "//! A\nfn a() { let _ = std::fs::read(\"a\"); }\n",
            "//! A\nfn a() { debug_assert!(libc::getpid() > 0); }\n",
        ] {
            assert_eq!(found("dataplane/src/switch/flow.rs", text).len(), 1, "{text}");
            assert_eq!(found("rdma/src/nvmf/initiator.rs", text).len(), 1, "{text}");
            assert_eq!(found("dataplane/wire/src/udp.rs", text).len(), 1, "{text}");
            assert_eq!(found("dataplane/src/port/tap.rs", text).len(), 0, "{text}");
        }
        let addresses = "//! A\nuse std::net::{Ipv4Addr, SocketAddr};\n";
        assert_eq!(found("dataplane/wire/src/ip.rs", addresses).len(), 0);
        let test = "//! A\n#[cfg(test)]\nmod tests { use std::fs; }\n";
        assert_eq!(found("dataplane/wire/src/ip.rs", test).len(), 0);
    }

    #[test]
    fn a_planted_look_at_the_clock_is_found() {
        let text = "//! A\nuse std::time::Instant;\nfn a() { let t = Instant::now(); }\n";
        assert_eq!(found("dataplane/src/worker/mod.rs", text).len(), 1);
        assert_eq!(found("dataplane/src/volume/remote.rs", text).len(), 1);
        assert_eq!(found("dataplane/src/control/api.rs", text).len(), 0);
        assert_eq!(found("dataplane/src/clock.rs", text).len(), 0);
        assert_eq!(found("bench/src/load.rs", text).len(), 0);
        let test = "//! A\n#[test]\nfn a() { let t = std::time::Instant::now(); }\n";
        assert_eq!(found("dataplane/src/worker/mod.rs", test).len(), 0);
    }
}
