//! What an engine has to send: a bounded queue of PDUs whose bytes are the engine's own or a part
//! of a command's data, in the caller's memory. Bytes leave in any cut.

use super::pdu::{COMMAND_BYTES, Header, MAX_HEADER_BYTES, SHORT_BYTES};
use std::collections::VecDeque;

/// A part of what is to be sent next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes of the engine.
    Bytes(&'a [u8]),
    /// Data of the command in `slot`.
    Data {
        /// The command.
        slot: u16,
        /// From where in its data.
        offset: u32,
        /// Bytes.
        len: u32,
    },
}

impl Piece<'_> {
    /// Bytes in this piece.
    pub fn bytes(&self) -> usize {
        match self {
            Piece::Bytes(bytes) => bytes.len(),
            Piece::Data { len, .. } => *len as usize,
        }
    }

    fn skip(self, bytes: usize) -> Self {
        match self {
            Piece::Bytes(all) => Piece::Bytes(&all[bytes..]),
            Piece::Data { slot, offset, len } => {
                Piece::Data { slot, offset: offset + bytes as u32, len: len - bytes as u32 }
            }
        }
    }
}

/// Where a PDU's data comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    None,
    /// The data of the entry's command.
    Place {
        offset: u32,
        len: u32,
    },
    /// The engine's page.
    Page {
        offset: u16,
        len: u16,
    },
}

/// One PDU, perhaps with the short PDU that ends its command behind it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The header, then the trailing PDU.
    bytes: [u8; COMMAND_BYTES],
    header_len: u8,
    trailer_len: u8,
    pad: u8,
    payload: Payload,
    /// The command that this belongs to, if its slot waits for this to be sent.
    pub slot: Option<u16>,
}

/// Padding is zeros; also the reserved rest of the initialization PDUs (TCP 3.6.2).
static ZEROS: [u8; MAX_HEADER_BYTES] = [0; MAX_HEADER_BYTES];

impl Entry {
    /// A PDU with this header; its data is `payload`.
    pub fn new(header: &Header, payload: Payload, slot: Option<u16>) -> Entry {
        let mut whole = [0; MAX_HEADER_BYTES];
        let header_len = header.emit(&mut whole);
        let stored = if header_len > COMMAND_BYTES { SHORT_BYTES } else { header_len };
        debug_assert!(whole[stored..header_len].iter().all(|byte| *byte == 0));
        let mut bytes = [0; COMMAND_BYTES];
        bytes[..stored].copy_from_slice(&whole[..stored]);
        let pad = header_len - stored + header.common.pad_bytes() as usize;
        Entry { bytes, header_len: stored as u8, trailer_len: 0, pad: pad as u8, payload, slot }
    }

    /// Adds a short PDU behind the data.
    pub fn with_trailer(mut self, header: &Header) -> Entry {
        let mut whole = [0; MAX_HEADER_BYTES];
        let len = header.emit(&mut whole);
        let at = usize::from(self.header_len);
        self.bytes[at..at + len].copy_from_slice(&whole[..len]);
        self.trailer_len = len as u8;
        self
    }

    /// Whether its data is in the engine's page.
    pub fn is_from_page(&self) -> bool {
        matches!(self.payload, Payload::Page { .. })
    }

    fn payload_bytes(&self) -> usize {
        match self.payload {
            Payload::None => 0,
            Payload::Place { len, .. } => len as usize,
            Payload::Page { len, .. } => usize::from(len),
        }
    }

    fn total_bytes(&self) -> usize {
        let small = self.header_len + self.trailer_len;
        usize::from(small) + usize::from(self.pad) + self.payload_bytes()
    }

    /// The entry's parts in order; empty ones included.
    fn part<'a>(&'a self, index: u8, page: &'a [u8]) -> Piece<'a> {
        let header_len = usize::from(self.header_len);
        match index {
            0 => Piece::Bytes(&self.bytes[..header_len]),
            1 => Piece::Bytes(&ZEROS[..usize::from(self.pad)]),
            2 => match self.payload {
                Payload::None => Piece::Bytes(&[]),
                Payload::Place { offset, len } => {
                    Piece::Data { slot: self.slot.unwrap_or(u16::MAX), offset, len }
                }
                Payload::Page { offset, len } => {
                    Piece::Bytes(&page[usize::from(offset)..][..usize::from(len)])
                }
            },
            _ => Piece::Bytes(&self.bytes[header_len..][..usize::from(self.trailer_len)]),
        }
    }
}

const PARTS: u8 = 4;

/// A bounded queue of PDUs to send.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    entries: VecDeque<Entry>,
    /// Bytes of the first entry that have left.
    sent: usize,
}

