//! A capture as pcapng (draft-ietf-opsawg-pcapng): one interface, which is the port, times in
//! nanoseconds of the wall clock, directions as flags, reasons of drops as comments, and at the
//! end how many packets there were and how many of them are missing.

use super::is_transient;
use crate::capture::{Record, Stage};
use crate::clock;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::interface_statistics::{
    InterfaceStatisticsBlock, InterfaceStatisticsOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness, PcapError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::borrow::Cow;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often a thread that waits for its client looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(100);
/// Looks that a client has left to take the rest when the daemon stops.
const LAST_LOOKS: u32 = 10;
/// How far the wall clock may go its own way before times follow it.
const DRIFT_NS: i64 = 1_000_000;
/// Directions in `epb_flags`, bits 0 and 1.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// The client's socket, written to without hanging on it when the daemon stops.
#[derive(Debug)]
pub(super) struct Outlet {
    stream: UnixStream,
    stop: Arc<AtomicBool>,
    last_looks: u32,
}

impl Outlet {
    /// `stream` is non-blocking.
    pub(super) fn new(stream: UnixStream, stop: Arc<AtomicBool>) -> Outlet {
        Outlet { stream, stop, last_looks: 0 }
    }

    pub(super) fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits for the client to say something, or for `time`.
    pub(super) fn wait(&self, time: Duration) {
        self.poll(PollFlags::IN, time);
    }

    fn poll(&self, events: PollFlags, time: Duration) {
        let time = Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() };
        // An error costs the wait alone: the next look tells.
        let _ = poll(&mut [PollFd::new(&self.stream, events)], Some(&time));
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.stream.write(bytes) {
                Err(error) if is_transient(&error) => {}
                done => return done,
            }
            if self.is_stopping() {
                self.last_looks += 1;
                if self.last_looks > LAST_LOOKS {
                    return Err(ErrorKind::TimedOut.into());
                }
            }
            self.poll(PollFlags::OUT, LOOK);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The stream.
pub(super) struct Writer {
    blocks: PcapNgWriter<BufWriter<Outlet>>,
    /// The wall clock less the monotonic one.
    offset_ns: i64,
    written: u64,
}

impl Writer {
    /// Writes the headers.
    pub(super) fn new(
        outlet: Outlet,
        port: &str,
        interface: &str,
        snap_bytes: usize,
        filter: &str,
    ) -> io::Result<Writer> {
        let program = concat!("outboard ", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            endianness: Endianness::Little,
            options: vec![SectionHeaderOption::UserApplication(program.into())],
            ..Default::default()
        };
        let mut options = vec![
            InterfaceDescriptionOption::IfName(port.into()),
            InterfaceDescriptionOption::IfTsResol(9),
        ];
        if !interface.is_empty() {
            options.push(InterfaceDescriptionOption::IfDescription(interface.into()));
        }
        if !filter.is_empty() {
            // Not as `if_filter`, whose language is libpcap's.
            options.push(InterfaceDescriptionOption::Comment(filter.into()));
        }
        let snaplen = snap_bytes as u32;
        let interface =
            InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen, options };
        let out = BufWriter::new(outlet);
        let mut blocks = PcapNgWriter::with_section_header(out, section).map_err(io_error)?;
        blocks.write_pcapng_block(interface).map_err(io_error)?;
        Ok(Writer { blocks, offset_ns: offset_ns(), written: 0 })
    }

    pub(super) fn outlet(&mut self) -> &mut Outlet {
        self.blocks.get_mut().get_mut()
    }

    /// Writes a packet.
    pub(super) fn packet(&mut self, record: &Record) -> io::Result<()> {
        let direction = if record.stage == Stage::Out { OUTBOUND } else { INBOUND };
        let mut options = vec![EnhancedPacketOption::Flags(direction)];
        if let Some(reason) = record.dropped {
            let text = format!("dropped: {}: {}", reason.name(), reason.text());
            options.push(EnhancedPacketOption::Comment(text.into()));
        }
        let block = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::from_nanos(self.wall_ns(record.time_ns)),
            original_len: record.packet_bytes,
            data: Cow::Borrowed(&record.data),
            options,
        };
        self.blocks.write_pcapng_block(block).map_err(io_error)?;
        self.written += 1;
        Ok(())
    }

    /// Sends what was written, and looks at the wall clock.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let offset_ns = offset_ns();
        if offset_ns.abs_diff(self.offset_ns) > DRIFT_NS as u64 {
            self.offset_ns = offset_ns;
        }
        self.blocks.get_mut().flush()
    }

    /// Writes the statistics and sends everything.
    pub(super) fn end(mut self, missed: u64) -> io::Result<()> {
        let now_ns = self.wall_ns(clock::now_ns());
        let block = InterfaceStatisticsBlock {
            interface_id: 0,
            // The upper half comes first, and `pcap_file` 2.0 writes one little-endian number.
            timestamp: now_ns.rotate_left(32),
            options: vec![
                InterfaceStatisticsOption::IsbIfRecv(self.written + missed),
                InterfaceStatisticsOption::IsbIfDrop(missed),
            ],
        };
        self.blocks.write_pcapng_block(block).map_err(io_error)?;
        self.blocks.get_mut().flush()
    }

    fn wall_ns(&self, monotonic_ns: u64) -> u64 {
        monotonic_ns.saturating_add_signed(self.offset_ns)
    }
}

fn offset_ns() -> i64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    wall.as_nanos() as i64 - clock::now_ns() as i64
}

fn io_error(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}
