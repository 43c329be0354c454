//! What the connections of one target share: the subsystem, its namespace, and the table of
//! controllers. A controller lives as long as the connection of its admin queue, and no longer
//! than its keep-alive timeout without a sign of the host.

use crate::nvmf::StatusCode;
use crate::nvmf::capsule::feature;
use crate::nvmf::discovery;
use crate::nvmf::fabrics::{self, Capabilities, Nqn, configuration};
use crate::nvmf::fence::{Ask, Boot, Epochs, Fence, Refused, User};
use crate::nvmf::identify::{KEEP_ALIVE_UNIT_100MS, Namespace};
use crate::nvmf::pdu::Digests;

/// The most I/O queues of one controller.
pub const MAX_IO_QUEUES: u16 = 16;
/// What CAP.TO says: controllers are ready at once, 500 ms is the smallest that hosts expect.
const READY_TIMEOUT_500MS: u8 = 1;

/// How large a target's parts are. Each is the most that a peer gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Controllers at once.
    pub controllers: u16,
    /// I/O commands in flight per queue, at most 128.
    pub depth: u16,
    /// Bytes of data per command: a power of two from 4096.
    pub transfer_bytes: u32,
    /// Bytes per R2T; at least 4096, a multiple of 4.
    pub r2t_bytes: u32,
    /// Bytes per H2CData PDU (MAXH2CDATA); at least 4096, a multiple of 4.
    pub h2c_bytes: u32,
}

impl Limits {
    /// 64 controllers, 128 commands per queue, 128 KiB per command in one piece.
    pub const DEFAULT: Limits = Limits {
        controllers: 64,
        depth: 128,
        transfer_bytes: 128 << 10,
        r2t_bytes: 128 << 10,
        h2c_bytes: 128 << 10,
    };

    /// MDTS: pages of 4 KiB per command as a power of two.
    pub(crate) fn max_transfer(&self) -> u8 {
        (self.transfer_bytes / 4096).trailing_zeros() as u8
    }
}

/// What a controller may do, as far as fencing goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Its host does not fence.
    Foreign,
    /// It is to have this epoch, once the past has ended.
    Fencing { user: User, epoch: u64 },
    /// It belongs to this epoch.
    Current { user: User, epoch: u64 },
    /// A later epoch has begun, or its process was replaced: every command is refused.
    Stale,
}

impl Admission {
    /// The user that it was given an epoch as.
    fn user(&self) -> Option<User> {
        match *self {
            Admission::Fencing { user, .. } | Admission::Current { user, .. } => Some(user),
            Admission::Foreign | Admission::Stale => None,
        }
    }
}

/// What becomes of a Fence command that is not of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fenced {
    /// To be answered when the past has ended.
    Later { epoch: u64 },
    /// Done.
    Now { epoch: u64 },
    /// Refused: another life's epoch is current.
    Moved { current: u64 },
}

/// Users whose epochs are known, per controller that there may be.
const USERS_PER_CONTROLLER: usize = 4;

/// Features whose values are kept for the host: they change nothing here.
pub(super) const KEPT_FEATURES: [u8; 5] = [
    feature::ARBITRATION,
    feature::TEMPERATURE,
    feature::ERROR_RECOVERY,
    feature::WRITE_ATOMICITY,
    feature::ASYNC_EVENTS,
];
/// Commands are fetched without a limit per burst (111b); 343 K.
const KEPT_DEFAULTS: [u32; KEPT_FEATURES.len()] = [7, 343, 0, 0, 0];

