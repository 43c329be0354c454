//! A remote volume without its connection: what waits, what is sent again, and what ends.
//!
//! I/O in flight when a connection is lost stays, with its segments, and is sent again from its
//! beginning, in the order of submission, on the next one. Control hands that over only when
//! nothing of the past can take effect any more; a target that does not fence is sent reads and
//! flushes at once, and what changes the content from `changes_from_ns` on. Meanwhile new I/O
//! joins the line. After `patience_ns` everything ends, and new I/O at once, until there is a
//! connection again.

use super::link::{Link, LossReason, Lost, Word};
use super::{ANY, Remote};
use crate::volume::{Done, Op, Status, Tag};
use rustix::event::epoll::{self, EventFlags};
use std::io::ErrorKind;
use std::sync::atomic::Ordering;

impl Remote {
    /// Hears what control has to say.
    pub(super) fn listen(&mut self, now_ns: u64) {
        let sent = self.sent.load(Ordering::Acquire);
        if sent == self.heard {
            return;
        }
        while self.heard != sent {
            let Ok(word) = self.words.try_recv() else { break };
            self.heard = self.heard.wrapping_add(1);
            // If there still is a connection, control has given it up.
            self.lose(now_ns, LossReason::GivenUp);
            match word {
                Word::Use(link) => self.adopt(now_ns, link),
                Word::End(status) => {
                    self.fate = Some(status);
                    self.end_all(status, status);
                }
            }
        }
    }

    fn adopt(&mut self, now_ns: u64, link: Link) {
        // While there is a link nobody waits for the bell: what control says then is heard in the
        // next turn, of which there is one every 100 ms at least.
        let _ = epoll::delete(&self.epoll, &*self.bell);
        self.bell.drain();
        if epoll::add(&self.epoll, &link.socket, ANY, EventFlags::IN).is_err() {
            self.wait_for_bell();
            return self.give_back(link, LossReason::Socket(ErrorKind::Other));
        }
        self.counters.connected.set(1);
        if let Some(lost_ns) = self.lost_ns.take() {
            let outage_ms = now_ns.saturating_sub(lost_ns) / 1_000_000;
            let longest_ms = self.counters.longest_outage_ms.get().max(outage_ms);
            self.counters.longest_outage_ms.set(longest_ms);
        }
        self.fate = None;
        self.is_send_blocked = false;
        self.received_ns = now_ns;
        let most = self.most_bytes;
        self.max_transfer_bytes = link.max_transfer_bytes.unwrap_or(most).min(most);
        self.holds_changes_until_ns =
            (now_ns < link.changes_from_ns).then_some(link.changes_from_ns);
        if self.holds_changes_until_ns.is_some() {
            self.hold_changes();
        }
        if self.cache.meet(link.boot) {
            self.counters.cache_losses.add(1);
            self.fail_flushes();
        }
        for parent in self.parents.iter().filter(|parent| parent.is_active && parent.was_sent) {
            debug_assert!(parent.issued == 0 && parent.commands == 0);
            self.counters.reissued.add(1);
        }
        self.link = Some(link);
    }

    /// Ends the flushes in line: what they were to cover is lost.
    fn fail_flushes(&mut self) {
        for _ in 0..self.backlog.len() {
            let Some(index) = self.backlog.pop_front() else { return };
            if self.parents[usize::from(index)].op == Op::Flush {
                self.end(index, Status::WritesLost);
            } else {
                self.backlog.push_back(index);
            }
        }
    }

    /// Takes what changes the content out of the line.
    fn hold_changes(&mut self) {
        for _ in 0..self.backlog.len() {
            let Some(index) = self.backlog.pop_front() else { return };
            let is_change = self.parents[usize::from(index)].op.is_change();
            if is_change { &mut self.held } else { &mut self.backlog }.push_back(index);
        }
    }

    /// Puts what was held in line when its time has come.
    pub(super) fn release_changes(&mut self, now_ns: u64) {
        if self.holds_changes_until_ns.is_some_and(|until_ns| now_ns >= until_ns) {
            self.holds_changes_until_ns = None;
            self.backlog.append(&mut self.held);
        }
    }

    fn wait_for_bell(&mut self) {
        self.bell.drain();
        let _ = epoll::add(&self.epoll, &*self.bell, ANY, EventFlags::IN);
    }

    fn give_back(&mut self, link: Link, reason: LossReason) {
        // Control keeps up: there is one link at a time. If it is gone, the link is dropped here.
        let _ = self.lost.try_send(Lost { link, reason });
        self.lost_bell.signal();
    }

    /// The connection is lost: everything in flight goes back in line.
    pub(super) fn lose(&mut self, now_ns: u64, reason: LossReason) {
        let Some(link) = self.link.take() else { return };
        let _ = epoll::delete(&self.epoll, &link.socket);
        self.wait_for_bell();
        self.give_back(link, reason);
        self.counters.connected.set(0);
        self.counters.losses.add(1);
        self.lost_ns = Some(now_ns);
        self.holds_changes_until_ns = None;
        self.held.clear();
        self.backlog.clear();
        for (index, parent) in self.parents.iter_mut().enumerate() {
            if parent.is_active {
                (parent.issued, parent.commands, parent.status) = (0, 0, Status::Ok);
                self.backlog.push_back(index as u16);
                if planted!("volume-sent-again-twice") {
                    self.backlog.push_back(index as u16);
                }
            }
        }
        let parents = &self.parents;
        let order = |index: &u16| parents[usize::from(*index)].order;
        self.backlog.make_contiguous().sort_unstable_by_key(order);
    }

    /// Without a connection: ends what has waited too long.
    pub(super) fn lose_patience(&mut self, now_ns: u64) {
        if self.fate.is_some() {
            return;
        }
        let lost_ns = *self.lost_ns.get_or_insert(now_ns);
        if now_ns.saturating_sub(lost_ns) >= self.patience_ns {
            self.fate = Some(Status::NotConnected);
            self.end_all(Status::ConnectionLost, Status::NotConnected);
        }
    }

    /// Ends everything in line: what was sent before and what was not.
    fn end_all(&mut self, sent: Status, not_sent: Status) {
        while let Some(index) = self.backlog.pop_front() {
            let was_sent = self.parents[usize::from(index)].was_sent;
            self.counters.ended_by_loss.add(1);
            self.end(index, if was_sent { sent } else { not_sent });
        }
    }

    /// Takes an I/O out of the line.
    pub(super) fn withdraw_waiting(&mut self, tag: Tag) {
        let parents = &self.parents;
        let is_it = |index: &u16| parents[usize::from(*index)].tag == tag;
        if let Some(place) = self.backlog.iter().position(is_it)
            && let Some(index) = self.backlog.remove(place)
        {
            self.end(index, Status::Aborted);
        }
    }

    pub(super) fn end(&mut self, index: u16, status: Status) {
        let parent = &mut self.parents[usize::from(index)];
        parent.is_active = false;
        match parent.op {
            Op::Flush if status == Status::Ok => self.cache.flush(parent.covers),
            op if op.is_change() && status == Status::Ok => self.cache.change(),
            _ => {}
        }
        self.ended.push_back(Done { tag: parent.tag, status, marks: parent.marks });
        self.free.push(index);
    }
}
