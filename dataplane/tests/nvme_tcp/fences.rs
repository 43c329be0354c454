//! What a fence waits for at the target, and for how long.

use crate::hosts::{RawHost, receive, send};
use crate::server::{Client, Server, until};
use outboard::volume::export::End;
use outboard_rdma::nvmf::StatusCode;
use outboard_rdma::nvmf::capsule::{Sqe, nvm};
use outboard_rdma::nvmf::fence::{Ask, Fence, Life};
use outboard_rdma::nvmf::pdu::SHORT_BYTES;
use std::io::{ErrorKind, Read};
use std::sync::atomic::Ordering;

impl RawHost {
    /// Asks for a new epoch, as a process that began then.
    fn ask(&mut self, begun_ns: u64) {
        let life = Life { boot: 1, begun_ns };
        let fence = Fence { ask: Ask::New { after: 0 }, user: 1, life };
        self.admin_queue.control(fence.emit(), 0);
        send(&mut self.admin, &mut self.admin_queue);
    }

    /// The epoch, when it comes.
    fn is_given(&mut self) -> u64 {
        receive(&mut self.admin, &mut self.admin_queue);
        let end = self.admin_queue.take_control_end().unwrap();
        assert_eq!(end.status, StatusCode::SUCCESS);
        end.result
    }

    fn is_answered(&self) -> bool {
        self.admin.set_nonblocking(true).unwrap();
        let seen = self.admin.peek(&mut [0]).map_err(|error| error.kind());
        self.admin.set_nonblocking(false).unwrap();
        assert!(seen.is_ok() || seen == Err(ErrorKind::WouldBlock), "{seen:?}");
        seen.is_ok()
    }
}

/// Whether its connection was cut before, or is there and of an older epoch.
#[test]
fn a_fence_is_answered_when_what_the_medium_has_of_the_past_has_ended() {
    for is_cut in [true, false] {
        let server = Server::new();
        let mut first = RawHost::new(server.address());
        first.ask(1);
        let epoch = first.is_given();
        server.is_shut.store(true, Ordering::Release);
        assert!(first.command(Sqe::new(nvm::WRITE, 7, 1), 1, &[9; 512]));
        until("the medium has it", || server.counters.in_flight.get() == 1);
        let first = (!is_cut).then_some(first);
        until("it is gone, or not", || (server.counters.connections.get() == 0) == is_cut);
        let mut second = RawHost::new(server.address());
        second.ask(2);
        until("the fence has come", || server.counters.fences.get() == 2);
        // Every read takes turns of the worker, each of which could answer.
        let mut other = RawHost::new(server.address());
        for cid in 0..50 {
            assert!(other.command(Sqe::new(nvm::READ, cid, 1), 1, &[]));
            let mut answer = [0; 512 + SHORT_BYTES];
            other.io.read_exact(&mut answer).unwrap();
            assert_eq!(answer[SHORT_BYTES..], [0; 512], "the write is still to come");
        }
        assert!(!second.is_answered(), "while the medium works for the past");
        assert_eq!(server.counters.writes.get(), 0);
        server.is_shut.store(false, Ordering::Release);
        assert!(second.is_given() > epoch);
        assert_eq!(server.counters.writes.get(), 1);
        assert_eq!(server.counters.ended(End::Fenced), if is_cut { 0 } else { 2 });
        drop(first);
    }
}

/// A connection of the past is still there: a command that comes on it late begins nothing.
#[test]
fn a_command_of_the_past_that_comes_behind_a_fence_is_refused() {
    let server = Server::new();
    let mut first = RawHost::new(server.address());
    first.ask(1);
    first.is_given();
    server.is_shut.store(true, Ordering::Release);
    assert!(first.command(Sqe::new(nvm::WRITE, 7, 1), 1, &[9; 512]));
    until("the medium has it", || server.counters.in_flight.get() == 1);
    let mut second = RawHost::new(server.address());
    second.ask(2);
    until("the fence has come", || server.counters.fences.get() == 2);
    assert!(first.command(Sqe::new(nvm::WRITE, 8, 1), 1, &[8; 512]));
    let mut answer = [0; SHORT_BYTES];
    first.io.read_exact(&mut answer).unwrap();
    let status = StatusCode(u16::from_le_bytes([answer[22], answer[23]]) >> 1);
    assert_eq!((answer[20], status.plain()), (8, StatusCode::STALE_EPOCH));
    server.is_shut.store(false, Ordering::Release);
    second.is_given();
    assert_eq!(server.counters.writes.get(), 1);
    Client::new(server.address()).check(3, 44);
}