/// A controller: one host's association.
#[derive(Clone, Debug)]
pub(crate) struct Controller {
    /// 0: the place is free.
    pub id: u16,
    pub host_id: [u8; 16],
    pub host: Nqn,
    /// Controller Configuration as last set.
    pub configuration: u32,
    /// Controller Status.
    pub status: u32,
    /// 0: the host sends no keep-alives.
    pub keep_alive_ms: u32,
    pub heard_ns: u64,
    /// Bit n: I/O queue n is connected.
    pub queues: u32,
    /// I/O queues granted by Set Features; 0: not asked yet.
    pub granted: u16,
    /// Counts resets: queues of before are gone.
    pub resets: u32,
    pub async_events: u32,
    /// It offers the discovery log, and no I/O.
    pub is_discovery: bool,
    /// What the host last set of the features that change nothing here: [`KEPT_FEATURES`].
    pub kept: [u32; KEPT_FEATURES.len()],
    pub admission: Admission,
}

impl Controller {
    const FREE: Controller = Controller {
        id: 0,
        host_id: [0; 16],
        host: Nqn::new_const(),
        configuration: 0,
        status: 0,
        keep_alive_ms: 0,
        heard_ns: 0,
        queues: 0,
        granted: 0,
        resets: 0,
        async_events: 0,
        is_discovery: false,
        kept: KEPT_DEFAULTS,
        admission: Admission::Foreign,
    };

    pub fn is_ready(&self) -> bool {
        self.status & fabrics::status::READY != 0
    }

    pub fn is_stale(&self) -> bool {
        self.admission == Admission::Stale
    }

    /// Why it takes no I/O now, if it does not.
    pub fn refusal(&self) -> Option<StatusCode> {
        match self.admission {
            Admission::Stale => Some(StatusCode::STALE_EPOCH),
            Admission::Fencing { .. } => Some(StatusCode::COMMAND_SEQUENCE),
            _ if !self.is_ready() => Some(StatusCode::COMMAND_SEQUENCE),
            Admission::Foreign | Admission::Current { .. } => None,
        }
    }

    /// A write to Controller Configuration (Base 3.1.3.5).
    pub fn configure(&mut self, value: u32) {
        let was_enabled = self.configuration & configuration::ENABLE != 0;
        let is_enabled = value & configuration::ENABLE != 0;
        self.configuration = value;
        if is_enabled && !was_enabled {
            let sizes = value & configuration::ENTRY_SIZES_MASK;
            let set = (value & configuration::COMMAND_SET) >> 4;
            let is_known = sizes == configuration::ENTRY_SIZES
                && value & configuration::ZERO_MASK == 0
                && (set == 0 || set == 6);
            self.status = if is_known { fabrics::status::READY } else { fabrics::status::FATAL };
        }
        if !is_enabled && was_enabled {
            self.status = 0;
            self.queues = 0;
            self.granted = 0;
            self.async_events = 0;
            self.kept = KEPT_DEFAULTS;
            self.resets = self.resets.wrapping_add(1);
        }
        if value & configuration::SHUTDOWN != 0 {
            // Everything that has ended is with the volume already.
            self.status |= fabrics::status::SHUTDOWN_COMPLETE;
        } else {
            self.status &= !fabrics::status::SHUTDOWN_COMPLETE;
        }
    }

    fn is_expired(&self, now_ns: u64) -> bool {
        // The timeout in the unit that Identify names, and one unit for what is under way.
        let unit_ms = u64::from(KEEP_ALIVE_UNIT_100MS) * 100;
        let limit_ms = u64::from(self.keep_alive_ms).next_multiple_of(unit_ms) + unit_ms;
        self.keep_alive_ms != 0 && now_ns.saturating_sub(self.heard_ns) > limit_ms * 1_000_000
    }
}

/// A subsystem with one namespace, number 1, and its controllers.
#[derive(Clone, Debug)]
pub struct Subsystem {
    pub(crate) nqn: Nqn,
    pub(crate) serial: String,
    pub(crate) namespace: Namespace,
    pub(crate) limits: Limits,
    pub(crate) required_digests: Digests,
    pub(crate) boot: Boot,
    /// Other subsystems that discovery lists.
    pub(super) others: Vec<discovery::Entry>,
    /// Counts changes of that list.
    pub(super) generation: u64,
    pub(super) controllers: Box<[Controller]>,
    pub(super) next_id: u16,
    pub(super) epochs: Epochs,
    pub(super) stale_refusals: u64,
}

