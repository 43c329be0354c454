//! The stage ledger: where packets and I/Os spent their time, stage by stage.
//!
//! A [`Ledger`] has log-linear buckets of total time (3.2 % wide at most, 1 ns to 17 s), each with
//! a count and the sum of every stage's time, so that the average share of each stage at a
//! percentile is read off the buckets around it; and the [`SLOWEST`] entries spelled out. Memory
//! is fixed and made by control; a worker writes its own, and gives it back whole, so that what is
//! read is always consistent. Times are nanoseconds. A total is the sum of its stages.

mod report;
mod stamp;

pub use report::{Point, Report, Slow, Table, time};
pub use stamp::Stamp;

/// Stages that a kind has at most.
pub const STAGES_MAX: usize = 8;
/// Entries that are spelled out.
pub const SLOWEST: usize = 16;
/// Samples that must lie beyond a percentile for it to be told.
const BEYOND: u64 = 10;
/// Entries that an average of shares is taken over at least, when there are as many.
const AROUND: u64 = 10;
/// Buckets per doubling, as a power of two.
const SUB_BITS: u32 = 5;
/// Totals are less than two to this power; longer ones lie in the last bucket.
const TOTAL_BITS: u32 = 34;
const BUCKETS: usize = ((TOTAL_BITS - SUB_BITS + 1) << SUB_BITS) as usize;

/// What went through which stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A packet, from port to port.
    Packet,
    /// A guest's I/O on a volume in memory.
    Mem,
    /// A guest's I/O on a file or block device.
    File,
    /// A guest's I/O on a volume at an NVMe/TCP target.
    Remote,
    /// Another host's I/O on an exported volume: the target's side.
    Export,
}

/// A stage's name, and what happens in it.
pub type Stage = (&'static str, &'static str);

const UNSEEN: Stage = ("unseen", "it was there, the worker had not looked: at most");
const TAKE: Stage = ("take", "out of the ring, checked; waited for room in the volume");
const ANSWER: Stage = ("answer", "status written, others of this turn answered");
const NOTIFY: Stage = ("notify", "shown to the guest, the guest called");

impl Kind {
    /// Every kind, in the order of their discriminants.
    pub const ALL: [Kind; 5] = [Kind::Packet, Kind::Mem, Kind::File, Kind::Remote, Kind::Export];

    /// The name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Packet => "packet",
            Kind::Mem => "mem I/O",
            Kind::File => "file I/O",
            Kind::Remote => "remote I/O",
            Kind::Export => "export I/O",
        }
    }

    /// Its stages, in the order in which they follow each other.
    pub fn stages(self) -> &'static [Stage] {
        match self {
            Kind::Packet => &[
                UNSEEN,
                ("receive", "out of the port's ring"),
                ("decide", "parsed, looked up, rewritten, with its burst"),
                ("cross", "on the ring to the worker that owns the port"),
                ("wait", "decided, until its port was sent to"),
                ("send", "given to the port"),
            ],
            Kind::Mem => &[
                UNSEEN,
                TAKE,
                ("queue", "until the volume began"),
                ("copy", "copied from or to the volume's memory"),
                ("reap", "until the worker collected it"),
                ANSWER,
                NOTIFY,
            ],
            Kind::File => &[
                UNSEEN,
                TAKE,
                ("queue", "until the kernel was told"),
                ("medium", "in the kernel and on the medium, until its end was seen"),
                ("reap", "until the worker collected it"),
                ANSWER,
                NOTIFY,
            ],
            Kind::Remote => &[
                UNSEEN,
                TAKE,
                ("queue", "until the command was sent"),
                ("target", "on the network and at the target, until the answer came"),
                ("place", "data put in its place, collected"),
                ANSWER,
                NOTIFY,
            ],
            Kind::Export => &[
                UNSEEN,
                ("receive", "its last bytes, off the socket"),
                ("parse", "parsed, its memory found; waited for room in the volume"),
                ("queue", "until the volume began"),
                ("medium", "copied, or in the kernel and on the medium"),
                ("reap", "until the worker collected it"),
                ("wait", "answered, until the socket was sent to and had room"),
                ("send", "given to the socket"),
            ],
        }
    }
}

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A packet between ports, by number.
    Packet {
        /// Where it came in.
        from: u16,
        /// Where it went out.
        to: u16,
    },
    /// An I/O.
    Io {
        /// The volume's number.
        volume: u32,
        /// Whose among the volume's users.
        owner: u16,
        /// What it did.
        op: &'static str,
    },
}

/// One packet or I/O that has been through all its stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When its first stage began.
    pub began_ns: u64,
    /// Time in every stage; zero behind the last one of its kind.
    pub stages_ns: [u64; STAGES_MAX],
    /// What it is about.
    pub subject: Subject,
    /// Its size.
    pub bytes: u32,
}

