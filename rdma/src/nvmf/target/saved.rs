//! A target's connection, and what connections share, as plain data.

use super::subsystem::{Admission, Controller, Member};
use super::{
    CONNECT_BYTES, Incoming, LOOSE_RESPONSES, MAX_IO_QUEUES, MAX_RANGES, PAGE_BYTES, Phase, Slot,
    Stage, Subsystem, TERM_DATA_BYTES, Target,
};
use crate::nvmf::Op;
use crate::nvmf::capsule::RANGE_BYTES;
use crate::nvmf::fence::User;
use crate::nvmf::outbox::Outbox;
use crate::nvmf::state::{self, Kind, LoadError, Reader, State, ensure, state_enum, state_struct};

const TARGET: &Kind = b"obtarg\0\x01";
const SUBSYSTEM: &Kind = b"obsubs\0\x02";

state_enum!(Stage {
    0 => Free, 1 => Waiting, 2 => Receiving, 3 => Ready, 4 => Running, 5 => Responding,
});
state_enum!(Incoming {
    0 => Header, 1 => Discard { left }, 2 => Connect { at }, 3 => Data { slot, left },
    4 => Ranges { slot, left }, 5 => Digest { slot },
});
state_enum!(Phase {
    0 => New, 1 => Initialized, 2 => Connected, 3 => Disconnected, 4 => Failed(fault),
});
state_struct!(Slot {
    stage,
    cid,
    op,
    is_durable,
    in_capsule,
    is_asking,
    is_corrupt,
    lba,
    bytes,
    received,
    asked,
    blocks,
    ranges,
    range,
    is_hint,
});
state_struct!(User { host_id, number });
state_enum!(Admission {
    0 => Foreign, 1 => Fencing { user, epoch }, 2 => Current { user, epoch }, 3 => Stale,
});
state_struct!(Controller {
    id,
    host_id,
    host,
    configuration,
    status,
    keep_alive_ms,
    heard_ns,
    queues,
    granted,
    resets,
    async_events,
    admission,
    is_discovery,
    kept,
});
state_struct!(Member { place, id, resets });

impl Subsystem {
    /// The controllers and epochs, as plain data; not what the subsystem was made with.
    pub fn save(&self) -> Vec<u8> {
        state::save(SUBSYSTEM, |out| {
            self.controllers.to_vec().save(out);
            self.next_id.save(out);
            self.epochs.save(out);
            self.stale_refusals.save(out);
            self.generation.save(out);
        })
    }

    /// Takes up what a subsystem of the same limits saved.
    pub fn load(&mut self, bytes: &[u8]) -> Result<(), LoadError> {
        let most = self.controllers.len();
        let (controllers, next_id, epochs, counts) = state::load(SUBSYSTEM, bytes, |from| {
            let controllers = Vec::<Controller>::load(from)?;
            ensure(controllers.len() == most, "controllers")?;
            for (index, controller) in controllers.iter().enumerate() {
                let is_again = controllers[..index].iter().any(|other| other.id == controller.id);
                ensure(controller.id == 0 || !is_again, "two controllers with one identifier")?;
                ensure(controller.id <= 0xffef, "a controller's identifier")?;
                ensure(controller.granted <= MAX_IO_QUEUES, "I/O queues")?;
            }
            let next_id = u16::load(from)?;
            ensure((1..=0xffef).contains(&next_id), "the next identifier")?;
            let epochs = self.epochs.loaded(from)?;
            Ok((controllers, next_id, epochs, <(u64, u64)>::load(from)?))
        })?;
        self.controllers = controllers.into();
        (self.next_id, self.epochs) = (next_id, epochs);
        (self.stale_refusals, self.generation) = counts;
        Ok(())
    }
}

impl Target {
    /// The connection's state, between PDUs or in one, as plain data; not the commands' data.
    pub fn save(&self) -> Vec<u8> {
        state::save(TARGET, |out| {
            (self.phase, self.member).save(out);
            (self.queue, self.queue_size).save(out);
            (self.has_flow_control, self.sq_head).save(out);
            (self.format, self.pad).save(out);
            self.assembly.save(out);
            (self.incoming, self.check).save(out);
            (self.digest_errors, self.is_page_busy).save(out);
            self.outbox.save(out);
            self.slots.to_vec().save(out);
            self.free.save(out);
            self.waiting.save(out);
            self.ready.save(out);
            self.connect.save(out);
            (self.listing, self.fencing).save(out);
            (self.local, self.disconnecting).save(out);
            out.extend_from_slice(&self.page);
        })
    }

