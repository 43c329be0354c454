//! What single values may be. Each function takes a TOML value and gives the checked value, or
//! what is wrong with it and what would be right.

use super::plan::{Dscp, Ipv4Interface, Ipv6Interface};
use outboard_wire::{IpPrefix, Mac};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use toml::de::DeValue;

/// The most bytes of a name.
const NAME_BYTES_MAX: usize = 32;
/// IFNAMSIZ of linux/if.h, without the terminating zero.
const INTERFACE_BYTES_MAX: usize = 15;
/// The longest name of a device with its arguments.
const DEVICE_BYTES_MAX: usize = 1024;
/// The most arguments of DPDK's environment.
const ARGUMENTS_MAX: usize = 64;
/// sun_path of linux/un.h, without the terminating zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// PATH_MAX of linux/limits.h, without the terminating zero.
const PATH_BYTES_MAX: usize = 4095;
/// NVM Express Base Specification 2.0, 4.5: a qualified name has at most 223 bytes.
const NQN_BYTES_MAX: usize = 223;
/// The largest volume, in bytes: 1 PiB.
pub const EXTENT_BYTES_MAX: u64 = 1 << 50;

/// Why a value is refused.
pub(super) struct Wrong {
    /// Follows the key's name: "is 0", "is a string".
    pub what: String,
    /// What would be right.
    pub want: String,
}

fn wrong<T>(what: impl Into<String>, want: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { what: what.into(), want: want.into() })
}

fn is_a(value: &DeValue) -> String {
    match value {
        DeValue::Integer(_) | DeValue::Array(_) => format!("is an {}", value.type_str()),
        _ => format!("is a {}", value.type_str()),
    }
}

/// Text as errors show it: quoted, short, without control characters.
fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 40;
    let cut: String = text.chars().take(CHARS_MAX).collect();
    let dots = if text.chars().count() > CHARS_MAX { "..." } else { "" };
    format!("is \"{}{dots}\"", cut.escape_debug())
}

fn text<'v>(value: &'v DeValue, want: &str) -> Result<&'v str, Wrong> {
    match value.as_str() {
        Some(text) => Ok(text),
        None => wrong(is_a(value), want),
    }
}

/// A whole number within bounds.
pub(super) fn number(range: RangeInclusive<u64>) -> impl Fn(&DeValue) -> Result<u64, Wrong> {
    move |value| {
        let want = format!("want a number from {} to {}", range.start(), range.end());
        let Some(integer) = value.as_integer() else { return wrong(is_a(value), want) };
        match u64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => wrong(format!("is {integer}"), want),
        }
    }
}

/// The same for numbers that also must be powers of two.
pub(super) fn power_of_two(range: RangeInclusive<u64>) -> impl Fn(&DeValue) -> Result<u64, Wrong> {
    move |value| {
        let number = number(range.clone())(value)?;
        if number.is_power_of_two() {
            return Ok(number);
        }
        let near = number.next_power_of_two().min(*range.end());
        wrong(format!("is {number}"), format!("want a power of two, such as {near}"))
    }
}

/// `true` or `false`.
pub(super) fn boolean(value: &DeValue) -> Result<bool, Wrong> {
    value.as_bool().map_or_else(|| wrong(is_a(value), "want true or false"), Ok)
}

/// One of a few words, each standing for something.
pub(super) fn choice<T: Copy>(
    choices: &'static [(&'static str, T)],
) -> impl Fn(&DeValue) -> Result<T, Wrong> {
    move |value| {
        let words: Vec<_> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let want = format!("want one of {}", words.join(", "));
        let word = text(value, &want)?;
        match choices.iter().find(|(known, _)| *known == word) {
            Some((_, meaning)) => Ok(*meaning),
            None => wrong(shown(word), want),
        }
    }
}

/// A name: letters, digits, `-`, `_` and `.`, not beginning with a sign.
pub(super) fn name(value: &DeValue) -> Result<String, Wrong> {
    let want = "want letters, digits, '-', '_', '.'; a letter or digit first; at most 32";
    let name = text(value, want)?;
    let sign = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && name.len() <= NAME_BYTES_MAX && name.bytes().all(sign) {
        Ok(name.to_string())
    } else {
        wrong(shown(name), want)
    }
}

