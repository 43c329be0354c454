//! NVMe over Fabrics, bound to TCP: both ends of a queue's connection as sans-IO engines.
//!
//! An engine is plain data. It is told the bytes that arrived and the time, and says
//! - where the next received bytes belong ([`Want`]): to the engine, or straight to the place of
//!   a command's data;
//! - what is to be sent next, as a list of [`Piece`]s: the engine's own bytes, or a part of a
//!   command's data, which never passes through the engine.
//!
//! Nothing allocates after construction. What a peer can do wrong ends in a [`Fault`] (the
//! connection ends, with a TermReq that names it) or in a [`StatusCode`] (the command ends).
//!
//! Data passes by the engine only where data digests were agreed upon: it is then shown what was
//! received (`placed_copy`) and copies what is sent (`fill`, `sent_copy`). A header that does not
//! match its digest is a fault; data that does not match ends its command with
//! [`StatusCode::TRANSIENT_TRANSPORT`].
//!
//! Sources: NVM Express Base 2.0 (below "Base"), NVMe over Fabrics 1.1 ("Fabrics"), NVMe/TCP
//! Transport 1.0 ("TCP"), NVM Command Set 1.0 ("NVM").

mod assembly;
mod bytes;
pub mod capsule;
mod digest;
pub mod discovery;
pub mod fabrics;
mod fault;
pub mod fence;
pub mod identify;
pub mod initiator;
mod outbox;
pub mod pdu;
mod state;
pub mod target;

pub use capsule::StatusCode;
pub use fabrics::Nqn;
pub use fault::Fault;
pub use outbox::{Piece, Pieces};
pub use pdu::Digests;
pub use state::LoadError;

/// Where the next received bytes belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// To the engine: pass them to `receive`.
    Engine,
    /// To the data of the command in `slot`, from `offset`, at most `len` bytes; then call
    /// `placed`, or `placed_copy` where data digests were agreed upon.
    Data {
        /// The command.
        slot: u16,
        /// Where in its data.
        offset: u32,
        /// How many bytes belong there.
        len: u32,
    },
    /// Nowhere yet: something has to be sent or granted first, or the connection has failed.
    Nothing,
}

/// What an I/O command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// From the namespace to the host.
    Read,
    /// From the host to the namespace.
    Write,
    /// Make what has ended durable.
    Flush,
    /// The range is not needed any more (Dataset Management, deallocate). Without data.
    Discard,
    /// The range reads as zeros from now on. Without data.
    WriteZeroes,
    /// Whether the namespace holds the host's data; it fails with
    /// [`StatusCode::COMPARE_FAILURE`] where not.
    Compare,
}

impl Op {
    /// Whether it has data, from the host.
    pub fn takes_data(self) -> bool {
        matches!(self, Op::Write | Op::Compare)
    }

    /// Whether it has a range and no data.
    pub fn is_ranged(self) -> bool {
        matches!(self, Op::Discard | Op::WriteZeroes)
    }

    /// Whether it changes the namespace.
    pub fn is_change(self) -> bool {
        matches!(self, Op::Write | Op::Discard | Op::WriteZeroes)
    }
}

/// The queue's slots are used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;
