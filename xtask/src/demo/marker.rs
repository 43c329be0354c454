//! A UDP server that says who it is, and its client: shows which of two servers with the same
//! address answers. Each request carries the asker's VPC; the server counts those of another one.

use crate::error::Error;
use crate::stop::Stop;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

/// How long one request may take; the first may have to wait for address resolution.
const ANSWER_WAIT: Duration = Duration::from_millis(500);
/// How often a request is sent again before it counts as not answered.
const ATTEMPTS: u32 = 10;

/// Serves or asks for a VPC's marker (used by `demo` inside its namespaces)
#[derive(clap::Args)]
pub struct Args {
    /// Answer here.
    #[arg(long, value_name = "ADDRESS", required_unless_present = "ask", conflicts_with = "ask")]
    serve: Option<SocketAddr>,
    /// Ask this server.
    #[arg(long, value_name = "ADDRESS")]
    ask: Option<SocketAddr>,
    /// How often.
    #[arg(long, default_value_t = 1)]
    times: u32,
    /// The VPC that this side is in.
    vpc: String,
}

/// Serves until it is stopped, or asks and prints the last answer: VPC and foreign requests.
pub fn run(args: &Args) -> Result<(), Error> {
    match (args.serve, args.ask) {
        (Some(address), _) => serve(address, &args.vpc, &Stop::install()?),
        (None, Some(address)) => {
            println!("{}", ask(address, &args.vpc, args.times)?);
            Ok(())
        }
        (None, None) => Err(Error::task("neither --serve nor --ask", "give one of them")),
    }
}

fn socket_error(what: String) -> impl FnOnce(io::Error) -> Error {
    move |e| Error::task(format!("{what}: {e}"), "is its interface up?")
}

fn serve(address: SocketAddr, vpc: &str, stop: &Stop) -> Result<(), Error> {
    let socket =
        UdpSocket::bind(address).map_err(socket_error(format!("cannot bind {address}")))?;
    let wait = socket.set_read_timeout(Some(Duration::from_millis(100)));
    wait.map_err(socket_error(format!("cannot wait on {address}")))?;
    println!("answering on {address}");
    let mut foreign = 0;
    let mut request = [0; 64];
    while stop.check().is_ok() {
        let Ok((bytes, asker)) = socket.recv_from(&mut request) else { continue };
        foreign += u32::from(&request[..bytes] != vpc.as_bytes());
        // A lost answer is asked for again.
        let _ = socket.send_to(format!("{vpc} {foreign}").as_bytes(), asker);
    }
    Ok(())
}

/// Asks `times` times; an error when the answers name different servers or stop coming.
fn ask(address: SocketAddr, vpc: &str, times: u32) -> Result<String, Error> {
    let failed = || socket_error(format!("cannot ask {address}"));
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).map_err(failed())?;
    socket.connect(address).map_err(failed())?;
    socket.set_read_timeout(Some(ANSWER_WAIT)).map_err(failed())?;
    let mut last = String::new();
    for _ in 0..times {
        let answer = ask_once(&socket, vpc).ok_or_else(|| {
            Error::task(format!("{address} gave no answer in {ATTEMPTS} attempts"), "can it reply?")
        })?;
        let server = |answer: &str| answer.split(' ').next().map(str::to_string);
        if !last.is_empty() && server(&last) != server(&answer) {
            let what = format!("{address} answered as \"{last}\" and as \"{answer}\"");
            return Err(Error::task(what, "two networks are mixed"));
        }
        last = answer;
    }
    Ok(last)
}

fn ask_once(socket: &UdpSocket, vpc: &str) -> Option<String> {
    let mut answer = [0; 64];
    (0..ATTEMPTS).find_map(|_| {
        // Refused until the server listens; asked again then.
        socket.send(vpc.as_bytes()).ok()?;
        let bytes = socket.recv(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..bytes]).into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_server_names_itself_and_counts_foreign_askers() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let free = UdpSocket::bind(loopback).unwrap().local_addr().unwrap();
            let stop = Stop::default();
            let serving = {
                let stop = stop.clone();
                thread::spawn(move || serve(free, "blue", &stop))
            };
            let first = Stop::default()
                .wait_for(Duration::from_secs(60), || Ok(ask(free, "blue", 3).ok()))
                .unwrap();
            assert_eq!(first.unwrap(), "blue 0");
            assert_eq!(ask(free, "red", 1).unwrap(), "blue 1");
            stop.ask();
            serving.join().unwrap().unwrap();
        }
    }
}
