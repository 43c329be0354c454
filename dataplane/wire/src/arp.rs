//! ARP between Ethernet and IPv4 (RFC 826).

use crate::{Mac, Malformed};
use core::net::Ipv4Addr;

/// Bytes of the message.
pub const BYTES: usize = 28;

/// Hardware type 1, protocol type IPv4, address lengths 6 and 4.
const KIND: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];

/// What the message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has it.
    Reply,
}

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Request or reply.
    pub operation: Operation,
    /// Sender hardware address.
    pub sender_mac: Mac,
    /// Sender protocol address; 0.0.0.0 in a probe (RFC 5227 section 1.1).
    pub sender: Ipv4Addr,
    /// Target hardware address; without meaning in a request.
    pub target_mac: Mac,
    /// Target protocol address.
    pub target: Ipv4Addr,
}

impl Arp {
    /// Reads the message at the front of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Arp, Malformed> {
        let m = bytes.first_chunk::<BYTES>().ok_or(Malformed::TooShort)?;
        let operation = match [m[6], m[7]] {
            _ if m[..6] != KIND => return Err(Malformed::Arp),
            [0, 1] => Operation::Request,
            [0, 2] => Operation::Reply,
            _ => return Err(Malformed::Arp),
        };
        Ok(Arp {
            operation,
            sender_mac: Mac([m[8], m[9], m[10], m[11], m[12], m[13]]),
            sender: Ipv4Addr::new(m[14], m[15], m[16], m[17]),
            target_mac: Mac([m[18], m[19], m[20], m[21], m[22], m[23]]),
            target: Ipv4Addr::new(m[24], m[25], m[26], m[27]),
        })
    }

    /// Writes the message to the front of `out`; `None`, and nothing written, when it is too short.
    pub fn emit(&self, out: &mut [u8]) -> Option<()> {
        let m = out.first_chunk_mut::<BYTES>()?;
        m[..6].copy_from_slice(&KIND);
        m[6] = 0;
        m[7] = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        };
        m[8..14].copy_from_slice(&self.sender_mac.0);
        m[14..18].copy_from_slice(&self.sender.octets());
        m[18..24].copy_from_slice(&self.target_mac.0);
        m[24..].copy_from_slice(&self.target.octets());
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who has 10.0.0.1? Tell 10.0.0.2.
    const REQUEST: [u8; 28] =
        [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2, 10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1];

    #[test]
    fn reads_and_writes_the_layout() {
        let message = Arp::parse(&REQUEST).unwrap();
        assert_eq!(message.operation, Operation::Request);
        assert_eq!(message.sender_mac, Mac([2, 0, 0, 0, 0, 2]));
        assert_eq!(message.sender, Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(message.target, Ipv4Addr::new(10, 0, 0, 1));
        let mut out = [0xee; 28];
        message.emit(&mut out).unwrap();
        assert_eq!(out, REQUEST);
        assert_eq!(Arp::parse(&REQUEST[..27]), Err(Malformed::TooShort));
        assert_eq!(message.emit(&mut out[..27]), None);
    }

    #[test]
    fn every_fixed_field_is_checked() {
        for at in 0..8 {
            for value in [0, 3, 0xff] {
                let mut bytes = REQUEST;
                if bytes[at] != value {
                    bytes[at] = value;
                    assert_eq!(Arp::parse(&bytes), Err(Malformed::Arp), "byte {at} = {value}");
                }
            }
        }
    }
}
