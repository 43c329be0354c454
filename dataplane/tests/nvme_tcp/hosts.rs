//! Hosts that speak PDU by PDU: what a good initiator of ours never does.

use crate::server::{Client, NQN, PATIENCE, Server, until};
use outboard::volume::export::{DATA_TIMEOUT_NS, DEPTH, End};
use outboard_rdma::nvmf::capsule::{Sgl, Sqe, nvm};
use outboard_rdma::nvmf::fabrics::{ANY_CONTROLLER, ConnectData};
use outboard_rdma::nvmf::initiator::{Progress, Queue, QueueConfig, Setup, State};
use outboard_rdma::nvmf::pdu::{COMMON_BYTES, Format, Header, MAX_HEADER_BYTES, SHORT_BYTES};
use outboard_rdma::nvmf::{Digests, Fault, Nqn, Piece};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;

/// An I/O queue's connection, and that of the admin queue, which sends no keep-alives.
pub struct RawHost {
    pub io: TcpStream,
    pub admin: TcpStream,
    pub admin_queue: Queue,
}

fn config(queue: u16, controller: u16) -> QueueConfig {
    QueueConfig {
        queue,
        depth: DEPTH,
        keep_alive_ms: 0,
        in_capsule_bytes: 0,
        nsid: 1,
        digests: Digests::NONE,
        names: ConnectData {
            host_id: [3; 16],
            controller,
            subsystem: Nqn::from(NQN).unwrap(),
            host: Nqn::from("nqn.raw").unwrap(),
        },
    }
}

/// Sends what a queue has, and gives it what comes; on a socket that does not block, what is there.
pub fn exchange(socket: &mut TcpStream, queue: &mut Queue) {
    send(socket, queue);
    receive(socket, queue);
}

/// Sends what a queue has to send.
pub fn send(socket: &mut TcpStream, queue: &mut Queue) {
    let mut bytes = Vec::new();
    for piece in queue.pieces() {
        let Piece::Bytes(part) = piece else { panic!("a set-up carries no I/O data") };
        bytes.extend_from_slice(part);
    }
    socket.write_all(&bytes).unwrap();
    queue.sent(bytes.len());
}

/// Receives what has come or comes.
pub fn receive(socket: &mut TcpStream, queue: &mut Queue) {
    let mut answer = [0; 8192];
    let count = match socket.read(&mut answer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => return,
        outcome => outcome.unwrap(),
    };
    assert_eq!(queue.receive(&answer[..count]), Ok(count));
}

impl RawHost {
    pub fn new(address: SocketAddr) -> RawHost {
        let mut admin = TcpStream::connect(address).unwrap();
        let mut admin_queue = Queue::new(config(0, ANY_CONTROLLER));
        let mut setup = Setup::new(1);
        let found = loop {
            match setup.poll(0, &mut admin_queue).unwrap() {
                Progress::Done(found) => break found,
                _ => exchange(&mut admin, &mut admin_queue),
            }
        };
        admin.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut io = TcpStream::connect(address).unwrap();
        io.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut queue = Queue::new(config(1, found.controller));
        while queue.state() == State::Connecting {
            exchange(&mut io, &mut queue);
        }
        assert_eq!(queue.state(), State::Ready { controller: found.controller });
        RawHost { io, admin, admin_queue }
    }

    /// Sends a read or write, with its data in the capsule or none at all; `false`: the target has
    /// ended the connection.
    pub fn command(&mut self, mut sqe: Sqe, blocks: u32, in_capsule: &[u8]) -> bool {
        sqe.set_range(0, blocks);
        sqe.set_sgl(match in_capsule.len() {
            0 => Sgl::Transport { len: blocks * 512 },
            len => Sgl::InCapsule { offset: 0, len: len as u32 },
        });
        self.send(sqe, in_capsule)
    }

    fn send(&mut self, sqe: Sqe, in_capsule: &[u8]) -> bool {
        let mut bytes = [0; MAX_HEADER_BYTES];
        let len = Header::command(sqe, in_capsule.len() as u32, Format::PLAIN).emit(&mut bytes);
        self.io.write_all(&[&bytes[..len], in_capsule].concat()).is_ok()
    }
}

#[test]
fn a_durable_write_is_flushed_before_it_ends() {
    let server = Server::new();
    let mut host = RawHost::new(server.address());
    for (is_durable, flushes) in [(false, 0), (true, 1)] {
        let mut sqe = Sqe::new(nvm::WRITE, 7, 1);
        sqe.set_range(0, 1);
        sqe.set_sgl(Sgl::InCapsule { offset: 0, len: 512 });
        if is_durable {
            sqe.set_cdw(12, sqe.cdw(12) | 1 << 30);
        }
        assert!(host.send(sqe, &[9; 512]));
        let mut answer = [0; SHORT_BYTES];
        host.io.read_exact(&mut answer).unwrap();
        assert_eq!(answer[22..], [0, 0], "success");
        assert_eq!(server.counters.flushes.get(), flushes);
    }
    assert_eq!(server.counters.writes.get(), 2);
}

