//! A virtio-blk driver in this process: shares memory with any vhost-user-blk backend and drives
//! its queues by polling. For measuring and testing backends; nothing is allocated per I/O.
//!
//! An I/O lives in a slot: [`submit`](BlkDriver::submit) describes it, [`kick`](BlkDriver::kick)
//! shows everything submitted to the device, [`poll`](BlkDriver::poll) returns what has ended.
//! Each slot has a data area of its own, reached by copies. Slot `n` uses queue `n % queues`.
//!
//! A tracked driver ([`connect_tracked`](BlkDriver::connect_tracked)) keeps the device's list of
//! what is in flight: after [`reconnect`](BlkDriver::reconnect) to a device that has died, every
//! I/O ends as if nothing had happened.

use crate::virtio::blk::{self, HEADER_BYTES, RANGE_BYTES};
use crate::virtio::driver_ring::{
    DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, DriverRing, second_word,
};
use crate::virtio::queue::MAX_QUEUE_SIZE;
use outboard_dma::{GuestError, GuestMemory, GuestRegion, MAX_SEGMENTS, Segment};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::{virtio_blk, virtio_config, virtio_ring};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Where the memory appears to the device; both are made up, and differ so that a backend which
/// mixes them up is found out.
const GUEST_BASE: u64 = 0x1_0000_0000;
const USER_BASE: u64 = 0x7000_0000_0000;
/// A slot's header, status and indirect table.
const CONTROL_BYTES: u64 = 1024;
const STATUS_AT: u64 = HEADER_BYTES as u64;
const TABLE_AT: u64 = 64;
const _: () = assert!(TABLE_AT + (MAX_SEGMENTS as u64 + 2) * DESC_BYTES <= CONTROL_BYTES);
/// What a slot's status byte holds until the device writes it.
const STATUS_UNWRITTEN: u8 = 0xff;
const PROTOCOL_FEATURES: u32 = 30;
/// The part of the configuration space that is read: up to num_queues.
const CONFIG_BYTES: u32 = 36;

/// What to ask of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverOp {
    /// From the disk into the slot.
    Read,
    /// From the slot to the disk.
    Write,
    /// Make what was written durable.
    Flush,
    /// The disk's serial into the slot.
    GetId,
    /// The range is not needed any more; its length instead of the data's.
    Discard,
    /// Zeros in the range; its length instead of the data's.
    WriteZeroes,
    /// Any request type by number, with data for the device to write.
    Raw(u32),
    /// Any request type by number, with data for the device to read.
    RawOut(u32),
}

/// One ended I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The slot, free again.
    pub slot: u16,
    /// The status byte: 0 done, 1 failed, 2 not known; 255 when the device wrote none.
    pub status: u8,
    /// How many bytes the device says it wrote.
    pub written: u32,
}

/// A part of a slot's data area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins.
    pub at: u32,
    /// Its length.
    pub bytes: u32,
}

/// How to drive a device.
#[derive(Clone, Copy, Debug)]
pub struct BlkOptions {
    /// Queues to use.
    pub queues: u16,
    /// Entries per queue: a power of two.
    pub queue_size: u16,
    /// I/Os that can be in flight, over all queues.
    pub slots: u16,
    /// The most data of one I/O.
    pub max_io_bytes: u32,
    /// Indirect tables (one descriptor per I/O) rather than chains.
    pub indirect: bool,
    /// Use event indices when the device offers them.
    pub event_idx: bool,
}

impl BlkOptions {
    /// One queue; indirect tables only when chains of three would not fit.
    pub fn new(queue_size: u16, slots: u16, max_io_bytes: u32) -> BlkOptions {
        let indirect = u32::from(slots) * 3 > u32::from(queue_size);
        BlkOptions { queues: 1, queue_size, slots, max_io_bytes, indirect, event_idx: true }
    }
}

