//! An Ethernet device of DPDK's with one queue in each direction, from its arguments to its end.

use crate::error::{self, DeviceError, text};
use crate::pool::{BAD_IOVA, Page};
use crate::raw;
use std::ffi::{CStr, CString};
use std::sync::{Mutex, PoisonError};

/// Buses whose devices come and go while the environment runs (22.11; the others' `plug` is empty
/// or does nothing).
const PLUGGED: [&str; 3] = ["vdev", "pci", "auxiliary"];
/// The ports that are some device's: an address may be written in more than one way, and a second
/// opening must not touch a port that works.
static TAKEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());

/// A device that was probed, and its number.
#[derive(Debug)]
pub struct Device {
    name: String,
    port: u16,
    /// What it is a device of.
    device: *mut raw::rte_device,
    info: Box<raw::rte_eth_dev_info>,
    /// Whether it was started, and not stopped since.
    running: bool,
}

/// The reason of a result that is a negated error number, or -1 and a thread's last.
pub fn reason(result: i32) -> String {
    match result {
        -1 => error::last(),
        other => text(other),
    }
}

/// The bus that a device with these arguments would be on.
fn bus(arguments: &CString, name: &str) -> Result<String, DeviceError> {
    // SAFETY: a NUL-terminated text, which DPDK copies.
    let bus = unsafe { raw::shim_bus(arguments.as_ptr()) };
    if bus.is_null() {
        let reason = "no driver has that name".into();
        return Err(DeviceError::NoDevice { device: name.into(), reason });
    }
    // SAFETY: a NUL-terminated name that lives as long as the bus, which is never unloaded.
    Ok(unsafe { CStr::from_ptr(bus) }.to_string_lossy().into_owned())
}

impl Device {
    /// Finds the device, or makes it when it is a virtual one: `DRIVER_AND_NUMBER[,ARGUMENTS]` or a
    /// PCI address. It must be nobody else's. The environment runs.
    pub fn probe(name: &str) -> Result<Device, DeviceError> {
        let missing = |reason| DeviceError::NoDevice { device: name.into(), reason };
        let arguments = CString::new(name).map_err(|_| missing("it contains a NUL byte".into()))?;
        let short = name.split(',').next().unwrap_or_default();
        let own = CString::new(short).unwrap_or_default();
        // SAFETY: a NUL-terminated text, which DPDK copies.
        let probed = unsafe { raw::rte_dev_probe(arguments.as_ptr()) };
        // One of the environment's own arguments is there already.
        const EXISTS: i32 = -17;
        if probed != 0 && probed != EXISTS {
            return Err(missing(reason(probed)));
        }
        let mut port = 0;
        // SAFETY: a NUL-terminated name and a place for the number.
        let found = unsafe { raw::rte_eth_dev_get_port_by_name(own.as_ptr(), &raw mut port) };
        if found != 0 {
            if let Ok(bus) = bus(&arguments, name) {
                let bus = CString::new(bus).unwrap_or_default();
                // SAFETY: two NUL-terminated names; the device was made above, for nobody.
                unsafe { raw::rte_eal_hotplug_remove(bus.as_ptr(), own.as_ptr()) };
            }
            return Err(missing("its driver made no Ethernet port of that name".into()));
        }
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.contains(&port) {
            return Err(DeviceError::Taken { device: name.into() });
        }
        let mut info: Box<raw::rte_eth_dev_info> = Box::default();
        // SAFETY: a port that exists, and a place for the structure.
        let told = unsafe { raw::rte_eth_dev_info_get(port, &raw mut *info) };
        if told != 0 {
            return Err(missing(reason(told)));
        }
        let device = info.device;
        taken.push(port);
        Ok(Device { name: name.into(), port, device, info, running: false })
    }

    /// Whether such a device can come while the environment, which runs, has devices at work.
    pub fn check_plugged(name: &str) -> Result<(), DeviceError> {
        let missing = |reason| DeviceError::NoDevice { device: name.into(), reason };
        let arguments = CString::new(name).map_err(|_| missing("it contains a NUL byte".into()))?;
        let bus = bus(&arguments, name)?;
        match PLUGGED.contains(&bus.as_str()) {
            true => Ok(()),
            false => Err(DeviceError::Fixed { device: name.into(), bus }),
        }
    }

    /// Its number.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it sends packets of several segments.
    pub fn sends_segments(&self) -> bool {
        self.info.tx_offload_capa & raw::OUTBOARD_TX_MULTI_SEGS != 0
    }

    /// Lets the device reach this memory, where it does so by itself.
    pub fn map(&self, pages: &[Page]) -> Result<(), DeviceError> {
        const NOT_SUPPORTED: i32 = 95;
        for page in pages {
            let iova = page.iova.unwrap_or(BAD_IOVA);
            // SAFETY: memory that was registered with DPDK and is never unmapped; the device is
            // live.
            let mapped =
                unsafe { raw::rte_dev_dma_map(self.device, page.start.cast(), iova, page.bytes) };
            // SAFETY: reads a thread-local number.
            let number = unsafe { raw::shim_errno() };
            if mapped != 0 && number == NOT_SUPPORTED {
                // A virtual device, which reads and writes with the processor.
                return Ok(());
            }
            if mapped != 0 {
                return Err(self.failed("mapping the frame memory", mapped));
            }
        }
        Ok(())
    }

