//! Dataset Management: lists of ranges as hosts send them, and as they should not.

use crate::ends::{Controller, Host, admin_config, subsystem};
use crate::loopback::{io_config, set_up, settle};
use outboard_rdma::nvmf::capsule::{RANGE_BYTES, Range, Sgl, Sqe, nvm};
use outboard_rdma::nvmf::initiator::{QueueConfig, Request, State};
use outboard_rdma::nvmf::pdu::{self, Body, Common, Format, Header, Kind, Transfer};
use outboard_rdma::nvmf::target::{Limits, MAX_RANGES, Subsystem};
use outboard_rdma::nvmf::{Digests, Fault, Op, StatusCode, Want};

const BLOCKS: u64 = 4096;
const DEPTH: u16 = 8;

/// An I/O queue that the test speaks to PDU by PDU, its admin queue, and a disk full of ones.
struct Raw {
    subsystem: Subsystem,
    _admin: (Host, Controller),
    end: Controller,
    disk: Vec<u8>,
    digests: Digests,
}

impl Raw {
    fn new(digests: Digests) -> Raw {
        let limits = Limits { depth: DEPTH, ..Limits::DEFAULT };
        let mut subsystem = subsystem(BLOCKS, limits);
        let mut admin = (Host::new(admin_config()), Controller::new(DEPTH, 0));
        let found = set_up(&mut admin.0, &mut admin.1, &mut subsystem);
        let config = io_config(&found, 1, DEPTH, 8192);
        let mut host = Host::new(QueueConfig { digests, ..config });
        let mut end = Controller::new(DEPTH, 1 << 20);
        settle(&mut host, &mut end, &mut subsystem);
        assert!(matches!(host.queue.state(), State::Ready { .. }));
        let disk = vec![1; BLOCKS as usize * 512];
        Raw { subsystem, _admin: admin, end, disk, digests }
    }

    /// A command capsule, digests included.
    fn capsule(&self, sqe: Sqe, data: &[u8]) -> Vec<u8> {
        let format = Format { alignment: 0, digests: self.digests };
        let header = Header::command(sqe, data.len() as u32, format);
        let mut bytes = [0; pdu::MAX_HEADER_BYTES];
        let len = header.emit(&mut bytes);
        let mut out = bytes[..len].to_vec();
        if self.digests.header {
            out.extend(pdu::digest(&bytes[..len]));
        }
        out.extend_from_slice(data);
        if self.digests.data && !data.is_empty() {
            out.extend(pdu::digest(data));
        }
        out
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.end.receive(0, bytes, &mut self.subsystem).unwrap();
    }

    /// Runs everything, and returns the statuses that were answered.
    fn statuses(&mut self) -> Vec<StatusCode> {
        let mut answered = Vec::new();
        loop {
            while !self.end.running.is_empty() {
                self.end.run(0, &mut self.disk);
            }
            let bytes = self.end.transmit(usize::MAX);
            answered.extend(split(&bytes));
            self.receive(&[]);
            if self.end.running.is_empty() && !self.end.target.has_output() {
                return answered;
            }
        }
    }

    fn ask(&mut self, sqe: Sqe, data: &[u8]) -> StatusCode {
        let bytes = self.capsule(sqe, data);
        self.receive(&bytes);
        let answered = self.statuses();
        assert_eq!(answered.len(), 1);
        answered[0].plain()
    }

    fn is_zero(&self, lba: usize) -> bool {
        self.disk[lba * 512..][..512] == [0; 512]
    }
}

fn split(mut bytes: &[u8]) -> Vec<StatusCode> {
    let mut statuses = Vec::new();
    while !bytes.is_empty() {
        let common = Common::parse(bytes.first_chunk().unwrap()).unwrap();
        let header = Header::parse(&bytes[..common.kind.header_bytes()]).unwrap();
        let Body::Response(cqe) = header.body else { panic!("{header:?}") };
        statuses.push(cqe.status);
        bytes = &bytes[common.pdu_bytes as usize..];
    }
    statuses
}

