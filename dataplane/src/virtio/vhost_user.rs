//! The back end's side of one vhost-user connection (QEMU, docs/interop/vhost-user.rst): what the
//! front end has told so far, and the rings that follow from it.
//!
//! A ring is driven while it has memory, a size, addresses and a kick, and is enabled; whatever
//! changes one of these first drains it. Messages may come in any order: QEMU enables rings before
//! it shares memory and replaces the call descriptor later. GET_VRING_BASE and a new memory table
//! are answered only after every I/O in flight has ended, or not at all: when that takes longer
//! than [`DRAIN_TIMEOUT`] the connection is given up, and the memory stays mapped until the last
//! I/O has ended.
//!
//! What a front end keeps in flight for us (GET/SET_INFLIGHT_FD) is taken again first when a ring
//! starts. RESET_DEVICE makes everything new but the memory. A ring with such a list stops without
//! its I/O that nobody works on (a remote volume's during an outage): that stays in the list. The
//! text has a back end drain unless GET_VRING_BASE_INFLIGHT is negotiated, because the list may not
//! follow a guest to another host; without dirty logging, which is not offered, no guest moves, and
//! a front end that paused would otherwise wait for the target.
//!
//! Runs on a control thread: it may wait, allocate and log.

use crate::clock::now_ns;
use crate::virtio::blk::{BlkShape, CONFIG_BYTES};
use crate::virtio::inflight::{self, InflightRegion};
use crate::virtio::mailbox::{DiskControl, DiskMessage, DiskReturn, Ring, Wake};
use crate::virtio::queue::{MAX_QUEUE_SIZE, Queue, QueueSetup, QueueSetupError};
use outboard_dma::{EventFd, GuestMemory, GuestRegion, MAX_REGIONS, Signaller};
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vhost::vhost_user::message::*;
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::{virtio_config, virtio_ring};

/// How long a ring may take to end what it has in flight.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that one disk serves at a time: two while a guest moves to another process.
pub const SESSIONS: u16 = 2;

/// VHOST_USER_F_PROTOCOL_FEATURES
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// The way to the worker, shared by the connections of one disk.
pub struct DiskLink {
    control: DiskControl,
    wake: Wake,
    /// Rings whose stop was not waited for; they come back when their last I/O has ended.
    leaving: Vec<u16>,
    drain_timeout: Duration,
}

#[allow(clippy::result_large_err, reason = "a ring is passed on once per message, not per I/O")]
impl DiskLink {
    /// A link over `control`, which wakes the worker by `wake` and waits for it for
    /// `drain_timeout` at most ([`DRAIN_TIMEOUT`]).
    pub fn new(control: DiskControl, wake: Wake, drain_timeout: Duration) -> DiskLink {
        DiskLink { control, wake, leaving: Vec::new(), drain_timeout }
    }

    /// Takes apart what the worker has given back, and says whether rings are still leaving.
    pub fn collect(&mut self) -> bool {
        while let Ok(back) = self.control.returns.try_recv() {
            self.sort(back);
        }
        !self.leaving.is_empty()
    }

    /// Whether rings `[first, first + count)` can be used by a new connection.
    pub fn is_free(&self, first: u16, count: u16) -> bool {
        !self.leaving.iter().any(|ring| (first..first + count).contains(ring))
    }

    fn send(&self, message: DiskMessage) -> Result<()> {
        self.control.send(message).map_err(|_| refuse("the disk's worker takes no messages"))?;
        (self.wake)();
        Ok(())
    }

    /// Stops a ring without waiting for it.
    fn abandon(&mut self, ring: u16) {
        self.leaving.push(ring);
        if self.send(DiskMessage::Stop { ring }).is_err() {
            tracing::warn!(ring, "the disk's worker is gone; its ring is lost with it");
        }
    }

    /// Stops a ring and waits for it.
    fn stop(&mut self, ring: u16) -> Result<Option<Ring>> {
        self.send(DiskMessage::Stop { ring })?;
        let back = self.wait(|back| match back {
            DiskReturn::Stopped { ring: which, with } if which == ring => Ok(with),
            other => Err(other),
        });
        if back.is_err() {
            self.leaving.push(ring);
        }
        back
    }

    /// Gives a driven ring another call descriptor.
    fn set_call(&mut self, ring: u16, call: Option<Signaller>) -> Result<()> {
        self.send(DiskMessage::SetCall { ring, call })?;
        self.wait(|back| match back {
            DiskReturn::Call { .. } => Ok(()),
            other => Err(other),
        })
    }

    /// Waits until the rings that are leaving have come back.
    fn wait_for_leaving(&mut self) -> Result<()> {
        while self.collect() {
            self.wait(|back| match back {
                DiskReturn::Stopped { ring, .. } => Ok(ring),
                other => Err(other),
            })
            .map(|ring| self.leaving.retain(|leaving| *leaving != ring))?;
        }
        Ok(())
    }

