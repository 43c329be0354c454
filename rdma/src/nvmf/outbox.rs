//! What an engine has to send: a bounded queue of PDUs whose bytes are the engine's own or a part
//! of a command's data, in the caller's memory. Bytes leave in any cut.
//!
//! Without data digests the bytes never pass by here ([`Pieces`]). With them they are copied, and
//! the digest is of that copy: whoever can write the data meanwhile cannot make them differ.

use super::capsule::RANGE_BYTES;
use super::pdu::{
    self, COMMAND_BYTES, DIGEST_BYTES, Digests, Header, MAX_HEADER_BYTES, SHORT_BYTES,
};
use super::state::{LoadError, Reader, State, ensure, state_enum, state_struct};
use std::collections::VecDeque;
use std::ops::Range;

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
    /// The header and its digest, then what follows the data: its digest, the trailing PDU.
    bytes: [u8; STORED_BYTES],
    header_len: u8,
    trailer_len: u8,
    pad: u8,
    /// The data's digest is known only as the data leaves: the trailer begins with its place.
    is_digest_open: bool,
    payload: Payload,
    /// The command that this belongs to, if its slot waits for this to be sent.
    pub slot: Option<u16>,
}

/// Bytes of data that an entry can hold by itself.
pub(crate) const INLINE_BYTES: usize = RANGE_BYTES;
/// A command's header is the longest that is stored; behind it, digests and inline data.
const STORED_BYTES: usize = COMMAND_BYTES + INLINE_BYTES + 2 * DIGEST_BYTES;

/// Padding is zeros; also the reserved rest of the initialization PDUs (TCP 3.6.2).
static ZEROS: [u8; MAX_HEADER_BYTES] = [0; MAX_HEADER_BYTES];

/// Writes the header and its digest, if it has one, and returns their length.
fn emit(header: &Header, out: &mut [u8; MAX_HEADER_BYTES]) -> usize {
    let len = header.emit(out);
    if !header.common.digests().header {
        return len;
    }
    let digest = pdu::digest(&out[..len]);
    out[len..len + DIGEST_BYTES].copy_from_slice(&digest);
    len + DIGEST_BYTES
}

impl Entry {
    /// A PDU with this header; its data, if it has any, is its command's.
    pub fn new(header: &Header, payload: Payload, slot: Option<u16>) -> Entry {
        let mut whole = [0; MAX_HEADER_BYTES];
        let len = emit(header, &mut whole);
        let stored = if len > STORED_BYTES { SHORT_BYTES } else { len };
        debug_assert!(whole[stored..len].iter().all(|byte| *byte == 0));
        let mut bytes = [0; STORED_BYTES];
        bytes[..stored].copy_from_slice(&whole[..stored]);
        let pad = len - stored + header.common.pad_bytes() as usize;
        let has_digest = header.common.digests().data;
        Entry {
            bytes,
            header_len: stored as u8,
            trailer_len: if has_digest { DIGEST_BYTES as u8 } else { 0 },
            pad: pad as u8,
            is_digest_open: has_digest,
            payload,
            slot,
        }
    }

    /// A PDU whose data is in `page`, which stays as it is until the PDU has left.
    pub fn from_page(header: &Header, page: &[u8], at: Range<usize>, slot: Option<u16>) -> Entry {
        let payload = Payload::Page { offset: at.start as u16, len: at.len() as u16 };
        let mut entry = Entry::new(header, payload, slot);
        if entry.is_digest_open {
            let trailer = usize::from(entry.header_len);
            let digest = pdu::digest(&page[at]);
            entry.bytes[trailer..trailer + DIGEST_BYTES].copy_from_slice(&digest);
            entry.is_digest_open = false;
        }
        entry
    }

    /// A PDU with this data.
    pub fn with_inline(header: &Header, data: &[u8; INLINE_BYTES], slot: Option<u16>) -> Entry {
        let mut entry = Entry::new(header, Payload::None, slot);
        let at = usize::from(entry.header_len);
        entry.bytes[at..at + INLINE_BYTES].copy_from_slice(data);
        if entry.is_digest_open {
            let digest = pdu::digest(data);
            entry.bytes[at + INLINE_BYTES..][..DIGEST_BYTES].copy_from_slice(&digest);
            entry.is_digest_open = false;
        }
        entry.trailer_len += INLINE_BYTES as u8;
        entry
    }

    /// Adds a short PDU behind the data.
    pub fn with_trailer(mut self, header: &Header) -> Entry {
        let mut whole = [0; MAX_HEADER_BYTES];
        let len = emit(header, &mut whole);
        let at = usize::from(self.header_len + self.trailer_len);
        self.bytes[at..at + len].copy_from_slice(&whole[..len]);
        self.trailer_len += len as u8;
        self
    }

