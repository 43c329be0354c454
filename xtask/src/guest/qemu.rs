//! One guest in QEMU: started, followed on its two serial lines, and ended by its process number.
//!
//! The first line is the console and goes to a log. The second, `control`, is a socket between the
//! guest's `init` and this task; `init.sh` says what is spoken on it. A guest that ends without an
//! exit code there has failed, and so has one that boots when it was not to.

use super::image::Image;
use crate::child::Child;
use crate::error::Error;
use crate::netns::Namespace;
use crate::stop::Stop;
use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long QEMU may take until it opens the control line.
const START_WAIT: Duration = Duration::from_secs(20);
/// How long QEMU may take to end after the guest told its exit code.
const OFF_WAIT: Duration = Duration::from_secs(10);
/// Lines of the console that an error repeats.
const CONSOLE_LINES: usize = 25;
/// The longest line on the control line, in bytes.
const LINE_MAX: usize = 4096;

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU, one by one.
    Tcg,
}

impl Accelerator {
    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }
}

/// A guest to be started.
pub struct Machine<'a> {
    /// Kernel, first file system and QEMU.
    pub image: &'a Image,
    /// What runs it.
    pub accelerator: Accelerator,
    /// The script that it runs.
    pub job: &'a str,
    /// Its memory, shared so that a vhost-user device can map it.
    pub memory_mib: u32,
    /// QEMU's arguments for the job's devices.
    pub devices: Vec<OsString>,
    /// Where QEMU runs; everywhere else there may be other interfaces.
    pub namespace: &'a Namespace,
    /// For the control socket and the job: a short path, for sun_path is 108 bytes.
    pub run: &'a Path,
    /// For the console's log.
    pub logs: &'a Path,
    /// Whether the console is also printed as it comes.
    pub show_console: bool,
}

/// What the guest asks its host for, and what the host says.
pub trait Host {
    /// Does what the words ask; the answer is for the guest.
    fn answer(&mut self, words: &[&str]) -> Result<String, Error>;
    /// Looks whether everything that the guest needs still runs.
    fn watch(&mut self) -> Result<(), Error>;
    /// Writes down what its daemons count, when the guest has ended or does not.
    fn write_counts(&mut self) -> Result<(), Error>;
}

/// How a job went.
#[derive(Debug)]
pub struct Outcome {
    /// The job's own.
    pub exit_code: i32,
    /// From the start of QEMU to its end.
    pub took: Duration,
}

/// A guest that runs; dropping it ends QEMU.
pub struct Guest {
    qemu: Child,
    control: Line,
    console: Console,
    start: Instant,
    boots: u32,
    boots_expected: u32,
    step: Option<(String, Instant)>,
}

