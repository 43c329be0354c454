//! What aya does not tell about a pinned XDP link: which interface it is on; and detaching it at
//! once, where unlinking the pin would leave that to a work queue of the kernel.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::io::{Error, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

// Commands of bpf(2), linux/bpf.h.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_DETACH: libc::c_int = 34;
/// `enum bpf_link_type`.
const BPF_LINK_TYPE_XDP: u32 = 6;

/// A link found by its pin.
#[derive(Debug)]
pub(crate) struct Pinned(OwnedFd);

impl Pinned {
    /// The link pinned at `path`; `None` when there is none.
    pub fn open(path: &Path) -> Result<Option<Pinned>, Error> {
        #[repr(C)]
        struct Get {
            path: u64,
            fd: u32,
            flags: u32,
        }
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut get = Get { path: path.as_ptr() as u64, fd: 0, flags: 0 };
        match bpf(BPF_OBJ_GET, &mut get) {
            // SAFETY: the successful command returned a new descriptor.
            Ok(fd) => Ok(Some(Pinned(unsafe { OwnedFd::from_raw_fd(fd) }))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The index of the interface that it is attached to; `None` when that is gone, or when this
    /// is not a link of an XDP program.
    pub fn interface(&self) -> Option<u32> {
        self.info().map(|(interface, _)| interface)
    }

    /// The number of its program, while it is attached.
    pub fn program(&self) -> Option<u32> {
        self.info().map(|(_, program)| program)
    }

    /// The interface that it is on, in the namespace of that, and its program.
    fn info(&self) -> Option<(u32, u32)> {
        #[repr(C)]
        struct Info {
            kind: u32,
            id: u32,
            program: u32,
            padding: u32,
            interface: u32,
            rest: [u32; 59],
        }
        #[repr(C)]
        struct GetInfo {
            fd: u32,
            bytes: u32,
            info: u64,
        }
        let mut info = Info { kind: 0, id: 0, program: 0, padding: 0, interface: 0, rest: [0; 59] };
        let (bytes, place) = (size_of::<Info>() as u32, &raw mut info as u64);
        let mut get = GetInfo { fd: self.0.as_raw_fd() as u32, bytes, info: place };
        bpf(BPF_OBJ_GET_INFO_BY_FD, &mut get).ok()?;
        let attached = info.kind == BPF_LINK_TYPE_XDP && info.interface != 0;
        attached.then_some((info.interface, info.program))
    }

    /// Detaches the program now; the link stays as a shell.
    pub fn detach(&self) -> Result<(), Error> {
        let mut fd = self.0.as_raw_fd() as u32;
        bpf(BPF_LINK_DETACH, &mut fd).map(|_| ())
    }
}

/// bpf(2) with the beginning of its attribute union; the kernel takes the rest as zero.
fn bpf<T>(command: libc::c_int, attribute: &mut T) -> Result<i32, Error> {
    let (place, bytes) = (std::ptr::from_mut(attribute), size_of::<T>());
    // SAFETY: `attribute` is valid for reads and writes of its size; pointers inside it are the
    // callers' and valid for the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, place, bytes) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result as i32) }
}
