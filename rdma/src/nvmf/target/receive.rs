//! Where received bytes go: headers to be dispatched, data in place and its digests, lists.

use super::{CONNECT_BYTES, Incoming, Stage, Subsystem, Target};
use crate::nvmf::outbox::{Entry, Payload};
use crate::nvmf::pdu::Header;
use crate::nvmf::{Fault, Op, StatusCode};

impl Target {
    /// `bytes` of the data that [`wants`](Self::wants) named are in place.
    ///
    /// # Panics
    /// When data digests were agreed upon: use [`placed_copy`](Self::placed_copy).
    pub fn placed(&mut self, bytes: u32, subsystem: &Subsystem) {
        assert!(!self.has_data_digest(), "data with a digest is shown");
        self.advance(bytes, subsystem);
    }

    /// The data that [`wants`](Self::wants) named began with `data`, which is in place.
    pub fn placed_copy(&mut self, data: &[u8], subsystem: &Subsystem) {
        if self.has_data_digest() {
            self.check.data(data);
        }
        self.advance(data.len() as u32, subsystem);
    }

    fn advance(&mut self, bytes: u32, subsystem: &Subsystem) {
        let Incoming::Data { slot, left } = &mut self.incoming else { return };
        debug_assert!(bytes <= *left);
        *left -= bytes;
        let (slot, left) = (*slot, *left);
        self.slots[usize::from(slot)].received += bytes;
        if left > 0 {
            return;
        }
        if self.has_data_digest() {
            self.incoming = Incoming::Digest { slot: Some(slot) };
        } else {
            self.incoming = Incoming::Header;
            self.go_on(slot, subsystem);
        }
    }

    /// The data of a PDU has come: the command is ready, or more is asked for.
    fn go_on(&mut self, slot: u16, subsystem: &Subsystem) {
        let state = &mut self.slots[usize::from(slot)];
        let is_whole = state.received == state.bytes;
        if state.received < state.asked {
            return;
        }
        if is_whole || state.is_corrupt {
            self.asking -= u16::from(!state.in_capsule);
        }
        if state.is_corrupt {
            // The host sends no more of it: nothing is outstanding (TCP 3.3.1.2).
            state.stage = Stage::Responding;
            let cid = state.cid;
            let response = self.cqe(cid, StatusCode::TRANSIENT_TRANSPORT, 0);
            let header = Header::response(response, self.format);
            self.outbox.push(Entry::new(&header, Payload::None, Some(slot)));
        } else if is_whole {
            state.stage = Stage::Ready;
            self.ready.push_back(slot);
        } else {
            self.ask(slot, subsystem.limits.r2t_bytes);
        }
    }

    /// Takes bytes of a data digest.
    fn digest(
        &mut self,
        now_ns: u64,
        bytes: &[u8],
        slot: Option<u16>,
        subsystem: &mut Subsystem,
    ) -> usize {
        let (used, matches) = self.check.take(bytes);
        let Some(matches) = matches else { return used };
        self.incoming = Incoming::Header;
        self.digest_errors += u32::from(!matches);
        match slot {
            Some(slot) => {
                let state = &mut self.slots[usize::from(slot)];
                state.is_corrupt |= !matches;
                match state.op {
                    Op::Discard => self.begin_list(slot, subsystem),
                    _ => self.go_on(slot, subsystem),
                }
            }
            None if matches => self.finish_connect(now_ns, subsystem),
            None => self.respond(self.connect.cid(), StatusCode::TRANSIENT_TRANSPORT, 0),
        }
        used
    }

    pub(super) fn step(
        &mut self,
        now_ns: u64,
        bytes: &[u8],
        subsystem: &mut Subsystem,
    ) -> Result<usize, Fault> {
        if self.pad > 0 {
            let used = bytes.len().min(self.pad as usize);
            self.pad -= used as u32;
            return Ok(used);
        }
        match &mut self.incoming {
            Incoming::Header => {
                let (used, header) = self.assembly.take(bytes);
                if let Some(header) = header? {
                    self.dispatch(now_ns, &header, subsystem)?;
                }
                Ok(used)
            }
            Incoming::Discard { left } => {
                let used = bytes.len().min(*left as usize);
                *left -= used as u32;
                if *left == 0 {
                    self.incoming = Incoming::Header;
                }
                Ok(used)
            }
            Incoming::Connect { at } => {
                let start = *at as usize;
                let used = bytes.len().min(CONNECT_BYTES - start);
                self.page[start..start + used].copy_from_slice(&bytes[..used]);
                *at += used as u32;
                let is_whole = start + used == CONNECT_BYTES;
                if self.has_data_digest() {
                    self.check.data(&bytes[..used]);
                    if is_whole {
                        self.incoming = Incoming::Digest { slot: None };
                    }
                } else if is_whole {
                    self.incoming = Incoming::Header;
                    self.finish_connect(now_ns, subsystem);
                }
                Ok(used)
            }
            Incoming::Ranges { slot, left } => {
                let (slot, left) = (*slot, *left);
                let used = bytes.len().min(left as usize);
                self.list(&bytes[..used], slot, left, subsystem);
                Ok(used)
            }
            Incoming::Digest { slot } => {
                let slot = *slot;
                Ok(self.digest(now_ns, bytes, slot, subsystem))
            }
            Incoming::Data { .. } => Ok(0),
        }
    }
}
