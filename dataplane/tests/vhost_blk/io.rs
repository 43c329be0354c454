//! Verified I/O of every shape, and what is refused.

use crate::rig::{Content, Rig, io, wait};
use outboard::virtio::driver::{BlkDriver, BlkOptions, DriverOp, Piece};
use outboard::virtio::fault::QueueFault;
use outboard_sim::Rng;
use std::collections::BTreeMap;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES};

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;

pub fn options(queues: u16, slots: u16, indirect: bool, event_idx: bool) -> BlkOptions {
    let max_io_bytes = 128 << 10;
    BlkOptions { queues, queue_size: 128, slots, max_io_bytes, indirect, event_idx }
}

/// Cuts `bytes` into up to `most` pieces at random places of the slot, in disorder.
fn pieces(rng: &mut Rng, bytes: u32, most: u64) -> Vec<Piece> {
    let mut cuts: Vec<u32> =
        (0..rng.below(most)).map(|_| 1 + rng.below(u64::from(bytes.max(2)) - 1) as u32).collect();
    cuts.extend([0, bytes]);
    cuts.sort_unstable();
    cuts.dedup();
    cuts.windows(2).map(|pair| Piece { at: pair[0], bytes: pair[1] - pair[0] }).collect()
}

/// What is in flight in a slot.
struct Flying {
    op: DriverOp,
    offset: u64,
    bytes: u32,
    /// The data of a write.
    data: Vec<u8>,
}

/// The unit of what a discard leaves unknown.
const SECTOR: usize = 512;

/// Random reads and writes of all sizes, cut in any way, discards and write-zeroes where there are
/// such, many in flight, against a model of the disk, which must be all zeros before.
pub struct Verifier<'a> {
    rng: &'a mut Rng,
    driver: &'a mut BlkDriver,
    options: BlkOptions,
    block: u64,
    model: Vec<u8>,
    /// By sector: may as well be zeros, because it was discarded.
    discarded: Vec<bool>,
    flying: BTreeMap<u16, Flying>,
}

impl<'a> Verifier<'a> {
    pub fn new(
        rng: &'a mut Rng,
        driver: &'a mut BlkDriver,
        options: BlkOptions,
        block: u64,
    ) -> Verifier<'a> {
        let model = vec![0; driver.capacity_bytes() as usize];
        let discarded = vec![false; model.len() / SECTOR];
        Verifier { rng, driver, options, block, model, discarded, flying: BTreeMap::new() }
    }

    /// Runs so many I/Os.
    pub fn run(&mut self, ios: u32) {
        let (mut begun, mut ended) = (0, 0);
        while ended < ios {
            while begun < ios && self.begin() {
                begun += 1;
            }
            self.driver.kick();
            self.end();
            ended += 1;
        }
    }

    /// Submits one, unless no slot is free or its range is in flight.
    fn begin(&mut self) -> bool {
        let free = (0..self.options.slots).find(|slot| !self.flying.contains_key(slot));
        let Some(slot) = free else { return false };
        let disk = self.model.len() as u64;
        let blocks = 1 + self.rng.below(16 * 1024 / self.block);
        let bytes = (blocks * self.block) as u32;
        let offset = self.rng.below(disk / self.block - blocks + 1) * self.block;
        let clash = self.flying.values().any(|other| {
            offset < other.offset + u64::from(other.bytes)
                && other.offset < offset + u64::from(bytes)
        });
        if clash {
            return false;
        }
        let most = if self.options.indirect {
            32
        } else {
            (u64::from(self.options.queue_size / self.options.slots) - 2).min(32)
        };
        let cut = pieces(self.rng, bytes, most);
        let mut data = vec![0; bytes as usize];
        self.rng.fill(&mut data);
        self.driver.write_data(slot, 0, &data);
        let offers = |bit: u32| self.driver.features() & 1 << bit != 0;
        let op = match self.rng.below(20) {
            0 if offers(VIRTIO_BLK_F_DISCARD) => DriverOp::Discard,
            1 if offers(VIRTIO_BLK_F_WRITE_ZEROES) => DriverOp::WriteZeroes,
            2..12 => DriverOp::Write,
            _ => DriverOp::Read,
        };
        match op {
            DriverOp::Discard | DriverOp::WriteZeroes => {
                data.fill(0);
                self.driver.submit(op, offset, slot, bytes);
            }
            _ => self.driver.submit_pieces(op, offset, slot, &cut),
        }
        self.flying.insert(slot, Flying { op, offset, bytes, data });
        true
    }

    /// Waits for one and compares.
    fn end(&mut self) {
        let completion = wait(self.driver);
        let Flying { op, offset, bytes, data } = self.flying.remove(&completion.slot).unwrap();
        assert_eq!(completion.status, OK, "{op:?} of {bytes} at {offset}");
        let range = offset as usize..offset as usize + bytes as usize;
        let sectors = range.start / SECTOR..range.end / SECTOR;
        match op {
            DriverOp::Discard => self.discarded[sectors].fill(true),
            DriverOp::Read => {
                let mut got = vec![0; bytes as usize];
                self.driver.read_data(completion.slot, 0, &mut got);
                let pairs = got.chunks(SECTOR).zip(self.model[range].chunks(SECTOR));
                for (sector, (got, want)) in sectors.zip(pairs) {
                    let may_be_zero = self.discarded[sector] && got.iter().all(|byte| *byte == 0);
                    assert!(got == want || may_be_zero, "wrong data in sector {sector}");
                }
            }
            _ => {
                self.model[range].copy_from_slice(&data);
                self.discarded[sectors].fill(false);
            }
        }
    }
}

