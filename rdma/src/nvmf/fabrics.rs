//! Fabrics commands and what they carry: connect data, controller properties (Fabrics 3; Base
//! 3.1.3).

use super::bytes::{put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use super::capsule::{Sgl, Sqe, admin};
use arrayvec::ArrayString;

/// The most bytes of an NVMe qualified name (Base 4.5).
pub const NQN_BYTES: usize = 223;
/// An NVMe qualified name.
pub type Nqn = ArrayString<NQN_BYTES>;

/// Bytes of the Connect command's data.
pub const CONNECT_BYTES: usize = 1024;
/// The controller identifier that asks for any controller (dynamic model).
pub const ANY_CONTROLLER: u16 = 0xffff;

/// Fabrics command types.
pub mod fctype {
    /// Property Set.
    pub const PROPERTY_SET: u8 = 0x00;
    /// Connect.
    pub const CONNECT: u8 = 0x01;
    /// Property Get.
    pub const PROPERTY_GET: u8 = 0x04;
    /// Disconnect.
    pub const DISCONNECT: u8 = 0x08;
}

/// Offsets of the properties.
pub mod property {
    /// Controller Capabilities, 8 bytes.
    pub const CAPABILITIES: u32 = 0x00;
    /// Version, 4 bytes.
    pub const VERSION: u32 = 0x08;
    /// Controller Configuration, 4 bytes.
    pub const CONFIGURATION: u32 = 0x14;
    /// Controller Status, 4 bytes.
    pub const STATUS: u32 = 0x1c;
}

/// A Connect command's fields in its submission queue entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect {
    /// Format of the entry and the data: 0.
    pub format: u16,
    /// The queue: 0 is the admin queue.
    pub queue: u16,
    /// Entries of the queue, 0-based.
    pub queue_size: u16,
    /// Whether the queue runs without flow control: no head pointer in responses, success
    /// without a response capsule allowed (Fabrics 3.3, CATTR bit 2).
    pub no_flow_control: bool,
    /// Keep-alive timeout in milliseconds, on the admin queue; 0: none.
    pub keep_alive_ms: u32,
}

const NO_FLOW_CONTROL: u8 = 1 << 2;

/// Where a Connect command's or its data's bad field is: dword 0 of the response (Fabrics 3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadParameter {
    /// Whether the field is in the data, rather than in the submission queue entry.
    pub in_data: bool,
    /// The field's offset.
    pub offset: u16,
}

impl BadParameter {
    /// The format or the size of the queue, the queue's number.
    pub const QUEUE: BadParameter = BadParameter { in_data: false, offset: 42 };
    /// The queue's size.
    pub const QUEUE_SIZE: BadParameter = BadParameter { in_data: false, offset: 44 };
    /// The controller's identifier.
    pub const CONTROLLER: BadParameter = BadParameter { in_data: true, offset: 16 };
    /// The subsystem's name.
    pub const SUBSYSTEM: BadParameter = BadParameter { in_data: true, offset: 256 };
    /// The host's name.
    pub const HOST: BadParameter = BadParameter { in_data: true, offset: 512 };

    /// The response's result.
    pub fn result(self) -> u64 {
        u64::from(self.offset) | u64::from(self.in_data) << 16
    }
}

impl Connect {
    /// From a Connect command.
    pub fn parse(sqe: &Sqe) -> Connect {
        Connect {
            format: u16_at(&sqe.0, 40),
            queue: u16_at(&sqe.0, 42),
            queue_size: u16_at(&sqe.0, 44),
            no_flow_control: sqe.0[46] & NO_FLOW_CONTROL != 0,
            keep_alive_ms: u32_at(&sqe.0, 48),
        }
    }

