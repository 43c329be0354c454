//! `[[volume]]`, `[[export]]`, `[[disk]]`: data, who else is served, and guests' disks.

use super::plan::{
    Backing, DISKS_MAX, Digests, Disk, EXPORTS_MAX, Export, SocketAccess, VOLUMES_MAX, Volume,
};
use super::section::{At, Section};
use super::top::{Claims, Names, Shared, check_worker};
use super::value;
use std::net::SocketAddr;
use std::time::Duration;

/// The most virtqueues of a disk.
const DISK_QUEUES_MAX: u64 = 16;
/// NVM Express Base Specification 2.0, 3.2.1.3: FFFFFFFFh means all namespaces.
const NSID_MAX: u64 = 0xffff_fffe;
/// How long I/O of a remote volume waits for a lost connection, at most: a week.
const LOSS_TIMEOUT_MAX_S: u64 = 7 * 24 * 3600;
/// And unless told otherwise: as Linux's `ctrl_loss_tmo`.
const LOSS_TIMEOUT_S: u64 = 600;
/// How long a target that does not fence is given to end what it was sent before, at most.
const QUIESCE_MAX_MS: u64 = 3_600_000;
/// And unless told otherwise: it must notice within twice the keep-alive timeout of 10 s that the
/// host is gone (Base 3.9.3.1), and has as long again for the media I/O that it has begun.
const QUIESCE_MS: u64 = 30_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mem,
    Null,
    File,
    Remote,
}

const KINDS: &[(&str, Kind)] =
    &[("mem", Kind::Mem), ("null", Kind::Null), ("file", Kind::File), ("remote", Kind::Remote)];
const DIGESTS: &[(&str, Digests)] = &[
    ("none", Digests::None),
    ("header", Digests::Header),
    ("data", Digests::Data),
    ("both", Digests::Both),
];
const BLOCK_SIZES: [u64; 2] = [512, 4096];

/// Keys that only one kind of volume has, and what to write elsewhere.
const KEYS_OF_KINDS: &[(&str, &[Kind], &str)] = &[
    (
        "size",
        &[Kind::Mem, Kind::Null, Kind::Remote],
        "only for kind = \"mem\", \"null\" and \"remote\"; a file is made with `create = SIZE`",
    ),
    ("path", &[Kind::File], "only for kind = \"file\""),
    ("create", &[Kind::File], "only for kind = \"file\""),
    ("address", &[Kind::Remote], "only for kind = \"remote\""),
    ("nqn", &[Kind::Remote], "only for kind = \"remote\""),
    ("nsid", &[Kind::Remote], "only for kind = \"remote\""),
    ("loss_timeout_s", &[Kind::Remote], "only for kind = \"remote\""),
    ("quiesce_ms", &[Kind::Remote], "only for kind = \"remote\""),
    ("digests", &[Kind::Remote], "only for kind = \"remote\""),
];

/// What this file reads.
pub(super) struct Storages {
    pub volumes: Vec<Volume>,
    pub exports: Vec<Export>,
    pub disks: Vec<Disk>,
}

pub(super) fn read(top: &mut Section, shared: &mut Shared) -> Option<Storages> {
    let mut names = Names::default();
    let mut volumes = Vec::new();
    for section in top.tables("volume", "[[volume]]", VOLUMES_MAX, &mut shared.sink) {
        volumes.push(read_volume(section, &mut names, shared));
    }
    let exports = read_exports(top, &names, &volumes, shared);
    let disks = read_disks(top, &names, shared);
    Some(Storages {
        volumes: volumes.into_iter().collect::<Option<_>>()?,
        exports: exports?,
        disks: disks?,
    })
}

fn read_volume(mut section: Section, names: &mut Names, shared: &mut Shared) -> Option<Volume> {
    let sink = &mut shared.sink;
    let name = section.required("name", "\"data\"", sink, value::name);
    names.declare("volume", &name, sink);
    let kind = section.required("kind", "\"file\"", sink, value::choice(KINDS));
    let block = section.optional("block_bytes", sink, value::number(512..=4096));
    let given = block.as_ref().map(|block| block.value);
    let block_bytes = given.unwrap_or(BLOCK_SIZES[0]);
    if let Some(block) = block.filter(|block| !BLOCK_SIZES.contains(&block.value)) {
        let what = format!("`block_bytes` of [[volume]] is {}", block.value);
        sink.push(block.span, what, "want 512 or 4096");
    }
    let read_only = section.optional("read_only", sink, value::boolean);
    let read_only = read_only.is_some_and(|read_only| read_only.value);
    let worker = section.optional("worker", sink, value::number(0..=u64::from(u16::MAX)));
    if let Some(worker) = &worker {
        check_worker(worker.value as u16, &worker.span, shared);
    }
    let kind = kind.map(|kind| kind.value);
    for (key, of, why) in KEYS_OF_KINDS {
        match kind {
            Some(kind) if !of.contains(&kind) => section.refuse(key, why, &mut shared.sink),
            _ => section.allow(key),
        }
    }
    let backing = match kind {
        Some(Kind::Mem) => {
            read_size(&mut section, block_bytes, shared).map(|bytes| Backing::Mem { bytes })
        }
        Some(Kind::Null) => {
            read_size(&mut section, block_bytes, shared).map(|bytes| Backing::Null { bytes })
        }
        Some(Kind::File) => read_file(&mut section, block_bytes, read_only, shared),
        Some(Kind::Remote) => read_remote(&mut section, block_bytes, shared),
        None => None,
    };
    section.finish(&mut shared.sink);
    Some(Volume {
        name: name?.value,
        worker: worker.map_or(0, |worker| worker.value as u16),
        block_bytes: match kind {
            Some(Kind::Remote) => given.unwrap_or(0) as u32,
            _ => block_bytes as u32,
        },
        read_only,
        backing: backing?,
    })
}

