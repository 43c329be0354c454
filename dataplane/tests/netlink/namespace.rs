//! Network namespaces that end with the test.

use outboard::control::netlink::Netns;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A namespace with a name of its own, in which only the loopback interface is.
pub struct Namespace(String);

impl Namespace {
    pub fn new() -> Namespace {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("outboard-test-{}-{unique}", std::process::id());
        run(&["ip", "netns", "add", &name]);
        Namespace(name)
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    /// Runs `ip` in the namespace.
    #[track_caller]
    pub fn ip(&self, arguments: &str) {
        let mut command = vec!["ip", "-n", &self.0];
        command.extend(arguments.split_whitespace());
        run(&command);
    }

    /// What `ip -json` shows in the namespace; an empty list when it fails.
    pub fn show(&self, arguments: &str) -> serde_json::Value {
        let output = Command::new("ip")
            .args(["-n", &self.0, "-details", "-json"])
            .args(arguments.split_whitespace())
            .output()
            .expect("ip (iproute2) runs");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| serde_json::json!([]))
    }

    /// The IPv6 link-local address of an interface.
    #[track_caller]
    pub fn link_local(&self, interface: &str) -> String {
        let shown = self.show(&format!("address show dev {interface} scope link"));
        let infos = shown[0]["addr_info"].as_array().expect("it has addresses");
        let found = infos.iter().find(|info| info["family"] == "inet6");
        found.and_then(|info| info["local"].as_str()).expect("one is IPv6's").to_string()
    }

    /// Runs a command in the namespace and gives what it prints.
    #[track_caller]
    pub fn exec(&self, arguments: &str) -> String {
        let mut command = vec!["ip", "netns", "exec", &self.0];
        command.extend(arguments.split_whitespace());
        run(&command)
    }

    /// Writes a file of /proc/sys as the namespace has it.
    #[track_caller]
    pub fn sysctl(&self, path: &str, value: &str) {
        let path = format!("/proc/sys/{path}");
        self.inside(|| std::fs::write(&path, value)).unwrap_or_else(|error| {
            panic!("writing {path}: {error}");
        });
    }

    /// Runs something on a thread in the namespace.
    pub fn inside<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        Netns::open(&self.0).unwrap().run(what).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

#[track_caller]
fn run(command: &[&str]) -> String {
    let output = Command::new(command[0]).args(&command[1..]).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} (root needed): {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
