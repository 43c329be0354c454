//! The flow cache: from a packet's key to the transform that its route was compiled to.
//!
//! Buckets of four flows in two cache lines, keys in the first. A flow lies in one of two buckets
//! that its hash names, the first where there is room; where both are full one occupant moves to
//! its other bucket, and where none can the flow of the eight that was seen longest ago is
//! evicted. The size is fixed; nothing here allocates after `new`.
//!
//! Room that nobody else wants is for everybody. Where it is short, a VPC that has more than its
//! share (the size by the number of VPCs with flows) gives way: its flows are evicted first, and
//! a new one of its own for which nobody over the share has to go is not remembered. So a tenant
//! that makes flows without end costs the flows of its own VPC, and of no other.
//!
//! The hash is keyed by a seed, so that nobody outside can choose flows that share buckets.
//!
//! The addresses of IPv6 do not fit into a key: it has a keyed digest of them instead, and the
//! addresses themselves lie beside the buckets, are compared on every hit, and cost IPv4 nothing.

use outboard_dma::prefetch;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Flows in a bucket.
const WAYS: usize = 4;
/// VPCs that are counted apart: as many as a plan can have.
const VPCS: usize = 1024;
/// The fewest flows that a cache can have: one bucket.
pub const MIN_FLOWS: u32 = WAYS as u32;

/// What makes packets one flow: where they came in, addresses, ports and protocol. Never zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Key {
    /// Source and destination address as they lie in the header; of IPv6 their digest.
    addresses: u64,
    /// Ports as they lie in the header in the high half, [`scope`] and protocol in the low one.
    rest: u64,
}

/// Set in every key, so that none is zero.
const USED: u32 = 1 << 31;
/// Set in keys of packets from an uplink.
const FROM_UPLINK: u32 = 1 << 30;
/// Set in keys of IPv6.
const IPV6: u32 = 1 << 29;

/// Source and destination address of an IPv6 packet, as four words in memory order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Addresses6([u64; 4]);

impl Addresses6 {
    /// Of the 32 bytes that lie in the header.
    #[inline(always)]
    pub(super) fn new(bytes: &[u8; 32]) -> Addresses6 {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        Addresses6(words)
    }

    /// As they lie in the header.
    pub(super) fn bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// The destination address.
    pub(super) fn destination(&self) -> Ipv6Addr {
        let mut octets = [0; 16];
        octets[..8].copy_from_slice(&self.0[2].to_ne_bytes());
        octets[8..].copy_from_slice(&self.0[3].to_ne_bytes());
        Ipv6Addr::from(octets)
    }
}

impl Key {
    const EMPTY: Key = Key { addresses: 0, rest: 0 };

    /// The key of a packet with `addresses` and `ports` as they lie in its headers; ports are 0
    /// for every fragment (the first too, so that all take one path) and for what has none.
    #[inline(always)]
    pub(super) fn new(
        vpc: u16,
        from_uplink: bool,
        addresses: [u8; 8],
        ports: [u8; 4],
        protocol: u8,
    ) -> Key {
        let scope = USED | if from_uplink { FROM_UPLINK } else { 0 } | u32::from(vpc) << 8;
        let ports = u32::from_ne_bytes(ports);
        Key {
            addresses: u64::from_ne_bytes(addresses),
            rest: u64::from(ports) << 32 | u64::from(scope | u32::from(protocol)),
        }
    }

    /// The same for IPv6, still without its addresses.
    #[inline(always)]
    pub(super) fn new6(vpc: u16, from_uplink: bool, ports: [u8; 4], protocol: u8) -> Key {
        let key = Key::new(vpc, from_uplink, [0; 8], ports, protocol);
        Key { addresses: 0, rest: key.rest | u64::from(IPV6) }
    }

    /// The destination address, of a key of IPv4.
    #[inline(always)]
    pub(super) fn destination(&self) -> Ipv4Addr {
        let [_, _, _, _, a, b, c, d] = self.addresses.to_ne_bytes();
        Ipv4Addr::new(a, b, c, d)
    }

