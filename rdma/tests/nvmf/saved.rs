//! State of any content: it is refused by name, or an engine that keeps its promises.

use crate::ends::{Controller, Host, Random, admin_config, names, namespace, subsystem};
use crate::loopback::{io_config, set_up, settle};
use outboard_rdma::nvmf::fabrics::ANY_CONTROLLER;
use outboard_rdma::nvmf::fence::Life;
use outboard_rdma::nvmf::initiator::{
    Associated, Association, Next, Queue, QueueConfig, Request, Wish,
};
use outboard_rdma::nvmf::target::{Limits, Subsystem, Target};
use outboard_rdma::nvmf::{Digests, LoadError, Op, Piece, StatusCode, Want};

const LIMITS: Limits = Limits { depth: 8, controllers: 2, ..Limits::DEFAULT };

/// Two ends in the middle of things, after `bytes` of what the host sends have come: writes by
/// request and in capsules, a list, reads that are answered.
fn busy(digests: Digests, bytes: usize) -> (Queue, Target, Subsystem) {
    let mut subsystem = subsystem(4096, LIMITS);
    let mut admin = (Host::new(admin_config()), Controller::new(8, 0));
    let found = set_up(&mut admin.0, &mut admin.1, &mut subsystem);
    let config = QueueConfig { digests, ..io_config(&found, 1, 8, 8192) };
    let (mut host, mut end) = (Host::new(config), Controller::new(8, 1 << 20));
    settle(&mut host, &mut end, &mut subsystem);
    let mut disk = vec![0; 4096 * 512];
    for (op, blocks) in [
        (Op::Write, 64),
        (Op::Read, 8),
        (Op::Discard, 9),
        (Op::Compare, 8),
        (Op::Write, 16),
        (Op::Flush, 0),
        (Op::Read, 3),
    ] {
        let bytes = if op.is_ranged() { 0 } else { blocks * 512 };
        host.submit(Request { op, lba: 1, blocks, bytes }, vec![1; bytes as usize]).unwrap();
    }
    let sent = host.transmit(usize::MAX);
    end.receive(0, &sent[..bytes.min(sent.len())], &mut subsystem).unwrap();
    if bytes.is_multiple_of(2) {
        while !end.running.is_empty() {
            end.run(0, &mut disk);
        }
    }
    let answer = end.transmit(bytes);
    host.receive(&answer).unwrap();
    (host.queue, end.target, subsystem)
}

/// Lets a target go on with bytes of any content, and with whoever runs its commands.
fn exercise_target(mut target: Target, subsystem: &mut Subsystem, random: &mut Random) {
    let mut running = Vec::new();
    for _ in 0..40 {
        while target.waiting().is_some() && random.below(4) > 0 {
            target.grant(subsystem);
        }
        running.extend(target.next_command());
        if !running.is_empty() && random.below(2) == 0 {
            let at = random.below(running.len() as u64) as usize;
            let command: outboard_rdma::nvmf::target::Command = running.swap_remove(at);
            target.complete(command.slot, StatusCode::SUCCESS);
        }
        let bytes: Vec<u8> = (0..random.below(200)).map(|_| random.next() as u8).collect();
        match target.wants() {
            Want::Engine => drop(target.receive(0, &bytes, subsystem)),
            Want::Data { len, .. } => {
                let len = bytes.len().min(len as usize);
                target.placed_copy(&bytes[..len], subsystem);
            }
            Want::Nothing => {}
        }
        let mut out = vec![0; random.below(5_000) as usize];
        let filled = target.fill(&mut out, |_, _, place| place.fill(7));
        target.sent_copy(&out[..filled], |_| {});
        let _ = (target.is_owed_data(), target.is_orphan(subsystem), target.take_digest_errors());
        if !target.has_data_digest() {
            let bytes: usize = target.pieces().map(|piece: Piece| piece.bytes()).sum();
            assert!(bytes < 64 << 20);
        }
    }
    let again = Target::load(&target.save(), subsystem).unwrap();
    assert_eq!(again.save(), target.save());
    target.leave(subsystem);
}

