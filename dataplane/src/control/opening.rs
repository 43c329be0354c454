//! Volumes that come are opened by a thread of their own: a target is connected, a file's lock is
//! waited for or its blocks are allocated, all of which may take seconds, while control follows
//! the kernel.

use super::connect::{Connector, Wanted};
use super::run::{RunError, system};
use super::stores::StoreError;
use crate::config::Plan;
use crate::config::diff::{Difference, Kind};
use crate::config::plan::{self, Backing};
use crate::volume::{BlockDevice, File, Geometry, Mem, Null, Remote, Volume};
use outboard_rdma::nvmf::Digests;
use std::path::PathBuf;
use std::thread::JoinHandle;

/// Volumes that are open and that no worker knows yet. What is dropped is closed, and files that
/// were made for it are removed.
#[derive(Debug, Default)]
pub(super) struct Opened {
    pub(super) volumes: Vec<(plan::Volume, Volume, Option<Connector>)>,
    pub(super) made: MadeFiles,
}

/// Volumes that are being opened.
#[derive(Debug)]
pub(super) struct Opening(JoinHandle<Result<Opened, StoreError>>);

impl Opening {
    /// Begins to open what is to come by `difference`, one after the other.
    pub(super) fn begin(plan: &Plan, difference: &Difference) -> Result<Opening, RunError> {
        let host = plan.name.clone();
        let coming = plan.volumes.iter().filter(|it| difference.begins(Kind::Volume, &it.name));
        let coming: Vec<_> = coming.cloned().collect();
        let thread = std::thread::Builder::new()
            .name("opens-volumes".into())
            .spawn(move || open_all(&host, coming))
            .map_err(system("the thread that opens volumes"))?;
        Ok(Opening(thread))
    }

    /// Whether there is something to [`finish`](Self::finish).
    pub(super) fn is_over(&self) -> bool {
        self.0.is_finished()
    }

    /// The volumes, or why one of them could not be opened; waits until it is over.
    pub(super) fn finish(self) -> Result<Opened, StoreError> {
        match self.0.join() {
            Ok(opened) => opened,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn open_all(host: &str, wanted: Vec<plan::Volume>) -> Result<Opened, StoreError> {
    let mut opened = Opened::default();
    for wanted in wanted {
        let (volume, connector) = open(host, &wanted)?;
        if let (Volume::File(file), Backing::File { path, .. }) = (&volume, &wanted.backing)
            && file.made()
        {
            opened.made.0.push(path.clone());
        }
        opened.volumes.push((wanted, volume, connector));
    }
    Ok(opened)
}

/// Files that were made for volumes to come; removed when dropped.
#[derive(Debug, Default)]
pub(super) struct MadeFiles(Vec<PathBuf>);

impl MadeFiles {
    /// They stay, whatever happens.
    pub(super) fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for MadeFiles {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!("cannot remove {}, made in vain: {error}", path.display());
            }
        }
    }
}

fn open(host: &str, wanted: &plan::Volume) -> Result<(Volume, Option<Connector>), StoreError> {
    let name = || wanted.name.clone();
    let opened = |source| StoreError::Volume { name: name(), source };
    let (block_bytes, read_only) = (wanted.block_bytes, wanted.read_only);
    match &wanted.backing {
        Backing::Mem { bytes } => {
            let blocks = bytes / u64::from(block_bytes);
            let geometry = Geometry { block_bytes, blocks, read_only };
            Ok((Volume::Mem(Mem::new(geometry, true).map_err(opened)?), None))
        }
        Backing::Null { bytes } => {
            let blocks = bytes / u64::from(block_bytes);
            Ok((Volume::Null(Null::new(Geometry { block_bytes, blocks, read_only })), None))
        }
        Backing::File { path, create_bytes } => {
            let file = File::open(path, block_bytes, read_only, *create_bytes)
                .map_err(|error| opened(error.into()))?;
            if file.medium().is_empty() {
                tracing::warn!(
                    "volume {}: nothing tells {} from another device in its place; hosts will take \
                     that for this one",
                    wanted.name,
                    path.display()
                );
            }
            if !file.direct() {
                tracing::warn!(
                    "volume {}: the file system of {} has no direct I/O; reads and writes go \
                     through the page cache",
                    wanted.name,
                    path.display()
                );
            }
            Ok((Volume::File(file), None))
        }
        Backing::Remote { address, nqn, nsid, bytes, digests, loss_timeout, quiesce } => {
            let target = Wanted {
                address: *address,
                nqn: nqn.clone(),
                nsid: *nsid,
                digests: wanted_digests(*digests),
                user: format!("{host}/{}", wanted.name),
                quiesce: *quiesce,
                loss_timeout: *loss_timeout,
                stated: bytes.filter(|_| block_bytes != 0).map(|bytes| {
                    let blocks = bytes / u64::from(block_bytes);
                    Geometry { block_bytes, blocks, read_only }
                }),
            };
            let (remote, connector) = Remote::connect_as(&target)
                .map_err(|source| StoreError::Remote { name: name(), source })?;
            let found = remote.geometry().block_bytes;
            if block_bytes != 0 && found != block_bytes {
                return Err(StoreError::BlockSize { name: name(), configured: block_bytes, found });
            }
            let found = remote.geometry().bytes();
            if let Some(configured) = bytes.filter(|bytes| *bytes != found) {
                return Err(StoreError::Size { name: name(), configured, found });
            }
            let remote = if read_only { remote.read_only() } else { remote };
            Ok((Volume::Remote(remote), Some(connector)))
        }
    }
}

/// Digests as the transport names them.
pub(super) fn wanted_digests(digests: plan::Digests) -> Digests {
    use plan::Digests::{Both, Data, Header};
    Digests { header: matches!(digests, Header | Both), data: matches!(digests, Data | Both) }
}
