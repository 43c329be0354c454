//! What happens on an admin queue from Connect until an I/O queue can be connected: enable the
//! controller, learn its limits, get one I/O queue, find the namespace (Fabrics 4.1; Base 3.5).

use super::{ControlEnd, Queue, State};
use crate::nvmf::capsule::{Sqe, admin, feature};
use crate::nvmf::fabrics::{
    Capabilities, configuration, property, property_get, property_set, status,
};
use crate::nvmf::fence::Boot;
use crate::nvmf::identify::{Controller, IDENTIFY_BYTES, Namespace, Unusable, cns};
use crate::nvmf::state::{LoadError, ensure, state_enum, state_struct};
use crate::nvmf::{Fault, StatusCode};

/// What a set-up found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The controller's identifier, for the I/O queue's Connect.
    pub controller: u16,
    /// Commands in flight that a queue allows.
    pub max_in_flight: u16,
    /// Bytes of data that a write may carry in its capsule.
    pub in_capsule_bytes: u32,
    /// Bytes that one command may transfer; `None`: no limit.
    pub max_transfer_bytes: Option<u64>,
    /// Optional commands of the controller: [`commands`](crate::nvmf::identify::commands).
    pub commands: u16,
    /// The namespace.
    pub namespace: Namespace,
    /// Whether the target knows the [`fence`](crate::nvmf::fence) command.
    pub has_fence: bool,
    /// What the target's machine drew when it started; zeros where it does not tell.
    pub boot: Boot,
}

state_struct!(Found {
    controller,
    max_in_flight,
    in_capsule_bytes,
    max_transfer_bytes,
    commands,
    namespace,
    has_fence,
    boot,
});

impl Found {
    /// Whether a set-up can have found this.
    pub(super) fn check(&self) -> Result<(), LoadError> {
        ensure(self.max_in_flight > 0 && self.max_transfer_bytes != Some(0), "limits")?;
        self.namespace.check()
    }
}

/// Why a set-up failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// The target refused a command.
    #[error("the target refused {step}: {status}")]
    Refused {
        /// The command.
        step: &'static str,
        /// How it ended.
        status: StatusCode,
    },
    /// The connection ended over a violation.
    #[error("the connection failed: {}", .0.name())]
    Failed(Fault),
    /// CSTS.CFS.
    #[error("the controller reports a fatal status")]
    Fatal,
    /// CSTS.RDY did not come.
    #[error("the controller was not ready within {timeout_ms} ms")]
    NotReady {
        /// What the controller itself had named.
        timeout_ms: u32,
    },
    /// The namespace cannot be used.
    #[error("namespace {nsid} {}", unusable(.reason))]
    Namespace {
        /// Its identifier.
        nsid: u32,
        /// Why.
        reason: Unusable,
    },
}

fn unusable(reason: &Unusable) -> String {
    match reason {
        Unusable::Empty => "does not exist or is empty".into(),
        Unusable::BlockSize(shift) => {
            format!("has blocks of 2^{shift} bytes; only 512 and 4096 are supported")
        }
        Unusable::Metadata(bytes) => {
            format!("carries {bytes} bytes of metadata per block; only 0 is supported")
        }
        Unusable::TooLarge(blocks) => {
            format!("says that it has {blocks} blocks, whose bytes no 64-bit number counts")
        }
    }
}

/// How far a set-up is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All is found.
    Done(Found),
    /// It waits for the target.
    Answer,
    /// It waits for this time; then poll again.
    Time {
        /// When, on the caller's clock.
        at_ns: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Connect,
    Capabilities,
    Enable,
    Ready,
    Pause { until_ns: u64 },
    Controller,
    Queues,
    Namespace,
    Descriptors,
}

state_enum!(Step {
    0 => Connect, 1 => Capabilities, 2 => Enable, 3 => Ready, 4 => Pause { until_ns },
    5 => Controller, 6 => Queues, 7 => Namespace, 8 => Descriptors,
});

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::Connect => "to connect the admin queue",
            Step::Capabilities => "to tell the controller's capabilities",
            Step::Enable => "to enable the controller",
            Step::Ready | Step::Pause { .. } => "to tell the controller's status",
            Step::Controller => "to identify the controller",
            Step::Queues => "an I/O queue",
            Step::Namespace => "to identify the namespace",
            Step::Descriptors => "to identify the namespace's names",
        }
    }
}

/// How long to wait before the controller is asked again whether it is ready.
const READY_POLL_NS: u64 = 10_000_000;

/// Drives an admin [`Queue`] through the set-up: [`poll`](Self::poll) after everything received.
#[derive(Clone, Debug)]
pub struct Setup {
    nsid: u32,
    step: Step,
    capabilities: Capabilities,
    controller: Controller,
    enabled_ns: u64,
    namespace: Option<Namespace>,
}

state_struct!(Setup { nsid, step, capabilities, controller, enabled_ns, namespace });

impl Setup {
    /// Whether it can have come this far.
    pub(super) fn check(&self) -> Result<(), LoadError> {
        let is_named = self.step != Step::Descriptors || self.namespace.is_some();
        ensure(is_named, "a set-up without its namespace")?;
        self.namespace.map_or(Ok(()), |namespace| namespace.check())
    }

    /// For namespace `nsid`, on a queue that was made with number 0.
    pub fn new(nsid: u32) -> Setup {
        Setup {
            nsid,
            step: Step::Connect,
            capabilities: Capabilities(0),
            controller: Controller::default(),
            enabled_ns: 0,
            namespace: None,
        }
    }