/// Why a device cannot be driven.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// Nobody answers at the socket.
    #[error("cannot connect to {}: {source}; is the backend running?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// The options contradict each other.
    #[error("{0}")]
    Options(&'static str),
    /// The backend refused a message or broke the protocol.
    #[error("the vhost-user backend failed at {step}: {source}")]
    Protocol {
        /// Which message.
        step: &'static str,
        /// What the protocol library says.
        source: vhost::Error,
    },
    /// The backend lacks something.
    #[error("the backend does not offer {0}")]
    Missing(&'static str),
    /// No memory to share.
    #[error(transparent)]
    Memory(#[from] GuestError),
    /// No event descriptor.
    #[error("cannot make an eventfd: {0}; raise `ulimit -n`")]
    EventFd(std::io::Error),
}

/// One queue with its descriptors for signals.
struct DriverQueue {
    ring: DriverRing,
    kick: EventFd,
    /// The same descriptor twice: to pass, and to read.
    passed_call: EventFd,
    call: outboard_dma::EventFd,
    fresh: bool,
}

/// What is shared with the device, to share it once more.
struct Shared {
    region: GuestRegion,
    file: File,
    /// The device's list of what is in flight.
    inflight: Option<(VhostUserInflight, File)>,
}

/// A connected device.
pub struct BlkDriver {
    options: BlkOptions,
    memory: Arc<GuestMemory>,
    shared: Shared,
    stream: UnixStream,
    frontend: Frontend,
    queues: Vec<DriverQueue>,
    in_flight: Vec<bool>,
    control_base: u64,
    data_base: u64,
    data_stride: u64,
    descriptors_per_slot: u16,
    next_poll: usize,
    capacity_bytes: u64,
    features: u64,
}

impl BlkDriver {
    /// Connects to the backend at `socket` and starts one queue of `queue_size` entries with
    /// `slots` I/Os of up to `max_io_bytes`.
    pub fn connect(
        socket: &Path,
        queue_size: u16,
        slots: u16,
        max_io_bytes: u32,
    ) -> Result<BlkDriver, DriverError> {
        BlkDriver::connect_with(socket, BlkOptions::new(queue_size, slots, max_io_bytes))
    }

    /// As [`connect`](Self::connect), with every option.
    pub fn connect_with(socket: &Path, options: BlkOptions) -> Result<BlkDriver, DriverError> {
        BlkDriver::open(socket, options, false)
    }

    /// As [`connect_with`](Self::connect_with), to a device that keeps what it has in flight in
    /// memory that this driver holds.
    pub fn connect_tracked(socket: &Path, options: BlkOptions) -> Result<BlkDriver, DriverError> {
        BlkDriver::open(socket, options, true)
    }

    fn open(socket: &Path, options: BlkOptions, tracked: bool) -> Result<BlkDriver, DriverError> {
        let descriptors_per_slot = check(&options)?;
        let (stream, mut frontend) = connect(socket, options.queues)?;
        let (features, capacity_bytes) = negotiate(&mut frontend, &options, tracked)?;
        let offers = |bit: u32| features & 1 << bit != 0;
        let event_idx = offers(virtio_ring::VIRTIO_RING_F_EVENT_IDX);

        let ring_bytes = DriverRing::bytes(options.queue_size);
        let control_base = ring_bytes * u64::from(options.queues);
        let control_bytes = (u64::from(options.slots) * CONTROL_BYTES).next_multiple_of(4096);
        let data_base = control_base + control_bytes;
        let data_stride = u64::from(options.max_io_bytes.max(1)).next_multiple_of(4096);
        let bytes = data_base + data_stride * u64::from(options.slots);
        let (memory, region, file) = GuestMemory::share(bytes, GUEST_BASE, USER_BASE)?;
        let inflight = if tracked { Some(get_inflight(&mut frontend, &options)?) } else { None };
        let shared = Shared { region, file, inflight };
        share(&mut frontend, &shared)?;

        let mut queues = Vec::new();
        for index in 0..options.queues {
            let at = USER_BASE + ring_bytes * u64::from(index);
            let ring =
                DriverRing::new(&memory, options.queue_size, at, event_idx, options.indirect)?;
            let mut queue = DriverQueue::new(ring)?;
            queue.ring.want_calls(false);
            queue.start(&mut frontend, usize::from(index), 0)?;
            queues.push(queue);
        }
        let driver = BlkDriver {
            in_flight: vec![false; usize::from(options.slots)],
            options,
            memory,
            shared,
            stream,
            frontend,
            queues,
            control_base,
            data_base,
            data_stride,
            descriptors_per_slot,
            next_poll: 0,
            capacity_bytes,
            features,
        };
        Ok(driver)
    }

    /// Connects to a device that has been started anew at `socket`, and lets it go on with
    /// whatever is in flight. To be tried again when it fails.
    pub fn reconnect(&mut self, socket: &Path) -> Result<(), DriverError> {
        // One device at a time drives the rings. Fails when it is closed already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let (stream, mut frontend) = connect(socket, self.options.queues)?;
        let tracked = self.shared.inflight.is_some();
        let (features, capacity_bytes) = negotiate(&mut frontend, &self.options, tracked)?;
        if (features, capacity_bytes) != (self.features, self.capacity_bytes) {
            return Err(DriverError::Missing("the features and size that it had before"));
        }
        share(&mut frontend, &self.shared)?;
        for (index, queue) in self.queues.iter_mut().enumerate() {
            queue.start(&mut frontend, index, queue.ring.used_index())?;
            // Whether the device before it has seen the last kick is not known.
            let _ = queue.kick.write(1);
        }
        (self.stream, self.frontend) = (stream, frontend);
        Ok(())
    }

    /// Size of the disk.
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// The feature bits in force.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Whether the backend still holds its end of the connection.
    pub fn is_connected(&self) -> bool {
        use rustix::net::{RecvFlags, recv};
        let mut byte = [0u8];
        match recv(&self.stream, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((got, _)) => got > 0,
            Err(error) => error == rustix::io::Errno::AGAIN,
        }
    }

    /// Describes an I/O of `bytes` at `offset_bytes` over the front of the slot's data area. It
    /// starts with the next [`kick`](Self::kick).
    ///
    /// # Panics
    /// When the slot does not exist or is in flight, or the data is longer than a slot's.
    #[inline]
    pub fn submit(&mut self, op: DriverOp, offset_bytes: u64, slot: u16, bytes: u32) {
        if matches!(op, DriverOp::Discard | DriverOp::WriteZeroes) {
            return self.submit_range(op, offset_bytes, slot, bytes);
        }
        let whole = [Piece { at: 0, bytes }];
        let pieces = if bytes == 0 { &[][..] } else { &whole[..] };
        self.submit_pieces(op, offset_bytes, slot, pieces);
    }

    /// As [`submit`](Self::submit), with the data in several descriptors, anywhere in the slot.
    ///
    /// # Panics
    /// As `submit`, and when there are more pieces than the slot has descriptors.
    pub fn submit_pieces(&mut self, op: DriverOp, offset_bytes: u64, slot: u16, pieces: &[Piece]) {
        assert!(!std::mem::replace(&mut self.in_flight[usize::from(slot)], true), "slot in flight");
        let (kind, data_flags) = match op {
            DriverOp::Read => (virtio_blk::VIRTIO_BLK_T_IN, DESC_WRITE),
            DriverOp::Write => (virtio_blk::VIRTIO_BLK_T_OUT, 0),
            DriverOp::Flush => (virtio_blk::VIRTIO_BLK_T_FLUSH, 0),
            DriverOp::GetId => (virtio_blk::VIRTIO_BLK_T_GET_ID, DESC_WRITE),
            DriverOp::Discard => (virtio_blk::VIRTIO_BLK_T_DISCARD, 0),
            DriverOp::WriteZeroes => (virtio_blk::VIRTIO_BLK_T_WRITE_ZEROES, 0),
            DriverOp::Raw(kind) => (kind, DESC_WRITE),
            DriverOp::RawOut(kind) => (kind, 0),
        };
        let control = self.control(slot);
        let mut header = [0; HEADER_BYTES + 1];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&(offset_bytes / blk::SECTOR_BYTES).to_le_bytes());
        header[HEADER_BYTES] = STATUS_UNWRITTEN;
        self.segment(control, header.len()).copy_from(0, &header);

        let data = GUEST_BASE + self.data_base + u64::from(slot) * self.data_stride;
        let control = GUEST_BASE + control;
        let chain = std::iter::once((control, HEADER_BYTES as u32, 0))
            .chain(pieces.iter().map(|piece| {
                let end = u64::from(piece.at) + u64::from(piece.bytes);
                assert!(end <= self.data_stride, "outside of the slot");
                (data + u64::from(piece.at), piece.bytes, data_flags)
            }))
            .chain(std::iter::once((control + STATUS_AT, 1, DESC_WRITE)));
        let count = pieces.len() as u16 + 2;
        let queues = self.queues.len() as u16;
        let head = slot / queues * self.descriptors_per_slot;
        let queue = &mut self.queues[usize::from(slot % queues)];
        if self.options.indirect {
            assert!(usize::from(count) <= MAX_SEGMENTS + 2, "too many pieces");
            let table = control + TABLE_AT;
            write_table(&self.memory, table, count, chain);
            let bytes = u32::from(count) * DESC_BYTES as u32;
            queue.ring.describe(head, table, bytes, DESC_INDIRECT, 0);
        } else {
            assert!(count <= self.descriptors_per_slot, "too many pieces");
            for (index, (address, len, flags)) in (0..).zip(chain) {
                let more = if index + 1 < count { DESC_NEXT } else { 0 };
                queue.ring.describe(head + index, address, len, flags | more, head + index + 1);
            }
        }
        queue.ring.offer(head);
        queue.fresh = true;
    }

    /// A request whose data is a range of the disk, at the front of the slot.
    fn submit_range(&mut self, op: DriverOp, offset_bytes: u64, slot: u16, bytes: u32) {
        let mut range = [0; RANGE_BYTES];
        range[..8].copy_from_slice(&(offset_bytes / blk::SECTOR_BYTES).to_le_bytes());
        range[8..12].copy_from_slice(&(bytes / blk::SECTOR_BYTES as u32).to_le_bytes());
        self.write_data(slot, 0, &range);
        self.submit_pieces(op, 0, slot, &[Piece { at: 0, bytes: RANGE_BYTES as u32 }]);
    }

    /// Shows the device what was submitted, and wakes it where it wants that.
    #[inline]
    pub fn kick(&mut self) {
        for queue in &mut self.queues {
            if std::mem::take(&mut queue.fresh) && queue.ring.publish() {
                // A full counter means that the device is awake already.
                let _ = queue.kick.write(1);
            }
        }
    }

    /// The next I/O that has ended, if there is one.
    #[inline]
    pub fn poll(&mut self) -> Option<Completion> {
        let queues = self.queues.len();
        for _ in 0..queues {
            let index = self.next_poll;
            let Some((head, written)) = self.queues[index].ring.take() else {
                self.next_poll = (index + 1) % queues;
                continue;
            };
            let per_slot = u32::from(self.descriptors_per_slot);
            let slot = head / per_slot * queues as u32 + index as u32;
            let flag = self.in_flight.get_mut(slot as usize);
            if head % per_slot != 0 || !flag.is_some_and(std::mem::take) {
                // Nothing that we gave: the device is out of its mind; there is no slot to end.
                continue;
            }
            let slot = slot as u16;
            let mut status = [STATUS_UNWRITTEN];
            self.segment(self.control(slot) + STATUS_AT, 1).copy_to(0, &mut status);
            return Some(Completion { slot, status: status[0], written });
        }
        None
    }

    /// Copies `data` to the slot's data area at `at`.
    ///
    /// # Panics
    /// When it is outside.
    pub fn write_data(&self, slot: u16, at: usize, data: &[u8]) {
        assert!(self.data(slot).copy_from(at, data), "outside of the slot");
    }

    /// Copies from the slot's data area at `at`.
    ///
    /// # Panics
    /// When it is outside.
    pub fn read_data(&self, slot: u16, at: usize, out: &mut [u8]) {
        assert!(self.data(slot).copy_to(at, out), "outside of the slot");
    }

    /// Asks the device to call for ended I/Os of `queue`, or not to; `true` when some ended
    /// meanwhile. A new driver asks for no calls.
    pub fn want_calls(&mut self, queue: u16, wanted: bool) -> bool {
        self.queues[usize::from(queue)].ring.want_calls(wanted)
    }

    /// How often the device has called for `queue` since the last look.
    pub fn calls(&self, queue: u16) -> u64 {
        self.queues[usize::from(queue)].call.drain()
    }

    /// Readable once the device has called for `queue`, until the next look at
    /// [`calls`](Self::calls): what to sleep on after [`want_calls`](Self::want_calls) returned
    /// `false`.
    pub fn call_fd(&self, queue: u16) -> BorrowedFd<'_> {
        self.queues[usize::from(queue)].call.as_fd()
    }

    /// Stops `queue`: the device ends what it has in flight first. Returns the index that it would
    /// go on from.
    pub fn stop(&mut self, queue: u16) -> Result<u32, DriverError> {
        let index = usize::from(queue);
        self.frontend.get_vring_base(index).map_err(protocol("GET_VRING_BASE"))
    }

    /// The driver's end of a queue, to write to it what no driver should.
    pub fn ring_mut(&mut self, queue: u16) -> &mut DriverRing {
        &mut self.queues[usize::from(queue)].ring
    }

    /// The guest-physical address of a slot's data area.
    pub fn data_address(&self, slot: u16) -> u64 {
        GUEST_BASE + self.data_base + u64::from(slot) * self.data_stride
    }

    #[inline(always)]
    fn control(&self, slot: u16) -> u64 {
        self.control_base + u64::from(slot) * CONTROL_BYTES
    }

    fn data(&self, slot: u16) -> Segment {
        assert!(slot < self.options.slots, "no such slot");
        let at = self.data_base + u64::from(slot) * self.data_stride;
        self.segment(at, self.data_stride as usize)
    }

    #[inline(always)]
    fn segment(&self, at: u64, bytes: usize) -> Segment {
        let segment = self.memory.segment(GUEST_BASE + at, bytes as u32);
        segment.expect("slots lie in the memory")
    }
}

