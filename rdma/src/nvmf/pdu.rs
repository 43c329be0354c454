//! NVMe/TCP PDU headers (TCP 3.6): parsed from and emitted to bytes, little-endian. A PDU is a
//! header, its digest, padding, data, the data's digest; everything behind the header is the
//! engines' business. Digests are CRC-32C, little-endian (TCP 3.3.1); flags say which there are.

use super::Fault;
use super::bytes::{put_u16, put_u32, u16_at, u32_at};
use super::capsule::{CQE_BYTES, Cqe, SQE_BYTES, Sqe};

/// Bytes of the header that all PDUs begin with.
pub const COMMON_BYTES: usize = 8;
/// Bytes of the longest header.
pub const MAX_HEADER_BYTES: usize = 128;
/// Bytes of a capsule command's header.
pub const COMMAND_BYTES: usize = COMMON_BYTES + SQE_BYTES;
/// Bytes of a capsule response, and of the headers of data PDUs, R2T and TermReq.
pub const SHORT_BYTES: usize = 24;
/// The most bytes of a bad PDU's header that a TermReq repeats (TCP 3.6.2.2).
pub const TERM_DATA_BYTES: usize = 128;
/// The least MAXH2CDATA (TCP 3.6.2.3).
pub const MIN_H2C_DATA_BYTES: u32 = 4096;

/// Bytes of a digest.
pub const DIGEST_BYTES: usize = 4;

const HEADER_DIGEST: u8 = 1 << 0;
const DATA_DIGEST: u8 = 1 << 1;
/// No further data PDU follows for this transfer.
pub const LAST: u8 = 1 << 2;
/// The command has succeeded; no response capsule follows.
pub const SUCCESS: u8 = 1 << 3;

/// PDU types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Initialize connection request, host to controller.
    IcReq = 0,
    /// Initialize connection response, controller to host.
    IcResp = 1,
    /// Termination request, host to controller.
    HostTerm = 2,
    /// Termination request, controller to host.
    ControllerTerm = 3,
    /// Command capsule, host to controller.
    Command = 4,
    /// Response capsule, controller to host.
    Response = 5,
    /// Data, host to controller.
    HostData = 6,
    /// Data, controller to host.
    ControllerData = 7,
    /// Ready to transfer, controller to host.
    R2t = 9,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            0 => Kind::IcReq,
            1 => Kind::IcResp,
            2 => Kind::HostTerm,
            3 => Kind::ControllerTerm,
            4 => Kind::Command,
            5 => Kind::Response,
            6 => Kind::HostData,
            7 => Kind::ControllerData,
            9 => Kind::R2t,
            _ => return None,
        })
    }

    /// Bytes of this type's header.
    pub fn header_bytes(self) -> usize {
        match self {
            Kind::IcReq | Kind::IcResp => MAX_HEADER_BYTES,
            Kind::Command => COMMAND_BYTES,
            _ => SHORT_BYTES,
        }
    }

    /// Whether it carries digests once they are agreed upon.
    pub fn has_digests(self) -> bool {
        use Kind::{ControllerTerm, HostTerm, IcReq, IcResp};
        !matches!(self, IcReq | IcResp | HostTerm | ControllerTerm)
    }

    /// Whether hosts send it; otherwise controllers do.
    pub fn is_from_host(self) -> bool {
        matches!(self, Kind::IcReq | Kind::HostTerm | Kind::Command | Kind::HostData)
    }
}

/// Which digests a connection's PDUs carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// Behind every header but those that initialize and end the connection.
    pub header: bool,
    /// Behind all data but what a TermReq repeats.
    pub data: bool,
}

impl Digests {
    /// No digests.
    pub const NONE: Digests = Digests { header: false, data: false };
    /// Both digests.
    pub const BOTH: Digests = Digests { header: true, data: true };

    /// From the bits of an initialization PDU.
    pub fn from_bits(bits: u8) -> Digests {
        Digests { header: bits & HEADER_DIGEST != 0, data: bits & DATA_DIGEST != 0 }
    }

    /// The bits of an initialization PDU.
    pub fn bits(self) -> u8 {
        u8::from(self.header) | u8::from(self.data) << 1
    }

    /// Whether everything that `other` has is here too.
    pub fn contain(self, other: Digests) -> bool {
        self.bits() & other.bits() == other.bits()
    }
}