    /// Addresses as they lie in the header, of a key of IPv4.
    pub(super) fn addresses(&self) -> [u8; 8] {
        self.addresses.to_ne_bytes()
    }

    /// Ports as they lie in the header.
    pub(super) fn ports(&self) -> [u8; 4] {
        ((self.rest >> 32) as u32).to_ne_bytes()
    }

    /// The protocol number.
    pub(super) fn protocol(&self) -> u8 {
        self.rest as u8
    }

    /// Whether it is a free place's.
    pub(super) fn is_empty(&self) -> bool {
        *self == Key::EMPTY
    }

    /// Whether it is of IPv6.
    #[inline(always)]
    pub(super) fn is_v6(&self) -> bool {
        self.rest as u32 & IPV6 != 0
    }

    /// The VPC that the packet belongs to.
    #[inline(always)]
    pub(super) fn vpc(&self) -> u16 {
        (self.rest >> 8) as u16
    }

    /// Whether the packet came out of a tunnel.
    #[inline(always)]
    pub(super) fn is_from_uplink(&self) -> bool {
        self.rest as u32 & FROM_UPLINK != 0
    }
}

/// What the cache knows of a flow.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Flow {
    /// The tables that it was compiled from.
    pub(super) generation: u32,
    /// Index of its transform in those tables.
    pub(super) transform: u32,
    /// The last tick in which a packet of it was seen.
    pub(super) seen: u32,
    /// The far end that was checked, as the tables call it; 0 when it comes from a tenant.
    pub(super) far_end: u32,
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(128))]
struct Bucket {
    keys: [Key; WAYS],
    flows: [Flow; WAYS],
}

impl Bucket {
    const EMPTY: Bucket = Bucket {
        keys: [Key::EMPTY; WAYS],
        flows: [Flow { generation: 0, transform: 0, seen: 0, far_end: 0 }; WAYS],
    };

    /// Where `key` is. Compares all four, because which one it is cannot be predicted.
    #[inline(always)]
    fn position(&self, key: Key) -> Option<usize> {
        let mut found = 0;
        for (way, stored) in self.keys.iter().enumerate() {
            let differs = (stored.addresses ^ key.addresses) | (stored.rest ^ key.rest);
            found |= u32::from(differs == 0) << way;
        }
        (found != 0).then(|| found.trailing_zeros() as usize % WAYS)
    }

    fn put(&mut self, way: usize, key: Key, flow: Flow) {
        self.keys[way] = key;
        self.flows[way] = flow;
    }
}

/// What became of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inserted {
    /// There was room.
    IntoRoom,
    /// In the place of the one that was seen longest ago.
    Evicting,
    /// In the place of one whose VPC has more than its share.
    EvictingSurplus,
    /// Nowhere: its own VPC has more than its share.
    Refused,
}

/// How many flows each VPC has.
#[derive(Debug)]
struct Held {
    flows: Box<[u32; VPCS]>,
    /// VPCs that have any.
    vpcs: u32,
}

impl Held {
    fn add(&mut self, key: Key) {
        let flows = &mut self.flows[usize::from(key.vpc()) % VPCS];
        self.vpcs += u32::from(*flows == 0);
        *flows += 1;
    }

    /// Takes away what lay in a place, if anything did.
    fn remove(&mut self, key: Key) {
        if !key.is_empty() {
            let flows = &mut self.flows[usize::from(key.vpc()) % VPCS];
            *flows -= 1;
            self.vpcs -= u32::from(*flows == 0);
        }
    }

    /// Whether the VPC of `key` has more than its share of a cache of `size` flows.
    fn is_over(&self, key: Key, size: usize) -> bool {
        let flows = u64::from(self.flows[usize::from(key.vpc()) % VPCS]);
        flows * u64::from(self.vpcs) > size as u64
    }
}

