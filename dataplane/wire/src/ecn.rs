//! Explicit congestion notification through a tunnel (RFC 6040, normal mode).

/// Not ECN-capable.
pub const NOT_ECT: u8 = 0b00;
/// ECN-capable, codepoint 1.
pub const ECT_1: u8 = 0b01;
/// ECN-capable, codepoint 0.
pub const ECT_0: u8 = 0b10;
/// Congestion experienced.
pub const CE: u8 = 0b11;

/// The ECN field of a TOS byte (RFC 3168 section 5).
#[inline(always)]
pub fn of_tos(tos: u8) -> u8 {
    tos & 0b11
}

/// The inner ECN field after leaving the tunnel, from what arrived inside and outside; `None` when
/// the packet has to be dropped (RFC 6040 section 4.2, figure 4). Only the low two bits count.
#[inline(always)]
pub fn decapsulate(inner: u8, outer: u8) -> Option<u8> {
    match (of_tos(inner), of_tos(outer)) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (_, CE) => Some(CE),
        (ECT_0, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table_of_rfc_6040() {
        // Figure 4, row by row: arriving inner; columns: outer Not-ECT, ECT(0), ECT(1), CE.
        let columns = [NOT_ECT, ECT_0, ECT_1, CE];
        let rows = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ];
        for (inner, outcomes) in rows {
            for (outer, outcome) in columns.into_iter().zip(outcomes) {
                assert_eq!(decapsulate(inner, outer), outcome, "{inner:02b} {outer:02b}");
                assert_eq!(decapsulate(inner | 0xb8, outer | 0x48), outcome, "DSCP is ignored");
            }
        }
    }
}