/// A disk's name, which the guest reads as its serial (virtio 1.2, 5.2.6: 20 bytes).
pub(super) fn disk_name(value: &DeValue) -> Result<String, Wrong> {
    const SERIAL_BYTES_MAX: usize = 20;
    let name = name(value)?;
    if name.len() <= SERIAL_BYTES_MAX {
        return Ok(name);
    }
    wrong(shown(&name), "want at most 20 characters: it is the serial that the guest reads")
}

/// Permissions of a socket as people write them, "0660": at most read and write for everybody.
pub(super) fn mode(value: &DeValue) -> Result<u16, Wrong> {
    let want = "want permissions in octal as text, such as \"0660\": at most \"0666\"";
    let text = text(value, want)?;
    let digits = text.len() == 4 && text.starts_with('0');
    match u16::from_str_radix(text, 8) {
        Ok(mode) if digits && mode & !0o666 == 0 => Ok(mode),
        _ => wrong(shown(text), want),
    }
}

/// A user's or group's name, or its number as text.
pub(super) fn account(value: &DeValue) -> Result<String, Wrong> {
    let want = "want a name such as \"kvm\", or a number as text";
    let name = text(value, want)?;
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.$".contains(&byte);
    match !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(is_legal) {
        true => Ok(name.to_owned()),
        false => wrong(shown(name), want),
    }
}

/// A network interface's name, as the kernel's dev_valid_name() allows.
pub(super) fn interface(value: &DeValue) -> Result<String, Wrong> {
    let want = "want an interface's name, such as \"eth0\": 1 to 15 bytes, no '/', ':' or space";
    let name = text(value, want)?;
    is_interface_name(name).then(|| name.to_string()).map_or_else(|| wrong(shown(name), want), Ok)
}

/// A device of DPDK's: a driver's name and arguments, or an address.
pub(super) fn device(value: &DeValue) -> Result<String, Wrong> {
    let want = "want a driver with a number and its arguments, such as \
        \"net_af_packet0,iface=eth1\", or a PCI address, such as \"0000:01:00.0\"";
    let device = text(value, want)?;
    let possible = |c: char| c.is_ascii_graphic() && c != '"';
    let ok = (1..=DEVICE_BYTES_MAX).contains(&device.len()) && device.chars().all(possible);
    ok.then(|| device.to_string()).map_or_else(|| wrong(shown(device), want), Ok)
}

/// Arguments of DPDK's environment.
pub(super) fn arguments(value: &DeValue) -> Result<Vec<String>, Wrong> {
    let want = "want a list of arguments, such as [\"--no-huge\", \"--no-pci\"]";
    let Some(array) = value.as_array() else { return wrong(is_a(value), want) };
    if array.len() > ARGUMENTS_MAX {
        return wrong(format!("has {} entries", array.len()), "want at most 64 arguments");
    }
    let mut arguments = Vec::new();
    for item in array.iter() {
        let argument = text(item.get_ref(), want)?;
        if argument.is_empty() || argument.chars().any(char::is_control) {
            return wrong(format!("holds {argument:?}"), want);
        }
        arguments.push(argument.to_string());
    }
    Ok(arguments)
}