    /// The connection that was saved, of a subsystem with the same limits. The caller still has
    /// the data of its commands, and knows which of them run.
    pub fn load(bytes: &[u8], subsystem: &Subsystem) -> Result<Target, LoadError> {
        state::load(TARGET, bytes, |from| Target::read(from, subsystem))
    }

    fn read(from: &mut Reader, subsystem: &Subsystem) -> Result<Target, LoadError> {
        let mut it = Target::new(subsystem.limits.depth);
        let capacity = it.slots.len() + usize::from(LOOSE_RESPONSES) + 3;
        (it.phase, it.member) = State::load(from)?;
        (it.queue, it.queue_size) = State::load(from)?;
        (it.has_flow_control, it.sq_head) = State::load(from)?;
        (it.format, it.pad) = State::load(from)?;
        it.assembly = State::load(from)?;
        (it.incoming, it.check) = State::load(from)?;
        (it.digest_errors, it.is_page_busy) = State::load(from)?;
        let page_bytes = PAGE_BYTES + TERM_DATA_BYTES;
        it.outbox = Outbox::load(from, capacity, page_bytes, it.format.digests)?;
        let slots = Vec::<Slot>::load(from)?;
        ensure(slots.len() == it.slots.len(), "slots")?;
        it.slots = slots.into();
        it.free.clear();
        it.free.extend(Vec::<u16>::load(from)?);
        it.waiting.extend(Vec::<u16>::load(from)?);
        it.ready.extend(Vec::<u16>::load(from)?);
        it.connect = State::load(from)?;
        (it.listing, it.fencing) = State::load(from)?;
        (it.local, it.disconnecting) = State::load(from)?;
        from.bytes(&mut it.page)?;
        it.loose = it.outbox.entries().filter(|entry| entry.slot.is_none()).count() as u16;
        let is_asking = |slot: &&Slot| {
            slot.stage == Stage::Receiving && slot.op.takes_data() && !slot.in_capsule
        };
        it.asking = it.slots.iter().filter(is_asking).count() as u16;
        it.check_queue(subsystem)?;
        it.check_slots(subsystem)?;
        it.check_outbox()?;
        it.check_incoming()?;
        Ok(it)
    }

    fn check_queue(&self, subsystem: &Subsystem) -> Result<(), LoadError> {
        self.assembly.check()?;
        let is_digested = self.phase == Phase::New || self.assembly.digests == self.format.digests;
        ensure(is_digested, "digests")?;
        let place = self.member.map_or(0, |member| usize::from(member.place));
        ensure(place < subsystem.controllers.len(), "the controller's place")?;
        ensure(self.queue <= MAX_IO_QUEUES, "the queue's number")?;
        ensure(self.sq_head <= self.queue_size.max(1), "the queue's head")?;
        ensure(self.pad <= u32::from(u8::MAX), "padding")?;
        ensure(self.loose <= LOOSE_RESPONSES + 2, "responses")
    }

