//! Dataset Management: up to 256 ranges in the capsule, deallocated one after another (NVM 3.2.3).
//!
//! The list stays in the page until its last range was given to the caller; the list of another
//! such command, and everything behind it in the stream, waits for that.

use super::{Incoming, Stage, Subsystem, Target};
use crate::nvmf::StatusCode;
use crate::nvmf::capsule::{RANGE_BYTES, Range, Sgl, Sqe};
use crate::nvmf::outbox::{Entry, Payload};
use crate::nvmf::pdu::Header;

/// The most ranges of a command: the field has 8 bits, 0-based.
pub const MAX_RANGES: usize = 256;

/// Dword 11: the ranges are to be deallocated; the other bits are hints about access.
const DEALLOCATE: u32 = 1 << 2;

/// What a command says of its list: ranges, and whether they are to be deallocated.
pub(super) fn list_of(sqe: &Sqe, in_capsule: u32) -> Result<u16, StatusCode> {
    let count = (sqe.cdw(10) & 0xff) as u16 + 1;
    let least = u32::from(count) * RANGE_BYTES as u32;
    match sqe.sgl() {
        Sgl::InCapsule { offset: 0, len } => {
            // Some hosts always send room for all ranges.
            let is_whole = len == in_capsule && len >= least;
            let fits = len as usize <= MAX_RANGES * RANGE_BYTES;
            if is_whole && fits { Ok(count) } else { Err(StatusCode::SGL_LENGTH) }
        }
        Sgl::InCapsule { .. } => Err(StatusCode::SGL_OFFSET),
        // A list that comes later would hold up the page for as long as the host likes.
        Sgl::Transport { .. } | Sgl::Unknown => Err(StatusCode::SGL_TYPE),
    }
}

impl Target {
    /// Whether the stream stands at a list while another one is in the page.
    pub(super) fn is_list_held(&self) -> bool {
        match self.incoming {
            Incoming::Ranges { slot, .. } => self.listing.is_some_and(|other| other != slot),
            _ => false,
        }
    }

    /// Takes bytes of a list.
    pub(super) fn list(&mut self, bytes: &[u8], slot: u16, left: u32, subsystem: &Subsystem) {
        self.listing = Some(slot);
        let state = &mut self.slots[usize::from(slot)];
        let at = state.received as usize;
        self.page[at..at + bytes.len()].copy_from_slice(bytes);
        state.received += bytes.len() as u32;
        if self.has_data_digest() {
            self.check.data(bytes);
        }
        let left = left - bytes.len() as u32;
        self.incoming = match left {
            0 if self.has_data_digest() => Incoming::Digest { slot: Some(slot) },
            0 => Incoming::Header,
            _ => Incoming::Ranges { slot, left },
        };
        if self.incoming == Incoming::Header {
            self.begin_list(slot, subsystem);
        }
    }

    /// The list is whole: checks all of it before anything is done.
    pub(super) fn begin_list(&mut self, slot: u16, subsystem: &Subsystem) {
        let state = self.slots[usize::from(slot)];
        let blocks = subsystem.namespace.blocks;
        let is_inside = |index| {
            let Range { lba, blocks: count } = self.range(index);
            lba.checked_add(u64::from(count)).is_some_and(|end| end <= blocks)
        };
        if state.is_corrupt {
            self.end_list(slot, StatusCode::TRANSIENT_TRANSPORT);
        } else if !(0..state.ranges).all(is_inside) {
            self.end_list(slot, StatusCode::LBA_RANGE.do_not_retry());
        } else if self.slots[usize::from(slot)].is_hint {
            self.end_list(slot, StatusCode::SUCCESS);
        } else {
            self.next_range(slot);
        }
    }

    /// Makes the next range that is not empty ready to run; without one the command has ended.
    pub(super) fn next_range(&mut self, slot: u16) {
        let Self { slots, page, listing, ready, .. } = self;
        let state = &mut slots[usize::from(slot)];
        while state.range < state.ranges {
            let Range { lba, blocks } = range_of(page, state.range);
            state.range += 1;
            if blocks > 0 {
                (state.lba, state.blocks) = (lba, blocks);
                state.stage = Stage::Ready;
                if state.range == state.ranges {
                    *listing = None;
                }
                ready.push_back(slot);
                return;
            }
        }
        self.end_list(slot, StatusCode::SUCCESS);
    }

    /// Answers the command.
    pub(super) fn end_list(&mut self, slot: u16, status: StatusCode) {
        if self.listing == Some(slot) {
            self.listing = None;
        }
        let state = &mut self.slots[usize::from(slot)];
        state.stage = Stage::Responding;
        let cid = state.cid;
        let header = Header::response(self.cqe(cid, status, 0), self.format);
        self.outbox.push(Entry::new(&header, Payload::None, Some(slot)));
    }

    fn range(&self, index: u16) -> Range {
        range_of(&self.page, index)
    }
}

fn range_of(page: &[u8], index: u16) -> Range {
    let mut bytes = [0; RANGE_BYTES];
    bytes.copy_from_slice(&page[usize::from(index) * RANGE_BYTES..][..RANGE_BYTES]);
    Range::parse(&bytes)
}

/// Whether the command only tells how the ranges are used.
pub(super) fn is_hint(sqe: &Sqe) -> bool {
    sqe.cdw(11) & DEALLOCATE == 0
}
