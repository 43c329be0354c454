//! Where a disk's socket may lie, and who may use it.

use crate::io::options;
use crate::rig::{Content, Rig, Scratch, exists};
use outboard::config::plan::SocketAccess;
use outboard::control::local_socket::SocketError;
use outboard::control::vhost::{VhostError, VhostServer};
use outboard::virtio::blk::BlkShape;
use outboard::virtio::mailbox::mailbox;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

fn serve(path: &Path) -> Result<VhostServer, VhostError> {
    let shape = BlkShape { bytes: 1 << 20, block_bytes: 512, read_only: false, queues: 1 };
    let (control, _) = mailbox(2);
    VhostServer::start("disk", path, &SocketAccess::default(), shape, control, Arc::new(|| {}))
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn a_socket_is_made_for_the_group_and_removed_at_the_end() {
    let scratch = Scratch::new("socket");
    let directory = scratch.0.join("run");
    let path = directory.join("disk");
    let server = serve(&path).unwrap();
    assert_eq!((mode(&directory), mode(&path)), (0o750, 0o660));
    drop(server);
    assert!(!exists(&path));
    assert!(exists(&directory));
}

#[test]
fn a_socket_in_use_is_left_alone_and_a_stale_one_is_replaced() {
    let scratch = Scratch::new("socket");
    let path = scratch.0.join("disk");
    let server = serve(&path).unwrap();
    let error = serve(&path).unwrap_err();
    assert!(matches!(error, VhostError::Socket(SocketError::InUse(_))), "{error}");
    assert!(error.to_string().contains("in use") && exists(&path));
    drop(server);
    // A listener that is dropped leaves its socket behind.
    drop(UnixListener::bind(&path).unwrap());
    assert!(exists(&path));
    let server = serve(&path).unwrap();
    // Somebody else's socket at the same path is not ours to remove.
    std::fs::remove_file(&path).unwrap();
    let theirs = UnixListener::bind(&path).unwrap();
    drop(server);
    assert!(exists(&path));
    drop(theirs);
}

#[test]
fn a_socket_belongs_to_whom_the_configuration_says() {
    let scratch = Scratch::new("owned");
    let path = scratch.0.join("made").join("disk");
    let access =
        SocketAccess { owner: Some("65534".into()), group: Some("7".into()), mode: Some(0o600) };
    let (control, _inbox) = mailbox(1);
    let shape = BlkShape { bytes: 4096, block_bytes: 512, read_only: false, queues: 1 };
    let served = VhostServer::start("disk", &path, &access, shape, control, Arc::new(|| {}));
    let about = path.symlink_metadata().unwrap();
    assert_eq!((about.uid(), about.gid(), mode(&path)), (65534, 7, 0o600));
    // The group must reach it too.
    let directory = path.parent().unwrap();
    assert_eq!((directory.metadata().unwrap().gid(), mode(directory)), (7, 0o750));
    drop(served.unwrap());
    let access = SocketAccess { group: Some("no-such-group".into()), ..SocketAccess::default() };
    let (control, _inbox) = mailbox(1);
    let refused = VhostServer::start("disk", &path, &access, shape, control, Arc::new(|| {}));
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("group \"no-such-group\""), "{error}");
    assert!(!path.exists());
}

#[test]
fn nothing_but_a_socket_is_replaced_and_no_link_followed() {
    let scratch = Scratch::new("socket");
    let (file, link, way) = (scratch.0.join("file"), scratch.0.join("link"), scratch.0.join("way"));
    std::fs::write(&file, "precious").unwrap();
    symlink(scratch.0.join("elsewhere"), &link).unwrap();
    symlink(&scratch.0, &way).unwrap();
    for (path, want) in [
        (file.clone(), "not a socket"),
        (link, "a symbolic link"),
        (scratch.0.clone(), "a directory"),
        (way.join("disk"), "name the directory itself"),
        (file.join("disk"), "not a directory"),
        (scratch.0.join("x".repeat(120)), "cannot bind"),
    ] {
        let error = serve(&path).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    assert!(!exists(&scratch.0.join("elsewhere")));
}

#[test]
fn a_driver_without_a_backend_says_so() {
    let scratch = Scratch::new("socket");
    let path = scratch.0.join("nobody");
    let error = outboard::virtio::driver::BlkDriver::connect(&path, 128, 1, 4096);
    let error = error.err().unwrap().to_string();
    assert!(error.contains("nobody") && error.contains("is the backend running"), "{error}");
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let rig = Rig::start(vec![(Content::mem(512, 1 << 20, false), 1)]);
    let fits = options(1, 4, true, true);
    for (wrong, want) in [
        ((2, 128, 4, true), "that many queues"),
        ((1, 100, 4, true), "power of two"),
        ((1, 2048, 4, true), "power of two"),
        ((1, 4, 8, true), "larger queue"),
        ((1, 128, 43, false), "three descriptors"),
        ((0, 128, 4, true), "1 to 16 queues"),
        ((1, 128, 0, true), "at least one slot"),
    ] {
        let (queues, queue_size, slots, indirect) = wrong;
        let options =
            outboard::virtio::driver::BlkOptions { queues, queue_size, slots, indirect, ..fits };
        let error = outboard::virtio::driver::BlkDriver::connect_with(&rig.path(0), options);
        let error = error.err().unwrap().to_string();
        assert!(error.contains(want), "{error}");
    }
}
