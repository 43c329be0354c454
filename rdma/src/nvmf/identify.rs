//! What controllers and namespaces say about themselves: Identify data and log pages (Base 5.17,
//! 5.16; NVM 4.1.5), as far as a host needs it.

use super::bytes::{put_text, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use super::fabrics::Nqn;
use super::fence::{self, Boot};
use super::state::{LoadError, ensure, state_struct};

/// Bytes of every Identify data structure.
pub const IDENTIFY_BYTES: usize = 4096;
/// The version that our controllers implement: 1.4.0.
pub const VERSION: u32 = 0x0001_0400;
/// What an in-capsule write and an admin command's data may have at most, in bytes.
pub const IN_CAPSULE_BYTES: u32 = 8192;

/// Controller or namespace structure (CNS) of an Identify command.
pub mod cns {
    /// Namespace, NVM command set.
    pub const NAMESPACE: u8 = 0x00;
    /// Controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active namespace list.
    pub const NAMESPACE_LIST: u8 = 0x02;
    /// Namespace identification descriptors.
    pub const DESCRIPTORS: u8 = 0x03;
    /// Controller, specific to the command set.
    pub const CONTROLLER_NVM: u8 = 0x06;
}

/// Log page identifiers.
pub mod log {
    /// Error information.
    pub const ERRORS: u8 = 0x01;
    /// SMART / health information.
    pub const HEALTH: u8 = 0x02;
    /// Firmware slots.
    pub const FIRMWARE: u8 = 0x03;
    /// Changed namespaces.
    pub const CHANGED: u8 = 0x04;
    /// Commands supported, and their effects.
    pub const EFFECTS: u8 = 0x05;
    /// Discovery.
    pub const DISCOVERY: u8 = 0x70;
}

/// What names a namespace: it stays when the connection, the address or the size changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Namespace globally unique identifier.
    pub nguid: [u8; 16],
    /// UUID; zeros when the target has none.
    pub uuid: [u8; 16],
}

/// A namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Bytes per block, a power of two from 512.
    pub block_bytes: u32,
    /// Blocks.
    pub blocks: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// What names it.
    pub identity: Identity,
}

/// What a controller says about itself, as an initiator reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Controller {
    /// The controller's identifier.
    pub id: u16,
    /// The most pages of one transfer, as a power of two (MDTS); 0: no limit.
    pub max_transfer: u8,
    /// Bytes of data that an I/O command's capsule takes.
    pub in_capsule_bytes: u32,
    /// Optional commands: [`commands`].
    pub commands: u16,
    /// Whether it knows the [`fence`] command.
    pub has_fence: bool,
    /// What its machine drew when it started; zeros where it does not tell.
    pub boot: Boot,
}

/// What one controller of a target says, beside constants.
pub(crate) struct Said<'a> {
    pub id: u16,
    pub nqn: &'a Nqn,
    pub serial: &'a str,
    /// MDTS: as a power of two of 4 KiB.
    pub max_transfer: u8,
    pub max_commands: u16,
    pub read_only: bool,
    /// A controller of the discovery subsystem, which has no namespace.
    pub is_discovery: bool,
    pub boot: &'a Boot,
}

/// Offsets in the Identify Controller data (Base 5.17.2.1).
mod at {
    pub const SERIAL: usize = 4;
    pub const MODEL: usize = 24;
    pub const FIRMWARE: usize = 64;
    pub const ARBITRATION_BURST: usize = 72;
    pub const MAX_TRANSFER: usize = 77;
    pub const CONTROLLER: usize = 78;
    pub const VERSION: usize = 80;
    pub const ATTRIBUTES: usize = 96;
    pub const CONTROLLER_TYPE: usize = 111;
    pub const ABORT_LIMIT: usize = 258;
    pub const ASYNC_LIMIT: usize = 259;
    pub const FIRMWARE_UPDATES: usize = 260;
    pub const LOG_ATTRIBUTES: usize = 261;
    pub const KEEP_ALIVE_UNIT: usize = 320;
    pub const ENTRY_SIZES: usize = 512;
    pub const MAX_COMMANDS: usize = 514;
    pub const NAMESPACES: usize = 516;
    pub const COMMANDS: usize = 520;
    pub const WRITE_CACHE: usize = 525;
    pub const SGL: usize = 536;
    pub const SUBSYSTEM: usize = 768;
    pub const COMMAND_CAPSULE: usize = 1792;
    pub const RESPONSE_CAPSULE: usize = 1796;
    pub const DATA_DESCRIPTORS: usize = 1803;
}

