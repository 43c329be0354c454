//! Neighbour discovery for IPv6 (RFC 4861): solicitations in, advertisements out. Messages are
//! ICMPv6 from the type on; the IPv6 header around them is the caller's to check.

use crate::{Mac, Malformed};
use core::net::Ipv6Addr;

/// The hop limit of every message: one that is less came from beyond the link (section 3.1).
pub const HOP_LIMIT: u8 = 255;
/// ICMPv6 type of a router solicitation.
pub const ROUTER_SOLICITATION: u8 = 133;
/// ICMPv6 type of a router advertisement.
pub const ROUTER_ADVERTISEMENT: u8 = 134;
/// ICMPv6 type of a neighbour solicitation.
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
/// ICMPv6 type of a neighbour advertisement.
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Every node on the link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Option: the sender's link-layer address.
const SOURCE_ADDRESS: u8 = 1;
/// Option: the target's link-layer address.
const TARGET_ADDRESS: u8 = 2;
/// Option: a prefix of the link.
const PREFIX: u8 = 3;
/// Option: the link's MTU.
const MTU: u8 = 5;

/// Bytes of a neighbour solicitation or advertisement without options.
const NEIGHBOUR_BYTES: usize = 24;
/// Bytes of a router solicitation without options.
const ROUTER_SOLICITATION_BYTES: usize = 8;
/// Bytes of a router advertisement without options.
const ROUTER_ADVERTISEMENT_BYTES: usize = 16;
/// Bytes of a link-layer address option.
const ADDRESS_OPTION_BYTES: usize = 8;

/// The multicast address at which whoever has `address` is asked for (RFC 4291 section 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    const PREFIX: u128 = 0xff02_0000_0000_0000_0000_0001_ff00_0000;
    Ipv6Addr::from_bits(PREFIX | address.to_bits() & 0xff_ffff)
}

/// The Ethernet address of a multicast address (RFC 2464 section 7).
pub fn multicast_mac(address: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = address.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

/// The link-local address made from a MAC address (RFC 4291 appendix A).
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let id = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(id))
}

/// Who has an address?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Solicitation {
    /// The address asked for.
    pub target: Ipv6Addr,
    /// The asker's link-layer address, if it tells.
    pub source_mac: Option<Mac>,
}

impl Solicitation {
    /// Reads the neighbour solicitation that `message` is.
    pub fn parse(message: &[u8]) -> Result<Solicitation, Malformed> {
        let target = neighbour(message, NEIGHBOUR_SOLICITATION)?;
        let source_mac = link_layer_address(&message[NEIGHBOUR_BYTES..], SOURCE_ADDRESS)?;
        Ok(Solicitation { target, source_mac })
    }
}

/// Somebody has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// The address.
    pub target: Ipv6Addr,
    /// Where it is.
    pub mac: Mac,
    /// Whether a router has it.
    pub router: bool,
    /// Whether somebody asked.
    pub solicited: bool,
    /// Whether what was known before is wrong.
    pub overrides: bool,
}

impl Advertisement {
    /// Bytes of a message with the target's link-layer address.
    pub const BYTES: usize = NEIGHBOUR_BYTES + ADDRESS_OPTION_BYTES;

    /// Reads the neighbour advertisement that `message` is, which must tell the link-layer address.
    pub fn parse(message: &[u8]) -> Result<Advertisement, Malformed> {
        let target = neighbour(message, NEIGHBOUR_ADVERTISEMENT)?;
        let mac = link_layer_address(&message[NEIGHBOUR_BYTES..], TARGET_ADDRESS)?;
        let bit = |bit: u8| message[4] & bit != 0;
        Ok(Advertisement {
            target,
            mac: mac.ok_or(Malformed::Nd)?,
            router: bit(0x80),
            solicited: bit(0x40),
            overrides: bit(0x20),
        })
    }

    /// The message, its checksum zero.
    pub fn emit(&self) -> [u8; Advertisement::BYTES] {
        let mut m = [0; Advertisement::BYTES];
        m[0] = NEIGHBOUR_ADVERTISEMENT;
        let bits = [(self.router, 0x80), (self.solicited, 0x40), (self.overrides, 0x20)];
        m[4] = bits.iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum();
        m[8..24].copy_from_slice(&self.target.octets());
        emit_address(&mut m[NEIGHBOUR_BYTES..], TARGET_ADDRESS, self.mac);
        m
    }
}

