//! Makes the storage side of a plan: volumes, the disks that give them to guests, and the exports
//! that serve them to other hosts.

use super::connect::{ConnectError, Connector, Wanted, wall_clock_ns};
use super::listen::{ListenError, Listener};
use super::vhost::{VhostError, VhostServer};
use crate::bell::Bell;
use crate::config::Plan;
use crate::config::plan::{self, Backing};
use crate::virtio::blk::BlkShape;
use crate::virtio::mailbox::{Wake, mailbox};
use crate::volume::disk::{Disk, DiskCounters};
use crate::volume::export::{Export, ExportConfig, ExportCounters, ExportError, SHARED_FRAMES};
use crate::volume::{BlockDevice, File, Geometry, Mem, OpenError, Remote, Volume};
use crate::worker::{Storage, User, VolumeSlot};
use outboard_dma::FreeList;
use outboard_rdma::nvmf::Digests;
use outboard_rdma::nvmf::identify::Identity;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;

/// Rings that a disk needs per queue: twice while a guest moves to another process.
const RINGS_PER_QUEUE: u16 = 2;
/// Hosts that one export serves: each has an admin and an I/O connection.
const EXPORT_CONNECTIONS: u16 = 32;

/// Why the storage side could not be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum StoreError {
    #[error("volume `{name}`: {source}")]
    Volume { name: String, source: OpenError },
    #[error("volume `{name}`: {source}")]
    Remote { name: String, source: ConnectError },
    #[error(
        "volume `{name}` has blocks of {configured} bytes, but its target's have {found}; \
         set `block_bytes = {found}` in that [[volume]]"
    )]
    BlockSize { name: String, configured: u32, found: u32 },
    #[error("disk `{name}`: {source}")]
    Disk { name: String, source: VhostError },
    #[error("export of volume `{name}`: {source}")]
    Export { name: String, source: ExportError },
    #[error("export of volume `{name}`: {source}")]
    Listen { name: String, source: ListenError },
}

/// Control's side of the storage: threads that end when this is dropped, and what is counted.
#[derive(Debug, Default)]
pub struct Stores {
    sockets: Vec<VhostServer>,
    listeners: Vec<Listener>,
    made: MadeFiles,
    /// By the plan's volumes; those that are not remote have none.
    pub connectors: Vec<Option<Arc<Connector>>>,
    /// Sizes by the plan's volumes.
    pub volumes: Vec<Geometry>,
    /// Counts by the plan's disks.
    pub disks: Vec<Arc<DiskCounters>>,
    /// Counts by the plan's exports.
    pub exports: Vec<Arc<ExportCounters>>,
}

impl Drop for Stores {
    /// Remote volumes end their I/O first, for whoever waits for it.
    fn drop(&mut self) {
        self.connectors.iter().flatten().for_each(|connector| connector.stop());
    }
}

/// Files that this start has made; removed when dropped.
#[derive(Debug, Default)]
struct MadeFiles(Vec<PathBuf>);

impl Drop for MadeFiles {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!("cannot remove {}, made in vain: {error}", path.display());
            }
        }
    }
}

/// Opens every volume, serves every disk and export; the storage rooms are in the order of the
/// workers. Exports take their buffers from the shares of the workers' frames.
pub fn make(
    plan: &Plan,
    bells: &[Arc<Bell>],
    shares: &mut [FreeList],
) -> Result<(Stores, Vec<Storage>), StoreError> {
    let mut stores = Stores::default();
    stores.disks = plan.disks.iter().map(|_| Arc::default()).collect();
    stores.exports = plan.exports.iter().map(|_| Arc::default()).collect();
    let mut slots: Vec<Vec<VolumeSlot>> = plan.workers.iter().map(|_| Vec::new()).collect();
    for (index, wanted) in plan.volumes.iter().enumerate() {
        let (volume, connector) = open(&plan.name, wanted)?;
        if let (Volume::File(file), Backing::File { path, .. }) = (&volume, &wanted.backing)
            && file.made()
        {
            stores.made.0.push(path.clone());
        }
        stores.connectors.push(connector.map(Arc::new));
        stores.volumes.push(volume.geometry());
        let worker = usize::from(wanted.worker);
        let mut users = Vec::new();
        stores.serve_disks(plan, index, &volume, &bells[worker], &mut users)?;
        stores.serve_exports(plan, index, &volume, &mut shares[worker], &mut users)?;
        slots[worker].push(VolumeSlot { volume, users });
    }
    Ok((stores, slots.into_iter().map(Storage::new).collect()))
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
        Backing::File { path, create_bytes } => {
            let file = File::open(path, block_bytes, read_only, *create_bytes)
                .map_err(|error| opened(error.into()))?;
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
        Backing::Remote { address, nqn, nsid, digests, loss_timeout, quiesce } => {
            let target = Wanted {
                address: *address,
                nqn: nqn.clone(),
                nsid: *nsid,
                digests: wanted_digests(*digests),
                user: format!("{host}/{}", wanted.name),
                quiesce: *quiesce,
                loss_timeout: *loss_timeout,
            };
            let (remote, connector) = Remote::connect_as(&target)
                .map_err(|source| StoreError::Remote { name: name(), source })?;
            let found = remote.geometry().block_bytes;
            if block_bytes != 0 && found != block_bytes {
                return Err(StoreError::BlockSize { name: name(), configured: block_bytes, found });
            }
            let remote = if read_only { remote.read_only() } else { remote };
            Ok((Volume::Remote(remote), Some(connector)))
        }
    }
}

