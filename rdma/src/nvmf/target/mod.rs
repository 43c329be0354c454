//! The controller's end of one connection: a queue of a controller in the shared [`Subsystem`].
//!
//! The engine answers admin and Fabrics commands itself. I/O commands it returns:
//! 1. [`Target::waiting`] names the next command that needs a place for its data; the caller
//!    provides one and says [`Target::grant`]. Until then nothing of a capsule's data is taken,
//!    and no R2T goes out: a shortage of memory holds the host back. Data that was asked for may
//!    come behind a capsule with data, so memory for one capsule ([`IN_CAPSULE_BYTES`]) must
//!    never be given to a command [`by_request`](Waiting::by_request): they would wait for each
//!    other. Everything else that holds memory ends by itself.
//! 2. [`Target::next_command`] returns commands to run: those without data from the host, and
//!    those whose data is all in place. Each range of a discard is one, after the one before it.
//! 3. The caller says [`Target::complete`]; a read's data must stay until the slot is released
//!    through [`Target::sent`].
//!
//! A host may fence its past off ([`fence`](super::fence)): while [`Target::is_fencing`], the
//! caller ends what is stale, and then says [`Target::finish_fence`].

mod admin;
mod features;
mod io;
mod ranges;
mod receive;
mod saved;
mod subsystem;

pub use ranges::MAX_RANGES;
pub use subsystem::{Limits, MAX_IO_QUEUES, Subsystem};

use super::assembly::Assembly;
use super::capsule::{Cqe, Sgl, Sqe, StatusCode, admin as opcode};
use super::digest::Check;
use super::fabrics::{CONNECT_BYTES, fctype};
use super::identify::IDENTIFY_BYTES;
pub use super::identify::IN_CAPSULE_BYTES;
use super::outbox::{Entry, Outbox, Payload, Pieces};
use super::pdu::{
    self, Body, Common, DIGEST_BYTES, Digests, Format, Header, Init, Kind, TERM_DATA_BYTES,
    Transfer,
};
use super::{Fault, Op, Want};
use std::collections::VecDeque;
use std::net::SocketAddr;
use subsystem::Member;

/// How a command of the admin queue ends: its result, or its error.
type Answer = Result<u64, StatusCode>;

/// Responses that belong to no slot (errors, admin commands) and may wait to be sent; the host's
/// next commands are not taken while so many do.
const LOOSE_RESPONSES: u16 = 8;

/// A command that needs a place for its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Names it until it is released.
    pub slot: u16,
    /// Length of the data.
    pub bytes: u32,
    /// The data is a write's and comes when it is asked for, perhaps behind other capsules.
    pub by_request: bool,
}

/// A command for the caller to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// Names it until it is released.
    pub slot: u16,
    /// What to do.
    pub op: Op,
    /// First block.
    pub lba: u64,
    /// Length of the data; 0 without.
    pub bytes: u32,
    /// Length in blocks of a discard's or write-zeroes' range; otherwise 0.
    pub blocks: u32,
    /// A write or write-zeroes that must be durable when it ends (FUA).
    pub is_durable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Free,
    /// Needs a place for its data.
    Waiting,
    /// Its data is arriving.
    Receiving,
    /// To be run.
    Ready,
    /// With the caller.
    Running,
    /// Its response is in the outbox.
    Responding,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    stage: Stage,
    cid: u16,
    op: Op,
    is_durable: bool,
    /// The data is in the capsule.
    in_capsule: bool,
    /// An R2T is in the outbox: data cannot come yet.
    is_asking: bool,
    /// Data of it did not match its digest.
    is_corrupt: bool,
    lba: u64,
    /// Length of the data.
    bytes: u32,
    received: u32,
    /// How far data has been asked for.
    asked: u32,
    /// Length of the range of an operation without data.
    blocks: u32,
    /// Ranges in the list of a discard, and how many were begun.
    ranges: u16,
    range: u16,
    /// The list tells how its ranges are used, and nothing is to be done.
    is_hint: bool,
}

