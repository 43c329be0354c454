//! Addresses in their own types.

use core::fmt;
use core::net::Ipv4Addr;
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
}
