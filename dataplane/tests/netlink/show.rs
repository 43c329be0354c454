//! What `ip -json` shows in a namespace.

use crate::netns::Namespace;
use serde_json::Value;
use std::process::Command;

/// Looks into a namespace.
pub trait Show {
    /// What `ip -json` shows; an empty list when it fails.
    fn show(&self, words: &str) -> Value;

    /// The IPv6 link-local address of an interface.
    fn link_local(&self, interface: &str) -> String;
}

impl Show for Namespace {
    fn show(&self, words: &str) -> Value {
        let output = Command::new("ip")
            .args(["-n", self.name(), "-details", "-json"])
            .args(words.split_whitespace())
            .output()
            .expect("ip (iproute2) runs");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| serde_json::json!([]))
    }

    fn link_local(&self, interface: &str) -> String {
        let shown = self.show(&format!("address show dev {interface} scope link"));
        let infos = shown[0]["addr_info"].as_array().expect("it has addresses");
        let found = infos.iter().find(|info| info["family"] == "inet6");
        found.and_then(|info| info["local"].as_str()).expect("one is IPv6's").to_string()
    }
}
