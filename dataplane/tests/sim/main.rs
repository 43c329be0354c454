//! Two hosts and everything between them, from one seed: `cargo xtask sim`.
//!
//! `net`: the network rooms of two workers per host, between tenants and a link that loses,
//! delays, reorders, duplicates and corrupts.
//!
//! `store`: a guest's disk on a remote volume, whose target serves a disk with a volatile cache;
//! connections are cut, processes die, the power goes.
//!
//! A seed decides everything; time is virtual. A failure prints the command that repeats it.

mod coverage;
mod net;
mod store;

use coverage::Coverage;
use outboard_sim::for_each_seed;

/// What repeats a seed.
const COMMAND: &str = "cargo test --profile sim -p outboard --test sim";
/// Seeds of a plain `cargo test`; `cargo xtask sim` says how many it wants.
const SEEDS: u64 = 3;
/// Seeds from which on all of [`FLOOR`] must have been reached.
const ENOUGH_SEEDS: u64 = 10;

/// What some seeds together must reach.
const FLOOR: &[&str] = &[
    "association.half_open",
    "association.lost",
    "association.medium_changed",
    "association.parted",
    "association.ready",
    "association.refused",
    "datagram.caught",
    "datagram.delivered",
    "datagram.marked",
    "drop.arp_ignored",
    "drop.arp_malformed",
    "drop.broadcast",
    "drop.ecn_invalid",
    "drop.ipv4_checksum",
    "drop.ipv4_header",
    "drop.ipv4_options",
    "drop.ipv6_header",
    "drop.multicast",
    "drop.next_hop_unresolved",
    "drop.no_route",
    "drop.no_underlay_route",
    "drop.not_gateway",
    "drop.not_our_vtep",
    "drop.not_tunnelled",
    "drop.outer_fragment",
    "drop.partial_checksum",
    "drop.port_down",
    "drop.to_gateway",
    "drop.too_big",
    "drop.too_short",
    "drop.ttl_exceeded",
    "drop.udp_checksum",
    "drop.unknown_vni",
    "drop.unknown_vtep",
    "drop.vlan_tag",
    "drop.vxlan_malformed",
    "flow.evictions",
    "flow.hits",
    "flow.misses",
    "flow.recompiles",
    "guest.calls",
    "guest.doubtful_landed",
    "guest.flushes",
    "guest.kicks",
    "guest.went_back",
    "guest.worker_sleeps",
    "link.corrupted",
    "link.duplicated",
    "link.lost",
    "link.overflowed",
    "link.reordered",
    "saved.association",
    "saved.initiator",
    "saved.switch",
    "saved.target",
    "saved.virtqueue",
    "status.connection_lost",
    "status.media",
    "status.medium_replaced",
    "status.not_connected",
    "status.target",
    "status.writes_lost",
    "target.cut_in_flight",
    "target.errors",
    "target.fences",
    "target.lost_sectors",
    "target.power_cuts",
    "target.stalled",
    "volume.cache_losses",
    "volume.data_digest",
    "volume.reissued",
];

/// Whether a defect is made on purpose.
fn is_planted() -> bool {
    std::env::var("OUTBOARD_PLANTED").is_ok_and(|defect| !defect.is_empty())
}

#[test]
fn two_hosts_under_faults() {
    #[cfg(outboard_planted)]
    let _ = outboard_rdma::PLANTED.set(std::env::var("OUTBOARD_PLANTED").unwrap_or_default());
    let mut coverage = Coverage::default();
    // Behind what libtest has printed.
    println!();
    let seeds = for_each_seed(COMMAND, 1, SEEDS, |seed| {
        println!("seed {seed}");
        let events = net::run(seed, &mut coverage) + store::run(seed, &mut coverage);
        println!("held {seed} {events}");
    });
    coverage.print();
    // A planted defect is to be caught by what went wrong, not by what was not reached.
    if is_planted() {
        return;
    }
    // Where several processes share the seeds, `cargo xtask sim` checks what they reach together.
    FLOOR.iter().for_each(|name| println!("floor {name}"));
    if seeds >= ENOUGH_SEEDS {
        coverage.check(FLOOR);
    }
}
