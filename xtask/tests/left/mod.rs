//! What a run of a task has made and started, found by the names of its namespaces and directories.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Everything in these folders that is named after a run.
pub fn named_after(pid: u32, folders: &[&Path]) -> Vec<PathBuf> {
    let prefix = format!("obdemo{pid}-");
    folders
        .iter()
        .flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&prefix))
        .collect()
}

/// Programs that run in a run's namespaces: pid and start time, for pids are used again.
pub fn programs_of(pid: u32) -> Vec<(u32, String)> {
    named_after(pid, &[Path::new("/run/netns")])
        .into_iter()
        .flat_map(|path| {
            let name = path.file_name().unwrap().to_os_string();
            let output = Command::new("ip").args(["netns", "pids"]).arg(name).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines().map(|line| line.trim().parse().unwrap()).collect::<Vec<u32>>()
        })
        .filter_map(|pid| Some((pid, start_time(pid)?)))
        .collect()
}

/// The first of the programs that still runs.
pub fn alive(programs: &[(u32, String)]) -> Option<&(u32, String)> {
    programs.iter().find(|(pid, start)| start_time(*pid).as_ref() == Some(start))
}

/// When a running process started (proc_pid_stat(5), field 22); `None` once it has ended.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    (fields[0] != "Z").then(|| fields[19].to_string())
}
