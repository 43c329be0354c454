//! A recorded session of a Linux host and a Linux target: discovery, then two associations with the
//! same work, the second with both digests.

use crate::capture::{Connection, Pdu, connections, pdus};
use crate::ends::{Controller, Host, NQN, names, subsystem};
use outboard_rdma::nvmf::capsule::{Range, Sqe, StatusCode, admin, nvm};
use outboard_rdma::nvmf::discovery::Entry;
use outboard_rdma::nvmf::fabrics::ANY_CONTROLLER;
use outboard_rdma::nvmf::identify::IDENTIFY_BYTES;
use outboard_rdma::nvmf::initiator::{QueueConfig, Request, State};
use outboard_rdma::nvmf::pdu::{self, Body, Kind};
use outboard_rdma::nvmf::target::{Limits, Subsystem};
use outboard_rdma::nvmf::{Digests, Op};
use std::collections::{BTreeMap, VecDeque};

const DISCOVERY: usize = 0;
/// Where the recorded target was.
const LOCAL: &str = "10.9.0.1:4420";
/// An association: its admin queue, its I/O queues, the digests, and the admin commands that ended,
/// Connect among them.
const ASSOCIATIONS: [(usize, &[usize], Digests, usize); 2] =
    [(1, &[2, 3], Digests::NONE, 34), (4, &[5], Digests::BOTH, 33)];

/// The PDU that the parsed header and the data make.
fn emitted(pdu: &Pdu) -> Vec<u8> {
    let common = &pdu.header.common;
    let mut header = [0xee; pdu::MAX_HEADER_BYTES];
    let len = pdu.header.emit(&mut header);
    let mut out = header[..len].to_vec();
    if common.digests().header {
        out.extend(pdu::digest(&header[..len]));
    }
    out.resize(out.len() + common.pad_bytes() as usize, 0);
    out.extend(pdu.data());
    if common.digests().data {
        out.extend(pdu::digest(pdu.data()));
    }
    out
}

#[test]
fn every_recorded_pdu_is_emitted_again_byte_for_byte() {
    let mut kinds = BTreeMap::new();
    let (mut headers, mut data) = (0, 0);
    let connections = connections();
    assert_eq!(connections.len(), 6);
    for connection in &connections {
        let from_host = connection.host.iter().map(|pdu| (true, pdu));
        for (is_from_host, pdu) in from_host.chain(connection.target.iter().map(|p| (false, p))) {
            assert_eq!(emitted(pdu), pdu.bytes, "{:?}", pdu.header);
            assert_eq!(pdu.kind().is_from_host(), is_from_host);
            *kinds.entry(pdu.kind() as u8).or_insert(0) += 1;
            headers += usize::from(pdu.header.common.digests().header);
            data += usize::from(pdu.header.common.digests().data);
        }
    }
    // ICReq, ICResp, commands, responses, H2CData, C2HData, R2T: what the session had.
    let expected = [(0, 6), (1, 6), (4, 118), (5, 117), (6, 2), (7, 62), (9, 2)];
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), expected);
    assert_eq!((headers, data), (131, 35), "PDUs with digests");
}

/// A command and what it was answered with; nothing, if it was held.
#[derive(Clone, Debug)]
struct Exchange {
    command: Pdu,
    sqe: Sqe,
    answers: Vec<Pdu>,
}

impl Exchange {
    fn kinds(&self) -> Vec<Kind> {
        self.answers.iter().map(Pdu::kind).collect()
    }

    fn data(&self) -> Vec<u8> {
        self.answers.iter().flat_map(|pdu| pdu.data().to_vec()).collect()
    }

    fn status(&self) -> StatusCode {
        match self.answers.last().map(|pdu| pdu.header.body) {
            Some(Body::Response(cqe)) => cqe.status.plain(),
            _ => StatusCode::SUCCESS,
        }
    }
}