/// A flow cache of fixed size.
#[derive(Debug)]
pub(super) struct FlowCache {
    buckets: Box<[Bucket]>,
    /// The addresses of flows of IPv6; places are those of the flows. Pages that no such flow
    /// was in are never touched.
    addresses6: Box<[[Addresses6; WAYS]]>,
    held: Held,
    seed: Seed,
}

impl FlowCache {
    /// A cache for `flows` flows.
    ///
    /// # Panics
    /// When `flows` is no power of two or below [`MIN_FLOWS`].
    pub(super) fn new(flows: u32, seed: Seed) -> FlowCache {
        assert!(flows.is_power_of_two() && flows >= MIN_FLOWS, "{flows} flows in a cache");
        let buckets = vec![Bucket::EMPTY; flows as usize / WAYS].into_boxed_slice();
        let addresses6 = vec![[Addresses6([0; 4]); WAYS]; buckets.len()].into_boxed_slice();
        let held = Held { flows: Box::new([0; VPCS]), vpcs: 0 };
        FlowCache { buckets, addresses6, held, seed }
    }

    /// Gives a key of IPv6 its addresses.
    #[inline(always)]
    pub(super) fn complete(&self, key: &mut Key, addresses: &Addresses6) {
        key.addresses = self.seed.digest(&addresses.0);
    }

    /// The hash that the other calls want beside the key.
    #[inline(always)]
    pub(super) fn hash(&self, key: Key) -> u64 {
        self.seed.mix(key.addresses, key.rest)
    }

    /// Asks for the first bucket's cache lines.
    #[inline(always)]
    pub(super) fn prefetch_first(&self, hash: u64) {
        self.prefetch(self.first(hash));
    }

    /// Asks for the addresses of the first bucket's flows of IPv6.
    #[inline(always)]
    pub(super) fn prefetch_addresses(&self, hash: u64) {
        let [first, _, third, _] = &self.addresses6[self.first(hash)];
        prefetch(first);
        prefetch(third);
    }

    /// Asks for the second bucket's cache lines.
    #[inline(always)]
    pub(super) fn prefetch_second(&self, hash: u64) {
        self.prefetch(self.second(hash));
    }

    /// The flow, when it lies in its first bucket. `addresses` count with keys of IPv6.
    #[inline(always)]
    pub(super) fn find_first(
        &mut self,
        hash: u64,
        key: Key,
        addresses: &Addresses6,
    ) -> Option<&mut Flow> {
        let index = self.first(hash);
        let way = self.buckets[index].position(key)?;
        let same = !key.is_v6() || self.addresses6[index][way] == *addresses;
        same.then(|| &mut self.buckets[index].flows[way])
    }

    /// The flow, in whichever bucket.
    pub(super) fn find(
        &mut self,
        hash: u64,
        key: Key,
        addresses: &Addresses6,
    ) -> Option<&mut Flow> {
        for index in [self.first(hash), self.second(hash)] {
            if let Some(way) = self.buckets[index].position(key)
                && (!key.is_v6() || self.addresses6[index][way] == *addresses)
            {
                return Some(&mut self.buckets[index].flows[way]);
            }
        }
        None
    }

    /// Adds a flow that is not in the cache. `flow.seen` is taken for the present.
    pub(super) fn insert(
        &mut self,
        hash: u64,
        key: Key,
        addresses: &Addresses6,
        flow: Flow,
    ) -> Inserted {
        let Some((home, way, inserted)) = self.place(hash, key, flow.seen) else {
            return Inserted::Refused;
        };
        self.held.remove(self.buckets[home].keys[way]);
        self.held.add(key);
        self.buckets[home].put(way, key, flow);
        if key.is_v6() {
            self.addresses6[home][way] = *addresses;
        }
        inserted
    }