/// Optional commands of the NVM command set (ONCS, Base 5.17.2.1).
pub mod commands {
    /// Compare.
    pub const COMPARE: u16 = 1;
    /// Dataset Management.
    pub const DATASET: u16 = 1 << 2;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u16 = 1 << 3;
}

/// Asynchronous Event Requests that a controller holds.
pub(crate) const ASYNC_EVENTS: u8 = 4;
/// Unit of the keep-alive timeout: 10 × 100 ms (KAS).
pub(crate) const KEEP_ALIVE_UNIT_100MS: u16 = 10;

pub(crate) fn controller(page: &mut [u8], said: &Said) {
    page[..IDENTIFY_BYTES].fill(0);
    put_text(page, at::SERIAL, 20, said.serial);
    put_text(page, at::MODEL, 40, "Outboard");
    put_text(page, at::FIRMWARE, 8, env!("CARGO_PKG_VERSION"));
    page[at::ARBITRATION_BURST] = 6;
    page[at::MAX_TRANSFER] = said.max_transfer;
    put_u16(page, at::CONTROLLER, said.id);
    put_u32(page, at::VERSION, VERSION);
    // Host identifiers have 128 bits (mandatory on fabrics).
    put_u32(page, at::ATTRIBUTES, 1);
    // An I/O controller, or one for discovery.
    page[at::CONTROLLER_TYPE] = if said.is_discovery { 2 } else { 1 };
    page[at::ABORT_LIMIT] = 3;
    page[at::ASYNC_LIMIT] = ASYNC_EVENTS - 1;
    // One firmware slot, read-only.
    page[at::FIRMWARE_UPDATES] = 3;
    // Log pages with extended offsets and lengths (bit 2), that of commands' effects (bit 1).
    page[at::LOG_ATTRIBUTES] = if said.is_discovery { 1 << 2 } else { 1 << 2 | 1 << 1 };
    put_u16(page, at::KEEP_ALIVE_UNIT, KEEP_ALIVE_UNIT_100MS);
    put_u16(page, at::MAX_COMMANDS, said.max_commands);
    // SGLs, with offsets into the capsule.
    put_u32(page, at::SGL, 1 | 1 << 20);
    page[at::SUBSYSTEM..at::SUBSYSTEM + said.nqn.len()].copy_from_slice(said.nqn.as_bytes());
    if said.is_discovery {
        return;
    }
    put_u16(page, at::ENTRY_SIZES, 0x4466);
    put_u32(page, at::NAMESPACES, 1);
    let changes = commands::DATASET | commands::WRITE_ZEROES;
    let offered = if said.read_only { 0 } else { changes };
    put_u16(page, at::COMMANDS, commands::COMPARE | offered);
    // A volatile write cache (hosts send Flush); Flush of all namespaces is supported (bits 2:1).
    page[at::WRITE_CACHE] = if said.read_only { 0 } else { 0b111 };
    put_u32(page, at::COMMAND_CAPSULE, (64 + IN_CAPSULE_BYTES) / 16);
    put_u32(page, at::RESPONSE_CAPSULE, 1);
    page[at::DATA_DESCRIPTORS] = 1;
    fence::announce(page, said.boot);
}

impl Controller {
    /// From Identify Controller data of [`IDENTIFY_BYTES`].
    pub fn parse(page: &[u8]) -> Controller {
        Controller {
            id: u16_at(page, at::CONTROLLER),
            max_transfer: page[at::MAX_TRANSFER],
            commands: u16_at(page, at::COMMANDS),
            // In units of 16 bytes, the submission queue entry included.
            in_capsule_bytes: u32_at(page, at::COMMAND_CAPSULE)
                .saturating_mul(16)
                .saturating_sub(64),
            has_fence: fence::is_announced(page),
            boot: fence::boot(page),
        }
    }
}

/// Why a namespace cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// It has no blocks: it does not exist or is not attached.
    Empty,
    /// Blocks of 2^n bytes that are neither 512 nor 4096.
    BlockSize(u8),
    /// Blocks carry metadata.
    Metadata(u16),
    /// So many blocks that no 64-bit number counts their bytes.
    TooLarge(u64),
}

