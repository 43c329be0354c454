//! Command capsules' submission queue entries and response capsules' completion queue entries:
//! fields, opcodes, status codes (Base 3.3.3, 4.2; Fabrics 3).

use super::bytes::{put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};

/// Bytes of a submission queue entry.
pub const SQE_BYTES: usize = 64;
/// Bytes of a completion queue entry.
pub const CQE_BYTES: usize = 16;
/// Names every namespace at once (Base 3.2.1.2).
pub const ALL_NAMESPACES: u32 = 0xffff_ffff;

/// Opcodes of the admin command set (Base 5) and of Fabrics.
pub mod admin {
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT: u8 = 0x0c;
    /// Keep Alive.
    pub const KEEP_ALIVE: u8 = 0x18;
    /// Any Fabrics command, on every kind of queue.
    pub const FABRICS: u8 = 0x7f;
    /// Fence, of our own: see [`fence`](crate::nvmf::fence).
    pub const FENCE: u8 = 0xc1;
}

/// Opcodes of the NVM command set (NVM 3).
pub mod nvm {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Compare.
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET: u8 = 0x09;
}

/// Feature identifiers (Base 5.27.1).
pub mod feature {
    /// Arbitration.
    pub const ARBITRATION: u8 = 0x01;
    /// Power Management.
    pub const POWER: u8 = 0x02;
    /// Temperature Threshold.
    pub const TEMPERATURE: u8 = 0x04;
    /// Error Recovery.
    pub const ERROR_RECOVERY: u8 = 0x05;
    /// Write Atomicity Normal.
    pub const WRITE_ATOMICITY: u8 = 0x0a;
    /// Host Identifier.
    pub const HOST_ID: u8 = 0x81;
    /// Volatile Write Cache.
    pub const WRITE_CACHE: u8 = 0x06;
    /// Number of Queues.
    pub const QUEUES: u8 = 0x07;
    /// Asynchronous Event Configuration.
    pub const ASYNC_EVENTS: u8 = 0x0b;
    /// Keep Alive Timer.
    pub const KEEP_ALIVE: u8 = 0x0f;
}

/// A submission queue entry as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sqe(pub [u8; SQE_BYTES]);

/// Commands travel with SGLs: PSDT = 01b (Fabrics 2.3).
const PSDT_SGL: u8 = 0x40;
/// SGL descriptor identifier: data block, offset into the capsule (Fabrics 2.3.1).
const SGL_IN_CAPSULE: u8 = 0x01;
/// SGL descriptor identifier: transport data block, transport-specific (TCP 3.5).
const SGL_TRANSPORT: u8 = 0x5a;

/// Where a command's SGL says its data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sgl {
    /// In the capsule, from `offset` behind the entry.
    InCapsule {
        /// From the start of the capsule's data.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// In data PDUs.
    Transport {
        /// Bytes.
        len: u32,
    },
    /// A descriptor that this transport does not have.
    Unknown,
}

impl Sqe {
    /// An entry with this opcode that transfers no data.
    pub fn new(opcode: u8, cid: u16, nsid: u32) -> Sqe {
        let mut sqe = Sqe([0; SQE_BYTES]);
        sqe.0[0] = opcode;
        sqe.0[1] = PSDT_SGL;
        put_u16(&mut sqe.0, 2, cid);
        put_u32(&mut sqe.0, 4, nsid);
        sqe.set_sgl(Sgl::Transport { len: 0 });
        sqe
    }

    /// Says where the data is.
    pub fn set_sgl(&mut self, sgl: Sgl) {
        let (offset, len, kind) = match sgl {
            Sgl::InCapsule { offset, len } => (offset, len, SGL_IN_CAPSULE),
            Sgl::Transport { len } => (0, len, SGL_TRANSPORT),
            Sgl::Unknown => (0, 0, 0xff),
        };
        put_u64(&mut self.0, 24, offset);
        put_u32(&mut self.0, 32, len);
        self.0[39] = kind;
    }

    /// Where the data is.
    pub fn sgl(&self) -> Sgl {
        let len = u32_at(&self.0, 32);
        match self.0[39] {
            SGL_IN_CAPSULE => Sgl::InCapsule { offset: u64_at(&self.0, 24), len },
            SGL_TRANSPORT => Sgl::Transport { len },
            _ => Sgl::Unknown,
        }
    }

    /// The opcode.
    pub fn opcode(&self) -> u8 {
        self.0[0]
    }

    /// Whether the flags are those of a fabrics capsule: not fused, with an SGL.
    pub fn has_plain_flags(&self) -> bool {
        self.0[1] == PSDT_SGL
    }

    /// The command identifier.
    pub fn cid(&self) -> u16 {
        u16_at(&self.0, 2)
    }

    /// The namespace identifier; of a Fabrics command: see [`fctype`](Self::fctype).
    pub fn nsid(&self) -> u32 {
        u32_at(&self.0, 4)
    }

