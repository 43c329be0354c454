//! I/O commands: checks, slots, and how a write's data comes (NVM 3; TCP 3.4.1).

use super::{Incoming, Slot, Stage, Subsystem, Target, ranges};
use crate::nvmf::capsule::{ALL_NAMESPACES, Sgl, Sqe, StatusCode, nvm};
use crate::nvmf::outbox::{Entry, Payload};
use crate::nvmf::pdu::{Common, Header, Transfer};
use crate::nvmf::{Fault, Op};

/// A command that passed its checks, and where its data is.
struct Checked {
    op: Op,
    /// Length of the data.
    bytes: u32,
    /// The data, or a discard's list, is in the capsule.
    in_capsule: bool,
    /// Length of the range, of an operation without data.
    blocks: u32,
    /// Ranges of a discard.
    ranges: u16,
}

impl Target {
    /// Takes an I/O command into a slot, or says why it fails.
    pub(super) fn io(
        &mut self,
        sqe: &Sqe,
        in_capsule: u32,
        subsystem: &mut Subsystem,
    ) -> Result<Option<StatusCode>, Fault> {
        if self.free.is_empty() {
            return Err(Fault::QueueOverrun);
        }
        let checked = match self.check(sqe, in_capsule, subsystem) {
            Ok(checked) => checked,
            Err(status) => {
                self.discard(in_capsule);
                return Ok(Some(status.do_not_retry()));
            }
        };
        let Some(slot) = self.free.pop() else { return Err(Fault::QueueOverrun) };
        let Checked { op, bytes, in_capsule: has_data, blocks, ranges } = checked;
        let stage = match op {
            Op::Read | Op::Write | Op::Compare => Stage::Waiting,
            Op::Discard => Stage::Receiving,
            Op::Flush | Op::WriteZeroes => Stage::Ready,
        };
        self.slots[usize::from(slot)] = Slot {
            stage,
            cid: sqe.cid(),
            op,
            is_durable: matches!(op, Op::Write | Op::WriteZeroes) && sqe.force_unit_access(),
            in_capsule: has_data,
            lba: sqe.lba(),
            bytes,
            asked: if has_data { bytes } else { 0 },
            blocks,
            ranges,
            is_hint: ranges::is_hint(sqe),
            ..Slot::FREE
        };
        match stage {
            Stage::Waiting => self.waiting.push_back(slot),
            Stage::Ready => self.ready.push_back(slot),
            _ => {}
        }
        if op == Op::Discard {
            self.incoming = Incoming::Ranges { slot, left: in_capsule };
        } else if has_data {
            self.incoming = Incoming::Data { slot, left: bytes };
        }
        Ok(None)
    }

    fn check(
        &self,
        sqe: &Sqe,
        in_capsule: u32,
        subsystem: &mut Subsystem,
    ) -> Result<Checked, StatusCode> {
        let member = self.member.ok_or(StatusCode::COMMAND_SEQUENCE)?;
        let controller = subsystem.controller(member).ok_or(StatusCode::COMMAND_SEQUENCE)?;
        if let Some(refusal) = controller.refusal() {
            subsystem.stale_refusals += u64::from(refusal == StatusCode::STALE_EPOCH);
            return Err(refusal);
        }
        if !sqe.has_plain_flags() {
            return Err(StatusCode::INVALID_FIELD);
        }
        // With all entries of the queue taken there is one slot per entry: few to look at, and
        // none at depth 1.
        let is_busy = self.free.len() < self.slots.len();
        if is_busy && self.slots.iter().any(|s| s.stage != Stage::Free && s.cid == sqe.cid()) {
            return Err(StatusCode::CID_CONFLICT);
        }
        let op = op_of(sqe.opcode()).ok_or(StatusCode::INVALID_OPCODE)?;
        let is_known = sqe.nsid() == 1 || op == Op::Flush && sqe.nsid() == ALL_NAMESPACES;
        if !is_known {
            return Err(StatusCode::INVALID_NAMESPACE);
        }
        if op.is_change() && subsystem.namespace.read_only {
            return Err(StatusCode::WRITE_PROTECTED);
        }
        let mut checked = Checked { op, bytes: 0, in_capsule: false, blocks: 0, ranges: 0 };
        match op {
            Op::Discard => checked.ranges = ranges::list_of(sqe, in_capsule)?,
            Op::Flush | Op::WriteZeroes if in_capsule > 0 => return Err(StatusCode::SGL_LENGTH),
            Op::Flush => {}
            Op::WriteZeroes => checked.blocks = blocks(sqe, subsystem)?,
            Op::Read | Op::Write | Op::Compare => {
                checked.bytes = data_bytes(sqe, subsystem)?;
                checked.in_capsule = placement(op, sqe, checked.bytes, in_capsule)?;
            }
        }
        Ok(checked)
    }

