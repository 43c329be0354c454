//! What a target answers to commands that cannot be served, and to PDUs that cannot be.

use crate::ends::{Controller, names, subsystem};
use outboard_rdma::nvmf::capsule::{
    ALL_NAMESPACES, Cqe, Sgl, Sqe, StatusCode, admin, feature, nvm,
};
use outboard_rdma::nvmf::discovery::{DISCOVERY_NQN, Entry, parse_header};
use outboard_rdma::nvmf::fabrics::{
    ANY_CONTROLLER, CONNECT_BYTES, Connect, ConnectData, configuration, fctype, property,
    property_get, property_set,
};
use outboard_rdma::nvmf::identify::cns;
use outboard_rdma::nvmf::pdu::{self, Body, Common, Format, Header, Init, Kind, Transfer};
use outboard_rdma::nvmf::target::{IN_CAPSULE_BYTES, Limits, MAX_IO_QUEUES, Subsystem};
use outboard_rdma::nvmf::{Fault, Nqn};

const DEPTH: u16 = 4;
const BLOCKS: u64 = 1 << 12;
const LIMITS: Limits = Limits { controllers: 2, depth: DEPTH, ..Limits::DEFAULT };

/// A connection that the test speaks PDU by PDU.
struct Raw {
    end: Controller,
    disk: Vec<u8>,
}

impl Raw {
    fn new(subsystem: &mut Subsystem) -> Raw {
        let end = Controller::new(DEPTH, 1 << 20);
        let mut raw = Raw { end, disk: vec![0; BLOCKS as usize * 512] };
        let init = Init { version: 0, alignment: 0, digests: 0, limit: 0 };
        let answer = raw.send(&Header::init(Kind::IcReq, init), &[], subsystem);
        let Body::Init(agreed) = answer[0].0.body else { panic!("{answer:?}") };
        assert_eq!((agreed.digests, agreed.limit), (0, LIMITS.h2c_bytes));
        raw
    }

    /// Sends one PDU and returns what is answered, with its data; commands are run.
    fn send(&mut self, header: &Header, data: &[u8], subsystem: &mut Subsystem) -> Answers {
        let mut bytes = [0; pdu::MAX_HEADER_BYTES];
        let len = header.emit(&mut bytes);
        let whole = [&bytes[..len], data].concat();
        let _ = self.end.receive(0, &whole, subsystem);
        while !self.end.running.is_empty() {
            self.end.run(0, &mut self.disk);
        }
        split(&self.end.transmit(usize::MAX))
    }

    fn command(&mut self, sqe: Sqe, data: &[u8], subsystem: &mut Subsystem) -> Cqe {
        let header = Header::command(sqe, data.len() as u32, Format::PLAIN);
        let answers = self.send(&header, data, subsystem);
        match answers.last() {
            Some((Header { body: Body::Response(cqe), .. }, _)) => *cqe,
            other => panic!("{sqe:?} was answered with {other:?}"),
        }
    }

    fn connect(&mut self, connect: Connect, data: &ConnectData, subsystem: &mut Subsystem) -> Cqe {
        let mut bytes = [0; CONNECT_BYTES];
        data.emit(&mut bytes);
        self.command(connect.emit(1), &bytes, subsystem)
    }
}

type Answers = Vec<(Header, Vec<u8>)>;

fn split(mut bytes: &[u8]) -> Answers {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let common = Common::parse(bytes[..8].try_into().unwrap()).unwrap();
        let header = Header::parse(&bytes[..common.kind.header_bytes()]).unwrap();
        let (pdu, rest) = bytes.split_at(common.pdu_bytes as usize);
        let data = pdu.len() - common.data_bytes() as usize;
        out.push((header, pdu[data..].to_vec()));
        bytes = rest;
    }
    out
}

fn connect(queue: u16, queue_size: u16) -> Connect {
    Connect { format: 0, queue, queue_size, no_flow_control: false, keep_alive_ms: 0 }
}