    fn wait<T>(
        &mut self,
        wanted: impl Fn(DiskReturn) -> std::result::Result<T, DiskReturn>,
    ) -> Result<T> {
        let give_up_ns = now_ns() + self.drain_timeout.as_nanos() as u64;
        loop {
            let left = Duration::from_nanos(give_up_ns.saturating_sub(now_ns()));
            let Ok(back) = self.control.returns.recv_timeout(left) else {
                return Err(refuse(format!(
                    "the disk's worker did not end what the ring had in flight within {:?}",
                    self.drain_timeout
                )));
            };
            match wanted(back) {
                Ok(answer) => return Ok(answer),
                Err(other) => self.sort(other),
            }
        }
    }

    /// Takes in what nobody waits for (any more).
    fn sort(&mut self, back: DiskReturn) {
        if let DiskReturn::Stopped { ring, .. } = back {
            self.leaving.retain(|leaving| *leaving != ring);
        }
    }
}

/// What the front end has told about one ring.
#[derive(Debug, Default)]
struct RingState {
    size: u16,
    addresses: Option<(u64, u64, u64)>,
    base: u16,
    /// Whether a kick message came; the descriptor itself is optional.
    kicked: bool,
    kick: Option<EventFd>,
    call: Option<Signaller>,
    error: Option<Signaller>,
    enabled: bool,
    driven: bool,
}

/// One connection.
pub struct Session {
    shape: BlkShape,
    link: Arc<Mutex<DiskLink>>,
    /// The disk's ring that this connection's ring 0 is.
    first_ring: u16,
    features: u64,
    /// The regions that the front end shares, and all of them mapped.
    slots: Vec<(GuestRegion, File)>,
    memory: Option<Arc<GuestMemory>>,
    inflight: Option<InflightRegion>,
    /// Whether regions come and go one by one, so that a ring may be in none for a while.
    is_partial: bool,
    rings: Vec<RingState>,
}

impl Session {
    /// A connection whose rings are the disk's from `first_ring` on.
    pub fn new(shape: BlkShape, link: Arc<Mutex<DiskLink>>, first_ring: u16) -> Session {
        let rings = (0..shape.queues).map(|_| RingState::default()).collect();
        let (slots, memory, inflight) = (Vec::new(), None, None);
        let is_partial = false;
        Session { shape, link, first_ring, features: 0, slots, memory, inflight, is_partial, rings }
    }

