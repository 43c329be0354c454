//! From two connections to a queue that takes I/O: the admin queue's set-up, whether it is the
//! namespace that is expected, the end of what there was before (`nvmf::fence`), and the I/O
//! queue's Connect, in this order.
//!
//! The caller moves bytes as [`Next`] says, and asks again after whatever came.

use super::{Found, MAX_DEPTH, Progress, Queue, QueueConfig, Setup, SetupError, State};
use crate::nvmf::StatusCode;
use crate::nvmf::fabrics::{ANY_CONTROLLER, ConnectData};
use crate::nvmf::fence::{Ask, Fence, Life};
use crate::nvmf::identify::Namespace;
use crate::nvmf::pdu::Digests;
use crate::nvmf::state::{self, Kind, LoadError, Reader, State as Saved, ensure, state_struct};

const ASSOCIATION: &Kind = b"obasso\0\x01";

/// What an association is made with.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The namespace.
    pub nsid: u32,
    /// Digests to ask for, on both connections.
    pub digests: Digests,
    /// Keep-alive timeout of the admin queue.
    pub keep_alive_ms: u32,
    /// Who connects to what; the controller is the target's to say.
    pub names: ConnectData,
    /// I/O commands in flight at most.
    pub depth: u16,
    /// What must be there; `None`: whatever is.
    pub expected: Option<Namespace>,
    /// Which of the host's users this is.
    pub user: u32,
    /// Which process of the user.
    pub life: Life,
    /// The last epoch that the target gave; 0: none, it starts.
    pub after: u64,
}

state_struct!(Wish { nsid, digests, keep_alive_ms, names, depth, expected, user, life, after });

/// Why there is no association.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssociationError {
    /// The set-up failed, of a queue or of an epoch.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// Another namespace than the expected one is there.
    #[error("another namespace is there")]
    Changed,
    /// Another process has taken this user's place.
    #[error("another process has taken the place of this one")]
    Stale,
}

/// What the caller has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send what the admin queue has, and give it what comes.
    Admin,
    /// The same with the I/O queue, whose connection is to be opened now if it is not.
    Io,
    /// Wait until then.
    Time {
        /// When, on the caller's clock.
        at_ns: u64,
    },
    /// Nothing: it is ready.
    Ready,
}

/// An association that is ready for I/O.
#[derive(Debug)]
pub struct Associated {
    /// The admin queue, for keep-alives.
    pub admin: Queue,
    /// The I/O queue.
    pub io: Queue,
    /// What the target is like.
    pub found: Found,
    /// The epoch that it gave; 0: it does not fence.
    pub epoch: u64,
}

#[derive(Debug)]
enum Step {
    Setup(Setup),
    Fence(Found),
    Io(Found, Box<Queue>),
}

/// An association that is being made.
#[derive(Debug)]
pub struct Association {
    wish: Wish,
    admin: Queue,
    step: Step,
    epoch: u64,
}

impl Association {
    /// Begins; the first bytes of the admin queue are ready to be sent.
    pub fn new(wish: Wish) -> Association {
        let admin = Queue::new(config(&wish, 0, 1, ANY_CONTROLLER, 0));
        let step = Step::Setup(Setup::new(wish.nsid));
        Association { wish, admin, step, epoch: 0 }
    }

    /// Goes on as far as the answers allow.
    pub fn poll(&mut self, now_ns: u64) -> Result<Next, AssociationError> {
        loop {
            match &mut self.step {
                Step::Setup(setup) => match setup.poll(now_ns, &mut self.admin)? {
                    Progress::Answer => return Ok(Next::Admin),
                    Progress::Time { at_ns } => return Ok(Next::Time { at_ns }),
                    Progress::Done(found) => self.set_up(found)?,
                },
                Step::Fence(found) => {
                    let found = *found;
                    let Some(end) = self.admin.take_control_end() else { return Ok(Next::Admin) };
                    match end.status.plain() {
                        StatusCode::SUCCESS => self.epoch = end.result,
                        StatusCode::EPOCH_MOVED if self.wish.after == 0 => {
                            self.ask(end.result);
                            continue;
                        }
                        StatusCode::STALE_EPOCH | StatusCode::EPOCH_MOVED => {
                            return Err(AssociationError::Stale);
                        }
                        _ => return Err(refused("an epoch", end.status)),
                    }
                    self.connect_io(found);
                }
                Step::Io(_, queue) => match queue.state() {
                    State::Ready { .. } => return Ok(Next::Ready),
                    State::Connecting => return Ok(Next::Io),
                    State::Refused(status) => {
                        return Err(refused("to connect an I/O queue", status));
                    }
                    State::Failed(fault) => return Err(SetupError::Failed(fault).into()),
                },
            }
        }
    }

