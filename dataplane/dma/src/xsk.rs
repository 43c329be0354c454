//! An AF_XDP socket on one queue of an interface: four rings between us and the kernel.
//!
//! The whole [`Region`] is the UMEM, registered with each socket by itself, so that no socket
//! depends on another; a chunk is a frame, without headroom beyond XDP_PACKET_HEADROOM. Frames are
//! typed: what goes into a ring is given away, what comes out is owned again, and
//! [`Xsk::close`] returns every frame that the kernel still had.
//! Source: Linux `Documentation/networking/af_xdp.rst` (multi-buffer: 6.6 or newer).

use crate::lent::Lent;
use crate::ring::{Consumer, Producer, Words};
use crate::{FRAME_BYTES, Frame, FreeList, MAX_FRAMES, Region};
use std::ffi::CString;
use std::io::{Error, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::time::Duration;

/// The smallest ring: the longest packet and the kernel's least send budget (32) fit.
pub const MIN_RING: u32 = 32;
const _: () = assert!(MAX_FRAMES <= MIN_RING as usize);

/// `XDP_MAX_TX_SKB_BUDGET` of linux/if_xdp.h (6.17 or newer): packets sent by one system call.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// Entries of each ring: powers of two, at least [`MIN_RING`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSizes {
    /// Empty frames for the kernel to receive into.
    pub fill: u32,
    /// Received frames.
    pub rx: u32,
    /// Frames to send.
    pub tx: u32,
    /// Sent frames on their way back.
    pub completion: u32,
}

impl Default for RingSizes {
    /// 2 048 each.
    fn default() -> Self {
        RingSizes { fill: 2048, rx: 2048, tx: 2048, completion: 2048 }
    }
}

/// Why a socket could not be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum XskError {
    #[error("there is no network interface `{interface}` in this network namespace; see `ip link`")]
    NoInterface { interface: String },
    #[error("ring of {entries} entries: AF_XDP rings are powers of two, at least {MIN_RING}")]
    RingSize { entries: u32 },
    #[error("AF_XDP sockets need CAP_NET_RAW: run as root, or `setcap cap_net_raw+ep` the program")]
    Capability,
    #[error("this kernel has no AF_XDP sockets (CONFIG_XDP_SOCKETS); 6.6 or newer is needed")]
    Unsupported,
    #[error(
        "cannot lock {mib} MiB of frame memory for queue {queue} of `{interface}`: {source}; \
         raise the limit (`ulimit -l unlimited`, LimitMEMLOCK=), give CAP_IPC_LOCK, or lower \
         `region_mib`"
    )]
    Memlock { interface: String, queue: u32, mib: usize, source: Error },
    #[error(
        "`{interface}` has no queue {queue} for AF_XDP: see `ethtool -l {interface}` for the \
         number of queues (a kernel older than 6.6 refuses every queue in this way)"
    )]
    NoQueue { interface: String, queue: u32 },
    #[error(
        "queue {queue} of `{interface}` already has an AF_XDP socket: stop the process that \
         `ss --xdp -p` shows"
    )]
    Busy { interface: String, queue: u32 },
    #[error("{call} for queue {queue} of `{interface}`: {source}")]
    Call { call: &'static str, interface: String, queue: u32, source: Error },
}

/// What became of asking the kernel to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kick {
    /// It has sent everything it could see.
    Done,
    /// It was busy or out of buffers: ask again later.
    Later,
    /// The interface is down or gone; the frames stay in the ring.
    LinkDown,
}

/// What the kernel counts for a socket (`struct xdp_statistics`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XskStatistics {
    /// Frames dropped for other reasons than full or empty rings.
    pub rx_dropped: u64,
    /// Fill ring entries that made no sense.
    pub rx_invalid: u64,
    /// Tx ring entries that made no sense.
    pub tx_invalid: u64,
    /// Frames dropped because the rx ring was full.
    pub rx_ring_full: u64,
    /// Frames dropped because the fill ring was empty.
    pub fill_ring_empty: u64,
}

/// The socket.
#[derive(Debug)]
pub struct Xsk {
    // Fields drop in this order: mappings keep the socket alive, so they go first.
    rings: Rings,
    socket: OwnedFd,
    lent: Lent,
    index: u32,
    queue: u32,
    zero_copy: bool,
    mtu: usize,
}