/// Who a connection belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(super) place: u16,
    pub(super) id: u16,
    pub(super) resets: u32,
}

impl Subsystem {
    /// A subsystem that hosts know by `nqn`.
    ///
    /// # Panics
    /// When a limit is out of its range.
    pub fn new(nqn: Nqn, serial: &str, namespace: Namespace, limits: Limits) -> Subsystem {
        assert!(limits.transfer_bytes >= 4096 && limits.transfer_bytes.is_power_of_two());
        assert!((1..=128).contains(&limits.depth) && limits.controllers > 0);
        for bytes in [limits.r2t_bytes, limits.h2c_bytes] {
            assert!(bytes >= 4096 && bytes.is_multiple_of(4));
        }
        Subsystem {
            nqn,
            serial: serial.to_owned(),
            namespace,
            limits,
            required_digests: Digests::NONE,
            boot: Boot::default(),
            others: Vec::new(),
            generation: 1,
            controllers: vec![Controller::FREE; usize::from(limits.controllers)].into(),
            next_id: 1,
            epochs: Epochs::new(usize::from(limits.controllers) * USERS_PER_CONTROLLER, 1),
            stale_refusals: 0,
        }
    }

    /// The same, giving epochs from `first` on: more than any that an earlier life of it gave.
    pub fn with_first_epoch(mut self, first: u64) -> Subsystem {
        let most = usize::from(self.limits.controllers) * USERS_PER_CONTROLLER;
        self.epochs = Epochs::new(most, first);
        self
    }

    /// The same, telling hosts what this machine drew when it started.
    pub fn with_boot(mut self, boot: Boot) -> Subsystem {
        self.boot = boot;
        self
    }

    /// Has a write's data come in pieces: asks for `r2t_bytes` at a time, in PDUs of `h2c_bytes`,
    /// from the next connection on.
    ///
    /// # Panics
    /// When one is out of the range that [`Limits`] gives it.
    pub fn take_pieces_of(&mut self, r2t_bytes: u32, h2c_bytes: u32) {
        for bytes in [r2t_bytes, h2c_bytes] {
            assert!(bytes >= 4096 && bytes.is_multiple_of(4));
        }
        self.limits = Limits { r2t_bytes, h2c_bytes, ..self.limits };
    }

    /// Refuses hosts that do not ask for at least these digests.
    pub fn require_digests(&mut self, digests: Digests) {
        self.required_digests = digests;
    }

    /// Lists these subsystems, beside this one, to hosts that ask for discovery: those that listen
    /// at the address that the host has connected to. Gives back those from before.
    pub fn list_others(&mut self, others: Vec<discovery::Entry>) -> Vec<discovery::Entry> {
        self.generation += 1;
        std::mem::replace(&mut self.others, others)
    }

    /// The limits it was made with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Controllers that exist now.
    pub fn controllers(&self) -> usize {
        self.controllers.iter().filter(|controller| controller.id != 0).count()
    }

    /// Ends every controller whose host was not heard for its keep-alive timeout, and returns how
    /// many; their connections find out by [`Target::is_orphan`](super::Target::is_orphan).
    pub fn expire(&mut self, now_ns: u64) -> u32 {
        let mut count = 0;
        for controller in &mut self.controllers {
            if controller.id != 0 && controller.is_expired(now_ns) {
                *controller = Controller::FREE;
                count += 1;
            }
        }
        count
    }

    /// Commands refused with [`StatusCode::STALE_EPOCH`] so far.
    pub fn stale_refusals(&self) -> u64 {
        self.stale_refusals
    }

