//! A connection: a stream in each direction, and moving an engine's output into one.

use outboard_rdma::nvmf::Piece;
use outboard_sim::{Rng, Stream, StreamFaults};

/// Both directions of a connection.
#[derive(Debug)]
pub struct Wire {
    /// From the host to the target.
    pub up: Stream,
    pub down: Stream,
}

impl Wire {
    pub fn new(rng: &mut Rng) -> Wire {
        let faults = StreamFaults {
            // From pieces smaller than any header to several commands at once.
            max_piece_bytes: [30, 700, 9_000, 40_000][rng.index(4)],
            delay_ns: (5_000, [20_000, 400_000][rng.index(2)]),
            window_bytes: [4_000, 64_000, 500_000][rng.index(3)],
        };
        Wire { up: Stream::new(rng.fork(), faults), down: Stream::new(rng.fork(), faults) }
    }

    pub fn cut(&mut self) {
        self.up.cut();
        self.down.cut();
    }

    pub fn is_open(&self) -> bool {
        self.up.is_open()
    }
}

/// At most `limit` of the bytes that `pieces` name; `data` gives a command's data.
pub fn collect<'a>(
    pieces: impl Iterator<Item = Piece<'a>>,
    limit: usize,
    data: impl Fn(u16) -> &'a [u8],
) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces {
        let bytes = match piece {
            Piece::Bytes(bytes) => bytes,
            Piece::Data { slot, offset, len } => &data(slot)[offset as usize..][..len as usize],
        };
        let taken = bytes.len().min(limit - out.len());
        out.extend_from_slice(&bytes[..taken]);
        if out.len() == limit {
            break;
        }
    }
    out
}