/// The four rings and their mappings.
#[derive(Debug)]
struct Rings {
    fill: Producer<u64>,
    completion: Consumer<u64>,
    rx: Consumer<libc::xdp_desc>,
    tx: Producer<libc::xdp_desc>,
    _mappings: [Mapping; 4],
}

impl Xsk {
    /// Opens a socket on `queue` of `interface`, looked up in the calling thread's network
    /// namespace; zero-copy where the driver has it. The queue's frames arrive once the socket is
    /// in the steering program's map.
    pub fn open(
        interface: &str,
        queue: u32,
        region: &'static Region,
        sizes: RingSizes,
    ) -> Result<Xsk, XskError> {
        for entries in [sizes.fill, sizes.rx, sizes.tx, sizes.completion] {
            if !entries.is_power_of_two() || entries < MIN_RING {
                return Err(XskError::RingSize { entries });
            }
        }
        let at = Place { interface, queue };
        let index = interface_index(interface).ok_or_else(|| at.no_interface())?;
        let socket = socket(&at)?;
        register(&socket, region, &at)?;
        let rings = Rings::map(&socket, sizes, &at)?;
        wait_while_busy(|| bind(&socket, index, queue, 0)).map_err(|error| at.bind(error))?;
        tune(&socket, sizes.tx);
        let options: u32 = get_option(&socket, libc::XDP_OPTIONS).unwrap_or(0);
        let mtu = mtu(interface).map_err(|source| at.call("reading the MTU", source))?;
        Ok(Xsk {
            rings,
            socket,
            lent: Lent::new(region),
            index,
            queue,
            zero_copy: options & libc::XDP_OPTIONS_ZEROCOPY != 0,
            mtu,
        })
    }

    /// The socket: for the steering program's map, and to poll (readable while frames wait to be
    /// received). Nobody may duplicate it, which would keep it open past [`close`](Self::close).
    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Whether the driver reads and writes the frames itself, without a copy by the kernel.
    pub fn zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// The interface's MTU when the socket was opened, in bytes of IP packet.
    pub fn mtu(&self) -> usize {
        self.mtu
    }

    /// Frames that the kernel has.
    pub fn held(&self) -> usize {
        self.lent.count()
    }

    /// Gives the kernel as many frames to receive into as there is room for.
    #[inline]
    pub fn refill(&mut self, free: &mut FreeList) {
        let fill = &mut self.rings.fill;
        let room = (fill.acquire(u32::MAX) as usize).min(free.len());
        if room == 0 {
            return;
        }
        for _ in 0..room {
            let Some(frame) = free.take() else { break };
            fill.push(self.lent.lend(frame));
        }
        fill.release();
    }

    /// Hands over received frames in order: the frame, its data's start and length, and whether
    /// the packet goes on in the next frame. Stops after a frame for which `sink` returns `false`.
    #[inline]
    pub fn receive(&mut self, mut sink: impl FnMut(Frame, usize, usize, bool) -> bool) {
        let rx = &mut self.rings.rx;
        if rx.acquire(1) == 0 {
            return;
        }
        while let Some(entry) = rx.pop() {
            // SAFETY: the kernel put it into the rx ring, and is done with it.
            let frame = unsafe { self.lent.take_back(entry.addr) };
            let start = entry.addr as usize % FRAME_BYTES;
            let more = entry.options & libc::XDP_PKT_CONTD != 0;
            if !sink(frame, start, entry.len as usize, more) {
                break;
            }
        }
        rx.release();
    }

    /// Asks the kernel to look at the fill ring, if it wants to be asked.
    #[inline]
    pub fn wake_receiver(&mut self) {
        if self.rings.fill.flags() & libc::XDP_RING_NEED_WAKEUP != 0 {
            let (fd, none) = (self.socket.as_raw_fd(), std::ptr::null_mut());
            // SAFETY: an owned descriptor and no buffer.
            unsafe { libc::recvfrom(fd, none, 0, libc::MSG_DONTWAIT, none.cast(), none.cast()) };
        }
    }