impl Guest {
    /// Starts QEMU.
    pub fn start(machine: &Machine, stop: &Stop) -> Result<Guest, Error> {
        let socket = machine.run.join("control");
        let listener = UnixListener::bind(&socket).map_err(Error::file("listen on", &socket))?;
        listener.set_nonblocking(true).map_err(Error::file("listen on", &socket))?;
        let job = machine.run.join("job");
        fs::write(&job, machine.job).map_err(Error::file("write", &job))?;
        let console = machine.logs.join("console.log");
        // QEMU makes it anew, but later than it is looked for.
        fs::write(&console, "").map_err(Error::file("create", &console))?;
        let mut command = machine.image.qemu(machine.namespace);
        command.args(arguments(machine, &socket, &job, &console)).args(&machine.devices);
        let start = Instant::now();
        let mut qemu = Child::spawn(&mut command, &machine.logs.join("qemu.log"))?;
        let connected = stop.wait_for(START_WAIT, || {
            qemu.must_run()?;
            match listener.accept() {
                Ok((stream, _)) => Ok(Some(stream)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(Error::file("accept on", &socket)(error)),
            }
        })?;
        let Some(stream) = connected else {
            let what = format!("QEMU does not open its control line within {START_WAIT:?}");
            return Err(Error::task(what, format!("see {}", machine.logs.display())));
        };
        stream.set_nonblocking(true).map_err(Error::file("use", &socket))?;
        let console = Console { path: console, shown: 0, show: machine.show_console };
        let control = Line { stream, bytes: Vec::new() };
        Ok(Guest { qemu, control, console, start, boots: 0, boots_expected: 1, step: None })
    }

    /// Follows the guest until it is off; an error after `patience`.
    pub fn finish(
        mut self,
        host: &mut dyn Host,
        patience: Duration,
        stop: &Stop,
    ) -> Result<Outcome, Error> {
        let exit_code = stop.wait_for(patience, || {
            self.console.follow()?;
            host.watch()?;
            while let Some(line) = self.control.next()? {
                if let Some(code) = self.take(&line, host)? {
                    return Ok(Some(code));
                }
            }
            match self.qemu.must_run() {
                Ok(()) => Ok(None),
                Err(error) => Err(self.explain(&format!("QEMU ended before the job did: {error}"))),
            }
        })?;
        let Some(exit_code) = exit_code else {
            let what = match &self.step {
                Some((step, _)) => format!("no end within {patience:?}, while at \"{step}\""),
                None => format!("no end within {patience:?}"),
            };
            return Err(self.explain(&what));
        };
        self.end_step();
        stop.wait_for(OFF_WAIT, || Ok(self.qemu.must_run().is_err().then_some(())))?;
        self.console.follow()?;
        Ok(Outcome { exit_code, took: self.start.elapsed() })
    }

    /// The end of the console, for people.
    pub fn last_words(logs: &Path) -> String {
        let text = fs::read(logs.join("console.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n    ")
    }

    /// One line of the guest; its exit code if it was that.
    fn take(&mut self, line: &str, host: &mut dyn Host) -> Result<Option<i32>, Error> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["boot"] => {
                self.boots += 1;
                if self.boots > self.boots_expected {
                    return Err(self.explain("the guest started again by itself"));
                }
                self.control.say(&self.boots.to_string())?;
            }
            ["step", ..] => {
                self.end_step();
                let text = line.trim_start_matches("step ").to_string();
                self.step = Some((text, Instant::now()));
            }
            ["ask", "reboot"] => {
                self.boots_expected += 1;
                self.control.say("ok")?;
            }
            ["ask", ref words @ ..] => match host.answer(words) {
                Ok(answer) => self.control.say(&format!("ok {answer}"))?,
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                Err(error) => {
                    let why = error.to_string();
                    println!("  FAILED   {}: {why}", words.join(" "));
                    self.control.say(&format!("failed {}", why.replace('\n', " ")))?;
                }
            },
            ["exit", code] => match code.parse() {
                Ok(code) => return Ok(Some(code)),
                Err(_) => return Err(self.explain(&format!("exit code \"{code}\""))),
            },
            _ => return Err(self.explain(&format!("\"{line}\" on the control line"))),
        }
        Ok(None)
    }

    fn end_step(&mut self) {
        if let Some((step, start)) = self.step.take() {
            println!("  {:>6.1}s  {step}", start.elapsed().as_secs_f64());
        }
    }

    fn explain(&self, what: &str) -> Error {
        let logs = self.console.path.parent().expect("the log lies in a folder");
        Error::task(
            format!("{what}\n    {}", Guest::last_words(logs)),
            format!("the whole console is in {}", self.console.path.display()),
        )
    }
}

