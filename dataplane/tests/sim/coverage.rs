//! What a run reached: states and reasons, by name, and how often.

use std::collections::BTreeMap;

/// Counts by name.
#[derive(Debug, Default)]
pub struct Coverage {
    reached: BTreeMap<String, u64>,
}

impl Coverage {
    /// `name` of `kind` was reached `times` times; never, if that is 0.
    pub fn add(&mut self, kind: &str, name: &str, times: u64) {
        if times > 0 {
            *self.reached.entry(format!("{kind}.{name}")).or_default() += times;
        }
    }

    /// One line each, for `cargo xtask sim`.
    pub fn print(&self) {
        for (name, times) in &self.reached {
            println!("reached {name} {times}");
        }
    }

    /// # Panics
    /// When something of `floor` was not reached.
    pub fn check(&self, floor: &[&str]) {
        let missing: Vec<_> =
            floor.iter().filter(|name| !self.reached.contains_key(**name)).collect();
        assert!(missing.is_empty(), "never reached: {missing:?}");
    }
}
