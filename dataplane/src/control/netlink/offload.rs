//! Switching a link's offloads off and counting its queues, over the kernel's ethtool netlink
//! family (Documentation/networking/ethtool-netlink.rst).
//!
//! A tenant's kernel leaves checksums and segmentation to its interface. What arrives over AF_XDP
//! would then carry half a checksum, or be too large: so the tenant's end must do both itself.

use super::socket::Netlink;
use netlink_packet_core::{
    DecodeError, Emitable, NLA_F_NESTED, NLA_TYPE_MASK, NetlinkDeserializable, NetlinkHeader,
    NetlinkSerializable, Nla, NlasIterator,
};
use netlink_sys::protocols;
use std::io;

// linux/genetlink.h
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
// linux/ethtool_netlink.h
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
const ETHTOOL_MSG_CHANNELS_GET: u8 = 17;
const ETHTOOL_A_CHANNELS_HEADER: u16 = 1;
const ETHTOOL_A_CHANNELS_RX_COUNT: u16 = 6;
const ETHTOOL_A_CHANNELS_COMBINED_COUNT: u16 = 9;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_HEADER_DEV_NAME: u16 = 2;
const ETHTOOL_A_HEADER_FLAGS: u16 = 3;
const ETHTOOL_FLAG_OMIT_REPLY: u32 = 1 << 1;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;

/// Switches transmit checksums and segmentation off for a link of this thread's namespace. To be
/// run again has no further effect.
pub(super) fn switch_off(interface: &str) -> io::Result<()> {
    let mut netlink = Netlink::<Generic>::new(protocols::NETLINK_GENERIC)?;
    let family = family(&mut netlink, "ethtool")?;
    let header = [text(ETHTOOL_A_HEADER_DEV_NAME, interface)];
    let request = vec![nested(ETHTOOL_A_FEATURES_HEADER, &header)];
    let features =
        netlink.get(Generic { family, command: ETHTOOL_MSG_FEATURES_GET, attributes: request })?;
    let bits: Vec<_> = active(&features.attributes)
        .iter()
        .filter(|name| must_be_off(name))
        // A bit that is listed without a value is to be cleared; bits not listed stay.
        .map(|name| nested(ETHTOOL_A_BITSET_BITS_BIT, &[text(ETHTOOL_A_BITSET_BIT_NAME, name)]))
        .collect();
    if bits.is_empty() {
        return Ok(());
    }
    let flags = ETHTOOL_FLAG_OMIT_REPLY.to_ne_bytes().to_vec();
    let header = [
        text(ETHTOOL_A_HEADER_DEV_NAME, interface),
        Attribute { kind: ETHTOOL_A_HEADER_FLAGS, value: flags },
    ];
    let attributes = vec![
        nested(ETHTOOL_A_FEATURES_HEADER, &header),
        nested(ETHTOOL_A_FEATURES_WANTED, &[nested(ETHTOOL_A_BITSET_BITS, &bits)]),
    ];
    netlink.change(Generic { family, command: ETHTOOL_MSG_FEATURES_SET, attributes }, 0)
}

/// The queues that a link of this thread's namespace receives on; `None` when its driver does not
/// tell.
pub(super) fn receive_queues(interface: &str) -> io::Result<Option<u32>> {
    let mut netlink = Netlink::<Generic>::new(protocols::NETLINK_GENERIC)?;
    let family = family(&mut netlink, "ethtool")?;
    let header = [text(ETHTOOL_A_HEADER_DEV_NAME, interface)];
    let attributes = vec![nested(ETHTOOL_A_CHANNELS_HEADER, &header)];
    let request = Generic { family, command: ETHTOOL_MSG_CHANNELS_GET, attributes };
    match netlink.get(request) {
        Ok(answer) => Ok(Some(count_receiving(&answer.attributes))),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The receive queues in the answer to ETHTOOL_MSG_CHANNELS_GET: those that only receive and those
/// that do both.
fn count_receiving(attributes: &[Attribute]) -> u32 {
    let counts = [ETHTOOL_A_CHANNELS_RX_COUNT, ETHTOOL_A_CHANNELS_COMBINED_COUNT];
    let counts = attributes.iter().filter(|attribute| counts.contains(&attribute.kind));
    let numbers = counts.filter_map(|count| count.value.as_slice().try_into().ok());
    numbers.map(u32::from_ne_bytes).fold(0, u32::saturating_add)
}

/// Whether a feature, by its name in the kernel's string set, leaves work on a packet to the
/// interface. Goes by the form of the name, because kernels add features.
fn must_be_off(name: &str) -> bool {
    let work = ["checksum", "segmentation", "gso"];
    name.starts_with("tx-") && work.iter().any(|work| name.contains(work))
}

/// The names of the features that are on, out of the answer to ETHTOOL_MSG_FEATURES_GET.
fn active(attributes: &[Attribute]) -> Vec<String> {
    let bits = attributes
        .iter()
        .filter(|attribute| attribute.kind == ETHTOOL_A_FEATURES_ACTIVE)
        .flat_map(|set| inside(&set.value, ETHTOOL_A_BITSET_BITS))
        .flat_map(|bits| inside(&bits, ETHTOOL_A_BITSET_BITS_BIT));
    let names = bits.flat_map(|bit| inside(&bit, ETHTOOL_A_BITSET_BIT_NAME));
    names
        .map(|name| String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(&name)).into())
        .collect()
}

/// The number that the kernel gave to a generic netlink family.
fn family(netlink: &mut Netlink<Generic>, name: &str) -> io::Result<u16> {
    let attributes = vec![text(CTRL_ATTR_FAMILY_NAME, name)];
    let request = Generic { family: GENL_ID_CTRL, command: CTRL_CMD_GETFAMILY, attributes };
    let answer = netlink.get(request)?;
    let id = answer.attributes.iter().find(|attribute| attribute.kind == CTRL_ATTR_FAMILY_ID);
    let id = id.and_then(|id| id.value.as_slice().try_into().ok()).map(u16::from_ne_bytes);
    id.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A generic netlink message: command and attributes.
#[derive(Clone, Debug)]
struct Generic {
    family: u16,
    command: u8,
    attributes: Vec<Attribute>,
}

/// One attribute; flags of its kind are left out where it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attribute {
    kind: u16,
    value: Vec<u8>,
}

impl Nla for Attribute {
    fn value_len(&self) -> usize {
        self.value.len()
    }

    fn kind(&self) -> u16 {
        self.kind
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.value);
    }
}