fn verified(rng: &mut Rng, options: BlkOptions, block: u64, ios: u32) {
    const DISK: u64 = 4 << 20;
    let rig = Rig::start(vec![(Content::mem(block as u32, DISK, false), options.queues)]);
    let mut driver = rig.connect(0, options);
    assert_eq!(driver.capacity_bytes(), DISK);
    Verifier::new(rng, &mut driver, options, block).run(ios);
    let counters = rig.counters(0);
    let moved = counters.reads.get() + counters.writes.get();
    let (discards, zeroes) = (counters.discards.get(), counters.write_zeroes.get());
    assert_eq!(moved + discards + zeroes, u64::from(ios));
    assert!(discards > 0 && zeroes > 0);
    assert_eq!(counters.faults.total(), 0);
    assert_eq!(counters.in_flight.get(), 0);
}

#[test]
fn random_io_is_what_was_written() {
    let mut rng = Rng::new(1);
    for (indirect, event_idx) in [(false, false), (false, true), (true, false), (true, true)] {
        for (queues, slots, block) in [(1, 1, 512), (1, 16, 4096), (2, 16, 512), (4, 24, 512)] {
            verified(&mut rng, options(queues, slots, indirect, event_idx), block, 1000);
        }
    }
}

/// A range as the driver writes it: sector, count, flags.
fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// Virtio 1.2, section 5.2.6: limits, flags, and how many ranges.
#[test]
fn discards_and_write_zeroes_do_what_the_specification_says() {
    const BYTES: u64 = 2 << 30;
    let rig = Rig::start(vec![
        (Content::mem(512, BYTES, false), 1),
        (Content::mem(4096, 1 << 20, false), 1),
        (Content::mem(512, 1 << 20, true), 1),
    ]);
    let mut driver = rig.connect(0, options(1, 4, false, true));
    let offered = |driver: &BlkDriver| driver.features() >> VIRTIO_BLK_F_DISCARD & 3;
    assert_eq!(offered(&driver), 3);
    let (discard, zeroes) = (DriverOp::RawOut(11), DriverOp::RawOut(13));
    let end = BYTES / 512;
    for (op, data, status) in [
        (discard, range(0, 1 << 21, 0), OK),
        (discard, range(0, (1 << 21) + 1, 0), IOERR),
        (zeroes, range(8, 1 << 17, 0), OK),
        (zeroes, range(8, (1 << 17) + 1, 0), IOERR),
        (zeroes, range(8, 8, 1), OK),
        (discard, range(8, 8, 1), UNSUPPORTED),
        (discard, range(8, 8, 2), UNSUPPORTED),
        (zeroes, range(8, 8, 2), UNSUPPORTED),
        (zeroes, range(8, 8, 3), UNSUPPORTED),
        (zeroes, range(8, u32::MAX, 1 << 31), UNSUPPORTED),
        (discard, range(0, 0, 0), OK),
        (discard, range(end - 1, 1, 0), OK),
        (discard, range(end - 1, 2, 0), IOERR),
        (zeroes, range(end, 1, 0), IOERR),
        (zeroes, range(u64::MAX, 1, 0), IOERR),
        (zeroes, range(1 << 55, 1, 0), IOERR),
        (discard, Vec::new(), IOERR),
        (discard, vec![0; 15], IOERR),
        (discard, vec![0; 17], IOERR),
        (zeroes, vec![0; 32], IOERR),
    ] {
        driver.write_data(0, 0, &data);
        let got = io(&mut driver, op, 0, 0, data.len() as u32);
        assert_eq!(got, (status, 1), "{op:?} {data:?}");
    }
    // Data that the device should write.
    assert_eq!(io(&mut driver, DriverOp::Raw(13), 0, 0, 16).0, IOERR);
    assert_eq!(rig.counters(0).faults.get(QueueFault::Range), 6);
    assert_eq!(rig.counters(0).faults.get(QueueFault::Data), 1);
    let mut large = rig.connect(1, options(1, 4, false, true));
    assert_eq!(io(&mut large, DriverOp::Discard, 4096, 0, 4096), (OK, 1));
    assert_eq!(io(&mut large, DriverOp::Discard, 4096, 0, 512), (IOERR, 1), "part of a block");
    let mut read_only = rig.connect(2, options(1, 4, false, true));
    assert_eq!(offered(&read_only), 0);
    for op in [DriverOp::Discard, DriverOp::WriteZeroes] {
        assert_eq!(io(&mut read_only, op, 0, 0, 512), (IOERR, 1));
    }
}

