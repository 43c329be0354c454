//! How a daemon ends, and that nothing of it stays.

use crate::process::{Daemon, until};
use crate::world::{Host, Options, World};
use rustix::process::Signal;
use std::process::{Command, Stdio};

/// A disk beside the ports: its socket must go too, whether the daemon ran or was refused.
pub const DISK: &str = "
[[volume]]
name = 'ram'
kind = 'mem'
size = '4MiB'
[[disk]]
name = 'disk'
volume = 'ram'
socket = 'SCRATCH/HOST-disk.sock'
";

/// Asserts that the host is as it was before the daemon.
#[track_caller]
pub fn nothing_is_left(world: &World, host: &Host) {
    assert!(!host.pins().exists(), "pins: {:?}", std::fs::read_dir(host.pins()));
    for interface in host.tenants.iter().map(|tenant| tenant.port).chain(["veth"]) {
        assert!(!host.has_program(interface), "an XDP program on {interface}");
    }
    let sockets = std::fs::read_dir(&world.scratch.0).unwrap().flatten();
    let letter = host.name.rsplit('.').next().unwrap();
    let sockets: Vec<_> = sockets
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| name.starts_with(letter) && name.ends_with(".sock"))
        .collect();
    assert!(sockets.is_empty(), "{sockets:?}");
}

#[test]
fn both_signals_end_it_without_a_trace() {
    let (world, a, b) = World::running(Options { more: DISK, ..Options::default() });
    assert!(world.a.has_program("veth") && world.a.pins().exists());
    a.stop(Signal::TERM);
    nothing_is_left(&world, &world.a);
    b.stop(Signal::INT);
    nothing_is_left(&world, &world.b);
}

#[test]
fn a_signal_at_any_moment_of_the_start_ends_it_without_a_trace() {
    let world = World::new(Options { more: DISK, ..Options::default() });
    for delay_ms in [20, 40, 60, 80, 120] {
        let mut daemon = world.a.spawn();
        // It handles signals once it has begun to log.
        let logged = daemon.log().len();
        until("it logs", || (daemon.log().len() > logged).then_some(()));
        std::thread::sleep(std::time::Duration::from_millis(delay_ms));
        daemon.signal(Signal::TERM);
        let status = daemon.wait();
        assert_eq!(status.code(), Some(0), "{}", daemon.log());
        nothing_is_left(&world, &world.a);
    }
}

#[test]
fn a_log_that_nobody_reads_does_not_matter() {
    let world = World::new(Options::default());
    let mut child = Command::new(crate::process::OUTBOARD)
        .args(["run", "--netns", world.a.netns.name(), "--config"])
        .arg(&world.a.config)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    let daemon = Daemon::adopt(child, &world.a.log, &world.a.socket);
    until("it answers", || outboard::control::api::ask_stats(&world.a.socket).ok());
    // Something to tell: the way to the other host is gone.
    world.a.netns.ip("link set veth down");
    std::thread::sleep(std::time::Duration::from_millis(500));
    daemon.stats();
    daemon.signal(Signal::TERM);
    let mut daemon = daemon;
    assert_eq!(daemon.wait().code(), Some(0));
    nothing_is_left(&world, &world.a);
}

#[test]
fn a_second_daemon_is_refused_and_the_first_one_goes_on() {
    let (world, a, b) = World::running(Options { more: DISK, ..Options::default() });
    let netns = world.a.netns.name();
    let config = world.a.config.to_str().unwrap();
    let again = world.a.outboard(&["run", "--netns", netns, "--config", config]);
    refused(&again, "is in use by a daemon that answers; stop it");
    // Under the same name with other sockets: only the pins would be in common.
    let text = std::fs::read_to_string(&world.a.config).unwrap().replace("/a", "/second");
    let second = world.scratch.0.join("second.toml");
    std::fs::write(&second, text).unwrap();
    let second = second.to_str().unwrap();
    let again = world.a.outboard(&["run", "--netns", netns, "--config", second]);
    refused(&again, "is running; stop it, or give this one another `name`");
    // Under another name: the interfaces are in common.
    let text = std::fs::read_to_string(second).unwrap();
    let other = text.replace(&world.a.name, &format!("{}-x", world.a.netns.name()));
    std::fs::write(second, other).unwrap();
    let again = world.a.outboard(&["run", "--netns", netns, "--config", second]);
    refused(&again, "another XDP program is attached to `veth`; detach it");
    assert!(!std::path::Path::new(crate::world::PINS).join(format!("{netns}-x")).exists());
    assert!(!world.scratch.0.join("second.sock").exists());
    assert!(!world.scratch.0.join("second-disk.sock").exists());
    assert!(world.a.has_program("veth") && world.a.pins().exists());
    world.all_reach();
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
    nothing_is_left(&world, &world.a);
}

/// Asserts that a command failed with one sentence that ends like this.
#[track_caller]
pub fn refused(output: &std::process::Output, words: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let errors: Vec<_> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    assert!(stderr.trim_end().ends_with(errors[0]), "{stderr}");
    assert!(errors[0].contains(words), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}