/// How the PDUs of one direction are laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Format {
    /// Alignment of data that the receiver asked for: (n + 1) × 4 bytes, n ≤ 31.
    pub alignment: u8,
    /// The digests agreed upon.
    pub digests: Digests,
}

impl Format {
    /// Data follows its header at once, without digests.
    pub const PLAIN: Format = Format { alignment: 0, digests: Digests::NONE };
}

/// The digest of `bytes`.
pub fn digest(bytes: &[u8]) -> [u8; DIGEST_BYTES] {
    crc32c::crc32c(bytes).to_le_bytes()
}

/// What all PDUs begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Common {
    /// The type.
    pub kind: Kind,
    /// [`LAST`], [`SUCCESS`].
    pub flags: u8,
    /// Where the data begins; 0 without data.
    pub data_offset: u8,
    /// Bytes of the whole PDU.
    pub pdu_bytes: u32,
}

impl Common {
    /// Checks everything that can be wrong by itself: type, lengths, placement. Whether the digests
    /// are those agreed upon says [`agrees_with`](Self::agrees_with).
    pub fn parse(bytes: &[u8; COMMON_BYTES]) -> Result<Common, Fault> {
        let kind = Kind::from_byte(bytes[0]).ok_or(Fault::PduType)?;
        let common =
            Common { kind, flags: bytes[1], data_offset: bytes[3], pdu_bytes: u32_at(bytes, 4) };
        let header_bytes = kind.header_bytes();
        if usize::from(bytes[2]) != header_bytes {
            return Err(Fault::HeaderLength);
        }
        let before_data = common.before_data_bytes();
        let Some(rest) = common.pdu_bytes.checked_sub(before_data) else {
            return Err(Fault::PduLength);
        };
        match kind {
            Kind::IcReq | Kind::IcResp | Kind::Response | Kind::R2t if rest != 0 => {
                return Err(Fault::PduLength);
            }
            Kind::HostTerm | Kind::ControllerTerm if rest > TERM_DATA_BYTES as u32 => {
                return Err(Fault::PduLength);
            }
            Kind::Command | Kind::HostData | Kind::ControllerData if rest != 0 => {
                let offset = u32::from(common.data_offset);
                let end = common.pdu_bytes - common.data_digest_bytes().min(rest);
                if offset < before_data || offset > end || !offset.is_multiple_of(4) {
                    return Err(Fault::DataPlacement);
                }
            }
            _ => {}
        }
        let has_digests = common.flags & (HEADER_DIGEST | DATA_DIGEST) != 0;
        let is_empty = common.data_bytes() == 0;
        if has_digests && !kind.has_digests() || common.digests().data && is_empty {
            return Err(Fault::Digest);
        }
        Ok(common)
    }

    /// The digests that this PDU has.
    pub fn digests(&self) -> Digests {
        if self.kind.has_digests() { Digests::from_bits(self.flags) } else { Digests::NONE }
    }

    /// Whether the digests are those that a connection agreed upon.
    pub fn agrees_with(&self, digests: Digests) -> bool {
        let Digests { header, data } = digests;
        let has_data = data && self.data_bytes() > 0;
        !self.kind.has_digests() || self.digests() == Digests { header, data: has_data }
    }

    /// Bytes of the header digest, 0 without.
    pub fn header_digest_bytes(&self) -> u32 {
        if self.digests().header { DIGEST_BYTES as u32 } else { 0 }
    }

    /// Bytes of the data digest, 0 without.
    pub fn data_digest_bytes(&self) -> u32 {
        if self.digests().data { DIGEST_BYTES as u32 } else { 0 }
    }

    /// Bytes of header and header digest.
    fn before_data_bytes(&self) -> u32 {
        self.kind.header_bytes() as u32 + self.header_digest_bytes()
    }

    /// Bytes of padding between header, or its digest, and data.
    pub fn pad_bytes(&self) -> u32 {
        let parts = self.before_data_bytes() + self.data_bytes() + self.data_digest_bytes();
        self.pdu_bytes - parts
    }

    /// Bytes of data.
    pub fn data_bytes(&self) -> u32 {
        let before_data = self.before_data_bytes();
        match self.kind {
            _ if self.pdu_bytes == before_data => 0,
            Kind::HostTerm | Kind::ControllerTerm => self.pdu_bytes - before_data,
            _ => {
                let end = self.pdu_bytes - self.data_digest_bytes().min(self.pdu_bytes);
                end.saturating_sub(u32::from(self.data_offset))
            }
        }
    }
}