fn wanted_digests(digests: plan::Digests) -> Digests {
    use plan::Digests::{Both, Data, Header};
    Digests { header: matches!(digests, Header | Both), data: matches!(digests, Data | Both) }
}

impl Stores {
    /// From now on guests may write: files of volumes stay, whatever happens.
    pub fn keep_files(&mut self) {
        self.made.0.clear();
    }

    /// The disks on volume `index`.
    fn serve_disks(
        &mut self,
        plan: &Plan,
        index: usize,
        volume: &Volume,
        bell: &Arc<Bell>,
        users: &mut Vec<User>,
    ) -> Result<(), StoreError> {
        let geometry = volume.geometry();
        for (number, disk) in plan.disks.iter().enumerate() {
            if usize::from(disk.volume) != index {
                continue;
            }
            let rings = disk.queues * RINGS_PER_QUEUE;
            let (control, worker) = mailbox(rings);
            let made = Disk::new(users.len() as u16, &disk.name, rings, worker);
            self.disks[number] = made.counters();
            users.push(User::Disk(made));
            let shape = BlkShape {
                bytes: geometry.bytes(),
                block_bytes: geometry.block_bytes,
                read_only: geometry.read_only,
                queues: disk.queues,
            };
            let served = VhostServer::start(
                &disk.name,
                &disk.socket,
                &disk.access,
                shape,
                control,
                wake(bell),
            );
            let named = |source| StoreError::Disk { name: disk.name.clone(), source };
            self.sockets.push(served.map_err(named)?);
        }
        Ok(())
    }

    /// The exports of volume `index`.
    fn serve_exports(
        &mut self,
        plan: &Plan,
        index: usize,
        volume: &Volume,
        free: &mut FreeList,
        users: &mut Vec<User>,
    ) -> Result<(), StoreError> {
        for (number, export) in plan.exports.iter().enumerate() {
            if usize::from(export.volume) != index {
                continue;
            }
            let name = || plan.volumes[index].name.clone();
            let config = ExportConfig {
                nqn: export.nqn.clone(),
                serial: name(),
                identity: identity(&plan.volumes[index], &export.nqn),
                owner: users.len() as u16,
                connections: EXPORT_CONNECTIONS,
                shared_frames: SHARED_FRAMES,
                first_epoch: wall_clock_ns(),
            };
            let (mut made, door) = Export::new(&config, volume, free)
                .map_err(|source| StoreError::Export { name: name(), source })?;
            let others = plan.exports.iter().filter(|other| other.nqn != export.nqn);
            made.require_digests(wanted_digests(export.require_digests));
            made.list_others(others.map(|other| (&*other.nqn, other.listen)));
            self.exports[number] = made.counters();
            users.push(User::Export(made));
            let listener = Listener::start(export.listen, door)
                .map_err(|source| StoreError::Listen { name: name(), source })?;
            self.listeners.push(listener);
        }
        Ok(())
    }
}

/// What names a volume's content to hosts: the same at every start for media that persist, new
/// at each start for memory, so that no host takes an empty volume for the one that it knew.
fn identity(volume: &plan::Volume, nqn: &str) -> Identity {
    let persists = !matches!(volume.backing, Backing::Mem { .. });
    let mut uuid = [0; 16];
    for (half, bytes) in uuid.chunks_mut(8).enumerate() {
        let number = if persists {
            stable_hash(half as u64, nqn)
        } else {
            RandomState::new().build_hasher().finish()
        };
        bytes.copy_from_slice(&number.to_be_bytes());
    }
    // Version 8, variant 1: made in a way of our own (RFC 9562, section 5.8).
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Identity { nguid: uuid, uuid }
}

/// FNV-1a (Fowler, Noll, Vo) of a number and a name: the same in every version of this program.
fn stable_hash(number: u64, name: &str) -> u64 {
    let bytes = number.to_le_bytes().into_iter().chain(name.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What wakes a worker that sleeps.
fn wake(bell: &Arc<Bell>) -> Wake {
    let bell = Arc::clone(bell);
    Arc::new(move || bell.ring())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_that_persist_keep_their_identity_and_memory_does_not() {
        let mut volume = plan::Volume {
            name: "data".into(),
            worker: 0,
            block_bytes: 512,
            read_only: false,
            backing: Backing::File { path: "/data".into(), create_bytes: None },
        };
        let name = "nqn.2025-01.org.example:data";
        assert_eq!(identity(&volume, name), identity(&volume, name));
        assert_ne!(identity(&volume, name), identity(&volume, "nqn.2025-01.org.example:other"));
        volume.backing = Backing::Mem { bytes: 512 };
        assert_ne!(identity(&volume, name), identity(&volume, name));
    }
}
