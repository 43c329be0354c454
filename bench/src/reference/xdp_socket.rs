//! AF_XDP for reference programs and for the generator: the kernel's interface and nothing else.
//!
//! A [`Umem`] is memory in frames of 4 KiB, shared by any number of sockets. Frames go around as
//! addresses (byte offsets); whoever holds one writes it, and all access is by bounded copies.
//! Source: Linux `Documentation/networking/af_xdp.rst`.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io::{self, Error};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Size of a frame.
pub const FRAME_BYTES: u64 = 4096;
/// Entries of every ring.
const RING_ENTRIES: u32 = 2048;
/// Frames that may go through one socket's rings. The kernel tells only now and then how far it
/// has come in a ring: entries it has used but not told count twice.
pub const FRAMES_PER_SOCKET: u32 = RING_ENTRIES / 2;
/// `XDP_MAX_TX_SKB_BUDGET` of linux/if_xdp.h (6.17): frames sent by one system call.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// How long to wait for a queue: the kernel frees it in a work queue after its socket was closed.
const QUEUE_WAIT: Duration = Duration::from_secs(2);

/// A mapping that is unmapped when dropped.
struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize, flags: libc::c_int, fd: RawFd, place: u64) -> io::Result<Mapping> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let (flags, place) = (flags | libc::MAP_POPULATE, place as libc::off_t);
        // SAFETY: a fresh mapping at an address of the kernel's choice; the result is checked.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, prot, flags, fd, place) };
        if base == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(Error::last_os_error)?;
        Ok(Mapping { base, bytes })
    }

    /// The address at `at`, with `len` bytes behind it.
    fn at(&self, at: u64, len: usize) -> NonNull<u8> {
        let end = (at as usize).checked_add(len);
        assert!(end.is_some_and(|end| end <= self.bytes), "outside of a mapping");
        // SAFETY: inside the mapping, checked above.
        unsafe { self.base.add(at as usize) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this mapping, made in new; nothing refers to it after its owner is gone.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Frame memory.
pub struct Umem {
    memory: Mapping,
    frames: u32,
}

// SAFETY: an address and a length; all access is by copies that tolerate concurrent writers.
unsafe impl Send for Umem {}
// SAFETY: as above.
unsafe impl Sync for Umem {}

impl Umem {
    /// Maps `frames` frames.
    pub fn new(frames: u32) -> io::Result<Arc<Umem>> {
        let bytes = frames as usize * FRAME_BYTES as usize;
        let memory = Mapping::new(bytes, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)?;
        Ok(Arc::new(Umem { memory, frames }))
    }

    /// The address of each frame.
    pub fn frames(&self) -> impl Iterator<Item = u64> + use<> {
        (0..u64::from(self.frames)).map(|index| index * FRAME_BYTES)
    }

    /// Copies `data` to `addr`.
    #[inline]
    pub fn write(&self, addr: u64, data: &[u8]) {
        let place = self.memory.at(addr, data.len());
        // SAFETY: mapped (checked); `data` is elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), place.as_ptr(), data.len()) }
    }

    /// Copies from `addr`.
    #[inline]
    pub fn read(&self, addr: u64, out: &mut [u8]) {
        let place = self.memory.at(addr, out.len());
        // SAFETY: as in write.
        unsafe { std::ptr::copy_nonoverlapping(place.as_ptr(), out.as_mut_ptr(), out.len()) }
    }
}

/// One ring, either side. `ours` is our index; `theirs` the last look at the kernel's.
struct Ring<T> {
    mapping: Mapping,
    our_index: NonNull<AtomicU32>,
    their_index: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    ours: u32,
    theirs: u32,
}

impl<T: Copy> Ring<T> {
    fn map(
        fd: RawFd,
        offsets: &libc::xdp_ring_offset,
        place: u64,
        we_produce: bool,
    ) -> io::Result<Ring<T>> {
        let bytes = offsets.desc as usize + RING_ENTRIES as usize * size_of::<T>();
        let mapping = Mapping::new(bytes, libc::MAP_SHARED, fd, place)?;
        let word = |at: u64| mapping.at(at, 4).cast();
        let (producer, consumer) = (word(offsets.producer), word(offsets.consumer));
        let (our_index, their_index) =
            if we_produce { (producer, consumer) } else { (consumer, producer) };
        let flags = word(offsets.flags);
        let entries = mapping.at(offsets.desc, 0).cast();
        Ok(Ring { mapping, our_index, their_index, flags, entries, ours: 0, theirs: 0 })
    }

    /// A word that the kernel shares; the mapping lives as long as the ring.
    fn word(&self, word: NonNull<AtomicU32>) -> &AtomicU32 {
        debug_assert!(self.mapping.bytes > 0);
        // SAFETY: inside the mapping (made by `map`), aligned, and only accessed atomically.
        unsafe { word.as_ref() }
    }

    fn entry(&self) -> NonNull<T> {
        // SAFETY: masked to the ring's entries, all of which `map` mapped.
        unsafe { self.entries.add((self.ours & (RING_ENTRIES - 1)) as usize) }
    }

    fn wants_wakeup(&self) -> bool {
        self.word(self.flags).load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    fn publish(&self) {
        self.word(self.our_index).store(self.ours, Ordering::Release);
    }

    /// Producer: puts one entry, seen by the kernel after `publish`; `false` when full.
    #[inline]
    fn put(&mut self, value: T) -> bool {
        if self.ours.wrapping_sub(self.theirs) == RING_ENTRIES {
            self.theirs = self.word(self.their_index).load(Ordering::Acquire);
            if self.ours.wrapping_sub(self.theirs) == RING_ENTRIES {
                return false;
            }
        }
        // SAFETY: a mapped entry that the kernel has released (the index just read).
        unsafe { self.entry().write(value) };
        self.ours = self.ours.wrapping_add(1);
        true
    }

    /// Consumer: takes one entry, the kernel's again after `publish`.
    #[inline]
    fn take(&mut self) -> Option<T> {
        if self.ours == self.theirs {
            self.theirs = self.word(self.their_index).load(Ordering::Acquire);
            if self.ours == self.theirs {
                return None;
            }
        }
        // SAFETY: a mapped entry that the kernel has produced (the index just read).
        let value = unsafe { self.entry().read() };
        self.ours = self.ours.wrapping_add(1);
        Some(value)
    }
}

/// A received frame.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Where its data begins.
    pub addr: u64,
    /// Its length.
    pub len: u32,
    /// Whether the frame goes on in the next entry ([`Binding::MultiBuffer`] only).
    pub more: bool,
}

/// How a socket is bound.
#[derive(Clone, Copy)]
pub enum Binding<'a> {
    /// With memory of its own; frames that do not fit into one of its frames are dropped.
    SingleBuffer,
    /// With memory of its own; longer frames take several entries.
    MultiBuffer,
    /// As the socket that registered the same memory.
    Shared(&'a XdpSocket),
}

/// A socket on queue 0 of an interface. The rings go before the descriptor: they hold the socket.
pub struct XdpSocket {
    fill: Ring<u64>,
    completion: Ring<u64>,
    rx: Ring<libc::xdp_desc>,
    tx: Ring<libc::xdp_desc>,
    fd: OwnedFd,
    _umem: Arc<Umem>,
}

// SAFETY: the rings' pointers are into mappings that move along; one thread uses them at a time.
unsafe impl Send for XdpSocket {}

impl XdpSocket {
    /// Opens a socket on queue 0 of `interface` in this thread's network namespace. The first
    /// socket of a umem registers it; others are bound as [`Binding::Shared`] with one that did.
    pub fn open(interface: &str, umem: &Arc<Umem>, binding: Binding) -> io::Result<XdpSocket> {
        let name = CString::new(interface)?;
        // SAFETY: a NUL-terminated name.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: plain system call; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: just made, owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let raw = fd.as_raw_fd();
        if !matches!(binding, Binding::Shared(_)) {
            register(raw, umem)?;
        }
        for ring in [
            libc::XDP_UMEM_FILL_RING,
            libc::XDP_UMEM_COMPLETION_RING,
            libc::XDP_RX_RING,
            libc::XDP_TX_RING,
        ] {
            set_option(raw, ring, &RING_ENTRIES)?;
        }
        let offsets = ring_offsets(raw)?;
        let fill = Ring::map(raw, &offsets.fr, libc::XDP_UMEM_PGOFF_FILL_RING, true)?;
        let completion = Ring::map(raw, &offsets.cr, libc::XDP_UMEM_PGOFF_COMPLETION_RING, false)?;
        let rx = Ring::map(raw, &offsets.rx, libc::XDP_PGOFF_RX_RING as u64, false)?;
        let tx = Ring::map(raw, &offsets.tx, libc::XDP_PGOFF_TX_RING as u64, true)?;
        bind(raw, index, binding)?;
        // Absent before 6.17: sending then takes more system calls.
        let _ = set_option(raw, XDP_MAX_TX_SKB_BUDGET, &RING_ENTRIES);
        Ok(XdpSocket { fill, completion, rx, tx, fd, _umem: umem.clone() })
    }

    /// The descriptor, for the steering program's map.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Gives the kernel a frame to receive into; `false` when the ring is full.
    #[inline]
    pub fn give(&mut self, addr: u64) -> bool {
        self.fill.put(addr & !(FRAME_BYTES - 1))
    }

    /// Makes given frames visible and wakes the receiver where it wants that.
    #[inline]
    pub fn publish_given(&mut self) {
        self.fill.publish();
        if self.fill.wants_wakeup() {
            let (fd, none) = (self.fd.as_raw_fd(), std::ptr::null_mut());
            // SAFETY: an owned descriptor and no buffer.
            unsafe { libc::recvfrom(fd, none, 0, libc::MSG_DONTWAIT, none.cast(), none.cast()) };
        }
    }

    /// Puts a frame into the send ring; `false` when it is full.
    #[inline]
    pub fn send(&mut self, addr: u64, len: u32) -> bool {
        self.tx.put(libc::xdp_desc { addr, len, options: 0 })
    }

    /// As [`send`](Self::send) for one part of a frame; `more` parts follow.
    #[inline]
    pub fn send_part(&mut self, addr: u64, len: u32, more: bool) -> bool {
        let options = if more { libc::XDP_PKT_CONTD } else { 0 };
        self.tx.put(libc::xdp_desc { addr, len, options })
    }

    /// Asks the kernel to send what is in the ring.
    #[inline]
    pub fn kick(&mut self) {
        self.tx.publish();
        if self.tx.wants_wakeup() {
            let (fd, none) = (self.fd.as_raw_fd(), std::ptr::null());
            // What is not sent now (EAGAIN, ENOBUFS) stays in the ring until the next call.
            // SAFETY: an owned descriptor, no buffer, no address.
            unsafe { libc::sendto(fd, none, 0, libc::MSG_DONTWAIT, none.cast(), 0) };
        }
    }

    /// Whether the kernel has not taken everything that was to be sent.
    #[inline]
    pub fn has_unsent(&self) -> bool {
        self.tx.ours != self.tx.word(self.tx.their_index).load(Ordering::Relaxed)
    }

    /// The next received frame.
    #[inline]
    pub fn receive(&mut self) -> Option<Received> {
        let entry = self.rx.take()?;
        let more = entry.options & libc::XDP_PKT_CONTD != 0;
        Some(Received { addr: entry.addr, len: entry.len, more })
    }

    /// Lets the kernel use the entries of received frames again.
    #[inline]
    pub fn publish_received(&mut self) {
        self.rx.publish();
    }

    /// Hands over every frame whose sending has ended.
    #[inline]
    pub fn complete(&mut self, mut sink: impl FnMut(u64)) {
        let mut any = false;
        while let Some(addr) = self.completion.take() {
            sink(addr & !(FRAME_BYTES - 1));
            any = true;
        }
        if any {
            self.completion.publish();
        }
    }
}

fn register(fd: RawFd, umem: &Umem) -> io::Result<()> {
    // SAFETY: a structure of integers, valid when zero.
    let mut registration: libc::xdp_umem_reg = unsafe { std::mem::zeroed() };
    registration.addr = umem.memory.base.as_ptr() as u64;
    registration.len = umem.memory.bytes as u64;
    registration.chunk_size = FRAME_BYTES as u32;
    set_option(fd, libc::XDP_UMEM_REG, &registration)
}

fn bind(fd: RawFd, index: u32, binding: Binding) -> io::Result<()> {
    // SAFETY: a structure of integers, valid when zero.
    let mut address: libc::sockaddr_xdp = unsafe { std::mem::zeroed() };
    address.sxdp_family = libc::AF_XDP as u16;
    address.sxdp_ifindex = index;
    match binding {
        Binding::Shared(first) => {
            address.sxdp_flags = libc::XDP_SHARED_UMEM;
            address.sxdp_shared_umem_fd = first.fd() as u32;
        }
        Binding::SingleBuffer => address.sxdp_flags = libc::XDP_USE_NEED_WAKEUP,
        Binding::MultiBuffer => {
            address.sxdp_flags = libc::XDP_USE_NEED_WAKEUP | libc::XDP_USE_SG;
        }
    }
    let bytes = size_of_val(&address) as libc::socklen_t;
    let began = Instant::now();
    loop {
        // SAFETY: `address` is a sockaddr_xdp of that size.
        if unsafe { libc::bind(fd, (&raw const address).cast(), bytes) } == 0 {
            return Ok(());
        }
        let error = Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) || began.elapsed() > QUEUE_WAIT {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn set_option<T>(fd: RawFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let (value, bytes) = (std::ptr::from_ref(value).cast(), size_of::<T>() as libc::socklen_t);
    // SAFETY: `value` is valid for reads of `bytes`.
    match unsafe { libc::setsockopt(fd, libc::SOL_XDP, option, value, bytes) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

fn ring_offsets(fd: RawFd) -> io::Result<libc::xdp_mmap_offsets> {
    // SAFETY: a structure of integers, valid when zero.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
    let mut bytes = size_of_val(&offsets) as libc::socklen_t;
    let (option, place) = (libc::XDP_MMAP_OFFSETS, (&raw mut offsets).cast());
    // SAFETY: `offsets` is valid for writes of `bytes`.
    match unsafe { libc::getsockopt(fd, libc::SOL_XDP, option, place, &mut bytes) } {
        0 => Ok(offsets),
        _ => Err(Error::last_os_error()),
    }
}