/// Whether `message` is a right router solicitation; the asker's link-layer address, if it tells.
pub fn parse_router_solicitation(message: &[u8]) -> Result<Option<Mac>, Malformed> {
    if message.len() < ROUTER_SOLICITATION_BYTES {
        return Err(Malformed::Nd);
    }
    if message[..2] != [ROUTER_SOLICITATION, 0] {
        return Err(Malformed::Nd);
    }
    link_layer_address(&message[ROUTER_SOLICITATION_BYTES..], SOURCE_ADDRESS)
}

/// A router tells of itself and of the link. Addresses are not to be made from the prefix
/// (the autonomous flag is not set).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterAdvertisement {
    /// The hop limit that hosts shall begin with.
    pub hop_limit: u8,
    /// For how long the router will be there.
    pub lifetime_s: u16,
    /// Where it is.
    pub mac: Mac,
    /// The link's MTU.
    pub mtu: u32,
    /// Network and prefix length of the link.
    pub prefix: (Ipv6Addr, u8),
    /// For how long the prefix is valid.
    pub prefix_lifetime_s: u32,
}

impl RouterAdvertisement {
    /// Bytes of a message.
    pub const BYTES: usize = ROUTER_ADVERTISEMENT_BYTES + ADDRESS_OPTION_BYTES + 8 + 32;

    /// The message, its checksum zero.
    pub fn emit(&self) -> [u8; RouterAdvertisement::BYTES] {
        let mut m = [0; RouterAdvertisement::BYTES];
        m[0] = ROUTER_ADVERTISEMENT;
        m[4] = self.hop_limit;
        m[6..8].copy_from_slice(&self.lifetime_s.to_be_bytes());
        emit_address(&mut m[16..24], SOURCE_ADDRESS, self.mac);
        (m[24], m[25]) = (MTU, 1);
        m[28..32].copy_from_slice(&self.mtu.to_be_bytes());
        // On-link, not autonomous (RFC 4861 section 4.6.2).
        (m[32], m[33], m[34], m[35]) = (PREFIX, 4, self.prefix.1, 0x80);
        m[36..40].copy_from_slice(&self.prefix_lifetime_s.to_be_bytes());
        m[40..44].copy_from_slice(&self.prefix_lifetime_s.to_be_bytes());
        m[48..64].copy_from_slice(&self.prefix.0.octets());
        m
    }
}

/// The target of a neighbour message of this type.
fn neighbour(message: &[u8], kind: u8) -> Result<Ipv6Addr, Malformed> {
    let m = message.first_chunk::<NEIGHBOUR_BYTES>().ok_or(Malformed::Nd)?;
    let mut octets = [0; 16];
    octets.copy_from_slice(&m[8..24]);
    let target = Ipv6Addr::from(octets);
    // RFC 4861 section 7.1.1: code 0, and a target that is no group.
    if m[..2] != [kind, 0] || target.is_multicast() { Err(Malformed::Nd) } else { Ok(target) }
}

/// Looks through all options for a link-layer address; options that are not known are skipped.
fn link_layer_address(mut options: &[u8], kind: u8) -> Result<Option<Mac>, Malformed> {
    let mut found = None;
    // Every option has eight bytes at least: the message's length bounds the loop.
    while !options.is_empty() {
        let bytes = options.get(1).map_or(0, |eights| usize::from(*eights) * 8);
        // RFC 4861 section 4.6: an option of length zero makes the whole message wrong.
        if bytes == 0 || bytes > options.len() {
            return Err(Malformed::Nd);
        }
        if let ([first, _, a, b, c, d, e, f], true) = (&options[..8], found.is_none())
            && *first == kind
            && bytes == ADDRESS_OPTION_BYTES
        {
            found = Some(Mac([*a, *b, *c, *d, *e, *f]));
        }
        options = &options[bytes..];
    }
    Ok(found)
}

