//! The storage side: volumes, the disks that give them to guests, and the exports that serve them
//! to other hosts. They come in two steps: everything that can fail is made aside, and only then
//! workers are told. They leave over a while: their I/O ends first.

use super::connect::{ConnectError, Connector, boot, wall_clock_ns};
use super::listen::{ListenError, Listener};
use super::opening::{MadeFiles, Opened, wanted_digests};
use super::vhost::{VhostError, VhostServer};
use super::workers::Workers;
use crate::config::Plan;
use crate::config::diff::{Difference, Kind};
use crate::config::plan::{self, Backing, EXPORT_CONNECTIONS, EXPORT_FRAMES};
use crate::virtio::blk::BlkShape;
use crate::virtio::mailbox::{Wake, mailbox};
use crate::volume::disk::{Disk, DiskCounters};
use crate::volume::export::{
    Export, ExportConfig, ExportCounters, ExportError, SHARED_FRAMES, entries,
};
use crate::volume::{BlockDevice, Geometry, OpenError, Volume};
use crate::worker::{Left, Message, User, VolumeSlot};
use outboard_rdma::nvmf::identify::Identity;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rings that a disk needs per queue: twice while a guest moves to another process.
const RINGS_PER_QUEUE: u16 = 2;
/// How long the I/O of guests' disks that end is given before volumes that end abort it.
pub const RINGS_PATIENCE: Duration = Duration::from_secs(3);
/// How often it is looked whether rings have ended.
const LOOK: Duration = Duration::from_millis(2);

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
    #[error(
        "volume `{name}`: {held}, which leaves, still has I/O in flight at the same target; apply \
         it again when that has left"
    )]
    Leaving { name: String, held: String },
    #[error("disk `{name}`: {source}")]
    Disk { name: String, source: VhostError },
    #[error(
        "volume `{name}` has {configured} bytes, but its target's has {found}; \
         set `size = {found}` in that [[volume]], or leave it out"
    )]
    Size { name: String, configured: u64, found: u64 },
    #[error("export of volume `{name}`: {source}")]
    Export { name: String, source: ExportError },
    #[error("export of volume `{name}`: {source}")]
    Listen { name: String, source: ListenError },
}

/// A volume as control knows it.
#[derive(Clone, Debug)]
pub struct OpenVolume {
    name: String,
    /// Names it to its worker; never used again.
    number: u32,
    worker: u16,
    /// Its size and unit.
    pub geometry: Geometry,
    /// What keeps it connected, if it is remote.
    pub connector: Option<Arc<Connector>>,
    /// Where it is, if it is remote: subsystem and namespace.
    target: Option<(String, u32)>,
    /// What makes this content another one than that of a volume of the same name before or
    /// after; 0 where nothing tells.
    medium: u64,
}

/// A disk or an export as control knows it.
#[derive(Debug)]
pub struct OpenUser<S, C> {
    name: String,
    volume: u32,
    worker: u16,
    /// `Tag::owner`.
    owner: u16,
    /// What others reach it by; ends when dropped.
    server: S,
    /// What it counts.
    pub counters: Arc<C>,
}

type OpenDisk = OpenUser<VhostServer, DiskCounters>;
type OpenExport = OpenUser<Listener, ExportCounters>;

/// Something whose I/O is still to end.
#[derive(Debug)]
struct Leaving {
    what: String,
    volume: u32,
    /// `None`: the volume itself.
    owner: Option<u16>,
    claimed_frames: u32,
    /// Of a remote volume.
    target: Option<(String, u32)>,
    /// I/O in flight may need it to end.
    _connector: Option<Arc<Connector>>,
}

/// All volumes, disks and exports, and what is leaving.
#[derive(Debug, Default)]
pub struct Stores {
    volumes: Vec<OpenVolume>,
    disks: Vec<OpenDisk>,
    exports: Vec<OpenExport>,
    leaving: Vec<Leaving>,
    volumes_made: u32,
}

/// What was made aside and no worker knows yet.
#[derive(Debug, Default)]
pub struct NewStores {
    volumes: Vec<(OpenVolume, Box<VolumeSlot>)>,
    disks: Vec<(OpenDisk, User)>,
    exports: Vec<(OpenExport, User)>,
    made: MadeFiles,
}

impl NewStores {
    /// From now on guests may write: files of volumes stay, whatever happens.
    fn keep_files(&mut self) {
        self.made.keep();
    }

