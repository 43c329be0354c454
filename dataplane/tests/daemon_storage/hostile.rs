//! Strangers at an export's port while a host does verified I/O.

use crate::guest::{Guest, Oracle};
use crate::host::{
    Daemon, Host, NQN, Scratch, address, count, disk, file_target, remote_disk, until,
};
use outboard::virtio::driver::{BlkDriver, DriverOp};
use outboard_sim::Rng;
use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An ICReq (NVMe/TCP 1.0, section 3.6.2.2).
fn icreq() -> [u8; 128] {
    let mut bytes = [0; 128];
    bytes[..8].copy_from_slice(&[0, 0, 128, 0, 128, 0, 0, 0]);
    bytes
}

/// A connection that has sent this.
fn stranger(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(address).unwrap();
    // It may have been turned away meanwhile.
    let _ = socket.write_all(bytes);
    socket
}

#[test]
fn strangers_hold_nobody_up() {
    let (scratch, address) = (Scratch::new(), address());
    let target = Host::new(&scratch, "b", &file_target("data.img", address)).run();
    let initiator = Host::new(&scratch, "a", &remote_disk(address)).run();
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(4 << 20));
    guest.runs(200);
    let mut rng = Rng::new(7);
    for round in 0..60 {
        let mut bytes = [0; 512];
        rng.fill(&mut bytes);
        // Garbage; half a header; half an ICReq; a whole one and garbage; one and half a command.
        let sent = match round % 5 {
            0 => bytes.to_vec(),
            1 => icreq()[..5].to_vec(),
            2 => icreq()[..100].to_vec(),
            3 => [&icreq()[..], &bytes].concat(),
            _ => [&icreq()[..], &[4, 0, 72, 0, 72, 0, 0, 0, 1]].concat(),
        };
        let socket = stranger(address, &sent);
        guest.runs(16);
        if round % 2 == 0 {
            let _ = socket.set_linger_now();
        }
    }
    let idle: Vec<TcpStream> = (0..200).map(|_| stranger(address, &[])).collect();
    guest.runs(300);
    assert!(target.export(NQN).connections <= 32);
    assert_eq!(initiator.ended("vda", "connection_lost"), 0);
    drop(idle);
    until("they are gone", || (target.export(NQN).connections == 2).then_some(()));
    let errors = target.export(NQN).errors;
    assert!(errors.len() > 2 && count(&errors, "connection_fault") > 0, "{errors:?}");
    let crowded = count(&errors, "connection_crowded_out");
    let turned_away = count(&errors, "connection_turned_away");
    assert!(crowded + turned_away >= 150, "{errors:?}");
    guest.runs(200);
    guest.verify();
    initiator.stop();
    target.stop();
}

/// Ends a connection by a reset.
trait Reset {
    fn set_linger_now(&self) -> rustix::io::Result<()>;
}

impl Reset for TcpStream {
    fn set_linger_now(&self) -> rustix::io::Result<()> {
        rustix::net::sockopt::set_socket_linger(self, Some(Duration::ZERO))
    }
}

#[test]
fn a_host_comes_in_while_strangers_crowd() {
    let (scratch, address) = (Scratch::new(), address());
    let target = Host::new(&scratch, "b", &file_target("data.img", address)).run();
    let idle: Vec<TcpStream> = (0..200).map(|_| stranger(address, &icreq())).collect();
    until("they have settled", || (target.export(NQN).connections <= 16).then_some(()));
    let initiator = Host::new(&scratch, "a", &remote_disk(address)).run();
    let mut guest = Guest::new(&scratch, "vda", Oracle::new(4 << 20));
    guest.runs(200);
    drop(idle);
    guest.verify();
    initiator.stop();
    // Stopped with strangers connected.
    let _idle: Vec<TcpStream> = (0..10).map(|_| stranger(address, &icreq()[..9])).collect();
    target.stop();
}

/// A guest whose memory can be cut: the only mapping of its size here.
struct Cutter {
    driver: BlkDriver,
    file: File,
}

impl Cutter {
    /// The rings and what describes the I/Os of up to 4 slots; their data follows.
    const KEPT: u64 = 8192;
    const IO_BYTES: u32 = 20 << 10;

    /// `slots` is another number in every test: it makes the size.
    fn new(scratch: &Scratch, disk: &str, slots: u16) -> Cutter {
        let socket = scratch.path(&format!("disk-{disk}.sock"));
        let driver = BlkDriver::connect(&socket, 64, slots, Cutter::IO_BYTES).unwrap();
        let bytes = Cutter::KEPT + u64::from(slots) * u64::from(Cutter::IO_BYTES);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let guests = maps.lines().filter(|line| line.contains("outboard-guest"));
        let ranges = guests.filter_map(|line| line.split_once(' '));
        let mut ranges = ranges.map(|(range, _)| range).filter(|range| {
            let (start, end) = range.split_once('-').unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            number(end) - number(start) == bytes
        });
        let range = ranges.next().expect("it is mapped");
        let path = format!("/proc/self/map_files/{range}");
        Cutter { driver, file: File::options().write(true).open(path).unwrap() }
    }
}

#[test]
fn a_guest_that_takes_its_memory_away_harms_nobody_else() {
    let (scratch, address) = (Scratch::new(), address());
    let target = Host::new(&scratch, "b", &file_target("data.img", address)).run();
    let text = remote_disk(address) + &disk("vdb", "far");
    let initiator = Host::new(&scratch, "a", &text).run();
    cut_beside(&scratch, &initiator, 3);
    assert_eq!(initiator.volume("far").state, "ready");
    assert!(!initiator.log().contains("lost 127."), "{}", initiator.log());
    initiator.stop();
    target.stop();
}

/// Guests of the disk `vdb` take their memory away while the one of `vda`, on the same volume, goes
/// on: none of its I/O may fail.
#[track_caller]
fn cut_beside(scratch: &Scratch, daemon: &Daemon, slots: u16) {
    let mut guest = Guest::new(scratch, "vda", Oracle::new(2 << 20));
    guest.runs(200);
    for op in [DriverOp::Write, DriverOp::Read] {
        let mut cutter = Cutter::new(scratch, "vdb", slots);
        cutter.file.set_len(Cutter::KEPT).unwrap();
        for _ in 0..20 {
            // Behind what the other guest uses.
            cutter.driver.submit(op, 3 << 20, 0, Cutter::IO_BYTES);
            cutter.driver.kick();
            guest.runs(32);
            // Broken by name, or served with zeros: its own affair.
            if cutter.driver.poll().is_none() {
                break;
            }
        }
    }
    guest.verify();
    // Seen by an access of ours, or by the kernel's: its own fault, and not the medium's.
    until("the disk is broken by name", || {
        (count(&daemon.disk("vdb").queue_faults, "memory_torn") == 2).then_some(())
    });
    assert_eq!(daemon.ended("vdb", "media"), 0);
    assert_eq!(daemon.disk("vda").queue_faults, []);
}

#[test]
fn a_guest_that_takes_its_memory_away_harms_nobody_on_a_file() {
    let scratch = Scratch::new();
    let text = "[[volume]]\nname = 'data'\nkind = 'file'\npath = 'DIR/data.img'\ncreate = '4MiB'\n"
        .to_owned()
        + &disk("vda", "data")
        + &disk("vdb", "data");
    let daemon = Host::new(&scratch, "a", &text).run();
    cut_beside(&scratch, &daemon, 4);
    daemon.stop();
}
