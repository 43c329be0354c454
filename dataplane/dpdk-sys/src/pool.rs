//! Mbufs that are frames: a pool with an mbuf for every frame of the region, its buffer pinned to
//! that frame, so that packets pass between DPDK and the other ports without a copy.
//!
//! Who has a frame when: *in the pool or in the driver's rings* it is lent, and its mbuf is DPDK's.
//! *Received* (or taken out of the pool) it is ours, and its mbuf lies aside, raw: unlinked, with a
//! reference count of 1. Sending lends it again; the driver frees the mbuf into the pool, which is
//! how frames come back. `Lent` has a bit for each, so that none is taken twice.
//!
//! An mbuf's buffer begins 128 bytes into its frame: with DPDK's own headroom of 128 bytes received
//! data begins where it does on every port, and a driver never writes to a frame's link.

use crate::device::reason;
use crate::error::{self, DeviceError};
use crate::raw;
use outboard_dma::{Backing, FRAME_BYTES, Frame, FreeList, HEADROOM_BYTES, Lent, Region};
use std::ffi::CString;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// Where an mbuf's buffer begins in its frame.
pub const BUFFER_START: usize = HEADROOM_BYTES - raw::OUTBOARD_MBUF_HEADROOM as usize;
/// Bytes of an mbuf's buffer.
pub const BUFFER_BYTES: usize = FRAME_BYTES - BUFFER_START;
/// RTE_BAD_IOVA: devices have no address for it.
pub const BAD_IOVA: u64 = u64::MAX;
/// Mbufs that each thread keeps for itself.
const CACHE: u32 = 256;
/// Mbufs that move at once.
const BATCH: usize = 64;
/// Regions that were made known to DPDK; they live as long as the process.
static REGISTERED: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// A pool of mbufs that are the frames of a region.
#[derive(Debug)]
pub struct Pool {
    raw: NonNull<raw::rte_mempool>,
    region: &'static Region,
    /// By frame.
    mbufs: Box<[*mut raw::rte_mbuf]>,
    lent: Lent,
}

impl Pool {
    /// A pool with all mbufs aside. The environment runs.
    pub fn new(device: &str, region: &'static Region) -> Result<Pool, DeviceError> {
        let pages = pages(region);
        register(device, region, &pages)?;
        let call = |call, reason| DeviceError::Call { call, device: device.into(), reason };
        let memory: Vec<raw::rte_pktmbuf_extmem> = pages
            .iter()
            .map(|page| raw::rte_pktmbuf_extmem {
                buf_ptr: page.start.wrapping_add(BUFFER_START).cast(),
                buf_iova: page.iova.map_or(BAD_IOVA, |iova| iova + BUFFER_START as u64),
                // The last buffer ends before this does: elements are whole frames apart.
                buf_len: page.bytes,
                elt_size: FRAME_BYTES as u16,
            })
            .collect();
        let name = unique_name();
        // SAFETY: the name is NUL-terminated and `memory` a list of that many pieces; DPDK copies
        // both. The pieces lie in the region, which is never unmapped.
        let pool = unsafe {
            raw::rte_pktmbuf_pool_create_extbuf(
                name.as_ptr(),
                region.frames(),
                CACHE,
                0,
                BUFFER_BYTES as u16,
                raw::OUTBOARD_ANY_SOCKET,
                memory.as_ptr(),
                memory.len() as u32,
            )
        };
        let raw = NonNull::new(pool).ok_or_else(|| call("making the pool", error::last()))?;
        let mbufs = vec![null_mut(); region.frames() as usize].into_boxed_slice();
        let mut pool = Pool { raw, region, mbufs, lent: Lent::new(region) };
        pool.set_aside();
        assert!(pool.mbufs.iter().all(|mbuf| !mbuf.is_null()), "an mbuf for every frame");
        Ok(pool)
    }

