//! When the I/Os of a disk reached their stages, for the ledger. Off, it costs a branch per I/O.
//!
//! Per I/O: [`taken`](Timing::taken) before the volume is asked, [`submitted`](Timing::submitted)
//! after it took it, [`ended`](Timing::ended) when it is reaped. Once a turn:
//! [`look`](Timing::look) and [`notified`](Timing::notified), after which
//! [`entries`](Timing::entries) are there.

use super::{Marks, Op};
use crate::clock;
use crate::ledger::{Entry, STAGES_MAX, Subject};
use arrayvec::ArrayVec;

/// I/Os that end in one turn: what one reap gives.
const ENDED: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Stamp {
    began_ns: u64,
    seen_ns: u64,
    taken_ns: u64,
    submitted_ns: u64,
    op: Op,
    bytes: u32,
}

const NONE: Stamp =
    Stamp { began_ns: 0, seen_ns: 0, taken_ns: 0, submitted_ns: 0, op: Op::Flush, bytes: 0 };

#[derive(Clone, Copy, Debug)]
struct Ended {
    stamp: Stamp,
    marks: Marks,
    reaped_ns: u64,
}

/// The times of one disk's I/Os.
#[derive(Debug)]
pub struct Timing {
    is_on: bool,
    looked_ns: u64,
    before_ns: u64,
    /// By slot.
    stamps: Box<[Stamp]>,
    ended: ArrayVec<Ended, ENDED>,
    answered_ns: u64,
    notified_ns: u64,
}

impl Timing {
    /// Times of I/Os in so many slots; off.
    pub fn new(slots: u16) -> Timing {
        Timing {
            is_on: false,
            looked_ns: 0,
            before_ns: 0,
            stamps: vec![NONE; usize::from(slots)].into(),
            ended: ArrayVec::new(),
            answered_ns: 0,
            notified_ns: 0,
        }
    }

    /// Switches it on or off; on, what is in flight is not told of.
    pub fn set(&mut self, is_on: bool) {
        if is_on {
            // What is there at the next look came after this, as far as anybody is told.
            self.looked_ns = clock::now_ns();
        }
        if is_on && !self.is_on {
            self.stamps.fill(NONE);
        }
        self.is_on = is_on;
        self.ended.clear();
    }

    /// Another look at the rings begins.
    #[inline]
    pub fn look(&mut self, now_ns: u64) {
        self.before_ns = std::mem::replace(&mut self.looked_ns, now_ns);
    }

    /// The worker was asleep until now: nothing was there to be seen before.
    pub fn woken(&mut self) {
        if self.is_on {
            self.looked_ns = clock::now_ns();
        }
    }

    /// The I/O of a slot was taken from its ring, and the volume is about to be asked.
    #[inline]
    pub fn taken(&mut self, slot: u16, op: Op, bytes: u64) {
        if self.is_on {
            let (began_ns, seen_ns) = (self.before_ns, self.looked_ns);
            let (taken_ns, bytes) = (clock::now_ns(), bytes as u32);
            self.stamps[usize::from(slot)] =
                Stamp { began_ns, seen_ns, taken_ns, submitted_ns: 0, op, bytes };
        }
    }

    /// The volume, which had no room for it before, is asked once more.
    pub fn retaken(&mut self, slot: u16) {
        if self.is_on {
            self.stamps[usize::from(slot)].taken_ns = clock::now_ns();
        }
    }

    /// The volume took it.
    #[inline]
    pub fn submitted(&mut self, slot: u16) {
        if self.is_on {
            self.stamps[usize::from(slot)].submitted_ns = clock::now_ns();
        }
    }

    /// It has ended.
    #[inline]
    pub fn ended(&mut self, slot: u16, marks: Marks) {
        if self.is_on {
            let stamp = std::mem::replace(&mut self.stamps[usize::from(slot)], NONE);
            // Without room only outside of turns, when everything is closed.
            let _ = self.ended.try_push(Ended { stamp, marks, reaped_ns: clock::now_ns() });
        }
    }

    /// Guests are about to be shown what has ended.
    #[inline]
    pub fn answered(&mut self) {
        if self.is_on && !self.ended.is_empty() {
            self.answered_ns = clock::now_ns();
        }
    }

    /// They were.
    #[inline]
    pub fn notified(&mut self) {
        if self.is_on && !self.ended.is_empty() {
            self.notified_ns = clock::now_ns();
        }
    }

