//! Addresses in their own types.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

/// An IEEE 802 MAC address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The broadcast address.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// Whether the group bit is set (multicast, broadcast).
    #[inline(always)]
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not an address of the wanted form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressError;

impl FromStr for Mac {
    type Err = AddressError;

    /// Six two-digit hexadecimal bytes joined by colons.
    fn from_str(text: &str) -> Result<Mac, AddressError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(AddressError)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| AddressError)?;
        }
        if parts.next().is_some() { Err(AddressError) } else { Ok(Mac(bytes)) }
    }
}

/// An IPv4 network: address and prefix length, host bits zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv4Prefix {
    address: Ipv4Addr,
    len: u8,
}

impl Ipv4Prefix {
    /// `None` when `len` exceeds 32 or a host bit is set.
    pub fn new(address: Ipv4Addr, len: u8) -> Option<Ipv4Prefix> {
        let prefix = Ipv4Prefix { address, len };
        (len <= 32 && address.to_bits() & !prefix.mask() == 0).then_some(prefix)
    }

    /// The network that contains `address`; `None` when `len` exceeds 32.
    pub fn containing(address: Ipv4Addr, len: u8) -> Option<Ipv4Prefix> {
        let mask = Ipv4Prefix { address, len: len.min(32) }.mask();
        Ipv4Prefix::new(Ipv4Addr::from_bits(address.to_bits() & mask), len)
    }

    /// The network address.
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// The prefix length in bits.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(self) -> u8 {
        self.len
    }

    /// The netmask as a number in host order.
    pub fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.len)).unwrap_or(0)
    }

    /// Whether the network covers `address`.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask() == self.address.to_bits()
    }
}

impl fmt::Display for Ipv4Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl fmt::Debug for Ipv4Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An IPv6 network: address and prefix length, host bits zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv6Prefix {
    address: Ipv6Addr,
    len: u8,
}

impl Ipv6Prefix {
    /// `None` when `len` exceeds 128 or a host bit is set.
    pub fn new(address: Ipv6Addr, len: u8) -> Option<Ipv6Prefix> {
        let prefix = Ipv6Prefix { address, len };
        (len <= 128 && address.to_bits() & !prefix.mask() == 0).then_some(prefix)
    }

    /// The network that contains `address`; `None` when `len` exceeds 128.
    pub fn containing(address: Ipv6Addr, len: u8) -> Option<Ipv6Prefix> {
        let mask = Ipv6Prefix { address, len: len.min(128) }.mask();
        Ipv6Prefix::new(Ipv6Addr::from_bits(address.to_bits() & mask), len)
    }

    /// The network address.
    pub fn address(self) -> Ipv6Addr {
        self.address
    }

    /// The prefix length in bits.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(self) -> u8 {
        self.len
    }

    /// The netmask as a number in host order.
    pub fn mask(self) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(self.len)).unwrap_or(0)
    }

    /// Whether the network covers `address`.
    pub fn contains(self, address: Ipv6Addr) -> bool {
        address.to_bits() & self.mask() == self.address.to_bits()
    }
}

impl fmt::Display for Ipv6Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl fmt::Debug for Ipv6Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A network of either family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IpPrefix {
    /// IPv4.
    V4(Ipv4Prefix),
    /// IPv6.
    V6(Ipv6Prefix),
}

impl IpPrefix {
    /// `None` when `len` exceeds the family's bits or a host bit is set.
    pub fn new(address: IpAddr, len: u8) -> Option<IpPrefix> {
        match address {
            IpAddr::V4(address) => Ipv4Prefix::new(address, len).map(IpPrefix::V4),
            IpAddr::V6(address) => Ipv6Prefix::new(address, len).map(IpPrefix::V6),
        }
    }

    /// The network that contains `address`; `None` when `len` exceeds the family's bits.
    pub fn containing(address: IpAddr, len: u8) -> Option<IpPrefix> {
        match address {
            IpAddr::V4(address) => Ipv4Prefix::containing(address, len).map(IpPrefix::V4),
            IpAddr::V6(address) => Ipv6Prefix::containing(address, len).map(IpPrefix::V6),
        }
    }