/// A ready controller with `queues` I/O queues granted, and its admin connection.
fn ready(subsystem: &mut Subsystem, queues: u16) -> (Raw, u16) {
    let mut admin = Raw::new(subsystem);
    let cqe = admin.connect(connect(0, 31), &names(ANY_CONTROLLER), subsystem);
    assert!(cqe.status.is_success());
    let enable = configuration::ENABLE | configuration::ENTRY_SIZES;
    let set = property_set(property::CONFIGURATION, enable);
    assert!(admin.command(set, &[], subsystem).status.is_success());
    let mut sqe = Sqe::new(admin::SET_FEATURES, 2, 0);
    sqe.set_cdw(10, u32::from(feature::QUEUES));
    sqe.set_cdw(11, u32::from(queues - 1) * 0x1_0001);
    assert!(admin.command(sqe, &[], subsystem).status.is_success());
    (admin, cqe.result as u16)
}

/// A connected I/O queue and its admin connection.
fn io(subsystem: &mut Subsystem) -> (Raw, Raw) {
    let (admin, id) = ready(subsystem, 1);
    let mut io = Raw::new(subsystem);
    assert!(io.connect(connect(1, DEPTH), &names(id), subsystem).status.is_success());
    (io, admin)
}

fn refused(cqe: Cqe) -> (StatusCode, u64) {
    assert!(cqe.status != cqe.status.plain(), "{cqe:?} may be retried");
    (cqe.status.plain(), cqe.result)
}

#[test]
fn connect_is_refused_with_the_place_of_the_bad_field() {
    let mut subsystem = subsystem(BLOCKS, LIMITS);
    let good = names(ANY_CONTROLLER);
    let mut raw = Raw::new(&mut subsystem);
    let bad = StatusCode::CONNECT_PARAMETER;
    let other = ConnectData { subsystem: Nqn::from("nqn.other").unwrap(), ..good };
    let format = Connect { format: 1, ..connect(0, 31) };
    for (connect, data, expected) in [
        (connect(0, 31), other, (bad, 0x1_0100)),
        (connect(0, 31), names(1), (bad, 0x1_0010)),
        (connect(0, 0), good, (bad, 44)),
        (format, good, (StatusCode::CONNECT_FORMAT, 0)),
        (connect(1, DEPTH), good, (bad, 0x1_0010)),
        (connect(1, DEPTH + 1), good, (bad, 44)),
        (connect(0, 31), ConnectData { host: Nqn::new(), ..good }, (bad, 0x1_0200)),
    ] {
        assert_eq!(refused(raw.connect(connect, &data, &mut subsystem)), expected);
    }
    // After all of that the connection still serves a good Connect; a second one is too many.
    assert!(raw.connect(connect(0, 31), &good, &mut subsystem).status.is_success());
    let again = refused(raw.connect(connect(0, 31), &good, &mut subsystem));
    assert_eq!(again.0, StatusCode::COMMAND_SEQUENCE);
}

#[test]
fn io_queues_need_a_ready_controller_of_the_same_host() {
    let mut subsystem = subsystem(BLOCKS, LIMITS);
    let mut admin = Raw::new(&mut subsystem);
    let id = admin.connect(connect(0, 31), &names(ANY_CONTROLLER), &mut subsystem).result as u16;
    let mut raw = Raw::new(&mut subsystem);
    let early = refused(raw.connect(connect(1, DEPTH), &names(id), &mut subsystem));
    assert_eq!(early.0, StatusCode::COMMAND_SEQUENCE);
    admin.end.target.leave(&mut subsystem);

    let (mut admin, id) = ready(&mut subsystem, 2);
    let stranger = ConnectData { host_id: [9; 16], ..names(id) };
    let mut first = Raw::new(&mut subsystem);
    for (queue, data, expected) in [
        (1, stranger, (StatusCode::CONNECT_HOST, 0)),
        (3, names(id), (StatusCode::CONNECT_PARAMETER, 42)),
        (1, names(id + 1), (StatusCode::CONNECT_PARAMETER, 0x1_0010)),
    ] {
        let cqe = first.connect(connect(queue, DEPTH), &data, &mut subsystem);
        assert_eq!(refused(cqe), expected);
    }
    assert!(first.connect(connect(1, DEPTH), &names(id), &mut subsystem).status.is_success());
    let mut second = Raw::new(&mut subsystem);
    let taken = refused(second.connect(connect(1, DEPTH), &names(id), &mut subsystem));
    assert_eq!(taken, (StatusCode::COMMAND_SEQUENCE, 42));
    assert!(second.connect(connect(2, DEPTH), &names(id), &mut subsystem).status.is_success());
    // A queue that has ended may be connected again.
    first.end.target.leave(&mut subsystem);
    assert!(
        Raw::new(&mut subsystem)
            .connect(connect(1, DEPTH), &names(id), &mut subsystem)
            .status
            .is_success()
    );
    // A reset ends the I/O queues, not the admin queue.
    let disable = property_set(property::CONFIGURATION, 0);
    assert!(admin.command(disable, &[], &mut subsystem).status.is_success());
    assert!(second.end.target.is_orphan(&subsystem));
    assert!(!admin.end.target.is_orphan(&subsystem));
}