/// The commands of `host` in order, with their answers: identifiers are used again once their
/// command has ended.
fn exchanges(host: &[Pdu], target: &[Pdu]) -> Vec<Exchange> {
    let mut ended = BTreeMap::<u16, VecDeque<Vec<Pdu>>>::new();
    let mut open = BTreeMap::<u16, Vec<Pdu>>::new();
    for pdu in target {
        let Some(cid) = pdu.cid() else { continue };
        open.entry(cid).or_default().push(pdu.clone());
        let is_last = pdu.kind() == Kind::Response
            || pdu.header.common.flags & (pdu::LAST | pdu::SUCCESS) == pdu::LAST | pdu::SUCCESS;
        if is_last {
            ended.entry(cid).or_default().extend(open.remove(&cid));
        }
    }
    assert!(open.is_empty());
    let commands = host.iter().filter_map(|pdu| match pdu.header.body {
        Body::Command(sqe) => Some((pdu, sqe)),
        _ => None,
    });
    let answered = commands.map(|(command, sqe)| {
        let answers = ended.get_mut(&sqe.cid()).and_then(VecDeque::pop_front).unwrap_or_default();
        Exchange { command: command.clone(), sqe, answers }
    });
    answered.collect()
}

/// Plays host PDUs into our target, one at a time, each answered before the next; data for an
/// R2T carries the tag that our target chose.
fn replay(
    end: &mut Controller,
    host: &[Pdu],
    subsystem: &mut Subsystem,
    disk: &mut [u8],
) -> Vec<Pdu> {
    let mut answered = Vec::new();
    let mut tags = BTreeMap::new();
    for pdu in host {
        let bytes = match pdu.header.body {
            Body::Transfer(transfer) => pdu.patched(10, tags[&transfer.cid]),
            _ => pdu.bytes.clone(),
        };
        end.receive(0, &bytes, subsystem).unwrap();
        while !end.running.is_empty() {
            end.run(0, disk);
        }
        for answer in pdus(&end.transmit(usize::MAX)) {
            if let (Kind::R2t, Body::Transfer(transfer)) = (answer.kind(), answer.header.body) {
                tags.insert(transfer.cid, transfer.tag);
            }
            assert_eq!(emitted(&answer), answer.bytes);
            answered.push(answer);
        }
    }
    assert!(end.pending.is_empty() && end.data.is_empty());
    assert_eq!((end.target.fault(), end.target.take_digest_errors()), (None, 0));
    answered
}

/// How our target's answer to a recorded command differs from the recorded one by design: `Some`
/// status; the rest must be equal.
fn differs(sqe: &Sqe, is_admin: bool) -> Option<StatusCode> {
    // The recorded target had a second namespace, and access to namespaces by several ports.
    let is_other = match (is_admin, sqe.opcode()) {
        (true, admin::IDENTIFY) | (false, nvm::READ | nvm::WRITE) => sqe.nsid() == 2,
        (true, admin::GET_LOG_PAGE) if sqe.cdw(10) as u8 == 12 => {
            return Some(StatusCode::INVALID_LOG_PAGE);
        }
        _ => false,
    };
    is_other.then_some(StatusCode::INVALID_NAMESPACE)
}

/// Compares our answers with the recorded ones, command by command; returns how many.
fn compare(host: &[Pdu], recorded: &[Pdu], ours: &[Pdu], is_admin: bool) -> usize {
    let mut compared = 0;
    for (ours, recorded) in exchanges(host, ours).iter().zip(&exchanges(host, recorded)) {
        let sqe = &recorded.sqe;
        if is_admin && sqe.opcode() == admin::ASYNC_EVENT {
            assert!(ours.answers.is_empty(), "an event was told that did not happen");
            continue;
        }
        let expected = differs(sqe, is_admin);
        assert_eq!(ours.status(), expected.unwrap_or(recorded.status()), "{sqe:?}");
        if expected.is_none() {
            assert_eq!(ours.kinds(), recorded.kinds(), "{sqe:?}");
            assert_eq!(ours.data().len(), recorded.data().len(), "{sqe:?}");
            if !is_admin {
                assert!(ours.data() == recorded.data(), "{sqe:?}");
            }
        }
        compared += 1;
    }
    compared
}

