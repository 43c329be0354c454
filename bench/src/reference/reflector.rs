//! A bare AF_XDP reflector: what comes in on one interface goes out on the other, untouched, from
//! one spinning thread. The least that any device between two AF_XDP ports can cost.

use super::xdp_socket::{Binding, FRAMES_PER_SOCKET, Umem, XdpSocket};
use super::{OtherSide, is_over, now_and_then};
use crate::error::Error;
use crate::machine::{netns, own_name, pin};
use crate::stop;
use clap::Args;
use outboard_ebpf::{Program, Steering};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Forward every frame between two interfaces until Ctrl-C.
#[derive(Args, Clone, Debug)]
pub struct ReflectorArgs {
    /// One interface.
    #[arg(long, value_name = "IF")]
    pub a: String,
    /// The other.
    #[arg(long, value_name = "IF")]
    pub b: String,
    /// The network namespace of both.
    #[arg(long, value_name = "NAME")]
    pub netns: Option<String>,
    /// Pin to this core.
    #[arg(long, value_name = "CORE")]
    pub core: Option<usize>,
}

/// Frames moved before sending is asked for, as Outboard's bursts.
const BURST: usize = 32;

/// A socket with the program that steers an interface's frames to it; detached when dropped.
pub struct Steered {
    /// The socket.
    pub socket: XdpSocket,
    steering: Option<Steering>,
    pins: PathBuf,
}

impl Steered {
    /// Opens the socket and attaches the program, in this thread's network namespace.
    pub fn open(
        interface: &str,
        umem: &std::sync::Arc<Umem>,
        binding: Binding,
    ) -> Result<Steered, Error> {
        let socket = XdpSocket::open(interface, umem, binding).map_err(Error::system(format!(
            "cannot open an AF_XDP socket on `{interface}` (it needs root or CAP_NET_RAW, and a \
             queue that nobody else has: `ss --xdp`)"
        )))?;
        let pins = pin_directory().join(own_name("xdp"));
        let refused = |error: outboard_ebpf::Error| Error::Refused(error.to_string());
        let mut steering = Steering::attach(interface, Program::Tenant, &pins).map_err(refused)?;
        steering.set_socket(0, socket.fd()).map_err(refused)?;
        Ok(Steered { socket, steering: Some(steering), pins })
    }
}

impl Drop for Steered {
    fn drop(&mut self) {
        if let Some(steering) = self.steering.take() {
            // Nothing to do when the interface is gone, and its program with it.
            let _ = steering.detach();
        }
        // The directories go once they are empty; others of this process may still be in use.
        let _ = std::fs::remove_dir(&self.pins);
        let _ = std::fs::remove_dir(pin_directory());
    }
}

/// Where this process pins its programs.
pub fn pin_directory() -> PathBuf {
    PathBuf::from(format!("/sys/fs/bpf/outboard-bench-{}", std::process::id()))
}

/// Both interfaces, ready to reflect.
pub struct Reflector {
    a: Steered,
    b: Steered,
}

impl Reflector {
    /// Opens both sockets over one memory; the interfaces lie in `netns`.
    pub fn open(a: &str, b: &str, netns: Option<&str>) -> Result<Reflector, Error> {
        netns::within(netns, || {
            let umem = Umem::new(2 * FRAMES_PER_SOCKET)
                .map_err(Error::system("cannot map frame memory"))?;
            let mut a = Steered::open(a, &umem, Binding::SingleBuffer)?;
            let mut b = Steered::open(b, &umem, Binding::Shared(&a.socket))?;
            for (index, addr) in umem.frames().enumerate() {
                let side = if index % 2 == 0 { &mut a } else { &mut b };
                assert!(side.socket.give(addr), "a fill ring is smaller than its frames");
            }
            a.socket.publish_given();
            b.socket.publish_given();
            Ok(Reflector { a, b })
        })?
    }

    /// Forwards in both directions until told to stop.
    pub fn run(&mut self, stop: &AtomicBool) {
        let mut spins = 0;
        while !now_and_then(&mut spins) || !is_over(stop) {
            forward(&mut self.a.socket, &mut self.b.socket);
            forward(&mut self.b.socket, &mut self.a.socket);
        }
    }
}

/// Moves up to a burst from one socket to the other; frames that were sent are received into
/// again by the side they came from.
fn forward(from: &mut XdpSocket, to: &mut XdpSocket) {
    let mut returned = false;
    to.complete(|addr| {
        assert!(from.give(addr), "a fill ring is smaller than its frames");
        returned = true;
    });
    if returned {
        from.publish_given();
    }
    let mut moved = 0;
    while moved < BURST
        && let Some(frame) = from.receive()
    {
        // No more frames are under way than the ring has entries.
        assert!(to.send(frame.addr, frame.len), "a send ring is smaller than its frames");
        moved += 1;
    }
    if moved > 0 {
        from.publish_received();
        to.kick();
    } else if to.has_unsent() {
        to.kick();
    }
}

/// A reflector on a thread of this process, on the second core.
pub struct Running {
    _thread: OtherSide<()>,
}

impl Running {
    /// Opens and starts it.
    pub fn start(a: &str, b: &str, netns: Option<&str>) -> Result<Running, Error> {
        let mut reflector = Reflector::open(a, b, netns)?;
        Ok(Running { _thread: OtherSide::start("reflector", move |stop| reflector.run(stop)) })
    }
}

/// Runs in the foreground.
pub fn run(args: &ReflectorArgs) -> Result<(), Error> {
    let mut reflector = Reflector::open(&args.a, &args.b, args.netns.as_deref())?;
    let _pinned = args.core.map(pin).transpose()?;
    println!("reflecting between {} and {}", args.a, args.b);
    reflector.run(stop::flag());
    Ok(())
}
