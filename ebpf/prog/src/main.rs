//! The XDP programs: which frames go to user space. They only look and steer; every decision
//! about a packet is the switch's.
//!
//! `outboard_tenant` gives every frame to the socket of the queue it came in on.
//! `outboard_uplink` gives it the datagrams of tunnels to this host's tunnel addresses and leaves
//! everything else to the kernel, which answers ARP and neighbour discovery, hears what routers
//! say about the path (control asks it), and keeps its other services. A frame for a queue
//! without a socket is dropped and counted: passing a tenant's frames to the kernel would go
//! around the switch.
//!
//! Maps: `XSKS`, sockets by queue; `VTEPS`, this host's tunnel addresses, as `outboard_wire::vtep`
//! writes them; `COUNTERS`, one u64 per outcome and CPU (`abi.rs`).
//! `VXLAN_PORT` is a constant that the loader may replace before loading.
#![no_std]
#![no_main]

#[path = "../../src/abi.rs"]
mod abi;

use abi::{OUTCOMES, Outcome, QUEUES, VTEPS as VTEPS_MAX};
use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT};
use aya_ebpf::btf_maps::{HashMap, PerCpuArray, XskMap};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use outboard_wire::{STEER_BYTES, STEER_V6_BYTES, Steer, steer, steer_v6};

// Described in BTF, which every loader reads.
#[btf_map]
static XSKS: XskMap<{ QUEUES as usize }> = XskMap::new();

#[btf_map]
static VTEPS: HashMap<[u8; 16], u8, { VTEPS_MAX as usize }> = HashMap::new();

#[btf_map]
static COUNTERS: PerCpuArray<u64, OUTCOMES> = PerCpuArray::new();

#[unsafe(no_mangle)]
static VXLAN_PORT: Global<u16> = Global::new(abi::VXLAN_PORT);

/// For the host's end of a tenant's interface.
#[xdp(frags)]
pub fn outboard_tenant(context: XdpContext) -> u32 {
    let (outcome, action) = to_socket(&context);
    count(outcome);
    action
}

/// For an interface on the network between hosts.
#[xdp(frags)]
pub fn outboard_uplink(context: XdpContext) -> u32 {
    let (outcome, action) = uplink(&context);
    count(outcome);
    action
}

#[inline(always)]
fn uplink(context: &XdpContext) -> (Outcome, u32) {
    let Some(head) = first::<STEER_BYTES>(context) else {
        return (Outcome::PassedShort, XDP_PASS);
    };
    match steer(head, VXLAN_PORT.load()) {
        Steer::Ipv6 => match first::<STEER_V6_BYTES>(context) {
            Some(head) => verdict(context, steer_v6(head, VXLAN_PORT.load())),
            None => (Outcome::PassedShort, XDP_PASS),
        },
        decision => verdict(context, decision),
    }
}

#[inline(always)]
fn verdict(context: &XdpContext, decision: Steer) -> (Outcome, u32) {
    match decision {
        Steer::Tunnel(to) if VTEPS.get_ptr(to).is_some() => to_socket(context),
        Steer::Tunnel(_) => (Outcome::PassedAddress, XDP_PASS),
        Steer::Other | Steer::Ipv6 => (Outcome::Passed, XDP_PASS),
        Steer::Fragment => (Outcome::PassedFragment, XDP_PASS),
        Steer::Options => (Outcome::PassedOptions, XDP_PASS),
    }
}

#[inline(always)]
fn to_socket(context: &XdpContext) -> (Outcome, u32) {
    // SAFETY: the kernel passes a valid context.
    let queue = unsafe { (*context.ctx).rx_queue_index };
    // The flags are the action for a queue without a socket (bpf-helpers(7), bpf_redirect_map).
    match XSKS.redirect(queue, u64::from(XDP_DROP)) {
        Ok(XDP_REDIRECT) => (Outcome::Redirected, XDP_REDIRECT),
        _ => (Outcome::NoSocket, XDP_DROP),
    }
}

/// The frame's first bytes, or `None` when there are fewer.
#[inline(always)]
fn first<const BYTES: usize>(context: &XdpContext) -> Option<&[u8; BYTES]> {
    let (start, end) = (context.data(), context.data_end());
    // SAFETY: the bytes lie between the start and the end of the packet (checked; the verifier
    // checks it again), which nobody changes while the program runs.
    (start + BYTES <= end).then(|| unsafe { &*(start as *const [u8; BYTES]) })
}

#[inline(always)]
fn count(outcome: Outcome) {
    if let Some(counter) = COUNTERS.get_ptr_mut(outcome as u32) {
        // SAFETY: the pointer is this CPU's element; an XDP program is not interrupted by itself.
        unsafe { *counter += 1 };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

// Checked by the kernel for helpers that are lent to GPL-compatible programs; see ../LICENSE.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