#[test]
fn a_recorded_linux_host_is_served() {
    let all = connections();
    // The second association reads what the first has written.
    let mut disk = vec![0; 32 << 20];
    for (admin_at, io_at, digests, commands) in ASSOCIATIONS {
        let mut subsystem = subsystem(1 << 16, Limits::DEFAULT);
        subsystem.require_digests(digests);
        let mut admin = Controller::new(128, 1 << 20);
        let Connection { host, target } = &all[admin_at];
        // The last two commands shut the controller down, after the I/O.
        let (work, shutdown) = host.split_at(host.len() - 2);
        let mut answered = replay(&mut admin, work, &mut subsystem, &mut disk);
        assert!(admin.target.is_admin());
        let mut compared = 0;
        for &at in io_at {
            let mut io = Controller::new(128, 1 << 20);
            let ours = replay(&mut io, &all[at].host, &mut subsystem, &mut disk);
            compared += compare(&all[at].host, &all[at].target, &ours, false);
            io.target.leave(&mut subsystem);
        }
        assert_eq!(compared, 15 + io_at.len());
        answered.extend(replay(&mut admin, shutdown, &mut subsystem, &mut disk));
        assert_eq!(compare(host, target, &answered, true), commands);
        admin.target.leave(&mut subsystem);
        assert_eq!(subsystem.controllers(), 0);
    }
}

#[test]
fn a_recorded_discovery_is_served() {
    let Connection { host, target } = &connections()[DISCOVERY];
    let mut subsystem = subsystem(8, Limits::DEFAULT);
    let mut end = Controller::new(8, 1 << 20);
    end.target.set_local(LOCAL.parse().unwrap());
    let ours = replay(&mut end, host, &mut subsystem, &mut []);
    // The recorded target listed itself and its subsystem; ours does not list discovery.
    let (theirs, ours) = (exchanges(host, target), exchanges(host, &ours));
    let mut logs = 0;
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let sqe = &theirs.sqe;
        if sqe.opcode() == admin::ASYNC_EVENT {
            continue;
        }
        assert_eq!((ours.status(), ours.kinds()), (theirs.status(), theirs.kinds()), "{sqe:?}");
        let (ours, theirs) = (ours.data(), theirs.data());
        assert_eq!(ours.len(), theirs.len());
        if sqe.opcode() == admin::GET_LOG_PAGE && ours.len() >= 2048 {
            logs += 1;
            let entry = Entry::parse(ours[1024..].first_chunk().unwrap()).unwrap();
            assert_eq!((&*entry.subsystem, entry.address), (NQN, LOCAL.parse().unwrap()));
            let records = theirs.chunks_exact(1024).skip(1);
            let mut read = records.filter_map(|record| Entry::parse(record.first_chunk().unwrap()));
            assert!(read.any(|theirs| theirs == entry));
        }
    }
    assert_eq!(logs, 1);
}

/// The recorded host's I/O as our initiator submits it, with the data that it writes.
fn request(pdu: &Pdu, sqe: &Sqe, written: &BTreeMap<u16, Vec<u8>>) -> (Request, Vec<u8>) {
    let blocks = sqe.blocks();
    let plain = |op| Request { op, lba: sqe.lba(), blocks, bytes: blocks * 512 };
    match sqe.opcode() {
        nvm::READ => (plain(Op::Read), vec![0xee; blocks as usize * 512]),
        nvm::WRITE if pdu.data().is_empty() => (plain(Op::Write), written[&sqe.cid()].clone()),
        nvm::WRITE => (plain(Op::Write), pdu.data().to_vec()),
        nvm::WRITE_ZEROES => (Request { bytes: 0, ..plain(Op::WriteZeroes) }, Vec::new()),
        nvm::FLUSH => (Request { op: Op::Flush, lba: 0, blocks: 0, bytes: 0 }, Vec::new()),
        nvm::DATASET => {
            let Range { lba, blocks } = Range::parse(pdu.data().first_chunk().unwrap());
            (Request { op: Op::Discard, lba, blocks, bytes: 0 }, Vec::new())
        }
        other => panic!("opcode {other:#x} was not recorded"),
    }
}

/// Where a PDU of the target names its command.
fn cid_at(pdu: &Pdu) -> usize {
    if pdu.kind() == Kind::Response { 20 } else { 8 }
}

