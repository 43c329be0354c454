//! A host fences its past off: what the target refuses from when on, and when it answers.

use crate::ends::{Controller, Host, admin_config, subsystem};
use crate::loopback::{io_config, set_up, settle};
use outboard_rdma::nvmf::capsule::{Sqe, admin};
use outboard_rdma::nvmf::fence::{Ask, Fence, Life};
use outboard_rdma::nvmf::initiator::{Found, Request, State};
use outboard_rdma::nvmf::target::{Limits, Subsystem};
use outboard_rdma::nvmf::{Op, StatusCode};

const WRITE: Request = Request { op: Op::Write, lba: 0, blocks: 1, bytes: 512 };

/// An association: an admin queue, and an I/O queue if it has one.
struct Association {
    admin: (Host, Controller),
    io: Option<(Host, Controller)>,
    found: Found,
}

impl Association {
    fn new(subsystem: &mut Subsystem) -> Association {
        let mut admin = (Host::new(admin_config()), Controller::new(128, 0));
        let found = set_up(&mut admin.0, &mut admin.1, subsystem);
        Association { admin, io: None, found }
    }

    fn command(&mut self, sqe: Sqe, subsystem: &mut Subsystem) -> Option<(StatusCode, u64)> {
        self.admin.0.queue.control(sqe, 0);
        self.answer(subsystem)
    }

    fn answer(&mut self, subsystem: &mut Subsystem) -> Option<(StatusCode, u64)> {
        let (host, end) = &mut self.admin;
        settle(host, end, subsystem);
        host.queue.take_control_end().map(|end| (end.status.plain(), end.result))
    }

    /// Sends a Fence command; its answer, if there is one at once.
    fn fence(&mut self, fence: Fence, subsystem: &mut Subsystem) -> Option<(StatusCode, u64)> {
        self.command(fence.emit(), subsystem)
    }

    fn finish(&mut self, subsystem: &mut Subsystem) -> (StatusCode, u64) {
        assert!(self.admin.1.target.is_fencing());
        self.admin.1.target.finish_fence(subsystem);
        self.answer(subsystem).expect("the fence is answered")
    }

    /// Is given an epoch.
    fn begin(&mut self, fence: Fence, subsystem: &mut Subsystem) -> u64 {
        assert_eq!(self.fence(fence, subsystem), None, "not before the past has ended");
        let (status, epoch) = self.finish(subsystem);
        assert_eq!(status, StatusCode::SUCCESS);
        epoch
    }

    fn connect_io(&mut self, subsystem: &mut Subsystem) -> State {
        let config = io_config(&self.found, 1, 4, 8192);
        let mut io = (Host::new(config), Controller::new(128, 1 << 20));
        settle(&mut io.0, &mut io.1, subsystem);
        let state = io.0.queue.state();
        self.io = Some(io);
        state
    }

    /// Writes a block; the status, unless the command is to be run.
    fn write(&mut self, subsystem: &mut Subsystem) -> Option<StatusCode> {
        let (host, end) = self.io.as_mut().unwrap();
        host.submit(WRITE, vec![7; 512]).unwrap();
        settle(host, end, subsystem);
        host.next_ended().map(|(ended, _)| ended.status)
    }
}

fn life(begun_ns: u64) -> Life {
    Life { boot: 5, begun_ns }
}

fn start(user: u32, begun_ns: u64) -> Fence {
    Fence { ask: Ask::New { after: 0 }, user, life: life(begun_ns) }
}

#[test]
fn the_past_is_refused_from_the_command_on_and_the_answer_comes_when_it_has_ended() {
    let mut subsystem = subsystem(64, Limits::DEFAULT).with_first_epoch(500);
    let mut old = Association::new(&mut subsystem);
    assert!(old.found.has_fence);
    let first = old.begin(start(1, 1), &mut subsystem);
    assert_eq!(first, 500);
    assert!(matches!(old.connect_io(&mut subsystem), State::Ready { .. }));
    assert_eq!(old.write(&mut subsystem), None, "it runs");

    let mut new = Association::new(&mut subsystem);
    assert_eq!(new.fence(start(1, 2), &mut subsystem), None);
    assert!(old.io.as_ref().unwrap().1.target.is_stale(&subsystem));
    assert!(old.admin.1.target.is_stale(&subsystem) && !new.admin.1.target.is_stale(&subsystem));
    assert_eq!(old.write(&mut subsystem), Some(StatusCode::STALE_EPOCH.do_not_retry()));
    let keep_alive = Sqe::new(admin::KEEP_ALIVE, 0, 0);
    let refused = Some((StatusCode::STALE_EPOCH, 0));
    assert_eq!(old.command(keep_alive, &mut subsystem), refused);
    assert_eq!(old.connect_io(&mut subsystem), {
        State::Refused(StatusCode::STALE_EPOCH.do_not_retry())
    });
    assert_eq!(subsystem.stale_refusals(), 3);

    // Nothing runs on the new association before the answer either.
    assert!(matches!(new.connect_io(&mut subsystem), State::Ready { .. }));
    let early = Some(StatusCode::COMMAND_SEQUENCE.do_not_retry());
    assert_eq!(new.write(&mut subsystem), early);
    let (status, second) = new.finish(&mut subsystem);
    assert!(status.is_success() && second > first);
    assert_eq!(new.write(&mut subsystem), None, "it runs");
    // One fence per association.
    let again = new.fence(start(1, 2), &mut subsystem);
    assert_eq!(again, Some((StatusCode::COMMAND_SEQUENCE, 0)));
}

