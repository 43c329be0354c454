//! The code on which order between threads depends, compiled against loom's atomics.
//!
//! These are the very files of `dma` and `outboard`: they name their atomics `crate::sync`, which
//! here is loom's. The models in `tests/` run them in every interleaving that loom tells apart,
//! with at most [`PREEMPTIONS`] switches away from a thread that could go on (more are possible
//! only where a thread waits or ends). A model that would hold whatever the code does proves
//! nothing: each comes with wrong orders that it must catch.
#![allow(unsafe_code)]

#[path = "../../src/virtio/notify.rs"]
pub mod notify;
#[path = "../../dma/src/ring.rs"]
#[allow(missing_docs, reason = "the same as in its own package, where it is private")]
pub mod ring;
pub mod sync;
#[path = "../../dma/src/wake.rs"]
pub mod wake;

/// Switches away from a thread that could go on, in one run of a model.
pub const PREEMPTIONS: usize = 3;

/// Runs `model` in every interleaving.
pub fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(model);
}