    /// The Connect command.
    pub fn emit(&self, cid: u16) -> Sqe {
        let mut sqe = Sqe::new(admin::FABRICS, cid, u32::from(fctype::CONNECT));
        sqe.set_sgl(Sgl::InCapsule { offset: 0, len: CONNECT_BYTES as u32 });
        put_u16(&mut sqe.0, 40, self.format);
        put_u16(&mut sqe.0, 42, self.queue);
        put_u16(&mut sqe.0, 44, self.queue_size);
        sqe.0[46] = if self.no_flow_control { NO_FLOW_CONTROL } else { 0 };
        put_u32(&mut sqe.0, 48, self.keep_alive_ms);
        sqe
    }
}

/// The data of a Connect command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectData {
    /// Names the host; the same on all its connections.
    pub host_id: [u8; 16],
    /// The controller: [`ANY_CONTROLLER`] on the admin queue.
    pub controller: u16,
    /// The subsystem's name.
    pub subsystem: Nqn,
    /// The host's name.
    pub host: Nqn,
}

impl ConnectData {
    /// From the capsule's data.
    pub fn parse(bytes: &[u8; CONNECT_BYTES]) -> Result<ConnectData, BadParameter> {
        let mut host_id = [0; 16];
        host_id.copy_from_slice(&bytes[..16]);
        Ok(ConnectData {
            host_id,
            controller: u16_at(bytes, 16),
            subsystem: nqn(&bytes[256..512]).ok_or(BadParameter::SUBSYSTEM)?,
            host: nqn(&bytes[512..768]).ok_or(BadParameter::HOST)?,
        })
    }

    /// To the capsule's data, `bytes` of length [`CONNECT_BYTES`].
    pub fn emit(&self, bytes: &mut [u8]) {
        bytes.fill(0);
        bytes[..16].copy_from_slice(&self.host_id);
        put_u16(bytes, 16, self.controller);
        bytes[256..256 + self.subsystem.len()].copy_from_slice(self.subsystem.as_bytes());
        bytes[512..512 + self.host.len()].copy_from_slice(self.host.as_bytes());
    }
}

/// A name of 1 to [`NQN_BYTES`] bytes of UTF-8, ended by a zero byte.
fn nqn(field: &[u8]) -> Option<Nqn> {
    let len = field.iter().position(|byte| *byte == 0)?;
    let text = std::str::from_utf8(&field[..len]).ok()?;
    Nqn::from(text).ok().filter(|name| !name.is_empty())
}

/// A Property Get for a property of 4 or 8 bytes.
pub fn property_get(offset: u32, is_wide: bool) -> Sqe {
    let mut sqe = Sqe::new(admin::FABRICS, 0, u32::from(fctype::PROPERTY_GET));
    sqe.0[40] = u8::from(is_wide);
    put_u32(&mut sqe.0, 44, offset);
    sqe
}

/// A Property Set for a property of 4 bytes.
pub fn property_set(offset: u32, value: u32) -> Sqe {
    let mut sqe = Sqe::new(admin::FABRICS, 0, u32::from(fctype::PROPERTY_SET));
    put_u32(&mut sqe.0, 44, offset);
    put_u64(&mut sqe.0, 48, u64::from(value));
    sqe
}

/// The property that a Property Get or Set names: its offset, and whether it has 8 bytes.
pub fn property_of(sqe: &Sqe) -> (u32, bool) {
    (u32_at(&sqe.0, 44), sqe.0[40] & 7 == 1)
}

/// The value that a Property Set carries.
pub fn property_value(sqe: &Sqe) -> u64 {
    u64_at(&sqe.0, 48)
}

/// Controller Capabilities (Base 3.1.3.1), as far as hosts and controllers on fabrics use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// What our controllers say: queues are contiguous, the NVM command set, 4 KiB pages.
    pub fn new(max_queue_size: u16, ready_timeout_500ms: u8) -> Capabilities {
        const CONTIGUOUS: u64 = 1 << 16;
        const NVM_COMMAND_SET: u64 = 1 << 37;
        let timeout = u64::from(ready_timeout_500ms) << 24;
        Capabilities(u64::from(max_queue_size) | CONTIGUOUS | NVM_COMMAND_SET | timeout)
    }

    /// The most entries of a queue, 0-based (MQES).
    pub fn max_queue_size(self) -> u16 {
        self.0 as u16
    }

    /// The longest that becoming ready takes (TO), in milliseconds.
    pub fn ready_timeout_ms(self) -> u32 {
        (self.0 >> 24 & 0xff) as u32 * 500
    }

    /// The unit of the transfer limit in bytes (MPSMIN).
    pub fn page_bytes(self) -> u64 {
        4096 << (self.0 >> 48 & 0xf)
    }
}