/// Whether a name is possible for a network interface.
pub fn is_interface_name(name: &str) -> bool {
    let possible = |c: char| c != '/' && c != ':' && !c.is_whitespace() && !c.is_control();
    (1..=INTERFACE_BYTES_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && name.chars().all(possible)
}

/// Whether packets can be sent to the address as to one host.
fn is_host(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && !address.is_loopback() && first < 224
}

/// The IPv4 address of one host.
pub(super) fn ipv4(value: &DeValue) -> Result<Ipv4Addr, Wrong> {
    let want = "want an IPv4 address, such as \"10.0.0.1\"";
    let given = text(value, want)?;
    match given.parse() {
        Ok(address) if is_host(address) => Ok(address),
        Ok(_) => wrong(shown(given), "want the address of one host: not 0/8, 127/8, multicast"),
        Err(_) => wrong(shown(given), want),
    }
}

/// The same for IPv6; link-local addresses mean something on one link only.
fn is_host6(address: Ipv6Addr) -> bool {
    let mapped = address.to_ipv4_mapped().is_some();
    let special = address.is_unspecified() || address.is_loopback() || mapped;
    !special && !address.is_multicast() && !address.is_unicast_link_local()
}

/// The IPv6 address of one host.
pub(super) fn ipv6(value: &DeValue) -> Result<Ipv6Addr, Wrong> {
    let want = "want an IPv6 address, such as \"fd00::1\"";
    let given = text(value, want)?;
    match given.parse() {
        Ok(address) if is_host6(address) => Ok(address),
        Ok(_) => wrong(shown(given), "want a host's global address: not fe80::/10, ff00::/8, ::1"),
        Err(_) => wrong(shown(given), want),
    }
}

/// The address of one host, of either family.
pub(super) fn ip(value: &DeValue) -> Result<IpAddr, Wrong> {
    let want = "want an IP address, such as \"192.0.2.2\" or \"2001:db8::2\"";
    match text(value, want)?.parse() {
        Ok(IpAddr::V4(_)) => ipv4(value).map(IpAddr::V4),
        Ok(IpAddr::V6(_)) => ipv6(value).map(IpAddr::V6),
        Err(_) => wrong(shown(text(value, want)?), want),
    }
}

fn split_prefix(value: &DeValue, want: &str) -> Result<(IpAddr, u8), Wrong> {
    let given = text(value, want)?;
    let parts = given.split_once('/').and_then(|(address, len)| {
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let digits = len.bytes().all(|byte| byte.is_ascii_digit());
        Some((address, len.parse().ok().filter(|len| digits && *len <= most)?))
    });
    parts.map_or_else(|| wrong(shown(given), want), Ok)
}

/// A network without host bits.
pub(super) fn network(value: &DeValue) -> Result<IpPrefix, Wrong> {
    let (address, len) = split_prefix(value, "want a network, such as \"10.0.1.0/24\"")?;
    if let Some(prefix) = IpPrefix::new(address, len) {
        return Ok(prefix);
    }
    let right = IpPrefix::containing(address, len).map(|prefix| prefix.to_string());
    let want = format!("host bits are set; want \"{}\"", right.unwrap_or_default());
    wrong(format!("is \"{address}/{len}\""), want)
}

/// A host's IPv4 address with the prefix length of its network.
pub(super) fn interface4(value: &DeValue) -> Result<Ipv4Interface, Wrong> {
    let want = "want address and prefix length, such as \"10.0.0.1/24\"";
    let (IpAddr::V4(address), prefix_len) = split_prefix(value, want)? else {
        return wrong(shown(text(value, want)?), "this is an IPv6 address; want it as `address6`");
    };
    let what = || format!("is \"{address}/{prefix_len}\"");
    if !is_host(address) || prefix_len == 0 {
        return wrong(what(), want);
    }
    let mask = u32::MAX << (32 - u32::from(prefix_len));
    let host = address.to_bits() & !mask;
    // RFC 3021: networks of 31 and 32 bits have neither of the two reserved addresses.
    if prefix_len <= 30 && host == 0 {
        return wrong(what(), "this is the network itself; want a host's address in it");
    }
    if prefix_len <= 30 && host == !mask {
        return wrong(what(), "this is the network's broadcast address; want a host's");
    }
    Ok(Ipv4Interface { address, prefix_len })
}

/// A host's IPv6 address with the prefix length of its network.
pub(super) fn interface6(value: &DeValue) -> Result<Ipv6Interface, Wrong> {
    let want = "want address and prefix length, such as \"fd00::1/64\"";
    let (IpAddr::V6(address), prefix_len) = split_prefix(value, want)? else {
        return wrong(shown(text(value, want)?), "this is an IPv4 address; want it as `address`");
    };
    let what = || format!("is \"{address}/{prefix_len}\"");
    if !is_host6(address) || prefix_len == 0 {
        return wrong(what(), want);
    }
    // RFC 4291, 2.6.1: the network's own address is that of all its routers; RFC 6164 gives it
    // to a host where a network has two addresses.
    let host = address.to_bits() & u128::MAX.checked_shr(u32::from(prefix_len)).unwrap_or(0);
    if prefix_len <= 126 && host == 0 {
        return wrong(what(), "this is the network itself; want a host's address in it");
    }
    Ok(Ipv6Interface { address, prefix_len })
}

/// `"copy"`, or a codepoint.
pub(super) fn dscp(value: &DeValue) -> Result<Dscp, Wrong> {
    const CODEPOINT_MAX: u64 = 63;
    if value.as_str() == Some("copy") {
        return Ok(Dscp::Copy);
    }
    match number(0..=CODEPOINT_MAX)(value) {
        Ok(codepoint) => Ok(Dscp::Fixed(codepoint as u8)),
        Err(Wrong { what, .. }) => wrong(what, "want \"copy\" or a number from 0 to 63"),
    }
}

/// The MAC address of one interface.
pub(super) fn mac(value: &DeValue) -> Result<Mac, Wrong> {
    let want = "want six hexadecimal bytes, such as \"02:00:00:00:00:01\"";
    let given = text(value, want)?;
    match given.parse::<Mac>() {
        Ok(mac) if mac.is_group() => {
            wrong(shown(given), "this is a group address; want an even first byte")
        }
        Ok(mac) if mac != Mac::default() => Ok(mac),
        _ => wrong(shown(given), want),
    }
}

/// An address and port.
pub(super) fn socket_address(value: &DeValue) -> Result<SocketAddr, Wrong> {
    let want = "want address and port, such as \"192.0.2.1:4420\"";
    let given = text(value, want)?;
    match given.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        _ => wrong(shown(given), want),
    }
}