    /// The Fabrics command type (byte 4).
    pub fn fctype(&self) -> u8 {
        self.0[4]
    }

    /// Command dword 10 to 15.
    pub fn cdw(&self, number: usize) -> u32 {
        u32_at(&self.0, number * 4)
    }

    /// Sets command dword 10 to 15.
    pub fn set_cdw(&mut self, number: usize, value: u32) {
        put_u32(&mut self.0, number * 4, value);
    }

    /// A read's or write's first block.
    pub fn lba(&self) -> u64 {
        u64_at(&self.0, 40)
    }

    /// A read's or write's length in blocks, 1 to 65536 (the field is 0-based).
    pub fn blocks(&self) -> u32 {
        u32::from(u16_at(&self.0, 48)) + 1
    }

    /// Sets a read's or write's range; `blocks` is 1 to 65536.
    pub fn set_range(&mut self, lba: u64, blocks: u32) {
        debug_assert!((1..=65536).contains(&blocks));
        put_u64(&mut self.0, 40, lba);
        put_u16(&mut self.0, 48, (blocks - 1) as u16);
    }

    /// Whether the data must be durable when the command ends (FUA, NVM 3.2.6).
    pub fn force_unit_access(&self) -> bool {
        self.cdw(12) & 1 << 30 != 0
    }
}

/// Bytes of one range of Dataset Management.
pub const RANGE_BYTES: usize = 16;

/// A range of Dataset Management (NVM 3.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First block.
    pub lba: u64,
    /// Blocks; 0: nothing.
    pub blocks: u32,
}

impl Range {
    /// From the wire; what it says of access is passed over.
    pub fn parse(bytes: &[u8; RANGE_BYTES]) -> Range {
        Range { lba: u64_at(bytes, 8), blocks: u32_at(bytes, 4) }
    }

    /// To the wire.
    pub fn emit(&self) -> [u8; RANGE_BYTES] {
        let mut bytes = [0; RANGE_BYTES];
        put_u32(&mut bytes, 4, self.blocks);
        put_u64(&mut bytes, 8, self.lba);
        bytes
    }
}

/// A completion queue entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cqe {
    /// Dwords 0 and 1: the command's own result.
    pub result: u64,
    /// How far the controller has taken the submission queue; 0xffff without flow control.
    pub sq_head: u16,
    /// The queue.
    pub sq_id: u16,
    /// The command that ended.
    pub cid: u16,
    /// How.
    pub status: StatusCode,
}

impl Cqe {
    /// From the wire.
    pub fn parse(bytes: &[u8; CQE_BYTES]) -> Cqe {
        Cqe {
            result: u64_at(bytes, 0),
            sq_head: u16_at(bytes, 8),
            sq_id: u16_at(bytes, 10),
            cid: u16_at(bytes, 12),
            status: StatusCode(u16_at(bytes, 14) >> 1),
        }
    }

    /// To the wire.
    pub fn emit(&self) -> [u8; CQE_BYTES] {
        let mut bytes = [0; CQE_BYTES];
        put_u64(&mut bytes, 0, self.result);
        put_u16(&mut bytes, 8, self.sq_head);
        put_u16(&mut bytes, 10, self.sq_id);
        put_u16(&mut bytes, 12, self.cid);
        put_u16(&mut bytes, 14, self.status.0 << 1);
        bytes
    }
}

/// How a command ended: the status field of a completion queue entry without its phase bit
/// (Base 4.2.3): code in bits 0 to 7, type in 8 to 10, more in 13, do not retry in 14.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct StatusCode(pub u16);

const COMMAND_SPECIFIC: u16 = 1 << 8;
const MEDIA: u16 = 2 << 8;
const VENDOR: u16 = 7 << 8;

