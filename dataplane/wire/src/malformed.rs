//! What can be wrong with a header.

/// Why a header could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The bytes end before the header does.
    TooShort,
    /// IPv4 version, header length or total length contradict each other or the frame.
    Ipv4Header,
    /// The IPv4 header has options.
    Ipv4Options,
    /// The IPv4 header checksum is wrong.
    Ipv4Checksum,
    /// IPv6 version or payload length contradict each other or the frame.
    Ipv6Header,
    /// The IPv6 extension headers are too many, too long, cut off, or out of order.
    Ipv6Extensions,
    /// Not a neighbour discovery message, or one of wrong length.
    Nd,
    /// Not ARP between Ethernet and IPv4, or an unknown operation.
    Arp,
    /// The UDP length is below 8 or exceeds the IP payload.
    UdpLength,
    /// The VXLAN I flag is not set.
    Vxlan,
}
