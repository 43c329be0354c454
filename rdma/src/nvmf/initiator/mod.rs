//! The host's end of one queue: connects it, then runs commands on it.
//!
//! Slots `0..depth` are I/O commands, named by the slot in every call; a write's data must stay in
//! place until its end is taken with [`Queue::next_ended`]. One further slot carries Connect and,
//! on the admin queue, one control command at a time, whose data is the engine's own page.
//! Identifiers on the wire carry a generation, so that an answer to an earlier command is a
//! [`Fault`], not an end of the wrong one.

mod association;
mod saved;
mod setup;

pub use association::{Associated, Association, AssociationError, Next, Wish};
pub use setup::{Found, Progress, Setup, SetupError};

use super::assembly::Assembly;
use super::capsule::{RANGE_BYTES, Range, Sgl, Sqe, StatusCode, nvm};
use super::digest::Check;
use super::fabrics::{CONNECT_BYTES, Connect, ConnectData};
use super::identify::IDENTIFY_BYTES;
use super::outbox::{Entry, Outbox, Payload, Pieces};
use super::pdu::{self, Body, Digests, Format, Header, Init, Kind, TERM_DATA_BYTES, Transfer};
use super::{Fault, Full, Op, Want};
use std::collections::VecDeque;

/// The most I/O commands in flight on one queue: what a slot number on the wire leaves room for.
pub const MAX_DEPTH: u16 = 128;

/// What a queue's connection is made with.
#[derive(Clone, Debug)]
pub struct QueueConfig {
    /// The queue's number; 0 is the admin queue.
    pub queue: u16,
    /// I/O commands in flight at most, 1 to [`MAX_DEPTH`].
    pub depth: u16,
    /// Keep-alive timeout for the admin queue; 0: none.
    pub keep_alive_ms: u32,
    /// Bytes of data that a write may carry in its capsule.
    pub in_capsule_bytes: u32,
    /// Namespace of the I/O commands.
    pub nsid: u32,
    /// Digests to ask for; a target that does not agree to them is not used.
    pub digests: Digests,
    /// Who connects to what.
    pub names: ConnectData,
}

/// How far the queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The connection is being initialized, or Connect is in flight.
    Connecting,
    /// Commands can be submitted; `controller` is the identifier that Connect returned.
    Ready {
        /// The controller's identifier.
        controller: u16,
    },
    /// The target refused to connect the queue.
    Refused(StatusCode),
    /// The connection is beyond use.
    Failed(Fault),
}

/// An I/O command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// First block.
    pub lba: u64,
    /// Length in blocks, 1 to 65536, of a discard any but 0; 0 for a flush.
    pub blocks: u32,
    /// Length of the data in bytes; 0 for an operation without data.
    pub bytes: u32,
}

/// An I/O command that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its slot, free again.
    pub slot: u16,
    /// How it ended.
    pub status: StatusCode,
}

/// The end of a control command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlEnd {
    /// How it ended.
    pub status: StatusCode,
    /// Its result.
    pub result: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    None,
    In,
    Out,
}

#[derive(Clone, Debug)]
struct Slot {
    live: bool,
    direction: Direction,
    generation: u8,
    /// Length of the command's data.
    bytes: u32,
    /// Received so far, or asked for so far.
    moved: u32,
    /// The data of a discard, which is the engine's own.
    list: Option<[u8; RANGE_BYTES]>,
    /// What the target asked for and has not been queued yet.
    transfer: Option<Transfer>,
    /// A PDU of this command is in the outbox: its memory is in use.
    sending: bool,
    /// Data of it did not match its digest.
    is_corrupt: bool,
    /// The command has ended; told once nothing of it is being sent.
    end: Option<ControlEnd>,
}

/// What the next received bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Incoming {
    Header,
    /// Padding, then data of a slot; `flags` of its PDU.
    Data {
        slot: u16,
        pad: u32,
        left: u32,
        flags: u8,
    },
    /// The digest of a slot's data.
    Digest {
        slot: u16,
        flags: u8,
    },
}

