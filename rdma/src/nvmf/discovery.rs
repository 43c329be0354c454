//! The discovery log page: which subsystems a host can reach at an address (Base 5.16.1.23; TCP
//! 3.1.1). The log is a header and one entry per subsystem, 1024 bytes each.

use super::bytes::{put_text, put_u16, put_u64, u16_at, u64_at};
use super::fabrics::{ANY_CONTROLLER, Nqn};
use std::net::SocketAddr;

/// The name under which every target offers discovery.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// Bytes of the log's header and of each entry.
pub const RECORD_BYTES: usize = 1024;

/// A subsystem and where it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub subsystem: Nqn,
    /// Where connections are accepted; an unspecified address is every address of the machine.
    pub address: SocketAddr,
}

/// Offsets in an entry.
mod at {
    pub const TRANSPORT: usize = 0;
    pub const FAMILY: usize = 1;
    pub const SUBSYSTEM_TYPE: usize = 2;
    pub const REQUIREMENTS: usize = 3;
    pub const PORT_ID: usize = 4;
    pub const CONTROLLER: usize = 6;
    pub const ADMIN_QUEUE: usize = 8;
    pub const SERVICE: usize = 32;
    pub const SUBSYSTEM: usize = 256;
    pub const ADDRESS: usize = 512;
}

const TCP: u8 = 3;
const IPV4: u8 = 1;
const IPV6: u8 = 2;
const NVM_SUBSYSTEM: u8 = 2;
/// Queues may be connected without flow control (TREQ bit 2).
const NO_FLOW_CONTROL: u8 = 1 << 2;
/// Entries that an admin queue may have at most.
const ADMIN_QUEUE_ENTRIES: u16 = 32;

impl Entry {
    /// The entry for hosts that have connected to `local`, if it can be reached there.
    pub(crate) fn seen_from(&self, local: SocketAddr) -> Option<Entry> {
        let (mine, theirs) = (self.address.ip().to_canonical(), local.ip().to_canonical());
        let is_same_family = mine.is_ipv4() == theirs.is_ipv4() || self.address.is_ipv6();
        let is_here = mine == theirs || mine.is_unspecified() && is_same_family;
        let address = SocketAddr::new(theirs, self.address.port());
        is_here.then_some(Entry { address, ..*self })
    }

    /// Writes the log's record of it; `port` numbers it.
    pub(crate) fn emit(&self, port: u16, out: &mut [u8; RECORD_BYTES]) {
        out.fill(0);
        out[at::TRANSPORT] = TCP;
        out[at::FAMILY] = if self.address.is_ipv4() { IPV4 } else { IPV6 };
        out[at::SUBSYSTEM_TYPE] = NVM_SUBSYSTEM;
        out[at::REQUIREMENTS] = NO_FLOW_CONTROL;
        put_u16(out, at::PORT_ID, port);
        put_u16(out, at::CONTROLLER, ANY_CONTROLLER);
        put_u16(out, at::ADMIN_QUEUE, ADMIN_QUEUE_ENTRIES);
        put_display(out, at::SERVICE, 32, self.address.port());
        let name = self.subsystem.as_bytes();
        out[at::SUBSYSTEM..at::SUBSYSTEM + name.len()].copy_from_slice(name);
        put_display(out, at::ADDRESS, 256, self.address.ip());
    }

    /// From a record; `None`: it is not an NVM subsystem over TCP, or its fields are not valid.
    pub fn parse(record: &[u8; RECORD_BYTES]) -> Option<Entry> {
        let is_known = record[at::TRANSPORT] == TCP && record[at::SUBSYSTEM_TYPE] == NVM_SUBSYSTEM;
        let address = text(&record[at::ADDRESS..at::ADDRESS + 256])?.parse().ok()?;
        let port = text(&record[at::SERVICE..at::SERVICE + 32])?.parse().ok()?;
        let subsystem = Nqn::from(text(&record[at::SUBSYSTEM..at::SUBSYSTEM + 256])?).ok()?;
        let entry = Entry { subsystem, address: SocketAddr::new(address, port) };
        (is_known && !subsystem.is_empty()).then_some(entry)
    }
}

/// What the log's header says: generation and number of entries.
pub fn parse_header(record: &[u8; RECORD_BYTES]) -> Option<(u64, u64)> {
    // Record format 0.
    (u16_at(record, 16) == 0).then(|| (u64_at(record, 0), u64_at(record, 8)))
}

