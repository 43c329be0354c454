//! The recorded session as PDUs: a small reader of pcap files with Ethernet, IPv4 and TCP, and the
//! streams put together from their segments.

use outboard_rdma::nvmf::pdu::{self, Body, COMMON_BYTES, Common, Header, Kind};
use std::collections::BTreeMap;

const CAPTURE: &[u8] = include_bytes!("../data/linux-nvme-tcp/session.pcap");
/// The target's port.
const PORT: u16 = 4420;

/// One PDU as it was on the wire.
#[derive(Clone, Debug)]
pub struct Pdu {
    pub header: Header,
    pub bytes: Vec<u8>,
}

impl Pdu {
    pub fn kind(&self) -> Kind {
        self.header.common.kind
    }

    /// The data that it carries.
    pub fn data(&self) -> &[u8] {
        let common = &self.header.common;
        let end = self.bytes.len() - common.data_digest_bytes() as usize;
        &self.bytes[end - common.data_bytes() as usize..end]
    }

    /// The identifier of the command that it belongs to.
    pub fn cid(&self) -> Option<u16> {
        match self.header.body {
            Body::Command(sqe) => Some(sqe.cid()),
            Body::Response(cqe) => Some(cqe.cid),
            Body::Transfer(transfer) => Some(transfer.cid),
            Body::Init(_) | Body::Term { .. } => None,
        }
    }

    /// The same with other bytes at a place in the header, and the digest that belongs to them.
    pub fn patched(&self, at: usize, value: u16) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        let len = self.kind().header_bytes();
        if self.header.common.digests().header {
            let digest = pdu::digest(&bytes[..len]);
            bytes[len..len + pdu::DIGEST_BYTES].copy_from_slice(&digest);
        }
        bytes
    }
}

/// Both directions of a connection.
#[derive(Clone, Debug, Default)]
pub struct Connection {
    pub host: Vec<Pdu>,
    pub target: Vec<Pdu>,
}

/// The recorded connections, in the order of their beginnings.
pub fn connections() -> Vec<Connection> {
    let mut streams: BTreeMap<(u16, bool), Stream> = BTreeMap::new();
    let mut order = Vec::new();
    for frame in frames(CAPTURE) {
        let Some(segment) = Segment::parse(frame) else { continue };
        if !order.contains(&segment.host_port) {
            order.push(segment.host_port);
        }
        streams.entry((segment.host_port, segment.is_from_host)).or_default().add(&segment);
    }
    let connection = |port| Connection {
        host: pdus(&streams[&(port, true)].bytes),
        target: pdus(&streams[&(port, false)].bytes),
    };
    order.into_iter().map(connection).collect()
}

/// The PDUs of a stream, all of it.
pub fn pdus(mut stream: &[u8]) -> Vec<Pdu> {
    let mut out = Vec::new();
    while !stream.is_empty() {
        let common = Common::parse(stream[..COMMON_BYTES].try_into().unwrap()).unwrap();
        let header = Header::parse(&stream[..common.kind.header_bytes()]).unwrap();
        let (pdu, rest) = stream.split_at(common.pdu_bytes as usize);
        out.push(Pdu { header, bytes: pdu.to_vec() });
        stream = rest;
    }
    out
}

/// The frames of a pcap file of this byte order.
fn frames(file: &[u8]) -> Vec<&[u8]> {
    let word = |at: usize| u32::from_le_bytes(*file[at..].first_chunk().unwrap());
    // Microseconds or nanoseconds; Ethernet.
    assert!([0xa1b2_c3d4, 0xa1b2_3c4d].contains(&word(0)) && word(20) == 1);
    let (mut at, mut frames) = (24, Vec::new());
    while at < file.len() {
        let (captured, original) = (word(at + 8) as usize, word(at + 12) as usize);
        assert_eq!(captured, original, "a frame was cut");
        frames.push(&file[at + 16..at + 16 + captured]);
        at += 16 + captured;
    }
    frames
}

struct Segment<'a> {
    host_port: u16,
    is_from_host: bool,
    sequence: u32,
    is_first: bool,
    payload: &'a [u8],
}

impl Segment<'_> {
    fn parse(frame: &[u8]) -> Option<Segment<'_>> {
        let be16 = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        if be16(frame, 12) != 0x0800 || frame[23] != 6 {
            return None;
        }
        let ip = &frame[14..14 + usize::from(be16(frame, 16))];
        let tcp = &ip[usize::from(ip[0] & 15) * 4..];
        let (source, destination) = (be16(tcp, 0), be16(tcp, 2));
        assert!(source == PORT || destination == PORT);
        let is_from_host = destination == PORT;
        Some(Segment {
            host_port: if is_from_host { source } else { destination },
            is_from_host,
            sequence: u32::from_be_bytes(*tcp[4..].first_chunk().unwrap()),
            is_first: tcp[13] & 2 != 0,
            payload: &tcp[usize::from(tcp[12] >> 4) * 4..],
        })
    }
}

/// One direction: bytes in order, and what came too early.
#[derive(Default)]
struct Stream {
    next: u32,
    bytes: Vec<u8>,
    early: BTreeMap<u32, Vec<u8>>,
}

impl Stream {
    fn add(&mut self, segment: &Segment) {
        if segment.is_first {
            self.next = segment.sequence.wrapping_add(1);
            return;
        }
        if !segment.payload.is_empty() {
            self.early.insert(segment.sequence, segment.payload.to_vec());
        }
        while let Some(payload) = self.early.remove(&self.next) {
            self.next = self.next.wrapping_add(payload.len() as u32);
            self.bytes.extend(payload);
        }
    }
}
