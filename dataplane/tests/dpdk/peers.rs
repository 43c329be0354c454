//! DPDK's own forwarder, testpmd, at the far side: it sends back what it receives.

use crate::netns::Namespace;
use crate::queue::{Options, PATIENCE, Queue, wait_for_links};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A forwarder in a namespace; killed when dropped.
struct Testpmd(Child);

impl Testpmd {
    /// Starts it on one device and waits until it forwards; `None` where it is not installed.
    fn start(namespace: &Namespace, device: &str) -> Option<Testpmd> {
        if Command::new("dpdk-testpmd").arg("--version").output().is_err() {
            println!("not run here: dpdk-testpmd is not installed; `cargo xtask setup --dpdk`");
            return None;
        }
        let prefix = format!("--file-prefix=outboard-{}", namespace.name());
        let vdev = format!("--vdev={device}");
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", namespace.name(), "stdbuf", "-oL", "dpdk-testpmd"])
            .args(["--no-huge", "--no-pci", "-m", "256", "--no-telemetry", &prefix, &vdev])
            .args(["--lcores=0@(0-1),1@(0-1)", "--", "--forward-mode=io", "--port-topology=loop"])
            .args(["--total-num-mbufs=4096"])
            // It ends when its input does.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut testpmd = Testpmd(command.spawn().unwrap());
        let output = testpmd.0.stdout.take().unwrap();
        let mut said = String::new();
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            said += &line;
            if line.contains("Press enter to exit") {
                return Some(testpmd);
            }
        }
        panic!("testpmd ended: {said}");
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends packets of many sizes, a few at a time, and has them back in order.
fn comes_back(mut queue: Queue, largest: usize) {
    let mut number = 0u32;
    for round in 0..64 {
        let sent: Vec<Vec<u8>> = (0..8)
            .map(|index| {
                number += 1;
                let bytes = 60 + (round * 8 + index) * (largest - 60) / 511;
                let mut data: Vec<u8> = (0..bytes).map(|at| (at * 7 + bytes) as u8).collect();
                data[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
                data[12..14].copy_from_slice(&[0x88, 0xb5]);
                data[14..18].copy_from_slice(&number.to_be_bytes());
                data
            })
            .collect();
        for data in &sent {
            assert!(queue.offer(data));
        }
        assert!(queue.expect(8) == sent, "round {round}: not what was sent");
    }
    queue.close();
}

#[test]
fn testpmd_sends_back_over_shared_memory() {
    let namespace = Namespace::new();
    let socket = format!("socket=@outboard-peer-{},socket-abstract=yes", namespace.name());
    // Abstract sockets belong to the network namespace.
    namespace.enter();
    let server = format!("net_memif0,role=server,{socket}");
    let Some(_testpmd) = Testpmd::start(&namespace, &server) else { return };
    let mut queue = Queue::open(&format!("net_memif_p,role=client,{socket}"), Options::default());
    wait_for_links(&mut [&mut queue]);
    // The forwarder looks for packets before ours can leave.
    let ready = (0..PATIENCE).any(|_| {
        std::thread::sleep(Duration::from_millis(1));
        queue.receive().is_empty()
    });
    assert!(ready);
    comes_back(queue, 1514);
}

#[test]
fn testpmd_sends_back_over_packet_sockets() {
    let (near, far) = (Namespace::new(), Namespace::new());
    near.join(&far, 1, 1500);
    near.enter();
    let Some(_testpmd) = Testpmd::start(&far, "net_af_packet0,iface=veth") else { return };
    let options = Options { kernel_interface: true, ..Options::default() };
    comes_back(Queue::open("net_af_packet9,iface=veth", options), 1514);
}
