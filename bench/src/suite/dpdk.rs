//! What the DPDK port adds to a packet: testpmd's io forwarding on net_null, which receives and
//! sends mbufs, beside our rx to `Packet` to tx on the same driver, on the same core in turn.

use crate::error::Error;

/// Nanoseconds per 64-byte packet.
pub struct Cost {
    /// Through our port.
    pub ours_ns: f64,
    /// Through testpmd.
    pub testpmd_ns: f64,
}

/// Needs a build with DPDK.
#[cfg(not(feature = "dpdk"))]
pub fn measure(_seconds: f64, _core: usize) -> Result<Cost, Error> {
    let why = "this build has no DPDK; `cargo xtask setup --dpdk`, then build with \
               `--features dpdk`";
    Err(Error::Refused(why.into()))
}

/// Measures both for `seconds` each; the calling thread is on `core`.
#[cfg(feature = "dpdk")]
pub fn measure(seconds: f64, core: usize) -> Result<Cost, Error> {
    Ok(Cost { testpmd_ns: with::testpmd(seconds, core)?, ours_ns: with::ours(seconds, core)? })
}

#[cfg(feature = "dpdk")]
mod with {
    use crate::error::Error;
    use crate::stop;
    use outboard::clock::now_ns;
    use outboard::packet::{Burst, PortId};
    use outboard::port::Port;
    use outboard::port::dpdk::{Dpdk, DpdkConfig, Eal};
    use outboard_dma::Region;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::process::{Child, Command, Stdio};
    use std::sync::Arc;

    /// What both run with: ordinary pages, as where there are no others.
    const EAL: [&str; 4] = ["--no-huge", "--no-pci", "-m", "256"];
    /// Turns between two looks at the clock.
    const TURNS: u64 = 1_000;

    fn refused(error: impl std::fmt::Display) -> Error {
        Error::Refused(error.to_string())
    }

    pub fn ours(seconds: f64, core: usize) -> Result<f64, Error> {
        let mut arguments: Vec<String> = EAL.map(String::from).to_vec();
        arguments.extend(["-l".to_string(), core.to_string()]);
        let eal = Eal::start(&arguments).map_err(refused)?;
        eal.register_thread();
        let region = Region::new(2048).map_err(refused)?;
        let mut free = region.carve(2048).ok_or_else(|| refused("no frames"))?;
        let config = DpdkConfig {
            device: "net_null0",
            region,
            ring_frames: 512,
            mtu: 1500,
            kernel_interface: false,
            memory: None,
            tunnels: Vec::new(),
            tunnel_port: 0,
            port: PortId(0),
            counters: Arc::default(),
        };
        let mut port = Dpdk::open(eal, config, &mut free).map_err(refused)?;
        let (began_ns, mut now, mut packets) = (now_ns(), 0, 0);
        while (now as f64) < seconds * 1e9 {
            stop::check()?;
            for _ in 0..TURNS {
                let mut burst = Burst::new();
                port.rx(&mut burst, &mut free);
                packets += burst.len();
                port.tx(&mut burst, &mut free);
                for packet in burst {
                    packet.into_chain().free(&mut free);
                }
            }
            now = now_ns() - began_ns;
        }
        port.close(&mut free);
        Ok(now as f64 / packets.max(1) as f64)
    }

    struct Ended(Child);

    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    pub fn testpmd(seconds: f64, core: usize) -> Result<f64, Error> {
        let mut command = Command::new("stdbuf");
        command
            .args(["-oL", "dpdk-testpmd"])
            .args(EAL)
            .args([&format!("--lcores=0@{core},1@{core}"), "--vdev=net_null0"])
            .args([&format!("--file-prefix=outboard-bench-{}", std::process::id())])
            .args(["--no-telemetry", "--", "--forward-mode=io", "--port-topology=loop"])
            .args(["--total-num-mbufs=8192"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let child = command.spawn().map_err(|error| refused(format!("dpdk-testpmd: {error}")))?;
        let mut testpmd = Ended(child);
        let output = testpmd.0.stdout.take().ok_or_else(|| refused("dpdk-testpmd is mute"))?;
        let mut output = BufReader::new(output);
        let mut line = String::new();
        while !line.contains("Press enter") {
            line.clear();
            if output.read_line(&mut line).map_err(refused)? == 0 {
                return Err(refused("dpdk-testpmd did not start; is package dpdk-dev installed?"));
            }
        }
        let began_ns = now_ns();
        std::thread::sleep(std::time::Duration::from_secs_f64(seconds));
        stop::check()?;
        let mut input = testpmd.0.stdin.take().ok_or_else(|| refused("dpdk-testpmd is deaf"))?;
        input.write_all(b"\n").map_err(refused)?;
        let took_ns = now_ns() - began_ns;
        let mut rest = String::new();
        output.read_to_string(&mut rest).map_err(refused)?;
        let packets = rest.lines().find_map(|line| {
            let count = line.split_once("RX-packets:")?.1;
            count.split_whitespace().next()?.parse::<u64>().ok()
        });
        match packets {
            Some(packets) if packets > 0 => Ok(took_ns as f64 / packets as f64),
            _ => Err(refused("dpdk-testpmd did not tell how many packets it forwarded")),
        }
    }

    #[cfg(test)]
    mod tests {
        #[test]
        fn both_forward() {
            assert!(super::testpmd(0.2, 0).unwrap() > 0.0 && super::ours(0.2, 0).unwrap() > 0.0);
        }
    }
}
