//! Where packets spend their time, in a daemon of two workers.

use crate::world::{Options, World};
use outboard::ledger::Report;
use rustix::process::Signal;

#[test]
fn packets_stages_add_up_and_the_crossing_is_one_of_them() {
    let (world, a, b) = World::running(Options::default());
    let (blue_b, blue3) = (world.b.tenant("blue"), world.b.tenant("blue3"));
    blue3.reaches(blue_b.address);
    let config = world.b.config.to_str().unwrap();
    let output = std::thread::scope(|scope| {
        let look = ["ledger", "--config", config, "--seconds", "2", "--json"];
        let look = scope.spawn(move || world_outboard(&look));
        while !look.is_finished() {
            // Between two workers of one host.
            assert!(blue3.pings(blue_b.address, "-c 10"));
        }
        look.join().unwrap()
    });
    let report: Report = serde_json::from_str(&output).unwrap();
    let [table] = &report.tables[..] else { panic!("{report}") };
    assert_eq!(table.kind, "packet");
    assert!(table.entries >= 20, "{report}");
    let crossing = table.stages.iter().position(|(name, _)| name == "cross").unwrap();
    assert!(table.points[0].shares[crossing] > 0.0, "{report}");
    for point in table.points.iter().filter(|point| point.total_ns.is_some()) {
        assert!((point.shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{point:?}");
    }
    for slow in &table.slowest {
        assert_eq!(slow.stages_ns.iter().sum::<u64>(), slow.total_ns, "{slow:?}");
    }
    let between =
        |what: &str| what.starts_with("blue3 to blue,") || what.starts_with("blue to blue3,");
    assert!(table.slowest.iter().any(|slow| between(&slow.what)), "{report}");
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
}

/// What a command of `outboard` prints. The control socket is found from any namespace.
fn world_outboard(arguments: &[&str]) -> String {
    let output = std::process::Command::new(crate::process::OUTBOARD).args(arguments).output();
    let output = output.expect("outboard runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
