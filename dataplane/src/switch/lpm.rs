//! Longest prefix match, built once and used on flow misses only. Values are below 2^31 - 1.
//!
//! Over IPv4 a trie of four levels, eight bits each: a look-up reads one to four slots; a node is
//! 1 KiB, and a prefix needs at most three nodes of its own. Over IPv6, where a trie would need up
//! to fifteen, the ranges that the prefixes cut the addresses into, in order: a look-up is a
//! binary search of at most twice as many ranges as there are prefixes.

use outboard_wire::{Ipv4Prefix, Ipv6Prefix};
use std::net::{Ipv4Addr, Ipv6Addr};

/// A slot with this bit holds the index of a node; without it, a value.
const NODE: u32 = 1 << 31;
/// The value of a slot that no prefix covers.
const NONE: u32 = NODE - 1;

type Node = [u32; 256];

/// The routes of one VPC.
#[derive(Debug)]
pub(super) struct Lpm {
    /// The first is the root. Values of shorter prefixes are pushed down to where a look-up ends.
    nodes: Vec<Node>,
}

impl Lpm {
    /// Builds the trie; of two equal prefixes the later wins.
    ///
    /// # Panics
    /// When a value does not fit in 31 bits.
    pub(super) fn new(mut routes: Vec<(Ipv4Prefix, u32)>) -> Lpm {
        // Shortest first: what a longer prefix finds in its slots is to be overwritten or pushed.
        routes.sort_by_key(|(prefix, _)| prefix.len());
        let mut lpm = Lpm { nodes: vec![[NONE; 256]] };
        for (prefix, value) in routes {
            assert!(value < NONE, "a route's value needs more than 31 bits");
            lpm.insert(prefix, value);
        }
        lpm
    }

    /// The value of the longest prefix that covers `address`.
    #[inline]
    pub(super) fn get(&self, address: Ipv4Addr) -> Option<u32> {
        let mut slot = NODE;
        for byte in address.octets() {
            slot = self.nodes[(slot & !NODE) as usize][usize::from(byte)];
            if slot & NODE == 0 {
                break;
            }
        }
        (slot != NONE).then_some(slot)
    }

    fn insert(&mut self, prefix: Ipv4Prefix, value: u32) {
        let mut node = 0;
        for (level, byte) in prefix.address().octets().into_iter().enumerate() {
            let (first, bits_here) = (usize::from(byte), prefix.len() as usize - level * 8);
            if bits_here <= 8 {
                let covered = 1 << (8 - bits_here);
                self.nodes[node][first..first + covered].fill(value);
                return;
            }
            node = self.child(node, first);
        }
    }

    /// The node below a slot; a new one inherits the slot's value.
    fn child(&mut self, node: usize, slot: usize) -> usize {
        let found = self.nodes[node][slot];
        if found & NODE != 0 {
            return (found & !NODE) as usize;
        }
        let child = self.nodes.len();
        self.nodes.push([found; 256]);
        self.nodes[node][slot] = NODE | child as u32;
        child
    }
}

/// The routes of one VPC over IPv6.
#[derive(Debug)]
pub(super) struct Lpm6 {
    /// Where each range starts, ascending; it ends where the next one starts. The first is 0.
    starts: Vec<u128>,
    /// The value of each range.
    values: Vec<u32>,
}

impl Lpm6 {
    /// Builds the ranges; of two equal prefixes the later wins.
    ///
    /// # Panics
    /// When a value does not fit in 31 bits.
    pub(super) fn new(mut routes: Vec<(Ipv6Prefix, u32)>) -> Lpm6 {
        // Outer networks before what lies in them; equal ones stay in their order.
        routes.sort_by_key(|(prefix, _)| *prefix);
        let mut lpm = Lpm6 { starts: vec![0], values: vec![NONE] };
        // The networks that the place reached lies in, outermost first: last address and value.
        let mut around: Vec<(u128, u32)> = Vec::new();
        for (prefix, value) in routes {
            assert!(value < NONE, "a route's value needs more than 31 bits");
            let first = prefix.address().to_bits();
            lpm.leave(&mut around, |last| last < first);
            lpm.begin(first, value);
            around.push((first | !prefix.mask(), value));
        }
        lpm.leave(&mut around, |_| true);
        lpm
    }

    /// The value of the longest prefix that covers `address`.
    #[inline]
    pub(super) fn get(&self, address: Ipv6Addr) -> Option<u32> {
        let bits = address.to_bits();
        let range = self.starts.partition_point(|start| *start <= bits) - 1;
        Some(self.values[range]).filter(|value| *value != NONE)
    }

    /// Ends the networks around whose last address is behind, innermost first.
    fn leave(&mut self, around: &mut Vec<(u128, u32)>, is_behind: impl Fn(u128) -> bool) {
        while let Some((last, _)) = around.pop_if(|(last, _)| is_behind(*last)) {
            let outer = around.last().map_or(NONE, |(_, value)| *value);
            if let Some(next) = last.checked_add(1) {
                self.begin(next, outer);
            }
        }
    }