/// The host's end of one queue.
#[derive(Clone, Debug)]
pub struct Queue {
    config: QueueConfig,
    state: State,
    is_initialized: bool,
    /// Alignment of data that the controller asked for (CPDA), and digests.
    format: Format,
    max_h2c_bytes: u32,
    assembly: Assembly,
    incoming: Incoming,
    check: Check,
    digest_errors: u32,
    outbox: Outbox,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    ended: VecDeque<Ended>,
    control_end: Option<ControlEnd>,
    page: Box<[u8]>,
}

/// Room in the page for the header that a TermReq repeats.
const TERM_AT: usize = IDENTIFY_BYTES;

impl Queue {
    /// A queue that begins to connect: its first bytes are ready to be sent.
    ///
    /// # Panics
    /// When the depth is not 1 to [`MAX_DEPTH`].
    pub fn new(config: QueueConfig) -> Queue {
        assert!((1..=MAX_DEPTH).contains(&config.depth));
        let slots = usize::from(config.depth) + 1;
        let slot = Slot {
            live: false,
            direction: Direction::None,
            generation: 0,
            bytes: 0,
            moved: 0,
            list: None,
            transfer: None,
            sending: false,
            is_corrupt: false,
            end: None,
        };
        let mut queue = Queue {
            state: State::Connecting,
            is_initialized: false,
            format: Format::PLAIN,
            max_h2c_bytes: 0,
            assembly: Assembly::new(),
            incoming: Incoming::Header,
            check: Check::default(),
            digest_errors: 0,
            // One PDU per slot, the ICReq, a TermReq.
            outbox: Outbox::new(slots + 2),
            slots: vec![slot; slots].into_boxed_slice(),
            free: (0..config.depth).rev().collect(),
            ended: VecDeque::with_capacity(slots),
            control_end: None,
            page: vec![0; IDENTIFY_BYTES + TERM_DATA_BYTES].into_boxed_slice(),
            config,
        };
        let digests = queue.config.digests.bits();
        let init = Init { version: 0, alignment: 0, digests, limit: 0 };
        queue.outbox.push(Entry::new(&Header::init(Kind::IcReq, init), Payload::None, None));
        queue
    }

    /// How far the queue is.
    pub fn state(&self) -> State {
        self.state
    }

    /// I/O commands in flight.
    pub fn in_flight(&self) -> u16 {
        self.config.depth - self.free.len() as u16
    }

    /// Starts an I/O command and returns its slot. The queue must be ready.
    pub fn submit(&mut self, request: &Request) -> Result<u16, Full> {
        debug_assert!(matches!(self.state, State::Ready { .. }));
        let slot = self.free.pop().ok_or(Full)?;
        let (opcode, direction) = match request.op {
            Op::Read => (nvm::READ, Direction::In),
            Op::Write => (nvm::WRITE, Direction::Out),
            Op::Compare => (nvm::COMPARE, Direction::Out),
            Op::Flush => (nvm::FLUSH, Direction::None),
            Op::WriteZeroes => (nvm::WRITE_ZEROES, Direction::None),
            Op::Discard => (nvm::DATASET, Direction::Out),
        };
        let mut sqe = Sqe::new(opcode, 0, self.config.nsid);
        let mut bytes = request.bytes;
        let list = (request.op == Op::Discard)
            .then(|| Range { lba: request.lba, blocks: request.blocks }.emit());
        match request.op {
            Op::Flush => {}
            Op::Discard => {
                // One range (0-based), to be deallocated.
                sqe.set_cdw(10, 0);
                sqe.set_cdw(11, 1 << 2);
                bytes = RANGE_BYTES as u32;
            }
            _ => sqe.set_range(request.lba, request.blocks),
        }
        let mut payload = Payload::None;
        if direction != Direction::None {
            sqe.set_sgl(Sgl::Transport { len: bytes });
        }
        if direction == Direction::Out && bytes <= self.config.in_capsule_bytes {
            sqe.set_sgl(Sgl::InCapsule { offset: 0, len: bytes });
            payload = Payload::Place { offset: 0, len: bytes };
        }
        self.slots[usize::from(slot)].list = list;
        self.start(slot, sqe, direction, bytes, payload);
        Ok(slot)
    }

