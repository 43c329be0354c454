//! Exports of a medium that takes its time: made anew while it still works on what the one before
//! was told, and stopped under their hosts.

use crate::hosts::exchange;
use crate::server::{BOOT, NQN, PATIENCE, identity, until};
use outboard::clock::now_ns;
use outboard::control::listen::Listener;
use outboard::volume::export::{End, Export, ExportConfig, ExportCounters};
use outboard::volume::remote::RemoteControl;
use outboard::volume::{Geometry, Remote, Status, Volume};
use outboard::worker::{Storage, User, VolumeSlot};
use outboard_dma::{FreeList, Region};
use outboard_rdma::nvmf::fabrics::{ANY_CONTROLLER, ConnectData};
use outboard_rdma::nvmf::fence::Life;
use outboard_rdma::nvmf::initiator::{Association, AssociationError, Next, Queue, Request, Wish};
use outboard_rdma::nvmf::{Digests, Nqn, Op, Piece};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

const GEOMETRY: Geometry = Geometry { block_bytes: 512, blocks: 2048, read_only: false };
const VOLUME: u32 = 5;
/// Turns after which whatever can be answered is answered.
const ENOUGH_TURNS: usize = 50;

/// A storage room, driven by hand, whose one volume ends nothing before it is told to: a remote
/// one without a connection.
struct Room {
    storage: Storage,
    medium: RemoteControl,
    free: FreeList,
}

impl Room {
    fn new() -> Room {
        let (remote, medium) = Remote::new(GEOMETRY, PATIENCE * 100).unwrap();
        let storage = Storage::new(vec![VolumeSlot::new(VOLUME, Volume::Remote(remote))]);
        let free = Region::new(4096).unwrap().carve(4096).unwrap();
        Room { storage, medium, free }
    }

    fn export(&mut self, owner: u16) -> (Arc<ExportCounters>, Listener) {
        let config = ExportConfig {
            nqn: NQN.into(),
            serial: "1".into(),
            identity: identity(1),
            owner,
            connections: 8,
            shared_frames: 64,
            first_epoch: 1 + u64::from(owner) * 1000,
            boot: BOOT,
        };
        let (export, door) = Export::new(&config, GEOMETRY, &mut self.free).unwrap();
        let counters = export.counters();
        self.storage.add_user(VOLUME, User::Export(Box::new(export)));
        (counters, Listener::start("127.0.0.1:0".parse().unwrap(), door).unwrap())
    }

    fn turn(&mut self) {
        self.storage.turn(now_ns());
    }
}

/// A host's sockets, and its association as far as it is.
struct Host {
    address: SocketAddr,
    admin: TcpStream,
    engine: Association,
    io: Option<TcpStream>,
}

impl Host {
    fn new(address: SocketAddr, begun_ns: u64) -> Host {
        Host::of(address, Life { boot: 1, begun_ns }, 0)
    }

    /// A process of the host that was last given the epoch `after`.
    fn of(address: SocketAddr, life: Life, after: u64) -> Host {
        let names = ConnectData {
            host_id: [3; 16],
            controller: ANY_CONTROLLER,
            subsystem: Nqn::from(NQN).unwrap(),
            host: Nqn::from("nqn.raw").unwrap(),
        };
        let engine = Association::new(Wish {
            nsid: 1,
            digests: Digests::NONE,
            keep_alive_ms: 0,
            names,
            depth: 4,
            expected: None,
            user: 1,
            life,
            after,
        });
        let admin = TcpStream::connect(address).unwrap();
        admin.set_nonblocking(true).unwrap();
        Host { address, admin, engine, io: None }
    }

    /// One exchange with whichever queue is to go on; `None`: it is ready.
    fn step(&mut self) -> Option<()> {
        match self.engine.poll(now_ns()).unwrap() {
            Next::Admin => exchange(&mut self.admin, self.engine.admin_mut()),
            Next::Io => {
                let address = self.address;
                let io = self.io.get_or_insert_with(|| TcpStream::connect(address).unwrap());
                io.set_nonblocking(true).unwrap();
                exchange(io, self.engine.io_mut().unwrap());
            }
            Next::Time { .. } => {}
            Next::Ready => return None,
        }
        Some(())
    }

