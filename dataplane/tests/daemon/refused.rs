//! What a daemon cannot start with: one sentence that says what to do, and nothing left behind.

use crate::clean::{DISK, nothing_is_left, refused};
use crate::process::OUTBOARD;
use crate::world::{Options, World};
use std::os::unix::net::UnixListener;
use std::process::Command;

/// Runs host a's daemon with its configuration changed: it must be refused with these words.
#[track_caller]
fn refuse(world: &World, from: &str, to: &str, words: &str) {
    let text = std::fs::read_to_string(&world.a.config).unwrap();
    assert!(text.contains(from), "{from}");
    let config = world.scratch.0.join("wrong.toml");
    std::fs::write(&config, text.replacen(from, to, 1)).unwrap();
    run_refused(world, words, &["--netns", world.a.netns.name()]);
}

#[track_caller]
fn run_refused(world: &World, words: &str, more: &[&str]) {
    let config = world.scratch.0.join("wrong.toml");
    let mut command = Command::new(OUTBOARD);
    let output = command.arg("run").arg("--config").arg(&config).args(more).output().unwrap();
    refused(&output, words);
    nothing_is_left(world, &world.a);
}

#[test]
fn what_the_machine_lacks() {
    let world = World::new(Options { more: DISK, ..Options::default() });
    let red = "interface = 'red'";
    let words = "interface nored of port \"red\" does not exist in this network namespace; \
                 make it with `outboard attach --port red";
    refuse(&world, red, "interface = 'nored'", words);
    let words = "the interface noveth of uplink \"up\" does not exist; see `ip link`";
    refuse(&world, "interface = 'veth'", "interface = 'noveth'", words);
    let words = "does not have the address 192.0.2.77; correct `vtep` or run `ip addr add";
    refuse(&world, "vtep = '192.0.2.1'", "vtep = '192.0.2.77'", words);
    let words = "worker 0 cannot run on core 4095: this process may use core";
    refuse(&world, "core = 0", "core = 4095", words);
    refuse(
        &world,
        "name = 'red'\ninterface",
        "queues = 2\nname = 'red'\ninterface",
        "ethtool -l red",
    );
    let two = "receives on 2 queues, the configuration names 1, and packets on the others would";
    world.a.netns.ip("link add two numrxqueues 2 numtxqueues 2 type veth peer name two-peer");
    refuse(&world, red, "interface = 'two'", two);
    world.a.netns.ip("link add low mtu 1400 type veth peer name low-peer");
    let low = "interface low of \"red\" has an MTU of 1400, and";
    refuse(&world, red, "interface = 'low'", low);
    world.a.netns.ip("link set veth mtu 1499");
    let tunnel = "in their tunnel; run `ip link set veth mtu";
    refuse(&world, "name = 'up'", "name = 'up'", tunnel);
    world.a.netns.ip("link set veth mtu 9000");
    run_refused(&world, "network namespace \"no-such\"", &["--netns", "no-such"]);
    run_refused(&world, "is not a network namespace", &["--netns", "/proc/self/ns/uts"]);
    // In the namespace of the test nothing of all that exists.
    run_refused(&world, "interface", &[]);
}

#[test]
fn what_is_in_use_or_forbidden() {
    let world = World::new(Options { more: DISK, ..Options::default() });
    let socket = world.a.socket.display().to_string();
    refuse(&world, &socket, "/proc/a.sock", "set `socket` in [control]");
    refuse(&world, &socket, "/dev/null/a.sock", "set `socket` in [control]");
    let disk = world.scratch.0.join("a-disk.sock").display().to_string();
    refuse(&world, &disk, "/dev/null/disk.sock", "disk `disk`: ");
    // Somebody else's files and sockets stay.
    let file = world.scratch.0.join("file");
    std::fs::write(&file, "mine").unwrap();
    let path = file.display().to_string();
    refuse(&world, &socket, &path, "is not a socket; remove it");
    refuse(&world, &disk, &path, "not a socket; remove it");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    let live = world.scratch.0.join("live");
    let listener = UnixListener::bind(&live).unwrap();
    let path = live.display().to_string();
    refuse(&world, &socket, &path, "is in use by a daemon that answers; stop it");
    refuse(&world, &disk, &path, "is in use: another process answers there; stop it");
    assert!(live.exists());
    drop(listener);
    volumes(&world);
}

fn volumes(world: &World) {
    let file = |path: &str, more: &str| format!("kind = 'file'\npath = '{path}'\n{more}");
    let ram = "kind = 'mem'\nsize = '4MiB'\n";
    let missing = world.scratch.0.join("no.img").display().to_string();
    refuse(world, ram, &file(&missing, ""), "volume `ram`: ");
    let path = world.scratch.0.join("file").display().to_string();
    refuse(world, ram, &file(&path, ""), "volume `ram`: ");
    let words = "MiB are available; lower one of them";
    refuse(world, ram, "kind = 'mem'\nsize = '1000TiB'\n", words);
    assert!(!std::path::Path::new(&missing).exists());
}

/// Capabilities that ports need, each taken away alone (SYS_ADMIN would stand in for two of them).
#[test]
fn capabilities_that_are_missing() {
    let world = World::new(Options { more: DISK, ..Options::default() });
    // In the namespace already: moving there takes a capability, too.
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).args(["run", "--config"]).arg(&world.a.config);
        world.a.netns.within(|| command.output().unwrap())
    };
    for (without, name) in [
        ("-net_admin", "CAP_NET_ADMIN"),
        ("-net_raw", "CAP_NET_RAW"),
        ("-sys_admin,-bpf", "CAP_BPF"),
        ("-sys_admin,-perfmon", "CAP_PERFMON"),
        ("-net_raw,-net_admin", "CAP_NET_ADMIN, CAP_NET_RAW"),
    ] {
        let output = run("setpriv", &["--bounding-set", without, OUTBOARD]);
        refused(&output, &format!("missing {name}, which AF_XDP ports need; run as root"));
        nothing_is_left(&world, &world.a);
    }
    // Locked memory: the limit may be high enough without the capability.
    let limited = ["--memlock=1048576", "setpriv", "--bounding-set", "-ipc_lock", OUTBOARD];
    let output = run("prlimit", &limited);
    refused(&output, "exceeds the limit of 1 MiB of locked memory; grant CAP_IPC_LOCK");
    nothing_is_left(&world, &world.a);
}
