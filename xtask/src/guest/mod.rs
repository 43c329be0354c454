//! `guest`: a real Linux in QEMU, whose own drivers are the other side of what Outboard serves.
//!
//! Kernel, programs and QEMU are Debian packages, unpacked once into the user's cache folder
//! ([`image`]); a job is a script that runs as the guest's only task ([`jobs`]), its console goes
//! to a log and its exit code comes back. Everything that a job makes is in guards: it goes on
//! success, failure and Ctrl-C, and what a killed run left is removed by the next.

mod cpio;
mod daemon;
mod image;
mod initramfs;
mod jobs;
mod packages;
mod qemu;

use crate::error::Error;
use crate::netns::{self, Namespace, Scratch};
use crate::setup::Finding;
use crate::stop::Stop;
use crate::test::NOT_RUN;
use crate::{child, process};
use image::Image;
use jobs::{JOBS, Job, Stage};
use packages::Release;
use qemu::{Accelerator, Outcome};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

const AFTER_HELP: &str = "\
Without JOB every job runs; `--list` says what there is. Logs, captures and the jobs' results are in
target/guest/JOB afterwards. Kernel, programs and QEMU are downloaded once (170 MB) with the mirror
and keys of this machine's own apt, and unpacked into ~/.cache/outboard/guest: removing that folder
fetches the newest ones. Nothing is installed.

The guest runs under KVM where KVM runs it (tried once), and is emulated elsewhere.

  cargo xtask guest                      every job
  cargo xtask guest virtio-blk --console one job, the guest's console as it comes
  cargo xtask guest nvme-tcp --keep      leaves the disks' files beside the logs";

/// Runs jobs in a Linux guest under QEMU
///
/// The guest's own drivers (virtio-blk, NVMe/TCP) work against Outboard. Needs root for network
/// namespaces and TAP, and Debian 12 or 13.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The jobs to run; every one if there is none.
    #[arg(value_name = "JOB")]
    jobs: Vec<String>,
    /// Lists the jobs.
    #[arg(long)]
    list: bool,
    /// Keeps the disks' files.
    #[arg(long)]
    keep: bool,
    /// Prints the guest's console while it runs.
    #[arg(long)]
    console: bool,
}

/// Where sockets are.
const RUN: &str = "/run";
/// How long a guest may take under KVM that does nothing but boot; emulated it is some seconds.
const PROBE_WAIT: Duration = Duration::from_secs(20);

/// Runs the jobs; fails unless every one succeeds.
pub fn run(args: &Args) -> Result<(), Error> {
    if args.list {
        for job in JOBS {
            println!("{:<12} {}", job.name, job.about);
        }
        return Ok(());
    }
    let wanted = args.jobs.iter().map(|name| find(name)).collect::<Result<Vec<&Job>, Error>>()?;
    let wanted = if wanted.is_empty() { JOBS.iter().collect() } else { wanted };
    let stop = Stop::install()?;
    let runner = Runner::open(args.keep, args.console, &stop)?;
    let mut failed = Vec::new();
    for job in wanted {
        let outcome = runner.run(job, &stop).and_then(|outcome| runner.check(job, &outcome));
        if let Err(error) = outcome {
            if matches!(error, Error::Interrupted) {
                return Err(error);
            }
            println!("  FAILED   {}: {error}", job.name);
            failed.push(job.name);
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Error::task(
            format!("failed in the guest: {}", failed.join(", ")),
            format!("logs are in {}", runner.results.display()),
        )),
    }
}

fn find(name: &str) -> Result<&'static Job, Error> {
    JOBS.iter().find(|job| job.name == name).ok_or_else(|| {
        let names: Vec<&str> = JOBS.iter().map(|job| job.name).collect();
        Error::task(format!("no job is called \"{name}\""), format!("say {}", names.join(", ")))
    })
}