/// Writes an indirect table of `count` descriptors at the guest address `table`.
#[inline]
fn write_table(
    memory: &GuestMemory,
    table: u64,
    count: u16,
    chain: impl Iterator<Item = (u64, u32, u16)>,
) {
    for (index, (address, len, flags)) in (0..).zip(chain) {
        let more = if index + 1 < count { DESC_NEXT } else { 0 };
        let mut raw = [0; DESC_BYTES as usize];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[8..].copy_from_slice(&second_word(len, flags | more, index + 1).to_le_bytes());
        let place = memory.segment(table + u64::from(index) * DESC_BYTES, DESC_BYTES as u32);
        place.expect("slots lie in the memory").copy_from(0, &raw);
    }
}

/// Descriptors per slot, after checking that the options fit together.
fn check(options: &BlkOptions) -> Result<u16, DriverError> {
    let &BlkOptions { queues, queue_size, slots, .. } = options;
    if queues == 0 || queues > 16 || slots < queues {
        return Err(DriverError::Options(
            "1 to 16 queues with at least one slot each are possible",
        ));
    }
    if !queue_size.is_power_of_two() || queue_size > MAX_QUEUE_SIZE {
        return Err(DriverError::Options("the queue size must be a power of two up to 1024"));
    }
    let per_queue = slots.div_ceil(queues);
    let room = queue_size / per_queue;
    match (options.indirect, room) {
        (true, 1..) => Ok(1),
        (false, 3..) => Ok(room.min(MAX_SEGMENTS as u16 + 2)),
        (true, _) => Err(DriverError::Options("fewer slots or a larger queue size is needed")),
        (false, _) => Err(DriverError::Options(
            "chains take three descriptors per slot: fewer slots, a larger queue, or indirect",
        )),
    }
}

