//! Fabrics and admin commands, which the engine answers itself (Fabrics 3; Base 5).

use super::subsystem::{Fenced, MAX_IO_QUEUES, Member};
use super::{Phase, Subsystem, Target};
use crate::nvmf::capsule::{Sgl, Sqe, StatusCode, admin as opcode, feature};
use crate::nvmf::fabrics::{
    ANY_CONTROLLER, BadParameter, CONNECT_BYTES, Connect, ConnectData, fctype, property,
    property_of, property_value,
};
use crate::nvmf::fence::Fence;
use crate::nvmf::identify::{self, ASYNC_EVENTS, IDENTIFY_BYTES, Said, VERSION, cns};
use crate::nvmf::outbox::Entry;
use crate::nvmf::pdu::{self, Header, Kind, Transfer};

/// How a command ends and its result; the error of a command that fails without a result.
type Answer = Result<u64, StatusCode>;

impl Target {
    /// Connect with all of its data, in the page.
    pub(super) fn finish_connect(&mut self, now_ns: u64, subsystem: &mut Subsystem) {
        let sqe = self.connect;
        let (status, result) = match self.connect_queue(now_ns, subsystem) {
            Ok(id) => (StatusCode::SUCCESS, u64::from(id)),
            Err((status, bad)) => (status.do_not_retry(), bad.map_or(0, BadParameter::result)),
        };
        self.respond(sqe.cid(), status, result);
    }

    /// Checks of Connect in the order of Fabrics 3.3; the controller's identifier.
    fn connect_queue(
        &mut self,
        now_ns: u64,
        subsystem: &mut Subsystem,
    ) -> Result<u16, (StatusCode, Option<BadParameter>)> {
        let bad = |bad| (StatusCode::CONNECT_PARAMETER, Some(bad));
        let connect = Connect::parse(&self.connect);
        if connect.format != 0 {
            return Err((StatusCode::CONNECT_FORMAT, None));
        }
        let mut bytes = [0; CONNECT_BYTES];
        bytes.copy_from_slice(&self.page[..CONNECT_BYTES]);
        let data = ConnectData::parse(&bytes).map_err(bad)?;
        if data.subsystem != subsystem.nqn {
            return Err(bad(BadParameter::SUBSYSTEM));
        }
        let is_admin = connect.queue == 0;
        // MQES bounds I/O queues; an admin queue of any size is served one command at a time.
        let max_size = subsystem.capabilities().max_queue_size();
        if connect.queue_size == 0 || !is_admin && connect.queue_size > max_size {
            return Err(bad(BadParameter::QUEUE_SIZE));
        }
        let member = if is_admin {
            admit(now_ns, &connect, &data, subsystem)?
        } else {
            join(&connect, &data, subsystem)?
        };
        self.member = Some(member);
        self.queue = connect.queue;
        self.queue_size = connect.queue_size;
        self.has_flow_control = !connect.no_flow_control;
        self.sq_head = if self.has_flow_control { 1 % (connect.queue_size + 1) } else { 0 };
        self.phase = Phase::Connected;
        Ok(member.id())
    }

    /// A command on the admin queue; `None`: the response is queued with its data, or held.
    pub(super) fn admin(
        &mut self,
        now_ns: u64,
        sqe: &Sqe,
        subsystem: &mut Subsystem,
    ) -> Option<(StatusCode, u64)> {
        let status = |status: StatusCode| Some((status.do_not_retry(), 0));
        let Some(member) = self.member else { return status(StatusCode::COMMAND_SEQUENCE) };
        let Some(controller) = subsystem.controller(member) else {
            return status(StatusCode::COMMAND_SEQUENCE);
        };
        // Any command shows that the host lives.
        controller.heard_ns = now_ns;
        if controller.is_stale() {
            subsystem.stale_refusals += 1;
            return status(StatusCode::STALE_EPOCH);
        }
        if !sqe.has_plain_flags() {
            return status(StatusCode::INVALID_FIELD);
        }
        let is_ready = controller.is_ready();
        let answer = match sqe.opcode() {
            opcode::FABRICS => fabrics(sqe, member, subsystem),
            _ if !is_ready => Err(StatusCode::COMMAND_SEQUENCE),
            opcode::IDENTIFY => return self.identify(sqe, member, subsystem),
            opcode::GET_LOG_PAGE => return self.log_page(sqe),
            opcode::SET_FEATURES => set_feature(sqe, member, subsystem),
            opcode::GET_FEATURES => get_feature(sqe, member, subsystem),
            opcode::KEEP_ALIVE => Ok(0),
            // Bit 0: the command was not aborted. It will end by itself (Base 5.1).
            opcode::ABORT => Ok(1),
            opcode::ASYNC_EVENT if controller.async_events < u32::from(ASYNC_EVENTS) => {
                controller.async_events += 1;
                return None;
            }
            opcode::ASYNC_EVENT => Err(StatusCode::ASYNC_EVENT_LIMIT),
            opcode::FENCE => match self.fence(sqe, member, subsystem) {
                Ok(Fenced::Now { epoch }) => Ok(epoch),
                Ok(Fenced::Later { .. }) => return None,
                Err(error) => Err(error),
            },
            _ => Err(StatusCode::INVALID_OPCODE),
        };
        match answer {
            Ok(result) => Some((StatusCode::SUCCESS, result)),
            Err(error) => status(error),
        }
    }

