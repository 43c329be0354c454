//! Attaches an XDP program to an interface, so that its frames come to AF_XDP sockets.
//!
//! Program, maps and link are pinned by name under a directory on a BPF file system:
//! `<interface>-{prog,xsks,counters,link}`. They stay when the process ends without
//! [`Steering::detach`]: the interface then keeps its program, an uplink's other traffic keeps
//! flowing to the kernel, and the next process takes the link over without a gap. The file system
//! is mounted on `/sys/fs/bpf` when it is missing there.
//!
//! An interface's name is looked up in the network namespace of the calling thread.

use crate::abi::{OUTCOMES, QUEUES};
use crate::bpffs;
use crate::error::{Error, chain, errno};
use crate::link::Pinned;
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray, XskMap};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

/// The object built from `prog` by `cargo xtask bpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../outboard-xdp.o");

/// Which program, named by what is behind the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program<'a> {
    /// Every frame goes to the sockets.
    Tenant,
    /// The datagrams of tunnels to this host go to the sockets, everything else to the kernel.
    Uplink {
        /// The tunnel's UDP port.
        vxlan_port: u16,
        /// This host's tunnel addresses, those of other uplinks too; at most
        /// [`VTEPS`](crate::abi::VTEPS).
        vteps: &'a [IpAddr],
    },
}

/// Where in the kernel the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// Behind the driver, because that has no XDP support: correct, but slower.
    Generic,
}

impl Mode {
    /// The name shown to users.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Native => "native",
            Mode::Generic => "generic",
        }
    }
}

/// A program attached to one interface.
///
/// Dropping it leaves the program attached, as a killed process would: see
/// [`detach`](Steering::detach).
pub struct Steering {
    interface: String,
    index: u32,
    mode: Mode,
    pins: Pins,
    xsks: XskMap<MapData>,
    counters: PerCpuArray<MapData, u64>,
    vteps: HashMap<MapData, [u8; 16], u8>,
    _link: FdLink,
}

impl Steering {
    /// Attaches `program` to `interface`, in the driver where that can, and pins everything under
    /// `pin_dir`. What an earlier process left there for this interface is taken over.
    pub fn attach(interface: &str, program: Program, pin_dir: &Path) -> Result<Steering, Error> {
        let index = interface_index(interface)?;
        bpffs::prepare(pin_dir)
            .map_err(|source| Error::Directory { directory: pin_dir.to_owned(), source })?;
        let pins = Pins::new(pin_dir, interface);
        let mut object = load(interface, program)?;
        let mut vteps: HashMap<_, _, u8> = take_map(&mut object, "VTEPS")?
            .try_into()
            .map_err(|error: MapError| unexpected(&error))?;
        if let Program::Uplink { vteps: wanted, .. } = program {
            // Before the program sees a frame.
            fill(&mut vteps, wanted).map_err(|error| vteps_error(interface, &error))?;
        }
        let xsks = take_map(&mut object, "XSKS")?;
        let counters = take_map(&mut object, "COUNTERS")?;
        let xdp = program_of(&mut object, program)?;
        xdp.load().map_err(|error| load_error(interface, &error))?;
        let attached = pins.replace(xdp, &xsks, &counters).and_then(|()| {
            let xsks = xsks.try_into().map_err(|error| unexpected(&error))?;
            let counters = counters.try_into().map_err(|error| unexpected(&error))?;
            // Last: nothing may fail while frames come to a program that has no socket.
            let made = Attachment { xdp, interface, index, pin: &pins.link }.make()?;
            Ok((xsks, counters, made))
        });
        match attached {
            Ok((xsks, counters, (link, mode))) => {
                let interface = interface.to_owned();
                Ok(Steering { interface, index, mode, pins, xsks, counters, vteps, _link: link })
            }
            Err(error) => {
                pins.remove_unattached();
                Err(error)
            }
        }
    }

    /// The interface's name.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The interface's number: another interface that takes its name has another one.
    pub fn interface_index(&self) -> u32 {
        self.index
    }

    /// Where the program runs.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Sends the frames that come in on `queue` to the AF_XDP socket `fd`, which is bound to that
    /// queue. Closing the socket ends it too.
    pub fn set_socket(&mut self, queue: u32, fd: RawFd) -> Result<(), Error> {
        let done = self.xsks.set(queue, fd, 0);
        done.map_err(|error| self.socket_error(queue, &error))
    }

    /// Ends what [`set_socket`](Self::set_socket) began; frames on `queue` are dropped from now.
    pub fn clear_socket(&mut self, queue: u32) -> Result<(), Error> {
        match self.xsks.unset(queue) {
            Err(error) if errno(&error) != Some(libc::ENOENT) => {
                Err(self.socket_error(queue, &error))
            }
            _ => Ok(()),
        }
    }

    /// Changes this host's tunnel addresses; one that stays is steered without a gap.
    pub fn set_vteps(&mut self, vteps: &[IpAddr]) -> Result<(), Error> {
        fill(&mut self.vteps, vteps).map_err(|error| vteps_error(&self.interface, &error))
    }