/// Maps a failed message to an error.
fn protocol(step: &'static str) -> impl Fn(vhost::Error) -> DriverError {
    move |source| DriverError::Protocol { step, source }
}

/// Agrees on features; returns those in force, and the size of the disk.
fn negotiate(
    frontend: &mut Frontend,
    options: &BlkOptions,
    tracked: bool,
) -> Result<(u64, u64), DriverError> {
    let offered = frontend.get_features().map_err(protocol("GET_FEATURES"))?;
    let must = [
        (virtio_config::VIRTIO_F_VERSION_1, "VERSION_1"),
        (PROTOCOL_FEATURES, "vhost-user protocol features"),
    ];
    let mut wanted = 0;
    for (bit, name) in must {
        if offered & 1 << bit == 0 {
            return Err(DriverError::Missing(name));
        }
        wanted |= 1 << bit;
    }
    if options.indirect {
        if offered & 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC == 0 {
            return Err(DriverError::Missing("INDIRECT_DESC"));
        }
        wanted |= 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
    }
    for bit in [
        virtio_blk::VIRTIO_BLK_F_FLUSH,
        virtio_blk::VIRTIO_BLK_F_RO,
        virtio_blk::VIRTIO_BLK_F_BLK_SIZE,
        virtio_blk::VIRTIO_BLK_F_SEG_MAX,
        virtio_blk::VIRTIO_BLK_F_MQ,
        virtio_blk::VIRTIO_BLK_F_DISCARD,
        virtio_blk::VIRTIO_BLK_F_WRITE_ZEROES,
    ] {
        wanted |= 1 << bit;
    }
    if options.event_idx {
        wanted |= 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
    }
    let features = offered & wanted;
    let use_protocol = negotiate_protocol(frontend, tracked)?;
    frontend.set_owner().map_err(protocol("SET_OWNER"))?;
    if use_protocol.contains(VhostUserProtocolFeatures::MQ) {
        let most = frontend.get_queue_num().map_err(protocol("GET_QUEUE_NUM"))?;
        if most < u64::from(options.queues) {
            return Err(DriverError::Missing("that many queues"));
        }
    }
    if use_protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    frontend.set_features(features).map_err(protocol("SET_FEATURES"))?;
    let nothing = [0; CONFIG_BYTES as usize];
    let flags = VhostUserConfigFlags::empty();
    let (_, space) =
        frontend.get_config(0, CONFIG_BYTES, flags, &nothing).map_err(protocol("GET_CONFIG"))?;
    let sectors = space[..8].try_into().map_or(0, u64::from_le_bytes);
    Ok((features, sectors.saturating_mul(blk::SECTOR_BYTES)))
}