    /// A Fence command of the member's controller.
    pub(crate) fn fence(&mut self, member: Member, fence: &Fence) -> Result<Fenced, StatusCode> {
        let controller = self.controller(member).ok_or(StatusCode::COMMAND_SEQUENCE)?;
        if controller.admission != Admission::Foreign {
            return Err(StatusCode::COMMAND_SEQUENCE);
        }
        let user = User { host_id: controller.host_id, number: fence.user };
        match fence.ask {
            Ask::New { after } => {
                let controllers = &self.controllers;
                let in_use = |user| controllers.iter().any(|it| it.admission.user() == Some(user));
                let epoch = match self.epochs.begin(user, fence.life, after, in_use) {
                    Ok(epoch) => epoch,
                    Err(Refused::Past) => return Err(StatusCode::STALE_EPOCH),
                    Err(Refused::Moved { current }) => return Ok(Fenced::Moved { current }),
                };
                for other in &mut self.controllers {
                    let is_past = other.admission.user() == Some(user);
                    if is_past && !planted!("fence-past-admitted") {
                        other.admission = Admission::Stale;
                    }
                }
                self.admit_as(member, Admission::Fencing { user, epoch });
                Ok(Fenced::Later { epoch })
            }
            Ask::Join { epoch } if self.epochs.is_current(user, fence.life, epoch) => {
                self.admit_as(member, Admission::Current { user, epoch });
                Ok(Fenced::Now { epoch })
            }
            Ask::Join { .. } => Err(StatusCode::STALE_EPOCH),
        }
    }

    /// The past of the member's NEW has ended: its epoch, unless a later one has begun.
    pub(crate) fn finish_fence(&mut self, member: Member) -> Result<u64, StatusCode> {
        let controller = self.controller(member).ok_or(StatusCode::COMMAND_SEQUENCE)?;
        let Admission::Fencing { user, epoch } = controller.admission else {
            return Err(StatusCode::STALE_EPOCH);
        };
        controller.admission = Admission::Current { user, epoch };
        Ok(epoch)
    }

    fn admit_as(&mut self, member: Member, admission: Admission) {
        if let Some(controller) = self.controller(member) {
            controller.admission = admission;
        }
    }

    /// Whether the member's controller is refused everything.
    pub(crate) fn is_stale(&self, member: Member) -> bool {
        let controller = &self.controllers[usize::from(member.place)];
        controller.id == member.id && controller.is_stale()
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        // 0-based, one entry more than commands in flight, as of a ring.
        Capabilities::new(self.limits.depth, READY_TIMEOUT_500MS)
    }

    /// A new controller, or `None` when there are as many as there may be.
    pub(crate) fn admit(
        &mut self,
        now_ns: u64,
        host_id: [u8; 16],
        host: Nqn,
        keep_alive_ms: u32,
        is_discovery: bool,
    ) -> Option<Member> {
        let place = self.controllers.iter().position(|controller| controller.id == 0)?;
        // Identifiers go round, so that one that has ended is not used again soon; 0 and the
        // values from fff0h are reserved (Base 3.1.2).
        while self.controllers.iter().any(|controller| controller.id == self.next_id) {
            self.next_id = self.next_id % 0xffef + 1;
        }
        let id = self.next_id;
        self.next_id = self.next_id % 0xffef + 1;
        let heard_ns = now_ns;
        self.controllers[place] = Controller {
            id,
            host_id,
            host,
            keep_alive_ms,
            heard_ns,
            is_discovery,
            ..Controller::FREE
        };
        Some(Member { place: place as u16, id, resets: 0 })
    }

    /// Who a connection that names controller `id` would belong to.
    pub(crate) fn member(&self, id: u16) -> Option<Member> {
        let place = self.controllers.iter().position(|controller| controller.id == id)?;
        let resets = self.controllers[place].resets;
        (id != 0).then_some(Member { place: place as u16, id, resets })
    }

    /// The controller, unless it has ended.
    pub(crate) fn controller(&mut self, member: Member) -> Option<&mut Controller> {
        let controller = &mut self.controllers[usize::from(member.place)];
        (controller.id == member.id).then_some(controller)
    }

