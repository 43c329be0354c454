//! What a read may return: per sector the last completed write, or any write that failed since.

use outboard_sim::Rng;

pub const SECTOR_BYTES: usize = 512;

/// The possible versions of every sector. A version is the number of a write; 0 is never written.
#[derive(Debug)]
pub struct Oracle {
    sectors: Vec<Vec<u64>>,
    /// Sectors that a failed write turned out to have changed, and not.
    pub landed: u64,
    pub not_landed: u64,
    pub sectors_read: u64,
}

impl Oracle {
    pub fn new(sectors: u64) -> Oracle {
        let sectors = (0..sectors).map(|_| vec![0]).collect();
        Oracle { sectors, landed: 0, not_landed: 0, sectors_read: 0 }
    }

    pub fn sectors(&self) -> u64 {
        self.sectors.len() as u64
    }

    /// What write `version` writes to `count` sectors from `first` on.
    pub fn data(version: u64, first: u64, count: u64) -> Vec<u8> {
        (first..first + count).flat_map(|sector| content(version, sector)).collect()
    }

    pub fn completed(&mut self, version: u64, first: u64, count: u64) {
        for sector in &mut self.sectors[first as usize..(first + count) as usize] {
            sector.clear();
            sector.push(version);
        }
    }

    /// The write may or may not have changed each of its sectors.
    pub fn failed(&mut self, version: u64, first: u64, count: u64) {
        for sector in &mut self.sectors[first as usize..(first + count) as usize] {
            sector.push(version);
        }
    }

    /// What these sectors hold, if there is no doubt.
    pub fn sure(&self, first: u64, count: u64) -> Option<Vec<u8>> {
        let sectors = first..first + count;
        let contents = sectors.map(|sector| match self.sectors[sector as usize][..] {
            [version] => Some(content(version, sector)),
            _ => None,
        });
        contents.collect::<Option<Vec<_>>>().map(|contents| contents.concat())
    }

    /// A read returned `data` from sector `first` on. What it saw stays.
    ///
    /// # Panics
    /// When it should not have seen that.
    pub fn read(&mut self, first: u64, data: &[u8]) {
        for (sector, bytes) in (first..).zip(data.chunks(SECTOR_BYTES)) {
            let version = u64::from_le_bytes(*bytes.first_chunk().expect("a whole sector"));
            assert!(bytes == content(version, sector), "sector {sector} is torn or misplaced");
            let possible = &mut self.sectors[sector as usize];
            assert!(
                possible.contains(&version),
                "sector {sector} holds write {version}, not one of {possible:?}"
            );
            if possible.len() > 1 {
                let newest = possible[possible.len() - 1];
                *(if version == newest { &mut self.landed } else { &mut self.not_landed }) += 1;
            }
            self.sectors_read += 1;
            possible.clear();
            possible.push(version);
        }
    }
}

fn content(version: u64, sector: u64) -> [u8; SECTOR_BYTES] {
    let mut bytes = [0; SECTOR_BYTES];
    if version > 0 {
        Rng::new(version << 32 ^ sector).fill(&mut bytes);
        bytes[..8].copy_from_slice(&version.to_le_bytes());
    }
    bytes
}
