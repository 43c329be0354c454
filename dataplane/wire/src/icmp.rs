//! ICMP (RFC 792): echo, and the errors of a router.

use crate::checksum;

/// Bytes of the echo header: type, code, checksum, identifier, sequence number.
pub const BYTES: usize = 8;
/// Type of an echo request.
pub const ECHO_REQUEST: u8 = 8;
/// Type of an echo reply.
pub const ECHO_REPLY: u8 = 0;

/// Destination unreachable.
pub const UNREACHABLE: u8 = 3;
/// Time exceeded; code 0 is the time to live.
pub const TIME_EXCEEDED: u8 = 11;

/// Code of [`UNREACHABLE`]: no route to the network.
pub const NET: u8 = 0;
/// Code of [`UNREACHABLE`]: no way to the host.
pub const HOST: u8 = 1;
/// Code of [`UNREACHABLE`]: nobody speaks the protocol.
pub const PROTOCOL: u8 = 2;
/// Code of [`UNREACHABLE`]: nobody listens.
pub const PORT: u8 = 3;
/// Code of [`UNREACHABLE`]: larger than an MTU, which is in the last two bytes of the header
/// (RFC 1191 section 4), and not to be fragmented.
pub const TOO_BIG: u8 = 4;

/// Whether a message of this type is about another packet: nobody answers that with an error.
/// Types that are not known count as such (RFC 1812 section 4.3.2.7 names the known ones).
#[inline]
pub fn is_error(kind: u8) -> bool {
    !matches!(kind, ECHO_REPLY | ECHO_REQUEST | 9 | 10 | 13..=18)
}

/// Whether `message` starts with the header of an echo request.
pub fn is_echo_request(message: &[u8]) -> bool {
    message.len() >= BYTES && message[..2] == [ECHO_REQUEST, 0]
}

/// Turns the echo request at the front of `message` into its reply; `false`, and nothing changed,
/// when it is none. The checksum is updated, so the reply to a damaged request is damaged too and
/// its sender discards it.
pub fn echo_reply(message: &mut [u8]) -> bool {
    if !is_echo_request(message) {
        return false;
    }
    let checksum = u16::from_be_bytes([message[2], message[3]]);
    let (old, new) = (u16::from(ECHO_REQUEST) << 8, u16::from(ECHO_REPLY) << 8);
    message[0] = ECHO_REPLY;
    // An update cannot tell data of nothing but zeros, for which only 0xffff verifies, from data
    // whose words cancel out, for which both zeros of ones' complement do (RFC 1624 section 3).
    let updated = match checksum::update(checksum, old, new) {
        0 => 0xffff,
        updated => updated,
    };
    message[2..4].copy_from_slice(&updated.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Checksum;

    #[test]
    fn a_reply_verifies() {
        // Identifier 0x1234, sequence 1, data "ab": sum 0x0800 + 0x1234 + 0x0001 + 0x6162.
        let mut message = [8, 0, 0x84, 0x68, 0x12, 0x34, 0, 1, 0x61, 0x62];
        assert!(echo_reply(&mut message));
        assert_eq!(message[0], ECHO_REPLY);
        let mut checksum = Checksum::new();
        checksum.add(&message);
        assert_eq!(checksum.folded(), 0xffff);
        assert!(!echo_reply(&mut message), "a reply is not answered");
    }

    #[test]
    fn any_right_request_gets_a_reply_that_verifies() {
        bolero::check!().with_type::<[u8; 16]>().for_each(|data| {
            for mut message in [*data, [0; 16]] {
                message[..4].copy_from_slice(&[ECHO_REQUEST, 0, 0, 0]);
                let mut checksum = Checksum::new();
                checksum.add(&message);
                message[2..4].copy_from_slice(&checksum.finish().to_be_bytes());
                assert!(echo_reply(&mut message));
                let mut checksum = Checksum::new();
                checksum.add(&message);
                assert_eq!(checksum.folded(), 0xffff, "{message:?}");
            }
        });
    }

    #[test]
    fn errors_are_told_from_the_rest() {
        assert!([3, 4, 5, 11, 12, 255].into_iter().all(is_error));
        assert!(![0, 8, 13, 14].into_iter().any(is_error));
    }

    #[test]
    fn only_whole_echo_requests() {
        assert!(!echo_reply(&mut [8, 0, 0, 0, 0, 0, 0]));
        assert!(!echo_reply(&mut [8, 1, 0, 0, 0, 0, 0, 0]));
        assert!(!echo_reply(&mut [13, 0, 0, 0, 0, 0, 0, 0]));
        assert!(!echo_reply(&mut []));
    }
}
