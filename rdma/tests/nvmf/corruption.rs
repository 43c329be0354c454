//! Bytes that change on the way: with both digests nothing wrong is ever told as done.

use crate::ends::{Controller, Host, Random, admin_config, subsystem};
use crate::loopback::{io_config, set_up, settle};
use outboard_rdma::nvmf::initiator::{QueueConfig, Request};
use outboard_rdma::nvmf::target::Limits;
use outboard_rdma::nvmf::{Digests, Fault, Op, StatusCode};

#[test]
fn a_changed_byte_fails_its_command_or_ends_the_connection() {
    let mut random = Random(3);
    let (mut faults, mut transient, mut done) = (0, 0, 0);
    for round in 0..1500 {
        let mut subsystem = subsystem(256, Limits { depth: 8, ..Limits::DEFAULT });
        let mut admin = (Host::new(admin_config()), Controller::new(8, 0));
        let found = set_up(&mut admin.0, &mut admin.1, &mut subsystem);
        let config = QueueConfig { digests: Digests::BOTH, ..io_config(&found, 1, 8, 4096) };
        let (mut host, mut end) = (Host::new(config), Controller::new(8, 1 << 20));
        settle(&mut host, &mut end, &mut subsystem);
        let mut disk: Vec<u8> = (0..256 * 512).map(|at| (at / 512) as u8).collect();
        // A read and writes in the capsule and by request, of blocks that do not overlap.
        let writes = [(64_u64, 8_u32, 0xa1_u8), (96, 32, 0xb2)];
        let read = Request { op: Op::Read, lba: 0, blocks: 16, bytes: 16 * 512 };
        let read = host.submit(read, vec![0xee; 16 * 512]).unwrap();
        for (lba, blocks, fill) in writes {
            let bytes = blocks * 512;
            let request = Request { op: Op::Write, lba, blocks, bytes };
            host.submit(request, vec![fill; bytes as usize]).unwrap();
        }
        // The byte that changes, counted over both directions.
        let mut left = random.below(36_000) as usize;
        let mut change = |bytes: &mut Vec<u8>| {
            if let Some(byte) = bytes.get_mut(left) {
                *byte ^= 1 << random.below(8);
            }
            left = left.checked_sub(bytes.len()).unwrap_or(usize::MAX);
        };
        let mut fault: Option<Fault> = None;
        while fault.is_none() && (host.queue.has_output() || end.target.has_output()) {
            let mut bytes = host.transmit(usize::MAX);
            change(&mut bytes);
            fault = end.receive(0, &bytes, &mut subsystem).err();
            while fault.is_none() && !end.running.is_empty() {
                end.run(0, &mut disk);
            }
            let mut bytes = end.transmit(usize::MAX);
            change(&mut bytes);
            fault = fault.or(host.receive(&bytes).err());
        }
        faults += u32::from(fault.is_some());
        while let Some((ended, data)) = host.next_ended() {
            if !ended.status.is_success() {
                assert_eq!(ended.status.plain(), StatusCode::TRANSIENT_TRANSPORT);
                transient += 1;
                continue;
            }
            done += 1;
            assert!(ended.slot != read || data == disk[..16 * 512], "round {round}");
        }
        // A write is there as it was sent, or not at all; nothing else has changed.
        for (block, bytes) in disk.chunks(512).enumerate() {
            let written = writes.iter().find(|(lba, blocks, _)| {
                (*lba..*lba + u64::from(*blocks)).contains(&(block as u64))
            });
            let is_old = bytes.iter().all(|byte| *byte == block as u8);
            let is_new = written.is_some_and(|(.., fill)| bytes.iter().all(|byte| byte == fill));
            assert!(is_old || is_new, "round {round}: block {block}");
        }
    }
    assert!(faults > 10 && transient > 500 && done > 1000, "{faults} {transient} {done}");
}