    /// What a loaded one must be, whatever its slot is.
    fn check(&self, page_bytes: usize, digests: Digests) -> Result<(), LoadError> {
        let small = usize::from(self.header_len) + usize::from(self.trailer_len);
        let is_stored = small <= STORED_BYTES && usize::from(self.pad) <= ZEROS.len();
        ensure(is_stored && self.header_len > 0, "a PDU's length")?;
        match self.payload {
            Payload::Place { offset, len } => {
                let is_range = offset.checked_add(len).is_some() && self.slot.is_some();
                ensure(is_range && self.is_digest_open == digests.data, "a PDU's data")?;
            }
            Payload::Page { offset, len } => {
                let end = usize::from(offset) + usize::from(len);
                ensure(end <= page_bytes && !self.is_digest_open, "a PDU's page")?;
            }
            Payload::None => ensure(!self.is_digest_open, "a digest without data")?,
        }
        let has_place = usize::from(self.trailer_len) >= DIGEST_BYTES;
        ensure(!self.is_digest_open || has_place, "a digest without a place")
    }

    /// Whether its data, if it is its command's, ends within `bytes`.
    pub fn is_within(&self, bytes: u32) -> bool {
        match self.payload {
            Payload::Place { offset, len } => offset + len <= bytes,
            Payload::Page { .. } | Payload::None => true,
        }
    }

    /// Where in the PDU its data is.
    fn payload_range(&self) -> Range<usize> {
        let start = usize::from(self.header_len) + usize::from(self.pad);
        start..start + self.payload_bytes()
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
            _ => Piece::Bytes(self.trailer()),
        }
    }

    fn trailer(&self) -> &[u8] {
        &self.bytes[usize::from(self.header_len)..][..usize::from(self.trailer_len)]
    }
}

const PARTS: u8 = 4;
const TRAILER: u8 = 3;

state_enum!(Payload { 0 => None, 1 => Place { offset, len }, 2 => Page { offset, len } });
state_struct!(Entry { bytes, header_len, trailer_len, pad, is_digest_open, payload, slot });

/// A bounded queue of PDUs to send.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    entries: VecDeque<Entry>,
    /// Bytes of the first entry that have left.
    sent: usize,
    /// CRC of the first entry's data among them, while its digest is open.
    crc: u32,
}

impl Outbox {
    /// Room for `capacity` PDUs: the engine's own rules keep it inside.
    pub fn new(capacity: usize) -> Outbox {
        Outbox { entries: VecDeque::with_capacity(capacity), sent: 0, crc: 0 }
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

    /// The queue that was saved, with room for `capacity` PDUs. What its entries say of slots is
    /// for the engine to check.
    pub fn load(
        from: &mut Reader,
        capacity: usize,
        page_bytes: usize,
        digests: Digests,
    ) -> Result<Outbox, LoadError> {
        let mut outbox = Outbox::new(capacity);
        let entries = Vec::<Entry>::load(from)?;
        let (sent, crc) = <(u32, u32)>::load(from)?;
        (outbox.sent, outbox.crc) = (sent as usize, crc);
        ensure(entries.len() <= capacity, "more to send than there can be")?;
        for entry in &entries {
            entry.check(page_bytes, digests)?;
        }
        let first = entries.first().map_or(0, Entry::total_bytes);
        ensure(outbox.sent < first.max(1), "more was sent than there was")?;
        outbox.entries.extend(entries);
        Ok(outbox)
    }

    pub fn save(&self, out: &mut Vec<u8>) {
        self.entries.save(out);
        (self.sent as u32, self.crc).save(out);
    }

    /// What is to be sent, in order.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.entries.clear();
        (self.sent, self.crc) = (0, 0);
    }

    pub fn pieces<'a>(&'a self, page: &'a [u8]) -> Pieces<'a> {
        Pieces { outbox: self, page, entry: 0, part: 0, skip: self.sent }
    }

    /// Writes what is to be sent next to `out` and returns how many bytes; `copy` writes data of
    /// the command in a slot, from an offset on.
    pub fn fill(
        &self,
        page: &[u8],
        out: &mut [u8],
        mut copy: impl FnMut(u16, u32, &mut [u8]),
    ) -> usize {
        let (mut at, mut skip, mut crc) = (0, self.sent, self.crc);
        for entry in &self.entries {
            for index in 0..PARTS {
                let part = entry.part(index, page);
                let skipped = skip.min(part.bytes());
                skip -= skipped;
                let len = (part.bytes() - skipped).min(out.len() - at);
                let place = &mut out[at..at + len];
                match part.skip(skipped) {
                    Piece::Data { slot, offset, .. } if len > 0 => {
                        copy(slot, offset, place);
                        if entry.is_digest_open {
                            crc = crc32c::crc32c_append(crc, place);
                        }
                    }
                    Piece::Data { .. } => {}
                    Piece::Bytes(_) if index == TRAILER && entry.is_digest_open => {
                        let mut trailer = [0; STORED_BYTES];
                        let whole = usize::from(entry.trailer_len);
                        trailer[..whole].copy_from_slice(entry.trailer());
                        trailer[..DIGEST_BYTES].copy_from_slice(&crc.to_le_bytes());
                        place.copy_from_slice(&trailer[skipped..skipped + len]);
                    }
                    Piece::Bytes(bytes) => place.copy_from_slice(&bytes[..len]),
                }
                at += len;
                if at == out.len() {
                    return at;
                }
            }
            crc = 0;
        }
        at
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
        (self.sent, self.crc) = (0, 0);
        self.entries.pop_front()
    }

