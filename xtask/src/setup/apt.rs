//! apt-get and dpkg, without questions. Another apt at work is waited for, with a message.

use crate::error::Error;
use crate::process;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long another apt is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(600);
/// How often it is asked again.
const LOCK_RETRY: Duration = Duration::from_secs(2);

/// Whether dpkg has the package installed and configured.
pub fn installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${db:Status-Status}", package]);
    query.output().is_ok_and(|output| output.stdout == b"installed")
}

/// Whether the package lists know a version of the package.
pub fn available(package: &str) -> bool {
    let mut query = Command::new("apt-cache");
    query.args(["show", "--no-all-versions", package]);
    query.output().is_ok_and(|output| output.status.success() && !output.stdout.is_empty())
}

/// Reads the package lists anew.
pub fn update() -> Result<(), Error> {
    run(&["update"], "reading the package lists")
}

/// Installs packages, without recommended ones.
pub fn install(packages: &[&str]) -> Result<(), Error> {
    let mut args = vec!["install", "--yes", "--no-install-recommends"];
    args.extend(packages);
    run(&args, &format!("installing {}", packages.join(", ")))
}

/// One apt-get, again while another one holds its lock.
pub fn run(args: &[&str], title: &str) -> Result<(), Error> {
    println!("  ...      {title}");
    let start = Instant::now();
    let mut told = false;
    loop {
        match attempt(args, title) {
            Err(Error::Failed { output, .. })
                if lock_holder(&output).is_some() && start.elapsed() < LOCK_WAIT =>
            {
                if !told {
                    let holder = lock_holder(&output).unwrap_or_default();
                    println!("  ...      waiting for another apt to end{holder}");
                    told = true;
                }
                thread::sleep(LOCK_RETRY);
            }
            outcome => return outcome,
        }
    }
}

/// One run of apt-get, its last line beside a spinner.
fn attempt(args: &[&str], title: &str) -> Result<(), Error> {
    let mut command = Command::new("apt-get");
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(process::start_error(&command))?;
    let mut stderr = child.stderr.take().expect("stderr is piped");
    let errors = thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stderr.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let bar = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("           {spinner} {prefix} {elapsed} {wide_msg}");
    bar.set_style(style.expect("the template is valid"));
    bar.set_prefix(title.to_string());
    bar.enable_steady_tick(Duration::from_millis(120));
    let stdout = child.stdout.take().expect("stdout is piped");
    for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
        bar.set_message(String::from_utf8_lossy(&line).trim().to_string());
    }
    let status = child.wait().map_err(process::start_error(&command))?;
    bar.finish_and_clear();
    let errors = errors.join().expect("the reader does not panic");
    process::check(&command, status, errors)
}

/// `Some` when apt failed because another one holds its lock: who, as far as apt says.
fn lock_holder(output: &str) -> Option<String> {
    let line = output.lines().find(|line| {
        line.contains("Could not get lock") || line.contains("Unable to acquire the dpkg")
    })?;
    let holder = line.split_once("It is held by ").map(|(_, holder)| holder.trim_end_matches('.'));
    Some(holder.map(|holder| format!(" ({holder})")).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_names_its_holder() {
        let output = "E: Could not get lock /var/lib/dpkg/lock-frontend. \
                      It is held by process 812 (apt-get)\nN: Be aware that …\n";
        assert_eq!(lock_holder(output).as_deref(), Some(" (process 812 (apt-get))"));
        let output = "E: Could not get lock /var/lib/apt/lists/lock - open (11: …)\n";
        assert_eq!(lock_holder(output).as_deref(), Some(""));
    }

    #[test]
    fn other_failures_are_not_waited_for() {
        assert_eq!(lock_holder("E: Unable to locate package outboard-no-such\n"), None);
    }
}