impl Slot {
    const FREE: Slot = Slot {
        stage: Stage::Free,
        cid: 0,
        op: Op::Flush,
        is_durable: false,
        in_capsule: false,
        is_asking: false,
        is_corrupt: false,
        lba: 0,
        bytes: 0,
        received: 0,
        asked: 0,
        blocks: 0,
        ranges: 0,
        range: 0,
        is_hint: false,
    };
}

/// What the next received bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Incoming {
    Header,
    /// Data that nobody wants: of a command that failed already.
    Discard {
        left: u32,
    },
    /// A Connect command's data, to the page.
    Connect {
        at: u32,
    },
    /// A slot's data.
    Data {
        slot: u16,
        left: u32,
    },
    /// The ranges of a discard, to the page.
    Ranges {
        slot: u16,
        left: u32,
    },
    /// The digest of a slot's data; of Connect's.
    Digest {
        slot: Option<u16>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing but ICReq may come.
    New,
    /// Nothing but Connect may come.
    Initialized,
    /// The queue of a controller.
    Connected,
    /// The host has disconnected the queue.
    Disconnected,
    Failed(Fault),
}

/// The controller's end of one connection.
#[derive(Clone, Debug)]
pub struct Target {
    phase: Phase,
    member: Option<Member>,
    queue: u16,
    /// Entries, 0-based, as Connect said.
    queue_size: u16,
    has_flow_control: bool,
    sq_head: u16,
    /// Alignment of data that the host asked for (HPDA), and digests.
    format: Format,
    assembly: Assembly,
    /// Padding before `incoming`.
    pad: u32,
    incoming: Incoming,
    check: Check,
    digest_errors: u32,
    outbox: Outbox,
    loose: u16,
    /// The page is being sent.
    is_page_busy: bool,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    waiting: VecDeque<u16>,
    /// Writes whose data was asked for and has not all come.
    asking: u16,
    ready: VecDeque<u16>,
    connect: Sqe,
    /// The discard whose list is in the page.
    listing: Option<u16>,
    /// A Fence command that waits for its answer.
    fencing: Option<u16>,
    /// Where the host has connected to.
    local: Option<SocketAddr>,
    /// A Disconnect command that waits for those before it.
    disconnecting: Option<u16>,
    page: Box<[u8]>,
}

/// Bytes of an admin command's data at most: two units of MDTS, its least value but one.
const PAGE_BYTES: usize = 2 * IDENTIFY_BYTES;
/// Room in the page for the header that a TermReq repeats.
const TERM_AT: usize = PAGE_BYTES;

impl Target {
    /// A connection that nothing has come from yet. `depth` is that of the subsystem's limits.
    pub fn new(depth: u16) -> Target {
        // A host may have as many commands outstanding as the queue has entries.
        let slots = usize::from(depth) + 1;
        Target {
            phase: Phase::New,
            member: None,
            queue: 0,
            queue_size: 0,
            has_flow_control: true,
            sq_head: 0,
            format: Format::PLAIN,
            assembly: Assembly::new(),
            pad: 0,
            incoming: Incoming::Header,
            check: Check::default(),
            digest_errors: 0,
            // One per slot, the loose ones, ICResp, the answer to a fence, a TermReq.
            outbox: Outbox::new(slots + usize::from(LOOSE_RESPONSES) + 3),
            loose: 0,
            is_page_busy: false,
            slots: vec![Slot::FREE; slots].into_boxed_slice(),
            free: (0..slots as u16).rev().collect(),
            waiting: VecDeque::with_capacity(slots),
            asking: 0,
            ready: VecDeque::with_capacity(slots),
            connect: Sqe([0; 64]),
            listing: None,
            fencing: None,
            local: None,
            disconnecting: None,
            page: vec![0; PAGE_BYTES + TERM_DATA_BYTES].into_boxed_slice(),
        }
    }

