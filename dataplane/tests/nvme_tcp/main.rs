//! NVMe/TCP over real loopback connections: an export of a memory volume, remote volumes, and
//! peers that misbehave.

mod anew;
mod between;
mod fences;
mod foreign;
mod gated;
mod hosts;
mod server;

use outboard::clock::now_ns;
use outboard::control::connect::Wanted;
use outboard::volume::export::{CONNECT_TIMEOUT_NS, End, MAX_UNCONNECTED};
use outboard::volume::remote::DEPTH;
use outboard::volume::{BlockDevice, Dones, Full, Io, Op, Remote, Status, Tag};
use outboard_dma::{Frame, Segment};
use outboard_rdma::nvmf::Fault;
use outboard_sim::Rng;
use server::{BLOCKS, Client, NQN, Server, identity, until};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// An I/O of the random run.
struct Flight {
    op: Op,
    lba: u64,
    blocks: u64,
    frames: Vec<Frame>,
    data: Vec<u8>,
}

impl Flight {
    fn new(client: &mut Client, rng: &mut Rng, lba: u64, blocks: u64) -> Flight {
        let op = if rng.index(2) == 0 { Op::Read } else { Op::Write };
        let bytes = blocks as usize * 512;
        let fill = rng.index(256);
        let data: Vec<u8> = (0..bytes).map(|i| (i * 7 + fill) as u8).collect();
        let frames = data
            .chunks(4096)
            .map(|piece| {
                let mut frame = client.free.take().unwrap();
                frame.bytes_mut().fill(0xa5);
                if op == Op::Write {
                    frame.bytes_mut()[..piece.len()].copy_from_slice(piece);
                }
                frame
            })
            .collect();
        Flight { op, lba, blocks, frames, data }
    }

    fn segments(&mut self) -> Vec<Segment> {
        let mut left = self.data.len();
        self.frames
            .iter_mut()
            .map(|frame| {
                let len = left.min(4096);
                left -= len;
                Segment::of_frame(frame, 0, len)
            })
            .collect()
    }

    /// Compares a read with the model, or brings a write into it.
    fn settle(&self, model: &mut [u8]) {
        let at = self.lba as usize * 512;
        let place = &mut model[at..at + self.data.len()];
        if self.op == Op::Write {
            place.copy_from_slice(&self.data);
            return;
        }
        for (frame, expected) in self.frames.iter().zip(place.chunks(4096)) {
            assert!(frame.bytes()[..expected.len()] == *expected, "a read returned something else");
        }
    }

    fn overlaps(&self, lba: u64, blocks: u64) -> bool {
        self.lba < lba + blocks && lba < self.lba + self.blocks
    }
}

#[test]
fn random_ios_read_what_was_written() {
    let server = Server::new();
    let mut client = Client::new(server.address());
    let mut rng = Rng::new(11);
    let mut model = vec![0; BLOCKS as usize * 512];
    let mut flights: Vec<Option<Flight>> = (0..64).map(|_| None).collect();
    let (mut started, mut ended) = (0, 0);
    while ended < 4000 {
        for slot in 0..flights.len() {
            let blocks = 1 + rng.index(if started % 8 == 0 { 264 } else { 16 }) as u64;
            let lba = rng.index((BLOCKS - blocks) as usize) as u64;
            let taken = flights.iter().flatten().any(|flight| flight.overlaps(lba, blocks));
            if started == 4000 || flights[slot].is_some() || taken {
                continue;
            }
            let mut flight = Flight::new(&mut client, &mut rng, lba, blocks);
            client.submit(slot as u16, flight.op, lba, &flight.segments());
            flights[slot] = Some(flight);
            started += 1;
        }
        for done in client.reap() {
            assert_eq!(done.status, Status::Ok);
            let flight = flights[usize::from(done.tag.slot)].take().unwrap();
            flight.settle(&mut model);
            flight.frames.into_iter().for_each(|frame| client.free.give(frame));
            ended += 1;
        }
    }
    assert_eq!(client.run(Op::Flush, 0, &[]), Status::Ok);
    assert_eq!(server.counters.errors().collect::<Vec<_>>(), []);
    assert!(server.counters.commands.get() > 4000, "long I/Os are several commands");
}

