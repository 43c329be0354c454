//! Programs that run beside a task. Each is the leader of its own process group, so that Ctrl-C
//! in the terminal reaches only the task, which then ends them in order.

use crate::error::Error;
use crate::process;
use crate::stop::{LOOK_EVERY, Stop};
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a program may take to end after SIGTERM, before SIGKILL.
const TERM_WAIT: Duration = Duration::from_secs(5);
/// Lines of a log that an error repeats.
const LOG_LINES: usize = 15;

/// A program that runs until it is stopped or dropped. What it prints goes to its log.
#[derive(Debug)]
pub struct Child {
    inner: Group,
    command: String,
    log: PathBuf,
}

impl Child {
    /// Starts it.
    pub fn spawn(command: &mut Command, log: &Path) -> Result<Child, Error> {
        let file = File::create(log).map_err(Error::file("create", log))?;
        let errors = file.try_clone().map_err(Error::file("share", log))?;
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        let inner = Group::spawn(command)?;
        Ok(Child { inner, command: process::describe(command), log: log.to_path_buf() })
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.inner.0.id()
    }

    /// An error with the end of its log when it no longer runs.
    pub fn must_run(&mut self) -> Result<(), Error> {
        match self.inner.ended()? {
            None => Ok(()),
            Some(status) => Err(self.failure(status)),
        }
    }

    /// Waits until it ends by itself, at most for `patience`; an error unless it succeeds.
    pub fn finish(mut self, patience: Duration, stop: &Stop) -> Result<(), Error> {
        match stop.wait_for(patience, || self.inner.ended())? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.failure(status)),
            None => Err(Error::task(
                format!("`{}` did not end within {patience:?}", self.command),
                format!("it was ended; its log is {}", self.log.display()),
            )),
        }
    }

    /// Asks it to end and waits; an error when it fails in doing so or must be killed.
    pub fn stop(mut self) -> Result<(), Error> {
        self.must_run()?;
        match self.inner.end() {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.failure(status)),
            None => Err(Error::task(
                format!("`{}` did not end within {TERM_WAIT:?} of SIGTERM", self.command),
                format!("it was killed; its log is {}", self.log.display()),
            )),
        }
    }

    /// Ends it at once, as a crash would; an error when it had ended by itself.
    pub fn kill(mut self) -> Result<(), Error> {
        self.must_run()?;
        self.inner.signal(Signal::KILL);
        let _ = self.inner.0.wait();
        Ok(())
    }

    fn failure(&self, status: ExitStatus) -> Error {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        Error::Failed {
            command: self.command.clone(),
            status: process::status_text(status),
            output: lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"),
        }
    }
}

/// Runs a program to its end, at most for `patience`, and returns its standard output. It is
/// killed when time is up and when the user asks to stop.
pub fn read(command: &mut Command, patience: Duration, stop: &Stop) -> Result<String, Error> {
    let ended = outcome(command, patience, stop)?;
    process::check(command, ended.status, format!("{}{}", ended.stdout, ended.stderr))?;
    Ok(ended.stdout)
}

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// The same for a program whose exit code is an answer.
pub fn outcome(command: &mut Command, patience: Duration, stop: &Stop) -> Result<Ended, Error> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut group = Group::spawn(command)?;
    let stdout = collect(group.0.stdout.take().expect("stdout is piped"));
    let stderr = collect(group.0.stderr.take().expect("stderr is piped"));
    let Some(status) = stop.wait_for(patience, || group.ended())? else {
        return Err(Error::Failed {
            command: process::describe(command),
            status: format!("no end within {patience:?}"),
            output: String::new(),
        });
    };
    let stdout = stdout.join().expect("the reader does not panic");
    let stderr = stderr.join().expect("the reader does not panic");
    Ok(Ended { status, stdout, stderr })
}