    /// Ends the connection: its rings stop, and are taken apart when their last I/O has ended.
    pub fn end(&mut self) {
        let link = Arc::clone(&self.link);
        let mut link = link.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, ring) in (0..).zip(&mut self.rings) {
            if std::mem::take(&mut ring.driven) {
                link.abandon(self.first_ring + index);
            }
        }
    }

    fn check_inflight(&self, queues: u16, queue_size: u16) -> Result<()> {
        let most = self.shape.queues;
        if queues == 0 || queues > most || queue_size == 0 || queue_size > MAX_QUEUE_SIZE {
            return Err(refuse(format!(
                "an in-flight region for {queues} queues of {queue_size}; the disk has {most} of \
                 at most {MAX_QUEUE_SIZE}"
            )));
        }
        Ok(())
    }

    fn offered(&self) -> u64 {
        self.shape.features() | PROTOCOL_FEATURES
    }

    fn ring(&mut self, index: u32) -> Result<&mut RingState> {
        let queues = self.shape.queues;
        self.rings.get_mut(index as usize).ok_or_else(|| {
            refuse(format!("ring {index} does not exist; the disk has {queues} queues"))
        })
    }

    /// Has the worker drive the ring, when everything it takes is known.
    fn settle(&mut self, index: u32) -> Result<()> {
        let (features, first) = (self.features, self.first_ring);
        let offers = |bit: u32| features & 1 << bit != 0;
        let (memory, inflight) = (self.memory.clone(), self.inflight.clone());
        let is_partial = self.is_partial;
        let ring = self.ring(index)?;
        let enabled = ring.enabled || features & PROTOCOL_FEATURES == 0;
        let (Some(memory), Some((descriptors, available, used))) = (memory, ring.addresses) else {
            return Ok(());
        };
        if ring.driven || !enabled || !ring.kicked || ring.size == 0 {
            return Ok(());
        }
        if !offers(virtio_config::VIRTIO_F_VERSION_1) {
            return Err(refuse("the driver did not accept VERSION_1; legacy drivers are unknown"));
        }
        let setup = QueueSetup {
            size: ring.size,
            descriptors,
            available,
            used,
            base: ring.base,
            event_idx: offers(virtio_ring::VIRTIO_RING_F_EVENT_IDX),
            indirect: offers(virtio_ring::VIRTIO_RING_F_INDIRECT_DESC),
        };
        let cannot =
            |why: &dyn std::fmt::Display| refuse(format!("ring {index} cannot be started: {why}"));
        let mut queue = match Queue::new(&memory, &setup) {
            Err(QueueSetupError::Place(_)) if is_partial => return Ok(()),
            made => made.map_err(|error| cannot(&error))?,
        };
        if let Some(region) = inflight {
            let own = region.queue(index as u16, ring.size).map_err(|error| cannot(&error))?;
            queue = queue.track(own).map_err(|error| cannot(&error))?;
        }
        let (kick, call, error) = (ring.kick.take(), ring.call.take(), ring.error.take());
        let with = Ring { queue, kick, call, error };
        ring.driven = true;
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        link.send(DiskMessage::Start { ring: first + index as u16, with })
    }

    /// Drains the ring and takes it back, when it is driven.
    fn halt(&mut self, index: u32) -> Result<()> {
        let first = self.first_ring;
        let link = Arc::clone(&self.link);
        let ring = self.ring(index)?;
        if !std::mem::take(&mut ring.driven) {
            return Ok(());
        }
        let stopped = {
            let mut link = link.lock().unwrap_or_else(PoisonError::into_inner);
            link.stop(first + index as u16)?
        };
        if let Some(with) = stopped {
            ring.base = with.queue.base();
            (ring.kick, ring.call, ring.error) = (with.kick, with.call, with.error);
        }
        Ok(())
    }

    /// Changes something that all rings depend on while none is driven.
    fn with_all_halted(&mut self, change: impl FnOnce(&mut Session)) -> Result<()> {
        let count = self.rings.len() as u32;
        (0..count).try_for_each(|index| self.halt(index))?;
        change(self);
        (0..count).try_for_each(|index| self.settle(index))
    }

    /// Takes over a new table of regions once nothing is in flight in the old one.
    fn set_memory(&mut self, slots: Vec<(GuestRegion, File)>) -> Result<()> {
        let memory = match slots.is_empty() {
            true => None,
            false => Some(GuestMemory::map(&slots).map_err(|error| refuse(error.to_string()))?),
        };
        self.with_all_halted(|session| (session.slots, session.memory) = (slots, memory))
    }

    fn copy_slots(&self) -> Result<Vec<(GuestRegion, File)>> {
        let copy = |(region, file): &(GuestRegion, File)| Ok((*region, file.try_clone()?));
        let slots: std::io::Result<Vec<_>> = self.slots.iter().map(copy).collect();
        slots.map_err(Error::ReqHandlerError)
    }

    /// Changes something of one ring while it is not driven.
    fn with_halted(&mut self, index: u32, change: impl FnOnce(&mut RingState)) -> Result<()> {
        self.halt(index)?;
        change(self.ring(index)?);
        self.settle(index)
    }
}

/// A refusal that ends the connection, with its reason.
fn refuse(reason: impl Into<String>) -> Error {
    Error::ReqHandlerError(std::io::Error::other(reason.into()))
}

/// A refusal after which the connection goes on.
fn decline(reason: &'static str) -> Error {
    Error::ReqHandlerError(std::io::Error::new(ErrorKind::Unsupported, reason))
}

/// Whether the connection can go on after this error.
pub fn is_harmless(error: &Error) -> bool {
    matches!(error, Error::ReqHandlerError(cause) if cause.kind() == ErrorKind::Unsupported)
}

fn adopt(fd: Option<File>) -> Result<Option<EventFd>> {
    let adopt = |fd| EventFd::adopt(OwnedFd::from(fd));
    fd.map(adopt).transpose().map_err(Error::ReqHandlerError)
}

