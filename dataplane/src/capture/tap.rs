//! The tap: its filter runs on the worker, so that only what is wanted crosses to control.
//!
//! The ring carries records: time (8 bytes, ns), length of the packet (4), length of what
//! follows (4), why it was dropped (2, [`NOT_DROPPED`] if it was not), the stage (1), a zero, then
//! the bytes.
//! A record is written whole or not at all. Seen = written + missed.

use super::Filter;
use crate::counters::Counter;
use crate::drop::DropReason;
use crate::packet::{Packet, PortId};
use rtrb::{Consumer, Producer, RingBuffer};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Bytes of one tap's ring: about 2 600 full packets, 30 000 small ones.
pub const RING_BYTES: usize = 4 << 20;
/// The most bytes of a packet that are kept: the largest packet.
pub const SNAP_BYTES_MAX: usize = 65_535 + 128;
const HEADER_BYTES: usize = 20;
const NOT_DROPPED: u16 = u16::MAX;

/// Where on its way a packet is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// As it came in through the port.
    In,
    /// As it goes out through the port.
    Out,
    /// What came in through the port and was dropped, when it was.
    Drop,
}

impl Stage {
    /// Every stage with its name.
    pub const NAMES: [(&str, Stage); 3] =
        [("in", Stage::In), ("out", Stage::Out), ("drop", Stage::Drop)];
}

/// What a tap looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The port.
    pub port: PortId,
    /// Where on their way packets are seen.
    pub stages: Vec<Stage>,
    /// Which packets.
    pub filter: Filter,
    /// How much is kept of each, at most [`SNAP_BYTES_MAX`].
    pub snap_bytes: usize,
}

/// The worker's end.
#[derive(Debug)]
pub struct Tap {
    /// Names the capture that it belongs to.
    pub id: u64,
    port: PortId,
    /// By stage: whether packets are looked at there.
    is_on: [bool; Stage::NAMES.len()],
    filter: Filter,
    snap_bytes: usize,
    ring: Producer<u8>,
    missed: Arc<Counter>,
}

/// Control's end.
#[derive(Debug)]
pub struct Drain {
    ring: Consumer<u8>,
    missed: Arc<Counter>,
}

/// One packet that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When, on the worker's clock.
    pub time_ns: u64,
    /// Where.
    pub stage: Stage,
    /// Bytes of the packet.
    pub packet_bytes: u32,
    /// Why it was dropped, if it was.
    pub dropped: Option<DropReason>,
    /// Its first bytes.
    pub data: Vec<u8>,
}

/// Both ends of a tap of capture `id`.
pub fn tap(id: u64, wanted: Wanted) -> (Tap, Drain) {
    let Wanted { port, stages, filter, snap_bytes } = wanted;
    let (writer, reader) = RingBuffer::new(RING_BYTES);
    let missed = Arc::<Counter>::default();
    let snap_bytes = snap_bytes.min(SNAP_BYTES_MAX);
    let is_on = Stage::NAMES.map(|(_, stage)| stages.contains(&stage));
    let drain = Drain { ring: reader, missed: Arc::clone(&missed) };
    (Tap { id, port, is_on, filter, snap_bytes, ring: writer, missed }, drain)
}

impl Tap {
    /// Whether it looks at packets of this port at this stage.
    #[inline]
    pub fn is_on(&self, port: PortId, stage: Stage) -> bool {
        self.port == port && self.is_on[stage as usize]
    }

    /// Looks at a packet; `reason` when it is being dropped.
    pub fn see(&mut self, now_ns: u64, stage: Stage, packet: &Packet, reason: Option<DropReason>) {
        let bytes = packet.bytes();
        if !self.filter.takes(packet.head(), bytes) {
            return;
        }
        let kept = bytes.min(self.snap_bytes);
        let Ok(mut chunk) = self.ring.write_chunk(HEADER_BYTES + kept) else {
            return self.missed.add(1);
        };
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&now_ns.to_le_bytes());
        header[8..12].copy_from_slice(&(bytes as u32).to_le_bytes());
        header[12..16].copy_from_slice(&(kept as u32).to_le_bytes());
        let reason = reason.map_or(NOT_DROPPED, |reason| reason as u16);
        header[16..18].copy_from_slice(&reason.to_le_bytes());
        header[18] = stage as u8;
        let (first, second) = chunk.as_mut_slices();
        let mut room = [first, second];
        let mut at = 0;
        for part in [&header[..]].into_iter().chain(packet.segments()) {
            let part = &part[..part.len().min(HEADER_BYTES + kept - at)];
            put(&mut room, at, part);
            at += part.len();
        }
        chunk.commit_all();
    }
}

/// Copies `part` to position `at` of two slices that follow each other.
fn put(room: &mut [&mut [u8]; 2], at: usize, part: &[u8]) {
    let split = room[0].len();
    let here = part.len().min(split.saturating_sub(at));
    room[0][at.min(split)..][..here].copy_from_slice(&part[..here]);
    let there = (at + here).saturating_sub(split);
    room[1][there..][..part.len() - here].copy_from_slice(&part[here..]);
}