    fn places(&self) -> impl Iterator<Item = (u32, u16)> {
        let disks = self.disks.iter().map(|(disk, _)| (disk.volume, disk.owner));
        disks.chain(self.exports.iter().map(|(export, _)| (export.volume, export.owner)))
    }
}

impl Stores {
    /// The volume of this name.
    pub fn volume(&self, name: &str) -> Option<&OpenVolume> {
        self.volumes.iter().find(|volume| volume.name == name)
    }

    /// Who has this place among a volume's users, for people.
    pub fn user_name(&self, volume: u32, owner: u16) -> String {
        let disk = self.disks.iter().find(|it| (it.volume, it.owner) == (volume, owner));
        if let Some(disk) = disk {
            return format!("disk {}", disk.name);
        }
        let export = self.exports.iter().find(|it| (it.volume, it.owner) == (volume, owner));
        export.map_or("a user that has left".into(), |export| format!("export {}", export.name))
    }

    /// What the disk of this name counts.
    pub fn disk(&self, name: &str) -> Option<&Arc<DiskCounters>> {
        self.disks.iter().find(|disk| disk.name == name).map(|disk| &disk.counters)
    }

    /// What the export of this name counts.
    pub fn export(&self, nqn: &str) -> Option<&Arc<ExportCounters>> {
        self.exports.iter().find(|export| export.name == nqn).map(|export| &export.counters)
    }

    /// Whether no volume that is to come would meet, at its target, one that is still leaving.
    pub fn check_leaving(&self, plan: &Plan, difference: &Difference) -> Result<(), StoreError> {
        for wanted in &plan.volumes {
            let target = target(&wanted.backing);
            if target.is_none() || !difference.begins(Kind::Volume, &wanted.name) {
                continue;
            }
            if let Some(held) = self.leaving.iter().find(|it| it.target == target) {
                let (name, held) = (wanted.name.clone(), held.what.clone());
                return Err(StoreError::Leaving { name, held });
            }
        }
        Ok(())
    }

    /// Makes what is to come by `difference`, aside, in `new`, with the volumes that come.
    pub fn prepare(
        &mut self,
        plan: &Plan,
        difference: &Difference,
        opened: Opened,
        workers: &mut Workers,
        new: &mut NewStores,
    ) -> Result<(), StoreError> {
        new.made = opened.made;
        for (wanted, volume, connector) in opened.volumes {
            self.prepare_volume(&wanted, volume, connector, new);
        }
        for disk in &plan.disks {
            if difference.begins(Kind::Disk, &disk.name) {
                let volume = self.volume_for(plan, disk.volume, new);
                let made = self.prepare_disk(plan, disk, &volume, difference, workers, new)?;
                new.disks.push(made);
            }
        }
        for export in &plan.exports {
            if difference.begins(Kind::Export, &export.nqn) {
                let volume = self.volume_for(plan, export.volume, new);
                let made = self.prepare_export(export, &volume, difference, workers, new)?;
                new.exports.push(made);
            }
        }
        Ok(())
    }

    fn prepare_volume(
        &mut self,
        wanted: &plan::Volume,
        volume: Volume,
        connector: Option<Connector>,
        new: &mut NewStores,
    ) {
        self.volumes_made += 1;
        let medium = match &volume {
            Volume::Mem(_) | Volume::Null(_) => RandomState::new().hash_one(self.volumes_made),
            Volume::File(file) if !file.medium().is_empty() => stable_hash(0, file.medium()),
            Volume::File(_) | Volume::Remote(_) => 0,
        };
        let open = OpenVolume {
            name: wanted.name.clone(),
            number: self.volumes_made,
            worker: wanted.worker,
            geometry: volume.geometry(),
            connector: connector.map(Arc::new),
            target: target(&wanted.backing),
            medium,
        };
        let slot = Box::new(VolumeSlot::new(open.number, volume));
        new.volumes.push((open, slot));
    }

    /// The volume that the plan's volume `index` is, or will be.
    fn volume_for(&self, plan: &Plan, index: u16, new: &NewStores) -> OpenVolume {
        let name = &plan.volumes[usize::from(index)].name;
        let coming = new.volumes.iter().map(|(volume, _)| volume).find(|it| it.name == *name);
        coming.or(self.volume(name)).cloned().expect("a plan's volume is open or opened before")
    }

