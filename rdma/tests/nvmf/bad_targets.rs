//! What an initiator makes of a target that breaks the rules: each fault by its name, and nothing
//! told as done whose memory is still in use.

use crate::ends::{Controller, Host, admin_config, names, subsystem};
use outboard_rdma::nvmf::capsule::{Cqe, StatusCode, admin};
use outboard_rdma::nvmf::identify::cns;
use outboard_rdma::nvmf::initiator::{
    Found, MAX_DEPTH, Progress, QueueConfig, Request, Setup, SetupError, State,
};
use outboard_rdma::nvmf::pdu::{self, Body, Common, Format, Header, Init, Kind, Transfer};
use outboard_rdma::nvmf::target::Limits;
use outboard_rdma::nvmf::{Digests, Fault, Op};

fn bytes_of(header: &Header) -> Vec<u8> {
    let mut out = [0; pdu::MAX_HEADER_BYTES];
    let len = header.emit(&mut out);
    out[..len].to_vec()
}

/// The commands that a host sent, without their data.
fn commands(mut sent: &[u8]) -> Vec<u16> {
    let mut cids = Vec::new();
    while !sent.is_empty() {
        let common = Common::parse(sent[..8].try_into().unwrap()).unwrap();
        let header = Header::parse(&sent[..common.kind.header_bytes()]).unwrap();
        if let Body::Command(sqe) = header.body {
            cids.push(sqe.cid());
        }
        sent = &sent[common.pdu_bytes as usize..];
    }
    cids
}

fn config(depth: u16) -> QueueConfig {
    QueueConfig {
        queue: 1,
        depth,
        keep_alive_ms: 0,
        in_capsule_bytes: 4096,
        nsid: 1,
        digests: Digests::NONE,
        names: names(1),
    }
}

const INIT: Init = Init { version: 0, alignment: 0, digests: 0, limit: 4096 };

fn response(cid: u16, status: StatusCode) -> Vec<u8> {
    bytes_of(&Header::response(
        Cqe { result: 1, sq_head: 0xffff, sq_id: 1, cid, status },
        Format::PLAIN,
    ))
}

fn ready(depth: u16) -> Host {
    let mut host = Host::new(config(depth));
    host.transmit(usize::MAX);
    host.receive(&bytes_of(&Header::init(Kind::IcResp, INIT))).unwrap();
    let connect = commands(&host.transmit(usize::MAX))[0];
    host.receive(&response(connect, StatusCode::SUCCESS)).unwrap();
    assert_eq!(host.queue.state(), State::Ready { controller: 1 });
    host
}

/// A ready host with a read of 4096 bytes, a write of 16 KiB by request, and their identifiers.
fn busy() -> (Host, u16, u16) {
    let mut host = ready(4);
    for (op, blocks) in [(Op::Read, 8), (Op::Write, 32)] {
        let request = Request { op, lba: 0, blocks, bytes: blocks * 512 };
        host.submit(request, vec![1; blocks as usize * 512]).unwrap();
    }
    let cids = commands(&host.transmit(usize::MAX));
    (host, cids[0], cids[1])
}

fn data(cid: u16, offset: u32, len: u32, flags: u8) -> Vec<u8> {
    let transfer = Transfer { cid, tag: 0, offset, len };
    let mut bytes = bytes_of(&Header::data(Kind::ControllerData, flags, transfer, Format::PLAIN));
    bytes.resize(bytes.len() + len as usize, 5);
    bytes
}

fn r2t(cid: u16, offset: u32, len: u32) -> Vec<u8> {
    bytes_of(&Header::r2t(Transfer { cid, tag: 3, offset, len }, Format::PLAIN))
}

#[test]
fn each_violation_has_its_name_and_is_told_to_the_target() {
    type Bytes = fn(u16, u16) -> Vec<u8>;
    let cases: [(Bytes, Fault); 14] = [
        (|read, _| data(read, 512, 512, 0), Fault::DataOrder),
        (|read, _| data(read, 0, 4100, 0), Fault::DataRange),
        (|read, _| data(read, 0, 4096, pdu::SUCCESS), Fault::PduSequence),
        (|read, _| data(read, 0, 2048, pdu::LAST | pdu::SUCCESS), Fault::ShortData),
        (|_, write| data(write, 0, 512, 0), Fault::DataDirection),
        (|read, _| data(read ^ 0x100, 0, 512, 0), Fault::UnknownCommand),
        (|read, _| data(read + 2, 0, 512, 0), Fault::UnknownCommand),
        (|read, _| response(read, StatusCode::SUCCESS), Fault::ShortData),
        (|_, write| response(write, StatusCode::SUCCESS), Fault::ShortData),
        (|read, _| r2t(read, 0, 512), Fault::DataDirection),
        (|_, write| r2t(write, 0, 16388), Fault::DataRange),
        (|_, write| r2t(write, 512, 512), Fault::DataOrder),
        (|_, write| [r2t(write, 0, 512), r2t(write, 512, 512)].concat(), Fault::R2tLimit),
        (|_, _| bytes_of(&Header::init(Kind::IcResp, INIT)), Fault::PduSequence),
    ];
    for (number, (bytes, fault)) in cases.into_iter().enumerate() {
        let (mut host, read, write) = busy();
        assert_eq!(host.receive(&bytes(read, write)), Err(fault), "case {number}");
        assert_eq!(host.queue.state(), State::Failed(fault));
        assert!(host.next_ended().is_none(), "case {number} ended something");
        let told = host.transmit(usize::MAX);
        assert_eq!(told[0], Kind::HostTerm as u8, "case {number}");
    }
    let (mut host, ..) = busy();
    let term = bytes_of(&Header::term(Kind::ControllerTerm, 1, 0, 0));
    assert_eq!(host.receive(&term), Err(Fault::Terminated));
    assert!(!host.queue.has_output(), "a TermReq was answered");
}

