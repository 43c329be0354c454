//! Fences: what an export does between a host's Fence command and its answer.
//!
//! From the command on, connections of the host's past begin nothing any more: what they have in
//! line and what still comes ends as stale. When what the volume has of them has ended they are
//! closed, and the command is answered. Connections that were closed before it, whoever's they
//! were, are waited for in the same way: their I/O may be of the same past. So is what an export of
//! the same volume still runs that leaves, as one does that is made anew. How long that takes is
//! the medium's affair; a host that does not want to wait asks again.

use super::connection::Connection;
use super::{End, Export};

impl Export {
    /// A Fence command has come: marks what it ends.
    pub(super) fn begin_fence(&mut self) {
        self.has_fence = true;
        self.counters.fences.add(1);
        for index in &self.live {
            self.connections[usize::from(*index)].learn_stale(&self.subsystem);
        }
    }

    /// Ends what the fences that wait are to end, as far as the volume is done with it, and
    /// answers them when all is.
    pub(super) fn settle_fences(&mut self, now_ns: u64) {
        let is_late = |it: &Connection| it.running() > 0 && it.is_of_past(&self.subsystem);
        let is_running = self.is_predecessor_running || self.connections.iter().any(is_late);
        let is_running = is_running && !planted!("fence-answered-early");
        self.has_fence = false;
        for at in (0..self.live.len()).rev() {
            let index = self.live[at];
            let connection = &mut self.connections[usize::from(index)];
            if !connection.is_of_past(&self.subsystem) || is_running {
                continue;
            }
            connection.finish_fence(&mut self.subsystem);
            // Tells the host why, if it listens; what does not fit the socket is lost with it.
            let _ = connection.send(now_ns, &mut self.pool, index, &mut self.timing);
            let end = if connection.is_stale { End::Fenced } else { End::Orphan };
            self.close(index, end);
        }
        for index in &self.live {
            let connection = &mut self.connections[usize::from(*index)];
            if !connection.is_fencing() {
                continue;
            }
            if is_running {
                self.has_fence = true;
            } else {
                connection.finish_fence(&mut self.subsystem);
            }
        }
        self.counters.stale_refusals.set(self.subsystem.stale_refusals());
    }
}
