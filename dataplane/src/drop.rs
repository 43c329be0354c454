//! Why a packet ended without being sent. Every drop has exactly one reason, counted per port.

/// Declares [`DropReason`] from one list: symbol, exported name, text for people.
macro_rules! drop_reasons {
    ($($symbol:ident $name:literal $text:literal,)*) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $text] $symbol,)*
        }

        impl DropReason {
            /// Every reason, in the order of their discriminants.
            pub const ALL: &[DropReason] = &[$(DropReason::$symbol,)*];

            /// The name in counters and JSON.
            pub fn name(self) -> &'static str {
                match self { $(DropReason::$symbol => $name,)* }
            }

            /// What it means and, where there is one, the remedy.
            pub fn text(self) -> &'static str {
                match self { $(DropReason::$symbol => $text,)* }
            }
        }
    };
}

drop_reasons! {
    TooShort "too_short" "The frame ends before its headers do.",
    TooManyFrames "too_many_frames" "The packet needs more than 18 frames.",
    NoFrames "no_frames" "The worker has no free frame; raise region_mib in [runtime].",
    NoHeadroom "no_headroom" "The frame has no room in front for the tunnel's headers.",
    EtherType "ether_type" "Neither IPv4, IPv6 nor ARP.",
    VlanTag "vlan_tag" "VLAN tags are not carried.",
    Broadcast "broadcast" "Broadcast other than ARP.",
    Multicast "multicast" "Multicast other than neighbour discovery.",
    SpoofedMac "spoofed_mac" "The source is not the tenant's MAC address; correct `mac` of \
        [[port]].",
    SpoofedSource "spoofed_source" "The source is not the tenant's address; correct `address` or \
        `address6` of [[port]].",
    SpoofedNeighbour "spoofed_neighbour" "ARP or neighbour discovery in another's name.",
    Ipv4Header "ipv4_header" "Version, header length or total length contradict the frame.",
    Ipv4Checksum "ipv4_checksum" "The IPv4 header checksum is wrong.",
    Ipv4Options "ipv4_options" "IPv4 options are not carried.",
    Ipv6Header "ipv6_header" "Version or payload length contradict the frame.",
    Ipv6Extensions "ipv6_extensions" "More than 8 extension headers or 256 bytes of them, or they \
        are cut off or out of order.",
    NdMalformed "nd_malformed" "A neighbour discovery message that is wrong, or not of the link.",
    NdIgnored "nd_ignored" "A neighbour discovery message that needs no answer.",
    ArpMalformed "arp_malformed" "Not an Ethernet/IPv4 ARP message.",
    ArpIgnored "arp_ignored" "An ARP message that needs no answer.",
    NotGateway "not_gateway" "Sent to a MAC address that is not the virtual gateway's.",
    ToGateway "to_gateway" "Sent to the virtual gateway, which answers only ARP, neighbour \
        discovery and echo requests.",
    TtlExceeded "ttl_exceeded" "TTL or hop limit reached zero, and the sender had been told too \
        often.",
    NoRoute "no_route" "No route of the VPC covers the destination.",
    NextHopUnresolved "next_hop_unresolved" "The kernel has no MAC address yet for the next hop.",
    NoUnderlayRoute "no_underlay_route" "The kernel has no route to the tunnel's far end, or \
        it is not over an uplink.",
    TooBig "too_big" "Larger than the MTU of the port it should leave through.",
    NotFragmented "not_fragmented" "Larger than the MTU of its way and may be fragmented, which \
        the gateway does not do; lower the sender's MTU.",
    VxlanMalformed "vxlan_malformed" "The VXLAN flags or lengths are invalid.",
    UdpChecksum "udp_checksum" "The outer UDP checksum is wrong.",
    ZeroChecksum "zero_checksum" "A tunnel over IPv6 without UDP checksum; have the far end make \
        one, or set `zero_checksum6 = true` in [[uplink]].",
    OuterFragment "outer_fragment" "The tunnel packet was fragmented on its way; \
        raise the MTU of the network between the hosts.",
    UnknownVni "unknown_vni" "No VPC has this VNI.",
    NotOurVtep "not_our_vtep" "The outer destination is not this host's tunnel address.",
    UnknownVtep "unknown_vtep" "The outer source is not the far end of any route of the VPC.",
    EcnInvalid "ecn_invalid" "Congestion was marked on a packet that cannot carry the mark \
        (RFC 6040).",
    NotTunnelled "not_tunnelled" "Not VXLAN; the XDP program should have left it to the kernel.",
    PartialChecksum "partial_checksum" "The sender left the checksum to an offload; run \
        `ethtool -K IF tx off gso off tso off`.",
    TxQueueFull "tx_queue_full" "The outgoing port's queue was still full after it was sent.",
    PeerQueueFull "peer_queue_full" "The ring to the worker that owns the outgoing port was full.",
    PortDown "port_down" "The port's interface is down or gone, or the port was \
        removed with packets under way.",
    Stopping "stopping" "Still queued when the daemon stopped.",
}

#[cfg(test)]
mod tests {
    use super::DropReason;

    #[test]
    fn names_are_unique_and_ordered() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
    }
}