/// QEMU's arguments that every guest has.
fn arguments(machine: &Machine, control: &Path, job: &Path, console: &Path) -> Vec<OsString> {
    let accelerator = machine.accelerator;
    let processor = match accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "max",
    };
    let mut arguments: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
    add(&["-nodefaults", "-no-user-config", "-display", "none"]);
    add(&["-machine", &format!("q35,accel={},memory-backend=memory", accelerator.name())]);
    // One processor, but room for two: with one alone QEMU emulates locked instructions by plain
    // ones. Linux's full barrier is a locked instruction, and without it a virtqueue that another
    // thread serves may lose a kick or an interrupt.
    add(&["-cpu", processor, "-smp", "1,maxcpus=2", "-m", &format!("{}M", machine.memory_mib)]);
    let size = format!("size={}M", machine.memory_mib);
    add(&["-object", &format!("memory-backend-memfd,id=memory,share=on,{size}")]);
    add(&["-kernel", &machine.image.kernel().display().to_string()]);
    add(&["-initrd", &machine.image.initramfs().display().to_string()]);
    // A panic restarts the machine at once, which counts as a failure.
    add(&["-append", "console=ttyS0 quiet panic=-1 oops=panic no_timer_check"]);
    add(&["-fw_cfg", &format!("name=opt/org.outboard/job,file={}", job.display())]);
    add(&["-serial", &format!("file:{}", console.display())]);
    add(&["-chardev", &format!("socket,id=control,path={}", control.display())]);
    add(&["-serial", "chardev:control"]);
    arguments
}

/// The control line: whole lines in, whole lines out.
struct Line {
    stream: UnixStream,
    bytes: Vec<u8>,
}

impl Line {
    /// The next line, if all of it is there.
    fn next(&mut self) -> Result<Option<String>, Error> {
        let mut part = [0; 512];
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line).trim().to_string();
                if !line.is_empty() {
                    return Ok(Some(line));
                }
                continue;
            }
            if self.bytes.len() > LINE_MAX {
                let what = format!("more than {LINE_MAX} bytes without an end on the control line");
                return Err(Error::task(what, "see the job's script"));
            }
            match self.stream.read(&mut part) {
                Ok(bytes) if bytes > 0 => self.bytes.extend(&part[..bytes]),
                // QEMU's end is seen by its process.
                _ => return Ok(None),
            }
        }
    }

    fn say(&mut self, line: &str) -> Result<(), Error> {
        // A line is far smaller than a socket's buffer, which the guest has emptied before.
        self.stream
            .write_all(format!("{line}\n").as_bytes())
            .map_err(|e| Error::task(format!("the control line is broken: {e}"), "see QEMU's log"))
    }
}

/// The console's log, printed as far as it was not yet.
struct Console {
    path: PathBuf,
    shown: usize,
    show: bool,
}

impl Console {
    fn follow(&mut self) -> Result<(), Error> {
        if !self.show {
            return Ok(());
        }
        let log = fs::read(&self.path).map_err(Error::file("read", &self.path))?;
        let new = &log[self.shown.min(log.len())..];
        if let Some(end) = new.iter().rposition(|byte| *byte == b'\n') {
            for line in String::from_utf8_lossy(&new[..end]).lines() {
                println!("    | {}", line.trim_end());
            }
            self.shown += end + 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_whatever_the_pieces() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        let mut line = Line { stream: host, bytes: Vec::new() };
        assert_eq!(line.next().unwrap(), None);
        guest.write_all(b"step on").unwrap();
        assert_eq!(line.next().unwrap(), None);
        guest.write_all(b"e\r\n\nexit 0\nbo").unwrap();
        assert_eq!(line.next().unwrap().as_deref(), Some("step one"));
        assert_eq!(line.next().unwrap().as_deref(), Some("exit 0"));
        assert_eq!(line.next().unwrap(), None);
        line.say("ok").unwrap();
        let mut answer = [0; 3];
        guest.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"ok\n");
    }

    #[test]
    fn a_line_without_end_is_refused_at_its_limit() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        let mut line = Line { stream: host, bytes: Vec::new() };
        guest.write_all(&vec![b'a'; LINE_MAX]).unwrap();
        assert_eq!(line.next().unwrap(), None);
        guest.write_all(b"a").unwrap();
        assert!(line.next().is_err());
    }
}
