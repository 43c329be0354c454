//! Binding the socket: nobody's live socket is taken away, nobody's file is removed, and the
//! socket opens to `root` and the group `outboard` only.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The group that may use the socket.
const GROUP: &str = "outboard";
const DIRECTORY_MODE: u32 = 0o750;
const SOCKET_MODE: u32 = 0o660;

/// Why the control socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Another daemon answers there.
    #[error(
        "the control socket {path} is in use by a daemon that answers; \
         stop it, or give this one another `name` or `socket` in [control]"
    )]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{path} exists and is not a socket; remove it or set `socket` in [control]")]
    NotASocket {
        /// What is there.
        path: PathBuf,
    },
    /// The socket or its directory cannot be made.
    #[error("cannot make the control socket {path}: {source}; set `socket` in [control]")]
    Bind {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The thread cannot be started.
    #[error("cannot start the thread of the control socket: {source}")]
    Thread {
        /// The system's reason.
        source: io::Error,
    },
}

/// Listens at `path`.
pub(super) fn bind(path: &Path) -> Result<UnixListener, ApiError> {
    let failed = |source| ApiError::Bind { path: path.to_path_buf(), source };
    let directory = path.parent().ok_or_else(|| failed(ErrorKind::InvalidInput.into()))?;
    let group = group_id(&fs::read_to_string("/etc/group").unwrap_or_default(), GROUP);
    if !directory.is_dir() {
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory).map_err(failed)?;
        if group.is_some() {
            chown(directory, None, group).map_err(failed)?;
        }
    }
    // Two daemons that start at once must not both find the same stale socket: the second would
    // remove the first one's. The lock ends with the descriptor.
    let lock = fs::File::open(directory).map_err(failed)?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|errno| failed(errno.into()))?;
    remove_stale(path)?;
    let listener = UnixListener::bind(path).map_err(failed)?;
    let open = || {
        if group.is_some() {
            chown(path, None, group)?;
        }
        fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))
    };
    open().map_err(|source| {
        let _ = fs::remove_file(path);
        failed(source)
    })?;
    Ok(listener)
}

/// Removes a socket that nobody listens on.
fn remove_stale(path: &Path) -> Result<(), ApiError> {
    let failed = |source| ApiError::Bind { path: path.to_path_buf(), source };
    // Of the link itself, if it is one: no symbolic link is followed.
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !kind.is_socket() {
        return Err(ApiError::NotASocket { path: path.to_path_buf() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(failed(error)),
        _ => Err(ApiError::InUse { path: path.to_path_buf() }),
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
