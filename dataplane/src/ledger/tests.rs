//! Properties of ledgers against exact computations over the same entries.

use super::*;

fn entry(began_ns: u64, stages_ns: [u64; STAGES_MAX]) -> Entry {
    Entry { began_ns, stages_ns, subject: Subject::Packet { from: 0, to: 1 }, bytes: 64 }
}

/// Entries of any size: the low bits choose how many bits each stage's time has.
fn entries(raw: &[[u64; STAGES_MAX]]) -> Vec<Entry> {
    let size = |bits: u64| (bits >> 5) & ((1 << (bits % 31)) - 1);
    raw.iter().enumerate().map(|(at, raw)| entry(at as u64, raw.map(size))).collect()
}

fn ledger(entries: &[Entry]) -> Ledger {
    let mut ledger = Ledger::default();
    entries.iter().for_each(|entry| ledger.record(entry));
    ledger
}

#[test]
fn buckets_are_narrow_rise_and_reach_the_ends() {
    assert_eq!([0, 1, 31, 32, 33].map(bucket_of), [0, 1, 31, 32, 33]);
    assert_eq!(bucket_of((1 << TOTAL_BITS) - 1), BUCKETS - 1);
    assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    bolero::check!().with_type::<u64>().for_each(|ns| {
        let ns = ns % (1 << TOTAL_BITS);
        // One bucket further at most, for a time that is a bucket's width longer.
        let further = ns + (ns >> SUB_BITS) + 1;
        assert!(bucket_of(further) > bucket_of(ns) || bucket_of(ns) == BUCKETS - 1);
        assert!(bucket_of(further) <= bucket_of(ns) + 2);
    });
}

#[test]
fn percentiles_lie_within_a_bucket_of_the_exact_ones_and_shares_sum_to_one() {
    bolero::check!().with_type::<Vec<[u64; STAGES_MAX]>>().for_each(|raw| {
        let entries = entries(raw);
        let ledger = ledger(&entries);
        let mut totals: Vec<u64> = entries.iter().map(Entry::total_ns).collect();
        totals.sort_unstable();
        for quantile in [0.0, 0.5, 0.9, 0.99, 0.999] {
            let rank = (totals.len() as f64 * quantile).ceil().max(1.0) as usize;
            let Some(at) = ledger.at(quantile) else {
                assert!(totals.len() < rank + BEYOND as usize);
                continue;
            };
            let exact = totals[rank - 1];
            let width = (exact >> SUB_BITS) + 1;
            assert!((at.total_ns - exact as f64).abs() <= width as f64, "{at:?} for {exact}");
            assert!((at.shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            assert!(at.shares.iter().all(|share| (0.0..=1.0).contains(share)));
        }
    });
}

#[test]
fn a_merge_is_the_ledger_of_all() {
    bolero::check!().with_type::<(Vec<[u64; STAGES_MAX]>, u8)>().for_each(|(raw, cut)| {
        let entries = entries(raw);
        let (first, second) = entries.split_at(usize::from(*cut).min(entries.len()));
        let mut merged = ledger(first);
        merged.merge(&ledger(second));
        assert_eq!(merged, ledger(&entries));
    });
}

#[test]
fn the_slowest_are_the_slowest() {
    bolero::check!().with_type::<Vec<[u64; STAGES_MAX]>>().for_each(|raw| {
        let mut entries = entries(raw);
        let ledger = ledger(&entries);
        // Of equals the earlier one stays.
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.total_ns()));
        entries.truncate(SLOWEST);
        assert!(ledger.slowest().eq(&entries));
    });
}

#[test]
fn a_percentile_shows_the_stages_of_those_near_it() {
    // 989 fast ones that spend their time in stage 2, and 11 slow ones that spend it in stage 4.
    let mut ledger = Ledger::default();
    for at in 0..1000 {
        let slow = at % 90 == 7 && at < 990;
        let stages_ns =
            if slow { [10, 0, 90, 0, 9900, 0, 0, 0] } else { [10, 0, 990, 0, 0, 0, 0, 0] };
        ledger.record(&entry(at, stages_ns));
    }
    let (half, late) = (ledger.at(0.5).unwrap(), ledger.at(0.99).unwrap());
    assert_eq!((half.total_ns, half.shares[2]), (1000.0, 0.99));
    assert_eq!((late.total_ns, late.shares[4]), (10_000.0, 0.99));
    assert!(ledger.at(0.991).is_none(), "9 entries lie beyond");
}

#[test]
fn what_began_before_the_ledger_is_not_in_it() {
    let mut ledgers = Ledgers::new(100);
    for began_ns in [99, 100] {
        ledgers.record(Kind::File, &entry(began_ns, [1; STAGES_MAX]));
    }
    let counts = Kind::ALL.map(|kind| ledgers.of(kind).count());
    assert_eq!(counts, [0, 0, 1, 0, 0]);
}

#[test]
fn the_report_says_where_the_time_was() {
    let mut ledgers = Ledgers::new(1_000_000_000);
    for at in 0..100 {
        let target_ns = if at == 40 { 1_900_000 } else { 15_000 };
        let stages_ns = [500, 500, 1000, target_ns, 2000, 500, 500, 0];
        let subject = Subject::Io { volume: 3, owner: 0, op: "read" };
        let began_ns = 1_000_000_000 + at * 1_000_000;
        ledgers.record(Kind::Remote, &Entry { began_ns, stages_ns, subject, bytes: 4096 });
    }
    let name = |subject: &Subject| match subject {
        Subject::Io { op, volume: 3, .. } => format!("{op} of disk web"),
        _ => "?".into(),
    };
    let report = Report::of(&ledgers, 3_000_000_000, name);
    let [table] = &report.tables[..] else { panic!("{report:?}") };
    assert_eq!((table.kind.as_str(), table.entries, table.stages.len()), ("remote I/O", 100, 7));
    assert_eq!(table.points[1].total_ns, None, "one entry lies beyond the 99th percentile");
    let text = report.to_string();
    assert!(text.starts_with("remote I/O: 100 in 2.0 s\n"), "{text}");
    let slow = "1.91 ms  read of disk web, 4096 B at 0.040 s: target 100 % (1.90 ms)\n";
    assert!(text.contains(slow), "{text}");
    assert!(text.contains("75 %   15.0 µs"), "{text}");
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
}
