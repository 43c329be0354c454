//! Which memory a driver can work on, and how large a packet it then takes.
//!
//! Known by the driver's name, because DPDK does not tell (22.11):
//! - `net_af_packet` receives into one buffer, which must hold `framesz` less 32 whatever arrives.
//!   A frame of ours holds 3 840 bytes; for more, its packets are copied. The kernel cuts what is
//!   longer than `framesz` less 66.
//! - `net_memif` leaves its mark for "goes on" in a slot that was once the first of several, where
//!   the next packet of one slot finds it. So it is given only what fits one (`bsize`).
//! - `net_af_xdp` and `net_virtio_user` find packets by where the *mbufs* lie, and give the kernel
//!   or a guest that memory: their buffers cannot be elsewhere, so their packets are copied.
//! - `net_af_packet` and `net_memif` say that they carry 1 518 bytes and refuse to be told more,
//!   whatever they carry.

use super::DpdkError;
use outboard_dma::{DATA_BYTES, MAX_FRAMES};
use outboard_dpdk_sys::Memory;
use outboard_wire::ethernet;

/// What the kernel takes of a packet socket's frame: TPACKET2_HDRLEN and the Ethernet header,
/// rounded so that IP begins at a multiple of 16.
const SOCKET_HEADER_BYTES: usize = 66;
/// What the driver believes that it takes.
const DRIVER_HEADER_BYTES: usize = 32;
/// `framesz` unless given.
const SOCKET_FRAME_BYTES: usize = 2048;
/// `bsize` unless given.
const MEMIF_BYTES: usize = 2048;
/// The largest packet that is copied in one piece.
const COPIED_MAX_BYTES: usize = 60_000;
/// Drivers that need memory of their own.
const OWN_MEMORY: [&str; 2] = ["net_af_xdp", "net_virtio_user"];
/// Drivers whose MTU is not to be set.
const NO_MTU: [&str; 2] = ["net_af_packet", "net_memif"];

/// What a driver works on, and the largest frame that it takes.
#[derive(Debug, PartialEq, Eq)]
pub struct Fit {
    pub memory: Memory,
    pub most_bytes: usize,
    /// Whether DPDK sets the MTU.
    pub sets_mtu: bool,
}

/// Chooses for `device`, which shall carry packets of `mtu` bytes; `wanted` overrides the choice
/// between frames and a copy.
pub fn fit(device: &str, mtu: usize, wanted: Option<Memory>) -> Result<Fit, DpdkError> {
    let needed = mtu + ethernet::BYTES;
    let is_one_of = |drivers: &[&str]| drivers.iter().any(|driver| device.starts_with(driver));
    let sets_mtu = !is_one_of(&NO_MTU);
    let copied = |bytes: usize| Memory::Copied { packet_bytes: bytes.min(COPIED_MAX_BYTES) };
    let mut memory = match wanted {
        Some(memory) => memory,
        None if is_one_of(&OWN_MEMORY) => copied(needed),
        None => Memory::Shared,
    };
    let mut most_bytes = MAX_FRAMES * DATA_BYTES;
    if is_one_of(&["net_af_packet"]) {
        let frame = argument(device, "framesz").unwrap_or(SOCKET_FRAME_BYTES);
        most_bytes = frame.saturating_sub(SOCKET_HEADER_BYTES);
        if frame > DATA_BYTES + DRIVER_HEADER_BYTES {
            memory = copied(frame - DRIVER_HEADER_BYTES);
        }
    }
    if is_one_of(&["net_memif"]) {
        most_bytes = argument(device, "bsize").unwrap_or(MEMIF_BYTES);
    }
    if most_bytes < needed {
        let remedy = match is_one_of(&["net_memif"]) {
            true => format!("bsize={needed}"),
            false => larger(needed),
        };
        let (device, found) = (device.to_string(), most_bytes);
        return Err(DpdkError::FrameSize { device, found, needed, remedy });
    }
    if let Memory::Copied { packet_bytes } = memory {
        most_bytes = most_bytes.min(packet_bytes);
    }
    Ok(Fit { memory, most_bytes, sets_mtu })
}

/// A number among a device's arguments.
fn argument(device: &str, name: &str) -> Option<usize> {
    let pairs = device.split(',').skip(1).filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).last()?.1.parse().ok()
}

/// Arguments for packets of `needed` bytes: frames are multiples of 16 bytes, blocks of frames and
/// of pages (Linux `Documentation/networking/packet_mmap.rst`).
fn larger(needed: usize) -> String {
    const PAGE_BYTES: usize = 4096;
    let frame = (needed + SOCKET_HEADER_BYTES).next_multiple_of(256);
    let pages = (1..=16).find(|pages| (pages * PAGE_BYTES).is_multiple_of(frame));
    match pages {
        Some(pages) => format!("framesz={frame},blocksz={}", pages * PAGE_BYTES),
        None => {
            let frame = frame.next_power_of_two();
            format!("framesz={frame},blocksz={}", frame.max(PAGE_BYTES))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_works_on_frames_if_it_can() {
        let shared = |device, mtu| fit(device, mtu, None).unwrap().memory == Memory::Shared;
        assert!(shared("net_null0", 9000) && shared("0000:01:00.0", 9000));
        assert!(shared("net_af_packet0,iface=a", 1500));
        assert!(!shared("net_af_xdp0,iface=a", 1500));
        let jumbo = fit("net_af_packet0,iface=a,framesz=16384,blocksz=65536", 9000, None).unwrap();
        let memory = Memory::Copied { packet_bytes: 16_352 };
        assert_eq!(jumbo, Fit { memory, most_bytes: 16_318, sets_mtu: false });
    }

    #[test]
    fn the_edge_of_a_frame() {
        let at = |framesz: usize| {
            let device = format!("net_af_packet0,framesz={framesz}");
            fit(&device, 1500, None).unwrap().memory
        };
        assert_eq!(at(DATA_BYTES + 32), Memory::Shared);
        assert_eq!(at(DATA_BYTES + 48), Memory::Copied { packet_bytes: DATA_BYTES + 16 });
        for (device, mtu) in [("net_af_packet0,iface=a", 1968), ("net_memif0", 2034)] {
            assert!(fit(device, mtu, None).is_ok() && fit(device, mtu + 1, None).is_err());
        }
    }

    #[test]
    fn arguments_that_would_do_are_told() {
        for mtu in [1969, 2003, 3500, 3600, 9000, 16_000] {
            let refused = fit("net_af_packet0,iface=a", mtu, None).unwrap_err();
            let DpdkError::FrameSize { remedy, .. } = refused else { panic!("{refused}") };
            let device = format!("net_af_packet0,iface=a,{remedy}");
            let (frame, block) = (argument(&device, "framesz"), argument(&device, "blocksz"));
            let (frame, block) = (frame.unwrap(), block.unwrap());
            assert!(frame % 16 == 0 && block % frame == 0 && block % 4096 == 0, "{remedy}");
            assert!(fit(&device, mtu, None).is_ok(), "{remedy}");
        }
        let refused = fit("net_memif0,role=server", 9000, None).unwrap_err().to_string();
        assert!(refused.contains("`bsize=9014`"), "{refused}");
    }
}
