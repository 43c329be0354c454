//! Peers that send anything: an engine ends in a named fault or goes on, within its memory.

use crate::ends::{Controller, Host, admin_config, subsystem};
use crate::loopback::{io_config, set_up};
use outboard_rdma::nvmf::initiator::{Found, Progress, Request, Setup, SetupError, State};
use outboard_rdma::nvmf::target::Limits;
use outboard_rdma::nvmf::{Fault, Op};

const ROOM: usize = 256 << 10;

/// Feeds `stream` to a target in cuts of `cut`; commands are run, answers sent (`sent` bytes after
/// each cut) and thrown away. Returns the fault that it ended in. A controller of the recorded
/// host is there, so that its I/O queues can be connected.
fn feed_target(stream: &[u8], cut: usize, sent: usize) -> Option<Fault> {
    let mut subsystem = subsystem(4096, Limits { controllers: 2, depth: 32, ..Limits::DEFAULT });
    let mut disk = vec![0; 4096 * 512];
    let mut admin = Controller::new(32, 0);
    for piece in ADMIN.chunks(64) {
        admin.receive(0, piece, &mut subsystem).unwrap();
        admin.transmit(usize::MAX);
    }
    let mut end = Controller::new(32, ROOM);
    for piece in stream.chunks(cut.max(1)) {
        let outcome = end.receive(0, piece, &mut subsystem);
        while !end.running.is_empty() {
            end.run(0, &mut disk);
        }
        end.transmit(sent);
        assert!(end.held() <= ROOM);
        if let Err(fault) = outcome {
            assert_eq!(end.target.fault(), Some(fault));
            end.transmit(usize::MAX);
            assert!(!end.target.has_output());
            break;
        }
    }
    end.target.leave(&mut subsystem);
    assert_eq!(subsystem.controllers(), 1);
    end.target.fault()
}

const ADMIN: &[u8] = include_bytes!("../data/linux-nvme-tcp/admin.host");

/// A good stream: the recorded host's connections.
fn good(which: u8) -> Vec<u8> {
    match which % 3 {
        0 => ADMIN.to_vec(),
        1 => include_bytes!("../data/linux-nvme-tcp/discovery.host").to_vec(),
        _ => {
            let mut stream = include_bytes!("../data/linux-nvme-tcp/io1.host").to_vec();
            // The only H2CData PDU carries the tag that our target gives out: its first slot.
            let header = [6, 4, 24, 24];
            let at = stream.windows(4).position(|bytes| bytes == header).unwrap();
            stream[at + 10..at + 12].fill(0);
            stream
        }
    }
}

#[test]
fn a_target_survives_any_bytes() {
    bolero::check!().with_type::<(u8, Vec<u8>)>().for_each(|(cut, bytes)| {
        feed_target(bytes, usize::from(*cut), usize::from(*cut) * 3 + 1);
    });
}

#[test]
fn the_sessions_to_change_are_served_whole() {
    for which in 0..3 {
        // Shorter than a header, so that an R2T leaves before the data that answers it comes.
        for cut in [1, 8, 23] {
            let outcome = feed_target(&good(which), cut, usize::MAX);
            assert_eq!(outcome, None, "session {which} in cuts of {cut}");
        }
    }
}

#[test]
fn a_target_survives_a_session_with_bytes_changed() {
    type Changes = Vec<(u16, u8)>;
    bolero::check!().with_type::<(u8, u8, Changes)>().for_each(|(which, cut, changes)| {
        let mut stream = good(*which);
        for (at, value) in changes.iter().take(4) {
            let at = usize::from(*at) % stream.len().min(11_000);
            stream[at] = *value;
        }
        let sent = if which % 2 == 0 { usize::MAX } else { 100 };
        feed_target(&stream, usize::from(*cut) * 16 + 1, sent);
    });
}

/// The bytes that a good target answers an initiator with six I/Os in flight: recorded anew, then
/// changed and fed to an initiator in the same state.
fn target_bytes(host: &mut Host, end: &mut Controller) -> Vec<u8> {
    let mut subsystem = subsystem(4096, Limits { depth: 8, ..Limits::DEFAULT });
    let mut admin = (Host::new(admin_config()), Controller::new(8, 0));
    let found = set_up(&mut admin.0, &mut admin.1, &mut subsystem);
    *host = Host::new(io_config(&found, 1, 8, 8192));
    let mut disk = vec![7; 4096 * 512];
    let mut answers = Vec::new();
    for round in 0..6 {
        if host.queue.state() != State::Connecting && round == 2 {
            submit_some(host);
        }
        let bytes = host.transmit(usize::MAX);
        end.receive(0, &bytes, &mut subsystem).unwrap();
        while !end.running.is_empty() {
            end.run(0, &mut disk);
        }
        let bytes = end.transmit(usize::MAX);
        host.receive(&bytes).unwrap();
        answers.extend(bytes);
    }
    answers
}

