//! How long I/O of each class took, from being taken to its end, on the clock of turns: what begins
//! and ends in one turn took no time that it could see.

use super::Op;
use crate::counters::Histogram;

/// A histogram for each class of operation.
#[derive(Debug, Default)]
pub struct Latencies {
    read: Histogram,
    write: Histogram,
    flush: Histogram,
    other: Histogram,
}

impl Latencies {
    /// Counts an operation that took so long.
    #[inline]
    pub fn record(&self, op: Op, ns: u64) {
        let class = match op {
            Op::Read => &self.read,
            Op::Write => &self.write,
            Op::Flush => &self.flush,
            Op::Discard | Op::WriteZeroes | Op::Compare => &self.other,
        };
        class.record(ns);
    }

    /// The classes by name.
    pub fn classes(&self) -> [(&'static str, &Histogram); 4] {
        let Latencies { read, write, flush, other } = self;
        [("read", read), ("write", write), ("flush", flush), ("other", other)]
    }
}