impl NetlinkSerializable for Generic {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        4 + self.attributes.as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        const VERSION: u8 = 1;
        buffer[..4].copy_from_slice(&[self.command, VERSION, 0, 0]);
        self.attributes.as_slice().emit(&mut buffer[4..]);
    }
}

impl NetlinkDeserializable for Generic {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Generic, DecodeError> {
        let short = || DecodeError::from("a generic netlink message without its header");
        let (head, body) = payload.split_at_checked(4).ok_or_else(short)?;
        let attributes = parse(body);
        Ok(Generic { family: header.message_type, command: head[0], attributes })
    }
}

/// The attributes in some bytes, up to what is none.
fn parse(bytes: &[u8]) -> Vec<Attribute> {
    let whole = NlasIterator::new(bytes).map_while(Result::ok);
    whole
        .map(|nla| Attribute { kind: nla.kind() & NLA_TYPE_MASK, value: nla.value().to_vec() })
        .collect()
}

/// The values of the attributes of one kind within another's value.
fn inside(value: &[u8], kind: u16) -> Vec<Vec<u8>> {
    let wanted = parse(value).into_iter().filter(|attribute| attribute.kind == kind);
    wanted.map(|attribute| attribute.value).collect()
}

fn text(kind: u16, text: &str) -> Attribute {
    let mut value = text.as_bytes().to_vec();
    value.push(0);
    Attribute { kind, value }
}

fn nested(kind: u16, inside: &[Attribute]) -> Attribute {
    let mut value = vec![0; inside.buffer_len()];
    inside.emit(&mut value);
    Attribute { kind: kind | NLA_F_NESTED, value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_on_packets_must_be_off_and_nothing_else() {
        for name in ["tx-checksum-ip-generic", "tx-tcp-accecn-segmentation", "tx-gso-list"] {
            assert!(must_be_off(name), "{name}");
        }
        for name in ["rx-checksum", "rx-gro", "tx-scatter-gather", "tx-vlan-hw-insert"] {
            assert!(!must_be_off(name), "{name}");
        }
    }

    #[test]
    fn queues_that_receive_are_counted() {
        let count = |kind, count: u32| Attribute { kind, value: count.to_ne_bytes().to_vec() };
        // Maxima (2 to 5) and transmit queues (7) do not count, nor does what is not a number.
        let mut all: Vec<_> = (2..=9).map(|kind| count(kind, 10 + u32::from(kind))).collect();
        assert_eq!(count_receiving(&all), 16 + 19);
        all.push(Attribute { kind: ETHTOOL_A_CHANNELS_RX_COUNT, value: vec![1] });
        assert_eq!(count_receiving(&all), 16 + 19);
        assert_eq!(count_receiving(&[]), 0);
    }

    #[test]
    fn nested_names_come_back() {
        let bit =
            |name| nested(ETHTOOL_A_BITSET_BITS_BIT, &[text(ETHTOOL_A_BITSET_BIT_NAME, name)]);
        let set = nested(ETHTOOL_A_BITSET_BITS, &[bit("tx-a"), bit("tx-bcd")]);
        let message = nested(ETHTOOL_A_FEATURES_ACTIVE, &[set]);
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        assert_eq!(active(&parse(&bytes)), ["tx-a", "tx-bcd"]);
    }

    #[test]
    fn any_bytes_are_parsed_or_left() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            let attributes = parse(bytes);
            assert!(attributes.iter().map(|a| a.value.len() + 4).sum::<usize>() <= bytes.len());
            let _ = active(&attributes);
        });
    }
}