#[test]
fn a_host_that_does_not_read_holds_up_itself_alone() {
    let server = Server::new();
    let mut slow = RawHost::new(server.address());
    for cid in 0..=DEPTH {
        assert!(slow.command(Sqe::new(nvm::READ, cid, 1), 256, &[]));
    }
    let mut client = Client::new(server.address());
    for round in 0..50 {
        client.check(3, round);
    }
    // 17 MB were asked for: more than sockets hold, and more than the memory of the export.
    let mut answer = vec![0; (usize::from(DEPTH) + 1) * ((128 << 10) + SHORT_BYTES)];
    slow.io.read_exact(&mut answer).unwrap();
    assert_eq!(server.counters.errors().collect::<Vec<_>>(), []);
    // More commands than the queue has entries, beside those whose data the sockets took.
    let _ =
        (0..1000).take_while(|cid| slow.command(Sqe::new(nvm::READ, *cid, 1), 256, &[])).count();
    until("it is ended", || server.counters.faulted(Fault::QueueOverrun) == 1);
    client.check(3, 99);
}

#[test]
fn a_host_that_keeps_data_back_holds_up_itself_alone_and_not_for_ever() {
    let server = Server::new();
    let mut stingy = RawHost::new(server.address());
    for cid in 0..DEPTH {
        assert!(stingy.command(Sqe::new(nvm::WRITE, cid, 1), 256, &[]));
    }
    // Asked for what there is memory for.
    stingy.io.read_exact(&mut [0; SHORT_BYTES]).unwrap();
    // A capsule with data is served meanwhile.
    let mut host = RawHost::new(server.address());
    for round in 0..20 {
        assert!(host.command(Sqe::new(nvm::WRITE, 500, 1), 16, &[round; 8192]));
        host.io.read_exact(&mut [0; SHORT_BYTES]).unwrap();
    }
    assert!(stingy.command(Sqe::new(nvm::WRITE, 500, 1), 16, &[7; 8192]));
    let mut client = Client::new(server.address());
    client.check(3, 44);
    until("the capsule behind the others is written", || server.counters.writes.get() == 22);
    server.ahead_ns.store(DATA_TIMEOUT_NS + 1_000_000_000, Ordering::Relaxed);
    until("it is ended", || server.counters.ended(End::DataTimeout) == 1);
    drop(client);
    Client::new(server.address()).check(3, 45);
}

/// Whether nothing, a header or data in its capsule was cut, the rest never comes.
#[test]
fn a_host_that_stops_inside_a_pdu_is_ended_and_a_quiet_one_is_not() {
    let server = Server::new();
    let mut sqe = Sqe::new(nvm::WRITE, 7, 1);
    sqe.set_range(0, 16);
    sqe.set_sgl(Sgl::InCapsule { offset: 0, len: 8192 });
    let mut header = [0; MAX_HEADER_BYTES];
    let len = Header::command(sqe, 8192, Format::PLAIN).emit(&mut header);
    let capsule = [&header[..len], &[7; 8192]].concat();
    let quiet = RawHost::new(server.address());
    let cuts = [1, COMMON_BYTES, len / 2, len, len + 4096];
    let mut hosts: Vec<_> = cuts.iter().map(|_| RawHost::new(server.address())).collect();
    for (host, cut) in hosts.iter_mut().zip(cuts) {
        host.io.write_all(&capsule[..cut]).unwrap();
        // What was sent before is received before: the one after is answered.
        Client::new(server.address()).check(3, 44);
    }
    assert_eq!(server.counters.ended(End::DataTimeout), 0);
    server.ahead_ns.store(DATA_TIMEOUT_NS + 1_000_000_000, Ordering::Relaxed);
    until("they are ended", || server.counters.ended(End::DataTimeout) == cuts.len() as u64);
    drop(hosts);
    let mut host = quiet;
    assert!(host.command(Sqe::new(nvm::WRITE, 8, 1), 1, &[9; 512]));
    host.io.read_exact(&mut [0; SHORT_BYTES]).unwrap();
    assert_eq!(server.counters.writes.get(), 6, "those of the others never began");
}

#[test]
fn a_worker_that_sleeps_is_woken_by_everything_that_comes() {
    let server = Server::sleepy();
    // No keep-alives: nothing else wakes the worker.
    let mut host = RawHost::new(server.address());
    for (commands, blocks) in [(1, 1), (1, 256), (64, 256), (2, 1)] {
        for cid in 0..commands {
            assert!(host.command(Sqe::new(nvm::READ, cid, 1), blocks, &[]));
        }
        let bytes = usize::from(commands) * (blocks as usize * 512 + SHORT_BYTES);
        host.io.read_exact(&mut vec![0; bytes]).unwrap();
    }
}