fn exercise_queue(mut queue: Queue, random: &mut Random) {
    for _ in 0..40 {
        let bytes: Vec<u8> = (0..random.below(200)).map(|_| random.next() as u8).collect();
        match queue.wants() {
            Want::Engine => drop(queue.receive(&bytes)),
            Want::Data { len, .. } => {
                let _ = queue.placed_copy(&bytes[..bytes.len().min(len as usize)]);
            }
            Want::Nothing => {}
        }
        let mut out = vec![0; random.below(5_000) as usize];
        let filled = queue.fill(&mut out, |_, _, place| place.fill(7));
        queue.sent_copy(&out[..filled]);
        while random.below(2) == 0 && queue.next_ended().is_some() {}
        if let outboard_rdma::nvmf::initiator::State::Ready { .. } = queue.state() {
            let _ = queue.submit(&Request { op: Op::Write, lba: 0, blocks: 64, bytes: 64 * 512 });
        }
    }
    let again = Queue::load(&queue.save()).unwrap();
    assert_eq!(again.save(), queue.save());
}

fn wish(digests: Digests) -> Wish {
    Wish {
        nsid: 1,
        digests,
        keep_alive_ms: 5_000,
        names: names(ANY_CONTROLLER),
        depth: 8,
        expected: Some(namespace(4096)),
        user: 3,
        life: Life { boot: 1, begun_ns: 2 },
        after: 0,
    }
}

/// Makes an association, moving at most `limit` bytes at a time in each direction; it goes on as
/// what `visit` gives back.
fn associate(
    digests: Digests,
    limit: usize,
    mut visit: impl FnMut(Association) -> Association,
) -> Associated {
    let mut subsystem = subsystem(4096, LIMITS);
    let mut ends = [Controller::new(8, 0), Controller::new(8, 1 << 20)];
    let mut engine = Association::new(wish(digests));
    loop {
        engine = visit(engine);
        let (queue, end) = match engine.poll(0).unwrap() {
            Next::Admin => (engine.admin_mut(), &mut ends[0]),
            Next::Io => (engine.io_mut().unwrap(), &mut ends[1]),
            Next::Time { .. } => unreachable!("our target is ready at once"),
            Next::Ready => return engine.finish().unwrap(),
        };
        let mut sent = Vec::new();
        for piece in queue.pieces() {
            let Piece::Bytes(bytes) = piece else { unreachable!("no I/O yet") };
            sent.extend_from_slice(&bytes[..bytes.len().min(limit - sent.len())]);
        }
        queue.sent(sent.len());
        end.receive(0, &sent, &mut subsystem).unwrap();
        if end.target.is_fencing() {
            end.target.finish_fence(&mut subsystem);
        }
        let answer = end.transmit(limit);
        let mut rest = &answer[..];
        while !rest.is_empty() {
            rest = &rest[queue.receive(rest).unwrap()..];
        }
    }
}

/// An association in the middle of being made, by how often it was seen before.
fn half_made(digests: Digests, at: usize) -> Vec<u8> {
    let (mut seen, mut saved) = (0, Vec::new());
    associate(digests, 150, |engine| {
        if seen == at {
            saved = engine.save();
        }
        seen += 1;
        engine
    });
    saved
}

#[test]
fn an_association_goes_on_from_any_point_of_its_making() {
    for digests in [Digests::NONE, Digests::BOTH] {
        for limit in [1, 7, 150, usize::MAX] {
            let whole = associate(digests, limit, |engine| engine);
            let mut kinds = [0; 3];
            let pieced = associate(digests, limit, |engine| {
                let saved = engine.save();
                let kind = ["setting", "waiting", "connecting"]
                    .iter()
                    .position(|doing| engine.doing().starts_with(doing));
                kinds[kind.unwrap()] += 1;
                let again = Association::load(&saved).unwrap();
                assert_eq!(again.save(), saved);
                again
            });
            assert!(kinds.iter().all(|count| *count > 0), "{kinds:?}");
            assert_eq!((pieced.found, pieced.epoch), (whole.found, whole.epoch));
            assert_eq!(pieced.admin.save(), whole.admin.save());
            assert_eq!(pieced.io.save(), whole.io.save());
        }
    }
}

/// Lets an association of any content go on with what comes.
fn exercise_association(mut engine: Association, random: &mut Random) {
    for _ in 0..10 {
        let queue = match engine.poll(random.below(1 << 40)) {
            Ok(Next::Admin) => Some(engine.admin_mut()),
            Ok(Next::Io) => engine.io_mut(),
            Ok(Next::Time { .. } | Next::Ready) | Err(_) => None,
        };
        let Some(queue) = queue else { break };
        let mut out = vec![0; random.below(5_000) as usize];
        let filled = queue.fill(&mut out, |_, _, place| place.fill(7));
        queue.sent_copy(&out[..filled]);
        let bytes: Vec<u8> = (0..random.below(200)).map(|_| random.next() as u8).collect();
        if queue.wants() == Want::Engine {
            let _ = queue.receive(&bytes);
        }
    }
    let _ = (engine.doing(), engine.namespace());
    assert_eq!(Association::load(&engine.save()).unwrap().save(), engine.save());
    engine.finish();
}