    /// Takes every mbuf out of the pool and notes which frame it is.
    fn set_aside(&mut self) {
        let mut mbufs = [null_mut(); BATCH];
        loop {
            // SAFETY: a live pool.
            let left = unsafe { raw::rte_mempool_avail_count(self.raw.as_ptr()) } as usize;
            let taken = self.take(&mut mbufs[..left.min(BATCH)]);
            if taken == 0 {
                return;
            }
            for mbuf in &mbufs[..taken] {
                // SAFETY: an mbuf of the pool.
                let buffer = unsafe { raw::shim_buffer(*mbuf) } as usize;
                self.mbufs[(buffer - self.base()) / FRAME_BYTES] = *mbuf;
            }
        }
    }

    /// The pool, for the driver.
    pub fn raw(&self) -> *mut raw::rte_mempool {
        self.raw.as_ptr()
    }

    /// Frames that DPDK has.
    pub fn lent(&self) -> usize {
        self.lent.count()
    }

    fn base(&self) -> usize {
        self.region.base().as_ptr() as usize
    }

    /// Lends a frame; its mbuf is for the caller to give to DPDK.
    #[inline(always)]
    pub fn lend(&mut self, frame: Frame) -> *mut raw::rte_mbuf {
        let offset = self.lent.lend(frame) as usize;
        self.mbufs[offset / FRAME_BYTES]
    }

    /// Takes back the frame in which `buffer` begins.
    ///
    /// # Safety
    /// DPDK has handed over the mbuf with this buffer just now, raw.
    #[inline(always)]
    pub unsafe fn take_back(&mut self, buffer: *mut u8) -> Frame {
        let offset = (buffer as usize).wrapping_sub(self.base());
        // SAFETY: the caller's promise.
        unsafe { self.lent.take_back(offset as u64) }
    }

    /// Lends up to `count` frames for the driver to receive into.
    pub fn fill(&mut self, mut count: usize, free: &mut FreeList) {
        while count > 0 {
            let mut mbufs = [null_mut(); BATCH];
            let mut taken = 0;
            while taken < count.min(BATCH) {
                let Some(frame) = free.take() else { break };
                mbufs[taken] = self.lend(frame);
                taken += 1;
            }
            if taken == 0 {
                return;
            }
            // SAFETY: raw mbufs of this pool that were aside until now.
            unsafe { raw::shim_give(self.raw(), mbufs.as_mut_ptr(), taken as u32) };
            count -= taken;
        }
    }

    /// Takes up to `count` frames back that lie in the pool.
    pub fn drain(&mut self, mut count: usize, free: &mut FreeList) {
        let mut mbufs = [null_mut(); BATCH];
        while count > 0 {
            let taken = self.take(&mut mbufs[..count.min(BATCH)]);
            if taken == 0 {
                return;
            }
            for mbuf in &mbufs[..taken] {
                // SAFETY: the pool has just handed it over, and what is in a pool is raw.
                free.give(unsafe { self.take_back(raw::shim_buffer(*mbuf).cast()) });
            }
            count -= taken;
        }
    }

    /// As many mbufs as there is room for, or none.
    fn take(&mut self, mbufs: &mut [*mut raw::rte_mbuf]) -> usize {
        if mbufs.is_empty() {
            return 0;
        }
        // SAFETY: room for that many.
        match unsafe { raw::shim_take(self.raw(), mbufs.as_mut_ptr(), mbufs.len() as u32) } {
            0 => mbufs.len(),
            _ => 0,
        }
    }

    /// Ends the pool once the device is closed; how many frames DPDK did not give back. Those and
    /// the pool stay until the process ends.
    pub fn close(&mut self, free: &mut FreeList) -> usize {
        // SAFETY: a live pool; the device is closed, and its worker has handed the queue over.
        unsafe { raw::shim_flush(self.raw()) };
        loop {
            // SAFETY: a live pool.
            let left = unsafe { raw::rte_mempool_avail_count(self.raw()) } as usize;
            let before = self.lent();
            self.drain(left, free);
            if self.lent() == before {
                break;
            }
        }
        if self.lent() == 0 {
            // SAFETY: nobody has an mbuf of it: the device is closed, and the rest lies aside.
            unsafe { raw::rte_mempool_free(self.raw()) };
        }
        self.lent()
    }
}

/// An ordinary pool, for drivers that cannot work on frames: packets are copied.
#[derive(Debug)]
pub struct Copies {
    raw: NonNull<raw::rte_mempool>,
    count: u32,
}

