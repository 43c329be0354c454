//! The DPDK port over DPDK's software drivers. Needs root for those that meet the kernel.
#![cfg(feature = "dpdk")]

#[path = "../netns/mod.rs"]
mod netns;

mod conforms;
mod hotplug;
mod null;
mod peers;
mod queue;

use outboard_dma::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;