    /// How many frames can be given to [`transmit`](Self::transmit), when that is fewer than
    /// `want`; otherwise at least `want`.
    #[inline]
    pub fn transmit_room(&mut self, want: usize) -> usize {
        self.rings.tx.acquire(want as u32) as usize
    }

    /// Puts one frame into the tx ring: `frame[start..start + len]`, and whether the packet goes
    /// on in the next frame. The kernel sees it after [`kick`](Self::kick).
    ///
    /// # Panics
    /// Without room, with nothing to send (the kernel would keep the frame), or past the frame.
    #[inline]
    pub fn transmit(&mut self, frame: Frame, start: usize, len: usize, more: bool) {
        assert!(len > 0 && start <= FRAME_BYTES && len <= FRAME_BYTES - start);
        let addr = self.lent.lend(frame) + start as u64;
        let options = if more { libc::XDP_PKT_CONTD } else { 0 };
        self.rings.tx.push(libc::xdp_desc { addr, len: len as u32, options });
    }

    /// Publishes what was put into the tx ring and asks the kernel to send it, if it wants to be
    /// asked; one system call at most.
    #[inline]
    pub fn kick(&mut self) -> Kick {
        self.rings.tx.release();
        if self.rings.tx.flags() & libc::XDP_RING_NEED_WAKEUP == 0 {
            return Kick::Done;
        }
        let (fd, none) = (self.socket.as_raw_fd(), std::ptr::null());
        // SAFETY: an owned descriptor, no buffer and no address.
        if unsafe { libc::sendto(fd, none, 0, libc::MSG_DONTWAIT, none.cast(), 0) } >= 0 {
            return Kick::Done;
        }
        match Error::last_os_error().raw_os_error() {
            Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => Kick::LinkDown,
            _ => Kick::Later,
        }
    }

    /// Frames in the tx ring that the kernel has not looked at yet.
    #[inline]
    pub fn unsent(&self) -> usize {
        self.rings.tx.waiting() as usize
    }

    /// Takes the frames back whose sending has ended.
    #[inline]
    pub fn complete(&mut self, free: &mut FreeList) {
        let completion = &mut self.rings.completion;
        if completion.acquire(1) == 0 {
            return;
        }
        while let Some(addr) = completion.pop() {
            // SAFETY: the kernel put it into the completion ring, and is done with it.
            free.give(unsafe { self.lent.take_back(addr) });
        }
        completion.release();
    }

    /// What the kernel counted so far; a system call.
    pub fn statistics(&self) -> XskStatistics {
        // The structure is all integers; a kernel that does not fill a field leaves it zero.
        let counted: libc::xdp_statistics =
            get_option(&self.socket, libc::XDP_STATISTICS).unwrap_or_else(|_| zeroed());
        XskStatistics {
            rx_dropped: counted.rx_dropped,
            rx_invalid: counted.rx_invalid_descs,
            tx_invalid: counted.tx_invalid_descs,
            rx_ring_full: counted.rx_ring_full,
            fill_ring_empty: counted.rx_fill_ring_empty_descs,
        }
    }

    /// Ends the socket and gives back every frame that the kernel had; on return the queue is free
    /// for another socket. To be called in the network namespace of [`open`](Self::open), and not
    /// on a worker with other work: it waits for the kernel, milliseconds.
    ///
    /// Take the socket out of the steering program's map first, or frames that arrive meanwhile
    /// are lost.
    pub fn close(self, free: &mut FreeList) {
        let Xsk { rings, socket, mut lent, index, queue, zero_copy, .. } = self;
        // The mappings and the descriptor are all that refers to the socket. When the last one
        // goes, the kernel unbinds it and waits for packets under way (xsk_release,
        // synchronize_net) before the call returns; in copy mode nothing touches the frames from
        // then on. The queue, and in zero-copy mode the driver, follow on a work queue.
        drop((rings, socket));
        let free_again = match wait_while_busy(|| probe(index, queue)) {
            Ok(()) => true,
            // Refused after the look at the queue; or the interface is gone.
            Err(e) => matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENODEV)),
        };
        // A driver that may still write keeps its frames: lost, but nobody else's.
        if free_again || !zero_copy {
            // SAFETY: the socket is gone, and nothing of the kernel writes to its frames.
            unsafe { lent.take_all(free) };
        }
    }
}