    /// Starts a command whose data, if it has any, comes from the controller into the page: of
    /// `bytes`, at most [`IDENTIFY_BYTES`].
    ///
    /// # Panics
    /// When another control command is in flight.
    pub fn control(&mut self, mut sqe: Sqe, bytes: u32) {
        assert!(bytes as usize <= IDENTIFY_BYTES);
        assert!(!self.slots[usize::from(self.config.depth)].live, "one control command at a time");
        let direction = if bytes > 0 { Direction::In } else { Direction::None };
        sqe.set_sgl(Sgl::Transport { len: bytes });
        self.control_end = None;
        self.start(self.config.depth, sqe, direction, bytes, Payload::None);
    }

    /// Whether a control command is in flight.
    pub fn is_control_in_flight(&self) -> bool {
        self.slots[usize::from(self.config.depth)].live
    }

    /// Takes the end of the last control command.
    pub fn take_control_end(&mut self) -> Option<ControlEnd> {
        self.control_end.take()
    }

    /// The data that the last control command received.
    pub fn page(&self) -> &[u8] {
        &self.page[..IDENTIFY_BYTES]
    }

    /// Takes the end of an I/O command; its slot is free from here.
    #[inline]
    pub fn next_ended(&mut self) -> Option<Ended> {
        let ended = self.ended.pop_front()?;
        self.free.push(ended.slot);
        if planted!("nvmf-slot-freed-twice") && self.free.len() < usize::from(self.config.depth) {
            self.free.push(ended.slot);
        }
        Some(ended)
    }