#[test]
fn flush_serial_and_what_is_refused() {
    let rig = Rig::start(vec![
        (Content::mem(4096, 1 << 20, false), 1),
        (Content::mem(512, 1 << 20, true), 1),
    ]);
    let mut driver = rig.connect(0, options(1, 4, false, true));
    assert_eq!(io(&mut driver, DriverOp::Flush, 0, 0, 0), (OK, 1));
    for (bytes, told) in [(20, 20), (64, 20), (5, 5)] {
        assert_eq!(io(&mut driver, DriverOp::GetId, 0, 1, bytes), (OK, told + 1));
        let mut id = [0xff; 20];
        driver.read_data(1, 0, &mut id[..told as usize]);
        assert_eq!(id[..told as usize], b"disk-0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..told as usize]);
    }
    let end = 1 << 20;
    for (op, offset, bytes, status) in [
        (DriverOp::Read, end - 4096, 4096, OK),
        (DriverOp::Read, end - 4096, 8192, IOERR),
        (DriverOp::Read, end, 4096, IOERR),
        (DriverOp::Write, u64::MAX - 511, 4096, IOERR),
        (DriverOp::Read, 512, 4096, IOERR),
        (DriverOp::Read, 4096, 512, IOERR),
        (DriverOp::Read, 0, 0, OK),
        (DriverOp::Read, end + 4096, 0, IOERR),
        (DriverOp::Raw(14), 0, 16, UNSUPPORTED),
        (DriverOp::Raw(0xffff_ffff), 0, 0, UNSUPPORTED),
        (DriverOp::Write, 0, 4096, OK),
    ] {
        let got = io(&mut driver, op, offset, 0, bytes);
        assert_eq!(got.0, status, "{op:?} of {bytes} at {offset}");
    }
    let mut read_only = rig.connect(1, options(1, 4, true, true));
    assert_eq!(io(&mut read_only, DriverOp::Write, 0, 0, 512).0, IOERR);
    assert_eq!(io(&mut read_only, DriverOp::Read, 0, 0, 512), (OK, 513));
    assert_eq!(rig.counters(1).status(outboard::volume::Status::ReadOnly), 1);
    assert_eq!(read_only.features() & 1 << 5, 1 << 5);
}