    fn fence(
        &mut self,
        sqe: &Sqe,
        member: Member,
        subsystem: &mut Subsystem,
    ) -> Result<Fenced, StatusCode> {
        let fence = Fence::parse(sqe).ok_or(StatusCode::INVALID_FIELD)?;
        let outcome = subsystem.fence(member, &fence);
        match outcome {
            Ok(Fenced::Later { .. }) => self.fencing = Some(sqe.cid()),
            Ok(Fenced::Now { .. }) => {}
            Err(error) => subsystem.stale_refusals += u64::from(error == StatusCode::STALE_EPOCH),
        }
        outcome
    }

    /// Answers the Fence command that waits: what was before it has ended. When a later one has
    /// begun meanwhile, it is refused.
    pub fn finish_fence(&mut self, subsystem: &mut Subsystem) {
        let (Some(cid), Some(member)) = (self.fencing.take(), self.member) else { return };
        match subsystem.finish_fence(member) {
            Ok(epoch) => self.respond(cid, StatusCode::SUCCESS, epoch),
            Err(error) => {
                subsystem.stale_refusals += u64::from(error == StatusCode::STALE_EPOCH);
                self.respond(cid, error.do_not_retry(), 0);
            }
        }
    }

    fn identify(
        &mut self,
        sqe: &Sqe,
        member: Member,
        subsystem: &Subsystem,
    ) -> Option<(StatusCode, u64)> {
        let which = sqe.cdw(10) as u8;
        let namespace = &subsystem.namespace;
        let is_namespaced = matches!(which, cns::NAMESPACE | cns::DESCRIPTORS);
        if is_namespaced && sqe.nsid() != 1 {
            return Some((StatusCode::INVALID_NAMESPACE.do_not_retry(), 0));
        }
        let page = &mut self.page[..IDENTIFY_BYTES];
        match which {
            cns::NAMESPACE => namespace.emit(page),
            cns::CONTROLLER => identify::controller(
                page,
                &Said {
                    id: member.id(),
                    nqn: &subsystem.nqn,
                    serial: &subsystem.serial,
                    max_transfer: subsystem.limits.max_transfer(),
                    max_commands: subsystem.limits.depth,
                    read_only: namespace.read_only,
                },
            ),
            cns::NAMESPACE_LIST => identify::namespace_list(page, sqe.nsid()),
            cns::DESCRIPTORS => namespace.identity.emit(page),
            // Command set 0, NVM: no limits of its own (NVM 4.1.5.3).
            cns::CONTROLLER_NVM if sqe.cdw(11) >> 24 == 0 => page.fill(0),
            _ => return Some((StatusCode::INVALID_FIELD.do_not_retry(), 0)),
        }
        self.send_page(sqe, IDENTIFY_BYTES as u32)
    }

    fn log_page(&mut self, sqe: &Sqe) -> Option<(StatusCode, u64)> {
        let dwords = u64::from(sqe.cdw(10) >> 16) | u64::from(sqe.cdw(11) & 0xffff) << 16;
        let bytes = (dwords + 1) * 4;
        let offset = u64::from(sqe.cdw(12)) | u64::from(sqe.cdw(13)) << 32;
        if !identify::log_page(&mut self.page, sqe.cdw(10) as u8) {
            return Some((StatusCode::INVALID_LOG_PAGE.do_not_retry(), 0));
        }
        let len = IDENTIFY_BYTES as u64;
        if bytes > len || offset > len - bytes || !offset.is_multiple_of(4) {
            return Some((StatusCode::INVALID_FIELD.do_not_retry(), 0));
        }
        let (offset, bytes) = (offset as usize, bytes as usize);
        self.page.copy_within(offset..offset + bytes, 0);
        self.send_page(sqe, bytes as u32)
    }

    /// Queues the page's first `bytes` and the response behind them.
    fn send_page(&mut self, sqe: &Sqe, bytes: u32) -> Option<(StatusCode, u64)> {
        if sqe.sgl() != (Sgl::Transport { len: bytes }) {
            return Some((StatusCode::SGL_LENGTH.do_not_retry(), 0));
        }
        let transfer = Transfer { cid: sqe.cid(), tag: 0, offset: 0, len: bytes };
        let header = Header::data(Kind::ControllerData, pdu::LAST, transfer, self.format);
        let response = Header::response(self.cqe(sqe.cid(), StatusCode::SUCCESS, 0), self.format);
        let entry = Entry::from_page(&header, &self.page, 0..bytes as usize, None);
        self.is_page_busy = true;
        self.push_loose(entry.with_trailer(&response));
        None
    }
}

