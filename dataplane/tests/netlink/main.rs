//! rtnetlink against the real kernel, in namespaces that each test makes. Needs root.

#[path = "../netns/mod.rs"]
mod netns;

mod attach;
mod show;
mod underlay;
