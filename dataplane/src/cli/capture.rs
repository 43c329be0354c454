//! `outboard capture`

use super::Failure;
use super::socket::Which;
use clap::Args;
use outboard::capture::{Filter, SNAP_BYTES_MAX, Stage};
use outboard::control::api::capture::{Request, Running, ask_capture};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often it is looked whether the user wants to end.
const LOOK: Duration = Duration::from_millis(100);
/// Looks in vain, 10 s of them, that the daemon has to send the rest.
const LAST_LOOKS: u32 = 100;
/// The longest block of pcapng that a daemon writes: a packet and its options.
const BLOCK_BYTES_MAX: usize = 1 << 20;
/// Block types (draft-ietf-opsawg-pcapng, section 11.1).
const ENHANCED_PACKET: u32 = 6;
const INTERFACE_STATISTICS: u32 = 5;

/// Write packets of a port to a pcapng file, as they pass through a running daemon
///
/// Packets are seen by the worker: after a port has received them (`in`), before it sends them
/// (`out`), or when they are dropped (`drop`, with the reason as the packet's comment). Nothing is
/// delayed: packets that come faster than they can be written are counted as missed.
#[derive(Debug, Args)]
#[command(after_help = "\
FILTER is tcpdump's language for what a switch carries, and two words for tunnels:
  ip ip6 arp tcp udp icmp icmp6 vxlan      what it is; of tcp and udp also: udp port 53
  [src|dst] [host] ADDRESS                 IPv4 or IPv6
  [src|dst] net PREFIX                     10.0.0.0/8, fd00::/8
  [src|dst] port N, portrange N-M
  ether [src|dst] [host] MAC, vlan [ID], less N, greater N
  vni N                                    a tunnel with this VXLAN identifier
  inner PRIMITIVE, inner ( … )             asks about the packet in the tunnel
  and or not ( )                           quote parentheses for the shell

Examples:
  outboard capture --port blue-web -w web.pcapng
  outboard capture --port blue-web -w - | tshark -r -
  outboard capture --port blue-web --stage drop -w dropped.pcapng
                                           why does it not arrive? The comments say it
  outboard capture --port uplink --count 10 -w up.pcapng 'vni 100 and inner (icmp or arp)'

Ctrl-C ends a capture, with a summary; a second one at once. Only root and the daemon's own user
may capture, four captures at most run at once, and a capture ends when its port is removed.")]
pub struct Capture {
    #[command(flatten)]
    which: Which,
    /// The port or uplink, by its name in the configuration
    #[arg(long, short, value_name = "NAME")]
    port: String,
    /// Where packets are seen; several: in,out [default: in,out]
    #[arg(long, value_name = "in|out|drop", value_delimiter = ',', value_parser = stage)]
    stage: Vec<Stage>,
    /// Keep at most so many bytes of each packet
    #[arg(long, value_name = "BYTES", default_value_t = SNAP_BYTES_MAX as u64,
        value_parser = clap::value_parser!(u64).range(1..=SNAP_BYTES_MAX as u64))]
    snap: u64,
    /// End after so many packets
    #[arg(long, short = 'n', value_name = "PACKETS",
        value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// The file to write, or - for standard output
    #[arg(long, short, value_name = "FILE")]
    write: PathBuf,
    /// Which packets; none: all
    #[arg(value_name = "FILTER", trailing_var_arg = true)]
    filter: Vec<String>,
}

fn stage(word: &str) -> Result<Stage, String> {
    let found = Stage::NAMES.iter().find(|(name, _)| *name == word);
    found.map(|(_, stage)| *stage).ok_or_else(|| "want in, out or drop".into())
}

