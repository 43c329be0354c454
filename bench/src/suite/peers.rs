//! Other people's programs, run as they advise: qemu-storage-daemon and qemu-nbd (QEMU's storage
//! stack without QEMU), fio. Each is ended when its guard is dropped, or with this process.

use super::bed::{Scratch, must};
use crate::error::Error;
use crate::stop;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take until it listens.
const READY: Duration = Duration::from_secs(10);
/// Size of a null device.
const NULL_BYTES: u64 = 64 << 20;

/// A running program.
struct Process {
    child: Child,
    name: &'static str,
    log: PathBuf,
}

impl Process {
    /// Starts it on one core; setpriv ends it should this process be killed.
    fn start(name: &'static str, core: usize, words: &[String], log: &Path) -> Result<Self, Error> {
        let cannot_write = || Error::system(format!("cannot write {}", log.display()));
        let said = std::fs::File::create(log).map_err(cannot_write())?;
        let also = said.try_clone().map_err(cannot_write())?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "taskset", "-c", &core.to_string(), name]);
        let child = command
            .args(words)
            .stdin(Stdio::null())
            .stdout(said)
            .stderr(also)
            .spawn()
            .map_err(Error::system(format!("cannot start `{name}` through `setpriv`")))?;
        Ok(Process { child, name, log: log.to_owned() })
    }

    /// Waits until `is_ready`; an end before is an error with what it said.
    fn wait(&mut self, is_ready: impl Fn() -> bool) -> Result<(), Error> {
        let began = Instant::now();
        loop {
            stop::check()?;
            let said = || std::fs::read_to_string(&self.log).unwrap_or_default();
            let ended = self.child.try_wait().map_err(Error::system("cannot watch a process"))?;
            if let Some(status) = ended {
                return Err(Error::Refused(format!(
                    "{} ended ({status}): {}; `cargo xtask setup` installs what is missing",
                    self.name,
                    said().trim()
                )));
            }
            if is_ready() {
                return Ok(());
            }
            if began.elapsed() > READY {
                let name = self.name;
                return Err(Error::Refused(format!("{name} does not listen: {}", said().trim())));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing of theirs needs an orderly end: the files are the suite's own.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What qemu-storage-daemon serves.
#[derive(Clone, Copy, Debug)]
pub enum Backend<'a> {
    /// A device that completes at once and moves nothing.
    Null,
    /// A raw file without the page cache, through io_uring.
    File(&'a Path),
    /// An export of qemu-nbd.
    Nbd(SocketAddr),
}

/// qemu-storage-daemon with one vhost-user-blk export in an I/O thread.
pub struct StorageDaemon {
    process: Process,
    socket: PathBuf,
    _files: Scratch,
}

impl StorageDaemon {
    /// Starts it on `core`; the I/O thread polls for up to `poll_max_ns` before it sleeps.
    pub fn start(backend: Backend, poll_max_ns: u64, core: usize) -> Result<Self, Error> {
        let files = Scratch::new(&std::env::temp_dir())?;
        let socket = files.path().join("disk");
        let blockdev = match backend {
            Backend::Null => format!("driver=null-co,node-name=disk,size={NULL_BYTES}"),
            Backend::File(image) => format!(
                "driver=file,node-name=disk,filename={},cache.direct=on,aio=io_uring",
                image.display()
            ),
            Backend::Nbd(address) => format!(
                "driver=nbd,node-name=disk,server.type=inet,server.host={},server.port={},\
                 export={EXPORT}",
                address.ip(),
                address.port()
            ),
        };
        let words = [
            "--object".to_owned(),
            format!("iothread,id=io,poll-max-ns={poll_max_ns}"),
            "--blockdev".to_owned(),
            blockdev,
            "--export".to_owned(),
            format!(
                "type=vhost-user-blk,id=export,node-name=disk,writable=on,iothread=io,\
                 addr.type=unix,addr.path={}",
                socket.display()
            ),
        ];
        let log = files.path().join("log");
        let mut process = Process::start("qemu-storage-daemon", core, &words, &log)?;
        process.wait(|| socket.exists())?;
        Ok(StorageDaemon { process, socket, _files: files })
    }

    /// Its vhost-user socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process identifier: taskset and setpriv replace themselves.
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }
}

/// The name of qemu-nbd's export.
const EXPORT: &str = "bench";

/// qemu-nbd that serves a raw file without the page cache, through io_uring.
pub struct NbdServer {
    process: Process,
    _files: Scratch,
}

impl NbdServer {
    /// Starts it on `core`, listening on `address`.
    pub fn start(image: &Path, address: SocketAddr, core: usize) -> Result<Self, Error> {
        let files = Scratch::new(&std::env::temp_dir())?;
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let options =
            ["--persistent", "--format=raw", "--cache=none", "--aio=io_uring", "--shared=4"];
        let place = ["--export-name", EXPORT, "--bind", &ip, "--port", &port];
        let mut words: Vec<String> = options.into_iter().chain(place).map(str::to_owned).collect();
        words.push(image.display().to_string());
        let mut process = Process::start("qemu-nbd", core, &words, &files.path().join("log"))?;
        process.wait(|| std::net::TcpStream::connect(address).is_ok())?;
        Ok(NbdServer { process, _files: files })
    }

    /// Its process identifier.
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }
}

/// What fio measures for random reads of 4 KiB, one at a time, of a bare file: its p50.
pub fn fio_p50_ns(image: &Path, size_mib: u64, seconds: f64, core: usize) -> Result<f64, Error> {
    let mut words: Vec<String> = [
        "--name=bare",
        "--ioengine=io_uring",
        "--direct=1",
        "--rw=randread",
        "--bs=4k",
        "--iodepth=1",
        // Looks at the completion ring without sleeping, as the `file` driver does.
        "--iodepth_batch_complete_min=0",
        "--time_based",
        "--ramp_time=500ms",
        "--percentile_list=50",
        "--lat_percentiles=1",
        "--randrepeat=1",
        "--output-format=json",
    ]
    .map(str::to_owned)
    .into();
    words.push(format!("--filename={}", image.display()));
    words.push(format!("--size={size_mib}m"));
    words.push(format!("--runtime={}ms", (seconds * 1e3) as u64));
    words.push(format!("--cpus_allowed={core}"));
    let said = must("fio", &words)?;
    let unread = || Error::Refused(format!("fio's output is not understood: {}", said.trim()));
    let begin = said.find('{').ok_or_else(unread)?;
    let json: Value = serde_json::from_str(&said[begin..]).map_err(|_| unread())?;
    let median = &json["jobs"][0]["read"]["lat_ns"]["percentile"]["50.000000"];
    median.as_f64().ok_or_else(unread)
}
