//! A Unix socket that others find by its path: the control socket, and one for each disk.
//!
//! Nobody's live socket is taken away, nobody's file is removed and no symbolic link is followed.
//! The socket opens to its owner and its group only, unless the configuration says otherwise, and
//! goes when it is dropped.

use crate::config::plan::SocketAccess;
use rustix::fs::{FlockOperation, flock};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use std::fs::{self, DirBuilder, Permissions};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// Permissions of the directory, when it is made, and of the socket.
const DIRECTORY_MODE: u32 = 0o750;
const SOCKET_MODE: u32 = 0o660;

/// Who may use a socket: numbers, looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    owner: Option<u32>,
    group: Option<u32>,
    mode: u32,
}

impl Access {
    /// What the configuration says of the socket at `path`; who is named must be there.
    pub fn of(wanted: &SocketAccess, path: &Path) -> Result<Access, SocketError> {
        let id = |file: &'static str, what: &'static str, name: &Option<String>| {
            let Some(name) = name else { return Ok(None) };
            let known = fs::read_to_string(file).unwrap_or_default();
            let found = name.parse().ok().or_else(|| id_of(&known, name));
            let unknown =
                || SocketError::Nobody { path: path.to_owned(), what, name: name.clone() };
            found.map(Some).ok_or_else(unknown)
        };
        Ok(Access {
            owner: id("/etc/passwd", "user", &wanted.owner)?,
            group: id("/etc/group", "group", &wanted.group)?,
            mode: wanted.mode.map_or(SOCKET_MODE, u32::from),
        })
    }

    /// The owner's, and that of the group `name` where this machine has it.
    pub fn of_group_if_there(name: &str) -> Access {
        let known = fs::read_to_string("/etc/group").unwrap_or_default();
        Access { owner: None, group: id_of(&known, name), mode: SOCKET_MODE }
    }
}

/// Why there is no socket at a path.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody serves it already.
    #[error(
        "socket {} is in use: another process answers there; stop it or choose another path",
        .0.display()
    )]
    InUse(PathBuf),
    /// Something else lies there.
    #[error("{} is {what}; remove it or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The directory is a symbolic link or no directory.
    #[error(
        "the directory {} is a symbolic link or not a directory; name the directory itself",
        .0.display()
    )]
    Directory(PathBuf),
    /// The configuration names a user or group that this machine does not have.
    #[error(
        "the socket {} shall be of the {what} \"{name}\", whom neither /etc/passwd nor /etc/group \
         knows; correct it, or give the number",
        path.display()
    )]
    Nobody {
        /// The path.
        path: PathBuf,
        /// User or group.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The kernel refused something.
    #[error("cannot {what} {}: {source}", path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's reason.
        source: Error,
    },
}

/// A bound socket, removed when dropped unless something else has taken its place.
#[derive(Debug)]
pub(super) struct LocalSocket {
    /// Does not wait: its owner polls.
    pub listener: UnixListener,
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl LocalSocket {
    /// Listens at `path` for those who may; its directory is made if it is missing.
    pub fn bind(path: &Path, access: Access) -> Result<LocalSocket, SocketError> {
        let system = |what| system(what, path);
        let directory = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return Err(SocketError::NotASocket { path: path.into(), what: "a directory" }),
        };
        make_directory(directory, access.group)?;
        // Two daemons that start at once must not both find the same stale socket: the second
        // would remove the first one's. The lock ends with the descriptor.
        let lock = fs::File::open(directory).map_err(system("open the directory of"))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|errno| system("lock the directory of")(errno.into()))?;
        clear_the_way(path)?;
        let socket = LocalSocket::place(path)?;
        socket.admit(access)?;
        let backlog = listen(&socket.listener, BACKLOG);
        backlog.map_err(|errno| system("listen at")(errno.into()))?;
        Ok(socket)
    }

    /// The socket at its path, where nobody can connect yet: whatever the umask lets its mode be
    /// at first, nobody comes in before [`admit`](Self::admit).
    fn place(path: &Path) -> Result<LocalSocket, SocketError> {
        let system = |what| system(what, path);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = SocketAddrUnix::new(path).and_then(|address| {
            let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            bind(&listener, &address)?;
            Ok(listener)
        });
        let listener = listener.map_err(|errno| match errno {
            rustix::io::Errno::ADDRINUSE => SocketError::InUse(path.to_owned()),
            errno => system("bind socket")(errno.into()),
        })?;
        let about = path.symlink_metadata().map_err(system("look at"))?;
        // From here on it is removed when something fails.
        let (listener, path) = (UnixListener::from(listener), path.to_owned());
        Ok(LocalSocket { listener, path, identity: (about.dev(), about.ino()) })
    }
}