impl Entry {
    /// The whole time.
    pub fn total_ns(&self) -> u64 {
        self.stages_ns.iter().sum()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bucket {
    count: u64,
    stages_ns: [u64; STAGES_MAX],
}

impl Bucket {
    fn add(&mut self, other: &Bucket) {
        self.count += other.count;
        for (sum, more) in self.stages_ns.iter_mut().zip(&other.stages_ns) {
            *sum = sum.saturating_add(*more);
        }
    }
}

/// The entries of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    buckets: Box<[Bucket]>,
    count: u64,
    /// By falling total.
    slowest: Vec<(u64, Entry)>,
}

impl Default for Ledger {
    fn default() -> Self {
        Ledger {
            buckets: vec![Bucket::default(); BUCKETS].into(),
            count: 0,
            slowest: Vec::with_capacity(SLOWEST),
        }
    }
}

/// What lies at a percentile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct At {
    /// The whole time: the mean of the bucket that the percentile lies in.
    pub total_ns: f64,
    /// The part that each stage has of it; they sum to 1.
    pub shares: [f64; STAGES_MAX],
}

impl Ledger {
    /// Adds an entry. Allocates nothing.
    #[inline]
    pub fn record(&mut self, entry: &Entry) {
        let total_ns = entry.total_ns();
        let bucket = &mut self.buckets[bucket_of(total_ns)];
        bucket.add(&Bucket { count: 1, stages_ns: entry.stages_ns });
        self.count += 1;
        self.keep_slow(total_ns, entry);
    }

    #[inline]
    fn keep_slow(&mut self, total_ns: u64, entry: &Entry) {
        if self.slowest.len() == SLOWEST {
            if self.slowest[SLOWEST - 1].0 >= total_ns {
                return;
            }
            self.slowest.pop();
        }
        let place = self.slowest.partition_point(|(other_ns, _)| *other_ns >= total_ns);
        self.slowest.insert(place, (total_ns, *entry));
    }

    /// Adds all entries of another.
    pub fn merge(&mut self, other: &Ledger) {
        for (bucket, more) in self.buckets.iter_mut().zip(&other.buckets) {
            bucket.add(more);
        }
        self.count += other.count;
        for (total_ns, entry) in &other.slowest {
            self.keep_slow(*total_ns, entry);
        }
    }

    /// Entries so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The slowest, slowest first.
    pub fn slowest(&self) -> impl Iterator<Item = &Entry> {
        self.slowest.iter().map(|(_, entry)| entry)
    }

    /// What lies at `quantile` (0 to 1); `None` when too few entries lie beyond it to tell.
    pub fn at(&self, quantile: f64) -> Option<At> {
        let rank = (self.count as f64 * quantile).ceil().max(1.0) as u64;
        if self.count.saturating_sub(rank) < BEYOND {
            return None;
        }
        let mut before = 0;
        let index = self.buckets.iter().position(|bucket| {
            before += bucket.count;
            before >= rank
        })?;
        let around = self.around(index);
        let sum = |bucket: &Bucket| bucket.stages_ns.iter().map(|ns| *ns as f64).sum::<f64>();
        let total_ns = sum(&self.buckets[index]) / self.buckets[index].count as f64;
        let all = sum(&around);
        let mut shares = around.stages_ns.map(|ns| ns as f64 / all);
        if all == 0.0 {
            shares = [0.0; STAGES_MAX];
            shares[0] = 1.0;
        }
        Some(At { total_ns, shares })
    }

    /// The bucket, and as many next to it as it takes for an average.
    fn around(&self, index: usize) -> Bucket {
        let mut sum = self.buckets[index];
        let mut width = 1;
        while sum.count < AROUND.min(self.count) && width < BUCKETS {
            let below = index.checked_sub(width);
            for near in [below, Some(index + width)].into_iter().flatten() {
                self.buckets.get(near).into_iter().for_each(|bucket| sum.add(bucket));
            }
            width += 1;
        }
        sum
    }
}

#[inline]
fn bucket_of(ns: u64) -> usize {
    let ns = ns.min((1 << TOTAL_BITS) - 1);
    if ns < 1 << SUB_BITS {
        return ns as usize;
    }
    let shift = ns.ilog2() - SUB_BITS;
    ((shift as usize) << SUB_BITS) + (ns >> shift) as usize
}

/// What one worker writes: a ledger of each kind.
#[derive(Clone, Debug)]
pub struct Ledgers {
    /// Entries that began before are none of it: parts of them were not seen.
    pub since_ns: u64,
    kinds: [Ledger; Kind::ALL.len()],
}

impl Ledgers {
    /// Empty ones.
    pub fn new(since_ns: u64) -> Ledgers {
        Ledgers { since_ns, kinds: std::array::from_fn(|_| Ledger::default()) }
    }

    /// Adds an entry, unless it began too early.
    #[inline]
    pub fn record(&mut self, kind: Kind, entry: &Entry) {
        if entry.began_ns >= self.since_ns {
            self.kinds[kind as usize].record(entry);
        }
    }

    /// The ledger of a kind.
    pub fn of(&self, kind: Kind) -> &Ledger {
        &self.kinds[kind as usize]
    }

    /// Adds another worker's.
    pub fn merge(&mut self, other: &Ledgers) {
        self.since_ns = self.since_ns.min(other.since_ns);
        for (ledger, more) in self.kinds.iter_mut().zip(&other.kinds) {
            ledger.merge(more);
        }
    }
}

#[cfg(test)]
mod tests;