impl Rings {
    fn map(socket: &OwnedFd, sizes: RingSizes, at: &Place) -> Result<Rings, XskError> {
        make_rings(socket, sizes).map_err(|source| at.call("making a ring", source))?;
        let offsets: libc::xdp_mmap_offsets = get_option(socket, libc::XDP_MMAP_OFFSETS)
            .map_err(|source| at.call("reading the rings' layout", source))?;
        let map = |offset: &libc::xdp_ring_offset, entry_bytes: usize, entries: u32, place: u64| {
            let bytes = offset.desc as usize + entries as usize * entry_bytes;
            Mapping::new(socket, bytes, place).map_err(|source| at.call("mapping a ring", source))
        };
        let (address, descriptor) = (size_of::<u64>(), size_of::<libc::xdp_desc>());
        let (rx_place, tx_place) = (libc::XDP_PGOFF_RX_RING, libc::XDP_PGOFF_TX_RING);
        let fill = map(&offsets.fr, address, sizes.fill, libc::XDP_UMEM_PGOFF_FILL_RING)?;
        let completion =
            map(&offsets.cr, address, sizes.completion, libc::XDP_UMEM_PGOFF_COMPLETION_RING)?;
        let rx = map(&offsets.rx, descriptor, sizes.rx, rx_place as u64)?;
        let tx = map(&offsets.tx, descriptor, sizes.tx, tx_place as u64)?;
        // SAFETY: each ring's words lie in its mapping by the kernel's offsets, the mappings live
        // in the same structure, the sizes are powers of two (checked by open) and each ring is
        // wrapped once.
        unsafe {
            Ok(Rings {
                fill: Producer::new(fill.words(&offsets.fr, sizes.fill)),
                completion: Consumer::new(completion.words(&offsets.cr, sizes.completion)),
                rx: Consumer::new(rx.words(&offsets.rx, sizes.rx)),
                tx: Producer::new(tx.words(&offsets.tx, sizes.tx)),
                _mappings: [fill, completion, rx, tx],
            })
        }
    }
}

fn make_rings(socket: &OwnedFd, sizes: RingSizes) -> Result<(), Error> {
    let wanted = [
        (libc::XDP_UMEM_FILL_RING, sizes.fill),
        (libc::XDP_UMEM_COMPLETION_RING, sizes.completion),
        (libc::XDP_RX_RING, sizes.rx),
        (libc::XDP_TX_RING, sizes.tx),
    ];
    wanted
        .iter()
        .try_for_each(|(option, entries)| set_option(socket, libc::SOL_XDP, *option, entries))
}

/// What an error is about.
struct Place<'a> {
    interface: &'a str,
    queue: u32,
}

impl Place<'_> {
    fn no_interface(&self) -> XskError {
        XskError::NoInterface { interface: self.interface.into() }
    }

    fn call(&self, call: &'static str, source: Error) -> XskError {
        XskError::Call { call, interface: self.interface.into(), queue: self.queue, source }
    }

    fn bind(&self, error: Error) -> XskError {
        let (interface, queue) = (self.interface.to_owned(), self.queue);
        match error.raw_os_error() {
            Some(libc::EBUSY) => XskError::Busy { interface, queue },
            Some(libc::EINVAL) => XskError::NoQueue { interface, queue },
            Some(libc::ENODEV) => XskError::NoInterface { interface },
            Some(libc::EPERM) => XskError::Capability,
            _ => self.call("bind", error),
        }
    }
}

fn open_socket(family: i32, kind: i32) -> Result<OwnedFd, Error> {
    // SAFETY: plain system call; the result is checked.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: just made and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn socket(at: &Place) -> Result<OwnedFd, XskError> {
    open_socket(libc::AF_XDP, libc::SOCK_RAW).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM) => XskError::Capability,
        Some(libc::EAFNOSUPPORT) => XskError::Unsupported,
        _ => at.call("socket", error),
    })
}

fn register(socket: &OwnedFd, region: &Region, at: &Place) -> Result<(), XskError> {
    register_memory(socket, region.base(), region.bytes()).map_err(|source| {
        match source.raw_os_error() {
            Some(libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN) => XskError::Memlock {
                interface: at.interface.into(),
                queue: at.queue,
                mib: region.bytes() >> 20,
                source,
            },
            _ => at.call("registering the frame memory", source),
        }
    })
}