    /// What is being done, for an error of the connection.
    pub fn doing(&self) -> &'static str {
        match self.step {
            Step::Setup(_) => "setting up",
            Step::Fence(_) => "waiting for the I/O of the past to end",
            Step::Io(..) => "connecting a queue",
        }
    }

    /// The namespace, as soon as it is known: before anything of the past is told to end.
    pub fn namespace(&self) -> Option<&Namespace> {
        match &self.step {
            Step::Setup(_) => None,
            Step::Fence(found) | Step::Io(found, _) => Some(&found.namespace),
        }
    }

    /// The admin queue.
    pub fn admin_mut(&mut self) -> &mut Queue {
        &mut self.admin
    }

    /// The I/O queue, from the first [`Next::Io`] on.
    pub fn io_mut(&mut self) -> Option<&mut Queue> {
        match &mut self.step {
            Step::Io(_, queue) => Some(queue),
            Step::Setup(_) | Step::Fence(_) => None,
        }
    }

    /// The result, after [`Next::Ready`]; before, `None`.
    pub fn finish(self) -> Option<Associated> {
        let Association { admin, step, epoch, .. } = self;
        match step {
            Step::Io(found, io) => Some(Associated { admin, io: *io, found, epoch }),
            Step::Setup(_) | Step::Fence(_) => None,
        }
    }

    /// How far it is, as plain data: both queues, what was found, what waits for an answer.
    pub fn save(&self) -> Vec<u8> {
        state::save(ASSOCIATION, |out| {
            (self.wish.clone(), self.epoch).save(out);
            self.admin.write(out);
            match &self.step {
                Step::Setup(setup) => {
                    out.push(0);
                    setup.save(out);
                }
                Step::Fence(found) => {
                    out.push(1);
                    found.save(out);
                }
                Step::Io(found, io) => {
                    out.push(2);
                    found.save(out);
                    io.write(out);
                }
            }
        })
    }

    /// The association that was saved; what was on its connections' way goes on there.
    pub fn load(bytes: &[u8]) -> Result<Association, LoadError> {
        state::load(ASSOCIATION, bytes, Association::read)
    }

    fn read(from: &mut Reader) -> Result<Association, LoadError> {
        let (wish, epoch): (Wish, u64) = Saved::load(from)?;
        ensure((1..=MAX_DEPTH).contains(&wish.depth), "depth")?;
        let admin = Queue::read(from)?;
        ensure(admin.config.queue == 0, "the admin queue's number")?;
        let step = match from.byte()? {
            0 => Step::Setup(Setup::load(from)?),
            1 => Step::Fence(Found::load(from)?),
            2 => Step::Io(Found::load(from)?, Box::new(Queue::read(from)?)),
            _ => return Err(LoadError::Invalid("a step")),
        };
        match &step {
            Step::Setup(setup) => setup.check()?,
            Step::Fence(found) => found.check()?,
            Step::Io(found, io) => {
                found.check()?;
                ensure(io.config.queue != 0, "the I/O queue's number")?;
            }
        }
        Ok(Association { wish, admin, step, epoch })
    }

    fn set_up(&mut self, found: Found) -> Result<(), AssociationError> {
        let expected = self.wish.expected.filter(|_| !planted!("fence-identity-not-checked"));
        if expected.is_some_and(|expected| expected != found.namespace) {
            return Err(AssociationError::Changed);
        }
        if !found.has_fence || planted!("fence-not-asked-for") {
            self.connect_io(found);
            return Ok(());
        }
        self.ask(self.wish.after);
        self.step = Step::Fence(found);
        if planted!("fence-not-waited-for") {
            self.connect_io(found);
        }
        Ok(())
    }

    /// Asks for the epoch after this one.
    fn ask(&mut self, after: u64) {
        let Wish { user, life, .. } = self.wish;
        self.admin.control(Fence { ask: Ask::New { after }, user, life }.emit(), 0);
    }

    fn connect_io(&mut self, found: Found) {
        let depth = found.max_in_flight.min(self.wish.depth);
        let config = config(&self.wish, 1, depth, found.controller, found.in_capsule_bytes);
        self.step = Step::Io(found, Box::new(Queue::new(config)));
    }
}

fn refused(step: &'static str, status: StatusCode) -> AssociationError {
    SetupError::Refused { step, status }.into()
}

fn config(wish: &Wish, queue: u16, depth: u16, controller: u16, in_capsule: u32) -> QueueConfig {
    QueueConfig {
        queue,
        depth,
        keep_alive_ms: wish.keep_alive_ms,
        in_capsule_bytes: in_capsule,
        nsid: wish.nsid,
        digests: wish.digests,
        names: ConnectData { controller, ..wish.names },
    }
}
