//! One `outboard` per host: its configuration, its tenants' interfaces, its life.

use super::topology::{ADDRESSES, HOSTS, TENANT_MTU, Topology, UNDERLAY, VPCS, VTEPS, Vpc};
use crate::child::{self, Child};
use crate::error::Error;
use crate::netns::own_name;
use crate::stop::Stop;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where daemons pin their BPF programs, each in a directory of its instance's name.
pub const PINS: &str = "/sys/fs/bpf/outboard";
/// How long a daemon may take until its control socket answers.
const READY_WAIT: Duration = Duration::from_secs(20);
/// How long a command of `outboard` may take.
const COMMAND_WAIT: Duration = Duration::from_secs(20);
/// The name of host B's file volume on the network between the hosts.
const NQN: &str = "nqn.2025-01.org.outboard:demo.shared";
/// Size of host B's file volume.
const VOLUME: &str = "256MiB";
/// How the daemons' workers wait: two daemons, a generator and its far end share two cores.
pub const WAIT_MODE: &str = "yield";

/// Where the daemons' files are.
pub struct Places<'a> {
    /// The program.
    pub outboard: &'a Path,
    /// Sockets: a short path, for sun_path is 108 bytes.
    pub sockets: &'a Path,
    /// Configurations and the volume's file: a disk, not memory.
    pub files: &'a Path,
    /// Logs.
    pub logs: &'a Path,
}

impl Places<'_> {
    /// The vhost-user socket of host A's remote disk.
    pub fn disk(&self) -> PathBuf {
        self.sockets.join("disk")
    }

    /// The file of host B's volume.
    pub fn volume(&self) -> PathBuf {
        self.files.join("shared.img")
    }

    fn config(&self, host: usize) -> PathBuf {
        self.files.join(format!("host-{}.toml", HOSTS[host]))
    }
}

/// Both daemons; dropping them ends them.
pub struct Daemons {
    children: Vec<Child>,
}

impl Daemons {
    /// Writes the configurations, attaches the tenants, starts both daemons and waits until
    /// their control sockets answer.
    pub fn start(topology: &Topology, places: &Places, stop: &Stop) -> Result<Daemons, Error> {
        // Host B first: it serves the disk that host A connects to.
        let mut daemons = Daemons { children: Vec::new() };
        for host in (0..HOSTS.len()).rev() {
            let config = places.config(host);
            fs::write(&config, configuration(host, places))
                .map_err(Error::file("write", &config))?;
            for (vpc, Vpc { name, .. }) in VPCS.iter().enumerate() {
                let mut attach = topology.host(host).command(places.outboard);
                attach.arg("attach").arg("--config").arg(&config);
                attach.args(["--port", name, "--netns", topology.tenant(host, vpc).name()]);
                child::read(&mut attach, COMMAND_WAIT, stop)?;
            }
            let mut run = topology.host(host).command(places.outboard);
            run.arg("run").arg("--config").arg(&config);
            let log = places.logs.join(format!("outboard-{}.log", HOSTS[host]));
            daemons.children.insert(0, Child::spawn(&mut run, &log)?);
            daemons.wait_until_ready(places, host, stop)?;
        }
        Ok(daemons)
    }

    fn wait_until_ready(&mut self, places: &Places, host: usize, stop: &Stop) -> Result<(), Error> {
        // Host B is started first and moves back when host A comes before it.
        let child = &mut self.children[0];
        let answers = || {
            child.must_run()?;
            match stats(places, host, stop) {
                Err(Error::Interrupted) => Err(Error::Interrupted),
                outcome => Ok(outcome.ok()),
            }
        };
        match stop.wait_for(READY_WAIT, answers)? {
            Some(_) => Ok(()),
            None => Err(Error::task(
                format!("outboard on host {} does not answer on its socket", HOSTS[host]),
                format!("see its log in {}", places.logs.display()),
            )),
        }
    }

    /// `--watch` arguments for the thread census.
    pub fn watch(&self) -> Vec<String> {
        let pids = self.children.iter().map(Child::pid).zip(HOSTS);
        pids.flat_map(|(pid, host)| ["--watch".into(), format!("outboard-{host}={pid}")]).collect()
    }