fn dataset(cid: u16, count: usize, len: usize) -> Sqe {
    let mut sqe = Sqe::new(nvm::DATASET, cid, 1);
    sqe.set_cdw(10, count as u32 - 1);
    sqe.set_cdw(11, 1 << 2);
    sqe.set_sgl(Sgl::InCapsule { offset: 0, len: len as u32 });
    sqe
}

fn list(ranges: &[(u64, u32)]) -> Vec<u8> {
    ranges.iter().flat_map(|&(lba, blocks)| Range { lba, blocks }.emit()).collect()
}

#[test]
fn every_range_of_a_full_list_is_deallocated_and_nothing_else() {
    for digests in [Digests::NONE, Digests::BOTH] {
        let mut raw = Raw::new(digests);
        // Every other block of the first 512, the last block, and an empty range in between.
        let mut ranges: Vec<_> = (0..254).map(|i| (i * 2, 1)).collect();
        ranges.push((7, 0));
        ranges.push((BLOCKS - 1, 1));
        let data = list(&ranges);
        assert_eq!(ranges.len(), MAX_RANGES);
        let status = raw.ask(dataset(1, MAX_RANGES, data.len()), &data);
        assert_eq!(status, StatusCode::SUCCESS);
        for lba in 0..BLOCKS as usize {
            let expected = lba < 508 && lba % 2 == 0 || lba == BLOCKS as usize - 1;
            assert_eq!(raw.is_zero(lba), expected, "block {lba}");
        }
    }
}

#[test]
fn a_list_that_is_wrong_anywhere_deallocates_nothing() {
    let mut raw = Raw::new(Digests::NONE);
    let good = list(&[(0, 1), (8, 8)]);
    let ok = StatusCode::SUCCESS;
    let mut hint = dataset(1, 2, 32);
    hint.set_cdw(11, 0);
    assert_eq!(raw.ask(hint, &good), ok);
    assert_eq!(raw.ask(dataset(1, 1, RANGE_BYTES), &list(&[(5, 0)])), ok);
    for (sqe, data, expected) in [
        (dataset(1, 2, 32), list(&[(0, 1), (BLOCKS, 1)]), StatusCode::LBA_RANGE),
        (dataset(1, 2, 32), list(&[(0, 1), (u64::MAX, u32::MAX)]), StatusCode::LBA_RANGE),
        (dataset(1, 3, 32), good.clone(), StatusCode::SGL_LENGTH),
        (dataset(1, 2, 31), good.clone(), StatusCode::SGL_LENGTH),
        (dataset(1, 256, 4112), vec![0; 4112], StatusCode::SGL_LENGTH),
    ] {
        assert_eq!(raw.ask(sqe, &data), expected, "{sqe:?}");
    }
    let mut by_request = dataset(1, 2, 32);
    by_request.set_sgl(Sgl::Transport { len: 32 });
    assert_eq!(raw.ask(by_request, &[]), StatusCode::SGL_TYPE);
    assert!((0..BLOCKS as usize).all(|lba| !raw.is_zero(lba)));
    // Room for all ranges, of which two are used: what some hosts always send.
    let mut padded = good;
    padded.resize(4096, 0xff);
    assert_eq!(raw.ask(dataset(1, 2, 4096), &padded), ok);
    assert!(raw.is_zero(0) && raw.is_zero(15) && !raw.is_zero(16));
}

#[test]
fn a_second_list_waits_for_the_first_with_what_is_behind_it() {
    let mut raw = Raw::new(Digests::NONE);
    let first = list(&[(0, 1), (1, 1), (2, 1)]);
    let second = list(&[(10, 1), (11, 1)]);
    let mut bytes = raw.capsule(dataset(1, 3, 48), &first);
    bytes.extend(raw.capsule(dataset(2, 2, 32), &second));
    bytes.extend(raw.capsule(Sqe::new(nvm::FLUSH, 3, 1), &[]));
    raw.receive(&bytes);
    assert_eq!(raw.end.running.len(), 1);
    assert_eq!(raw.end.target.wants(), Want::Nothing);
    assert!(!raw.end.target.is_owed_data());
    assert_eq!(raw.statuses(), [StatusCode::SUCCESS; 3]);
    for lba in [0, 1, 2, 10, 11] {
        assert!(raw.is_zero(lba));
    }
}

