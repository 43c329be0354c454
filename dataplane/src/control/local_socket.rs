//! A Unix socket that others find by its path: the control socket, and one for each disk.
//!
//! Nobody's live socket is taken away, nobody's file is removed and no symbolic link is followed.
//! The socket opens to its owner and its group only, and goes when it is dropped.

use rustix::fs::{FlockOperation, flock};
use std::fs::{self, DirBuilder, Permissions};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Permissions of the directory, when it is made, and of the socket.
const DIRECTORY_MODE: u32 = 0o750;
const SOCKET_MODE: u32 = 0o660;

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
    /// Listens at `path`, whose directory is made if it is missing. `group`, where the machine
    /// has it, may use the socket too.
    pub fn bind(path: &Path, group: Option<&str>) -> Result<LocalSocket, SocketError> {
        let system = |what| system(what, path);
        let group = group
            .and_then(|name| group_id(&fs::read_to_string("/etc/group").unwrap_or_default(), name));
        let directory = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return Err(SocketError::NotASocket { path: path.into(), what: "a directory" }),
        };
        make_directory(directory, group)?;
        // Two daemons that start at once must not both find the same stale socket: the second
        // would remove the first one's. The lock ends with the descriptor.
        let lock = fs::File::open(directory).map_err(system("open the directory of"))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|errno| system("lock the directory of")(errno.into()))?;
        clear_the_way(path)?;
        let listener = UnixListener::bind(path).map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => SocketError::InUse(path.to_owned()),
            _ => system("bind socket")(error),
        })?;
        let about = path.symlink_metadata().map_err(system("look at"))?;
        // From here on it is removed when something fails.
        let socket =
            LocalSocket { listener, path: path.to_owned(), identity: (about.dev(), about.ino()) };
        if group.is_some() {
            chown(path, None, group).map_err(system("set the group of"))?;
        }
        let mode = Permissions::from_mode(SOCKET_MODE);
        fs::set_permissions(path, mode).map_err(system("set the mode of"))?;
        socket.listener.set_nonblocking(true).map_err(system("prepare socket"))?;
        Ok(socket)
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        let about = self.path.symlink_metadata();
        if about.is_ok_and(|about| (about.dev(), about.ino()) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
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

/// The number of a group in the text of /etc/group (group(5)).
fn group_id(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::group_id;

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let groups = "root:x:0:\noutboards:x:7:\noutboard:x:998:alice,bob\nbroken\n";
        assert_eq!(group_id(groups, "outboard"), Some(998));
        assert_eq!(group_id(groups, "out"), None);
        assert_eq!(group_id("outboard:x", "outboard"), None);
    }
}