fn emit_address(option: &mut [u8], kind: u8, mac: Mac) {
    option[..2].copy_from_slice(&[kind, 1]);
    option[2..8].copy_from_slice(&mac.0);
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn target() -> Ipv6Addr {
        "fd00::12:3456".parse().unwrap()
    }

    /// Who has fd00::12:3456? Tell 02:00:00:00:00:09.
    fn solicitation() -> [u8; 32] {
        let mut m = [0; 32];
        m[0] = NEIGHBOUR_SOLICITATION;
        m[8..24].copy_from_slice(&target().octets());
        emit_address(&mut m[24..], SOURCE_ADDRESS, MAC);
        m
    }

    #[test]
    fn addresses_made_from_others() {
        assert_eq!(solicited_node(target()), "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap());
        assert_eq!(
            multicast_mac(solicited_node(target())),
            Mac([0x33, 0x33, 0xff, 0x12, 0x34, 0x56])
        );
        assert_eq!(multicast_mac(ALL_NODES), Mac([0x33, 0x33, 0, 0, 0, 1]));
        assert_eq!(link_local(MAC), "fe80::ff:fe00:9".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn solicitations() {
        let bytes = solicitation();
        let asked = Solicitation::parse(&bytes).unwrap();
        assert_eq!(asked, Solicitation { target: target(), source_mac: Some(MAC) });
        assert_eq!(Solicitation::parse(&bytes[..24]).unwrap().source_mac, None);
        for len in (0..24).chain(25..32) {
            assert_eq!(Solicitation::parse(&bytes[..len]), Err(Malformed::Nd), "{len}");
        }
        for (at, value) in [(0, 136), (1, 1), (8, 0xff), (25, 0), (25, 2)] {
            let mut bad = bytes;
            bad[at] = value;
            assert_eq!(Solicitation::parse(&bad), Err(Malformed::Nd), "byte {at} = {value}");
        }
        let mut other = bytes;
        other[24] = 99;
        assert_eq!(Solicitation::parse(&other).unwrap().source_mac, None, "an unknown option");
    }

    #[test]
    fn advertisements_as_rfc_4861_lays_them_out() {
        let told = Advertisement {
            target: target(),
            mac: MAC,
            router: true,
            solicited: true,
            overrides: false,
        };
        let bytes = told.emit();
        assert_eq!(bytes[..8], [136, 0, 0, 0, 0xc0, 0, 0, 0]);
        assert_eq!(bytes[24..], [2, 1, 2, 0, 0, 0, 0, 9]);
        assert_eq!(Advertisement::parse(&bytes), Ok(told));
        assert_eq!(Advertisement::parse(&bytes[..24]), Err(Malformed::Nd));
    }

    #[test]
    fn routers() {
        let mut asks = [0; 16];
        asks[0] = ROUTER_SOLICITATION;
        emit_address(&mut asks[8..], SOURCE_ADDRESS, MAC);
        assert_eq!(parse_router_solicitation(&asks), Ok(Some(MAC)));
        assert_eq!(parse_router_solicitation(&asks[..8]), Ok(None));
        assert_eq!(parse_router_solicitation(&asks[..7]), Err(Malformed::Nd));
        asks[9] = 0;
        assert_eq!(parse_router_solicitation(&asks), Err(Malformed::Nd));
        let told = RouterAdvertisement {
            hop_limit: 64,
            lifetime_s: 9000,
            mac: MAC,
            mtu: 1450,
            prefix: ("fd00::".parse().unwrap(), 64),
            prefix_lifetime_s: u32::MAX,
        };
        let bytes = told.emit();
        assert_eq!(bytes[..8], [134, 0, 0, 0, 64, 0, 0x23, 0x28]);
        assert_eq!(bytes[16..32], [1, 1, 2, 0, 0, 0, 0, 9, 5, 1, 0, 0, 0, 0, 0x05, 0xaa]);
        assert_eq!(bytes[32..36], [3, 4, 64, 0x80]);
        assert_eq!(bytes[48..50], [0xfd, 0]);
        assert_eq!(link_layer_address(&bytes[16..], SOURCE_ADDRESS), Ok(Some(MAC)));
    }

    #[test]
    fn any_bytes_parse_or_name_the_fault() {
        bolero::check!().with_type::<(u8, Vec<u8>)>().for_each(|(kind, bytes)| {
            let mut bytes = bytes.clone();
            if let Some([first, code, ..]) = bytes.get_mut(..2) {
                (*first, *code) = (133 + kind % 4, *code & 1);
            }
            let _ = parse_router_solicitation(&bytes);
            if let Ok(told) = Advertisement::parse(&bytes) {
                assert_eq!(told.emit()[8..24], bytes[8..24]);
            }
            if let Ok(asked) = Solicitation::parse(&bytes) {
                assert!(bytes.len() >= 24 && !asked.target.is_multicast());
                assert!(asked.source_mac.is_none() || bytes.len() >= 32);
            }
        });
    }
}