#[test]
fn controllers_beyond_the_limit_are_told_to_wait() {
    let mut subsystem = subsystem(BLOCKS, LIMITS);
    let kept: Vec<_> = (0..2).map(|_| ready(&mut subsystem, 1)).collect();
    let mut third = Raw::new(&mut subsystem);
    let cqe = third.connect(connect(0, 31), &names(ANY_CONTROLLER), &mut subsystem);
    assert_eq!(refused(cqe).0, StatusCode::CONNECT_BUSY);
    for (mut raw, _) in kept {
        raw.end.target.leave(&mut subsystem);
    }
    let cqe = third.connect(connect(0, 31), &names(ANY_CONTROLLER), &mut subsystem);
    assert!(cqe.status.is_success());
}

#[test]
fn admin_commands_end_with_their_status() {
    let mut subsystem = subsystem(BLOCKS, LIMITS);
    let (mut raw, _) = ready(&mut subsystem, MAX_IO_QUEUES);
    let mut ask = |opcode, nsid, bytes, cdw10: u32, cdw11: u32| {
        let mut sqe = Sqe::new(opcode, 7, nsid);
        sqe.set_sgl(Sgl::Transport { len: bytes });
        sqe.set_cdw(10, cdw10);
        sqe.set_cdw(11, cdw11);
        let cqe = raw.command(sqe, &[], &mut subsystem);
        (cqe.status.plain(), cqe.result)
    };
    let get = admin::GET_FEATURES;
    let set = admin::SET_FEATURES;
    let ok = StatusCode::SUCCESS;
    let queues = u32::from(feature::QUEUES);
    let most = u64::from(MAX_IO_QUEUES - 1) * 0x1_0001;
    assert_eq!(ask(set, 0, 0, queues, 0xfffe_fffe), (ok, most));
    assert_eq!(ask(get, 0, 0, queues, 0), (ok, most));
    assert_eq!(ask(set, 0, 0, queues, 0xffff_0000).0, StatusCode::INVALID_FIELD);
    assert_eq!(ask(set, 0, 0, 0x0f, 9000), (ok, 0));
    assert_eq!(ask(get, 0, 0, 0x0f, 0), (ok, 9000));
    assert_eq!(ask(set, 0, 0, 0x06, 0).0, StatusCode::FEATURE_FIXED);
    assert_eq!(ask(get, 0, 0, 0x06, 0), (ok, 1));
    assert_eq!(ask(set, 0, 0, 0x77, 0).0, StatusCode::INVALID_FIELD);
    assert_eq!(ask(admin::ABORT, 0, 0, 0x0007_0000, 0), (ok, 1));
    assert_eq!(ask(admin::KEEP_ALIVE, 0, 0, 0, 0), (ok, 0));
    assert_eq!(ask(0xc0, 0, 0, 0, 0).0, StatusCode::INVALID_OPCODE);
    let identify = admin::IDENTIFY;
    assert_eq!(
        ask(identify, 2, 4096, u32::from(cns::NAMESPACE), 0).0,
        StatusCode::INVALID_NAMESPACE
    );
    assert_eq!(ask(identify, 1, 4096, u32::from(cns::NAMESPACE), 0).0, ok);
    assert_eq!(ask(identify, 1, 4092, u32::from(cns::NAMESPACE), 0).0, StatusCode::SGL_LENGTH);
    assert_eq!(ask(identify, 1, 4096, 0x42, 0).0, StatusCode::INVALID_FIELD);
    let log = admin::GET_LOG_PAGE;
    assert_eq!(ask(log, ALL_NAMESPACES, 512, 0x007f_0002, 0).0, ok);
    assert_eq!(ask(log, 0, 4096, 0x03ff_0001, 0).0, ok);
    // What is behind a page's end is zeros, as far as our memory goes.
    assert_eq!(ask(log, 0, 8192, 0x07ff_0001, 0).0, ok);
    assert_eq!(ask(log, 0, 8196, 0x0800_0001, 0).0, StatusCode::INVALID_FIELD);
    assert_eq!(ask(log, 0, 1024, 0x00ff_0070, 0).0, StatusCode::INVALID_LOG_PAGE);
}