impl Copies {
    /// `count` mbufs (and some for the threads' caches) of `packet_bytes` each.
    pub fn new(device: &str, count: usize, packet_bytes: usize) -> Result<Copies, DeviceError> {
        let name = unique_name();
        let room = packet_bytes + usize::from(raw::OUTBOARD_MBUF_HEADROOM);
        let room = u16::try_from(room).unwrap_or(u16::MAX);
        let count = count as u32 + 3 * CACHE;
        // SAFETY: the name is NUL-terminated; DPDK copies it.
        let pool = unsafe {
            let any = raw::OUTBOARD_ANY_SOCKET;
            raw::rte_pktmbuf_pool_create(name.as_ptr(), count, CACHE, 0, room, any)
        };
        let (call, device) = ("making the pool", device.to_string());
        let reason = error::last;
        let raw = NonNull::new(pool).ok_or_else(|| DeviceError::Call {
            call,
            device,
            reason: reason(),
        })?;
        Ok(Copies { raw, count })
    }

    /// The pool.
    pub fn raw(&self) -> *mut raw::rte_mempool {
        self.raw.as_ptr()
    }

    /// Ends the pool once the device is closed.
    pub fn close(&mut self) {
        // SAFETY: the device is closed and its worker has handed it over. Another device may hold
        // mbufs (a ring between two), so that a pool which is not whole stays.
        unsafe {
            raw::shim_flush(self.raw());
            if raw::rte_mempool_avail_count(self.raw()) == self.count {
                raw::rte_mempool_free(self.raw());
            }
        }
    }
}

/// A stretch of the region with one address for devices.
pub struct Page {
    pub start: *mut u8,
    pub bytes: usize,
    /// Its address for devices, where there is one.
    pub iova: Option<u64>,
}

/// The region as devices see it: one piece where they use virtual addresses, else its pages.
pub fn pages(region: &Region) -> Vec<Page> {
    let base = region.base().as_ptr();
    let page_bytes = match region.backing() {
        Backing::HugePages => 2 << 20,
        Backing::Memfd => FRAME_BYTES,
    };
    // SAFETY: reads what the environment decided when it started.
    if unsafe { raw::rte_eal_iova_mode() } == raw::RTE_IOVA_VA {
        return vec![Page { start: base, bytes: region.bytes(), iova: Some(base as u64) }];
    }
    let piece = |at: usize| {
        let start = base.wrapping_add(at);
        // SAFETY: any address may be asked for; this one is mapped and was touched.
        let iova = unsafe { raw::rte_mem_virt2iova(start.cast()) };
        Page { start, bytes: page_bytes, iova: (iova != BAD_IOVA).then_some(iova) }
    };
    (0..region.bytes()).step_by(page_bytes).map(piece).collect()
}

/// Makes the region's memory known to DPDK, once.
fn register(device: &str, region: &'static Region, pages: &[Page]) -> Result<(), DeviceError> {
    let base = region.base().as_ptr();
    let mut known = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    if known.contains(&(base as usize)) {
        return Ok(());
    }
    let page_bytes = match region.backing() {
        Backing::HugePages => 2 << 20,
        Backing::Memfd => FRAME_BYTES,
    };
    let mut iovas: Vec<u64> = Vec::with_capacity(region.bytes() / page_bytes);
    for page in pages {
        for at in (0..page.bytes).step_by(page_bytes) {
            iovas.push(page.iova.map_or(BAD_IOVA, |iova| iova + at as u64));
        }
    }
    // SAFETY: the region's whole mapping, aligned to its pages, which is never unmapped; an
    // address per page, which DPDK copies.
    let registered = unsafe {
        let (count, pointer) = (iovas.len() as u32, iovas.as_mut_ptr());
        raw::rte_extmem_register(base.cast(), region.bytes(), pointer, count, page_bytes)
    };
    if registered != 0 {
        let (call, device) = ("registering the frame memory", device.to_string());
        return Err(DeviceError::Call { call, device, reason: reason(registered) });
    }
    known.push(base as usize);
    Ok(())
}

/// A name that no other pool of the process has; DPDK takes 25 bytes.
fn unique_name() -> CString {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    CString::new(format!("outboard{number}")).unwrap_or_default()
}