    /// As [`advance`](Self::advance), of bytes that [`fill`](Self::fill) wrote.
    pub fn advance_copied(&mut self, bytes: &mut &[u8]) -> Option<Entry> {
        let front = self.entries.front()?;
        let (sent, total) = (self.sent, front.total_bytes());
        if front.is_digest_open && sent + bytes.len() < total {
            let data = front.payload_range();
            let from = data.start.max(sent) - sent;
            let to = data.end.min(sent + bytes.len()).saturating_sub(sent);
            if from < to {
                self.crc = crc32c::crc32c_append(self.crc, &bytes[from..to]);
            }
        }
        let mut left = bytes.len();
        let ended = self.advance(&mut left);
        *bytes = &bytes[bytes.len() - left..];
        ended
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
            assert!(!entry.is_digest_open, "data with a digest leaves by copy");
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
    use crate::nvmf::pdu::{Digests, Format, Init, Kind, LAST, Transfer};

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

    fn fill(format: Format, page: &[u8]) -> Outbox {
        let transfer = Transfer { cid: 1, tag: 0, offset: 50, len: 100 };
        let cqe = Cqe { result: 0, sq_head: 0, sq_id: 1, cid: 1, status: StatusCode::SUCCESS };
        let init = Init { version: 0, alignment: 0, digests: 0, limit: 8 };
        let mut outbox = Outbox::new(4);
        outbox.push(Entry::new(&Header::init(Kind::IcReq, init), Payload::None, None));
        let header = Header::data(Kind::ControllerData, LAST, transfer, format);
        let payload = Payload::Place { offset: 50, len: 100 };
        let entry = Entry::new(&header, payload, Some(0));
        outbox.push(entry.with_trailer(&Header::response(cqe, format)));
        let header = Header::command(Sqe::new(1, 2, 3), 64, Format { alignment: 0, ..format });
        outbox.push(Entry::from_page(&header, page, 0..64, None));
        outbox
    }

    #[test]
    fn the_stream_is_the_same_in_any_cut() {
        let data = vec![(0..200).collect::<Vec<u8>>()];
        let page = vec![9; 64];
        let format = Format { alignment: 31, digests: Digests { header: true, data: false } };
        let whole = stream(&fill(format, &page), &page, &data);
        assert_eq!(whole.len(), 128 + (128 + 100 + 28) + (76 + 64));
        assert_eq!(whole[128 + 128..][..100], data[0][50..150]);
        for cut in 1..whole.len() {
            let mut outbox = fill(format, &page);
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

    /// What leaves in cuts of `cut` while the data changes after every copy.
    fn copied(outbox: &mut Outbox, page: &[u8], cut: usize) -> (Vec<u8>, Vec<Option<u16>>) {
        let (mut out, mut ended, mut fill_byte) = (Vec::new(), Vec::new(), 0_u8);
        while !outbox.is_empty() {
            let mut buffer = vec![0; cut + 7];
            fill_byte = fill_byte.wrapping_add(1);
            let filled = outbox.fill(page, &mut buffer, |slot, offset, place| {
                assert!(slot == 0 && offset as usize + place.len() <= 150);
                place.fill(fill_byte);
            });
            // The socket takes less than it was given.
            let mut sent = &buffer[..filled.min(cut)];
            out.extend_from_slice(sent);
            while let Some(entry) = outbox.advance_copied(&mut sent) {
                ended.push(entry.slot);
            }
            assert!(sent.is_empty());
        }
        (out, ended)
    }

    #[test]
    fn a_data_digest_is_of_what_left() {
        let page = vec![9; 64];
        let format = Format { alignment: 31, digests: Digests::BOTH };
        for cut in 1..700 {
            let (out, ended) = copied(&mut fill(format, &page), &page, cut);
            assert_eq!(ended, [None, Some(0), None]);
            assert_eq!(out.len(), 128 + (128 + 104 + 28) + (76 + 68));
            let data = &out[256..356];
            assert_eq!(out[356..360], pdu::digest(data), "cut {cut}");
            assert_eq!(out[360 + 24..388], pdu::digest(&out[360..384]));
            assert_eq!(out[388 + 76 + 64..], pdu::digest(&page));
        }
    }
}
