//! memcpy of 4 KiB blocks at random places of 64 MiB into one buffer: the floor of every copy.

use crate::drivers::{LoadArgs, Subject, measure as drive};
use crate::error::Error;
use crate::load::{Content, Ended, Request, Work};
use crate::schema::Measurement;
use std::hint::black_box;

const BLOCK_BYTES: usize = 4096;
const BLOCKS: usize = 16 << 10;

/// Copies per sample: one alone is shorter than reading the clock.
const COPIES: usize = 64;

/// A sample is the time of [`COPIES`] copies; the rate counts them.
pub fn measure(args: &LoadArgs) -> Result<Measurement, Error> {
    let args = super::sockets::pinned(args);
    let load = args.load(10.0)?;
    let mut work = Copies { source: vec![1; BLOCKS * BLOCK_BYTES], next: 0, ended: Vec::new() };
    let subject = Subject {
        driver: "reference memcpy",
        name: format!("memcpy, {COPIES} blocks of 4 KiB"),
        group: "memcpy".into(),
        medium: "memory".into(),
        bytes: (COPIES * BLOCK_BYTES) as u64,
        is_block: false,
        parameters: vec![("copies_per_sample", COPIES.into())],
    };
    drive(&mut work, &args, &load, subject)
}

struct Copies {
    source: Vec<u8>,
    next: usize,
    ended: Vec<Request>,
}

impl Work for Copies {
    const MAY_LOSE: bool = false;

    fn prepare(&mut self, _slot: u16) {}

    fn start(&mut self, request: Request, _now_ns: u64) -> bool {
        let mut block = [0; BLOCK_BYTES];
        for _ in 0..COPIES {
            // A step that is odd, and thus prime to the power of two, visits every block.
            self.next = (self.next + 7919) % BLOCKS;
            block.copy_from_slice(&self.source[self.next * BLOCK_BYTES..][..BLOCK_BYTES]);
            black_box(&block);
        }
        self.ended.push(request);
        true
    }

    fn poll(&mut self, _now_ns: u64, ended: &mut Vec<Ended>) {
        ended.extend(self.ended.drain(..).map(|request| Ended { request, ok: true }));
    }

    fn check(&mut self, _ended: &Ended) -> Content {
        Content::Unchecked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_copies() {
        let measured = measure(&LoadArgs::closed(1, 0.05, 0.0, crate::machine::core_pair().0));
        assert!(measured.unwrap().bytes_per_s > 0.0);
    }
}