/// Agrees on protocol features; returns those in force.
fn negotiate_protocol(
    frontend: &mut Frontend,
    tracked: bool,
) -> Result<VhostUserProtocolFeatures, DriverError> {
    let known = frontend.get_protocol_features().map_err(protocol("GET_PROTOCOL_FEATURES"))?;
    let mut use_protocol = known
        & (VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK);
    if tracked {
        if !known.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            return Err(DriverError::Missing("the INFLIGHT_SHMFD protocol feature"));
        }
        use_protocol |= VhostUserProtocolFeatures::INFLIGHT_SHMFD;
    }
    if !use_protocol.contains(VhostUserProtocolFeatures::CONFIG) {
        return Err(DriverError::Missing("the CONFIG protocol feature"));
    }
    frontend.set_protocol_features(use_protocol).map_err(protocol("SET_PROTOCOL_FEATURES"))?;
    Ok(use_protocol)
}

fn connect(socket: &Path, queues: u16) -> Result<(UnixStream, Frontend), DriverError> {
    let unreachable = |source| DriverError::Connect { path: socket.to_owned(), source };
    let stream = UnixStream::connect(socket).map_err(unreachable)?;
    let copy = stream.try_clone().map_err(unreachable)?;
    Ok((stream, Frontend::from_stream(copy, u64::from(queues))))
}