    /// Begins anew for another connection; nothing is allocated.
    pub fn reset(&mut self) {
        self.phase = Phase::New;
        self.member = None;
        (self.queue, self.queue_size, self.sq_head) = (0, 0, 0);
        self.format = Format::PLAIN;
        (self.check, self.digest_errors) = (Check::default(), 0);
        self.has_flow_control = true;
        self.assembly = Assembly::new();
        (self.pad, self.incoming) = (0, Incoming::Header);
        self.outbox.clear();
        (self.loose, self.is_page_busy) = (0, false);
        for slot in &mut self.slots {
            slot.stage = Stage::Free;
        }
        self.free.clear();
        self.free.extend((0..self.slots.len() as u16).rev());
        self.waiting.clear();
        self.asking = 0;
        self.ready.clear();
        (self.listing, self.fencing) = (None, None);
        (self.local, self.disconnecting) = (None, None);
    }

    /// The host has connected to this address; discovery lists what can be reached there.
    pub fn set_local(&mut self, local: SocketAddr) {
        self.local = Some(local);
    }

    /// Slots: numbers below this name commands.
    pub fn slots(&self) -> u16 {
        self.slots.len() as u16
    }

    /// Whether Connect has succeeded: before, the peer is nobody.
    pub fn is_connected(&self) -> bool {
        self.phase == Phase::Connected
    }

    /// Whether this is a connected admin queue.
    pub fn is_admin(&self) -> bool {
        self.is_connected() && self.queue == 0
    }

    /// Whether the host has disconnected the queue and was answered: close the connection.
    pub fn is_disconnected(&self) -> bool {
        self.phase == Phase::Disconnected && !self.has_output()
    }

    /// What ended the connection, if a violation did; when the output is sent, close it.
    pub fn fault(&self) -> Option<Fault> {
        match self.phase {
            Phase::Failed(fault) => Some(fault),
            _ => None,
        }
    }

    /// Whether the controller or the queue that this connection belonged to has ended: close it.
    pub fn is_orphan(&self, subsystem: &Subsystem) -> bool {
        self.member.is_some_and(|member| !subsystem.has(member, self.queue))
    }

    /// Whether the host has fenced this connection out: what has not begun ends with
    /// [`StatusCode::STALE_EPOCH`]; close it when what has begun has ended.
    pub fn is_stale(&self, subsystem: &Subsystem) -> bool {
        self.member.is_some_and(|member| subsystem.is_stale(member))
    }

    /// Whether a Fence command waits: to be answered by [`finish_fence`](Self::finish_fence) when
    /// every connection that [is stale](Self::is_stale) or [an orphan](Self::is_orphan) has ended
    /// with all of its I/O, and so have those that were closed before.
    pub fn is_fencing(&self) -> bool {
        self.fencing.is_some()
    }

    /// The connection has ended: the queue leaves its controller, or the controller ends.
    pub fn leave(&mut self, subsystem: &mut Subsystem) {
        if let Some(member) = self.member.take() {
            subsystem.leave(member, self.queue);
        }
    }

    /// Whether data that was asked for, or the rest of a PDU, its header included, is outstanding:
    /// a host that lets it wait forever holds memory.
    pub fn is_owed_data(&self) -> bool {
        let is_inside = self.incoming != Incoming::Header || self.assembly.is_partial();
        self.asking > 0 || is_inside && self.wants() != Want::Nothing
    }

    /// The next command that needs a place for its data.
    #[inline]
    pub fn waiting(&self) -> Option<Waiting> {
        let next = if self.must_overtake() { self.waiting.back() } else { self.waiting.front() };
        let slot = *next?;
        let Slot { op, bytes, in_capsule, .. } = self.slots[usize::from(slot)];
        Some(Waiting { slot, bytes, by_request: op.takes_data() && !in_capsule })
    }

    /// Whether the last command to come, whose capsule holds up the stream, goes first: data that
    /// was asked for comes behind it, and the first in line may wait for that data's memory.
    /// Nothing is asked for meanwhile but in line, so the first in line has its turn.
    fn must_overtake(&self) -> bool {
        self.asking > 0 && self.is_held()
    }

