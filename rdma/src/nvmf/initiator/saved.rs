//! A queue as plain data.

use super::{
    ControlEnd, Direction, Ended, IDENTIFY_BYTES, Incoming, MAX_DEPTH, Queue, QueueConfig, Slot,
    State as QueueState, TERM_DATA_BYTES,
};
use crate::nvmf::capsule::RANGE_BYTES;
use crate::nvmf::outbox::Outbox;
use crate::nvmf::pdu::MIN_H2C_DATA_BYTES;
use crate::nvmf::state::{self, Kind, LoadError, Reader, State, ensure, state_enum, state_struct};

const QUEUE: &Kind = b"obinit\0\x01";

state_struct!(QueueConfig { queue, depth, keep_alive_ms, in_capsule_bytes, nsid, digests, names });
state_enum!(QueueState {
    0 => Connecting, 1 => Ready { controller }, 2 => Refused(status), 3 => Failed(fault),
});
state_enum!(Direction { 0 => None, 1 => In, 2 => Out });
state_enum!(Incoming {
    0 => Header, 1 => Data { slot, pad, left, flags }, 2 => Digest { slot, flags },
});
state_struct!(ControlEnd { status, result });
state_struct!(Ended { slot, status });
state_struct!(Slot {
    live,
    direction,
    generation,
    bytes,
    moved,
    list,
    transfer,
    sending,
    is_corrupt,
    end,
});

impl Queue {
    /// The queue's state, between PDUs or in one, as plain data; not the commands' data.
    pub fn save(&self) -> Vec<u8> {
        state::save(QUEUE, |out| self.write(out))
    }

