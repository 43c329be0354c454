//! Little-endian fields at byte offsets of a structure. Offsets are constants of the callers,
//! inside arrays of fixed size: out of range is a bug of ours.

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Writes `text` at `at` and fills the field's rest with spaces (Base 1.4.2, ASCII strings).
pub(crate) fn put_text(bytes: &mut [u8], at: usize, len: usize, text: &str) {
    let field = &mut bytes[at..at + len];
    field.fill(b' ');
    let take = text.len().min(len);
    field[..take].copy_from_slice(&text.as_bytes()[..take]);
}
