//! When an export's commands reached their stages, for the ledger. Off, it costs a branch per
//! stage.
//!
//! A command begins with its last bytes: those of its capsule, or of the data that was asked for.
//! What it has the volume do one after the other (a durable write and its flush, the ranges of a
//! discard) is one entry. Commands that the engine answers by itself are none.

use crate::clock;
use crate::ledger::{Entry, STAGES_MAX, Subject};
use crate::volume::{Marks, Op};
use std::ops::Range;

/// How the last bytes of a connection came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// When the socket was last known to have nothing.
    pub before_ns: u64,
    /// When the call that brought them began.
    pub seen_ns: u64,
    /// When it returned; 0: not known.
    pub received_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Stamp {
    seen: Seen,
    taken_ns: u64,
    told_ns: u64,
    submitted_ns: u64,
    answered_ns: u64,
    reaped_ns: u64,
    from_ns: u64,
    until_ns: u64,
    op: Op,
    bytes: u32,
}

const NONE: Stamp = Stamp {
    seen: Seen { before_ns: 0, seen_ns: 0, received_ns: 0 },
    taken_ns: 0,
    told_ns: 0,
    submitted_ns: 0,
    answered_ns: 0,
    reaped_ns: 0,
    from_ns: 0,
    until_ns: 0,
    op: Op::Flush,
    bytes: 0,
};

/// The times of one export's commands, by `Tag::slot`.
#[derive(Debug)]
pub(super) struct Timing {
    is_on: bool,
    stamps: Box<[Stamp]>,
    /// Whose responses were sent in this turn.
    ended: Vec<u16>,
}

impl Timing {
    /// Times of commands in so many slots; off.
    pub fn new(slots: usize) -> Timing {
        Timing { is_on: false, stamps: vec![NONE; slots].into(), ended: Vec::with_capacity(slots) }
    }

    /// Switches it on or off; on, what has begun already is not told of.
    pub fn set(&mut self, is_on: bool) {
        if is_on && !self.is_on {
            self.stamps.fill(NONE);
        }
        self.is_on = is_on;
        self.ended.clear();
    }

    /// Now, if it is on.
    #[inline]
    pub fn clock(&self) -> Option<u64> {
        self.is_on.then(clock::now_ns)
    }

    /// A command is whole.
    #[inline]
    pub fn began(&mut self, slot: u16, seen: Seen) {
        if self.is_on {
            self.stamps[usize::from(slot)] = Stamp { seen, ..NONE };
        }
    }

    /// The volume is about to be asked.
    #[inline]
    pub fn taken(&mut self, slot: u16) {
        if let Some(stamp) = self.stamp(slot).filter(|stamp| stamp.submitted_ns == 0) {
            stamp.taken_ns = clock::now_ns();
        }
    }

    /// The volume took an I/O of it.
    #[inline]
    pub fn submitted(&mut self, slot: u16, op: Op, bytes: u64) {
        if let Some(stamp) = self.stamp(slot) {
            if stamp.submitted_ns == 0 {
                stamp.op = op;
            }
            stamp.bytes += bytes as u32;
            stamp.submitted_ns = clock::now_ns();
        }
    }

    /// An I/O of it has ended.
    #[inline]
    pub fn reaped(&mut self, slot: u16, marks: Marks) {
        if let Some(stamp) = self.stamp(slot) {
            if stamp.told_ns == 0 {
                // A volume that tells nothing does its work when it is asked.
                stamp.told_ns = marks.told_ns.max(stamp.taken_ns);
            }
            stamp.answered_ns = marks.answered_ns.max(stamp.submitted_ns);
            stamp.reaped_ns = clock::now_ns();
        }
    }

    /// The last of its response was given to the socket by a call that began and returned then.
    #[inline]
    pub fn sent(&mut self, slot: u16, call_ns: Option<(u64, u64)>) {
        let Some((from_ns, until_ns)) = call_ns else { return };
        let Some(stamp) = self.stamp(slot).filter(|stamp| stamp.reaped_ns > 0) else { return };
        (stamp.from_ns, stamp.until_ns) = (from_ns, until_ns);
        // A slot ends once a turn at most: it is used again when more is received.
        debug_assert!(self.ended.len() < self.ended.capacity());
        self.ended.push(slot);
    }

    /// These slots are another connection's from now on.
    pub fn forget(&mut self, slots: Range<u16>) {
        if self.is_on {
            self.stamps[usize::from(slots.start)..usize::from(slots.end)].fill(NONE);
        }
    }

    /// What has ended in this turn, once; `subject` names an operation's entry.
    pub fn entries(&mut self, subject: impl Fn(Op) -> Subject) -> impl Iterator<Item = Entry> {
        let Timing { stamps, ended, .. } = self;
        ended.drain(..).filter_map(move |slot| {
            // Its connection may have closed since.
            let stamp = std::mem::replace(&mut stamps[usize::from(slot)], NONE);
            (stamp.until_ns > 0).then(|| stamp.entry(&subject))
        })
    }

