//! ICMPv6 (RFC 4443): echo, and the errors of a router.

use crate::checksum;

/// Bytes of the header: type, code, checksum, and four that depend on the type.
pub const BYTES: usize = 8;
/// Destination unreachable.
pub const UNREACHABLE: u8 = 1;
/// Packet too big; the last four bytes of the header are the MTU.
pub const TOO_BIG: u8 = 2;
/// Time exceeded; code 0 is the hop limit.
pub const TIME_EXCEEDED: u8 = 3;
/// Type of an echo request.
pub const ECHO_REQUEST: u8 = 128;
/// Type of an echo reply.
pub const ECHO_REPLY: u8 = 129;
/// Redirect, which is an error for the rules of RFC 4443 section 2.4 (e.2).
pub const REDIRECT: u8 = 137;

/// Code of [`UNREACHABLE`]: no route.
pub const NO_ROUTE: u8 = 0;
/// Code of [`UNREACHABLE`]: the address cannot be reached.
pub const ADDRESS: u8 = 3;
/// Code of [`UNREACHABLE`]: nobody listens.
pub const PORT: u8 = 4;

/// Whether a message of this type is about another packet: nobody answers that with an error.
#[inline]
pub fn is_error(kind: u8) -> bool {
    kind < ECHO_REQUEST || kind == REDIRECT
}

/// Turns the echo request at the front of `message` into its reply; `false`, and nothing changed,
/// when it is none. The checksum is updated; that source and destination change places does not
/// change it.
pub fn echo_reply(message: &mut [u8]) -> bool {
    if message.len() < BYTES || message[..2] != [ECHO_REQUEST, 0] {
        return false;
    }
    let checksum = u16::from_be_bytes([message[2], message[3]]);
    let (old, new) = (u16::from(ECHO_REQUEST) << 8, u16::from(ECHO_REPLY) << 8);
    message[0] = ECHO_REPLY;
    // The pseudo-header is never all zeros, so that both zeros verify; RFC 8200 section 8.1 wants
    // 0xffff for the zero of UDP alone.
    let updated = checksum::update(checksum, old, new);
    message[2..4].copy_from_slice(&updated.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Checksum, ipv6};

    fn sum(message: &[u8]) -> Checksum {
        let (a, b) = ([0xfd; 16], [7; 16]);
        let mut sum = Checksum::pseudo_header6(a, b, ipv6::ICMP, message.len() as u32);
        sum.add(message);
        sum
    }

    #[test]
    fn any_right_request_gets_a_reply_that_verifies() {
        bolero::check!().with_type::<[u8; 16]>().for_each(|data| {
            for mut message in [*data, [0; 16]] {
                message[..4].copy_from_slice(&[ECHO_REQUEST, 0, 0, 0]);
                let right = sum(&message).finish();
                message[2..4].copy_from_slice(&right.to_be_bytes());
                assert!(echo_reply(&mut message));
                assert_eq!(sum(&message).folded(), 0xffff, "{message:?}");
                assert!(!echo_reply(&mut message), "a reply is not answered");
            }
        });
    }

    #[test]
    fn only_whole_echo_requests() {
        assert!(!echo_reply(&mut [128, 0, 0, 0, 0, 0, 0]));
        assert!(!echo_reply(&mut [128, 1, 0, 0, 0, 0, 0, 0]));
        assert!(!echo_reply(&mut [8, 0, 0, 0, 0, 0, 0, 0]));
        assert!(!echo_reply(&mut []));
    }

    #[test]
    fn errors_are_told_from_the_rest() {
        assert!([1, 2, 3, 4, 100, 127, 137].into_iter().all(is_error));
        assert!(![128, 129, 133, 135, 136, 143, 255].into_iter().any(is_error));
    }
}