#[test]
fn properties_other_than_the_four_are_refused() {
    let mut subsystem = subsystem(BLOCKS, LIMITS);
    let (mut raw, _) = ready(&mut subsystem, 1);
    for (offset, is_wide, is_known) in [
        (property::CAPABILITIES, true, true),
        (property::CAPABILITIES, false, false),
        (property::VERSION, false, true),
        (property::STATUS, false, true),
        (property::STATUS, true, false),
        (0x20, false, false),
    ] {
        let cqe = raw.command(property_get(offset, is_wide), &[], &mut subsystem);
        assert_eq!(cqe.status.is_success(), is_known, "{offset:#x}");
    }
    let cqe = raw.command(property_set(property::STATUS, 0), &[], &mut subsystem);
    assert_eq!(refused(cqe).0, StatusCode::INVALID_FIELD);
}

#[test]
fn async_events_are_held_up_to_the_limit() {
    let mut subsystem = subsystem(BLOCKS, LIMITS);
    let (mut raw, _) = ready(&mut subsystem, 1);
    for cid in 0..4 {
        let header = Header::command(Sqe::new(admin::ASYNC_EVENT, cid, 0), 0, Format::PLAIN);
        assert!(raw.send(&header, &[], &mut subsystem).is_empty());
    }
    let cqe = raw.command(Sqe::new(admin::ASYNC_EVENT, 4, 0), &[], &mut subsystem);
    assert_eq!(refused(cqe).0, StatusCode::ASYNC_EVENT_LIMIT);
}

fn range(opcode: u8, cid: u16, lba: u64, blocks: u32) -> Sqe {
    let mut sqe = Sqe::new(opcode, cid, 1);
    sqe.set_range(lba, blocks);
    sqe.set_sgl(Sgl::Transport { len: blocks * 512 });
    sqe
}

#[test]
fn io_commands_end_with_their_status() {
    let mut subsystem = subsystem(BLOCKS, LIMITS);
    let (mut raw, _admin) = io(&mut subsystem);
    let most = LIMITS.transfer_bytes / 512;
    let mut fused = range(nvm::READ, 1, 0, 1);
    fused.0[1] |= 1;
    let mut stray = range(nvm::READ, 1, 0, 1);
    stray.set_sgl(Sgl::InCapsule { offset: 0, len: 512 });
    let mut short = range(nvm::READ, 1, 0, 2);
    short.set_sgl(Sgl::Transport { len: 512 });
    let mut unknown = range(nvm::READ, 1, 0, 1);
    unknown.set_sgl(Sgl::Unknown);
    let mut other = range(nvm::WRITE, 1, 0, 1);
    other.0[4] = 2;
    let ok = StatusCode::SUCCESS;
    for (sqe, expected) in [
        (range(nvm::READ, 1, BLOCKS - 1, 1), ok),
        (range(nvm::READ, 1, BLOCKS, 1), StatusCode::LBA_RANGE),
        (range(nvm::WRITE, 1, u64::MAX, 1), StatusCode::LBA_RANGE),
        (range(nvm::READ, 1, 0, most), ok),
        (range(nvm::READ, 1, 0, most + 1), StatusCode::INVALID_FIELD),
        (range(nvm::WRITE_ZEROES, 1, 0, BLOCKS as u32), ok),
        (range(nvm::WRITE_ZEROES, 1, 1, BLOCKS as u32), StatusCode::LBA_RANGE),
        (range(nvm::COMPARE, 1, 0, most + 1), StatusCode::INVALID_FIELD),
        // Write Uncorrectable, Verify, Reservation Register.
        (range(0x04, 1, 0, 1), StatusCode::INVALID_OPCODE),
        (range(0x0c, 1, 0, 1), StatusCode::INVALID_OPCODE),
        (range(0x0d, 1, 0, 1), StatusCode::INVALID_OPCODE),
        (fused, StatusCode::INVALID_FIELD),
        (stray, StatusCode::SGL_TYPE),
        (short, StatusCode::SGL_LENGTH),
        (unknown, StatusCode::SGL_TYPE),
        (other, StatusCode::INVALID_NAMESPACE),
        (Sqe::new(nvm::FLUSH, 1, 1), ok),
        (Sqe::new(nvm::FLUSH, 1, ALL_NAMESPACES), ok),
        (Sqe::new(nvm::FLUSH, 1, 0), StatusCode::INVALID_NAMESPACE),
        (property_get(property::STATUS, false), StatusCode::INVALID_OPCODE),
    ] {
        assert_eq!(raw.command(sqe, &[], &mut subsystem).status.plain(), expected, "{sqe:?}");
    }
}