    /// A place among the users of a volume that nobody has, not even one who is leaving.
    fn free_place(&self, volume: &OpenVolume, new: &NewStores) -> u16 {
        let disks = self.disks.iter().map(|disk| (disk.volume, disk.owner));
        let exports = self.exports.iter().map(|export| (export.volume, export.owner));
        let leaving = self.leaving.iter().filter_map(|it| Some((it.volume, it.owner?)));
        let taken: Vec<_> = disks.chain(exports).chain(leaving).chain(new.places()).collect();
        let is_free = |place: &u16| !taken.contains(&(volume.number, *place));
        (0..u16::MAX).find(is_free).expect("plans have fewer users than there are places")
    }

    fn prepare_disk(
        &self,
        plan: &Plan,
        disk: &plan::Disk,
        volume: &OpenVolume,
        difference: &Difference,
        workers: &Workers,
        new: &NewStores,
    ) -> Result<(OpenDisk, User), StoreError> {
        let geometry = volume.geometry;
        let rings = disk.queues * RINGS_PER_QUEUE;
        let (control, worker) = mailbox(rings);
        let owner = self.free_place(volume, new);
        let made = Disk::new(owner, &disk.name, rings, worker);
        let counters = made.counters();
        let shape = BlkShape {
            bytes: geometry.bytes(),
            block_bytes: geometry.block_bytes,
            read_only: geometry.read_only,
            queues: disk.queues,
        };
        let named = |source| StoreError::Disk { name: disk.name.clone(), source };
        // A socket that a disk which leaves has is taken over: who knocks meanwhile waits.
        let held = self
            .disks
            .iter()
            .find(|it| difference.ends(Kind::Disk, &it.name) && it.server.path() == disk.socket);
        let socket = match held {
            Some(held) => {
                VhostServer::check(&disk.socket, &disk.access).map_err(named)?;
                held.server.socket()
            }
            None => VhostServer::bind(&disk.socket, &disk.access).map_err(named)?,
        };
        let wake = wake(workers, volume.worker);
        let server = VhostServer::prepare(&disk.name, socket, &disk.socket, shape, control, wake);
        let _ = plan;
        let open = OpenUser {
            name: disk.name.clone(),
            volume: volume.number,
            worker: volume.worker,
            owner,
            server: server.map_err(named)?,
            counters,
        };
        Ok((open, User::Disk(Box::new(made))))
    }

    fn prepare_export(
        &self,
        export: &plan::Export,
        volume: &OpenVolume,
        difference: &Difference,
        workers: &mut Workers,
        new: &NewStores,
    ) -> Result<(OpenExport, User), StoreError> {
        let name = || volume.name.clone();
        let config = ExportConfig {
            nqn: export.nqn.clone(),
            serial: name(),
            identity: identity(volume.medium, &export.nqn),
            owner: self.free_place(volume, new),
            connections: EXPORT_CONNECTIONS,
            shared_frames: SHARED_FRAMES,
            first_epoch: wall_clock_ns(),
            boot: boot(),
        };
        let held = self.exports.iter().find(|it| {
            difference.ends(Kind::Export, &it.name) && it.server.address() == export.listen
        });
        let listen = |source| StoreError::Listen { name: name(), source };
        let socket = match held {
            Some(held) => held.server.socket(),
            None => Listener::bind(export.listen).map_err(listen)?,
        };
        let claimed = workers.claim(volume.worker, EXPORT_FRAMES);
        let mut frames = match claimed {
            true => workers.take_frames(volume.worker, EXPORT_FRAMES),
            false => workers.empty_list(),
        };
        let made = Export::new(&config, volume.geometry, &mut frames);
        let made = made.map_err(|source| StoreError::Export { name: name(), source });
        let served = made.and_then(|(mut made, door)| {
            made.require_digests(wanted_digests(export.require_digests));
            let counters = made.counters();
            match Listener::prepare(socket, door) {
                Ok(server) => Ok((made, server, counters)),
                Err(source) => {
                    made.close_all(&mut frames);
                    Err(listen(source))
                }
            }
        });
        let (made, server, counters) = match served {
            Ok(served) => served,
            Err(error) => {
                workers.give_frames(volume.worker, frames);
                workers.disclaim(volume.worker, if claimed { EXPORT_FRAMES } else { 0 });
                return Err(error);
            }
        };
        let (name, owner) = (export.nqn.clone(), config.owner);
        let (volume, worker) = (volume.number, volume.worker);
        let open = OpenUser { name, volume, worker, owner, server, counters };
        Ok((open, User::Export(Box::new(made))))
    }