/// Makes memory the socket's UMEM. It stays mapped while the socket lives, and the kernel writes
/// only to frames that are given to it.
fn register_memory(socket: &OwnedFd, base: NonNull<u8>, bytes: usize) -> Result<(), Error> {
    let mut umem: libc::xdp_umem_reg = zeroed();
    umem.addr = base.as_ptr() as u64;
    umem.len = bytes as u64;
    umem.chunk_size = FRAME_BYTES as u32;
    set_option(socket, libc::SOL_XDP, libc::XDP_UMEM_REG, &umem)
}

/// Without `XDP_COPY` and `XDP_ZEROCOPY` in `flags` the kernel tries zero-copy first and falls
/// back.
fn bind(socket: &OwnedFd, index: u32, queue: u32, flags: u16) -> Result<(), Error> {
    let mut address: libc::sockaddr_xdp = zeroed();
    address.sxdp_family = libc::AF_XDP as u16;
    address.sxdp_flags = libc::XDP_USE_NEED_WAKEUP | libc::XDP_USE_SG | flags;
    address.sxdp_ifindex = index;
    address.sxdp_queue_id = queue;
    let bytes = size_of_val(&address) as libc::socklen_t;
    // SAFETY: `address` is a sockaddr_xdp of that size.
    match unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), bytes) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

/// Repeats `bind` while the queue is busy, for five seconds: the kernel frees a queue on a work
/// queue and under the lock of all network devices, some time after its socket was closed; where
/// others make and remove interfaces meanwhile, that takes seconds.
fn wait_while_busy(mut bind: impl FnMut() -> Result<(), Error>) -> Result<(), Error> {
    for _ in 0..5000 {
        match bind() {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            outcome => return outcome,
        }
    }
    Err(Error::from_raw_os_error(libc::EBUSY))
}

/// EBUSY while the queue has a socket. Asks for zero-copy, which a driver without it refuses
/// (EOPNOTSUPP) after the kernel has looked at the queue and before it takes it; with a driver
/// that has it the socket made here is on the queue for a moment.
fn probe(index: u32, queue: u32) -> Result<(), Error> {
    let sizes = RingSizes { fill: 1, rx: 1, tx: 1, completion: 1 };
    let memory = Mapping::private(FRAME_BYTES)?;
    let socket = open_socket(libc::AF_XDP, libc::SOCK_RAW)?;
    register_memory(&socket, memory.base, memory.bytes)?;
    make_rings(&socket, sizes)?;
    bind(&socket, index, queue, libc::XDP_ZEROCOPY)
}

/// Lifts limits where the kernel lets us; sending works without, in smaller steps.
fn tune(socket: &OwnedFd, tx_entries: u32) {
    // One system call may empty the whole ring instead of 32 packets of it.
    let _ = set_option(socket, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &tx_entries);
    // In copy mode packets under way count against the send buffer: a page and its descriptor for
    // each frame, so that the ring is the limit.
    let bytes = tx_entries.saturating_mul(2 * FRAME_BYTES as u32);
    let buffer = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    let _ = set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &buffer);
}