/// The step of `setup --guest`: packages and image, if they can be had here.
pub fn set_up(change: bool) -> Finding {
    match Image::find() {
        Err(why) => Finding::Optional(why),
        Ok(Some(image)) => Finding::Fine(format!("Linux {} and QEMU", image.release())),
        Ok(None) if !change => Finding::Missing {
            what: "kernel, programs and QEMU are not unpacked".into(),
            remedy: "run `cargo xtask setup --guest` (170 MB)".into(),
        },
        Ok(None) => match Image::get() {
            Ok(image) => Finding::Done(format!("unpacked Linux {} and QEMU", image.release())),
            Err(error) => Finding::Optional(error.to_string()),
        },
    }
}

/// How the jobs went as tests.
#[derive(Debug, Default)]
pub struct Tested {
    /// Names of jobs that held.
    pub passed: Vec<String>,
    /// Names of those that did not.
    pub failed: Vec<String>,
    /// Names of those that cannot run here, and why.
    pub not_run: Vec<(String, String)>,
    /// How long those took whose script ended, well or not.
    pub took: Vec<(String, Duration)>,
}

/// How long a job may take on a quiet machine. Told, not enforced: the machine decides too.
const JOB_MAX: Duration = Duration::from_secs(60);

/// Says how long a job took, and whether that is too long.
pub fn judge(took: Duration) -> String {
    let mark =
        if took > JOB_MAX { format!(", MORE THAN {} s", JOB_MAX.as_secs()) } else { String::new() };
    format!("took {:.1} s{mark}", took.as_secs_f64())
}

/// Runs every job that is a test and whose name contains one of `filters` (all, if there are none).
pub fn test(filters: &[String]) -> Result<Tested, Error> {
    let mut tested = Tested::default();
    let named = |job: &Job| format!("guest::{}", job.name);
    let chosen =
        |job: &&Job| filters.is_empty() || filters.iter().any(|filter| named(job).contains(filter));
    let jobs: Vec<&Job> = JOBS.iter().filter(chosen).collect();
    if jobs.is_empty() {
        return Ok(tested);
    }
    if let Err(why) = Release::of_this_machine() {
        println!("{NOT_RUN}{why}");
        tested.not_run.extend(jobs.iter().map(|job| (named(job), why.clone())));
        return Ok(tested);
    }
    let stop = Stop::install()?;
    let runner = match Runner::open(false, false, &stop) {
        Ok(runner) => runner,
        Err(Error::Interrupted) => return Err(Error::Interrupted),
        Err(error) => {
            println!("{NOT_RUN}{error}");
            let why = error.to_string();
            tested.not_run.extend(jobs.iter().map(|job| (named(job), why.clone())));
            return Ok(tested);
        }
    };
    for job in jobs {
        let outcome = runner.run(job, &stop).and_then(|outcome| {
            tested.took.push((named(job), outcome.took));
            runner.check(job, &outcome)
        });
        match outcome {
            Ok(()) => tested.passed.push(named(job)),
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => {
                println!("  FAILED   {}: {error}", job.name);
                tested.failed.push(named(job));
            }
        }
    }
    Ok(tested)
}

/// What every job needs: image, accelerator, the daemon.
struct Runner {
    image: Image,
    accelerator: Accelerator,
    outboard: PathBuf,
    results: PathBuf,
    keep: bool,
    show_console: bool,
    _lock: File,
}

impl Runner {
    fn open(keep: bool, show_console: bool, stop: &Stop) -> Result<Runner, Error> {
        for left in netns::remove_leftovers(&[Path::new(RUN)])? {
            println!("removed {left}, left by a run that was killed");
        }
        let target = process::target_dir()?;
        let results = target.join("guest");
        let lock = lock(&results, stop)?;
        println!("guest: kernel, programs, QEMU");
        let image = Image::get()?;
        stop.check()?;
        let mut runner = Runner {
            image,
            accelerator: Accelerator::Tcg,
            outboard: target.join("debug/outboard"),
            results,
            keep,
            show_console,
            _lock: lock,
        };
        runner.accelerator = runner.choose_accelerator(stop)?;
        let mut build = process::cargo();
        build.args(["build", "--locked", "--quiet", "-p", "outboard", "--bin", "outboard"]);
        child::run(&mut build, stop)?;
        Ok(runner)
    }