#[test]
fn an_initialization_is_checked_at_its_limits() {
    for (init, fault) in [
        (INIT, None),
        (Init { limit: 4092, ..INIT }, Some(Fault::Parameter)),
        (Init { limit: 4098, ..INIT }, Some(Fault::Parameter)),
        (Init { alignment: 31, ..INIT }, None),
        (Init { alignment: 32, ..INIT }, Some(Fault::Parameter)),
        (Init { digests: 1, ..INIT }, Some(Fault::Digest)),
        (Init { version: 1, ..INIT }, Some(Fault::Version)),
    ] {
        let mut host = Host::new(config(4));
        let outcome = host.receive(&bytes_of(&Header::init(Kind::IcResp, init)));
        assert_eq!(outcome.err(), fault, "{init:?}");
    }
}

#[test]
fn a_command_that_fails_early_ends_when_its_data_is_no_longer_in_use() {
    let (mut host, read, write) = busy();
    host.receive(&r2t(write, 0, 16384)).unwrap();
    // The first of four PDUs (MAXH2CDATA is 4096) leaves in part.
    assert_eq!(host.transmit(1000).len(), 1000);
    host.receive(&response(write, StatusCode::WRITE_FAULT)).unwrap();
    assert!(host.next_ended().is_none(), "its memory is still being sent");
    assert_eq!(host.transmit(usize::MAX).len(), 24 + 4096 - 1000, "no further PDU is begun");
    assert_eq!(host.next_ended().unwrap().0.status, StatusCode::WRITE_FAULT);
    host.receive(&data(read, 0, 4096, pdu::LAST | pdu::SUCCESS)).unwrap();
    let (ended, bytes) = host.next_ended().unwrap();
    assert!(ended.status.is_success() && bytes == [5; 4096]);
}

#[test]
fn a_queue_takes_its_depth_and_not_one_more() {
    let mut host = ready(MAX_DEPTH);
    let flush = Request { op: Op::Flush, lba: 0, blocks: 0, bytes: 0 };
    for _ in 0..MAX_DEPTH {
        host.submit(flush, vec![]).unwrap();
    }
    assert_eq!((host.submit(flush, vec![]), host.queue.in_flight()), (None, MAX_DEPTH));
    let cids = commands(&host.transmit(usize::MAX));
    host.receive(&response(cids[5], StatusCode::SUCCESS)).unwrap();
    assert!(host.submit(flush, vec![]).is_none(), "its end was not taken yet");
    host.next_ended().unwrap();
    assert!(host.submit(flush, vec![]).is_some());
    // The answer to the command that had the slot before is not the new one's.
    host.transmit(usize::MAX);
    let again = host.receive(&response(cids[5], StatusCode::SUCCESS));
    assert_eq!(again, Err(Fault::UnknownCommand));
}

/// A set-up against a target that answers as one of ours, but for how it tells descriptors.
fn set_up_with_descriptors(status: StatusCode) -> Result<Found, SetupError> {
    let mut subsystem = subsystem(64, Limits::DEFAULT);
    let (mut host, mut end) = (Host::new(admin_config()), Controller::new(128, 0));
    let mut setup = Setup::new(1);
    loop {
        match setup.poll(0, &mut host.queue)? {
            Progress::Done(found) => return Ok(found),
            other => assert_eq!(other, Progress::Answer),
        }
        let sent = host.transmit(usize::MAX);
        let asked =
            sent.get(8..72).map(|sqe| (sqe[0], u16::from_le_bytes([sqe[2], sqe[3]]), sqe[40]));
        match asked {
            Some((admin::IDENTIFY, cid, cns::DESCRIPTORS)) => {
                host.receive(&response(cid, status)).unwrap();
            }
            _ => {
                end.receive(0, &sent, &mut subsystem).unwrap();
                host.receive(&end.transmit(usize::MAX)).unwrap();
            }
        }
    }
}

#[test]
fn descriptors_that_fail_are_no_other_namespace_and_those_unknown_are_done_without() {
    for unknown in [StatusCode::INVALID_FIELD, StatusCode::INVALID_OPCODE] {
        let found = set_up_with_descriptors(unknown.do_not_retry()).unwrap();
        assert_eq!(found.namespace.identity.uuid, [0; 16]);
    }
    let step = "to identify the namespace's names";
    for status in [StatusCode::INTERNAL, StatusCode::ABORTED] {
        let refused = set_up_with_descriptors(status).unwrap_err();
        assert_eq!(refused, SetupError::Refused { step, status });
    }
}
