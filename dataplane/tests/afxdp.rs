//! The AF_XDP port and the XDP programs on a real kernel: veth pairs between namespaces that the
//! tests make. Needs root.

mod netns;

use netns::packet::PacketSocket;
use netns::{Bpffs, Namespace, run};
use outboard::counters::PortCounters;
use outboard::packet::{Burst, Packet, PortId};
use outboard::port::Port;
use outboard::port::afxdp::{AfXdp, AfXdpConfig};
use outboard::port::conformance::{self, Subject};
use outboard_dma::{Chain, CountingAllocator, FreeList, PollList, Region, RingSizes};
use outboard_ebpf::abi::Outcome;
use outboard_ebpf::{Mode, Program, Steering};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// IEEE 802: for local experiments.
const ETHER_TYPE: u16 = 0x88b5;
const PORT: PortId = PortId(5);
/// How often something is looked for, a millisecond apart.
const PATIENCE: u32 = 10_000;

fn small_rings() -> RingSizes {
    RingSizes { fill: 128, rx: 128, tx: 64, completion: 64 }
}

/// Two namespaces joined by a veth pair; the calling thread is in the near one.
struct Lab {
    bpffs: Bpffs,
    near: Namespace,
    far: Namespace,
}

impl Lab {
    fn new(queues: u32, mtu: u32) -> Lab {
        let lab = Lab { bpffs: Bpffs::new(), near: Namespace::new(), far: Namespace::new() };
        lab.near.join(&lab.far, queues, mtu);
        lab.near.enter();
        lab
    }

    fn attach(&self, program: Program) -> Steering {
        Steering::attach("veth", program, &self.bpffs.directory()).unwrap()
    }

    fn socket(&self) -> PacketSocket {
        self.far.within(|| PacketSocket::open("veth", ETHER_TYPE))
    }
}

/// One queue's port with its memory.
struct Queue {
    port: AfXdp,
    free: FreeList,
    counters: Arc<PortCounters>,
    frames: usize,
}

impl Queue {
    fn open(queue: u32, rings: RingSizes) -> Queue {
        let region = Region::new(1024).unwrap();
        let free = region.carve(1024).unwrap();
        let counters = Arc::new(PortCounters::default());
        let config = AfXdpConfig {
            interface: "veth",
            queue,
            region,
            rings,
            port: PORT,
            counters: counters.clone(),
        };
        Queue { port: AfXdp::open(config).unwrap(), frames: free.len(), free, counters }
    }

    /// Opens the queue, steers its frames to it and gives it frames to receive into.
    fn steered(queue: u32, rings: RingSizes, steering: &mut Steering) -> Queue {
        let mut this = Queue::open(queue, rings);
        steering.set_socket(queue, this.port.socket().unwrap()).unwrap();
        assert_eq!(this.receive(), Vec::<Vec<u8>>::new());
        this
    }

    fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut burst = Burst::new();
        self.port.rx(&mut burst, &mut self.free);
        let take = |packet: Packet| {
            let data = packet.segments().flatten().copied().collect();
            packet.into_chain().free(&mut self.free);
            data
        };
        let received = burst.drain(..).map(take).collect();
        self.conserved(0);
        received
    }

    /// Receives until there are `count` packets.
    fn expect(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut received = Vec::new();
        for _ in 0..PATIENCE {
            received.extend(self.receive());
            if received.len() >= count {
                assert_eq!(received.len(), count);
                return received;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("{} of {count} packets were received", received.len());
    }

    /// Offers one packet; whether the port took it.
    fn offer(&mut self, data: &[u8]) -> bool {
        let chain = Chain::from_slice(data, &mut self.free).unwrap();
        let mut burst = Burst::new();
        burst.push(Packet::new(chain, PortId(0)));
        self.port.tx(&mut burst, &mut self.free);
        let taken = burst.is_empty();
        for packet in burst.drain(..) {
            packet.into_chain().free(&mut self.free);
        }
        self.conserved(0);
        taken
    }

    fn conserved(&self, in_hand: usize) {
        assert_eq!(self.free.len() + self.port.held() + in_hand, self.frames);
    }

    /// Ends the port; every frame is back.
    fn close(mut self) {
        let statistics = self.port.statistics();
        assert_eq!((statistics.rx_invalid, statistics.tx_invalid), (0, 0));
        self.port.close(&mut self.free);
        assert_eq!(self.free.len(), self.frames, "frames after close");
        self.port.rx(&mut Burst::new(), &mut self.free);
        assert_eq!(self.free.len(), self.frames, "a closed port takes nothing");
    }
}

fn frame(number: u8, bytes: usize) -> Vec<u8> {
    let mut data = vec![number; bytes];
    data[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    data[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    data[12..14].copy_from_slice(&ETHER_TYPE.to_be_bytes());
    data
}

fn count(steering: &Steering, outcome: Outcome) -> u64 {
    steering.counters().unwrap()[outcome as usize]
}

/// The port over the veth, the kernel's packet socket at the far side.
struct OverVeth<'a> {
    lab: &'a Lab,
    socket: PacketSocket,
    port: AfXdp,
}

impl Subject for OverVeth<'_> {
    fn port(&mut self) -> &mut dyn Port {
        &mut self.port
    }

    fn ingress(&self) -> PortId {
        PORT
    }

    fn send(&mut self, data: &[u8], _free: &mut FreeList) {
        self.socket.send(data);
    }

    fn receive(&mut self, _free: &mut FreeList) -> Option<Vec<u8>> {
        self.socket.receive()
    }

    fn held(&mut self) -> usize {
        self.port.held()
    }

    fn stall(&mut self) {
        self.lab.near.ip("link set veth down");
    }

    fn resume(&mut self) {
        self.lab.near.ip("link set veth up");
    }
}

fn conforms(mtu: u32) {
    let lab = Lab::new(1, mtu);
    let mut steering = lab.attach(Program::Tenant);
    assert_eq!(steering.mode(), Mode::Native);
    let Queue { port, mut free, counters, .. } = Queue::steered(0, small_rings(), &mut steering);
    assert_eq!(port.max_frame_bytes(), mtu as usize + 14);
    let mut subject = OverVeth { lab: &lab, socket: lab.socket(), port };
    conformance::run(&mut subject, &mut free);
    assert!(counters.link_errors.get() > 0, "the link was down while the queue filled");
    assert_eq!(count(&steering, Outcome::Redirected), counters.rx_packets.get());
    assert_eq!(count(&steering, Outcome::NoSocket), 0);
    assert_eq!(counters.drops.total(), 0);
    steering.detach().unwrap();
}

#[test]
fn keeps_the_promise_of_a_port_at_mtu_1500() {
    conforms(1500);
}

#[test]
fn keeps_the_promise_of_a_port_at_mtu_9000() {
    conforms(9000);
}

#[test]
fn keeps_the_promise_of_a_port_with_chains_of_18_frames() {
    conforms(65535);
}

#[test]
fn every_queue_has_its_own_socket() {
    const QUEUES: u32 = 4;
    const FLOWS: u16 = 256;
    let lab = Lab::new(QUEUES, 1500);
    let mut steering = lab.attach(Program::Tenant);
    // The last queue stays without a socket.
    let mut queues: Vec<Queue> = (0..QUEUES - 1)
        .map(|queue| Queue::steered(queue, RingSizes::default(), &mut steering))
        .collect();
    // The kernel spreads by a hash of the flow when it knows that these are IPv4 packets.
    let socket = lab.far.within(|| PacketSocket::open("veth", 0x0800));
    for round in 0..2 {
        for flow in 0..FLOWS {
            socket.send(&udp(flow, round));
        }
    }
    for _ in 0..PATIENCE {
        if steering.counters().unwrap().iter().sum::<u64>() == u64::from(2 * FLOWS) {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let (redirected, lost) =
        (count(&steering, Outcome::Redirected), count(&steering, Outcome::NoSocket));
    assert_eq!(redirected + lost, u64::from(2 * FLOWS));
    assert!(lost > 0, "256 flows miss one of 4 queues");
    let mut seen = 0;
    for queue in &mut queues {
        let mut flows: Vec<(Vec<u8>, u8)> = Vec::new();
        loop {
            let burst = queue.receive();
            if burst.is_empty() {
                break;
            }
            flows.extend(burst.iter().map(|data| (data[34..36].to_vec(), data[42])));
        }
        assert!(!flows.is_empty(), "256 flows miss one of 4 queues");
        let (first, second) = flows.split_at(flows.len() / 2);
        assert!(first.iter().all(|flow| flow.1 == 0) && second.iter().all(|flow| flow.1 == 1));
        assert!(first.iter().map(|flow| &flow.0).eq(second.iter().map(|flow| &flow.0)));
        assert_eq!(queue.counters.rx_packets.get(), flows.len() as u64);
        seen += flows.len() as u64;
    }
    assert_eq!(seen, redirected);
    steering.clear_socket(0).unwrap();
    steering.clear_socket(0).unwrap();
    let refused = steering.set_socket(64, queues[0].port.socket().unwrap()).unwrap_err();
    assert!(refused.to_string().contains("at most 64 queues"), "{refused}");
    queues.into_iter().for_each(Queue::close);
    steering.detach().unwrap();
}

/// A UDP datagram of 1 byte between addresses that nobody has; the flow is its source port.
fn udp(flow: u16, payload: u8) -> Vec<u8> {
    let mut data = frame(0, 60);
    data[12..14].copy_from_slice(&[0x08, 0x00]);
    data[14..24].copy_from_slice(&[0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17]);
    data[26..34].copy_from_slice(&[10, 9, 0, 1, 10, 9, 0, 2]);
    data[34..36].copy_from_slice(&(1000 + flow).to_be_bytes());
    data[36..42].copy_from_slice(&[0, 9, 0, 9, 0, 0]);
    data[42] = payload;
    data
}

/// The addresses of an uplink test: the tunnel's, another one of the same interface, and a far one.
struct Addresses {
    vtep: IpAddr,
    other: IpAddr,
    far: IpAddr,
    len: u8,
}

#[test]
fn an_uplink_leaves_the_kernel_its_traffic() {
    let address = |last| IpAddr::from([10, 9, 0, last]);
    leaves_the_kernel(&Addresses { vtep: address(1), other: address(3), far: address(2), len: 24 });
}

#[test]
fn an_uplink_leaves_the_kernel_its_traffic_v6() {
    let address = |last| IpAddr::from([0xfd00, 9, 0, 0, 0, 0, 0, last]);
    leaves_the_kernel(&Addresses { vtep: address(1), other: address(3), far: address(2), len: 64 });
}

fn leaves_the_kernel(at: &Addresses) {
    const VXLAN_PORT: u16 = 8472;
    let lab = Lab::new(1, 1500);
    let nodad = if at.vtep.is_ipv6() { " nodad" } else { "" };
    for (side, address) in [(&lab.near, at.vtep), (&lab.near, at.other), (&lab.far, at.far)] {
        side.allow_ipv6("veth");
        side.ip(&format!("addr add {address}/{} dev veth{nodad}", at.len));
    }
    let program = Program::Uplink { vxlan_port: VXLAN_PORT, vteps: &[at.vtep] };
    let mut steering = lab.attach(program);
    let mut queue = Queue::steered(0, RingSizes::default(), &mut steering);
    let vtep = at.vtep.to_string();
    let ping = ["-c", "3", "-i", "0.2", "-W", "5", &vtep];
    let said = lab.far.within(|| run("ping", &ping));
    assert!(said.contains(" 0% packet loss"), "{said}");
    assert!(count(&steering, Outcome::Passed) >= 4, "a solicitation and three echo requests");
    assert_eq!(count(&steering, Outcome::Redirected), 0);

    let kernel = |address: IpAddr, port: u16| {
        let socket = std::net::UdpSocket::bind((address, port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    };
    let (tunnel, other) = (kernel(at.vtep, VXLAN_PORT), kernel(at.vtep, 4789));
    let elsewhere = kernel(at.other, VXLAN_PORT);
    let sender = lab.far.within(|| std::net::UdpSocket::bind((at.far, 0)).unwrap());
    let mut buffer = [0; 4096];
    sender.send_to(b"to the kernel", (at.vtep, 4789)).unwrap();
    assert_eq!(other.recv(&mut buffer).unwrap(), 13);
    sender.send_to(b"to the switch", (at.vtep, VXLAN_PORT)).unwrap();
    let received = queue.expect(1);
    assert!(received[0].ends_with(b"to the switch"));
    assert_eq!(count(&steering, Outcome::Redirected), 1);
    // Another tunnel of the same host, the kernel's own for example.
    sender.send_to(b"elsewhere", (at.other, VXLAN_PORT)).unwrap();
    assert_eq!(elsewhere.recv(&mut buffer).unwrap(), 9);
    assert_eq!(count(&steering, Outcome::PassedAddress), 1);

    // Fragments go to the kernel, which puts them together and has a socket on the same port.
    sender.send_to(&[7; 3000], (at.vtep, VXLAN_PORT)).unwrap();
    assert_eq!(tunnel.recv(&mut buffer).unwrap(), 3000);
    assert_eq!(count(&steering, Outcome::PassedFragment), 3);

    // The addresses may change while the program runs.
    steering.set_vteps(&[at.other]).unwrap();
    sender.send_to(b"other to the switch", (at.other, VXLAN_PORT)).unwrap();
    assert!(queue.expect(1)[0].ends_with(b"other to the switch"));
    sender.send_to(b"to the kernel now", (at.vtep, VXLAN_PORT)).unwrap();
    assert_eq!(tunnel.recv(&mut buffer).unwrap(), 17);

    let raw = lab.socket();
    raw.send(&frame(1, 41));
    let mut options = udp(1, 1);
    options[14] = 0x46;
    raw.send(&options);
    steering.clear_socket(0).unwrap();
    sender.send_to(b"to nobody", (at.other, VXLAN_PORT)).unwrap();
    let mut rest = [Outcome::PassedShort, Outcome::PassedOptions, Outcome::NoSocket].into_iter();
    assert!(rest.all(|outcome| eventually(|| count(&steering, outcome) >= 1)));
    queue.close();
    steering.detach().unwrap();
}

/// Whether something becomes true.
fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    (0..PATIENCE).any(|_| {
        let now = holds();
        if !now {
            std::thread::sleep(Duration::from_millis(1));
        }
        now
    })
}

#[test]
fn a_link_that_goes_down_loses_nothing_that_was_queued() {
    let lab = Lab::new(1, 1500);
    let mut steering = lab.attach(Program::Tenant);
    let mut queue = Queue::steered(0, small_rings(), &mut steering);
    let mut far = lab.socket();
    let mut arrived = Vec::new();
    let mut offered = 0;
    for turn in 0..30 {
        match turn {
            10 => lab.near.ip("link set veth down"),
            20 => lab.near.ip("link set veth up"),
            _ => {}
        }
        assert!(queue.offer(&frame(turn, 100)), "64 frames have room");
        offered += 1;
        assert_eq!(queue.receive(), Vec::<Vec<u8>>::new());
    }
    assert!(queue.counters.link_errors.get() > 0);
    assert!(eventually(|| {
        queue.receive();
        arrived.extend(std::iter::from_fn(|| far.receive()));
        arrived.len() == offered
    }));
    let numbers: Vec<u8> = arrived.iter().map(|data| data[20]).collect();
    assert_eq!(numbers, (0..30).collect::<Vec<u8>>());
    // What comes in flows again, too.
    far.send(&frame(99, 200));
    assert_eq!(queue.expect(1)[0], frame(99, 200));
    queue.close();
    steering.detach().unwrap();
}

#[test]
fn frames_come_back_from_a_port_that_is_closed_in_the_middle() {
    let lab = Lab::new(1, 9000);
    let mut steering = lab.attach(Program::Tenant);
    let mut queue = Queue::steered(0, small_rings(), &mut steering);
    let far = lab.socket();
    // Fill ring partly used, rx ring never read, tx ring stuck behind a link that is down.
    for number in 0..20 {
        far.send(&frame(number, 8000));
    }
    assert!(eventually(|| count(&steering, Outcome::Redirected) == 20));
    lab.near.ip("link set veth down");
    let mut stuck = 0;
    while queue.offer(&frame(stuck, 8000)) {
        stuck += 1;
    }
    assert!(stuck > 10 && queue.port.held() > 128, "{stuck} {}", queue.port.held());
    steering.clear_socket(0).unwrap();
    queue.close();
    // The queue is free at once.
    lab.near.ip("link set veth up");
    Queue::steered(0, small_rings(), &mut steering).close();
    steering.detach().unwrap();
}

#[test]
fn an_interface_that_vanishes_is_an_error_count_and_no_more() {
    let lab = Lab::new(1, 1500);
    let mut steering = lab.attach(Program::Tenant);
    let mut queue = Queue::steered(0, small_rings(), &mut steering);
    lab.near.ip("link del veth");
    let mut taken = 0;
    while queue.offer(&frame(1, 100)) {
        taken += 1;
        queue.receive();
    }
    assert_eq!(taken, 64, "the tx ring is full, the rest stays with the worker");
    assert!(queue.counters.link_errors.get() > 0);
    queue.close();
    steering.detach().unwrap();
}

#[test]
fn the_next_process_takes_over_what_a_killed_one_left() {
    let lab = Lab::new(1, 1500);
    let far = lab.socket();
    let mut killed = lab.attach(Program::Tenant);
    let old = Queue::steered(0, small_rings(), &mut killed);
    std::mem::forget(killed);
    old.close();
    far.send(&frame(1, 100));

    let mut steering = lab.attach(Program::Tenant);
    assert_eq!(steering.mode(), Mode::Native);
    let mut queue = Queue::steered(0, small_rings(), &mut steering);
    far.send(&frame(2, 100));
    assert_eq!(queue.expect(1)[0], frame(2, 100));
    assert_eq!(count(&steering, Outcome::Redirected), 1);
    let mut pins: Vec<_> = std::fs::read_dir(lab.bpffs.directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    pins.sort();
    assert_eq!(pins, ["veth-counters", "veth-link", "veth-prog", "veth-xsks"]);
    assert!(lab.near.within(|| run("ip", &["link", "show", "veth"])).contains("xdp"));

    // A link whose interface is gone does not stand in the way of a new one of the same name.
    queue.close();
    std::mem::forget(steering);
    lab.near.ip("link del veth");
    lab.near.join(&lab.far, 1, 1500);
    let mut steering = lab.attach(Program::Tenant);
    let mut queue = Queue::steered(0, small_rings(), &mut steering);
    lab.socket().send(&frame(3, 100));
    assert_eq!(queue.expect(1)[0], frame(3, 100));
    queue.close();
    steering.detach().unwrap();
    assert_eq!(std::fs::read_dir(lab.bpffs.directory()).unwrap().count(), 0);
    assert!(!lab.near.within(|| run("ip", &["link", "show", "veth"])).contains("xdp"));
    lab.attach(Program::Tenant).detach().unwrap();
}

/// A directory of this name cannot make room for a pin.
#[test]
fn an_attach_that_fails_leaves_no_program_that_swallows_frames() {
    let lab = Lab::new(1, 1500);
    let directory = lab.bpffs.directory();
    std::fs::create_dir_all(&directory).unwrap();
    for what in ["prog", "xsks", "counters", "link"] {
        let blocked = directory.join(format!("veth-{what}"));
        std::fs::create_dir(&blocked).unwrap();
        let failed = Steering::attach("veth", Program::Tenant, &directory);
        let error = failed.unwrap_err().to_string();
        assert!(error.contains(blocked.to_str().unwrap()), "{error}");
        let shown = run("ip", &["-n", lab.near.name(), "link", "show", "dev", "veth"]);
        assert!(!shown.contains("xdp"), "{what}: {shown}");
        std::fs::remove_dir(&blocked).unwrap();
        let left: Vec<_> = std::fs::read_dir(&directory).unwrap().collect();
        assert!(left.is_empty(), "{what}: {left:?}");
    }
    lab.attach(Program::Tenant).detach().unwrap();
}

#[test]
fn a_driver_without_xdp_gets_the_generic_mode() {
    let (bpffs, near) = (Bpffs::new(), Namespace::new());
    near.enter();
    near.ip("link add bridge0 type bridge");
    let program = Program::Uplink { vxlan_port: 4789, vteps: &[] };
    let attach = || Steering::attach("bridge0", program, &bpffs.directory()).unwrap();
    let first = attach();
    assert_eq!((first.mode(), first.mode().name()), (Mode::Generic, "generic"));
    std::mem::forget(first);
    let second = attach();
    assert_eq!(second.mode(), Mode::Generic);
    second.detach().unwrap();
}

#[test]
fn set_up_errors_say_what_to_do() {
    let lab = Lab::new(1, 1500);
    let attach = |interface: &str, directory: &std::path::Path| {
        Steering::attach(interface, Program::Tenant, directory).unwrap_err().to_string()
    };
    let missing = attach("no-such-if0", &lab.bpffs.directory());
    assert!(missing.contains("`no-such-if0`") && missing.contains("ip link"), "{missing}");
    let elsewhere = std::env::temp_dir().join(format!("outboard-no-bpffs-{}", std::process::id()));
    let no_bpffs = attach("veth", &elsewhere);
    std::fs::remove_dir(&elsewhere).unwrap();
    assert!(no_bpffs.contains("mount -t bpf"), "{no_bpffs}");

    let other = Bpffs::new();
    let first = Steering::attach("veth", Program::Tenant, &other.directory()).unwrap();
    let occupied = attach("veth", &lab.bpffs.directory());
    assert!(occupied.contains("another XDP program is attached to `veth`"), "{occupied}");
    first.detach().unwrap();

    let queue = Queue::open(0, small_rings());
    let region = Region::new(64).unwrap();
    let open = |queue| {
        outboard_dma::Xsk::open("veth", queue, region, small_rings()).unwrap_err().to_string()
    };
    let busy = open(0);
    assert!(busy.contains("queue 0 of `veth`") && busy.contains("ss --xdp"), "{busy}");
    let no_queue = open(1);
    assert!(no_queue.contains("no queue 1") && no_queue.contains("ethtool -l"), "{no_queue}");
    queue.close();
}

#[test]
fn the_wake_descriptor_is_readable_while_a_packet_waits() {
    let lab = Lab::new(1, 1500);
    let mut steering = lab.attach(Program::Tenant);
    let mut queue = Queue::steered(0, small_rings(), &mut steering);
    let mut list = PollList::with_capacity(1);
    list.add(queue.port.wake_fd().unwrap(), false);
    assert_eq!(list.wait(Duration::ZERO).unwrap(), 0);
    lab.socket().send(&frame(1, 100));
    assert_eq!(list.wait(Duration::from_secs(10)).unwrap(), 1);
    assert_eq!(queue.expect(1)[0], frame(1, 100));
    assert_eq!(list.wait(Duration::ZERO).unwrap(), 0);
    queue.close();
    steering.detach().unwrap();
}

#[test]
fn turns_allocate_nothing() {
    // A million packets.
    const ROUNDS: usize = 125_000;
    let lab = Lab::new(1, 9000);
    let mut steering = lab.attach(Program::Tenant);
    let mut queue = Queue::steered(0, RingSizes::default(), &mut steering);
    let mut far = lab.socket();
    let frames = [frame(1, 60), frame(2, 9000), frame(3, 3841), frame(4, 1500)];
    let (mut allocations, mut returned) = (0, 0);
    for round in 0..ROUNDS {
        for index in 0..8 {
            far.send(&frames[(round + index) % frames.len()]);
        }
        let before = CountingAllocator::count();
        let mut burst = Burst::new();
        queue.port.rx(&mut burst, &mut queue.free);
        let received = burst.len();
        queue.port.tx(&mut burst, &mut queue.free);
        allocations += CountingAllocator::count() - before;
        assert!(burst.is_empty(), "the ring has room for {received}");
        queue.conserved(0);
        returned += std::iter::from_fn(|| far.receive()).count();
    }
    assert!(CountingAllocator::count() > 0, "the far side's buffers are counted");
    assert_eq!(allocations, 0, "in {ROUNDS} turns");
    assert!(returned > ROUNDS, "{returned} packets went there and back");
    queue.close();
    steering.detach().unwrap();
}

/// Set for the copy of this program that runs with fewer rights; its value is the pin directory.
const INNER: &str = "OUTBOARD_TEST_INNER";

/// Runs one test of this file in a copy of this program, started by `program` with `args`.
fn run_inner(program: &str, args: &[&str], test: &str, value: &str) {
    let mut command = std::process::Command::new(program);
    command.args(args).arg(std::env::current_exe().unwrap()).args(["--exact", test]);
    let output = command.arg("--nocapture").env(INNER, value).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{errors}");
}

#[test]
fn a_missing_capability_is_named() {
    if let Ok(directory) = std::env::var(INNER) {
        let attached = Steering::attach("lo", Program::Tenant, directory.as_ref());
        let text = attached.unwrap_err().to_string();
        assert!(text.contains("`lo`") && text.contains("CAP_BPF"), "{text}");
        let region = Region::new(64).unwrap();
        let text = outboard_dma::Xsk::open("lo", 0, region, small_rings()).unwrap_err().to_string();
        assert!(text.contains("CAP_NET_RAW"), "{text}");
        return;
    }
    let bpffs = Bpffs::new();
    let directory = bpffs.directory();
    let args = ["--bounding-set=-all", "--inh-caps=-all"];
    run_inner("setpriv", &args, "a_missing_capability_is_named", directory.to_str().unwrap());
}

#[test]
fn a_limit_of_locked_memory_is_named() {
    if std::env::var(INNER).is_ok() {
        let region = Region::new(1024).unwrap();
        let text = outboard_dma::Xsk::open("lo", 0, region, small_rings()).unwrap_err().to_string();
        assert!(text.contains("4 MiB") && text.contains("ulimit -l"), "{text}");
        return;
    }
    let args = ["--memlock=1048576", "setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-all"];
    run_inner("prlimit", &args, "a_limit_of_locked_memory_is_named", "1");
}

#[test]
fn the_bpf_file_system_is_mounted_when_it_is_missing() {
    if std::env::var(INNER).is_ok() {
        // In a mount namespace of our own: take away what is there.
        let mounted = || run("stat", &["-f", "-c", "%T", "/sys/fs/bpf"]).trim() == "bpf_fs";
        while mounted() {
            run("umount", &["-l", "/sys/fs/bpf"]);
        }
        let near = Namespace::new();
        near.enter();
        near.ip("link add bridge0 type bridge");
        let directory = std::path::Path::new("/sys/fs/bpf/outboard/mounts");
        let steering = Steering::attach("bridge0", Program::Tenant, directory).unwrap();
        assert!(mounted() && directory.join("bridge0-link").exists());
        steering.detach().unwrap();
        return;
    }
    let test = "the_bpf_file_system_is_mounted_when_it_is_missing";
    run_inner("unshare", &["--mount", "--propagation", "private"], test, "1");
}