    /// Configures one queue each way for packets of `mtu` bytes (the device's default if `None`);
    /// the entries of the two rings, which may be fewer or more than asked for.
    pub fn configure(
        &mut self,
        mtu: Option<u16>,
        entries: (u16, u16),
    ) -> Result<(u16, u16), DeviceError> {
        let mut config: Box<raw::rte_eth_conf> = Box::default();
        let offered = (self.info.rx_offload_capa, self.info.tx_offload_capa);
        // Tags that are taken out come with their number; what a driver puts back in by itself
        // needs memory that is not pinned.
        config.rxmode.offloads =
            offered.0 & (raw::OUTBOARD_RX_SCATTER | raw::OUTBOARD_RX_VLAN_STRIP);
        config.txmode.offloads = offered.1 & raw::OUTBOARD_TX_MULTI_SEGS;
        if let Some(mtu) = mtu {
            if mtu > self.info.max_mtu {
                let (device, most) = (self.name.clone(), self.info.max_mtu);
                return Err(DeviceError::Mtu { device, mtu, most });
            }
            config.rxmode.mtu = mtu.into();
        }
        // SAFETY: a live port that is not started; DPDK copies the configuration.
        let done = unsafe { raw::rte_eth_dev_configure(self.port, 1, 1, &raw const *config) };
        if done != 0 {
            return Err(self.failed("configuring one queue each way", done));
        }
        let (mut rx, mut tx) = entries;
        // SAFETY: places for two numbers.
        let done =
            unsafe { raw::rte_eth_dev_adjust_nb_rx_tx_desc(self.port, &raw mut rx, &raw mut tx) };
        match done {
            0 => Ok((rx, tx)),
            error => Err(self.failed("choosing the size of the rings", error)),
        }
    }

    /// Makes the queues over `pool` and starts.
    ///
    /// # Safety
    /// The pool lives until the device was closed.
    pub unsafe fn start(
        &mut self,
        entries: (u16, u16),
        pool: *mut raw::rte_mempool,
    ) -> Result<(), DeviceError> {
        let (port, any, default) = (self.port, raw::OUTBOARD_ANY_SOCKET as u32, std::ptr::null());
        // SAFETY: a configured port; no configuration stands for the driver's own; the pool lives
        // long enough by the caller's promise.
        let done = unsafe { raw::rte_eth_rx_queue_setup(port, 0, entries.0, any, default, pool) };
        if done != 0 {
            return Err(self.failed("making the receive queue", done));
        }
        // SAFETY: as above.
        let done =
            unsafe { raw::rte_eth_tx_queue_setup(port, 0, entries.1, any, std::ptr::null()) };
        if done != 0 {
            return Err(self.failed("making the send queue", done));
        }
        // SAFETY: a port whose queues are set up.
        let done = unsafe { raw::rte_eth_dev_start(port) };
        if done != 0 {
            return Err(self.failed("starting", done));
        }
        self.running = true;
        // Tenants have addresses that the device does not know. A driver that cannot, receives
        // everything anyhow or nothing but its own, which its statistics show.
        // SAFETY: a started port.
        unsafe { raw::rte_eth_promiscuous_enable(port) };
        Ok(())
    }

    /// Its MTU in bytes of IP packet.
    pub fn mtu(&self) -> u16 {
        let mut mtu = 0;
        // SAFETY: a live port and a place for the number.
        unsafe { raw::rte_eth_dev_get_mtu(self.port, &raw mut mtu) };
        mtu
    }

    /// Whether it was started, and not stopped since.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Whether its far side is there.
    pub fn link_is_up(&self) -> bool {
        // SAFETY: a live port.
        unsafe { raw::shim_link_is_up(self.port) != 0 }
    }

    /// Stops the device, if it runs, and removes it: the driver is done with every mbuf in its
    /// rings when this returns. `mapped` is what [`map`](Self::map) was called with.
    pub fn close(&mut self, mapped: &[Page]) {
        // SAFETY: a live port, used by no other thread; it is not used after this, and `device`
        // lives until it is removed.
        unsafe {
            if self.running {
                raw::rte_eth_dev_stop(self.port);
            }
            for page in mapped {
                let iova = page.iova.unwrap_or(BAD_IOVA);
                raw::rte_dev_dma_unmap(self.device, page.start.cast(), iova, page.bytes);
            }
            raw::rte_eth_dev_close(self.port);
            raw::rte_dev_remove(self.device);
        }
        self.running = false;
        TAKEN.lock().unwrap_or_else(PoisonError::into_inner).retain(|port| *port != self.port);
    }

    fn failed(&self, call: &'static str, result: i32) -> DeviceError {
        DeviceError::Call { call, device: self.name.clone(), reason: reason(result) }
    }
}