/// An NVMe qualified name: NVM Express Base Specification 2.0, 4.5.
pub(super) fn nqn(value: &DeValue) -> Result<String, Wrong> {
    let want = "want an NVMe qualified name, such as \"nqn.2025-01.org.example:disk1\"";
    let given = text(value, want)?;
    let digits =
        |text: &str, count| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    let well_formed = given.strip_prefix("nqn.").and_then(|rest| {
        let (date, name) = rest.split_once('.')?;
        let (year, month) = date.split_once('-')?;
        let graphic = !name.is_empty() && given.chars().all(|c| !c.is_control() && c != ' ');
        Some(digits(year, 4) && digits(month, 2) && graphic)
    });
    if well_formed == Some(true) && given.len() <= NQN_BYTES_MAX {
        Ok(given.to_string())
    } else {
        wrong(shown(given), want)
    }
}

fn absolute_path(value: &DeValue, bytes_max: usize, want: &str) -> Result<PathBuf, Wrong> {
    let given = text(value, want)?;
    let parent = given.split('/').any(|part| part == "..");
    let usable = given.starts_with('/') && !given.ends_with('/') && !parent;
    if usable && given.len() <= bytes_max && !given.contains('\0') {
        Ok(PathBuf::from(given))
    } else {
        wrong(shown(given), want)
    }
}

/// An absolute path of a file or device.
pub(super) fn path(value: &DeValue) -> Result<PathBuf, Wrong> {
    absolute_path(value, PATH_BYTES_MAX, "want an absolute path of a file, without \"..\"")
}

/// An absolute path of a Unix socket.
pub(super) fn socket_path(value: &DeValue) -> Result<PathBuf, Wrong> {
    let want = "want an absolute path of a socket, without \"..\", at most 107 bytes";
    absolute_path(value, SOCKET_PATH_BYTES_MAX, want)
}

/// A size: bytes as a number, or a string with a unit.
pub(super) fn size(value: &DeValue) -> Result<u64, Wrong> {
    const UNITS: [(&str, u64); 5] =
        [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40), ("B", 1)];
    if value.is_integer() {
        return number(1..=EXTENT_BYTES_MAX)(value);
    }
    let want = "want a size up to 1024TiB, such as \"64MiB\" (B, KiB, MiB, GiB, TiB)";
    let given = text(value, want)?;
    let digits = given.len() - given.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (count, unit) = given.split_at(digits);
    let factor =
        UNITS.iter().find(|(name, _)| *name == unit.trim_start()).map(|(_, factor)| factor);
    let bytes = count.parse::<u64>().ok().zip(factor).and_then(|(count, f)| count.checked_mul(*f));
    match bytes {
        Some(bytes) if (1..=EXTENT_BYTES_MAX).contains(&bytes) => Ok(bytes),
        _ => wrong(shown(given), want),
    }
}

/// A list of worker numbers.
pub(super) fn worker_list(value: &DeValue) -> Result<Vec<u16>, Wrong> {
    let want = "want a list of worker numbers, such as [0, 1]";
    let Some(array) = value.as_array() else { return wrong(is_a(value), want) };
    if array.is_empty() || array.len() > super::network::QUEUES_MAX as usize {
        return wrong(format!("has {} entries", array.len()), "want 1 to 16 worker numbers");
    }
    let mut workers = Vec::new();
    for item in array.iter() {
        let worker = number(0..=u64::from(u16::MAX))(item.get_ref())
            .map_err(|_| Wrong { what: "holds something else".into(), want: want.into() })?;
        workers.push(worker as u16);
    }
    Ok(workers)
}