#[test]
fn data_in_the_capsule_of_a_bad_command_is_passed_over() {
    let mut subsystem = subsystem(BLOCKS, LIMITS);
    let (mut raw, _admin) = io(&mut subsystem);
    let in_capsule = |lba, blocks, offset| {
        let mut sqe = range(nvm::WRITE, 3, lba, blocks);
        sqe.set_sgl(Sgl::InCapsule { offset, len: 8192 });
        sqe
    };
    for (sqe, expected) in [
        (in_capsule(BLOCKS, 16, 0), StatusCode::LBA_RANGE),
        (in_capsule(0, 15, 0), StatusCode::SGL_LENGTH),
        (in_capsule(0, 16, 8), StatusCode::SGL_OFFSET),
        (in_capsule(0, 16, 0), StatusCode::SUCCESS),
    ] {
        let status = raw.command(sqe, &[5; 8192], &mut subsystem).status.plain();
        assert_eq!(status, expected);
    }
    assert_eq!(raw.disk[..8192], [5; 8192]);
    // One block more than a capsule may carry ends the connection.
    let sqe = in_capsule(0, 17, 0);
    let header = Header::command(sqe, IN_CAPSULE_BYTES + 512, Format::PLAIN);
    raw.send(&header, &[0; 8704], &mut subsystem);
    assert_eq!(raw.end.target.fault(), Some(Fault::DataLimit));
}

#[test]
fn a_read_only_namespace_refuses_writes() {
    let namespace = outboard_rdma::nvmf::identify::Namespace {
        read_only: true,
        ..crate::ends::namespace(BLOCKS)
    };
    let nqn = Nqn::from(crate::ends::NQN).unwrap();
    let mut subsystem = Subsystem::new(nqn, "1", namespace, LIMITS);
    let (mut raw, _admin) = io(&mut subsystem);
    let cqe = raw.command(range(nvm::WRITE, 1, 0, 1), &[], &mut subsystem);
    assert_eq!(refused(cqe).0, StatusCode::WRITE_PROTECTED);
    assert!(raw.command(range(nvm::READ, 1, 0, 1), &[], &mut subsystem).status.is_success());
}

/// Leaves commands running, so that the queue fills.
fn hold(raw: &mut Raw, cid: u16, subsystem: &mut Subsystem) -> Result<(), Fault> {
    let mut bytes = [0; pdu::MAX_HEADER_BYTES];
    let len = Header::command(range(nvm::READ, cid, 0, 1), 0, Format::PLAIN).emit(&mut bytes);
    raw.end.receive(0, &bytes[..len], subsystem)
}

#[test]
fn a_queue_takes_its_entries_and_not_one_more() {
    let mut subsystem = subsystem(BLOCKS, LIMITS);
    let (mut raw, _admin) = io(&mut subsystem);
    for cid in 0..=DEPTH {
        assert_eq!(hold(&mut raw, cid, &mut subsystem), Ok(()));
    }
    assert_eq!(raw.end.running.len(), usize::from(DEPTH) + 1);
    assert_eq!(hold(&mut raw, 99, &mut subsystem), Err(Fault::QueueOverrun));
}

#[test]
fn an_identifier_in_use_is_a_conflict() {
    let mut subsystem = subsystem(BLOCKS, LIMITS);
    let (mut raw, _admin) = io(&mut subsystem);
    hold(&mut raw, 7, &mut subsystem).unwrap();
    hold(&mut raw, 7, &mut subsystem).unwrap();
    let answers = split(&raw.end.transmit(usize::MAX));
    let [(Header { body: Body::Response(cqe), .. }, _)] = answers[..] else {
        panic!("{answers:?}")
    };
    assert_eq!(refused(cqe).0, StatusCode::CID_CONFLICT);
}