impl Outbox {
    /// Room for `capacity` PDUs: the engine's own rules keep it inside.
    pub fn new(capacity: usize) -> Outbox {
        Outbox { entries: VecDeque::with_capacity(capacity), sent: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn push(&mut self, entry: Entry) {
        assert!(self.entries.len() < self.entries.capacity(), "the outbox was sized too small");
        self.entries.push_back(entry);
    }

    /// Drops everything that has not begun to leave, and returns how many PDUs of what is left
    /// belong to no slot.
    pub fn cancel_unsent(&mut self) -> u16 {
        self.entries.truncate(usize::from(self.sent > 0));
        self.entries.iter().filter(|entry| entry.slot.is_none()).count() as u16
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.sent = 0;
    }

    pub fn pieces<'a>(&'a self, page: &'a [u8]) -> Pieces<'a> {
        Pieces { outbox: self, page, entry: 0, part: 0, skip: self.sent }
    }

    /// `bytes` more have left, of which some may end the first entry: then returns it and how
    /// many bytes are left to account for. Call until it returns `None`.
    pub fn advance(&mut self, bytes: &mut usize) -> Option<Entry> {
        let total = self.entries.front()?.total_bytes();
        if self.sent + *bytes < total {
            self.sent += *bytes;
            *bytes = 0;
            return None;
        }
        *bytes -= total - self.sent;
        self.sent = 0;
        self.entries.pop_front()
    }
}

/// What is to be sent, in order.
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    outbox: &'a Outbox,
    page: &'a [u8],
    entry: usize,
    part: u8,
    skip: usize,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        loop {
            let entry = self.outbox.entries.get(self.entry)?;
            let piece = entry.part(self.part, self.page);
            self.part += 1;
            if self.part == PARTS {
                (self.part, self.entry) = (0, self.entry + 1);
            }
            let skip = self.skip.min(piece.bytes());
            self.skip -= skip;
            if skip < piece.bytes() {
                return Some(piece.skip(skip));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvmf::StatusCode;
    use crate::nvmf::capsule::{Cqe, Sqe};
    use crate::nvmf::pdu::{Init, Kind, LAST, Transfer};

    /// The stream that `outbox` would send, with `data[slot]` as the commands' data.
    fn stream(outbox: &Outbox, page: &[u8], data: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in outbox.pieces(page) {
            match piece {
                Piece::Bytes(bytes) => out.extend_from_slice(bytes),
                Piece::Data { slot, offset, len } => out.extend_from_slice(
                    &data[usize::from(slot)][offset as usize..(offset + len) as usize],
                ),
            }
        }
        out
    }

    #[test]
    fn the_stream_is_the_same_in_any_cut() {
        let data = vec![(0..200).collect::<Vec<u8>>()];
        let page = vec![9; 64];
        let transfer = Transfer { cid: 1, tag: 0, offset: 50, len: 100 };
        let cqe = Cqe { result: 0, sq_head: 0, sq_id: 1, cid: 1, status: StatusCode::SUCCESS };
        let init = Init { version: 0, alignment: 0, digests: 0, limit: 8 };
        let fill = || {
            let mut outbox = Outbox::new(4);
            outbox.push(Entry::new(&Header::init(Kind::IcReq, init), Payload::None, None));
            let header = Header::data(Kind::ControllerData, LAST, transfer, 31);
            let payload = Payload::Place { offset: 50, len: 100 };
            let entry = Entry::new(&header, payload, Some(0));
            outbox.push(entry.with_trailer(&Header::response(cqe)));
            let header = Header::command(Sqe::new(1, 2, 3), 64, 0);
            outbox.push(Entry::new(&header, Payload::Page { offset: 0, len: 64 }, None));
            outbox
        };
        let whole = stream(&fill(), &page, &data);
        assert_eq!(whole.len(), 128 + (128 + 100 + 24) + (72 + 64));
        assert_eq!(whole[128 + 128..][..100], data[0][50..150]);
        for cut in 1..whole.len() {
            let mut outbox = fill();
            let (mut at, mut ended) = (0, Vec::new());
            while at < whole.len() {
                assert_eq!(stream(&outbox, &page, &data), whole[at..]);
                let mut bytes = cut.min(whole.len() - at);
                at += bytes;
                while let Some(entry) = outbox.advance(&mut bytes) {
                    ended.push(entry.slot);
                }
                assert_eq!(bytes, 0);
            }
            assert_eq!(ended, [None, Some(0), None]);
            assert!(outbox.is_empty());
        }
    }
}