/// Reports a size that is not whole blocks.
fn check_blocks(key: &str, size: &At<u64>, block_bytes: u64, shared: &mut Shared) {
    if BLOCK_SIZES.contains(&block_bytes) && !size.value.is_multiple_of(block_bytes) {
        let what = format!("`{key}` of [[volume]] is {} bytes", size.value);
        let want = format!("want a multiple of `block_bytes`, {block_bytes}");
        shared.sink.push(size.span.clone(), what, &want);
    }
}

fn read_size(section: &mut Section, block_bytes: u64, shared: &mut Shared) -> Option<u64> {
    let size = section.required("size", "\"64MiB\"", &mut shared.sink, value::size)?;
    check_blocks("size", &size, block_bytes, shared);
    Some(size.value)
}

fn read_file(
    section: &mut Section,
    block_bytes: u64,
    read_only: bool,
    shared: &mut Shared,
) -> Option<Backing> {
    let sink = &mut shared.sink;
    let want = "\"/var/lib/outboard/data.img\"";
    let path = section.required("path", want, sink, value::path);
    let create = section.optional("create", sink, value::size);
    if let Some(create) = &create {
        check_blocks("create", create, block_bytes, shared);
        if read_only {
            let what = "`create` of [[volume]] together with `read_only = true`";
            let want = "a new volume that cannot be written is empty; want one of the two";
            shared.sink.push(create.span.clone(), what, want);
        }
    }
    let path = path?;
    if !read_only {
        let what = format!("the path {}", path.value.display());
        let want = "want another path: two writers would destroy the data";
        shared.paths.claim(path.value.clone(), &path.span, what, want, &mut shared.sink);
    }
    Some(Backing::File { path: path.value, create_bytes: create.map(|create| create.value) })
}

fn read_remote(section: &mut Section, block_bytes: u64, shared: &mut Shared) -> Option<Backing> {
    let size = section.optional("size", &mut shared.sink, value::size);
    if let Some(size) = &size {
        check_blocks("size", size, block_bytes, shared);
    }
    let sink = &mut shared.sink;
    let want = "\"192.0.2.2:4420\"";
    let address = section.required("address", want, sink, value::socket_address);
    if let Some(address) = &address {
        let ip = address.value.ip();
        if ip.is_unspecified() || ip.is_multicast() {
            let what = format!("`address` of [[volume]] is {}", address.value);
            sink.push(address.span.clone(), what, "want the address of one host");
        }
    }
    let want = "\"nqn.2025-01.org.example:disk1\"";
    let nqn = section.required("nqn", want, sink, value::nqn);
    let nsid = section.optional("nsid", sink, value::number(1..=NSID_MAX));
    let patience = value::number(0..=LOSS_TIMEOUT_MAX_S);
    let patience = section.optional("loss_timeout_s", sink, patience);
    let quiesce = section.optional("quiesce_ms", sink, value::number(0..=QUIESCE_MAX_MS));
    let digests = section.optional("digests", sink, value::choice(DIGESTS));
    Some(Backing::Remote {
        address: address?.value,
        nqn: nqn?.value,
        nsid: nsid.map_or(1, |nsid| nsid.value as u32),
        bytes: size.map(|size| size.value),
        loss_timeout: Duration::from_secs(patience.map_or(LOSS_TIMEOUT_S, |given| given.value)),
        quiesce: Duration::from_millis(quiesce.map_or(QUIESCE_MS, |given| given.value)),
        digests: digests.map_or(Digests::None, |digests| digests.value),
    })
}