    /// Goes on as far as the answers allow.
    pub fn poll(&mut self, now_ns: u64, queue: &mut Queue) -> Result<Progress, SetupError> {
        loop {
            match queue.state() {
                State::Connecting => return Ok(Progress::Answer),
                State::Refused(status) => {
                    return Err(SetupError::Refused { step: Step::Connect.name(), status });
                }
                State::Failed(fault) => return Err(SetupError::Failed(fault)),
                State::Ready { controller } => self.controller.id = controller,
            }
            if queue.is_control_in_flight() {
                return Ok(Progress::Answer);
            }
            if let Step::Pause { until_ns } = self.step
                && now_ns < until_ns
            {
                return Ok(Progress::Time { at_ns: until_ns });
            }
            if let Some(found) = self.next(now_ns, queue)? {
                return Ok(Progress::Done(found));
            }
        }
    }

    /// Judges the last answer and sends the next command.
    fn next(&mut self, now_ns: u64, queue: &mut Queue) -> Result<Option<Found>, SetupError> {
        let end = queue.take_control_end();
        if let Some(ControlEnd { status, .. }) = end
            && !status.is_success()
            && !(self.step == Step::Descriptors && is_unknown(status))
        {
            return Err(SetupError::Refused { step: self.step.name(), status });
        }
        let result = end.map_or(0, |end| end.result);
        let (step, sqe, bytes) = match self.step {
            Step::Connect => (Step::Capabilities, property_get(property::CAPABILITIES, true), 0),
            Step::Capabilities => {
                self.capabilities = Capabilities(result);
                let value = configuration::ENABLE | configuration::ENTRY_SIZES;
                (Step::Enable, property_set(property::CONFIGURATION, value), 0)
            }
            Step::Enable => {
                self.enabled_ns = now_ns;
                (Step::Ready, property_get(property::STATUS, false), 0)
            }
            Step::Pause { .. } => (Step::Ready, property_get(property::STATUS, false), 0),
            Step::Ready if !self.is_ready(result as u32, now_ns)? => {
                self.step = Step::Pause { until_ns: now_ns + READY_POLL_NS };
                return Ok(None);
            }
            Step::Ready => (Step::Controller, identify(cns::CONTROLLER, 0), IDENTIFY_BYTES),
            Step::Controller => {
                let id = self.controller.id;
                self.controller = Controller { id, ..Controller::parse(queue.page()) };
                let mut sqe = Sqe::new(admin::SET_FEATURES, 0, 0);
                sqe.set_cdw(10, u32::from(feature::QUEUES));
                // One submission and one completion queue, 0-based: zero.
                (Step::Queues, sqe, 0)
            }
            Step::Queues => (Step::Namespace, identify(cns::NAMESPACE, self.nsid), IDENTIFY_BYTES),
            Step::Namespace => {
                let refused = |reason| SetupError::Namespace { nsid: self.nsid, reason };
                self.namespace = Some(Namespace::parse(queue.page()).map_err(refused)?);
                (Step::Descriptors, identify(cns::DESCRIPTORS, self.nsid), IDENTIFY_BYTES)
            }
            Step::Descriptors => {
                return Ok(self.found(queue, end.is_some_and(|end| end.status.is_success())));
            }
        };
        self.step = step;
        queue.control(sqe, bytes as u32);
        Ok(None)
    }

    fn is_ready(&self, value: u32, now_ns: u64) -> Result<bool, SetupError> {
        if value & status::FATAL != 0 {
            return Err(SetupError::Fatal);
        }
        // At least one second: a timeout of zero is what some controllers say.
        let timeout_ms = self.capabilities.ready_timeout_ms().max(1000);
        let is_ready = value & status::READY != 0;
        if !is_ready && now_ns.saturating_sub(self.enabled_ns) > u64::from(timeout_ms) * 1_000_000 {
            return Err(SetupError::NotReady { timeout_ms });
        }
        Ok(is_ready)
    }

    /// A target before version 1.3 has no descriptors: then the NGUID alone names it.
    fn found(&self, queue: &Queue, has_descriptors: bool) -> Option<Found> {
        let mut namespace = self.namespace?;
        if has_descriptors {
            namespace.identity.read_descriptors(queue.page());
        }
        let exponent = u32::from(self.controller.max_transfer);
        let max_transfer_bytes = match exponent {
            0 => None,
            _ => self.capabilities.page_bytes().checked_shl(exponent),
        };
        Some(Found {
            controller: self.controller.id,
            max_in_flight: self.capabilities.max_queue_size().max(1),
            in_capsule_bytes: self.controller.in_capsule_bytes,
            max_transfer_bytes: max_transfer_bytes.filter(|bytes| *bytes > 0),
            commands: self.controller.commands,
            namespace,
            has_fence: self.controller.has_fence,
            boot: self.controller.boot,
        })
    }
}

/// Whether a target knows no namespace descriptors, as before version 1.3, rather than failed to
/// tell them: without those that it has, its namespace would look like another one.
fn is_unknown(status: StatusCode) -> bool {
    matches!(status.plain(), StatusCode::INVALID_FIELD | StatusCode::INVALID_OPCODE)
}

fn identify(cns: u8, nsid: u32) -> Sqe {
    let mut sqe = Sqe::new(admin::IDENTIFY, 0, nsid);
    sqe.set_cdw(10, u32::from(cns));
    sqe
}
