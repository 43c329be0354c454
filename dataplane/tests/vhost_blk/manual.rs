//! A front end that speaks message by message, and does what no front end should.

use crate::rig::{Content, Gate, Gated, PATIENCE, Rig, geometry, until};
use outboard::virtio::driver_ring::{DESC_NEXT, DESC_WRITE, DriverRing};
use outboard_dma::{GuestMemory, GuestRegion};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const GUEST: u64 = 0x1000_0000;
pub const USER: u64 = 0x7200_0000_0000;
pub const BYTES: u64 = 1 << 20;

pub fn gated(depth: usize, queues: u16) -> (Rig, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let volume = Gated::new(geometry(512, 1 << 20, false), depth, &gate);
    (Rig::start(vec![(Content::Gated(volume), queues)]), gate)
}

/// A front end that speaks message by message, with memory of a name of its own.
pub struct Manual {
    pub frontend: Frontend,
    pub memory: Arc<GuestMemory>,
    pub region: GuestRegion,
    pub file: File,
    pub ring: DriverRing,
    pub kick: EventFd,
    pub call: EventFd,
}

impl Manual {
    pub fn connect(path: &Path, name: &std::ffi::CStr) -> Manual {
        let stream = UnixStream::connect(path).unwrap();
        let mut frontend = Frontend::from_stream(stream, 4);
        let features = frontend.get_features().unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_owner().unwrap();
        frontend.set_features(features).unwrap();
        let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        file.set_len(BYTES + 4096).unwrap();
        let region = GuestRegion {
            guest_address: GUEST,
            bytes: BYTES,
            user_address: USER,
            file_offset_bytes: 4096,
        };
        let memory = GuestMemory::map(&[(region, file.try_clone().unwrap())]).unwrap();
        let ring = DriverRing::new(&memory, 16, USER, true, true).unwrap();
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Manual { frontend, memory, region, file, ring, kick: event(), call: event() }
    }

    pub fn share(&self, regions: &[GuestRegion]) -> vhost::Result<()> {
        share(&self.frontend, &self.file, regions)
    }

    /// The region as a memory slot.
    pub fn slot(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: self.region.guest_address,
            memory_size: self.region.bytes,
            userspace_addr: self.region.user_address,
            mmap_offset: self.region.file_offset_bytes,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// What a guest that boots finds: a ring of zeros.
    pub fn clear_ring(&mut self) {
        let bytes = DriverRing::bytes(16) as usize;
        self.memory.segment(GUEST, bytes as u32).unwrap().copy_from(0, &vec![0; bytes]);
        self.ring = DriverRing::new(&self.memory, 16, USER, true, true).unwrap();
    }

    pub fn describe_ring(&self) {
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
        self.frontend.set_vring_num(0, setup.size).unwrap();
        self.frontend.set_vring_base(0, 0).unwrap();
        self.frontend.set_vring_addr(0, &addresses).unwrap();
    }

    pub fn start(&mut self) {
        self.share(&[self.region]).unwrap();
        self.describe_ring();
        self.frontend.set_vring_kick(0, &self.kick).unwrap();
        self.frontend.set_vring_call(0, &self.call).unwrap();
        self.frontend.set_vring_enable(0, true).unwrap();
    }

    /// Offers a read of the first block into the middle of the memory.
    pub fn offer_read(&mut self) {
        let at = GUEST + BYTES / 2;
        self.memory.segment(at, 17).unwrap().copy_from(0, &[0; 17]);
        self.ring.describe(0, at, 16, DESC_NEXT, 1);
        self.ring.describe(1, at + 512, 512, DESC_NEXT | DESC_WRITE, 2);
        self.ring.describe(2, at + 16, 1, DESC_WRITE, 0);
        self.ring.offer(0);
        if self.ring.publish() {
            self.kick.write(1).unwrap();
        }
    }

    pub fn read(&mut self) {
        self.offer_read();
        let mut got = None;
        until("the read ends", || {
            got = self.ring.take();
            got.is_some()
        });
        assert_eq!(got, Some((0, 513)));
    }
}

pub fn share(frontend: &Frontend, file: &File, regions: &[GuestRegion]) -> vhost::Result<()> {
    let info = |region: &GuestRegion| VhostUserMemoryRegionInfo {
        guest_phys_addr: region.guest_address,
        memory_size: region.bytes,
        userspace_addr: region.user_address,
        mmap_offset: region.file_offset_bytes,
        mmap_handle: file.as_raw_fd(),
    };
    let table: Vec<_> = regions.iter().map(info).collect();
    frontend.set_mem_table(&table).map(|_| ())
}

/// Waits until the other end has closed.
pub fn is_closed(stream: &mut UnixStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    match stream.read(&mut [0]) {
        Ok(got) => got == 0,
        // What we had sent was not read.
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// How many mappings of memory with this name the process has.
pub fn mappings(name: &str) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains(name)).count()
}