    /// KVM if a guest boots with it: a device that answers may still not run this kernel.
    fn choose_accelerator(&mut self, stop: &Stop) -> Result<Accelerator, Error> {
        if let Some(known) = self.image.accelerator() {
            return Ok(known);
        }
        self.accelerator = Accelerator::Kvm;
        let kvm = File::options().read(true).write(true).open("/dev/kvm");
        let outcome = kvm.map_err(Error::file("open", "/dev/kvm")).and_then(|_| {
            println!("  ...      trying KVM");
            let outcome = self.run_within(&jobs::BOOT, PROBE_WAIT, stop)?;
            self.check(&jobs::BOOT, &outcome)
        });
        let found = match outcome {
            Ok(()) => Accelerator::Kvm,
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(_) => Accelerator::Tcg,
        };
        println!("  ...      guests run by {} here", found.name());
        self.image.set_accelerator(found)?;
        Ok(found)
    }

    fn run(&self, job: &Job, stop: &Stop) -> Result<Outcome, Error> {
        self.run_within(job, job.patience, stop)
    }

    /// Runs a job until its script has ended.
    fn run_within(&self, job: &Job, patience: Duration, stop: &Stop) -> Result<Outcome, Error> {
        let accelerator = self.accelerator.name();
        println!("== {} (Linux {}, {accelerator})", job.name, self.image.release());
        let results = self.results.join(job.name);
        if results.exists() {
            fs::remove_dir_all(&results).map_err(Error::file("remove", &results))?;
        }
        fs::create_dir_all(&results).map_err(Error::file("create", &results))?;
        let sockets = Scratch::new(Path::new(RUN), "guest")?;
        let disks = Disks { folder: results.join("disks"), keep: self.keep };
        fs::create_dir_all(&disks.folder).map_err(Error::file("create", &disks.folder))?;
        let namespace = Namespace::new("guest")?;
        let stage = Stage {
            image: &self.image,
            accelerator: self.accelerator,
            outboard: &self.outboard,
            namespace: &namespace,
            sockets: sockets.path(),
            disks: &disks.folder,
            logs: &results,
            show_console: self.show_console,
            patience,
            stop,
        };
        let outcome = (job.run)(&stage, job)?;
        println!("  exit code {}, {}", outcome.exit_code, judge(outcome.took));
        Ok(outcome)
    }

    /// An error when a job's script did not end with exit code 0.
    fn check(&self, job: &Job, outcome: &Outcome) -> Result<(), Error> {
        let results = self.results.join(job.name);
        match outcome.exit_code {
            0 => Ok(()),
            code => Err(Error::task(
                format!(
                    "exit code {code} of the job's script\n    {}",
                    qemu::Guest::last_words(&results)
                ),
                format!("the whole console is in {}", results.join("console.log").display()),
            )),
        }
    }
}

/// Keeps a second run from the folder of results until this value is dropped.
fn lock(results: &Path, stop: &Stop) -> Result<File, Error> {
    fs::create_dir_all(results).map_err(Error::file("create", results))?;
    let path = results.join("lock");
    let file = File::create(&path).map_err(Error::file("create", &path))?;
    let mut told = false;
    let locked = stop.wait_for(Duration::MAX, || {
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(Some(()));
        }
        if !told {
            println!("guest: waiting for another run with {}", results.display());
            told = true;
        }
        Ok(None)
    })?;
    locked.expect("waits for ever");
    Ok(file)
}

/// The folder of the disks' files, removed when dropped unless they are to be kept.
struct Disks {
    folder: PathBuf,
    keep: bool,
}

impl Drop for Disks {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = fs::remove_dir_all(&self.folder)
        {
            eprintln!("error: cannot remove {}: {error}", self.folder.display());
        }
    }
}