/// What follows the common header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Initialize connection, request or response.
    Init(Init),
    /// Termination request.
    Term {
        /// Fatal error status.
        status: u16,
        /// Field error information.
        field: u32,
    },
    /// Command capsule.
    Command(Sqe),
    /// Response capsule.
    Response(Cqe),
    /// Data PDU of either direction, or R2T.
    Transfer(Transfer),
}

/// ICReq (host: HPDA, MAXR2T) and ICResp (controller: CPDA, MAXH2CDATA).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Init {
    /// PDU format version: 0.
    pub version: u16,
    /// Alignment that the sender wants for data in PDUs it receives: (n + 1) × 4 bytes, n ≤ 31.
    pub alignment: u8,
    /// Digests asked for or agreed to: bit 0 header, bit 1 data.
    pub digests: u8,
    /// ICReq: R2Ts outstanding per command, 0-based. ICResp: most data bytes per H2CData PDU.
    pub limit: u32,
}

/// One move of a command's data: what is sent, or asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The command's identifier.
    pub cid: u16,
    /// The controller's name for the transfer; 0 in C2HData.
    pub tag: u16,
    /// From where in the command's data.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
}

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What all PDUs begin with.
    pub common: Common,
    /// What follows.
    pub body: Body,
}

impl Header {
    /// The header in `bytes`, which is exactly as long as the type's header.
    pub fn parse(bytes: &[u8]) -> Result<Header, Fault> {
        let first = bytes.first_chunk().ok_or(Fault::HeaderLength)?;
        let common = Common::parse(first)?;
        if bytes.len() != common.kind.header_bytes() {
            return Err(Fault::HeaderLength);
        }
        let body = match common.kind {
            Kind::IcReq | Kind::IcResp => Body::Init(Init {
                version: u16_at(bytes, 8),
                alignment: bytes[10],
                digests: bytes[11],
                limit: u32_at(bytes, 12),
            }),
            Kind::HostTerm | Kind::ControllerTerm => {
                Body::Term { status: u16_at(bytes, 8), field: u32_at(bytes, 10) }
            }
            Kind::Command => Body::Command(Sqe(fixed(&bytes[COMMON_BYTES..]))),
            Kind::Response => Body::Response(Cqe::parse(&fixed(&bytes[COMMON_BYTES..]))),
            Kind::HostData | Kind::ControllerData | Kind::R2t => {
                let transfer = Transfer {
                    cid: u16_at(bytes, 8),
                    tag: u16_at(bytes, 10),
                    offset: u32_at(bytes, 12),
                    len: u32_at(bytes, 16),
                };
                if common.kind != Kind::R2t && transfer.len != common.data_bytes() {
                    return Err(Fault::PduLength);
                }
                Body::Transfer(transfer)
            }
        };
        Ok(Header { common, body })
    }

    /// Writes the header and returns its length in bytes; reserved bytes are zero.
    pub fn emit(&self, out: &mut [u8; MAX_HEADER_BYTES]) -> usize {
        let header_bytes = self.common.kind.header_bytes();
        out[..header_bytes].fill(0);
        out[0] = self.common.kind as u8;
        out[1] = self.common.flags;
        out[2] = header_bytes as u8;
        out[3] = self.common.data_offset;
        put_u32(out, 4, self.common.pdu_bytes);
        match &self.body {
            Body::Init(init) => {
                put_u16(out, 8, init.version);
                out[10] = init.alignment;
                out[11] = init.digests;
                put_u32(out, 12, init.limit);
            }
            Body::Term { status, field } => {
                put_u16(out, 8, *status);
                put_u32(out, 10, *field);
            }
            Body::Command(sqe) => out[COMMON_BYTES..COMMAND_BYTES].copy_from_slice(&sqe.0),
            Body::Response(cqe) => {
                out[COMMON_BYTES..COMMON_BYTES + CQE_BYTES].copy_from_slice(&cqe.emit());
            }
            Body::Transfer(transfer) => {
                put_u16(out, 8, transfer.cid);
                put_u16(out, 10, transfer.tag);
                put_u32(out, 12, transfer.offset);
                put_u32(out, 16, transfer.len);
            }
        }
        header_bytes
    }