    /// The network of one address alone.
    pub fn host(address: IpAddr) -> IpPrefix {
        match address {
            IpAddr::V4(address) => IpPrefix::V4(Ipv4Prefix { address, len: 32 }),
            IpAddr::V6(address) => IpPrefix::V6(Ipv6Prefix { address, len: 128 }),
        }
    }

    /// Whether the network covers `address`; never one of the other family.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self, address) {
            (IpPrefix::V4(prefix), IpAddr::V4(address)) => prefix.contains(address),
            (IpPrefix::V6(prefix), IpAddr::V6(address)) => prefix.contains(address),
            _ => false,
        }
    }
}

impl From<Ipv4Prefix> for IpPrefix {
    fn from(prefix: Ipv4Prefix) -> IpPrefix {
        IpPrefix::V4(prefix)
    }
}

impl From<Ipv6Prefix> for IpPrefix {
    fn from(prefix: Ipv6Prefix) -> IpPrefix {
        IpPrefix::V6(prefix)
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IpPrefix::V4(prefix) => prefix.fmt(f),
            IpPrefix::V6(prefix) => prefix.fmt(f),
        }
    }
}

impl fmt::Debug for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn mac_text_round_trips_and_refuses() {
        let mac: Mac = "02:00:5e:10:ff:01".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:5e:10:ff:01");
        for bad in ["", "02:00:5e:10:ff", "02:00:5e:10:ff:01:02", "2:0:5e:10:ff:1", "02-00-5e"] {
            assert_eq!(bad.parse::<Mac>(), Err(AddressError), "{bad}");
        }
    }

    #[test]
    fn prefix_edges() {
        let all = Ipv4Prefix::new(Ipv4Addr::UNSPECIFIED, 0).unwrap();
        assert!(all.contains(Ipv4Addr::BROADCAST));
        let host = Ipv4Prefix::new(Ipv4Addr::new(10, 0, 0, 1), 32).unwrap();
        assert!(host.contains(Ipv4Addr::new(10, 0, 0, 1)));
        assert!(!host.contains(Ipv4Addr::new(10, 0, 0, 2)));
        assert!(Ipv4Prefix::new(Ipv4Addr::new(10, 0, 0, 1), 24).is_none());
        assert!(Ipv4Prefix::new(Ipv4Addr::new(10, 0, 0, 0), 33).is_none());
        let net = Ipv4Prefix::containing(Ipv4Addr::new(10, 0, 0, 77), 24).unwrap();
        assert_eq!(net.to_string(), "10.0.0.0/24");
    }

    #[test]
    fn ipv6_prefix_edges() {
        let net: Ipv6Addr = "2001:db8:0:1::".parse().unwrap();
        let all = Ipv6Prefix::new(Ipv6Addr::UNSPECIFIED, 0).unwrap();
        assert!(all.contains(net));
        let host = Ipv6Prefix::new(net, 128).unwrap();
        assert!(host.contains(net) && !host.contains(Ipv6Addr::from_bits(net.to_bits() + 1)));
        assert!(Ipv6Prefix::new(net, 63).is_none());
        assert!(Ipv6Prefix::new(net, 129).is_none() && Ipv6Prefix::containing(net, 129).is_none());
        let inside = Ipv6Addr::from_bits(net.to_bits() + 0x77);
        assert_eq!(Ipv6Prefix::containing(inside, 64).unwrap().to_string(), "2001:db8:0:1::/64");
    }

    #[test]
    fn families_never_meet() {
        let all = IpPrefix::new(Ipv4Addr::UNSPECIFIED.into(), 0).unwrap();
        assert!(all.contains(Ipv4Addr::LOCALHOST.into()));
        assert!(!all.contains(Ipv6Addr::LOCALHOST.into()));
        let host = IpPrefix::host(Ipv6Addr::LOCALHOST.into());
        assert_eq!(host, IpPrefix::containing(Ipv6Addr::LOCALHOST.into(), 128).unwrap());
        assert_eq!(IpPrefix::new(Ipv4Addr::LOCALHOST.into(), 33), None);
    }
}
