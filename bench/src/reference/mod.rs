//! Reference programs: the bare mechanism, sharing no hot code with Outboard, measured in the
//! same run so that a ratio stands beside every absolute figure.
//!
//! Two-sided ones run their other side on a thread of this process, pinned to another core, which
//! lives until the census is taken.

pub mod bare_file;
pub mod cacheline;
pub mod memcpy;
pub mod ping_pong;
pub mod reflector;
pub mod ring_echo;
pub mod sockets;
pub mod wake;
pub mod xdp_socket;

use crate::drivers::{LoadArgs, publish};
use crate::error::Error;
use crate::machine::{core_pair, pin};
use crate::stop;
use clap::{Args, Subcommand};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Measure a bare mechanism: what remains when everything that could be left out is left out.
///
/// These are what Outboard's figures are divided by. Each runs both of its sides, on two cores.
///
/// Examples:
///   outboard-bench reference tcp
///   outboard-bench reference ring-echo --seconds 2
///   outboard-bench reference ping-pong --a u0 --netns far --b u1 --b-netns near --answer 4160
///   outboard-bench reference cacheline
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct ReferenceArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Clone, Debug)]
enum What {
    /// TCP over loopback, 72 bytes asked and 4 120 answered (a 4 KiB NVMe/TCP read), both ends
    /// spinning.
    Tcp(LoadArgs),
    /// UDP over loopback, 22 bytes each way, both ends spinning.
    Udp(LoadArgs),
    /// A virtio split ring between two threads, each request answered with a copy of 4 KiB.
    RingEcho(LoadArgs),
    /// memcpy of 4 KiB blocks out of 64 MiB.
    Memcpy(LoadArgs),
    /// Two AF_XDP sockets on one thread: what comes in on one interface goes out on the other.
    Reflector(reflector::ReflectorArgs),
    PingPong(ping_pong::PingPongArgs),
    /// Round trip of a cache line between two cores.
    Cacheline,
    /// From writing an eventfd to what the thread does that slept on it, on another core.
    Wake,
}

/// Runs a reference program.
pub fn run(args: &ReferenceArgs) -> Result<(), Error> {
    let (measured, json) = match &args.what {
        What::Tcp(load) => (sockets::tcp(load)?, &load.json),
        What::Udp(load) => (sockets::udp(load)?, &load.json),
        What::RingEcho(load) => (ring_echo::measure(load)?, &load.json),
        What::Memcpy(load) => (memcpy::measure(load)?, &load.json),
        What::Reflector(args) => return reflector::run(args),
        What::PingPong(args) => (ping_pong::measure(args)?, &args.load.json),
        What::Cacheline => {
            let trip = cacheline::round_trip_ns();
            let trip = trip.ok_or_else(|| Error::Refused("needs a second core".into()))?;
            println!("{trip:.1} ns");
            return Ok(());
        }
        What::Wake => {
            let wakes = wake::measure(1_100, std::time::Duration::from_millis(4))?;
            let of = |ppm| crate::latency::text(wakes.percentile(ppm));
            println!("p50 {}, p90 {}, p99 {}", of(500_000), of(900_000), of(990_000));
            return Ok(());
        }
    };
    publish(measured, json.as_deref())
}

/// The other side of a reference: a thread that spins on its core until told to stop.
struct OtherSide<T> {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> OtherSide<T> {
    /// Starts `work` on the second core; it has to return soon after its flag is set.
    fn start(name: &str, work: impl FnOnce(&AtomicBool) -> T + Send + 'static) -> OtherSide<T> {
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, (_, core)) = (stop.clone(), core_pair());
        let body = move || {
            // Unpinned it still answers; the census shows where it ran.
            let _pinned = pin(core);
            work(&flag)
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body).ok();
        OtherSide { stop, thread }
    }
}

impl<T> Drop for OtherSide<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether a spinning side should look at its flags: every 4096th call.
fn now_and_then(spins: &mut u32) -> bool {
    *spins = spins.wrapping_add(1);
    spins.is_multiple_of(4096)
}

/// Whether the other side or the user was told to stop.
fn is_over(stop: &AtomicBool) -> bool {
    stop.load(Ordering::Relaxed) || stop::flag().load(Ordering::Relaxed)
}