/// Runs a program to its end; what it prints goes to the terminal.
pub fn run(command: &mut Command, stop: &Stop) -> Result<(), Error> {
    command.stdin(Stdio::null());
    let mut group = Group::spawn(command)?;
    // Patience without end: only the user or the program ends it.
    let status = stop.wait_for(Duration::MAX, || group.ended())?;
    process::check(command, status.expect("waits for ever"), String::new())
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A process group that ends with this value.
#[derive(Debug)]
struct Group(std::process::Child);

impl Group {
    fn spawn(command: &mut Command) -> Result<Group, Error> {
        let child = command.process_group(0).spawn().map_err(process::start_error(command))?;
        Ok(Group(child))
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.0.try_wait().map_err(|e| Error::task(format!("waiting failed: {e}"), "report this"))
    }

    /// SIGTERM, then SIGKILL; the status unless it had to be killed.
    fn end(&mut self) -> Option<ExitStatus> {
        if let Ok(Some(status)) = self.0.try_wait() {
            return Some(status);
        }
        self.signal(Signal::TERM);
        let start = Instant::now();
        while start.elapsed() < TERM_WAIT {
            if let Ok(Some(status)) = self.0.try_wait() {
                return Some(status);
            }
            thread::sleep(LOOK_EVERY);
        }
        self.signal(Signal::KILL);
        let _ = self.0.wait();
        None
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        // Fails only when the group has ended meanwhile.
        let _ = kill_process_group(pid.expect("a process number is positive"), signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn alive(pid: u32) -> bool {
        // A zombie whose parent is this process would still have a directory.
        let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !status.is_empty() && !status.contains(") Z ")
    }

    fn log(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("outboard-xtask-{}-{name}.log", std::process::id()))
    }

    #[test]
    fn a_dropped_child_is_gone_with_what_it_started() {
        let log = log("dropped");
        let mut child = Child::spawn(&mut shell("sleep 600 & echo $!; wait"), &log).unwrap();
        let stop = Stop::default();
        let line = || Ok(fs::read_to_string(&log).ok().filter(|text| text.ends_with('\n')));
        let grandchild = stop.wait_for(LONG, line).unwrap().unwrap();
        let grandchild: u32 = grandchild.trim().parse().unwrap();
        child.must_run().unwrap();
        let pid = child.pid();
        assert!(alive(pid) && alive(grandchild));
        drop(child);
        assert!(!alive(pid));
        let gone = stop.wait_for(LONG, || Ok((!alive(grandchild)).then_some(()))).unwrap();
        assert!(gone.is_some(), "the group gets the signal, not the leader alone");
        fs::remove_file(&log).unwrap();
    }

    #[test]
    fn a_child_that_ended_is_an_error_with_its_last_words() {
        let log = log("ended");
        let mut child = Child::spawn(&mut shell("echo no such port >&2; exit 4"), &log).unwrap();
        let ended = || Ok(child.must_run().err());
        let error = Stop::default().wait_for(LONG, ended).unwrap().unwrap().to_string();
        assert!(error.contains("exit code 4") && error.contains("no such port"), "{error}");
        fs::remove_file(&log).unwrap();
    }

    #[test]
    fn a_clean_end_on_sigterm_is_a_success_and_another_is_not() {
        let log = log("stopped");
        let ready = |log: &Path| {
            let text = || Ok(fs::read_to_string(log).ok().filter(|text| text.contains("ready")));
            Stop::default().wait_for(LONG, text).unwrap().unwrap();
        };
        let script = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done";
        let child = Child::spawn(&mut shell(script), &log).unwrap();
        ready(&log);
        child.stop().unwrap();
        let child = Child::spawn(&mut shell(&script.replace("exit 0", "exit 7")), &log).unwrap();
        ready(&log);
        assert!(child.stop().unwrap_err().to_string().contains("exit code 7"));
        fs::remove_file(&log).unwrap();
    }

    #[test]
    fn a_child_is_waited_for_until_it_ends_or_patience_does() {
        let log = log("finished");
        let stop = Stop::default();
        let spawn = |script: &str| Child::spawn(&mut shell(script), &log).unwrap();
        spawn("sleep 0.05").finish(LONG, &stop).unwrap();
        let error = spawn("echo why; exit 5").finish(LONG, &stop).unwrap_err().to_string();
        assert!(error.contains("exit code 5") && error.contains("why"), "{error}");
        let late = spawn("sleep 600");
        let pid = late.pid();
        let error = late.finish(Duration::ZERO, &stop).unwrap_err().to_string();
        assert!(error.contains("did not end within") && !alive(pid), "{error}");
        fs::remove_file(&log).unwrap();
    }

    #[test]
    fn reading_ends_with_the_program_with_patience_or_when_asked() {
        let stop = Stop::default();
        assert_eq!(read(&mut shell("echo a"), LONG, &stop).unwrap(), "a\n");
        let ended = outcome(&mut shell("echo a; echo b >&2; exit 3"), LONG, &stop).unwrap();
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("a\n", "b\n"));
        assert_eq!(ended.status.code(), Some(3));
        let error = read(&mut shell("sleep 600"), Duration::ZERO, &stop).unwrap_err().to_string();
        assert!(error.contains("no end within"), "{error}");
        stop.ask();
        let asked = read(&mut shell("sleep 600"), LONG, &stop);
        assert!(matches!(asked, Err(Error::Interrupted)));
    }
}
