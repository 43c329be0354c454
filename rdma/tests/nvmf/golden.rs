//! A recorded session of a Linux host and a Linux target.

use crate::ends::{Controller, NQN, subsystem};
use outboard_rdma::nvmf::capsule::{Sqe, StatusCode, admin, nvm};
use outboard_rdma::nvmf::pdu::{self, Body, COMMON_BYTES, Common, Header, Kind};
use outboard_rdma::nvmf::target::{Limits, Subsystem};
use std::collections::BTreeMap;

macro_rules! stream {
    ($name:literal) => {
        include_bytes!(concat!("../data/linux-nvme-tcp/", $name)).as_slice()
    };
}

const STREAMS: [(&str, &[u8]); 8] = [
    ("discovery.host", stream!("discovery.host")),
    ("discovery.target", stream!("discovery.target")),
    ("admin.host", stream!("admin.host")),
    ("admin.target", stream!("admin.target")),
    ("io1.host", stream!("io1.host")),
    ("io1.target", stream!("io1.target")),
    ("io2.host", stream!("io2.host")),
    ("io2.target", stream!("io2.target")),
];

fn bytes_of(name: &str) -> &'static [u8] {
    STREAMS.iter().find(|(stream, _)| *stream == name).unwrap().1
}

/// The PDUs of a stream: header, and the whole PDU's bytes.
fn pdus(mut stream: &[u8]) -> Vec<(Header, &[u8])> {
    let mut out = Vec::new();
    while !stream.is_empty() {
        let common = Common::parse(stream[..COMMON_BYTES].try_into().unwrap()).unwrap();
        let header = Header::parse(&stream[..common.kind.header_bytes()]).unwrap();
        let (pdu, rest) = stream.split_at(common.pdu_bytes as usize);
        out.push((header, pdu));
        stream = rest;
    }
    out
}

#[test]
fn every_recorded_pdu_is_emitted_again_byte_for_byte() {
    let mut kinds = BTreeMap::new();
    for (name, stream) in STREAMS {
        for (header, bytes) in pdus(stream) {
            let mut out = [0xee; pdu::MAX_HEADER_BYTES];
            let len = header.emit(&mut out);
            assert_eq!(out[..len], bytes[..len], "{name}: {header:?}");
            assert_eq!(header.common.kind.is_from_host(), name.ends_with("host"));
            *kinds.entry(header.common.kind as u8).or_insert(0) += 1;
        }
    }
    // ICReq, ICResp, commands, responses, H2CData, C2HData, R2T: what the session had.
    let expected = [(0, 4), (1, 4), (4, 68), (5, 67), (6, 1), (7, 33), (9, 1)];
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), expected);
}

/// What a command was answered with: its status, and the data before it.
type Answers = BTreeMap<u16, (StatusCode, Vec<u8>)>;

fn answers(stream: &[u8]) -> Answers {
    let mut answers = Answers::new();
    for (header, bytes) in pdus(stream) {
        match header.body {
            Body::Response(cqe) => answers.entry(cqe.cid).or_default().0 = cqe.status.plain(),
            Body::Transfer(transfer) if header.common.kind == Kind::ControllerData => {
                let answer = answers.entry(transfer.cid).or_default();
                answer.1.extend_from_slice(&bytes[usize::from(header.common.data_offset)..]);
            }
            _ => {}
        }
    }
    answers
}

/// Plays host PDUs into our target, one at a time, each answered before the next; data for an
/// R2T carries the tag that our target chose.
fn replay(
    end: &mut Controller,
    host: &[(Header, &[u8])],
    subsystem: &mut Subsystem,
    disk: &mut [u8],
) -> Vec<u8> {
    let mut answered = Vec::new();
    let mut tags = BTreeMap::new();
    for (header, bytes) in host {
        let mut bytes = bytes.to_vec();
        if let (Kind::HostData, Body::Transfer(transfer)) = (header.common.kind, header.body) {
            let tag: u16 = tags[&transfer.cid];
            bytes[10..12].copy_from_slice(&tag.to_le_bytes());
        }
        end.receive(0, &bytes, subsystem).unwrap();
        while !end.running.is_empty() {
            end.run(0, disk);
        }
        let answer = end.transmit(usize::MAX);
        for (header, _) in pdus(&answer) {
            if let (Kind::R2t, Body::Transfer(transfer)) = (header.common.kind, header.body) {
                tags.insert(transfer.cid, transfer.tag);
            }
        }
        answered.extend(answer);
    }
    assert!(end.pending.is_empty() && end.data.is_empty());
    assert_eq!(end.target.fault(), None);
    answered
}