/// Drives a volume until it is connected again.
#[track_caller]
fn until_connected(client: &mut Client) {
    until("the volume is connected again", || {
        client.remote.reap(now_ns(), &mut Dones::new());
        client.remote.is_connected()
    });
    until("the state says so", || client.connector.state() == "ready");
}

#[test]
fn io_in_flight_survives_a_target_that_restarts() {
    let server = Server::new();
    let address = server.address();
    let mut client = Client::new(address);
    client.check(5, 77);
    let mut frame = client.free.take().unwrap();
    let place = Segment::of_frame(&mut frame, 0, 4096);
    // Submitted, and not sent before the target is gone.
    for slot in 0..100 {
        client.submit(slot, Op::Read, 0, &[place]);
    }
    drop(server);
    until("the loss is told", || {
        client.remote.reap(now_ns(), &mut Dones::new());
        client.connector.state() != "ready"
    });
    // Without a connection I/O waits in line, as much of it as may be in flight.
    for slot in 100..DEPTH {
        client.submit(slot, Op::Write, 8, &[place]);
    }
    let (tag, op) = (Tag { owner: 9, slot: 0 }, Op::Flush);
    let more = Io { tag, op, offset_bytes: 0, range_bytes: 0, segments: &[] };
    assert_eq!(client.remote.submit(now_ns(), &more), Err(Full));
    let server = Server::start(address, identity(1));
    let mut ended = 0;
    while ended < usize::from(DEPTH) {
        let done = client.reap();
        assert!(done.iter().all(|done| done.status == Status::Ok));
        ended += done.len();
    }
    client.check(5, 78);
    let counters = client.connector.counters();
    assert_eq!((counters.losses.get(), counters.reconnects.get()), (1, 1));
    assert_eq!((counters.ended_by_loss.get(), counters.fences.get()), (0, 2));
    assert!(counters.reissued.get() <= 100, "only what was sent is sent again");
    assert!(counters.longest_outage_ms.get() > 0);
    client.free.give(frame);
    drop(client);
    drop(server);
}

#[test]
fn a_flush_fails_when_the_target_lost_its_power_with_writes_unflushed() {
    for (flushes_before, is_lost) in [(true, false), (false, true)] {
        let server = Server::new();
        let address = server.address();
        let mut client = Client::new(address);
        client.check(5, 77);
        if flushes_before {
            assert_eq!(client.run(Op::Flush, 0, &[]), Status::Ok);
        }
        // Only another process.
        drop(server);
        let server = Server::start(address, identity(1));
        until_connected(&mut client);
        assert_eq!(client.connector.counters().cache_losses.get(), 0);
        drop(server);
        until("the loss is told", || {
            client.remote.reap(now_ns(), &mut Dones::new());
            client.connector.state() != "ready"
        });
        // In line, and with it what it is to cover.
        client.submit(1, Op::Flush, 0, &[]);
        let _server = Server::after_a_power_cut(address, identity(1));
        let expected = if is_lost { Status::WritesLost } else { Status::Ok };
        assert_eq!(client.reap()[0].status, expected);
        assert_eq!(client.connector.counters().cache_losses.get(), u64::from(is_lost));
        // It was told, and goes on with what is there.
        client.check(5, 78);
        assert_eq!(client.run(Op::Flush, 0, &[]), Status::Ok);
    }
}