/// An admin queue: a new controller.
fn admit(
    now_ns: u64,
    connect: &Connect,
    data: &ConnectData,
    subsystem: &mut Subsystem,
) -> Result<Member, (StatusCode, Option<BadParameter>)> {
    if data.controller != ANY_CONTROLLER {
        return Err((StatusCode::CONNECT_PARAMETER, Some(BadParameter::CONTROLLER)));
    }
    subsystem
        .admit(now_ns, data.host_id, data.host, connect.keep_alive_ms)
        .ok_or((StatusCode::CONNECT_BUSY, None))
}

/// An I/O queue of the controller that the data names.
fn join(
    connect: &Connect,
    data: &ConnectData,
    subsystem: &mut Subsystem,
) -> Result<Member, (StatusCode, Option<BadParameter>)> {
    let bad = |bad| (StatusCode::CONNECT_PARAMETER, Some(bad));
    let member = subsystem.member(data.controller).ok_or(bad(BadParameter::CONTROLLER))?;
    let controller = subsystem.controller(member).ok_or(bad(BadParameter::CONTROLLER))?;
    if controller.host_id != data.host_id || controller.host != data.host {
        return Err((StatusCode::CONNECT_HOST, None));
    }
    if controller.is_stale() {
        subsystem.stale_refusals += 1;
        return Err((StatusCode::STALE_EPOCH, None));
    }
    if !controller.is_ready() {
        return Err((StatusCode::COMMAND_SEQUENCE, None));
    }
    if connect.queue > controller.granted {
        return Err(bad(BadParameter::QUEUE));
    }
    if controller.queues & 1 << connect.queue != 0 {
        return Err((StatusCode::COMMAND_SEQUENCE, Some(BadParameter::QUEUE)));
    }
    controller.queues |= 1 << connect.queue;
    Ok(member)
}

fn fabrics(sqe: &Sqe, member: Member, subsystem: &mut Subsystem) -> Answer {
    let capabilities = subsystem.capabilities();
    let controller = subsystem.controller(member).ok_or(StatusCode::COMMAND_SEQUENCE)?;
    let (offset, is_wide) = property_of(sqe);
    match sqe.fctype() {
        fctype::PROPERTY_GET => match (offset, is_wide) {
            (property::CAPABILITIES, true) => Ok(capabilities.0),
            (property::VERSION, false) => Ok(u64::from(VERSION)),
            (property::CONFIGURATION, false) => Ok(u64::from(controller.configuration)),
            (property::STATUS, false) => Ok(u64::from(controller.status)),
            _ => Err(StatusCode::INVALID_FIELD),
        },
        fctype::PROPERTY_SET if (offset, is_wide) == (property::CONFIGURATION, false) => {
            controller.configure(property_value(sqe) as u32);
            Ok(0)
        }
        fctype::PROPERTY_SET => Err(StatusCode::INVALID_FIELD),
        fctype::CONNECT => Err(StatusCode::COMMAND_SEQUENCE),
        _ => Err(StatusCode::INVALID_OPCODE),
    }
}

fn set_feature(sqe: &Sqe, member: Member, subsystem: &mut Subsystem) -> Answer {
    let controller = subsystem.controller(member).ok_or(StatusCode::COMMAND_SEQUENCE)?;
    let value = sqe.cdw(11);
    match sqe.cdw(10) as u8 {
        feature::QUEUES => {
            // 0-based counts of submission (low half) and completion queues; ffffh is not one.
            let asked = (value as u16).min((value >> 16) as u16);
            if value as u16 == u16::MAX || (value >> 16) as u16 == u16::MAX {
                return Err(StatusCode::INVALID_FIELD);
            }
            // Once granted it stays: the host has its queues (Base 5.27.1.5).
            if controller.queues != 0 {
                return Err(StatusCode::COMMAND_SEQUENCE);
            }
            controller.granted = asked.saturating_add(1).min(MAX_IO_QUEUES);
            Ok(queues(controller.granted))
        }
        feature::KEEP_ALIVE => {
            controller.keep_alive_ms = value;
            Ok(0)
        }
        // No event is ever sent: any choice of events is kept.
        feature::ASYNC_EVENTS => Ok(0),
        feature::WRITE_CACHE if value & 1 == 1 => Ok(0),
        feature::WRITE_CACHE => Err(StatusCode::FEATURE_FIXED),
        _ => Err(StatusCode::INVALID_FIELD),
    }
}

fn get_feature(sqe: &Sqe, member: Member, subsystem: &mut Subsystem) -> Answer {
    let has_cache = !subsystem.namespace.read_only;
    let controller = subsystem.controller(member).ok_or(StatusCode::COMMAND_SEQUENCE)?;
    match sqe.cdw(10) as u8 {
        feature::QUEUES => Ok(queues(controller.granted.max(1))),
        feature::KEEP_ALIVE => Ok(u64::from(controller.keep_alive_ms)),
        feature::ASYNC_EVENTS => Ok(0),
        feature::WRITE_CACHE => Ok(u64::from(has_cache)),
        _ => Err(StatusCode::INVALID_FIELD),
    }
}

/// Both counts of a Number of Queues answer, 0-based.
fn queues(granted: u16) -> u64 {
    let count = u64::from(granted - 1);
    count | count << 16
}