/// Bits of Controller Configuration (Base 3.1.3.5).
pub mod configuration {
    /// The controller shall process commands.
    pub const ENABLE: u32 = 1;
    /// Shutdown notification, two bits.
    pub const SHUTDOWN: u32 = 3 << 14;
    /// Entry sizes: 64-byte submissions, 16-byte completions.
    pub const ENTRY_SIZES: u32 = 6 << 16 | 4 << 20;
    /// The bits that hold the entry sizes.
    pub const ENTRY_SIZES_MASK: u32 = 0xff << 16;
    /// The command set, three bits: 0 is NVM, 6 every set that the controller has.
    pub const COMMAND_SET: u32 = 7 << 4;
    /// Page size (7 to 10) and arbitration (11 to 13): all zero.
    pub const ZERO_MASK: u32 = 0x7f << 7;
}

/// Bits of Controller Status (Base 3.1.3.6).
pub mod status {
    /// Commands are processed.
    pub const READY: u32 = 1;
    /// The controller cannot go on.
    pub const FATAL: u32 = 1 << 1;
    /// Shutdown is complete, two bits.
    pub const SHUTDOWN_COMPLETE: u32 = 2 << 2;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_survives_the_wire() {
        let connect = Connect {
            format: 0,
            queue: 3,
            queue_size: 127,
            no_flow_control: true,
            keep_alive_ms: 5000,
        };
        let sqe = connect.emit(9);
        assert_eq!((Connect::parse(&sqe), sqe.cid(), sqe.fctype()), (connect, 9, fctype::CONNECT));
        let data = ConnectData {
            host_id: [7; 16],
            controller: ANY_CONTROLLER,
            subsystem: Nqn::from("nqn.2025-01.io.test:a").unwrap(),
            host: Nqn::from(&"h".repeat(NQN_BYTES)).unwrap(),
        };
        let mut bytes = [0xff; CONNECT_BYTES];
        data.emit(&mut bytes);
        assert_eq!(ConnectData::parse(&bytes), Ok(data));
    }

    #[test]
    fn names_are_checked_at_their_limits() {
        let mut bytes = [0; CONNECT_BYTES];
        assert_eq!(ConnectData::parse(&bytes), Err(BadParameter::SUBSYSTEM));
        bytes[256] = b'a';
        assert_eq!(ConnectData::parse(&bytes), Err(BadParameter::HOST));
        bytes[512..512 + NQN_BYTES].fill(b'h');
        assert!(ConnectData::parse(&bytes).is_ok());
        bytes[512 + NQN_BYTES] = b'h';
        assert_eq!(ConnectData::parse(&bytes), Err(BadParameter::HOST));
        bytes[512] = 0xff;
        bytes[513] = 0;
        assert_eq!(ConnectData::parse(&bytes), Err(BadParameter::HOST));
        bytes[256..512].fill(b'a');
        assert_eq!(ConnectData::parse(&bytes), Err(BadParameter::SUBSYSTEM));
        assert_eq!(BadParameter::SUBSYSTEM.result(), 0x1_0100);
    }

    #[test]
    fn capabilities_are_read_as_written() {
        let capabilities = Capabilities::new(127, 15);
        assert_eq!(capabilities.max_queue_size(), 127);
        assert_eq!(capabilities.ready_timeout_ms(), 7500);
        assert_eq!(capabilities.page_bytes(), 4096);
    }
}