    fn connect(mut self, room: &mut Room) -> (Queue, TcpStream, TcpStream) {
        until("a host is connected", || {
            room.turn();
            self.step().is_none()
        });
        let made = self.engine.finish().unwrap();
        (made.io, self.io.unwrap(), self.admin)
    }

    fn is_fencing(&self) -> bool {
        self.engine.doing() == "waiting for the I/O of the past to end"
    }
}

fn begin_flush(mut queue: Queue, io: &mut TcpStream) {
    queue.submit(&Request { op: Op::Flush, lba: 0, blocks: 0, bytes: 0 }).unwrap();
    let pieces = queue.pieces().map(|piece| match piece {
        Piece::Bytes(bytes) => bytes.to_vec(),
        Piece::Data { .. } => panic!("a flush has no data"),
    });
    io.write_all(&pieces.collect::<Vec<_>>().concat()).unwrap();
}

#[test]
fn a_fence_waits_for_what_the_export_before_still_runs() {
    let mut room = Room::new();
    let (counters, listener) = room.export(0);
    let (queue, mut io, _admin) = Host::new(listener.address(), 1).connect(&mut room);
    begin_flush(queue, &mut io);
    until("the medium has it", || {
        room.turn();
        counters.in_flight.get() == 1
    });

    // As an apply does it.
    drop(listener);
    room.storage.remove_user(VOLUME, 0, now_ns());
    let (counters, listener) = room.export(1);
    let mut next = Host::new(listener.address(), 2);
    until("the fence is sent", || {
        room.turn();
        next.step().unwrap();
        next.is_fencing()
    });
    next.step();
    until("it has come", || {
        room.turn();
        counters.fences.get() == 1
    });
    for _ in 0..ENOUGH_TURNS {
        room.turn();
        next.step();
        assert!(next.is_fencing(), "answered while the medium works on what came before");
    }
    // Nor does it help that the connections of before are ended.
    drop(io);
    assert!(room.storage.left(now_ns() + 60_000_000_000, &mut room.free).is_none());
    for _ in 0..ENOUGH_TURNS {
        room.turn();
        next.step();
        assert!(next.is_fencing(), "answered while the medium works on what came before");
    }
    assert!(room.medium.end_all(Status::Media));
    drop(next.connect(&mut room));
    let left = room.storage.left(now_ns(), &mut room.free);
    assert!(left.is_some(), "the export before has left");
    assert!(room.storage.close(&mut room.free));
}

#[test]
fn after_a_start_of_its_machine_a_host_follows_and_the_one_before_is_of_the_past() {
    let mut room = Room::new();
    let (counters, listener) = room.export(0);
    let (old, new) = (Life { boot: 1, begun_ns: 900 }, Life { boot: 2, begun_ns: 3 });
    let first = Host::of(listener.address(), old, 0).connect(&mut room);
    let second = Host::of(listener.address(), new, 0).connect(&mut room);
    assert_eq!(counters.fences.get(), 2);
    let mut back = Host::of(listener.address(), old, 1);
    let error = loop {
        room.turn();
        match back.engine.poll(now_ns()) {
            Ok(_) => exchange(&mut back.admin, back.engine.admin_mut()),
            Err(error) => break error,
        }
    };
    assert_eq!(error, AssociationError::Stale);
    drop((first, second));
    assert!(room.storage.close(&mut room.free));
}

#[test]
fn a_host_of_a_volume_that_stops_loses_its_connection_and_is_not_answered() {
    let mut room = Room::new();
    let (counters, listener) = room.export(0);
    let (queue, mut io, _admin) = Host::new(listener.address(), 1).connect(&mut room);
    begin_flush(queue, &mut io);
    until("the medium has it", || {
        room.turn();
        counters.in_flight.get() == 1
    });
    assert!(room.medium.end_all(Status::Aborted));
    until("the connection has ended", || {
        room.turn();
        counters.ended(End::Stopped) == 1
    });
    io.set_nonblocking(false).unwrap();
    assert_eq!(io.read(&mut [0; 64]).unwrap(), 0, "an answer");
    assert!(room.storage.close(&mut room.free));
}