    /// Where a flow that is not in the cache shall lie, bucket and place in it; `None` where it
    /// would take a place from a VPC that has no more than its share.
    fn place(&mut self, hash: u64, key: Key, seen: u32) -> Option<(usize, usize, Inserted)> {
        let homes = [self.first(hash), self.second(hash)];
        // Other addresses of the same digest: one of the two flows would never be found.
        for home in homes.into_iter().filter(|_| key.is_v6()) {
            if let Some(way) = self.buckets[home].position(key) {
                return Some((home, way, Inserted::Evicting));
            }
        }
        for home in homes {
            if let Some(way) = self.buckets[home].position(Key::EMPTY) {
                return Some((home, way, Inserted::IntoRoom));
            }
        }
        for home in homes {
            if let Some(way) = self.move_one(home) {
                // What was moved lies in its new place, too: here it is no longer.
                self.buckets[home].keys[way] = Key::EMPTY;
                return Some((home, way, Inserted::IntoRoom));
            }
        }
        let size = self.buckets.len() * WAYS;
        let places = homes.into_iter().flat_map(|home| (0..WAYS).map(move |way| (home, way)));
        let age =
            |&(home, way): &(usize, usize)| seen.wrapping_sub(self.buckets[home].flows[way].seen);
        let surplus =
            |&(home, way): &(usize, usize)| self.held.is_over(self.buckets[home].keys[way], size);
        if let Some((home, way)) = places.clone().filter(surplus).max_by_key(age) {
            return Some((home, way, Inserted::EvictingSurplus));
        }
        if self.held.is_over(key, size) {
            return None;
        }
        places.max_by_key(age).map(|(home, way)| (home, way, Inserted::Evicting))
    }

    /// Moves one flow of a full bucket to its other one; the place that became free.
    fn move_one(&mut self, from: usize) -> Option<usize> {
        for way in 0..WAYS {
            let (key, flow) = (self.buckets[from].keys[way], self.buckets[from].flows[way]);
            let hash = self.hash(key);
            let other = self.first(hash) ^ self.second(hash) ^ from;
            if other == from {
                continue;
            }
            if let Some(free) = self.buckets[other].position(Key::EMPTY) {
                self.buckets[other].put(free, key, flow);
                if key.is_v6() {
                    self.addresses6[other][free] = self.addresses6[from][way];
                }
                return Some(way);
            }
        }
        None
    }

    /// Every place with what lies in it, free ones too.
    pub(super) fn places(&self) -> impl Iterator<Item = (Key, Addresses6, Flow)> {
        let buckets = self.buckets.iter().zip(&self.addresses6);
        buckets.flat_map(|(bucket, addresses)| {
            (0..WAYS).map(|way| (bucket.keys[way], addresses[way], bucket.flows[way]))
        })
    }

    #[inline(always)]
    fn first(&self, hash: u64) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }

    #[inline(always)]
    fn second(&self, hash: u64) -> usize {
        (hash >> 32) as usize & (self.buckets.len() - 1)
    }

    #[inline(always)]
    fn prefetch(&self, bucket: usize) {
        let bucket = &self.buckets[bucket];
        prefetch(&bucket.keys);
        prefetch(&bucket.flows);
    }
}

/// The secret of this process's hashes.
#[derive(Clone, Copy, Debug)]
pub struct Seed([u64; 7]);

impl Seed {
    /// Spreads 64 random bits over the secret (SplitMix64).
    pub fn new(random: u64) -> Seed {
        let mut state = random;
        Seed(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ z >> 31
        }))
    }

    /// Two rounds of multiplying and folding 128 bits, each with secret factors.
    #[inline(always)]
    fn mix(&self, a: u64, b: u64) -> u64 {
        let [first, second, third, ..] = self.0;
        fold(fold(a ^ first, b ^ second) ^ third, 0x9e37_79b9_7f4a_7c15)
    }
}

impl Seed {
    /// Four words to one, with other factors than [`Seed::mix`] has.
    #[inline(always)]
    fn digest(&self, words: &[u64; 4]) -> u64 {
        let [_, _, _, a, b, c, d] = self.0;
        fold(words[0] ^ a, words[1] ^ b) ^ fold(words[2] ^ c, words[3] ^ d)
    }
}

