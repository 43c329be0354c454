//! What hosts are told when they ask an export for discovery follows every apply.

use crate::host::{Host, PATIENCE, Scratch, address, disk, export};
use outboard_rdma::nvmf::capsule::{Sqe, admin};
use outboard_rdma::nvmf::discovery::{DISCOVERY_NQN, Entry, RECORD_BYTES, parse_header};
use outboard_rdma::nvmf::fabrics::{ANY_CONTROLLER, ConnectData, configuration};
use outboard_rdma::nvmf::fabrics::{property, property_set};
use outboard_rdma::nvmf::initiator::{Queue, QueueConfig, State};
use outboard_rdma::nvmf::{Digests, Nqn, Piece};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// The discovery log (Base 5.16.1.23), and how much of it is asked for.
const LOG: u32 = 0x70;
const LOG_BYTES: u32 = 4096;

fn config() -> QueueConfig {
    QueueConfig {
        queue: 0,
        depth: 1,
        keep_alive_ms: 0,
        in_capsule_bytes: 0,
        nsid: 0,
        digests: Digests::NONE,
        names: ConnectData {
            host_id: [9; 16],
            controller: ANY_CONTROLLER,
            subsystem: Nqn::from(DISCOVERY_NQN).unwrap(),
            host: Nqn::from("nqn.2025-01.org.example:host").unwrap(),
        },
    }
}

/// A host that has connected for discovery.
struct Asker {
    socket: TcpStream,
    queue: Queue,
}

impl Asker {
    fn connect(to: SocketAddr) -> Asker {
        let socket = TcpStream::connect(to).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut asker = Asker { socket, queue: Queue::new(config()) };
        while asker.queue.state() == State::Connecting {
            asker.exchange();
        }
        let enable = configuration::ENABLE | configuration::ENTRY_SIZES;
        asker.command(property_set(property::CONFIGURATION, enable), 0);
        asker
    }

    fn exchange(&mut self) {
        let mut bytes = Vec::new();
        for piece in self.queue.pieces() {
            let Piece::Bytes(part) = piece else { panic!("discovery carries no I/O data") };
            bytes.extend_from_slice(part);
        }
        self.socket.write_all(&bytes).unwrap();
        self.queue.sent(bytes.len());
        let mut answer = [0; 8192];
        let count = self.socket.read(&mut answer).unwrap();
        assert!(count > 0, "the target has ended the connection");
        assert_eq!(self.queue.receive(&answer[..count]), Ok(count));
    }

    fn command(&mut self, sqe: Sqe, bytes: u32) {
        self.queue.control(sqe, bytes);
        while self.queue.is_control_in_flight() {
            self.exchange();
        }
        let end = self.queue.take_control_end().unwrap();
        assert!(end.status.is_success(), "{}", end.status);
    }

    /// The log's generation, and its entries.
    fn read(&mut self) -> (u64, Vec<String>) {
        let mut sqe = Sqe::new(admin::GET_LOG_PAGE, 0, 0);
        sqe.set_cdw(10, (LOG_BYTES / 4 - 1) << 16 | LOG);
        self.command(sqe, LOG_BYTES);
        let mut records = self.queue.page().chunks_exact(RECORD_BYTES);
        let mut next = || records.next().unwrap().first_chunk().unwrap();
        let (generation, count) = parse_header(next()).unwrap();
        let mut entries: Vec<_> = (0..count)
            .map(|_| Entry::parse(next()).unwrap())
            .map(|entry| format!("{} {}", &*entry.subsystem, entry.address))
            .collect();
        entries.sort();
        (generation, entries)
    }
}

#[test]
fn what_hosts_are_told_follows_every_apply() {
    let scratch = Scratch::new();
    // Hosts are told what they can reach where they have connected.
    let first = address();
    let any = SocketAddr::new(first.ip(), 0);
    let held = [first, any, any].map(|address| TcpListener::bind(address).unwrap());
    let [_, second, third] = held.each_ref().map(|held| held.local_addr().unwrap());
    drop(held);
    let nqn = |name: &str| format!("nqn.2025-01.org.example:{name}");
    let volumes: String = ["one", "two"]
        .map(|name| format!("[[volume]]\nname = '{name}'\nkind = 'mem'\nsize = '1MiB'\n"))
        .concat();
    let export = |volume, name: &str, at| export(volume, &nqn(name), at);
    let base = export("one", "one", first);
    let text = |exports: &str| format!("{volumes}{}{base}{exports}", disk("vda", "one"));
    let host = Host::with_top(&scratch, "a", "region_mib = 48", "[[worker]]\ncore = 0", &text(""));
    let top = host.top();
    let daemon = host.run();
    let own = format!("{} {first}", nqn("one"));
    let mut asker = Asker::connect(first);
    let (mut generation, told) = asker.read();
    assert_eq!(told, std::slice::from_ref(&own));
    let cases = [
        // One comes, it moves, it has another name and volume, it goes.
        (export("two", "two", second), Some(("two", second))),
        (export("two", "two", third), Some(("two", third))),
        (export("one", "three", third), Some(("three", third))),
        (String::new(), None),
    ];
    for (exports, other) in cases {
        host.applies(&scratch, &top, &text(&exports));
        let other = other.map(|(name, at)| (format!("{} {at}", nqn(name)), at));
        let mut expected = vec![own.clone()];
        expected.extend(other.iter().map(|(entry, _)| entry.clone()));
        expected.sort();
        // A host that was connected before, and one that comes now.
        let (now, told) = asker.read();
        assert_eq!(told, expected);
        assert!(now > generation, "the log has changed, and its generation has not");
        generation = now;
        assert_eq!(Asker::connect(first).read().1, expected);
        if let Some((_, at)) = other {
            assert_eq!(Asker::connect(at).read().1, expected, "at the other one");
        }
    }
    // What changes no export changes no log.
    host.applies(&scratch, &top, &text("").replace("vda", "vdb"));
    assert_eq!(asker.read(), (generation, vec![own]));
    daemon.stop();
}