state_struct!(Identity { nguid, uuid });
state_struct!(Namespace { block_bytes, blocks, read_only, identity });
state_struct!(Controller { id, max_transfer, in_capsule_bytes, commands, has_fence, boot });

impl Namespace {
    /// Whether [`parse`](Self::parse) can have given this.
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        let has_bytes = self.blocks.checked_mul(u64::from(self.block_bytes)).is_some();
        let has_blocks = matches!(self.block_bytes, 512 | 4096) && self.blocks > 0;
        ensure(has_blocks && has_bytes, "a namespace")
    }

    /// Writes Identify Namespace data.
    pub(crate) fn emit(&self, page: &mut [u8]) {
        page[..IDENTIFY_BYTES].fill(0);
        put_u64(page, 0, self.blocks);
        put_u64(page, 8, self.blocks);
        put_u64(page, 16, self.blocks);
        // Thin: blocks may be deallocated (bit 0). What a deallocated block reads is not said;
        // Write Zeroes may deallocate (bit 3 of DLFEAT).
        page[24] = 1;
        page[33] = 1 << 3;
        page[99] = u8::from(self.read_only);
        page[104..120].copy_from_slice(&self.identity.nguid);
        page[130] = self.block_bytes.trailing_zeros() as u8;
    }

    /// From Identify Namespace data of [`IDENTIFY_BYTES`]; the UUID is in the descriptors.
    pub fn parse(page: &[u8]) -> Result<Namespace, Unusable> {
        // FLBAS: bits 3:0 and 6:5 index the format in use.
        let format = usize::from(page[26] & 0xf | page[26] >> 1 & 0x30);
        let (metadata, shift) = (u16_at(page, 128 + format * 4), page[130 + format * 4]);
        let blocks = u64_at(page, 0);
        if blocks == 0 {
            return Err(Unusable::Empty);
        }
        if metadata != 0 {
            return Err(Unusable::Metadata(metadata));
        }
        if shift != 9 && shift != 12 {
            return Err(Unusable::BlockSize(shift));
        }
        let block_bytes = 1 << shift;
        if blocks.checked_mul(u64::from(block_bytes)).is_none() {
            return Err(Unusable::TooLarge(blocks));
        }
        let mut nguid = [0; 16];
        nguid.copy_from_slice(&page[104..120]);
        Ok(Namespace {
            block_bytes,
            blocks,
            read_only: page[99] & 1 != 0,
            identity: Identity { nguid, uuid: [0; 16] },
        })
    }
}

const NGUID: u8 = 2;
const UUID: u8 = 3;

impl Identity {
    /// Writes the namespace identification descriptor list (Base 5.17.2.3).
    pub(crate) fn emit(&self, page: &mut [u8]) {
        page[..IDENTIFY_BYTES].fill(0);
        let mut at = 0;
        for (kind, value) in [(NGUID, &self.nguid), (UUID, &self.uuid)] {
            if *value != [0; 16] {
                page[at] = kind;
                page[at + 1] = 16;
                page[at + 4..at + 20].copy_from_slice(value);
                at += 20;
            }
        }
    }

    /// Takes over what a descriptor list names; unknown descriptors are passed over.
    pub fn read_descriptors(&mut self, page: &[u8]) {
        let mut at = 0;
        while at + 4 <= page.len() && page[at + 1] != 0 {
            let (kind, len) = (page[at], usize::from(page[at + 1]));
            let Some(value) = page.get(at + 4..at + 4 + len) else {
                return;
            };
            if len == 16 && kind == NGUID {
                self.nguid.copy_from_slice(value);
            }
            if len == 16 && kind == UUID {
                self.uuid.copy_from_slice(value);
            }
            at += 4 + len;
        }
    }
}

/// Writes the active namespaces with identifiers above `after`: the only one is 1.
pub(crate) fn namespace_list(page: &mut [u8], after: u32) {
    page[..IDENTIFY_BYTES].fill(0);
    if after == 0 {
        put_u32(page, 0, 1);
    }
}

/// Writes a log page of an I/O controller and returns its length; `None`: no such page.
pub(crate) fn log_page(page: &mut [u8], id: u8, read_only: bool) -> Option<u64> {
    page.fill(0);
    match id {
        // One entry, never used; no namespace ever changes.
        log::ERRORS => return Some(64),
        log::CHANGED => return Some(4096),
        log::EFFECTS => {
            effects(page, read_only);
            return Some(4096);
        }
        // 300 K; all spare capacity is there, and 10 % of it would be little.
        log::HEALTH => {
            put_u16(page, 1, 300);
            page[3] = 100;
            page[4] = 10;
        }
        // Slot 1 is active and holds this version.
        log::FIRMWARE => {
            page[0] = 1;
            put_text(page, 8, 8, env!("CARGO_PKG_VERSION"));
        }
        _ => return None,
    }
    Some(512)
}

