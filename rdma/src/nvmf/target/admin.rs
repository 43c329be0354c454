//! Fabrics and admin commands, which the engine answers itself (Fabrics 3; Base 5).

use super::subsystem::{Fenced, Member};
use super::{Answer, PAGE_BYTES, Phase, Subsystem, Target, features};
use crate::nvmf::Nqn;
use crate::nvmf::capsule::{ALL_NAMESPACES, Sgl, Sqe, StatusCode, admin as opcode, feature};
use crate::nvmf::discovery::{self, DISCOVERY_NQN};
use crate::nvmf::fabrics::{
    ANY_CONTROLLER, BadParameter, CONNECT_BYTES, Connect, ConnectData, fctype, property,
    property_of, property_value,
};
use crate::nvmf::fence::Fence;
use crate::nvmf::identify::{self, ASYNC_EVENTS, IDENTIFY_BYTES, Said, VERSION, cns, log};
use crate::nvmf::outbox::Entry;
use crate::nvmf::pdu::{self, Header, Kind, Transfer};
use std::net::SocketAddr;

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
        let is_discovery = &*data.subsystem == DISCOVERY_NQN;
        if data.subsystem != subsystem.nqn && !is_discovery {
            return Err(bad(BadParameter::SUBSYSTEM));
        }
        let is_admin = connect.queue == 0;
        // MQES bounds I/O queues; an admin queue of any size is served one command at a time.
        let max_size = subsystem.capabilities().max_queue_size();
        if connect.queue_size == 0 || !is_admin && connect.queue_size > max_size {
            return Err(bad(BadParameter::QUEUE_SIZE));
        }
        let member = if is_admin {
            admit(now_ns, &connect, &data, is_discovery, subsystem)?
        } else {
            join(&connect, &data, subsystem)?
        };
        self.member = Some(member);
        self.queue = connect.queue;
        self.queue_size = connect.queue_size;
        self.has_flow_control = !connect.no_flow_control;
        // Never 0: the queue has a second entry at least.
        self.sq_head = u16::from(self.has_flow_control);
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
            opcode::GET_LOG_PAGE => return self.log_page(sqe, member, subsystem),
            opcode::SET_FEATURES => features::set(sqe, member, subsystem),
            opcode::GET_FEATURES if sqe.cdw(10) as u8 == feature::HOST_ID => {
                return self.host_id(sqe, member, subsystem);
            }
            opcode::GET_FEATURES => features::get(sqe, member, subsystem),
            opcode::KEEP_ALIVE => Ok(0),
            // Bit 0: the command was not aborted. It will end by itself (Base 5.1).
            opcode::ABORT => Ok(1),
            opcode::ASYNC_EVENT if controller.async_events < u32::from(ASYNC_EVENTS) => {
                controller.async_events += 1;
                return None;
            }
            opcode::ASYNC_EVENT => Err(StatusCode::ASYNC_EVENT_LIMIT),
            opcode::FENCE if !controller.is_discovery => match self.fence(sqe, member, subsystem) {
                Ok(Fenced::Now { epoch }) => Ok(epoch),
                Ok(Fenced::Later { .. }) => return None,
                Ok(Fenced::Moved { current }) => {
                    return Some((StatusCode::EPOCH_MOVED.do_not_retry(), current));
                }
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
            Ok(Fenced::Now { .. } | Fenced::Moved { .. }) => {}
            Err(error) => subsystem.stale_refusals += u64::from(error == StatusCode::STALE_EPOCH),
        }
        outcome
    }

    /// Answers the Fence command that waits: what was before it has ended. When a later one has
    /// begun meanwhile, it is refused.
    pub fn finish_fence(&mut self, subsystem: &mut Subsystem) {
        let (Some(cid), Some(member)) = (self.fencing.take(), self.member) else { return };
        if self.fault().is_some() {
            return;
        }
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
        subsystem: &mut Subsystem,
    ) -> Option<(StatusCode, u64)> {
        let fail = |status: StatusCode| Some((status.do_not_retry(), 0));
        let is_discovery = subsystem.controller(member).is_some_and(|it| it.is_discovery);
        let (which, set) = (sqe.cdw(10) as u8, sqe.cdw(11) >> 24);
        let namespace = &subsystem.namespace;
        let is_named = matches!(which, cns::NAMESPACE | cns::DESCRIPTORS);
        let is_list = which == cns::NAMESPACE_LIST;
        // Command set 0 is NVM, the only one.
        let is_other_set = which == cns::CONTROLLER_NVM && set != 0;
        if is_other_set || is_discovery && which != cns::CONTROLLER {
            return fail(StatusCode::INVALID_FIELD);
        }
        // A list is of those behind an identifier, which the last two values have nothing behind.
        if is_named && sqe.nsid() != 1 || is_list && sqe.nsid() >= ALL_NAMESPACES - 1 {
            return fail(StatusCode::INVALID_NAMESPACE);
        }
        let discovery = Nqn::from(DISCOVERY_NQN).unwrap_or_default();
        let page = &mut self.page[..IDENTIFY_BYTES];
        match which {
            cns::NAMESPACE => namespace.emit(page),
            cns::CONTROLLER => identify::controller(
                page,
                &Said {
                    id: member.id(),
                    nqn: if is_discovery { &discovery } else { &subsystem.nqn },
                    serial: &subsystem.serial,
                    max_transfer: match is_discovery {
                        true => (PAGE_BYTES / IDENTIFY_BYTES).trailing_zeros() as u8,
                        false => subsystem.limits.max_transfer(),
                    },
                    max_commands: subsystem.limits.depth,
                    read_only: namespace.read_only,
                    is_discovery,
                    boot: &subsystem.boot,
                },
            ),
            cns::NAMESPACE_LIST => identify::namespace_list(page, sqe.nsid()),
            cns::DESCRIPTORS => namespace.identity.emit(page),
            // No limits of its own (NVM 4.1.5.3).
            cns::CONTROLLER_NVM => page.fill(0),
            _ => return fail(StatusCode::INVALID_FIELD),
        }
        self.send_page(sqe, IDENTIFY_BYTES as u32)
    }

    fn log_page(
        &mut self,
        sqe: &Sqe,
        member: Member,
        subsystem: &mut Subsystem,
    ) -> Option<(StatusCode, u64)> {
        let fail = |status: StatusCode| Some((status.do_not_retry(), 0));
        let is_discovery = subsystem.controller(member).is_some_and(|it| it.is_discovery);
        let dwords = u64::from(sqe.cdw(10) >> 16) | u64::from(sqe.cdw(11) & 0xffff) << 16;
        let bytes = (dwords + 1) * 4;
        let offset = u64::from(sqe.cdw(12)) | u64::from(sqe.cdw(13)) << 32;
        let id = sqe.cdw(10) as u8;
        let read_only = subsystem.namespace.read_only;
        let page = &mut self.page[..PAGE_BYTES];
        let log_bytes = match (is_discovery, id) {
            (true, log::DISCOVERY) => u64::MAX,
            (true, _) => return fail(StatusCode::INVALID_LOG_PAGE),
            (false, id) => match identify::log_page(page, id, read_only) {
                Some(bytes) => bytes,
                None => return fail(StatusCode::INVALID_LOG_PAGE),
            },
        };
        if bytes > PAGE_BYTES as u64 || offset >= log_bytes || !offset.is_multiple_of(4) {
            return fail(StatusCode::INVALID_FIELD);
        }
        let len = bytes as usize;
        if is_discovery {
            let listed = listed(subsystem, self.local);
            if !discovery::log(subsystem.generation, listed, offset, &mut page[..len]) {
                return fail(StatusCode::INVALID_FIELD);
            }
        } else {
            // What is asked for behind the log's end is zeros.
            page.copy_within(offset as usize.., 0);
            page[PAGE_BYTES - offset as usize..].fill(0);
        }
        self.send_page(sqe, bytes as u32)
    }

    /// Get Features, Host Identifier: as Connect said, 16 bytes (Base 5.27.1.25).
    fn host_id(
        &mut self,
        sqe: &Sqe,
        member: Member,
        subsystem: &mut Subsystem,
    ) -> Option<(StatusCode, u64)> {
        let Some(controller) = subsystem.controller(member) else {
            return Some((StatusCode::COMMAND_SEQUENCE.do_not_retry(), 0));
        };
        let is_current = sqe.cdw(10) >> 8 & 7 == 0;
        let is_extended = sqe.cdw(11) & 1 == 1;
        if !is_current || !is_extended || controller.is_discovery {
            return Some((StatusCode::INVALID_FIELD.do_not_retry(), 0));
        }
        self.page[..16].copy_from_slice(&controller.host_id);
        self.send_page(sqe, 16)
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
    is_discovery: bool,
    subsystem: &mut Subsystem,
) -> Result<Member, (StatusCode, Option<BadParameter>)> {
    if data.controller != ANY_CONTROLLER {
        return Err((StatusCode::CONNECT_PARAMETER, Some(BadParameter::CONTROLLER)));
    }
    subsystem
        .admit(now_ns, data.host_id, data.host, connect.keep_alive_ms, is_discovery)
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
    // Discovery has no I/O queues.
    if controller.is_discovery || &*data.subsystem == DISCOVERY_NQN {
        return Err(bad(BadParameter::CONTROLLER));
    }
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
        // An admin queue ends with its connection (Fabrics 3.2).
        fctype::DISCONNECT => Err(StatusCode::INVALID_QUEUE_TYPE),
        _ => Err(StatusCode::INVALID_OPCODE),
    }
}

/// The subsystems that discovery lists to a host that has connected to `local`: this one first.
fn listed(
    subsystem: &Subsystem,
    local: Option<SocketAddr>,
) -> impl Iterator<Item = discovery::Entry> + Clone + '_ {
    let here = local.map(|address| discovery::Entry { subsystem: subsystem.nqn, address });
    here.into_iter()
        .chain(subsystem.others.iter().copied())
        .filter_map(move |entry| entry.seen_from(local?))
}
