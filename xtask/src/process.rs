//! Running programs: every failure carries the command line and what the program said.

use crate::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};

/// Lines of a failed program's output that an error repeats.
const OUTPUT_LINES: usize = 15;

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the root")
}

/// `cargo`, the one that started this task, in the repository's root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Where cargo puts what it builds.
pub fn target_dir() -> Result<PathBuf, Error> {
    let metadata = metadata()?;
    match metadata["target_directory"].as_str() {
        Some(path) => Ok(PathBuf::from(path)),
        None => Err(Error::task("cargo metadata names no target directory", "update cargo")),
    }
}

/// `cargo metadata` of the workspace's own packages.
pub fn metadata() -> Result<serde_json::Value, Error> {
    let text = read(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    serde_json::from_str(&text)
        .map_err(|e| Error::task(format!("cargo metadata is not JSON: {e}"), "update cargo"))
}

/// Runs a program to its end; its output goes to the terminal.
pub fn run(command: &mut Command) -> Result<(), Error> {
    let status = command.status().map_err(start_error(command))?;
    check(command, status, String::new())
}

/// Runs a program to its end and returns its standard output.
pub fn read(command: &mut Command) -> Result<String, Error> {
    let output = command.output().map_err(start_error(command))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    check(command, output.status, tail(&output))?;
    Ok(text)
}

/// The command line as one would type it.
pub fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

/// The file that the shell would run for `program`, if there is one.
pub fn which(program: &str) -> Option<PathBuf> {
    // Some accounts' PATH lacks the system directories where ip and ethtool live.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin:/usr/bin:/bin";
    path.split(':').map(|dir| Path::new(dir).join(program)).find(|path| path.is_file())
}

/// How a program ended, in words.
pub fn status_text(status: ExitStatus) -> String {
    status.to_string().replace("exit status: ", "exit code ")
}

/// The error of a program that could not be started.
pub fn start_error(command: &Command) -> impl FnOnce(std::io::Error) -> Error {
    let command = describe(command);
    move |source| Error::Start { command, source }
}

/// An error unless the program succeeded.
pub fn check(command: &Command, status: ExitStatus, output: String) -> Result<(), Error> {
    if status.success() {
        return Ok(());
    }
    Err(Error::Failed { command: describe(command), status: status_text(status), output })
}

/// The last lines that a program printed, errors last.
pub fn tail(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(OUTPUT_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_program_is_quoted_with_its_last_words() {
        let error = read(Command::new("sh").args(["-c", "echo so; echo why >&2; exit 3"]));
        let text = error.unwrap_err().to_string();
        assert!(text.contains("sh -c"), "{text}");
        assert!(text.contains("exit code 3"), "{text}");
        assert!(text.contains("so\n    why"), "{text}");
    }

    #[test]
    fn a_missing_program_points_at_setup() {
        let text = run(&mut Command::new("outboard-no-such")).unwrap_err().to_string();
        assert!(text.contains("outboard-no-such") && text.contains("xtask setup"), "{text}");
    }

    #[test]
    fn programs_are_found_on_the_path() {
        assert!(which("sh").is_some());
        assert!(which("outboard-no-such").is_none());
    }
}