fn submit_some(host: &mut Host) {
    for (op, blocks) in [(Op::Read, 8), (Op::Write, 64), (Op::Write, 8), (Op::Read, 256)] {
        let request = Request { op, lba: 0, blocks, bytes: blocks * 512 };
        host.submit(request, vec![1; blocks as usize * 512]).unwrap();
    }
    host.submit(Request { op: Op::Flush, lba: 0, blocks: 0, bytes: 0 }, vec![]).unwrap();
}

/// Feeds `stream` to an initiator that submits its I/Os as soon as it can.
fn feed_initiator(stream: &[u8], cut: usize) {
    let found = {
        let mut subsystem = subsystem(4096, Limits { depth: 8, ..Limits::DEFAULT });
        let mut admin = (Host::new(admin_config()), Controller::new(8, 0));
        set_up(&mut admin.0, &mut admin.1, &mut subsystem)
    };
    let mut host = Host::new(io_config(&found, 1, 8, 8192));
    let mut is_submitted = false;
    for piece in stream.chunks(cut.max(1)) {
        host.transmit(cut * 3 + 1);
        let outcome = host.receive(piece);
        while host.next_ended().is_some() {}
        if let Err(fault) = outcome {
            assert_eq!(host.queue.state(), State::Failed(fault));
            host.transmit(usize::MAX);
            assert!(!host.queue.has_output());
            break;
        }
        if matches!(host.queue.state(), State::Ready { .. }) && !is_submitted {
            is_submitted = true;
            submit_some(&mut host);
            host.transmit(usize::MAX);
        }
    }
}

#[test]
fn an_initiator_survives_any_bytes() {
    bolero::check!().with_type::<(u8, Vec<u8>)>().for_each(|(cut, bytes)| {
        feed_initiator(bytes, usize::from(*cut));
    });
}

#[test]
fn an_initiator_survives_a_session_with_bytes_changed() {
    let (mut host, mut end) = (Host::new(admin_config()), Controller::new(8, ROOM));
    let stream = target_bytes(&mut host, &mut end);
    assert_eq!(host.queue.in_flight(), 5);
    feed_initiator(&stream, 64);
    type Changes = Vec<(u16, u8)>;
    bolero::check!().with_type::<(u8, Changes)>().for_each(|(cut, changes)| {
        let mut changed = stream.clone();
        for (at, value) in changes.iter().take(4) {
            // Mostly in the headers of the first and the last PDUs.
            let at = usize::from(*at);
            let near = [400, 5000, changed.len()][at % 3];
            changed[at % near] = *value;
        }
        feed_initiator(&changed, usize::from(*cut) * 32 + 1);
    });
}

/// What a good target answers to a set-up.
fn set_up_bytes() -> Vec<u8> {
    let mut subsystem = subsystem(4096, Limits { depth: 8, ..Limits::DEFAULT });
    let (mut host, mut end) = (Host::new(admin_config()), Controller::new(8, 0));
    let (mut setup, mut answers) = (Setup::new(1), Vec::new());
    while !matches!(setup.poll(0, &mut host.queue), Ok(Progress::Done(_))) {
        end.receive(0, &host.transmit(usize::MAX), &mut subsystem).unwrap();
        let bytes = end.transmit(usize::MAX);
        host.receive(&bytes).unwrap();
        answers.extend(bytes);
    }
    answers
}

/// Takes `stream` for a target's answers: ends with what was found, or named.
fn feed_set_up(stream: &[u8], cut: usize) -> Option<Found> {
    let (mut host, mut setup) = (Host::new(admin_config()), Setup::new(1));
    let mut now_ns = 0;
    for piece in stream.chunks(cut) {
        host.transmit(usize::MAX);
        if host.receive(piece).is_err() {
            assert!(matches!(setup.poll(now_ns, &mut host.queue), Err(SetupError::Failed(_))));
            return None;
        }
        loop {
            match setup.poll(now_ns, &mut host.queue) {
                Ok(Progress::Done(found)) => return Some(found),
                Ok(Progress::Answer) => break,
                Ok(Progress::Time { at_ns }) => {
                    assert!(at_ns > now_ns, "it would poll for ever");
                    now_ns = at_ns;
                }
                Err(_) => return None,
            }
        }
        host.transmit(usize::MAX);
    }
    None
}

#[test]
fn a_set_up_survives_a_session_with_bytes_changed() {
    let stream = set_up_bytes();
    let right = feed_set_up(&stream, 1);
    assert!(right.is_some(), "the answers are right until they are changed");
    bolero::check!().with_type::<(u8, Vec<(u16, u8)>)>().for_each(|(cut, changes)| {
        let mut changed = stream.clone();
        for (at, value) in changes.iter().take(6) {
            let at = usize::from(*at) % changed.len();
            changed[at] = *value;
        }
        let Some(found) = feed_set_up(&changed, usize::from(*cut) + 1) else { return };
        // A queue can be made of whatever was found.
        let bytes = found.namespace.blocks.checked_mul(found.namespace.block_bytes.into());
        assert!(bytes.is_some_and(|bytes| bytes > 0) && found.max_in_flight > 0);
        let depth = found.max_in_flight.min(8);
        let mut host = Host::new(io_config(&found, 1, depth, found.in_capsule_bytes.min(8192)));
        host.transmit(usize::MAX);
    });
}
