//! `udp`: round trips of datagrams between sockets, with a sequence number in each.
//!
//! A request is 8 bytes of slot and round, then a fill that depends on them; the server sends it
//! back as it is. Datagrams may be lost; a late or second answer counts as stray.

use super::{LoadArgs, Subject, Wait, measure, publish, sleep};
use crate::error::Error;
use crate::load::{Content, Ended, Request, Work};
use crate::machine::{netns, pin};
use crate::schema::Measurement;
use crate::stop;
use clap::Args;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::Ordering;

/// Measure round trips of UDP datagrams between sockets.
///
/// Start the echo side first; it prints one line when it is ready.
///
/// Examples:
///   outboard-bench udp --server 10.1.0.2:7000 --wait spin
///   outboard-bench udp --to 10.1.0.2:7000                         depth 1, spinning
///   outboard-bench udp --to 10.1.0.2:7000 --rate 20000 --json udp.json
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct UdpArgs {
    /// Be the echo side, on this address.
    #[arg(long, value_name = "ADDR", conflicts_with = "to", required_unless_present = "to")]
    pub server: Option<SocketAddr>,
    /// Be the generator; the echo side's address.
    #[arg(long, value_name = "ADDR")]
    pub to: Option<SocketAddr>,
    /// How this side waits for datagrams.
    #[arg(long, value_enum, default_value = "spin")]
    pub wait: Wait,
    /// Bytes of payload, 8 to 8900; 22 make a frame of 64 bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 22)]
    pub payload: u16,
    /// Make the socket in this network namespace.
    #[arg(long, value_name = "NAME")]
    pub netns: Option<String>,
    /// A request without answer after this time is lost.
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub lost_after: f64,
    #[command(flatten)]
    pub load: LoadArgs,
}

const PAYLOAD: std::ops::RangeInclusive<u16> = 8..=8900;

/// Runs either side.
pub fn run(args: &UdpArgs) -> Result<(), Error> {
    match (args.server, args.to) {
        (Some(address), _) => serve(args, address),
        (None, Some(to)) => publish(client(args, to)?, args.load.json.as_deref()),
        (None, None) => Err(Error::Refused("one of --server and --to is needed".into())),
    }
}

fn socket(args: &UdpArgs, bind: SocketAddr) -> Result<UdpSocket, Error> {
    let made = netns::within(args.netns.as_deref(), || UdpSocket::bind(bind))?;
    let socket = made.map_err(Error::system(format!("cannot bind a UDP socket to {bind}")))?;
    socket.set_nonblocking(true).map_err(Error::system("cannot make a socket non-blocking"))?;
    Ok(socket)
}

/// The echo side: until Ctrl-C or SIGTERM.
fn serve(args: &UdpArgs, address: SocketAddr) -> Result<(), Error> {
    let socket = socket(args, address)?;
    let _pinned = args.load.core.map(pin).transpose()?;
    // The port that the kernel chose, when 0 was asked for.
    println!("echoing on {}", socket.local_addr().unwrap_or(address));
    let (mut buffer, mut empty) = ([0; 9216], 0u32);
    loop {
        if let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
            // A full send queue loses the datagram, as a network would.
            let _ = socket.send_to(&buffer[..bytes], from);
            continue;
        }
        empty = empty.wrapping_add(1);
        if args.wait == Wait::Block {
            sleep(&socket, 100_000_000);
        }
        let look = args.wait == Wait::Block || empty.is_multiple_of(4096);
        if look && stop::flag().load(Ordering::Relaxed) {
            return Ok(());
        }
    }
}

/// The generator's side.
pub fn client(args: &UdpArgs, to: SocketAddr) -> Result<Measurement, Error> {
    if !PAYLOAD.contains(&args.payload) {
        return Err(Error::Refused("--payload must be 8 to 8900 bytes".into()));
    }
    let load = args.load.load(args.lost_after)?;
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = socket(args, (any, 0).into())?;
    socket.connect(to).map_err(Error::system(format!("cannot reach {to}: is there a route?")))?;
    let bytes = usize::from(args.payload);
    let mut work = UdpWork {
        socket,
        wait: args.wait,
        send: vec![0; bytes],
        receive: vec![0; bytes + 1],
        right: vec![true; usize::from(load.depth)],
    };
    let subject = Subject {
        driver: "udp",
        name: format!("udp round trip {} B, {}", args.payload, args.load.pace_text()),
        group: format!("network round trip {} B {}", args.payload, args.load.pace_text()),
        medium: "UDP sockets".into(),
        bytes: u64::from(args.payload),
        is_block: false,
        parameters: vec![("payload_bytes", args.payload.into()), ("wait", args.wait.name().into())],
    };
    measure(&mut work, &args.load, &load, subject)
}

struct UdpWork {
    socket: UdpSocket,
    wait: Wait,
    send: Vec<u8>,
    receive: Vec<u8>,
    /// Whether the slot's last answer was as sent.
    right: Vec<bool>,
}

/// Slot in the low 16 bits, round above.
pub fn encode(request: Request) -> u64 {
    u64::from(request.round) << 16 | u64::from(request.slot)
}

