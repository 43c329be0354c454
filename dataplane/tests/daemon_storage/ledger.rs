//! Where I/Os spend their time: the ledger of a daemon with disks on every kind of volume.

use crate::guest::{Guest, Oracle};
use crate::host::{Host, NQN, Scratch, address, disk, file_target, remote};
use outboard::control::api::ledger::ask_ledger;
use outboard::ledger::{Report, Table};
use outboard::virtio::driver::DriverOp;
use std::time::Instant;

fn table<'a>(report: &'a Report, kind: &str) -> &'a Table {
    let table = report.tables.iter().find(|table| table.kind == kind);
    table.unwrap_or_else(|| panic!("no {kind}:\n{report}"))
}

/// The time of the stage in the nth of the slowest.
fn stage_ns(table: &Table, nth: usize, stage: &str) -> u64 {
    let index = table.stages.iter().position(|(name, _)| name == stage);
    table.slowest[nth].stages_ns[index.expect("there is such a stage")]
}

#[track_caller]
fn adds_up(table: &Table) {
    assert!(!table.slowest.is_empty() && table.slowest.len() as u64 <= table.entries);
    let totals: Vec<u64> = table.slowest.iter().map(|slow| slow.total_ns).collect();
    assert!(totals.is_sorted_by(|a, b| a >= b), "{totals:?}");
    for slow in &table.slowest {
        assert_eq!(slow.stages_ns.iter().sum::<u64>(), slow.total_ns, "{slow:?}");
    }
    for point in table.points.iter().filter(|point| point.total_ns.is_some()) {
        assert!((point.shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{point:?}");
    }
    let told: Vec<f64> = table.points.iter().filter_map(|point| point.total_ns).collect();
    assert!(told.is_sorted(), "{told:?}");
    assert_eq!(table.points[0].total_ns.is_some(), table.entries >= 20, "the median is told");
}

/// One at a time: but for what nobody can know, no I/O took longer than the guest waited.
#[track_caller]
fn took_at_most(table: &Table, longest_ns: u128) {
    adds_up(table);
    for (nth, slow) in table.slowest.iter().enumerate() {
        let known_ns = slow.total_ns - stage_ns(table, nth, "unseen");
        assert!(u128::from(known_ns) <= longest_ns, "{slow:?} of {longest_ns}");
    }
}

#[test]
fn stages_of_every_kind_of_volume_add_up() {
    let (scratch, address) = (Scratch::new(), address());
    let far = Host::new(&scratch, "b", &file_target("data.img", address));
    let target = far.run();
    let text = "[[volume]]\nname = 'ram'\nkind = 'mem'\nsize = '1MiB'\n\
                [[volume]]\nname = 'local'\nkind = 'file'\npath = 'DIR/one.img'\ncreate = '1MiB'\n"
        .to_owned()
        + &remote("far", NQN, address)
        + &disk("vda", "ram")
        + &disk("vdb", "local")
        + &disk("vdc", "far");
    let host = Host::new(&scratch, "a", &text);
    let daemon = host.run();
    let refused = ask_ledger(&host.socket, 0).unwrap_err().to_string();
    assert!(refused.contains("no ledger is kept; set `ledger = true`"), "{refused}");
    let mut guests = [("vda", "mem I/O"), ("vdb", "file I/O"), ("vdc", "remote I/O")]
        .map(|(name, kind)| (Guest::new(&scratch, name, Oracle::new(1 << 20)), kind, 0));
    let (report, far_report) = std::thread::scope(|scope| {
        let look = scope.spawn(|| ask_ledger(&host.socket, 2).unwrap());
        let far_look = scope.spawn(|| ask_ledger(&far.socket, 2).unwrap());
        while !look.is_finished() || !far_look.is_finished() {
            for (guest, _, longest_ns) in &mut guests {
                let begin = Instant::now();
                assert!(guest.does(DriverOp::Write, 7, 2) && guest.does(DriverOp::Read, 7, 2));
                *longest_ns = begin.elapsed().as_nanos().max(*longest_ns);
            }
        }
        (look.join().unwrap(), far_look.join().unwrap())
    });
    assert_eq!(report.tables.len(), 3, "{report}");
    for (_, kind, longest_ns) in &guests {
        took_at_most(table(&report, kind), *longest_ns);
    }
    let what = &table(&report, "remote I/O").slowest[0].what;
    assert!(what.ends_with(" of disk vdc, 8192 B"), "{what}");
    // The other side of the remote ones.
    assert_eq!(far_report.tables.len(), 1, "{far_report}");
    let exported = table(&far_report, "export I/O");
    took_at_most(exported, guests[2].2);
    for (nth, slow) in exported.slowest.iter().enumerate() {
        assert!(slow.what.ends_with(&format!(" of export {NQN}, 8192 B")), "{slow:?}");
        for stage in ["receive", "parse", "medium", "wait", "send"] {
            assert!(stage_ns(exported, nth, stage) > 0, "{stage}: {slow:?}");
        }
    }
    for (kind, stage) in [("mem I/O", "copy"), ("file I/O", "medium"), ("remote I/O", "target")] {
        let table = table(&report, kind);
        let all = 0..table.slowest.len();
        assert!(all.into_iter().all(|nth| stage_ns(table, nth, stage) > 0), "{kind}:\n{report}");
    }
    // Off again, and nothing is lost by it.
    assert!(ask_ledger(&host.socket, 0).is_err() && ask_ledger(&far.socket, 0).is_err());
    guests.iter_mut().for_each(|(guest, ..)| guest.verify());
    daemon.stop();
    target.stop();
}

#[test]
fn a_daemon_that_always_keeps_ledgers_tells_what_was_since_the_last_look() {
    let scratch = Scratch::new();
    let text =
        "[[volume]]\nname = 'ram'\nkind = 'mem'\nsize = '1MiB'\n".to_owned() + &disk("vda", "ram");
    let runtime = "region_mib = 16\nledger = true";
    let host = Host::with_top(&scratch, "a", runtime, "[[worker]]\ncore = 0", &text);
    let daemon = host.run();
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(1 << 20));
    for count in [30, 50] {
        for _ in 0..count {
            assert!(guest.does(DriverOp::Read, 3, 1));
        }
        let report = ask_ledger(&host.socket, 0).unwrap();
        let table = table(&report, "mem I/O");
        adds_up(table);
        assert_eq!(table.entries, count, "{report}");
    }
    assert_eq!(ask_ledger(&host.socket, 0).unwrap().tables, []);
    daemon.stop();
}