    /// Whether the member's queue still belongs to a controller. An admin queue outlives resets.
    pub(crate) fn has(&self, member: Member, queue: u16) -> bool {
        let controller = &self.controllers[usize::from(member.place)];
        controller.id == member.id && (queue == 0 || controller.resets == member.resets)
    }

    /// The member's connection has ended: with the admin queue, so does the controller.
    pub(crate) fn leave(&mut self, member: Member, queue: u16) {
        if !self.has(member, queue) {
            return;
        }
        let controller = &mut self.controllers[usize::from(member.place)];
        if queue == 0 {
            *controller = Controller::FREE;
        } else {
            controller.queues &= !(1 << queue);
        }
    }
}

impl Member {
    pub fn id(self) -> u16 {
        self.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvmf::identify::Identity;

    fn subsystem(controllers: u16) -> Subsystem {
        let identity = Identity { nguid: [1; 16], uuid: [0; 16] };
        let namespace = Namespace { block_bytes: 512, blocks: 8, read_only: false, identity };
        let limits = Limits { controllers, ..Limits::DEFAULT };
        Subsystem::new(Nqn::from("nqn.a").unwrap(), "1", namespace, limits)
    }

    #[test]
    fn controllers_are_bounded_and_their_identifiers_go_round() {
        let mut subsystem = subsystem(2);
        let host = Nqn::from("nqn.h").unwrap();
        let first = subsystem.admit(0, [0; 16], host, 0, false).unwrap();
        let second = subsystem.admit(0, [0; 16], host, 0, false).unwrap();
        assert_eq!((first.id(), second.id()), (1, 2));
        assert_eq!(subsystem.admit(0, [0; 16], host, 0, false), None);
        subsystem.leave(first, 0);
        assert!(!subsystem.has(first, 0) && subsystem.has(second, 0));
        subsystem.next_id = 0xffef;
        assert_eq!(subsystem.admit(0, [0; 16], host, 0, false).unwrap().id(), 0xffef);
        subsystem.leave(subsystem.member(0xffef).unwrap(), 0);
        subsystem.next_id = 2;
        assert_eq!(subsystem.admit(0, [0; 16], host, 0, false).unwrap().id(), 3);
        assert_eq!(subsystem.member(0), None);
    }

    #[test]
    fn silence_ends_a_controller_after_its_timeout_and_not_before() {
        let mut subsystem = subsystem(2);
        let host = Nqn::from("nqn.h").unwrap();
        let member = subsystem.admit(1_000, [0; 16], host, 4_500, false).unwrap();
        let quiet = subsystem.admit(1_000, [0; 16], host, 0, false).unwrap();
        assert_eq!(subsystem.expire(6_000_001_000), 0);
        assert_eq!(subsystem.expire(6_000_001_001), 1);
        assert!(!subsystem.has(member, 0) && subsystem.has(quiet, 0));
    }

    #[test]
    fn a_reset_ends_io_queues_and_a_bad_configuration_is_fatal() {
        let mut subsystem = subsystem(1);
        let member = subsystem.admit(0, [0; 16], Nqn::from("nqn.h").unwrap(), 0, false).unwrap();
        let enable = configuration::ENABLE | configuration::ENTRY_SIZES;
        let controller = subsystem.controller(member).unwrap();
        controller.configure(configuration::ENABLE);
        assert_eq!(controller.status, fabrics::status::FATAL);
        controller.configure(0);
        controller.configure(enable);
        assert!(controller.is_ready());
        controller.configure(enable | 1 << 14);
        assert_eq!(controller.status, fabrics::status::READY | 8);
        let io = subsystem.member(1).unwrap();
        assert!(subsystem.has(io, 1));
        subsystem.controller(member).unwrap().configure(0);
        assert!(!subsystem.has(io, 1) && subsystem.has(member, 0));
    }
}