    /// Asks for the next part of a write's data.
    pub(super) fn ask(&mut self, slot: u16, r2t_bytes: u32) {
        let state = &mut self.slots[usize::from(slot)];
        let offset = state.received;
        let len = r2t_bytes.min(state.bytes - offset);
        state.asked = offset + len;
        state.is_asking = true;
        let header = Header::r2t(Transfer { cid: state.cid, tag: slot, offset, len }, self.format);
        self.outbox.push(Entry::new(&header, Payload::None, Some(slot)));
    }

    /// An H2CData PDU's header: its data must be what was asked for, next in order.
    pub(super) fn data(
        &mut self,
        common: &Common,
        transfer: &Transfer,
        subsystem: &Subsystem,
    ) -> Result<(), Fault> {
        let Some(state) = self.slots.get(usize::from(transfer.tag)) else {
            return Err(Fault::UnknownTransfer);
        };
        if state.stage != Stage::Receiving || state.in_capsule || state.is_asking {
            return Err(Fault::UnknownTransfer);
        }
        if state.cid != transfer.cid {
            return Err(Fault::UnknownCommand);
        }
        if transfer.len > subsystem.limits.h2c_bytes {
            return Err(Fault::DataLimit);
        }
        if transfer.offset != state.received {
            return Err(Fault::DataOrder);
        }
        if transfer.len == 0 || transfer.len > state.asked - state.received {
            return Err(Fault::DataRange);
        }
        self.pad = common.pad_bytes();
        self.incoming = Incoming::Data { slot: transfer.tag, left: transfer.len };
        Ok(())
    }
}

fn op_of(opcode: u8) -> Option<Op> {
    Some(match opcode {
        nvm::READ => Op::Read,
        nvm::WRITE => Op::Write,
        nvm::FLUSH => Op::Flush,
        nvm::COMPARE => Op::Compare,
        nvm::WRITE_ZEROES => Op::WriteZeroes,
        nvm::DATASET => Op::Discard,
        _ => return None,
    })
}

/// The length of a command's range in blocks, inside the namespace.
fn blocks(sqe: &Sqe, subsystem: &Subsystem) -> Result<u32, StatusCode> {
    match sqe.lba().checked_add(u64::from(sqe.blocks())) {
        Some(end) if end <= subsystem.namespace.blocks => Ok(sqe.blocks()),
        _ => Err(StatusCode::LBA_RANGE),
    }
}

/// The length of a command's data: no more than one command may transfer.
fn data_bytes(sqe: &Sqe, subsystem: &Subsystem) -> Result<u32, StatusCode> {
    let bytes = u64::from(sqe.blocks()) * u64::from(subsystem.namespace.block_bytes);
    if bytes > u64::from(subsystem.limits.transfer_bytes) {
        return Err(StatusCode::INVALID_FIELD);
    }
    blocks(sqe, subsystem).map(|_| bytes as u32)
}

/// Whether the data is in the capsule; the descriptor must say what is so.
fn placement(op: Op, sqe: &Sqe, bytes: u32, in_capsule: u32) -> Result<bool, StatusCode> {
    match sqe.sgl() {
        Sgl::InCapsule { offset: 0, len } if op.takes_data() => {
            let is_whole = len == bytes && in_capsule == bytes;
            is_whole.then_some(true).ok_or(StatusCode::SGL_LENGTH)
        }
        Sgl::InCapsule { .. } if op.takes_data() => Err(StatusCode::SGL_OFFSET),
        Sgl::InCapsule { .. } | Sgl::Unknown => Err(StatusCode::SGL_TYPE),
        Sgl::Transport { len } => {
            let is_whole = len == bytes && in_capsule == 0;
            is_whole.then_some(false).ok_or(StatusCode::SGL_LENGTH)
        }
    }
}