fn signaller(event: EventFd) -> Signaller {
    let signaller = Signaller::new(event);
    if !signaller.never_waits() {
        tracing::warn!(
            "there is no io_uring to signal a guest with: a hostile front end can hold its worker \
             up; set kernel.io_uring_disabled = 0 and raise the memlock limit"
        );
    }
    signaller
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.with_all_halted(|session| {
            session.features = 0;
            session.inflight = None;
            session.rings.iter_mut().for_each(|ring| *ring = RingState::default());
        })
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset_owner()
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.offered();
        if unknown != 0 {
            return Err(refuse(format!("features {unknown:#x} were not offered")));
        }
        if features == self.features {
            return Ok(());
        }
        self.with_all_halted(|session| session.features = features)
    }

    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let regions: Vec<_> = table
            .iter()
            .map(|region| GuestRegion {
                guest_address: region.guest_phys_addr,
                bytes: region.memory_size,
                user_address: region.user_addr,
                file_offset_bytes: region.mmap_offset,
            })
            .zip(files)
            .collect();
        if regions.is_empty() {
            return Err(refuse("a memory table without regions"));
        }
        self.is_partial = false;
        self.set_memory(regions)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).ok().filter(|size| *size > 0);
        let size = size.ok_or_else(|| refuse(format!("ring {index} of {num} entries")))?;
        self.with_halted(index, |ring| ring.size = size)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        if !flags.is_empty() {
            return Err(refuse("logging of used rings was not offered"));
        }
        let addresses = Some((descriptor, available, used));
        if self.ring(index)?.addresses == addresses {
            return Ok(());
        }
        self.with_halted(index, |ring| ring.addresses = addresses)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        // The upper half belongs to packed rings, which are not offered.
        self.with_halted(index, |ring| ring.base = base as u16)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.halt(index)?;
        let ring = self.ring(index)?;
        // The ring starts again with the next kick message.
        ring.kicked = false;
        Ok(VhostUserVringState::new(index, u32::from(ring.base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let kick = adopt(fd)?;
        self.with_halted(index.into(), |ring| {
            ring.kick = kick;
            ring.kicked = true;
        })
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let call = adopt(fd)?.map(signaller);
        let at = self.first_ring + u16::from(index);
        let link = Arc::clone(&self.link);
        let ring = self.ring(index.into())?;
        if !ring.driven {
            ring.call = call;
            return Ok(());
        }
        link.lock().unwrap_or_else(PoisonError::into_inner).set_call(at, call)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let error = adopt(fd)?.map(signaller);
        self.with_halted(index.into(), |ring| ring.error = error)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.get_protocol_features()?.bits();
        if unknown != 0 {
            return Err(refuse(format!("protocol features {unknown:#x} were not offered")));
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(u64::from(self.shape.queues))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        if !enable {
            self.halt(index)?;
        }
        self.ring(index)?.enabled = enable;
        self.settle(index)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let end = offset.checked_add(size).map(|end| end as usize);
        let end = end.filter(|end| *end <= CONFIG_BYTES);
        let end = end.ok_or_else(|| decline("outside of the configuration space"))?;
        Ok(self.shape.config()[offset as usize..end].to_vec())
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(decline("the configuration space cannot be written"))
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(refuse("this is a disk"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(refuse("shared objects were not offered"))
    }

    fn get_inflight_fd(&mut self, want: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queues, queue_size) = (want.num_queues, want.queue_size);
        self.check_inflight(queues, queue_size)?;
        let (region, file) =
            InflightRegion::make(queues, queue_size).map_err(|error| refuse(error.to_string()))?;
        self.with_all_halted(|session| session.inflight = Some(region))?;
        let mmap_size = inflight::bytes(queues, queue_size);
        Ok((VhostUserInflight { mmap_size, mmap_offset: 0, num_queues: queues, queue_size }, file))
    }

    fn set_inflight_fd(&mut self, kept: &VhostUserInflight, file: File) -> Result<()> {
        let &VhostUserInflight { mmap_size, mmap_offset, num_queues, queue_size } = kept;
        self.check_inflight(num_queues, queue_size)?;
        let region = InflightRegion::adopt(file, mmap_offset, mmap_size, num_queues, queue_size)
            .map_err(|error| refuse(error.to_string()))?;
        // What a lost connection of the same guest had in flight must have ended before the
        // region's list is read: it may be this process that has it.
        self.link.lock().unwrap_or_else(PoisonError::into_inner).wait_for_leaving()?;
        self.with_all_halted(|session| session.inflight = Some(region))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _: Option<bool>,
    ) -> Result<Option<u64>> {
        let mut slots = self.copy_slots()?;
        let region = GuestRegion {
            guest_address: region.guest_phys_addr,
            bytes: region.memory_size,
            user_address: region.user_addr,
            file_offset_bytes: region.mmap_offset,
        };
        slots.push((region, file));
        self.is_partial = true;
        self.set_memory(slots)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, gone: &VhostUserSingleMemoryRegion) -> Result<()> {
        // The offset in the file does not count.
        let is_it = |region: &GuestRegion| {
            (region.guest_address, region.user_address, region.bytes)
                == (gone.guest_phys_addr, gone.user_addr, gone.memory_size)
        };
        let mut slots = self.copy_slots()?;
        let Some(index) = slots.iter().position(|(region, _)| is_it(region)) else {
            return Err(refuse("a memory region to remove that was not added"));
        };
        slots.remove(index);
        self.is_partial = true;
        self.set_memory(slots)
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(refuse("device state was not offered"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(refuse("device state was not offered"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(refuse("shared memory regions were not offered"))
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(refuse("logging was not offered"))
    }
}