    /// ICReq or ICResp.
    pub fn init(kind: Kind, init: Init) -> Header {
        Header::new(kind, 0, 0, Format::PLAIN, Body::Init(init))
    }

    /// A command whose capsule carries `data_bytes` of data.
    pub fn command(sqe: Sqe, data_bytes: u32, format: Format) -> Header {
        Header::new(Kind::Command, 0, data_bytes, format, Body::Command(sqe))
    }

    /// A response.
    pub fn response(cqe: Cqe, format: Format) -> Header {
        Header::new(Kind::Response, 0, 0, format, Body::Response(cqe))
    }

    /// A request for data.
    pub fn r2t(transfer: Transfer, format: Format) -> Header {
        Header::new(Kind::R2t, 0, 0, format, Body::Transfer(transfer))
    }

    /// A data PDU; `kind` tells the direction.
    pub fn data(kind: Kind, flags: u8, transfer: Transfer, format: Format) -> Header {
        Header::new(kind, flags, transfer.len, format, Body::Transfer(transfer))
    }

    /// A termination request that repeats `data_bytes` of the offending header.
    pub fn term(kind: Kind, status: u16, field: u32, data_bytes: u32) -> Header {
        let mut header = Header::new(kind, 0, 0, Format::PLAIN, Body::Term { status, field });
        header.common.pdu_bytes += data_bytes;
        header
    }