pub fn decode(sequence: u64) -> Option<Request> {
    let round = u32::try_from(sequence >> 16).ok()?;
    Some(Request { slot: sequence as u16, round })
}

/// The whole payload of a request.
pub fn fill(out: &mut [u8], request: Request) {
    let (head, tail) = out.split_at_mut(8);
    head.copy_from_slice(&encode(request).to_le_bytes());
    for (index, byte) in tail.iter_mut().enumerate() {
        *byte = (index as u8).wrapping_mul(31).wrapping_add(request.round as u8);
    }
}

impl Work for UdpWork {
    const MAY_LOSE: bool = true;

    fn prepare(&mut self, _slot: u16) {}

    fn start(&mut self, request: Request, _now_ns: u64) -> bool {
        fill(&mut self.send, request);
        match self.socket.send(&self.send) {
            Ok(_) => true,
            // No buffer space: wait. Anything else (nobody listens yet) is a lost datagram.
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }

    fn poll(&mut self, _now_ns: u64, ended: &mut Vec<Ended>) {
        while let Ok(bytes) = self.socket.recv(&mut self.receive) {
            let data = &self.receive[..bytes];
            let sequence = data.first_chunk().map(|head| u64::from_le_bytes(*head));
            let request = sequence.and_then(decode).unwrap_or(Request { slot: u16::MAX, round: 0 });
            if let Some(right) = self.right.get_mut(usize::from(request.slot)) {
                fill(&mut self.send, request);
                *right = data == self.send;
            }
            ended.push(Ended { request, ok: true });
        }
    }

    fn check(&mut self, ended: &Ended) -> Content {
        match self.right[usize::from(ended.request.slot)] {
            true => Content::Right,
            false => Content::Wrong,
        }
    }

    fn idle(&mut self, now_ns: u64, until_ns: u64) {
        if self.wait == Wait::Block && until_ns > now_ns {
            sleep(&self.socket, until_ns - now_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    /// An echo on loopback that damages, doubles or swallows every n-th datagram.
    struct Echo {
        address: SocketAddr,
        stop: Arc<AtomicBool>,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Echo {
        fn start(every: u64, fault: fn(&UdpSocket, &mut [u8], SocketAddr)) -> Echo {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let address = socket.local_addr().unwrap();
            let stop = Arc::new(AtomicBool::new(false));
            let asked = stop.clone();
            let thread = std::thread::spawn(move || {
                let (mut buffer, mut count) = ([0; 9000], 0u64);
                while !asked.load(Ordering::Relaxed) {
                    let Ok((bytes, from)) = socket.recv_from(&mut buffer) else { continue };
                    count += 1;
                    if count.is_multiple_of(every) {
                        fault(&socket, &mut buffer[..bytes], from);
                    } else {
                        socket.send_to(&buffer[..bytes], from).unwrap();
                    }
                }
            });
            Echo { address, stop, thread: Some(thread) }
        }

        fn client(&self, payload: u16, lost_after: f64) -> Measurement {
            let args = UdpArgs {
                server: None,
                to: Some(self.address),
                wait: Wait::Block,
                payload,
                netns: None,
                lost_after,
                load: LoadArgs { core: None, ..LoadArgs::closed(4, 0.3, 0.0, 0) },
            };
            client(&args, self.address).unwrap()
        }
    }

    impl Drop for Echo {
        fn drop(&mut self) {
            self.stop.store(true, Ordering::Relaxed);
            let _ = self.thread.take().map(|thread| thread.join());
        }
    }

    #[test]
    fn an_honest_echo_is_right_at_every_size() {
        let echo = Echo::start(u64::MAX, |_, _, _| ());
        for payload in [8, 9, 22, 8900] {
            let measured = echo.client(payload, 10.0);
            assert!(measured.verified > 0 && measured.latency.is_some(), "{payload}");
            assert_eq!((measured.verify_failures, measured.strays), (0, 0), "{payload}");
        }
    }

    #[test]
    fn damage_is_found() {
        let echo = Echo::start(10, |socket, data, from| {
            data[15] ^= 4;
            socket.send_to(data, from).unwrap();
        });
        assert!(echo.client(22, 0.05).verify_failures > 0);
    }

    #[test]
    fn duplicates_are_strays() {
        let echo = Echo::start(10, |socket, data, from| {
            socket.send_to(data, from).unwrap();
            socket.send_to(data, from).unwrap();
        });
        let measured = echo.client(22, 10.0);
        assert!(measured.strays > 0 && measured.verify_failures == 0);
    }

    #[test]
    fn swallowed_datagrams_are_lost_and_the_rest_goes_on() {
        let echo = Echo::start(50, |_, _, _| ());
        let measured = echo.client(22, 0.05);
        assert!(measured.lost > 0 && measured.verified > measured.lost);
    }

    #[test]
    fn garbage_from_the_network_is_a_stray() {
        let echo = Echo::start(10, |socket, _, from| {
            socket.send_to(&[], from).unwrap();
            socket.send_to(&[0xff; 3], from).unwrap();
            socket.send_to(&[0xff; 40], from).unwrap();
        });
        let measured = echo.client(22, 0.05);
        assert!(measured.strays >= 3 && measured.verify_failures == 0);
    }
}