    /// Frames so far by [`Outcome`](crate::abi::Outcome), over all CPUs.
    pub fn counters(&self) -> Result<[u64; OUTCOMES], Error> {
        let mut sums = [0; OUTCOMES];
        for (index, sum) in sums.iter_mut().enumerate() {
            let values = self.counters.get(&(index as u32), 0).map_err(|error| {
                Error::Counters { interface: self.interface.clone(), reason: chain(&error) }
            })?;
            *sum = values.iter().sum();
        }
        Ok(sums)
    }

    /// Detaches the program at once and removes the pins.
    pub fn detach(self) -> Result<(), Error> {
        let failed = |reason: String| Error::Detach { interface: self.interface.clone(), reason };
        if let Some(link) = Pinned::open(&self.pins.link).map_err(|e| failed(e.to_string()))? {
            link.detach().map_err(|error| failed(error.to_string()))?;
        }
        for path in self.pins.all() {
            remove(path).map_err(|error| failed(format!("{}: {error}", path.display())))?;
        }
        Ok(())
    }

    fn socket_error(&self, queue: u32, error: &MapError) -> Error {
        let reason = match queue {
            QUEUES.. => format!("at most {QUEUES} queues of an interface are steered"),
            _ => chain(error),
        };
        Error::Socket { interface: self.interface.clone(), queue, reason }
    }
}

impl std::fmt::Debug for Steering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (interface, mode) = (&self.interface, self.mode);
        f.debug_struct("Steering").field("interface", interface).field("mode", &mode).finish()
    }
}

/// The names under which everything is pinned.
#[derive(Debug)]
struct Pins {
    prog: PathBuf,
    xsks: PathBuf,
    counters: PathBuf,
    link: PathBuf,
}

impl Pins {
    fn new(directory: &Path, interface: &str) -> Pins {
        let interface = bpffs::name(interface);
        let pin = |what: &str| directory.join(format!("{interface}-{what}"));
        Pins { prog: pin("prog"), xsks: pin("xsks"), counters: pin("counters"), link: pin("link") }
    }

    /// Pins everything but the link, where an earlier process may have left something.
    fn replace(&self, xdp: &mut Xdp, xsks: &Map, counters: &Map) -> Result<(), Error> {
        replace(&self.prog, |path| xdp.pin(path))?;
        replace_map(&self.xsks, xsks)?;
        replace_map(&self.counters, counters)
    }

    /// Removes what names nothing that is attached. The link of an earlier process stays, and
    /// with it the program that it keeps on the interface.
    fn remove_unattached(&self) {
        for path in [&self.prog, &self.xsks, &self.counters] {
            // Why there was nothing to attach says more than why this stays.
            let _ = remove(path);
        }
    }

    fn all(&self) -> [&Path; 4] {
        [&self.link, &self.prog, &self.xsks, &self.counters]
    }
}

/// One attempt to attach a loaded program.
struct Attachment<'a> {
    xdp: &'a mut Xdp,
    interface: &'a str,
    index: u32,
    pin: &'a Path,
}

impl Attachment<'_> {
    /// Attaches, or takes over the link that is pinned for this interface.
    fn make(mut self) -> Result<(FdLink, Mode), Error> {
        let ours = self.find_old()?;
        match self.attach(XdpMode::Driver) {
            Ok(link) => Ok((self.keep(link)?, Mode::Native)),
            Err(error) => match errno(&error) {
                Some(libc::EOPNOTSUPP) => match self.attach(XdpMode::Skb) {
                    Ok(link) => Ok((self.keep(link)?, Mode::Generic)),
                    Err(error) => Err(self.error(&error)),
                },
                // dev_xdp_attach: EBUSY for a link in the same mode, EEXIST for one in the other.
                Some(libc::EBUSY) if ours => Ok((self.take_over(XdpMode::Driver)?, Mode::Native)),
                Some(libc::EEXIST) if ours => Ok((self.take_over(XdpMode::Skb)?, Mode::Generic)),
                _ => Err(self.error(&error)),
            },
        }
    }

    /// Whether the pin is a link on this interface; any other link there is removed, since the
    /// interface that it was on is gone or has another name now.
    fn find_old(&self) -> Result<bool, Error> {
        let failed = |error: std::io::Error| pin_error(self.pin, &error);
        let Some(old) = Pinned::open(self.pin).map_err(failed)? else {
            return Ok(false);
        };
        if old.interface() == Some(self.index) {
            return Ok(true);
        }
        self.discard(&old)?;
        Ok(false)
    }

    fn discard(&self, old: &Pinned) -> Result<(), Error> {
        // It has nothing to detach when its interface is gone.
        let _ = old.detach();
        remove(self.pin).map_err(|error| pin_error(self.pin, &error))
    }

    fn attach(&mut self, mode: XdpMode) -> Result<XdpLink, ProgramError> {
        let id = self.xdp.attach_to_if_index(self.index, mode)?;
        self.xdp.take_link(id)
    }

    /// Replaces the program of the pinned link: no frame passes without a program.
    fn take_over(&mut self, mode: XdpMode) -> Result<FdLink, Error> {
        let old = PinnedLink::from_pin(self.pin).map_err(|error| pin_error(self.pin, &error))?;
        let updated = XdpLink::try_from(FdLink::from(old))
            .map_err(|error| pin_error(self.pin, &error))
            .map(|link| self.xdp.attach_to_link(link).and_then(|id| self.xdp.take_link(id)))?;
        match updated {
            Ok(link) => FdLink::try_from(link).map_err(|error| pin_error(self.pin, &error)),
            Err(_) => {
                if let Some(old) =
                    Pinned::open(self.pin).map_err(|error| pin_error(self.pin, &error))?
                {
                    self.discard(&old)?;
                }
                let link = self.attach(mode).map_err(|error| self.error(&error))?;
                self.keep(link)
            }
        }
    }

    /// Pins a new link.
    fn keep(&self, link: XdpLink) -> Result<FdLink, Error> {
        let link = FdLink::try_from(link).map_err(|error| pin_error(self.pin, &error))?;
        remove(self.pin).map_err(|error| pin_error(self.pin, &error))?;
        let pinned = link.pin(self.pin).map_err(|error| pin_error(self.pin, &error))?;
        Ok(pinned.into())
    }

    fn error(&self, error: &ProgramError) -> Error {
        let (interface, reason) = (self.interface.to_owned(), chain(error));
        match errno(error) {
            Some(libc::EPERM | libc::EACCES) => Error::Capability { interface },
            Some(libc::EBUSY | libc::EEXIST) => Error::Occupied { interface },
            Some(libc::ENODEV) => Error::NoInterface { interface },
            Some(libc::ENOSPC) => Error::TooFewQueues { interface },
            // How drivers refuse an MTU (veth: ERANGE).
            Some(libc::ERANGE | libc::E2BIG) => Error::Mtu { interface, reason },
            _ => Error::Attach { interface, reason },
        }
    }
}

