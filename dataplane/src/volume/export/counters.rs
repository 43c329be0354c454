//! What an export counts.

use crate::counters::Counter;
use crate::volume::{Latencies, Op, Status};
use outboard_rdma::nvmf::Fault;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The host closed it.
    Closed,
    /// The socket failed.
    Socket,
    /// The host broke the protocol: counted by name too.
    Fault,
    /// The host put no queue on it in time.
    ConnectTimeout,
    /// Too many others without a queue came after it.
    Crowded,
    /// There were as many connections as there may be.
    Refused,
    /// Its controller has ended: its admin connection did, it was reset, or it fell silent.
    Orphan,
    /// Data that was asked for did not come in time.
    DataTimeout,
    /// Its host has fenced it out: it belonged to an epoch of the past.
    Fenced,
    /// The export stopped.
    Stopped,
}

impl End {
    /// Every end, in the order of their discriminants.
    pub const ALL: &[End] = &[
        End::Closed,
        End::Socket,
        End::Fault,
        End::ConnectTimeout,
        End::Crowded,
        End::Refused,
        End::Orphan,
        End::DataTimeout,
        End::Fenced,
        End::Stopped,
    ];

    /// The name in counters and JSON.
    pub fn name(self) -> &'static str {
        match self {
            End::Closed => "connection_closed",
            End::Socket => "connection_socket_error",
            End::Fault => "connection_fault",
            End::ConnectTimeout => "connection_connect_timeout",
            End::Crowded => "connection_crowded_out",
            End::Refused => "connection_refused",
            End::Orphan => "connection_orphan",
            End::DataTimeout => "connection_data_timeout",
            End::Fenced => "connection_fenced",
            End::Stopped => "connection_stopped",
        }
    }
}

/// What one export counts.
#[derive(Debug)]
pub struct ExportCounters {
    /// Connections open now.
    pub connections: Counter,
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections that control could not hand over: more came at once than the worker takes.
    /// Counted by the thread that accepts; everything else here by the worker.
    pub turned_away: Counter,
    /// I/O commands taken.
    pub commands: Counter,
    /// I/Os that the volume has now.
    pub in_flight: Counter,
    /// Reads that ended.
    pub reads: Counter,
    /// Writes that ended.
    pub writes: Counter,
    /// Flushes that ended, those of durable writes included.
    pub flushes: Counter,
    /// Ranges that were discarded.
    pub discards: Counter,
    /// Writes of zeros that ended.
    pub zeroes: Counter,
    /// Compares that ended.
    pub compares: Counter,
    /// Controllers whose hosts fell silent.
    pub expired: Counter,
    /// Data received that did not match its digest; its command failed.
    pub digest_errors: Counter,
    /// Fence commands that hosts began.
    pub fences: Counter,
    /// Commands refused because they belonged to an epoch of the past.
    pub stale_refusals: Counter,
    /// How long commands took, from being whole here to their end.
    pub latency: Latencies,
    ends: [Counter; End::ALL.len()],
    faults: [Counter; Fault::ALL.len()],
    statuses: [Counter; Status::ALL.len()],
}

impl Default for ExportCounters {
    fn default() -> Self {
        ExportCounters {
            connections: Counter::default(),
            accepted: Counter::default(),
            turned_away: Counter::default(),
            commands: Counter::default(),
            in_flight: Counter::default(),
            reads: Counter::default(),
            writes: Counter::default(),
            flushes: Counter::default(),
            discards: Counter::default(),
            zeroes: Counter::default(),
            compares: Counter::default(),
            expired: Counter::default(),
            digest_errors: Counter::default(),
            fences: Counter::default(),
            stale_refusals: Counter::default(),
            latency: Latencies::default(),
            ends: std::array::from_fn(|_| Counter::default()),
            faults: std::array::from_fn(|_| Counter::default()),
            statuses: std::array::from_fn(|_| Counter::default()),
        }
    }
}

impl ExportCounters {
    pub(super) fn end(&self, end: End) {
        self.ends[end as usize].add(1);
    }

    pub(super) fn fault(&self, fault: Fault) {
        self.faults[fault as usize].add(1);
    }

    pub(super) fn count(&self, op: Op, status: Status) {
        match op {
            Op::Read => self.reads.add(1),
            Op::Write => self.writes.add(1),
            Op::Flush => self.flushes.add(1),
            Op::Discard => self.discards.add(1),
            Op::WriteZeroes => self.zeroes.add(1),
            Op::Compare => self.compares.add(1),
        }
        self.statuses[status as usize].add(1);
    }

    /// Connections that ended so.
    pub fn ended(&self, end: End) -> u64 {
        self.ends[end as usize].get()
    }

    /// Connections that a host's violation of this kind ended.
    pub fn faulted(&self, fault: Fault) -> u64 {
        self.faults[fault as usize].get()
    }

    /// Everything that went wrong, by name: the kinds that occurred.
    pub fn errors(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let faults = Fault::ALL.iter().map(|fault| (fault.name(), self.faulted(*fault)));
        let ends = End::ALL.iter().filter(|end| !matches!(end, End::Closed | End::Stopped));
        let ends = ends.map(|end| (end.name(), self.ended(*end)));
        let failed = Status::ALL.iter().filter(|status| **status != Status::Ok);
        let failed = failed.map(|status| (status.name(), self.statuses[*status as usize].get()));
        let expired = std::iter::once(("keep_alive_expired", self.expired.get()));
        let turned_away = ("connection_turned_away", self.turned_away.get());
        let digests = ("data_digest", self.digest_errors.get());
        let stale = ("stale_refusals", self.stale_refusals.get());
        let others = expired.chain([turned_away, digests, stale]);
        faults.chain(ends).chain(failed).chain(others).filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_place_and_only_what_went_wrong_is_an_error() {
        let counters = ExportCounters::default();
        for (index, end) in End::ALL.iter().enumerate() {
            assert_eq!(*end as usize, index);
            counters.end(*end);
        }
        counters.fault(Fault::Digest);
        counters.count(Op::Write, Status::Ok);
        counters.count(Op::Read, Status::Media);
        let errors: Vec<_> = counters.errors().collect();
        assert_eq!(errors.len(), End::ALL.len() - 2 + 2);
        assert!(errors.contains(&("digest", 1)) && errors.contains(&("media", 1)));
    }
}