#[test]
fn every_user_of_a_volume_is_told_of_what_is_lost() {
    let server = Server::new();
    let address = server.address();
    let mut client = Client::new(address);
    client.check(5, 77);
    drop(server);
    let _server = Server::after_a_power_cut(address, identity(1));
    until("its cache is found lost", || {
        client.remote.reap(now_ns(), &mut Dones::new());
        client.connector.counters().cache_losses.get() == 1
    });
    let mut flush = |owner, slots: u16| {
        for slot in 0..slots {
            let tag = Tag { owner, slot };
            let io = Io { tag, op: Op::Flush, offset_bytes: 0, range_bytes: 0, segments: &[] };
            client.remote.submit(now_ns(), &io).unwrap();
        }
        let mut ended = Vec::new();
        while ended.len() < usize::from(slots) {
            ended.extend(client.reap().iter().map(|done| done.status));
        }
        ended
    };
    // All that began before the first of them was handed back.
    assert_eq!(flush(9, 3), [Status::WritesLost; 3]);
    assert_eq!(flush(9, 1), [Status::Ok]);
    assert_eq!(flush(4, 1), [Status::WritesLost]);
    assert_eq!(flush(4, 1), [Status::Ok]);
}

#[test]
fn io_waits_for_a_lost_target_no_longer_than_it_may() {
    for (patience, in_flight) in [(Duration::ZERO, 100), (Duration::from_millis(300), DEPTH)] {
        let server = Server::new();
        let address = server.address();
        let wanted = Wanted { loss_timeout: patience, ..Wanted::new(address, NQN, 1) };
        let mut client = Client::with(&wanted);
        let mut frame = client.free.take().unwrap();
        let place = Segment::of_frame(&mut frame, 0, 4096);
        for slot in 0..in_flight {
            client.submit(slot, Op::Write, 0, &[place]);
        }
        drop(server);
        let mut ended = 0;
        while ended < in_flight {
            for done in client.reap() {
                let is_lost = [Status::ConnectionLost, Status::NotConnected].contains(&done.status);
                assert!(is_lost, "{done:?}");
                ended += 1;
            }
        }
        assert_eq!(client.remote.in_flight(), 0);
        assert_eq!(client.run(Op::Read, 0, &[place]), Status::NotConnected);
        assert_eq!(client.run(Op::Flush, 0, &[]), Status::NotConnected);
        assert_eq!(client.connector.counters().ended_by_loss.get(), u64::from(in_flight));
        let server = Server::start(address, identity(1));
        until_connected(&mut client);
        client.check(5, 78);
        client.free.give(frame);
        drop(client);
        drop(server);
    }
}

#[test]
fn another_namespace_at_the_same_address_is_refused() {
    let server = Server::new();
    let address = server.address();
    let mut client = Client::new(address);
    drop(server);
    client.submit(4, Op::Flush, 0, &[]);
    let server = Server::start(address, identity(2));
    assert_eq!(client.reap()[0].status, Status::MediumReplaced, "what waited");
    assert!(client.connector.state().contains("another namespace"));
    assert_eq!(client.run(Op::Flush, 0, &[]), Status::MediumReplaced, "what comes");
    assert_eq!(server.counters.commands.get(), 0);
    // The right one is used again.
    drop(server);
    let _server = Server::start(address, identity(1));
    until_connected(&mut client);
    client.check(5, 78);
}

#[test]
fn a_process_that_another_one_has_replaced_is_of_the_past() {
    let server = Server::new();
    let wanted = Wanted { user: "host/volume".into(), ..Wanted::new(server.address(), NQN, 1) };
    let mut first = Client::with(&wanted);
    first.check(5, 1);
    let mut second = Client::with(&wanted);
    second.check(5, 2);
    let place = first.free.take().map(|mut frame| Segment::of_frame(&mut frame, 0, 512)).unwrap();
    assert_eq!(first.run(Op::Read, 5, &[place]), Status::Stale);
    until("it says so", || first.connector.state().contains("epoch is of the past"));
    assert_eq!(first.run(Op::Write, 5, &[place]), Status::Stale);
    assert_eq!(first.connector.counters().stale_refusals.get(), 1);
    assert_eq!(server.counters.ended(End::Fenced), 2);
    assert_eq!(server.counters.fences.get(), 2);
    until("the refusal is counted", || server.counters.stale_refusals.get() == 1);
    second.check(5, 3);
    // Another user of the same machine is nobody's past.
    let other = Wanted { user: "host/other".into(), ..wanted };
    Client::with(&other).check(6, 4);
    second.check(5, 5);
}

