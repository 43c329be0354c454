//! A daemon that is killed, and the next one.

use crate::clean::nothing_is_left;
use crate::process::until;
use crate::traffic::exchange;
use crate::world::{Options, World, pings};
use rustix::process::Signal;

#[test]
fn the_next_one_takes_over_from_one_that_was_killed() {
    let (world, mut a, b) = World::running(Options::default());
    for _ in 0..2 {
        a.signal(Signal::KILL);
        a.wait();
        assert!(world.a.has_program("veth") && world.a.pins().exists());
        // The uplink's other traffic does not suffer.
        assert!(pings(&world.b.netns, world.a.vtep, "-c 3"));
        assert!(pings(&world.a.netns, world.b.vtep, "-c 3"));
        assert!(!world.b.tenant("blue").pings(world.a.tenant("blue").address, "-c 1"));
        a = world.a.run();
        world.all_reach();
    }
    let (client, server) = (world.a.tenant("red"), world.b.tenant("red"));
    exchange(&server.netns, server.address, &client.netns);
    a.stop(Signal::TERM);
    b.stop(Signal::TERM);
    nothing_is_left(&world, &world.a);
    nothing_is_left(&world, &world.b);
}

#[test]
fn what_was_killed_leaves_nothing_on_interfaces_that_are_no_longer_in_the_plan() {
    let world = World::new(Options::default());
    let mut a = world.a.run();
    a.signal(Signal::KILL);
    a.wait();
    // One interface is gone, another one is there but not in the plan any more.
    world.a.netns.ip("link del red");
    let text = std::fs::read_to_string(&world.a.config).unwrap();
    let ports: Vec<_> = text.split("[[port]]").collect();
    let kept = ports.iter().filter(|port| !port.contains("name = 'red'\ninterface"));
    let kept = kept.filter(|port| !port.contains("name = 'green'\ninterface"));
    let text = kept.copied().collect::<Vec<_>>().join("[[port]]");
    std::fs::write(&world.a.config, text).unwrap();
    assert!(world.a.has_program("green"));
    let a = world.a.run();
    until("the old program is gone", || (!world.a.has_program("green")).then_some(()));
    assert!(a.log().contains("took the XDP program of an earlier run off green"), "{}", a.log());
    a.stop(Signal::TERM);
    assert!(!world.a.pins().exists());
}