/// How our target's answer to a recorded command differs from the recorded one by design: `Some`
/// status; the rest must be equal.
fn differs(sqe: &Sqe) -> Option<StatusCode> {
    let log = sqe.cdw(10) as u8;
    match sqe.opcode() {
        // The recorded target had a second namespace.
        admin::IDENTIFY if sqe.nsid() == 2 => Some(StatusCode::INVALID_NAMESPACE),
        // Commands supported and effects, asymmetric access: not announced by ours.
        admin::GET_LOG_PAGE if log == 5 || log == 12 => Some(StatusCode::INVALID_LOG_PAGE),
        _ => None,
    }
}

fn differs_io(sqe: &Sqe) -> Option<StatusCode> {
    match sqe.opcode() {
        nvm::READ | nvm::WRITE if sqe.nsid() == 2 => Some(StatusCode::INVALID_NAMESPACE),
        _ => None,
    }
}

/// Compares our answers with the recorded ones, command by command; returns how many.
fn compare(
    host: &[(Header, &[u8])],
    recorded: &Answers,
    ours: &Answers,
    differs: fn(&Sqe) -> Option<StatusCode>,
) -> usize {
    let mut compared = 0;
    for (header, _) in host {
        let Body::Command(sqe) = header.body else { continue };
        let (cid, expected) = (sqe.cid(), differs(&sqe));
        if sqe.opcode() == admin::ASYNC_EVENT {
            assert!(!ours.contains_key(&cid), "an event was told that did not happen");
            continue;
        }
        let (status, data) = &ours[&cid];
        assert_eq!(*status, expected.unwrap_or(recorded[&cid].0), "{sqe:?}");
        if expected.is_none() {
            assert_eq!(data.len(), recorded[&cid].1.len(), "{sqe:?}");
        }
        compared += 1;
    }
    compared
}

#[test]
fn a_recorded_linux_host_is_served() {
    let mut subsystem = subsystem(1 << 16, Limits::DEFAULT);
    let mut disk = vec![0; 32 << 20];
    let mut admin = Controller::new(128, 1 << 20);
    let host = pdus(bytes_of("admin.host"));
    // The last two commands shut the controller down, after the I/O.
    let (work, shutdown) = host.split_at(host.len() - 2);
    let mut answered = replay(&mut admin, work, &mut subsystem, &mut disk);
    assert!(admin.target.is_admin());
    for name in ["io1", "io2"] {
        let mut io = Controller::new(128, 1 << 20);
        let host = pdus(bytes_of(&format!("{name}.host")));
        let ours = answers(&replay(&mut io, &host, &mut subsystem, &mut disk));
        let recorded = answers(bytes_of(&format!("{name}.target")));
        let compared = compare(&host, &recorded, &ours, differs_io);
        assert_eq!(compared, if name == "io1" { 15 } else { 2 });
        for (header, _) in &host {
            let Body::Command(sqe) = header.body else { continue };
            if sqe.opcode() == nvm::READ && sqe.nsid() == 1 {
                assert!(ours[&sqe.cid()].1 == recorded[&sqe.cid()].1, "{sqe:?}");
            }
        }
        io.target.leave(&mut subsystem);
    }
    answered.extend(replay(&mut admin, shutdown, &mut subsystem, &mut disk));
    let (ours, recorded) = (answers(&answered), answers(bytes_of("admin.target")));
    assert_eq!(compare(&host, &recorded, &ours, differs), 34);
    admin.target.leave(&mut subsystem);
    assert_eq!(subsystem.controllers(), 0);
}

#[test]
fn a_discovery_host_is_refused_by_name() {
    let mut subsystem = subsystem(8, Limits::DEFAULT);
    let mut end = Controller::new(8, 1 << 20);
    let host = pdus(bytes_of("discovery.host"));
    let ours = replay(&mut end, &host[..2], &mut subsystem, &mut []);
    let last = pdus(&ours).pop().unwrap().0;
    let Body::Response(cqe) = last.body else { panic!("{last:?}") };
    assert_eq!(cqe.status, StatusCode::CONNECT_PARAMETER.do_not_retry());
    // The offset of the subsystem's name in the data.
    assert_eq!(cqe.result, 0x1_0100);
    assert_ne!(NQN, "nqn.2014-08.org.nvmexpress.discovery");
}