    /// What has ended in this turn, once; `subject` names an operation's entry.
    pub fn entries(&mut self, subject: impl Fn(Op) -> Subject) -> impl Iterator<Item = Entry> {
        let (answered_ns, notified_ns) = (self.answered_ns, self.notified_ns);
        let ended = std::mem::take(&mut self.ended).into_iter();
        ended.filter(|ended| ended.stamp.submitted_ns > 0).map(move |ended| {
            let stamp = ended.stamp;
            // A volume that tells nothing does its work when it is asked.
            let told_ns = ended.marks.told_ns.max(stamp.taken_ns);
            let seen_ns = if ended.marks.answered_ns == 0 {
                stamp.submitted_ns
            } else {
                ended.marks.answered_ns
            };
            let ends = [
                stamp.began_ns,
                stamp.seen_ns,
                stamp.taken_ns,
                told_ns,
                seen_ns,
                ended.reaped_ns,
                answered_ns,
                notified_ns,
            ];
            let mut stages_ns = [0; STAGES_MAX];
            let mut before_ns = ends[0];
            for (stage_ns, end_ns) in stages_ns.iter_mut().zip(&ends[1..]) {
                *stage_ns = end_ns.saturating_sub(before_ns);
                before_ns = before_ns.max(*end_ns);
            }
            Entry {
                began_ns: stamp.began_ns,
                stages_ns,
                subject: subject(stamp.op),
                bytes: stamp.bytes,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(timing: &mut Timing) -> Vec<Entry> {
        timing.entries(|op| Subject::Io { volume: 0, owner: 0, op: op.name() }).collect()
    }

    /// One I/O through all its stages.
    fn pass(timing: &mut Timing, marks: impl Fn() -> Marks) {
        timing.look(clock::now_ns());
        timing.look(clock::now_ns());
        timing.taken(1, Op::Write, 4096);
        timing.submitted(1);
        timing.ended(1, marks());
        timing.answered();
        timing.notified();
    }

    #[test]
    fn stages_follow_each_other_and_fill_the_whole_time() {
        let mut timing = Timing::new(2);
        timing.set(true);
        let begin_ns = clock::now_ns();
        let marks = || Marks { told_ns: clock::now_ns(), answered_ns: clock::now_ns() };
        pass(&mut timing, marks);
        let entries = entries(&mut timing);
        let end_ns = clock::now_ns();
        let [entry] = &entries[..] else { panic!("{entries:?}") };
        assert!(entry.began_ns >= begin_ns && entry.began_ns + entry.total_ns() <= end_ns);
        assert_eq!(entry.began_ns + entry.total_ns(), timing.notified_ns);
        assert_eq!(entry.bytes, 4096);
    }

    #[test]
    fn without_marks_the_work_was_done_when_asked() {
        let mut timing = Timing::new(2);
        timing.set(true);
        pass(&mut timing, Marks::default);
        let entry = entries(&mut timing)[0];
        assert_eq!(entry.stages_ns[2], 0, "nothing waits for a volume that copies at once");
        assert_eq!(entry.began_ns + entry.total_ns(), timing.notified_ns);
    }

    #[test]
    fn off_and_in_flight_while_it_was_off_nothing_is_told() {
        let mut timing = Timing::new(2);
        pass(&mut timing, Marks::default);
        assert_eq!(entries(&mut timing), []);
        timing.taken(0, Op::Read, 512);
        timing.submitted(0);
        timing.set(true);
        timing.ended(0, Marks::default());
        timing.notified();
        assert_eq!(entries(&mut timing), []);
    }

    #[test]
    fn an_io_that_waited_for_room_waited_while_it_was_taken() {
        let mut timing = Timing::new(2);
        timing.set(true);
        timing.look(clock::now_ns());
        timing.look(clock::now_ns());
        timing.taken(1, Op::Read, 512);
        let full_ns = timing.stamps[1].taken_ns;
        timing.look(clock::now_ns());
        timing.retaken(1);
        timing.submitted(1);
        timing.ended(1, Marks::default());
        timing.answered();
        timing.notified();
        let entry = entries(&mut timing)[0];
        assert!(entry.began_ns + entry.stages_ns[0] + entry.stages_ns[1] > full_ns);
    }
}