impl LocalSocket {
    /// Opens it to those who may, and to nobody else.
    pub fn admit(&self, access: Access) -> Result<(), SocketError> {
        let path = &self.path;
        let system = |what| system(what, path);
        if access.owner.is_some() || access.group.is_some() {
            chown(path, access.owner, access.group).map_err(system("set owner and group of"))?;
        }
        let mode = Permissions::from_mode(access.mode);
        fs::set_permissions(path, mode).map_err(system("set the mode of"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes nobody in any more. Whoever tries finds nobody there, and can try again; in the queue
    /// of a socket that is about to go he would be cut off in the middle of his first question,
    /// which not every front end survives.
    pub fn close(&self) {
        self.remove();
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Read);
    }

    fn remove(&self) {
        let about = self.path.symlink_metadata();
        if about.is_ok_and(|about| (about.dev(), about.ino()) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        self.remove();
    }
}

fn system(what: &'static str, path: &Path) -> impl FnOnce(Error) -> SocketError {
    let path = path.to_owned();
    move |source| SocketError::System { what, path, source }
}

fn make_directory(directory: &Path, group: Option<u32>) -> Result<(), SocketError> {
    match directory.symlink_metadata() {
        Ok(about) if about.is_dir() => Ok(()),
        Ok(_) => Err(SocketError::Directory(directory.to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let made = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory);
            made.map_err(system("make directory", directory))?;
            match group {
                Some(_) => chown(directory, None, group)
                    .map_err(system("set the group of directory", directory)),
                None => Ok(()),
            }
        }
        Err(error) => Err(system("look at", directory)(error)),
    }
}

/// Removes a socket that nobody answers at; refuses everything else that lies at `path`.
fn clear_the_way(path: &Path) -> Result<(), SocketError> {
    let kind = match path.symlink_metadata() {
        Ok(about) => about.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system("look at", path)(error)),
    };
    if !kind.is_socket() {
        let what = match (kind.is_symlink(), kind.is_dir()) {
            (true, _) => "a symbolic link",
            (_, true) => "a directory",
            _ => "not a socket",
        };
        return Err(SocketError::NotASocket { path: path.to_owned(), what });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(system("remove the stale socket", path))
        }
        // Its queue of waiting connections is full: somebody lives there.
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Err(SocketError::InUse(path.to_owned()))
        }
        Err(error) => Err(system("connect to", path)(error)),
    }
}

/// The number of a name in the text of /etc/passwd or /etc/group (passwd(5), group(5)): the third
/// field of either.
fn id_of(known: &str, name: &str) -> Option<u32> {
    known.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_whole() {
        let groups = "root:x:0:\noutboards:x:7:\noutboard:x:998:alice,bob\nbroken\n";
        assert_eq!(id_of(groups, "outboard"), Some(998));
        assert_eq!(id_of(groups, "out"), None);
        assert_eq!(id_of("outboard:x", "outboard"), None);
        assert_eq!(id_of("nobody:x:65534:65534:nobody:/:/bin/false", "nobody"), Some(65534));
    }

    #[test]
    fn nobody_comes_in_before_the_rights_are_set() {
        let name = format!("outboard-placed-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let socket = LocalSocket::place(&path).unwrap();
        let refused = UnixStream::connect(&path).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        drop(socket);
        let access = Access { owner: None, group: None, mode: 0o600 };
        let socket = LocalSocket::bind(&path, access).unwrap();
        assert_eq!(path.symlink_metadata().unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(socket);
    }

    #[test]
    fn names_and_numbers_will_do_and_strangers_are_named() {
        let path = Path::new("/run/disk");
        let wanted = |owner: &str, group: &str, mode| SocketAccess {
            owner: Some(owner.into()),
            group: Some(group.into()),
            mode,
        };
        let access = Access::of(&wanted("nobody", "7", Some(0o600)), path).unwrap();
        assert_eq!(access, Access { owner: Some(65534), group: Some(7), mode: 0o600 });
        let error = Access::of(&wanted("0", "no such group", None), path).unwrap_err().to_string();
        assert!(
            error.contains("/run/disk") && error.contains("group \"no such group\""),
            "{error}"
        );
        let default = Access::of(&SocketAccess::default(), path).unwrap();
        assert_eq!(default, Access { owner: None, group: None, mode: 0o660 });
    }
}