/// Starts a write of 8192 bytes by R2T and returns what was asked for.
fn asked(raw: &mut Raw, subsystem: &mut Subsystem) -> Transfer {
    let header = Header::command(range(nvm::WRITE, 5, 0, 16), 0, Format::PLAIN);
    let answers = raw.send(&header, &[], subsystem);
    match answers[..] {
        [(Header { body: Body::Transfer(transfer), .. }, _)] => transfer,
        _ => panic!("{answers:?}"),
    }
}

#[test]
fn data_that_was_not_asked_for_ends_the_connection_by_name() {
    let transfer = |change: fn(&mut Transfer)| {
        let mut subsystem = subsystem(BLOCKS, LIMITS);
        let (mut raw, _admin) = io(&mut subsystem);
        let mut transfer = asked(&mut raw, &mut subsystem);
        assert_eq!((transfer.offset, transfer.len), (0, 8192));
        change(&mut transfer);
        let header = Header::data(Kind::HostData, pdu::LAST, transfer, Format::PLAIN);
        let data = vec![1; transfer.len as usize];
        let answers = raw.send(&header, &data, &mut subsystem);
        let term = match answers[..] {
            [(Header { body: Body::Term { status, .. }, .. }, ref data)] => {
                assert_eq!(data.len(), pdu::SHORT_BYTES, "the header is repeated");
                Some(status)
            }
            _ => None,
        };
        (raw.end.target.fault(), term)
    };
    assert_eq!(transfer(|_| ()), (None, None));
    let field = Some(1);
    assert_eq!(transfer(|t| t.tag = 3), (Some(Fault::UnknownTransfer), field));
    assert_eq!(transfer(|t| t.tag = 999), (Some(Fault::UnknownTransfer), field));
    assert_eq!(transfer(|t| t.cid += 1), (Some(Fault::UnknownCommand), field));
    assert_eq!(transfer(|t| t.offset = 512), (Some(Fault::DataOrder), Some(2)));
    assert_eq!(transfer(|t| t.len += 4), (Some(Fault::DataRange), Some(4)));
    let limit = |t: &mut Transfer| t.len = LIMITS.h2c_bytes + 4;
    assert_eq!(transfer(limit), (Some(Fault::DataLimit), Some(5)));
}

#[test]
fn pdus_out_of_turn_end_the_connection() {
    let mut subsystem = subsystem(BLOCKS, LIMITS);
    let init = Init { version: 0, alignment: 0, digests: 0, limit: 0 };
    let twice = Header::init(Kind::IcReq, init);
    let mut raw = Raw::new(&mut subsystem);
    raw.send(&twice, &[], &mut subsystem);
    assert_eq!(raw.end.target.fault(), Some(Fault::PduSequence));

    let command = Header::command(range(nvm::READ, 1, 0, 1), 0, Format::PLAIN);
    for (header, fault) in [
        (command, Fault::PduSequence),
        (Header::init(Kind::IcReq, Init { version: 1, ..init }), Fault::Version),
        (Header::init(Kind::IcReq, Init { alignment: 32, ..init }), Fault::Parameter),
        (Header::init(Kind::IcResp, init), Fault::PduType),
        (Header::term(Kind::HostTerm, 1, 0, 0), Fault::Terminated),
    ] {
        let end = Controller::new(DEPTH, 0);
        let mut raw = Raw { end, disk: vec![] };
        let answers = raw.send(&header, &[], &mut subsystem);
        assert_eq!(raw.end.target.fault(), Some(fault));
        // A TermReq is answered by silence.
        assert_eq!(answers.is_empty(), fault == Fault::Terminated);
    }
}

#[test]
fn a_command_before_connect_is_out_of_turn_but_not_fatal() {
    let mut subsystem = subsystem(BLOCKS, LIMITS);
    let mut raw = Raw::new(&mut subsystem);
    let cqe = raw.command(Sqe::new(admin::IDENTIFY, 1, 0), &[], &mut subsystem);
    assert_eq!(refused(cqe).0, StatusCode::COMMAND_SEQUENCE);
    assert!(!raw.end.target.is_connected());
}