    fn new(kind: Kind, flags: u8, data_bytes: u32, format: Format, body: Body) -> Header {
        let Format { alignment, digests: Digests { header, data } } = format;
        let digests = Digests { header, data: data && data_bytes > 0 };
        let flags = flags | digests.bits();
        let mut common = Common { kind, flags, data_offset: 0, pdu_bytes: 0 };
        common.pdu_bytes = common.before_data_bytes();
        if data_bytes > 0 {
            let unit = (u32::from(alignment) + 1) * 4;
            let offset = common.pdu_bytes.next_multiple_of(unit);
            common.data_offset = offset as u8;
            common.pdu_bytes = offset + data_bytes + common.data_digest_bytes();
        }
        Header { common, body }
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[..N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(header: &Header) -> Vec<u8> {
        let mut out = [0xee; MAX_HEADER_BYTES];
        let len = header.emit(&mut out);
        out[..len].to_vec()
    }

    /// What is parsed is emitted again as the same value; returns it.
    fn check(bytes: &[u8]) -> Result<Header, Fault> {
        let header = Header::parse(bytes)?;
        assert_eq!(Header::parse(&bytes_of(&header)), Ok(header));
        let Common { pdu_bytes, .. } = header.common;
        let parts = header.common.pad_bytes() + header.common.data_bytes();
        let digests = header.common.header_digest_bytes() + header.common.data_digest_bytes();
        assert_eq!(parts + digests + bytes.len() as u32, pdu_bytes);
        Ok(header)
    }

    #[test]
    fn every_kind_survives_the_wire() {
        let transfer = Transfer { cid: 1, tag: 2, offset: 3 << 20, len: 4096 };
        let cqe =
            Cqe { result: 1, sq_head: 2, sq_id: 3, cid: 4, status: crate::nvmf::StatusCode(5) };
        let init = Init { version: 0, alignment: 31, digests: 3, limit: 1 << 20 };
        let plain = Format::PLAIN;
        let wide = Format { alignment: 31, digests: Digests::NONE };
        let both = Format { alignment: 0, digests: Digests::BOTH };
        let wide_both = Format { alignment: 31, digests: Digests::BOTH };
        let only = Format { alignment: 0, digests: Digests { header: false, data: true } };
        for (header, data, pad) in [
            (Header::init(Kind::IcReq, init), 0, 0),
            (Header::init(Kind::IcResp, init), 0, 0),
            (Header::command(Sqe::new(1, 2, 3), 0, wide), 0, 0),
            (Header::command(Sqe::new(1, 2, 3), 512, plain), 512, 0),
            (Header::command(Sqe::new(1, 2, 3), 512, wide), 512, 56),
            (Header::command(Sqe::new(1, 2, 3), 512, wide_both), 512, 52),
            (Header::command(Sqe::new(1, 2, 3), 512, both), 512, 0),
            (Header::command(Sqe::new(1, 2, 3), 0, both), 0, 0),
            (Header::response(cqe, both), 0, 0),
            (Header::r2t(transfer, both), 0, 0),
            (Header::data(Kind::HostData, LAST, transfer, only), 4096, 0),
            (Header::response(cqe, plain), 0, 0),
            (Header::r2t(transfer, plain), 0, 0),
            (Header::data(Kind::HostData, LAST, transfer, plain), 4096, 0),
            (Header::data(Kind::ControllerData, LAST | SUCCESS, transfer, wide), 4096, 104),
            (Header::term(Kind::HostTerm, 1, 2, 24), 24, 0),
            (Header::term(Kind::ControllerTerm, 1, 0x0102_0304, 128), 128, 0),
        ] {
            assert_eq!(check(&bytes_of(&header)), Ok(header));
            assert_eq!((header.common.data_bytes(), header.common.pad_bytes()), (data, pad));
        }
    }

    #[test]
    fn each_wrong_field_has_its_name() {
        let transfer = Transfer { cid: 1, tag: 2, offset: 0, len: 512 };
        let good = bytes_of(&Header::data(Kind::HostData, LAST, transfer, Format::PLAIN));
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            check(&bytes)
        };
        assert!(check(&good).is_ok());
        assert_eq!(with(0, 8), Err(Fault::PduType));
        assert_eq!(with(0, 10), Err(Fault::PduType));
        // A flag without the digest's four bytes.
        assert_eq!(with(1, LAST | HEADER_DIGEST), Err(Fault::DataPlacement));
        assert_eq!(with(1, LAST | DATA_DIGEST), Err(Fault::PduLength));
        assert_eq!(with(2, 23), Err(Fault::HeaderLength));
        assert_eq!(with(3, 20), Err(Fault::DataPlacement));
        assert_eq!(with(3, 26), Err(Fault::DataPlacement));
        assert_eq!(with(3, 28), Err(Fault::PduLength));
        assert_eq!(with(5, 3), Err(Fault::PduLength));
        assert_eq!(with(16, 1), Err(Fault::PduLength));
        let mut short = good;
        short[4..8].copy_from_slice(&23u32.to_le_bytes());
        assert_eq!(check(&short), Err(Fault::PduLength));
        for (rest, fault) in [(128, None), (129, Some(Fault::PduLength))] {
            let term = bytes_of(&Header::term(Kind::HostTerm, 1, 2, rest));
            assert_eq!(check(&term).err(), fault);
        }
    }

    #[test]
    fn digests_stand_where_they_may_and_agree_or_do_not() {
        let mut init = bytes_of(&Header::term(Kind::HostTerm, 1, 2, 0));
        init[1] = HEADER_DIGEST;
        assert_eq!(check(&init), Err(Fault::Digest));
        let both = Format { alignment: 0, digests: Digests::BOTH };
        let with_data = Header::command(Sqe::new(1, 2, 3), 8, both).common;
        let without = Header::command(Sqe::new(1, 2, 3), 0, both).common;
        assert!(with_data.agrees_with(Digests::BOTH) && without.agrees_with(Digests::BOTH));
        let header = Digests { header: true, data: false };
        assert!(!with_data.agrees_with(header) && without.agrees_with(header));
        assert!(!without.agrees_with(Digests::NONE));
        assert!(Header::term(Kind::HostTerm, 1, 2, 0).common.agrees_with(Digests::BOTH));
        // A data digest without data.
        let mut bytes = bytes_of(&Header::command(Sqe::new(1, 2, 3), 0, Format::PLAIN));
        bytes[1] = DATA_DIGEST;
        assert_eq!(check(&bytes), Err(Fault::Digest));
        (bytes[3], bytes[4]) = (72, 76);
        assert_eq!(check(&bytes), Err(Fault::Digest));
        assert_eq!(digest(b"123456789"), 0xe306_9283_u32.to_le_bytes());
    }

    #[test]
    fn any_bytes_parse_or_name_what_is_wrong() {
        bolero::check!().with_type::<(u8, Vec<u8>)>().for_each(|(kind, bytes)| {
            let mut bytes = bytes.clone();
            if let Some(kind) = Kind::from_byte(*kind) {
                bytes.resize(kind.header_bytes(), 0);
                bytes[0] = kind as u8;
                bytes[2] = kind.header_bytes() as u8;
            }
            let _ = check(&bytes);
        });
    }
}
