//! rtnetlink against the real kernel, in namespaces that each test makes. Needs root.

mod attach;
mod namespace;
mod underlay;