#[test]
fn data_is_aligned_as_the_host_asked() {
    let mut subsystem = subsystem(BLOCKS, LIMITS);
    let (_admin, id) = ready(&mut subsystem, 1);
    let mut raw = Raw { end: Controller::new(DEPTH, 1 << 20), disk: vec![3; 4096] };
    let init = Init { version: 0, alignment: 31, digests: 0, limit: 0 };
    raw.send(&Header::init(Kind::IcReq, init), &[], &mut subsystem);
    let quiet = Connect { no_flow_control: true, ..connect(1, DEPTH) };
    assert!(raw.connect(quiet, &names(id), &mut subsystem).status.is_success());
    let header = Header::command(range(nvm::READ, 9, 0, 2), 0, Format::PLAIN);
    let answers = raw.send(&header, &[], &mut subsystem);
    let (header, data) = &answers[0];
    assert_eq!((header.common.data_offset, header.common.flags), (128, pdu::LAST | pdu::SUCCESS));
    assert_eq!((answers.len(), data), (1, &vec![3; 1024]));
}

#[test]
fn a_queue_is_disconnected_after_what_came_before() {
    let mut subsystem = subsystem(BLOCKS, LIMITS);
    let (mut raw, mut admin) = io(&mut subsystem);
    let disconnect = Sqe::new(admin::FABRICS, 9, u32::from(fctype::DISCONNECT));
    let mut other_format = disconnect;
    other_format.set_cdw(10, 1);
    let cqe = raw.command(other_format, &[], &mut subsystem);
    assert_eq!(refused(cqe).0, StatusCode::CONNECT_FORMAT);
    let mut bytes = [0; pdu::MAX_HEADER_BYTES];
    let read = range(nvm::READ, 1, 0, 1);
    for sqe in [read, disconnect] {
        let len = Header::command(sqe, 0, Format::PLAIN).emit(&mut bytes);
        raw.end.receive(0, &bytes[..len], &mut subsystem).unwrap();
    }
    assert!(raw.end.transmit(usize::MAX).is_empty() && !raw.end.target.is_disconnected());
    raw.end.run(0, &mut raw.disk);
    let answers = split(&raw.end.transmit(usize::MAX));
    let cids = answers.iter().filter_map(|(header, _)| match header.body {
        Body::Response(cqe) => Some(cqe.cid),
        _ => None,
    });
    assert_eq!(cids.collect::<Vec<_>>(), [1]);
    // The answer follows once the read's slot is free.
    let answers = split(&raw.end.transmit(usize::MAX));
    assert!(matches!(answers[0].0.body, Body::Response(cqe) if cqe.cid == 9));
    assert!(raw.end.target.is_disconnected() && !raw.end.target.has_output());
    let cqe = admin.command(disconnect, &[], &mut subsystem);
    assert_eq!(refused(cqe).0, StatusCode::INVALID_QUEUE_TYPE);
}