/// The commands that are supported (bit 0 of their dword), and those that change the namespace's
/// content (bit 1): 256 of the admin queue, then as many of I/O queues (Base 5.16.1.6).
fn effects(page: &mut [u8], read_only: bool) {
    use super::capsule::{admin, nvm};
    for opcode in [
        admin::GET_LOG_PAGE,
        admin::IDENTIFY,
        admin::ABORT,
        admin::SET_FEATURES,
        admin::GET_FEATURES,
        admin::ASYNC_EVENT,
        admin::KEEP_ALIVE,
        admin::FENCE,
    ] {
        put_u32(page, usize::from(opcode) * 4, 1);
    }
    for opcode in [nvm::FLUSH, nvm::READ, nvm::COMPARE] {
        put_u32(page, 1024 + usize::from(opcode) * 4, 1);
    }
    for opcode in [nvm::WRITE, nvm::WRITE_ZEROES, nvm::DATASET].iter().filter(|_| !read_only) {
        put_u32(page, 1024 + usize::from(*opcode) * 4, 0b11);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity { nguid: [3; 16], uuid: [5; 16] };

    #[test]
    fn a_namespace_survives_the_wire() {
        for (block_bytes, read_only) in [(512, false), (4096, true)] {
            let namespace =
                Namespace { block_bytes, blocks: 1 << 40, read_only, identity: IDENTITY };
            let mut page = [0xff; IDENTIFY_BYTES];
            namespace.emit(&mut page);
            let mut read = Namespace::parse(&page).unwrap();
            assert_eq!(read.identity.uuid, [0; 16]);
            IDENTITY.emit(&mut page);
            read.identity.read_descriptors(&page);
            assert_eq!(read, namespace);
        }
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let mut page = [0; IDENTIFY_BYTES];
        assert_eq!(Namespace::parse(&page), Err(Unusable::Empty));
        page[0] = 1;
        page[26] = 0x61;
        assert_eq!(Namespace::parse(&page), Err(Unusable::BlockSize(0)));
        page[128 + 49 * 4] = 8;
        assert_eq!(Namespace::parse(&page), Err(Unusable::Metadata(8)));
    }

    #[test]
    fn a_size_that_no_number_of_bytes_counts_is_refused() {
        for block_bytes in [512_u32, 4096] {
            let most = u64::MAX / u64::from(block_bytes);
            let size = |blocks| {
                let namespace =
                    Namespace { block_bytes, blocks, read_only: false, identity: IDENTITY };
                let mut page = [0; IDENTIFY_BYTES];
                namespace.emit(&mut page);
                Namespace::parse(&page).map(|namespace| namespace.blocks)
            };
            assert_eq!(size(most), Ok(most));
            assert_eq!(size(most + 1), Err(Unusable::TooLarge(most + 1)));
            assert_eq!(size(u64::MAX), Err(Unusable::TooLarge(u64::MAX)));
        }
    }

    #[test]
    fn descriptors_of_any_content_end() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            let mut identity = IDENTITY;
            identity.read_descriptors(bytes);
        });
    }

    #[test]
    fn a_controller_says_what_is_read() {
        let nqn = Nqn::from("nqn.2025-01.io.test:a").unwrap();
        let said = Said {
            id: 9,
            nqn: &nqn,
            serial: "0001",
            max_transfer: 5,
            max_commands: 128,
            read_only: false,
            is_discovery: false,
            boot: &[6; 16],
        };
        let mut page = [0xff; IDENTIFY_BYTES];
        controller(&mut page, &said);
        let read = Controller::parse(&page);
        assert_eq!((read.id, read.max_transfer, read.in_capsule_bytes), (9, 5, IN_CAPSULE_BYTES));
        assert_eq!(&page[4..12], b"0001    ");
        assert!(read.has_fence);
        assert_eq!(read.boot, [6; 16]);
        page[3072] ^= 1;
        let foreign = Controller::parse(&page);
        assert!(!foreign.has_fence && foreign.boot == [0; 16], "a vendor's own bytes");
    }
}