impl Capture {
    pub fn run(self) -> Result<(), Failure> {
        let filter = self.filter.join(" ");
        // Checked here too, so that a mistake is shown without a daemon.
        Filter::parse(&filter)?;
        let stages = match self.stage.is_empty() {
            true => vec![Stage::In, Stage::Out],
            false => self.stage,
        };
        let snap = self.snap as usize;
        let request = Request { port: self.port, stages, filter, snap, count: self.count };
        let stop = Arc::<AtomicBool>::default();
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))?;
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        let mut running = ask_capture(&self.which.socket()?, request)?;
        // The daemon has accepted: an older file is not lost to a mistyped name.
        let out = open(&self.write)?;
        eprintln!("capturing on {}; Ctrl-C ends it", running.begun.port);
        let mut copy = Copy { out, buffer: Vec::new(), packets: 0, missed: None };
        let is_wanted = copy.all(&mut running, &stop)?;
        match copy.missed {
            Some(0) => eprintln!("{} packets, none missed", copy.packets),
            Some(missed) => eprintln!(
                "{} packets, and {missed} missed: they came faster than they were written; use a \
                 filter or a smaller --snap",
                copy.packets
            ),
            // The reader, such as `head`, has seen enough.
            None if !is_wanted => {}
            None => {
                let packets = copy.packets;
                let text = format!("error: the daemon ended within a capture ({packets} packets)");
                return Err(Failure(text));
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> Result<Box<dyn Write>, Failure> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdout().lock()));
    }
    let file = File::create(path);
    let file =
        file.map_err(|error| Failure(format!("error: cannot write {}: {error}", path.display())))?;
    Ok(Box::new(file))
}

/// Copies whole blocks, so that what is written is a capture at any time, and counts.
struct Copy {
    out: Box<dyn Write>,
    buffer: Vec<u8>,
    packets: u64,
    /// By the statistics at the end.
    missed: Option<u64>,
}

impl Copy {
    /// Copies until the end; `false` when nobody reads any more.
    fn all(&mut self, running: &mut Running, stop: &AtomicBool) -> Result<bool, Failure> {
        running.stream.get_ref().set_read_timeout(Some(LOOK))?;
        let mut last_looks = None;
        let mut chunk = vec![0; 64 << 10];
        loop {
            if stop.load(Ordering::Relaxed) && last_looks.is_none() {
                running.finish()?;
                last_looks = Some(LAST_LOOKS);
            }
            match running.stream.read(&mut chunk) {
                Ok(0) => return Ok(true),
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if is_pause(&error) && last_looks != Some(0) => {
                    last_looks = last_looks.map(|looks| looks - 1);
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            match self.write_blocks() {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(false),
                Err(error) => return Err(Failure(format!("error: cannot write: {error}"))),
                Ok(()) => {}
            }
        }
    }

    fn write_blocks(&mut self) -> io::Result<()> {
        let mut done = 0;
        while let Some((kind, block)) = next_block(&self.buffer[done..])? {
            match kind {
                ENHANCED_PACKET => self.packets += 1,
                INTERFACE_STATISTICS => self.missed = Some(missed(block)),
                _ => {}
            }
            done += block.len();
        }
        self.out.write_all(&self.buffer[..done])?;
        self.out.flush()?;
        self.buffer.drain(..done);
        Ok(())
    }
}

fn is_pause(error: &io::Error) -> bool {
    use ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

/// The first block with its type, if all of it is there.
fn next_block(bytes: &[u8]) -> io::Result<Option<(u32, &[u8])>> {
    let (Some(kind), Some(len)) = (word(bytes, 0), word(bytes, 4)) else { return Ok(None) };
    let len = len as usize;
    if !(12..=BLOCK_BYTES_MAX).contains(&len) || !len.is_multiple_of(4) {
        return Err(io::Error::new(ErrorKind::InvalidData, "the daemon sent no pcapng"));
    }
    Ok(bytes.get(..len).map(|block| (kind, block)))
}

/// `isb_ifdrop` of a statistics block.
fn missed(block: &[u8]) -> u64 {
    const IFDROP: u32 = 5;
    const OPTIONS_AT: usize = 20;
    let mut at = OPTIONS_AT;
    while let Some(head) = word(block, at) {
        let (code, len) = (head & 0xffff, (head >> 16) as usize);
        if code == IFDROP
            && let (Some(low), Some(high)) = (word(block, at + 4), word(block, at + 8))
        {
            return u64::from(low) | u64::from(high) << 32;
        }
        if code == 0 {
            break;
        }
        at += 4 + len.next_multiple_of(4);
    }
    0
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_daemon_sends_is_taken_or_refused() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            if let Ok(Some((_, block))) = next_block(bytes) {
                assert!(block.len() >= 12 && block.len() <= bytes.len());
            }
            missed(bytes);
        });
    }

    #[test]
    fn blocks_end_where_they_say() {
        let mut block = vec![6, 0, 0, 0, 16, 0, 0, 0, 1, 2, 3, 4, 16, 0, 0, 0];
        assert_eq!(next_block(&block[..15]).unwrap(), None);
        block.push(9);
        assert_eq!(next_block(&block).unwrap(), Some((6, &block[..16])));
        block[4] = 15;
        assert!(next_block(&block).is_err());
    }
}