fn interface_index(interface: &str) -> Result<u32, Error> {
    let failed = |_| Error::NoInterface { interface: interface.to_owned() };
    // Any socket does: the name is looked up in its network namespace.
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(failed)?;
    name_to_index(&socket, interface).map_err(failed)
}

fn load(interface: &str, program: Program) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    let port;
    if let Program::Uplink { vxlan_port, .. } = program {
        port = vxlan_port;
        loader.override_global("VXLAN_PORT", &port, true);
    }
    loader.load(OBJECT).map_err(|error| load_error(interface, &error))
}

fn program_of<'a>(object: &'a mut Ebpf, program: Program<'_>) -> Result<&'a mut Xdp, Error> {
    let name = match program {
        Program::Tenant => "outboard_tenant",
        Program::Uplink { .. } => "outboard_uplink",
    };
    let found = object.program_mut(name).ok_or_else(|| missing(name))?;
    found.try_into().map_err(|error: ProgramError| unexpected(&error))
}

/// Makes a map hold exactly these tunnel addresses.
fn fill(map: &mut HashMap<MapData, [u8; 16], u8>, vteps: &[IpAddr]) -> Result<(), MapError> {
    let wanted: Vec<_> = vteps.iter().map(|address| outboard_wire::vtep(*address)).collect();
    let old: Vec<_> = map.keys().filter_map(Result::ok).collect();
    for gone in old.iter().filter(|old| !wanted.contains(old)) {
        map.remove(gone)?;
    }
    wanted.iter().try_for_each(|address| map.insert(address, 0, 0))
}

fn take_map(object: &mut Ebpf, name: &str) -> Result<Map, Error> {
    object.take_map(name).ok_or_else(|| missing(name))
}

fn replace_map(path: &Path, map: &Map) -> Result<(), Error> {
    let data = match map {
        Map::XskMap(data) | Map::PerCpuArray(data) => data,
        _ => return Err(missing("a map of another type")),
    };
    replace(path, |path| data.pin(path))
}

/// Pins at `path`, where an earlier process may have left something.
fn replace<E: std::error::Error + 'static>(
    path: &Path,
    pin: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), Error> {
    remove(path).map_err(|error| pin_error(path, &error))?;
    pin(path).map_err(|error| pin_error(path, &error))
}

fn remove(path: &Path) -> Result<(), std::io::Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn load_error(interface: &str, error: &(dyn std::error::Error + 'static)) -> Error {
    match errno(error) {
        Some(libc::EPERM) => Error::Capability { interface: interface.to_owned() },
        _ => Error::Load { reason: chain(error) },
    }
}

fn vteps_error(interface: &str, error: &MapError) -> Error {
    Error::Vteps { interface: interface.to_owned(), reason: chain(error) }
}

fn pin_error(path: &Path, error: &(dyn std::error::Error + 'static)) -> Error {
    Error::Pin { path: path.to_owned(), reason: chain(error) }
}

fn missing(name: &str) -> Error {
    Error::Load { reason: format!("outboard-xdp.o has no {name}; rebuild it: `cargo xtask bpf`") }
}

fn unexpected(error: &(dyn std::error::Error + 'static)) -> Error {
    Error::Load { reason: chain(error) }
}