#[test]
fn hostile_bytes_end_their_own_connection_and_no_other() {
    let server = Server::new();
    let mut client = Client::new(server.address());
    for round in 0..8 {
        let mut hostile = TcpStream::connect(server.address()).unwrap();
        hostile.write_all(&[0x16, 0x03, 0x01, 0x02, 0, 1, 0, 1, 0xfc, 3]).unwrap();
        let mut answer = Vec::new();
        // The TermReq, then the end; a reset when our bytes were not all read.
        let _ = hostile.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer[0] == 3, "{answer:?}");
        client.check(round, round as u8);
    }
    until("all are counted", || server.counters.faulted(Fault::PduType) == 8);
    assert_eq!(server.counters.ended(End::Fault), 8);
    assert_eq!(server.counters.connections.get(), 2);
}

#[test]
fn strangers_are_bounded_and_time_out() {
    let server = Server::new();
    let mut client = Client::new(server.address());
    let count = MAX_UNCONNECTED + 5;
    let mut strangers = Vec::new();
    for number in 0..count as u64 {
        strangers.push(TcpStream::connect(server.address()).unwrap());
        until("each is accepted", || server.counters.accepted.get() == 2 + number + 1);
    }
    assert_eq!(server.counters.ended(End::Crowded), 5);
    assert_eq!(server.counters.connections.get(), 2 + MAX_UNCONNECTED as u64);
    client.check(1, 9);
    assert_eq!(server.counters.ended(End::ConnectTimeout), 0);
    server.ahead_ns.store(CONNECT_TIMEOUT_NS + 1_000_000_000, Ordering::Relaxed);
    until("they time out", || server.counters.ended(End::ConnectTimeout) == MAX_UNCONNECTED as u64);
    client.check(1, 10);
    assert_eq!(server.counters.connections.get(), 2);
    drop(strangers);
}

#[test]
fn a_host_that_falls_silent_loses_its_controller() {
    let server = Server::new();
    let mut client = Client::new(server.address());
    client.check(1, 1);
    server.ahead_ns.store(60_000_000_000, Ordering::Relaxed);
    until("both connections end", || server.counters.ended(End::Orphan) == 2);
    assert_eq!(server.counters.expired.get(), 1);
    until("the volume is connected again", || {
        client.remote.reap(now_ns(), &mut Dones::new());
        client.connector.counters().losses.get() == 1 && client.remote.is_connected()
    });
    client.check(1, 2);
}

#[test]
fn more_connections_than_places_are_refused() {
    let server = Server::new();
    // Each holds two connections; 32 places.
    let clients: Vec<_> = (0..16).map(|_| Remote::connect(server.address(), NQN, 1)).collect();
    assert!(clients.iter().all(Result::is_ok));
    assert!(Remote::connect(server.address(), NQN, 1).is_err());
    assert!(server.counters.ended(End::Refused) >= 1);
    drop(clients);
    until("the places are free again", || server.counters.connections.get() == 0);
    Client::new(server.address()).check(3, 4);
}

#[test]
fn a_wrong_name_is_told_with_a_hint() {
    let server = Server::new();
    let error = Remote::connect(server.address(), "nqn.other", 1).unwrap_err().to_string();
    assert!(error.contains("is the subsystem's name right?"), "{error}");
    let error = Remote::connect(server.address(), NQN, 2).unwrap_err().to_string();
    assert!(error.contains("to identify the namespace"), "{error}");
}
