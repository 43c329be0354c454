//! One direction of a byte stream, like TCP's: nothing is lost or reordered, but pieces are cut
//! anywhere, wait arbitrarily long, and the whole may be cut off at any moment.

use crate::{Events, Rng};

/// How the stream behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamFaults {
    /// The longest piece that arrives at once, in bytes.
    pub max_piece_bytes: usize,
    /// The least and the most time between sending a piece and its arrival.
    pub delay_ns: (u64, u64),
    /// The most bytes on the way: `write` takes no more.
    pub window_bytes: usize,
}

/// One direction of a connection.
#[derive(Debug)]
pub struct Stream {
    rng: Rng,
    faults: StreamFaults,
    way: Events<Vec<u8>>,
    /// A piece arrives no earlier than the one before it.
    last_ns: u64,
    on_way_bytes: usize,
    /// Arrived, and read up to `.1`.
    arrived: (Vec<u8>, usize),
    open: bool,
}

impl Stream {
    /// An open stream whose behaviour follows from `rng`.
    pub fn new(rng: Rng, faults: StreamFaults) -> Stream {
        assert!(faults.max_piece_bytes > 0 && faults.window_bytes > 0);
        Stream {
            rng,
            faults,
            way: Events::default(),
            last_ns: 0,
            on_way_bytes: 0,
            arrived: (Vec::new(), 0),
            open: true,
        }
    }

    /// Sends from the front of `bytes`: how many were taken. A cut stream takes none.
    pub fn write(&mut self, now_ns: u64, bytes: &[u8]) -> usize {
        if !self.open {
            return 0;
        }
        let taken = bytes.len().min(self.faults.window_bytes - self.on_way_bytes);
        let mut rest = &bytes[..taken];
        while !rest.is_empty() {
            let most = rest.len().min(self.faults.max_piece_bytes) as u64;
            let (piece, behind) = rest.split_at(self.rng.between(1, most) as usize);
            let (least_ns, most_ns) = self.faults.delay_ns;
            self.last_ns = self.last_ns.max(now_ns + self.rng.between(least_ns, most_ns));
            self.way.push(self.last_ns, piece.to_vec());
            rest = behind;
        }
        self.on_way_bytes += taken;
        taken
    }

    /// Receives into `out` what has arrived by `now_ns`, at most one piece: how many bytes.
    pub fn read(&mut self, now_ns: u64, out: &mut [u8]) -> usize {
        if self.arrived.1 == self.arrived.0.len()
            && let Some((_, piece)) = self.way.pop(now_ns)
        {
            self.arrived = (piece, 0);
        }
        let rest = &self.arrived.0[self.arrived.1..];
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        self.arrived.1 += count;
        self.on_way_bytes -= count;
        count
    }

    /// Cuts the stream: what is on the way never arrives.
    pub fn cut(&mut self) {
        self.open = false;
        self.way.clear();
        self.arrived = (Vec::new(), 0);
        self.on_way_bytes = 0;
    }

    /// Whether it was not cut.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// When the next piece arrives; 0 when some of the last one is still unread.
    pub fn next_ns(&self) -> Option<u64> {
        if self.arrived.1 < self.arrived.0.len() { Some(0) } else { self.way.next_ns() }
    }

    /// Bytes sent and not yet read.
    pub fn in_flight_bytes(&self) -> usize {
        self.on_way_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULTS: StreamFaults =
        StreamFaults { max_piece_bytes: 100, delay_ns: (10, 5_000), window_bytes: 1_000 };

    #[test]
    fn all_bytes_arrive_in_order_through_any_cuts() {
        for seed in 0..20 {
            let mut rng = Rng::new(seed);
            let mut stream = Stream::new(rng.fork(), FAULTS);
            let mut data = vec![0; 50_000];
            rng.fill(&mut data);
            let (mut sent, mut got, mut now_ns) = (0, Vec::new(), 0);
            while got.len() < data.len() {
                let end = data.len().min(sent + rng.index(600) + 1);
                sent += stream.write(now_ns, &data[sent..end]);
                assert!(stream.in_flight_bytes() <= FAULTS.window_bytes);
                let mut out = vec![0; rng.index(150) + 1];
                let count = stream.read(now_ns, &mut out);
                got.extend_from_slice(&out[..count]);
                now_ns += rng.below(2_000);
            }
            assert!(got == data && stream.in_flight_bytes() == 0 && stream.next_ns().is_none());
        }
    }

    #[test]
    fn the_window_is_full_at_its_limit_and_a_cut_ends_everything() {
        let mut stream = Stream::new(Rng::new(1), FAULTS);
        assert_eq!(stream.write(0, &[1; 1_001]), 1_000);
        assert_eq!(stream.write(0, &[1; 1]), 0);
        assert_eq!(stream.read(0, &mut [0; 10]), 0);
        assert_eq!(stream.read(u64::MAX, &mut [0; 1]), 1);
        assert_eq!(stream.write(0, &[1; 2]), 1);
        stream.cut();
        assert_eq!((stream.write(0, &[1]), stream.read(u64::MAX, &mut [0; 10])), (0, 0));
        assert!(!stream.is_open() && stream.next_ns().is_none());
    }
}