fn read_exports(
    top: &mut Section,
    names: &Names,
    volumes: &[Option<Volume>],
    shared: &mut Shared,
) -> Option<Vec<Export>> {
    let mut exports = Vec::new();
    let mut nqns = Claims::default();
    let mut listens: Vec<At<SocketAddr>> = Vec::new();
    for mut section in top.tables("export", "[[export]]", EXPORTS_MAX, &mut shared.sink) {
        let sink = &mut shared.sink;
        let named = section.required("volume", "\"data\"", sink, value::name);
        let volume = named.as_ref().and_then(|named| names.resolve("volume", named, sink));
        if let (Some(named), Some(volume)) = (&named, volume)
            && let Some(Some(Volume { backing: Backing::Null { .. }, .. })) =
                volumes.get(usize::from(volume))
        {
            let what = format!("`volume` of [[export]] is {}, of kind \"null\"", named.value);
            let want = "reads of it give whatever the buffer held before: want another kind";
            sink.push(named.span.clone(), what, want);
        }
        let want = "\"nqn.2025-01.org.example:disk1\"";
        let nqn = section.required("nqn", want, sink, value::nqn);
        if let Some(nqn) = &nqn {
            let what = format!("the name {}", nqn.value);
            nqns.claim(nqn.value.clone(), &nqn.span, what, "want another `nqn`", sink);
        }
        let want = "\"192.0.2.1:4420\"";
        let listen = section.required("listen", want, sink, value::socket_address);
        let insecure = section.optional("insecure", sink, value::boolean);
        let insecure = insecure.is_some_and(|insecure| insecure.value);
        if let Some(listen) = &listen {
            check_listen(listen, insecure, &listens, shared);
            listens.push(listen.clone());
        }
        let digests = section.optional("require_digests", &mut shared.sink, value::choice(DIGESTS));
        section.finish(&mut shared.sink);
        let export = volume.zip(nqn).zip(listen);
        exports.push(export.map(|((volume, nqn), listen)| Export {
            volume,
            nqn: nqn.value,
            listen: listen.value,
            require_digests: digests.map_or(Digests::None, |digests| digests.value),
        }));
    }
    exports.into_iter().collect()
}

/// A listener must have an address of its own, and one that is not every interface's.
fn check_listen(
    listen: &At<SocketAddr>,
    insecure: bool,
    others: &[At<SocketAddr>],
    shared: &mut Shared,
) {
    let ip = listen.value.ip();
    if ip.is_multicast() {
        let what = format!("`listen` of [[export]] is {}", listen.value);
        shared.sink.push(listen.span.clone(), what, "want an address of this host");
    }
    if ip.is_unspecified() && !insecure {
        let what = "`listen` of [[export]] is open to every network of this host";
        let want = "want one address of this host, or add `insecure = true`";
        shared.sink.push(listen.span.clone(), what, want);
    }
    let overlaps = |other: &&At<SocketAddr>| {
        let (a, b) = (ip, other.value.ip());
        let wildcard = a.is_unspecified() || b.is_unspecified();
        listen.value.port() == other.value.port() && (a == b || wildcard)
    };
    if let Some(other) = others.iter().find(overlaps) {
        let what = format!("`listen` of [[export]]: {} is taken already", listen.value);
        let want = "want another port for each export";
        let other = (other.span.clone(), "taken first");
        shared.sink.push_with(listen.span.clone(), what, want, other);
    }
}

fn read_disks(top: &mut Section, names: &Names, shared: &mut Shared) -> Option<Vec<Disk>> {
    let mut disks = Vec::new();
    let mut disk_names = Names::default();
    for mut section in top.tables("disk", "[[disk]]", DISKS_MAX, &mut shared.sink) {
        let sink = &mut shared.sink;
        let name = section.required("name", "\"vda\"", sink, value::disk_name);
        disk_names.declare("disk", &name, sink);
        let volume = section.required("volume", "\"data\"", sink, value::name);
        let volume = volume.and_then(|volume| names.resolve("volume", &volume, sink));
        let want = "\"/run/outboard/vda.sock\"";
        let socket = section.required("socket", want, sink, value::socket_path);
        if let Some(socket) = &socket {
            let what = format!("the path {}", socket.value.display());
            let key = socket.value.clone();
            shared.paths.claim(key, &socket.span, what, "want another path", sink);
        }
        let queues = section.optional("queues", sink, value::number(1..=DISK_QUEUES_MAX));
        let access = SocketAccess {
            owner: section.optional("owner", sink, value::account).map(|owner| owner.value),
            group: section.optional("group", sink, value::account).map(|group| group.value),
            mode: section.optional("mode", sink, value::mode).map(|mode| mode.value),
        };
        section.finish(sink);
        let disk = name.zip(volume).zip(socket);
        disks.push(disk.map(|((name, volume), socket)| Disk {
            name: name.value,
            volume,
            socket: socket.value,
            access,
            queues: queues.map_or(1, |queues| queues.value as u16),
        }));
    }
    disks.into_iter().collect()
}