    /// Frees what was made in vain.
    pub fn undo(&self, new: NewStores, workers: &mut Workers) {
        for (open, user) in new.exports {
            drop(open.server);
            if let User::Export(mut export) = user {
                let mut frames = workers.empty_list();
                export.close_all(&mut frames);
                workers.give_frames(open.worker, frames);
                workers.disclaim(open.worker, EXPORT_FRAMES);
            }
        }
    }

    /// Sends away what leaves, and gives the workers what was made.
    pub fn commit(
        &mut self,
        plan: &Plan,
        difference: &Difference,
        mut new: NewStores,
        workers: &mut Workers,
    ) {
        new.keep_files();
        self.send_away(difference, workers);
        for (volume, slot) in new.volumes {
            workers.tell(volume.worker, Message::AddVolume(slot));
            self.volumes.push(volume);
        }
        for (disk, user) in new.disks {
            workers.tell(disk.worker, Message::AddUser(disk.volume, user));
            if let Some(planned) = plan.disks.iter().find(|it| it.name == disk.name)
                && let Err(error) = disk.server.admit(&planned.access)
            {
                tracing::warn!("disk {}: {error}", disk.name);
            }
            disk.server.open();
            self.disks.push(disk);
        }
        for (export, user) in new.exports {
            workers.tell(export.worker, Message::AddUser(export.volume, user));
            export.server.open();
            self.exports.push(export);
        }
        if difference.changes.iter().any(|change| change.kind == Kind::Export) {
            self.list_exports(plan, workers);
        }
    }

    /// Tells every export which others there are, for hosts that ask for discovery.
    fn list_exports(&self, plan: &Plan, workers: &mut Workers) {
        for export in &self.exports {
            let others = plan.exports.iter().filter(|other| other.nqn != export.name);
            let others = entries(others.map(|other| (&*other.nqn, other.listen)));
            workers.ask(export.worker, Message::ListOthers(export.volume, export.owner, others));
        }
    }

    /// Stops the rings of the disks that end by `difference`: guests go while the worker still
    /// turns and can end their I/O. When they [have ended](Self::have_rings_ended), or
    /// [`RINGS_PATIENCE`] is over, follows [`commit`](Self::commit).
    pub fn stop_rings(&mut self, difference: &Difference) {
        let ends = self.disks.iter_mut().filter(|it| difference.ends(Kind::Disk, &it.name));
        ends.for_each(|disk| disk.server.begin_to_end());
    }

    /// Whether every ring of a disk that ends has come back.
    pub fn have_rings_ended(&self, difference: &Difference) -> bool {
        let mut ends = self.disks.iter().filter(|it| difference.ends(Kind::Disk, &it.name));
        ends.all(|disk| disk.server.has_ended())
    }

    fn send_away(&mut self, difference: &Difference, workers: &mut Workers) {
        let ends = |kind, name: &str| difference.ends(kind, name);
        let disks: Vec<_> = self.disks.extract_if(.., |it| ends(Kind::Disk, &it.name)).collect();
        // Remote volumes end what is left, for whoever waits for it.
        for volume in self.volumes.iter().filter(|it| ends(Kind::Volume, &it.name)) {
            volume.connector.iter().for_each(|connector| connector.stop());
        }
        for disk in disks {
            drop(disk.server);
            let what = format!("disk \"{}\"", disk.name);
            self.leaving.push(Leaving::user(what, disk.volume, disk.owner, 0));
            workers.tell(disk.worker, Message::RemoveUser(disk.volume, disk.owner));
        }
        for export in self.exports.extract_if(.., |it| ends(Kind::Export, &it.name)) {
            drop(export.server);
            let what = format!("export \"{}\"", export.name);
            self.leaving.push(Leaving::user(what, export.volume, export.owner, EXPORT_FRAMES));
            workers.tell(export.worker, Message::RemoveUser(export.volume, export.owner));
        }
        for volume in self.volumes.extract_if(.., |it| ends(Kind::Volume, &it.name)) {
            self.leaving.push(Leaving {
                what: format!("volume \"{}\"", volume.name),
                volume: volume.number,
                owner: None,
                claimed_frames: 0,
                target: volume.target,
                _connector: volume.connector,
            });
            workers.tell(volume.worker, Message::RemoveVolume(volume.number));
        }
    }