    /// Whether the stream stands at the data of a capsule that has no place yet.
    fn is_held(&self) -> bool {
        let Incoming::Data { slot, .. } = self.incoming else { return false };
        self.slots[usize::from(slot)].stage == Stage::Waiting
    }

    /// The command that [`waiting`](Self::waiting) named has a place for its data.
    pub fn grant(&mut self, subsystem: &Subsystem) {
        let overtakes = self.must_overtake();
        let next = if overtakes { self.waiting.pop_back() } else { self.waiting.pop_front() };
        let Some(slot) = next else { return };
        let state = &mut self.slots[usize::from(slot)];
        match state.op {
            Op::Write | Op::Compare => {
                state.stage = Stage::Receiving;
                if !state.in_capsule {
                    self.asking += 1;
                    self.ask(slot, subsystem.limits.r2t_bytes);
                }
            }
            Op::Read | Op::Flush | Op::Discard | Op::WriteZeroes => {
                state.stage = Stage::Ready;
                self.ready.push_back(slot);
            }
        }
    }

    /// Takes the next command to run.
    #[inline]
    pub fn next_command(&mut self) -> Option<Command> {
        let slot = self.ready.pop_front()?;
        let state = &mut self.slots[usize::from(slot)];
        state.stage = Stage::Running;
        let Slot { op, lba, bytes, blocks, is_durable, .. } = *state;
        Some(Command { slot, op, lba, bytes, blocks, is_durable })
    }