    /// A range begins; one that began at the same address was empty.
    fn begin(&mut self, start: u128, value: u32) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.values.pop();
        }
        self.starts.push(start);
        self.values.push(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(a: u8, b: u8, c: u8, d: u8, len: u8) -> Ipv4Prefix {
        Ipv4Prefix::containing(Ipv4Addr::new(a, b, c, d), len).unwrap()
    }

    /// The longest covering prefix by looking at all; of equal ones the last.
    fn naive(routes: &[(Ipv4Prefix, u32)], address: Ipv4Addr) -> Option<u32> {
        let covering = routes.iter().filter(|(prefix, _)| prefix.contains(address));
        covering.max_by_key(|(prefix, _)| prefix.len()).map(|(_, value)| *value)
    }

    #[test]
    fn every_length_matches_its_edges_only() {
        for len in 0..=32 {
            let net = prefix(10, 129, 77, 93, len);
            let lpm = Lpm::new(vec![(net, 5)]);
            let first = net.address().to_bits();
            let last = first | !net.mask();
            assert_eq!(lpm.get(Ipv4Addr::from_bits(first)), Some(5), "{net}");
            assert_eq!(lpm.get(Ipv4Addr::from_bits(last)), Some(5), "{net}");
            if len > 0 {
                assert_eq!(lpm.get(Ipv4Addr::from_bits(first.wrapping_sub(1))), None, "{net}");
                assert_eq!(lpm.get(Ipv4Addr::from_bits(last.wrapping_add(1))), None, "{net}");
            }
        }
        assert_eq!(Lpm::new(Vec::new()).get(Ipv4Addr::LOCALHOST), None);
    }

    #[test]
    fn the_longest_wins_in_any_order() {
        let routes = [
            (prefix(10, 0, 0, 1, 32), 32),
            (prefix(0, 0, 0, 0, 0), 0),
            (prefix(10, 0, 0, 0, 24), 24),
            (prefix(10, 0, 0, 0, 8), 8),
        ];
        for turn in 0..4 {
            let mut routes = routes.to_vec();
            routes.rotate_left(turn);
            let lpm = Lpm::new(routes);
            for (address, want) in
                [([10, 0, 0, 1], 32), ([10, 0, 0, 2], 24), ([10, 0, 1, 1], 8), ([11, 0, 0, 1], 0)]
            {
                assert_eq!(lpm.get(Ipv4Addr::from(address)), Some(want));
            }
        }
    }

    #[test]
    fn as_the_naive_search() {
        bolero::check!().with_type::<(Vec<(u32, u8)>, Vec<u32>)>().for_each(|(nets, asked)| {
            // Few distinct bytes, so that prefixes nest and addresses hit.
            let squeeze = |bits: u32| Ipv4Addr::from_bits(bits & 0x8101_0383);
            let routes: Vec<_> = nets
                .iter()
                .enumerate()
                .map(|(i, (bits, len))| {
                    (Ipv4Prefix::containing(squeeze(*bits), len % 33).unwrap(), i as u32)
                })
                .collect();
            let lpm = Lpm::new(routes.clone());
            let ends = routes.iter().flat_map(|(net, _)| {
                [net.address().to_bits(), net.address().to_bits() | !net.mask()]
            });
            for bits in asked.iter().map(|bits| squeeze(*bits).to_bits()).chain(ends) {
                let address = Ipv4Addr::from_bits(bits);
                assert_eq!(lpm.get(address), naive(&routes, address), "{address}");
            }
        });
    }

    #[test]
    fn every_length_of_ipv6_matches_its_edges_only() {
        let address = "2001:db8:8003:4004::7fff:93".parse().unwrap();
        for len in 0..=128 {
            let net = Ipv6Prefix::containing(address, len).unwrap();
            let lpm = Lpm6::new(vec![(net, 5)]);
            let first = net.address().to_bits();
            let last = first | !net.mask();
            assert_eq!(lpm.get(Ipv6Addr::from_bits(first)), Some(5), "{net}");
            assert_eq!(lpm.get(Ipv6Addr::from_bits(last)), Some(5), "{net}");
            if len > 0 {
                assert_eq!(lpm.get(Ipv6Addr::from_bits(first.wrapping_sub(1))), None, "{net}");
                assert_eq!(lpm.get(Ipv6Addr::from_bits(last.wrapping_add(1))), None, "{net}");
            }
        }
        assert_eq!(Lpm6::new(Vec::new()).get(Ipv6Addr::LOCALHOST), None);
    }

    #[test]
    fn ipv6_as_the_naive_search() {
        bolero::check!().with_type::<(Vec<(u128, u8)>, Vec<u128>)>().for_each(|(nets, asked)| {
            // Few distinct bits at all heights, so that prefixes nest and touch.
            const MASK: u128 = 0x8000_0000_0000_0103_c000_0000_0000_0003;
            let routes: Vec<_> = nets
                .iter()
                .enumerate()
                .map(|(i, (bits, len))| {
                    let address = Ipv6Addr::from_bits(bits & MASK);
                    (Ipv6Prefix::containing(address, len % 129).unwrap(), i as u32)
                })
                .collect();
            let lpm = Lpm6::new(routes.clone());
            let ends = routes.iter().flat_map(|(net, _)| {
                let first = net.address().to_bits();
                let last = first | !net.mask();
                [first, last, first.wrapping_sub(1), last.wrapping_add(1)]
            });
            for bits in asked.iter().map(|bits| bits & MASK).chain(ends) {
                let address = Ipv6Addr::from_bits(bits);
                let covering = routes.iter().filter(|(prefix, _)| prefix.contains(address));
                let naive = covering.max_by_key(|(prefix, _)| prefix.len());
                assert_eq!(lpm.get(address), naive.map(|(_, value)| *value), "{address}");
            }
        });
    }
}