#[test]
fn a_failed_range_ends_the_command_and_frees_the_page() {
    let mut raw = Raw::new(Digests::NONE);
    let data = list(&[(0, 1), (1, 1)]);
    let bytes = raw.capsule(dataset(1, 2, 32), &data);
    raw.receive(&bytes);
    let command = raw.end.running.pop().unwrap();
    assert_eq!((command.op, command.lba, command.blocks), (Op::Discard, 0, 1));
    raw.end.target.complete(command.slot, StatusCode::WRITE_FAULT);
    assert_eq!(raw.statuses(), [StatusCode::WRITE_FAULT]);
    assert_eq!(raw.ask(dataset(2, 2, 32), &data), StatusCode::SUCCESS);
}

#[test]
fn a_list_that_does_not_match_its_digest_deallocates_nothing() {
    let mut raw = Raw::new(Digests::BOTH);
    let data = list(&[(0, 1), (1, 1)]);
    let mut bytes = raw.capsule(dataset(1, 2, 32), &data);
    bytes[76 + 8] ^= 1;
    raw.receive(&bytes);
    assert_eq!(raw.statuses(), [StatusCode::TRANSIENT_TRANSPORT]);
    assert!((0..16).all(|lba| !raw.is_zero(lba)));
    assert_eq!(raw.end.target.take_digest_errors(), 1);
    assert_eq!(raw.ask(dataset(1, 2, 32), &data), StatusCode::SUCCESS);
}

#[test]
fn any_list_is_answered() {
    bolero::check!().with_type::<(u8, u8, u16, Vec<u8>)>().for_each(|(count, hint, len, data)| {
        let mut raw = Raw::new(Digests::from_bits(hint >> 6));
        let mut sqe = dataset(1, usize::from(*count) + 1, usize::from(*len));
        sqe.set_cdw(11, u32::from(*hint & 7));
        let data = &data[..data.len().min(8192)];
        if *hint & 8 != 0 {
            sqe.set_sgl(Sgl::InCapsule { offset: 0, len: data.len() as u32 });
        }
        raw.ask(sqe, data);
        assert_eq!(raw.ask(Sqe::new(nvm::FLUSH, 2, 1), &[]), StatusCode::SUCCESS);
    });
}

#[test]
fn a_target_without_room_in_capsules_asks_for_the_list() {
    let mut admin = (Host::new(admin_config()), Controller::new(DEPTH, 0));
    let limits = Limits { depth: DEPTH, ..Limits::DEFAULT };
    let mut subsystem = subsystem(BLOCKS, limits);
    let found = set_up(&mut admin.0, &mut admin.1, &mut subsystem);
    for (len, fault) in [(16, None), (8, Some(Fault::DataRange))] {
        let mut host = Host::new(io_config(&found, 1, 1, 0));
        let mut end = Controller::new(DEPTH, 0);
        settle(&mut host, &mut end, &mut subsystem);
        end.target.leave(&mut subsystem);
        let request = Request { op: Op::Discard, lba: 3, blocks: 9, bytes: 0 };
        host.submit(request, Vec::new()).unwrap();
        let sent = host.transmit(usize::MAX);
        let header = Header::parse(&sent).unwrap();
        let Body::Command(sqe) = header.body else { panic!("{header:?}") };
        assert_eq!(sqe.sgl(), Sgl::Transport { len: 16 });
        let asked = Transfer { cid: sqe.cid(), tag: 4, offset: 0, len };
        let mut r2t = [0; pdu::MAX_HEADER_BYTES];
        let bytes = Header::r2t(asked, Format::PLAIN).emit(&mut r2t);
        assert_eq!(host.receive(&r2t[..bytes]).err(), fault);
        if fault.is_none() {
            let sent = host.transmit(usize::MAX);
            let header = Header::parse(&sent[..24]).unwrap();
            assert_eq!(header.common.kind, Kind::HostData);
            assert_eq!(sent[24..], Range { lba: 3, blocks: 9 }.emit());
        }
    }
}
