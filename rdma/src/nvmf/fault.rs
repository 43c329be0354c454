//! What a peer can do wrong on the level of PDUs. Each ends the connection.

/// A violation of the transport's rules, or the peer's claim of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A PDU type that does not exist, or not in this direction.
    PduType,
    /// A PDU before its turn, or an initialization twice.
    PduSequence,
    /// A header length that the PDU type does not have.
    HeaderLength,
    /// A data offset inside the header, behind the PDU's end, or unaligned.
    DataPlacement,
    /// A PDU length that does not fit its header and data.
    PduLength,
    /// A digest that was not agreed upon, or one missing that was.
    Digest,
    /// A header that does not match its digest.
    HeaderDigest,
    /// A digest that this end requires and the peer did not ask for or agree to.
    DigestRequired,
    /// A PDU format version that does not exist.
    Version,
    /// A value in an initialization PDU that is out of its range.
    Parameter,
    /// More commands outstanding than the queue has entries.
    QueueOverrun,
    /// A command identifier that is not outstanding.
    UnknownCommand,
    /// A transfer tag that was not given out.
    UnknownTransfer,
    /// Data for a command that transfers none in this direction.
    DataDirection,
    /// Data that leaves the command's data or the range asked for.
    DataRange,
    /// Data that does not follow what came before.
    DataOrder,
    /// More data in a PDU than the receiver takes.
    DataLimit,
    /// More requests for data outstanding than allowed.
    R2tLimit,
    /// Success without all of the command's data.
    ShortData,
    /// The peer ended the connection with a TermReq of its own.
    Terminated,
}

/// Fatal error status values: TCP 3.6.2.2 (figure "Fatal Error Status").
mod fes {
    pub const INVALID_FIELD: u16 = 1;
    pub const SEQUENCE: u16 = 2;
    pub const HEADER_DIGEST: u16 = 3;
    pub const OUT_OF_RANGE: u16 = 4;
    pub const LIMIT: u16 = 5;
    pub const UNSUPPORTED: u16 = 6;
}

impl Fault {
    /// Every fault, in the order of their discriminants.
    pub const ALL: &[Fault] = &[
        Fault::PduType,
        Fault::PduSequence,
        Fault::HeaderLength,
        Fault::DataPlacement,
        Fault::PduLength,
        Fault::Digest,
        Fault::HeaderDigest,
        Fault::DigestRequired,
        Fault::Version,
        Fault::Parameter,
        Fault::QueueOverrun,
        Fault::UnknownCommand,
        Fault::UnknownTransfer,
        Fault::DataDirection,
        Fault::DataRange,
        Fault::DataOrder,
        Fault::DataLimit,
        Fault::R2tLimit,
        Fault::ShortData,
        Fault::Terminated,
    ];

    /// The name in counters and log lines.
    pub fn name(self) -> &'static str {
        match self {
            Fault::PduType => "pdu_type",
            Fault::PduSequence => "pdu_sequence",
            Fault::HeaderLength => "header_length",
            Fault::DataPlacement => "data_placement",
            Fault::PduLength => "pdu_length",
            Fault::Digest => "digest",
            Fault::HeaderDigest => "header_digest",
            Fault::DigestRequired => "digest_required",
            Fault::Version => "version",
            Fault::Parameter => "parameter",
            Fault::QueueOverrun => "queue_overrun",
            Fault::UnknownCommand => "unknown_command",
            Fault::UnknownTransfer => "unknown_transfer",
            Fault::DataDirection => "data_direction",
            Fault::DataRange => "data_range",
            Fault::DataOrder => "data_order",
            Fault::DataLimit => "data_limit",
            Fault::R2tLimit => "r2t_limit",
            Fault::ShortData => "short_data",
            Fault::Terminated => "terminated",
        }
    }

    /// Fatal error status and field error information (the offset of the offending header field)
    /// of the TermReq that answers it; `None`: a TermReq is not answered.
    pub(crate) fn term(self) -> Option<(u16, u32)> {
        Some(match self {
            Fault::PduType => (fes::INVALID_FIELD, 0),
            Fault::Digest => (fes::INVALID_FIELD, 1),
            Fault::HeaderDigest => (fes::HEADER_DIGEST, 0),
            Fault::DigestRequired => (fes::UNSUPPORTED, 11),
            Fault::HeaderLength => (fes::INVALID_FIELD, 2),
            Fault::DataPlacement => (fes::INVALID_FIELD, 3),
            Fault::PduLength => (fes::INVALID_FIELD, 4),
            Fault::UnknownCommand | Fault::DataDirection => (fes::INVALID_FIELD, 8),
            Fault::UnknownTransfer | Fault::Parameter => (fes::INVALID_FIELD, 10),
            Fault::PduSequence | Fault::QueueOverrun | Fault::DataOrder | Fault::ShortData => {
                (fes::SEQUENCE, 0)
            }
            Fault::DataRange => (fes::OUT_OF_RANGE, 0),
            Fault::DataLimit | Fault::R2tLimit => (fes::LIMIT, 0),
            Fault::Version => (fes::UNSUPPORTED, 8),
            Fault::Terminated => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_complete_and_the_names_differ() {
        let names: std::collections::BTreeSet<_> = Fault::ALL.iter().map(|f| f.name()).collect();
        assert_eq!(names.len(), Fault::ALL.len());
        for (index, fault) in Fault::ALL.iter().enumerate() {
            assert_eq!(*fault as usize, index);
            assert_eq!(fault.term().is_none(), *fault == Fault::Terminated);
        }
    }
}