    /// A command that [`next_command`](Self::next_command) returned has ended.
    pub fn complete(&mut self, slot: u16, status: StatusCode) {
        let state = self.slots[usize::from(slot)];
        assert!(state.stage == Stage::Running, "slot {slot} was not running");
        self.slots[usize::from(slot)].stage = Stage::Responding;
        if self.fault().is_some() {
            return;
        }
        if state.op == Op::Discard {
            if status.is_success() {
                self.next_range(slot);
            } else {
                self.end_list(slot, status);
            }
            return;
        }
        let response = Header::response(self.cqe(state.cid, status, 0), self.format);
        if state.op != Op::Read || !status.is_success() {
            self.outbox.push(Entry::new(&response, Payload::None, Some(slot)));
            return;
        }
        let transfer = Transfer { cid: state.cid, tag: 0, offset: 0, len: state.bytes };
        let payload = Payload::Place { offset: 0, len: state.bytes };
        // The response capsule carries the queue's head pointer; without flow control it says
        // nothing that the data PDU cannot say (TCP 3.4.2).
        let flags = if self.has_flow_control { pdu::LAST } else { pdu::LAST | pdu::SUCCESS };
        let header = Header::data(Kind::ControllerData, flags, transfer, self.format);
        let entry = Entry::new(&header, payload, Some(slot));
        let entry = if self.has_flow_control { entry.with_trailer(&response) } else { entry };
        self.outbox.push(entry);
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

    /// `bytes` of the pieces have been sent; `release` is told the slots that ended with it,
    /// whose data the engine refers to no more.
    pub fn sent(&mut self, mut bytes: usize, mut release: impl FnMut(u16)) {
        while let Some(entry) = self.outbox.advance(&mut bytes) {
            self.left(&entry, &mut release);
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
    pub fn sent_copy(&mut self, mut bytes: &[u8], mut release: impl FnMut(u16)) {
        while let Some(entry) = self.outbox.advance_copied(&mut bytes) {
            self.left(&entry, &mut release);
        }
    }

    /// Data that did not match its digest since this was asked last; each time a command failed.
    pub fn take_digest_errors(&mut self) -> u32 {
        std::mem::take(&mut self.digest_errors)
    }

    fn left(&mut self, entry: &Entry, release: &mut impl FnMut(u16)) {
        let Some(slot) = entry.slot else {
            self.loose -= 1;
            self.is_page_busy &= !entry.is_from_page();
            return;
        };
        let state = &mut self.slots[usize::from(slot)];
        if state.stage == Stage::Responding {
            state.stage = Stage::Free;
            self.free.push(slot);
            release(slot);
            self.try_disconnect();
        } else {
            state.is_asking = false;
        }
    }

    /// Where the next received bytes belong.
    #[inline]
    pub fn wants(&self) -> Want {
        if matches!(self.phase, Phase::Failed(_) | Phase::Disconnected) {
            return Want::Nothing;
        }
        match self.incoming {
            Incoming::Data { .. } if self.is_held() => Want::Nothing,
            Incoming::Ranges { .. } if self.is_list_held() => Want::Nothing,
            Incoming::Data { slot, left } if self.pad == 0 => {
                let offset = self.slots[usize::from(slot)].received;
                Want::Data { slot, offset, len: left }
            }
            Incoming::Header if self.is_page_busy || self.loose >= LOOSE_RESPONSES => Want::Nothing,
            _ => Want::Engine,
        }
    }

    /// Takes bytes from the front of what was received while they belong to the engine, and
    /// returns how many. A fault is final: a TermReq is to be sent, then the connection closed.
    pub fn receive(
        &mut self,
        now_ns: u64,
        bytes: &[u8],
        subsystem: &mut Subsystem,
    ) -> Result<usize, Fault> {
        let mut at = 0;
        while at < bytes.len() && self.wants() == Want::Engine {
            let step = self.step(now_ns, &bytes[at..], subsystem);
            at += step.inspect_err(|fault| self.fail(*fault))?;
        }
        match self.phase {
            Phase::Failed(fault) => Err(fault),
            _ => Ok(at),
        }
    }

    fn dispatch(
        &mut self,
        now_ns: u64,
        header: &Header,
        subsystem: &mut Subsystem,
    ) -> Result<(), Fault> {
        let kind = header.common.kind;
        if !kind.is_from_host() {
            return Err(Fault::PduType);
        }
        if (kind == Kind::IcReq) != (self.phase == Phase::New) && kind != Kind::HostTerm {
            return Err(Fault::PduSequence);
        }
        match (kind, &header.body) {
            (Kind::IcReq, Body::Init(init)) => self.initialize(init, subsystem),
            (Kind::Command, Body::Command(sqe)) => {
                self.command(now_ns, &header.common, sqe, subsystem)
            }
            (Kind::HostData, Body::Transfer(transfer)) => {
                self.data(&header.common, transfer, subsystem)
            }
            (Kind::HostTerm, _) => Err(Fault::Terminated),
            _ => Err(Fault::PduType),
        }
    }

    fn initialize(&mut self, init: &Init, subsystem: &Subsystem) -> Result<(), Fault> {
        if init.version != 0 {
            return Err(Fault::Version);
        }
        if init.alignment > 31 {
            return Err(Fault::Parameter);
        }
        // The host has what digests it asked for (TCP 3.6.2.3).
        let digests = Digests::from_bits(init.digests);
        if !digests.contain(subsystem.required_digests) {
            return Err(Fault::DigestRequired);
        }
        self.format = Format { alignment: init.alignment, digests };
        self.assembly.digests = digests;
        self.phase = Phase::Initialized;
        let limit = subsystem.limits.h2c_bytes;
        let answer = Init { version: 0, alignment: 0, digests: digests.bits(), limit };
        self.push_loose(Entry::new(&Header::init(Kind::IcResp, answer), Payload::None, None));
        Ok(())
    }

    fn command(
        &mut self,
        now_ns: u64,
        common: &Common,
        sqe: &Sqe,
        subsystem: &mut Subsystem,
    ) -> Result<(), Fault> {
        let in_capsule = common.data_bytes();
        if in_capsule > IN_CAPSULE_BYTES {
            return Err(Fault::DataLimit);
        }
        if self.has_flow_control && self.queue_size > 0 {
            self.sq_head = if self.sq_head < self.queue_size { self.sq_head + 1 } else { 0 };
        }
        self.pad = common.pad_bytes();
        let answer = match self.phase {
            Phase::Initialized => self.begin_connect(sqe, in_capsule),
            _ if self.queue == 0 => {
                self.discard(in_capsule);
                self.admin(now_ns, sqe, subsystem)
            }
            _ if self.disconnecting.is_some() => return Err(Fault::PduSequence),
            _ if sqe.opcode() == opcode::FABRICS => {
                self.discard(in_capsule);
                self.io_fabrics(sqe).map(|status| (status.do_not_retry(), 0))
            }
            _ => self.io(sqe, in_capsule, subsystem)?.map(|status| (status, 0)),
        };
        if let Some((status, result)) = answer {
            self.respond(sqe.cid(), status, result);
        }
        Ok(())
    }

    /// On an I/O queue: Disconnect; a second Connect is out of turn, anything else is of the admin
    /// queue. `None`: answered later.
    fn io_fabrics(&mut self, sqe: &Sqe) -> Option<StatusCode> {
        match sqe.fctype() {
            fctype::CONNECT => Some(StatusCode::COMMAND_SEQUENCE),
            // Record format 0.
            fctype::DISCONNECT if sqe.cdw(10) as u16 != 0 => Some(StatusCode::CONNECT_FORMAT),
            fctype::DISCONNECT => {
                self.disconnecting = Some(sqe.cid());
                self.try_disconnect();
                None
            }
            _ => Some(StatusCode::INVALID_OPCODE),
        }
    }

    /// Answers a Disconnect once the commands before it were answered (Fabrics 3.2).
    fn try_disconnect(&mut self) {
        if self.free.len() == self.slots.len()
            && let Some(cid) = self.disconnecting.take()
        {
            self.respond(cid, StatusCode::SUCCESS, 0);
            self.phase = Phase::Disconnected;
        }
    }

    /// Passes over data in the capsule.
    fn discard(&mut self, bytes: u32) {
        if bytes > 0 {
            let digest = if self.has_data_digest() { DIGEST_BYTES as u32 } else { 0 };
            self.incoming = Incoming::Discard { left: bytes + digest };
        }
    }

    /// Connect, before its data has come; anything else is out of turn.
    fn begin_connect(&mut self, sqe: &Sqe, in_capsule: u32) -> Option<(StatusCode, u64)> {
        let is_connect = sqe.opcode() == opcode::FABRICS && sqe.fctype() == fctype::CONNECT;
        let is_whole = in_capsule as usize == CONNECT_BYTES
            && sqe.sgl() == Sgl::InCapsule { offset: 0, len: in_capsule };
        if is_connect && is_whole {
            self.connect = *sqe;
            self.incoming = Incoming::Connect { at: 0 };
            return None;
        }
        self.discard(in_capsule);
        let status = if is_connect { StatusCode::SGL_LENGTH } else { StatusCode::COMMAND_SEQUENCE };
        Some((status.do_not_retry(), 0))
    }

    fn cqe(&self, cid: u16, status: StatusCode, result: u64) -> Cqe {
        let sq_head = if self.has_flow_control { self.sq_head } else { 0xffff };
        Cqe { result, sq_head, sq_id: self.queue, cid, status }
    }

    /// A response that belongs to no slot.
    fn respond(&mut self, cid: u16, status: StatusCode, result: u64) {
        let header = Header::response(self.cqe(cid, status, result), self.format);
        self.push_loose(Entry::new(&header, Payload::None, None));
    }

    fn push_loose(&mut self, entry: Entry) {
        self.loose += 1;
        self.outbox.push(entry);
    }

    fn fail(&mut self, fault: Fault) {
        self.phase = Phase::Failed(fault);
        let kept = self.outbox.cancel_unsent();
        self.loose = kept;
        if let Some((status, field)) = fault.term() {
            let offending = self.assembly.so_far();
            let len = offending.len().min(TERM_DATA_BYTES);
            self.page[TERM_AT..TERM_AT + len].copy_from_slice(&offending[..len]);
            let header = Header::term(Kind::ControllerTerm, status, field, len as u32);
            self.push_loose(Entry::from_page(&header, &self.page, TERM_AT..TERM_AT + len, None));
        }
    }
}
