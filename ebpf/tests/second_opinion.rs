//! The committed object under a second loader, libbpf: it must load there as it does under aya,
//! and its programs, run by the kernel on frames that the test makes (BPF_PROG_TEST_RUN), must
//! decide and count what this project's parsers say of the same frames. Needs root.

#[path = "../../dataplane/tests/netns/mod.rs"]
mod netns;

mod second_opinion {
    pub mod expected;
    pub mod frames;
}

use libbpf_rs::{MapCore, MapFlags, MapHandle, Object, ObjectBuilder, ProgramInput};
use netns::Namespace;
use outboard_dma::{Region, RingSizes, Xsk};
use outboard_ebpf::abi::{OUTCOMES, Outcome};
use outboard_sim::{Rng, for_each_seed};
use second_opinion::expected::expected;
use second_opinion::frames::{self, OTHER_PORT, PORT, VTEPS};
use std::os::fd::RawFd;

static OBJECT: &[u8] = include_bytes!("../outboard-xdp.o");

/// Random frames of each seed.
const FRAMES: usize = 500;
const COMMAND: &str = "cargo test -p outboard-ebpf --test second_opinion";

// Actions of linux/bpf.h.
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

/// The object in the kernel, with a socket on the queue that frames of a test run come in on.
struct Loaded {
    object: Object,
    // The kernel takes a closed socket out of the map.
    _socket: Xsk,
    fd: RawFd,
    _namespace: Namespace,
}

impl Loaded {
    /// Loads it with the tunnel on `port`; the calling thread is in a namespace of its own then.
    fn new(port: u16) -> Loaded {
        let namespace = Namespace::new();
        namespace.enter();
        let mut open = ObjectBuilder::default().open_memory(OBJECT).unwrap();
        for mut map in open.maps_mut() {
            if map.name().to_string_lossy().ends_with(".rodata") {
                let value = map.initial_value_mut().unwrap();
                let at = find(value, &PORT.to_ne_bytes());
                value[at..at + 2].copy_from_slice(&port.to_ne_bytes());
            }
        }
        let object = open.load().unwrap();
        let region = Region::new(64).unwrap();
        let sizes = RingSizes { fill: 32, rx: 32, tx: 32, completion: 32 };
        // A test run pretends that the frame came in on the loopback interface.
        let socket = Xsk::open("lo", 0, region, sizes).unwrap();
        let fd = socket.fd();
        let loaded = Loaded { object, fd, _socket: socket, _namespace: namespace };
        for address in VTEPS {
            let key = outboard_wire::vtep(address);
            loaded.map("VTEPS").update(&key, &[0], MapFlags::ANY).unwrap();
        }
        loaded.set_socket(true);
        loaded
    }

    fn map(&self, name: &str) -> MapHandle {
        let mut maps = self.object.maps();
        let map = maps.find(|map| map.name() == name);
        MapHandle::try_from(&map.unwrap_or_else(|| panic!("no map {name}"))).unwrap()
    }

    fn set_socket(&self, there: bool) {
        let (map, queue) = (self.map("XSKS"), 0u32.to_ne_bytes());
        match there {
            true => map.update(&queue, &self.fd.to_ne_bytes(), MapFlags::ANY).unwrap(),
            false => map.delete(&queue).unwrap(),
        }
    }

    fn counters(&self) -> [u64; OUTCOMES] {
        let map = self.map("COUNTERS");
        std::array::from_fn(|outcome| {
            let key = (outcome as u32).to_ne_bytes();
            let values = map.lookup_percpu(&key, MapFlags::ANY).unwrap().unwrap();
            let number = |bytes: &Vec<u8>| u64::from_ne_bytes(bytes[..8].try_into().unwrap());
            values.iter().map(number).sum()
        })
    }

    /// Runs a program on a frame; the action, and how the counters changed.
    fn run(&self, program: &str, frame: &[u8]) -> (u32, [u64; OUTCOMES]) {
        let before = self.counters();
        let mut programs = self.object.progs_mut();
        let program = programs.find(|found| found.name() == program).unwrap();
        let mut out = vec![0; frame.len()];
        let input = ProgramInput {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..ProgramInput::default()
        };
        let action = program.test_run(input).unwrap().return_value;
        assert!(out == frame, "the program changed the frame");
        let after = self.counters();
        (action, std::array::from_fn(|at| after[at] - before[at]))
    }