    /// Every slot is where its stage says, once, and its counts fit each other.
    fn check_slots(&self, subsystem: &Subsystem) -> Result<(), LoadError> {
        let mut seen = vec![0_u8; self.slots.len()];
        for (stage, list) in [
            (Stage::Free, self.free.iter().collect::<Vec<_>>()),
            (Stage::Waiting, self.waiting.iter().collect()),
            (Stage::Ready, self.ready.iter().collect()),
        ] {
            for &slot in list {
                let state = self.slots.get(usize::from(slot)).filter(|state| state.stage == stage);
                ensure(state.is_some(), "a list of slots")?;
                seen[usize::from(slot)] += 1;
            }
        }
        for (number, (slot, seen)) in self.slots.iter().zip(seen).enumerate() {
            let is_listed = matches!(slot.stage, Stage::Free | Stage::Waiting | Stage::Ready);
            ensure(seen == u8::from(is_listed), "a slot is listed twice, or nowhere")?;
            let is_counted = slot.received <= slot.asked && slot.asked <= slot.bytes;
            let is_list = slot.op == Op::Discard;
            ensure(is_list || slot.stage == Stage::Free || is_counted, "a slot's counts")?;
            ensure(slot.bytes <= subsystem.limits.transfer_bytes, "a slot's length")?;
            let has_ranges = slot.range <= slot.ranges && usize::from(slot.ranges) <= MAX_RANGES;
            ensure(has_ranges && (!is_list || slot.bytes == 0), "a slot's ranges")?;
            let is_begun = matches!(slot.stage, Stage::Ready | Stage::Running);
            let has_list = self.listing == Some(number as u16) || slot.range == slot.ranges;
            ensure(!is_list || !is_begun || has_list, "a list without a page")?;
            let is_fed = slot.op.takes_data() || is_list;
            ensure(slot.stage != Stage::Receiving || is_fed, "a slot that receives nothing")?;
            let has_data = matches!(slot.op, Op::Read | Op::Write | Op::Compare);
            ensure(slot.stage != Stage::Waiting || has_data, "a slot that waits for nothing")?;
        }
        Ok(())
    }

    /// Every PDU that belongs to a slot is the only one, and its slot waits for it.
    fn check_outbox(&self) -> Result<(), LoadError> {
        let mut seen = vec![false; self.slots.len()];
        for entry in self.outbox.entries() {
            let Some(number) = entry.slot else { continue };
            let slot = self.slots.get(usize::from(number));
            let slot = slot.ok_or(LoadError::Invalid("a PDU's slot"))?;
            let is_expected =
                slot.stage == Stage::Responding || slot.stage == Stage::Receiving && slot.is_asking;
            ensure(is_expected && !seen[usize::from(number)], "a PDU's slot")?;
            ensure(entry.is_within(slot.bytes), "a PDU's data")?;
            seen[usize::from(number)] = true;
        }
        let has_failed = matches!(self.phase, Phase::Failed(_));
        for (slot, seen) in self.slots.iter().zip(seen) {
            let is_sending =
                slot.stage == Stage::Responding || slot.stage == Stage::Receiving && slot.is_asking;
            ensure(has_failed || seen || !is_sending, "a slot without its PDU")?;
        }
        Ok(())
    }

    fn check_incoming(&self) -> Result<(), LoadError> {
        let slot_of = |slot: u16| {
            self.slots.get(usize::from(slot)).ok_or(LoadError::Invalid("the slot of data"))
        };
        match self.incoming {
            Incoming::Header => Ok(()),
            Incoming::Discard { left } => ensure(left > 0, "data of nobody"),
            Incoming::Connect { at } => ensure((at as usize) < CONNECT_BYTES, "Connect's data"),
            Incoming::Data { slot, left } => {
                let slot = slot_of(slot)?;
                let is_waiting = slot.stage == Stage::Waiting && slot.in_capsule;
                let is_stage = is_waiting || slot.stage == Stage::Receiving && !slot.is_asking;
                ensure(is_stage && slot.op.takes_data(), "the slot of data")?;
                ensure(left > 0 && left <= slot.asked - slot.received, "the length of data")
            }
            Incoming::Ranges { slot, left } => {
                let slot = slot_of(slot)?;
                let is_list = slot.stage == Stage::Receiving && slot.op == Op::Discard;
                let end = u64::from(slot.received) + u64::from(left);
                let fits = left > 0 && end <= (MAX_RANGES * RANGE_BYTES) as u64;
                ensure(is_list && fits, "a list of ranges")
            }
            Incoming::Digest { slot: None } => {
                ensure(self.phase == Phase::Initialized, "a digest of Connect")
            }
            Incoming::Digest { slot: Some(slot) } => {
                let slot = slot_of(slot)?;
                ensure(slot.stage == Stage::Receiving && !slot.is_asking, "a digest's slot")?;
                ensure(self.has_data_digest(), "a digest that was not agreed upon")
            }
        }
    }
}