    /// What is to be sent, in order.
    pub fn pieces(&self) -> Pieces<'_> {
        self.outbox.pieces(&self.page)
    }

    /// Whether there is something to send.
    #[inline]
    pub fn has_output(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// `bytes` of the pieces have been sent.
    pub fn sent(&mut self, mut bytes: usize) {
        while let Some(entry) = self.outbox.advance(&mut bytes) {
            self.left(&entry);
        }
    }

    /// Whether data passes by the engine: to be sent with [`fill`](Self::fill) and
    /// [`sent_copy`](Self::sent_copy), received with [`placed_copy`](Self::placed_copy).
    #[inline]
    pub fn has_data_digest(&self) -> bool {
        self.format.digests.data
    }

    /// Writes what is to be sent to `out` and returns how many bytes; `copy` writes data of a
    /// slot, from an offset on.
    pub fn fill(&self, out: &mut [u8], copy: impl FnMut(u16, u32, &mut [u8])) -> usize {
        self.outbox.fill(&self.page, out, copy)
    }

    /// As [`sent`](Self::sent), of `bytes` that [`fill`](Self::fill) wrote.
    pub fn sent_copy(&mut self, mut bytes: &[u8]) {
        while let Some(entry) = self.outbox.advance_copied(&mut bytes) {
            self.left(&entry);
        }
    }

    /// Data that did not match its digest since this was asked last; each time a command failed.
    pub fn take_digest_errors(&mut self) -> u32 {
        std::mem::take(&mut self.digest_errors)
    }

    fn left(&mut self, entry: &Entry) {
        let Some(slot) = entry.slot else { return };
        let state = &mut self.slots[usize::from(slot)];
        state.sending = false;
        if state.end.is_some() {
            self.end(slot);
        } else if let Some(transfer) = state.transfer.take() {
            self.send_data(slot, transfer);
        }
    }

    /// Where the next received bytes belong.
    #[inline]
    pub fn wants(&self) -> Want {
        if matches!(self.state, State::Failed(_)) {
            return Want::Nothing;
        }
        match self.incoming {
            Incoming::Data { slot, pad: 0, left, .. } if slot < self.config.depth => {
                let offset = self.slots[usize::from(slot)].moved;
                Want::Data { slot, offset, len: left }
            }
            _ => Want::Engine,
        }
    }

    /// Whether a part of a PDU has come and the rest has not: a target begins none before it has
    /// what is in it, so it is the way to here that is stuck, not a medium that is slow.
    #[inline]
    pub fn is_inside_pdu(&self) -> bool {
        self.incoming != Incoming::Header || self.assembly.is_partial()
    }

    /// Takes bytes from the front of what was received while they belong to the engine, and
    /// returns how many. A fault is final: the state is `Failed`, and a TermReq is to be sent.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let mut at = 0;
        while at < bytes.len() && self.wants() == Want::Engine {
            at += self.step(&bytes[at..]).inspect_err(|fault| self.fail(*fault))?;
        }
        match self.state {
            State::Failed(fault) => Err(fault),
            _ => Ok(at),
        }
    }

    /// `bytes` of the data that [`wants`](Self::wants) named are in place.
    ///
    /// # Panics
    /// When data digests were agreed upon: use [`placed_copy`](Self::placed_copy).
    pub fn placed(&mut self, bytes: u32) -> Result<(), Fault> {
        assert!(!self.has_data_digest(), "data with a digest is shown");
        self.advance(bytes).inspect_err(|fault| self.fail(*fault))
    }

    /// The data that [`wants`](Self::wants) named began with `data`, which is in place.
    pub fn placed_copy(&mut self, data: &[u8]) -> Result<(), Fault> {
        if self.has_data_digest() {
            self.check.data(data);
        }
        self.advance(data.len() as u32).inspect_err(|fault| self.fail(*fault))
    }

    fn advance(&mut self, bytes: u32) -> Result<(), Fault> {
        let Incoming::Data { slot, left, flags, .. } = &mut self.incoming else {
            return Ok(());
        };
        debug_assert!(bytes <= *left);
        *left -= bytes;
        let (slot, left, flags) = (*slot, *left, *flags);
        self.slots[usize::from(slot)].moved += bytes;
        if left > 0 {
            return Ok(());
        }
        if self.has_data_digest() {
            self.incoming = Incoming::Digest { slot, flags };
            return Ok(());
        }
        self.incoming = Incoming::Header;
        self.after_data(slot, flags)
    }

    /// The data of a PDU has come; perhaps it ends its command.
    fn after_data(&mut self, slot: u16, flags: u8) -> Result<(), Fault> {
        if flags & pdu::SUCCESS == 0 {
            return Ok(());
        }
        self.finish(slot, ControlEnd { status: StatusCode::SUCCESS, result: 0 })
    }

    fn step(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        match &mut self.incoming {
            Incoming::Header => {
                let (used, header) = self.assembly.take(bytes);
                if let Some(header) = header? {
                    self.dispatch(&header)?;
                }
                Ok(used)
            }
            Incoming::Data { pad, .. } if *pad > 0 => {
                let used = bytes.len().min(*pad as usize);
                *pad -= used as u32;
                Ok(used)
            }
            Incoming::Data { slot, left, .. } => {
                let at = self.slots[usize::from(*slot)].moved as usize;
                let used = bytes.len().min(*left as usize);
                self.page[at..at + used].copy_from_slice(&bytes[..used]);
                if self.has_data_digest() {
                    self.check.data(&bytes[..used]);
                }
                self.advance(used as u32)?;
                Ok(used)
            }
            Incoming::Digest { slot, flags } => {
                let (slot, flags) = (*slot, *flags);
                let (used, matches) = self.check.take(bytes);
                if let Some(matches) = matches {
                    self.incoming = Incoming::Header;
                    let matches = matches || planted!("nvmf-digest-not-checked");
                    self.digest_errors += u32::from(!matches);
                    self.slots[usize::from(slot)].is_corrupt |= !matches;
                    self.after_data(slot, flags)?;
                }
                Ok(used)
            }
        }
    }

    fn dispatch(&mut self, header: &Header) -> Result<(), Fault> {
        let kind = header.common.kind;
        if kind.is_from_host() {
            return Err(Fault::PduType);
        }
        if (kind == Kind::IcResp) == self.is_initialized && kind != Kind::ControllerTerm {
            return Err(Fault::PduSequence);
        }
        match (kind, &header.body) {
            (Kind::IcResp, Body::Init(init)) => self.initialized(init),
            (Kind::Response, Body::Response(cqe)) => {
                let slot = self.slot_of(cqe.cid)?;
                self.finish(slot, ControlEnd { status: cqe.status, result: cqe.result })
            }
            (Kind::ControllerData, Body::Transfer(transfer)) => self.data(header, transfer),
            (Kind::R2t, Body::Transfer(transfer)) => self.ready_to_transfer(transfer),
            (Kind::ControllerTerm, _) => Err(Fault::Terminated),
            _ => Err(Fault::PduType),
        }
    }

    fn initialized(&mut self, init: &Init) -> Result<(), Fault> {
        if init.version != 0 {
            return Err(Fault::Version);
        }
        let digests = Digests::from_bits(init.digests);
        if !digests.contain(self.config.digests) {
            return Err(Fault::DigestRequired);
        }
        if digests != self.config.digests {
            return Err(Fault::Digest);
        }
        let is_multiple = init.limit.is_multiple_of(4);
        if init.alignment > 31 || init.limit < pdu::MIN_H2C_DATA_BYTES || !is_multiple {
            return Err(Fault::Parameter);
        }
        self.is_initialized = true;
        self.format = Format { alignment: init.alignment, digests };
        self.assembly.digests = digests;
        self.max_h2c_bytes = init.limit;
        let is_admin = self.config.queue == 0;
        let connect = Connect {
            format: 0,
            queue: self.config.queue,
            // 0-based: one entry more than commands in flight, as of a ring.
            queue_size: if is_admin { 31 } else { self.config.depth },
            no_flow_control: true,
            keep_alive_ms: if is_admin { self.config.keep_alive_ms } else { 0 },
        };
        self.config.names.emit(&mut self.page[..CONNECT_BYTES]);
        let payload = Payload::Page { offset: 0, len: CONNECT_BYTES as u16 };
        let sqe = connect.emit(0);
        self.start(self.config.depth, sqe, Direction::None, CONNECT_BYTES as u32, payload);
        Ok(())
    }

    fn start(&mut self, slot: u16, mut sqe: Sqe, direction: Direction, bytes: u32, data: Payload) {
        let state = &mut self.slots[usize::from(slot)];
        state.live = true;
        state.direction = direction;
        state.generation = state.generation.wrapping_add(1);
        state.bytes = bytes;
        state.moved = 0;
        state.transfer = None;
        state.sending = true;
        state.is_corrupt = false;
        state.end = None;
        let cid = u16::from(state.generation) << 8 | slot;
        sqe.0[2..4].copy_from_slice(&cid.to_le_bytes());
        let in_capsule = match data {
            Payload::None => 0,
            _ => bytes,
        };
        if in_capsule > 0 {
            state.moved = bytes;
        }
        let header = Header::command(sqe, in_capsule, self.format);
        self.outbox.push(match (data, &self.slots[usize::from(slot)].list) {
            (Payload::Page { offset, len }, _) => {
                let at = usize::from(offset);
                Entry::from_page(&header, &self.page, at..at + usize::from(len), Some(slot))
            }
            (Payload::Place { .. }, Some(list)) => Entry::with_inline(&header, list, Some(slot)),
            (data, _) => Entry::new(&header, data, Some(slot)),
        });
    }

    fn slot_of(&self, cid: u16) -> Result<u16, Fault> {
        let slot = cid & 0xff;
        match self.slots.get(usize::from(slot)) {
            Some(state)
                if state.live && state.end.is_none() && state.generation == (cid >> 8) as u8 =>
            {
                Ok(slot)
            }
            _ => Err(Fault::UnknownCommand),
        }
    }

    fn data(&mut self, header: &Header, transfer: &Transfer) -> Result<(), Fault> {
        let slot = self.slot_of(transfer.cid)?;
        let state = &self.slots[usize::from(slot)];
        if state.direction != Direction::In {
            return Err(Fault::DataDirection);
        }
        if transfer.offset != state.moved {
            return Err(Fault::DataOrder);
        }
        if transfer.len == 0 || transfer.len > state.bytes - state.moved {
            return Err(Fault::DataRange);
        }
        let flags = header.common.flags;
        if flags & pdu::SUCCESS != 0 && flags & pdu::LAST == 0 {
            return Err(Fault::PduSequence);
        }
        let pad = header.common.pad_bytes();
        self.incoming = Incoming::Data { slot, pad, left: transfer.len, flags };
        Ok(())
    }

    fn ready_to_transfer(&mut self, asked: &Transfer) -> Result<(), Fault> {
        let slot = self.slot_of(asked.cid)?;
        let state = &mut self.slots[usize::from(slot)];
        if state.direction != Direction::Out {
            return Err(Fault::DataDirection);
        }
        // One at a time was offered (MAXR2T 0). A capsule that is still being sent is asked for
        // too early just as well.
        if state.sending || state.transfer.is_some() {
            return Err(Fault::R2tLimit);
        }
        if asked.offset != state.moved {
            return Err(Fault::DataOrder);
        }
        // A list of one range goes in one piece.
        let is_part = state.list.is_some() && asked.len < state.bytes;
        if asked.len == 0 || asked.len > state.bytes - state.moved || is_part {
            return Err(Fault::DataRange);
        }
        state.moved += asked.len;
        self.send_data(slot, *asked);
        Ok(())
    }

    /// Queues the next data PDU of what was asked for, and keeps the rest for when it has left.
    fn send_data(&mut self, slot: u16, asked: Transfer) {
        let len = asked.len.min(self.max_h2c_bytes);
        let rest = asked.len - len;
        let state = &mut self.slots[usize::from(slot)];
        state.sending = true;
        if rest > 0 {
            state.transfer = Some(Transfer { offset: asked.offset + len, len: rest, ..asked });
        }
        let flags = if rest == 0 { pdu::LAST } else { 0 };
        let header = Header::data(Kind::HostData, flags, Transfer { len, ..asked }, self.format);
        let offset = if planted!("nvmf-r2t-offset") { 0 } else { asked.offset };
        let payload = Payload::Place { offset, len };
        self.outbox.push(match &self.slots[usize::from(slot)].list {
            Some(list) => Entry::with_inline(&header, list, Some(slot)),
            None => Entry::new(&header, payload, Some(slot)),
        });
    }

    fn finish(&mut self, slot: u16, mut end: ControlEnd) -> Result<(), Fault> {
        let state = &mut self.slots[usize::from(slot)];
        if end.status.is_success() && state.moved != state.bytes && self.must_be_whole(slot) {
            return Err(Fault::ShortData);
        }
        let state = &mut self.slots[usize::from(slot)];
        if state.is_corrupt && end.status.is_success() {
            end.status = StatusCode::TRANSIENT_TRANSPORT;
        }
        state.transfer = None;
        state.end = Some(end);
        if !state.sending {
            self.end(slot);
        }
        Ok(())
    }

    /// I/O moves all of its data or fails; a control command's answer may be shorter.
    fn must_be_whole(&self, slot: u16) -> bool {
        slot < self.config.depth
    }

    fn end(&mut self, slot: u16) {
        let state = &mut self.slots[usize::from(slot)];
        let Some(end) = state.end.take() else { return };
        state.live = false;
        if slot < self.config.depth {
            self.ended.push_back(Ended { slot, status: end.status });
        } else if self.state == State::Connecting {
            self.state = if end.status.is_success() {
                State::Ready { controller: end.result as u16 }
            } else {
                State::Refused(end.status)
            };
        } else {
            self.control_end = Some(end);
        }
    }

    fn fail(&mut self, fault: Fault) {
        self.state = State::Failed(fault);
        self.outbox.cancel_unsent();
        if let Some((status, field)) = fault.term() {
            let offending = self.assembly.so_far();
            let len = offending.len().min(TERM_DATA_BYTES);
            self.page[TERM_AT..TERM_AT + len].copy_from_slice(&offending[..len]);
            let header = Header::term(Kind::HostTerm, status, field, len as u32);
            self.outbox.push(Entry::from_page(&header, &self.page, TERM_AT..TERM_AT + len, None));
        }
    }
}