#[test]
fn discovery_has_its_log_and_nothing_else() {
    let mut subsystem = subsystem(BLOCKS, LIMITS);
    let entry = |name, address: &str| Entry {
        subsystem: Nqn::from(name).unwrap(),
        address: address.parse().unwrap(),
    };
    subsystem.list_others(vec![
        entry("nqn.six", "[2001:db8::1]:4420"),
        entry("nqn.other", "192.0.2.1:4421"),
        entry("nqn.any", "0.0.0.0:4422"),
    ]);
    let mut raw = Raw::new(&mut subsystem);
    raw.end.target.set_local("192.0.2.1:4420".parse().unwrap());
    let discovery =
        ConnectData { subsystem: Nqn::from(DISCOVERY_NQN).unwrap(), ..names(ANY_CONTROLLER) };
    let cqe = raw.connect(connect(0, 31), &discovery, &mut subsystem);
    assert!(cqe.status.is_success());
    let id = cqe.result as u16;
    let enable = configuration::ENABLE | configuration::ENTRY_SIZES;
    raw.command(property_set(property::CONFIGURATION, enable), &[], &mut subsystem);
    let sqe = |opcode, bytes, cdw10: u32, offset: u32| {
        let mut sqe = Sqe::new(opcode, 7, 0);
        sqe.set_sgl(Sgl::Transport { len: bytes });
        sqe.set_cdw(10, cdw10);
        sqe.set_cdw(12, offset);
        sqe
    };
    let log =
        |bytes: u32, offset| sqe(admin::GET_LOG_PAGE, bytes, (bytes / 4 - 1) << 16 | 0x70, offset);
    let header = Header::command(log(4096, 0), 0, Format::PLAIN);
    let (_, data) = raw.send(&header, &[], &mut subsystem).swap_remove(0);
    let mut records = data.chunks_exact(1024).map(|record| record.first_chunk().unwrap());
    assert_eq!(parse_header(records.next().unwrap()), Some((2, 3)));
    let listed: Vec<_> = records.filter_map(Entry::parse).collect();
    let expected = [
        entry(crate::ends::NQN, "192.0.2.1:4420"),
        entry("nqn.other", "192.0.2.1:4421"),
        entry("nqn.any", "192.0.2.1:4422"),
    ];
    assert_eq!(listed, expected);
    for (sqe, expected) in [
        (log(8192, 0), StatusCode::SUCCESS),
        (log(8196, 0), StatusCode::INVALID_FIELD),
        (log(4, 4092), StatusCode::SUCCESS),
        (log(4, 4096), StatusCode::INVALID_FIELD),
        (sqe(admin::GET_LOG_PAGE, 512, 0x007f_0002, 0), StatusCode::INVALID_LOG_PAGE),
        (sqe(admin::IDENTIFY, 4096, u32::from(cns::CONTROLLER), 0), StatusCode::SUCCESS),
        (sqe(admin::IDENTIFY, 4096, u32::from(cns::NAMESPACE_LIST), 0), StatusCode::INVALID_FIELD),
        (sqe(admin::SET_FEATURES, 0, u32::from(feature::QUEUES), 0), StatusCode::INVALID_FIELD),
        (sqe(admin::SET_FEATURES, 0, u32::from(feature::KEEP_ALIVE), 0), StatusCode::SUCCESS),
        (sqe(admin::FENCE, 0, 0, 0), StatusCode::INVALID_OPCODE),
    ] {
        let cqe = raw.command(sqe, &[], &mut subsystem);
        assert_eq!(cqe.status.plain(), expected, "{sqe:?}");
    }
    for data in [names(id), ConnectData { controller: id, ..discovery }] {
        let mut io = Raw::new(&mut subsystem);
        let cqe = io.connect(connect(1, DEPTH), &data, &mut subsystem);
        assert_eq!(refused(cqe), (StatusCode::CONNECT_PARAMETER, 0x1_0010));
    }
}

#[test]
fn features_are_kept_as_far_as_they_are_known() {
    let mut subsystem = subsystem(BLOCKS, LIMITS);
    let (mut raw, _) = ready(&mut subsystem, 1);
    let mut ask = |opcode, cdw10: u32, cdw11: u32| {
        let mut sqe = Sqe::new(opcode, 7, 0);
        sqe.set_cdw(10, cdw10);
        sqe.set_cdw(11, cdw11);
        let cqe = raw.command(sqe, &[], &mut subsystem);
        (cqe.status.plain(), cqe.result)
    };
    let (get, set, ok) = (admin::GET_FEATURES, admin::SET_FEATURES, StatusCode::SUCCESS);
    for id in [
        feature::ARBITRATION,
        feature::TEMPERATURE,
        feature::ERROR_RECOVERY,
        feature::WRITE_ATOMICITY,
        feature::ASYNC_EVENTS,
    ] {
        assert_eq!(ask(set, id.into(), 0x123), (ok, 0));
        assert_eq!(ask(get, id.into(), 0), (ok, 0x123));
        // Saving, and any but the current value.
        assert_eq!(ask(set, 1 << 31 | u32::from(id), 1).0, StatusCode::FEATURE_NOT_SAVEABLE);
        assert_eq!(ask(get, 1 << 8 | u32::from(id), 0).0, StatusCode::INVALID_FIELD);
    }
    assert_eq!(ask(set, feature::POWER.into(), 0), (ok, 0));
    assert_eq!(ask(set, feature::POWER.into(), 1).0, StatusCode::INVALID_FIELD);
    let unwritten = 1 << 16;
    assert_eq!(ask(set, feature::ERROR_RECOVERY.into(), unwritten).0, StatusCode::INVALID_FIELD);
    assert_eq!(ask(set, feature::HOST_ID.into(), 1).0, StatusCode::COMMAND_SEQUENCE);
}