/// What was seen since the last look, in order.
impl Iterator for Drain {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        let mut header = [0; HEADER_BYTES];
        // Records are whole: with the header there is the rest.
        self.read(&mut header)?;
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let mut data = vec![0; word(12) as usize];
        self.read(&mut data)?;
        let reason = u16::from_le_bytes([header[16], header[17]]);
        Some(Record {
            time_ns: u64::from(word(0)) | u64::from(word(4)) << 32,
            stage: Stage::NAMES[usize::from(header[18])].1,
            packet_bytes: word(8),
            dropped: DropReason::ALL.get(usize::from(reason)).copied(),
            data,
        })
    }
}

impl Drain {
    fn read(&mut self, out: &mut [u8]) -> Option<()> {
        let chunk = self.ring.read_chunk(out.len()).ok()?;
        let (first, second) = chunk.as_slices();
        out[..first.len()].copy_from_slice(first);
        out[first.len()..].copy_from_slice(second);
        chunk.commit_all();
        Some(())
    }

    /// Packets that found the ring full.
    pub fn missed(&self) -> u64 {
        self.missed.get()
    }

    /// Whether the worker has dropped its end, and everything was read.
    pub fn has_ended(&self) -> bool {
        self.ring.is_abandoned() && self.ring.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Drops;
    use outboard_dma::{Chain, FreeList, Region};

    const PORT: PortId = PortId(3);

    fn stock() -> FreeList {
        Region::new(64).unwrap().carve(64).unwrap()
    }

    fn on(stage: Stage, filter: &str, snap_bytes: usize) -> (Tap, Drain) {
        let filter = Filter::parse(filter).unwrap();
        tap(1, Wanted { port: PORT, stages: vec![stage], filter, snap_bytes })
    }

    fn pass(tap: &mut Tap, now_ns: u64, data: &[u8], free: &mut FreeList) {
        let packet = Packet::new(Chain::from_slice(data, free).unwrap(), PORT);
        tap.see(now_ns, Stage::In, &packet, None);
        packet.drop_with(DropReason::Stopping, &Drops::default(), free);
    }

    fn data(len: usize, seed: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 7 + seed) as u8).collect()
    }

    #[test]
    fn packets_of_one_and_of_many_frames_come_out_as_they_were() {
        let mut free = stock();
        let (mut tap, mut drain) = on(Stage::In, "", 70_000);
        assert!(tap.is_on(PORT, Stage::In));
        assert!(!tap.is_on(PORT, Stage::Out) && !tap.is_on(PortId(0), Stage::In));
        // Long enough to wrap around several times, at every position.
        for round in 0..2_000usize {
            let sent = data([60, 61, 1500, 9_001, 60_000][round % 5], round);
            pass(&mut tap, 1 << 40 | round as u64, &sent, &mut free);
            let seen = drain.next().unwrap();
            assert_eq!(seen.time_ns, 1 << 40 | round as u64);
            assert_eq!(seen.packet_bytes as usize, sent.len());
            assert_eq!((seen.data, seen.dropped), (sent, None));
            assert_eq!(drain.next(), None);
        }
        assert_eq!((drain.missed(), drain.has_ended()), (0, false));
        drop(tap);
        assert!(drain.has_ended());
    }

    #[test]
    fn long_packets_are_cut_and_reasons_are_kept() {
        let mut free = stock();
        let (mut tap, mut drain) = on(Stage::Drop, "", 100);
        let sent = data(9_000, 1);
        let packet = Packet::new(Chain::from_slice(&sent, &mut free).unwrap(), PORT);
        tap.see(5, Stage::Drop, &packet, Some(DropReason::NoRoute));
        packet.drop_with(DropReason::NoRoute, &Drops::default(), &mut free);
        let seen = drain.next().unwrap();
        assert_eq!((seen.packet_bytes, &seen.data[..]), (9_000, &sent[..100]));
        assert_eq!((seen.stage, seen.dropped), (Stage::Drop, Some(DropReason::NoRoute)));
    }

    #[test]
    fn what_the_filter_leaves_takes_no_room_and_what_does_not_fit_is_missed() {
        let mut free = stock();
        let (mut tap, mut drain) = on(Stage::In, "greater 1000", 9000);
        pass(&mut tap, 1, &data(999, 0), &mut free);
        assert_eq!(drain.next(), None);
        let fits = RING_BYTES / (HEADER_BYTES + 9_000);
        for _ in 0..fits + 3 {
            pass(&mut tap, 1, &data(9_000, 0), &mut free);
        }
        assert_eq!(drain.missed(), 3);
        assert_eq!(drain.by_ref().count(), fits);
        pass(&mut tap, 1, &data(9_000, 0), &mut free);
        assert!(drain.next().is_some());
    }
}