/// Names constants and tells their names back from a value.
macro_rules! status_codes {
    ($($(#[$doc:meta])* $constant:ident = $value:expr, $name:literal;)*) => {
        impl StatusCode {
            $($(#[$doc])* pub const $constant: StatusCode = StatusCode($value);)*

            /// The specification's name, or "unknown status".
            pub fn name(self) -> &'static str {
                match self.plain() {
                    $(StatusCode::$constant => $name,)*
                    _ => "unknown status",
                }
            }
        }
    };
}

status_codes! {
    /// Generic 00h.
    SUCCESS = 0x00, "success";
    /// Generic 01h.
    INVALID_OPCODE = 0x01, "invalid command opcode";
    /// Generic 02h.
    INVALID_FIELD = 0x02, "invalid field in command";
    /// Generic 03h.
    CID_CONFLICT = 0x03, "command id conflict";
    /// Generic 04h.
    DATA_TRANSFER = 0x04, "data transfer error";
    /// Generic 06h.
    INTERNAL = 0x06, "internal error";
    /// Generic 07h.
    ABORTED = 0x07, "command abort requested";
    /// Generic 0bh.
    INVALID_NAMESPACE = 0x0b, "invalid namespace or format";
    /// Generic 0ch.
    COMMAND_SEQUENCE = 0x0c, "command sequence error";
    /// Generic 0fh.
    SGL_LENGTH = 0x0f, "data SGL length invalid";
    /// Generic 11h.
    SGL_TYPE = 0x11, "SGL descriptor type invalid";
    /// Generic 16h.
    SGL_OFFSET = 0x16, "SGL offset invalid";
    /// Generic 20h.
    WRITE_PROTECTED = 0x20, "namespace is write protected";
    /// Generic 22h.
    TRANSIENT_TRANSPORT = 0x22, "transient transport error";
    /// Generic 80h.
    LBA_RANGE = 0x80, "LBA out of range";
    /// Generic 81h.
    CAPACITY = 0x81, "capacity exceeded";
    /// Command specific 05h.
    ASYNC_EVENT_LIMIT = COMMAND_SPECIFIC | 0x05, "asynchronous event request limit exceeded";
    /// Command specific 09h.
    INVALID_LOG_PAGE = COMMAND_SPECIFIC | 0x09, "invalid log page";
    /// Command specific 0dh.
    FEATURE_NOT_SAVEABLE = COMMAND_SPECIFIC | 0x0d, "feature not saveable";
    /// Command specific 0eh.
    FEATURE_FIXED = COMMAND_SPECIFIC | 0x0e, "feature not changeable";
    /// Fabrics 80h.
    CONNECT_FORMAT = COMMAND_SPECIFIC | 0x80, "connect incompatible format";
    /// Fabrics 81h.
    CONNECT_BUSY = COMMAND_SPECIFIC | 0x81, "connect controller busy";
    /// Fabrics 82h.
    CONNECT_PARAMETER = COMMAND_SPECIFIC | 0x82, "connect invalid parameters";
    /// Fabrics 84h.
    CONNECT_HOST = COMMAND_SPECIFIC | 0x84, "connect invalid host";
    /// Fabrics 85h.
    INVALID_QUEUE_TYPE = COMMAND_SPECIFIC | 0x85, "invalid queue type";
    /// Media 80h.
    WRITE_FAULT = MEDIA | 0x80, "write fault";
    /// Media 81h.
    READ_ERROR = MEDIA | 0x81, "unrecovered read error";
    /// Media 85h.
    COMPARE_FAILURE = MEDIA | 0x85, "compare failure";
    /// Vendor specific c1h: another process of the same host and user has fenced this one out.
    STALE_EPOCH = VENDOR | 0xc1, "epoch of the past";
    /// Vendor specific c2h: another process of the same host and user has an epoch, which the
    /// answer names.
    EPOCH_MOVED = VENDOR | 0xc2, "another process's epoch is current";
}

impl StatusCode {
    const DO_NOT_RETRY: u16 = 1 << 14;

    /// With "do not retry": the same command would fail again.
    pub const fn do_not_retry(self) -> StatusCode {
        StatusCode(self.0 | StatusCode::DO_NOT_RETRY)
    }

    /// Without the retry delay, more and do-not-retry bits: type and code alone.
    pub fn plain(self) -> StatusCode {
        StatusCode(self.0 & 0x7ff)
    }

    /// Whether the command succeeded.
    pub fn is_success(self) -> bool {
        self.plain() == StatusCode::SUCCESS
    }
}

impl std::fmt::Debug for StatusCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for StatusCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (type {}, code {:02x}h)", self.name(), self.0 >> 8 & 7, self.0 & 0xff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_wire_has_them() {
        let mut sqe = Sqe::new(nvm::READ, 0x1234, 1);
        sqe.set_range(0x1_0000_0002, 65536);
        sqe.set_sgl(Sgl::InCapsule { offset: 0, len: 4096 });
        assert_eq!((sqe.lba(), sqe.blocks(), sqe.cid()), (0x1_0000_0002, 65536, 0x1234));
        assert_eq!(sqe.sgl(), Sgl::InCapsule { offset: 0, len: 4096 });
        assert!(sqe.has_plain_flags() && !sqe.force_unit_access());
        sqe.set_cdw(12, sqe.cdw(12) | 1 << 30);
        assert!(sqe.force_unit_access());
        assert_eq!(sqe.blocks(), 65536);
        sqe.0[39] = 0x20;
        assert_eq!(sqe.sgl(), Sgl::Unknown);
    }

    #[test]
    fn a_status_keeps_its_name_with_the_retry_bit() {
        let status = StatusCode::LBA_RANGE.do_not_retry();
        let cqe = Cqe { result: 7, sq_head: 1, sq_id: 2, cid: 3, status };
        assert_eq!(Cqe::parse(&cqe.emit()), cqe);
        assert_eq!(status.to_string(), "LBA out of range (type 0, code 80h)");
        assert_eq!(cqe.emit()[14..], [0x00, 0x81]);
        assert!(!status.is_success() && StatusCode::SUCCESS.do_not_retry().is_success());
        assert_eq!(StatusCode(0x7ff).name(), "unknown status");
    }
}
