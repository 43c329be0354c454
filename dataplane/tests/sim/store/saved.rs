//! Everything that is to outlive a process goes on, now and then, from what it has saved.

use super::World;
use outboard::virtio::mailbox::{DiskControl, DiskMessage, DiskReturn};
use outboard::virtio::queue::{Queue, QueueState};
use outboard::volume::Volume;
use outboard_dma::GuestMemory;
use std::sync::Arc;

/// How often, in parts of a million per moment.
const RELOAD_PPM: u32 = 1_000;

/// How often what went on from what it had saved.
#[derive(Clone, Copy, Debug, Default)]
pub struct Saved {
    pub virtqueue: u64,
    pub initiator: u64,
    pub target: u64,
}

/// The control of the disk's ring.
pub struct RingControl {
    pub mail: DiskControl,
    /// It is told to stop, and has not been given back.
    pub is_stopping: bool,
}

impl RingControl {
    /// A ring that was given back goes on from what it has saved; whether it does.
    fn restart(&mut self, memory: &Arc<GuestMemory>) -> bool {
        let Ok(returned) = self.mail.returns.try_recv() else { return false };
        let DiskReturn::Stopped { ring, with: Some(mut with) } = returned else {
            panic!("a ring that was started comes back: {returned:?}");
        };
        let saved = serde_json::to_string(&with.queue.save()).unwrap();
        let state: QueueState = serde_json::from_str(&saved).unwrap();
        with.queue = Queue::load(memory, &state).unwrap();
        self.mail.send(DiskMessage::Start { ring, with }).unwrap();
        self.is_stopping = false;
        true
    }
}

impl World {
    /// What is to go on from what it saves now does.
    pub fn save_and_load(&mut self) {
        if self.ring.is_stopping && self.ring.restart(self.guest.memory()) {
            self.saved.virtqueue += 1;
            self.wake();
        }
        if self.rng.chance(RELOAD_PPM) && !self.ring.is_stopping {
            self.ring.mail.send(DiskMessage::Stop { ring: 0 }).unwrap();
            self.ring.is_stopping = true;
            self.wake();
        }
        if self.rng.chance(RELOAD_PPM)
            && let Volume::Remote(volume) = self.storage.volume_mut(0)
            && let Some(saved) = volume.save_engine()
        {
            volume.load_engine(&saved).unwrap();
            assert_eq!(volume.save_engine().as_ref(), Some(&saved));
            self.saved.initiator += 1;
        }
        if self.rng.chance(RELOAD_PPM) {
            self.saved.target += u64::from(self.target.save_and_load());
        }
    }

    /// The host's control wakes its worker.
    fn wake(&mut self) {
        if self.asleep_ns.take().is_some() {
            self.storage.disarm();
        }
    }
}