    /// The same as a part of something larger.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        self.config.save(out);
        (self.state, self.is_initialized).save(out);
        (self.format, self.max_h2c_bytes).save(out);
        self.assembly.save(out);
        (self.incoming, self.check).save(out);
        self.digest_errors.save(out);
        self.outbox.save(out);
        self.slots.to_vec().save(out);
        self.free.save(out);
        self.ended.save(out);
        self.control_end.save(out);
        out.extend_from_slice(&self.page);
    }

    /// The queue that was saved. The caller still has the data of its commands.
    pub fn load(bytes: &[u8]) -> Result<Queue, LoadError> {
        state::load(QUEUE, bytes, Queue::read)
    }

    pub(super) fn read(from: &mut Reader) -> Result<Queue, LoadError> {
        let config = QueueConfig::load(from)?;
        ensure((1..=MAX_DEPTH).contains(&config.depth), "depth")?;
        let mut it = Queue::new(config);
        (it.state, it.is_initialized) = State::load(from)?;
        (it.format, it.max_h2c_bytes) = State::load(from)?;
        it.assembly = State::load(from)?;
        (it.incoming, it.check) = State::load(from)?;
        it.digest_errors = State::load(from)?;
        let page_bytes = IDENTIFY_BYTES + TERM_DATA_BYTES;
        it.outbox = Outbox::load(from, it.slots.len() + 2, page_bytes, it.format.digests)?;
        let slots = Vec::<Slot>::load(from)?;
        ensure(slots.len() == it.slots.len(), "slots")?;
        it.slots = slots.into();
        it.free.clear();
        it.free.extend(Vec::<u16>::load(from)?);
        it.ended.extend(Vec::<Ended>::load(from)?);
        it.control_end = State::load(from)?;
        from.bytes(&mut it.page)?;
        it.check_queue()?;
        it.check_slots()?;
        it.check_outbox()?;
        it.check_incoming()?;
        Ok(it)
    }

    fn check_queue(&self) -> Result<(), LoadError> {
        self.assembly.check()?;
        let has_agreed = self.assembly.digests == self.format.digests;
        let is_taken = self.control_end.is_some() && self.is_control_in_flight();
        ensure(!is_taken, "the end of a control command that is in flight")?;
        ensure(has_agreed && self.config.digests.contain(self.format.digests), "digests")?;
        let is_ready = matches!(self.state, QueueState::Ready { .. } | QueueState::Refused(_));
        ensure(self.is_initialized || !is_ready, "a queue before its connection")?;
        let has_limit = self.max_h2c_bytes >= MIN_H2C_DATA_BYTES;
        ensure(has_limit || !self.is_initialized, "MAXH2CDATA")
    }

    /// A slot is free, in use, or has ended; its counts fit each other.
    fn check_slots(&self) -> Result<(), LoadError> {
        let depth = self.config.depth;
        let mut seen = vec![0_u8; self.slots.len()];
        for slot in self.free.iter().copied().chain(self.ended.iter().map(|ended| ended.slot)) {
            ensure(slot < depth, "a list of slots")?;
            seen[usize::from(slot)] += 1;
        }
        for (number, (slot, seen)) in self.slots.iter().zip(seen).enumerate() {
            let is_control = number == usize::from(depth);
            ensure(
                is_control || u8::from(!slot.live) == seen,
                "a slot is listed twice, or nowhere",
            )?;
            ensure(!slot.live || slot.moved <= slot.bytes, "a slot's counts")?;
            let has_page = slot.bytes as usize <= IDENTIFY_BYTES;
            ensure(!is_control || has_page && slot.list.is_none(), "the control slot")?;
            let is_list = slot.bytes as usize == RANGE_BYTES && slot.direction == Direction::Out;
            ensure(!slot.live || slot.list.is_none() || is_list, "a list")?;
            if let Some(transfer) = slot.transfer {
                let end = u64::from(transfer.offset) + u64::from(transfer.len);
                let is_part = transfer.len > 0 && end <= u64::from(slot.bytes);
                ensure(slot.live && slot.sending && is_part && slot.list.is_none(), "a transfer")?;
            }
            ensure(slot.live || !slot.sending && slot.end.is_none(), "a slot that is not in use")?;
            ensure(slot.end.is_none() || slot.sending, "a slot's end")?;
        }
        Ok(())
    }

    /// Every PDU that belongs to a slot is the only one, and its slot waits for it.
    fn check_outbox(&self) -> Result<(), LoadError> {
        let mut seen = vec![false; self.slots.len()];
        let mut loose = 0;
        for entry in self.outbox.entries() {
            let Some(number) = entry.slot else {
                loose += 1;
                continue;
            };
            let slot = self.slots.get(usize::from(number));
            let slot = slot.ok_or(LoadError::Invalid("a PDU's slot"))?;
            let is_first = !std::mem::replace(&mut seen[usize::from(number)], true);
            ensure(slot.sending && is_first && entry.is_within(slot.bytes), "a PDU's slot")?;
        }
        ensure(loose <= 1 || matches!(self.state, QueueState::Failed(_)), "PDUs of no command")?;
        let has_failed = matches!(self.state, QueueState::Failed(_));
        let is_sent = |(slot, seen): (&Slot, bool)| has_failed || seen || !slot.sending;
        ensure(self.slots.iter().zip(seen).all(is_sent), "a slot without its PDU")
    }

    fn check_incoming(&self) -> Result<(), LoadError> {
        let (slot, left) = match self.incoming {
            Incoming::Header => return Ok(()),
            Incoming::Data { slot, pad, left, .. } => {
                ensure(left > 0 && pad <= u32::from(u8::MAX), "the length of data")?;
                (slot, left)
            }
            Incoming::Digest { slot, .. } => {
                ensure(self.has_data_digest(), "a digest that was not agreed upon")?;
                (slot, 0)
            }
        };
        let slot = self.slots.get(usize::from(slot)).ok_or(LoadError::Invalid("data's slot"))?;
        let is_in_use = slot.live && slot.end.is_none() && slot.direction == Direction::In;
        ensure(is_in_use, "the slot of data")?;
        ensure(left <= slot.bytes - slot.moved, "the length of data")
    }
}