fn interface_index(interface: &str) -> Option<u32> {
    let name = CString::new(interface).ok()?;
    // SAFETY: a NUL-terminated name.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// The MTU by SIOCGIFMTU, in the calling thread's network namespace.
fn mtu(interface: &str) -> Result<usize, Error> {
    let mut request: libc::ifreq = zeroed();
    if interface.len() >= request.ifr_name.len() {
        return Err(ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    let any = open_socket(libc::AF_INET, libc::SOCK_DGRAM)?;
    // SAFETY: SIOCGIFMTU reads the name from and writes the MTU to an ifreq.
    if unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) } < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the successful call wrote this member.
    Ok(unsafe { request.ifr_ifru.ifru_mtu } as usize)
}

/// A value of a C structure of integers, all zero.
fn zeroed<T: Copy>() -> T {
    // SAFETY: used for libc's structures and unions of integers and byte arrays only, for which
    // all zero is a valid value.
    unsafe { std::mem::zeroed() }
}

fn set_option<T>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> Result<(), Error> {
    let (pointer, bytes) = (std::ptr::from_ref(value).cast(), size_of::<T>() as libc::socklen_t);
    // SAFETY: `value` is valid for reads of its size.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, pointer, bytes) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

fn get_option<T: Copy>(socket: &OwnedFd, option: i32) -> Result<T, Error> {
    let mut value: T = zeroed();
    let mut bytes = size_of::<T>() as libc::socklen_t;
    let (fd, pointer) = (socket.as_raw_fd(), (&raw mut value).cast());
    // SAFETY: `value` is valid for writes of `bytes` bytes.
    match unsafe { libc::getsockopt(fd, libc::SOL_XDP, option, pointer, &raw mut bytes) } {
        0 => Ok(value),
        _ => Err(Error::last_os_error()),
    }
}

/// A mapping, unmapped on drop: that of a ring keeps its socket, and so its queue, alive.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: plain memory that any thread may unmap; accesses go through the rings' owner.
unsafe impl Send for Mapping {}

impl Mapping {
    /// A ring of the socket.
    fn new(socket: &OwnedFd, bytes: usize, place: u64) -> Result<Mapping, Error> {
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        Mapping::map(bytes, flags, socket.as_raw_fd(), place)
    }

    /// Memory of nobody else's.
    fn private(bytes: usize) -> Result<Mapping, Error> {
        Mapping::map(bytes, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }

    fn map(bytes: usize, flags: i32, fd: RawFd, place: u64) -> Result<Mapping, Error> {
        let (none, prot) = (std::ptr::null_mut(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a fresh mapping at an address of the kernel's choice; the result is checked.
        let base = unsafe { libc::mmap(none, bytes, prot, flags, fd, place as libc::off_t) };
        if base == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(Error::last_os_error)?;
        Ok(Mapping { base, bytes })
    }

    fn words<T>(&self, offset: &libc::xdp_ring_offset, size: u32) -> Words<T> {
        assert!(offset.desc as usize + size as usize * size_of::<T>() <= self.bytes);
        // SAFETY: the kernel's offsets lie in front of the entries, which end inside the mapping.
        unsafe {
            Words {
                producer: self.base.add(offset.producer as usize).cast(),
                consumer: self.base.add(offset.consumer as usize).cast(),
                flags: self.base.add(offset.flags as usize).cast(),
                entries: self.base.add(offset.desc as usize).cast(),
                size,
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; the rings over it go in the same drop and do
        // not touch it while they do.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_up_errors_say_what_to_do() {
        let region = Region::new(64).unwrap();
        let open = |interface: &str, queue, sizes| {
            Xsk::open(interface, queue, region, sizes).unwrap_err().to_string()
        };
        let sizes = RingSizes::default();
        let missing = open("no-such-if0", 0, sizes);
        assert!(missing.contains("`no-such-if0`") && missing.contains("ip link"), "{missing}");
        for entries in [0, MIN_RING / 2, MIN_RING + 1] {
            let odd = open("lo", 0, RingSizes { tx: entries, ..sizes });
            assert!(odd.contains("powers of two"), "{odd}");
        }
        let queue = open("lo", 63, sizes);
        assert!(queue.contains("no queue 63") && queue.contains("ethtool -l lo"), "{queue}");
    }

    #[test]
    fn a_closed_socket_leaves_its_queue_free_and_its_frames_behind() {
        let region = Region::new(512).unwrap();
        let mut free = region.carve(512).unwrap();
        let loopback = interface_index("lo").unwrap();
        let errno = || probe(loopback, 0).unwrap_err().raw_os_error();
        assert_eq!(errno(), Some(libc::EOPNOTSUPP));
        let sizes = RingSizes { fill: 256, ..RingSizes::default() };
        let mut xsk = Xsk::open("lo", 0, region, sizes).unwrap();
        assert_eq!(errno(), Some(libc::EBUSY));
        xsk.refill(&mut free);
        assert_eq!((xsk.held(), free.len()), (256, 256));
        xsk.transmit(free.take().unwrap(), 256, 60, false);
        assert_eq!((xsk.unsent(), xsk.held(), free.len()), (1, 257, 255));
        xsk.close(&mut free);
        assert_eq!((free.len(), errno()), (512, Some(libc::EOPNOTSUPP)));
    }
}