/// An initiator of ours that has connected to the recorded target.
fn connected(config: QueueConfig, connection: &Connection) -> (Host, Vec<Exchange>) {
    let mut host = Host::new(config);
    assert_eq!(host.transmit(usize::MAX), connection.host[0].bytes);
    host.receive(&connection.target[0].bytes).unwrap();
    let mut exchanges = exchanges(&connection.host, &connection.target);
    let connect = exchanges.remove(0);
    command(&mut host, &connect);
    assert!(matches!(host.queue.state(), State::Ready { .. }));
    (host, exchanges)
}

/// Sends what there is as one command, feeds the recorded answers, and returns the PDUs that our
/// side has sent for it.
fn command(host: &mut Host, recorded: &Exchange) -> Vec<Pdu> {
    let mut sent = pdus(&host.transmit(usize::MAX));
    let cid = sent[0].cid().unwrap();
    for answer in &recorded.answers {
        host.receive(&answer.patched(cid_at(answer), cid)).unwrap();
        sent.extend(pdus(&host.transmit(usize::MAX)));
    }
    sent
}

/// Plays the recorded answers to our I/O queue; commands that were in flight together come one
/// after the other. How many.
fn replay_io(connection: &Connection, config: QueueConfig) -> usize {
    let mut written = BTreeMap::<u16, Vec<u8>>::new();
    for pdu in connection.host.iter().filter(|pdu| pdu.kind() == Kind::HostData) {
        written.entry(pdu.cid().unwrap()).or_default().extend(pdu.data());
    }
    let (mut host, exchanges) = connected(config, connection);
    for recorded in &exchanges {
        let sqe = &recorded.sqe;
        let (request, data) = request(&recorded.command, sqe, &written);
        host.submit(request, data).unwrap();
        let sent = command(&mut host, recorded);
        let (ended, data) = host.next_ended().unwrap();
        assert_eq!(ended.status.plain(), recorded.status(), "{sqe:?}");
        if request.op == Op::Read && ended.status.is_success() {
            assert!(data == recorded.data());
        }
        // What was written left as the recorded host sent it, asked for by the recorded target.
        let mut theirs = vec![(Kind::Command, recorded.command.data().to_vec())];
        if recorded.kinds().contains(&Kind::R2t) {
            theirs.push((Kind::HostData, written[&sqe.cid()].clone()));
        }
        let ours: Vec<_> = sent.iter().map(|pdu| (pdu.kind(), pdu.data().to_vec())).collect();
        assert!(ours == theirs, "{sqe:?}");
    }
    assert_eq!(host.queue.take_digest_errors(), 0);
    exchanges.len()
}

#[test]
fn a_recorded_linux_target_is_used() {
    let all = connections();
    for (admin_at, io_at, digests, commands) in ASSOCIATIONS {
        let config = |queue, controller| QueueConfig {
            queue,
            depth: 128,
            keep_alive_ms: 5000,
            in_capsule_bytes: 8192,
            nsid: 1,
            digests,
            names: names(controller),
        };
        let io: usize = io_at.iter().map(|at| replay_io(&all[*at], config(1, 1))).sum();
        assert_eq!(io, 15);
        let (mut host, exchanges) = connected(config(0, ANY_CONTROLLER), &all[admin_at]);
        let mut count = 0;
        for recorded in exchanges.iter().filter(|it| it.sqe.opcode() != admin::ASYNC_EVENT) {
            let data = recorded.data();
            count += 1;
            // Asymmetric access: longer than what our engine asks for.
            if data.len() > IDENTIFY_BYTES {
                assert_eq!(recorded.sqe.cdw(10) as u8, 12);
                continue;
            }
            host.queue.control(recorded.sqe, data.len() as u32);
            command(&mut host, recorded);
            let end = host.queue.take_control_end().unwrap();
            assert_eq!(end.status.plain(), recorded.status(), "{:?}", recorded.sqe);
            assert!(host.queue.page()[..data.len()] == data);
        }
        assert_eq!(count, commands - 1);
    }
}
