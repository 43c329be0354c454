//! The virtio block device (virtio 1.2, section 5.2): features, configuration space, requests.
//!
//! A request is what its readable and writable bytes say, however they are cut into descriptors
//! (2.7.4.1): 16 bytes of header, then the data to write; the data to read, then one byte for the
//! status. [`parse`] checks the layout; whether the range lies on the disk is the caller's check.
//! A discard or write-zeroes names its range in its data, of which one request has one.

use crate::virtio::fault::QueueFault;
use crate::virtio::queue::DescriptorChain;
use outboard_dma::{MAX_SEGMENTS, Segment, Segments};
use virtio_bindings::{virtio_blk as blk, virtio_config as config, virtio_ring as ring};

/// The unit of a request's position and of the capacity, whatever the block size (5.2.6).
pub const SECTOR_BYTES: u64 = 512;
/// Length of the serial that GET_ID returns.
pub const ID_BYTES: usize = blk::VIRTIO_BLK_ID_BYTES as usize;
/// The most data segments that the driver is told to use: two fewer than an I/O can carry, for
/// buffers that straddle memory regions.
pub const SEG_MAX: u32 = MAX_SEGMENTS as u32 - 2;
/// The longest segment that the driver is told to use.
pub const SIZE_MAX: u32 = 128 << 10;
/// The most data of one request: all segments at their longest. More would hold a worker, and
/// with it other guests, for as long as it takes to copy.
pub const MAX_REQUEST_BYTES: u64 = SIZE_MAX as u64 * SEG_MAX as u64;
/// The most sectors of a discard: 1 GiB.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// The most sectors of a write-zeroes, which may come to writing them all: 64 MiB.
pub const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 17;
/// The unit in which memory and file systems give space back.
const DISCARD_BYTES: u32 = 4096;
/// Length of a range: sector, count of sectors, flags (5.2.6, `virtio_blk_discard_write_zeroes`).
pub const RANGE_BYTES: usize = 16;
/// The only flag that is known, and that for write-zeroes alone: the space may be given back. It
/// is not (`write_zeroes_may_unmap` is 0).
const RANGE_UNMAP: u32 = blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
/// Bytes of the configuration space, zero behind what is defined.
pub const CONFIG_BYTES: usize = 256;
/// Length of a request's header.
pub const HEADER_BYTES: usize = 16;

/// The request was done.
pub const STATUS_OK: u8 = blk::VIRTIO_BLK_S_OK as u8;
/// The request failed.
pub const STATUS_IOERR: u8 = blk::VIRTIO_BLK_S_IOERR as u8;
/// The request is not known.
pub const STATUS_UNSUPPORTED: u8 = blk::VIRTIO_BLK_S_UNSUPP as u8;

/// What the driver is told about the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlkShape {
    /// Size of the disk; a multiple of the block size.
    pub bytes: u64,
    /// The block size.
    pub block_bytes: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Request queues.
    pub queues: u16,
}

impl BlkShape {
    /// The device's feature bits, transport bits of vhost-user not included.
    pub fn features(&self) -> u64 {
        let mut bits = vec![
            blk::VIRTIO_BLK_F_SIZE_MAX,
            blk::VIRTIO_BLK_F_SEG_MAX,
            blk::VIRTIO_BLK_F_BLK_SIZE,
            blk::VIRTIO_BLK_F_FLUSH,
            blk::VIRTIO_BLK_F_TOPOLOGY,
            ring::VIRTIO_RING_F_INDIRECT_DESC,
            ring::VIRTIO_RING_F_EVENT_IDX,
            config::VIRTIO_F_VERSION_1,
        ];
        if self.read_only {
            bits.push(blk::VIRTIO_BLK_F_RO);
        } else {
            bits.extend([blk::VIRTIO_BLK_F_DISCARD, blk::VIRTIO_BLK_F_WRITE_ZEROES]);
        }
        if self.queues > 1 {
            bits.push(blk::VIRTIO_BLK_F_MQ);
        }
        bits.into_iter().fold(0, |all, bit| all | 1 << bit)
    }