/// Writes the part of the log from `offset` that `out` has room for; behind its end are zeros.
/// `false`: it begins behind the end.
pub(crate) fn log(
    generation: u64,
    entries: impl Iterator<Item = Entry> + Clone,
    offset: u64,
    out: &mut [u8],
) -> bool {
    out.fill(0);
    let count = entries.clone().count();
    let end = offset.saturating_add(out.len() as u64);
    let mut header = [0; RECORD_BYTES];
    put_u64(&mut header, 0, generation);
    put_u64(&mut header, 8, count as u64);
    copy(&header, 0, offset, out);
    for (index, entry) in entries.enumerate() {
        let start = (index as u64 + 1) * RECORD_BYTES as u64;
        if start < end && start + RECORD_BYTES as u64 > offset {
            let mut record = [0; RECORD_BYTES];
            entry.emit(index as u16 + 1, &mut record);
            copy(&record, start, offset, out);
        }
    }
    offset < (count as u64 + 1) * RECORD_BYTES as u64
}

/// Copies what of a record at `start` of the log is in `out`, which is the log from `offset`.
fn copy(record: &[u8; RECORD_BYTES], start: u64, offset: u64, out: &mut [u8]) {
    let skip = offset.saturating_sub(start).min(RECORD_BYTES as u64) as usize;
    let at = start.saturating_sub(offset).min(out.len() as u64) as usize;
    let len = (RECORD_BYTES - skip).min(out.len() - at);
    out[at..at + len].copy_from_slice(&record[skip..skip + len]);
}

fn put_display(out: &mut [u8], at: usize, len: usize, value: impl std::fmt::Display) {
    use std::fmt::Write;
    // The longest address has 45 characters.
    let mut text = arrayvec::ArrayString::<64>::new();
    let _ = write!(text, "{value}");
    put_text(out, at, len, &text);
}

/// Ends at a zero byte, or at spaces that fill the field (Base 1.4.2).
fn text(field: &[u8]) -> Option<&str> {
    let len = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    std::str::from_utf8(&field[..len]).ok().map(|text| text.trim_end_matches(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, address: &str) -> Entry {
        Entry { subsystem: Nqn::from(name).unwrap(), address: address.parse().unwrap() }
    }

    #[test]
    fn the_log_is_the_same_in_any_cut() {
        let entries = [entry("nqn.a", "192.0.2.1:4420"), entry("nqn.b", "[2001:db8::1]:65535")];
        let mut whole = vec![0xee; 4096];
        assert!(log(7, entries.iter().copied(), 0, &mut whole));
        assert_eq!(parse_header(whole[..1024].try_into().unwrap()), Some((7, 2)));
        for (index, expected) in entries.iter().enumerate() {
            let record = whole[(index + 1) * 1024..][..1024].try_into().unwrap();
            assert_eq!(Entry::parse(record), Some(*expected));
        }
        assert!(whole[3 * 1024..].iter().all(|byte| *byte == 0));
        for (offset, len) in
            [(0, 4), (16, 1008), (1000, 100), (1024, 1024), (2040, 1500), (3071, 1)]
        {
            let mut part = vec![0xee; len];
            assert!(log(7, entries.iter().copied(), offset as u64, &mut part));
            assert_eq!(part, whole[offset..offset + len], "{len} bytes from {offset}");
        }
        for offset in [3072, u64::MAX] {
            assert!(!log(7, entries.iter().copied(), offset, &mut [0; 8]));
        }
    }

    #[test]
    fn a_host_sees_what_it_can_reach_from_where_it_is() {
        let seen = |address: &str, local: &str| {
            let seen = entry("nqn.a", address).seen_from(local.parse().unwrap());
            seen.map(|entry| entry.address.to_string())
        };
        let here = "192.0.2.1:9";
        assert_eq!(seen("192.0.2.1:4420", here).as_deref(), Some("192.0.2.1:4420"));
        assert_eq!(seen("192.0.2.2:4420", here), None);
        assert_eq!(seen("0.0.0.0:4420", here).as_deref(), Some("192.0.2.1:4420"));
        assert_eq!(seen("[::]:4420", here).as_deref(), Some("192.0.2.1:4420"));
        assert_eq!(seen("0.0.0.0:4420", "[2001:db8::1]:9"), None);
        assert_eq!(seen("[::]:1", "[2001:db8::1]:9").as_deref(), Some("[2001:db8::1]:1"));
        let mapped = seen("192.0.2.1:4420", "[::ffff:192.0.2.1]:9");
        assert_eq!(mapped.as_deref(), Some("192.0.2.1:4420"));
    }

    #[test]
    fn any_record_is_an_entry_or_none() {
        bolero::check!().with_type::<(Vec<u8>, Vec<u8>)>().for_each(|(bytes, address)| {
            let mut record = [0; RECORD_BYTES];
            let len = bytes.len().min(RECORD_BYTES);
            record[..len].copy_from_slice(&bytes[..len]);
            let len = address.len().min(256);
            record[512..512 + len].copy_from_slice(&address[..len]);
            if let Some(entry) = Entry::parse(&record) {
                let mut again = [0; RECORD_BYTES];
                entry.emit(1, &mut again);
                assert_eq!(Entry::parse(&again), Some(entry));
            }
            let _ = parse_header(&record);
        });
    }
}
