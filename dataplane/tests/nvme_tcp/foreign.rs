//! A target that does not fence, behind a network that delivers a write long after the host has
//! connected again. It is our own target: what stands between strikes its announcement out.

use crate::between::Between;
use crate::server::{Client, NQN, Server, until};
use outboard::clock::now_ns;
use outboard::control::connect::Wanted;
use outboard::volume::remote::STALL_NS;
use outboard::volume::{BlockDevice, Dones, Op, Status};
use outboard_dma::{Frame, Segment};
use outboard_rdma::nvmf::capsule::nvm;
use std::time::{Duration, Instant};

/// How long the target of these tests may work on what it was sent before.
const QUIESCE: Duration = Duration::from_secs(3);
/// PDU type of a command.
const COMMAND: u8 = 4;
/// What is written and read.
const LBA: u64 = 7;
/// Tags.
const WRITE: u16 = 1;
const READ: u16 = 2;

/// A host of a foreign target, and what it writes and reads: one block.
struct Host {
    client: Client,
    data: Frame,
    into: Frame,
    ended: Vec<(u16, Status)>,
    /// Nanoseconds that its time is ahead of the clock.
    ahead_ns: u64,
}

impl Host {
    fn new(between: &Between, quiesce: Duration) -> Host {
        let wanted = Wanted { quiesce, ..Wanted::new(between.address, NQN, 1) };
        let mut client = Client::with(&wanted);
        let (data, into) = (client.free.take().unwrap(), client.free.take().unwrap());
        assert_eq!(client.connector.counters().fences.get(), 0, "it does not fence");
        Host { client, data, into, ended: Vec::new(), ahead_ns: 0 }
    }

    fn begin_write(&mut self, fill: u8) {
        self.data.bytes_mut().fill(fill);
        let segment = Segment::of_frame(&mut self.data, 0, 512);
        self.client.submit(WRITE, Op::Write, LBA, &[segment]);
        self.drive();
    }

    fn drive(&mut self) {
        let mut done = Dones::new();
        self.client.remote.reap(now_ns() + self.ahead_ns, &mut done);
        self.ended.extend(done.iter().map(|done| (done.tag.slot, done.status)));
    }

    fn begin_read(&mut self) {
        self.into.bytes_mut().fill(0xee);
        let segment = Segment::of_frame(&mut self.into, 0, 512);
        self.client.submit(READ, Op::Read, LBA, &[segment]);
    }

    /// Goes on until an I/O has ended, which must be this one alone, and well.
    #[track_caller]
    fn ends(&mut self, slot: u16) {
        until("an I/O has ended", || {
            self.drive();
            !self.ended.is_empty()
        });
        assert_eq!(std::mem::take(&mut self.ended), [(slot, Status::Ok)]);
    }

    #[track_caller]
    fn reads(&mut self, fill: u8) {
        self.begin_read();
        self.ends(READ);
        assert_eq!(self.into.bytes()[..512], [fill; 512]);
    }

    /// Writes, has the write kept on its way, loses the connection and has another.
    fn write_and_lose(&mut self, between: &Between, fill: u8) {
        between.hold();
        self.begin_write(fill);
        self.lose(between, 1);
    }

    /// Has `writes` kept on their way, loses the connection and has another.
    fn lose(&mut self, between: &Between, writes: usize) {
        until("they are under way", || between.kept() > writes * 512);
        between.cut();
        until("the volume is connected again", || {
            self.drive();
            self.client.connector.counters().reconnects.get() == 1
                && self.client.remote.is_connected()
        });
    }
}

#[test]
fn changes_wait_out_the_quiesce_time_and_reads_do_not() {
    let server = Server::new();
    let between = Between::new(server.address());
    let begun = Instant::now();
    let mut host = Host::new(&between, QUIESCE);
    // A process before this one may have died with writes under way.
    host.begin_write(1);
    host.reads(0);
    host.ends(WRITE);
    assert!(begun.elapsed() >= QUIESCE, "a write after {:?}", begun.elapsed());

    let lost = Instant::now();
    host.write_and_lose(&between, 2);
    host.reads(1);
    // The late write comes to the medium before it is sent again, and so before any newer one.
    between.deliver();
    until("it is written", || server.counters.writes.get() == 2);
    host.ends(WRITE);
    assert!(lost.elapsed() >= QUIESCE, "sent again after {:?}", lost.elapsed());
    assert_eq!(server.counters.writes.get(), 3);
    host.begin_write(3);
    host.ends(WRITE);
    host.reads(3);
}