    /// The configuration space (5.2.4).
    pub fn config(&self) -> [u8; CONFIG_BYTES] {
        let mut space = [0; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.bytes / SECTOR_BYTES).to_le_bytes()); // capacity
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &self.block_bytes.to_le_bytes());
        // Physical blocks of a page, in powers of two of the block size.
        let unit = DISCARD_BYTES.max(self.block_bytes);
        put(24, &[(unit / self.block_bytes).ilog2() as u8]); // physical_block_exp
        put(26, &1u16.to_le_bytes()); // min_io_size, in blocks
        put(34, &self.queues.to_le_bytes()); // num_queues
        if !self.read_only {
            put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
            put(40, &1u32.to_le_bytes()); // max_discard_seg
            put(44, &(unit / SECTOR_BYTES as u32).to_le_bytes()); // discard_sector_alignment
            put(48, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
            put(52, &1u32.to_le_bytes()); // max_write_zeroes_seg
            put(56, &[0]); // write_zeroes_may_unmap
        }
        space
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkKind {
    /// VIRTIO_BLK_T_IN
    Read,
    /// VIRTIO_BLK_T_OUT
    Write,
    /// VIRTIO_BLK_T_FLUSH
    Flush,
    /// VIRTIO_BLK_T_GET_ID
    GetId,
    /// VIRTIO_BLK_T_DISCARD
    Discard,
    /// VIRTIO_BLK_T_WRITE_ZEROES
    WriteZeroes,
    /// Any other type, or a range with unknown flags: to be answered with UNSUPP.
    Unknown(u32),
}

/// A request whose layout is sound.
#[derive(Debug)]
pub struct BlkRequest {
    /// What to do.
    pub kind: BlkKind,
    /// Where, in 512-byte sectors.
    pub sector: u64,
    /// How many sectors, for a discard or write-zeroes; 0 otherwise.
    pub sectors: u32,
    /// The data's place; nothing for what has none.
    pub data: Segments,
    /// Where the status byte goes.
    pub status: Segment,
}

/// A request whose layout is not sound.
#[derive(Clone, Copy, Debug)]
pub struct BadRequest {
    /// What is wrong.
    pub fault: QueueFault,
    /// Where an error can be told, when there is a writable byte at all.
    pub status: Option<Segment>,
}

/// What a request's header asks for, and the sector (5.2.6).
#[inline]
pub fn read_header(header: &[u8; HEADER_BYTES]) -> (BlkKind, u64) {
    let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let (_, sector) = header.split_at(8);
    let sector = sector.try_into().map_or(0, u64::from_le_bytes);
    let kind = match kind {
        blk::VIRTIO_BLK_T_IN => BlkKind::Read,
        blk::VIRTIO_BLK_T_OUT => BlkKind::Write,
        blk::VIRTIO_BLK_T_FLUSH => BlkKind::Flush,
        blk::VIRTIO_BLK_T_GET_ID => BlkKind::GetId,
        blk::VIRTIO_BLK_T_DISCARD => BlkKind::Discard,
        blk::VIRTIO_BLK_T_WRITE_ZEROES => BlkKind::WriteZeroes,
        other => BlkKind::Unknown(other),
    };
    (kind, sector)
}

/// Reads a request out of a chain.
#[inline]
pub fn parse(chain: &DescriptorChain) -> Result<BlkRequest, BadRequest> {
    let status = chain.writable().last().and_then(|last| last.part(last.len() - 1, 1));
    let bad = |fault| BadRequest { fault, status };
    let mut header = [0; HEADER_BYTES];
    if !copy_front(chain.readable(), &mut header) {
        return Err(bad(QueueFault::Header));
    }
    let status = status.ok_or(BadRequest { fault: QueueFault::Status, status: None })?;
    let (kind, sector) = read_header(&header);
    let (to_device, from_device) = (
        total(chain.readable()) - HEADER_BYTES as u64,
        total(chain.writable()) - 1, // the status
    );
    let (segments, skip, len, other) = match kind {
        BlkKind::Read | BlkKind::GetId => (chain.writable(), 0, from_device, to_device),
        BlkKind::Write | BlkKind::Discard | BlkKind::WriteZeroes => {
            (chain.readable(), HEADER_BYTES, to_device, from_device)
        }
        // Their data, if there is any, means nothing here.
        BlkKind::Flush | BlkKind::Unknown(_) => (&[][..], 0, 0, 0),
    };
    if other != 0 {
        return Err(bad(QueueFault::Data));
    }
    if len > MAX_REQUEST_BYTES {
        return Err(bad(QueueFault::RequestTooLong));
    }
    let data = slice(segments, skip, len).map_err(bad)?;
    let request = BlkRequest { kind, sector, sectors: 0, data, status };
    match kind {
        BlkKind::Discard | BlkKind::WriteZeroes => with_range(request).map_err(bad),
        _ => Ok(request),
    }
}

/// Reads the range of a discard or write-zeroes out of its data.
fn with_range(mut request: BlkRequest) -> Result<BlkRequest, QueueFault> {
    let data = std::mem::take(&mut request.data);
    let mut range = [0; RANGE_BYTES];
    if total(&data) != RANGE_BYTES as u64 || !copy_front(&data, &mut range) {
        return Err(QueueFault::Range);
    }
    let word =
        |at: usize| u32::from_le_bytes([range[at], range[at + 1], range[at + 2], range[at + 3]]);
    (request.sector, request.sectors) = (u64::from(word(4)) << 32 | u64::from(word(0)), word(8));
    let (most, known, number) = if request.kind == BlkKind::Discard {
        (MAX_DISCARD_SECTORS, 0, blk::VIRTIO_BLK_T_DISCARD)
    } else {
        (MAX_WRITE_ZEROES_SECTORS, RANGE_UNMAP, blk::VIRTIO_BLK_T_WRITE_ZEROES)
    };
    // 5.2.6.2: "if any unknown flag is set", and for a discard also unmap.
    if word(12) & !known != 0 {
        return Ok(BlkRequest { kind: BlkKind::Unknown(number), ..request });
    }
    if request.sectors > most {
        return Err(QueueFault::Range);
    }
    Ok(request)
}

/// Writes as much of the serial as fits and returns how much that was.
pub fn write_id(data: &[Segment], id: &[u8; ID_BYTES]) -> u32 {
    let mut written = 0;
    for segment in data {
        let len = segment.len().min(ID_BYTES - written);
        if !segment.copy_from(0, &id[written..written + len]) {
            break;
        }
        written += len;
    }
    written as u32
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| segment.len() as u64).sum()
}

/// Copies the first bytes of `segments`; `false` when there are fewer.
fn copy_front(segments: &[Segment], out: &mut [u8]) -> bool {
    let mut at = 0;
    for segment in segments {
        let len = segment.len().min(out.len() - at);
        if !segment.copy_to(0, &mut out[at..at + len]) {
            return false;
        }
        at += len;
        if at == out.len() {
            return true;
        }
    }
    at == out.len()
}

/// `len` bytes of `segments` from `skip`.
#[inline]
fn slice(segments: &[Segment], skip: usize, len: u64) -> Result<Segments, QueueFault> {
    let (mut skip, mut left) = (skip, len);
    let mut out = Segments::new();
    for segment in segments {
        if left == 0 {
            break;
        }
        let from = skip.min(segment.len());
        skip -= from;
        let take = ((segment.len() - from) as u64).min(left) as usize;
        if take > 0 {
            let part = segment.part(from, take).ok_or(QueueFault::Data)?;
            out.try_push(part).map_err(|_| QueueFault::TooManySegments)?;
            left -= take as u64;
        }
    }
    Ok(out)
}
