//! What a read may return, sector by sector, and what may be left after a power cut.
//!
//! A sector's writes are kept from the newest that is known to be stable on. A read may return the
//! last one that ended, or one that failed since: whether it landed shows once, and then stays.
//! After a power cut any of the kept ones may be there, and again what a read saw stays.

use outboard_sim::Rng;

/// The unit of everything here.
pub const SECTOR_BYTES: usize = 512;

/// Names a write; 0 is zeros.
pub type Version = u64;

/// A write that ended, one way or the other.
#[derive(Clone, Copy, Debug)]
struct Entry {
    version: Version,
    /// When, in ended writes of the whole disk.
    at: u64,
    /// It may or may not have changed the sector.
    is_doubtful: bool,
}

/// The possible contents of every sector.
#[derive(Debug)]
pub struct Oracle {
    /// Oldest first, never empty.
    sectors: Vec<Vec<Entry>>,
    at: u64,
    cut_at: u64,
    /// When the sure write that began last began; and when the last flush ended well, or the power
    /// went: what is left of before is stable. The disk may have ended a write and a flush in any
    /// order long before that was seen: only what began behind the flush is not covered.
    sure_since: u64,
    flushed_at: u64,
    /// A power cut may have taken a sure write, and no failed flush has told of it.
    is_owed: bool,
    /// Doubtful writes that turned out to have landed, and sectors that went back at a power cut.
    pub landed: u64,
    pub went_back: u64,
    pub sectors_read: u64,
}

impl Oracle {
    pub fn new(sectors: u64) -> Oracle {
        let zeros = Entry { version: 0, at: 0, is_doubtful: false };
        let sectors = (0..sectors).map(|_| vec![zeros]).collect();
        Oracle {
            sectors,
            at: 1,
            cut_at: 0,
            sure_since: 0,
            flushed_at: 1,
            is_owed: false,
            landed: 0,
            went_back: 0,
            sectors_read: 0,
        }
    }

    pub fn sectors(&self) -> u64 {
        self.sectors.len() as u64
    }

    /// Now, to be given back when a flush that begins now has ended.
    pub fn now(&self) -> u64 {
        self.at
    }

    /// What write `version` writes to `count` sectors from `first` on.
    pub fn data(version: Version, first: u64, count: u64) -> Vec<u8> {
        (first..first + count).flat_map(|sector| content(version, sector)).collect()
    }

    /// A write that began at `since` has ended; `is_doubtful`: it may or may not have changed each
    /// of its sectors.
    pub fn written(
        &mut self,
        version: Version,
        (first, count): (u64, u64),
        is_doubtful: bool,
        since: u64,
    ) {
        self.at += 1;
        let entry = Entry { version, at: self.at, is_doubtful };
        self.sure_since = if is_doubtful { self.sure_since } else { self.sure_since.max(since) };
        for sector in &mut self.sectors[first as usize..(first + count) as usize] {
            sector.push(entry);
        }
    }

    /// A flush that began at `since` has ended: what had ended before is stable, unless the power
    /// went in between.
    ///
    /// # Panics
    /// When it covers what a power cut before it may have taken.
    pub fn flushed(&mut self, since: u64) {
        // One that began before the cut may have ended before it, too.
        assert!(
            !self.is_owed || since < self.cut_at,
            "a flush ended well over writes that a power cut may have taken"
        );
        self.is_owed = false;
        self.at += 1;
        self.flushed_at = self.at;
        if since < self.cut_at {
            return;
        }
        for sector in &mut self.sectors {
            let sure = |entry: &Entry| !entry.is_doubtful && entry.at <= since;
            let kept = sector.iter().rposition(sure).unwrap_or(0);
            sector.drain(..kept);
        }
    }

    /// A flush has failed: whoever asked for it knows that writes may be lost.
    pub fn told(&mut self) {
        self.is_owed = false;
    }

    /// The power went at the medium.
    pub fn power_cut(&mut self) {
        self.is_owed |= self.sure_since >= self.flushed_at;
        self.at += 1;
        (self.cut_at, self.flushed_at) = (self.at, self.at);
        for sector in &mut self.sectors {
            // Which of them is there now is anybody's guess, until it is read.
            sector.iter_mut().for_each(|entry| entry.is_doubtful = true);
        }
    }

    /// What a read of these sectors that begins now may return.
    pub fn possible(&self, first: u64, count: u64) -> Vec<Vec<Version>> {
        let sectors = &self.sectors[first as usize..(first + count) as usize];
        sectors.iter().map(|sector| possible(sector).map(|entry| entry.version).collect()).collect()
    }

    /// A read of sectors from `first` on returned `data`; `allowed` is what was possible when it
    /// began. `is_settled`: no write to them was in flight, so that what it saw stays.
    ///
    /// # Panics
    /// When it should not have seen that.
    pub fn read(&mut self, first: u64, data: &[u8], allowed: &[Vec<Version>], is_settled: bool) {
        for ((sector, bytes), allowed) in (first..).zip(data.chunks(SECTOR_BYTES)).zip(allowed) {
            let version = Version::from_le_bytes(*bytes.first_chunk().expect("a whole sector"));
            assert!(bytes == content(version, sector), "a read: sector {sector} is torn or astray");
            let entries = &mut self.sectors[sector as usize];
            let newest = entries[entries.len() - 1];
            assert!(
                allowed.contains(&version),
                "a read: sector {sector} holds write {version}, not one of {allowed:?}; {entries:?}"
            );
            self.sectors_read += 1;
            if !is_settled {
                continue;
            }
            let Some(found) = entries.iter().rposition(|entry| entry.version == version) else {
                continue;
            };
            self.landed += u64::from(newest.is_doubtful && newest.version == version);
            self.went_back += u64::from(newest.at <= self.cut_at && newest.version != version);
            entries.truncate(found + 1);
            entries[found].is_doubtful = false;
        }
    }
}

/// The last sure write and the doubtful ones after it; all, if none is sure.
fn possible(sector: &[Entry]) -> impl Iterator<Item = &Entry> {
    let from = sector.iter().rposition(|entry| !entry.is_doubtful).unwrap_or(0);
    sector[from..].iter()
}

fn content(version: Version, sector: u64) -> [u8; SECTOR_BYTES] {
    let mut bytes = [0; SECTOR_BYTES];
    if version > 0 {
        Rng::new(version << 32 ^ sector).fill(&mut bytes);
        bytes[..8].copy_from_slice(&version.to_le_bytes());
    }
    bytes
}