    /// Checks one frame on the uplink's program.
    #[track_caller]
    fn check(&self, frame: &[u8], port: u16, with_socket: bool) -> Outcome {
        let outcome = match expected(frame, port, &VTEPS) {
            Outcome::Redirected if !with_socket => Outcome::NoSocket,
            outcome => outcome,
        };
        let counted = std::array::from_fn(|at| u64::from(at == outcome as usize));
        let found = self.run("outboard_uplink", frame);
        let shown = &frame[..frame.len().min(128)];
        assert_eq!(found, (action(outcome), counted), "{outcome:?} expected: {shown:02x?}");
        outcome
    }
}

fn find(bytes: &[u8], pattern: &[u8]) -> usize {
    let mut places = bytes.windows(pattern.len()).enumerate().filter(|(_, w)| *w == pattern);
    let (at, _) = places.next().expect("the port is among the constants");
    assert!(places.next().is_none(), "the port is there twice");
    at
}

fn action(outcome: Outcome) -> u32 {
    match outcome {
        Outcome::Redirected => XDP_REDIRECT,
        Outcome::NoSocket => XDP_DROP,
        _ => XDP_PASS,
    }
}

#[test]
fn crafted_frames_are_steered_as_the_parsers_say() {
    let loaded = Loaded::new(PORT);
    let mut reached = [0; OUTCOMES];
    for (name, frame) in frames::crafted() {
        // Whole, and cut off after every byte.
        for bytes in 14..=frame.len().min(200) {
            reached[loaded.check(&frame[..bytes], PORT, true) as usize] += 1;
        }
        let outcome = loaded.check(&frame, PORT, true);
        assert_eq!(name.outcome, outcome, "{}", name.text);
    }
    loaded.set_socket(false);
    for (_, frame) in frames::crafted() {
        reached[loaded.check(&frame, PORT, false) as usize] += 1;
    }
    for outcome in Outcome::ALL {
        assert!(reached[outcome as usize] > 0, "no frame was {}", outcome.name());
    }
}

#[test]
fn random_frames_are_steered_as_the_parsers_say() {
    let loaded = Loaded::new(PORT);
    let mut reached = [0; OUTCOMES];
    for_each_seed(COMMAND, 0, 20, |seed| {
        let mut rng = Rng::new(seed);
        for _ in 0..FRAMES {
            reached[loaded.check(&frames::random(&mut rng), PORT, true) as usize] += 1;
        }
    });
    println!("{reached:?} of {:?}", Outcome::ALL.map(Outcome::name));
    let floor = if std::env::var_os("OUTBOARD_SEED").is_some() { 0 } else { 100 };
    for outcome in Outcome::ALL.into_iter().filter(|outcome| *outcome != Outcome::NoSocket) {
        assert!(reached[outcome as usize] >= floor, "{}: {reached:?}", outcome.name());
    }
}

#[test]
fn another_port_is_another_tunnel() {
    let loaded = Loaded::new(OTHER_PORT);
    let mut rng = Rng::new(7);
    for (_, frame) in frames::crafted() {
        loaded.check(&frame, OTHER_PORT, true);
    }
    for _ in 0..FRAMES {
        loaded.check(&frames::random(&mut rng), OTHER_PORT, true);
    }
}

#[test]
fn every_frame_of_a_tenant_is_the_switch_s() {
    let loaded = Loaded::new(PORT);
    let mut rng = Rng::new(1);
    let random = (0..FRAMES).map(|_| frames::random(&mut rng));
    let frames: Vec<_> =
        frames::crafted().into_iter().map(|(_, frame)| frame).chain(random).collect();
    for (there, outcome) in [(true, Outcome::Redirected), (false, Outcome::NoSocket)] {
        loaded.set_socket(there);
        let counted = std::array::from_fn(|at| u64::from(at == outcome as usize));
        for frame in &frames {
            assert_eq!(loaded.run("outboard_tenant", frame), (action(outcome), counted));
        }
    }
}