#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Addresses, ports and protocol of a packet of a tenant; ports as [`owner`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FiveTuple {
    /// Source address and port.
    pub source: (IpAddr, u16),
    /// Destination address and port.
    pub destination: (IpAddr, u16),
    /// Protocol number; of a fragment of IPv6 what its fragment header says.
    pub protocol: u8,
}

/// A number from which the worker that owns a flow follows: the same for both directions, and on
/// every worker with the same seed. Ports are those of TCP and UDP, and 0 for everything else and
/// for every fragment.
pub fn owner(seed: &Seed, vni: u32, flow: &FiveTuple) -> u32 {
    let address = |address| match address {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            seed.mix((bits >> 64) as u64, bits as u64) & 0xffff_ffff
        }
    };
    let end = |(ip, port): (IpAddr, u16)| address(ip) << 16 | u64::from(port);
    let (a, b) = (end(flow.source), end(flow.destination));
    let (low, high) = (a.min(b), a.max(b));
    // 48 bits an end: VNI and protocol fill the two words up.
    let low = low | u64::from(vni & 0xffff) << 48;
    let high = high | u64::from(vni >> 16 & 0xff) << 48 | u64::from(flow.protocol) << 56;
    (seed.mix(low, high) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Key {
        let [a, b, c, d] = n.to_be_bytes();
        Key::new(1, false, [10, a, b, c, 10, 0, 0, d], [1, 2, 3, 4], 17)
    }

    fn flow(n: u32, seen: u32) -> Flow {
        Flow { generation: 1, transform: n, seen, far_end: 0 }
    }

    const NO_ADDRESSES: Addresses6 = Addresses6([0; 4]);

    fn put(cache: &mut FlowCache, n: u32, seen: u32) -> bool {
        let hash = cache.hash(key(n));
        cache.insert(hash, key(n), &NO_ADDRESSES, flow(n, seen)) != Inserted::IntoRoom
    }

    /// Adds the n-th flow of a VPC.
    fn put_of(cache: &mut FlowCache, vpc: u16, n: u32, seen: u32) -> Inserted {
        let key = key_of(vpc, n);
        let inserted = cache.insert(cache.hash(key), key, &NO_ADDRESSES, flow(n, seen));
        let mut held = [0; 4];
        let keys = cache.places().map(|(key, ..)| key).filter(|key| !key.is_empty());
        keys.for_each(|key| held[usize::from(key.vpc())] += 1);
        assert_eq!(cache.held.flows[..4], held, "what is counted is what is there");
        assert_eq!(cache.held.vpcs, held.iter().filter(|flows| **flows > 0).count() as u32);
        inserted
    }

    fn key_of(vpc: u16, n: u32) -> Key {
        Key { rest: key(n).rest & !0xff_ff00 | u64::from(vpc) << 8, ..key(n) }
    }

    fn flows_of(cache: &FlowCache, vpc: u16) -> usize {
        let keys = cache.places().map(|(key, ..)| key);
        keys.filter(|key| !key.is_empty() && key.vpc() == vpc).count()
    }

    fn has(cache: &mut FlowCache, n: u32) -> bool {
        let hash = cache.hash(key(n));
        cache.find(hash, key(n), &NO_ADDRESSES).is_some_and(|flow| {
            assert_eq!(flow.transform, n);
            true
        })
    }

    #[test]
    fn a_vpc_of_many_flows_evicts_its_own() {
        let mut cache = FlowCache::new(256, Seed::new(7));
        let quiet = 110;
        for n in 0..quiet {
            assert_eq!(put_of(&mut cache, 1, n, 0), Inserted::IntoRoom);
        }
        // All younger than those of the quiet one: by age alone they would stay.
        let flood: Vec<_> = (0..10_000).map(|n| put_of(&mut cache, 2, n, 1 + n)).collect();
        let count = |wanted| flood.iter().filter(|inserted| **inserted == wanted).count();
        assert!(flows_of(&cache, 1) >= 100, "{} are left", flows_of(&cache, 1));
        assert_eq!(flows_of(&cache, 1) + flows_of(&cache, 2), 256, "no room is left unused");
        assert!((1..500).contains(&count(Inserted::Refused)), "{}", count(Inserted::Refused));
        assert!(count(Inserted::EvictingSurplus) > 9_000);
        // Whoever has less than its share takes it from whoever has more.
        (0..quiet).for_each(|n| _ = put_of(&mut cache, 1, quiet + n, 20_000));
        assert!(flows_of(&cache, 1) >= 120, "{}", flows_of(&cache, 1));
        // A third one makes everybody's share smaller, and gets its own.
        (0..1_000).for_each(|n| _ = put_of(&mut cache, 3, n, 30_000));
        let held = [1, 2, 3].map(|vpc| flows_of(&cache, vpc));
        assert!(held.iter().all(|flows| (60..120).contains(flows)), "{held:?}");
    }

    /// The same for IPv6: every bit of both addresses tells flows apart.
    fn key6(cache: &FlowCache, n: u32) -> (Key, Addresses6) {
        let mut bytes = [0xfd; 32];
        bytes[n as usize % 29..][..4].copy_from_slice(&n.to_be_bytes());
        let mut key = Key::new6(1, false, [1, 2, 3, 4], 17);
        cache.complete(&mut key, &Addresses6::new(&bytes));
        (key, Addresses6::new(&bytes))
    }

    #[test]
    fn flows_of_both_families_beside_each_other() {
        let mut cache = FlowCache::new(1 << 10, Seed::new(7));
        for n in 0..300 {
            assert!(!put(&mut cache, n, 0));
            let (key, addresses) = key6(&cache, n);
            assert_eq!(
                cache.insert(cache.hash(key), key, &addresses, flow(n + 1000, 0)),
                Inserted::IntoRoom
            );
        }
        assert!((0..300).all(|n| has(&mut cache, n)));
        for n in 0..300 {
            let (key, addresses) = key6(&cache, n);
            let found = cache.find(cache.hash(key), key, &addresses).map(|flow| flow.transform);
            assert_eq!(found, Some(n + 1000));
            // A digest that is the same does not make another flow this one.
            let mut other = addresses;
            other.0[3] ^= 1;
            assert!(cache.find(cache.hash(key), key, &other).is_none());
            assert!(cache.find_first(cache.hash(key), key, &other).is_none());
        }
        let (key, addresses) = key6(&cache, 5);
        let other = Addresses6([9; 4]);
        let inserted = cache.insert(cache.hash(key), key, &other, flow(7, 0));
        assert_eq!(inserted, Inserted::Evicting, "takes the place");
        assert!(cache.find(cache.hash(key), key, &addresses).is_none());
        assert_eq!(cache.find(cache.hash(key), key, &other).unwrap().transform, 7);
    }

    #[test]
    fn keys_keep_their_parts_apart() {
        let key = Key::new(0xabcd, true, [1, 2, 3, 4, 5, 6, 7, 8], [0xff; 4], 0xff);
        assert_eq!(key.destination(), Ipv4Addr::new(5, 6, 7, 8));
        assert_eq!(key.vpc(), 0xabcd);
        assert!(key.is_from_uplink());
        let zero = Key::new(0, false, [0; 8], [0; 4], 0);
        assert_ne!(zero, Key::EMPTY);
        assert_eq!((zero.vpc(), zero.is_from_uplink(), zero.is_v6()), (0, false, false));
        let six = Key::new6(0xabcd, true, [0xff; 4], 0xff);
        assert_eq!((six.vpc(), six.is_from_uplink(), six.is_v6()), (0xabcd, true, true));
        let octets = std::array::from_fn(|at| at as u8);
        let addresses = Addresses6::new(&octets);
        assert_eq!(addresses.destination().octets(), octets[16..]);
        for other in [
            Key::new6(0, false, [0; 4], 0),
            Key::new(1, false, [0; 8], [0; 4], 0),
            Key::new(0, true, [0; 8], [0; 4], 0),
            Key::new(0, false, [0, 0, 0, 0, 0, 0, 0, 1], [0; 4], 0),
            Key::new(0, false, [0; 8], [0, 0, 0, 1], 0),
            Key::new(0, false, [0; 8], [0; 4], 1),
        ] {
            assert_ne!(zero, other);
        }
    }

    #[test]
    fn a_table_of_three_quarters_evicts_nothing() {
        let mut cache = FlowCache::new(1 << 12, Seed::new(7));
        let flows = (1 << 12) * 3 / 4;
        assert!((0..flows).all(|n| !put(&mut cache, n, 0)));
        assert!((0..flows).all(|n| has(&mut cache, n)));
    }

    #[test]
    fn the_oldest_goes_and_the_size_stays() {
        // One bucket is both homes of every flow: four fit, the fifth evicts.
        let mut cache = FlowCache::new(MIN_FLOWS, Seed::new(7));
        for (n, seen) in [(0, 9), (1, u32::MAX - 3), (2, 8), (3, 0)] {
            assert!(!put(&mut cache, n, seen));
        }
        assert!(put(&mut cache, 4, 10), "the fifth evicts");
        assert!(!has(&mut cache, 1), "seen before the tick wrapped: the oldest");
        assert!(put(&mut cache, 5, 10));
        assert!(!has(&mut cache, 3));
        assert!([0, 2, 4, 5].into_iter().all(|n| has(&mut cache, n)));
    }

    #[test]
    #[should_panic(expected = "flows in a cache")]
    fn a_size_below_one_bucket_is_refused() {
        FlowCache::new(MIN_FLOWS / 2, Seed::new(7));
    }

    #[test]
    fn as_many_flows_as_inserts_less_evictions() {
        let mut cache = FlowCache::new(1 << 8, Seed::new(1));
        let evicted = (0..1000).filter(|n| put(&mut cache, *n, *n)).count();
        let present = (0..1000).filter(|n| has(&mut cache, *n)).count();
        assert_eq!(present + evicted, 1000);
        assert!(present <= 1 << 8);
        assert!(present > 250, "a full cache: {present}");
    }

    #[test]
    fn both_directions_have_one_owner() {
        let seed = Seed::new(3);
        bolero::check!().with_type::<(u32, u32, u16, u32, u16, u8)>().for_each(
            |&(vni, a, a_port, b, b_port, protocol)| {
                let four = |bits| IpAddr::V4(Ipv4Addr::from_bits(bits));
                let six = |bits| IpAddr::V6(Ipv6Addr::from_bits(u128::from(bits) << 50));
                for (a, b) in [(four(a), four(b)), (six(a), six(b))] {
                    let (source, destination) = ((a, a_port), (b, b_port));
                    let there = FiveTuple { source, destination, protocol };
                    let back = FiveTuple { source: destination, destination: source, protocol };
                    let vni = vni & 0xff_ffff;
                    assert_eq!(owner(&seed, vni, &there), owner(&seed, vni, &back));
                }
            },
        );
    }

    #[test]
    fn owners_spread_and_depend_on_every_part() {
        let seed = Seed::new(3);
        let mut per_worker = [0; 4];
        let mut seen = std::collections::BTreeSet::new();
        for n in 0..4000_u16 {
            let flow = FiveTuple {
                source: (Ipv4Addr::new(10, 0, 0, 1).into(), n),
                destination: (Ipv4Addr::new(10, 0, 0, 2).into(), 80),
                protocol: 6,
            };
            for (vni, protocol) in [(1, 6), (0x1_0001, 6), (1, 17)] {
                let owner = owner(&seed, vni, &FiveTuple { protocol, ..flow });
                seen.insert(owner);
                per_worker[owner as usize % 4] += 1;
            }
        }
        assert!(seen.len() > 11_990, "{} of 12 000", seen.len());
        assert!(per_worker.iter().all(|n| (2700..3300).contains(n)), "{per_worker:?}");
    }
}
