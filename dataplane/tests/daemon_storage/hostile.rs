//! Strangers at an export's port while a host does verified I/O.

use crate::guest::{Guest, Oracle};
use crate::host::{Host, NQN, Scratch, address, count, file_target, remote_disk, until};
use outboard_sim::Rng;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An ICReq (NVMe/TCP 1.0, section 3.6.2.2).
fn icreq() -> [u8; 128] {
    let mut bytes = [0; 128];
    bytes[..8].copy_from_slice(&[0, 0, 128, 0, 128, 0, 0, 0]);
    bytes
}

/// A connection that has sent this.
fn stranger(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(address).unwrap();
    // It may have been turned away meanwhile.
    let _ = socket.write_all(bytes);
    socket
}

#[test]
fn strangers_hold_nobody_up() {
    let (scratch, address) = (Scratch::new(), address());
    let target = Host::new(&scratch, "b", &file_target("data.img", address)).run();
    let initiator = Host::new(&scratch, "a", &remote_disk(address)).run();
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(4 << 20));
    guest.runs(200);
    let mut rng = Rng::new(7);
    for round in 0..60 {
        let mut bytes = [0; 512];
        rng.fill(&mut bytes);
        // Garbage; half a header; half an ICReq; a whole one and garbage; one and half a command.
        let sent = match round % 5 {
            0 => bytes.to_vec(),
            1 => icreq()[..5].to_vec(),
            2 => icreq()[..100].to_vec(),
            3 => [&icreq()[..], &bytes].concat(),
            _ => [&icreq()[..], &[4, 0, 72, 0, 72, 0, 0, 0, 1]].concat(),
        };
        let socket = stranger(address, &sent);
        guest.runs(16);
        if round % 2 == 0 {
            let _ = socket.set_linger_now();
        }
    }
    let idle: Vec<TcpStream> = (0..200).map(|_| stranger(address, &[])).collect();
    guest.runs(300);
    assert!(target.export(NQN).connections <= 32);
    assert_eq!(initiator.ended("vda", "connection_lost"), 0);
    drop(idle);
    until("they are gone", || (target.export(NQN).connections == 2).then_some(()));
    let errors = target.export(NQN).errors;
    assert!(errors.len() > 2 && count(&errors, "connection_fault") > 0, "{errors:?}");
    let crowded = count(&errors, "connection_crowded_out");
    let turned_away = count(&errors, "connection_turned_away");
    assert!(crowded + turned_away >= 150, "{errors:?}");
    guest.runs(200);
    guest.verify();
    initiator.stop();
    target.stop();
}

/// Ends a connection by a reset.
trait Reset {
    fn set_linger_now(&self) -> rustix::io::Result<()>;
}

impl Reset for TcpStream {
    fn set_linger_now(&self) -> rustix::io::Result<()> {
        rustix::net::sockopt::set_socket_linger(self, Some(Duration::ZERO))
    }
}

#[test]
fn a_host_comes_in_while_strangers_crowd() {
    let (scratch, address) = (Scratch::new(), address());
    let target = Host::new(&scratch, "b", &file_target("data.img", address)).run();
    let idle: Vec<TcpStream> = (0..200).map(|_| stranger(address, &icreq())).collect();
    until("they have settled", || (target.export(NQN).connections <= 16).then_some(()));
    let initiator = Host::new(&scratch, "a", &remote_disk(address)).run();
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(4 << 20));
    guest.runs(200);
    drop(idle);
    guest.verify();
    initiator.stop();
    // Stopped with strangers connected.
    let _idle: Vec<TcpStream> = (0..10).map(|_| stranger(address, &icreq()[..9])).collect();
    target.stop();
}
