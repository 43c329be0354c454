//! A network between hosts and a target of ours: it keeps what is sent and delivers it late, stops
//! in the middle of a PDU, and strikes out that the target fences.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often it is looked whether what was kept goes on.
const LOOK: Duration = Duration::from_millis(1);
/// What tells a host that a target fences: magic and version.
const ANNOUNCEMENT: &[u8] = b"outboard\x02\0";
/// PDU type of data for the host.
const DATA: u8 = 7;
/// Bytes of the header that all PDUs begin with.
const HEADER_BYTES: usize = 8;

/// One connection through the network.
pub struct Way {
    host: TcpStream,
    target: TcpStream,
    /// Keeps what the host sends, instead of passing it on.
    holds: AtomicBool,
    /// Bytes kept.
    kept: AtomicUsize,
    /// What was passed on to the target.
    passed: Mutex<Vec<u8>>,
    /// Passes on half of the next data for the host, and nothing after it.
    stalls: AtomicBool,
    is_stalled: AtomicBool,
}

#[derive(Default)]
struct Shared {
    ends: AtomicBool,
    /// Keeps what is sent on connections to come.
    holds_new: AtomicBool,
    ways: Mutex<Vec<Arc<Way>>>,
}

/// The network between.
pub struct Between {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Between {
    pub fn new(target: SocketAddr) -> Between {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        let own = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || {
            let mut passing = Vec::new();
            while let Ok((host, _)) = listener.accept() {
                if own.ends.load(Ordering::Acquire) {
                    break;
                }
                let target = TcpStream::connect(target).unwrap();
                host.set_nodelay(true).unwrap();
                target.set_nodelay(true).unwrap();
                host.set_read_timeout(Some(LOOK)).unwrap();
                let way = Arc::new(Way::new(host, target));
                way.holds.store(own.holds_new.load(Ordering::Acquire), Ordering::Release);
                own.ways.lock().unwrap().push(Arc::clone(&way));
                let (up, ends) = (Arc::clone(&way), Arc::clone(&own));
                passing.push(std::thread::spawn(move || up.pass_to_target(&ends.ends)));
                let ends = Arc::clone(&own);
                passing.push(std::thread::spawn(move || way.pass_to_host(&ends.ends)));
            }
            passing.into_iter().for_each(|thread| thread.join().unwrap());
        });
        Between { address, shared, accepting: Some(accepting) }
    }

    pub fn ways(&self) -> Vec<Arc<Way>> {
        self.shared.ways.lock().unwrap().clone()
    }

    /// Keeps what is sent on the connections that there are.
    pub fn hold(&self) {
        self.ways().iter().for_each(|way| way.holds.store(true, Ordering::Release));
    }

    /// The next data for the host stops half way, on the connections that there are.
    pub fn stall(&self) {
        self.ways().iter().for_each(|way| way.stalls.store(true, Ordering::Release));
    }

    pub fn is_stalled(&self) -> bool {
        self.ways().iter().any(|way| way.is_stalled.load(Ordering::Acquire))
    }

    /// The host loses its connections; the target does not notice.
    pub fn cut(&self) {
        for way in self.ways() {
            let _ = way.host.shutdown(Shutdown::Both);
        }
    }

    /// Keeps what is sent on connections to come.
    pub fn hold_new(&self) {
        self.shared.holds_new.store(true, Ordering::Release);
    }

    /// What was kept arrives.
    pub fn deliver(&self) {
        self.shared.holds_new.store(false, Ordering::Release);
        self.ways().iter().for_each(|way| way.holds.store(false, Ordering::Release));
    }

    pub fn kept(&self) -> usize {
        self.ways().iter().map(|way| way.kept.load(Ordering::Acquire)).max().unwrap_or(0)
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Release);
        for way in self.ways() {
            let _ = (way.host.shutdown(Shutdown::Both), way.target.shutdown(Shutdown::Both));
        }
        let _knock = TcpStream::connect(self.address);
        let outcome = self.accepting.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            outcome.unwrap().unwrap();
        }
    }
}

impl Way {
    fn new(host: TcpStream, target: TcpStream) -> Way {
        let (holds, kept) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (stalls, is_stalled) = (AtomicBool::new(false), AtomicBool::new(false));
        Way { host, target, holds, kept, passed: Mutex::default(), stalls, is_stalled }
    }

    /// The PDUs that were passed on to the target, with their types.
    pub fn pdus(&self) -> Vec<(u8, Vec<u8>)> {
        let passed = self.passed.lock().unwrap();
        let mut rest = &passed[..];
        let mut pdus = Vec::new();
        while rest.len() >= HEADER_BYTES {
            let (pdu, behind) = rest.split_at(pdu_bytes(rest).min(rest.len()));
            pdus.push((pdu[0], pdu.to_vec()));
            rest = behind;
        }
        pdus
    }

    /// Passes on what the host sends. What was kept outlives the host's end of the connection.
    fn pass_to_target(&self, ends: &AtomicBool) {
        let mut kept = Vec::new();
        let mut bytes = [0; 16384];
        loop {
            match (&self.host).read(&mut bytes) {
                Ok(count @ 1..) => kept.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => break,
            }
            if self.holds.load(Ordering::Acquire) {
                self.kept.store(kept.len(), Ordering::Release);
                continue;
            }
            if (&self.target).write_all(&kept).is_err() {
                return;
            }
            self.passed.lock().unwrap().append(&mut kept);
        }
        while self.holds.load(Ordering::Acquire) && !ends.load(Ordering::Acquire) {
            std::thread::sleep(LOOK);
        }
        let _ = (&self.target).write_all(&kept);
    }

    /// Passes PDUs on to the host, if it is still there, without the announcement.
    fn pass_to_host(&self, ends: &AtomicBool) {
        let mut header = [0; HEADER_BYTES];
        while (&self.target).read_exact(&mut header).is_ok() {
            let len = pdu_bytes(&header);
            let mut pdu = header.to_vec();
            pdu.resize(len, 0);
            if (&self.target).read_exact(&mut pdu[HEADER_BYTES..]).is_err() {
                return;
            }
            let place = pdu.windows(ANNOUNCEMENT.len()).position(|window| window == ANNOUNCEMENT);
            if let Some(at) = place {
                pdu[at..at + ANNOUNCEMENT.len()].fill(0);
            }
            let is_half = pdu[0] == DATA && self.stalls.load(Ordering::Acquire);
            let len = if is_half { len / 2 } else { len };
            let _ = (&self.host).write_all(&pdu[..len]);
            self.is_stalled.store(is_half, Ordering::Release);
            while is_half && !ends.load(Ordering::Acquire) {
                std::thread::sleep(LOOK);
            }
        }
    }
}

/// PLEN (NVMe/TCP 3.6.1.1).
fn pdu_bytes(header: &[u8]) -> usize {
    u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize
}