    /// Ends both on SIGTERM; an error when one does not end well.
    pub fn stop(self) -> Result<(), Error> {
        self.children.into_iter().try_for_each(Child::stop)
    }
}

/// Removes what the daemons pinned; made before they start, so that it goes after they ended. A
/// daemon's pins outlive it on purpose: a restart takes them over.
pub struct Pins;

impl Drop for Pins {
    fn drop(&mut self) {
        for host in HOSTS {
            let path = Path::new(PINS).join(own_name(host));
            if path.exists()
                && let Err(error) = fs::remove_dir_all(&path)
            {
                eprintln!("error: cannot remove {}: {error}", path.display());
            }
        }
    }
}

/// What a daemon counts.
pub fn stats(places: &Places, host: usize, stop: &Stop) -> Result<Value, Error> {
    let mut command = std::process::Command::new(places.outboard);
    command.args(["stats", "--json", "--config"]).arg(places.config(host));
    let text = child::read(&mut command, COMMAND_WAIT, stop)?;
    serde_json::from_str(&text)
        .map_err(|e| Error::task(format!("outboard stats is not JSON: {e}"), "report this"))
}

/// The configuration of a host, as a user would write it.
fn configuration(host: usize, places: &Places) -> String {
    let name = own_name(HOSTS[host]);
    let socket = places.sockets.join(HOSTS[host]);
    let mut text = format!(
        "name = \"{name}\"\n\n[runtime]\nmode = \"{WAIT_MODE}\"\n\n[control]\n\
         socket = \"{}\"\n\n[[worker]]\ncore = {host}\n\n[[uplink]]\nname = \"uplink\"\n\
         interface = \"{UNDERLAY}\"\nvtep = \"{}\"\n",
        socket.display(),
        VTEPS[host]
    );
    for Vpc { name, vni } in &VPCS {
        text += &format!(
            "\n[[vpc]]\nname = \"{name}\"\nvni = {vni}\ngateway = \"10.0.0.254\"\n\n\
             [[vpc.route]]\nto = \"{}/32\"\nvia = \"{}\"\n\n[[port]]\nname = \"{name}\"\n\
             interface = \"ob-{name}\"\nvpc = \"{name}\"\naddress = \"{}/24\"\n\
             mtu = {TENANT_MTU}\n",
            ADDRESSES[1 - host],
            VTEPS[1 - host],
            ADDRESSES[host]
        );
    }
    text + &storage(host, places)
}

/// Host A's remote disk, or host B's file and its export.
fn storage(host: usize, places: &Places) -> String {
    let target = format!("{}:4420", VTEPS[1]);
    match host {
        0 => format!(
            "\n[[volume]]\nname = \"remote\"\nkind = \"remote\"\naddress = \"{target}\"\n\
             nqn = \"{NQN}\"\nnsid = 1\n\n[[disk]]\nname = \"vda\"\nvolume = \"remote\"\n\
             socket = \"{}\"\n",
            places.disk().display()
        ),
        _ => format!(
            "\n[[volume]]\nname = \"shared\"\nkind = \"file\"\npath = \"{}\"\n\
             create = \"{VOLUME}\"\nblock_bytes = 4096\n\n[[export]]\nvolume = \"shared\"\n\
             nqn = \"{NQN}\"\nlisten = \"{target}\"\n",
            places.volume().display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_toml_with_both_vpcs_and_mirrored_addresses() {
        let places = Places {
            outboard: Path::new("outboard"),
            sockets: Path::new("sockets"),
            files: Path::new("files"),
            logs: Path::new("logs"),
        };
        let parse = |host| configuration(host, &places).parse::<toml::Table>().unwrap();
        let (a, b) = (parse(0), parse(1));
        assert_eq!(a["vpc"].as_array().unwrap().len(), 2);
        assert_eq!(a["vpc"][0]["route"][0]["via"], b["uplink"][0]["vtep"]);
        assert_eq!(b["vpc"][1]["route"][0]["via"], a["uplink"][0]["vtep"]);
        assert_eq!(a["volume"][0]["address"], b["export"][0]["listen"]);
        assert_eq!(a["volume"][0]["nqn"], b["export"][0]["nqn"]);
        assert_eq!(a["port"][0]["address"].as_str(), Some("10.0.0.1/24"));
    }
}