    #[inline]
    fn stamp(&mut self, slot: u16) -> Option<&mut Stamp> {
        if !self.is_on {
            return None;
        }
        Some(&mut self.stamps[usize::from(slot)]).filter(|stamp| stamp.seen.received_ns > 0)
    }
}

impl Stamp {
    fn entry(&self, subject: &impl Fn(Op) -> Subject) -> Entry {
        let ends = [
            self.seen.seen_ns,
            self.seen.received_ns,
            self.taken_ns,
            self.told_ns,
            self.answered_ns,
            self.reaped_ns,
            self.from_ns,
            self.until_ns,
        ];
        let mut stages_ns = [0; STAGES_MAX];
        let mut before_ns = self.seen.before_ns;
        for (stage_ns, end_ns) in stages_ns.iter_mut().zip(ends) {
            *stage_ns = end_ns.saturating_sub(before_ns);
            before_ns = before_ns.max(end_ns);
        }
        let (began_ns, bytes) = (self.seen.before_ns, self.bytes);
        Entry { began_ns, stages_ns, subject: subject(self.op), bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(timing: &mut Timing) -> Vec<Entry> {
        timing.entries(|op| Subject::Io { volume: 0, owner: 0, op: op.name() }).collect()
    }

    fn seen() -> Seen {
        let [before_ns, seen_ns, received_ns] = std::array::from_fn(|_| clock::now_ns());
        Seen { before_ns, seen_ns, received_ns }
    }

    fn op(entry: &Entry) -> &'static str {
        let Subject::Io { op, .. } = entry.subject else { panic!("{entry:?}") };
        op
    }

    /// One I/O of a command, by a volume that keeps times.
    fn run(timing: &mut Timing, io: Op, bytes: u64) -> Marks {
        timing.taken(1);
        timing.submitted(1, io, bytes);
        let marks = Marks { told_ns: clock::now_ns(), answered_ns: clock::now_ns() };
        timing.reaped(1, marks);
        marks
    }

    fn respond(timing: &mut Timing) -> (u64, u64) {
        let call = (clock::now_ns(), clock::now_ns());
        timing.sent(1, Some(call));
        call
    }

    #[test]
    fn stages_follow_each_other_and_fill_the_whole_time() {
        let mut timing = Timing::new(2);
        timing.set(true);
        let seen = seen();
        timing.began(1, seen);
        let marks = run(&mut timing, Op::Read, 4096);
        let (from_ns, until_ns) = respond(&mut timing);
        let all = entries(&mut timing);
        let [entry] = &all[..] else { panic!("{all:?}") };
        assert_eq!((entry.began_ns, entry.bytes, op(entry)), (seen.before_ns, 4096, "read"));
        assert_eq!(entry.began_ns + entry.total_ns(), until_ns);
        assert_eq!(entry.stages_ns[1], seen.received_ns - seen.seen_ns);
        assert_eq!(entry.stages_ns[4], marks.answered_ns - marks.told_ns);
        assert_eq!(entry.stages_ns[7], until_ns - from_ns);
        assert_eq!(entries(&mut timing), [], "an entry is told once");
    }

    #[test]
    fn a_durable_write_and_its_flush_are_one_write() {
        let mut timing = Timing::new(2);
        timing.set(true);
        timing.began(1, seen());
        let first = run(&mut timing, Op::Write, 512);
        let last = run(&mut timing, Op::Flush, 0);
        respond(&mut timing);
        let entry = entries(&mut timing)[0];
        assert_eq!((op(&entry), entry.bytes), ("write", 512));
        assert_eq!(entry.stages_ns[4], last.answered_ns - first.told_ns);
    }

    #[test]
    fn waiting_for_room_is_not_the_volumes_time() {
        let mut timing = Timing::new(2);
        timing.set(true);
        let seen = seen();
        timing.began(1, seen);
        timing.taken(1);
        let refused_ns = clock::now_ns();
        timing.taken(1);
        timing.submitted(1, Op::Read, 512);
        timing.reaped(1, Marks::default());
        respond(&mut timing);
        let entry = entries(&mut timing)[0];
        assert!(seen.received_ns + entry.stages_ns[2] >= refused_ns);
        assert_eq!(entry.stages_ns[3], 0, "nothing waits for a volume that copies at once");
    }

    #[test]
    fn what_has_no_beginning_is_not_told() {
        let mut timing = Timing::new(2);
        timing.began(1, seen());
        timing.set(true);
        run(&mut timing, Op::Read, 512);
        respond(&mut timing);
        assert_eq!(entries(&mut timing), [], "begun while it was off");
        timing.began(1, seen());
        respond(&mut timing);
        assert_eq!(entries(&mut timing), [], "never submitted");
        timing.began(1, seen());
        run(&mut timing, Op::Read, 512);
        timing.forget(0..2);
        respond(&mut timing);
        assert_eq!(entries(&mut timing), [], "of a connection that has closed");
        timing.began(1, seen());
        run(&mut timing, Op::Read, 512);
        respond(&mut timing);
        timing.forget(0..2);
        assert_eq!(entries(&mut timing), [], "closed in the turn in which it was sent");
    }
}