fn get_inflight(
    frontend: &mut Frontend,
    options: &BlkOptions,
) -> Result<(VhostUserInflight, File), DriverError> {
    let want = VhostUserInflight {
        num_queues: options.queues,
        queue_size: options.queue_size,
        ..VhostUserInflight::default()
    };
    frontend.get_inflight_fd(&want).map_err(protocol("GET_INFLIGHT_FD"))
}

/// Shares the memory, and the list of what is in flight.
fn share(frontend: &mut Frontend, shared: &Shared) -> Result<(), DriverError> {
    if let Some((about, file)) = &shared.inflight {
        let told = frontend.set_inflight_fd(about, file.as_raw_fd());
        told.map_err(protocol("SET_INFLIGHT_FD"))?;
    }
    let Shared { region, file, .. } = shared;
    let info = VhostUserMemoryRegionInfo {
        guest_phys_addr: region.guest_address,
        memory_size: region.bytes,
        userspace_addr: region.user_address,
        mmap_offset: region.file_offset_bytes,
        mmap_handle: file.as_raw_fd(),
    };
    frontend.set_mem_table(&[info]).map_err(protocol("SET_MEM_TABLE"))?;
    Ok(())
}

impl DriverQueue {
    fn new(ring: DriverRing) -> Result<DriverQueue, DriverError> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(DriverError::EventFd);
        let (kick, passed_call) = (event()?, event()?);
        let call = outboard_dma::EventFd::same_as(&passed_call).map_err(DriverError::EventFd)?;
        Ok(DriverQueue { ring, kick, passed_call, call, fresh: false })
    }

    /// Has the device drive the queue from available index `base` on.
    fn start(&self, frontend: &mut Frontend, index: usize, base: u16) -> Result<(), DriverError> {
        let setup = self.ring.setup();
        let addresses = VringConfigData {
            queue_max_size: setup.size,
            queue_size: setup.size,
            flags: 0,
            desc_table_addr: setup.descriptors,
            used_ring_addr: setup.used,
            avail_ring_addr: setup.available,
            log_addr: None,
        };
        frontend.set_vring_num(index, setup.size).map_err(protocol("SET_VRING_NUM"))?;
        frontend.set_vring_addr(index, &addresses).map_err(protocol("SET_VRING_ADDR"))?;
        frontend.set_vring_base(index, base).map_err(protocol("SET_VRING_BASE"))?;
        frontend.set_vring_call(index, &self.passed_call).map_err(protocol("SET_VRING_CALL"))?;
        frontend.set_vring_kick(index, &self.kick).map_err(protocol("SET_VRING_KICK"))?;
        frontend.set_vring_enable(index, true).map_err(protocol("SET_VRING_ENABLE"))?;
        Ok(())
    }
}