    /// Frees what has left.
    pub fn collect(&mut self, workers: &mut Workers) {
        while let Some((worker, left)) = workers.next_left() {
            let (volume, owner) = match &left {
                Left::User(volume, user) => (*volume, Some(user.owner())),
                Left::Volume(slot) => (slot.number(), None),
            };
            let same = |it: &Leaving| (it.volume, it.owner) == (volume, owner);
            let Some(place) = self.leaving.iter().position(same) else { continue };
            let gone = self.leaving.remove(place);
            workers.disclaim(worker, gone.claimed_frames);
            tracing::info!("{} has left", gone.what);
        }
    }

    /// What has I/O in flight and is still to leave.
    pub fn leaving(&self) -> impl ExactSizeIterator<Item = &str> {
        self.leaving.iter().map(|it| &*it.what)
    }
}

impl Drop for Stores {
    /// As for everything that is sent away. Hosts find nobody from now on: their connections end
    /// when the I/O of a volume is aborted, or with the worker, and they hold their I/O.
    fn drop(&mut self) {
        self.exports.clear();
        stop_rings(&mut self.disks);
        self.volumes.iter().filter_map(|it| it.connector.as_ref()).for_each(|it| it.stop());
        self.disks.clear();
    }
}

/// Stops the rings of these disks and gives the I/O in flight its time to end. Only then volumes
/// may abort what is left: before, a guest under load would be told of errors.
fn stop_rings(disks: &mut [OpenDisk]) {
    disks.iter_mut().for_each(|disk| disk.server.begin_to_end());
    let give_up = Instant::now() + RINGS_PATIENCE;
    while !disks.iter().all(|disk| disk.server.has_ended()) && Instant::now() < give_up {
        std::thread::sleep(LOOK);
    }
}

impl Leaving {
    fn user(what: String, volume: u32, owner: u16, claimed_frames: u32) -> Leaving {
        Leaving { what, volume, owner: Some(owner), claimed_frames, target: None, _connector: None }
    }
}

/// What names a volume's content to hosts: the same at every start for the same `medium`, new with
/// each life of memory, so that no host takes an empty volume, or a file that was made anew, for
/// the one that it knew. A remote volume's is that of its name alone.
fn identity(medium: u64, nqn: &str) -> Identity {
    let mut uuid = [0; 16];
    for (half, bytes) in uuid.chunks_mut(8).enumerate() {
        bytes.copy_from_slice(&stable_hash(half as u64 ^ medium, nqn).to_be_bytes());
    }
    // Version 8, variant 1: made in a way of our own (RFC 9562, section 5.8).
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Identity { nguid: uuid, uuid }
}

/// Where a remote volume is: subsystem and namespace.
fn target(backing: &Backing) -> Option<(String, u32)> {
    match backing {
        Backing::Remote { nqn, nsid, .. } => Some((nqn.clone(), *nsid)),
        Backing::Mem { .. } | Backing::Null { .. } | Backing::File { .. } => None,
    }
}

/// FNV-1a (Fowler, Noll, Vo) of a number and a name: the same in every version of this program.
fn stable_hash(number: u64, name: &str) -> u64 {
    let bytes = number.to_le_bytes().into_iter().chain(name.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What wakes a worker that sleeps.
fn wake(workers: &Workers, worker: u16) -> Wake {
    let bell = Arc::clone(&workers.handles()[usize::from(worker)].bell);
    Arc::new(move || bell.ring())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_that_persist_keep_their_identity_and_memory_does_not() {
        let name = "nqn.2025-01.org.example:data";
        assert_eq!(identity(0, name), identity(0, name));
        assert_ne!(identity(0, name), identity(0, "nqn.2025-01.org.example:other"));
        assert_ne!(identity(1 << 40, name), identity(7 << 40, name));
        assert_ne!(identity(1 << 40, name), identity(0, name));
    }

    #[test]
    fn an_export_needs_what_the_plan_counts_for_it() {
        let config = ExportConfig {
            nqn: "nqn.2025-01.org.example:data".into(),
            serial: "data".into(),
            identity: identity(0, ""),
            owner: 0,
            connections: EXPORT_CONNECTIONS,
            shared_frames: SHARED_FRAMES,
            first_epoch: 1,
            boot: boot(),
        };
        assert_eq!(config.frames(), EXPORT_FRAMES);
    }
}
