//! Drives a volume of Outboard's directly, on the generator's own core: what the volume itself
//! costs, without a guest and without a daemon in front of it.

use super::block::{BlockTarget, Op};
use crate::error::Error;
use outboard::volume::{BlockDevice, Dones, Geometry, Io, Op as VolumeOp, Status, Tag};
use outboard_dma::{FRAME_BYTES, Frame, Region, Segment, Segments};

/// A volume with frames for each slot.
pub struct Device<D> {
    volume: D,
    /// Each slot's data: frames that stay where they are as long as the device lives.
    slots: Vec<Slot>,
    dones: Dones,
}

struct Slot {
    /// Kept: an I/O may write them. They are not given back, for their region lives on anyway.
    _frames: Vec<Frame>,
    segments: Segments,
}

impl<D: BlockDevice> Device<D> {
    /// Takes `depth` I/Os of `io_bytes` each.
    pub fn new(volume: D, depth: u16, io_bytes: u32) -> Result<Device<D>, Error> {
        let frames_per_slot = (io_bytes as usize).div_ceil(FRAME_BYTES).max(1);
        let wanted = frames_per_slot as u32 * u32::from(depth);
        let refused = || Error::Refused(format!("no memory for {wanted} frames"));
        let region = Region::new(wanted).map_err(|error| Error::Refused(error.to_string()))?;
        let mut free = region.carve(wanted).ok_or_else(refused)?;
        let mut slots = Vec::new();
        for _ in 0..depth {
            let (mut frames, mut segments) = (Vec::new(), Segments::new());
            let mut left = io_bytes as usize;
            for _ in 0..frames_per_slot {
                let mut frame = free.take().ok_or_else(refused)?;
                let len = left.min(FRAME_BYTES);
                left -= len;
                segments.push(Segment::of_frame(&mut frame, 0, len));
                frames.push(frame);
            }
            slots.push(Slot { _frames: frames, segments });
        }
        Ok(Device { volume, slots, dones: Dones::new() })
    }
}

impl<D: BlockDevice> BlockTarget for Device<D> {
    fn size_bytes(&self) -> u64 {
        self.volume.geometry().bytes()
    }

    fn block_bytes(&self) -> u32 {
        let Geometry { block_bytes, .. } = self.volume.geometry();
        block_bytes
    }

    fn store(&mut self, slot: u16, at: usize, data: &[u8]) {
        let segments = &self.slots[usize::from(slot)].segments;
        let mut from = 0;
        for (segment, skip, len) in pieces(segments, at, data.len()) {
            assert!(segment.copy_from(skip, &data[from..from + len]), "outside of a slot");
            from += len;
        }
    }

    fn load(&self, slot: u16, at: usize, out: &mut [u8]) {
        let segments = &self.slots[usize::from(slot)].segments;
        let mut from = 0;
        for (segment, skip, len) in pieces(segments, at, out.len()) {
            assert!(segment.copy_to(skip, &mut out[from..from + len]), "outside of a slot");
            from += len;
        }
    }

    fn submit(&mut self, slot: u16, op: Op, offset_bytes: u64, bytes: u32, now_ns: u64) -> bool {
        let segments = &self.slots[usize::from(slot)].segments;
        debug_assert_eq!(segments.iter().map(Segment::len).sum::<usize>(), bytes as usize);
        let op = match op {
            Op::Read => VolumeOp::Read,
            Op::Write => VolumeOp::Write,
        };
        let tag = Tag { owner: 0, slot };
        let io = Io { tag, op, offset_bytes, range_bytes: 0, segments };
        self.volume.submit(now_ns, &io).is_ok()
    }

    fn reap(&mut self, now_ns: u64, ended: &mut Vec<(u16, bool)>) {
        self.volume.reap(now_ns, &mut self.dones);
        ended.extend(self.dones.drain(..).map(|d| (d.tag.slot, d.status == Status::Ok)));
    }
}

/// The parts of `segments` that cover `[at, at + len)`: segment, offset in it, length.
fn pieces(
    segments: &Segments,
    at: usize,
    len: usize,
) -> impl Iterator<Item = (&Segment, usize, usize)> {
    let (mut skip, mut left) = (at, len);
    segments.iter().filter_map(move |segment| {
        if left == 0 || skip >= segment.len() {
            skip = skip.saturating_sub(segment.len());
            return None;
        }
        let (from, part) = (skip, left.min(segment.len() - skip));
        (skip, left) = (0, left - part);
        Some((segment, from, part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::LoadArgs;
    use crate::drivers::block::{self, BlockArgs, Mix};
    use outboard::volume::Mem;

    fn volume() -> Mem {
        Mem::new(Geometry { block_bytes: 4096, blocks: 1024, read_only: false }, true).unwrap()
    }

    #[test]
    fn a_volume_in_memory_verifies_at_sizes_around_a_frame() {
        for (size, depth) in [(4096, 1), (8192, 16), (block::MAX_IO_BYTES, 8)] {
            let args = LoadArgs { core: None, ..LoadArgs::closed(depth, 0.1, 0.0, 0) };
            let plan = BlockArgs {
                mix: Mix::Mixed,
                block: size,
                full_check: true,
                working_set_mib: 4,
                ..BlockArgs::default()
            };
            let device = Device::new(volume(), depth, size).unwrap();
            let measured = block::run(device, "device", "mem".into(), &args, &plan).unwrap();
            assert!(measured.verified > 0, "{size}");
            assert_eq!((measured.verify_failures, measured.errors), (0, 0), "{size}");
        }
    }

    #[test]
    fn bytes_cross_frames() {
        let mut device = Device::new(volume(), 1, 8192).unwrap();
        let data: Vec<u8> = (0..=255).collect();
        for at in [0, 4000, 4096, 8192 - 256] {
            device.store(0, at, &data);
            let mut out = vec![0; 256];
            device.load(0, at, &mut out);
            assert_eq!(out, data, "{at}");
        }
    }
}