#[test]
fn what_is_saved_is_loaded_at_every_byte() {
    for digests in [Digests::NONE, Digests::BOTH] {
        for bytes in 0..250 {
            let (queue, target, subsystem) = busy(digests, bytes * 67);
            assert_eq!(Queue::load(&queue.save()).unwrap().save(), queue.save());
            let again = Target::load(&target.save(), &subsystem).unwrap();
            assert_eq!(again.save(), target.save());
        }
    }
}

#[test]
fn wrong_lengths_and_kinds_are_named() {
    let (queue, target, mut subsystem) = busy(Digests::NONE, 500);
    let (queue, target, shared) = (queue.save(), target.save(), subsystem.save());
    assert_eq!(Queue::load(&target).err(), Some(LoadError::Kind));
    assert_eq!(Target::load(&shared, &subsystem).err(), Some(LoadError::Kind));
    assert_eq!(subsystem.load(&queue), Err(LoadError::Kind));
    for cut in [8, 100, queue.len() - 1] {
        assert!(Queue::load(&queue[..cut]).is_err());
    }
    for cut in [8, 100, target.len() - 1] {
        assert!(Target::load(&target[..cut], &subsystem).is_err());
    }
    assert_eq!(Queue::load(&[&queue[..], &[0]].concat()).err(), Some(LoadError::Length));
    let mut version = target.clone();
    version[7] += 1;
    assert_eq!(Target::load(&version, &subsystem).err(), Some(LoadError::Kind));
    // A refused state changes nothing.
    assert!(subsystem.load(&shared[..shared.len() - 1]).is_err());
    assert_eq!(subsystem.save(), shared);
}

#[test]
fn changed_state_is_refused_or_harmless() {
    let mut random = Random(11);
    let mut loaded = [0; 3];
    for round in 0..3000_usize {
        let digests = Digests::from_bits((round % 4) as u8);
        let (queue, target, mut subsystem) = busy(digests, random.below(20_000) as usize);
        let (mut queue, mut target) = (queue.save(), target.save());
        for state in [&mut queue, &mut target] {
            for _ in 0..1 + random.below(3) {
                // Mostly what is not the page at the end.
                let end = state.len() as u64 - [0, 4_000][random.below(2) as usize];
                let at = 8 + random.below(end - 8) as usize;
                state[at] = [random.next() as u8, 0, 1, 0xff][random.below(4) as usize];
            }
        }
        if let Ok(queue) = Queue::load(&queue) {
            loaded[0] += 1;
            exercise_queue(queue, &mut random);
        }
        if let Ok(target) = Target::load(&target, &subsystem) {
            loaded[1] += 1;
            exercise_target(target, &mut subsystem, &mut random);
        }
    }
    for round in 0..1000 {
        let mut state = half_made(Digests::from_bits((round % 4) as u8), round % 40);
        if state.is_empty() {
            continue;
        }
        for _ in 0..1 + random.below(3) {
            let at = 8 + random.below((state.len() - 8) as u64) as usize;
            state[at] = [random.next() as u8, 0, 1, 0xff][random.below(4) as usize];
        }
        if let Ok(engine) = Association::load(&state) {
            loaded[2] += 1;
            exercise_association(engine, &mut random);
        }
    }
    assert!(loaded.iter().all(|count| (150..3000).contains(count)), "{loaded:?}");
}

#[test]
fn any_bytes_are_a_state_or_an_error() {
    bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
        let mut subsystem = subsystem(4096, LIMITS);
        let mut random = Random(1);
        let _ = subsystem.load(&[b"obsubs\0\x01", &bytes[..]].concat());
        if let Ok(queue) = Queue::load(&[b"obinit\0\x01", &bytes[..]].concat()) {
            exercise_queue(queue, &mut random);
        }
        if let Ok(engine) = Association::load(&[b"obasso\0\x01", &bytes[..]].concat()) {
            exercise_association(engine, &mut random);
        }
        let target = Target::load(&[b"obtarg\0\x01", &bytes[..]].concat(), &subsystem);
        if let Ok(target) = target {
            exercise_target(target, &mut subsystem, &mut random);
        }
    });
}