/// What the time is for: `quiesce_ms = 0` says of a target that nothing is ever late.
#[test]
fn without_a_quiesce_time_a_late_write_lands_on_a_newer_one() {
    let server = Server::new();
    let between = Between::new(server.address());
    let mut host = Host::new(&between, Duration::ZERO);
    host.begin_write(1);
    host.ends(WRITE);
    host.write_and_lose(&between, 2);
    host.ends(WRITE);
    host.begin_write(3);
    host.ends(WRITE);
    host.reads(3);
    between.deliver();
    until("it is written", || server.counters.writes.get() == 4);
    host.reads(2);
}

/// TCP acknowledges, and the admin queue answers: nobody else would notice. What a medium is slow
/// with has no beginning, and nobody gives it up.
#[test]
fn a_target_that_stops_inside_a_pdu_is_left_and_a_slow_one_is_not() {
    let server = Server::new();
    let between = Between::new(server.address());
    let mut host = Host::new(&between, Duration::ZERO);
    host.begin_write(1);
    host.ends(WRITE);
    between.hold();
    host.begin_read();
    host.drive();
    until("the read is under way", || between.kept() > 0);
    host.ahead_ns += 10 * STALL_NS;
    host.drive();
    assert!(host.client.remote.is_connected(), "nothing of an answer came");
    between.deliver();
    host.ends(READ);

    between.stall();
    host.begin_read();
    until("half of the data has come", || {
        host.drive();
        between.is_stalled()
    });
    host.drive();
    assert!(host.client.remote.is_connected(), "it may go on");
    // Told until there is another connection.
    between.hold_new();
    host.ahead_ns += STALL_NS;
    host.drive();
    until("the reason is told", || host.client.connector.state().contains("middle of a PDU"));
    between.deliver();
    host.ends(READ);
    assert_eq!(host.into.bytes()[..512], [1; 512]);
    let counters = host.client.connector.counters();
    assert_eq!((counters.losses.get(), counters.reconnects.get()), (1, 1));
    assert_eq!((counters.reissued.get(), counters.ended_by_loss.get()), (1, 0));
}

/// Writes that overlap: those that came later must not land before those that came earlier.
#[test]
fn what_is_sent_again_is_sent_in_the_order_of_submission() {
    const WRITES: u8 = 16;
    let server = Server::new();
    let between = Between::new(server.address());
    let mut host = Host::new(&between, Duration::ZERO);
    let mut frames: Vec<Frame> = (0..WRITES)
        .map(|fill| {
            let mut frame = host.client.free.take().unwrap();
            frame.bytes_mut().fill(fill);
            frame
        })
        .collect();
    let mut write_all = |host: &mut Host| {
        for (slot, frame) in (0..).zip(&mut frames) {
            host.client.submit(slot, Op::Write, LBA, &[Segment::of_frame(frame, 0, 512)]);
        }
        host.drive();
    };
    let all_end = |host: &mut Host| {
        until("all have ended", || {
            host.drive();
            host.ended.len() == usize::from(WRITES)
        });
        assert!(host.ended.drain(..).all(|(_, status)| status == Status::Ok));
    };
    // Places that became free in one order are taken in the other.
    write_all(&mut host);
    all_end(&mut host);
    between.hold();
    write_all(&mut host);
    let before = between.ways().len();
    host.lose(&between, usize::from(WRITES));
    all_end(&mut host);
    let ways = between.ways();
    let pdus = ways[before..].iter().flat_map(|way| way.pdus());
    let fills =
        pdus.filter(|(kind, pdu)| *kind == COMMAND && pdu[8] == nvm::WRITE).map(|(_, pdu)| {
            let data_at = usize::from(pdu[3]);
            pdu[data_at]
        });
    assert_eq!(fills.collect::<Vec<_>>(), (0..WRITES).collect::<Vec<_>>());
    host.reads(WRITES - 1);
}
