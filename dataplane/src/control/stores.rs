//! Makes the storage side of a plan: volumes, and the disks that give them to guests.

use super::vhost::{VhostError, VhostServer};
use crate::bell::Bell;
use crate::config::Plan;
use crate::config::plan::{self, Backing};
use crate::virtio::blk::BlkShape;
use crate::virtio::mailbox::{Wake, mailbox};
use crate::volume::File;
use crate::volume::Mem;
use crate::volume::disk::{Disk, DiskCounters};
use crate::volume::{BlockDevice, Geometry, OpenError, Volume};
use crate::worker::{Storage, User, VolumeSlot};
use std::sync::Arc;

/// Rings that a disk needs per queue: twice while a guest moves to another process.
const RINGS_PER_QUEUE: u16 = 2;

/// Why the storage side could not be made.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A volume could not be opened.
    #[error("volume `{name}`: {source}")]
    Volume {
        /// Its name.
        name: String,
        /// The reason and the remedy.
        source: OpenError,
    },
    /// A disk's socket could not be served.
    #[error("disk `{name}`: {source}")]
    Disk {
        /// Its name.
        name: String,
        /// The reason and the remedy.
        source: VhostError,
    },
}

/// Control's side of the storage: threads that end when this is dropped, and what is counted.
#[derive(Debug, Default)]
pub struct Stores {
    _sockets: Vec<VhostServer>,
    /// Sizes by the plan's volumes.
    pub volumes: Vec<Geometry>,
    /// Counts by the plan's disks.
    pub disks: Vec<Arc<DiskCounters>>,
}

/// Opens every volume and serves every disk; the storage rooms are in the order of the workers.
pub fn make(plan: &Plan, bells: &[Arc<Bell>]) -> Result<(Stores, Vec<Storage>), StoreError> {
    let disks = plan.disks.iter().map(|_| Arc::default()).collect();
    let mut stores = Stores { disks, ..Stores::default() };
    let mut slots: Vec<Vec<VolumeSlot>> = plan.workers.iter().map(|_| Vec::new()).collect();
    for (index, wanted) in plan.volumes.iter().enumerate() {
        let volume = open(wanted)
            .map_err(|source| StoreError::Volume { name: wanted.name.clone(), source })?;
        let geometry = volume.geometry();
        stores.volumes.push(geometry);
        let bell = &bells[usize::from(wanted.worker)];
        let users = users(plan, index, geometry, bell, &mut stores)?;
        slots[usize::from(wanted.worker)].push(VolumeSlot { volume, users });
    }
    Ok((stores, slots.into_iter().map(Storage::new).collect()))
}

fn open(wanted: &plan::Volume) -> Result<Volume, OpenError> {
    let (block_bytes, read_only) = (wanted.block_bytes, wanted.read_only);
    match &wanted.backing {
        Backing::Mem { bytes } => {
            let blocks = bytes / u64::from(block_bytes);
            let geometry = Geometry { block_bytes, blocks, read_only };
            Mem::new(geometry, true).map(Volume::Mem)
        }
        Backing::File { path, create_bytes } => {
            let file = File::open(path, block_bytes, read_only, *create_bytes)?;
            if !file.direct() {
                tracing::warn!(
                    "volume {}: the file system of {} has no direct I/O; reads and writes go \
                     through the page cache",
                    wanted.name,
                    path.display()
                );
            }
            Ok(Volume::File(file))
        }
        Backing::Remote { .. } => Err(OpenError::Remote),
    }
}

/// The disks on volume `index`.
fn users(
    plan: &Plan,
    index: usize,
    geometry: Geometry,
    bell: &Arc<Bell>,
    stores: &mut Stores,
) -> Result<Vec<User>, StoreError> {
    let mut users = Vec::new();
    for (number, disk) in plan.disks.iter().enumerate() {
        if usize::from(disk.volume) != index {
            continue;
        }
        let rings = disk.queues * RINGS_PER_QUEUE;
        let (control, worker) = mailbox(rings);
        let made = Disk::new(users.len() as u16, &disk.name, rings, worker);
        stores.disks[number] = made.counters();
        users.push(User::Disk(made));
        let shape = BlkShape {
            bytes: geometry.bytes(),
            block_bytes: geometry.block_bytes,
            read_only: geometry.read_only,
            queues: disk.queues,
        };
        let served = VhostServer::start(&disk.name, &disk.socket, shape, control, wake(bell));
        let socket =
            served.map_err(|source| StoreError::Disk { name: disk.name.clone(), source })?;
        stores._sockets.push(socket);
    }
    Ok(users)
}

/// What wakes a worker that sleeps.
fn wake(bell: &Arc<Bell>) -> Wake {
    let bell = Arc::clone(bell);
    Arc::new(move || bell.ring())
}