#[test]
fn an_epoch_of_the_past_is_refused_by_name() {
    let mut subsystem = subsystem(64, Limits::DEFAULT);
    let first = Association::new(&mut subsystem).begin(start(1, 1), &mut subsystem);
    let mut second = Association::new(&mut subsystem);
    let current = second.begin(start(1, 2), &mut subsystem);
    let stale = Some((StatusCode::STALE_EPOCH, 0));
    let join = |epoch, user, number| Fence { ask: Ask::Join { epoch }, user, life: life(number) };
    for past in [join(first, 1, 1), join(first, 1, 2), join(current, 1, 1), join(current, 2, 2)] {
        assert_eq!(Association::new(&mut subsystem).fence(past, &mut subsystem), stale);
    }
    let back = Fence { ask: Ask::New { after: first }, user: 1, life: life(1) };
    assert_eq!(Association::new(&mut subsystem).fence(back, &mut subsystem), stale);
    assert_eq!(subsystem.stale_refusals(), 5);
    // None of these has harmed the current one, and who knows its epoch may join it.
    assert!(matches!(second.connect_io(&mut subsystem), State::Ready { .. }));
    assert_eq!(second.write(&mut subsystem), None);
    let mut third = Association::new(&mut subsystem);
    let joined = third.fence(join(current, 1, 2), &mut subsystem);
    assert_eq!(joined, Some((StatusCode::SUCCESS, current)));
    assert!(matches!(third.connect_io(&mut subsystem), State::Ready { .. }));
    assert_eq!(third.write(&mut subsystem), None);
}

#[test]
fn a_fence_that_a_later_one_overtakes_is_refused() {
    let mut subsystem = subsystem(64, Limits::DEFAULT);
    let mut first = Association::new(&mut subsystem);
    let mut second = Association::new(&mut subsystem);
    assert_eq!(first.fence(start(1, 1), &mut subsystem), None);
    assert_eq!(second.fence(start(1, 1), &mut subsystem), None);
    assert_eq!(first.finish(&mut subsystem), (StatusCode::STALE_EPOCH, 0));
    assert_eq!(second.finish(&mut subsystem).0, StatusCode::SUCCESS);
}

#[test]
fn users_do_not_fence_each_other_and_hosts_that_do_not_fence_are_left_alone() {
    let mut subsystem = subsystem(64, Limits::DEFAULT);
    let mut foreign = Association::new(&mut subsystem);
    let mut other = Association::new(&mut subsystem);
    other.begin(start(2, 1), &mut subsystem);
    for association in [&mut foreign, &mut other] {
        assert!(matches!(association.connect_io(&mut subsystem), State::Ready { .. }));
    }
    let mut one = Association::new(&mut subsystem);
    one.begin(start(1, 9), &mut subsystem);
    for association in [&mut foreign, &mut other] {
        assert_eq!(association.write(&mut subsystem), None);
    }
}

#[test]
fn a_fence_that_asks_for_nothing_known_is_refused() {
    let mut subsystem = subsystem(64, Limits::DEFAULT);
    let mut association = Association::new(&mut subsystem);
    let mut sqe = start(1, 1).emit();
    sqe.set_cdw(10, 7);
    let refused = Some((StatusCode::INVALID_FIELD, 0));
    assert_eq!(association.command(sqe, &mut subsystem), refused);
    let nobody = start(1, 0);
    assert_eq!(association.fence(nobody, &mut subsystem), refused);
    association.begin(start(1, 1), &mut subsystem);
}

#[test]
fn a_first_fence_that_comes_late_replaces_nobody() {
    let mut subsystem = subsystem(64, Limits::DEFAULT);
    let mut late = Association::new(&mut subsystem);
    let mut current = Association::new(&mut subsystem);
    current.begin(start(1, 2), &mut subsystem);
    assert!(matches!(current.connect_io(&mut subsystem), State::Ready { .. }));
    let stale = Some((StatusCode::STALE_EPOCH, 0));
    assert_eq!(late.fence(start(1, 1), &mut subsystem), stale);
    assert!(!current.admin.1.target.is_stale(&subsystem));
    assert_eq!(current.write(&mut subsystem), None, "it runs");
}

#[test]
fn a_machine_that_has_started_again_follows_the_epoch_that_it_is_told() {
    let mut subsystem = subsystem(64, Limits::DEFAULT);
    let mut before = Association::new(&mut subsystem);
    let old = before.begin(start(1, 900), &mut subsystem);
    let life = Life { boot: 6, begun_ns: 3 };
    let mut after = Association::new(&mut subsystem);
    let first = Fence { life, ..start(1, 1) };
    assert_eq!(after.fence(first, &mut subsystem), Some((StatusCode::EPOCH_MOVED, old)));
    let again = Fence { ask: Ask::New { after: old }, ..first };
    let new = after.begin(again, &mut subsystem);
    assert!(before.admin.1.target.is_stale(&subsystem) && new > old);
    // What the dead one had sent before comes now.
    let mut late = Association::new(&mut subsystem);
    for ask in [Ask::New { after: 0 }, Ask::New { after: old }] {
        let answer = late.fence(Fence { ask, ..start(1, 900) }, &mut subsystem);
        assert_eq!(answer, Some((StatusCode::EPOCH_MOVED, new)));
    }
    assert!(!after.admin.1.target.is_stale(&subsystem));
}
